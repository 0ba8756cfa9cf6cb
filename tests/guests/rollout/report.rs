//! What is printed.

use std::{process::ExitCode, sync::Mutex, time::Instant};

/// What has been found out for the last line, and since when.
pub struct Report {
    begun: Instant,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    /// Tasks that changed something in a run that should change nothing.
    changed: Option<u32>,
    /// Calls that failed while certificates were exchanged, and all calls.
    calls: Option<(u64, u64)>,
}

impl Default for Report {
    fn default() -> Self {
        Self { begun: Instant::now(), found: Mutex::default() }
    }
}

impl Report {
    /// A heading.
    pub fn head(&self, text: &str) {
        println!("== {text}");
    }

    /// A step that has succeeded.
    pub fn step(&self, text: &str) {
        println!("{:>5} s  {text}", self.begun.elapsed().as_secs());
    }

    /// The tasks that a second run changed.
    pub fn second_run(&self, changed: u32) {
        self.found.lock().unwrap().changed = Some(changed);
    }

    /// How the calls during the rotation went.
    pub fn rotation(&self, failed: u64, all: u64) {
        self.found.lock().unwrap().calls = Some((failed, all));
    }

    /// The last line.
    pub fn end(&self, hosts: usize) -> ExitCode {
        let found = self.found.lock().unwrap();
        let (Some(changed), Some((failed, all))) = (found.changed, found.calls) else { return ExitCode::FAILURE };
        println!("{} s in all, {all} calls during rotation", self.begun.elapsed().as_secs());
        println!("rollout: {hosts} hosts, second run changed={changed}, {failed} failed calls during rotation");
        if changed == 0 && failed == 0 && all > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
