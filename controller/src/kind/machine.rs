//! `PveMachine`: a VM that is to exist exactly once.

use std::collections::BTreeMap;

use kube::CustomResource;
use pvelet_proto::volume::VolumeId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Condition, DEFAULT_TENANT, DiskSpec, FieldError, Kind, MachineStatus, Metadata, Object, Quantity, machine_check,
    schema::{self, field_rule, rule},
};

/// The kind `PveMachine`.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine;

/// A VM.
pub type PveMachine = Object<Machine>;

impl Kind for Machine {
    const KIND: &'static str = "PveMachine";
    const PLURAL: &'static str = "pvemachines";
    const NAMESPACED: bool = true;
    type Spec = MachineSpec;
    type Status = MachineStatus;

    fn told(status: &mut MachineStatus) -> (&mut Vec<Condition>, &mut i64) {
        (&mut status.conditions, &mut status.observed_generation)
    }

    fn check(metadata: &Metadata, spec: &MachineSpec) -> Vec<FieldError> {
        machine_check::check(metadata, spec)
    }
}

impl PveMachine {
    /// The VM's name: `spec.name`, or the object's.
    pub fn vm_name(&self) -> &str {
        self.spec.name.as_deref().unwrap_or(&self.metadata.name)
    }

    /// Whose it is: once something was sent, a change of `spec.tenant` does not count, because request ids belong to a tenant.
    pub fn tenant(&self) -> &str {
        self.status.tenant.as_deref().unwrap_or_else(|| self.spec.tenant())
    }

    /// The disks of the spec with their volumes' ids.
    pub fn disks(&self) -> Vec<(VolumeId, &DiskSpec)> {
        self.spec.disks_of(self.status.disks_uid.as_deref().unwrap_or(&self.metadata.uid))
    }
}

/// The VM that is wanted. What is left out stays as the template has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "pvelet.dev",
    version = "v1alpha1",
    kind = "PveMachine",
    root = "MachineResource",
    doc = "A VM that is to exist exactly once.",
    status = "MachineStatus",
    namespaced,
    shortname = "pvm",
    category = "pvelet",
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "Host", "type": "string", "jsonPath": ".status.host"}"#,
    printcolumn = r#"{"name": "VMID", "type": "integer", "jsonPath": ".status.vmid"}"#,
    printcolumn = r#"{"name": "Address", "type": "string", "jsonPath": ".status.addresses[0]"}"#,
    printcolumn = r#"{"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name": "UUID", "type": "string", "jsonPath": ".status.uuid", "priority": 1}"#,
    printcolumn = r#"{"name": "Template", "type": "integer", "jsonPath": ".spec.source.template", "priority": 1}"#,
    printcolumn = r#"{"name": "Template tags", "type": "string", "jsonPath": ".spec.source.tags", "priority": 1}"#,
    printcolumn = r#"{"name": "Addresses", "type": "string", "jsonPath": ".status.addresses", "priority": 1}"#,
    printcolumn = r#"{"name": "Message", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].message", "priority": 1}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[schemars(extend("x-kubernetes-validations" = [field_rule(
    "storage",
    "!has(self.storage) || self.cloneMode == 'full'",
    "a linked clone lies on the template's storage; leave it out or set cloneMode: full",
)]))]
pub struct MachineSpec {
    /// Name of the `PveHost` to make it on; absent to have one chosen. Counts only until the machine is placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::DnsName>")]
    pub host: Option<String>,
    /// Labels that a chosen host must carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_selector: BTreeMap<String, String>,
    /// The tenant whose VM it is. Absent in Kubernetes for the one whose namespace it is in, which is the only one allowed; in a folder for
    /// `default`. Once the VM was asked for, a change does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Label>")]
    pub tenant: Option<String>,
    /// The template.
    pub source: SourceSpec,
    /// How its disks are copied.
    #[serde(default)]
    pub clone_mode: CloneMode,
    /// Target storage of a full clone; absent for the template's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::StorageId>")]
    pub storage: Option<String>,
    /// Pool to put the VM into when it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Pool>")]
    pub pool: Option<String>,
    /// VMID inside the host's range; absent to have the agent choose. Counts only when the VM is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 999_999_999))]
    pub vmid: Option<u32>,
    /// The VM's name; absent for the object's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::DnsName>")]
    pub name: Option<String>,
    /// Cores for each socket, 1 to 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 512))]
    pub cores: Option<u32>,
    /// Sockets, 1 to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4))]
    pub sockets: Option<u32>,
    /// Memory, at least 16Mi, in whole MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Memory>")]
    pub memory: Option<Quantity>,
    /// Size of the boot disk, in whole MiB; it can only grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::BootDisk>")]
    pub boot_disk: Option<Quantity>,
    /// Disks beside those of the template, each a volume with a life of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 29),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"],
            "x-kubernetes-validations" = [rule(
                "self.all(d, !has(d.existing) || self.exists_one(e, has(e.existing) && e.existing == d.existing))",
                "two disks attach the same existing volume; leave one of them out",
            )]
        )
    )]
    pub disks: Vec<DiskSpec>,
    /// All network interfaces, net0 first; absent to keep the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-validations" = [rule(
            "self.all(n, !has(n.mac) || self.exists_one(o, has(o.mac) && o.mac.upperAscii() == n.mac.upperAscii()))",
            "two NICs have the same mac; give each its own, or leave it out to have PVE choose",
        )])
    )]
    pub nics: Option<Vec<NicSpec>>,
    /// First-boot configuration of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<Box<CloudInitSpec>>,
    /// All tags; absent to keep the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<schema::Tag>>", length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub tags: Option<Vec<String>>,
    /// Whether PVE starts it when the host boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_on_boot: Option<bool>,
    /// When it runs.
    #[serde(default)]
    pub run_policy: RunPolicy,
    /// What becomes of the VM when the object goes.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// What is done when the VM is proven gone.
    #[serde(default)]
    pub recreate_policy: RecreatePolicy,
}

