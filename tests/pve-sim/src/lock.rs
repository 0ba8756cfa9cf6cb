//! File locks with PVE's time-outs and texts.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::api::Failure;

/// How long most callers wait for a VM's or a storage's lock.
pub const WAIT: Duration = Duration::from_secs(10);
/// How long a clone waits for the lock of the VM that it copies.
pub const WAIT_CLONE: Duration = Duration::from_secs(1);
/// How often a held lock is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// Takes a file lock, which the returned file holds until it is dropped. `shown` is the path in messages; `log` gets the lines that PVE prints when it waits.
///
/// # Errors
/// When it is held by others for longer than `wait`.
pub fn take(path: &Path, shown: &str, shared: bool, wait: Duration, log: &dyn Fn(&str)) -> Result<File, Failure> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let deadline = Instant::now() + wait;
    let mut waiting = false;
    loop {
        let tried = if shared { file.try_lock_shared() } else { file.try_lock() };
        match tried {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(Failure::die(format!("can't lock file '{shown}' - {error}"))),
            Err(TryLockError::WouldBlock) => {}
        }
        if !waiting {
            log("trying to acquire lock...");
            waiting = true;
        }
        if Instant::now() >= deadline {
            return Err(Failure::die(format!("can't lock file '{shown}' - got timeout")));
        }
        thread::sleep(RETRY);
    }
    if waiting {
        log(" OK");
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_held_lock_is_refused_after_the_wait_with_the_path_of_a_real_host() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/lock-100.conf");
        let held = take(&path, "/x", false, WAIT, &|_| {}).unwrap();
        let refused = take(&path, "/var/lock/qemu-server/lock-100.conf", true, Duration::ZERO, &|_| {}).unwrap_err();
        assert_eq!(refused.to_string(), "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout");
        drop(held);
        let first = take(&path, "/x", true, Duration::ZERO, &|_| {}).unwrap();
        take(&path, "/x", true, Duration::ZERO, &|_| {}).unwrap();
        drop(first);
    }
}
