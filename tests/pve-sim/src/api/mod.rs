//! The local API daemon of a simulated node (`pvedaemon`): HTTP on loopback, tickets, a table of calls with verified parameters, and handlers.

pub mod failure;
mod format;
mod http;
pub mod params;
pub mod route;
pub mod schema;
mod server;
mod stream;
mod tasks;
pub mod vm;

pub use failure::Failure;
pub use params::Params;
pub use route::{Call, Reply, Route, Table};
pub use schema::{Param, Schema};
pub use server::{Handle, Settings, serve, serve_with};
