//! Asking a running VM whether its processors run. A QMP socket serves one client at a time: connect, ask, leave.

use std::{io, path::Path, time::Duration};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

/// Somebody else may have the socket for a moment.
const DEADLINE: Duration = Duration::from_secs(2);

/// Whether a VM that runs is paused, by its QMP socket. Errors: no socket, no answer within 2 s, an answer that is not understood.
pub(super) async fn paused(socket: &Path) -> io::Result<bool> {
    tokio::time::timeout(DEADLINE, ask(socket)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn ask(socket: &Path) -> io::Result<bool> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "return")]
        answer: Option<Status>,
        error: Option<serde_json::Value>,
    }
    #[derive(Deserialize)]
    struct Status {
        running: Option<bool>,
    }
    let (read, mut write) = UnixStream::connect(socket).await?.into_split();
    let mut lines = BufReader::new(read).lines();
    // The greeting comes first, events may come at any time.
    write.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n").await?;
    while let Some(line) = lines.next_line().await? {
        let Ok(line) = serde_json::from_str::<Line>(&line) else { continue };
        if let Some(error) = line.error {
            return Err(io::Error::other(error.to_string()));
        }
        if let Some(running) = line.answer.and_then(|s| s.running) {
            return Ok(!running);
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::net::UnixListener;

    use super::*;

    async fn guest(answer: &'static str) -> io::Result<bool> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("1.qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            write.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.unwrap();
            let mut lines = BufReader::new(read).lines();
            lines.next_line().await.unwrap();
            write.write_all(b"{\"return\": {}}\r\n{\"event\": \"RESUME\", \"data\": {}}\r\n").await.unwrap();
            lines.next_line().await.unwrap();
            write.write_all(answer.as_bytes()).await.unwrap();
        });
        paused(&socket).await
    }

    #[tokio::test]
    async fn a_guest_tells_whether_it_runs() {
        assert!(guest("{\"return\": {\"status\": \"paused\", \"running\": false}}\r\n").await.unwrap());
        assert!(!guest("{\"return\": {\"status\": \"running\", \"running\": true}}\r\n").await.unwrap());
        assert!(guest("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n").await.is_err());
        assert!(guest("").await.is_err());
    }
}
