//! A client of the monitor: connect, ask, leave, since a QMP socket serves one client at a time.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use super::{agent_socket, qmp_socket};
use crate::layout::NodeLayout;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Runs one command without arguments on a VM's monitor and gives what it returned.
///
/// # Errors
/// When nobody listens, the monitor is taken for five seconds, or it refuses the command (the error's text is QEMU's).
pub fn command(layout: &NodeLayout, vmid: u32, name: &str) -> io::Result<Value> {
    execute(layout, vmid, name, &json!({}))
}

/// Runs one command on a VM's monitor and gives what it returned.
///
/// # Errors
/// As [`command`].
pub fn execute(layout: &NodeLayout, vmid: u32, name: &str, arguments: &Value) -> io::Result<Value> {
    let mut session = Session::open(&qmp_socket(layout, vmid))?;
    session.line()?;
    session.ask("qmp_capabilities", &json!({}))?;
    session.ask(name, arguments)
}

/// Runs one command on a VM's guest agent and gives what it returned.
///
/// # Errors
/// When the agent does not run, does not answer, or refuses the command.
pub fn agent(layout: &NodeLayout, vmid: u32, name: &str, limit: Duration) -> io::Result<Value> {
    let mut session = Session::open(&agent_socket(layout, vmid))?;
    session.reader.get_ref().set_read_timeout(Some(limit))?;
    session.ask(name, &json!({}))
}

struct Session {
    reader: BufReader<UnixStream>,
}

impl Session {
    fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(io::Error::other)
    }

    fn ask(&mut self, name: &str, arguments: &Value) -> io::Result<Value> {
        let mut request = json!({ "execute": name });
        if arguments.as_object().is_some_and(|fields| !fields.is_empty()) {
            request["arguments"] = arguments.clone();
        }
        self.reader.get_ref().write_all(format!("{request}\r\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(desc) = answer.pointer("/error/desc") {
                return Err(io::Error::other(desc.as_str().unwrap_or_default().to_owned()));
            }
            // Events may come in between.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }
}
