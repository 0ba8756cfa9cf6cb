//! Waits for changes of the folder with inotify.

use std::{collections::BTreeSet, io, path::Path, sync::Weak, time::Duration};

use futures_util::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use tokio::time::Instant;
use tracing::{debug, error};

use super::{super::StoreError, FolderStore, scan::is_manifest};

/// Tools write several files, or a file and then its name, in one go; waiting this long takes them together.
const DEBOUNCE: Duration = Duration::from_millis(2);
/// Room for a few hundred events in one read.
const BUFFER: usize = 16 << 10;
/// How soon a folder that could not be read is tried again.
const RETRY: Duration = Duration::from_secs(5);

pub(super) struct Watch {
    events: EventStream<Vec<u8>>,
    /// Changed and not yet read; kept here because waiting for more may be cut short.
    names: BTreeSet<String>,
    /// Events were lost, or do not say enough.
    all: bool,
}

impl Watch {
    pub(super) fn new(dir: &Path) -> Result<Self, StoreError> {
        let failed = |source: io::Error| StoreError::Io { what: "cannot watch", path: dir.to_owned(), source };
        let inotify = Inotify::init().map_err(failed)?;
        // Not MODIFY: a file is read once it is whole. CREATE is for links, which are whole at once.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        inotify.watches().add(dir, mask).map_err(failed)?;
        let events = inotify.into_event_stream(vec![0; BUFFER]).map_err(failed)?;
        Ok(Self { events, names: BTreeSet::new(), all: false })
    }

    /// Until the store is dropped.
    pub(super) async fn run(mut self, store: Weak<FolderStore>) {
        // Objects that were missing at the start are due some time after it.
        let mut look_again = Some(Instant::now());
        loop {
            let due = look_again.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                changed = self.changes() => if let Err(e) = changed {
                    error!("cannot watch the folder: {e}");
                    tokio::time::sleep(RETRY).await;
                    self.all = true;
                },
                () = tokio::time::sleep_until(due), if look_again.is_some() => {}
            }
            let Some(store) = store.upgrade() else { return };
            let names: Vec<String> = std::mem::take(&mut self.names).into_iter().collect();
            if !names.is_empty() {
                debug!(files = ?names, "manifests changed");
            }
            let names = (!std::mem::take(&mut self.all)).then_some(names);
            look_again = match store.rescan(names).await {
                Ok(next) => next,
                Err(e) => {
                    error!("{e}");
                    self.all = true;
                    Some(Instant::now() + RETRY)
                }
            };
        }
    }

    /// Waits until a manifest changed, and a little longer.
    async fn changes(&mut self) -> io::Result<()> {
        while self.names.is_empty() && !self.all {
            self.read().await?;
        }
        // Not longer than that in all: the store's own writes are events too and would go on and on under load.
        let end = Instant::now() + DEBOUNCE;
        while let Ok(more) = tokio::time::timeout_at(end, self.read()).await {
            more?;
        }
        Ok(())
    }

    /// Waits for one event.
    async fn read(&mut self) -> io::Result<()> {
        let event = self.events.next().await.ok_or_else(|| io::Error::other("inotify ended"))??;
        let name = event.name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // `..data` is the link that Kubernetes turns when a mounted ConfigMap changes.
        self.all |= event.mask.contains(EventMask::Q_OVERFLOW) || name == "..data" || name.is_empty();
        if is_manifest(&name) {
            self.names.insert(name);
        }
        Ok(())
    }
}
