//! `/etc/pve` of each node: the store as a FUSE mount of its own, without any cache in the kernel.

mod filesystem;
mod gate;
mod handles;
mod mount;

pub use mount::Mount;
pub(crate) use mount::clear;
