//! The cluster file system's content and its counters: one store, seen by every node.

mod by_path;
mod counters;
mod dotfiles;
mod inner;
mod locks;
mod persist;
mod reports;
mod seed;
mod store;
mod tree;

pub use counters::{Counters, Owner, TRACKED, vm_config_owner};
pub use seed::seed;
pub use store::{Attributes, Entry, Kind, NodeState, Store};

#[cfg(test)]
mod tests;
