//! Benchmarks of the main path on simulated hosts: a table, and `target/bench.json`. Values are compared within one run, on the same machine.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods, reason = "a program for people that fails by panicking")]

mod calls;
mod clones;
mod events;
mod health;
mod idle;
mod machine;
mod network;
mod report;
mod scale;
mod volumes;

use report::Report;

fn main() {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // Clients are made outside of block_on too.
    let _context = runtime.enter();
    let mut report = Report::default();
    type Part = fn(&tokio::runtime::Runtime, &mut Report);
    let parts: [(&str, Part); 9] = [
        ("calls", calls::run),
        ("events", events::run),
        ("idle", idle::run),
        ("clones", clones::run),
        ("volumes", volumes::run),
        ("machine", machine::run),
        ("network", network::run),
        ("health", health::run),
        ("scale", scale::run),
    ];
    for (name, part) in parts {
        if wanted(name) {
            eprintln!("bench: {name} ...");
            // One part that fails must not take the others' results along.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| part(&runtime, &mut report))).is_err() {
                report.failed(name);
            }
        }
    }
    report.finish();
}
