//! Tests through the whole stack: real agents and controllers as processes, on a simulated PVE cluster, over mTLS.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod bad_input;
mod certificates;
mod crash;
mod daemon;
mod error_table;
mod events;
mod exactly_once;
mod faults;
mod ha;
mod health;
mod host_boundary;
mod locks;
mod main_path;
mod monitoring;
mod moves;
mod pveletctl;
mod restart;
mod security;
mod truth;
mod user_data;
