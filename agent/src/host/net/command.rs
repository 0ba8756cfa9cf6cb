//! Runs the tools of the host's network.

use std::{ffi::OsString, io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

use super::failed;
use crate::error::Error;

/// What is kept of a tool's output: the end, where the reason stands.
const KEPT: usize = 64 << 10;
/// The longest answer that is waited for.
const ANSWER: usize = 4 << 20;

/// How a tool ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Exit status; `None` after a signal.
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ended {
    /// The last lines that a tool wrote, complaints first.
    pub(super) fn complaint(&self) -> String {
        let text = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        last_lines(text)
    }

    /// What it wrote when it ended well.
    ///
    /// # Errors
    /// `NetworkFailed` with its complaints.
    pub(super) fn success(self, what: &str) -> Result<String, Error> {
        match self.code {
            Some(0) => Ok(self.stdout),
            Some(code) => Err(failed(format!("{what}: {} (exit status {code})", self.complaint()))),
            None => Err(failed(format!("{what}: {} (killed by a signal)", self.complaint()))),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the one place that starts the network's tools")]
fn start(program: &str, args: &[OsString]) -> Result<Child, Error> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // Else Python keeps what it says until it ends, which takes ifupdown2 a tenth of a second.
    command.env("LC_ALL", "C.UTF-8").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("PYTHONUNBUFFERED", "1");
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed(format!("'{program}' is not installed on this host; install it")),
        _ => failed(format!("{program} cannot be started: {error}")),
    })
}

/// The last lines of what a tool said, as one.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(4)..].join("; ")
}

/// Runs a tool to its end, no longer than `patience`: then it is killed, as it is when the future is dropped.
///
/// # Errors
/// `NetworkFailed` when it cannot be started or takes too long.
pub(super) async fn run(program: &str, args: &[OsString], patience: Duration) -> Result<Ended, Error> {
    let mut child = start(program, args)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (stdout, stderr, status) = tokio::join!(tail(stdout), tail(stderr), child.wait());
        let status = status.map_err(|e| failed(format!("{program}: {e}")))?;
        Ok(Ended { code: status.code(), stdout, stderr })
    };
    let late = || Err(failed(format!("{program} did not end within {} s", patience.as_secs())));
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| late())
}

/// Runs a tool until `answer` makes something of what it has written so far, or it ends; it is killed then, as when the future is dropped.
/// `None`: it ended without an answer, or wrote too much.
///
/// # Errors
/// `NetworkFailed` when it cannot be started.
pub(super) async fn ask<T>(program: &str, args: &[OsString], answer: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Error> {
    let mut child = start(program, args)?;
    let (Some(mut stdout), stderr) = (child.stdout.take(), child.stderr.take()) else { return Ok(None) };
    let work = async {
        let (mut written, mut buffer) = (Vec::new(), vec![0; 4096]);
        while let Ok(n @ 1..) = stdout.read(&mut buffer).await {
            written.extend_from_slice(&buffer[..n]);
            if let Some(found) = std::str::from_utf8(&written).ok().and_then(&answer) {
                return Some(found);
            }
            if written.len() > ANSWER {
                break;
            }
        }
        None
    };
    // What it complains about is taken from it, so that it does not wait for that.
    let complaints = async {
        tail(stderr).await;
        std::future::pending().await
    };
    tokio::select! {
        found = work => Ok(found),
        never = complaints => never,
    }
}

/// The last bytes of a pipe. One that cannot be read any more has ended.
async fn tail(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 4096]);
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..n]);
        if kept.len() > 2 * KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sh(script: &str) -> [OsString; 2] {
        ["-c".into(), script.into()]
    }

    #[tokio::test]
    async fn output_status_and_complaints_are_told() {
        let ended = run("sh", &sh("echo out; echo err >&2; exit 3"), Duration::from_secs(10)).await.unwrap();
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(3), "out\n", "err\n"));
        assert_eq!(ended.success("it").unwrap_err().to_string(), "it: err (exit status 3)");
        let error = run("no-such-tool", &[], Duration::from_secs(10)).await.unwrap_err();
        assert_eq!(error.to_string(), "'no-such-tool' is not installed on this host; install it");
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_not_waited_for() {
        let error = run("sleep", &["60".into()], Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(error.reason(), pvelet_proto::reason::NETWORK_FAILED);
    }
}
