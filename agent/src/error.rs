//! The agent's one error type, and its only way to the wire.

use std::time::Duration;

use pvelet_proto::reason;
use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// What is wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, such as `config.nics[0].bridge`.
    pub field: String,
    /// Value, what is wrong with it, and the remedy.
    pub description: String,
    /// A constant of [`reason`].
    pub reason: &'static str,
}

impl Violation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, reason: &'static str, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into(), reason }
    }
}

fn join(violations: &[Violation]) -> String {
    violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect::<Vec<_>>().join("; ")
}

/// How a look at the host failed: what a check makes of it depends on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// There is no such file, socket, unit or program.
    Missing,
    /// There is one of that name already.
    Taken,
    /// It may not be read or asked.
    Denied,
    /// Nobody listens.
    Refused,
    /// No answer before the deadline.
    Silent,
    /// The answer is not what the protocol or the format says.
    Garbled,
    /// The other side does not know the question.
    Unsupported,
    /// It answered that it failed.
    Failed,
}

/// Why a call or an operation failed. Each variant has one reason and one code (see the table in `docs/api.md`).
#[derive(Debug, Clone, PartialEq, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("{}", join(.0))]
    Invalid(Vec<Violation>),

    #[error("no VM {what} in this PVE cluster; `pveletctl vms --all-nodes` lists those that exist")]
    VmNotFound { what: String },
    #[error("no template with {what} on node {node}; make one there, or clone on a host that has it")]
    TemplateNotFound { what: String, node: String },
    #[error("storage '{storage}' does not exist on node {node}; `pveletctl get host {node}` lists its storages")]
    StorageNotFound { storage: String, node: String },
    #[error("bridge '{bridge}' does not exist on node {node}; `pveletctl get host {node}` lists its bridges")]
    BridgeNotFound { bridge: String, node: String },
    #[error("pool '{pool}' does not exist; create it in PVE first")]
    PoolNotFound { pool: String },
    #[error("no operation '{name}'; operations are kept for 24 hours after their end")]
    OperationNotFound { name: String },

    #[error("no volume {id} {}; `pveletctl volumes` lists those that exist", if .storage.is_empty() { "on the storages of this node".to_owned() } else { format!("on storage '{}'", .storage) })]
    VolumeNotFound { id: String, storage: String },
    #[error("volume {id} has no snapshot '{snapshot}'; `pveletctl get volume {id}` lists its snapshots")]
    SnapshotNotFound { id: String, snapshot: String },
    #[error("no image '{image}' {place}")]
    ImageNotFound { image: String, place: String },

    #[error("VMID {vmid} is in use{}; choose another, or 0 to let the agent choose", .node.as_ref().map(|n| format!(" on node {n}")).unwrap_or_default())]
    VmidInUse { vmid: u32, node: Option<String> },
    #[error("machine {machine_uid} has VM {vmid} on node {node} already; a machine has one VM at most")]
    MachineHasVm { machine_uid: String, vmid: u32, node: String },
    #[error("request_id '{request_id}' of tenant '{tenant}' was used for another request ({operation}); use a new id for a new request")]
    RequestIdReused { tenant: String, request_id: String, operation: String },

    #[error("volume {id} exists already: {detail}; choose another id")]
    VolumeExists { id: String, detail: String, volid: Option<String> },

    #[error("VM {vmid} is locked by PVE ({lock}); wait for that job to end")]
    VmLocked { vmid: u32, lock: String },
    #[error("{holder} has been working on {target} for {} s; wait for it", .age.as_secs())]
    OperationInProgress { target: String, holder: String, age: Duration },
    #[error("PVE's lock on {what} was not free before the deadline; try again")]
    LockTimeout { what: String },
    #[error("the config of VM {vmid} was changed by somebody else meanwhile; read it again")]
    ConfigChanged { vmid: u32 },

    #[error("the guest of VM {vmid} does not let go of {slot}, which is still attached; unmount it there, or stop the VM")]
    GuestHoldsDisk { vmid: u32, slot: String },

    #[error("node {node} has no quorum, so PVE's configuration cannot be changed; bring the other nodes or the cluster network back")]
    NoQuorum { node: String },
    #[error("PVE's local daemon does not answer ({detail}); check `systemctl status pvedaemon`")]
    PveDown { detail: String },
    #[error("PVE's local daemon took the call and gave no answer ({detail}); whether it was carried out is not known yet")]
    PveAnswerLost { detail: String },
    #[error("the cluster file system does not answer ({detail}); check `systemctl status pve-cluster`")]
    PveFsHung { detail: String },
    #[error("storage '{storage}' is offline: {detail}")]
    StorageOffline { storage: String, detail: String },
    #[error("the agent is shutting down; try again")]
    AgentDraining,
    #[error("the agent was restarted before anything was done; try again")]
    AgentRestarted,
    #[error("the agent was restarted before the user data was on the disk, and does not have it any more; send it again")]
    UserDataLost,

    #[error("storage '{storage}' is full: {detail}")]
    StorageFull { storage: String, detail: String },
    #[error("no free VMID between {first} and {last}; widen vmid_range in the agent's configuration")]
    VmidRangeExhausted { first: u32, last: u32 },
    #[error("quota used up: {what}")]
    Quota { what: String },
    #[error("too many {what} are under way; try again later")]
    Overloaded { what: &'static str },
    #[error("the client read its stream too slowly; open it again")]
    SlowConsumer,

    #[error("VM {vmid} is protected; clear its protection first")]
    VmProtected { vmid: u32 },
    #[error("VM {vmid} is running; stop it first")]
    VmRunning { vmid: u32 },
    #[error("VM {vmid} is not running")]
    VmNotRunning { vmid: u32 },
    #[error("VM {vmid} is a template")]
    VmIsTemplate { vmid: u32 },
    #[error("VM {vmid} is no template; convert it first")]
    NotATemplate { vmid: u32 },
    #[error("VM {vmid} is managed by PVE's HA manager; remove it from HA first")]
    VmHaManaged { vmid: u32 },
    #[error("VM {vmid} has a replication job; remove it first")]
    VmReplicated { vmid: u32 },
    #[error("template {vmid} is in use by linked clones: {detail}")]
    TemplateInUse { vmid: u32, detail: String },
    #[error("VM {vmid} has UUID {found}, not {expected}: the VMID was freed and used again; read the list again")]
    UuidMismatch { vmid: u32, expected: String, found: String },
    #[error("UUID {uuid} belongs to several VMs ({}); give all but one a new UUID", .vmids.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))]
    AmbiguousUuid { uuid: String, vmids: Vec<u32> },
    #[error("VM {vmid} is on node {node}; ask the agent there")]
    VmOnOtherHost { vmid: u32, node: String },
    #[error("this agent only observes; set mode = \"manage\" in its configuration to allow changes")]
    ObserveOnly,
    #[error("controller '{controller}' has a newer leader (epoch {newest}, this call came with {given})")]
    StaleEpoch { controller: String, newest: u64, given: u64 },
    #[error(
        "controller '{controller}' comes with lease {given}, known is {known}; an administrator who knows that the known one is gone accepts it with `pveletctl accept-controller {controller} --lease {given}`"
    )]
    UnknownLease { controller: String, known: String, given: String },
    #[error("VM {vmid} has no cloud-init drive; add one to the template")]
    NoCloudInitDrive { vmid: u32 },
    #[error("storage '{storage}' cannot keep user data: {why}; or name another one as vm.snippets_storage in the agent's configuration")]
    UserDataStorage { storage: String, why: String },
    #[error("VM {vmid} is gone, yet these volumes could not be removed: {}; remove them when their storage works again", .volumes.join(", "))]
    DiskLeft { vmid: u32, volumes: Vec<String> },
    #[error("{name} cannot be cancelled: {why}")]
    NotCancellable { name: String, why: &'static str },
    #[error("node {node} is shutting down or in maintenance; try another host")]
    HostShuttingDown { node: String },
    #[error("{what} was not made by pvelet for this owner, so it is not touched")]
    NotOurs { what: String },

    #[error("volume {id} is in use by VM {vmid} on node {node} ({how}); {remedy}")]
    VolumeInUse { id: String, vmid: u32, node: String, slot: String, how: String, remedy: &'static str },
    #[error("volume {id} is attached to no VM; attach it first")]
    VolumeNotAttached { id: String },
    #[error("volume {id} has snapshots ({}), {why}; delete them first", .snapshots.join(", "))]
    VolumeHasSnapshots { id: String, snapshots: Vec<String>, why: &'static str },
    #[error("snapshot '{snapshot}' of volume {id} is not the newest, and its storage brings back only that; delete {} first", .newer.join(", "))]
    SnapshotNotNewest { id: String, snapshot: String, newer: Vec<String> },
    #[error("several volumes have id {id} ({}); remove or rename all but one", .volids.join(", "))]
    AmbiguousVolume { id: String, volids: Vec<String> },
    #[error("storage '{storage}' cannot do it: {why}")]
    StorageUnsupported { storage: String, why: String },
    #[error(
        "VM {vmid} has no free slot for a volume (scsi{first} to scsi{last}); detach one, or raise volumes.max_slots in the agent's configuration"
    )]
    NoFreeSlot { vmid: u32, first: u32, last: u32 },
    #[error("{slot} of VM {vmid} is {what}, which is not detached")]
    DiskNotDetachable { vmid: u32, slot: String, what: &'static str },
    #[error("volumes would be lost with VM {vmid}: {}; detach them first (`pveletctl volumes detach`)", .volumes.join(", "))]
    VolumesRetained { vmid: u32, volumes: Vec<String> },

    #[error("VMID {vmid} is reserved for volumes (volumes.owner_vmid), yet a guest on node {node} has it; give that guest another VMID")]
    ReservedIdTaken { vmid: u32, node: String },

    #[error("this host has no link '{interface}'; `pveletctl network show` lists its links")]
    InterfaceNotFound { interface: String },
    #[error("the host's network was changed by somebody else meanwhile ({what}); plan again")]
    NetworkChanged { what: String },
    #[error("the change was undone and the host is as it was: {why}")]
    NetworkRolledBack { why: String },
    #[error("interface '{interface}' belongs to {owner}; choose another name, or remove it there")]
    InterfaceTaken { interface: String, owner: String },
    #[error("the change would touch '{interface}', which carries this host's {path}; make such a change at the console")]
    ManagementPath { interface: String, path: String },
    #[error("{what} is in use by {}; move them away first", .users.join(", "))]
    NetworkInUse { what: String, users: Vec<String> },
    #[error("somebody's change of the network waits ({change}); apply or discard it first")]
    ForeignChangePending { change: String },
    #[error("preflight failed: {}", .checks.iter().map(|(id, seen)| format!("{id}: {seen}")).collect::<Vec<_>>().join("; "))]
    NetworkPreflight { checks: Vec<(String, String)> },
    #[error("{operation} could not be undone ({why}); put the network right, then `pveletctl network clear`")]
    NetworkLatched { operation: String, why: String },
    #[error("{what}, so there is nothing to confirm or undo")]
    NetworkNotWaiting { what: String },
    #[error("this connection was opened before the change was applied and proves nothing; open a new one")]
    StaleConnection,
    #[error("{message}")]
    NetworkFailed { message: String },
    #[error("the change could not be undone: {why}; the network is latched until a person has put it right (`pveletctl network clear`)")]
    NetworkRollbackFailed { why: String },

    #[error("no check '{id}'; `pveletctl health` lists those that exist")]
    CheckNotFound { id: String },
    #[error("{what} is not repaired: `policy` of [repair] is \"{policy}\" in the agent's configuration")]
    RepairOff { what: String, policy: &'static str },
    #[error("{check} cannot be repaired by the agent: {why}")]
    RepairNotPossible { check: String, why: String },
    #[error("nothing is repaired since two repairs in a row have failed ({why}); look at the host, then `pveletctl repair --clear`")]
    RepairLatched { why: String },
    #[error("{file} was changed by somebody else while it was being repaired, and stays as they wrote it; ask again")]
    RepairChanged { file: String },
    #[error("the repair did not help ({why}); what it changed is as before")]
    RepairFailed { why: String },
    #[error("the repair did not help, and could not be undone: {why}; nothing more is repaired until `pveletctl repair --clear`")]
    RepairRestoreFailed { why: String },
    #[error("{file}: {why}")]
    CrlOlder { file: String, why: String },
    #[error("your own certificate ({caller}) would not be accepted afterwards ({why}); call with one that will be, or leave your CA in")]
    CallerLockedOut { caller: String, why: String },
    #[error("{file}: {why}; what was in use stays in use")]
    CertificateFiles { file: String, why: String },
    /// Of a look at the host, for checks: no call ends with it.
    #[error("{message}")]
    Look { trouble: Trouble, message: String },

    #[error("role {role} may not call {method}; it needs {needed}")]
    Role { role: String, method: String, needed: String },
    #[error("{caller} may not act for tenant '{tenant}'")]
    ScopeTenant { caller: String, tenant: String },
    #[error("{caller} may not touch VM {vmid}, which belongs to another owner")]
    ScopeVm { caller: String, vmid: u32 },

    #[error("{caller} may not touch {what}; widen its `vlans` in the agent's configuration")]
    ScopeNetwork { caller: String, what: String },

    #[error("the guest of VM {vmid} did not shut down within {} s; use force_stop, or stop it", .after.as_secs())]
    ShutdownTimeout { vmid: u32, after: Duration },
    #[error("the operation did not end within {} s: {what}", .after.as_secs())]
    OperationTimeout { after: Duration, what: String },
    #[error("cancelled by {by}")]
    Cancelled { by: String },

    #[error("PVE failed: {message}")]
    PveFailed { message: String, upid: Option<String> },
    #[error("storage '{storage}': {message}")]
    StorageFailed { storage: String, message: String },
    #[error("journal {path}: {detail}")]
    Journal { path: String, detail: String },
    #[error("journal {path}: another pvelet-agent uses it; two agents on one state would clone twice")]
    JournalInUse { path: String },
    #[error("{file} {why}")]
    Credentials { file: String, why: String },
    #[error("{0}")]
    Start(String),
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    /// One violation as an error.
    pub fn invalid(field: impl Into<String>, reason: &'static str, description: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(field, reason, description)])
    }

    /// The reason, a constant of [`reason`].
    pub fn reason(&self) -> &'static str {
        self.class().1
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.class().0
    }

    /// Whether the same call may succeed later without anybody changing anything on purpose.
    pub fn retryable(&self) -> bool {
        matches!(self.code(), Code::Aborted | Code::Unavailable) || matches!(self, Self::Overloaded { .. } | Self::SlowConsumer)
    }

    fn class(&self) -> (Code, &'static str) {
        use Code as C;
        match self {
            Self::Invalid(v) => (C::InvalidArgument, v.first().map_or(reason::INVALID_FIELD, |v| v.reason)),
            Self::VmNotFound { .. } => (C::NotFound, reason::VM_NOT_FOUND),
            Self::TemplateNotFound { .. } => (C::NotFound, reason::TEMPLATE_NOT_FOUND),
            Self::StorageNotFound { .. } => (C::NotFound, reason::STORAGE_NOT_FOUND),
            Self::BridgeNotFound { .. } => (C::NotFound, reason::BRIDGE_NOT_FOUND),
            Self::PoolNotFound { .. } => (C::NotFound, reason::POOL_NOT_FOUND),
            Self::OperationNotFound { .. } => (C::NotFound, reason::OPERATION_NOT_FOUND),
            Self::VolumeNotFound { .. } => (C::NotFound, reason::VOLUME_NOT_FOUND),
            Self::SnapshotNotFound { .. } => (C::NotFound, reason::SNAPSHOT_NOT_FOUND),
            Self::ImageNotFound { .. } => (C::NotFound, reason::IMAGE_NOT_FOUND),
            Self::VolumeExists { .. } => (C::AlreadyExists, reason::VOLUME_EXISTS),
            Self::VmidInUse { .. } => (C::AlreadyExists, reason::VMID_IN_USE),
            Self::MachineHasVm { .. } => (C::AlreadyExists, reason::MACHINE_HAS_VM),
            Self::RequestIdReused { .. } => (C::AlreadyExists, reason::REQUEST_ID_REUSED),
            Self::VmLocked { .. } => (C::Aborted, reason::VM_LOCKED),
            Self::OperationInProgress { .. } => (C::Aborted, reason::OPERATION_IN_PROGRESS),
            Self::LockTimeout { .. } => (C::Aborted, reason::LOCK_TIMEOUT),
            Self::ConfigChanged { .. } => (C::Aborted, reason::CONFIG_CHANGED),
            Self::GuestHoldsDisk { .. } => (C::Aborted, reason::GUEST_HOLDS_DISK),
            Self::NoQuorum { .. } => (C::Unavailable, reason::NO_QUORUM),
            Self::PveDown { .. } => (C::Unavailable, reason::PVE_DOWN),
            Self::PveAnswerLost { .. } => (C::Unavailable, reason::PVE_DOWN),
            Self::PveFsHung { .. } => (C::Unavailable, reason::PVE_FS_HUNG),
            Self::StorageOffline { .. } => (C::Unavailable, reason::STORAGE_OFFLINE),
            Self::AgentRestarted => (C::Unavailable, reason::AGENT_RESTARTED),
            Self::UserDataLost => (C::Unavailable, reason::USER_DATA_LOST),
            Self::AgentDraining => (C::Unavailable, reason::AGENT_DRAINING),
            Self::StorageFull { .. } => (C::ResourceExhausted, reason::STORAGE_FULL),
            Self::VmidRangeExhausted { .. } => (C::ResourceExhausted, reason::VMID_RANGE_EXHAUSTED),
            Self::Quota { .. } => (C::ResourceExhausted, reason::QUOTA),
            Self::Overloaded { .. } => (C::ResourceExhausted, reason::OVERLOADED),
            Self::SlowConsumer => (C::ResourceExhausted, reason::SLOW_CONSUMER),
            Self::VmProtected { .. } => (C::FailedPrecondition, reason::VM_PROTECTED),
            Self::VmRunning { .. } => (C::FailedPrecondition, reason::VM_RUNNING),
            Self::VmNotRunning { .. } => (C::FailedPrecondition, reason::VM_NOT_RUNNING),
            Self::VmIsTemplate { .. } => (C::FailedPrecondition, reason::VM_IS_TEMPLATE),
            Self::NotATemplate { .. } => (C::FailedPrecondition, reason::NOT_A_TEMPLATE),
            Self::VmHaManaged { .. } => (C::FailedPrecondition, reason::VM_HA_MANAGED),
            Self::VmReplicated { .. } => (C::FailedPrecondition, reason::VM_REPLICATED),
            Self::TemplateInUse { .. } => (C::FailedPrecondition, reason::TEMPLATE_IN_USE),
            Self::UuidMismatch { .. } => (C::FailedPrecondition, reason::UUID_MISMATCH),
            Self::AmbiguousUuid { .. } => (C::FailedPrecondition, reason::AMBIGUOUS_UUID),
            Self::VmOnOtherHost { .. } => (C::FailedPrecondition, reason::VM_ON_OTHER_HOST),
            Self::ObserveOnly => (C::FailedPrecondition, reason::OBSERVE_ONLY),
            Self::StaleEpoch { .. } => (C::FailedPrecondition, reason::STALE_EPOCH),
            Self::UnknownLease { .. } => (C::FailedPrecondition, reason::UNKNOWN_LEASE),
            Self::NoCloudInitDrive { .. } => (C::FailedPrecondition, reason::NO_CLOUD_INIT_DRIVE),
            Self::UserDataStorage { .. } => (C::FailedPrecondition, reason::USER_DATA_STORAGE),
            Self::DiskLeft { .. } => (C::FailedPrecondition, reason::DISK_LEFT),
            Self::NotCancellable { .. } => (C::FailedPrecondition, reason::NOT_CANCELLABLE),
            Self::HostShuttingDown { .. } => (C::FailedPrecondition, reason::HOST_SHUTTING_DOWN),
            Self::NotOurs { .. } => (C::FailedPrecondition, reason::NOT_OURS),
            Self::VolumeInUse { .. } => (C::FailedPrecondition, reason::VOLUME_IN_USE),
            Self::VolumeNotAttached { .. } => (C::FailedPrecondition, reason::VOLUME_NOT_ATTACHED),
            Self::VolumeHasSnapshots { .. } => (C::FailedPrecondition, reason::VOLUME_HAS_SNAPSHOTS),
            Self::SnapshotNotNewest { .. } => (C::FailedPrecondition, reason::SNAPSHOT_NOT_NEWEST),
            Self::AmbiguousVolume { .. } => (C::FailedPrecondition, reason::AMBIGUOUS_VOLUME),
            Self::StorageUnsupported { .. } => (C::FailedPrecondition, reason::STORAGE_UNSUPPORTED),
            Self::NoFreeSlot { .. } => (C::FailedPrecondition, reason::NO_FREE_SLOT),
            Self::DiskNotDetachable { .. } => (C::FailedPrecondition, reason::DISK_NOT_DETACHABLE),
            Self::VolumesRetained { .. } => (C::FailedPrecondition, reason::VOLUMES_RETAINED),
            Self::ReservedIdTaken { .. } => (C::FailedPrecondition, reason::RESERVED_ID_TAKEN),
            Self::InterfaceNotFound { .. } => (C::NotFound, reason::INTERFACE_NOT_FOUND),
            Self::NetworkChanged { .. } => (C::Aborted, reason::NETWORK_CHANGED),
            Self::NetworkRolledBack { .. } => (C::FailedPrecondition, reason::NETWORK_ROLLED_BACK),
            Self::InterfaceTaken { .. } => (C::FailedPrecondition, reason::INTERFACE_TAKEN),
            Self::ManagementPath { .. } => (C::FailedPrecondition, reason::MANAGEMENT_PATH),
            Self::NetworkInUse { .. } => (C::FailedPrecondition, reason::NETWORK_IN_USE),
            Self::ForeignChangePending { .. } => (C::FailedPrecondition, reason::FOREIGN_CHANGE_PENDING),
            Self::NetworkPreflight { .. } => (C::FailedPrecondition, reason::NETWORK_PREFLIGHT),
            Self::NetworkLatched { .. } => (C::FailedPrecondition, reason::NETWORK_LATCHED),
            Self::NetworkNotWaiting { .. } => (C::FailedPrecondition, reason::NETWORK_NOT_WAITING),
            Self::StaleConnection => (C::FailedPrecondition, reason::STALE_CONNECTION),
            Self::NetworkFailed { .. } => (C::Unknown, reason::NETWORK_FAILED),
            Self::NetworkRollbackFailed { .. } => (C::Internal, reason::NETWORK_ROLLBACK_FAILED),
            Self::CheckNotFound { .. } => (C::NotFound, reason::CHECK_NOT_FOUND),
            Self::RepairOff { .. } => (C::FailedPrecondition, reason::REPAIR_OFF),
            Self::RepairNotPossible { .. } => (C::FailedPrecondition, reason::REPAIR_NOT_POSSIBLE),
            Self::RepairLatched { .. } => (C::FailedPrecondition, reason::REPAIR_LATCHED),
            Self::RepairChanged { .. } => (C::FailedPrecondition, reason::REPAIR_CHANGED),
            Self::RepairFailed { .. } => (C::Internal, reason::REPAIR_FAILED),
            Self::RepairRestoreFailed { .. } => (C::Internal, reason::REPAIR_RESTORE_FAILED),
            Self::CrlOlder { .. } => (C::FailedPrecondition, reason::CRL_OLDER),
            Self::CallerLockedOut { .. } => (C::FailedPrecondition, reason::CALLER_LOCKED_OUT),
            Self::CertificateFiles { .. } => (C::FailedPrecondition, reason::CERTIFICATE_FILES),
            Self::Look { .. } => (C::Internal, reason::INTERNAL),
            Self::ScopeNetwork { .. } => (C::PermissionDenied, reason::SCOPE_NETWORK),
            Self::Role { .. } => (C::PermissionDenied, reason::ROLE),
            Self::ScopeTenant { .. } => (C::PermissionDenied, reason::SCOPE_TENANT),
            Self::ScopeVm { .. } => (C::PermissionDenied, reason::SCOPE_VM),
            Self::ShutdownTimeout { .. } => (C::DeadlineExceeded, reason::SHUTDOWN_TIMEOUT),
            Self::OperationTimeout { .. } => (C::DeadlineExceeded, reason::OPERATION_TIMEOUT),
            Self::Cancelled { .. } => (C::Cancelled, reason::CANCELLED),
            Self::PveFailed { .. } => (C::Unknown, reason::PVE_FAILED),
            Self::StorageFailed { .. } => (C::Unknown, reason::STORAGE_FAILED),
            Self::Journal { .. } | Self::JournalInUse { .. } => (C::Internal, reason::INTERNAL),
            Self::Credentials { .. } | Self::Start(_) | Self::Internal(_) => (C::Internal, reason::INTERNAL),
        }
    }

    /// What a program needs to know beyond the reason.
    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::VmOnOtherHost { vmid, node } => vec![("vmid", vmid.to_string()), ("node", node.clone())],
            Self::VmidInUse { vmid, node } => {
                let mut m = vec![("vmid", vmid.to_string())];
                m.extend(node.as_ref().map(|n| ("node", n.clone())));
                m
            }
            Self::MachineHasVm { vmid, node, .. } => vec![("vmid", vmid.to_string()), ("node", node.clone())],
            Self::VmLocked { vmid, lock } => vec![("vmid", vmid.to_string()), ("lock", lock.clone())],
            Self::OperationInProgress { holder, age, .. } => {
                vec![("operation", holder.clone()), ("age_seconds", age.as_secs().to_string())]
            }
            Self::RequestIdReused { operation, .. } => vec![("operation", operation.clone())],
            Self::UuidMismatch { vmid, found, .. } => vec![("vmid", vmid.to_string()), ("found", found.clone())],
            Self::AmbiguousUuid { vmids, .. } => vec![("vmids", vmids.iter().map(u32::to_string).collect::<Vec<_>>().join(","))],
            Self::DiskLeft { volumes, .. } => vec![("volumes", volumes.join(","))],
            Self::VolumeExists { volid: Some(volid), .. } => vec![("volid", volid.clone())],
            Self::GuestHoldsDisk { vmid, slot } => vec![("vmid", vmid.to_string()), ("slot", slot.clone())],
            Self::VolumeInUse { vmid, node, slot, .. } => {
                vec![("vmid", vmid.to_string()), ("node", node.clone()), ("slot", slot.clone())]
            }
            Self::VolumeHasSnapshots { snapshots, .. } => vec![("snapshots", snapshots.join(","))],
            Self::SnapshotNotNewest { newer, .. } => vec![("snapshots", newer.join(","))],
            Self::AmbiguousVolume { volids, .. } => vec![("volids", volids.join(","))],
            Self::StorageUnsupported { storage, .. } | Self::StorageFailed { storage, .. } => vec![("storage", storage.clone())],
            Self::VolumesRetained { volumes, .. } => vec![("volumes", volumes.join(","))],
            Self::StorageFull { storage, .. } | Self::StorageOffline { storage, .. } => vec![("storage", storage.clone())],
            Self::InterfaceTaken { interface, owner } => vec![("interface", interface.clone()), ("owner", owner.clone())],
            Self::ManagementPath { interface, path } => vec![("interface", interface.clone()), ("path", path.clone())],
            Self::InterfaceNotFound { interface } => vec![("interface", interface.clone())],
            Self::NetworkInUse { users, .. } => vec![("users", users.join(","))],
            Self::ForeignChangePending { change } => vec![("change", change.clone())],
            Self::NetworkPreflight { checks } => vec![("checks", checks.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>().join(","))],
            Self::NetworkLatched { operation, .. } => vec![("operation", operation.clone())],
            Self::StaleEpoch { newest, .. } => vec![("newest", newest.to_string())],
            Self::PveFailed { upid: Some(upid), .. } => vec![("upid", upid.clone())],
            _ => Vec::new(),
        }
    }

    /// The error as it goes over the wire: code, message, and `google.rpc.ErrorInfo` (with `BadRequest` for field violations).
    pub fn to_status(&self) -> Status {
        let (code, reason) = self.class();
        let metadata = self.metadata().into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<std::collections::HashMap<_, _>>();
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, reason::DOMAIN, metadata);
        if let Self::Invalid(violations) = self {
            for v in violations {
                details.add_bad_request_violation(v.field.clone(), v.description.clone());
            }
        }
        Status::with_error_details(code, self.to_string(), details)
    }

    /// The error as it stands in `Operation.error`: the same code, message and details.
    pub fn to_rpc_status(&self) -> tonic_types::pb::Status {
        let status = self.to_status();
        prost::Message::decode(status.details()).unwrap_or_else(|_| tonic_types::pb::Status {
            code: self.code().into(),
            message: self.to_string(),
            details: Vec::new(),
        })
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.to_status()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_status_carries_reason_domain_and_metadata() {
        let status = Error::VmOnOtherHost { vmid: 100, node: "pve2".into() }.to_status();
        let info = status.get_details_error_info().unwrap();
        assert_eq!((status.code(), info.reason.as_str(), info.domain.as_str()), (Code::FailedPrecondition, "VM_ON_OTHER_HOST", "pvelet"));
        assert_eq!(info.metadata["node"], "pve2");
    }

    #[test]
    fn each_violation_is_told_with_its_field() {
        let error = Error::Invalid(vec![
            Violation::new("config.name", reason::INVALID_NAME, "'a_b' is not a DNS name: use letters"),
            Violation::new("vmid", reason::VMID_OUT_OF_RANGE, "5 is outside 100 to 200"),
        ]);
        let status = error.to_status();
        let bad = status.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations.iter().map(|v| v.field.as_str()).collect::<Vec<_>>(), ["config.name", "vmid"]);
        assert_eq!(error.reason(), reason::INVALID_NAME);
    }
}
