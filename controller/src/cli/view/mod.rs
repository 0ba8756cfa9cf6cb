//! What JSON and YAML hold. These shapes are an interface of their own: fields are added, never renamed or removed; times are RFC 3339 in
//! UTC; enums are lower case words; sizes are numbers in the unit that the field's name tells; what is not known is null or absent.
//! Every list of many hosts stands beside `errors`, one for each host that did not answer.

mod health;
mod host;
mod network;
mod operation;
mod storage;
mod vm;
mod volume;

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use pvelet_proto::v1::{self, OperationKind, OperationState};
use serde::Serialize;

pub(in crate::cli) use health::{
    ClearedView, GROUPS, HealthCheckView, HealthEventView, HealthView, HealthViews, MendedView, RepairPlanView, State, plan_view,
};
pub(in crate::cli) use host::{Facts, HostView, Hosts};
pub(in crate::cli) use network::{
    ChangeView, ChangedView, CheckView, HolderView, HostNetworkView, NetworkViews, PlanView, ProbeView, ReachedView,
};
pub(in crate::cli) use operation::{OperationView, Operations};
pub(in crate::cli) use storage::{StorageView, Storages, UsageView, Usages};
pub(in crate::cli) use vm::{VmView, Vms};
pub(in crate::cli) use volume::{Reclaimed, UnreachableView, VolumeView, Volumes};

use crate::agents::{AgentError, code_name};

/// Why a host, or an operation, failed.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct ErrorView {
    pub(in crate::cli) host: String,
    /// gRPC's code: "NOT_FOUND", ...
    code: &'static str,
    /// pvelet's reason: "VM_NOT_FOUND", ...
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// One line for people, without the host.
    pub(in crate::cli) message: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    retryable: bool,
}

impl From<&AgentError> for ErrorView {
    fn from(e: &AgentError) -> Self {
        Self {
            host: e.host.clone(),
            code: code_name(e.code),
            reason: e.reason.clone(),
            message: e.text(),
            metadata: e.metadata.clone(),
            retryable: e.retryable(),
        }
    }
}

/// A line of `watch`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct EventView {
    pub(in crate::cli) host: String,
    revision: u64,
    pub(in crate::cli) time: Option<String>,
    /// "created", "changed", "started", "stopped", "moved", "removed", "existing", or "host".
    pub(in crate::cli) event: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) vm: Option<VmView>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::cli) from_node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) facts: Option<Facts>,
}

impl EventView {
    /// `None` for what is no event for people.
    pub(in crate::cli) fn new(host: &str, e: &v1::WatchHostResponse) -> Option<Self> {
        use v1::watch_host_response::Event;
        let (event, vm, from_node, facts) = match e.event.as_ref()? {
            Event::Vm(v) => {
                (word(v.r#type().as_str_name(), "VM_EVENT_TYPE_"), v.vm.as_ref().map(|vm| VmView::new(host, vm)), v.from_node.clone(), None)
            }
            Event::Host(h) => ("host".to_owned(), None, String::new(), Some(Facts::from(h))),
            Event::Synced(_) => return None,
        };
        Some(Self { host: host.to_owned(), revision: e.revision, time: e.time.as_ref().and_then(time), event, vm, from_node, facts })
    }
}

/// `version`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Versions {
    pub(in crate::cli) client: &'static str,
    api: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cli) agents: Vec<AgentVersion>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cli) errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct AgentVersion {
    pub(in crate::cli) host: String,
    pub(in crate::cli) agent: String,
    pub(in crate::cli) api: String,
    pub(in crate::cli) pve: String,
}

impl Versions {
    pub(in crate::cli) fn of_client() -> Self {
        Self { client: env!("CARGO_PKG_VERSION"), api: pvelet_proto::API_VERSION, agents: Vec::new(), errors: Vec::new() }
    }
}

pub(in crate::cli) fn kind(kind: OperationKind) -> String {
    word(kind.as_str_name(), "OPERATION_KIND_")
}

pub(in crate::cli) fn ended(state: OperationState) -> bool {
    matches!(state, OperationState::Succeeded | OperationState::Failed | OperationState::Cancelled)
}

/// `VM_STATE_RUNNING` as `running`.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// What is empty where it is not known.
fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(in crate::cli) fn time(t: &prost_types::Timestamp) -> Option<String> {
    Timestamp::new(t.seconds, t.nanos).ok().map(|t| t.to_string())
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
