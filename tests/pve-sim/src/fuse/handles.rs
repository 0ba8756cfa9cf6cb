//! Open files and folders. A file that is replaced while it is read is read to its end as it was.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::cluster::Entry;

#[derive(Clone)]
pub(super) enum Open {
    File(Arc<Vec<u8>>),
    Folder(Arc<Vec<Entry>>),
}

#[derive(Default)]
struct Table {
    last: u64,
    open: HashMap<u64, Open>,
}

#[derive(Default)]
pub(super) struct Handles(Mutex<Table>);

impl Handles {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, open: Open) -> u64 {
        let mut table = self.lock();
        table.last += 1;
        let handle = table.last;
        table.open.insert(handle, open);
        handle
    }

    pub(super) fn get(&self, handle: u64) -> Option<Open> {
        self.lock().open.get(&handle).cloned()
    }

    pub(super) fn remove(&self, handle: u64) {
        self.lock().open.remove(&handle);
    }
}
