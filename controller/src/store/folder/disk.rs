//! What touches the disk: the lock, the epoch, the status files.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    super::StoreError,
    record::{Record, SUFFIX, file_name},
};
use crate::epoch::Epoch;

const LOCK_FILE: &str = ".pvelet-controller.lock";
const EPOCH_FILE: &str = ".pvelet-controller.epoch";

/// Runs what may block on the disk off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(StoreError::Io { what: "stopped while working on", path: PathBuf::new(), source: io::Error::other(e) }),
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// The folder's lock, held until the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct FolderLock(Arc<Flock<File>>);

impl FolderLock {
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(LOCK_FILE);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed("cannot open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(Arc::new(lock))),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StoreError::InUse(dir.to_owned())),
            Err((_, e)) => Err(failed("cannot lock", &path)(e.into())),
        }
    }

    /// Whether the folder at this path is still the one that was locked: one that was unmounted or replaced looks empty.
    pub(super) fn verify(&self, dir: &Path) -> Result<(), StoreError> {
        let held = self.0.metadata().map_err(failed("cannot look at", dir))?;
        match fs::metadata(dir.join(LOCK_FILE)) {
            Ok(now) if (now.dev(), now.ino()) == (held.dev(), held.ino()) => Ok(()),
            _ => Err(StoreError::FolderLost(dir.to_owned())),
        }
    }
}

/// Counts the epoch up and returns it.
pub(super) fn next_epoch(dir: &Path) -> Result<Epoch, StoreError> {
    let path = dir.join(EPOCH_FILE);
    let epoch = match fs::read_to_string(&path) {
        Ok(text) => {
            Epoch::parse(&text).ok_or_else(|| StoreError::Damaged { path: path.clone(), problem: "it is no epoch".to_owned() })?.next()
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Epoch::first(),
        Err(e) => return Err(failed("cannot read", &path)(e)),
    };
    write_atomically(dir, EPOCH_FILE, epoch.to_text().as_bytes())?;
    Ok(epoch)
}

/// Writes a file so that after a crash it is the old one or the new one, whole.
fn write_atomically(dir: &Path, name: &str, content: &[u8]) -> Result<(), StoreError> {
    let (path, temporary) = (dir.join(name), dir.join(format!(".{name}.new")));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(failed("cannot write", &path))
}

pub(super) fn write_record(dir: &Path, record: &Record) -> Result<(), StoreError> {
    let name = file_name(&record.id());
    let text = serde_norway::to_string(record).map_err(|e| StoreError::Damaged { path: dir.join(&name), problem: e.to_string() })?;
    write_atomically(dir, &name, text.as_bytes())
}

pub(super) fn remove(dir: &Path, name: &str) -> Result<(), StoreError> {
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Ok(()) => File::open(dir).and_then(|d| d.sync_all()).map_err(failed("cannot remove", &path)),
        // An object that was never written has no file.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("cannot remove", &path)(e)),
    }
}

/// All records, and the files that are none with what is wrong with them.
pub(super) fn read_records(dir: &Path) -> Result<(Vec<Record>, BTreeMap<String, String>), StoreError> {
    let (mut records, mut damaged) = (Vec::new(), BTreeMap::new());
    for entry in fs::read_dir(dir).map_err(failed("cannot list", dir))? {
        let name = entry.map_err(failed("cannot list", dir))?.file_name().to_string_lossy().into_owned();
        if !name.ends_with(SUFFIX) || name.starts_with('.') {
            continue;
        }
        let path = dir.join(&name);
        let text = fs::read_to_string(&path).map_err(failed("cannot read", &path))?;
        match serde_norway::from_str::<Record>(&text) {
            Ok(record) if file_name(&record.id()) == name => records.push(record),
            Ok(record) => {
                damaged.insert(name, format!("it is about {}", record.id()));
            }
            Err(e) => {
                damaged.insert(name, e.to_string());
            }
        }
    }
    Ok((records, damaged))
}
