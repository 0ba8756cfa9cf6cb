//! What takes PVE or the kernel some time to tell: storages, bridges, load. Kept for a few seconds and read again only while somebody asks.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pvelet_proto::v1;
use tokio::{
    sync::watch as channel,
    time::{Instant, timeout},
};

use crate::host::{
    facts::{Facts, HostFacts},
    links::Links,
    pve::{Pve, StorageInfo},
};

/// What is older is read again in the background, while the old is still answered: nobody waits, as long as somebody asks often enough.
const REFRESH_AFTER: Duration = Duration::from_secs(5);
/// What is older is waited for.
const MAX_AGE: Duration = Duration::from_secs(10);
/// But no longer than this: then the last known is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// The facts of one reading.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    pub(super) storages: Vec<v1::Storage>,
    pub(super) bridges: Vec<v1::Bridge>,
    pub(super) facts: HostFacts,
}

struct State {
    reading: Arc<Reading>,
    /// When it was read; `None` before the first time.
    at: Option<Instant>,
    busy: bool,
    /// Something has changed while a reading was under way, which may have missed it.
    again: bool,
}

struct Inner {
    pve: Arc<dyn Pve>,
    links: Arc<dyn Links>,
    facts: Arc<dyn Facts>,
    state: Mutex<State>,
    /// Told after each reading.
    done: channel::Sender<()>,
    /// Told when storages, bridges or the host's state are others than before.
    changed: channel::Sender<()>,
}

/// The facts, and their refreshing.
pub(super) struct Slow(Arc<Inner>);

impl Slow {
    pub(super) fn new(pve: Arc<dyn Pve>, links: Arc<dyn Links>, facts: Arc<dyn Facts>, changed: channel::Sender<()>) -> Self {
        let state = Mutex::new(State { reading: Arc::default(), at: None, busy: false, again: false });
        Self(Arc::new(Inner { pve, links, facts, state, done: channel::channel(()).0, changed }))
    }

    /// The facts, at most ten seconds old; older only when they cannot be read.
    pub(super) async fn get(&self) -> Arc<Reading> {
        let (reading, age) = self.0.peek();
        if age.is_some_and(|a| a < REFRESH_AFTER) {
            return reading;
        }
        let mut done = self.0.done.subscribe();
        self.refresh();
        if age.is_some_and(|a| a < MAX_AGE) {
            return reading;
        }
        // Too late is an answer too: the last known.
        let _ = timeout(PATIENCE, done.changed()).await;
        self.0.peek().0
    }

    /// The facts as they are known; what is old is read again in the background.
    pub(super) fn now(&self) -> Arc<Reading> {
        let (reading, age) = self.0.peek();
        if age.is_none_or(|a| a >= REFRESH_AFTER) {
            self.refresh();
        }
        reading
    }

    /// Reads now, and whenever a shutdown may have been scheduled or withdrawn, for ever.
    pub(super) async fn follow_shutdown(&self) {
        loop {
            // First the watch, then the reading: nothing falls between the two.
            let change = self.0.facts.shutdown_changes();
            self.0.state.lock().unwrap_or_else(PoisonError::into_inner).again = true;
            self.refresh();
            change.await;
        }
    }

    /// Begins a reading, unless one is under way.
    fn refresh(&self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut state.busy, true) {
            let inner = self.0.clone();
            tokio::spawn(async move { while inner.clone().read().await {} });
        }
    }
}

impl Inner {
    fn peek(&self) -> (Arc<Reading>, Option<Duration>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.reading.clone(), state.at.map(|at| at.elapsed()))
    }

    /// One reading. Returns whether another one is needed.
    async fn read(self: Arc<Self>) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).again = false;
        let last = self.peek().0;
        let of_kernel = {
            let this = self.clone();
            tokio::task::spawn_blocking(move || (this.links.bridges(), this.facts.read()))
        };
        let (storages, of_kernel) = tokio::join!(self.pve.storages(), of_kernel);
        let mut reading = Reading::clone(&last);
        match storages {
            Ok(list) => reading.storages = list.into_iter().map(storage).collect(),
            Err(error) => tracing::debug!(%error, "storages cannot be read; the last known are told"),
        }
        // Fails only when the runtime ends.
        if let Ok((bridges, facts)) = of_kernel {
            match bridges {
                Ok(list) => {
                    let bridge = |b: crate::host::links::BridgeInfo| v1::Bridge { name: b.name, vlan_aware: b.vlan_aware, up: b.up };
                    reading.bridges = list.into_iter().map(bridge).collect();
                }
                Err(error) => tracing::debug!(%error, "bridges cannot be read; the last known are told"),
            }
            reading.facts = facts;
        }
        let differs = structure(&reading) != structure(&last);
        let again = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let again = state.again;
            *state = State { reading: Arc::new(reading), at: Some(Instant::now()), busy: again, again };
            again
        };
        self.done.send_replace(());
        if differs {
            self.changed.send_replace(());
        }
        again
    }
}

/// What of the facts is worth an event: not how full or how busy it is.
fn structure(reading: &Reading) -> (Vec<v1::Storage>, &[v1::Bridge], bool) {
    let without_sizes = |s: &v1::Storage| v1::Storage { total_bytes: 0, available_bytes: 0, ..s.clone() };
    (reading.storages.iter().map(without_sizes).collect(), &reading.bridges, reading.facts.shutdown_scheduled)
}

/// A storage as the API shows it.
pub(crate) fn storage(s: StorageInfo) -> v1::Storage {
    v1::Storage {
        id: s.id,
        r#type: s.kind,
        content: s.content,
        active: s.active,
        enabled: s.enabled,
        shared: s.shared,
        total_bytes: s.total,
        available_bytes: s.available,
    }
}
