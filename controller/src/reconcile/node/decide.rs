//! What is wanted on the Node of a host. Pure.

use jiff::{SignedDuration, Timestamp};

use crate::{
    kind::KubernetesNodeSpec,
    nodes::{Effect, NodeCondition, NodeView},
    reconcile::health::{Level, Verdict},
};

/// The least time between two reasons or texts for the same status.
const TEXTS_APART: SignedDuration = SignedDuration::from_secs(60);

/// What is remembered from one look to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Whether the host counts as not well.
    pub(super) unhealthy: bool,
    /// Since when it has not been well, the first time being one at which something had failed.
    bad_since: Option<Timestamp>,
    /// Since when it has been well.
    well_since: Option<Timestamp>,
    /// Since when it could not be told.
    unknown_since: Option<Timestamp>,
}

/// How a host is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// It told.
    Told(Verdict),
    /// It cannot be asked: a word and why.
    Away(&'static str, String),
}

/// What the Node should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) condition: Option<NodeCondition>,
    pub(super) taint: Option<Effect>,
}

impl Memory {
    /// What is known after a start of the controller: all times begin anew.
    pub(super) fn after_start(unhealthy: bool) -> Self {
        Self { unhealthy, ..Self::default() }
    }

    /// One look. Gives what is wanted, and when to look again though nothing changes.
    ///
    /// A host that cannot be asked, or does not know, is neither found well nor not well: it keeps what it has. Its Node is the business of
    /// Kubernetes' own node controller when it is gone.
    pub(super) fn look(&mut self, seen: &Seen, spec: &KubernetesNodeSpec, now: Timestamp) -> (Wanted, Option<Timestamp>) {
        let level = match seen {
            Seen::Told(verdict) => Some(verdict.level),
            Seen::Away(..) => None,
        };
        let (mut due, mut long_unknown) = (None, false);
        if level.is_some_and(|l| l != Level::Unknown) {
            self.unknown_since = None;
        }
        match level {
            Some(Level::Failed) => {
                self.well_since = None;
                // A clock that was set back begins anew.
                let since = self.bad_since.filter(|since| *since <= now).unwrap_or(now);
                self.bad_since = Some(since);
                if !self.unhealthy {
                    self.unhealthy = over(since, spec.failed_after.0, now);
                    due = (!self.unhealthy).then(|| end(since, spec.failed_after.0)).flatten();
                }
            }
            Some(Level::Well | Level::Degraded) => {
                self.bad_since = None;
                let since = self.well_since.filter(|since| *since <= now).unwrap_or(now);
                self.well_since = Some(since);
                if self.unhealthy {
                    self.unhealthy = !over(since, spec.well_after.0, now);
                    due = self.unhealthy.then(|| end(since, spec.well_after.0)).flatten();
                }
            }
            // What has failed and then cannot be told has not become well.
            Some(Level::Unknown) | None => {
                self.well_since = None;
                let since = self.unknown_since.filter(|since| *since <= now).unwrap_or(now);
                self.unknown_since = Some(since);
                long_unknown = over(since, spec.failed_after.0, now);
                due = (!long_unknown).then(|| end(since, spec.failed_after.0)).flatten();
            }
        }
        let condition = spec.condition.then(|| self.condition(seen, long_unknown));
        (Wanted { condition, taint: spec.taint.effect().filter(|_| self.unhealthy) }, due)
    }

    fn condition(&self, seen: &Seen, long_unknown: bool) -> NodeCondition {
        let of = |status, reason: &str, message: &str| NodeCondition { status, reason: reason.to_owned(), message: message.to_owned() };
        match (self.unhealthy, seen) {
            (_, Seen::Away(reason, message)) if long_unknown => of("Unknown", reason, message),
            (true, Seen::Told(v)) if v.level >= Level::Unknown => of("False", &v.reason, &v.message),
            (true, Seen::Told(_)) => of("False", "Recovering", "all checks are well again, but not for long enough yet"),
            (true, Seen::Away(reason, message)) => of("False", reason, message),
            (false, Seen::Told(v)) if v.level == Level::Unknown && long_unknown => of("Unknown", &v.reason, &v.message),
            // What is not well, but not for long enough yet, is not told here: the conditions of the PveHost tell it at once.
            (false, _) => of("True", "Healthy", ""),
        }
    }
}

fn over(since: Timestamp, seconds: u32, now: Timestamp) -> bool {
    now.duration_since(since) >= SignedDuration::from_secs(seconds.into())
}

fn end(since: Timestamp, seconds: u32) -> Option<Timestamp> {
    since.checked_add(SignedDuration::from_secs(seconds.into())).ok()
}

/// What must be written so that a Node says what is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Writes {
    pub(super) condition: bool,
    pub(super) taint: bool,
    /// When a text may be written that is not written now.
    pub(super) due: Option<Timestamp>,
}

impl Wanted {
    /// Nothing of ours.
    pub(super) const NOTHING: Self = Self { condition: None, taint: None };

    /// What of it is missing on a Node.
    pub(super) fn missing(&self, node: &NodeView, now: Timestamp) -> Writes {
        let (mut condition, mut due) = (false, None);
        match (&self.condition, &node.condition) {
            (None, None) => {}
            (Some(c), Some(s)) if c.status == s.status => {
                let next = s.heartbeat.filter(|last| *last <= now).and_then(|last| last.checked_add(TEXTS_APART).ok());
                let differs = (&c.reason, &c.message) != (&s.reason, &s.message);
                condition = differs && next.is_none_or(|next| next <= now);
                due = next.filter(|_| differs && !condition);
            }
            _ => condition = true,
        }
        let taint = match (self.taint, node.taints.as_slice()) {
            (None, []) => false,
            (Some(effect), [one]) => effect.name() != one,
            _ => true,
        };
        Writes { condition, taint, due }
    }
}

#[cfg(test)]
mod tests;
