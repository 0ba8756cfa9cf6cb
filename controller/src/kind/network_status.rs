//! What the controller knows of a network. Everything needed to go on after a crash stands here, written before the step it is about.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Condition;

/// What is known of the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkStatus {
    /// The generation of the spec this was found for.
    #[serde(default)]
    pub observed_generation: i64,
    /// The tenant it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The number of the last attempt at anything; part of each request id, and stored before the call.
    #[serde(default)]
    pub attempt: u64,
    /// The change under way: at most one, on one host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<NetworkAttempt>,
    /// The hosts, by name: those selected, and those that have the network still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<NetworkHost>,
    /// The host at which it stopped; absent while nothing is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_host: Option<String>,
    /// `Ready`, `Progressing`, `Degraded`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl NetworkStatus {
    /// The host on this node.
    pub fn host(&self, cluster: &str, node: &str) -> Option<&NetworkHost> {
        self.hosts.iter().find(|h| h.is(cluster, node))
    }

    /// The same, to be changed.
    pub(crate) fn host_mut(&mut self, cluster: &str, node: &str) -> Option<&mut NetworkHost> {
        self.hosts.iter_mut().find(|h| h.is(cluster, node))
    }

    /// Takes times that lie after `now` for now: a clock that was set back would make every pause as long as it was set back by.
    pub(crate) fn not_after(&mut self, now: Timestamp) {
        let failures = self.hosts.iter_mut().filter_map(|h| h.failure.as_mut());
        for failure in failures.filter(|f| f.time > now) {
            let pause = failure.retry_time.map(|at| at.duration_since(failure.time));
            failure.time = now;
            failure.retry_time = pause.and_then(|pause| now.checked_add(pause).ok());
        }
        self.hosts.iter_mut().for_each(|h| h.last_transition_time = now.min(h.last_transition_time));
        self.operation.iter_mut().for_each(|a| a.time = now.min(a.time));
    }
}

/// What is done to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NetworkVerb {
    /// The network is made what the spec says.
    Apply,
    /// The network is removed.
    Remove,
}

impl NetworkVerb {
    /// As it stands in request ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Remove => "remove",
        }
    }
}

/// A change under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkAttempt {
    /// What it does.
    pub verb: NetworkVerb,
    /// Its number.
    pub attempt: u64,
    /// The `PveHost` it is sent to.
    pub host: String,
    /// The PVE cluster of that host.
    pub cluster: String,
    /// The PVE node of that host: an address that leads elsewhere later is not asked.
    pub node: String,
    /// The request id: the same after a crash, so that the agent answers with the same operation.
    pub request_id: String,
    /// The generation of the spec it works for.
    pub generation: i64,
    /// When it was begun.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// The value of annotation `pvelet.dev/retry` when it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<String>,
    /// The agent's name of the operation, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Why it is to be undone instead of confirmed; stored before the agent is asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Undo>,
}

/// Why a change is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Undo {
    /// A stable word in CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A host and how the network stands there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkHost {
    /// The `PveHost`'s name.
    pub name: String,
    /// Its PVE cluster.
    pub cluster: String,
    /// Its PVE node.
    pub node: String,
    /// Where it stands.
    pub state: NetworkHostState,
    /// A stable word in CamelCase; empty where there is nothing to add.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people: what is so, and what to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Whether the host may have the network: something was sent, or it was found there.
    #[serde(default)]
    pub managed: bool,
    /// The generation that the host was last seen to have; 0 for none.
    #[serde(default)]
    pub applied_generation: i64,
    /// The generation of the spec this was found for.
    pub observed_generation: i64,
    /// The agent's operation, while one is under way or after one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// What the last change was tried with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeStatus>,
    /// What failed here and was not mended since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<NetworkFailure>,
    /// When `state` last changed.
    #[schemars(with = "String")]
    pub last_transition_time: Timestamp,
}

impl NetworkHost {
    /// Whether it is this node.
    pub fn is(&self, cluster: &str, node: &str) -> bool {
        self.cluster == cluster && self.node == node
    }
}

/// Where a host stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NetworkHostState {
    /// It has not had its turn.
    #[default]
    Pending,
    /// A change is under way.
    Applying,
    /// It has the network as the spec says, confirmed.
    Ready,
    /// The change was undone; the host is as it was.
    RolledBack,
    /// The change was refused, or could not be undone.
    Failed,
    /// The network is to be removed there.
    Removing,
}

/// What failed on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkFailure {
    /// What was tried.
    pub verb: NetworkVerb,
    /// A stable word in CamelCase.
    pub reason: String,
    /// The agent's message.
    pub message: String,
    /// Whether a change was undone, or could not be: it is not tried again before the spec or annotation `pvelet.dev/retry` changes.
    pub halted: bool,
    /// When it is tried again by itself; absent where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub retry_time: Option<Timestamp>,
    /// How often in a row.
    pub count: u32,
    /// When last.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// The generation that was tried.
    pub generation: i64,
    /// The annotation's value then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<String>,
}

/// A try with real frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeStatus {
    /// The `PveHost` at the other end.
    pub peer: String,
    /// The interface.
    pub interface: String,
    /// The VLAN, of a VLAN-aware bridge.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub vlan: u32,
    /// Whether all that must get through did.
    pub ok: bool,
    /// The largest MTU that got through; 0 for none.
    pub mtu: u32,
    /// Time from the first frame to its answer, in microseconds.
    #[serde(default, skip_serializing_if = "is_zero_u64")]
    pub rtt_us: u64,
    /// What is wrong, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

// Serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero_u64(n: &u64) -> bool {
    *n == 0
}
