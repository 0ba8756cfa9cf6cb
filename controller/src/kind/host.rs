//! `PveHost`: an agent and the host it runs on.

use kube::CustomResource;
use pvelet_proto::id;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Condition, FieldError, Kind, KubernetesNodeSpec, KubernetesNodeStatus, Metadata, Object, Quantity, check::Checker, kubernetes_node,
    schema,
};
use crate::tls::Address;

/// Memory kept for the host itself where the manifest does not say: PVE's daemons and the page cache want about a GiB.
const DEFAULT_RESERVED: Quantity = Quantity(1 << 30);
/// How many cores of VMs one processor of the host carries where the manifest does not say: a usual figure for mixed loads.
const DEFAULT_CPU_OVERCOMMIT: u32 = 4;

/// The kind `PveHost`.
#[derive(Debug, Clone, PartialEq)]
pub struct Host;

/// A PVE host with its agent.
pub type PveHost = Object<Host>;

/// Where the agent is and what may be placed there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "pvelet.dev",
    version = "v1alpha1",
    kind = "PveHost",
    root = "HostResource",
    doc = "A PVE host and its agent.",
    status = "HostStatus",
    shortname = "pvh",
    category = "pvelet",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "PVE", type_ = "string", json_path = ".status.pveVersion"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".status.mode"),
    printcolumn(name = "CPU", type_ = "integer", json_path = ".status.capacity.cpu"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.capacity.memory"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.cluster", priority = 1),
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address", priority = 1),
    printcolumn(name = "CPU used", type_ = "integer", json_path = ".status.capacity.allocatedCpu", priority = 1),
    printcolumn(name = "Memory used", type_ = "string", json_path = ".status.capacity.allocatedMemory", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct HostSpec {
    /// Address of the agent, `host:port`.
    #[schemars(with = "schema::AgentAddress")]
    pub address: String,
    /// Name of the PVE cluster; the node's name where it stands alone. The agent's certificate must say the same.
    #[schemars(with = "schema::DnsName")]
    pub cluster: String,
    /// Name of the PVE node. The agent's certificate must say the same.
    #[schemars(with = "schema::NodeName")]
    pub node: String,
    /// No new VM is placed here by itself; those that name this host still are.
    #[serde(default)]
    pub cordon: bool,
    /// No new VM is made here, and no VM here is started or stopped by a run policy.
    #[serde(default)]
    pub maintenance: bool,
    /// Memory kept for the host itself.
    #[serde(default = "default_reserved")]
    #[schemars(with = "schema::Bytes")]
    pub reserved_memory: Quantity,
    /// How many cores of VMs one processor carries, 1 to 100.
    #[serde(default = "default_cpu_overcommit")]
    #[schemars(range(min = 1, max = 100))]
    pub cpu_overcommit: u32,
    /// Where the host is a Node of Kubernetes too: what is told there while it is not well. Nothing is told where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_node: Option<KubernetesNodeSpec>,
}

impl HostSpec {
    /// The Node of Kubernetes on which something is to be told, by name.
    pub fn wanted_node(&self) -> Option<(&str, &KubernetesNodeSpec)> {
        let spec = self.kubernetes_node.as_ref()?;
        Some((spec.name.as_deref().unwrap_or(&self.node), spec))
    }
}

fn default_reserved() -> Quantity {
    DEFAULT_RESERVED
}

fn default_cpu_overcommit() -> u32 {
    DEFAULT_CPU_OVERCOMMIT
}

/// What is known of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostStatus {
    /// The generation of the spec this was found for.
    pub observed_generation: i64,
    /// `Reachable`, `VersionSupported`, `Quorate`, `NetworkLatched`, `Managed`, `Ready`; of the host's health `ContainerdHealthy`,
    /// `KubeletHealthy`, `HostHealthy`, `NetworkHealthy`, `AgentHealthy`, `ClockInSync`, `RepairLatched`; of a Node of Kubernetes
    /// `NodeInSync`, `VersionSkew`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The agent's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The version of the API it speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// `observe` or `manage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// PVE's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pve_version: Option<String>,
    /// Whether the node's part of the PVE cluster may write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorate: Option<bool>,
    /// What it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// The Node on which something is told, and must be taken away one day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_node: Option<KubernetesNodeStatus>,
}

/// What a host has and what its running VMs were given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capacity {
    /// Logical processors.
    pub cpu: u32,
    /// Memory installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Cores given to running VMs.
    pub allocated_cpu: u32,
    /// Memory given to running VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated_memory: Option<Quantity>,
}

impl Kind for Host {
    const KIND: &'static str = "PveHost";
    type Spec = HostSpec;
    type Status = HostStatus;

    fn check(_: &Metadata, spec: &HostSpec) -> Vec<FieldError> {
        let mut c = Checker::default();
        let rule = "use <name>:<port>, <ip>:<port> or [<ipv6>]:<port>";
        c.require(spec.address.parse::<Address>().is_ok(), "spec.address", &spec.address, rule);
        c.id("spec.cluster", id::dns_name(&spec.cluster));
        c.id("spec.node", id::node(&spec.node));
        c.require((1..=100).contains(&spec.cpu_overcommit), "spec.cpuOvercommit", spec.cpu_overcommit, "use 1 to 100");
        if let Some(node) = &spec.kubernetes_node {
            kubernetes_node::check(&mut c, node);
        }
        c.done()
    }
}
