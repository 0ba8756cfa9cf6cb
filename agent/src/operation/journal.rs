//! The durable journal: operations, quarantined VMIDs, controllers' epochs, audit lines, in one redb file.
//!
//! Writes are queued and committed in groups: whoever waits first commits for all that queued up meanwhile. A commit is one fsync. When a
//! commit fails, the journal stays failed: nothing new is begun until the agent was restarted on a working disk.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError, TableDefinition, backends::FileBackend,
};

use crate::error::Error;

/// Grows when an older agent could not read the journal any more.
const FORMAT: u64 = 1;
/// Beside the journal, its format in digits: the package of an older version looks there before it takes the place of this one.
const FORMAT_FILE: &str = "journal.format";
/// What an administrator does about a damaged journal.
const DAMAGED: &str = "move it away to begin with an empty one, after looking for VMs with `lock: clone`";
/// Audit lines that are kept.
const AUDIT_LINES: u64 = 100_000;
/// redb's own default is a gigabyte; the journal is a few megabytes and read once.
const CACHE_BYTES: usize = 1 << 20;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// As shown, its request, its state.
type OperationRow = (&'static [u8], &'static [u8], &'static [u8]);
const OPERATIONS: TableDefinition<'_, &str, OperationRow> = TableDefinition::new("operations");
const QUARANTINE: TableDefinition<'_, u32, u64> = TableDefinition::new("quarantine");
const EPOCHS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("epochs");
const AUDIT: TableDefinition<'_, u64, &str> = TableDefinition::new("audit");

/// One change of the journal.
#[derive(Debug)]
pub(super) enum Write {
    /// An operation: as the API shows it, its request, and its state as JSON.
    Operation { name: String, shown: Vec<u8>, request: Arc<[u8]>, state: Vec<u8> },
    /// An operation that is forgotten.
    Forget { name: String },
    /// A VMID that is not given out until then (milliseconds since the Unix epoch).
    Quarantine { vmid: u32, until: u64 },
    /// A VMID whose quarantine is over.
    Release { vmid: u32 },
    /// A controller's newest epoch.
    Epoch { controller: String, epoch: Vec<u8> },
    /// One line of JSON.
    Audit(String),
    /// All revisions so far are below this one.
    Revision(u64),
}

/// An operation as it was read.
pub(super) struct Stored {
    pub(super) shown: Vec<u8>,
    pub(super) request: Vec<u8>,
    pub(super) state: Vec<u8>,
}

/// All that was read at the start.
#[derive(Default)]
pub(super) struct Content {
    pub(super) operations: Vec<Stored>,
    pub(super) quarantine: Vec<(u32, u64)>,
    pub(super) epochs: Vec<Vec<u8>>,
    pub(super) revision: u64,
}

#[derive(Default)]
struct Queue {
    writes: Vec<Write>,
    /// Number of the last write that was queued.
    queued: u64,
    /// Number of the last write that is on the disk.
    durable: u64,
    failed: Option<String>,
}

pub(super) struct Journal {
    db: Database,
    path: PathBuf,
    queue: Mutex<Queue>,
    /// Held while one thread commits; the others wait here and find their writes done.
    committing: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Opens or makes the journal in `dir` and reads all of it. A journal that is damaged, of a later format, or held by another agent is
    /// an error: to begin with an empty one would forget which VMs are half made. That is left to an administrator, who moves the file away.
    pub(super) fn open(dir: &Path) -> Result<(Arc<Self>, Content), Error> {
        let path = dir.join("journal.redb");
        let fail = |detail: String| Error::Journal { path: path.display().to_string(), detail };
        if !dir.is_dir() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|e| fail(format!("cannot make {}: {e}", dir.display())))?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(|e| fail(format!("cannot set the mode of {}: {e}", dir.display())))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| fail(e.to_string()))?;
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(|e| fail(e.to_string()))?;
        let opening = |error| match error {
            DatabaseError::DatabaseAlreadyOpen => Error::JournalInUse { path: path.display().to_string() },
            error => fail(opening(error)),
        };
        let backend = FileBackend::new(file).map_err(opening)?;
        let db = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend).map_err(opening)?;
        let content = Self::read(&db).map_err(|e| match e {
            Read::Newer(found) => {
                fail(format!("it has format {found}, this version knows up to {FORMAT}; install the newer version again"))
            }
            Read::Failed(detail) => fail(format!("it is damaged ({detail}); {DAMAGED}")),
        })?;
        tell_format(dir).map_err(|e| fail(format!("cannot write {FORMAT_FILE} beside it: {e}")))?;
        Ok((Arc::new(Self { db, path, queue: Mutex::default(), committing: Mutex::default() }), content))
    }

    fn read(db: &Database) -> Result<Content, Read> {
        let txn = db.begin_write()?;
        {
            let mut meta = txn.open_table(META)?;
            let found = meta.get("format")?.map(|v| v.value());
            match found {
                Some(found) if found > FORMAT => return Err(Read::Newer(found)),
                Some(_) => {}
                None => drop(meta.insert("format", FORMAT)?),
            }
            // Opened once, so that later reads find them.
            txn.open_table(OPERATIONS)?;
            txn.open_table(QUARANTINE)?;
            txn.open_table(EPOCHS)?;
            txn.open_table(AUDIT)?;
        }
        txn.commit()?;
        let txn = db.begin_read()?;
        let mut content = Content { revision: txn.open_table(META)?.get("revision")?.map_or(0, |v| v.value()), ..Content::default() };
        for row in txn.open_table(OPERATIONS)?.iter()? {
            let (_, value) = row?;
            let (shown, request, state) = value.value();
            content.operations.push(Stored { shown: shown.to_vec(), request: request.to_vec(), state: state.to_vec() });
        }
        for row in txn.open_table(QUARANTINE)?.iter()? {
            let (vmid, until) = row?;
            content.quarantine.push((vmid.value(), until.value()));
        }
        for row in txn.open_table(EPOCHS)?.iter()? {
            content.epochs.push(row?.1.value().to_vec());
        }
        Ok(content)
    }

    /// Queues writes and returns the number to wait for. The order of calls is the order on the disk.
    pub(super) fn push(&self, writes: impl IntoIterator<Item = Write>) -> u64 {
        let mut queue = lock(&self.queue);
        for write in writes {
            queue.queued += 1;
            // A failed journal takes nothing more, and must not fill the memory.
            if queue.failed.is_none() {
                queue.writes.push(write);
            }
        }
        queue.queued
    }

    /// Returns when everything up to `number` is on the disk.
    pub(super) async fn durable(self: &Arc<Self>, number: u64) -> Result<(), Error> {
        let journal = Arc::clone(self);
        match tokio::task::spawn_blocking(move || journal.commit(number)).await {
            Ok(result) => result,
            Err(e) => Err(Error::Internal(format!("the journal's writer ended: {e}"))),
        }
    }

    fn commit(&self, number: u64) -> Result<(), Error> {
        let _one = lock(&self.committing);
        let (writes, upto) = {
            let mut queue = lock(&self.queue);
            if let Some(detail) = &queue.failed {
                return Err(self.error(detail));
            }
            if queue.durable >= number {
                return Ok(());
            }
            (std::mem::take(&mut queue.writes), queue.queued)
        };
        let result = self.apply(writes);
        let mut queue = lock(&self.queue);
        match result {
            Ok(()) => {
                queue.durable = upto;
                Ok(())
            }
            Err(e) => {
                let detail = e.to_string();
                tracing::error!(path = %self.path.display(), %detail, "the journal cannot be written; no operation is begun until a restart");
                queue.failed = Some(detail.clone());
                queue.writes = Vec::new();
                Err(self.error(&detail))
            }
        }
    }

    fn error(&self, detail: &str) -> Error {
        Error::Journal { path: self.path.display().to_string(), detail: format!("it cannot be written: {detail}") }
    }

    fn apply(&self, writes: Vec<Write>) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let mut meta = txn.open_table(META)?;
            let mut operations = txn.open_table(OPERATIONS)?;
            let mut quarantine = txn.open_table(QUARANTINE)?;
            let mut epochs = txn.open_table(EPOCHS)?;
            let mut audit = txn.open_table(AUDIT)?;
            for write in writes {
                match write {
                    Write::Operation { name, shown, request, state } => {
                        operations.insert(name.as_str(), (shown.as_slice(), &*request, state.as_slice()))?;
                    }
                    Write::Forget { name } => drop(operations.remove(name.as_str())?),
                    Write::Quarantine { vmid, until } => drop(quarantine.insert(vmid, until)?),
                    Write::Release { vmid } => drop(quarantine.remove(vmid)?),
                    Write::Epoch { controller, epoch } => drop(epochs.insert(controller.as_str(), epoch.as_slice())?),
                    Write::Audit(line) => {
                        let next = audit.last()?.map_or(0, |(n, _)| n.value() + 1);
                        audit.insert(next, line.as_str())?;
                        if audit.len()? > AUDIT_LINES {
                            audit.pop_first()?;
                        }
                    }
                    Write::Revision(revision) => drop(meta.insert("revision", revision)?),
                }
            }
        }
        txn.commit()?;
        Ok(())
    }

    /// Why it takes nothing more; `None`: it does.
    pub(super) fn failed(&self) -> Option<String> {
        lock(&self.queue).failed.clone()
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The last audit lines, oldest first.
    pub(super) fn audit_tail(&self, count: usize) -> Result<Vec<String>, Error> {
        let read = || -> Result<Vec<String>, redb::Error> {
            let table = self.db.begin_read()?.open_table(AUDIT)?;
            let mut lines = Vec::new();
            for row in table.iter()?.rev().take(count) {
                lines.push(row?.1.value().to_owned());
            }
            lines.reverse();
            Ok(lines)
        };
        read().map_err(|e| Error::Journal { path: self.path.display().to_string(), detail: e.to_string() })
    }
}

