//! A simulated PVE 9 cluster: what agents see of its hosts, made of real mounts, files, locks, processes and images.

pub mod layout;
pub mod vmconf;
pub mod faults;

pub mod cluster;
pub mod fuse;
pub mod guest;
pub mod ha;
pub mod control;
pub mod run;

pub mod storage;
pub mod ticket;
pub mod task;
pub mod api;

mod binary;
mod harness;
pub use binary::binary;
pub use harness::{Cluster, Options};
