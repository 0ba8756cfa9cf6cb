//! A whole agent on loopback, on a PVE that only has what a test puts into it.
#![allow(clippy::unwrap_used)]

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::version::TLS13;
use tokio::{
    net::TcpStream,
    sync::{broadcast, watch},
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{Agent, World, bind, open_operations};
use crate::{
    config::{self, Config},
    error::Error,
    health::{
        Outside, Source,
        repair::{Edit, Mender},
    },
    host::{
        facts::{Facts, HostFacts},
        links::{BridgeInfo, Links},
        net::fake::FakeHost,
        pve::{
            AllocateCall, Change, CloneCall, ClusterLock, ConfigCall, DestroyCall, Inventory, MoveCall, NodeInfo, PowerCall, ProcessRef,
            Pve, RunState, StorageInfo, TaskState, TaskUpdate, Upid, VmRecord, VolumeDetail, VolumeInfo, config_file::ConfigFile,
        },
        record::FileRecord,
        runtime::fake::FakeFiles,
        storage::{StorageConfig, fake::EmptyStore},
        units_fake::FakeUnits,
    },
    tls::testing::{Ca, DOMAIN, Files, Issued, NODE, SERVER_NAME, client, client_config, server},
};

/// How long a test waits for what must happen.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// A PVE that can be read; what would change it is down.
pub(super) struct StillPve {
    inventory: Mutex<Arc<Inventory>>,
    changes: broadcast::Sender<Change>,
}

/// How many changes a reader may lag behind.
pub(super) const BACKLOG: usize = 16;

pub(super) fn vm(vmid: u32, tenant: Option<&str>) -> Arc<VmRecord> {
    let uuid = format!("00000000-0000-4000-8000-{vmid:012}");
    let mark = tenant.map(|t| format!("#pvelet%3Av1 op=7f7f7f7f-7f7f-4f7f-8f7f-7f7f7f7f7f7f tenant={t} uuid={uuid}\n")).unwrap_or_default();
    let config = ConfigFile::parse(&format!("{mark}cores: 2\nmemory: 1024\nname: vm{vmid}\nsmbios1: uuid={uuid}\n"));
    Arc::new(VmRecord { vmid, node: NODE.into(), version: 1, config, run: RunState::Stopped, ha: None, replicated: false, pool: None })
}

impl StillPve {
    pub(super) fn new(vms: &[Arc<VmRecord>]) -> Arc<Self> {
        let inventory = Inventory {
            node: NODE.into(),
            cluster: "lab".into(),
            quorate: true,
            nodes: vec![NodeInfo { name: NODE.into(), id: 1, online: true }],
            vms: vms.iter().map(|v| (v.vmid, v.clone())).collect(),
            vmids: vms.iter().map(|v| (v.vmid, NODE.to_owned())).collect(),
            complete: true,
            pve_version: "9.0.10".into(),
            ..Inventory::default()
        };
        Arc::new(Self { inventory: Mutex::new(Arc::new(inventory)), changes: broadcast::channel(BACKLOG).0 })
    }

    /// Changes the inventory and tells those who watch.
    pub(super) fn change(&self, change: Change, apply: impl FnOnce(&mut Inventory)) {
        apply(Arc::make_mut(&mut self.inventory.lock().unwrap()));
        let _ = self.changes.send(change);
    }
}

fn down<T>() -> Result<T, Error> {
    Err(Error::PveDown { detail: "a test".into() })
}

#[tonic::async_trait]
impl Pve for StillPve {
    fn inventory(&self) -> Arc<Inventory> {
        self.inventory.lock().unwrap().clone()
    }
    fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
    async fn refresh(&self) -> Result<Arc<Inventory>, Error> {
        Ok(self.inventory())
    }
    async fn read_vm(&self, vmid: u32) -> Result<Option<Arc<VmRecord>>, Error> {
        Ok(self.inventory().vms.get(&vmid).cloned())
    }
    async fn storages(&self) -> Result<Vec<StorageInfo>, Error> {
        let storage = StorageInfo {
            id: "local".into(),
            kind: "dir".into(),
            content: vec!["images".into()],
            active: true,
            enabled: true,
            shared: false,
            total: 100,
            available: 50,
        };
        Ok(vec![storage])
    }
    async fn volumes(&self, _: &str, _: u32) -> Result<Vec<VolumeInfo>, Error> {
        down()
    }
    async fn storage_config(&self, _: &str) -> Result<StorageConfig, Error> {
        down()
    }
    async fn volume(&self, _: &str) -> Result<Option<VolumeDetail>, Error> {
        down()
    }
    async fn allocate_volume(&self, _: &AllocateCall) -> Result<String, Error> {
        down()
    }
    async fn move_disk(&self, _: u32, _: &MoveCall) -> Result<Upid, Error> {
        down()
    }
    async fn lock_cluster(&self, _: &str, _: Duration) -> Result<ClusterLock, Error> {
        down()
    }
    async fn clone_vm(&self, _: &CloneCall) -> Result<Upid, Error> {
        down()
    }
    async fn set_config(&self, _: u32, _: &ConfigCall) -> Result<Upid, Error> {
        down()
    }
    async fn set_config_now(&self, _: u32, _: &ConfigCall) -> Result<(), Error> {
        down()
    }
    async fn resize_disk(&self, _: u32, _: &str, _: u64, _: Option<&str>) -> Result<Upid, Error> {
        down()
    }
    async fn power(&self, _: u32, _: &PowerCall) -> Result<Upid, Error> {
        down()
    }
    async fn destroy_vm(&self, _: u32, _: &DestroyCall) -> Result<Upid, Error> {
        down()
    }
    async fn free_volume(&self, _: &str) -> Result<Option<Upid>, Error> {
        down()
    }
    async fn stop_task(&self, _: &Upid) -> Result<(), Error> {
        down()
    }
    async fn task(&self, _: &Upid) -> Result<TaskState, Error> {
        down()
    }
    fn follow_task(&self, _: &Upid) -> tokio::sync::mpsc::Receiver<TaskUpdate> {
        tokio::sync::mpsc::channel(1).1
    }
    async fn find_tasks(&self, _: &str, _: &str, _: u64) -> Result<Vec<Upid>, Error> {
        down()
    }
    async fn orphans(&self, _: u32) -> Result<Vec<ProcessRef>, Error> {
        down()
    }
    async fn end_process(&self, _: &ProcessRef, _: Duration) -> Result<(), Error> {
        down()
    }
}

struct OneBridge;

impl Links for OneBridge {
    fn bridges(&self) -> std::io::Result<Vec<BridgeInfo>> {
        Ok(vec![BridgeInfo { name: "vmbr0".into(), vlan_aware: true, up: true }])
    }
}

/// Facts that stay, but for a shutdown that a test schedules.
struct SameFacts(watch::Receiver<bool>);

impl Facts for SameFacts {
    fn read(&self) -> HostFacts {
        HostFacts { threads: 8, shutdown_scheduled: *self.0.borrow(), ..HostFacts::default() }
    }
    fn shutdown_changes(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut scheduled = self.0.clone();
        scheduled.mark_unchanged();
        Box::pin(async move {
            if scheduled.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

struct NothingToMend;

#[tonic::async_trait]
impl Mender for NothingToMend {
    async fn mend(&self) -> Result<Vec<Edit>, Error> {
        Ok(Vec::new())
    }
}

/// An agent, its CA and its files.
pub(super) struct Stand<P = StillPve> {
    pub(super) agent: Agent,
    pub(super) ca: Ca,
    pub(super) files: Files,
    pub(super) pve: Arc<P>,
    pub(super) config: Config,
    /// Whether a shutdown of the host is scheduled.
    pub(super) shutdown: watch::Sender<bool>,
}

pub(super) async fn stand(vms: &[Arc<VmRecord>], change: impl FnOnce(&mut Config)) -> Stand {
    stand_on(StillPve::new(vms), change).await
}

/// An agent on any PVE.
pub(super) async fn stand_on<P: Pve>(pve: Arc<P>, change: impl FnOnce(&mut Config)) -> Stand<P> {
    stand_seeing(pve, Vec::new(), change).await
}

/// An agent that also looks at these for the host's health.
pub(super) async fn stand_seeing<P: Pve>(pve: Arc<P>, health: Vec<Arc<dyn Source>>, change: impl FnOnce(&mut Config)) -> Stand<P> {
    let ca = Ca::new();
    let files = Files::new(&ca.issue(&server()), &ca.pem, &ca.crl(&[]));
    let text = format!("listen = \"127.0.0.1:0\"\n[tls]\ntrust_domain = \"{DOMAIN}\"\n[pve]\nnode = \"{NODE}\"\n");
    let (mut config, _) = config::parse(&text).unwrap();
    config.tls = files.config();
    config.state_dir = files.path("state");
    change(&mut config);
    let (shutdown, scheduled) = watch::channel(false);
    let world = World {
        pve: pve.clone(),
        store: Arc::new(EmptyStore),
        links: Arc::new(OneBridge),
        network: FakeHost::new().process(),
        facts: Arc::new(SameFacts(scheduled)),
        health: Outside {
            sources: health,
            units: FakeUnits::new(),
            files: FakeFiles::new(),
            mender: Arc::new(NothingToMend),
            record: Arc::new(FileRecord::new(config.state_dir.join("repair.json"))),
        },
        follow_tls_files: true,
    };
    let operations = open_operations(&config).await.unwrap();
    let listener = bind(config.listen).await.unwrap();
    let agent = Agent::start(&config, world, operations, listener).await.unwrap();
    agent.open();
    Stand { agent, ca, files, pve, config, shutdown }
}

impl<P> Stand<P> {
    /// A new connection of a client with the identity `path`.
    pub(super) async fn connect(&self, path: &str) -> Channel {
        self.connect_as(&self.ca.issue(&client(path))).await.unwrap()
    }

    pub(super) async fn connect_as(&self, own: &Issued) -> Result<Channel, tonic::transport::Error> {
        channel(self.agent.address, client_config(&self.ca, Some(own), &[&TLS13])).await
    }
}

pub(super) async fn channel(address: std::net::SocketAddr, config: Arc<rustls::ClientConfig>) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: Uri| {
        let config = config.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            let tls = TlsConnector::from(config).connect(SERVER_NAME.try_into().unwrap(), tcp).await?;
            Ok::<_, std::io::Error>(TokioIo::new(tls))
        }
    });
    Endpoint::from_static("http://agent").connect_with_connector(connector).await
}
