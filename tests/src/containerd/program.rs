//! containerd's programs, and processes of them.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        LazyLock, Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, poll};

/// The folder of the programs: fetched now where it is missing. `PVELET_CONTAINERD` names another one, to try another version.
fn folder() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        if let Some(folder) = std::env::var_os("PVELET_CONTAINERD") {
            return folder.into();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("containerd/fetch.sh");
        let out = Command::new(&script).stderr(Stdio::inherit()).output().unwrap_or_else(|e| panic!("{}: {e}", script.display()));
        assert!(out.status.success(), "{} ended with {}", script.display(), out.status);
        PathBuf::from(String::from_utf8_lossy(&out.stdout).trim())
    });
    &FOLDER
}

/// A program: `containerd`, `ctr`, `runc`, `containerd-shim-runc-v2`.
pub fn program(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

/// Where containerd looks for shims and runc.
pub(super) fn path() -> OsString {
    let mut path = folder().as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

type Order = (Command, Sender<io::Result<Child>>);

/// Starts a program from a thread that never ends: what shall die with its parent dies with the thread that started it.
pub(super) fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
        let (orders, rest) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in rest {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, child) = mpsc::channel();
    SPAWNER.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).map_err(io::Error::other)?;
    child.recv().map_err(io::Error::other)?
}

/// A descriptor of a process; `None`: it is gone.
pub(super) fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Waits for the end of a process, no longer than `limit`.
pub(super) fn ended(pidfd: &OwnedFd, limit: Duration) -> bool {
    let millis = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], millis).is_ok_and(|n| n > 0)
}
