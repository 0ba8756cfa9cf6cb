//! What the kubelet complains of in its journal.

mod mask;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use self::table::{Class, Lasts};
use super::setup::{Reader, Standing};
use crate::{
    health::{Check, Finding, Group, Pace, Source},
    host::{
        clock::Clock,
        journal::{Entry, Journal, Page, Query},
    },
};

const ERRORS: &str = "kubelet.errors";
const CHECKS: [Check; 1] = [Check {
    id: ERRORS,
    group: Group::Kubelet,
    why: "The kubelet's Node may be Ready while no pod of it starts; its journal says so first, and why.",
}];

/// What is older is over.
const WINDOW: Duration = Duration::from_secs(600);
/// An error that lasts is repeated within this time.
const FRESH: Duration = Duration::from_secs(120);
/// What has lasted for that long, and came so often, is not the restart of something.
const LASTING: Duration = Duration::from_secs(30);
const OFTEN: usize = 3;
/// A quoted line stays for that long, so that watchers are not told of each new one.
const QUOTED: Duration = Duration::from_secs(60);
/// The most that is read at once: a kubelet that complains of 28 pods writes about 20 lines a second.
const ENTRIES: usize = 2000;
const BYTES: usize = 1 << 20;
/// The most times that are kept of a class.
const TIMES: usize = 200;
/// How long the journal may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads the journal.
pub(super) struct ErrorsSource {
    reader: Arc<Reader>,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    recent: Mutex<Recent>,
}

impl ErrorsSource {
    pub(super) fn new(reader: Arc<Reader>, journal: Arc<dyn Journal>, clock: Arc<dyn Clock>) -> Self {
        Self { reader, journal, clock, recent: Mutex::default() }
    }
}

#[tonic::async_trait]
impl Source for ErrorsSource {
    fn name(&self) -> &'static str {
        "kubelet-errors"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        super::pace(self.reader.settings.period)
    }

    async fn look(&self) -> Vec<Finding> {
        if let Standing::No(why) = self.reader.read().await {
            return super::none(&CHECKS, &why);
        }
        let unit = &self.reader.settings.kubelet_unit;
        let (now, recent) = (self.clock.now(), || self.recent.lock().unwrap_or_else(PoisonError::into_inner));
        let after = recent().cursor.clone();
        let since = now.checked_sub(WINDOW).unwrap_or(SystemTime::UNIX_EPOCH);
        let query = Query { unit: unit.clone(), since, after, entries: ENTRIES, bytes: BYTES };
        let finding = match self.journal.read(query, PATIENCE).await {
            Err(e) => Finding {
                remedy: format!("journalctl -u {unit} -n 5; systemctl status systemd-journald"),
                ..Finding::unknown(ERRORS, e.to_string())
            },
            Ok(page) => {
                let mut recent = recent();
                recent.add(page, now);
                recent.judge(now)
            }
        };
        vec![finding.about(unit)]
    }
}

/// Errors of one class.
#[derive(Debug)]
struct Kind {
    class: &'static Class,
    /// When, oldest first; no more than [`TIMES`].
    times: VecDeque<SystemTime>,
    /// The line that is quoted, and of when it is.
    example: (SystemTime, String),
}

/// The errors of the last minutes.
#[derive(Debug, Default)]
struct Recent {
    cursor: Option<String>,
    kinds: BTreeMap<&'static str, Kind>,
}

impl Recent {
    fn add(&mut self, page: Page, now: SystemTime) {
        self.cursor = page.cursor;
        for Entry { time, message } in page.entries {
            let Some(class) = table::classify(&message) else { continue };
            // A clock that was set back must not make an error last for ever.
            let time = time.min(now);
            let kind = self.kinds.entry(class.name).or_insert_with(|| Kind {
                class,
                times: VecDeque::new(),
                example: (time, mask::shown(&message)),
            });
            kind.times.push_back(time);
            if kind.times.len() > TIMES {
                // The first tells how long it lasts.
                kind.times.remove(1);
            }
            if time >= kind.example.0 + QUOTED {
                kind.example = (time, mask::shown(&message));
            }
        }
        let begin = now.checked_sub(WINDOW).unwrap_or(SystemTime::UNIX_EPOCH);
        self.kinds.retain(|_, kind| {
            while kind.times.front().is_some_and(|t| *t < begin || *t > now) {
                kind.times.pop_front();
            }
            !kind.times.is_empty()
        });
    }

    fn judge(&self, now: SystemTime) -> Finding {
        let mut lasting: Vec<&Kind> = self.kinds.values().filter(|k| k.lasts(now)).collect();
        // The worst first; of those the one that names a cause.
        let place = |k: &Kind| table::CLASSES.iter().position(|c| c.name == k.class.name);
        lasting.sort_by_key(|k| (std::cmp::Reverse(k.class.state), place(k)));
        let Some(worst) = lasting.first() else {
            let seen = match self.kinds.len() {
                0 => "no known error in the journal of the last 10 minutes".to_owned(),
                _ => format!(
                    "errors of the last 10 minutes that did not last: {}",
                    self.kinds.keys().copied().collect::<Vec<_>>().join(", ")
                ),
            };
            return Finding::ok(ERRORS, seen);
        };
        let quote = &worst.example.1;
        let mut seen = format!("{}: {} ({} in 10 minutes): {quote}", worst.class.name, worst.class.cause, often(worst.times.len()));
        let others: Vec<&str> = lasting[1..].iter().map(|k| k.class.name).collect();
        if !others.is_empty() {
            seen.push_str(&format!("; also: {}", others.join(", ")));
        }
        let state = worst.class.state;
        Finding { remedy: worst.class.remedy.to_owned(), ..Finding::new(ERRORS, state, seen) }
    }
}

impl Kind {
    /// Whether it goes on.
    fn lasts(&self, now: SystemTime) -> bool {
        let (Some(first), Some(last)) = (self.times.front(), self.times.back()) else { return false };
        let fresh = now.duration_since(*last).unwrap_or_default() <= FRESH;
        fresh
            && match self.class.lasts {
                Lasts::Ends => true,
                Lasts::Repeats => self.times.len() >= OFTEN && last.duration_since(*first).unwrap_or_default() >= LASTING,
            }
    }
}

/// A count that does not change with each new line.
fn often(count: usize) -> &'static str {
    match count {
        0 | 1 => "once",
        2..=9 => "several times",
        10..=99 => "more than 10 times",
        _ => "more than 100 times",
    }
}
