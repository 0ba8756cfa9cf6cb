//! Metrics over plain HTTP.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use pvelet_proto::v1;
use tokio::{net::TcpListener, sync::Semaphore, task::AbortHandle};

use super::address::unbound;
use crate::{error::Error, metrics::Snapshot, rpc::Shared, tls::Credentials};

/// A scraper or two, and somebody with curl.
const CONNECTIONS: usize = 8;
/// Whoever sends its request more slowly is no scraper.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// A scraper comes back every 15 to 60 s; a connection that stays longer only holds a place.
const CONNECTION_AGE: Duration = Duration::from_secs(300);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn serve(address: SocketAddr, shared: Shared, credentials: Arc<Credentials>) -> Result<(SocketAddr, AbortHandle), Error> {
    let failed = |e| unbound("metrics.listen", address, &e);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let task = tokio::spawn(async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (shared, credentials) = (shared.clone(), credentials.clone());
            tokio::spawn(async move {
                let answer = service_fn(move |request: Request<Incoming>| {
                    std::future::ready(Ok::<_, Infallible>(answer(&request, &shared, &credentials)))
                });
                let mut http = http1::Builder::new();
                let connection =
                    http.timer(TokioTimer::new()).header_read_timeout(REQUEST_DEADLINE).serve_connection(TokioIo::new(stream), answer);
                // How a scraper hangs up does not matter.
                let _ = tokio::time::timeout(CONNECTION_AGE, connection).await;
                drop(place);
            });
        }
    });
    Ok((bound, task.abort_handle()))
}

fn answer(request: &Request<Incoming>, shared: &Shared, credentials: &Credentials) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" || request.method() != Method::GET {
        let mut response = Response::new(Full::from("GET /metrics\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let snapshot = Snapshot { connections: credentials.connections().len(), operations: count(shared), ..shared.host.snapshot() };
    let mut response = Response::new(Full::from(shared.metrics.encode(&snapshot)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
    response
}

/// Operations by kind and state.
fn count(shared: &Shared) -> Vec<(&'static str, &'static str, usize)> {
    let mut counts = BTreeMap::new();
    let mut request = v1::ListOperationsRequest { page_size: 1000, ..v1::ListOperationsRequest::default() };
    while let Ok(page) = shared.operations.list(&request) {
        for operation in &page.operations {
            let kind = operation.kind().as_str_name().trim_start_matches("OPERATION_KIND_");
            let state = operation.state().as_str_name().trim_start_matches("OPERATION_STATE_");
            *counts.entry((kind, state)).or_insert(0) += 1;
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    counts.into_iter().map(|((kind, state), count)| (kind, state, count)).collect()
}
