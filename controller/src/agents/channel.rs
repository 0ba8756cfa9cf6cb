//! The connection to one agent: made when a call needs it, and again when it broke. All calls share it.
//!
//! There is no channel of tonic's before it: that one has a queue for each agent. Who may call is bounded by places anyway.

use std::sync::Arc;

use http::{
    Request, Response, Uri,
    uri::{Authority, Scheme},
};
use tokio::sync::Mutex;
use tonic::{Status, body::Body};

use super::{
    Target,
    guard::Live,
    http2::{self, Requests},
    revoked::{revoked, shown},
};
use crate::tls::{self, Credentials, TlsError};

/// It only fills the request's `:authority`; the connection goes to the target's address.
const AUTHORITY: Authority = Authority::from_static("pvelet-agent");

/// One agent's connection.
pub(super) struct Channel {
    target: Arc<Target>,
    credentials: Credentials,
    live: Live,
    open: Mutex<Option<Requests>>,
}

impl Channel {
    /// Connects to nothing yet.
    pub(super) fn new(target: Arc<Target>, credentials: Credentials, live: Live) -> Self {
        Self { target, credentials, live, open: Mutex::default() }
    }

    /// Sends a request and waits until the answer begins.
    pub(super) async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(AUTHORITY));
        *request.uri_mut() = Uri::from_parts(uri).map_err(|e| Status::internal(e.to_string()))?;
        self.requests().await?.send(request).await
    }

    async fn requests(&self) -> Result<Requests, Status> {
        // Who comes meanwhile waits for the same connection. Where the first to come gives up, the next begins anew.
        let mut open = self.open.lock().await;
        if let Some(requests) = open.take()
            && let Ok(requests) = requests.ready().await
        {
            return Ok(open.insert(requests).clone());
        }
        let (cluster, node) = (self.target.cluster.as_deref(), self.target.node.as_deref());
        let tls = tls::connect(&self.target.address, cluster, node, &self.credentials).await.map_err(|e| unreachable(&e))?;
        let revoked = revoked(self.credentials.clone(), shown(&tls));
        let requests = http2::open(self.live.track(tls, revoked)).await?;
        Ok(open.insert(requests).clone())
    }
}

fn unreachable(error: &TlsError) -> Status {
    let mut status = Status::unavailable(error.to_string());
    status.set_source(Arc::new(error.clone()));
    status
}
