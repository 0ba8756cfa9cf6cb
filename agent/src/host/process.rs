//! Processes of this host, told apart by pid and start time: a pid alone may meanwhile belong to somebody else.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, SystemTime},
};

use nix::unistd::{SysconfVar, sysconf};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{Interest, unix::AsyncFd};

/// What `/proc/<pid>/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// State letter: `R`, `S`, `D`, `Z` (ended, not yet waited for) ...
    pub state: char,
    /// Parent.
    pub parent: i32,
    /// Session: the pid of its leader.
    pub session: i32,
    /// Start time in clock ticks since boot (field 22).
    pub start: u64,
}

impl Stat {
    /// Whether it has ended and merely waits to be collected.
    pub fn ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// Parses the text of `/proc/<pid>/stat`. The command's name may hold blanks and parentheses: the last `)` ends it.
pub fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    // Field 22; the session is field 6.
    let start = fields.nth(15)?.parse().ok()?;
    Some(Stat { state, parent, session, start })
}

/// The state of a process; `None` when there is none with this pid.
pub fn stat(proc: &Path, pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?)
}

/// Whether the process with this pid lives and began at `start` (clock ticks since boot).
pub fn lives(proc: &Path, pid: i32, start: u64) -> bool {
    stat(proc, pid).is_some_and(|s| s.start == start && !s.ended())
}

/// The arguments of a process; empty for kernel threads and those that ended.
pub fn arguments(proc: &Path, pid: i32) -> Vec<String> {
    let Ok(bytes) = fs::read(proc.join(pid.to_string()).join("cmdline")) else { return Vec::new() };
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect()
}

/// A process, so that a pid used again is not mistaken for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessRef {
    /// Pid.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
    /// Its command line, for the log.
    pub command: String,
}

/// The living processes with such a command line and in such a state. The state of others is not looked at.
pub fn find(proc: &Path, command: impl Fn(&[String]) -> bool, state: impl Fn(i32, Stat) -> bool) -> io::Result<Vec<ProcessRef>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proc)? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let arguments = arguments(proc, pid);
        if !command(&arguments) {
            continue;
        }
        if let Some(stat) = stat(proc, pid).filter(|s| !s.ended() && state(pid, *s)) {
            found.push(ProcessRef { pid, start: stat.start, command: arguments.join(" ") });
        }
    }
    Ok(found)
}

/// A process in a made-up `/proc`; its start time is 77 and its pid.
#[cfg(test)]
pub(crate) fn pretend(proc: &Path, pid: i32, state: char, (parent, session): (i32, i32), command: &str) -> io::Result<()> {
    let folder = proc.join(pid.to_string());
    fs::create_dir(&folder)?;
    fs::write(folder.join("stat"), format!("{pid} (x) {state} {parent} {pid} {session} {}77{pid} 0", "0 ".repeat(15)))?;
    fs::write(folder.join("cmdline"), command.replace(' ', "\0"))
}

/// A handle on one process: it becomes readable when the process ends, and signals sent through it reach nobody else.
#[derive(Debug)]
pub struct Handle {
    fd: OwnedFd,
}

impl Handle {
    /// Opens the process if it began at `start`. `None`: it is gone, or its pid belongs to another one.
    pub fn open(proc: &Path, pid: i32, start: u64) -> io::Result<Option<Self>> {
        let Some(raw) = Pid::from_raw(pid) else { return Ok(None) };
        let fd = match pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            // EINVAL: the pid is that of a thread, so the process it was is gone.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Checked after opening: from here on the handle cannot come to mean another process.
        Ok(lives(proc, pid, start).then_some(Self { fd }))
    }

    /// The descriptor, for polling: readable means ended.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Returns when the process has ended.
    pub async fn ended(&self) -> io::Result<()> {
        let fd = async_fd(self.fd.as_fd())?;
        let _ready = fd.readable().await?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Ends the process: SIGTERM, SIGKILL after `grace`; returns when it is gone.
    pub async fn end(&self, grace: Duration) -> io::Result<()> {
        self.signal(Signal::TERM)?;
        if let Ok(ended) = tokio::time::timeout(grace, self.ended()).await {
            return ended;
        }
        self.signal(Signal::KILL)?;
        // A process that hangs in the kernel (a dead NFS server) does not even die of SIGKILL at once.
        tokio::time::timeout(grace.max(KILL_WAIT), self.ended()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// Registers a descriptor with the runtime.
#[allow(
    deprecated,
    reason = "the unsafe successor is about types whose descriptor may change while registered; those used here own theirs"
)]
pub(crate) fn async_fd<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, Interest::READABLE)
}

/// How long a killed process may take to vanish.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Seconds since the epoch at which this host booted (`btime` of `/proc/stat`).
pub fn boot_time(proc: &Path) -> Option<u64> {
    let text = fs::read_to_string(proc.join("stat")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok())
}

/// The wall-clock time of a start time in clock ticks.
pub fn start_time(boot: u64, ticks: u64) -> SystemTime {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(100).max(1);
    SystemTime::UNIX_EPOCH + Duration::from_secs(boot) + Duration::from_millis(ticks.saturating_mul(1000) / per_second)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests of processes start some")]
    use super::*;

    const PROC: &str = "/proc";

    #[test]
    fn a_command_name_with_blanks_and_parentheses_is_skipped() {
        let text = "77 (a ) b (c) S 1 77 70 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 1 1";
        assert_eq!(parse_stat(text), Some(Stat { state: 'S', parent: 1, session: 70, start: 4711 }));
        assert_eq!(parse_stat("77 (a"), None);
        assert_eq!(parse_stat("77 (a) S 1"), None);
    }

    #[tokio::test]
    async fn the_end_of_a_process_that_is_no_child_of_the_waiter_is_told() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start = stat(Path::new(PROC), pid).unwrap().start;
        assert!(Handle::open(Path::new(PROC), pid, start + 1).unwrap().is_none(), "another start time is another process");
        let handle = Handle::open(Path::new(PROC), pid, start).unwrap().unwrap();
        handle.end(Duration::from_secs(10)).await.unwrap();
        // Ended, though nobody has collected it.
        assert!(!lives(Path::new(PROC), pid, start));
        child.wait().unwrap();
        assert!(Handle::open(Path::new(PROC), pid, start).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_process_that_ignores_sigterm_is_killed() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "trap '' TERM; echo up; while :; do sleep 1; done"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start = stat(Path::new(PROC), pid).unwrap().start;
        let handle = Handle::open(Path::new(PROC), pid, start).unwrap().unwrap();
        handle.end(Duration::from_millis(20)).await.unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    }

    #[test]
    fn own_arguments_and_start_are_read() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(!arguments(Path::new(PROC), pid).is_empty());
        let since = start_time(boot_time(Path::new(PROC)).unwrap(), stat(Path::new(PROC), pid).unwrap().start);
        let age = SystemTime::now().duration_since(since).unwrap_or_default();
        assert!(age < Duration::from_secs(24 * 3600), "{age:?}");
    }
}
