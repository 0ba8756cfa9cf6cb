//! What the controller knows of a machine's disks. An entry stays until its volume needs nothing any more, whatever the spec says meanwhile.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ActionKind, DeletionPolicy, Quantity, disk::DiskLimits};

/// One disk and its volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskStatus {
    /// The disk's name in the spec, or the one it had there.
    pub name: String,
    /// The volume's id.
    pub volume_id: String,
    /// For people: where it stands.
    #[serde(default)]
    pub phase: DiskPhase,
    /// The storage it is on, as far as told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<String>,
    /// Its size as the guest sees it, as far as told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// The VM's slot that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// Where a Linux guest finds it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device_path: String,
    /// Whether it is made for the machine; one that is not is never deleted.
    #[serde(default)]
    pub made: bool,
    /// What becomes of it when the machine goes, or the disk leaves the spec.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Whether it was asked to be made, so that it may exist. Stored before the call.
    #[serde(default)]
    pub requested: bool,
    /// Whether it is known to exist. Once true it is never made again, since its data would be missed.
    #[serde(default)]
    pub created: bool,
    /// Whether it may be attached to the VM. Stored before the call; false only once it was detached.
    #[serde(default)]
    pub attached: bool,
    /// The node whose agent, asked to detach it, said that there is no such volume: while the VM is there it holds nothing but a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_on: Option<String>,
    /// The PVE node whose agent last had it: on a local storage, the only one that can remove it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The size that the last order made sure of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_size: Option<Quantity>,
    /// Digest of a VM's config that shows another size although it was grown: it is not grown again until somebody changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grown_digest: Option<String>,
    /// The limits that it was given last; absent when they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<DiskLimits>,
    /// Identifies the options, without limits, that it was attached with; absent when they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options_hash: Option<String>,
    /// The last thing done with it that worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<ActionKind>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_time: Option<Timestamp>,
}

/// For people: where a disk stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DiskPhase {
    /// Not made, or not attached.
    #[default]
    Pending,
    /// Made, and attached to nothing.
    Detached,
    /// Attached; the guest sees it from its next start.
    AttachedFromNextStart,
    /// Attached.
    Attached,
    /// Not wanted any more: being detached, and deleted unless it is retained.
    Leaving,
}

impl DiskStatus {
    /// Whether it is to be deleted once nothing needs it any more.
    pub fn is_to_be_deleted(&self) -> bool {
        self.made && self.requested && self.deletion_policy == DeletionPolicy::Delete
    }
}
