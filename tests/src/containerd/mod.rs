//! A real containerd in a private root: Debian's own programs, unpacked and not installed, or a 2.x that was built, with a configuration that the test gives and an image
//! that the tests build. Everything that it started ends with it. Needs root; several at once do not meet.

mod end;
mod image;
mod place;
mod program;
mod supervisor;
mod worker;

use std::{
    fs::{self, File},
    io::Read as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pvelet_agent::{
    error::{Error, Trouble},
    host::runtime::{ContainerdSocket, Runtime},
};

pub use self::{
    image::pause,
    place::{PAUSE, Place},
    program::Release,
    supervisor::Supervisor,
    worker::Worker,
};

/// How long containerd may take to start or to end; a loaded machine is slow.
const SOON: Duration = Duration::from_secs(60);

/// A containerd that may run or not.
#[derive(Debug)]
pub struct Containerd {
    place: Place,
    child: Mutex<Option<Child>>,
}

impl Containerd {
    /// One that runs, is healthy, and has the pause image.
    pub async fn start() -> Self {
        Self::start_with(Place::healthy).await
    }

    /// One that runs with this configuration and has the pause image.
    pub async fn start_with(config: impl FnOnce(&Place) -> String) -> Self {
        let this = Self::stopped_with(config);
        this.launch().await.unwrap_or_else(|e| panic!("{e}"));
        this.import_pause(PAUSE);
        this
    }

    /// One that does not run yet, with this configuration.
    pub fn stopped_with(config: impl FnOnce(&Place) -> String) -> Self {
        Self::at(Place::new(), config)
    }

    /// As [`Self::stopped_with`], in a place made by the caller.
    pub fn at(place: Place, config: impl FnOnce(&Place) -> String) -> Self {
        fs::write(place.config(), config(&place)).unwrap();
        Self { place, child: Mutex::new(None) }
    }

    /// Where everything of it lies.
    pub fn place(&self) -> &Place {
        &self.place
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent's client for its socket.
    pub fn runtime(&self) -> ContainerdSocket {
        ContainerdSocket::new(self.place.socket())
    }

    /// Starts it and waits until it serves; its CRI plugin need not have been loaded. The error holds what it said when it ended instead.
    pub async fn launch(&self) -> Result<(), String> {
        assert!(self.pid().is_none(), "containerd runs already");
        let from = fs::metadata(self.place.log()).map_or(0, |m| m.len());
        let log = File::options().create(true).append(true).open(self.place.log()).unwrap();
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL").arg(self.place.program("containerd")).arg("--config").arg(self.place.config());
        command.env("PATH", self.place.release().path()).env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.child() = Some(program::spawn(command).unwrap());
        let (runtime, end) = (self.runtime(), Instant::now() + SOON);
        loop {
            match runtime.status(Duration::from_secs(1)).await {
                Ok(_) | Err(Error::Look { trouble: Trouble::Unsupported, .. }) => return Ok(()),
                // It cannot be waited for: what it says of being ready, it says before its CRI plugin is.
                Err(e) if Instant::now() > end => return Err(format!("containerd does not serve within {SOON:?}: {e}\n{}", self.log())),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            if let Some(status) = self.ended() {
                let log = self.log();
                let since = log.get(usize::try_from(from).unwrap_or(0)..).unwrap_or(&log);
                return Err(format!("containerd ended with {status}:\n{since}"));
            }
        }
    }

    fn ended(&self) -> Option<ExitStatus> {
        let mut child = self.child();
        let status = child.as_mut()?.try_wait().unwrap()?;
        *child = None;
        Some(status)
    }

    /// Its pid while it runs.
    pub fn pid(&self) -> Option<u32> {
        let _ = self.ended();
        self.child().as_ref().map(Child::id)
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = self.child().as_ref() {
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        }
    }

    /// Ends it as systemd does; its sandboxes stay. `false`: it had to be killed.
    pub fn stop(&self) -> bool {
        self.signal(Signal::SIGTERM);
        // As systemd does: one that is frozen ends only once it goes on.
        self.signal(Signal::SIGCONT);
        let Some(mut child) = self.child().take() else { return true };
        let pidfd = program::pidfd(child.id());
        let ended = pidfd.is_none_or(|fd| program::ended(&fd, SOON));
        if !ended {
            let _ = child.kill();
        }
        child.wait().unwrap();
        ended
    }

    /// Ends it with SIGKILL; its sandboxes stay.
    pub fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops it with SIGSTOP: it stays, and answers nothing.
    pub fn freeze(&self) {
        if let Some(child) = self.child().as_ref() {
            crate::process::freeze(child.id()).unwrap();
        }
    }

    /// Lets it run on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Runs `ctr` in the CRI's namespace and returns what it prints.
    pub fn try_ctr(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.place.program("ctr"));
        command.arg("--address").arg(self.place.socket()).args(["--namespace", "k8s.io"]).args(args);
        let out = command.stdin(Stdio::null()).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if out.status.success() { Ok(said) } else { Err(said) }
    }

    /// As [`Self::try_ctr`]; it must succeed.
    pub fn ctr(&self, args: &[&str]) -> String {
        self.try_ctr(args).unwrap_or_else(|said| panic!("ctr {args:?}: {said}\n{}", self.log()))
    }

    /// Gives it the pause image under this name, and waits until its CRI plugin knows it.
    pub fn import_pause(&self, name: &str) {
        let archive = self.place.folder().join("pause.tar");
        image::pause(&archive, name).unwrap();
        self.ctr(&["images", "import", &archive.to_string_lossy()]);
    }

    /// Waits until its CRI plugin has an image or no longer has it: it learns of what `ctr` does by an event.
    pub async fn wait_image(&self, name: &str, there: bool) {
        let (runtime, end) = (self.runtime(), Instant::now() + SOON);
        while runtime.has_image(name, SOON).await.unwrap() != there {
            assert!(Instant::now() < end, "image {name}: still {}", if there { "missing" } else { "there" });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its configuration as it is now.
    pub fn config(&self) -> String {
        fs::read_to_string(self.place.config()).unwrap()
    }

    /// Writes its configuration; it reads it when it is started.
    pub fn write_config(&self, text: &str) {
        fs::write(self.place.config(), text).unwrap();
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(self.place.log()) {
            let _ = file.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.place.config()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- end of {} ---\n{}", self.place.log().display(), lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        self.kill();
        // What it started, and what it mounted, goes with the place.
    }
}
