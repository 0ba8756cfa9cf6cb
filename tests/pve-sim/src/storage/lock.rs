//! Locks as PVE takes them, with a time-out and a line in the log while it waits: flock for what is this node's, a folder of the cluster file system for what
//! all nodes share.

use std::{
    fs::{self, File, FileTimes},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::{api::Failure, layout::NodeLayout};

/// Takes the lines of a task's log.
pub type Log<'a> = &'a dyn Fn(&str);

/// Seconds for which PVE waits for a lock.
pub const TIMEOUT_S: f64 = 10.0;
const POLL: Duration = Duration::from_millis(5);

/// How often PVE says that it waits for a cluster lock, and asks whether it has expired.
const ASK: Duration = Duration::from_secs(1);

/// A held lock; released when dropped.
#[expect(dead_code, reason = "held, not read")]
pub struct Held(Kind);

enum Kind {
    File(#[expect(dead_code, reason = "held, not read")] Flock<File>),
    Cluster(PathBuf),
}

impl Drop for Kind {
    fn drop(&mut self) {
        if let Self::Cluster(path) = self {
            let _ = fs::remove_dir(path);
        }
    }
}

/// How to take a lock.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// How long.
    pub timeout: Duration,
    /// Beside other holders of the same kind.
    pub shared: bool,
}

impl Wait {
    /// An exclusive lock, waited for as long as PVE does, times `factor`.
    pub fn exclusive(factor: f64) -> Self {
        Self { timeout: Duration::from_secs_f64(TIMEOUT_S * factor), shared: false }
    }
}

/// Takes a lock. `shown` is the path in messages, that of a real host.
///
/// # Errors
/// `can't lock file '...' - got timeout`, or that the file cannot be opened.
pub fn take(path: &Path, shown: &str, wait: Wait, log: Log<'_>) -> Result<Held, Failure> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::options().create(true).append(true).open(path)?;
    let kind = if wait.shared { FlockArg::LockSharedNonblock } else { FlockArg::LockExclusiveNonblock };
    let begin = Instant::now();
    let mut told = false;
    loop {
        match Flock::lock(file, kind) {
            Ok(held) => {
                if told {
                    log(" OK");
                }
                return Ok(Held(Kind::File(held)));
            }
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(Failure::die(format!("can't lock file '{shown}' - {}", errno.desc()))),
        }
        if !told {
            log("trying to acquire lock...");
            told = true;
        }
        if begin.elapsed() >= wait.timeout {
            return Err(Failure::die(format!("can't lock file '{shown}' - got timeout")));
        }
        thread::sleep(POLL);
    }
}

/// Takes a lock of the whole cluster, waited for as long as PVE does, times `factor`. The lock of a process that is killed stays until it expires.
///
/// # Errors
/// `cfs-lock '...' error: got lock request timeout`, or `no quorum!`.
pub fn take_cluster(layout: &NodeLayout, name: &str, factor: f64, log: Log<'_>) -> Result<Held, Failure> {
    let path = layout.etc_pve().join("priv/lock").join(name);
    let deadline = Instant::now() + Duration::from_secs_f64(TIMEOUT_S * factor);
    let mut ask = Instant::now() + ASK.mul_f64(factor);
    loop {
        let made = fs::create_dir_all(path.parent().unwrap_or(&path)).and_then(|()| fs::create_dir(&path));
        let why = match made {
            Ok(()) => return Ok(Held(Kind::Cluster(path))),
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => "no quorum!",
            Err(_) => "got lock request timeout",
        };
        let now = Instant::now();
        if now >= deadline {
            return Err(Failure::die(format!("cfs-lock '{name}' error: {why}")));
        }
        if now >= ask {
            log(&format!("trying to acquire cfs lock '{name}' ..."));
            ask = now + ASK.mul_f64(factor);
            // Asks the cluster file system to remove it if it has expired; refused otherwise.
            let zero = FileTimes::new().set_accessed(UNIX_EPOCH).set_modified(UNIX_EPOCH);
            let _ = File::open(&path).and_then(|folder| folder.set_times(zero));
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_held_lock_ends_in_a_time_out_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/lock");
        let wait = Wait { timeout: Duration::from_millis(20), shared: false };
        let held = take(&path, "/var/lock/x", wait, &|_| {}).unwrap();
        let lines = std::cell::RefCell::new(Vec::new());
        let error = take(&path, "/var/lock/x", wait, &|line| lines.borrow_mut().push(line.to_owned())).err().unwrap();
        assert_eq!(error.to_string(), "can't lock file '/var/lock/x' - got timeout");
        assert_eq!(lines.into_inner(), ["trying to acquire lock..."]);
        drop(held);
        take(&path, "/var/lock/x", wait, &|_| {}).unwrap();
    }

    #[test]
    fn a_held_cluster_lock_ends_in_a_time_out_and_is_let_go_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(folder.path(), "pve1");
        let held = take_cluster(&layout, "storage-x", 0.01, &|_| {}).unwrap();
        let lines = std::cell::RefCell::new(Vec::new());
        let error = take_cluster(&layout, "storage-x", 0.01, &|line| lines.borrow_mut().push(line.to_owned())).err().unwrap();
        assert_eq!(error.to_string(), "cfs-lock 'storage-x' error: got lock request timeout");
        assert!(lines.into_inner().starts_with(&["trying to acquire cfs lock 'storage-x' ...".to_owned()]));
        drop(held);
        take_cluster(&layout, "storage-x", 0.01, &|_| {}).unwrap();
    }
}
