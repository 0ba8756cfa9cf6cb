//! Live connections: each knows whose it is, and can be closed from outside.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use pvelet_proto::identity::Identity;
use rustls::{
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::Material;

/// Who is at the other end. Read once, at the handshake; a cheap clone stands in the extensions of each request.
#[derive(Debug, Clone)]
pub struct Peer(Arc<PeerInfo>);

#[derive(Debug)]
struct PeerInfo {
    identity: Identity,
    name: String,
    remote: SocketAddr,
    opened: Duration,
    chain: Vec<CertificateDer<'static>>,
}

impl Peer {
    /// A peer with this identity, whose connection was opened at this time since boot.
    pub fn new(identity: Identity, remote: SocketAddr, opened: Duration) -> Self {
        Self::with_chain(identity, remote, opened, Vec::new())
    }

    /// The same, with the certificates by which it was verified.
    pub(super) fn with_chain(identity: Identity, remote: SocketAddr, opened: Duration, chain: Vec<CertificateDer<'static>>) -> Self {
        let name = identity.to_string();
        Self(Arc::new(PeerInfo { identity, name, remote, opened, chain }))
    }

    /// The certificates that it has shown, its own first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    /// The identity of its certificate.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The SPIFFE id as text.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// From where it came.
    pub fn remote(&self) -> SocketAddr {
        self.0.remote
    }

    /// When its connection was opened, since boot (CLOCK_BOOTTIME).
    pub fn opened(&self) -> Duration {
        self.0.opened
    }
}

struct Live {
    local: IpAddr,
    chain: Vec<CertificateDer<'static>>,
    name: String,
    close: CancellationToken,
}

/// All connections that are open.
#[derive(Default)]
pub struct Connections {
    live: Mutex<HashMap<u64, Live>>,
    /// Where the latest one came in, open or not.
    latest: Mutex<Option<IpAddr>>,
    next: AtomicU64,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("open", &self.len()).finish_non_exhaustive()
    }
}

impl Connections {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Live>> {
        // The map is whole after any panic: each change is one call.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The addresses of this host at which clients have found it: those of the open connections, and of the latest.
    pub fn local_addresses(&self) -> Vec<IpAddr> {
        let latest = *self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<IpAddr> = self.lock().values().map(|live| live.local).chain(latest).collect();
        found.sort();
        found.dedup();
        found
    }

    pub(super) fn enter(
        self: &Arc<Self>,
        chain: Vec<CertificateDer<'static>>,
        name: String,
        local: IpAddr,
        close: CancellationToken,
    ) -> Entry {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        // An IPv4 client of a socket for both families.
        let local = local.to_canonical();
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(local);
        self.lock().insert(id, Live { local, chain, name, close });
        Entry { connections: self.clone(), id }
    }

    /// Closes each connection whose certificate `material` no longer accepts: revoked, expired, or of a CA that was removed. Returns how
    /// many were closed.
    pub fn recheck(&self, material: &Material) -> usize {
        let mut closed = 0;
        for live in self.lock().values() {
            if let Err(why) = verify(material, &live.chain) {
                tracing::warn!(client = %live.name, %why, "closing a connection: its certificate is no longer accepted");
                live.close.cancel();
                closed += 1;
            }
        }
        closed
    }
}

/// Whether a client with this chain would be accepted now.
pub(super) fn verify(material: &Material, chain: &[CertificateDer<'static>]) -> Result<(), rustls::Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    material.verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map(|_| ())
}

/// A place among the open connections, given back when dropped.
pub(super) struct Entry {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
    }
}

type Closed = Pin<Box<dyn Future<Output = &'static str> + Send>>;

/// A connection after its handshake. Reads and writes fail once it is to be closed.
pub struct Connection {
    io: TlsStream<TcpStream>,
    peer: Peer,
    closed: Closed,
    _entry: Entry,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn new(
        io: TlsStream<TcpStream>,
        peer: Peer,
        close: CancellationToken,
        not_after: SystemTime,
        entry: Entry,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let closed = Box::pin(async move {
            tokio::select! {
                () = close.cancelled() => "the client's certificate is no longer accepted",
                () = tokio::time::sleep(left) => "the client's certificate has expired",
            }
        });
        Self { io, peer, closed, _entry: entry, _slot: slot }
    }

    /// Fails when the connection is to be closed; otherwise the task is woken up when that happens. Called by reads and writes alike, since
    /// a connection may be stuck in either.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.closed.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(why) => {
                self.closed = Box::pin(std::future::ready(why));
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
            }
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
