//! Mutations through the whole server: held open, abandoned, drained.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use pvelet_proto::{
    reason,
    v1::{self, operation_service_client::OperationServiceClient, vm_service_client::VmServiceClient},
};
use tokio::time::timeout;
use tonic_types::StatusExt;

use super::testing::{DEADLINE, Stand, stand_on};
use crate::{config::Mode, host::pve::fake::FakePve};

const TEMPLATE: u32 = 9000;
/// Longer than any test: what ends such a call is not its time.
const LONG: Duration = Duration::from_secs(300);

async fn managing() -> Stand<FakePve> {
    let pve = FakePve::new("pve1");
    pve.add_template(TEMPLATE, "k8s");
    stand_on(Arc::new(pve), |c| {
        c.mode = Mode::Manage;
        c.vm.vmid_range = Some(100_000..=100_999);
    })
    .await
}

fn clone_request(request_id: &str, wait: Duration) -> v1::CloneVmRequest {
    v1::CloneVmRequest {
        meta: Some(v1::RequestMeta {
            tenant: "t".into(),
            request_id: request_id.into(),
            wait: Some(wait.try_into().unwrap()),
            controller_epoch: None,
        }),
        source: Some(v1::CloneSource { source: Some(v1::clone_source::Source::Vmid(TEMPLATE)) }),
        config: Some(v1::VmConfig { name: Some("web-1".into()), ..v1::VmConfig::default() }),
        ..v1::CloneVmRequest::default()
    }
}

/// The operation as soon as `seen` says so.
async fn until(stand: &Stand<FakePve>, seen: impl Fn(&v1::Operation) -> bool) -> v1::Operation {
    let mut client = OperationServiceClient::new(stand.connect("role/reader/watcher").await);
    let mut stream =
        client.watch_operations(v1::WatchOperationsRequest { since_revision: 1, ..Default::default() }).await.unwrap().into_inner();
    let watch = async {
        loop {
            if let Some(operation) = stream.message().await.unwrap().unwrap().operation
                && seen(&operation)
            {
                return operation;
            }
        }
    };
    timeout(DEADLINE, watch).await.expect("the operation gets there")
}

#[tokio::test]
async fn a_call_that_waits_is_answered_when_its_operation_ends() {
    let stand = managing().await;
    let mut client = VmServiceClient::new(stand.connect("role/operator/o").await);
    let call = timeout(DEADLINE, client.clone_vm(clone_request("r1", LONG)));
    let operation = call.await.expect("in time").unwrap().into_inner().operation.unwrap();
    assert_eq!(operation.state(), v1::OperationState::Succeeded, "{:?}", operation.error);
    assert_eq!(operation.target.unwrap().vmid, 100_000);
}

#[tokio::test]
async fn a_call_that_does_not_wait_is_answered_at_once() {
    let stand = managing().await;
    stand.pve.hold("qmclone");
    let mut client = VmServiceClient::new(stand.connect("role/operator/o").await);
    let operation = client.clone_vm(clone_request("r1", Duration::ZERO)).await.unwrap().into_inner().operation.unwrap();
    assert!(operation.end_time.is_none());
    stand.pve.release("qmclone");
    until(&stand, |o| o.state() == v1::OperationState::Succeeded).await;
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_nothing() {
    let stand = managing().await;
    stand.pve.hold("qmclone");
    let mut client = VmServiceClient::new(stand.connect("role/operator/o").await);
    let call = tokio::spawn(async move { client.clone_vm(clone_request("r1", LONG)).await });
    let operation = until(&stand, |o| o.state() == v1::OperationState::Running && !o.upids.is_empty()).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    stand.pve.release("qmclone");
    let ended = until(&stand, |o| o.end_time.is_some()).await;
    assert_eq!((ended.state(), ended.name), (v1::OperationState::Succeeded, operation.name));
}

#[tokio::test]
async fn a_drain_lets_a_running_operation_end_and_answers_who_waits_for_it() {
    let stand = managing().await;
    stand.pve.hold("qmclone");
    let channel = stand.connect("role/operator/o").await;
    let mut client = VmServiceClient::new(channel.clone());
    let call = tokio::spawn(async move { client.clone_vm(clone_request("r1", LONG)).await });
    until(&stand, |o| !o.upids.is_empty()).await;
    let (pve, host) = (stand.pve.clone(), stand.agent.shared.host.clone());
    let drain = tokio::spawn(stand.agent.drain(LONG));
    while host.host().await.unwrap().state() != v1::HostState::ShuttingDown {
        tokio::task::yield_now().await;
    }
    pve.release("qmclone");
    let operation = timeout(DEADLINE, call).await.unwrap().unwrap().unwrap().into_inner().operation.unwrap();
    assert_eq!(operation.state(), v1::OperationState::Succeeded);
    assert_eq!(timeout(DEADLINE, drain).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_drain_that_takes_too_long_leaves_the_operation_and_answers_who_waits_for_it() {
    let stand = managing().await;
    stand.pve.hold("qmclone");
    let mut client = VmServiceClient::new(stand.connect("role/operator/o").await);
    let call = tokio::spawn(async move { client.clone_vm(clone_request("r1", LONG)).await });
    until(&stand, |o| !o.upids.is_empty()).await;
    assert_eq!(timeout(DEADLINE, stand.agent.drain(Duration::from_millis(10))).await.unwrap(), 1);
    let operation = timeout(DEADLINE, call).await.unwrap().unwrap().unwrap().into_inner().operation.unwrap();
    assert!(operation.end_time.is_none(), "it goes on at the next start");
}

#[tokio::test]
async fn held_open_mutations_are_shed_beyond_their_bound_and_reads_are_not() {
    let pve = FakePve::new("pve1");
    pve.add_template(TEMPLATE, "k8s");
    pve.hold("qmclone");
    let stand = stand_on(Arc::new(pve), |c| {
        c.mode = Mode::Manage;
        c.vm.vmid_range = Some(100_000..=100_999);
        c.limits.mutations = 1;
    })
    .await;
    let channel = stand.connect("role/operator/o").await;
    let mut client = VmServiceClient::new(channel.clone());
    let mut held = client.clone();
    let call = tokio::spawn(async move { held.clone_vm(clone_request("r1", LONG)).await });
    until(&stand, |o| !o.upids.is_empty()).await;
    let shed = client.clone_vm(clone_request("r2", Duration::ZERO)).await.unwrap_err();
    assert_eq!(shed.get_details_error_info().unwrap().reason, reason::OVERLOADED);
    client.list_vms(v1::ListVmsRequest::default()).await.unwrap();
    stand.pve.release("qmclone");
    timeout(DEADLINE, call).await.unwrap().unwrap().unwrap();
    client.clone_vm(clone_request("r2", LONG)).await.unwrap();
}
