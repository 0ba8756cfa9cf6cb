//! Cluster locks: folders below `priv/lock`, taken by making them. Setting their time renews them, and time zero asks to remove one that has expired.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use super::{
    inner::Inner,
    store::{Result, Store},
};

/// How long a cluster lock holds without being renewed.
pub(super) const EXPIRY: Duration = Duration::from_secs(120);

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

impl Inner {
    /// Whether an inode is a cluster lock.
    pub(super) fn is_lock(&self, ino: u64) -> bool {
        let below = self.tree.children(ino).is_some().then(|| self.tree.path(ino));
        below.is_some_and(|path| path.strip_prefix("priv/lock/").is_some_and(|name| !name.contains('/')))
    }

    fn has_expired(&self, ino: u64) -> bool {
        let renewed = self.tree.get(ino).and_then(|inode| inode.renewed);
        renewed.is_none_or(|renewed| renewed.elapsed() >= self.lock_expiry)
    }
}

impl Store {
    /// Lets cluster locks expire sooner or later than after 120 s.
    pub fn set_lock_expiry(&self, expiry: Duration) {
        self.lock().lock_expiry = expiry;
    }

    /// Sets the time of a file or folder. On a cluster lock this renews it, which only the node may do that holds it; time zero asks to remove it: one that
    /// has expired goes, any other is left alone, and whoever asked is refused.
    ///
    /// # Errors
    /// `EACCES` without quorum, for a lock that is held by another node or has not expired; `ENOENT` for one that just went (on a node that is alone: none).
    pub fn touch(&self, node: Option<usize>, ino: u64, mtime: SystemTime) -> Result<()> {
        if mtime == UNIX_EPOCH && self.unlock_request(node, ino)? && self.lock().nodes.len() == 1 {
            return Ok(());
        }
        self.change(node, |inner| {
            let is_lock = inner.is_lock(ino);
            let Some(inode) = inner.tree.get_mut(ino) else {
                return Err(if super::inner::is_special(ino) { Errno::EACCES } else { Errno::ENOENT });
            };
            if is_lock && (seconds(mtime) < seconds(inode.mtime) || inode.writer != node) {
                return Err(Errno::EACCES);
            }
            (inode.mtime, inode.renewed) = (mtime, Some(Instant::now()));
            Ok(())
        })
    }

    /// Removes a lock that has expired, and tells whether it did.
    fn unlock_request(&self, node: Option<usize>, ino: u64) -> Result<bool> {
        self.change(node, |inner| {
            let is_empty = inner.tree.children(ino).is_some_and(std::collections::BTreeMap::is_empty);
            let goes = is_empty && inner.is_lock(ino) && inner.has_expired(ino);
            if goes {
                inner.tree.remove(ino);
            }
            Ok(goes)
        })
    }

    /// Lets a cluster lock look as old as if it had not been renewed for its whole time.
    ///
    /// # Errors
    /// `ENOENT` when there is none of this name.
    pub fn expire_lock(&self, name: &str) -> Result<()> {
        self.change(None, |inner| {
            let ino = inner.tree.resolve(&format!("priv/lock/{name}")).ok_or(Errno::ENOENT)?;
            inner.tree.get_mut(ino).ok_or(Errno::ENOENT)?.renewed = None;
            Ok(())
        })
    }
}
