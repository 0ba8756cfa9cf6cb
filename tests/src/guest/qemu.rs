//! One QEMU process: its console as lines, its monitor, and its end with the test.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

/// What the guest writes on its console when ssh answers (`tests/guest/customize.sh`).
pub(super) const READY: &str = "pvelet-guest-ready";
/// What the lines begin with that somebody may wait for.
const MARK: &str = "pvelet-";

/// A running QEMU. Dropping it is a power cut.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
    lines: Receiver<String>,
    console: PathBuf,
}

impl Qemu {
    /// Starts it in `dir`, which relative paths in `args` are of. It does not outlive the thread that starts it. Its console goes
    /// to the end of `console`, with what QEMU itself has to say.
    pub(super) fn start(dir: &Path, args: &[String], console: &Path) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let _ = std::fs::remove_file(dir.join("qmp"));
        let listener = UnixListener::bind(dir.join("qmp"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "qemu-system-x86_64", "-serial", "stdio", "-qmp", "unix:qmp,server=off"]).args(args);
        command.current_dir(dir).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn()?;
        // The parent's ends of the pipe go with it, or its end would never be seen.
        drop(command);
        let (send, lines) = mpsc::channel();
        let mut log = File::options().create(true).append(true).open(console)?;
        thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                let _ = log.write_all(&line).and_then(|()| log.write_all(b"\n"));
                let line = String::from_utf8_lossy(&line);
                if let Some(at) = line.find(MARK) {
                    let _ = send.send(line[at..].to_owned());
                }
            }
        });
        let mut this = Self { child, monitor: BufReader::new(UnixStream::pair()?.0), lines, console: console.to_owned() };
        // Bad arguments end it before it connects: then the wait for a connection fails, with the reason in the log.
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(60_000_u16)).map_err(io::Error::from)? == 0 {
            return Err(this.failure("QEMU did not start"));
        }
        let stream = listener.accept()?.0;
        stream.set_read_timeout(Some(Duration::from_secs(300)))?;
        this.monitor = BufReader::new(stream);
        this.call("qmp_capabilities", &json!({}))?;
        Ok(this)
    }

    /// Waits for a line of the console with `text`, [`READY`] when ssh answers; those before are passed over.
    pub(super) fn wait_line(&self, text: &str, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err(self.failure(&format!("the console did not show {text} within {limit:?}"))),
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure(&format!("QEMU ended before the console showed {text}"))),
            }
        }
    }

    /// Waits for its end: after the guest switched itself off.
    pub(super) fn wait_exit(&mut self, limit: Duration) -> io::Result<()> {
        loop {
            match self.lines.recv_timeout(limit) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err(self.failure(&format!("the guest was not off within {limit:?}"))),
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().map(drop),
            }
        }
    }

    /// SIGKILL: what the guest had not flushed is lost.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A command of QMP.
    fn call(&mut self, command: &str, arguments: &Value) -> io::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.monitor.get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            if self.monitor.read_line(&mut line)? == 0 {
                return Err(self.failure("QEMU closed its monitor"));
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(format!("{command}: {error}")));
            }
            // Else the greeting, or an event.
        }
    }

    /// A command for people, and its output.
    pub(super) fn monitor(&mut self, line: &str) -> io::Result<String> {
        let answer = self.call("human-monitor-command", &json!({ "command-line": line }))?;
        let text = answer.as_str().unwrap_or_default().to_owned();
        if text.starts_with("Error") { Err(io::Error::other(format!("{line}: {text}"))) } else { Ok(text) }
    }

    /// Port of the guest -> port on 127.0.0.1 that the system chose for it.
    pub(super) fn forwards(&mut self) -> io::Result<BTreeMap<u16, u16>> {
        let table = self.monitor("info usernet")?;
        // "TCP[HOST_FORWARD]  12  127.0.0.1 43817  10.0.2.15  22  0  0"
        let rows = table.lines().filter(|l| l.contains("HOST_FORWARD")).map(|l| l.split_whitespace().collect::<Vec<_>>());
        Ok(rows.filter_map(|r| Some((r.get(5)?.parse().ok()?, r.get(3)?.parse().ok()?))).collect())
    }

    fn failure(&self, what: &str) -> io::Error {
        let text = String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        io::Error::other(format!("{what}:\n{}", lines[lines.len().saturating_sub(40)..].join("\n")))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}
