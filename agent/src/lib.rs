//! pvelet-agent: what the kubelet is to a Kubernetes node, this daemon is to a Proxmox VE host.

pub mod error;
pub mod host;
