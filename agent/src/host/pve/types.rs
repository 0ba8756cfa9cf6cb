//! What is read from and asked of PVE.

use std::{collections::BTreeMap, fmt, sync::Arc, time::SystemTime};

use super::config_file::ConfigFile;

/// The whole PVE cluster as seen from this node, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// This node.
    pub node: String,
    /// The cluster's name; the node's name when it stands alone.
    pub cluster: String,
    /// Whether this node may write.
    pub quorate: bool,
    /// All nodes; this one alone when there is no cluster.
    pub nodes: Vec<NodeInfo>,
    /// All QEMU VMs by VMID.
    pub vms: BTreeMap<u32, Arc<VmRecord>>,
    /// Every VMID of `.vmlist`, containers included, with its node: none of these may be used for a new VM.
    pub vmids: BTreeMap<u32, String>,
    /// Since when the cluster file system has not answered.
    pub hung_since: Option<SystemTime>,
    /// Whether a first full reading has succeeded.
    pub complete: bool,
    /// PVE's version, such as "9.0.10".
    pub pve_version: String,
    /// Whether HA maintenance is on for this node.
    pub maintenance: bool,
    /// The names of all pools (of `user.cfg`).
    pub pools: Vec<String>,
}

impl Inventory {
    /// VMs with this SMBIOS UUID. More than one: nobody knows which is meant.
    pub fn by_uuid(&self, uuid: &str) -> Vec<&Arc<VmRecord>> {
        self.vms.values().filter(|vm| vm.config.uuid() == Some(uuid)).collect()
    }
}

/// A node of the PVE cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its corosync id; 0 when alone.
    pub id: u32,
    /// Whether it is online.
    pub online: bool,
}

/// One VM: its config, wherever it lies, and its run state where it is ours to see.
#[derive(Debug, Clone, PartialEq)]
pub struct VmRecord {
    /// VMID.
    pub vmid: u32,
    /// The node under which the config lies.
    pub node: String,
    /// `.vmlist`'s counter of this config.
    pub version: u64,
    /// The config.
    pub config: ConfigFile,
    /// Run state.
    pub run: RunState,
    /// Whether it stands in `ha/resources.cfg` (and is not ignored there).
    pub ha: Option<HaState>,
    /// Whether a job of `replication.cfg` copies it.
    pub replicated: bool,
    /// Its pool.
    pub pool: Option<String>,
}

/// Run state of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// No process.
    Stopped,
    /// A process runs.
    Running {
        /// Its pid.
        pid: i32,
        /// When it began.
        since: SystemTime,
    },
    /// A process runs, its processors do not.
    Paused {
        /// Its pid.
        pid: i32,
        /// When it began.
        since: SystemTime,
    },
    /// On another node, or not to be told.
    Unknown,
}

/// What `ha/resources.cfg` wants for a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaState {
    /// Requested state: "started", "stopped", "disabled", ...
    pub requested: String,
}

/// A change of the inventory, whoever caused it.
#[derive(Debug, Clone)]
pub enum Change {
    /// A config appeared.
    VmCreated(Arc<VmRecord>),
    /// Its config (or pool, HA, replication) changed.
    VmChanged(Arc<VmRecord>),
    /// It runs now (only for VMs of this node).
    VmStarted(Arc<VmRecord>),
    /// It runs no longer (only for VMs of this node).
    VmStopped(Arc<VmRecord>),
    /// Its config lies on another node now.
    VmMoved {
        /// After the move.
        vm: Arc<VmRecord>,
        /// The node before.
        from: String,
    },
    /// It is gone from the cluster, seen with quorum; as it was last seen.
    VmRemoved(Arc<VmRecord>),
    /// Quorum, members, maintenance, or whether the file system answers.
    Cluster,
}

/// A storage as PVE's status call tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageInfo {
    /// Id.
    pub id: String,
    /// "dir", "lvmthin", ...
    pub kind: String,
    /// Content types.
    pub content: Vec<String>,
    /// Usable now.
    pub active: bool,
    /// Enabled by the administrator.
    pub enabled: bool,
    /// Same files on all nodes.
    pub shared: bool,
    /// Size in bytes.
    pub total: u64,
    /// Free bytes.
    pub available: u64,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// `<storage>:<name>`.
    pub volid: String,
    /// Owner id.
    pub vmid: u32,
    /// Size in bytes.
    pub size: u64,
    /// "raw", "qcow2", ...
    pub format: String,
    /// Base volume of a linked clone.
    pub parent: Option<String>,
    /// Bytes used on the storage; 0 where PVE does not tell.
    pub used: u64,
    /// When it was made or last written, seconds since the Unix epoch, as PVE tells it; 0 where it does not.
    pub ctime: u64,
}

