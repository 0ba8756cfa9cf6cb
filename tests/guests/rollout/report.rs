//! What is printed.

use std::{process::ExitCode, sync::Mutex, time::Instant};

/// What has been found out for the last line, and since when.
pub struct Report {
    begun: Instant,
    /// When the last step ended.
    last: Mutex<Instant>,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    /// Tasks that changed something in a run that should change nothing.
    changed: Option<u32>,
    /// Calls that failed while certificates were exchanged, and all calls.
    calls: Option<(u64, u64)>,
    /// The parts that have failed.
    failed: Vec<&'static str>,
}

impl Default for Report {
    fn default() -> Self {
        Self { begun: Instant::now(), last: Mutex::new(Instant::now()), found: Mutex::default() }
    }
}

impl Report {
    /// A heading.
    pub fn head(&self, text: &str) {
        println!("== {text}");
    }

    /// A step that has succeeded: seconds since the beginning, and its own.
    pub fn step(&self, text: &str) {
        let took = std::mem::replace(&mut *self.last.lock().unwrap(), Instant::now()).elapsed();
        println!("{:>5} s {:>5} s  {text}", self.begun.elapsed().as_secs(), took.as_secs());
    }

    /// A part that has failed; why was printed.
    pub fn failed(&self, part: &'static str) {
        self.step(&format!("FAILED: {part}"));
        self.found.lock().unwrap().failed.push(part);
    }

    /// The tasks that a second run changed.
    pub fn second_run(&self, changed: u32) {
        self.found.lock().unwrap().changed = Some(changed);
    }

    /// How the calls during the rotation went.
    pub fn rotation(&self, failed: u64, all: u64) {
        self.found.lock().unwrap().calls = Some((failed, all));
    }

    /// The last line. Where only some parts were run there is nothing to sum up.
    pub fn end(&self, hosts: usize) -> ExitCode {
        let found = self.found.lock().unwrap();
        if let (Some(changed), Some((failed, all))) = (found.changed, found.calls) {
            println!("{} s in all, {all} calls during rotation", self.begun.elapsed().as_secs());
            if found.failed.is_empty() {
                println!("rollout: {hosts} hosts, second run changed={changed}, {failed} failed calls during rotation");
            }
            if changed > 0 || failed > 0 || all == 0 {
                return ExitCode::FAILURE;
            }
        }
        if found.failed.is_empty() {
            return ExitCode::SUCCESS;
        }
        println!("rollout: failed: {}", found.failed.join(", "));
        ExitCode::FAILURE
    }
}
