//! A TCP relay between two programs: a network in which packets are late, and connections break or go silent.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    time::timeout,
};

/// What a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// What arrives stays in the relay; nobody is told.
    Held,
    Cut,
}

/// Connections that share their fate.
#[derive(Debug)]
struct Fate {
    way: watch::Sender<Way>,
    /// Bytes from clients that arrived while they were held.
    held: AtomicU64,
    /// Woken when that changes.
    more: watch::Sender<()>,
}

impl Fate {
    fn new() -> Arc<Self> {
        Arc::new(Self { way: watch::Sender::new(Way::Open), held: AtomicU64::new(0), more: watch::Sender::new(()) })
    }
}

/// A relay to one address. It ends, with all its connections, when it is dropped. It has a thread of its own: a test may block.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    now: Arc<Mutex<Arc<Fate>>>,
    _end: oneshot::Sender<()>,
}

impl Relay {
    /// One on a port of 127.0.0.1 that the system chose.
    pub fn to(target: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let now = Arc::new(Mutex::new(Fate::new()));
        let (end, ended) = oneshot::channel();
        let fates = Arc::clone(&now);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                tokio::select! {
                    _ = ended => {}
                    error = accept(listener, target, &fates) => eprintln!("the relay of {address} ended: {error}"),
                }
            });
        });
        Self { address, now, _end: end }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks all connections. New ones are as good as ever.
    pub fn cut(&self) {
        self.renew().way.send_replace(Way::Cut);
    }

    /// Goes silent: from now on nothing comes through, either way, on the connections that are there and on new ones. Nobody is told; all
    /// connections stay.
    pub fn hold(&self) -> Held {
        let fate = Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner));
        fate.way.send_replace(Way::Held);
        Held(fate)
    }

    /// Connections that are made from now on are good ones, whatever was done to those before.
    pub fn heal(&self) {
        self.renew();
    }

    fn renew(&self) -> Arc<Fate> {
        std::mem::replace(&mut *self.now.lock().unwrap_or_else(PoisonError::into_inner), Fate::new())
    }
}

/// Connections on which nothing comes through.
#[derive(Debug)]
pub struct Held(Arc<Fate>);

impl Held {
    /// Waits until so many bytes of clients are held back.
    ///
    /// # Panics
    /// After `limit`.
    pub async fn bytes(&self, least: u64, limit: Duration) {
        let mut more = self.0.more.subscribe();
        let enough = async {
            while self.0.held.load(Ordering::SeqCst) < least {
                // Fails only when the fate is gone, which is held here.
                let _ = more.changed().await;
            }
        };
        let held = || self.0.held.load(Ordering::SeqCst);
        timeout(limit, enough).await.unwrap_or_else(|_| panic!("{} bytes came in {limit:?}, not {least}", held()));
    }

    /// Lets through what was held back, and all that comes.
    pub fn release(self) {
        self.0.way.send_replace(Way::Open);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, now: &Mutex<Arc<Fate>>) -> io::Error {
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => return error,
        };
        let fate = Arc::clone(&now.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::spawn(async move {
            let mut way = fate.way.subscribe();
            tokio::select! {
                // Whoever is at either end sees it end.
                _ = relay(client, target, &fate) => {}
                _ = way.wait_for(|way| *way == Way::Cut) => {}
            }
        });
    }
}

async fn relay(client: TcpStream, target: SocketAddr, fate: &Fate) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::try_join!(pass(from_client, to_server, fate, true), pass(from_server, to_client, fate, false))?;
    Ok(())
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    fate: &Fate,
    clients: bool,
) -> io::Result<()> {
    let (mut way, mut buffer, mut waiting) = (fate.way.subscribe(), vec![0; 64 << 10], Vec::new());
    loop {
        // While it is held, it is read all the same: a sender notices nothing.
        let held = *way.borrow_and_update() != Way::Open;
        if !held && !waiting.is_empty() {
            to.write_all(&waiting).await?;
            waiting.clear();
        }
        let count = tokio::select! {
            biased;
            _ = way.changed() => continue,
            count = from.read(&mut buffer) => count?,
        };
        if count == 0 {
            // Nobody hears of an end either, as long as it is held.
            let _ = way.wait_for(|way| *way == Way::Open).await;
            to.write_all(&waiting).await?;
            return to.shutdown().await;
        }
        waiting.extend_from_slice(&buffer[..count]);
        if held && clients {
            fate.held.fetch_add(count as u64, Ordering::SeqCst);
            fate.more.send_replace(());
        }
    }
}
