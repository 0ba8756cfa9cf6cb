//! The guest process itself: one thread, one poll loop, so that a thousand of them fit on a small machine.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::OpenOptionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::setsid,
};
use serde_json::{Value, json};

use super::{
    Behaviour, ORDERS, Orders, Shutdown, agent_socket, pid_file,
    protocol::{self, Effect, State},
    qmp_socket, running,
};
use crate::layout::NodeLayout;

/// What `main` calls first: runs as a guest when this process was started as one, and tells the exit code; none otherwise.
pub fn enter() -> Option<ExitCode> {
    if !std::env::args().next()?.ends_with("/kvm") {
        return None;
    }
    let orders = serde_json::from_str(&std::env::var(ORDERS).ok()?).ok()?;
    Some(match run(&orders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    })
}

fn run(orders: &Orders) -> io::Result<()> {
    // A group leader cannot become a session leader; then it stays in its session, which does no harm.
    let _ = setsid();
    let _ = nix::sys::prctl::set_name(c"kvm");
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let layout = NodeLayout::new(&orders.cluster_dir, &orders.node);
    fs::create_dir_all(layout.run_qemu())?;
    if let Some(pid) = running(&layout, orders.vmid) {
        return Err(io::Error::other(format!("cannot create PID file: VM {} runs already as process {pid}", orders.vmid)));
    }
    let mut guest = Guest::new(layout, orders)?;
    writeln!(io::stdout(), "ready")?;
    detach()?;
    let ended = guest.serve(&signals);
    guest.remove_files();
    ended
}

/// Lets go of the starter's pipe, as `-daemonize` does.
fn detach() -> io::Result<()> {
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(null)?;
    Ok(())
}

/// A socket with at most one client: others wait in its queue.
struct Channel {
    path: PathBuf,
    listener: UnixListener,
    client: Option<UnixStream>,
    pending: Vec<u8>,
    negotiated: bool,
}

impl Channel {
    fn listen(path: PathBuf) -> io::Result<Self> {
        // One that a crash left behind.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { path, listener, client: None, pending: Vec::new(), negotiated: false })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.client.as_ref().map_or_else(|| self.listener.as_fd(), AsFd::as_fd)
    }

    /// Takes a new client in; says whether there is one.
    fn accept(&mut self) -> bool {
        let Ok((client, _)) = self.listener.accept() else { return false };
        let _ = client.set_nonblocking(true);
        (self.client, self.negotiated) = (Some(client), false);
        self.pending.clear();
        true
    }

    /// The complete lines that have come; the client is dropped when it has gone.
    fn lines(&mut self) -> Vec<String> {
        let Some(client) = &mut self.client else { return Vec::new() };
        let mut buffer = [0; 4096];
        match client.read(&mut buffer) {
            Ok(0) => self.client = None,
            Ok(n) => self.pending.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.client = None,
        }
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let complete: Vec<u8> = self.pending.drain(..=end).collect();
        String::from_utf8_lossy(&complete).lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    fn send(&mut self, value: &Value) {
        if let Some(client) = &mut self.client
            && client.write_all(format!("{value}\r\n").as_bytes()).is_err()
        {
            self.client = None;
        }
    }
}

struct Guest {
    layout: NodeLayout,
    vmid: u32,
    monitor: Channel,
    agent: Option<Channel>,
    state: State,
    ends_at: Option<Instant>,
}

impl Guest {
    fn new(layout: NodeLayout, orders: &Orders) -> io::Result<Self> {
        let vmid = orders.vmid;
        let monitor = Channel::listen(qmp_socket(&layout, vmid))?;
        let agent = orders.options.agent.then(|| Channel::listen(agent_socket(&layout, vmid))).transpose()?;
        let path = pid_file(&layout, vmid);
        let _ = fs::remove_file(&path);
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        writeln!(file, "{}", std::process::id())?;
        let options = &orders.options;
        let state = State {
            name: options.name.clone(),
            uuid: options.uuid.clone().unwrap_or_else(|| "00000000-0000-0000-0000-000000000000".into()),
            paused: options.paused,
            memory: options.memory_mib << 20,
        };
        Ok(Self { layout, vmid, monitor, agent, state, ends_at: None })
    }

    /// Serves until it is told to end.
    fn serve(&mut self, signals: &SignalFd) -> io::Result<()> {
        loop {
            let left = self.ends_at.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                self.event("SHUTDOWN", &json!({"guest": true, "reason": "guest-shutdown"}));
                return Ok(());
            }
            let (signalled, asked, agent_asked) = self.wait(signals, left)?;
            if signalled {
                return Ok(());
            }
            if asked && self.serve_monitor() == Effect::Quit {
                self.event("SHUTDOWN", &json!({"guest": false, "reason": "host-qmp-quit"}));
                return Ok(());
            }
            if agent_asked {
                self.serve_agent();
            }
        }
    }

    fn wait(&self, signals: &SignalFd, left: Option<Duration>) -> io::Result<(bool, bool, bool)> {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(self.monitor.fd(), PollFlags::POLLIN)];
        if let Some(agent) = &self.agent {
            fds.push(PollFd::new(agent.fd(), PollFlags::POLLIN));
        }
        // Rounded up: a time-out of zero would spin through the last millisecond.
        let timeout =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let hit = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        Ok((hit(0), hit(1), hit(2)))
    }

    fn serve_monitor(&mut self) -> Effect {
        if self.monitor.client.is_none() {
            if self.monitor.accept() {
                self.monitor.send(&protocol::greeting());
            }
            return Effect::Nothing;
        }
        for line in self.monitor.lines() {
            let (answer, effect) = protocol::monitor(&line, &mut self.monitor.negotiated, &mut self.state);
            self.monitor.send(&answer);
            match effect {
                Effect::Quit => return Effect::Quit,
                Effect::Powerdown => self.power_down(),
                Effect::Reset => self.event("RESET", &json!({"guest": false, "reason": "host-qmp-system-reset"})),
                Effect::Nothing => {}
            }
        }
        Effect::Nothing
    }

    fn serve_agent(&mut self) {
        let silent = Behaviour::load(&self.layout, self.vmid).agent_silent;
        let mut down = false;
        if let Some(agent) = &mut self.agent {
            if agent.client.is_none() {
                agent.accept();
                return;
            }
            for line in agent.lines() {
                if silent {
                    continue;
                }
                let (answer, effect) = protocol::agent(&line);
                if let Some(answer) = answer {
                    agent.send(&answer);
                }
                down |= effect == Effect::Powerdown;
            }
        }
        if down {
            self.power_down();
        }
    }

    fn power_down(&mut self) {
        self.event("POWERDOWN", &json!({}));
        if let Shutdown::AfterMs(delay) = Behaviour::load(&self.layout, self.vmid).shutdown {
            self.ends_at.get_or_insert(Instant::now() + Duration::from_millis(delay));
        }
    }

    fn event(&mut self, name: &str, data: &Value) {
        if !self.monitor.negotiated {
            return;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let timestamp = json!({"seconds": now.as_secs(), "microseconds": now.subsec_micros()});
        let mut event = json!({"timestamp": timestamp, "event": name});
        if data.as_object().is_some_and(|fields| !fields.is_empty()) {
            event["data"] = data.clone();
        }
        self.monitor.send(&event);
    }

    fn remove_files(&self) {
        for path in [Some(&self.monitor.path), self.agent.as_ref().map(|agent| &agent.path)].into_iter().flatten() {
            let _ = fs::remove_file(path);
        }
        // Last: who sees it vanish finds the VM stopped.
        let _ = fs::remove_file(pid_file(&self.layout, self.vmid));
    }
}
