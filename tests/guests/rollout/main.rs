//! The rollout on real hosts: three Debian 13 guests, the Debian packages, and `ansible-playbook` over ssh, as an administrator runs it.
//!
//! It prints a line for each step and ends with `rollout: 3 hosts, second run changed=0, 0 failed calls during rotation`. By itself it goes the
//! main way (install, manage, a VM on each host, a second run, rotation under load, removal). `PVELET_ROLLOUT=full` adds upgrades, a host that
//! loses its power, reboots and everything that is refused. Words on the command line choose among the steps that can be left out.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

mod control;
mod host;
mod load;
mod play;
mod refused;
mod report;
mod upgrade;
mod way;

use std::process::ExitCode;

use crate::{control::Control, host::Host, report::Report};

/// A part that can be left out; each leaves the hosts as they were.
type Part = fn(&Control, &[Host], &Report);

const PARTS: [(&str, Part); 5] = [
    ("bad input", refused::run),
    ("upgrade", upgrade::while_cloning),
    ("one host off", upgrade::one_host_off),
    ("reboot", upgrade::reboot),
    ("firewall", way::firewall),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let full = std::env::var("PVELET_ROLLOUT").is_ok_and(|v| v == "full");
    let chosen = |name: &str| if words.is_empty() { full } else { words.iter().any(|w| name.contains(w.as_str())) };
    let hosts = Host::boot_all();
    let control = Control::new();
    let report = Report::default();
    way::install(&control, &hosts, &report);
    for (name, part) in PARTS.iter().filter(|(name, _)| chosen(name)) {
        report.head(name);
        part(&control, &hosts, &report);
    }
    report.head("the main way");
    way::rotate(&control, &hosts, &report);
    way::remove(&control, &hosts, &report);
    report.end(hosts.len())
}
