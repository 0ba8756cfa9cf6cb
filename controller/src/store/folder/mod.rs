//! A folder of YAML manifests as a store.
//!
//! People and tools own the manifests; beside them the store keeps one `<kind>.<name>.status.yaml` for each object: its whole record (uid,
//! generation, finalizers, last spec, status), so that a deletion can be finished after the manifest is gone.
//!
//! What is *missing* is taken seriously but never hastily. A manifest that cannot be read holds the object it held before; an object that is
//! in no manifest any more goes after a grace time, so that an editor's "remove, then write again" or a move between files deletes nothing.

mod data;
mod disk;
mod record;
mod scan;
mod watch;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{info, warn};

use self::{record::Record, scan::Scan};
use super::{Event, Store, StoreError, Tenancy, UserDataError};
use crate::{
    epoch::Epoch,
    kind::{Kind, Manifest, Object, ObjectKey, ObjectRef, UserDataRef},
};

pub use self::scan::is_manifest;

/// How long an object must be in no manifest before it is deleted.
pub const DELETION_GRACE: Duration = Duration::from_secs(2);

/// A folder of manifests.
#[derive(Debug)]
pub struct FolderStore {
    dir: PathBuf,
    grace: Duration,
    epoch: Epoch,
    inner: Mutex<Inner>,
    /// Held for the life of the store: only one controller on a folder.
    lock: disk::FolderLock,
    /// One write at a time, so that the files follow the memory in order.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Inner {
    records: BTreeMap<ObjectRef, Record>,
    /// Records whose file cannot be understood, by the file's name: their objects are left alone.
    damaged: BTreeMap<String, String>,
    /// As last read; nothing when a reading was broken off, and then all is read again.
    scan: Option<Scan>,
    next_version: u64,
    watchers: Vec<mpsc::UnboundedSender<ObjectRef>>,
    /// Objects found in no manifest, and since when.
    missing: HashMap<ObjectRef, tokio::time::Instant>,
    /// Problems already told, by file, so that each is logged once.
    told: HashMap<PathBuf, String>,
}

impl FolderStore {
    /// Takes the folder for this process, counts the epoch up, and reads everything.
    pub async fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        Self::open_with_grace(dir, DELETION_GRACE).await
    }

    /// Like [`FolderStore::open`], with another grace time before deletions.
    pub async fn open_with_grace(dir: &Path, grace: Duration) -> Result<Arc<Self>, StoreError> {
        let path = dir.to_owned();
        let (dir, lock, epoch, inner) = disk::blocking(move || {
            let dir = path.canonicalize().map_err(|source| StoreError::Io { what: "cannot open", path: path.clone(), source })?;
            let lock = disk::FolderLock::take(&dir)?;
            let epoch = disk::next_epoch(&dir)?;
            let inner = Inner::load(&dir)?;
            Ok((dir, lock, epoch, inner))
        })
        .await?;
        let store = Arc::new(Self { dir, grace, epoch, inner: Mutex::new(inner), lock, writing: tokio::sync::Mutex::default() });
        let watch = watch::Watch::new(&store.dir)?;
        store.rescan(None).await?;
        tokio::spawn(watch.run(Arc::downgrade(&store)));
        Ok(store)
    }

    /// This start's epoch.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock is held leaves whole maps behind: each change is one insert or remove.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what changed (`None`: everything) and brings the records in line. Returns when to look again at objects that are missing.
    async fn rescan(&self, names: Option<Vec<String>>) -> Result<Option<tokio::time::Instant>, StoreError> {
        let _writing = self.writing.lock().await;
        let (dir, lock, scan) = (self.dir.clone(), self.lock.clone(), self.inner().scan.take());
        let names = names.filter(|_| scan.is_some());
        let mut scan = scan.unwrap_or_default();
        let (scan, result) = disk::blocking(move || {
            let result = lock.verify(&dir).and_then(|()| scan.refresh(&dir, names.as_deref()));
            Ok((scan, result))
        })
        .await?;
        let (writes, removes, next) = {
            let mut inner = self.inner();
            result?;
            inner.scan = Some(scan);
            inner.tell_problems();
            inner.merge(self.grace)
        };
        for record in writes {
            self.persist(record).await?;
        }
        for id in removes {
            self.forget(&id).await?;
        }
        Ok(next)
    }

    async fn persist(&self, record: Record) -> Result<(), StoreError> {
        let (dir, id) = (self.dir.clone(), record.id());
        let written = record.clone();
        disk::blocking(move || disk::write_record(&dir, &written)).await?;
        let mut inner = self.inner();
        inner.records.insert(id.clone(), record);
        inner.notify(&id);
        Ok(())
    }

    async fn forget(&self, id: &ObjectRef) -> Result<(), StoreError> {
        let (dir, file) = (self.dir.clone(), record::file_name(id));
        disk::blocking(move || disk::remove(&dir, &file)).await?;
        let mut inner = self.inner();
        inner.records.remove(id);
        inner.missing.remove(id);
        inner.notify(id);
        info!(object = %id, "gone");
        // A manifest of the same name that came meanwhile becomes a new object.
        inner.adopt_new(id);
        Ok(())
    }

    /// Changes a record if its version still fits.
    async fn change<K: Kind>(
        &self,
        object: &Object<K>,
        edit: impl FnOnce(&mut Record) -> Result<bool, StoreError> + Send,
    ) -> Result<Object<K>, StoreError> {
        let _writing = self.writing.lock().await;
        let id = ObjectRef { kind: K::KIND.to_owned(), key: object.key() };
        let record = {
            let mut inner = self.inner();
            let Some(record) = inner.records.get(&id) else { return Err(StoreError::NotFound(id)) };
            if record.metadata.resource_version != object.metadata.resource_version {
                return Err(StoreError::Conflict(id));
            }
            let mut record = record.clone();
            if !edit(&mut record)? {
                return record.object();
            }
            record.metadata.resource_version = inner.version();
            record
        };
        if record.metadata.deletion_timestamp.is_some() && record.metadata.finalizers.is_empty() {
            let object = record.object()?;
            self.forget(&id).await?;
            return Ok(object);
        }
        let object = record.object()?;
        self.persist(record).await?;
        Ok(object)
    }
}

