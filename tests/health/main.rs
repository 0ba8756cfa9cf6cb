//! The faults of containerd's configuration as a table: each made for real, found by the agent's checks, mended where it is known how, and proven by a
//! real pod sandbox; then the configurations that are unusual and well. It ends with `health: N faults, N found, N false alarms`.
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
use pvelet_tests::containerd::{Containerd, PAUSE};

use self::config::Fault;

#[tokio::main]
async fn main() -> ExitCode {
    let containerd = config::worker().await;
    println!("{:<52} {:<26} {:<6} repaired", "fault", "check", "found");
    let faults = config::faults();
    let (mut found, mut broken) = (0, 0);
    for fault in &faults {
        let seen = make(&containerd, fault).await;
        let repaired = repair(&containerd, fault).await;
        found += u32::from(seen);
        broken += u32::from(repaired == Repaired::No);
        println!("{:<52} {:<26} {:<6} {}", fault.name, fault.id, if seen { "yes" } else { "NO" }, repaired.word());
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
    println!("health: {} faults, {found} found, {alarms} false alarms", faults.len());
    if broken == 0 && alarms == 0 && found as usize == faults.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the fault is found with the daemon that has it.
async fn make(containerd: &Containerd, fault: &Fault) -> bool {
    let started = config::start(containerd, &(fault.text)(containerd.place())).await;
    let findings = config::source(containerd, fault.driver).look().await;
    let seen = findings.iter().any(|f| f.id == fault.id && f.state == fault.state && fault.says.iter().all(|s| f.seen.contains(s)));
    started == fault.starts && seen
}

/// How the mending of a fault went.
#[derive(PartialEq, Eq)]
enum Repaired {
    /// A pod sandbox can be made, and nothing is found any more.
    Yes,
    /// Nothing is found any more; the daemon lacks something else for a sandbox.
    Gone,
    /// It was to be mended, and is not.
    No,
    /// Only a person knows what is meant.
    ByHand,
}

impl Repaired {
    fn word(&self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Gone => "yes (no sandbox here: image or systemd missing)",
            Self::No => "NO",
            Self::ByHand => "by hand",
        }
    }
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
    let gone = config::source(containerd, fault.driver).look().await.iter().all(|f| f.id != fault.id || f.state != fault.state);
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
