//! The transaction against a host in memory.
#![allow(clippy::unwrap_used)]

mod changes;
mod confirming;
mod failures;
mod kills;
mod settling;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pvelet_proto::{identity::Identity, v1};
use tempfile::TempDir;

use super::{Agent, Networks, Settings};
use crate::{
    auth::Vlans,
    error::Error,
    host::{
        clock::SystemClock,
        links::{BridgeInfo, Links},
        net::{
            Boot, Kernel,
            fake::{FakeHost, FakeNetwork},
        },
        pve::fake::FakePve,
        storage::fake::EmptyStore,
    },
    operation::{self, Caller, Operations},
    vm::{self, Vms},
};

pub(super) const NODE: &str = "pve1";
/// What a change waits for its confirmation here.
pub(super) const CONFIRM: Duration = Duration::from_secs(60);

struct NoBridges;

impl Links for NoBridges {
    fn bridges(&self) -> std::io::Result<Vec<BridgeInfo>> {
        Ok(Vec::new())
    }
}

/// An agent on a host in memory.
pub(super) struct Rig {
    pub(super) host: FakeHost,
    pub(super) net: Arc<FakeNetwork>,
    /// Whether the host is told to be latched.
    pub(super) latched: Arc<AtomicBool>,
    pub(super) ops: Arc<Operations>,
    pub(super) vms: Vms,
    pub(super) networks: Networks,
    #[allow(dead_code, reason = "holds the journal's folder")]
    dir: Option<TempDir>,
}

pub(super) fn caller() -> Caller {
    Caller { identity: Identity::parse("spiffe://pvelet.example/role/operator/ann").unwrap() }
}

/// A run of the agent.
pub(super) fn open(dir: &Path, host: &FakeHost, pve: &FakePve) -> Rig {
    let ops = Operations::open(operation::Settings::new(dir), Arc::new(SystemClock)).unwrap();
    let settings = vm::Settings::new(NODE, (200, 299), vm::Mode::Manage);
    let vms = Vms::new(Arc::new(pve.clone()), Arc::new(EmptyStore), Arc::new(NoBridges), Arc::clone(&ops), settings);
    let net = host.process();
    let latched = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&latched);
    let agent = Agent { listeners: Arc::new(Vec::new), latched: Arc::new(move |l| told.store(l, Ordering::SeqCst)) };
    let networks = Networks::new(&vms, net.clone(), Settings { confirm_timeout: CONFIRM }, agent);
    Rig { host: host.clone(), net, latched, ops, vms, networks, dir: None }
}

pub(super) fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = open(dir.path(), &FakeHost::new(), &FakePve::new(NODE));
    rig.dir = Some(dir);
    rig
}

pub(super) fn meta(request_id: &str) -> Option<v1::RequestMeta> {
    Some(v1::RequestMeta { tenant: "team-a".into(), request_id: request_id.into(), ..v1::RequestMeta::default() })
}

pub(super) fn vlan(name: &str, parent: &str, id: u32) -> v1::InterfaceSpec {
    let kind = v1::VlanSpec { parent: parent.into(), id, ..v1::VlanSpec::default() };
    v1::InterfaceSpec { name: name.into(), kind: Some(v1::interface_spec::Kind::Vlan(kind)), ..v1::InterfaceSpec::default() }
}

pub(super) fn bridge(name: &str, ports: &[&str], vids: &[&str]) -> v1::InterfaceSpec {
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let kind = v1::BridgeSpec { ports: strings(ports), vlan_aware: !vids.is_empty(), vids: strings(vids) };
    v1::InterfaceSpec { name: name.into(), kind: Some(v1::interface_spec::Kind::Bridge(kind)), ..v1::InterfaceSpec::default() }
}

/// A VLAN and a bridge on it.
pub(super) fn classic() -> Vec<v1::InterfaceSpec> {
    vec![vlan("eth1.100", "eth1", 100), bridge("vmbr100", &["eth1.100"], &[])]
}

pub(super) fn apply(request_id: &str, name: &str, interfaces: Vec<v1::InterfaceSpec>) -> v1::ApplyNetworkRequest {
    let network = Some(v1::NetworkSpec { name: name.into(), tenant: String::new(), interfaces });
    v1::ApplyNetworkRequest { meta: meta(request_id), network, confirm_timeout: None }
}

