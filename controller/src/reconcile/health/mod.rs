//! What agents tell of their hosts' health, and the conditions that it comes to.

mod listen;
mod steady;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use pvelet_proto::v1::{self, CheckState};

use steady::Steady;

use crate::kind::ConditionStatus;

/// The feature that an agent has which tells health.
pub(super) const FEATURE: &str = "health";
/// Groups of checks, and the conditions that they come to.
const CONDITIONS: [(&str, &str); 5] = [
    ("containerd", "ContainerdHealthy"),
    ("kubelet", "KubeletHealthy"),
    ("host", "HostHealthy"),
    ("network", "NetworkHealthy"),
    ("agent", "AgentHealthy"),
];
/// From which difference on the clocks are not in sync, in milliseconds.
const CLOCKS_APART: i64 = 2000;
/// Below which difference they are again.
const CLOCKS_TOGETHER: i64 = 1000;
/// So many findings stand in a message; the others are counted.
const FINDINGS: usize = 3;
/// So many names are looked for among those that are known: more than all agents have together.
const NAMES: usize = 1024;
/// So many characters of what was seen, and of a remedy.
const SEEN_MAX: usize = 280;

/// What is known of a host's health.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum HealthSight {
    /// Nothing yet.
    #[default]
    Awaited,
    /// The agent is too old to tell.
    NotOffered,
    /// It does not tell: why.
    Lost(String),
    /// It is so.
    Told(Arc<Health>),
}

/// How a host is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Health {
    /// By id, in the order of these.
    checks: Vec<(Arc<str>, CheckView)>,
    /// Why nothing is repaired any more.
    latch: Option<String>,
    /// How far the host's clock is from ours; nothing before it was measured.
    clock: Option<Clock>,
}

/// A check, reduced to what is decided by.
#[derive(Debug, Clone, PartialEq)]
struct CheckView {
    group: Arc<str>,
    level: Option<Level>,
    /// Of what is well nothing is told on: seventy texts of each of a thousand hosts.
    told: Option<Box<Told>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Told {
    seen: String,
    remedy: String,
}

impl CheckView {
    fn seen(&self) -> &str {
        self.told.as_ref().map_or("", |told| &told.seen)
    }

    fn remedy(&self) -> &str {
        self.told.as_ref().map_or("", |told| &told.remedy)
    }
}

/// Names of checks and of their groups, which a thousand agents tell alike: each is kept once.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<HashSet<Arc<str>>>);

impl Names {
    fn get(&self, name: &str) -> Arc<str> {
        // Each change under the lock is whole by itself.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.get(name) {
            return Arc::clone(same);
        }
        if known.len() >= NAMES {
            known.retain(|name| Arc::strong_count(name) > 1);
        }
        let name: Arc<str> = name.into();
        if known.len() < NAMES {
            known.insert(Arc::clone(&name));
        }
        name
    }
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Well.
    Well,
    /// It works, but something will hurt.
    Degraded,
    /// It cannot be told.
    Unknown,
    /// It does not work.
    Failed,
}

/// How far a clock is ahead of ours, in milliseconds, and how wrong that may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    pub(super) ahead: i64,
    pub(super) error: i64,
}

impl Clock {
    /// What was told `told` by a clock, of a call that began at `begun` and took `round_trip`: it was read half way, more or less.
    pub(super) fn measured(told: Timestamp, begun: Timestamp, round_trip: std::time::Duration) -> Self {
        let half = i64::try_from(round_trip.as_millis() / 2).unwrap_or(i64::MAX);
        let ahead = told.as_millisecond().saturating_sub(begun.as_millisecond()).saturating_sub(half);
        Self { ahead, error: half }
    }
}

/// What is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) level: Level,
    /// A stable word in CamelCase.
    pub(super) reason: String,
    pub(super) message: String,
}

impl Verdict {
    fn new(level: Level, reason: &str, message: impl Into<String>) -> Self {
        Self { level, reason: reason.to_owned(), message: message.into() }
    }

