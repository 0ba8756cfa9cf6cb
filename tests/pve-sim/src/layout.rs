//! Where one simulated node keeps its files: the tree of a real PVE host, moved below a folder of its own.

use std::path::{Path, PathBuf};

/// The folders of one simulated node, `<cluster dir>/<node>`.
#[derive(Clone, Debug)]
pub struct NodeLayout {
    root: PathBuf,
    node: String,
}

impl NodeLayout {
    /// The layout of `node` in the cluster that lives in `cluster_dir`.
    pub fn new(cluster_dir: &Path, node: &str) -> Self {
        Self { root: cluster_dir.join(node), node: node.to_owned() }
    }

    /// The node's name, as in `/etc/pve/nodes/<name>`.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The folder that stands for this node's `/`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path of a real host, below this node's root.
    pub fn host_path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The FUSE mount that stands for `/etc/pve`.
    pub fn etc_pve(&self) -> PathBuf {
        self.host_path("/etc/pve")
    }

    /// The config file of a VM of this node.
    pub fn vm_config(&self, vmid: u32) -> PathBuf {
        self.etc_pve().join(format!("nodes/{}/qemu-server/{vmid}.conf", self.node))
    }

    /// Pid files and QMP sockets.
    pub fn run_qemu(&self) -> PathBuf {
        self.host_path("/run/qemu-server")
    }

    /// Task logs, `index` and `active`.
    pub fn tasks(&self) -> PathBuf {
        self.host_path("/var/log/pve/tasks")
    }

    /// The file that is flocked for one VM.
    pub fn vm_lock(&self, vmid: u32) -> PathBuf {
        self.host_path(&format!("/var/lock/qemu-server/lock-{vmid}.conf"))
    }

    /// The file that is flocked for one local storage.
    pub fn storage_lock(&self, storage: &str) -> PathBuf {
        self.host_path(&format!("/var/lock/pve-manager/pve-storage-{storage}"))
    }

    /// The file in which the local API's address stands (`127.0.0.1:<port>`) once it listens.
    pub fn api_address(&self) -> PathBuf {
        self.root.join("api.addr")
    }

    /// The faults that are switched on for this node (see [`crate::faults::Faults`]).
    pub fn faults(&self) -> PathBuf {
        self.root.join("faults.json")
    }
}
