//! One HTTP request: who sends it, which call it means, how the answer looks.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    ext::ReasonPhrase,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, TRANSFER_ENCODING},
};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::{Call, Failure, Params, Reply, server::Shared, stream::AfterHeader};
use crate::{faults::Faults, ticket};

/// The longest header line that is read.
const HEADER_LINE_MAX: usize = 8 * 1024;
/// The longest body that is read.
const BODY_MAX: usize = 1024 * 1024;
/// The most header lines that are read.
const HEADERS_MAX: usize = 64;

/// The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer")]
pub(super) struct Dropped;

/// What is sent back.
struct Answer {
    code: u16,
    reason: String,
    body: Vec<u8>,
    content_type: Option<&'static str>,
}

impl Answer {
    fn plain(code: u16, text: &str) -> Self {
        let reason = text.lines().next().unwrap_or_default().to_owned();
        Self { code, reason, body: text.as_bytes().to_vec(), content_type: None }
    }

    fn bare(code: u16, reason: &str) -> Self {
        Self { code, reason: reason.to_owned(), body: Vec::new(), content_type: None }
    }

    fn json(code: u16, reason: &str, body: &Value) -> Self {
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        Self { code, reason, body: body.to_string().into_bytes(), content_type: Some("application/json;charset=UTF-8") }
    }
}

impl From<Result<Reply, Failure>> for Answer {
    fn from(result: Result<Reply, Failure>) -> Self {
        match result {
            Ok(Reply { plain: Some(text), .. }) => {
                Self { code: 200, reason: String::from("OK"), body: text.into_bytes(), content_type: Some("text/plain") }
            }
            Ok(Reply { data, mut extra, .. }) => {
                extra.insert(String::from("data"), data);
                Self::json(200, "OK", &Value::Object(extra))
            }
            Err(Failure::Died(text)) => Self::json(500, &text, &json!({"data": null, "message": with_line_end(&text)})),
            Err(Failure::Status { code, message }) => {
                Self::json(code, &message, &json!({"data": null, "message": with_line_end(&message)}))
            }
            Err(Failure::Plain { code, text }) => Self::plain(code, &text),
            Err(error @ Failure::NotImplemented { .. }) => {
                let text = error.to_string();
                Self::json(501, &text, &json!({"data": null, "message": text}))
            }
            Err(Failure::Parameters(errors)) => {
                let body = json!({"data": null, "message": "Parameter verification failed.\n", "errors": errors});
                Self::json(400, "Parameter verification failed.", &body)
            }
        }
    }
}

fn with_line_end(text: &str) -> String {
    format!("{}\n", text.trim_end_matches('\n'))
}

/// Answers one request.
pub(super) async fn answer(request: Request<Incoming>, shared: Arc<Shared>, after: AfterHeader) -> Result<Response<Full<Bytes>>, Dropped> {
    let long = request.headers().len() > HEADERS_MAX;
    if long || request.headers().iter().any(|(name, value)| name.as_str().len() + value.len() > HEADER_LINE_MAX) {
        return Err(Dropped);
    }
    let (head, body) = request.into_parts();
    let length = head.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok()).unwrap_or(0);
    let split = length > 0 && after.bytes() == 0;
    let ready = match early_refusal(&head, length) {
        Some(answer) => answer,
        None => {
            let bytes = body.collect().await.map_err(|_| Dropped)?.to_bytes();
            let ticket = ticket_of(&head.headers);
            let Some(ticket) = ticket else {
                tokio::time::sleep(shared.settings.refusal_delay).await;
                return respond(Answer::bare(401, "No ticket"));
            };
            let permit = Arc::clone(&shared.workers).acquire_owned().await.map_err(|_| Dropped)?;
            let (send, receive) = tokio::sync::oneshot::channel();
            let serving = Arc::clone(&shared);
            // A thread of its own for each call: one that hangs with the cluster file system must not keep the process from ending.
            std::thread::spawn(move || {
                let answer = serve(&serving, &head, &bytes, &ticket, split);
                drop(permit);
                let _ = send.send(answer);
            });
            match receive.await.map_err(|_| Dropped)? {
                Some(answer) => answer,
                None => {
                    tokio::time::sleep(shared.settings.refusal_delay).await;
                    Answer::bare(401, "Authentication failed!")
                }
            }
        }
    };
    if ready.reason.chars().any(|c| u32::from(c) > 0xff) {
        tokio::time::sleep(shared.settings.drop_delay).await;
        return Err(Dropped);
    }
    respond(ready)
}

