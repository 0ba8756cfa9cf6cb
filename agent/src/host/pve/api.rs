//! The client of PVE's local API: HTTP on loopback, with a ticket, one call at a time.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use tokio::{net::TcpStream, sync::Mutex, time::timeout};

use super::{
    classify::{ANSWER_LOST, Subject, classify_answer},
    ticket::Tickets,
};
use crate::error::Error;

/// Where PVE's local daemon listens.
pub(super) const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 85);

/// A loopback connection is accepted by the kernel: only a full queue takes time.
const CONNECT: Duration = Duration::from_secs(3);
/// Reads take up to 0.2 s; a hung cluster file system answers nothing.
const READ: Duration = Duration::from_secs(15);
/// A call that changes something waits up to 10 s for the VM's lock and as long for the storage's.
const WRITE: Duration = Duration::from_secs(60);
/// How long a call waits for its turn.
const TURN: Duration = Duration::from_secs(60);
/// An idle connection older than this is not used again. The daemon closes idle ones after some seconds, and a request that meets the
/// closing would be lost without an answer.
const IDLE: Duration = Duration::from_secs(1);
/// Largest answer that is read: a list of 10,000 volumes has about 3 MB.
const LARGEST: usize = 32 << 20;

/// Everything but what RFC 3986 calls unreserved. A blank becomes `%20`, never `+`: PVE decodes `sshkeys` a second time, as a URL.
const QUOTED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Quotes text for a path segment, a form, a cookie.
pub(super) fn quote(text: &str) -> String {
    utf8_percent_encode(text, QUOTED).to_string()
}

/// Parameters as a form.
pub(super) fn form(params: &[(&str, String)]) -> String {
    params.iter().map(|(key, value)| format!("{}={}", quote(key), quote(value))).collect::<Vec<_>>().join("&")
}

/// One call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Below `/api2/json`, quoted.
    pub(super) path: String,
    pub(super) params: Vec<(&'a str, String)>,
    /// What it is about, for the meaning of errors.
    pub(super) about: Subject<'a>,
}

type Body = Full<Bytes>;

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

/// The client.
pub(super) struct Api {
    address: SocketAddr,
    tickets: Tickets,
    /// The idle connection. Whoever holds the lock has its turn: the daemon has three workers, and the web interface needs them too.
    turn: Mutex<Option<Idle>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Why there is no answer.
enum NoAnswer {
    /// PVE has not seen the request.
    NotSent(String),
    /// PVE may have seen it.
    Lost(String),
}

struct Answer {
    status: StatusCode,
    reason: String,
    body: Bytes,
}

impl Api {
    pub(super) fn new(address: SocketAddr, tickets: Tickets) -> Self {
        Self { address, tickets, turn: Mutex::new(None) }
    }

    /// Makes a call and returns its `data`.
    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Value, Error> {
        let mut ticket = self.tickets.get().await?;
        let mut answer = self.answer(call, &ticket).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            // Around the rotation of PVE's key even a fresh ticket is refused. Nothing was carried out, so the call may be made again.
            self.tickets.refused(&ticket).await;
            ticket = self.tickets.get().await?;
            answer = self.answer(call, &ticket).await?;
            if answer.status == StatusCode::UNAUTHORIZED {
                self.tickets.refused(&ticket).await;
            }
        }
        decode(call, &answer)
    }

    async fn answer(&self, call: &Call<'_>, ticket: &str) -> Result<Answer, Error> {
        let down = |detail: String| Error::PveDown { detail };
        let mut turn = timeout(TURN, self.turn.lock()).await.map_err(|_| down(format!("busy for {} s", TURN.as_secs())))?;
        // Taken, so that a call given up in the middle closes its connection.
        let mut idle = turn.take().filter(|idle| idle.since.elapsed() < IDLE);
        let reading = call.method == Method::GET;
        let deadline = if reading { READ } else { WRITE };
        loop {
            let reused = idle.is_some();
            let outcome = match self.connection(idle.take()).await {
                Ok(sender) => timeout(deadline, exchange(sender, call, ticket))
                    .await
                    .unwrap_or_else(|_| Err(NoAnswer::Lost(format!("no answer within {} s", deadline.as_secs())))),
                Err(error) => Err(error),
            };
            match outcome {
                Ok((answer, sender)) => {
                    *turn = sender.map(|sender| Idle { sender, since: Instant::now() });
                    return Ok(answer);
                }
                Err(NoAnswer::NotSent(_)) if reused => {}
                Err(NoAnswer::Lost(_)) if reused && reading => {}
                Err(NoAnswer::Lost(detail)) if !reading => {
                    tracing::warn!(method = %call.method, path = call.path, detail, "the answer of PVE's daemon was lost");
                    return Err(Error::PveAnswerLost { detail: ANSWER_LOST.to_owned() });
                }
                Err(NoAnswer::NotSent(detail) | NoAnswer::Lost(detail)) => return Err(down(detail)),
            }
        }
    }

