//! A task's log, line by line, and how PVE reads its end.

use super::{TaskEnd, TaskUpdate};

/// Units of sizes in progress lines.
const UNITS: &[(&str, f64)] = &[
    ("B", 1.0),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("PiB", 1_125_899_906_842_624.0),
];

/// Reads `transferred 13.6 MiB of 1.0 GiB (1.33%)`, wherever in a line it stands.
pub(super) fn progress(line: &str) -> Option<TaskUpdate> {
    let (_, rest) = line.split_once("transferred ")?;
    let (done, rest) = rest.split_once(" of ")?;
    let (total, rest) = rest.split_once(" (")?;
    let percent: f64 = rest.split_once("%)")?.0.parse().ok()?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let percent = percent.clamp(0.0, 100.0) as u8;
    Some(TaskUpdate::Progress { percent, done: bytes(done)?, total: bytes(total)? })
}

fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.trim().split_once(' ')?;
    let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
    let number: f64 = number.parse().ok()?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    (number.is_finite() && number >= 0.0).then_some((number * scale) as u64)
}

/// What a line says about the end, if it is the last one. `None`: it is no end line.
fn end_line(line: &str) -> Option<TaskEnd> {
    let rest = line.strip_prefix("TASK ")?;
    if rest == "OK" {
        return Some(TaskEnd::Ok);
    }
    if let Some(count) = rest.strip_prefix("WARNINGS: ") {
        return (!count.is_empty() && count.bytes().all(|c| c.is_ascii_digit())).then(|| TaskEnd::Warnings(Vec::new()));
    }
    // PVE takes an error without text for an unexpected status.
    rest.strip_prefix("ERROR: ").filter(|text| !text.is_empty()).map(|text| TaskEnd::Error(text.to_owned()))
}

/// What is known of a log so far.
#[derive(Debug, Default)]
pub(super) struct TaskLog {
    partial: Vec<u8>,
    last: Option<String>,
    warnings: Vec<String>,
    /// The last line that is neither progress nor end: in front of an error it tells the cause.
    cause: Option<String>,
    allocated: Option<String>,
}

/// A log of a runaway task must not fill the agent's memory.
const WARNINGS_KEPT: usize = 100;
/// A line without an end must not either.
const LONGEST_LINE: usize = 64 << 10;

impl TaskLog {
    /// Takes what was appended, and returns the complete lines in it. End lines are not among them: [`TaskLog::end`] tells those.
    pub(super) fn feed(&mut self, appended: &[u8]) -> Vec<TaskUpdate> {
        let mut text = std::mem::take(&mut self.partial);
        text.extend_from_slice(appended);
        let complete = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.partial = text.split_off(complete);
        // The end of an endless line is of no use to anybody. What is kept begins in its middle, so that it is no end line.
        if self.partial.len() > LONGEST_LINE {
            self.partial.drain(..self.partial.len() - LONGEST_LINE / 2);
        }
        text.pop();
        if complete == 0 { Vec::new() } else { text.split(|b| *b == b'\n').filter_map(|line| self.line(line)).collect() }
    }

    fn line(&mut self, line: &[u8]) -> Option<TaskUpdate> {
        let line = String::from_utf8_lossy(line).into_owned();
        self.last = Some(line.clone());
        if end_line(&line).is_some() {
            return None;
        }
        if let Some(progress) = progress(&line) {
            return Some(progress);
        }
        if line.starts_with("WARN") && self.warnings.len() < WARNINGS_KEPT {
            self.warnings.push(line.clone());
        }
        if line.starts_with("allocated target volume ") {
            self.allocated = Some(line.clone());
        }
        self.cause = Some(line.clone());
        Some(TaskUpdate::Line(line))
    }

    /// The end, if the log shows one. `worker_gone`: nothing more will be appended, so a last line without its line feed counts (as for
    /// PVE), and a log without an end line has none.
    pub(super) fn end(&mut self, worker_gone: bool) -> Option<TaskEnd> {
        if worker_gone && !self.partial.is_empty() {
            let rest = std::mem::take(&mut self.partial);
            self.line(&rest);
        }
        let last = if self.partial.is_empty() { self.last.as_deref().and_then(end_line) } else { None };
        match last {
            Some(TaskEnd::Warnings(_)) => Some(TaskEnd::Warnings(std::mem::take(&mut self.warnings))),
            Some(TaskEnd::Error(text)) => Some(TaskEnd::Error(self.explained(text))),
            Some(end) => Some(end),
            None => worker_gone.then_some(TaskEnd::NoEndLine),
        }
    }

