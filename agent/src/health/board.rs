//! What is known of each check, in memory: who asks is answered from here, and waits for nothing.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::sync::{broadcast, watch};

use super::{Check, Finding, Group, Known, State};
use crate::{host::clock::Clock, metrics::Metrics};

/// How many changes a reader may lag behind.
const BACKLOG: usize = 256;
/// Longer texts are cut: what a check saw must stay readable, and must not fill the memory.
const TEXT: usize = 800;
/// More subjects are left out.
const SUBJECTS: usize = 32;

/// How all checks, or those of a group, are together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overall {
    /// Failed when a check failed; unknown before every check ran once; degraded when one is degraded or unknown; else ok. Of a group also not
    /// applicable: when none of its checks concerns this host.
    pub state: State,
    /// Since when it is so.
    pub since: SystemTime,
}

/// What has changed with one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The board's revision after it.
    pub revision: u64,
    /// All checks together, after it.
    pub overall: Overall,
    /// The checks whose state or text is another than before.
    pub checks: Vec<Known>,
}

struct Slot {
    known: Known,
    /// Whether a run was tried: a check that never answers must not keep the whole unknown.
    tried: bool,
}

struct Inner {
    /// By group and id.
    slots: Vec<Slot>,
    index: HashMap<&'static str, usize>,
    overall: Overall,
    groups: [Overall; Group::ALL.len()],
}

/// The board.
pub(super) struct Board {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
    revision: watch::Sender<u64>,
    changes: broadcast::Sender<Arc<Change>>,
}

impl Board {
    /// With these checks, none of which has run yet. Of two checks with one id the first counts.
    pub(super) fn new(checks: impl IntoIterator<Item = Check>, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        let since = clock.now();
        let mut seen = HashSet::new();
        let mut slots: Vec<Slot> = Vec::new();
        for check in checks {
            if !seen.insert(check.id) {
                tracing::error!(check = check.id, "two sources tell of the same check; only the first is heard");
                continue;
            }
            let finding = Finding::unknown(check.id, "it has not run yet");
            slots.push(Slot { known: Known { check, finding, since, observed: None }, tried: false });
        }
        slots.sort_by_key(|s| (s.known.check.group, s.known.check.id));
        for slot in &slots {
            metrics.check(slot.known.check.id, slot.known.check.group.as_str(), State::Unknown);
        }
        let index = slots.iter().enumerate().map(|(n, s)| (s.known.check.id, n)).collect();
        let overall = Overall { state: whole(&slots), since };
        let groups = Group::ALL.map(|g| Overall { state: together(of(&slots, g)), since });
        metrics.health(overall.state);
        let inner = Mutex::new(Inner { slots, index, overall, groups });
        Self { clock, metrics, inner, revision: watch::channel(0).0, changes: broadcast::channel(BACKLOG).0 }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is whole after a panic: the texts are made before it begins.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All checks, by group and id, and how they are together.
    pub(super) fn all(&self) -> (Overall, Vec<Known>) {
        let inner = self.lock();
        (inner.overall, inner.slots.iter().map(|s| s.known.clone()).collect())
    }

    /// All checks and, without a gap, what changes from then on.
    pub(super) fn follow(&self) -> (Change, broadcast::Receiver<Arc<Change>>) {
        // Changes are sent under the lock: nothing falls between the two, and nothing is told twice.
        let inner = self.lock();
        let checks = inner.slots.iter().map(|s| s.known.clone()).collect();
        (Change { revision: *self.revision.borrow(), overall: inner.overall, checks }, self.changes.subscribe())
    }

    /// One check.
    pub(super) fn one(&self, id: &str) -> Option<Known> {
        let inner = self.lock();
        inner.index.get(id).map(|n| inner.slots[*n].known.clone())
    }

    /// How all checks are together.
    pub(super) fn overall(&self) -> Overall {
        self.lock().overall
    }

    /// How the checks of each group are together.
    pub(super) fn groups(&self) -> [(Group, State); Group::ALL.len()] {
        let inner = self.lock();
        std::array::from_fn(|n| (Group::ALL[n], inner.groups[n].state))
    }

    /// The revision: grows with each change of a state or text, not with each run.
    pub(super) fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Takes over what a run of the source of `checks` found. What it left out is unknown; what is not its own is dropped.
    pub(super) fn found(&self, source: &'static str, checks: &[Check], findings: Vec<Finding>) {
        let mut by_id: HashMap<&'static str, Finding> = HashMap::new();
        for finding in findings {
            if !checks.iter().any(|c| c.id == finding.id) {
                tracing::error!(source, check = finding.id, "a source told of a check that is not its own; it is not heard");
                continue;
            }
            match by_id.entry(finding.id) {
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(clean(finding));
                }
                std::collections::hash_map::Entry::Occupied(mut place) => {
                    tracing::error!(source, check = finding.id, "a source told of a check twice; the worse counts");
                    if finding.state > place.get().state {
                        place.insert(clean(finding));
                    }
                }
            }
        }
        let found = checks.iter().map(|c| {
            let left_out = || Finding::unknown(c.id, "its last run told nothing about it");
            match by_id.remove(c.id) {
                Some(finding) => (finding, true),
                None => (left_out(), false),
            }
        });
        self.put(found.collect());
    }

