//! `PveNetwork`: VLANs and bridges that are to be the same on a set of hosts.

use std::collections::BTreeMap;

use kube::CustomResource;
use pvelet_proto::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    DeletionPolicy, FieldError, Kind, Metadata, NetworkStatus, Object, Seconds, network_check, network_rules,
    schema::{self, field_rule, rule},
};

/// The kind `PveNetwork`.
#[derive(Debug, Clone, PartialEq)]
pub struct Network;

/// A network on a set of hosts.
pub type PveNetwork = Object<Network>;

impl Kind for Network {
    const KIND: &'static str = "PveNetwork";
    type Spec = NetworkSpec;
    type Status = NetworkStatus;

    fn check(metadata: &Metadata, spec: &NetworkSpec) -> Vec<FieldError> {
        network_check::check(metadata, spec)
    }
}

impl PveNetwork {
    /// The value of [`RETRY`](super::RETRY): a change of it lets a change be tried again that was undone.
    pub fn retry(&self) -> Option<&str> {
        self.metadata.annotations.get(super::RETRY).map(String::as_str)
    }

    /// Whose it is: once something was sent, a change of `spec.tenant` does not count, because request ids belong to a tenant.
    pub fn tenant(&self) -> &str {
        self.status.tenant.as_deref().unwrap_or(&self.spec.tenant)
    }
}

/// The network that is wanted. On each host it is called as the object is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "pvelet.dev",
    version = "v1alpha1",
    kind = "PveNetwork",
    root = "NetworkResource",
    doc = "VLANs and bridges that are to be the same on a set of hosts.",
    status = "NetworkStatus",
    shortname = "pvn",
    category = "pvelet",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Progressing", type_ = "string", json_path = ".status.conditions[?(@.type==\"Progressing\")].status"),
    printcolumn(name = "Failed host", type_ = "string", json_path = ".status.failedHost"),
    printcolumn(name = "Tenant", type_ = "string", json_path = ".spec.tenant", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("x-kubernetes-validations" = network_rules::network()))]
pub struct NetworkSpec {
    /// On which hosts. They are changed one after the other, in the order of their names.
    pub hosts: HostSelector,
    /// The tenant whose network it is.
    #[serde(default = "default_tenant")]
    #[schemars(with = "schema::Label")]
    pub tenant: String,
    /// The interfaces, 1 to 64. One may stand on another, in any order.
    #[schemars(
        length(max = 64),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"],
            "x-kubernetes-validations" = network_rules::interfaces()
        )
    )]
    pub interfaces: Vec<InterfaceSpec>,
    /// How long a host waits for the confirmation before it undoes the change, 10s to 10m, with a probe at least 30s; absent for the host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::ConfirmSpan>")]
    pub confirm_timeout: Option<Seconds>,
    /// How a change is tried with real frames before it is confirmed.
    #[serde(default)]
    pub probe: ProbeSpec,
    /// What becomes of the network on a host when the object goes or no longer selects the host.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn default_tenant() -> String {
    "default".to_owned()
}

/// Which `PveHost`s: those named, and those that carry all of the labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [rule(
    "(has(self.names) && self.names.size() > 0) || (has(self.matchLabels) && self.matchLabels.size() > 0)",
    "select hosts by names: [...], by matchLabels: {...}, or by both",
)]))]
pub struct HostSelector {
    /// By name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<schema::DnsName>", length(max = 256), extend("x-kubernetes-list-type" = "set"))]
    pub names: Vec<String>,
    /// By labels, all of which a host must carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl HostSelector {
    /// Whether a host of this name and these labels is meant.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let by_labels = !self.match_labels.is_empty() && self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v));
        by_labels || self.names.iter().any(|n| n == name)
    }
}

/// One interface: either a VLAN or a bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = network_rules::interface()))]
pub struct InterfaceSpec {
    /// Its name, 1 to 15 of `[A-Za-z0-9_.-]`, first a letter.
    #[schemars(with = "schema::NewInterfaceName")]
    pub name: String,
    /// A VLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanSpec>,
    /// A bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BridgeSpec>,
    /// 576 to 65535 bytes; absent for that of what it stands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65535))]
    pub mtu: Option<u32>,
    /// Addresses with prefix length, up to 16. Only where one host is selected by name: two hosts with one address break both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<schema::HostAddress>", length(max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub addresses: Vec<String>,
    /// Addresses of each host, by the `PveHost`'s name; `[]` for none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, schema::HostAddresses>", length(max = 256))]
    pub host_addresses: BTreeMap<String, Vec<String>>,
    /// A word for people, up to 64 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(with = "schema::Comment")]
    pub comment: String,
}

/// A VLAN interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VlanSpec {
    /// The interface it stands on, by name or altname.
    #[schemars(with = "schema::InterfaceName")]
    pub parent: String,
    /// 1 to 4094.
    #[schemars(range(min = 1, max = 4094))]
    pub id: u32,
    /// The type of its tags.
    #[serde(default, skip_serializing_if = "VlanProtocol::is_usual")]
    pub protocol: VlanProtocol,
}

/// The type of a VLAN's tags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VlanProtocol {
    /// The usual one, EtherType 0x8100.
    #[default]
    #[serde(rename = "802.1Q")]
    Customer,
    /// The outer tag of QinQ, EtherType 0x88a8.
    #[serde(rename = "802.1ad")]
    Service,
}

impl VlanProtocol {
    fn is_usual(&self) -> bool {
        *self == Self::Customer
    }
}

