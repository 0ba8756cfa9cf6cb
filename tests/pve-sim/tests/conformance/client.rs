//! A plain HTTP client that shows the status line as it came.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

use crate::golden::Record;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Complete {
        status_line: String,
        body: String,
    },
    /// The connection was closed without an answer.
    Closed,
    /// Nothing came before the deadline.
    Nothing,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        match self {
            Self::Complete { body, .. } => serde_json::from_str(body).unwrap_or_else(|_| Value::from(body.as_str())),
            _ => Value::Null,
        }
    }
}

/// How the request proves who sends it.
pub(crate) enum Login<'a> {
    Ticket(&'a str),
    Made(String),
    Token(&'a str),
    None,
}

/// Sends a record's request and waits for the answer, `patience` at most.
pub(crate) fn send(address: SocketAddr, record: &Record, path: &str, login: &Login<'_>, patience: Duration) -> Answer {
    match exchange(address, record, path, login, patience) {
        Ok(bytes) => parse(&bytes),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Answer::Nothing,
        Err(_) => Answer::Closed,
    }
}

fn exchange(address: SocketAddr, record: &Record, path: &str, login: &Login<'_>, patience: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&request(record, path, login))?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Head and body in one piece, as a client of the local daemon must send them.
fn request(record: &Record, path: &str, login: &Login<'_>) -> Vec<u8> {
    let method = record.method.as_deref().unwrap_or("GET");
    let (mut target, mut body, mut content_type) = (escape(path), None, Some("application/x-www-form-urlencoded"));
    let raw = record.params.get("raw_body");
    if let Some(raw) = raw {
        body = Some(raw_body(raw, &record.params));
        content_type = record.params["content_type"].as_str();
    } else if !record.params.is_null() {
        let form = form(&record.params);
        if method == "GET" || method == "DELETE" {
            if !form.is_empty() {
                target = format!("{target}{}{form}", if target.contains('?') { '&' } else { '?' });
            }
        } else if record.name == "config-json-body" {
            content_type = Some("application/json");
            body = Some(record.params.to_string().into_bytes());
        } else {
            body = Some(form.into_bytes());
        }
    }
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    let ticket = match login {
        Login::Ticket(ticket) => *ticket,
        Login::Made(ticket) => ticket.as_str(),
        Login::Token(_) | Login::None => "",
    };
    let own = |name: &str| record.request_headers.iter().any(|line| line.to_ascii_lowercase().starts_with(name));
    if !ticket.is_empty() && !own("cookie") && !own("authorization") {
        head += &format!("Cookie: PVEAuthCookie={ticket}\r\n");
    }
    if let Login::Token(token) = login {
        head += &format!("Authorization: PVEAPIToken={token}\r\n");
    }
    for line in &record.request_headers {
        head += &format!("{}\r\n", line.replace("<ticket>", ticket));
    }
    if let Some(body) = &body {
        if let Some(kind) = content_type {
            head += &format!("Content-Type: {kind}\r\n");
        }
        head += &format!("Content-Length: {}\r\n", body.len());
    } else if matches!(method, "POST" | "PUT") && !own("transfer-encoding") {
        head += "Content-Length: 0\r\n";
    }
    [head.as_bytes(), b"\r\n", &body.unwrap_or_default()].concat()
}

/// Bytes were recorded one character each; long bodies are cut in the recording and end in what fills them.
fn raw_body(raw: &Value, params: &Value) -> Vec<u8> {
    let mut bytes: Vec<u8> = raw.as_str().unwrap_or_default().chars().filter_map(|c| u8::try_from(u32::from(c)).ok()).collect();
    let length = params["length"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(bytes.len());
    if bytes.len() > length {
        bytes.truncate(length);
    }
    let fill = bytes.last().copied().unwrap_or(b'x');
    bytes.resize(length, fill);
    bytes
}

fn form(params: &Value) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Bool(value) => u8::from(*value).to_string(),
        other => other.to_string(),
    };
    match params {
        Value::Object(map) => {
            for (key, value) in map {
                for one in value.as_array().unwrap_or(&vec![value.clone()]) {
                    form.append_pair(key, &text(one));
                }
            }
        }
        Value::Array(pairs) => {
            for pair in pairs {
                form.append_pair(pair[0].as_str().unwrap_or_default(), &text(&pair[1]));
            }
        }
        _ => {}
    }
    form.finish()
}

fn escape(path: &str) -> String {
    path.chars().map(|c| if c == ' ' { String::from("%20") } else { c.to_string() }).collect()
}

fn parse(bytes: &[u8]) -> Answer {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Answer::Closed };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status_line = head.lines().next().unwrap_or_default().to_owned();
    let body = &bytes[end + 4..];
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(body) } else { body.to_vec() };
    if status_line.starts_with("HTTP/1.1 100") {
        return parse(&body);
    }
    Answer::Complete { status_line, body: String::from_utf8_lossy(&body).into_owned() }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(String::from_utf8_lossy(&rest[..end]).trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(end + 2..end + 2 + size).filter(|chunk| !chunk.is_empty()) else { break };
        whole.extend_from_slice(chunk);
        rest = rest.get(end + 2 + size + 2..).unwrap_or_default();
    }
    whole
}