fn early_refusal(head: &hyper::http::request::Parts, length: usize) -> Option<Answer> {
    let method = head.method.as_str();
    if !matches!(method, "GET" | "POST" | "PUT" | "DELETE") {
        return Some(Answer::bare(501, &format!("method '{method}' not available")));
    }
    if head.headers.contains_key(TRANSFER_ENCODING) {
        return Some(Answer::plain(501, "chunked transfer encoding not supported"));
    }
    if length > 0 && matches!(method, "GET" | "DELETE") {
        return Some(Answer::plain(501, &format!("Unexpected content for method '{method}'")));
    }
    if length > BODY_MAX {
        return Some(Answer::plain(501, "for data too large"));
    }
    None
}

/// Serves a request on a worker; none means that the ticket is refused.
fn serve(shared: &Shared, head: &hyper::http::request::Parts, body: &Bytes, ticket: &str, split: bool) -> Option<Answer> {
    if !shared.layout.etc_pve().join("nodes").exists() {
        // The cluster file system is down: every call begins with the list of users.
        return Some(Answer::bare(500, "RPCEnvironment init request failed: Unable to load access control list: Connection refused"));
    }
    let user = ticket::verify(&shared.layout, ticket)?;
    if split && Faults::load(&shared.layout.faults()).is_ok_and(|faults| faults.split_request_bug) {
        return Some(Answer::from(Err(Failure::die("user name not set"))));
    }
    let method = head.method.as_str();
    let path = head.uri.path();
    let Some(rest) = path.strip_prefix("/api2/") else {
        return Some(if path == "/api2" {
            Answer::plain(501, "no such uri")
        } else {
            Answer::plain(500, &format!("no such file '{path}'\n"))
        });
    };
    let (format, rest) = rest.split_once('/').unwrap_or((rest, ""));
    if !matches!(format, "json" | "extjs") {
        return Some(Answer::plain(501, &format!("no formatter for uri /{rest}, {format}")));
    }
    let segments: Vec<String> =
        rest.split('/').filter(|part| !part.is_empty()).map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned()).collect();
    let mut given = match parameters(head, body) {
        Ok(given) => given,
        Err(answer) => return Some(answer),
    };
    Some(Answer::from(dispatch(shared, method, &segments, &mut given, user)))
}

fn dispatch(shared: &Shared, method: &str, segments: &[String], given: &mut Params, user: String) -> Result<Reply, Failure> {
    let Some((route, names)) = shared.table.find(method, segments) else {
        return Err(Failure::NotImplemented { method: method.to_owned(), path: format!("/{}", segments.join("/")) });
    };
    for (name, value) in names {
        if name == "node" {
            local_node(shared, &value)?;
        }
        given.set(name, value);
    }
    let params = route.schema.verify(given)?;
    (route.handler)(&Call { layout: shared.layout.clone(), user, params, settings: Arc::clone(&shared.settings) })
}

