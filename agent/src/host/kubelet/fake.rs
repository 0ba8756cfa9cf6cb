//! A kubelet in memory, for tests.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Answer, FileSystem, Kubelet, Memory, Tasks, look};
use crate::error::{Error, Trouble};

/// What the kubelet's host is like.
#[derive(Debug, Clone)]
pub struct World {
    /// Files by path; those of a folder are found by their paths.
    pub files: BTreeMap<PathBuf, Result<Vec<u8>, Error>>,
    /// Command lines by process.
    pub processes: BTreeMap<u32, Vec<String>>,
    /// What `/healthz` answers, one after the other; the last for ever.
    pub healthz: VecDeque<Result<Answer, Error>>,
    /// Whom `healthz` asked last.
    pub asked: Option<SocketAddr>,
    /// The host's name.
    pub host_name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its swap spaces.
    pub swaps: Result<Vec<String>, Error>,
    /// Its memory.
    pub memory: Result<Memory, Error>,
    /// Its tasks.
    pub tasks: Result<Tasks, Error>,
    /// File systems by path; every other path lies on that of `/`.
    pub file_systems: BTreeMap<PathBuf, Result<Option<FileSystem>, Error>>,
}

impl Default for World {
    /// A host with much room, and no kubelet.
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        let root = FileSystem { device: 1, capacity: 100 * GIB, available: 60 * GIB, inodes: 1_000_000, inodes_free: 900_000 };
        Self {
            files: BTreeMap::new(),
            processes: BTreeMap::new(),
            healthz: [Ok(Answer { status: 200, body: "ok".into() })].into(),
            asked: None,
            host_name: "pve1".into(),
            addresses: vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([192, 0, 2, 11])],
            swaps: Ok(Vec::new()),
            memory: Ok(Memory { capacity: 64 * GIB, working_set: 32 * GIB }),
            tasks: Ok(Tasks { running: 2000, limit: 4_194_304 }),
            file_systems: [("/".into(), Ok(Some(root)))].into(),
        }
    }
}

/// A kubelet that is as a test tells it to be.
#[derive(Debug, Default)]
pub struct FakeKubelet(Mutex<World>);

impl FakeKubelet {
    /// A host without a kubelet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Changes the host.
    pub fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.lock())
    }

    /// Writes a file.
    pub fn write(&self, path: impl Into<PathBuf>, text: impl Into<Vec<u8>>) {
        self.lock().files.insert(path.into(), Ok(text.into()));
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Kubelet for FakeKubelet {
    async fn file(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        self.lock().files.get(path).cloned().transpose()
    }

    async fn files(&self, folder: &Path) -> Result<Option<Vec<PathBuf>>, Error> {
        let found: Vec<_> = self.lock().files.keys().filter(|path| path.starts_with(folder)).cloned().collect();
        Ok((!found.is_empty()).then_some(found))
    }

    async fn command_line(&self, pid: u32) -> Result<Vec<String>, Error> {
        Ok(self.lock().processes.get(&pid).cloned().unwrap_or_default())
    }

    async fn healthz(&self, address: SocketAddr, _: Duration) -> Result<Answer, Error> {
        let mut world = self.lock();
        world.asked = Some(address);
        let next = if world.healthz.len() > 1 { world.healthz.pop_front() } else { world.healthz.front().cloned() };
        next.unwrap_or_else(|| Err(look(Trouble::Refused, format!("nobody listens at {address}"))))
    }

    async fn host_name(&self) -> Result<String, Error> {
        Ok(self.lock().host_name.clone())
    }

    async fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        Ok(self.lock().addresses.clone())
    }

    async fn swaps(&self) -> Result<Vec<String>, Error> {
        self.lock().swaps.clone()
    }

    async fn memory(&self) -> Result<Memory, Error> {
        self.lock().memory.clone()
    }

    async fn tasks(&self) -> Result<Tasks, Error> {
        self.lock().tasks.clone()
    }

    async fn file_system(&self, path: &Path) -> Result<Option<FileSystem>, Error> {
        let world = self.lock();
        let of = |path: &Path| world.file_systems.get(path).cloned();
        of(path).or_else(|| of(Path::new("/"))).unwrap_or(Ok(None))
    }
}
