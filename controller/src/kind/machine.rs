//! `PveMachine`: a VM that is to exist exactly once.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, DiskSpec, FieldError, Kind, MachineStatus, Metadata, Object, Quantity, machine_check};

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
}

/// The VM that is wanted. What is left out stays as the template has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineSpec {
    /// Name of the `PveHost` to make it on; absent to have one chosen. Counts only until the machine is placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Labels that a chosen host must carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_selector: BTreeMap<String, String>,
    /// The tenant whose VM it is.
    #[serde(default = "default_tenant")]
    pub tenant: String,
    /// The template.
    pub source: SourceSpec,
    /// How its disks are copied.
    #[serde(default)]
    pub clone_mode: CloneMode,
    /// Target storage of a full clone; absent for the template's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<String>,
    /// Pool to put the VM into when it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// VMID inside the host's range; absent to have the agent choose. Counts only when the VM is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmid: Option<u32>,
    /// The VM's name; absent for the object's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Cores for each socket, 1 to 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Sockets, 1 to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
    /// Memory, at least 16Mi, in whole MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Size of the boot disk, in whole MiB; it can only grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_disk: Option<Quantity>,
    /// Disks beside those of the template, each a volume with a life of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// All network interfaces, net0 first; absent to keep the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicSpec>>,
    /// First-boot configuration of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInitSpec>,
    /// All tags; absent to keep the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

fn default_tenant() -> String {
    "default".to_owned()
}

/// The template: one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceSpec {
    /// By VMID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<u32>,
    /// The one that carries all of these tags; of several the one with the highest VMID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
pub struct NicSpec {
    /// The bridge.
    pub bridge: String,
    /// VLAN tag, 1 to 4094; absent for untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u32>,
    /// MAC address; absent to have PVE choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// `virtio` (the default), `e1000`, `e1000e`, `rtl8139`, `vmxnet3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// MTU, 576 to 65520, or 1 for the bridge's; absent for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether PVE's firewall filters it.
    #[serde(default)]
    pub firewall: bool,
}

/// First-boot configuration. Nothing of it is secret; passwords are not offered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloudInitSpec {
    /// Login user; absent for the image's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// SSH public keys in OpenSSH's format.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Addresses by NIC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_configs: Vec<IpConfigSpec>,
    /// Name servers' addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Search domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_domain: Option<String>,
}

/// How the guest configures one NIC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpConfigSpec {
    /// The NIC's index; 0 is the first.
    #[serde(default)]
    pub nic: u32,
    /// `dhcp`, or an address with prefix length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// Gateway inside that subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway4: Option<String>,
    /// `dhcp`, `auto`, or an address with prefix length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// Gateway inside that subnet, or a link-local address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
