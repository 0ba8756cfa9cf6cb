//! How findings put things into words.

use std::time::{Duration, SystemTime};

use crate::{
    error::Error,
    health::{Finding, State},
};

/// How full something may be, percent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) warning: u32,
    pub(super) critical: u32,
}

impl Limits {
    /// What a usage means.
    pub(super) fn state(self, percent: f64) -> State {
        if percent >= f64::from(self.critical) {
            State::Failed
        } else if percent >= f64::from(self.warning) {
            State::Degraded
        } else {
            State::Ok
        }
    }
}

/// Things that are told of at once; of the rest the number.
const TOLD: usize = 6;
/// A text that others wrote.
const LONGEST: usize = 160;

/// A list for people: the first few, and how many more there are.
pub(super) fn list(items: &[String]) -> String {
    let mut told = items.iter().take(TOLD).map(|i| shorten(i)).collect::<Vec<_>>().join("; ");
    if items.len() > TOLD {
        told.push_str(&format!("; and {} more", items.len() - TOLD));
    }
    told
}

/// At most so much of a text that others wrote, on one line.
pub(super) fn shorten(text: &str) -> String {
    let line = text.replace(['\n', '\r', '\t'], " ");
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

/// A duration for people: its largest unit.
pub(super) fn span(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..120 => format!("{s} s"),
        120..7200 => format!("{} min", s / 60),
        7200..172_800 => format!("{} h", s / 3600),
        _ => format!("{} days", s / 86400),
    }
}

/// A moment for people. What is told must not change from look to look while the thing itself does not: so a moment, not its age.
pub(super) fn moment(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "an unknown time".to_owned(), |t| t.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// The day of a moment.
pub(super) fn day(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "an unknown day".to_owned(), |t| t.strftime("%Y-%m-%d").to_string())
}

/// How long ago a moment is; a moment in the future is now.
pub(super) fn age(since: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(since).unwrap_or_default()
}

/// Bytes for people.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    #[allow(clippy::cast_precision_loss, reason = "one digit behind the point")]
    let scaled = |shift: u32| bytes as f64 / (1_u64 << shift) as f64;
    match UNITS.iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.1} {unit}", scaled(*shift)),
        None => format!("{bytes} B"),
    }
}

/// The share of `part`, percent; none of nothing.
#[allow(clippy::cast_precision_loss, reason = "percent need no more than 52 bits")]
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// What could not be looked at.
pub(super) fn unknown(id: &'static str, error: &Error) -> Finding {
    Finding::unknown(id, error.to_string().chars().take(400).collect::<String>())
}

/// One finding of several things: the worst state, the bad ones' texts, and what is about them.
pub(super) struct Worst {
    state: State,
    bad: Vec<String>,
    subjects: Vec<String>,
}

impl Worst {
    pub(super) fn new() -> Self {
        Self { state: State::Ok, bad: Vec::new(), subjects: Vec::new() }
    }

    /// Something that is not well.
    pub(super) fn add(&mut self, state: State, subject: &str, text: String) {
        // The worst stand first.
        let first = state > self.state && !self.bad.is_empty();
        self.state = self.state.max(state);
        if first {
            self.bad.insert(0, text);
        } else {
            self.bad.push(text);
        }
        if !self.subjects.iter().any(|s| s == subject) {
            self.subjects.push(subject.to_owned());
        }
    }

    /// The finding: `well` tells what was seen when nothing was added.
    pub(super) fn finding(self, id: &'static str, well: impl FnOnce() -> String, remedy: impl Into<String>) -> Finding {
        if self.bad.is_empty() {
            return Finding::ok(id, well());
        }
        Finding { remedy: remedy.into(), subjects: self.subjects, ..Finding::new(id, self.state, list(&self.bad)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_spans_are_for_people() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(5 << 40)], ["0 B", "1023 B", "1.5 KiB", "5.0 TiB"]);
        let spans = [0, 119, 120, 7199, 7200, 172_800].map(|s| span(Duration::from_secs(s)));
        assert_eq!(spans, ["0 s", "119 s", "2 min", "119 min", "2 h", "2 days"]);
    }

    #[test]
    fn limits_are_reached_at_their_value() {
        let limits = Limits { warning: 85, critical: 95 };
        assert_eq!(
            [84.9, 85.0, 94.9, 95.0, 100.0].map(|p| limits.state(p)),
            [State::Ok, State::Degraded, State::Degraded, State::Failed, State::Failed]
        );
    }

    proptest! {
        #[test]
        fn what_is_told_is_never_long(items in proptest::collection::vec("\\PC{0,400}", 0..50)) {
            prop_assert!(list(&items).chars().count() < 6 * 170 + 20);
        }
    }
}
