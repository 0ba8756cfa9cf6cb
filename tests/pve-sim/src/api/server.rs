//! Listening: connections come in, each request goes to one of a few workers, as in the real daemon.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore},
    task::{JoinHandle, JoinSet},
};

use super::{
    http,
    route::Table,
    stream::{AfterHeader, Noting},
};
use crate::layout::NodeLayout;

/// How a daemon is set up. The defaults are those of a real host.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program that is started as `<program> task ...` for each task; this very binary.
    pub program: PathBuf,
    /// Requests served at a time.
    pub workers: usize,
    /// How long a refused login waits for its answer.
    pub refusal_delay: Duration,
    /// How long a request whose answer cannot be sent waits before its connection is closed.
    pub drop_delay: Duration,
    /// Lock time-outs are multiplied by this.
    pub lock_factor: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            program: crate::binary().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")),
            workers: 3,
            refusal_delay: Duration::from_secs(3),
            drop_delay: Duration::from_secs(5),
            lock_factor: 1.0,
        }
    }
}

/// What every connection shares.
pub(super) struct Shared {
    pub(super) layout: NodeLayout,
    pub(super) settings: Arc<Settings>,
    pub(super) table: Table,
    pub(super) workers: Arc<Semaphore>,
}

/// A daemon that can be stopped and started again.
pub struct Handle {
    address: SocketAddr,
    shared: Arc<Shared>,
    running: Mutex<Option<JoinHandle<()>>>,
}

/// Serves the local API of a node on `bind` (port 0: any) with the settings of a real host.
///
/// # Errors
/// When the address cannot be bound, or the address file cannot be written.
pub async fn serve(layout: NodeLayout, bind: SocketAddr) -> io::Result<Handle> {
    serve_with(layout, bind, Settings::default()).await
}

/// Serves the local API of a node on `bind`.
///
/// # Errors
/// When the address cannot be bound, or the address file cannot be written.
pub async fn serve_with(layout: NodeLayout, bind: SocketAddr, settings: Settings) -> io::Result<Handle> {
    let listener = TcpListener::bind(bind).await?;
    let address = listener.local_addr()?;
    tokio::fs::write(layout.api_address(), address.to_string()).await?;
    let workers = Arc::new(Semaphore::new(settings.workers));
    let shared = Arc::new(Shared { layout, settings: Arc::new(settings), table: Table::standard(), workers });
    let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
    Ok(Handle { address, shared, running: Mutex::new(Some(task)) })
}

impl Handle {
    /// Where it listens, or listened before it was stopped.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the socket and every connection. Tasks go on: they are processes of their own.
    pub async fn stop(&self) {
        if let Some(task) = self.running.lock().await.take() {
            task.abort();
            // The socket is closed once the aborted task is gone.
            let _ = task.await;
        }
    }

    /// Listens again on the same address; nothing happens if it does already.
    ///
    /// # Errors
    /// When the address has been taken by somebody else in the meantime.
    pub async fn start(&self) -> io::Result<()> {
        let mut running = self.running.lock().await;
        if running.is_none() {
            let listener = TcpListener::bind(self.address).await?;
            *running = Some(tokio::spawn(accept(listener, Arc::clone(&self.shared))));
        }
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(task) = self.running.get_mut().take() {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(connection(stream, Arc::clone(&shared)));
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let after = AfterHeader::default();
    let io = TokioIo::new(Noting::new(stream, after.clone()));
    let service = service_fn(move |request| http::answer(request, Arc::clone(&shared), after.clone()));
    let served =
        http1::Builder::new().timer(TokioTimer::new()).title_case_headers(true).max_headers(500).serve_connection(io, service).await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection closed");
    }
}