impl MachineSpec {
    /// The tenant that is wanted.
    pub fn tenant(&self) -> &str {
        self.tenant.as_deref().unwrap_or(DEFAULT_TENANT)
    }
}

/// The template: one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    rule("has(self.template) != has(self.tags)", "name the template either by template: <vmid> or by tags: [...], not both"),
    field_rule("tags", "!has(self.tags) || self.tags.size() > 0", "name at least one tag"),
]))]
pub struct SourceSpec {
    /// By VMID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 999_999_999))]
    pub template: Option<u32>,
    /// The one that carries all of these tags; of several the one with the highest VMID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<schema::Tag>>", length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub tags: Option<Vec<String>>,
}

/// How disks are copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CloneMode {
    /// Disks that refer to the template's.
    #[default]
    Linked,
    /// Disks of its own.
    Full,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    field_rule("mtu", "!has(self.mtu) || self.mtu == 1 || self.mtu >= 576", "use 576 to 65520, or 1 for the bridge's"),
    field_rule("mtu", "!has(self.mtu) || !has(self.model) || self.model == 'virtio'", "only model virtio takes an mtu: use virtio, or leave it out"),
]))]
pub struct NicSpec {
    /// The bridge.
    #[schemars(with = "schema::InterfaceName")]
    pub bridge: String,
    /// VLAN tag, 1 to 4094; absent for untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4094))]
    pub vlan: Option<u32>,
    /// MAC address; absent to have PVE choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::MacAddress>")]
    pub mac: Option<String>,
    /// `virtio` (the default), `e1000`, `e1000e`, `rtl8139`, `vmxnet3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::NicModel>")]
    pub model: Option<String>,
    /// MTU, 576 to 65520, or 1 for the bridge's; absent for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65520))]
    pub mtu: Option<u32>,
    /// Whether PVE's firewall filters it.
    #[serde(default)]
    pub firewall: bool,
}

