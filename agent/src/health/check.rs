//! What a check is, and how it came out.

use std::time::{Duration, SystemTime};

/// How a check came out, from well to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It does not concern this host.
    NotApplicable,
    /// Well.
    Ok,
    /// It could not be found out. Never taken for well.
    Unknown,
    /// It works, but something will hurt.
    Degraded,
    /// Something does not work.
    Failed,
}

/// Whose health it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// The container runtime.
    Containerd,
    /// The kubelet.
    Kubelet,
    /// PVE and the machine.
    Host,
    /// The preflight checks of the network.
    Network,
    /// The agent itself.
    Agent,
}

impl Group {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 5] = [Self::Containerd, Self::Kubelet, Self::Host, Self::Network, Self::Agent];

    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::Host => "host",
            Self::Network => "network",
            Self::Agent => "agent",
        }
    }
}

/// A check: what is the same each time it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// Stable: `<group>.<words>`, those of the network's preflight `net.<words>`.
    pub id: &'static str,
    /// Whose health it is.
    pub group: Group,
    /// Why it matters: one sentence.
    pub why: &'static str,
}

/// What the agent can do about a finding.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Mend {
    /// Edit containerd's configuration, then restart it.
    ContainerdConfig,
    /// Restart this unit of systemd.
    RestartUnit(String),
}

impl std::fmt::Display for Mend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ContainerdConfig => f.write_str("edit containerd's configuration and restart it"),
            Self::RestartUnit(unit) => write!(f, "restart {unit}"),
        }
    }
}

/// What one run of a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The check's id.
    pub id: &'static str,
    /// How it came out.
    pub state: State,
    /// What was seen: values and names, no advice. At most about 500 characters; free of secrets.
    pub seen: String,
    /// What a person can do; empty when nothing needs to be done.
    pub remedy: String,
    /// What it is about: units, files, storages, interfaces.
    pub subjects: Vec<String>,
    /// What the agent can do about it.
    pub mend: Option<Mend>,
}

impl Finding {
    /// A finding without remedy, subjects and mend.
    pub fn new(id: &'static str, state: State, seen: impl Into<String>) -> Self {
        Self { id, state, seen: seen.into(), remedy: String::new(), subjects: Vec::new(), mend: None }
    }

    /// Well.
    pub fn ok(id: &'static str, seen: impl Into<String>) -> Self {
        Self::new(id, State::Ok, seen)
    }

    /// Not this host's concern; says why.
    pub fn not_applicable(id: &'static str, why: impl Into<String>) -> Self {
        Self::new(id, State::NotApplicable, why)
    }

    /// It could not be found out; says why.
    pub fn unknown(id: &'static str, why: impl Into<String>) -> Self {
        Self::new(id, State::Unknown, why)
    }

    /// It works, but will hurt.
    pub fn degraded(id: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), ..Self::new(id, State::Degraded, seen) }
    }

    /// It does not work.
    pub fn failed(id: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), ..Self::new(id, State::Failed, seen) }
    }

    /// With what it is about.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subjects.push(subject.into());
        self
    }

    /// With what the agent can do about it.
    #[must_use]
    pub fn mended_by(mut self, mend: Mend) -> Self {
        self.mend = Some(mend);
        self
    }
}

/// How often a source is asked, and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From one run to the next.
    pub period: Duration,
    /// After which a run is given up: its checks are then unknown.
    pub deadline: Duration,
}

/// One look at the host from which one or several checks come out.
///
/// A source runs in a task of its own: nothing that it waits for keeps another one from running, and when it panics its checks are unknown.
#[tonic::async_trait]
pub trait Source: Send + Sync + 'static {
    /// For logs and metrics.
    fn name(&self) -> &'static str;

    /// The checks that come out of it; each run tells a finding for each of them. What a run leaves out is unknown.
    fn checks(&self) -> &'static [Check];

    /// How often, and how long.
    fn pace(&self) -> Pace;

    /// Looks. What blocks goes to a thread of its own (`tokio::task::spawn_blocking`). It may be dropped at any await.
    async fn look(&self) -> Vec<Finding>;

    /// Looks since somebody asked (RunCheck, a repair). By default as ever.
    async fn asked(&self) -> Vec<Finding> {
        self.look().await
    }

    /// Returns when something has changed that makes a look worth while before its time: a unit's state, a file. By default never.
    async fn stirred(&self) {
        std::future::pending::<()>().await;
    }
}

/// A check as it is known: its definition, the last finding, and since when.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// What it is.
    pub check: Check,
    /// What was found last.
    pub finding: Finding,
    /// Since when it is in this state.
    pub since: SystemTime,
    /// When it last ran; `None`: not yet.
    pub observed: Option<SystemTime>,
}
