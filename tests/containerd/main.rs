//! What the agent knows of a real containerd. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod config;
mod config_healthy;
mod config_mend;
mod doctor;
mod faults;
mod files;
mod host;
mod repair;
mod socket;
#[cfg(feature = "kubernetes")]
mod v2;
