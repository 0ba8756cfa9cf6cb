//! PVE as the agent sees it: what it reads, what it asks PVE to do, and how it follows what PVE does.

mod api;
mod calls;
pub mod classify;
mod cluster_lock;
pub mod config_file;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
pub mod files;
mod host;
mod orphan;
mod qmp;
mod reader;
mod running;
mod task;
mod task_log;
mod ticket;
mod types;
mod world;

use std::{sync::Arc, time::Duration};

use tokio::sync::broadcast;

pub use super::process::ProcessRef;
use super::storage::StorageConfig;
use crate::error::Error;

pub use cluster_lock::ClusterLock;
pub use host::{Options, Paths, PveHost};
pub use types::*;

/// PVE on this host. Every call has a deadline of its own and never blocks the runtime's threads.
///
/// A mutating call that was not carried out for sure (connection refused, no ticket) fails with `PveDown`; one that was sent and got no
/// answer fails with `PveAnswerLost`: it may have been carried out, and only the task list and the configs tell.
#[tonic::async_trait]
pub trait Pve: Send + Sync + 'static {
    /// What was last seen of the cluster. Cheap: an `Arc` from memory. Stale for at most 250 ms while the cluster file system answers;
    /// [`Inventory::hung_since`] tells when it does not.
    fn inventory(&self) -> Arc<Inventory>;

    /// What changes from now on. A receiver that lags must read [`Pve::inventory`] again.
    fn changes(&self) -> broadcast::Receiver<Change>;

    /// Reads `.vmlist`, `.members` and all changed configs now, and returns an inventory that is not older than this call.
    /// Errors: `PveFsHung`.
    async fn refresh(&self) -> Result<Arc<Inventory>, Error>;

    /// Reads one VM now. `None`: `.vmlist` does not have the VMID (which proves absence only with quorum). Errors: `PveFsHung`.
    async fn read_vm(&self, vmid: u32) -> Result<Option<Arc<VmRecord>>, Error>;

    /// The storages as this node sees them. Errors: `PveDown`.
    async fn storages(&self) -> Result<Vec<StorageInfo>, Error>;

    /// The volumes of a storage whose owner id is `vmid`. Errors: `StorageNotFound`, `StorageOffline`, `PveDown`.
    async fn volumes(&self, storage: &str, vmid: u32) -> Result<Vec<VolumeInfo>, Error>;

    /// A storage as it is configured. Errors: `StorageNotFound`, `PveDown`.
    async fn storage_config(&self, storage: &str) -> Result<StorageConfig, Error>;

    /// One volume; `None` when it is not there. Errors: `StorageNotFound`, `StorageOffline`, `PveDown`.
    async fn volume(&self, volid: &str) -> Result<Option<VolumeDetail>, Error>;

    /// Makes an empty volume at once and returns its volid; there is no task for it. Errors: `VolumeExists`, `StorageFull`, `StorageOffline`,
    /// `LockTimeout`; `PveAnswerLost`: only looking tells.
    async fn allocate_volume(&self, call: &AllocateCall) -> Result<String, Error>;

    /// Starts a task that moves a disk of a VM; the source stays where it was.
    async fn move_disk(&self, vmid: u32, call: &MoveCall) -> Result<Upid, Error>;

    /// Takes a lock of the PVE cluster, which excludes all other nodes; waits until `patience` is over. It is kept alive until it is
    /// dropped. Errors: `NoQuorum`, `PveFsHung`, `LockTimeout`.
    async fn lock_cluster(&self, name: &str, patience: Duration) -> Result<ClusterLock, Error>;

    /// Starts a clone task. Errors before the task: `VmidInUse`, `TemplateNotFound`, `LockTimeout`, `PoolNotFound`, `StorageNotFound`, ...
    async fn clone_vm(&self, call: &CloneCall) -> Result<Upid, Error>;

    /// Changes the config by a task (`POST .../config`), for whatever may allocate or take long. Errors: `VmLocked`, `ConfigChanged`.
    async fn set_config(&self, vmid: u32, call: &ConfigCall) -> Result<Upid, Error>;

    /// Changes the config at once (`PUT .../config`), for what allocates nothing. Errors: `VmLocked`, `ConfigChanged`, `LockTimeout`.
    async fn set_config_now(&self, vmid: u32, call: &ConfigCall) -> Result<(), Error>;

    /// Starts a task that grows a disk to `bytes`.
    async fn resize_disk(&self, vmid: u32, slot: &str, bytes: u64, digest: Option<&str>) -> Result<Upid, Error>;

    /// Starts a task that changes the run state. For an HA-managed VM the task only queues a request.
    async fn power(&self, vmid: u32, call: &PowerCall) -> Result<Upid, Error>;

    /// Starts a task that destroys the VM.
    async fn destroy_vm(&self, vmid: u32, call: &DestroyCall) -> Result<Upid, Error>;

    /// Starts a task that frees a volume. `None` when PVE did it at once.
    async fn free_volume(&self, volid: &str) -> Result<Option<Upid>, Error>;

    /// Asks PVE to end a task (SIGTERM first, as the web interface does).
    async fn stop_task(&self, upid: &Upid) -> Result<(), Error>;

    /// How a task stands now: by its log and its process, never by a cached status.
    async fn task(&self, upid: &Upid) -> Result<TaskState, Error>;

    /// Follows a task to its end. The receiver yields log lines as they come, then `End`; it is closed after that.
    fn follow_task(&self, upid: &Upid) -> tokio::sync::mpsc::Receiver<TaskUpdate>;

    /// Tasks of this node that were started at or after `since` (seconds since the Unix epoch) and whose UPID has this type and id (an
    /// empty `id`: any), ended ones included: for finding the task of a call whose answer was lost.
    async fn find_tasks(&self, kind: &str, id: &str, since: u64) -> Result<Vec<Upid>, Error>;

    /// Processes of this host that write to a volume of this VMID though no task owns them (a `qemu-img` whose worker was killed).
    async fn orphans(&self, vmid: u32) -> Result<Vec<ProcessRef>, Error>;

    /// Ends an orphan: SIGTERM, then SIGKILL after `grace`; returns when it is gone. The pid is checked against its start time first.
    async fn end_process(&self, process: &ProcessRef, grace: Duration) -> Result<(), Error>;
}
