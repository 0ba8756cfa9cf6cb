//! etcd: what an API server keeps its objects in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;

use super::{PATIENCE, programs};
use crate::Process;

/// The sockets for clients and for other members. etcd takes Unix sockets by names with a port only, in the folder it runs in.
const SOCKETS: [&str; 2] = ["localhost:0", "localhost:1"];

/// An etcd of one member. It listens on Unix sockets in its folder: no port of the machine is taken.
pub struct Etcd {
    folder: PathBuf,
    process: Option<Process>,
}

impl Etcd {
    /// Starts one with its data below a folder, and waits until it serves.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub fn start(folder: &Path) -> Self {
        let mut etcd = Self { folder: folder.to_owned(), process: None };
        etcd.start_again();
        etcd
    }

    /// Where it is reached: a URL for `--etcd-servers`.
    pub fn url(&self) -> String {
        format!("unix://{}", self.folder.join(SOCKETS[0]).display())
    }

    /// Starts it after it was stopped or killed, with the same data.
    ///
    /// # Panics
    /// When it runs, or does not start.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "etcd runs");
        // Killed, it leaves them, and would not start over them.
        for socket in SOCKETS {
            let _ = fs::remove_file(self.folder.join(socket));
        }
        // What it tells other members is used by nobody; it only must look like an address.
        let args = [
            "--name=test",
            "--data-dir=data",
            "--listen-client-urls=unix://localhost:0",
            "--advertise-client-urls=http://localhost:2379",
            "--listen-peer-urls=unix://localhost:1",
            "--initial-advertise-peer-urls=http://localhost:2380",
            "--initial-cluster=test=http://localhost:2380",
            "--logger=zap",
            "--log-level=warn",
        ];
        let (log, notify) = (self.folder.join("etcd.log"), self.folder.join("etcd-notify.sock"));
        let mut process = Process::start_in(&self.folder, &programs().path("etcd"), &args, &[], &log, Some(&notify)).expect("etcd starts");
        process.wait_ready(PATIENCE).expect("etcd serves");
        self.process = Some(process);
    }

    /// Asks it to end, and waits.
    ///
    /// # Panics
    /// When it does not run, or does not end.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("etcd runs");
        process.signal(Signal::SIGTERM).expect("SIGTERM");
        process.wait_exit(PATIENCE).expect("etcd ends");
    }

    /// Ends it as a power cut would.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        self.process.take().expect("etcd runs").kill().expect("SIGKILL");
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("etcd runs")
    }
}
