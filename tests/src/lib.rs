//! The harness: a simulated PVE cluster, real agents, a real controller and real certificates, all as processes of their own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking, and starts programs"
)]

pub mod agent;
pub mod calls;
pub mod client;
pub mod containerd;
pub mod controller;
pub mod counts;
pub mod events;
pub mod faults;
pub mod fleet;
pub mod guest;
pub mod helm;
pub mod kubernetes;
pub mod pki;
pub mod process;
pub mod pve;
pub mod raw;
pub mod relay;
pub mod rng;
pub mod script;
pub mod service_manager;
pub mod stack;
pub mod status;
pub mod systemd;
pub mod versions;
pub mod volume_store;
pub mod volumes;

pub use agent::Agent;
pub use client::Client;
pub use controller::Controller;
pub use events::{HostEvents, OperationEvents};
pub use fleet::{Fleet, FleetOptions};
pub use guest::{Guest, GuestOptions, Segment};
pub use pki::Pki;
pub use process::{Process, program};
pub use pve::Pve;
pub use service_manager::ServiceManager;
pub use stack::{Stack, StackOptions};
pub use systemd::Systemd;
