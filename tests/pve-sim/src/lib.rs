//! A simulated PVE 9 cluster: what agents see of its hosts, made of real mounts, files, locks, processes and images.

pub mod layout;
pub mod vmconf;
pub mod lock;
pub mod faults;

pub mod guest;

pub mod storage;
pub mod ticket;
pub mod task;
pub mod api;

mod binary;
pub use binary::binary;
