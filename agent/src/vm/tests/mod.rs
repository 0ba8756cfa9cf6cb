//! The VM operations against PVE in memory.
#![allow(clippy::unwrap_used)]

mod cloning;
mod crashes;
mod faults;
mod hostile;
mod lifecycle;
mod settling;
mod user_data;

use std::{path::Path, sync::Arc, time::Duration};

use pvelet_proto::{identity::Identity, v1};
use tempfile::TempDir;

use super::{Mode, Settings, Vms};
use crate::{
    error::Error,
    host::{
        clock::SystemClock,
        links::{BridgeInfo, Links},
        pve::fake::FakePve,
        storage::fake::EmptyStore,
    },
    operation::{self, Caller, Operations},
};

pub(super) const NODE: &str = "pve1";
const TEMPLATE: u32 = 9000;

pub(super) struct Bridges;

impl Links for Bridges {
    fn bridges(&self) -> std::io::Result<Vec<BridgeInfo>> {
        Ok(vec![BridgeInfo { name: "vmbr0".into(), vlan_aware: true, up: true }])
    }
}

pub(super) struct Rig {
    pub(super) pve: FakePve,
    pub(super) ops: Arc<Operations>,
    pub(super) vms: Vms,
    #[allow(dead_code, reason = "holds the journal's folder")]
    dir: TempDir,
}

pub(super) fn caller() -> Caller {
    Caller { identity: Identity::parse("spiffe://pvelet.example/role/operator/ann").unwrap() }
}

pub(super) fn open(dir: &Path, pve: &FakePve) -> (Arc<Operations>, Vms) {
    let ops = Operations::open(operation::Settings::new(dir), Arc::new(SystemClock)).unwrap();
    let settings = Settings {
        lock_pause: Duration::from_millis(20),
        lost_answer: Duration::from_secs(5),
        ..Settings::new(NODE, (200, 299), Mode::Manage)
    };
    let vms = Vms::new(Arc::new(pve.clone()), Arc::new(EmptyStore), Arc::new(Bridges), Arc::clone(&ops), settings);
    (ops, vms)
}

pub(super) fn rig() -> Rig {
    let pve = FakePve::new(NODE);
    pve.add_template(TEMPLATE, "k8s;debian");
    let dir = tempfile::tempdir().unwrap();
    let (ops, vms) = open(dir.path(), &pve);
    Rig { pve, ops, vms, dir }
}

pub(super) fn meta(request_id: &str) -> Option<v1::RequestMeta> {
    Some(v1::RequestMeta { tenant: "team-a".into(), request_id: request_id.into(), ..v1::RequestMeta::default() })
}

pub(super) fn clone_request(request_id: &str, name: &str, full: bool) -> v1::CloneVmRequest {
    v1::CloneVmRequest {
        meta: meta(request_id),
        source: Some(v1::CloneSource { source: Some(v1::clone_source::Source::Vmid(TEMPLATE)) }),
        mode: if full { v1::CloneMode::Full } else { v1::CloneMode::Linked }.into(),
        config: Some(v1::VmConfig { name: Some(name.into()), cores: Some(2), ..v1::VmConfig::default() }),
        ..v1::CloneVmRequest::default()
    }
}

impl Rig {
    pub(super) async fn end(&self, operation: Result<v1::Operation, Error>) -> v1::Operation {
        self.ops.wait(&operation.unwrap().name, Duration::from_secs(24 * 3600)).await.unwrap()
    }

    /// Makes a VM and returns its reference.
    pub(super) async fn make(&self, name: &str) -> v1::VmRef {
        let op = self.end(self.vms.clone_vm(&caller(), clone_request(&format!("make-{name}"), name, false)).await).await;
        succeeded(&op);
        op.target.unwrap()
    }
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
