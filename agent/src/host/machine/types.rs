//! What is read of the machine.

use std::{path::PathBuf, time::Duration, time::SystemTime};

use crate::host::pve::Upid;

/// corosync's links as this node sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CorosyncStatus {
    /// This node's id.
    pub local: u32,
    /// The links, by number.
    pub links: Vec<CorosyncLink>,
}

/// A link of corosync.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CorosyncLink {
    /// Its number, 0 to 7.
    pub number: u32,
    /// This node's address on it.
    pub address: String,
    /// The other nodes: id, and whether it is reached over this link.
    pub peers: Vec<(u32, bool)>,
}

/// The mount of the cluster file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterFs {
    /// Whether anything is mounted there.
    pub mounted: bool,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// Whether its folders have any bit of writing in their mode: pmxcfs takes them off while it refuses writes for the lack of quorum.
    pub writable_mode: bool,
    /// The file system of pmxcfs's own database; `None`: its folder is not there.
    pub database: Option<FileSystem>,
}

/// A file system that holds some folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// The folder that was asked for.
    pub folder: PathBuf,
    /// Size in bytes.
    pub total: u64,
    /// What is left for root, in bytes.
    pub free: u64,
    /// Whether it is mounted read-only (the kernel does that by itself after errors).
    pub read_only: bool,
}

/// A certificate of PVE.
#[derive(Debug, Clone, PartialEq)]
pub struct CertificateFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Whether PVE makes it by itself: it is then always there, and renewed by PVE.
    pub own: bool,
    /// Its text; `None`: there is no such file; an error: it cannot be read.
    pub pem: Result<Option<String>, crate::error::Error>,
    /// Whether the private key beside it belongs to it.
    pub key: KeyMatch,
}

/// Whether a private key belongs to a certificate. The key itself does not leave the boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyMatch {
    /// It does.
    Matches,
    /// It is another one's.
    Differs,
    /// There is none, though there should be.
    Missing,
    /// It was not looked at, or cannot be told: none belongs to it, it cannot be read, or its kind is not known.
    Untold,
}

/// A thin pool of LVM.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ThinPool {
    /// `<group>/<volume>`.
    pub name: String,
    /// `lv_attr`: a letter each.
    pub attributes: String,
    /// How full its data is, percent; `None`: not told (inactive).
    pub data: Option<f64>,
    /// How full its metadata is, percent.
    pub metadata: Option<f64>,
    /// Whether `thin_check` must be run before it can be used again.
    pub check_needed: bool,
}

/// A pool of ZFS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ZfsPool {
    /// Its name.
    pub name: String,
    /// Its state as the kernel module has it: "ONLINE", "DEGRADED", "FAULTED", "SUSPENDED", ...; empty: not told.
    pub state: String,
    /// How full it is; `None`: not told.
    pub usage: Option<ZfsUsage>,
}

/// How full a pool of ZFS is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ZfsUsage {
    /// Size in bytes.
    pub size: u64,
    /// Allocated bytes.
    pub allocated: u64,
    /// Its health as `zpool list` tells it.
    pub health: String,
    /// The vdevs of a class of their own that hold metadata ("special", "dedup"): name, size, allocated.
    pub special: Vec<(String, u64, u64)>,
}

/// Kernels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernels {
    /// The release that runs.
    pub running: String,
    /// Releases whose image lies in `/boot`.
    pub installed: Vec<String>,
    /// The release that an administrator pinned for booting (`proxmox-boot-tool kernel pin`).
    pub pinned: Option<String>,
    /// Whether a package asked for a reboot (`/run/reboot-required`).
    pub required: bool,
    /// Which packages did, at most ten.
    pub packages: Vec<String>,
}

/// The clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClockState {
    /// Whether the kernel counts its error as less than 16 s, which somebody who synchronizes it must have told it: chrony, timesyncd, ntpd, PTP.
    pub synchronized: bool,
    /// Since when the host is up.
    pub uptime: Duration,
}

/// Memory. Sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// All.
    pub total: u64,
    /// What could be used without swapping, as the kernel estimates it. ZFS's cache is not part of it.
    pub available: u64,
    /// What is set aside as huge pages.
    pub huge: u64,
    /// ZFS's cache now.
    pub arc: u64,
    /// What ZFS's cache can be shrunk to.
    pub arc_min: u64,
    /// What KSM saves by sharing pages.
    pub shared: u64,
    /// Swap.
    pub swap_total: u64,
    /// Processes killed for the lack of memory since boot, of the whole host or of a control group.
    pub killed: u64,
    /// How often a control group reached its own limit since boot; `None`: the kernel does not tell (cgroup v1).
    pub limits_hit: Option<u64>,
    /// Of those killed, those that belong to VMs; `None`: not told.
    pub vms_killed: Option<u64>,
}

/// A task whose process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningTask {
    /// Its id.
    pub upid: Upid,
    /// When its log last grew; `None`: there is no log.
    pub grew: Option<SystemTime>,
    /// The state letter of its process: `D` hangs in the kernel.
    pub state: char,
}

/// Connections of TCP to some ports of this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    /// Whether somebody listens.
    pub listening: bool,
    /// How many are established.
    pub established: u32,
}

/// DRBD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drbd {
    /// The module's version.
    pub version: String,
    /// Its resources.
    pub resources: Vec<DrbdResource>,
}

/// A resource of DRBD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrbdResource {
    /// Its name; of version 8 the minor number.
    pub name: String,
    /// Whether writes wait (no quorum, no data, fencing), and why.
    pub suspended: Option<String>,
    /// Its volumes.
    pub volumes: Vec<DrbdVolume>,
    /// Its connections.
    pub peers: Vec<DrbdPeer>,
}

/// A volume of DRBD on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrbdVolume {
    /// Its number.
    pub number: u32,
    /// "UpToDate", "Inconsistent", "Outdated", "Failed", "Diskless", ...
    pub disk: String,
    /// Whether it has no disk here on purpose.
    pub client: bool,
    /// Whether it has quorum.
    pub quorum: bool,
}

/// A connection of DRBD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrbdPeer {
    /// The other node; of version 8 "peer".
    pub name: String,
    /// "Connected", "Connecting", "StandAlone", ...
    pub connection: String,
    /// The other node's volumes: number, state of the disk there, whether it has none on purpose.
    pub volumes: Vec<(u32, String, bool)>,
}
