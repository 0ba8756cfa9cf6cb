//! HTTP/2 over one connection, by h2 itself. hyper has a queue of 32 requests and a second task for each connection, and a controller of a thousand
//! hosts has a thousand connections.

use std::{
    error::Error,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong, RecvStream, SendStream,
    client::{Builder, SendRequest},
};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tonic::{Status, body::Body};
use tracing::debug;

use super::guard::ConnectionLost;

/// How often a connection is asked whether it lives, used or not: a host that vanished is noticed within this and the next.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long an answer to that may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What an agent may send before it is read: of one answer, and of all.
const WINDOWS: (u32, u32) = (256 << 10, 1 << 20);
/// The largest headers of an answer. Details of an error are in them.
const HEADERS: u32 = 16 << 10;

/// Sends requests. The connection ends with the last of its clones and the last answer.
#[derive(Clone)]
pub(super) struct Requests {
    sender: SendRequest<Bytes>,
    end: End,
}

/// Why a connection ended, where it is not h2 that knows it.
type End = Arc<OnceLock<String>>;

/// Begins to speak HTTP/2.
pub(super) async fn open(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Requests, Status> {
    let end = End::default();
    let (sender, mut connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_header_list_size(HEADERS)
        // What is told again and again takes a few bytes on the way, and nothing here: the table would fill with dates.
        .header_table_size(0)
        .handshake(io)
        .await
        .map_err(|e| lost(&e))?;
    let (mut pings, why) = (connection.ping_pong(), Arc::clone(&end));
    tokio::spawn(async move {
        // It ends when nobody can send on it any more, or when it breaks. Nothing here is moved: the task would be twice as large.
        let result = tokio::select! {
            result = &mut connection => result.map_err(|e| crate::kubernetes::chain(&e)),
            () = unanswered(pings.as_mut()) => Err(format!("no answer to a ping within {} s", KEEPALIVE_TIMEOUT.as_secs())),
        };
        if let Err(e) = result {
            debug!("a connection ended: {e}");
            // Before the connection is dropped, which ends the calls on it.
            let _ = why.set(e);
        }
    });
    Ok(Requests { sender, end })
}

/// Ends when a ping is not answered in time.
async fn unanswered(pings: Option<&mut PingPong>) {
    let Some(pings) = pings else { return std::future::pending().await };
    // Hosts that were connected to at once and vanish at once are not noticed at once: that is much work for an API server.
    let mut pause = KEEPALIVE.mul_f64(rand::random_range(0.0..1.0));
    loop {
        sleep(pause).await;
        match timeout(KEEPALIVE_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => pause = KEEPALIVE,
            // The connection tells why.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

impl Requests {
    /// Whether a request can be sent. Where the connection broke, or the agent said that it takes no more on it, there is nothing to wait for.
    pub(super) async fn ready(self) -> Result<Self, Status> {
        let Self { sender, end } = self;
        match sender.ready().await {
            Ok(sender) => Ok(Self { sender, end }),
            Err(e) => Err(broken(&end, &e)),
        }
    }

    /// Sends a request and waits until the answer begins.
    pub(super) async fn send(mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let (answer, stream) = self.sender.send_request(Request::from_parts(head, ()), false).map_err(|e| broken(&self.end, &e))?;
        let mut answer = pin!(answer);
        // An agent may refuse before it has read everything.
        let answer = tokio::select! {
            answer = &mut answer => answer,
            sent = send_body(body, stream) => {
                sent?;
                answer.await
            }
        };
        let end = self.end;
        match answer {
            Ok(answer) => Ok(answer.map(|stream| Body::new(Answer { stream, end, data: true }))),
            Err(e) => Err(broken(&end, &e)),
        }
    }
}

/// Sends a body as fast as the agent takes it. Where that fails, it is the answer that tells why.
async fn send_body(body: Body, mut stream: SendStream<Bytes>) -> Result<(), Status> {
    let mut body = pin!(body);
    while let Some(frame) = body.frame().await {
        // Requests have no trailers.
        let Ok(mut data) = frame?.into_data() else { continue };
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            while stream.capacity() == 0 {
                let Some(Ok(_)) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return Ok(()) };
            }
            let part = data.split_to(stream.capacity().min(data.len()));
            if stream.send_data(part, false).is_err() {
                return Ok(());
            }
        }
    }
    let _ = stream.send_data(Bytes::new(), true);
    Ok(())
}

/// An answer while it comes.
struct Answer {
    stream: RecvStream,
    end: End,
    /// Whether there may be more than trailers.
    data: bool,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only for more than was received.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(broken(&self.end, &e)))),
                None => self.data = false,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(|e| broken(&self.end, &e));
        Poll::Ready(trailers.map(|found| found.map(Frame::trailers)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// A call that broke off: why, as far as is known.
fn broken(end: &End, error: &h2::Error) -> Status {
    match end.get() {
        Some(why) => cut(why.clone()),
        None => lost(error),
    }
}

fn lost(error: &(dyn Error + 'static)) -> Status {
    cut(crate::kubernetes::chain(error))
}

fn cut(why: String) -> Status {
    let cause = ConnectionLost(why);
    let mut status = Status::unavailable(cause.to_string());
    status.set_source(Arc::new(cause));
    status
}
