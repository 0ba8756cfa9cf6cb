//! A real kube-apiserver and etcd: what the tests of the controller in a cluster rely on.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test fails by panicking, and shows what it counted"
)]

mod chart;
mod controller;
mod crds;
mod harness;
mod host;
mod image;
mod monitoring;
mod nodes;
mod scale;
