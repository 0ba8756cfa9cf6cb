//! The real PVE: reads by a thread of its own, processes watched by another, calls by the local API.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{broadcast, mpsc},
    task::{AbortHandle, spawn_blocking},
};

use super::{
    AllocateCall, Change, CloneCall, ClusterLock, ConfigCall, DestroyCall, Inventory, MoveCall, PowerCall, ProcessRef, Pve, StorageInfo,
    TaskState, TaskUpdate, Upid, VmRecord, VolumeDetail, VolumeInfo,
    api::{self, Api, Call},
    calls, cluster_lock, orphan,
    reader::Reader,
    running::{Running, ask, ask_paused},
    task::Tasks,
    ticket::{self, Tickets},
    world::World,
};
use crate::{
    error::Error,
    host::{process::Handle, storage::StorageConfig},
};

/// Where PVE keeps its files. The defaults are those of a PVE host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The cluster file system.
    pub etc_pve: PathBuf,
    /// Pid files and QMP sockets of VMs.
    pub run_qemu: PathBuf,
    /// Task logs, `active` and `index`.
    pub task_log: PathBuf,
    /// The kernel's list of processes.
    pub proc: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            etc_pve: "/etc/pve".into(),
            run_qemu: "/run/qemu-server".into(),
            task_log: "/var/log/pve/tasks".into(),
            proc: "/proc".into(),
        }
    }
}

/// How to reach PVE. The defaults are those of a PVE host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// This node's name in PVE; `None`: the host's name up to its first dot, which is what PVE takes.
    pub node: Option<String>,
    /// Files.
    pub paths: Paths,
    /// The local API.
    pub api: SocketAddr,
    /// The command (program, arguments) that prints a ticket for root@pam.
    pub ticket_command: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let ticket_command = ticket::COMMAND.iter().map(|a| (*a).to_owned()).collect();
        Self { node: None, paths: Paths::default(), api: api::ADDRESS, ticket_command }
    }
}

/// How long to wait before PVE's version is asked for again: it is not known yet, or an upgrade may have changed it.
const VERSION_UNKNOWN: Duration = Duration::from_secs(5);
const VERSION_KNOWN: Duration = Duration::from_secs(3600);

/// An owner id under which no storage has anything to list: asking for it tells whether the storage can be asked at all.
const VMID_OF_NONE: u32 = 999_999_998;

/// PVE on this host.
#[derive(Debug)]
pub struct PveHost {
    node: String,
    paths: Paths,
    world: Arc<World>,
    reader: Reader,
    running: Running,
    tasks: Arc<Tasks>,
    api: Arc<Api>,
    background: Vec<AbortHandle>,
}

impl PveHost {
    /// Begins to watch PVE. Returns at once: [`Inventory::complete`] tells when the first reading has succeeded. Must be called on a runtime.
    ///
    /// # Errors
    /// When the kernel grants no thread, inotify instance or the like.
    pub fn start(options: Options) -> io::Result<Arc<Self>> {
        let Options { node, paths, api, ticket_command } = options;
        let node = match node {
            Some(node) => node,
            None => host_name()?,
        };
        let world = Arc::new(World::new(&node));
        let (began, asked) = mpsc::unbounded_channel();
        let running = Running::start(paths.run_qemu.clone(), paths.proc.clone(), world.clone(), began)?;
        let reader = Reader::start(paths.etc_pve.clone(), node.clone(), world.clone())?;
        let tasks = Arc::new(Tasks::start(paths.task_log.clone(), paths.proc.clone(), node.clone()));
        let api = Arc::new(Api::new(api, Tickets::new(ticket_command)));
        let background = vec![
            tokio::spawn(ask_paused(paths.run_qemu.clone(), world.clone(), asked)).abort_handle(),
            tokio::spawn(follow_version(api.clone(), world.clone())).abort_handle(),
        ];
        Ok(Arc::new(Self { node, paths, world, reader, running, tasks, api, background }))
    }

    /// Ends threads and background work. Calls that are under way go on.
    pub fn stop(&self) {
        self.reader.stop();
        self.running.stop();
        self.background.iter().for_each(AbortHandle::abort);
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    async fn start_task(&self, call: Call<'_>) -> Result<Upid, Error> {
        let data = self.api.call(&call).await?;
        calls::upid(&call, &data)
    }
}

impl Drop for PveHost {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The host's name, as PVE takes it for the node's.
fn host_name() -> io::Result<String> {
    let name = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    Ok(name.split('.').next().unwrap_or_default().to_owned())
}

async fn follow_version(api: Arc<Api>, world: Arc<World>) {
    loop {
        let version = api.call(&calls::version()).await.ok().and_then(|data| Some(data.get("version")?.as_str()?.to_owned()));
        let pause = if version.is_some() { VERSION_KNOWN } else { VERSION_UNKNOWN };
        if let Some(version) = version {
            world.set_pve_version(version);
        }
        tokio::time::sleep(pause).await;
    }
}

#[tonic::async_trait]
impl Pve for PveHost {
    fn inventory(&self) -> Arc<Inventory> {
        self.world.inventory()
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.world.changes()
    }

    async fn refresh(&self) -> Result<Arc<Inventory>, Error> {
        self.reader.refresh(None).await?;
        Ok(self.world.inventory())
    }

