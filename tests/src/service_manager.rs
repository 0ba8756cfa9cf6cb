//! A stand-in for the part of systemd that a service talks to: it is notified, keeps file descriptors, and hands them to the next process.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

/// Longer, and what is waited for never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// One service. Its process is killed with the thread that started it.
pub struct ServiceManager {
    dir: TempDir,
    socket: UnixDatagram,
    child: Option<Child>,
    /// What it keeps: name and descriptor.
    pub kept: Vec<(String, OwnedFd)>,
}

impl ServiceManager {
    /// Nothing runs yet.
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("pvelet-manager-").expect("temporary folder");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("notify socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("time limit");
        Self { dir, socket, child: None, kept: Vec::new() }
    }

    /// Where the service's output goes.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Starts the service with the one descriptor that is kept, if any, and waits until it is ready.
    pub fn start(&mut self, program: &Path, args: &[&str]) {
        let out = std::fs::File::options().create(true).append(true).open(self.log()).expect("log");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "sh", "-c"]);
        // The process id that a descriptor is meant for is known only in the process itself.
        let pass = "export LISTEN_PID=$$ LISTEN_FDS=1; exec 3<&0 </dev/null \"$@\"";
        command.arg(if self.kept.is_empty() { "exec \"$@\"" } else { pass }).arg("sh").arg(program).args(args);
        if let Some((name, fd)) = self.kept.first() {
            command.env("LISTEN_FDNAMES", name).stdin(fd.try_clone().expect("a copy of the descriptor"));
        } else {
            command.stdin(Stdio::null());
        }
        command.env("NOTIFY_SOCKET", self.dir.path().join("notify")).stdout(out.try_clone().expect("log")).stderr(out);
        self.child = Some(command.spawn().expect("the service"));
        self.until("ready", |text| text.lines().any(|l| l == "READY=1"));
    }

    /// Takes what the service tells until it is what is `wanted`.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        loop {
            match self.receive() {
                Ok(text) if wanted(&text) => return,
                Ok(_) => {}
                Err(e) => panic!("the service is not {what}: {e}\n{}", std::fs::read_to_string(self.log()).unwrap_or_default()),
            }
        }
    }

    /// Ends the service as `systemctl stop` does.
    pub fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.wait()
    }

    /// Ends the service as a crash does.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    /// Asks the service to end.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id().try_into().expect("a pid")), signal).expect("a signal");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let status = child.wait().expect("its end");
        // What it told last.
        self.socket.set_nonblocking(true).expect("no waiting");
        while self.receive().is_ok() {}
        self.socket.set_nonblocking(false).expect("waiting");
        status
    }

    fn receive(&mut self) -> io::Result<String> {
        let (mut bytes, mut space) = ([0; 4096], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
        let fds: Vec<OwnedFd> =
            control.drain().filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None }).flatten().collect();
        let field = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
        let name = field("FDNAME").unwrap_or_else(|| "stored".to_owned());
        if field("FDSTORE").is_some() {
            self.kept.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
        } else if field("FDSTOREREMOVE").is_some() {
            self.kept.retain(|(kept, _)| *kept != name);
        }
        Ok(text)
    }
}

impl Default for ServiceManager {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
