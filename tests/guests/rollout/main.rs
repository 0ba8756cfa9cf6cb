//! The rollout on real hosts: three Debian 13 guests, the Debian packages, and `ansible-playbook` over ssh, as an administrator runs it.
//!
//! It prints a line for each step and ends with `rollout: 3 hosts, second run changed=0, 0 failed calls during rotation`. By itself it goes the
//! main way (install, manage, a VM on each host, a second run, rotation under load, removal). `PVELET_ROLLOUT=full` adds dry runs, upgrades, a
//! host that loses its power, reboots, what the play mends, and everything that is refused. `PVELET_ROLLOUT_TIMES=1` tells after each play how
//! long its slowest tasks took. Words on the command line choose parts by name, which then are
//! run alone, after an install that is not looked at.
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
mod mended;
mod play;
mod refused;
mod report;
mod restart;
mod upgrade;
mod way;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

use crate::{control::Control, host::Host, report::Report};

/// A part; each leaves hosts on which the next can be run.
struct Part {
    name: &'static str,
    /// Whether it is of the main way.
    main: bool,
    run: fn(&Control, &[Host], &Report),
}

const PARTS: [Part; 11] = [
    Part { name: "refused", main: false, run: refused::run },
    Part { name: "credentials", main: false, run: refused::credentials },
    Part { name: "firewall", main: false, run: way::firewall },
    Part { name: "mended", main: false, run: mended::run },
    Part { name: "certificates", main: false, run: mended::certificates },
    Part { name: "restart", main: false, run: restart::run },
    Part { name: "upgrade", main: false, run: upgrade::while_cloning },
    Part { name: "power", main: false, run: upgrade::one_host_off },
    Part { name: "reboot", main: false, run: upgrade::reboot },
    Part { name: "rotation", main: true, run: way::rotate },
    Part { name: "removal", main: true, run: way::remove },
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let full = control::full();
    let chosen = |part: &&Part| if words.is_empty() { full || part.main } else { words.iter().any(|w| part.name.contains(w.as_str())) };
    let (begun, report) = (Instant::now(), Report::default());
    let hosts = Host::boot_all();
    let control = Control::new();
    report.step("three hosts have booted");
    if words.is_empty() {
        way::install(&control, &hosts, &report);
    } else {
        way::manage(&control, &hosts, &report);
    }
    let mut main_way = begun.elapsed();
    for part in PARTS.iter().filter(chosen) {
        let begun = Instant::now();
        report.head(part.name);
        // What the others have to tell is worth knowing too.
        if catch_unwind(AssertUnwindSafe(|| (part.run)(&control, &hosts, &report))).is_err() {
            report.failed(part.name);
        }
        if part.main {
            main_way += begun.elapsed();
        }
    }
    report.head(&format!("main way: {} s", main_way.as_secs()));
    report.end(hosts.len())
}
