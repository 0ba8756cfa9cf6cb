//! What JSON and YAML hold. These shapes are an interface of their own: fields are added, never renamed or removed; times are RFC 3339 in
//! UTC; enums are lower case words; sizes are numbers in the unit that the field's name tells; what is not known is null or absent.
//! Every list of many hosts stands beside `errors`, one for each host that did not answer.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use pvelet_proto::v1::{self, Operation, OperationKind, OperationState, Vm, VmState};
use serde::Serialize;

use crate::agents::{AgentError, HostResult, code_name};

/// Why a host, or an operation, failed.
#[derive(Debug, Serialize)]
pub(super) struct ErrorView {
    pub(super) host: String,
    /// gRPC's code: "NOT_FOUND", ...
    code: &'static str,
    /// pvelet's reason: "VM_NOT_FOUND", ...
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// One line for people, without the host.
    pub(super) message: String,
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

/// `hosts`, `get host`.
#[derive(Debug, Serialize)]
pub(super) struct Hosts {
    pub(super) hosts: Vec<HostView>,
}

#[derive(Debug, Serialize)]
pub(super) struct HostView {
    /// As the configuration calls it.
    pub(super) name: String,
    pub(super) address: String,
    /// How long the answer, or the failure, took.
    answer_ms: u64,
    /// What it says about itself; null where it did not answer.
    pub(super) facts: Option<Facts>,
    /// Why it did not answer; null where it did.
    pub(super) error: Option<ErrorView>,
}

impl HostView {
    pub(super) fn new(address: String, result: &HostResult<v1::Host>) -> Self {
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
pub(super) struct Facts {
    pub(super) node: String,
    pub(super) cluster: String,
    pub(super) mode: String,
    pub(super) state: String,
    pub(super) quorate: bool,
    pub(super) agent_version: String,
    api_version: String,
    features: Vec<String>,
    pub(super) pve_version: String,
    kernel_version: String,
    boot_id: String,
    boot_time: Option<String>,
    pub(super) cpu: Option<Cpu>,
    pub(super) memory: Option<Memory>,
    vmid_range: Option<VmidRange>,
    nodes: Vec<Node>,
    storages: Vec<Storage>,
    bridges: Vec<Bridge>,
}

#[derive(Debug, Serialize)]
pub(super) struct Cpu {
    pub(super) threads: u32,
    cores: u32,
    model: String,
    /// Busy share of all processors, 0 to 1.
    pub(super) utilization: f64,
    load1: f64,
    /// Cores given to running VMs.
    allocated: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) total_bytes: u64,
    pub(super) available_bytes: u64,
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

/// `vms`, `get vm`.
#[derive(Debug, Serialize)]
pub(super) struct Vms {
    pub(super) vms: Vec<VmView>,
    pub(super) errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
pub(super) struct VmView {
    /// The host whose agent told it.
    pub(super) host: String,
    pub(super) vmid: u32,
    uuid: String,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) template: bool,
    pub(super) state: String,
    pub(super) lock: String,
    pub(super) tags: Vec<String>,
    pub(super) cores: u32,
    pub(super) sockets: u32,
    pub(super) memory_mib: u64,
    nics: Vec<NicView>,
    disks: Vec<DiskView>,
    cloud_init: Option<CloudInitView>,
    start_on_boot: bool,
    protection: bool,
    ha_managed: bool,
    replicated: bool,
    pub(super) pool: String,
    description: String,
    /// Null where pvelet did not make it.
    pub(super) mark: Option<MarkView>,
    digest: String,
    ambiguous_uuid: bool,
    start_time: Option<String>,
}

#[derive(Debug, Serialize)]
struct NicView {
    index: u32,
    model: String,
    mac: String,
    bridge: String,
    vlan: u32,
    mtu: u32,
    firewall: bool,
}

#[derive(Debug, Serialize)]
struct DiskView {
    slot: String,
    volume: String,
    storage: String,
    size_bytes: u64,
    cdrom: bool,
}

#[derive(Debug, Serialize)]
struct CloudInitView {
    user: String,
    ssh_key_count: u32,
    ip_configs: Vec<IpView>,
    nameservers: Vec<String>,
    search_domain: String,
}

#[derive(Debug, Serialize)]
struct IpView {
    nic: u32,
    ipv4: String,
    gateway4: String,
    ipv6: String,
    gateway6: String,
}

#[derive(Debug, Serialize)]
pub(super) struct MarkView {
    pub(super) tenant: String,
    cluster: String,
    machine_uid: String,
    operation: String,
}

impl VmView {
    pub(super) fn new(host: &str, vm: &Vm) -> Self {
        Self {
            host: host.to_owned(),
            vmid: vm.vmid,
            uuid: vm.uuid.clone(),
            name: vm.name.clone(),
            node: vm.node.clone(),
            template: vm.template,
            state: word(vm.state().as_str_name(), "VM_STATE_"),
            lock: vm.lock.clone(),
            tags: vm.tags.clone(),
            cores: vm.cores,
            sockets: vm.sockets,
            memory_mib: vm.memory_mib,
            nics: vm
                .nics
                .iter()
                .map(|n| NicView {
                    index: n.index,
                    model: n.model.clone(),
                    mac: n.mac.clone(),
                    bridge: n.bridge.clone(),
                    vlan: n.vlan,
                    mtu: n.mtu,
                    firewall: n.firewall,
                })
                .collect(),
            disks: vm
                .disks
                .iter()
                .map(|d| DiskView {
                    slot: d.slot.clone(),
                    volume: d.volume.clone(),
                    storage: d.storage.clone(),
                    size_bytes: d.size_bytes,
                    cdrom: d.cdrom,
                })
                .collect(),
            cloud_init: vm.cloud_init.as_ref().map(|c| CloudInitView {
                user: c.user.clone(),
                ssh_key_count: c.ssh_key_count,
                ip_configs: c
                    .ip_configs
                    .iter()
                    .map(|i| IpView {
                        nic: i.nic,
                        ipv4: i.ipv4.clone(),
                        gateway4: i.gateway4.clone(),
                        ipv6: i.ipv6.clone(),
                        gateway6: i.gateway6.clone(),
                    })
                    .collect(),
                nameservers: c.nameservers.clone(),
                search_domain: c.search_domain.clone(),
            }),
            start_on_boot: vm.start_on_boot,
            protection: vm.protection,
            ha_managed: vm.ha_managed,
            replicated: vm.replicated,
            pool: vm.pool.clone(),
            description: vm.description.clone(),
            mark: vm.mark.as_ref().map(|m| {
                let owner = m.owner.clone().unwrap_or_default();
                MarkView { tenant: owner.tenant, cluster: owner.cluster, machine_uid: owner.machine_uid, operation: m.operation.clone() }
            }),
            digest: vm.digest.clone(),
            ambiguous_uuid: vm.ambiguous_uuid,
            start_time: vm.start_time.as_ref().and_then(time),
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.state == word(VmState::Running.as_str_name(), "VM_STATE_")
    }
}

/// `ops`, `get op`, and what every mutation prints.
#[derive(Debug, Serialize)]
pub(super) struct Operations {
    pub(super) operations: Vec<OperationView>,
    pub(super) errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
pub(super) struct OperationView {
    pub(super) host: String,
    pub(super) name: String,
    request_id: String,
    pub(super) tenant: String,
    pub(super) kind: String,
    pub(super) vmid: u32,
    uuid: String,
    pub(super) state: String,
    pub(super) percent: u32,
    done_bytes: u64,
    total_bytes: u64,
    pub(super) step: String,
    upids: Vec<String>,
    pub(super) create_time: Option<String>,
    end_time: Option<String>,
    /// From acceptance to end.
    pub(super) duration_ms: Option<u64>,
    pve_task_ms: u64,
    pub(super) error: Option<ErrorView>,
    pub(super) warnings: Vec<String>,
    caller: String,
}

impl OperationView {
    pub(super) fn new(host: &str, o: &Operation) -> Self {
        let (target, progress) = (o.target.clone().unwrap_or_default(), o.progress.unwrap_or_default());
        let at = |t: &Option<prost_types::Timestamp>| t.as_ref().and_then(|t| Timestamp::new(t.seconds, t.nanos).ok());
        let took = at(&o.end_time).zip(at(&o.create_time)).map(|(e, b)| e.duration_since(b).as_millis());
        Self {
            host: host.to_owned(),
            name: o.name.clone(),
            request_id: o.request_id.clone(),
            tenant: o.tenant.clone(),
            kind: kind(o.kind()),
            vmid: target.vmid,
            uuid: target.uuid,
            state: word(o.state().as_str_name(), "OPERATION_STATE_"),
            percent: progress.percent,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            step: o.step.clone(),
            upids: o.upids.clone(),
            create_time: o.create_time.as_ref().and_then(time),
            end_time: o.end_time.as_ref().and_then(time),
            duration_ms: took.and_then(|ms| u64::try_from(ms).ok()),
            pve_task_ms: o.pve_task_ms,
            error: o.error.as_ref().map(|e| ErrorView::from(&AgentError::from_operation(host, e))),
            warnings: o.warnings.clone(),
            caller: o.caller.clone(),
        }
    }
}

/// A line of `watch`.
#[derive(Debug, Serialize)]
pub(super) struct EventView {
    pub(super) host: String,
    revision: u64,
    pub(super) time: Option<String>,
    /// "created", "changed", "started", "stopped", "moved", "removed", "existing", or "host".
    pub(super) event: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vm: Option<VmView>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) from_node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) facts: Option<Facts>,
}

impl EventView {
    /// `None` for what is no event for people.
    pub(super) fn new(host: &str, e: &v1::WatchHostResponse) -> Option<Self> {
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
pub(super) struct Versions {
    pub(super) client: &'static str,
    api: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) agents: Vec<AgentVersion>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
pub(super) struct AgentVersion {
    pub(super) host: String,
    pub(super) agent: String,
    pub(super) api: String,
    pub(super) pve: String,
}

impl Versions {
    pub(super) fn of_client() -> Self {
        Self { client: env!("CARGO_PKG_VERSION"), api: pvelet_proto::API_VERSION, agents: Vec::new(), errors: Vec::new() }
    }
}

pub(super) fn kind(kind: OperationKind) -> String {
    word(kind.as_str_name(), "OPERATION_KIND_")
}

pub(super) fn ended(state: OperationState) -> bool {
    matches!(state, OperationState::Succeeded | OperationState::Failed | OperationState::Cancelled)
}

/// `VM_STATE_RUNNING` as `running`.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

fn time(t: &prost_types::Timestamp) -> Option<String> {
    Timestamp::new(t.seconds, t.nanos).ok().map(|t| t.to_string())
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
