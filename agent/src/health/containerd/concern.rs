//! Whether containerd concerns this host, and how much.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{FactsLook, config::other_runtime};
use crate::{
    config::{self, Worker},
    error::{Error, Trouble},
    health::Finding,
    host::{
        runtime::RuntimeFiles,
        units::{UnitState, Units},
    },
};

/// What this host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// No worker, and it has no containerd: says why.
    Nothing(String),
    /// It has a containerd, but no kubelet, or one with another runtime: containerd serves something else, such as Docker, and need not be fit
    /// for pods. Says why.
    Alone(String),
    /// A Kubernetes worker.
    Worker,
}

/// What is needed to find that out.
pub(super) struct Concern {
    worker: Worker,
    pub(super) unit: String,
    pub(super) socket: PathBuf,
    config: PathBuf,
    facts: FactsLook,
    pub(super) files: Arc<dyn RuntimeFiles>,
    pub(super) units: Arc<dyn Units>,
}

impl Concern {
    pub(super) fn new(settings: &config::Health, files: Arc<dyn RuntimeFiles>, units: Arc<dyn Units>, facts: FactsLook) -> Self {
        Self {
            worker: settings.worker,
            unit: settings.containerd_unit.clone(),
            socket: settings.containerd_socket.clone(),
            config: settings.containerd_config.clone(),
            facts,
            files,
            units,
        }
    }

    /// Whether nothing is to be looked at.
    pub(super) fn off(&self) -> Option<&'static str> {
        (self.worker == Worker::No).then_some("this host is no worker (health.worker = \"no\")")
    }

    /// What this host is. Only asked when something is not well: then it decides whether that matters.
    pub(super) async fn role(&self) -> Result<Role, Error> {
        if let Some(why) = self.off() {
            return Ok(Role::Nothing(why.to_owned()));
        }
        let told = self.worker == Worker::Yes;
        // A kubelet may have another runtime than containerd, which then serves something else, or is not there.
        let why = match (self.facts)().await {
            Ok(kubelet) => other_runtime(&kubelet),
            Err(why) => Some(format!("no kubelet here needs it: {why}")).filter(|_| !told),
        };
        if told || self.containerd().await? {
            return Ok(why.map_or(Role::Worker, Role::Alone));
        }
        let (unit, socket, config) = (&self.unit, self.socket.display(), self.config.display());
        Ok(Role::Nothing(format!("there is no containerd here: neither {unit} nor {socket} nor {config}")))
    }

    async fn containerd(&self) -> Result<bool, Error> {
        Ok(self.there(&self.unit, &self.config).await? || self.named(&self.socket).await?)
    }

    async fn there(&self, unit: &str, file: &Path) -> Result<bool, Error> {
        Ok(self.unit(unit).await?.is_some_and(|s| s.exists()) || self.named(file).await?)
    }

    /// The state of a unit; `None`: there is no systemd.
    async fn unit(&self, unit: &str) -> Result<Option<UnitState>, Error> {
        match self.units.state(unit).await {
            Ok(state) => Ok(Some(state)),
            Err(Error::Look { trouble: Trouble::Missing, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn named(&self, file: &Path) -> Result<bool, Error> {
        let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else { return Ok(false) };
        Ok(self.files.list(folder).await?.is_some_and(|names| names.iter().any(|n| n.as_str() == name)))
    }

    /// Findings of what is not well, as they are for this host: not its concern where it has nothing to do with pods.
    pub(super) async fn judged(&self, findings: Vec<Finding>) -> Vec<Finding> {
        let fine = |f: &Finding| matches!(f.state, crate::health::State::Ok | crate::health::State::NotApplicable);
        if findings.iter().all(fine) {
            return findings;
        }
        // What cannot be found out changes nothing.
        let role = self.role().await.unwrap_or(Role::Worker);
        let (Role::Nothing(why) | Role::Alone(why)) = role else { return findings };
        findings.into_iter().map(|f| if fine(&f) { f } else { Finding::not_applicable(f.id, why.clone()) }).collect()
    }

    /// Returns when the unit may have changed.
    pub(super) async fn unit_changed(&self) {
        let mut changes = self.units.changes();
        loop {
            match changes.recv().await {
                // Without a name: any may have changed.
                Ok(unit) if unit.is_empty() || unit == self.unit => return,
                Ok(_) => {}
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => return,
                Err(tokio::sync::broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

/// The trouble of a look and what is told of it.
pub(super) fn trouble(error: &Error) -> (Trouble, String) {
    match error {
        Error::Look { trouble, message } => (*trouble, message.clone()),
        other => (Trouble::Failed, other.to_string()),
    }
}

/// Does not return before `back` changes.
pub(super) async fn changed(mut back: tokio::sync::watch::Receiver<u64>) {
    if back.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
