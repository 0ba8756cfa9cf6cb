//! One host of a fleet.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pvelet_agent::{
    config,
    error::Error,
    health::{
        Outside,
        repair::{Edit, Mender},
    },
    host::{
        facts::{Facts, HostFacts},
        links::{BridgeInfo, Links},
        net::{KernelLink, fake::FakeHost},
        pve::{
            Change, Pve, RunState,
            fake::{FakePve, FakeVm},
        },
        record::FileRecord,
        runtime::fake::FakeFiles,
        storage::fake::EmptyStore,
        units_fake::FakeUnits,
    },
    server::{Agent, World, bind, open_operations},
};
use tokio::sync::broadcast::error::RecvError;

use crate::{Pki, pki};

/// The VMID of the template on the first host of a cluster; the others have those that follow. It is tagged `debian-13`.
pub const TEMPLATE: u32 = 9001;
/// VMIDs for each host of a cluster.
const RANGE: usize = 1000;
/// The bridge of their VMs.
const BRIDGE: &str = "vmbr0";
/// What each host has: room for what a test puts on it.
const THREADS: u32 = 64;
const MEMORY: u64 = 256 << 30;

/// What an agent is started from.
pub(super) struct Files {
    name: String,
    cluster: String,
    template: u32,
    config: String,
    state: PathBuf,
}

impl Files {
    /// The certificate and the configuration of a host.
    pub(super) fn make(folder: &Path, pki: &Pki, number: usize, in_cluster: usize) -> Self {
        let name = format!("host-{number:04}");
        let (cluster, place) = match in_cluster {
            0 | 1 => (name.clone(), 0),
            n => (format!("cluster-{:03}", (number - 1) / n), (number - 1) % n),
        };
        let (cert, key) = pki.host(&cluster, &name);
        let first = 100_000 + place * RANGE;
        let state = folder.join(&name);
        let config = format!(
            "mode = \"manage\"\nlisten = \"127.0.0.1:0\"\nstate_dir = {state:?}\n\
             [tls]\ncert = {cert:?}\nkey = {key:?}\nclient_ca = {ca:?}\ncrl = {crl:?}\ntrust_domain = \"{domain}\"\n\
             [pve]\nnode = {name:?}\n[vm]\nvmid_range = \"{first}-{last}\"\n",
            last = first + RANGE - 1,
            ca = pki.dir.ca_cert_path(),
            crl = pki.dir.crl_path(),
            domain = pki::TRUST_DOMAIN,
        );
        let template = TEMPLATE + u32::try_from(place).expect("a small cluster");
        Self { name, cluster, template, config, state }
    }
}

/// A host and its agent.
pub struct Host {
    /// Its node, and its `PveHost`.
    pub name: String,
    /// Its PVE cluster: its own name where it stands alone.
    pub cluster: String,
    /// The VMID of its template.
    pub template: u32,
    /// Where its agent listens.
    pub address: SocketAddr,
    /// Its PVE.
    pub pve: FakePve,
    _agent: Agent,
}

impl Host {
    pub(super) async fn start(files: Files) -> Self {
        let (config, _) = config::parse(&files.config).expect("the configuration is sound");
        let pve = FakePve::new(&files.name);
        pve.set_cluster(&files.cluster);
        pve.add_template(files.template, "debian-13");
        pve.tell_all();
        let operations = open_operations(&config).await.expect("a journal");
        let listener = bind(config.listen).await.expect("an address");
        let agent = Agent::start(&config, world(&pve, &files.state), operations, listener).await.expect("the agent serves");
        agent.open();
        Self { name: files.name, cluster: files.cluster, template: files.template, address: agent.address, pve, _agent: agent }
    }

    /// VMIDs and names of its VMs, but for the template.
    pub fn vms(&self) -> Vec<(u32, String)> {
        let all = self.pve.vmids().into_iter().filter(|id| *id != self.template).filter_map(|id| Some((id, self.pve.vm(id)?)));
        let own = all.filter(|(_, vm)| vm.node == self.name);
        own.map(|(id, vm)| (id, vm.keys.get("name").cloned().unwrap_or_default())).collect()
    }