impl Inner {
    fn load(dir: &Path) -> Result<Self, StoreError> {
        let (records, damaged) = disk::read_records(dir)?;
        for (file, problem) in &damaged {
            warn!(file, problem, "status file is damaged; its object is left alone until the file is restored from a backup");
        }
        let next_version = records.iter().filter_map(|r| r.metadata.resource_version.parse::<u64>().ok()).max().unwrap_or(0) + 1;
        Ok(Self { records: records.into_iter().map(|r| (r.id(), r)).collect(), damaged, next_version, ..Self::default() })
    }

    fn version(&mut self) -> String {
        self.next_version += 1;
        self.next_version.to_string()
    }

    fn notify(&mut self, id: &ObjectRef) {
        self.watchers.retain(|w| w.send(id.clone()).is_ok());
    }

    fn tell_problems(&mut self) {
        let problems = self.scan.as_ref().map(Scan::problems).unwrap_or_default();
        self.told.retain(|file, _| problems.iter().any(|(f, _)| f == file));
        for (file, text) in problems {
            if self.told.get(&file) != Some(&text) {
                warn!(file = %file.display(), "manifest refused; what it held before stays as it is:\n{text}");
                self.told.insert(file, text);
            }
        }
    }

    /// Brings the records in line with the manifests: which to write, which to remove, and when to look again.
    fn merge(&mut self, grace: Duration) -> (Vec<Record>, Vec<ObjectRef>, Option<tokio::time::Instant>) {
        let (mut writes, mut removes, mut next) = (Vec::new(), Vec::new(), None);
        let Some(scan) = self.scan.take() else { return (writes, removes, next) };
        let found = scan.manifests();
        for (id, (file, manifest)) in &found {
            self.missing.remove(id);
            if self.damaged.contains_key(&record::file_name(id)) {
                continue;
            }
            match self.records.get(id) {
                None => self.insert_new(id, file, manifest.clone()),
                // It is being deleted; the manifest makes a new object once it is gone. Its annotations count: they can let go of the VM.
                Some(record) if record.metadata.deletion_timestamp.is_some() => {
                    if record.metadata.annotations != manifest.annotations {
                        let mut changed = record.clone();
                        changed.metadata.annotations.clone_from(&manifest.annotations);
                        changed.metadata.resource_version = self.version();
                        writes.push(changed);
                    }
                }
                Some(record) => {
                    if let Some(mut changed) = record.with_manifest(manifest, file) {
                        changed.metadata.resource_version = self.version();
                        writes.push(changed);
                    }
                }
            }
        }
        let sources: BTreeSet<String> = self.records.values().map(|r| r.source.clone()).collect();
        let now = tokio::time::Instant::now();
        let ids: Vec<ObjectRef> = self.records.keys().filter(|id| !found.contains_key(id)).cloned().collect();
        for id in ids {
            let Some(record) = self.records.get(&id) else { continue };
            if record.metadata.deletion_timestamp.is_some() {
                continue;
            }
            if scan.holds(&id, &record.source, &sources) {
                self.missing.remove(&id);
                continue;
            }
            let due = *self.missing.entry(id.clone()).or_insert(now) + grace;
            if now < due {
                next = Some(next.map_or(due, |n: tokio::time::Instant| n.min(due)));
            } else if record.metadata.finalizers.is_empty() {
                removes.push(id);
            } else {
                let mut record = record.clone();
                record.metadata.deletion_timestamp = Some(Timestamp::now());
                record.metadata.resource_version = self.version();
                info!(object = %id, "its manifest is gone: deleting");
                writes.push(record);
            }
        }
        self.scan = Some(scan);
        (writes, removes, next)
    }

