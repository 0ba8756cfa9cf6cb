//! Faults that can be switched on for one simulated node. They stand in a file, so that the daemon and each task process see them alike.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io,
    path::Path,
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// What goes wrong on this node at present. Everything off is the default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The local API (`pvedaemon`) does not listen.
    pub daemon_down: bool,
    /// A request whose body comes in a later segment than its header is answered `500 user name not set`, as a busy real daemon does.
    pub split_request_bug: bool,
    /// Faults by storage id.
    pub storages: BTreeMap<String, StorageFault>,
    /// Faults of the next tasks, taken from the front: the first entry whose `kind` fits is used up.
    pub tasks: Vec<TaskFault>,
    /// Seconds for which the clean-up after a stop or destroy holds the VM's lock.
    pub cleanup_holds_lock_s: f64,
    /// Disks that a running guest does not let go of when they are pulled out, by VMID and slot.
    pub held_disks: BTreeMap<u32, BTreeMap<String, Hold>>,
}

/// What a guest does not let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// The disk itself, as a guest that does not answer holds a `virtio<n>` disk: every attempt fails until it lets go.
    Disk,
    /// The controller that a `scsi<n>` disk has for itself with `scsihw: virtio-scsi-single`. The disk goes all the same: the first attempt fails, and the
    /// next finds nothing left to pull out. With other kinds of controller nothing is held.
    Controller,
}

/// What is wrong with one storage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageFault {
    /// It cannot be activated, as a folder that should be a mount point and is none.
    pub offline: bool,
    /// Writing fails with "No space left on device" after this many bytes: copies at once, or half-way; new images only when nothing at all is left.
    pub full_after_bytes: Option<u64>,
    /// Copies run at this many KiB a second (`qemu-img convert -r`).
    pub rate_kib: Option<u64>,
    /// Anything that touches it blocks until the fault is removed, as a dead NFS mount does.
    pub hung: bool,
    /// An image on it cannot be removed (the task warns).
    pub remove_fails: bool,
}

/// How a task ends that is hit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFault {
    /// The UPID's type, `qmclone`, `qmstart` ...; empty for any.
    pub kind: String,
    /// What happens to it.
    pub effect: TaskEffect,
}

/// The effect of a [`TaskFault`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskEffect {
    /// The worker gets SIGKILL once it has begun its real work: no end line, left-overs stay.
    Killed,
    /// The worker gets SIGTERM once it has begun its real work: it rolls back.
    Terminated,
    /// All is done, yet the log ends without an end line.
    NoEndLine,
    /// All is done, and the log ends in `TASK WARNINGS: n`.
    Warnings(u32),
    /// Nothing is done, and the log ends in `TASK ERROR: <text>`.
    Error(String),
    /// The real work begins only after this many milliseconds.
    Delayed(u64),
}

impl Faults {
    /// Reads the file; none is no fault.
    pub fn load(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e),
        }
    }

    /// Changes the file; nobody else does at the same time, be it another process. Gives what `change` gives.
    ///
    /// # Errors
    /// When the file cannot be read or replaced, or `change` fails: then it is left as it is.
    pub fn update<T>(path: &Path, change: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        let file = OpenOptions::new().create(true).append(true).open(path.with_extension("lock"))?;
        let _held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        let before = Self::load(path)?;
        let mut faults = before.clone();
        let result = change(&mut faults)?;
        if faults != before {
            faults.store(path)?;
        }
        Ok(result)
    }

    /// A guest lets go of a disk, now or when it is asked next.
    pub fn let_go(&mut self, vmid: u32, slot: &str) {
        if let Some(slots) = self.held_disks.get_mut(&vmid) {
            slots.remove(slot);
            if slots.is_empty() {
                self.held_disks.remove(&vmid);
            }
        }
    }

    /// Replaces the file in one step.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("json.tmp");
        fs::write(&temporary, serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
        fs::rename(temporary, path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn changes_made_at_once_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faults.json");
        std::thread::scope(|scope| {
            for name in ["a", "b", "c", "d"] {
                let path = &path;
                scope.spawn(move || {
                    Faults::update(path, |faults| {
                        faults.storages.insert(name.into(), StorageFault { hung: true, ..StorageFault::default() });
                        Ok(())
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(Faults::load(&path).unwrap().storages.len(), 4);
    }

    #[test]
    fn a_change_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faults.json");
        let failed = Faults::update(&path, |faults| {
            faults.daemon_down = true;
            Err::<(), _>(io::Error::other("no"))
        });
        assert!(failed.is_err());
        assert_eq!(Faults::load(&path).unwrap(), Faults::default());
    }
}
