//! A containerd as a unit, without systemd.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use pvelet_agent::{
    error::{Error, Trouble},
    host::units::{UnitState, Units},
};
use tokio::sync::broadcast;

use super::Containerd;

/// Answers for one unit by a containerd, and restarts it. No other unit exists. It does not restart it by itself.
#[derive(Debug)]
pub struct Supervisor {
    unit: String,
    containerd: Arc<Containerd>,
    changes: broadcast::Sender<String>,
}

impl Supervisor {
    /// For a containerd as this unit.
    pub fn new(unit: impl Into<String>, containerd: Arc<Containerd>) -> Arc<Self> {
        Arc::new(Self { unit: unit.into(), containerd, changes: broadcast::channel(64).0 })
    }

    fn changed(&self) {
        let _ = self.changes.send(self.unit.clone());
    }

    fn known(&self, unit: &str) -> Result<(), Error> {
        if unit == self.unit {
            return Ok(());
        }
        Err(Error::Look { trouble: Trouble::Missing, message: format!("there is no unit {unit}") })
    }
}

#[tonic::async_trait]
impl Units for Supervisor {
    async fn state(&self, unit: &str) -> Result<UnitState, Error> {
        if unit != self.unit {
            return Ok(UnitState { load: "not-found".into(), active: "inactive".into(), sub: "dead".into(), ..UnitState::default() });
        }
        let pid = self.containerd.pid();
        let (active, sub) = if pid.is_some() { ("active", "running") } else { ("inactive", "dead") };
        Ok(UnitState {
            load: "loaded".into(),
            active: active.into(),
            sub: sub.into(),
            enabled: "enabled".into(),
            result: "success".into(),
            pid: pid.unwrap_or(0),
            since: Some(SystemTime::now()),
            ..UnitState::default()
        })
    }

    async fn restart(&self, unit: &str, patience: Duration) -> Result<(), Error> {
        self.known(unit)?;
        self.containerd.stop();
        self.changed();
        let launched = tokio::time::timeout(patience, self.containerd.launch()).await;
        self.changed();
        match launched {
            Ok(Ok(())) => Ok(()),
            Ok(Err(said)) => {
                Err(Error::Look { trouble: Trouble::Failed, message: format!("the job of {unit} ended with \"failed\": {said}") })
            }
            Err(_) => Err(Error::Look { trouble: Trouble::Silent, message: format!("{unit} did not start within {patience:?}") }),
        }
    }

    async fn stop(&self, unit: &str, _: Duration) -> Result<(), Error> {
        if unit == self.unit {
            self.containerd.stop();
            self.changed();
        }
        Ok(())
    }

    fn changes(&self) -> broadcast::Receiver<String> {
        self.changes.subscribe()
    }
}
