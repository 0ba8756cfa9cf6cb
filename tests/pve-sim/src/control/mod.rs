//! Control from outside: tests and people tell the cluster what is to happen behind the agents' backs.
//!
//! A unix socket, `control.sock` in the cluster's folder; each line is a JSON object with a `verb`, answered by `{"ok": ...}` or `{"error": "..."}`.

mod client;
mod digest;
mod node;
mod request;
mod seed;
mod server;
mod vm;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use nix::fcntl::Flock;

pub use client::Client;
pub use request::{PmxcfsAction, Request, Seed};
pub(crate) use seed::demo;
pub use server::listen;

use crate::{api, cluster::Store, fuse::Mount, ha, layout::NodeLayout};

/// A running cluster, as control sees it.
pub struct Sim {
    /// The cluster's folder.
    pub dir: PathBuf,
    /// The content of `/etc/pve`.
    pub store: Arc<Store>,
    /// The mounts in the order of the nodes.
    pub mounts: Vec<Mutex<Mount>>,
    /// The local APIs in the order of the nodes.
    pub apis: Vec<api::Handle>,
    /// The runtime on which the local APIs run.
    pub runtime: tokio::runtime::Handle,
    /// The HA manager.
    pub ha: Arc<ha::Manager>,
    /// Locks held until they are released, by number.
    pub locks: Mutex<BTreeMap<u64, HeldLock>>,
}

/// A lock that is held as another process holds it.
pub enum HeldLock {
    /// Of a VM or of a node's own storage.
    File(Flock<File>),
    /// Of the whole cluster, by name.
    Cluster(String),
}

impl Sim {
    /// The index of a node.
    fn node(&self, name: &str) -> io::Result<usize> {
        self.store.node(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no node '{name}'")))
    }

    fn layout(&self, node: &str) -> NodeLayout {
        NodeLayout::new(&self.dir, node)
    }

    /// The layout of the node that holds a VM.
    fn vm(&self, vmid: u32) -> io::Result<NodeLayout> {
        let node = self.store.vm_node(vmid).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no VM {vmid}")))?;
        Ok(self.layout(&node))
    }
}
