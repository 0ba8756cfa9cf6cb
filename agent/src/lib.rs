//! pvelet-agent: what the kubelet is to a Kubernetes node, this daemon is to a Proxmox VE host.

pub mod config;
pub mod error;

pub mod auth;
pub mod limits;
pub mod rpc;
pub mod tls;

pub mod health;
pub mod inventory;
pub mod network;
pub mod operation;
pub mod vm;
pub mod volume;

pub mod crash;
pub mod host;

pub mod logging;
pub mod metrics;
pub mod notify;
pub mod server;
