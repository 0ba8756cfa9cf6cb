//! pvelet-agent: what the kubelet is to a Kubernetes node, this daemon is to a Proxmox VE host.

pub mod config;
pub mod crash;
pub mod error;
pub mod host;
pub mod operation;
pub mod vm;