    /// A command's failure says only its exit status; why it failed stands in the line before ("No space left on device").
    fn explained(&self, text: String) -> String {
        let Some(cause) = self.cause.as_ref().filter(|_| text.contains("failed: exit code")) else { return text };
        let allocated = self.allocated.as_ref().filter(|a| *a != cause).map(|a| format!("; {a}")).unwrap_or_default();
        format!("{text} ({cause}{allocated})")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> TaskEnd {
        let mut log = TaskLog::default();
        log.feed(text.as_bytes());
        log.end(true).unwrap()
    }

    #[test]
    fn ends_are_read_as_pve_reads_them() {
        let long = "y".repeat(5000);
        let cases = [
            ("a\nTASK OK\n", TaskEnd::Ok),
            ("TASK OK", TaskEnd::Ok),
            (&format!("{}\nTASK OK\n", "x".repeat(5000)), TaskEnd::Ok),
            ("TASK OK\n\n", TaskEnd::NoEndLine),
            ("creating\nhalf\n", TaskEnd::NoEndLine),
            ("", TaskEnd::NoEndLine),
            ("TASK ERROR: a\nb\n", TaskEnd::NoEndLine),
            ("TASK ERROR: \n", TaskEnd::NoEndLine),
            ("TASK ERROR: €\n", TaskEnd::Error("€".into())),
            (&format!("TASK ERROR: {long}\n"), TaskEnd::Error(long.clone())),
            ("TASK WARNINGS: 3\n", TaskEnd::Warnings(vec![])),
            ("TASK WARNINGS: x\n", TaskEnd::NoEndLine),
            ("TASK OKAY\n", TaskEnd::NoEndLine),
        ];
        for (text, end) in cases {
            assert_eq!(read(text), end, "{text:?}");
        }
    }

    #[test]
    fn warnings_come_with_their_lines() {
        let warning = "WARN: Could not remove disk 'small:501/vm-501-disk-0.raw', check manually: storage 'small' is disabled";
        assert_eq!(read(&format!("{warning}\nother\nTASK WARNINGS: 1\n")), TaskEnd::Warnings(vec![warning.into()]));
    }

    #[test]
    fn a_command_that_failed_is_explained_by_the_line_before() {
        let text = "allocated target volume 'small:211/vm-211-disk-0.qcow2'\ntransferred 232.1 MiB of 1.0 GiB (22.67%)\nqemu-img: error while writing at byte 54525952: No space left on device\nTASK ERROR: clone failed: copy failed: command '/usr/bin/qemu-img convert' failed: exit code 1\n";
        let TaskEnd::Error(text) = read(text) else { unreachable!() };
        assert!(text.contains("exit code 1 (qemu-img: error while writing at byte 54525952: No space left on device; allocated"), "{text}");
        let error = super::super::classify::classify(super::super::classify::Subject::vm("pve1", 211), &text);
        assert!(matches!(error, crate::error::Error::StorageFull { storage, .. } if storage == "small"));
    }

    #[test]
    fn a_running_task_has_no_end_before_its_line_is_complete() {
        let mut log = TaskLog::default();
        log.feed(b"TASK O");
        assert_eq!(log.end(false), None);
        log.feed(b"K");
        assert_eq!(log.end(false), None);
        log.feed(b"\n");
        assert_eq!(log.end(false), Some(TaskEnd::Ok));
    }

    #[test]
    fn progress_lines_tell_bytes() {
        let p = |percent, done, total| Some(TaskUpdate::Progress { percent, done, total });
        assert_eq!(progress("transferred 13.5 MiB of 1.0 GiB (1.33%)"), p(1, 14_155_776, 1 << 30));
        assert_eq!(progress("transferred 0.0 B of 1.0 GiB (0.00%)"), p(0, 0, 1 << 30));
        assert_eq!(progress("mirror-scsi0: transferred 1.0 KiB of 1.0 KiB (100.00%) in 0s"), p(100, 1024, 1024));
        assert_eq!(progress("transferred everything of value (really)"), None);
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_memory() {
        let mut log = TaskLog::default();
        for _ in 0..100 {
            assert!(log.feed(&[b'x'; 10_000]).is_empty());
            assert!(log.partial.len() <= LONGEST_LINE);
        }
        log.feed(b"\nTASK OK\n");
        assert_eq!(log.end(true), Some(TaskEnd::Ok));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_log_is_cut(text in "(TASK (OK|ERROR: a|WARNINGS: 1)|[a-zA-Z %.ü]{0,12}|\n){0,12}", cuts in proptest::collection::vec(0usize..100, 0..6)) {
            let mut whole = TaskLog::default();
            let lines = whole.feed(text.as_bytes());
            let mut pieces = TaskLog::default();
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut updates = Vec::new();
            for pair in cuts.windows(2) {
                updates.extend(pieces.feed(&text.as_bytes()[pair[0]..pair[1]]));
            }
            prop_assert_eq!(lines, updates);
            prop_assert_eq!(whole.end(true), pieces.end(true));
        }

        #[test]
        fn no_log_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), gone in any::<bool>()) {
            let mut log = TaskLog::default();
            log.feed(&bytes);
            let _ = (log.end(gone), progress(&String::from_utf8_lossy(&bytes)));
        }
    }
}
