//! Runs the tools of the host's network.

use std::{ffi::OsString, io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use super::failed;
use crate::error::Error;

/// What is kept of a tool's output: the end, where the reason stands.
const KEPT: usize = 64 << 10;

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
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        lines[lines.len().saturating_sub(4)..].join("; ")
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

/// Runs a tool to its end, no longer than `patience`: then it is killed, as it is when the future is dropped.
///
/// # Errors
/// `NetworkFailed` when it cannot be started or takes too long.
#[allow(clippy::disallowed_methods, reason = "the one place that starts the network's tools")]
pub(super) async fn run(program: &str, args: &[OsString], patience: Duration) -> Result<Ended, Error> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.env("LC_ALL", "C.UTF-8").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed(format!("'{program}' is not installed on this host; install it")),
        _ => failed(format!("{program} cannot be started: {error}")),
    })?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (stdout, stderr, status) = tokio::join!(tail(stdout), tail(stderr), child.wait());
        let status = status.map_err(|e| failed(format!("{program}: {e}")))?;
        Ok(Ended { code: status.code(), stdout, stderr })
    };
    let late = || Err(failed(format!("{program} did not end within {} s", patience.as_secs())));
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| late())
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