    /// Whether the condition holds: what is degraded works.
    pub(super) fn status(&self) -> ConditionStatus {
        match self.level {
            Level::Well | Level::Degraded => ConditionStatus::True,
            Level::Unknown => ConditionStatus::Unknown,
            Level::Failed => ConditionStatus::False,
        }
    }
}

impl Health {
    /// Takes a message over: all checks, or those that changed.
    pub(super) fn take(&self, told: &v1::Health, complete: bool, names: &Names) -> Self {
        let mut checks = if complete { Vec::new() } else { self.checks.clone() };
        for check in &told.checks {
            let level = match check.state() {
                CheckState::Ok => Some(Level::Well),
                CheckState::Degraded => Some(Level::Degraded),
                CheckState::Failed => Some(Level::Failed),
                CheckState::NotApplicable => None,
                // What a newer agent may tell is not taken for well.
                CheckState::Unknown | CheckState::Unspecified => Some(Level::Unknown),
            };
            let told = (level != Some(Level::Well)).then(|| Box::new(Told { seen: cut(&check.seen), remedy: cut(&check.remedy) }));
            let view = CheckView { group: names.get(&check.group), level, told };
            match checks.binary_search_by(|(id, _)| (**id).cmp(check.id.as_str())) {
                Ok(at) => checks[at].1 = view,
                Err(at) => checks.insert(at, (names.get(&check.id), view)),
            }
        }
        checks.shrink_to_fit();
        let latch = told.repair.as_ref().filter(|r| r.latched).map(|r| r.latch_reason.clone());
        Self { checks, latch, clock: self.clock }
    }

    /// The same with another measurement of the clock.
    pub(super) fn with_clock(&self, clock: Clock) -> Self {
        Self { clock: Some(clock), ..self.clone() }
    }

    /// What the checks of these groups come to.
    pub(super) fn verdict(&self, host: &str, groups: &[&str]) -> Verdict {
        let ours: Vec<(&str, &CheckView)> =
            self.checks.iter().map(|(id, c)| (&**id, c)).filter(|(_, c)| groups.contains(&&*c.group)).collect();
        if ours.is_empty() {
            return Verdict::new(Level::Unknown, "NoChecks", "the agent has no such checks");
        }
        let mut bad: Vec<(Level, &str, &CheckView)> =
            ours.iter().filter_map(|(id, c)| Some((c.level.filter(|l| *l > Level::Well)?, *id, *c))).collect();
        bad.sort_by(|a, b| (b.0, a.1).cmp(&(a.0, b.1)));
        match bad.first() {
            Some((level, id, _)) => Verdict { level: *level, reason: word(id), message: findings(host, &bad) },
            None if ours.iter().all(|(_, c)| c.level.is_none()) => {
                // Why it does not concern the host is the same for all of them.
                Verdict::new(Level::Well, "NotApplicable", cut(ours[0].1.seen()))
            }
            None => Verdict::new(Level::Well, "AllChecksOk", ""),
        }
    }
}

/// `containerd.runtime-type` as `ContainerdRuntimeType`.
fn word(id: &str) -> String {
    let mut word = String::new();
    for part in id.split(|c: char| !c.is_ascii_alphanumeric()) {
        let mut chars = part.chars();
        word.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        word.push_str(chars.as_str());
    }
    // A reason begins with a letter.
    if word.starts_with(|c: char| c.is_ascii_alphabetic()) { word } else { format!("Check{word}") }
}

/// The worst findings with their remedies.
fn findings(host: &str, bad: &[(Level, &str, &CheckView)]) -> String {
    let mut text = String::new();
    for (level, id, c) in bad.iter().take(FINDINGS) {
        let state = match level {
            Level::Failed => "failed",
            Level::Unknown => "unknown",
            Level::Degraded | Level::Well => "degraded",
        };
        if !text.is_empty() {
            text.push_str(". ");
        }
        let _ = write!(text, "{id} is {state}: {}", cut(c.seen()));
        if !c.remedy().is_empty() {
            let _ = write!(text, "; {}", cut(c.remedy()));
        }
    }
    match bad.len().saturating_sub(FINDINGS) {
        0 => {}
        more => {
            let _ = write!(text, ". And {more} more: pveletctl doctor {host}");
        }
    }
    text
}

