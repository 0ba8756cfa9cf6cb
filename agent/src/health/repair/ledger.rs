//! What earlier repairs came to: the latch, the limit per hour, the pauses. Kept over restarts of the agent.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::error::Error;

const HOUR_MS: u64 = 3_600_000;
/// Failed repairs in a row after which there are none any more.
const FAILURES: u32 = 2;
/// The pause after the first automatic repair of a thing, doubled with each further one, up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(3600));
/// A thing that needed no automatic repair for so long begins anew.
const FORGOTTEN_MS: u64 = 6 * HOUR_MS;

/// Automatic repairs of one thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tries {
    /// How many in a row.
    count: u32,
    /// When the last one began, in milliseconds since the Unix epoch.
    last: u64,
}

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Ledger {
    /// Failed repairs in a row.
    failures: u32,
    /// Why nothing is repaired; `None`: it may be.
    pub(super) latched: Option<String>,
    /// When automatic repairs began in the last hour, in milliseconds since the Unix epoch.
    automatic: Vec<u64>,
    /// Automatic repairs by what is repaired.
    tries: BTreeMap<String, Tries>,
    /// The last repair's operation.
    pub(super) last_operation: String,
    /// The last operation whose end is counted: after a crash it ends once more.
    counted: String,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Ledger {
    /// What was kept; `None`: nothing ever. What cannot be read is latched.
    pub(super) fn read(bytes: Option<&[u8]>) -> Self {
        match bytes.map(serde_json::from_slice) {
            None => Self::default(),
            Some(Ok(ledger)) => ledger,
            Some(Err(error)) => Self::unreadable(&error.to_string()),
        }
    }

    /// A latched one.
    pub(super) fn unreadable(why: &str) -> Self {
        Self { latched: Some(format!("what earlier repairs came to cannot be read: {why}")), ..Self::default() }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// A repair begins; `key`: what is repaired automatically.
    pub(super) fn begun(&mut self, operation: &str, key: Option<String>, now: u64) {
        operation.clone_into(&mut self.last_operation);
        let Some(key) = key else { return };
        // What lies in the future was noted before the clock was set back: it counts as now.
        self.automatic.iter_mut().for_each(|at| *at = (*at).min(now));
        self.automatic.retain(|at| now - at < HOUR_MS);
        self.automatic.push(now);
        self.tries.retain(|_, tries| now.saturating_sub(tries.last) < FORGOTTEN_MS);
        let tries = self.tries.entry(key).or_default();
        (tries.count, tries.last) = (tries.count.saturating_add(1), now);
    }

    /// A repair has ended so.
    pub(super) fn ended(&mut self, operation: &str, result: &Result<(), Error>) {
        if self.counted == operation {
            return;
        }
        operation.clone_into(&mut self.counted);
        match result {
            Ok(()) => self.failures = 0,
            Err(error @ (Error::RepairFailed { .. } | Error::RepairRestoreFailed { .. })) => {
                self.failures += 1;
                if self.failures >= FAILURES || matches!(error, Error::RepairRestoreFailed { .. }) {
                    self.latched.get_or_insert_with(|| format!("{operation}: {error}"));
                }
            }
            // Nothing was tried, or somebody else was at it.
            Err(_) => {}
        }
    }

    /// A person has looked at the host.
    pub(super) fn clear(&mut self) {
        (self.failures, self.latched) = (0, None);
        self.tries.clear();
    }

    /// Automatic repairs in the last hour.
    pub(super) fn in_last_hour(&self, now: u64) -> u32 {
        let recent = self.automatic.iter().filter(|at| now.saturating_sub(**at) < HOUR_MS).count();
        u32::try_from(recent).unwrap_or(u32::MAX)
    }

    /// How long an automatic repair of this thing has to wait; zero: it may begin.
    pub(super) fn wait(&self, key: &str, limit: u32, now: u64) -> Duration {
        let mut recent: Vec<u64> = self.automatic.iter().map(|at| (*at).min(now)).filter(|at| now - at < HOUR_MS).collect();
        recent.sort_unstable();
        // Not before so many have become old that there is room for one.
        let room = (recent.len() + 1).checked_sub(limit.max(1) as usize).filter(|n| *n > 0);
        let limit = room.map_or(0, |n| recent[n - 1] + HOUR_MS - now);
        let tries = self.tries.get(key).copied().unwrap_or_default();
        let since = now.saturating_sub(tries.last);
        let pause = match tries.count {
            0 => 0,
            _ if since >= FORGOTTEN_MS => 0,
            n => millis(PAUSES.0.saturating_mul(1 << (n - 1).min(10)).min(PAUSES.1)).saturating_sub(since),
        };
        Duration::from_millis(limit.max(pause))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn failed() -> Result<(), Error> {
        Err(Error::RepairFailed { why: "no".into() })
    }

    fn minutes(n: u64) -> Duration {
        Duration::from_secs(n * 60)
    }

    #[test]
    fn two_failures_in_a_row_latch_and_a_success_between_them_does_not() {
        let mut ledger = Ledger::default();
        ledger.ended("a", &failed());
        ledger.ended("b", &Ok(()));
        ledger.ended("c", &failed());
        // The same end, told again after a crash.
        ledger.ended("c", &failed());
        ledger.ended("d", &Err(Error::RepairChanged { file: "f".into() }));
        assert_eq!(ledger.latched, None);
        ledger.ended("e", &failed());
        assert!(ledger.latched.as_ref().unwrap().starts_with("e: "));
        let mut again = Ledger::read(Some(&ledger.bytes()));
        assert_eq!(again, ledger);
        again.clear();
        assert_eq!(again.latched, None);
        again.ended("f", &failed());
        assert_eq!(again.latched, None);
        again.ended("g", &Err(Error::RepairRestoreFailed { why: "disk".into() }));
        assert!(again.latched.is_some());
    }

    #[test]
    fn what_cannot_be_read_is_latched() {
        assert!(Ledger::read(Some(b"{")).latched.is_some());
        assert_eq!(Ledger::read(None).latched, None);
    }

    #[test]
    fn pauses_grow_and_the_limit_holds_for_all_things_together() {
        let mut ledger = Ledger::default();
        let t = 1_700_000_000_000;
        assert_eq!(ledger.wait("u", 2, t), Duration::ZERO);
        ledger.begun("1", Some("u".into()), t);
        assert_eq!((ledger.wait("u", 2, t), ledger.wait("v", 2, t)), (minutes(2), Duration::ZERO));
        ledger.begun("2", Some("u".into()), t + 120_000);
        assert_eq!((ledger.in_last_hour(t + 120_000), ledger.wait("v", 2, t + 120_000)), (2, minutes(58)));
        assert_eq!(ledger.wait("u", 20, t + 120_000), minutes(4));
        // The clock is set back by an hour: nothing is forgotten by that.
        assert_eq!(ledger.wait("v", 2, t - HOUR_MS), minutes(60));
        assert_eq!(ledger.wait("u", 2, t + 120_000 + FORGOTTEN_MS), Duration::ZERO);
        // What is asked for counts nothing.
        ledger.begun("3", None, t + 120_000);
        assert_eq!(ledger.in_last_hour(t + 120_000), 2);
    }

    proptest! {
        #[test]
        fn never_more_in_an_hour_than_allowed(limit in 1_u32..5, steps in proptest::collection::vec((0_u64..40 * 60_000, 0_usize..3), 1..60)) {
            let mut ledger = Ledger::default();
            let (mut now, mut begun) = (1_700_000_000_000_u64, Vec::new());
            for (step, thing) in steps {
                now += step;
                let key = thing.to_string();
                if ledger.wait(&key, limit, now).is_zero() {
                    ledger.begun("x", Some(key), now);
                    begun.push(now);
                }
                prop_assert!(begun.iter().filter(|at| now - **at < HOUR_MS).count() <= limit as usize);
            }
        }
    }
}
