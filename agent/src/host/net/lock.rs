//! Locks on the host's network: PVE's own on its staged edits, and the agent's on its changes. Both end with the process that holds them.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use tokio::time::Instant;

use super::{NetPaths, NetworkLock, failed};
use crate::error::Error;

/// The file on which PVE's API holds a lock while it edits `interfaces.new`, or puts it into force.
const PVE: &str = ".pve-interfaces.lock";
/// How often a lock is tried: nobody tells when it is free.
const RETRY: Duration = Duration::from_millis(50);

/// Takes both, PVE's first.
pub(super) async fn take(paths: &NetPaths, patience: Duration) -> Result<NetworkLock, Error> {
    let end = Instant::now() + patience;
    let pve = take_one(&paths.etc_network.join(PVE), "PVE's network configuration", end).await?;
    let own = take_one(&paths.state.join("lock"), "the agent's network changes", end).await?;
    Ok(NetworkLock::new((pve, own)))
}

/// Takes both for undoing a change. PVE's is waited for as long, and then gone without: whoever holds it for ever must not keep the host cut
/// off, and undoing touches nothing that it guards.
pub(super) async fn take_to_undo(paths: &NetPaths, patience: Duration) -> Result<NetworkLock, Error> {
    let pve = take_one(&paths.etc_network.join(PVE), "PVE's network configuration", Instant::now() + patience).await;
    let own = take_one(&paths.state.join("lock"), "the agent's network changes", Instant::now() + patience).await?;
    if let Err(error) = &pve {
        tracing::warn!(%error, "going on without PVE's lock, to undo a network change");
    }
    Ok(NetworkLock::new((pve.ok(), own)))
}

async fn take_one(path: &Path, what: &str, end: Instant) -> Result<File, Error> {
    loop {
        let path = path.to_owned();
        let tried = tokio::task::spawn_blocking(move || try_one(&path)).await;
        match tried.map_err(|e| Error::Internal(format!("locking failed: {e}")))?? {
            Some(file) => return Ok(file),
            None if Instant::now() < end => tokio::time::sleep(RETRY).await,
            None => return Err(Error::LockTimeout { what: what.to_owned() }),
        }
    }
}

fn try_one(path: &Path) -> Result<Option<File>, Error> {
    let bad = |e: std::io::Error| failed(format!("{} cannot be locked: {e}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(bad)?;
    }
    let file = match OpenOptions::new().append(true).create(true).mode(0o644).open(path) {
        // A disk that fails is mounted read-only, and a lock needs nothing written.
        Err(e) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => File::open(path).map_err(bad)?,
        other => other.map_err(bad)?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(bad(e)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn the_second_waits_and_is_told_what_was_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let paths =
            NetPaths { etc_network: dir.path().join("etc"), state: dir.path().join("state"), ..super::super::state::tests::paths() };
        let held = take(&paths, Duration::ZERO).await.unwrap();
        let error = take(&paths, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(error, Error::LockTimeout { what: "PVE's network configuration".into() });
        // Nor may another one undo anything meanwhile.
        let error = take_to_undo(&paths, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(error, Error::LockTimeout { what: "the agent's network changes".into() });
        drop(held);
        take(&paths, Duration::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn who_holds_pves_lock_for_ever_does_not_keep_a_change_from_being_undone() {
        let dir = tempfile::tempdir().unwrap();
        let paths =
            NetPaths { etc_network: dir.path().join("etc"), state: dir.path().join("state"), ..super::super::state::tests::paths() };
        let pve = try_one(&paths.etc_network.join(PVE)).unwrap().unwrap();
        let undoing = take_to_undo(&paths, Duration::from_millis(1)).await.unwrap();
        drop(pve);
        // The agent's own is held.
        take(&paths, Duration::from_millis(1)).await.unwrap_err();
        drop(undoing);
        take(&paths, Duration::ZERO).await.unwrap();
    }
}
