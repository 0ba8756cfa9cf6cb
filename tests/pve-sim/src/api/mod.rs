//! The local API daemon of a simulated node (`pvedaemon`): HTTP on loopback, tickets, a table of calls with verified parameters, and handlers.

mod cluster;
mod cluster_access;
mod cluster_file;
mod cluster_ha;
mod cluster_machine;
mod cluster_network;
mod cluster_options;
mod cluster_pools;
mod cluster_resources;
pub mod failure;
mod format;
mod http;
pub mod params;
mod property;
pub mod route;
pub mod schema;
mod server;
mod storage;
mod storage_config;
pub(crate) mod storage_content;
mod stream;
mod tasks;
pub mod vm;

pub use failure::Failure;
pub use params::Params;
pub use route::{Call, Reply, Route, Table};
pub use schema::{Param, Schema};
pub use server::{Handle, Settings, serve, serve_with};
