//! Health: what works on the host and what does not; and what the agent can mend.
//!
//! A [`Source`] looks at something and tells findings; a task for each asks it at its own pace, so that none waits for another. What is known
//! of each check lies on a board in memory, from which everybody is answered. Meaning is decided by pure functions from what was read; reading
//! is the business of [`crate::host`].

mod agent;
mod board;
pub mod check;
pub mod containerd;
pub mod kubelet;
pub mod machine;
mod network;
pub mod repair;
mod schedule;
#[cfg(test)]
pub(crate) mod testing;
pub mod view;
mod watch;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
};

use pvelet_proto::reason;
use tokio::sync::{broadcast, watch as channel};

pub use agent::{CHECKS as AGENT_CHECKS, Own};
pub use board::{Change, Overall};
pub use check::{Check, Finding, Group, Known, Mend, Pace, Source, State};
pub use network::Preflight;
pub use watch::RepairStatus;

use crate::{
    error::Error,
    host::{clock::Clock, record::Record, runtime::RuntimeFiles, units::Units},
    metrics::Metrics,
};
use board::Board;
use schedule::Worker;

/// What the health of the host is read from, beside the network and the agent itself, and mended with.
pub struct Outside {
    /// What is looked at.
    pub sources: Vec<Arc<dyn Source>>,
    /// The units that are restarted.
    pub units: Arc<dyn Units>,
    /// containerd's files.
    pub files: Arc<dyn RuntimeFiles>,
    /// Knows how they are mended.
    pub mender: Arc<dyn repair::Mender>,
    /// Where it is kept what repairs came to.
    pub record: Arc<dyn Record>,
}

/// Names in one RunCheck.
const NAMES: usize = 200;

/// The health of this host. Cheap to clone; with the last clone its sources stop looking.
#[derive(Clone)]
pub struct Health {
    inner: Arc<Inner>,
}

struct Inner {
    board: Arc<Board>,
    workers: Vec<Worker>,
    clock: Arc<dyn Clock>,
    /// Messages of all streams so far.
    told: AtomicU64,
}

impl Health {
    /// Starts to look; each source has looked once within the first seconds. Must be called on a runtime.
    pub fn start(sources: Vec<Arc<dyn Source>>, clock: Arc<dyn Clock>, metrics: &Arc<Metrics>) -> Self {
        let checks = sources.iter().flat_map(|s| s.checks()).copied();
        let board = Arc::new(Board::new(checks, Arc::clone(&clock), Arc::clone(metrics)));
        let workers = schedule::start(sources, &board, metrics);
        Self { inner: Arc::new(Inner { board, workers, clock, told: AtomicU64::new(0) }) }
    }

    /// No source looks any more; what is known is still told.
    pub fn stop(&self) {
        self.inner.workers.iter().for_each(Worker::stop);
    }

    /// All checks as they are known, by group and id. From memory.
    pub fn known(&self) -> Vec<Known> {
        self.inner.board.all().1
    }

    /// All checks, and how they are together. From memory.
    pub fn all(&self) -> (Overall, Vec<Known>) {
        self.inner.board.all()
    }

    /// One check; `None`: there is none of this id.
    pub fn one(&self, id: &str) -> Option<Known> {
        self.inner.board.one(id)
    }

    /// How all checks are together.
    pub fn overall(&self) -> Overall {
        self.inner.board.overall()
    }

    /// How the checks of each group are together.
    pub fn groups(&self) -> [(Group, State); Group::ALL.len()] {
        self.inner.board.groups()
    }

    /// The board's revision, which grows with each change of a state or text.
    pub fn changes(&self) -> channel::Receiver<u64> {
        self.inner.board.revision()
    }

    /// All checks and, without a gap, what changes from then on. A reader that lags too far behind is told so.
    pub fn follow(&self) -> (Change, broadcast::Receiver<Arc<Change>>) {
        self.inner.board.follow()
    }

    /// Runs checks now and returns them as they are after it: those named by id or group, and those that come out of the same look.
    ///
    /// # Errors
    /// `CheckNotFound`; `Invalid` for none or more than 200 names; `AgentDraining`.
    pub async fn run(&self, names: &[String]) -> Result<Vec<Known>, Error> {
        if names.is_empty() || names.len() > NAMES {
            let text = format!("{} names are given; name 1 to {NAMES} checks or groups", names.len());
            return Err(Error::invalid("checks", reason::INVALID_FIELD, text));
        }
        let mut wanted = BTreeSet::new();
        for name in names {
            let named = |check: &Check| check.id == name || check.group.as_str() == name;
            let sources = (0..).zip(&self.inner.workers).filter(|(_, w)| w.checks.iter().any(named));
            let mut sources = sources.map(|(n, _): (usize, _)| n).peekable();
            if sources.peek().is_none() {
                return Err(Error::CheckNotFound { id: name.chars().take(128).collect() });
            }
            wanted.extend(sources);
        }
        let workers = || wanted.iter().map(|n| &self.inner.workers[*n]);
        let ended = futures_util::future::join_all(workers().map(Worker::run)).await;
        if ended.contains(&false) {
            return Err(Error::AgentDraining);
        }
        let ids: BTreeSet<&str> = workers().flat_map(|w| w.checks).map(|c| c.id).collect();
        Ok(self.known().into_iter().filter(|k| ids.contains(k.check.id)).collect())
    }
}
