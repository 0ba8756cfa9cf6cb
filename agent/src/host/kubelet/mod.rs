//! The kubelet: its files, its process, its `/healthz`, and the numbers of the machine by which it evicts pods.

mod counters;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
mod files;
mod http;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::{Error, Trouble},
    host::blocking::Blocking,
};

/// The largest file that is read. A kubelet's configuration has a few KiB, a kubeconfig with its certificates about ten.
pub const LARGEST: u64 = 1024 * 1024;
/// Files on the local disk, and those of the kernel.
const FILES: Duration = Duration::from_secs(3);

/// Memory as the kubelet counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All there is, bytes.
    pub capacity: u64,
    /// What the root cgroup uses, without file pages that have not been touched for long, bytes.
    pub working_set: u64,
}

/// Tasks (processes and their threads) as the kubelet counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tasks {
    /// How many there are.
    pub running: u64,
    /// How many there may be.
    pub limit: u64,
}

/// A file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Its device number: the same for paths on the same file system.
    pub device: u64,
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes that an ordinary user may still write.
    pub available: u64,
    /// Inodes in all; 0: it has no fixed number of them (btrfs, ZFS).
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// How `/healthz` was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's status code.
    pub status: u16,
    /// The answer's beginning; bytes that are no UTF-8 are replaced.
    pub body: String,
}

/// The kubelet and what it looks at. Errors of all: `Look`; every call has a deadline.
#[tonic::async_trait]
pub trait Kubelet: Send + Sync + 'static {
    /// What a file holds. No such file: `None`. Errors: also when it is larger than [`LARGEST`].
    async fn file(&self, path: &Path) -> Result<Option<Vec<u8>>, Error>;

    /// The files below a folder, folders in it included, in the order of their paths; at most 1000. No such folder: `None`.
    async fn files(&self, folder: &Path) -> Result<Option<Vec<PathBuf>>, Error>;

    /// The arguments with which a process was started, the program first. No such process: empty.
    async fn command_line(&self, pid: u32) -> Result<Vec<String>, Error>;

    /// Asks `http://<address>/healthz`. Errors: `Look` with `Refused`, `Silent`, `Garbled`.
    async fn healthz(&self, address: SocketAddr, patience: Duration) -> Result<Answer, Error>;

    /// The host's name.
    async fn host_name(&self) -> Result<String, Error>;

    /// The host's addresses.
    async fn addresses(&self) -> Result<Vec<IpAddr>, Error>;

    /// Swap spaces that are in use: files or devices.
    async fn swaps(&self) -> Result<Vec<String>, Error>;

    /// Memory as the kubelet counts it.
    async fn memory(&self) -> Result<Memory, Error>;

    /// Tasks as the kubelet counts them.
    async fn tasks(&self) -> Result<Tasks, Error>;

    /// The file system of a path. No such path: `None`.
    async fn file_system(&self, path: &Path) -> Result<Option<FileSystem>, Error>;
}

/// The kubelet of this host.
#[derive(Debug, Clone)]
pub struct HostKubelet {
    proc: PathBuf,
    cgroup: PathBuf,
    /// The kubelet's files, procfs and file systems hang one by one.
    files: Blocking,
    kernel: Blocking,
    file_systems: Blocking,
}

impl HostKubelet {
    /// With the kernel's files at `proc` and `sysfs` (usually `/proc` and `/sys`).
    pub fn new(proc: PathBuf, sysfs: &Path) -> Self {
        let place = Blocking::new;
        Self { proc, cgroup: sysfs.join("fs/cgroup"), files: place(), kernel: place(), file_systems: place() }
    }

    async fn kernel<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let this = self.clone();
        self.kernel.run(what, FILES, move || work(&this)).await
    }
}

#[tonic::async_trait]
impl Kubelet for HostKubelet {
    async fn file(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        let path = path.to_owned();
        self.files.run(&path.display().to_string(), FILES, move || files::read(&path)).await
    }

    async fn files(&self, folder: &Path) -> Result<Option<Vec<PathBuf>>, Error> {
        let folder = folder.to_owned();
        self.files.run(&folder.display().to_string(), FILES, move || files::below(&folder)).await
    }

    async fn command_line(&self, pid: u32) -> Result<Vec<String>, Error> {
        self.kernel("the kubelet's command line", move |this| files::command_line(&this.proc, pid)).await
    }

    async fn healthz(&self, address: SocketAddr, patience: Duration) -> Result<Answer, Error> {
        http::healthz(address, patience).await
    }

    async fn host_name(&self) -> Result<String, Error> {
        self.kernel("the host's name", |this| counters::host_name(&this.proc)).await
    }

    async fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        self.kernel("the host's addresses", |_| counters::addresses()).await
    }

    async fn swaps(&self) -> Result<Vec<String>, Error> {
        self.kernel("the swap spaces", |this| counters::swaps(&this.proc)).await
    }

    async fn memory(&self) -> Result<Memory, Error> {
        self.kernel("the memory's use", |this| counters::memory(&this.proc, &this.cgroup)).await
    }

    async fn tasks(&self) -> Result<Tasks, Error> {
        self.kernel("the number of tasks", |this| counters::tasks(&this.proc)).await
    }

    async fn file_system(&self, path: &Path) -> Result<Option<FileSystem>, Error> {
        let path = path.to_owned();
        self.file_systems.run(&path.display().to_string(), FILES, move || counters::file_system(&path)).await
    }
}

/// An error of a look.
fn look(trouble: Trouble, message: String) -> Error {
    Error::Look { trouble, message }
}