/// By rename, so that nobody ever reads half of it.
fn tell_format(dir: &Path) -> io::Result<()> {
    let (file, new) = (dir.join(FORMAT_FILE), dir.join(format!("{FORMAT_FILE}.new")));
    let text = format!("{FORMAT}\n");
    if fs::read_to_string(&file).is_ok_and(|found| found == text) {
        return Ok(());
    }
    fs::write(&new, text)?;
    fs::rename(&new, &file)
}

/// Why a journal cannot be opened, for an administrator.
fn opening(error: DatabaseError) -> String {
    match error {
        DatabaseError::UpgradeRequired(v) => format!("its file format ({v}) is none of this version; install the version that wrote it"),
        DatabaseError::Storage(StorageError::Io(e)) if e.kind() != io::ErrorKind::InvalidData => e.to_string(),
        e => format!("it is damaged ({e}); {DAMAGED}"),
    }
}

enum Read {
    Newer(u64),
    Failed(String),
}

impl<E: Into<redb::Error>> From<E> for Read {
    fn from(error: E) -> Self {
        Self::Failed(error.into().to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_package_knows_the_format_and_where_it_is_told() {
        let preinst = include_str!("../../../packaging/debian/pvelet-agent/preinst");
        assert!(preinst.lines().any(|line| line == format!("known={FORMAT}")), "{preinst}");
        assert!(preinst.contains(&format!("/{FORMAT_FILE}\"")), "{preinst}");
        let dir = tempfile::tempdir().unwrap();
        drop(Journal::open(dir.path()).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join(FORMAT_FILE)).unwrap(), format!("{FORMAT}\n"));
        // It is put right where it was lost.
        fs::remove_file(dir.path().join(FORMAT_FILE)).unwrap();
        drop(Journal::open(dir.path()).unwrap());
        assert!(dir.path().join(FORMAT_FILE).exists());
    }

    #[tokio::test]
    async fn a_failed_journal_takes_nothing_more_and_does_not_grow() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path()).unwrap();
        journal.push([Write::Revision(1)]);
        lock(&journal.queue).failed = Some("no space left on device".to_owned());
        lock(&journal.queue).writes.clear();
        for _ in 0..3 {
            let number = journal.push([Write::Audit("{}".to_owned())]);
            assert!(journal.durable(number).await.unwrap_err().to_string().contains("no space left"));
        }
        assert!(lock(&journal.queue).writes.is_empty());
    }
}
