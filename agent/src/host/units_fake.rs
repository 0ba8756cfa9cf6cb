//! Units in memory, for tests.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::broadcast;

use super::units::{UnitState, Units};
use crate::error::{Error, Trouble};

/// What a restart of a unit comes to.
type Restart = Arc<dyn Fn() -> Result<UnitState, Error> + Send + Sync>;

#[derive(Default)]
struct Inner {
    units: BTreeMap<String, UnitState>,
    /// By unit; others run after a restart.
    on_restart: BTreeMap<String, Restart>,
    restarted: Vec<String>,
    stopped: Vec<String>,
    failing: Option<Error>,
    silent: bool,
}

/// Units of a systemd that only has what a test puts into it.
pub struct FakeUnits {
    inner: Mutex<Inner>,
    changes: broadcast::Sender<String>,
}

impl FakeUnits {
    /// How many changes a reader may lag behind.
    const BACKLOG: usize = 64;

    /// Without any unit.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), changes: broadcast::channel(Self::BACKLOG).0 })
    }

    /// With these units running.
    pub fn with(units: &[&str]) -> Arc<Self> {
        let this = Self::new();
        units.iter().for_each(|unit| this.set(unit, Self::running()));
        this
    }

    /// A unit that is enabled and runs.
    pub fn running() -> UnitState {
        UnitState {
            load: "loaded".into(),
            active: "active".into(),
            sub: "running".into(),
            enabled: "enabled".into(),
            result: "success".into(),
            pid: 4711,
            since: Some(SystemTime::UNIX_EPOCH),
            ..UnitState::default()
        }
    }

    /// A unit that has ended with an exit status other than 0.
    pub fn dead() -> UnitState {
        let (active, sub, result) = ("failed".into(), "failed".into(), "exit-code".into());
        UnitState { active, sub, result, status: 1, pid: 0, ..Self::running() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a unit into a state and tells those who watch.
    pub fn set(&self, unit: &str, state: UnitState) {
        self.lock().units.insert(unit.to_owned(), state);
        let _ = self.changes.send(unit.to_owned());
    }

    /// Takes a unit away.
    pub fn remove(&self, unit: &str) {
        self.lock().units.remove(unit);
        let _ = self.changes.send(unit.to_owned());
    }

    /// Tells those who watch that a unit may have changed.
    pub fn stir(&self, unit: &str) {
        let _ = self.changes.send(unit.to_owned());
    }

    /// Every call ends with this error; `None`: no longer.
    pub fn fail(&self, error: Option<Error>) {
        self.lock().failing = error;
    }

    /// No call ever ends.
    pub fn silence(&self, silent: bool) {
        self.lock().silent = silent;
    }

    /// What a restart of this unit comes to, instead of that it runs.
    pub fn on_restart(&self, unit: &str, outcome: impl Fn() -> Result<UnitState, Error> + Send + Sync + 'static) {
        self.lock().on_restart.insert(unit.to_owned(), Arc::new(outcome));
    }

    /// The units that were restarted, in order.
    pub fn restarted(&self) -> Vec<String> {
        self.lock().restarted.clone()
    }

    /// The units that were stopped, in order.
    pub fn stopped(&self) -> Vec<String> {
        self.lock().stopped.clone()
    }

    async fn answer(&self) -> Result<(), Error> {
        let (silent, failing) = {
            let inner = self.lock();
            (inner.silent, inner.failing.clone())
        };
        if silent {
            std::future::pending::<()>().await;
        }
        failing.map_or(Ok(()), Err)
    }
}

#[tonic::async_trait]
impl Units for FakeUnits {
    async fn state(&self, unit: &str) -> Result<UnitState, Error> {
        self.answer().await?;
        let none = || UnitState { load: "not-found".into(), active: "inactive".into(), sub: "dead".into(), ..UnitState::default() };
        Ok(self.lock().units.get(unit).cloned().unwrap_or_else(none))
    }

    async fn restart(&self, unit: &str, _: Duration) -> Result<(), Error> {
        self.answer().await?;
        let outcome = {
            let mut inner = self.lock();
            inner.restarted.push(unit.to_owned());
            if !inner.units.contains_key(unit) {
                return Err(Error::Look { trouble: Trouble::Missing, message: format!("there is no unit {unit}") });
            }
            inner.on_restart.get(unit).cloned()
        };
        let state = outcome.map_or_else(|| Ok(Self::running()), |outcome| outcome())?;
        self.set(unit, state);
        Ok(())
    }

    async fn stop(&self, unit: &str, _: Duration) -> Result<(), Error> {
        self.answer().await?;
        let state = {
            let mut inner = self.lock();
            inner.stopped.push(unit.to_owned());
            inner.units.get(unit).cloned()
        };
        if let Some(state) = state {
            let (active, sub, result) = ("inactive".into(), "dead".into(), "success".into());
            self.set(unit, UnitState { active, sub, result, pid: 0, ..state });
        }
        Ok(())
    }

    fn changes(&self) -> broadcast::Receiver<String> {
        self.changes.subscribe()
    }
}
