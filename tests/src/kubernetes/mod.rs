//! A real Kubernetes API for a test: kube-apiserver and etcd, with kube-controller-manager where a test wants one. Each is a process of its own in
//! a temporary folder, so that any number of them run side by side.

mod api_server;
mod client;
mod controller_manager;
mod etcd;
mod pki;
mod port;
pub mod site;

use std::{
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

pub use api_server::{ApiServer, ApiServerOptions, User};
pub use client::{Events, Kube, KubeError};
pub use controller_manager::ControllerManager;
pub use etcd::Etcd;

use crate::script::folder_of;

/// How long a program of Kubernetes may take to start, or to end, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The programs of Kubernetes.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
    /// The version that they tell: `v1.36.3`.
    pub version: String,
}

impl Programs {
    /// A program: `etcd`, `kube-apiserver`, `kube-controller-manager`, `kubelet` or `kubectl`.
    pub fn path(&self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        assert!(path.exists(), "{} is none of the programs that tests/kubernetes/build.sh makes", path.display());
        path
    }
}

/// The programs, built now (minutes) where they are missing; `make kubernetes-programs` builds them beforehand.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let folder = folder_of("tests/kubernetes/build.sh");
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let version = name.rsplit_once('-').expect("the folder is named <version>-<hash>").0.to_owned();
        Programs { folder, version }
    })
}

/// Asks again until it is so: for what no watch tells, such as what an API server has learned by a watch of its own.
///
/// # Panics
/// When it is not so after [`PATIENCE`].
pub async fn soon(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < end, "not so after {PATIENCE:?}: {what}");
    }
}
