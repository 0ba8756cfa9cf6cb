//! A simulated PVE 9 cluster: what agents see of its hosts, made of real mounts, files, locks, processes and images.
//!
//! `pve-sim run --dir DIR --nodes pve1,pve2` is one process that plays the cluster: `/etc/pve` of each node as a FUSE mount of its own over one shared store, the
//! local API of each node on loopback, and HA. Tasks and guests are processes of their own. `DIR/<node>` stands for a node's `/` (see [`layout`]): `storage.cfg`
//! names the paths of a real host (`/var/lib/vz`, `/srv/raw` ...), and each node finds them below its own root; `/mnt/pve/shared` is one folder for all.
//!
//! What happens behind the agents' backs is told over [`control`]; tests start a cluster with [`Cluster`].

#![allow(clippy::disallowed_methods, reason = "it plays a host: it starts that host's processes, and waits for them as a host does")]

pub mod faults;
pub mod layout;
pub mod vmconf;

pub mod cluster;
pub mod control;
pub mod fuse;
pub mod guest;
pub mod ha;
pub mod run;

pub mod api;
pub mod storage;
pub mod task;
pub mod ticket;

mod binary;
mod harness;
pub use binary::binary;
pub use harness::{Cluster, Options};
