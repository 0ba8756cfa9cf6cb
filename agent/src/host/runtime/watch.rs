//! Sees changes of files in folders, which may not be there yet.

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

use crate::host::process::async_fd;

/// Folders that are watched. What changes while nobody waits is told to the next who does.
#[derive(Debug)]
pub struct FolderWatch {
    fd: AsyncFd<Inotify>,
    /// What of a watched folder counts; `None`: everything in it.
    watched: HashMap<WatchDescriptor, Option<OsString>>,
    folders: HashMap<PathBuf, WatchDescriptor>,
}

impl FolderWatch {
    /// Watches nothing yet. Errors: the kernel grants no inotify instance. Must be called on a runtime.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: async_fd(Inotify::init()?)?, watched: HashMap::new(), folders: HashMap::new() })
    }

    /// Watches a folder too; of one that is not there, until it comes, its place in its parent. Does nothing where that is already so.
    pub fn follow(&mut self, folder: &Path) {
        if self.folders.get(folder).is_some_and(|wd| self.watched.get(wd) == Some(&None)) {
            return;
        }
        let mask =
            WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::CLOSE_WRITE | WatchMask::ATTRIB | WatchMask::ONLYDIR;
        let mut watches = self.fd.get_ref().watches();
        if let Ok(wd) = watches.add(folder, mask) {
            self.watched.insert(wd.clone(), None);
            self.folders.insert(folder.to_owned(), wd);
        } else if let (Some(parent), Some(name)) = (folder.parent(), folder.file_name())
            && let Ok(wd) = watches.add(parent, mask)
        {
            self.watched.entry(wd.clone()).or_insert_with(|| Some(name.to_owned()));
            self.folders.insert(folder.to_owned(), wd);
        }
    }

    /// Returns when something has changed. It may be dropped at any await.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let mut ready = self.fd.readable_mut().await?;
            let mut counts = false;
            match ready.get_inner_mut().read_events(&mut buffer) {
                Ok(events) => {
                    for event in events {
                        let only = self.watched.get(&event.wd);
                        counts |= only.is_none_or(|only| only.as_deref().is_none_or(|name| Some(name) == event.name));
                        if event.mask.contains(EventMask::IGNORED) {
                            self.watched.remove(&event.wd);
                            self.folders.retain(|_, wd| *wd != event.wd);
                        }
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(e) => return Err(e),
            }
            if counts {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, time::Duration};

    use super::*;

    async fn soon(watch: &mut FolderWatch) {
        tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn changes_are_seen_in_folders_that_come_later_too_and_those_before_the_wait_are_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (there, later) = (dir.path().join("there"), dir.path().join("later"));
        fs::create_dir(&there).unwrap();
        let mut watch = FolderWatch::new().unwrap();
        watch.follow(&there);
        watch.follow(&later);
        fs::write(dir.path().join("unrelated"), "").unwrap();
        fs::write(there.join("config.toml"), "a").unwrap();
        soon(&mut watch).await;
        while tokio::time::timeout(Duration::ZERO, watch.changed()).await.is_ok() {}
        fs::create_dir(&later).unwrap();
        soon(&mut watch).await;
        watch.follow(&later);
        fs::write(later.join("10-cilium.conflist"), "{}").unwrap();
        soon(&mut watch).await;
        fs::remove_dir_all(&there).unwrap();
        soon(&mut watch).await;
        fs::create_dir(&there).unwrap();
        watch.follow(&there);
        fs::write(there.join("config.toml"), "b").unwrap();
        soon(&mut watch).await;
    }
}
