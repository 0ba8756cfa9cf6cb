//! Units of systemd, over D-Bus: asked without starting a process, and told of changes.

mod bus;
mod shared;
mod systemd;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use tokio::sync::broadcast;

pub use systemd::SystemdUnits;

use crate::error::Error;

/// How a unit stands (properties of `org.freedesktop.systemd1.Unit` and `.Service`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitState {
    /// `LoadState`: "loaded", "not-found", "masked", ...
    pub load: String,
    /// `ActiveState`: "active", "inactive", "failed", "activating", "deactivating", ...
    pub active: String,
    /// `SubState`: "running", "dead", "auto-restart", ...
    pub sub: String,
    /// `UnitFileState`: "enabled", "disabled", "static", ...
    pub enabled: String,
    /// `Result`: "success", "exit-code", "signal", "watchdog", "start-limit-hit", ...
    pub result: String,
    /// `ExecMainStatus` of the last run: exit status or signal.
    pub status: i32,
    /// `NRestarts`: restarts by systemd since it was last started by hand.
    pub restarts: u32,
    /// `MainPID`; 0: none.
    pub pid: u32,
    /// `StateChangeTimestamp`.
    pub since: Option<SystemTime>,
}

impl UnitState {
    /// Whether there is such a unit.
    pub fn exists(&self) -> bool {
        self.load == "loaded" || self.load == "masked"
    }
}

/// Units of systemd. Every call has a deadline of its own. Errors of all: `Look`.
#[tonic::async_trait]
pub trait Units: Send + Sync + 'static {
    /// How a unit stands; one that does not exist has load "not-found". Several that ask at about the same time may share one answer, no older
    /// than a second, and none from before a change that was told or made.
    async fn state(&self, unit: &str) -> Result<UnitState, Error>;

    /// Restarts a unit (starts it, when it is stopped; clears its start limit before) and waits until the job has ended, no longer than
    /// `patience`. Errors: also when the job ended otherwise than "done".
    async fn restart(&self, unit: &str, patience: Duration) -> Result<(), Error>;

    /// Stops a unit and waits until the job has ended, no longer than `patience`. Stopped already, or no such unit: a success.
    async fn stop(&self, unit: &str, patience: Duration) -> Result<(), Error>;

    /// Names of units whose state has changed, or may have (after a reconnection all are told with an empty name).
    fn changes(&self) -> broadcast::Receiver<String>;
}
