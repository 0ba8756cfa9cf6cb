//! pvelet-agent: what the kubelet is to a Kubernetes node, this daemon is to a Proxmox VE host.

pub mod auth;
pub mod config;
pub mod crash;
pub mod error;
pub mod host;
pub mod limits;
pub mod metrics;
pub mod operation;
pub mod tls;
pub mod vm;