    /// A manifest that was left aside while an object of its name was going.
    fn adopt_new(&mut self, id: &ObjectRef) {
        if let Some((file, manifest)) = self.scan.as_ref().and_then(|scan| scan.manifest(id)) {
            self.insert_new(id, &file, manifest);
        }
    }

    /// A new object, in memory only: nothing happens for it before its first write, so losing this uid in a crash loses nothing.
    fn insert_new(&mut self, id: &ObjectRef, file: &str, manifest: Manifest) {
        let version = self.version();
        self.records.insert(id.clone(), Record::new(manifest, file, version));
        self.notify(id);
    }
}

impl Store for FolderStore {
    async fn list<K: Kind>(&self) -> Result<Vec<Arc<Object<K>>>, StoreError> {
        self.inner().records.values().filter(|r| r.kind == K::KIND).map(|r| r.object().map(Arc::new)).collect()
    }

    async fn get<K: Kind>(&self, key: &ObjectKey) -> Result<Option<Object<K>>, StoreError> {
        let id = ObjectRef { kind: K::KIND.to_owned(), key: key.clone() };
        self.inner().records.get(&id).map(Record::object).transpose()
    }

    fn watch(&self) -> mpsc::UnboundedReceiver<ObjectRef> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut inner = self.inner();
        for id in inner.records.keys() {
            // Cannot fail: the receiver is still here.
            let _ = sender.send(id.clone());
        }
        inner.watchers.push(sender);
        receiver
    }

    async fn update_status<K: Kind>(&self, object: &Object<K>) -> Result<Object<K>, StoreError> {
        let status = record::to_value(&object.status)?;
        self.change(object, move |record| {
            let changed = record.status != status;
            record.status = status;
            Ok(changed)
        })
        .await
    }

    async fn set_finalizers<K: Kind>(&self, object: &Object<K>, finalizers: Vec<String>) -> Result<Object<K>, StoreError> {
        self.change(object, move |record| {
            let changed = record.metadata.finalizers != finalizers;
            record.metadata.finalizers = finalizers;
            Ok(changed || record.metadata.deletion_timestamp.is_some())
        })
        .await
    }

    /// `list` fails where there is one.
    fn is_unreadable(&self, _: &str) -> bool {
        false
    }

    fn tenancy(&self, _: &str) -> Tenancy {
        Tenancy::Unbound
    }

    /// The log has told it already, when the manifest was read.
    async fn tell_unreadable(&self, _: &ObjectRef, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn user_data(&self, namespace: &str, from: &UserDataRef) -> Result<Vec<u8>, UserDataError> {
        let (dir, namespace, from) = (self.dir.clone(), namespace.to_owned(), from.clone());
        let read = tokio::task::spawn_blocking(move || data::read(&dir, &namespace, &from)).await;
        read.unwrap_or_else(|e| Err(UserDataError::Unavailable { what: "user data".to_owned(), why: e.to_string() }))
    }

    fn record_event(&self, about: &ObjectRef, event: Event) {
        if event.warning {
            warn!(object = %about, reason = event.reason, "{}", event.message);
        } else {
            info!(object = %about, reason = event.reason, "{}", event.message);
        }
    }
}
