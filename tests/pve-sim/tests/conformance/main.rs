//! The simulated PVE host is held to recordings of a real one: each recorded request is sent again, in its order, and the answer, the task's end and log, and the
//! files must come out the same. `golden/README.md` tells about the recordings, `golden/omissions.txt` which are left out and why.

#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "it looks at files, makes images, and waits for processes as whoever recorded did")]

mod client;
mod commands;
mod counters;
mod files;
mod golden;
mod ledger;
mod node;
mod normal;
mod replay;
mod seed;

fn check(file: &str) {
    ledger::settle(file, &replay::replay(file));
}

#[test]
fn api() {
    check("api");
}

#[test]
fn api_vm() {
    check("api-vm");
}

#[test]
fn api_running() {
    check("api-running");
}

#[test]
fn api_ha_and_locks() {
    check("api-ha-and-locks");
}

#[test]
fn api_tasks() {
    check("api-tasks");
}

#[test]
fn api_storage() {
    check("api-storage");
}

#[test]
fn api_cluster() {
    check("api-cluster");
}

#[test]
fn files() {
    ledger::settle("files", &files::replay());
}

#[test]
fn cli_lifecycle() {
    check("cli-lifecycle");
}

#[test]
fn cli_failures() {
    check("cli-failures");
}
