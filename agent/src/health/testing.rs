//! Sources that a test tells what to find, and a clock that goes with tokio's.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{Check, Finding, Group, Health, Pace, Source};
use crate::{host::clock::Clock, metrics::Metrics};

/// When tests begin.
pub(crate) const BEGIN: SystemTime = SystemTime::UNIX_EPOCH;

/// A wall clock that begins at [`BEGIN`] and goes as tokio's does, paused or not.
pub(crate) struct PausedClock(Instant);

impl PausedClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Instant::now()))
    }
}

impl Clock for PausedClock {
    fn now(&self) -> SystemTime {
        BEGIN + self.0.elapsed()
    }
}

pub(crate) const fn check(id: &'static str, group: Group) -> Check {
    Check { id, group, why: "it matters" }
}

/// What a look comes to.
#[derive(Clone)]
pub(crate) enum Look {
    Find(Vec<Finding>),
    Hang,
    Panic(&'static str),
}

/// A source of a test.
pub(crate) struct Told {
    name: &'static str,
    checks: &'static [Check],
    pace: Pace,
    look: Mutex<Look>,
    /// How many looks have begun, and when.
    pub(crate) looks: watch::Sender<Vec<Duration>>,
    begin: Instant,
    pub(crate) stir: Notify,
    /// It is stirred all the time.
    storm: bool,
    /// A look waits for this, once more for each time that it is told; `None`: it does not wait.
    pub(crate) held: Option<Notify>,
}

impl Told {
    pub(crate) fn new(checks: &'static [Check], period: u64, deadline: u64, look: Look) -> Self {
        Self {
            name: checks[0].id,
            checks,
            pace: Pace { period: Duration::from_secs(period), deadline: Duration::from_secs(deadline) },
            look: Mutex::new(look),
            looks: watch::channel(Vec::new()).0,
            begin: Instant::now(),
            stir: Notify::new(),
            storm: false,
            held: None,
        }
    }

    pub(crate) fn stormy(self) -> Self {
        Self { storm: true, ..self }
    }

    pub(crate) fn holding(self) -> Self {
        Self { held: Some(Notify::new()), ..self }
    }

    pub(crate) fn tell(&self, look: Look) {
        *self.look.lock().unwrap() = look;
    }

    /// When it has looked so far, in whole seconds since the start.
    pub(crate) fn seconds(&self) -> Vec<u64> {
        self.looks.borrow().iter().map(Duration::as_secs).collect()
    }
}

#[tonic::async_trait]
impl Source for Told {
    fn name(&self) -> &'static str {
        self.name
    }

    fn checks(&self) -> &'static [Check] {
        self.checks
    }

    fn pace(&self) -> Pace {
        self.pace
    }

    async fn look(&self) -> Vec<Finding> {
        self.looks.send_modify(|l| l.push(self.begin.elapsed()));
        if let Some(held) = &self.held {
            held.notified().await;
        }
        let look = self.look.lock().unwrap().clone();
        match look {
            Look::Find(findings) => findings,
            Look::Hang => std::future::pending().await,
            Look::Panic(message) => panic!("{message}"),
        }
    }

    async fn stirred(&self) {
        if !self.storm {
            self.stir.notified().await;
        }
    }
}

/// Health of these sources, and what it counts.
pub(crate) fn start<const N: usize>(sources: [&Arc<Told>; N]) -> (Health, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let sources = sources.map(|s| Arc::clone(s) as Arc<dyn Source>).to_vec();
    (Health::start(sources, PausedClock::new(), &metrics), metrics)
}

/// What is counted, as text.
pub(crate) fn counted(metrics: &Metrics) -> String {
    metrics.encode(&crate::metrics::Snapshot::default())
}
