//! The table of faults: those of containerd's configuration, each made for real, found by the agent's checks, mended where it is known how, and
//! proven by a real pod sandbox; beside them those that other tests have made and written down (`pvelet_tests::faults`). Then the configurations
//! that are unusual and well. It ends with `health: N faults, N found, N false alarms`.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program of the tests, beside which the modules' own tests are not built"
)]

#[path = "../containerd/config.rs"]
mod config;
#[path = "../containerd/config_healthy.rs"]
mod config_healthy;
#[path = "../containerd/config_mend.rs"]
mod config_mend;

use std::{process::ExitCode, sync::Arc};

use pvelet_agent::health::{Source, State, containerd::Probe};
use pvelet_tests::{
    containerd::{Containerd, PAUSE},
    faults::{self, Repaired},
};

use self::config::Fault;

#[tokio::main]
async fn main() -> ExitCode {
    let containerd = config::worker().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines = faults::file().unwrap_or_else(|| file.path().to_owned());
    for fault in config::faults() {
        let mut line = faults::Fault::to(&lines, fault.name, fault.id);
        if make(&containerd, &fault).await {
            line.found();
        }
        line.repaired(repair(&containerd, &fault).await);
    }
    let mut alarms = 0;
    for (name, text, driver) in config_healthy::table() {
        let started = config::start(&containerd, &text(containerd.place())).await;
        containerd.wait_image(PAUSE, true).await;
        for finding in config::alarms(&config::source(&containerd, driver)).await {
            alarms += 1;
            println!("false alarm: {name}: {}: {}", finding.id, finding.seen);
        }
        assert!(started, "{name} does not start");
    }
    let lines = faults::read(&lines).unwrap();
    println!("{:<58} {:<26} {:<6} repaired", "fault", "check", "found");
    for line in &lines {
        println!("{:<58} {:<26} {:<6} {}", line.name, line.check, if line.found { "yes" } else { "NO" }, line.repaired);
    }
    println!("health: {} faults, {} found, {alarms} false alarms", lines.len(), lines.iter().filter(|l| l.found).count());
    if alarms == 0 && lines.iter().all(faults::Line::is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the fault is found with the daemon that has it.
async fn make(containerd: &Containerd, fault: &Fault) -> bool {
    let started = config::start(containerd, &(fault.text)(containerd.place())).await;
    let findings = config::known(&config::source(containerd, fault.driver), |f| f.id == fault.id && f.state != fault.state).await;
    let seen = findings.iter().any(|f| f.id == fault.id && f.state == fault.state && fault.says.iter().all(|s| f.seen.contains(s)));
    started == fault.starts && seen
}

async fn repair(containerd: &Containerd, fault: &Fault) -> Repaired {
    if !config_mend::mend_for(containerd, fault.driver).await.contains(&fault.id) {
        return Repaired::ByHand;
    }
    let text = containerd.config();
    if !config::start(containerd, &text).await {
        println!("it does not start: {}", containerd.log().lines().last().unwrap_or_default());
        return Repaired::No;
    }
    containerd.wait_image(PAUSE, true).await;
    let findings = config::known(&config::source(containerd, fault.driver), |f| f.id == fault.id).await;
    let gone = findings.iter().all(|f| f.id != fault.id || f.state != fault.state);
    let probe = Probe::new(Arc::new(containerd.runtime()), config::files(containerd.place())).run().await;
    match probe.state {
        State::Ok if gone => Repaired::Yes,
        // What it lacks then is no matter of the configuration: the image that it names, or a systemd on this machine.
        State::Degraded if gone && probe.seen.contains("is not on this host") => Repaired::Gone,
        State::Failed if gone && probe.seen.contains("systemd not running on this host") => Repaired::Gone,
        _ => {
            println!("{}: {}", if gone { "no sandbox" } else { "still there" }, probe.seen);
            Repaired::No
        }
    }
}