    /// Makes `checks` unknown: their run came to no end.
    pub(super) fn lost(&self, checks: &[Check], why: &str) {
        self.put(checks.iter().map(|c| (clean(Finding::unknown(c.id, why)), false)).collect());
    }

    /// Takes findings over; with each whether its run came to its end.
    fn put(&self, found: Vec<(Finding, bool)>) {
        let now = self.clock.now();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let mut changed = Vec::new();
        for (finding, ended) in found {
            let Some(slot) = inner.index.get(finding.id).map(|n| &mut inner.slots[*n]) else { continue };
            let first = !std::mem::replace(&mut slot.tried, true);
            if ended {
                slot.known.observed = Some(now);
            }
            let (before, state) = (slot.known.finding.state, finding.state);
            if before != state {
                slot.known.since = now;
                self.metrics.check(finding.id, slot.known.check.group.as_str(), state);
            }
            if first || before != state {
                tell(&finding, before, first);
            }
            if first || slot.known.finding != finding {
                slot.known.finding = finding;
                changed.push(slot.known.clone());
            }
        }
        if changed.is_empty() {
            return;
        }
        let renew = |overall: &mut Overall, state: State| {
            if overall.state != state {
                *overall = Overall { state, since: now };
            }
        };
        renew(&mut inner.overall, whole(&inner.slots));
        for (n, group) in Group::ALL.into_iter().enumerate() {
            renew(&mut inner.groups[n], together(of(&inner.slots, group)));
        }
        self.metrics.health(inner.overall.state);
        let revision = *self.revision.borrow() + 1;
        // Nobody watching is no error.
        let _ = self.changes.send(Arc::new(Change { revision, overall: inner.overall, checks: changed }));
        self.revision.send_replace(revision);
    }
}

fn of(slots: &[Slot], group: Group) -> impl Iterator<Item = &Slot> {
    slots.iter().filter(move |s| s.known.check.group == group)
}

/// How the host is. That nothing concerns it is well.
fn whole(slots: &[Slot]) -> State {
    match together(slots.iter()) {
        State::NotApplicable => State::Ok,
        state => state,
    }
}

/// How checks are together.
fn together<'a>(slots: impl Iterator<Item = &'a Slot>) -> State {
    let (mut worst, mut waiting) = (State::NotApplicable, false);
    for slot in slots {
        waiting |= !slot.tried;
        worst = worst.max(slot.known.finding.state);
    }
    match worst {
        State::Failed => State::Failed,
        _ if waiting => State::Unknown,
        State::Unknown | State::Degraded => State::Degraded,
        well => well,
    }
}

/// A state that has changed, in the log. What was well from the start is no news.
fn tell(finding: &Finding, before: State, first: bool) {
    let (check, seen) = (finding.id, &finding.seen);
    match finding.state {
        State::Failed => tracing::warn!(check, seen, remedy = finding.remedy, "a check failed"),
        State::Degraded => tracing::warn!(check, seen, remedy = finding.remedy, "a check is degraded"),
        State::Unknown => tracing::warn!(check, seen, "a check is unknown"),
        State::Ok | State::NotApplicable if first || before == State::Ok || before == State::NotApplicable => {}
        State::Ok | State::NotApplicable => tracing::info!(check, seen, "a check is well again"),
    }
}

/// A finding fit to be kept and shown: bounded, and on one line.
fn clean(mut finding: Finding) -> Finding {
    finding.seen = one_line(&finding.seen);
    finding.remedy = one_line(&finding.remedy);
    finding.subjects.truncate(SUBJECTS);
    finding.subjects.iter_mut().for_each(|s| *s = one_line(s));
    finding
}

/// Control characters, which texts of other programs may hold, would confuse a terminal.
fn one_line(text: &str) -> String {
    let mut line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT + 1).collect();
    if let Some((cut, _)) = line.char_indices().nth(TEXT - 1).filter(|_| line.chars().nth(TEXT).is_some()) {
        line.truncate(cut);
        line.push('…');
    }
    line
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
