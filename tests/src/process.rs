//! Programs of this workspace as child processes that cannot outlive the test.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::{Pid, SysconfVar, sysconf},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Where cargo put a program of this workspace: beside the running executable, or one folder up for test executables.
pub fn program(name: &str) -> PathBuf {
    let here = env::current_exe().unwrap_or_default();
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|p| p.is_file())
        .unwrap_or_else(|| panic!("{name} is not built: run `make build` first (looked beside {})", here.display()))
}

/// A running program with its output in a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    notify: Option<UnixDatagram>,
}

impl Process {
    /// Starts a program. It is killed when the thread that starts it ends, even if this process is killed.
    /// With `notify`, a socket for sd_notify is made there and [`Self::wait_ready`] can be used.
    pub fn start(name: &str, args: &[&str], envs: &[(&str, &str)], log: &Path, notify: Option<&Path>) -> io::Result<Self> {
        Self::start_in(Path::new("."), &program(name), args, envs, log, notify)
    }

    /// As [`Self::start`], in a folder, and not only programs of this workspace.
    pub fn start_in(
        folder: &Path,
        program: &Path,
        args: &[&str],
        envs: &[(&str, &str)],
        log: &Path,
        notify: Option<&Path>,
    ) -> io::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL").arg(program).args(args).envs(envs.iter().copied()).current_dir(folder);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let notify = match notify {
            Some(path) => {
                let _ = std::fs::remove_file(path);
                let socket = UnixDatagram::bind(path)?;
                command.env("NOTIFY_SOCKET", path);
                Some(socket)
            }
            None => {
                command.env_remove("NOTIFY_SOCKET");
                None
            }
        };
        Ok(Self { child: command.spawn()?, log: log.to_owned(), notify })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `READY=1`. Fails with the end of the log when the program ends before, or after `limit`.
    pub fn wait_ready(&mut self, limit: Duration) -> io::Result<()> {
        self.wait_notified("ready", limit, |text| text.lines().any(|l| l == "READY=1")).map(drop)
    }

    /// Waits until the program tells the service manager what is `wanted`, and returns all of that message. Fails like
    /// [`Self::wait_ready`].
    pub fn wait_notified(&mut self, what: &str, limit: Duration, wanted: impl Fn(&str) -> bool) -> io::Result<String> {
        let end = Instant::now() + limit;
        let socket = self.notify.as_ref().ok_or_else(|| io::Error::other("started without a notify socket"))?;
        let mut buffer = [0_u8; 4096];
        loop {
            // Short turns, so that an early exit is told at once and not at the limit.
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            match socket.recv(&mut buffer) {
                Ok(n) => {
                    let text = String::from_utf8_lossy(&buffer[..n]);
                    if wanted(&text) {
                        return Ok(text.into_owned());
                    }
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if let Some(status) = self.child.try_wait()? {
                        return Err(io::Error::other(format!("ended with {status} before it was {what}:\n{}", self.log_tail())));
                    }
                    if Instant::now() > end {
                        return Err(io::Error::other(format!("not {what} within {limit:?}:\n{}", self.log_tail())));
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Stops it with SIGSTOP, see [`freeze`].
    pub fn freeze(&self) -> io::Result<()> {
        freeze(self.child.id())
    }

    /// Lets it run on.
    pub fn thaw(&self) -> io::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
    }

    /// Waits for its end; kills it after `limit` and fails.
    pub fn wait_exit(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let pidfd = rustix_pidfd(self.child.id())?;
        let millis = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        let mut fds = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&pidfd), nix::poll::PollFlags::POLLIN)];
        if nix::poll::poll(&mut fds, millis).map_err(io::Error::from)? == 0 {
            let tail = self.log_tail();
            let _ = self.child.kill();
            let _ = self.child.wait();
            return Err(io::Error::other(format!("still running after {limit:?}:\n{tail}")));
        }
        self.child.wait()
    }

    /// Waits for its end, however long that takes, and lets others work meanwhile.
    ///
    /// # Errors
    /// The system does not tell.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        #[allow(deprecated, reason = "its successor is unsafe; a descriptor that is owned stays open for as long as it is polled")]
        let pidfd = AsyncFd::with_interest(rustix_pidfd(self.child.id())?, Interest::READABLE)?;
        let _ready = pidfd.readable().await?;
        self.child.wait()
    }

    /// Ends it with SIGKILL, as a power cut would.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// All of its output so far.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// Stops a child of this process with SIGSTOP, and comes back when it stands still: the signal alone leaves a thread that runs on another
/// core time for an answer.
///
/// # Errors
/// When there is no such child.
pub fn freeze(pid: u32) -> io::Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
    kill(pid, Signal::SIGSTOP)?;
    // WNOWAIT: what is seen here stays to be seen by whoever waits for its end.
    waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    Ok(())
}

/// A descriptor that becomes readable when the process ends: std has none on stable, so procfs stands in (a directory descriptor cannot be
/// polled), hence `pidfd_open` by rustix, which wraps it safely.
fn rustix_pidfd(pid: u32) -> io::Result<std::os::fd::OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).ok_or_else(|| io::Error::other("no pid"))?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- end of {} ---\n{}", self.log.display(), self.log_tail());
        }
    }
}

/// CPU time of a process so far: what the scheduler counted, to the nanosecond, over all its threads.
pub fn cpu_seconds(pid: u32) -> f64 {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        if let Ok(text) = fs::read_to_string(task.path().join("schedstat")) {
            sum += text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9;
        }
    }
    if sum > 0.0 {
        return sum;
    }
    // A kernel without schedstat: clock ticks.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    #[allow(clippy::cast_precision_loss, reason = "100")]
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as f64;
    ticks / per_second
}

/// Resident memory of a process, in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmRSS:")
}

/// What of it is the process's own, in MiB: neither its program nor its libraries.
pub fn resident_own_mib(pid: u32) -> f64 {
    memory_mib(pid, "RssAnon:")
}

/// The most that a process ever had resident, in MiB.
pub fn resident_peak_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmHWM:")
}

fn memory_mib(pid: u32, key: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
