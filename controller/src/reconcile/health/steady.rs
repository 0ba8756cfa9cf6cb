//! What a condition shows while that which it is about flaps: worse at once, better only after a while.

use jiff::{SignedDuration, Timestamp};

use super::Verdict;

/// How long something must have been better before that is told; and the least time between two texts for the same state.
pub(super) const HOLD: SignedDuration = SignedDuration::from_secs(10);

/// One condition.
#[derive(Debug, Default)]
pub(super) struct Steady {
    /// What is shown, and since when.
    shown: Option<(Verdict, Timestamp)>,
    /// Since when what is found has been better than what is shown.
    better_since: Option<Timestamp>,
}

impl Steady {
    /// What is to be shown now that `found` was found, and when to look again although nothing changes.
    pub(super) fn settle(&mut self, found: Verdict, now: Timestamp) -> (Verdict, Option<Timestamp>) {
        let Some((shown, since)) = &self.shown else { return self.show(found, now) };
        if *shown == found {
            self.better_since = None;
            return (found, None);
        }
        let begun = if found.level < shown.level {
            *self.better_since.get_or_insert(now)
        } else {
            self.better_since = None;
            *since
        };
        // A clock that was set back must not hold it for ever.
        let waited = now.duration_since(begun);
        if found.level > shown.level || waited >= HOLD || waited.is_negative() {
            return self.show(found, now);
        }
        (shown.clone(), begun.checked_add(HOLD).ok())
    }

    fn show(&mut self, found: Verdict, now: Timestamp) -> (Verdict, Option<Timestamp>) {
        (self.shown, self.better_since) = (Some((found.clone(), now)), None);
        (found, None)
    }
}
