//! A host in JSON and YAML.

use pvelet_proto::v1;
use serde::Serialize;

use super::{ErrorView, millis, time, word};
use crate::agents::HostResult;

/// `hosts`, `get host`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Hosts {
    pub(in crate::cli) hosts: Vec<HostView>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct HostView {
    /// As the configuration calls it.
    pub(in crate::cli) name: String,
    pub(in crate::cli) address: String,
    /// How long the answer, or the failure, took.
    answer_ms: u64,
    /// What it says about itself; null where it did not answer.
    pub(in crate::cli) facts: Option<Facts>,
    /// Why it did not answer; null where it did.
    pub(in crate::cli) error: Option<ErrorView>,
}

impl HostView {
    pub(in crate::cli) fn new(address: String, result: &HostResult<v1::Host>) -> Self {
        Self {
            name: result.host.clone(),
            address,
            answer_ms: millis(result.duration),
            facts: result.result.as_ref().ok().map(Facts::from),
            error: result.result.as_ref().err().map(ErrorView::from),
        }
    }
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Facts {
    pub(in crate::cli) node: String,
    pub(in crate::cli) cluster: String,
    pub(in crate::cli) mode: String,
    pub(in crate::cli) state: String,
    pub(in crate::cli) quorate: bool,
    /// A network change could not be undone.
    pub(in crate::cli) network_latched: bool,
    pub(in crate::cli) agent_version: String,
    api_version: String,
    features: Vec<String>,
    pub(in crate::cli) pve_version: String,
    kernel_version: String,
    boot_id: String,
    boot_time: Option<String>,
    pub(in crate::cli) cpu: Option<Cpu>,
    pub(in crate::cli) memory: Option<Memory>,
    vmid_range: Option<VmidRange>,
    nodes: Vec<Node>,
    storages: Vec<Storage>,
    bridges: Vec<Bridge>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Cpu {
    pub(in crate::cli) threads: u32,
    cores: u32,
    model: String,
    /// Busy share of all processors, 0 to 1.
    pub(in crate::cli) utilization: f64,
    load1: f64,
    /// Cores given to running VMs.
    allocated: u32,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Memory {
    pub(in crate::cli) total_bytes: u64,
    pub(in crate::cli) available_bytes: u64,
    allocated_bytes: u64,
}

#[derive(Debug, Serialize)]
struct VmidRange {
    first: u32,
    last: u32,
}

#[derive(Debug, Serialize)]
struct Node {
    name: String,
    online: bool,
    id: u32,
}

#[derive(Debug, Serialize)]
struct Storage {
    id: String,
    r#type: String,
    content: Vec<String>,
    active: bool,
    enabled: bool,
    shared: bool,
    total_bytes: u64,
    available_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Bridge {
    name: String,
    vlan_aware: bool,
    up: bool,
}

impl From<&v1::Host> for Facts {
    fn from(h: &v1::Host) -> Self {
        Self {
            node: h.node.clone(),
            cluster: h.cluster.clone(),
            mode: word(h.mode().as_str_name(), "MODE_"),
            state: word(h.state().as_str_name(), "HOST_STATE_"),
            quorate: h.quorate,
            network_latched: h.network_latched,
            agent_version: h.agent_version.clone(),
            api_version: h.api_version.clone(),
            features: h.features.clone(),
            pve_version: h.pve_version.clone(),
            kernel_version: h.kernel_version.clone(),
            boot_id: h.boot_id.clone(),
            boot_time: h.boot_time.as_ref().and_then(time),
            cpu: h.cpu.as_ref().map(|c| Cpu {
                threads: c.threads,
                cores: c.cores,
                model: c.model.clone(),
                utilization: c.utilization,
                load1: c.load1,
                allocated: c.allocated,
            }),
            memory: h.memory.as_ref().map(|m| Memory {
                total_bytes: m.total_bytes,
                available_bytes: m.available_bytes,
                allocated_bytes: m.allocated_bytes,
            }),
            vmid_range: h.vmid_range.as_ref().map(|r| VmidRange { first: r.first, last: r.last }),
            nodes: h.nodes.iter().map(|n| Node { name: n.name.clone(), online: n.online, id: n.id }).collect(),
            storages: h
                .storages
                .iter()
                .map(|s| Storage {
                    id: s.id.clone(),
                    r#type: s.r#type.clone(),
                    content: s.content.clone(),
                    active: s.active,
                    enabled: s.enabled,
                    shared: s.shared,
                    total_bytes: s.total_bytes,
                    available_bytes: s.available_bytes,
                })
                .collect(),
            bridges: h.bridges.iter().map(|b| Bridge { name: b.name.clone(), vlan_aware: b.vlan_aware, up: b.up }).collect(),
        }
    }
}
