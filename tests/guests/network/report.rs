//! The matrix that is printed.

use std::{
    process::ExitCode,
    sync::Mutex,
    time::{Duration, Instant},
};

/// In which state a case has left its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As before the change.
    Old,
    /// As the change wanted it.
    New,
    /// The change could not be undone, and the agent says so and changes nothing more.
    Latched,
    /// Neither.
    Between,
    /// Nobody reaches it any more.
    Unreachable,
    /// The case itself failed: what was promised did not happen.
    Failed,
}

impl End {
    fn word(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
            Self::Latched => "latched",
            Self::Between => "BETWEEN",
            Self::Unreachable => "UNREACHABLE",
            Self::Failed => "FAILED",
        }
    }
}

/// One line.
#[derive(Debug)]
pub struct Row {
    /// What was changed.
    pub case: String,
    /// At which step something happened to it.
    pub step: String,
    /// What happened.
    pub fault: String,
    /// How it ended.
    pub end: End,
    /// What was found where it did not end well.
    pub detail: String,
    /// How long it took.
    pub time: Duration,
}

/// All lines.
#[derive(Debug)]
pub struct Report {
    rows: Mutex<Vec<Row>>,
    begun: Instant,
}

impl Default for Report {
    fn default() -> Self {
        println!("{:<34} {:<24} {:<28} {:<12} {:>5}", "case", "step", "fault", "end", "s");
        Self { rows: Mutex::default(), begun: Instant::now() }
    }
}

impl Report {
    /// Prints and keeps a line.
    pub fn add(&self, row: Row) {
        println!("{:<34} {:<24} {:<28} {:<12} {:>5.1}", row.case, row.step, row.fault, row.end.word(), row.time.as_secs_f64());
        if !row.detail.is_empty() {
            println!("    {}", row.detail.trim_end().replace('\n', "\n    "));
        }
        self.rows.lock().unwrap().push(row);
    }

    /// Prints the end.
    pub fn end(&self) -> ExitCode {
        let rows = self.rows.lock().unwrap();
        let count = |end: End| rows.iter().filter(|r| r.end == end).count();
        println!("{} s in all", self.begun.elapsed().as_secs());
        let (unreachable, between, failed) = (count(End::Unreachable), count(End::Between), count(End::Failed));
        let failures = if failed == 0 { String::new() } else { format!(", {failed} failed") };
        println!("network: {} cases, {unreachable} unreachable, {between} between states{failures}", rows.len());
        if unreachable + between + failed == 0 && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
