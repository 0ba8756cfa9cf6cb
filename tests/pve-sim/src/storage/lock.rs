//! File locks as PVE takes them: flock with a time-out, a line in the log while it waits.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::api::Failure;

/// Takes the lines of a task's log.
pub type Log<'a> = &'a dyn Fn(&str);

/// Seconds for which PVE waits for a lock.
pub const TIMEOUT_S: f64 = 10.0;
const POLL: Duration = Duration::from_millis(5);

/// A held lock; released when dropped.
pub struct Held {
    _file: Flock<File>,
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
                return Ok(Held { _file: held });
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
}