/// First-boot configuration. Nothing that stands here is secret; passwords are not offered. What is secret stands in a Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    field_rule("user", "!has(self.userData) || !has(self.user)", "it does not count beside userData: leave it out, and say it there"),
    field_rule(
        "sshKeys",
        "!has(self.userData) || !has(self.sshKeys) || self.sshKeys.size() == 0",
        "they do not count beside userData: leave them out, and put them there",
    ),
]))]
pub struct CloudInitSpec {
    /// Login user; absent for the image's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::UserName>")]
    pub user: Option<String>,
    /// SSH public keys in OpenSSH's format.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        with = "Vec<schema::SshKey>",
        length(max = 64),
        extend("x-kubernetes-validations" = [rule(
            "self.all(k, k.matches('^[ \\t]*(ssh-|ecdsa-|sk-ssh-|sk-ecdsa-)[^ \\t]*[ \\t]+AAAA[^\\n]*$'))",
            "use public keys in OpenSSH's format, such as 'ssh-ed25519 AAAA... name', each in one line",
        )])
    )]
    pub ssh_keys: Vec<String>,
    /// Addresses by NIC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["nic"]))]
    pub ip_configs: Vec<IpConfigSpec>,
    /// Name servers' addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<schema::IpAddress>", length(max = 16))]
    pub nameservers: Vec<String>,
    /// Search domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::DnsName>")]
    pub search_domain: Option<String>,
    /// The guest's whole user data, such as a cloud-config or a Talos machine configuration: at most 512 KiB, passed on as it is. It counts when
    /// the VM is made; what becomes of it later, here or in the object that it names, does not touch a VM that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<UserDataRef>,
}

/// Where user data is: one of the two, in the machine's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    rule("has(self.secretRef) != has(self.configMapRef)", "name the user data either by secretRef or by configMapRef, not both"),
]))]
pub struct UserDataRef {
    /// In a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<DataKeyRef>,
    /// In a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<DataKeyRef>,
}

/// A key of an object that holds data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataKeyRef {
    /// The object's name.
    #[schemars(with = "schema::ObjectName")]
    pub name: String,
    /// The key.
    #[schemars(with = "schema::DataKey")]
    pub key: String,
}

/// How the guest configures one NIC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    field_rule(
        "gateway4",
        "!has(self.gateway4) || (isIP(self.gateway4) && has(self.ipv4) && isCIDR(self.ipv4) && cidr(self.ipv4).containsIP(self.gateway4) \
         && self.ipv4.split('/')[0] != self.gateway4)",
        "use another address inside the subnet of the fixed address",
    ),
    field_rule(
        "gateway6",
        "!has(self.gateway6) || (isIP(self.gateway6) && has(self.ipv6) && isCIDR(self.ipv6) && ip(self.gateway6).family() == 6 \
         && (ip(self.gateway6).isLinkLocalUnicast() || cidr(self.ipv6).containsIP(self.gateway6)) && self.ipv6.split('/')[0] != self.gateway6)",
        "use another address inside the subnet of the fixed address, or a link-local one",
    ),
]))]
pub struct IpConfigSpec {
    /// The NIC's index; 0 is the first.
    #[serde(default)]
    #[schemars(range(min = 0, max = 31))]
    pub nic: u32,
    /// `dhcp`, or an address with prefix length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::GuestIpv4>")]
    pub ipv4: Option<String>,
    /// Gateway inside that subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::IpAddress>")]
    pub gateway4: Option<String>,
    /// `dhcp`, `auto`, or an address with prefix length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::GuestIpv6>")]
    pub ipv6: Option<String>,
    /// Gateway inside that subnet, or a link-local address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::IpAddress>")]
    pub gateway6: Option<String>,
}

/// When a VM runs. PVE cannot tell a guest that shut itself down from one that crashed, so every stop that was not ordered through pvelet
/// counts as a failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunPolicy {
    /// Always: started again whoever stopped it.
    Always,
    /// Started after it was made and again after each failure; left alone when it was stopped through pvelet (`pveletctl stop`).
    #[default]
    RerunOnFailure,
    /// Never started or stopped by the controller.
    Manual,
    /// Shut down; stopped when the guest does not obey within 180 s.
    Halted,
}

/// What becomes of a VM, or of one of its volumes, when its object goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Removed. A VM is stopped before, and takes the disks of its template with it.
    #[default]
    Delete,
    /// Left as it is.
    Retain,
}

/// What is done when a VM that was made is proven gone from its whole PVE cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RecreatePolicy {
    /// Nothing but a condition.
    #[default]
    Never,
    /// It is placed and made again, empty as its template.
    Recreate,
}