    async fn connection(&self, idle: Option<Idle>) -> Result<SendRequest<Body>, NoAnswer> {
        if let Some(mut idle) = idle {
            return match idle.sender.ready().await {
                Ok(()) => Ok(idle.sender),
                Err(error) => Err(NoAnswer::NotSent(error.to_string())),
            };
        }
        let failed = |detail: String| NoAnswer::NotSent(format!("{}: {detail}", self.address));
        let stream = timeout(CONNECT, TcpStream::connect(self.address))
            .await
            .map_err(|_| failed(format!("no connection within {} s", CONNECT.as_secs())))?
            .map_err(|e| failed(e.to_string()))?;
        stream.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(e.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to PVE's daemon");
            }
        });
        Ok(sender)
    }
}

/// Sends the request and reads the answer; the connection comes back if it can be used again.
async fn exchange(mut sender: SendRequest<Body>, call: &Call<'_>, ticket: &str) -> Result<(Answer, Option<SendRequest<Body>>), NoAnswer> {
    let request = request(call, ticket).map_err(|e| NoAnswer::NotSent(e.to_string()))?;
    let response = sender.try_send_request(request).await.map_err(|mut error| match error.take_message() {
        Some(_) => NoAnswer::NotSent(error.into_error().to_string()),
        None => NoAnswer::Lost(error.into_error().to_string()),
    })?;
    let (parts, body) = response.into_parts();
    // PVE puts its message into the status line; text that is no UTF-8 is Latin-1.
    let reason = parts.extensions.get::<hyper::ext::ReasonPhrase>().map(|r| r.as_bytes().iter().map(|b| char::from(*b)).collect());
    let reason = reason.unwrap_or_else(|| parts.status.canonical_reason().unwrap_or_default().to_owned());
    let body = Limited::new(body, LARGEST).collect().await.map_err(|e| NoAnswer::Lost(e.to_string()))?.to_bytes();
    let again = sender.ready().await.is_ok().then_some(sender);
    Ok((Answer { status: parts.status, reason, body }, again))
}

fn request(call: &Call<'_>, ticket: &str) -> http::Result<Request<Body>> {
    let encoded = form(&call.params);
    let in_query = matches!(call.method, Method::GET | Method::DELETE);
    let mut uri = format!("/api2/json{}", call.path);
    if in_query && !encoded.is_empty() {
        uri.push('?');
        uri.push_str(&encoded);
    }
    let request = Request::builder()
        .method(call.method.clone())
        .uri(uri)
        .header(header::HOST, "localhost")
        .header(header::COOKIE, format!("PVEAuthCookie={}", quote(ticket)));
    if in_query {
        return request.body(Full::default());
    }
    request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(Full::from(encoded))
}

fn decode(call: &Call<'_>, answer: &Answer) -> Result<Value, Error> {
    #[derive(Deserialize)]
    struct Reply {
        #[serde(default)]
        data: Value,
        #[serde(default)]
        message: String,
        #[serde(default)]
        errors: BTreeMap<String, String>,
    }
    let reply: Option<Reply> = serde_json::from_slice(&answer.body).ok();
    if answer.status.is_success() {
        return match reply {
            Some(reply) => Ok(reply.data),
            // It was carried out, or is being so: what it began has to be looked for.
            None if call.method != Method::GET => Err(Error::PveAnswerLost { detail: ANSWER_LOST.to_owned() }),
            None => Err(Error::PveDown { detail: format!("{} {} was answered with something that is not JSON", call.method, call.path) }),
        };
    }
    let (message, errors) = reply.map(|r| (r.message, r.errors)).unwrap_or_default();
    let message = if message.trim().is_empty() { &answer.reason } else { &message };
    Err(classify_answer(call.about, answer.status.as_u16(), message, &errors))
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
