//! The client: one connection a call, blocking.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::Request;

/// How long an answer may take: making a large image takes a while.
const LIMIT: Duration = Duration::from_secs(60);

/// A client of the control socket of one cluster.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the cluster in this folder.
    pub fn new(cluster_dir: &Path) -> Self {
        Self { socket: cluster_dir.join("control.sock") }
    }

    /// Asks, and gives the answer.
    ///
    /// # Errors
    /// When the cluster does not run, or refuses (the error's text is its own).
    pub fn call(&self, request: &Request) -> io::Result<Value> {
        self.send(&serde_json::to_value(request).map_err(io::Error::other)?)
    }

    /// Like [`Client::call`], with a request that is not checked beforehand.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn send(&self, request: &Value) -> io::Result<Value> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        (&stream).write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        let mut answer: Value = serde_json::from_str(&line).map_err(io::Error::other)?;
        match answer.get("error") {
            Some(error) => Err(io::Error::other(error.as_str().unwrap_or_default().to_owned())),
            None => Ok(answer["ok"].take()),
        }
    }

    /// The text of all that may be left behind.
    ///
    /// # Errors
    /// When the cluster does not run.
    pub fn leftovers(&self) -> io::Result<String> {
        Ok(self.call(&Request::Leftovers {})?.as_str().unwrap_or_default().to_owned())
    }
}
