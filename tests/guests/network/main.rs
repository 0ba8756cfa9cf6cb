//! Network changes on real hosts: three Debian 13 guests on one Ethernet segment, ifupdown2, tagged frames, agents killed and power cut.
//!
//! It prints a line for each case and ends with `network: N cases, 0 unreachable, 0 between states`. Words on the command line choose cases by
//! what stands in their lines ("add, waiting, SIGKILL"). `PVELET_NETWORK_MATRIX=full` tries every step with both faults for add, change and remove.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

mod bad_input;
mod bench;
mod controller;
mod drive;
mod faults;
mod host;
mod kinds;
mod lane;
mod matrix;
mod networks;
mod report;
mod snapshot;

use std::{process::ExitCode, sync::mpsc, thread};

use pvelet_tests::Segment;

use crate::{
    host::{Lab, boot_peer},
    lane::{Case, Lane, Queue},
    report::Report,
};

/// Hosts that are changed at the same time; the third guest is their peer and gateway.
const LANES: u8 = 2;

fn cases() -> Vec<Case> {
    let full = std::env::var("PVELET_NETWORK_MATRIX").is_ok_and(|v| v == "full");
    let mut all = kinds::cases();
    all.extend(bad_input::cases());
    all.extend(faults::cases(full));
    all.extend(matrix::cases(full));
    all
}

fn main() -> ExitCode {
    // A case's end is told in its line.
    std::panic::set_hook(Box::new(|_| ()));
    if std::env::args().any(|a| a == "--bench-here") {
        let _ = std::panic::take_hook();
        bench::here();
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| words.is_empty() || words.iter().any(|w| name.contains(w.as_str()));
    let queue = Queue::new(cases().into_iter().filter(|case| chosen(&format!("{}, {}, {}", case.name, case.step, case.fault))).collect());
    let measure = std::env::args().any(|a| a == "--bench");
    let queue = if measure { Queue::new(vec![]) } else { queue };
    let lanes = if measure { 1 } else { LANES };
    let report = Report::default();
    let lab = Lab::new(Segment::new().unwrap(), Segment::new().unwrap());
    thread::scope(|scope| {
        let (lend, lent) = mpsc::channel();
        let mut ready = Vec::new();
        for n in 1..=lanes {
            let (send, receive) = mpsc::channel();
            ready.push(send);
            let (lab, queue, report, lend) = (&lab, &queue, &report, lend.clone());
            scope.spawn(move || {
                // Without a peer there is nothing to do.
                let Some(mut lane) = Lane::start(lab, n, &receive) else { return };
                lane.run(queue, report);
                if measure {
                    bench::run(&lane);
                }
                let _ = lend.send(lane.lend());
                drop(lend);
                // A guest ends with its thread: until the last case is over.
                let _ = receive.recv();
            });
        }
        drop(lend);
        let mut peer = boot_peer(&lab);
        for send in &ready {
            let _ = send.send(peer.way_in());
        }
        if chosen(controller::NAME) && !measure {
            controller::run(&lab, &mut peer, &lent, &report);
        } else {
            lent.iter().for_each(drop);
        }
        drop(ready);
    });
    if measure { ExitCode::SUCCESS } else { report.end() }
}
