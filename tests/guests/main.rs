//! Tests in real Debian 13 guests: what a simulation cannot prove.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod harness;
mod health;
mod host_health;
mod kernel_network;
mod volumes;
