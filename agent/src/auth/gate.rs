//! The layer around all services: decides by path before anything is decoded, holds the call's place until its last byte is sent, counts and
//! logs it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::roles::{self, Rule};
use crate::{
    error::Error,
    limits::{Class, Limits, Place},
    metrics::{Metrics, code_name},
    tls::Peer,
};

/// A mutation is held open for at most five minutes (`RequestMeta.wait`). One that takes longer has a client that never sent its request
/// whole, and gives its place back.
const HELD_DEADLINE: Duration = Duration::from_secs(330);

/// What the gate decides with.
#[derive(Debug)]
struct Shared {
    limits: Limits,
    metrics: Arc<Metrics>,
    read_deadline: Duration,
}

/// Puts a [`Gate`] before a service.
#[derive(Debug, Clone)]
pub struct GateLayer(Arc<Shared>);

impl GateLayer {
    /// With these limits. A read that takes longer than `read_deadline` ends with DEADLINE_EXCEEDED.
    pub fn new(limits: Limits, metrics: Arc<Metrics>, read_deadline: Duration) -> Self {
        Self(Arc::new(Shared { limits, metrics, read_deadline }))
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { shared: self.0.clone(), inner }
    }
}

/// A service behind the table of roles and the limits.
#[derive(Debug, Clone)]
pub struct Gate<S> {
    shared: Arc<Shared>,
    inner: S,
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let (peer, rule, place) = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err(error) => return Box::pin(std::future::ready(Ok(error.to_status().into_http()))),
        };
        let mut call = Call { shared: self.shared.clone(), peer, rule, begun: Instant::now(), ended: false };
        // The clone takes the place of the service that was found ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let answered = inner.call(request);
            let (deadline, late) = match rule.class {
                Class::Read => (call.shared.read_deadline, "the host did not answer in time; see UNAVAILABLE PVE_FS_HUNG"),
                Class::Mutation | Class::Network => (HELD_DEADLINE, "no whole request came, or no answer to it; what was begun goes on"),
                // It lasts as long as its client wants.
                Class::Stream => (Duration::MAX, ""),
            };
            let response = match tokio::time::timeout(deadline, answered).await {
                Ok(response) => response?,
                Err(_) => Status::deadline_exceeded(late).into_http(),
            };
            // An error without a body stands in the headers.
            if let Some(code) = status_of(response.headers()) {
                call.end(code);
            }
            Ok(response.map(|body| Body::new(Tracked { body, call, _place: place })))
        })
    }
}

impl<S> Gate<S> {
    fn admit(&self, request: &http::Request<Body>) -> Result<(Peer, &'static Rule, Place), Error> {
        let path = request.uri().path();
        // Every connection has a peer; without one nothing is allowed.
        let peer = request.extensions().get::<Peer>().cloned().ok_or_else(|| Error::Internal("a call without identity".into()))?;
        let rule = roles::admit(peer.identity(), path).inspect_err(|error| {
            let known = roles::TABLE.iter().find(|r| r.path == path);
            let method = known.map_or("other", Rule::method);
            self.shared.metrics.call(method, error.code(), None);
            let (client, reason) = (peer.name(), error.reason());
            tracing::info!(client, remote = %peer.remote(), method = path, decision = "denied", %error, "call refused");
            if known.is_none_or(|r| matches!(r.class, Class::Mutation | Class::Network)) {
                tracing::info!(target: "pvelet::audit", caller = client, action = method, decision = "refused", reason, "audit");
            }
        })?;
        let place = self.shared.limits.enter(rule.class).inspect_err(|error| {
            self.shared.metrics.shed(rule.class.as_str());
            self.shared.metrics.call(rule.method(), error.code(), None);
            tracing::warn!(client = peer.name(), method = path, %error, "call shed");
        })?;
        Ok((peer, rule, place))
    }
}

fn status_of(headers: &http::HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|v| Code::from_bytes(v.as_bytes()))
}

/// A call that was let in, until it ends.
struct Call {
    shared: Arc<Shared>,
    peer: Peer,
    rule: &'static Rule,
    begun: Instant,
    ended: bool,
}

impl Call {
    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let took = self.begun.elapsed();
        let rule = self.rule;
        self.shared.metrics.call(rule.method(), code, (rule.class != Class::Stream).then_some(took));
        let (client, method, needed) = (self.peer.name(), rule.path, rule.role.as_str());
        let decision = if code == Code::PermissionDenied { "denied" } else { "allowed" };
        let (code, millis) = (code_name(code), u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        if decision == "denied" || matches!(rule.class, Class::Mutation | Class::Network) {
            tracing::info!(client, method, needed, decision, code, millis, "call");
        } else {
            tracing::debug!(client, method, needed, decision, code, millis, "call");
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // The client went away, or a stream was ended from its side.
        self.end(Code::Cancelled);
    }
}

/// A response's body that holds the call's place and sees its status.
struct Tracked {
    body: Body,
    call: Call,
    _place: Place,
}

impl hyper::body::Body for Tracked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(code) = frame.trailers_ref().and_then(status_of) {
                    self.call.end(code);
                }
            }
            Poll::Ready(Some(Err(status))) => self.call.end(status.code()),
            Poll::Ready(None) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pvelet_proto::identity::Identity;

    use super::*;
    use crate::config;

    #[tokio::test(start_paused = true)]
    async fn a_mutation_whose_request_never_comes_gives_its_place_back() {
        let (mut config, _) = config::parse("[tls]\ntrust_domain = \"a.b\"\n").unwrap();
        config.limits.mutations = 1;
        let layer = GateLayer::new(Limits::new(&config.limits), Arc::default(), config.limits.read_deadline);
        let mut gate = layer.layer(tower::service_fn(|_| std::future::pending::<Result<http::Response<Body>, Infallible>>()));
        let peer = Peer::new(Identity::parse("spiffe://a.b/role/operator/o").unwrap(), "127.0.0.1:1".parse().unwrap(), Duration::ZERO);
        let request = || {
            let mut request = http::Request::new(Body::empty());
            *request.uri_mut() = "/pvelet.v1.VmService/StartVm".parse().unwrap();
            request.extensions_mut().insert(peer.clone());
            request
        };
        let held = gate.call(request());
        let shed = gate.call(request()).await.unwrap();
        assert_eq!(status_of(shed.headers()), Some(Code::ResourceExhausted));
        let late = held.await.unwrap();
        assert_eq!(status_of(late.headers()), Some(Code::DeadlineExceeded));
        drop(late);
        let again = gate.call(request()).await.unwrap();
        assert_eq!(status_of(again.headers()), Some(Code::DeadlineExceeded), "it was let in");
    }
}