    /// Stops a VM as somebody on the host would, past the agent.
    pub fn stop_by_hand(&self, vmid: u32) {
        self.pve.edit(vmid, |vm| vm.run = RunState::Stopped);
    }

    /// Whether a VM runs.
    pub fn runs(&self, vmid: u32) -> bool {
        self.pve.vm(vmid).is_some_and(|vm| matches!(vm.run, RunState::Running { .. }))
    }

    /// Waits until a VM runs.
    ///
    /// # Panics
    /// After `limit`.
    pub async fn until_running(&self, vmid: u32, limit: Duration) {
        let mut changes = self.pve.changes();
        let running = async {
            while !self.runs(vmid) {
                // What was missed is looked at anyway.
                let _ = changes.recv().await;
            }
        };
        let told = tokio::time::timeout(limit, running).await;
        told.unwrap_or_else(|_| panic!("VM {vmid} of {} does not run after {limit:?}", self.name));
    }

    /// Lets whoever watches hear of all its VMs once more, though nothing has changed that counts.
    pub fn stir(&self) {
        for (vmid, _) in self.vms() {
            self.pve.edit(vmid, |_| ());
        }
    }
}

/// Brings what becomes of a host's VMs to the other nodes of its PVE cluster, as the cluster file system does.
pub(super) async fn share(pve: FakePve, node: String, others: Vec<FakePve>) {
    let mut changes = pve.changes();
    let tell = |id: u32, vm: Option<FakeVm>| others.iter().for_each(|other| other.see(id, vm.clone()));
    loop {
        let own = |id: u32| Some((id, pve.vm(id).filter(|vm| vm.node == node)?));
        pve.vmids().into_iter().filter_map(own).for_each(|(id, vm)| tell(id, Some(vm)));
        loop {
            match changes.recv().await {
                // That one runs or not is nothing that the others see.
                Ok(Change::VmCreated(vm) | Change::VmChanged(vm)) if vm.node == node => tell(vm.vmid, pve.vm(vm.vmid)),
                Ok(Change::VmRemoved(vm)) if vm.node == node => tell(vm.vmid, None),
                Ok(_) => {}
                // What was missed is looked at.
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return,
            }
        }
    }
}

fn world(pve: &FakePve, state: &Path) -> World {
    World {
        pve: Arc::new(pve.clone()),
        store: Arc::new(EmptyStore),
        links: Arc::new(OneBridge),
        network: network().process(),
        facts: Arc::new(Large),
        health: Outside {
            sources: Vec::new(),
            units: FakeUnits::new(),
            files: FakeFiles::new(),
            mender: Arc::new(NothingToMend),
            record: Arc::new(FileRecord::new(state.join("repair.json"))),
        },
        follow_tls_files: false,
    }
}

/// The network of a host whose VMs are on a bridge.
fn network() -> FakeHost {
    let network = FakeHost::new();
    network.change_kernel(|kernel| {
        let (name, kind) = (BRIDGE.to_owned(), "bridge".to_owned());
        kernel.links.push(KernelLink {
            name,
            kind,
            index: 100,
            up: true,
            carrier: true,
            mtu: 1500,
            vlan_aware: true,
            ..KernelLink::default()
        });
    });
    network
}

struct OneBridge;

impl Links for OneBridge {
    fn bridges(&self) -> std::io::Result<Vec<BridgeInfo>> {
        Ok(vec![BridgeInfo { name: BRIDGE.into(), vlan_aware: true, up: true }])
    }
}

struct Large;

impl Facts for Large {
    fn read(&self) -> HostFacts {
        HostFacts { threads: THREADS, cores: THREADS, memory_total: MEMORY, memory_available: MEMORY, ..HostFacts::default() }
    }
}

struct NothingToMend;

#[tonic::async_trait]
impl Mender for NothingToMend {
    async fn mend(&self) -> Result<Vec<Edit>, Error> {
        Ok(Vec::new())
    }
}
