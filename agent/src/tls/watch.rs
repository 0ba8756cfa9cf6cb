//! Notices that the files of `[tls]` change: overwritten, replaced by rename, or behind a symbolic link that is swapped.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use inotify::{Inotify, WatchMask};
use tokio::{io::unix::AsyncFd, time::timeout};

use super::Credentials;

/// Certificate and key are written one after the other; both are taken over together when they come within this time.
const SETTLE: Duration = Duration::from_millis(100);
/// Somebody who writes all the time must not keep a revocation from being seen: after so many rounds the files are read anyway.
const SETTLE_ROUNDS: usize = 4;
/// A folder may be away for a moment, or the kernel have no watch left.
const UNWATCHED: Duration = Duration::from_secs(2);
/// As the kernel does.
const MAX_LINKS: usize = 40;

impl Credentials {
    /// Reloads whenever the files change, for ever. While they cannot be watched, they are read again every few seconds.
    pub async fn follow_files(self: Arc<Self>) {
        let mut told = false;
        loop {
            let waited = match watch(&self.folders()) {
                Ok(fd) => {
                    told = false;
                    // What changed before the watch was in place.
                    self.clone().reload_off_thread().await;
                    wait(fd).await
                }
                Err(e) => Err(e),
            };
            if let Err(error) = waited {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, seconds = UNWATCHED.as_secs(), "cannot watch the TLS files; they are read again and again instead");
                }
                tokio::time::sleep(UNWATCHED).await;
                self.clone().reload_off_thread().await;
            }
        }
    }

    async fn reload_off_thread(self: Arc<Self>) {
        // Fails only when the runtime shuts down or the reload panicked, and then the last good set is still in use.
        let _ = tokio::task::spawn_blocking(move || self.reload(false)).await;
    }

    fn folders(&self) -> BTreeSet<PathBuf> {
        let files = self.files();
        let mut folders = BTreeSet::new();
        for path in [Some(&files.cert), Some(&files.key), Some(&files.client_ca), files.crl.as_ref()].into_iter().flatten() {
            add_folders(path, &mut folders, &mut 0);
        }
        folders
    }
}

/// The folders in which a change can make `path` mean another file: its own, and that of each symbolic link on the way.
fn add_folders(path: &Path, folders: &mut BTreeSet<PathBuf>, links: &mut usize) {
    let mut at = PathBuf::new();
    let count = path.components().count();
    for (i, part) in path.components().enumerate() {
        if part == Component::ParentDir {
            at.pop();
            continue;
        }
        let parent = at.clone();
        at.push(part);
        if let Ok(target) = fs::read_link(&at) {
            folders.insert(parent.clone());
            *links += 1;
            if *links <= MAX_LINKS {
                let rest: PathBuf = path.components().skip(i + 1).collect();
                let mut resolved = parent.join(target);
                if rest.components().next().is_some() {
                    resolved.push(rest);
                }
                add_folders(&resolved, folders, links);
            }
            return;
        }
        if i + 1 == count {
            folders.insert(parent);
        }
    }
}

fn watch(folders: &BTreeSet<PathBuf>) -> io::Result<AsyncFd<Inotify>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::ATTRIB
        | WatchMask::MOVE_SELF
        | WatchMask::DELETE_SELF
        | WatchMask::ONLYDIR;
    let add = |folder: &PathBuf| inotify.watches().add(folder, mask).err().map(|e| format!("{}: {e}", folder.display()));
    let failed: Vec<String> = folders.iter().filter_map(add).collect();
    if failed.len() == folders.len() {
        return Err(io::Error::other(format!("no folder can be watched ({})", failed.join("; "))));
    }
    for folder in failed {
        tracing::warn!(folder, "cannot watch a folder of the TLS files");
    }
    #[allow(deprecated, reason = "what replaces it is unsafe; Inotify owns its descriptor, which is what that is about")]
    AsyncFd::new(inotify)
}

/// Returns when something has happened and then nothing more for a moment.
async fn wait(mut fd: AsyncFd<Inotify>) -> io::Result<()> {
    drain(&mut fd).await?;
    for _ in 0..SETTLE_ROUNDS {
        match timeout(SETTLE, drain(&mut fd)).await {
            Ok(more) => more?,
            Err(_) => break,
        }
    }
    Ok(())
}

async fn drain(fd: &mut AsyncFd<Inotify>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut ready = fd.readable_mut().await?;
    loop {
        match ready.get_inner_mut().read_events(&mut buffer) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                return Ok(());
            }
            Err(e) => return Err(e),
        }
    }
}
