//! Runs the storages' tools. An exit status alone is never believed: callers look at the effect afterwards.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

use crate::error::Error;

/// How long a tool may take that only lists. A storage that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long a change may take: removing a large snapshot frees its blocks one by one.
const CHANGE_DEADLINE: Duration = Duration::from_secs(1800);
/// What is kept of a tool's complaints: the end, where the reason stands.
const STDERR_KEPT: usize = 8 << 10;
/// More output than any listing has.
const STDOUT_MAX: usize = 64 << 20;

/// A tool and its arguments.
#[derive(Debug)]
pub(super) struct Tool {
    storage: String,
    program: &'static str,
    args: Vec<OsString>,
    stdin: Option<File>,
}

/// How a tool ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Exit status; `None` after a signal.
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Tool {
    /// `storage` is for messages.
    pub(super) fn new(storage: &str, program: &'static str) -> Self {
        Self { storage: storage.to_owned(), program, args: Vec::new(), stdin: None }
    }

    pub(super) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(super) fn args<I: IntoIterator<Item = A>, A: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// The file that the tool finds as its standard input; without, it finds nothing there.
    pub(super) fn stdin(mut self, file: &File) -> Result<Self, Error> {
        self.stdin = Some(file.try_clone().map_err(|e| Error::Internal(format!("an image's descriptor cannot be copied: {e}")))?);
        Ok(self)
    }

    /// Runs what only reads, and returns how it ended. Dropping the future kills it.
    pub(super) async fn ended(self) -> Result<Ended, Error> {
        let (storage, program) = (self.storage.clone(), self.program);
        let run = async {
            let mut child = self.spawn(true)?;
            gather(&mut child, |_| ()).await.map_err(|e| failed(&self.storage, format!("{program}: {e}")))
        };
        tokio::time::timeout(DEADLINE, run).await.unwrap_or_else(|_| Err(hangs(&storage, program, DEADLINE)))
    }

    /// Runs what only reads, and returns its output. Dropping the future kills it.
    pub(super) async fn read(self) -> Result<String, Error> {
        let (storage, program) = (self.storage.clone(), self.program);
        self.ended().await?.success(&storage, program)
    }

    /// Runs what changes metadata. It runs to its end even if the caller goes away: killing an `lvcreate` half way leaves devices suspended.
    pub(super) async fn change(self) -> Result<String, Error> {
        let (storage, program) = (self.storage.clone(), self.program);
        let run = tokio::spawn(async move {
            let mut child = self.spawn(false)?;
            let ended = gather(&mut child, |_| ()).await.map_err(|e| failed(&self.storage, format!("{program}: {e}")))?;
            ended.success(&self.storage, program)
        });
        match tokio::time::timeout(CHANGE_DEADLINE, run).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Error::Internal(format!("{program}: {error}"))),
            Err(_) => Err(hangs(&storage, program, CHANGE_DEADLINE)),
        }
    }

    /// Runs what reads or writes data, however long it takes, and hands over its output as it comes. Dropping the future kills it.
    pub(super) async fn follow(self, output: impl FnMut(&[u8]) + Send) -> Result<(), Error> {
        let (storage, program) = (self.storage.clone(), self.program);
        self.followed(output).await?.success(&storage, program).map(drop)
    }

    /// As [`Self::follow`], and returns how it ended.
    pub(super) async fn followed(self, output: impl FnMut(&[u8]) + Send) -> Result<Ended, Error> {
        let mut child = self.spawn(true)?;
        gather(&mut child, output).await.map_err(|e| failed(&self.storage, format!("{}: {e}", self.program)))
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that starts the storages' tools")]
    fn spawn(&self, kill_on_drop: bool) -> Result<Child, Error> {
        let stdin = match &self.stdin {
            Some(file) => Stdio::from(file.try_clone().map_err(|e| io_error(&self.storage, "standard input", &e))?),
            None => Stdio::null(),
        };
        let mut command = Command::new(self.program);
        command.args(&self.args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(kill_on_drop);
        // Plain texts and times; LC_ALL=C would damage what is not ASCII.
        command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC").env("LVM_SUPPRESS_FD_WARNINGS", "1").env("PATH", search_path());
        command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => unsupported(&self.storage, format!("'{}' is not installed on this node; install it", self.program)),
            _ => failed(&self.storage, format!("{} cannot be started: {error}", self.program)),
        })
    }
}

