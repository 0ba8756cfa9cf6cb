//! Lanes in front of PVE's storage locks: so many copies and so many short jobs at once on a storage, first come, first served.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// Which lane of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Linked clone, allocate, attach, delete.
    Short,
    /// Full clone, move, import.
    Long,
}

/// How many may be in a lane at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneSizes {
    /// Short lane: what PVE's storage lock serializes anyway, so more than a few only wait for each other inside PVE.
    pub short: usize,
    /// Long lane: copies share the disk's bandwidth, and PVE gives up on its lock after 10 s.
    pub long: usize,
}

impl Default for LaneSizes {
    fn default() -> Self {
        Self { short: 4, long: 2 }
    }
}

/// The lanes of all storages.
#[derive(Debug)]
pub(super) struct Lanes {
    sizes: LaneSizes,
    lanes: Mutex<HashMap<(String, Lane), Arc<Semaphore>>>,
}

impl Lanes {
    pub(super) fn new(sizes: LaneSizes) -> Self {
        Self { sizes, lanes: Mutex::default() }
    }

    /// The lane of a storage.
    pub(super) fn lane(&self, storage: &str, lane: Lane) -> Arc<Semaphore> {
        let size = match lane {
            Lane::Short => self.sizes.short,
            Lane::Long => self.sizes.long,
        };
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lanes.entry((storage.to_owned(), lane)).or_insert_with(|| Arc::new(Semaphore::new(size.max(1)))))
    }

    /// Waits for a place. Places are given in the order of asking.
    pub(super) async fn enter(&self, storage: &str, lane: Lane) -> Result<OwnedSemaphorePermit, Error> {
        self.lane(storage, lane).acquire_owned().await.map_err(|_| Error::Internal("a lane was closed".to_owned()))
    }
}