/// What PVE tells of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDetail {
    /// Where it lies: a path, or what QEMU takes for one (`rbd:...`).
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes used on the storage.
    pub used: u64,
    /// "raw", "qcow2", ...
    pub format: String,
}

/// What a new volume needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocateCall {
    /// The storage.
    pub storage: String,
    /// The owner id.
    pub vmid: u32,
    /// File name, with format on file storages.
    pub name: String,
    /// Size in bytes, whole KiB.
    pub bytes: u64,
    /// "raw" or "qcow2".
    pub format: String,
}

/// Where to move a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveCall {
    /// The slot.
    pub slot: String,
    /// The target storage.
    pub storage: String,
    /// The target format.
    pub format: String,
    /// Compare-and-swap on the config's digest.
    pub digest: String,
}

/// What a clone needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneCall {
    /// The template.
    pub template: u32,
    /// The new VMID.
    pub vmid: u32,
    /// The new name.
    pub name: String,
    /// Description, the mark included.
    pub description: String,
    /// Full copy.
    pub full: bool,
    /// Target storage (full only).
    pub storage: Option<String>,
    /// Pool.
    pub pool: Option<String>,
}

/// Settings to write and to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigCall {
    /// Keys of PVE's config with their values. `sshkeys` is given in plain text (one key a line): the encoding is the boundary's business.
    pub set: BTreeMap<String, String>,
    /// Keys to delete.
    pub delete: Vec<String>,
    /// Compare-and-swap on the config's digest: always given, but for unlocking what is proven ours.
    pub digest: Option<String>,
    /// Write although the config is locked. Only for what carries our mark and is proven ours.
    pub skip_lock: bool,
}

/// A change of the run state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PowerCall {
    /// Start.
    Start,
    /// Pull the plug.
    Stop,
    /// Ask the guest.
    Shutdown {
        /// Seconds to wait for it.
        timeout_s: u32,
        /// Stop it after that.
        force: bool,
    },
    /// Reset.
    Reset,
}

/// How to destroy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DestroyCall {
    /// Also drop HA, replication and backup entries.
    pub purge: bool,
    /// Also free every image that carries the VMID and no config mentions. Only for what is proven ours.
    pub unreferenced_disks: bool,
    /// Destroy although locked. Only for what carries our mark and is proven ours.
    pub skip_lock: bool,
}

/// The id of a PVE task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Upid {
    /// As PVE writes it, `UPID:node:pid:pstart:starttime:type:id:user:`.
    pub text: String,
    /// Node.
    pub node: String,
    /// Pid of the worker.
    pub pid: i32,
    /// Start time of the worker's process in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
    pub pstart: u64,
    /// Start of the task, seconds since the Unix epoch.
    pub starttime: u64,
    /// "qmclone", "qmstart", ...
    pub kind: String,
    /// What it works on; for a clone the template.
    pub id: String,
    /// On whose behalf.
    pub user: String,
}

impl Upid {
    /// Reads a UPID; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.trim_end().split(':').collect();
        let [magic, node, pid, pstart, starttime, kind, id, user, rest] = parts.as_slice() else { return None };
        if *magic != "UPID"
            || !rest.is_empty()
            || node.is_empty()
            || kind.is_empty()
            || node.contains('/')
            || kind.contains('/')
            || id.contains('/')
            || user.contains('/')
        {
            return None;
        }
        Some(Self {
            text: text.trim_end().to_owned(),
            node: (*node).to_owned(),
            pid: i32::from_str_radix(pid, 16).ok().filter(|pid| *pid > 0)?,
            pstart: u64::from_str_radix(pstart, 16).ok()?,
            starttime: u64::from_str_radix(starttime, 16).ok()?,
            kind: (*kind).to_owned(),
            id: (*id).to_owned(),
            user: (*user).to_owned(),
        })
    }
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How a task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// Its process runs.
    Running,
    /// It ended.
    Ended(TaskEnd),
    /// PVE knows no such task.
    Unknown,
}

/// How a task ended. Only `Ok` counts by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    /// `TASK OK`.
    Ok,
    /// `TASK WARNINGS: n`, with the log's warning lines.
    Warnings(Vec<String>),
    /// `TASK ERROR: ...`.
    Error(String),
    /// The worker is gone and the log has no end line.
    NoEndLine,
}

/// News of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskUpdate {
    /// A line of its log.
    Line(String),
    /// `transferred x of y (p%)`.
    Progress {
        /// 0 to 100.
        percent: u8,
        /// Bytes copied, as far as the log tells.
        done: u64,
        /// Bytes to copy.
        total: u64,
    },
    /// It ended.
    End(TaskEnd),
}
