//! What the controller knows of a machine. Everything needed to go on after a crash stands here, written before the step it is about.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, DiskStatus};

/// What is known of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineStatus {
    /// The generation of the spec this was found for.
    #[serde(default)]
    pub observed_generation: i64,
    /// For people.
    #[serde(default)]
    pub phase: Phase,
    /// The `PveHost` that has the machine: the one chosen, later the one whose node holds the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The tenant it was made for; a later change of the spec does not count, because request ids belong to a tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The PVE cluster of that host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The PVE node that holds the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The VM's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmid: Option<u32>,
    /// The VM's SMBIOS UUID: what it is known by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Whether the VM was made. Once true, none is made again unless its absence is proven and `recreatePolicy` says so.
    #[serde(default)]
    pub created: bool,
    /// Whether an agent has told of the VM since it was made.
    #[serde(default)]
    pub seen: bool,
    /// The number of the last attempt at anything; part of each request id, and stored before the call.
    #[serde(default)]
    pub attempt: u64,
    /// What is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Box<Attempt>>,
    /// The last thing that worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<Success>,
    /// What failed and is tried again, at most one for each action and disk; empty when nothing is in the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
    /// The generation whose settings the VM was given.
    #[serde(default)]
    pub configured_generation: i64,
    /// The generation whose settings the VM was seen to have.
    #[serde(default)]
    pub verified_generation: i64,
    /// Digest of a VM's config that differs from the spec although it was set so: it is not set again until somebody changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured_digest: Option<String>,
    /// SHA-256 of the cloud-init settings that the VM was given; its keys cannot be read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init_hash: Option<String>,
    /// How often in a row the VM stopped soon after it was started.
    #[serde(default)]
    pub quick_stops: u32,
    /// When the VM's present or last run began, by its host's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_start: Option<Timestamp>,
    /// The operation by which somebody stopped the VM through pvelet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<String>,
    /// The guest's fixed addresses as ordered by `cloudInit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The uid that the ids of made disks follow from, where it is not the object's own: that of the object for which an adopted VM was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks_uid: Option<String>,
    /// The disks of `spec.disks`, and those that left it and still need something done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskStatus>,
    /// `Placed`, `Created`, `Configured`, `DisksReady`, `Running`, `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// For people: where a machine stands. Programs look at the conditions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Not placed.
    #[default]
    Pending,
    /// Being made.
    Creating,
    /// Being configured.
    Configuring,
    /// Being started.
    Starting,
    /// It runs.
    Running,
    /// Being shut down.
    Stopping,
    /// It does not run.
    Stopped,
    /// Being removed.
    Deleting,
    /// The VM was made and is proven gone.
    Gone,
    /// Nothing can be told, because no agent that could is reachable.
    Unknown,
    /// Something is wrong that an attempt or a person must mend; see the conditions.
    Failed,
}

impl MachineStatus {
    /// The last failure of an action on the VM, unless it worked since.
    pub fn failure_of(&self, action: ActionKind) -> Option<&Failure> {
        self.failure_with(action, None)
    }

    /// The last failure of an action on the VM or on a volume, unless it worked since.
    pub fn failure_with(&self, action: ActionKind, volume: Option<&str>) -> Option<&Failure> {
        self.failures.iter().find(|f| f.action == action && f.volume.as_deref() == volume)
    }

    /// A disk by its volume's id.
    pub fn disk(&self, volume: &str) -> Option<&DiskStatus> {
        self.disks.iter().find(|d| d.volume_id == volume)
    }

    /// Takes times that lie after `now` for now: a clock that was set back would make every pause as long as it was set back by.
    pub(crate) fn not_after(&mut self, now: Timestamp) {
        let times = self.last_success.iter_mut().map(|s| &mut s.time).chain(self.failures.iter_mut().map(|f| &mut f.time));
        let times = times.chain(self.disks.iter_mut().filter_map(|d| d.last_time.as_mut()));
        times.for_each(|time| *time = now.min(*time));
    }
}

impl Phase {
    /// Every phase.
    pub const ALL: &[Self] = &[
        Self::Pending,
        Self::Creating,
        Self::Configuring,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Stopped,
        Self::Deleting,
        Self::Gone,
        Self::Unknown,
        Self::Failed,
    ];
}

/// What an attempt does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ActionKind {
    /// Makes the VM.
    Clone,
    /// Changes settings.
    Configure,
    /// Starts it.
    Start,
    /// Shuts it down.
    Shutdown,
    /// Removes it.
    Delete,
    /// Makes a disk's volume.
    CreateDisk,
    /// Attaches it.
    AttachDisk,
    /// Grows it.
    GrowDisk,
    /// Sets its limits.
    SetDiskLimits,
    /// Detaches it.
    DetachDisk,
    /// Removes it.
    DeleteDisk,
}

impl ActionKind {
    /// As it stands in request ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Configure => "configure",
            Self::Start => "start",
            Self::Shutdown => "shutdown",
            Self::Delete => "delete",
            Self::CreateDisk => "create-disk",
            Self::AttachDisk => "attach-disk",
            Self::GrowDisk => "grow-disk",
            Self::SetDiskLimits => "set-disk-limits",
            Self::DetachDisk => "detach-disk",
            Self::DeleteDisk => "delete-disk",
        }
    }
}

/// An attempt under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attempt {
    /// What it does.
    pub action: ActionKind,
    /// The volume it is about, where it is about a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
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
    /// The agent's name of the operation, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The last thing that worked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Success {
    /// What was done.
    pub action: ActionKind,
    /// When the controller learned of it.
    #[schemars(with = "String")]
    pub time: Timestamp,
}

/// What failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// What was tried.
    pub action: ActionKind,
    /// With which volume, where it is about a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// On which `PveHost`.
    pub host: String,
    /// The agent's reason.
    pub reason: String,
    /// The agent's message.
    pub message: String,
    /// Whether trying again may help by itself.
    pub retryable: bool,
    /// How often in a row.
    pub count: u32,
    /// When last.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// The generation that was tried; a new one is tried at once.
    pub generation: i64,
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn a_clock_that_was_set_back_does_not_prolong_pauses() {
        let (now, hour) = (Timestamp::UNIX_EPOCH, SignedDuration::from_hours(1));
        let failure = |time| Failure {
            action: ActionKind::Clone,
            volume: None,
            host: String::new(),
            reason: String::new(),
            message: String::new(),
            retryable: true,
            count: 1,
            time,
            generation: 1,
        };
        let mut status = MachineStatus {
            last_success: Some(Success { action: ActionKind::Start, time: now + hour }),
            failures: vec![failure(now + hour), failure(now - hour)],
            ..MachineStatus::default()
        };
        status.not_after(now);
        let times: Vec<Timestamp> = status.failures.iter().map(|f| f.time).collect();
        assert_eq!((status.last_success.map(|s| s.time), times), (Some(now), vec![now, now - hour]));
    }
}
