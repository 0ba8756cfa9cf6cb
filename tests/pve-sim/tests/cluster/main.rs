//! The simulated cluster as a whole: real mounts, processes and signals. It needs root and `/dev/fuse`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking, and starts programs")]

mod control;
mod file_system;
mod guests;
mod high_availability;
mod life;
mod shared_storage;

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use pve_sim::{Cluster, Options};

/// A cluster of these nodes.
fn cluster(nodes: &[&str]) -> Cluster {
    Cluster::start(Options { program: Some(env!("CARGO_BIN_EXE_pve-sim").into()), ..Options::nodes(nodes) }).unwrap()
}

/// Waits until something holds; it must within ten seconds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// A file that a daemon writes when it comes to it; null before it is there and whole.
fn json(path: &Path) -> serde_json::Value {
    fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn error_of<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}
