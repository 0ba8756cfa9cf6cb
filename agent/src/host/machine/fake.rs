//! A machine in memory, for tests.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use super::{
    CertificateFile, ClockState, ClusterFs, Connections, CorosyncStatus, Drbd, FileSystem, Kernels, Machine, Memory, RunningTask, ThinPool,
    ZfsPool,
};
use crate::error::Error;

/// What the machine answers.
#[derive(Debug, Clone)]
pub struct Machines {
    /// To `corosync`.
    pub corosync: Result<Option<CorosyncStatus>, Error>,
    /// To `cluster_fs`.
    pub cluster_fs: Result<ClusterFs, Error>,
    /// To `status_told`.
    pub status_told: Result<Option<SystemTime>, Error>,
    /// To `certificates`.
    pub certificates: Result<Vec<CertificateFile>, Error>,
    /// To `thin_pools`.
    pub thin_pools: Result<Option<Vec<ThinPool>>, Error>,
    /// To `zfs_pools`.
    pub zfs_pools: Result<Option<Vec<ZfsPool>>, Error>,
    /// To `kernels`.
    pub kernels: Result<Kernels, Error>,
    /// To `clock`.
    pub clock: Result<ClockState, Error>,
    /// To `memory`.
    pub memory: Result<Memory, Error>,
    /// To `running_tasks`.
    pub running_tasks: Result<Vec<RunningTask>, Error>,
    /// To `connections`.
    pub connections: Result<Connections, Error>,
    /// To `drbd`.
    pub drbd: Result<Option<Drbd>, Error>,
}

impl Default for Machines {
    /// A healthy host that stands alone, without LVM, ZFS and DRBD.
    fn default() -> Self {
        let database = FileSystem { folder: "/var/lib/pve-cluster".into(), total: 64 << 30, free: 32 << 30, read_only: false };
        let memory = Memory { total: 64 << 30, available: 32 << 30, limits_hit: Some(0), vms_killed: Some(0), ..Memory::default() };
        Self {
            corosync: Ok(None),
            cluster_fs: Ok(ClusterFs { mounted: true, read_only: false, writable_mode: true, database: Some(database) }),
            status_told: Ok(Some(SystemTime::now())),
            certificates: Ok(Vec::new()),
            thin_pools: Ok(None),
            zfs_pools: Ok(None),
            kernels: Ok(Kernels { running: "6.14.8-2-pve".into(), installed: vec!["6.14.8-2-pve".into()], ..Kernels::default() }),
            clock: Ok(ClockState { synchronized: true, uptime: Duration::from_secs(86400) }),
            memory: Ok(memory),
            running_tasks: Ok(Vec::new()),
            connections: Ok(Connections::default()),
            drbd: Ok(None),
        }
    }
}

/// A machine that answers what a test tells it to.
#[derive(Debug, Default)]
pub struct FakeMachine(Mutex<Machines>);

impl FakeMachine {
    /// A healthy one.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Changes its answers.
    pub fn change(&self, change: impl FnOnce(&mut Machines)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Machines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Machine for FakeMachine {
    async fn corosync(&self) -> Result<Option<CorosyncStatus>, Error> {
        self.lock().corosync.clone()
    }

    async fn cluster_fs(&self) -> Result<ClusterFs, Error> {
        self.lock().cluster_fs.clone()
    }

    async fn status_told(&self) -> Result<Option<SystemTime>, Error> {
        self.lock().status_told.clone()
    }

    async fn certificates(&self) -> Result<Vec<CertificateFile>, Error> {
        self.lock().certificates.clone()
    }

    async fn thin_pools(&self) -> Result<Option<Vec<ThinPool>>, Error> {
        self.lock().thin_pools.clone()
    }

    async fn zfs_pools(&self) -> Result<Option<Vec<ZfsPool>>, Error> {
        self.lock().zfs_pools.clone()
    }

    async fn kernels(&self) -> Result<Kernels, Error> {
        self.lock().kernels.clone()
    }

    async fn clock(&self) -> Result<ClockState, Error> {
        self.lock().clock.clone()
    }

    async fn memory(&self) -> Result<Memory, Error> {
        self.lock().memory.clone()
    }

    async fn running_tasks(&self) -> Result<Vec<RunningTask>, Error> {
        self.lock().running_tasks.clone()
    }

    async fn connections(&self, _: &[u16]) -> Result<Connections, Error> {
        self.lock().connections.clone()
    }

    async fn drbd(&self) -> Result<Option<Drbd>, Error> {
        self.lock().drbd.clone()
    }
}
