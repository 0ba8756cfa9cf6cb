//! The container runtime: containerd over its socket (CRI `runtime.v1`, and containerd's own introspection), its files, its program.

mod api;
mod dump;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
mod files;
#[cfg(test)]
mod files_tests;
mod leftovers;
mod pod;
mod socket;
#[cfg(test)]
mod socket_tests;
mod trial;
mod trouble;
pub mod watch;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::{files::ContainerdFiles, socket::ContainerdSocket};
use crate::error::Error;

/// What the runtime tells of itself (CRI `Version`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// "containerd".
    pub name: String,
    /// Such as "1.7.24" or "v2.1.4".
    pub version: String,
    /// "v1".
    pub api: String,
}

/// A condition of CRI `Status`: `RuntimeReady`, `NetworkReady`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeCondition {
    /// Its type.
    pub kind: String,
    /// Whether it holds.
    pub status: bool,
    /// Why not: a word.
    pub reason: String,
    /// Why not: for people.
    pub message: String,
}

/// CRI `Status` with `verbose`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuntimeStatus {
    /// Its conditions.
    pub conditions: Vec<RuntimeCondition>,
    /// The CRI plugin's configuration as the running daemon has it (`info["config"]`); `Null` where it does not tell.
    pub config: serde_json::Value,
    /// What the daemon last said of loading CNI's configuration (`info["lastCNILoadStatus"]`); empty: nothing.
    pub cni: String,
}

/// A plugin of containerd (introspection).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plugin {
    /// Such as `io.containerd.snapshotter.v1`.
    pub kind: String,
    /// Such as `overlayfs`.
    pub id: String,
    /// Why it is not there; empty: it is.
    pub error: String,
}

/// A pod sandbox that the agent made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Whether it is ready.
    pub ready: bool,
}

/// The runtime. Every call has a deadline (`patience`). Errors of all: `Look`, with the socket, and what was answered.
#[tonic::async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// CRI `Version`: the cheapest question there is.
    async fn version(&self, patience: Duration) -> Result<RuntimeVersion, Error>;

    /// CRI `Status`, verbose.
    async fn status(&self, patience: Duration) -> Result<RuntimeStatus, Error>;

    /// Its plugins, those that could not be loaded included.
    async fn plugins(&self, patience: Duration) -> Result<Vec<Plugin>, Error>;

    /// Where the file systems of images are mounted (CRI `ImageFsInfo`).
    async fn image_fs(&self, patience: Duration) -> Result<Vec<PathBuf>, Error>;

    /// Whether it has this image (CRI `ImageStatus`). Never pulls.
    async fn has_image(&self, image: &str, patience: Duration) -> Result<bool, Error>;

    /// Makes a pod sandbox in the host's network, marked as the agent's, and returns its id. With a name that is taken by one of the agent's
    /// that was left: an error.
    async fn run_sandbox(&self, patience: Duration) -> Result<String, Error>;

    /// Stops and removes a sandbox. Gone already: a success.
    async fn remove_sandbox(&self, id: &str, patience: Duration) -> Result<(), Error>;

    /// The sandboxes that carry the agent's mark: what a killed agent left.
    async fn own_sandboxes(&self, patience: Duration) -> Result<Vec<Sandbox>, Error>;
}

/// A file of containerd's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigText {
    /// Where it lies.
    pub path: PathBuf,
    /// What it holds; bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// containerd's files and its program.
#[tonic::async_trait]
pub trait RuntimeFiles: Send + Sync + 'static {
    /// The main file first, then those that it imports, in containerd's order. No main file: empty (containerd then has its defaults).
    /// Errors: `Look`; also when it is larger than 1 MiB.
    async fn config(&self) -> Result<Vec<ConfigText>, Error>;

    /// What one file holds; bytes that are no UTF-8 are replaced. No such file: `None`. Errors: as [`Self::config`].
    async fn text(&self, path: &Path) -> Result<Option<String>, Error>;

    /// Names of files in a folder (of CNI's configuration). No such folder: `None`. Errors: `Look`.
    async fn list(&self, folder: &Path) -> Result<Option<Vec<String>>, Error>;

    /// Whether containerd takes this text as its main file: `containerd --config <copy> config dump`, with the copy beside the main file's
    /// folder's name space, so that relative imports work. Returns what it would make of it. Errors: `Look` with what it says.
    async fn dump(&self, text: &str, patience: Duration) -> Result<String, Error>;

    /// Whether containerd takes its configuration with these files edited, each in its place. Nothing that it reads is touched: `config dump` is
    /// asked about copies that import each other. Errors: `Look` with what it says; also when a file is no part of the configuration.
    async fn try_edits(&self, edits: &[ConfigText], patience: Duration) -> Result<(), Error>;

    /// Replaces a file of the configuration by rename, fsynced with its folder; owner and mode stay. `was`: what it must hold still.
    /// Errors: `RepairChanged` when it holds something else, or is gone; `Look`.
    async fn replace(&self, path: &Path, was: &str, text: &str) -> Result<(), Error>;

    /// Keeps a copy of a file beside the main file, under a name that says when and by whom, and returns its path. The ten newest copies of a file
    /// stay. Errors: `Look`; also when the configuration would import the copy.
    async fn back_up(&self, path: &Path) -> Result<PathBuf, Error>;

    /// Removes what agents that were killed have left beside the files, and backups beyond the ten newest of a file. For the start of an agent, when
    /// it is the only one. Errors: `Look`, with the first that could not be removed; the others are.
    async fn tidy(&self) -> Result<(), Error>;
}
