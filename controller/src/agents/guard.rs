//! What stands between a typed client and the channel: places, deadlines, and errors that keep their cause.

use std::{
    io::{self, ErrorKind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::{Status, body::Body};
use tower::Service;

use super::{Shared, Target, channel::Channel};

/// The methods that stream: their answer has no end, so it holds no place and has no deadline beyond its beginning.
pub(super) const STREAMING: [&str; 3] =
    ["/pvelet.v1.HostService/WatchHost", "/pvelet.v1.OperationService/WatchOperations", "/pvelet.v1.HealthService/WatchHealth"];

/// How long a call holds a place in all that is not answered. An agent that stands still takes calls for twenty seconds before that is noticed, and a
/// hundred such agents could hold the places of nine hundred others.
const PROMPT: Duration = Duration::from_millis(250);

/// A channel whose calls hold places and have deadlines. The transport under the typed clients; not used by itself.
#[derive(Clone)]
pub struct Guarded {
    channel: Arc<Channel>,
    live: Live,
    own: Arc<Semaphore>,
    connected: Arc<Semaphore>,
    unconnected: Arc<Semaphore>,
    deadline: Duration,
}

impl Guarded {
    pub(super) fn new(target: Arc<Target>, own: Arc<Semaphore>, shared: &Shared) -> Self {
        let live = Live::default();
        Self {
            channel: Arc::new(Channel::new(target, shared.credentials.clone(), live.clone())),
            live,
            own,
            connected: Arc::clone(&shared.connected),
            unconnected: Arc::clone(&shared.unconnected),
            deadline: shared.limits.deadline,
        }
    }

    pub(super) fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn is_connected(&self) -> bool {
        self.live.is_connected()
    }

    async fn unary(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let _own = Arc::clone(&self.own).acquire_owned().await.map_err(closed)?;
        let ((place, prompt), live) = (self.place().await?, self.live.clone());
        // The whole answer is awaited here, trailers included: until then the deadline counts.
        let mut answer = pin!(async {
            let (parts, body) = self.channel.send(request).await?.into_parts();
            let body = body.collect().await?;
            Ok::<_, Status>(Response::from_parts(parts, Body::new(body)))
        });
        if let Ok(answer) = timeout(PROMPT, &mut answer).await {
            return answer;
        }
        let _slow = live.slow();
        // One that is being connected to keeps its place among those of its kind.
        let _place = Some(place).filter(|_| !prompt && !live.is_connected());
        answer.await
    }

    /// A place among the calls to agents that answer (`true`), or among those to others. Which these are may change while one is waited for.
    async fn place(&self) -> Result<(OwnedSemaphorePermit, bool), Status> {
        loop {
            let prompt = self.live.is_prompt();
            let pool = if prompt { &self.connected } else { &self.unconnected };
            let place = Arc::clone(pool).acquire_owned().await.map_err(closed)?;
            if !prompt || self.live.is_prompt() {
                return Ok((place, prompt));
            }
        }
    }
}

fn closed(_: AcquireError) -> Status {
    Status::unavailable("this client is shutting down")
}

impl Service<Request<Body>> for Guarded {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Whether the channel is ready is waited for within the deadline of each call.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        let streaming = STREAMING.contains(&request.uri().path());
        Box::pin(async move {
            let deadline = this.deadline;
            let call = async { if streaming { this.channel.send(request).await } else { this.unary(request).await } };
            timeout(deadline, call).await.unwrap_or_else(|_| Err(expired(deadline)))
        })
    }
}

/// The answer did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs_f32())]
pub(super) struct DeadlineExpired(pub(super) Duration);

pub(super) fn expired(deadline: Duration) -> Status {
    let cause = DeadlineExpired(deadline);
    let mut status = Status::deadline_exceeded(cause.to_string());
    status.set_source(Arc::new(cause));
    status
}

/// A call broke off, or never got out.
#[derive(Debug, thiserror::Error)]
#[error("the connection was lost: {0}")]
pub(super) struct ConnectionLost(pub(super) String);

/// How an agent is.
#[derive(Clone, Default)]
pub(super) struct Live(Arc<Counts>);

#[derive(Default)]
struct Counts {
    /// Connections that are open: none or one, two for a moment.
    open: AtomicUsize,
    /// Calls whose answer is late.
    late: AtomicUsize,
}

impl Live {
    fn is_connected(&self) -> bool {
        self.0.open.load(Ordering::Relaxed) > 0
    }

    /// Whether it is connected, and answers as far as is known.
    fn is_prompt(&self) -> bool {
        self.is_connected() && self.0.late.load(Ordering::Relaxed) == 0
    }

    /// Counts a connection until it is dropped. What is read from it is an error once its host's certificate is `revoked`.
    pub(super) fn track<T>(&self, io: T, revoked: impl Future<Output = ()> + Send + 'static) -> Tracked<T> {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Tracked { io, live: self.clone(), revoked: Some(Box::pin(revoked)) }
    }

    fn slow(&self) -> Slow {
        self.0.late.fetch_add(1, Ordering::Relaxed);
        Slow(self.clone())
    }
}

/// A call whose answer is late.
struct Slow(Live);

impl Drop for Slow {
    fn drop(&mut self) {
        self.0.0.late.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that is counted until it is dropped.
pub(super) struct Tracked<T> {
    io: T,
    live: Live,
    /// Until it has ended.
    revoked: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<T> Drop for Tracked<T> {
    fn drop(&mut self) {
        self.live.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tracked<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A connection is read all the time, so this is woken by it too.
        if self.revoked.as_mut().is_none_or(|revoked| revoked.as_mut().poll(cx).is_ready()) {
            self.revoked = None;
            return Poll::Ready(Err(io::Error::new(ErrorKind::ConnectionAborted, "the host's certificate is revoked")));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tracked<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
