//! Runs the tools that tell what no file does.

use std::{io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use super::read::look;
use crate::error::{Error, Trouble};

/// More than any of them prints: `lvs` for a thousand pools has 200 KiB.
const MOST: usize = 4 << 20;

/// How a tool ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Exit status; `None` after a signal.
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ended {
    /// The last line of what it complained of, shortened.
    pub(super) fn complaint(&self) -> String {
        let text = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let line = text.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or("no message");
        let status = self.code.map_or_else(|| "killed by a signal".to_owned(), |c| format!("exit status {c}"));
        format!("{} ({status})", line.chars().take(300).collect::<String>())
    }

    /// What it printed, when it ended well.
    pub(super) fn success(self, program: &str) -> Result<String, Error> {
        match self.code {
            Some(0) => Ok(self.stdout),
            _ => Err(look(Trouble::Failed, format!("{program}: {}", self.complaint()))),
        }
    }
}

/// Runs a tool to its end, no longer than `patience`: then it is killed, as it is when the future is dropped.
///
/// # Errors
/// `Look`: `Missing` when it is not installed, `Silent` when it takes too long.
#[allow(clippy::disallowed_methods, reason = "the one place that starts these tools")]
pub(super) async fn run(program: &str, args: &[&str], patience: Duration) -> Result<Ended, Error> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // Plain texts; the tools of administrators may be missing in a service's search path.
    command.env("LC_ALL", "C.UTF-8").env("LVM_SUPPRESS_FD_WARNINGS", "1").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => look(Trouble::Missing, format!("'{program}' is not installed")),
        _ => look(Trouble::Failed, format!("{program} cannot be started: {error}")),
    })?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (stdout, stderr, status) = tokio::join!(all(stdout), all(stderr), child.wait());
        let status = status.map_err(|e| look(Trouble::Failed, format!("{program}: {e}")))?;
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
            return Err(look(Trouble::Garbled, format!("{program} printed more than {MOST} bytes")));
        };
        Ok(Ended { code: status.code(), stdout, stderr })
    };
    let late = || Err(look(Trouble::Silent, format!("{program} did not end within {} s", patience.as_secs_f32())));
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| late())
}

/// What comes out of a pipe; `None`: too much. It is read to its end all the same, so that the tool is not held up.
async fn all(pipe: Option<impl AsyncRead + Unpin>) -> Option<String> {
    let Some(mut pipe) = pipe else { return Some(String::new()) };
    let (mut kept, mut buffer, mut whole) = (Vec::new(), vec![0; 16 << 10], true);
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        if kept.len() + n > MOST {
            whole = false;
        } else {
            kept.extend_from_slice(&buffer[..n]);
        }
    }
    whole.then(|| String::from_utf8_lossy(&kept).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn trouble(result: Result<impl std::fmt::Debug, Error>) -> Trouble {
        match result {
            Err(Error::Look { trouble, .. }) => trouble,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn output_status_and_complaints_are_told() {
        let ended = run("sh", &["-c", "echo out; echo one >&2; echo two >&2; exit 3"], SOON).await.unwrap();
        assert_eq!((ended.code, ended.stdout.as_str(), ended.complaint().as_str()), (Some(3), "out\n", "two (exit status 3)"));
        assert_eq!(trouble(ended.success("sh")), Trouble::Failed);
        assert_eq!(run("sh", &["-c", "echo out"], SOON).await.unwrap().success("sh").unwrap(), "out\n");
    }

    #[tokio::test]
    async fn what_hangs_is_missing_or_floods_is_an_error_of_its_own() {
        assert_eq!(trouble(run("sleep", &["60"], Duration::from_millis(10)).await), Trouble::Silent);
        assert_eq!(trouble(run("no-such-tool", &[], SOON).await), Trouble::Missing);
        assert_eq!(trouble(run("head", &["-c", "9000000", "/dev/zero"], SOON).await), Trouble::Garbled);
    }
}