pub(super) fn remove(request_id: &str, name: &str) -> v1::RemoveNetworkRequest {
    v1::RemoveNetworkRequest { meta: meta(request_id), name: name.into(), confirm_timeout: None }
}

/// Links as they count: without indexes, in no order.
pub(super) type Shape = BTreeMap<String, String>;

pub(super) fn shape(kernel: &Kernel) -> Shape {
    let one = |l: &crate::host::net::KernelLink| {
        format!("{} {} {:?} {:?} {:?} {} {:?} {:?} {}", l.kind, l.up, l.master, l.parent, l.vlan, l.mtu, l.vlans, l.addresses, l.vlan_aware)
    };
    kernel.links.iter().map(|l| (l.name.clone(), one(l))).collect()
}

impl Rig {
    pub(super) async fn apply(&self, request: v1::ApplyNetworkRequest) -> Result<v1::Operation, Error> {
        self.networks.apply(&caller(), request, &Vlans::all()).await
    }

    pub(super) async fn remove(&self, request: v1::RemoveNetworkRequest) -> Result<v1::Operation, Error> {
        self.networks.remove(&caller(), request, &Vlans::all()).await
    }

    pub(super) async fn end(&self, name: &str) -> v1::Operation {
        self.ops.wait(name, Duration::from_secs(24 * 3600)).await.unwrap()
    }

    /// Returns when the operation is at this step, or has ended.
    pub(super) async fn until(&self, name: &str, step: &str) -> v1::Operation {
        loop {
            let op = self.ops.get(name).unwrap();
            if op.step == step || op.end_time.is_some() {
                return op;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A connection that is opened now.
    pub(super) async fn opened(&self) -> Duration {
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.host.boot().time
    }

    pub(super) async fn confirm(&self, name: &str, opened: Duration) -> Result<v1::ConfirmNetworkResponse, Error> {
        let request = v1::ConfirmNetworkRequest { meta: meta("confirm"), operation: name.into() };
        self.networks.confirm(&caller(), request, opened).await
    }

    pub(super) async fn roll_back(&self, name: &str) -> Result<v1::RollbackNetworkResponse, Error> {
        let request = v1::RollbackNetworkRequest { meta: meta("rollback"), operation: name.into() };
        self.networks.roll_back(&caller(), request).await
    }

    /// Waits for the change and confirms it.
    pub(super) async fn finish(&self, op: v1::Operation) -> v1::Operation {
        let waiting = self.until(&op.name, WAITING).await;
        if waiting.end_time.is_none() {
            let opened = self.opened().await;
            self.confirm(&op.name, opened).await.unwrap();
        }
        self.end(&op.name).await
    }

    /// Makes a network, to the end.
    pub(super) async fn make(&self, request_id: &str, name: &str, interfaces: Vec<v1::InterfaceSpec>) {
        let op = self.apply(apply(request_id, name, interfaces)).await.unwrap();
        succeeded(&self.finish(op).await);
    }

    pub(super) fn shape(&self) -> Shape {
        shape(&self.host.kernel())
    }

    pub(super) fn phase(&self) -> String {
        phase(&self.host)
    }

    /// Nothing of a change is left to be done.
    pub(super) fn quiet(&self) {
        assert!(!self.host.armed() && !self.host.old_file_is_left());
    }

    pub(super) async fn get(&self) -> v1::GetNetworkResponse {
        self.networks.get(&v1::GetNetworkRequest::default()).await.unwrap()
    }

    pub(super) fn boot(&self) -> Boot {
        self.host.boot()
    }
}

pub(super) const WAITING: &str = "waiting for confirmation";

pub(super) fn phase(host: &FakeHost) -> String {
    host.checkpoint().and_then(|c| c["phase"].as_str().map(str::to_owned)).unwrap_or_default()
}

pub(super) fn succeeded(op: &v1::Operation) {
    assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
}

/// The reason of a failed operation.
pub(super) fn reason(op: &v1::Operation) -> String {
    let status = op.error.clone().unwrap_or_else(|| panic!("it did not fail: {op:?}"));
    let any = status.details.iter().find(|d| d.type_url.ends_with("ErrorInfo")).unwrap();
    <tonic_types::pb::ErrorInfo as prost::Message>::decode(any.value.as_slice()).unwrap().reason
}
