//! `/metrics`, `/healthz`, `/readyz` over plain HTTP. Nothing there is secret, but the address should be a local one.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::RunError;
use crate::metrics::Metrics;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Scrapers are few; more connections than this wait.
const CONNECTIONS: usize = 16;
/// A client that does not send its request in this time is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds the address and serves until told to stop.
pub(super) async fn start(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
) -> Result<SocketAddr, RunError> {
    let listener = TcpListener::bind(address).await.map_err(RunError::io(format!("--metrics-address: cannot listen on {address}")))?;
    let bound = listener.local_addr().map_err(RunError::io("cannot tell the address"))?;
    info!(address = %bound, "serving metrics");
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(e) => {
                        // Out of file descriptors, most likely: without a pause this would spin.
                        warn!("cannot accept: {e}");
                        tokio::time::sleep(HEADER_TIMEOUT).await;
                        continue;
                    }
                },
            };
            let (metrics, ready) = (Arc::clone(&metrics), Arc::clone(&ready));
            tokio::spawn(async move {
                let _place = place;
                let service = service_fn(move |request| {
                    let response = answer(&request, &metrics, &ready);
                    async move { Ok::<_, Infallible>(response) }
                });
                // A scraper that goes away in the middle is its own business.
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(bound)
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, ready: &AtomicBool) -> Response<String> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match metrics.text() {
            Ok(text) => (StatusCode::OK, OPEN_METRICS, text),
            Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{e}\n")),
        },
        (&Method::GET, "/healthz") => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        (&Method::GET, "/readyz") if ready.load(Ordering::Relaxed) => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        (&Method::GET, "/readyz") => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "starting\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there is /metrics, /healthz and /readyz\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn metrics_and_both_probes_answer() {
        let (metrics, ready) = (Arc::<Metrics>::default(), Arc::new(AtomicBool::new(false)));
        metrics.passed("PveMachine", true);
        let stop = CancellationToken::new();
        let address = start(([127, 0, 0, 1], 0).into(), metrics, Arc::clone(&ready), stop.clone()).await.unwrap();
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        ready.store(true, Ordering::Relaxed);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let text = get(address, "/metrics").await;
        assert!(text.contains("pvelet_controller_reconciles_total{kind=\"PveMachine\",result=\"ok\"} 1"), "{text}");
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
    }
}
