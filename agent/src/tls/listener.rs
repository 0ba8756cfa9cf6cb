//! Accepts connections and does their handshakes.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{
    Connection, Credentials, Peer,
    connection::{self, Connections},
};
use crate::{host::clock, metrics::Metrics};

/// After a failed `accept` (no file descriptors left, mostly) nothing gets better at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait to be taken by the server, which does so at once.
const QUEUE: usize = 16;
/// After its handshake a client begins to speak HTTP/2 at once. Who was told to go before that would take it for a failure.
const FIRST_WORDS: Duration = Duration::from_millis(100);

/// Bounds of the listener.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long a handshake may take.
    pub handshake_deadline: Duration,
    /// How many may be under way; further clients wait in the kernel's queue.
    pub max_handshakes: u32,
    /// How many connections may be open; further ones are closed after their handshake.
    pub max_connections: u32,
}

/// When a listener begins and ends.
#[derive(Debug, Clone, Default)]
pub struct Doors {
    /// Cancelled from outside: from now on connections are accepted. Until then they wait in the kernel's queue.
    pub open: CancellationToken,
    /// Cancelled from outside: no further connection is accepted.
    pub leaving: CancellationToken,
    /// Cancelled by the listener after that: all connections that were accepted have gone through their handshake and could say a first word.
    pub arrived: CancellationToken,
}

struct Shared {
    credentials: Arc<Credentials>,
    metrics: Arc<Metrics>,
    deadline: Duration,
    slots: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<Connection>>,
}

/// Accepts once `doors.open` is cancelled, and until `doors.leaving` is. The stream yields connections whose handshake is done.
pub fn incoming(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    metrics: Arc<Metrics>,
    options: Options,
    doors: Doors,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(QUEUE);
    let handshakes = Arc::new(Semaphore::new(options.max_handshakes as usize));
    let slots = Arc::new(Semaphore::new(options.max_connections as usize));
    let shared = Arc::new(Shared { credentials, metrics, deadline: options.handshake_deadline, slots, ready });
    tokio::spawn(async move {
        let accept = async {
            doors.open.cancelled().await;
            loop {
                // Never closed: the loop alone owns it.
                let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        tokio::spawn(shake(shared.clone(), stream, clock::since_boot(), permit));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = doors.leaving.cancelled() => {}
        }
        // Where the service manager keeps the socket, it goes on listening.
        drop(listener);
        let _ = handshakes.acquire_many(options.max_handshakes).await;
        tokio::time::sleep(FIRST_WORDS).await;
        doors.arrived.cancel();
    });
    ReceiverStream::new(connections)
}

async fn shake(shared: Arc<Shared>, stream: TcpStream, opened: Duration, permit: OwnedSemaphorePermit) {
    match timeout(shared.deadline, handshake(&shared, stream, opened)).await {
        Ok(Ok(connection)) => {
            // The server is gone: so is the connection.
            let _ = shared.ready.send(Ok(connection)).await;
            drop(permit);
        }
        Ok(Err(error)) => {
            shared.metrics.handshake_failed();
            tracing::info!(%error, "a handshake failed");
        }
        Err(_) => {
            shared.metrics.handshake_failed();
            tracing::info!("a handshake took too long");
        }
    }
}

async fn handshake(shared: &Shared, stream: TcpStream, opened: Duration) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let remote = stream.peer_addr()?;
    let local = stream.local_addr()?.ip();
    let material = shared.credentials.current();
    let io = TlsAcceptor::from(material.server.clone()).accept(stream).await.map_err(|e| io::Error::other(format!("{remote}: {e}")))?;
    let chain = io.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let leaf = chain.first().ok_or_else(|| io::Error::other("no client certificate"))?;
    let leaf = material.verifier.leaf(leaf).map_err(io::Error::other)?;
    let slot = shared.slots.clone().try_acquire_owned().map_err(|_| {
        shared.metrics.shed("connections");
        io::Error::other(format!("{remote}: too many connections are open"))
    })?;
    let peer = Peer::with_chain(leaf.identity, remote, opened, chain.clone());
    let close = CancellationToken::new();
    let connections: &Arc<Connections> = shared.credentials.connections();
    let entry = connections.enter(chain.clone(), peer.name().to_owned(), local, close.clone());
    // The credentials may have been replaced during the handshake, before this connection stood in the list that is rechecked then.
    let now = shared.credentials.current();
    if !Arc::ptr_eq(&now, &material) {
        connection::verify(&now, &chain).map_err(|e| io::Error::other(format!("{remote}: {e}")))?;
    }
    tracing::debug!(client = peer.name(), serial = leaf.serial, %remote, "connected");
    Ok(Connection::new(io, peer, close, leaf.not_after, entry, slot))
}
