//! containerd's programs, and processes of them.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command},
    sync::{
        LazyLock, Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, poll};

use crate::script::folder_of;

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian's: 1.6, or 1.7.
    Debian,
    /// The newest 2.x, built from its Go modules; with Debian's runc and `ctr`.
    V2,
}

impl Release {
    /// Where its programs are, the first one first: made now where they are missing.
    fn folders(self) -> &'static [PathBuf] {
        // `PVELET_CONTAINERD` names another folder, to try another version.
        static DEBIAN: LazyLock<[PathBuf; 1]> =
            LazyLock::new(|| [std::env::var_os("PVELET_CONTAINERD").map_or_else(|| folder_of("tests/containerd/fetch.sh"), PathBuf::from)]);
        static V2: LazyLock<[PathBuf; 2]> =
            LazyLock::new(|| [folder_of("tests/containerd/v2/build.sh"), folder_of("tests/containerd/fetch.sh")]);
        match self {
            Self::Debian => &*DEBIAN,
            Self::V2 => &*V2,
        }
    }

    /// A program: `containerd`, `ctr`, `runc`, `containerd-shim-runc-v2`.
    pub fn program(self, name: &str) -> PathBuf {
        let mut paths = self.folders().iter().map(|folder| folder.join(name));
        paths.find(|path| path.is_file()).unwrap_or_else(|| panic!("{name} is missing in {:?}", self.folders()))
    }

    /// Where containerd looks for shims and runc.
    pub(super) fn path(self) -> OsString {
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let rest: Vec<PathBuf> = std::env::split_paths(&rest).collect();
        std::env::join_paths(self.folders().iter().chain(&rest)).unwrap()
    }
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