fn cut(text: &str) -> String {
    if text.chars().count() <= SEEN_MAX { text.to_owned() } else { text.chars().take(SEEN_MAX - 3).chain("...".chars()).collect() }
}

/// Whether the clocks are in sync. Once they are not, they must come closer than they may get apart.
fn clock(clock: Option<Clock>, apart: &mut bool) -> Verdict {
    let Some(Clock { ahead, error }) = clock else {
        return Verdict::new(Level::Unknown, "NotMeasured", "the host's clock has not been compared yet");
    };
    let least = ahead.abs().saturating_sub(error);
    let limit = if *apart { CLOCKS_TOGETHER } else { CLOCKS_APART };
    *apart = least > limit;
    if !*apart {
        return Verdict::new(Level::Well, "InSync", "");
    }
    let (reason, way) = if ahead > 0 { ("ClockAhead", "ahead of") } else { ("ClockBehind", "behind") };
    // Coarse, so that a clock that drifts is not told anew at each look.
    let far = match ahead.abs() {
        ..10_000 => "1 s",
        10_000..60_000 => "10 s",
        60_000..600_000 => "a minute",
        600_000..86_400_000 => "10 minutes",
        _ => "a day",
    };
    let message = format!(
        "the host's clock is more than {far} {way} the controller's; look at both: timedatectl, chronyc tracking. \
         Certificates and leases depend on it"
    );
    Verdict::new(Level::Failed, reason, message)
}

/// What a host's conditions of health remember from one pass to the next.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    shown: BTreeMap<&'static str, Steady>,
    clocks_apart: bool,
}

impl Conditions {
    /// The conditions as they are to be told now, and when to look again though nothing happens. `up` tells whether there is a connection.
    pub(super) fn settle(
        &mut self,
        host: &str,
        up: bool,
        sight: &HealthSight,
        now: Timestamp,
    ) -> (Vec<(&'static str, Verdict)>, Option<Timestamp>) {
        let all = CONDITIONS.iter().map(|(_, kind)| *kind).chain(["ClockInSync"]);
        let away = |reason: &str, message: &str| {
            let verdict = Verdict::new(Level::Unknown, reason, message);
            all.clone().map(|kind| (kind, verdict.clone())).collect::<Vec<_>>()
        };
        let health = match sight {
            _ if !up => {
                *self = Self::default();
                return (away("NotReachable", ""), None);
            }
            HealthSight::Told(health) => health,
            HealthSight::Awaited => return (away("Awaited", "the agent has not told it yet"), None),
            HealthSight::NotOffered => {
                *self = Self::default();
                return (away("NotOffered", "the agent does not tell its host's health yet; upgrade pvelet-agent there"), None);
            }
            HealthSight::Lost(why) => {
                *self = Self::default();
                return (away("NotTold", why), None);
            }
        };
        let mut due: Option<Timestamp> = None;
        let mut told = Vec::new();
        let clock = clock(health.clock, &mut self.clocks_apart);
        let found = CONDITIONS.iter().map(|(group, kind)| (*kind, health.verdict(host, &[group]))).chain([("ClockInSync", clock)]);
        for (kind, verdict) in found {
            let (shown, again) = self.shown.entry(kind).or_default().settle(verdict, now);
            told.push((kind, shown));
            due = due.into_iter().chain(again).min();
        }
        (told, due)
    }
}

impl HealthSight {
    /// Whether nothing more is to come soon: the checks are told, and how far the clock is off.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Awaited => false,
            Self::Told(health) => health.clock.is_some(),
            Self::NotOffered | Self::Lost(_) => true,
        }
    }

    /// Why nothing is repaired on the host any more.
    pub(super) fn latch(&self) -> Option<&str> {
        match self {
            Self::Told(health) => health.latch.as_deref(),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
