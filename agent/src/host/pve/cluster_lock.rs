//! A lock of the PVE cluster by PVE's own protocol: a folder under `/etc/pve/priv/lock/`. Making it takes the lock, for one node of all;
//! setting its times renews it, removing it gives it back, and pmxcfs removes one that was not renewed for 120 s. It is the one thing that
//! the agent does itself under `/etc/pve`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        stat::{UtimensatFlags, utimensat},
        time::TimeSpec,
    },
};
use tokio::{task::spawn_blocking, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// How often a held lock is renewed: four chances before pmxcfs lets it go.
const RENEW: Duration = Duration::from_secs(25);
/// How long a lock is surely kept after it was renewed; pmxcfs lets it go after 120 s.
const KEPT: Duration = Duration::from_secs(100);
/// Between two attempts to take a lock that another node holds. PVE's own code waits a second; nobody tells when it is free.
const RETRY: Duration = Duration::from_millis(200);
/// How long one call below `/etc/pve` may take.
const ANSWER: Duration = Duration::from_secs(5);

/// A lock that is held. Dropping it gives it back.
#[derive(Debug)]
pub struct ClusterLock {
    path: Option<PathBuf>,
    /// Ends the renewing.
    _ended: tokio_util::sync::DropGuard,
    lost: CancellationToken,
    /// When it was last had for certain.
    renewed: Arc<Mutex<Instant>>,
}

impl ClusterLock {
    /// A lock on nothing, for storages that only this node sees, and for tests.
    pub fn none() -> Self {
        let renewed = Arc::new(Mutex::new(Instant::now()));
        Self { path: None, _ended: CancellationToken::new().drop_guard(), lost: CancellationToken::new(), renewed }
    }

    /// Whether it could not be renewed in time, so that another node may have it by now.
    pub fn is_lost(&self) -> bool {
        // A process that was stopped for minutes cannot have renewed it, and nobody has told it so yet.
        let old = self.path.is_some() && self.renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= KEPT;
        old || self.lost.is_cancelled()
    }
}

impl Drop for ClusterLock {
    fn drop(&mut self) {
        if let Some(path) = self.path.clone().filter(|_| !self.is_lost()) {
            // Off the runtime's threads: the file system may hang. What is not removed expires.
            std::thread::spawn(move || {
                if let Err(error) = fs::remove_dir(&path) {
                    tracing::warn!(lock = %path.display(), %error, "a cluster lock could not be given back; it expires in two minutes");
                }
            });
        }
    }
}

/// One call below `/etc/pve`, off the runtime's threads.
async fn call<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<io::Result<T>, Error> {
    match tokio::time::timeout(ANSWER, spawn_blocking(work)).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(e)) => Err(Error::Internal(e.to_string())),
        Err(_) => Err(Error::PveFsHung { detail: "no answer below /etc/pve/priv/lock".to_owned() }),
    }
}

/// Asks pmxcfs to let go of a lock whose time is over: what PVE's own code does before each further attempt.
fn ask_to_expire(path: &Path) -> io::Result<()> {
    touch(path, TimeSpec::new(0, 0))
}

fn renew(path: &Path) -> io::Result<()> {
    touch(path, TimeSpec::UTIME_NOW)
}

fn touch(path: &Path, time: TimeSpec) -> io::Result<()> {
    Ok(utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

/// Takes the lock. `quorate`: whether this node may write, as far as is known; without quorum no node can have a lock.
pub(super) async fn take(etc_pve: &Path, name: &str, patience: Duration, quorate: impl Fn() -> bool) -> Result<ClusterLock, Error> {
    let path = etc_pve.join("priv/lock").join(name);
    let node = || fs::read_link(etc_pve.join("local")).ok().and_then(|l| Some(l.file_name()?.to_string_lossy().into_owned()));
    let end = Instant::now() + patience;
    let mut began;
    loop {
        if !quorate() {
            return Err(Error::NoQuorum { node: node().unwrap_or_else(|| "this".to_owned()) });
        }
        let at = path.clone();
        began = Instant::now();
        let made = call(move || {
            if let Some(folder) = at.parent() {
                match fs::create_dir(folder) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                    _ => {}
                }
            }
            fs::create_dir(&at).inspect_err(|_| drop(ask_to_expire(&at)))
        })
        .await?;
        match made {
            Ok(()) => break,
            Err(_) if Instant::now() + RETRY < end => tokio::time::sleep(RETRY).await,
            // pmxcfs says EACCES both where another node holds the lock and where there is no quorum; the latter was looked at before.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists || e.raw_os_error() == Some(Errno::EACCES as i32) => {
                return Err(Error::LockTimeout { what: format!("cluster lock '{name}'") });
            }
            Err(e) => return Err(Error::PveFsHung { detail: format!("{}: {e}", path.display()) }),
        }
    }
    let (ended, lost) = (CancellationToken::new(), CancellationToken::new());
    let renewed = Arc::new(Mutex::new(began));
    tokio::spawn(keep(path.clone(), ended.clone(), lost.clone(), Arc::clone(&renewed)));
    Ok(ClusterLock { path: Some(path), _ended: ended.drop_guard(), lost, renewed })
}

async fn keep(path: PathBuf, ended: CancellationToken, lost: CancellationToken, renewed: Arc<Mutex<Instant>>) {
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            () = tokio::time::sleep(RENEW) => {}
        }
        let (at, asked) = (path.clone(), Instant::now());
        let late = renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= KEPT;
        if late || !matches!(call(move || renew(&at)).await, Ok(Ok(()))) {
            tracing::error!(lock = %path.display(), "a cluster lock cannot be renewed");
            lost.cancel();
            return;
        }
        *renewed.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }
}