/// A bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [field_rule(
    "vids",
    "self.vlanAware || !has(self.vids) || self.vids.size() == 0",
    "only a bridge with vlanAware: true filters VLANs",
)]))]
pub struct BridgeSpec {
    /// Its ports, by name or altname, up to 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<schema::InterfaceName>", length(max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub ports: Vec<String>,
    /// Whether it filters VLANs.
    #[serde(default)]
    pub vlan_aware: bool,
    /// The VLANs that pass, such as "100" and "200-299"; absent for 2-4094.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<schema::Vids>", length(max = 256))]
    pub vids: Vec<String>,
}

/// How a change is tried before it is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeSpec {
    /// Whether frames must get through to hosts that have the network already. Without, an unreachable VLAN is found by its users.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// The MTU that must get through, 576 to 65535; absent for the interface's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65535))]
    pub mtu: Option<u32>,
}

fn yes() -> bool {
    true
}

impl Default for ProbeSpec {
    fn default() -> Self {
        Self { enabled: true, mtu: None }
    }
}

/// An interface to be tried: of a VLAN-aware bridge one of its VLANs, otherwise VLAN 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTarget {
    /// The interface.
    pub interface: String,
    /// The VLAN, as in `v1.ProbeNetworkRequest`.
    pub vlan: u32,
    /// The MTU that must get through; nothing for that of the interfaces at both ends.
    pub mtu: Option<u32>,
}

/// More are not tried: the rest of the trunk is in the same cables and switches.
const MAX_TARGETS: usize = 4;

/// Every mistake of a network of this name that is for one host, with paths as in a manifest.
pub fn check_network(name: &str, spec: &NetworkSpec) -> Vec<FieldError> {
    let metadata = Metadata { name: name.to_owned(), ..Metadata::default() };
    network_check::check(&metadata, spec)
}

impl NetworkSpec {
    /// Interfaces for one host, everything else as it is where a manifest says nothing.
    pub fn for_one(interfaces: Vec<InterfaceSpec>, tenant: &str, host: &str) -> Self {
        Self {
            hosts: HostSelector { names: vec![host.to_owned()], ..HostSelector::default() },
            tenant: tenant.to_owned(),
            interfaces,
            confirm_timeout: None,
            probe: ProbeSpec::default(),
            deletion_policy: DeletionPolicy::default(),
        }
    }

    /// The network as a host is asked for it. The addresses are those of the `PveHost` of this name.
    ///
    /// # Errors
    /// The interface whose addresses are given by host, but not for this one.
    pub fn on_host(&self, name: &str, tenant: &str, host: &str) -> Result<v1::NetworkSpec, String> {
        let interfaces = self.interfaces.iter().map(|i| i.on_host(host)).collect::<Result<_, _>>()?;
        Ok(v1::NetworkSpec { name: name.to_owned(), tenant: tenant.to_owned(), interfaces })
    }

    /// What is tried with frames: VLAN interfaces and bridges with ports, but nothing that another interface of the network stands on. Of a
    /// VLAN-aware bridge the first VLAN of each entry of `vids`; one that passes all says nothing of which are in use.
    pub fn probe_targets(&self) -> Vec<ProbeTarget> {
        let parents: Vec<&str> = self.interfaces.iter().flat_map(InterfaceSpec::below).collect();
        let mut targets = Vec::new();
        for i in &self.interfaces {
            let mtu = self.probe.mtu.or(i.mtu);
            let target = |vlan| ProbeTarget { interface: i.name.clone(), vlan, mtu };
            match (&i.vlan, &i.bridge) {
                (_, Some(b)) if b.ports.is_empty() => {}
                (_, Some(b)) if b.vlan_aware => {
                    let first = |vids: &String| vids.split('-').next().and_then(|v| v.parse().ok());
                    targets.extend(b.vids.iter().filter_map(first).map(target));
                }
                _ if parents.contains(&i.name.as_str()) => {}
                _ => targets.push(target(0)),
            }
        }
        targets.truncate(MAX_TARGETS);
        targets
    }
}

impl InterfaceSpec {
    /// What it stands on: parent or ports.
    pub(super) fn below(&self) -> impl Iterator<Item = &str> {
        let parent = self.vlan.iter().map(|v| v.parent.as_str());
        parent.chain(self.bridge.iter().flat_map(|b| b.ports.iter().map(String::as_str)))
    }

    fn on_host(&self, host: &str) -> Result<v1::InterfaceSpec, String> {
        use v1::interface_spec::Kind as Of;
        let addresses = if self.host_addresses.is_empty() {
            &self.addresses
        } else {
            let missing = || {
                format!(
                    "interface {} has addresses by host, but none for {host}: add hostAddresses.{host}, or [] for no address there",
                    self.name
                )
            };
            self.host_addresses.get(host).ok_or_else(missing)?
        };
        let vlan = self.vlan.as_ref().map(|v| {
            let protocol = match v.protocol {
                VlanProtocol::Customer => v1::VlanProtocol::VlanProtocol8021q,
                VlanProtocol::Service => v1::VlanProtocol::VlanProtocol8021ad,
            };
            Of::Vlan(v1::VlanSpec { parent: v.parent.clone(), id: v.id, protocol: protocol.into() })
        });
        let bridge = || {
            self.bridge
                .as_ref()
                .map(|b| Of::Bridge(v1::BridgeSpec { ports: b.ports.clone(), vlan_aware: b.vlan_aware, vids: b.vids.clone() }))
        };
        Ok(v1::InterfaceSpec {
            name: self.name.clone(),
            kind: vlan.or_else(bridge),
            mtu: self.mtu.unwrap_or_default(),
            addresses: addresses.clone(),
            comment: self.comment.clone(),
        })
    }
}