    async fn read_vm(&self, vmid: u32) -> Result<Option<Arc<VmRecord>>, Error> {
        self.reader.refresh(Some(vmid)).await?;
        let stuck = |_| Error::PveFsHung { detail: "the processes of VMs cannot be looked at".to_owned() };
        self.running.look(vmid).await.map_err(stuck)?;
        ask(&self.paths.run_qemu, &self.world, vmid).await;
        Ok(self.world.inventory().vms.get(&vmid).cloned())
    }

    async fn storages(&self) -> Result<Vec<StorageInfo>, Error> {
        let call = calls::storages(&self.node);
        calls::read_storages(&call, self.api.call(&call).await?)
    }

    async fn volumes(&self, storage: &str, vmid: u32) -> Result<Vec<VolumeInfo>, Error> {
        let call = calls::volumes(&self.node, storage, vmid);
        calls::read_volumes(&call, vmid, self.api.call(&call).await?)
    }

    async fn storage_config(&self, storage: &str) -> Result<StorageConfig, Error> {
        let call = calls::storage_config(storage);
        calls::read_storage_config(&call, &self.api.call(&call).await?)
    }

    async fn volume(&self, volid: &str) -> Result<Option<VolumeDetail>, Error> {
        let call = calls::volume(&self.node, volid)?;
        match self.api.call(&call).await {
            Ok(data) => calls::read_volume(&call, &data).map(Some),
            // Said of a volume that is not there and of a storage that is not mounted: which of them, the list tells.
            Err(Error::PveFailed { message, .. }) if message.contains("volume_size_info on") => {
                let storage = volid.split(':').next().unwrap_or_default();
                let listed = calls::volumes(&self.node, storage, VMID_OF_NONE);
                self.api.call(&listed).await.map(|_| None)
            }
            Err(error) => Err(error),
        }
    }

    async fn allocate_volume(&self, call: &AllocateCall) -> Result<String, Error> {
        let call = calls::allocate(&self.node, call);
        let data = self.api.call(&call).await?;
        data.as_str().map(str::to_owned).ok_or_else(|| Error::PveAnswerLost { detail: format!("it answered {data}") })
    }

    async fn move_disk(&self, vmid: u32, call: &MoveCall) -> Result<Upid, Error> {
        self.start_task(calls::move_disk(&self.node, vmid, call)).await
    }

    async fn lock_cluster(&self, name: &str, patience: Duration) -> Result<ClusterLock, Error> {
        cluster_lock::take(&self.paths.etc_pve, name, patience, || self.world.inventory().quorate).await
    }

    async fn clone_vm(&self, call: &CloneCall) -> Result<Upid, Error> {
        self.start_task(calls::clone_vm(&self.node, call)).await
    }

    async fn set_config(&self, vmid: u32, call: &ConfigCall) -> Result<Upid, Error> {
        self.start_task(calls::set_config(&self.node, vmid, call, true)).await
    }

    async fn set_config_now(&self, vmid: u32, call: &ConfigCall) -> Result<(), Error> {
        self.api.call(&calls::set_config(&self.node, vmid, call, false)).await.map(drop)
    }

    async fn resize_disk(&self, vmid: u32, slot: &str, bytes: u64, digest: Option<&str>) -> Result<Upid, Error> {
        self.start_task(calls::resize(&self.node, vmid, slot, bytes, digest)).await
    }

    async fn power(&self, vmid: u32, call: &PowerCall) -> Result<Upid, Error> {
        self.start_task(calls::power(&self.node, vmid, call)).await
    }

    async fn destroy_vm(&self, vmid: u32, call: &DestroyCall) -> Result<Upid, Error> {
        self.start_task(calls::destroy(&self.node, vmid, call)).await
    }

    async fn free_volume(&self, volid: &str) -> Result<Option<Upid>, Error> {
        let call = calls::free_volume(&self.node, volid)?;
        let data = self.api.call(&call).await?;
        if data.is_null() { Ok(None) } else { calls::upid(&call, &data).map(Some) }
    }

    async fn stop_task(&self, upid: &Upid) -> Result<(), Error> {
        self.api.call(&calls::stop_task(&self.node, upid)).await.map(drop)
    }

    async fn task(&self, upid: &Upid) -> Result<TaskState, Error> {
        Ok(self.tasks.state(upid).await)
    }

    fn follow_task(&self, upid: &Upid) -> mpsc::Receiver<TaskUpdate> {
        self.tasks.follow(upid)
    }

    async fn find_tasks(&self, kind: &str, id: &str, since: u64) -> Result<Vec<Upid>, Error> {
        Ok(self.tasks.find(kind, id, since).await)
    }

    async fn orphans(&self, vmid: u32) -> Result<Vec<ProcessRef>, Error> {
        let proc = self.paths.proc.clone();
        let found = spawn_blocking(move || orphan::find(&proc, vmid)).await.map_err(|e| Error::Internal(e.to_string()))?;
        found.map_err(|e| Error::Internal(format!("{}: {e}", self.paths.proc.display())))
    }

    async fn end_process(&self, process: &ProcessRef, grace: Duration) -> Result<(), Error> {
        let failed = |e: io::Error| Error::Internal(format!("process {} ({}): {e}", process.pid, process.command));
        match Handle::open(&self.paths.proc, process.pid, process.start).map_err(failed)? {
            Some(handle) => handle.end(grace).await.map_err(failed),
            None => Ok(()),
        }
    }
}
