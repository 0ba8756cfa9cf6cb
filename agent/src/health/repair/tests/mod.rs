//! Repairs against a host in memory.
#![allow(clippy::unwrap_used)]

mod automatic;
mod kills;
mod model;
mod requests;

use std::{path::Path, sync::Arc, time::Duration};

use pvelet_proto::{identity::Identity, v1};

use super::{Parts, Repairs, Settings};
use crate::{
    config::RepairPolicy,
    error::Error,
    host::{
        clock::SystemClock,
        links::{BridgeInfo, Links},
        pve::fake::FakePve,
        storage::fake::EmptyStore,
    },
    metrics::{Metrics, Snapshot},
    operation::{self, Caller, Operations},
    vm::{self, Vms},
};

pub(super) use model::{Fault, Host, NEW, OLD, PATH, Process, TYPE, UNIT, World};

struct NoBridges;

impl Links for NoBridges {
    fn bridges(&self) -> std::io::Result<Vec<BridgeInfo>> {
        Ok(Vec::new())
    }
}

/// A run of the agent on a host in memory.
pub(super) struct Rig {
    pub(super) host: Host,
    pub(super) process: Arc<Process>,
    pub(super) ops: Arc<Operations>,
    pub(super) vms: Vms,
    pub(super) repairs: Repairs,
    pub(super) metrics: Arc<Metrics>,
    #[allow(dead_code, reason = "holds the journal's folder")]
    dir: Option<tempfile::TempDir>,
}

pub(super) fn caller() -> Caller {
    Caller { identity: Identity::parse("spiffe://pvelet.example/role/operator/ann").unwrap() }
}

pub(super) async fn open(dir: &Path, host: &Host, policy: RepairPolicy) -> Rig {
    let ops = Operations::open(operation::Settings::new(dir), Arc::new(SystemClock)).unwrap();
    let settings = vm::Settings::new("pve1", (200, 299), vm::Mode::Manage);
    let vms = Vms::new(Arc::new(FakePve::new("pve1")), Arc::new(EmptyStore), Arc::new(NoBridges), Arc::clone(&ops), settings);
    let (process, metrics) = (Process::new(host), Arc::new(Metrics::new()));
    let parts = Parts {
        checks: process.clone(),
        units: process.clone(),
        files: process.clone(),
        mender: process.clone(),
        record: process.clone(),
        metrics: metrics.clone(),
    };
    let identity = Identity::parse("spiffe://pvelet.example/cluster/lab/host/pve1").unwrap();
    let settings = Settings { policy, limit_per_hour: 2, patience: Duration::from_secs(30), containerd_unit: UNIT.to_owned(), identity };
    let repairs = Repairs::open(&vms, parts, settings).await;
    Rig { host: host.clone(), process, ops, vms, repairs, metrics, dir: None }
}

pub(super) async fn rig(world: World, policy: RepairPolicy) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = open(dir.path(), &Host::new(world), policy).await;
    rig.dir = Some(dir);
    rig
}

pub(super) fn request(id: &str, check: &str) -> v1::RepairRequest {
    let meta = Some(v1::RequestMeta { tenant: "team-a".into(), request_id: id.into(), ..v1::RequestMeta::default() });
    v1::RepairRequest { meta, check: check.to_owned(), dry_run: false }
}

/// The reason of an operation's error; "" where there is none.
pub(super) fn reason(operation: &v1::Operation) -> String {
    use tonic_types::StatusExt;
    let Some(status) = &operation.error else { return String::new() };
    let bytes = prost::Message::encode_to_vec(status);
    let status = tonic::Status::with_details(tonic::Code::from(status.code), &status.message, bytes.into());
    status.get_details_error_info().unwrap().reason
}

impl Rig {
    /// Asks for a repair and waits for its end.
    pub(super) async fn repair(&self, id: &str, check: &str) -> Result<v1::Operation, Error> {
        let response = self.repairs.repair(&caller(), request(id, check)).await?;
        self.ops.wait(&response.operation.unwrap().name, Duration::from_secs(24 * 3600)).await
    }

    pub(super) async fn idle(&self) {
        while self.ops.active() > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub(super) fn metrics(&self) -> String {
        self.metrics.encode(&Snapshot::default())
    }
}