impl Ended {
    /// The output, or the error that the tool's complaints mean.
    pub(super) fn success(self, storage: &str, program: &str) -> Result<String, Error> {
        match self.code {
            Some(0) => Ok(self.stdout),
            Some(code) => Err(classify(storage, program, &self.stderr, &format!("exit status {code}"))),
            None => Err(classify(storage, program, &self.stderr, "killed by a signal")),
        }
    }
}

/// The tools of administrators may be missing in a service's search path.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push("/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

async fn gather(child: &mut Child, mut output: impl FnMut(&[u8]) + Send) -> io::Result<Ended> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let out = drain(stdout, |bytes| {
        output(bytes);
        if said.len() < STDOUT_MAX {
            said.extend_from_slice(bytes);
        }
    });
    let err = drain(stderr, |bytes| {
        complained.extend_from_slice(bytes);
        if complained.len() > 2 * STDERR_KEPT {
            complained.drain(..complained.len() - STDERR_KEPT);
        }
    });
    let (out, err) = tokio::join!(out, err);
    out?;
    err?;
    let status = child.wait().await?;
    if said.len() >= STDOUT_MAX {
        return Err(io::Error::other("it printed more than can be right"));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended { code: status.code(), stdout: text(&said), stderr: text(&complained) })
}

async fn drain(pipe: Option<impl AsyncRead + Unpin>, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut buffer = vec![0; 16 << 10];
    loop {
        match pipe.read(&mut buffer).await? {
            0 => return Ok(()),
            n => each(&buffer[..n]),
        }
    }
}

/// Texts that tell of missing space, in lower case.
const FULL: &[&str] = &[
    "no space left on device",
    "out of data space",
    "out of space",
    "insufficient free space",
    "insufficient free extents",
    "insufficient suitable",
    "not enough free space",
    "disk quota exceeded",
    "quota exceeded",
    "enospc",
];

/// Texts that tell of a missing place, in lower case. A missing volume is no such thing: callers look for it themselves.
const OFFLINE: &[&str] = &[
    "volume group \"",
    "cannot process volume group",
    "no such pool",
    "pool does not exist",
    "pool i/o is currently suspended",
    "couldn't connect to the cluster",
    "error connecting to the cluster",
    "error opening pool",
    "transport endpoint is not connected",
    "stale file handle",
    "host is down",
    "connection timed out",
];

/// What a tool's complaints mean.
fn classify(storage: &str, program: &str, stderr: &str, how: &str) -> Error {
    let text = stderr.to_lowercase();
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("WARNING:")).collect();
    let detail = lines[lines.len().saturating_sub(4)..].join("; ");
    let detail = if detail.is_empty() { format!("{program}: {how}") } else { format!("{program}: {detail}") };
    if FULL.iter().any(|f| text.contains(f)) {
        return Error::StorageFull { storage: storage.to_owned(), detail };
    }
    let missing = OFFLINE.iter().any(|o| text.contains(o));
    if missing && (!text.contains("volume group \"") || text.contains("not found")) {
        return offline(storage, detail);
    }
    failed(storage, detail)
}

fn hangs(storage: &str, program: &str, after: Duration) -> Error {
    offline(storage, format!("{program} did not answer within {} s; check the storage and its network", after.as_secs()))
}

pub(super) fn failed(storage: &str, message: impl Into<String>) -> Error {
    Error::StorageFailed { storage: storage.to_owned(), message: message.into() }
}

pub(super) fn offline(storage: &str, detail: impl Into<String>) -> Error {
    Error::StorageOffline { storage: storage.to_owned(), detail: detail.into() }
}

