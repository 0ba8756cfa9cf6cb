//! Programs that a task runs, with PVE's texts for how they end.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use super::Worker;
use crate::api::Failure;

/// How often a running program's worker looks whether it was interrupted.
const LOOK: Duration = Duration::from_millis(20);

/// A program to run, and how PVE would name it: paths of the real host instead of ours.
pub struct Program {
    /// What is executed.
    pub command: Command,
    /// The command line in messages, with the paths of a real host.
    pub shown: String,
}

/// How a program ended that did not end well.
fn failed(shown: &str, how: &str) -> Failure {
    Failure::die(format!("command '{shown}' failed: {how}"))
}

fn how(status: ExitStatus) -> Option<String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("exit code {code}")),
        (None, signal) => Some(format!("got signal {}", signal.unwrap_or_default())),
    }
}

impl Program {
    /// Runs it to its end. Each part of its output that ends in a line end or carriage return goes to `line`. A worker that is interrupted kills it.
    ///
    /// # Errors
    /// When it cannot be started, fails, or the worker is interrupted.
    pub fn run(mut self, worker: Option<&Worker>, mut line: impl FnMut(&str)) -> Result<(), Failure> {
        let spawned = self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| failed(&self.shown, &error.to_string()))?;
        let (send, receive) = channel();
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [child.stdout.take().map(|o| Box::new(o) as _), child.stderr.take().map(|o| Box::new(o) as _)];
        for output in outputs.into_iter().flatten() {
            let send = send.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(output);
                while let Some(text) = next_line(&mut reader) {
                    if send.send(text).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        loop {
            match receive.recv_timeout(LOOK) {
                Ok(text) => line(&text),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if worker.is_some_and(Worker::is_interrupted) {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(&self.shown, "interrupted by signal"));
            }
        }
        match how(child.wait()?) {
            None => Ok(()),
            Some(how) => Err(failed(&self.shown, &how)),
        }
    }
}

fn next_line(reader: &mut impl BufRead) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let available = reader.fill_buf().ok()?;
        if available.is_empty() {
            return (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned());
        }
        let end = available.iter().position(|b| matches!(b, b'\n' | b'\r'));
        bytes.extend_from_slice(&available[..end.unwrap_or(available.len())]);
        let used = end.map_or(available.len(), |at| at + 1);
        reader.consume(used);
        if end.is_some() && !bytes.is_empty() {
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
