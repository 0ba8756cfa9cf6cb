//! The machine and those parts of PVE that no other boundary tells of: corosync's links, the cluster file system's mount, certificates, pools of
//! LVM and ZFS, kernels, the clock, memory, running tasks, connections, DRBD.

mod certificates;
mod clock;
mod cluster_fs;
mod command;
mod connections;
mod corosync;
mod drbd;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
mod host;
mod kernels;
mod memory;
mod read;
mod tasks;
mod thin;
mod types;
mod zfs;

use std::time::SystemTime;

use crate::error::Error;

pub use host::{MachineHost, MachinePaths};
pub use types::*;

/// The machine. Every call has a deadline of its own and never blocks the runtime's threads. Errors of all: `Look`; `Silent` when the deadline
/// is over, be it that an earlier look still hangs.
///
/// What takes a program to tell says so; the rest is read from files or over D-Bus.
#[tonic::async_trait]
pub trait Machine: Send + Sync + 'static {
    /// corosync's links as this node sees them; `None`: this host has no corosync.conf. Runs `corosync-cfgtool`: no file or socket of a known
    /// format tells. Errors: `Refused` when corosync does not run.
    async fn corosync(&self) -> Result<Option<CorosyncStatus>, Error>;

    /// The mount of the cluster file system, and what it lets be written.
    async fn cluster_fs(&self) -> Result<ClusterFs, Error>;

    /// When pvestatd last told of this node, as the cluster file system keeps it for five minutes (`.rrd`); `None`: not within these.
    async fn status_told(&self) -> Result<Option<SystemTime>, Error>;

    /// PVE's certificates of this node, in a fixed order, those that are not there included.
    async fn certificates(&self) -> Result<Vec<CertificateFile>, Error>;

    /// The thin pools of LVM that the kernel has; `None`: it has none. Runs `lvs` where there are some.
    async fn thin_pools(&self) -> Result<Option<Vec<ThinPool>>, Error>;

    /// The pools of ZFS that are imported; `None`: the kernel has no ZFS. Runs `zpool list` where there are some that answer.
    async fn zfs_pools(&self) -> Result<Option<Vec<ZfsPool>>, Error>;

    /// The kernel that runs and those that are installed, and whether a package asked for a reboot.
    async fn kernels(&self) -> Result<Kernels, Error>;

    /// Whether the kernel's clock is synchronized, from systemd's timedated, which asks the kernel.
    async fn clock(&self) -> Result<ClockState, Error>;

    /// Memory, and who was killed for the lack of it.
    async fn memory(&self) -> Result<Memory, Error>;

    /// The tasks of PVE on this node whose process lives.
    async fn running_tasks(&self) -> Result<Vec<RunningTask>, Error>;

    /// Whether somebody listens on one of these TCP ports, and how many connections to them are established.
    async fn connections(&self, ports: &[u16]) -> Result<Connections, Error>;

    /// DRBD; `None`: its module is not loaded. Runs `drbdsetup` where version 9 is.
    async fn drbd(&self) -> Result<Option<Drbd>, Error>;
}
