//! VMs.

pub mod mark;