/// A call for another node is never passed on by the local daemon.
fn local_node(shared: &Shared, node: &str) -> Result<(), Failure> {
    if node == shared.layout.node() || node == "localhost" {
        return Ok(());
    }
    let members = std::fs::read(shared.layout.etc_pve().join(".members")).unwrap_or_default();
    let members: Value = serde_json::from_slice(&members).unwrap_or_default();
    if members["nodelist"][node].is_object() || node.eq_ignore_ascii_case(shared.layout.node()) {
        return Err(Failure::Plain { code: 500, text: String::from("proxy not allowed") });
    }
    if node.parse::<std::net::IpAddr>().is_ok() {
        return Err(Failure::die(format!("address lookup for '{node}' did not find any IP address")));
    }
    let why = if node == ".." { "Name or service not known" } else { "Temporary failure in name resolution" };
    Err(Failure::die(format!("hostname lookup '{node}' failed - failed to get address info for: {node}: {why}")))
}

fn ticket_of(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all("cookie").iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    let found = cookies.filter_map(|cookie| cookie.trim().strip_prefix("PVEAuthCookie=")).next();
    let header = headers.get("authorization").and_then(|value| value.to_str().ok());
    let in_header = header.map(|value| value.strip_prefix("PVEAuthCookie=").unwrap_or(value)).filter(|value| value.starts_with("PVE"));
    let text = percent_decode_str(found.or(in_header)?).decode_utf8_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}

fn parameters(head: &hyper::http::request::Parts, body: &Bytes) -> Result<Params, Answer> {
    let mut given: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut form = |text: &[u8]| {
        // PVE takes a semicolon for an ampersand.
        for part in text.split(|b| matches!(b, b'&' | b';')).filter(|part| !part.is_empty()) {
            for (name, value) in form_urlencoded::parse(part) {
                // The daemon decodes values, and takes each byte of a name for a character.
                let name: String = name.bytes().map(char::from).collect();
                given.entry(name).or_default().push(Value::String(value.into_owned()));
            }
        }
    };
    form(head.uri.query().unwrap_or_default().as_bytes());
    let content_type = head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut sent = Map::new();
    if content_type.starts_with("application/json") && matches!(head.method.as_str(), "POST" | "PUT") {
        sent = json_body(body)?;
    } else if content_type.is_empty() || content_type.starts_with("application/x-www-form-urlencoded") {
        form(body);
    } else if !body.is_empty() {
        return Err(Answer::plain(506, &format!("upload 'Content-Type '{content_type}' not implemented")));
    }
    let one_or_many = |mut values: Vec<Value>| if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
    let mut params = Params(given.into_iter().map(|(name, values)| (name, one_or_many(values))).collect());
    params.0.extend(sent);
    Ok(params)
}

fn json_body(body: &Bytes) -> Result<Map<String, Value>, Answer> {
    let daemon = "/usr/share/perl5/PVE/APIServer/AnyEvent.pm";
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(Answer::plain(500, &format!("Not a HASH reference at {daemon} line 978.\n"))),
        Err(_) => {
            let at = body.len();
            let what = "malformed JSON string, neither tag, array, object, number, string or atom, at character offset";
            Err(Answer::plain(500, &format!("{what} {at} (before \"(end of string)\") at {daemon} line 934.\n")))
        }
    }
}

fn respond(answer: Answer) -> Result<Response<Full<Bytes>>, Dropped> {
    let latin1: Vec<u8> = answer.reason.chars().filter_map(|c| u8::try_from(u32::from(c)).ok()).collect();
    let reason = ReasonPhrase::try_from(latin1).map_err(|_| Dropped)?;
    let close = answer.code != 200;
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = hyper::StatusCode::from_u16(answer.code).map_err(|_| Dropped)?;
    response.extensions_mut().insert(reason);
    let headers = response.headers_mut();
    headers.insert("Cache-Control", HeaderValue::from_static("max-age=0"));
    headers.insert("Connection", HeaderValue::from_static(if close { "close" } else { "Keep-Alive" }));
    headers.insert("Pragma", HeaderValue::from_static("no-cache"));
    headers.insert("Server", HeaderValue::from_static("pve-api-daemon/3.0"));
    if let Some(content_type) = answer.content_type {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    Ok(response)
}