pub(super) fn unsupported(storage: &str, why: impl Into<String>) -> Error {
    Error::StorageUnsupported { storage: storage.to_owned(), why: why.into() }
}

/// An error of the operating system; `what` is what was being done, and to which file.
pub(super) fn io_error(storage: &str, what: impl std::fmt::Display, error: &io::Error) -> Error {
    use rustix::io::Errno as E;
    let errno = error.raw_os_error().map(E::from_raw_os_error);
    match errno {
        Some(E::NOSPC | E::DQUOT) => Error::StorageFull { storage: storage.to_owned(), detail: format!("{what}: {error}") },
        Some(E::NOTCONN | E::STALE | E::HOSTDOWN | E::TIMEDOUT) => offline(storage, format!("{what}: {error}")),
        _ => failed(storage, format!("{what}: {error}")),
    }
}

/// Does file system calls on a thread of their own: a dead NFS server blocks them for ever.
pub(super) async fn blocking<T: Send + 'static>(
    storage: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::time::timeout(DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(Error::Internal(format!("storage '{storage}': {error}"))),
        Err(_) => Err(offline(storage, format!("its file system did not answer within {} s", DEADLINE.as_secs()))),
    }
}

/// A time that a tool printed, with its offset from UTC.
pub(super) fn utc(format: &str, text: &str) -> Option<SystemTime> {
    let seconds = jiff::fmt::strtime::parse(format, text).ok()?.to_timestamp().ok()?.as_second();
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// Waits until udev has made a device node.
pub(super) async fn device(storage: &str, path: &Path) -> Result<(), Error> {
    if tokio::fs::metadata(path).await.is_ok() {
        return Ok(());
    }
    // Judged by its effect: without udev the kernel's own node is there at once or never.
    let _ = Tool::new(storage, "udevadm").args(["wait", "--timeout=30"]).arg(path).ended().await;
    tokio::fs::metadata(path).await.map(drop).map_err(|e| failed(storage, format!("device {} does not appear: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn complaints_of_tools_become_errors_with_a_reason() {
        let cases = [
            ("qemu-img: error while writing at byte 0: No space left on device", "STORAGE_FULL"),
            ("  Insufficient free space: 256 extents needed, but only 3 available", "STORAGE_FULL"),
            ("  Volume group \"pve\" has insufficient free space (3 extents): 256 required.", "STORAGE_FULL"),
            ("cannot create snapshot 'a/b@c': out of space", "STORAGE_FULL"),
            ("  Volume group \"nope\" not found\n  Cannot process volume group nope", "STORAGE_OFFLINE"),
            ("cannot open 'tank': no such pool", "STORAGE_OFFLINE"),
            ("  Failed to find logical volume \"pve/x\"", "STORAGE_FAILED"),
            ("", "STORAGE_FAILED"),
        ];
        for (text, reason) in cases {
            assert_eq!(classify("s", "tool", text, "exit status 5").reason(), reason, "{text}");
        }
    }

    #[tokio::test]
    async fn output_and_status_of_a_tool_are_told() {
        let ended = Tool::new("s", "sh").args(["-c", "echo out; echo err >&2; exit 3"]).ended().await.unwrap();
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(3), "out\n", "err\n"));
        let error = Tool::new("s", "sh").args(["-c", "echo 'it is broken' >&2; exit 1"]).read().await.unwrap_err();
        assert_eq!(error, failed("s", "sh: it is broken"));
        let error = Tool::new("s", "no-such-tool").read().await.unwrap_err();
        assert_eq!(error.reason(), "STORAGE_UNSUPPORTED");
    }

    #[tokio::test]
    async fn long_complaints_are_cut_and_their_end_is_kept() {
        let script = "i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1";
        let ended = Tool::new("s", "sh").args(["-c", script]).ended().await.unwrap();
        assert!(ended.stderr.len() <= 2 * STDERR_KEPT + (16 << 10) && ended.stderr.ends_with("line 19999\n"));
    }
}
