//! The connection to one agent: made when a call needs it, and again when it broke. All calls share it.
//!
//! It is hyper's, without a channel of tonic's before it: that one has a queue for each agent, and a controller of a thousand hosts a thousand of
//! them. Who may call is bounded by places anyway.

use std::{sync::Arc, time::Duration};

use http::{
    Request, Response, Uri,
    uri::{Authority, Scheme},
};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Mutex;
use tonic::{Status, body::Body};
use tracing::debug;

use super::{
    Target,
    guard::{ConnectionLost, Live},
    revoked::{revoked, shown},
};
use crate::tls::{self, Credentials, TlsError};

/// How often a connection is asked whether it lives, used or not: a host that vanished is noticed within this and the next.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long an answer to that may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// It only fills the request's `:authority`; the connection goes to the target's address.
const AUTHORITY: Authority = Authority::from_static("pvelet-agent");

/// One agent's connection.
pub(super) struct Channel {
    target: Arc<Target>,
    credentials: Credentials,
    live: Live,
    sender: Mutex<Option<SendRequest<Body>>>,
}

impl Channel {
    /// Connects to nothing yet.
    pub(super) fn new(target: Arc<Target>, credentials: Credentials, live: Live) -> Self {
        Self { target, credentials, live, sender: Mutex::default() }
    }

    /// Sends a request and waits until the answer begins.
    pub(super) async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(AUTHORITY));
        *request.uri_mut() = Uri::from_parts(uri).map_err(|e| Status::internal(e.to_string()))?;
        let mut sender = self.sender().await?;
        sender.ready().await.map_err(|e| lost(&e))?;
        sender.send_request(request).await.map(|answer| answer.map(Body::new)).map_err(|e| lost(&e))
    }

    async fn sender(&self) -> Result<SendRequest<Body>, Status> {
        // Who comes meanwhile waits for the same connection. Where the first to come gives up, the next begins anew.
        let mut open = self.sender.lock().await;
        if let Some(sender) = open.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        *open = None;
        let (cluster, node) = (self.target.cluster.as_deref(), self.target.node.as_deref());
        let tls = tls::connect(&self.target.address, cluster, node, &self.credentials).await.map_err(|e| unreachable(&e))?;
        let revoked = revoked(self.credentials.clone(), shown(&tls));
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(self.live.track(tls, revoked)))
            .await
            .map_err(|e| lost(&e))?;
        // It ends when nobody can send on it any more, or when it breaks.
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                debug!("a connection ended: {e}");
            }
        });
        *open = Some(sender.clone());
        Ok(sender)
    }
}

fn unreachable(error: &TlsError) -> Status {
    let mut status = Status::unavailable(error.to_string());
    status.set_source(Arc::new(error.clone()));
    status
}

fn lost(error: &hyper::Error) -> Status {
    let cause = ConnectionLost(crate::kubernetes::chain(error));
    let mut status = Status::unavailable(cause.to_string());
    status.set_source(Arc::new(cause));
    status
}
