//! The host's network through the whole server.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use pvelet_proto::{
    reason,
    v1::{self, network_service_client::NetworkServiceClient as Client, operation_service_client::OperationServiceClient},
};
use tokio::time::timeout;
use tonic_types::StatusExt;

use super::testing::{DEADLINE, Stand, stand_on};
use crate::{config::Mode, host::pve::fake::FakePve};

async fn managing() -> Stand<FakePve> {
    stand_on(Arc::new(FakePve::new("pve1")), |c| {
        c.mode = Mode::Manage;
        c.vm.vmid_range = Some(100_000..=100_999);
    })
    .await
}

fn meta(request_id: &str) -> Option<v1::RequestMeta> {
    Some(v1::RequestMeta { tenant: "t".into(), request_id: request_id.into(), ..v1::RequestMeta::default() })
}

fn apply(request_id: &str) -> v1::ApplyNetworkRequest {
    let kind = v1::VlanSpec { parent: "eth1".into(), id: 100, ..v1::VlanSpec::default() };
    let interface =
        v1::InterfaceSpec { name: "eth1.100".into(), kind: Some(v1::interface_spec::Kind::Vlan(kind)), ..v1::InterfaceSpec::default() };
    let network = v1::NetworkSpec { name: "storage".into(), tenant: String::new(), interfaces: vec![interface] };
    v1::ApplyNetworkRequest { meta: meta(request_id), network: Some(network), confirm_timeout: None }
}

/// Returns when the operation waits for its confirmation.
async fn until_waiting(stand: &Stand<FakePve>, name: &str) {
    let mut client = OperationServiceClient::new(stand.connect("role/reader/watcher").await);
    let request = v1::WatchOperationsRequest { since_revision: 1, ..Default::default() };
    let mut stream = client.watch_operations(request).await.unwrap().into_inner();
    let watch = async {
        loop {
            if let Some(operation) = stream.message().await.unwrap().unwrap().operation
                && operation.name == name
                && operation.step == "waiting for confirmation"
            {
                return;
            }
        }
    };
    timeout(DEADLINE, watch).await.expect("it is applied");
}

#[tokio::test]
async fn a_change_is_confirmed_over_a_connection_that_was_opened_after_it() {
    let stand = managing().await;
    let mut old = Client::new(stand.connect("role/operator/o").await);
    // The connection is opened by its first call.
    assert!(!old.get_network(v1::GetNetworkRequest::default()).await.unwrap().into_inner().links.is_empty());
    let operation = old.apply_network(apply("a")).await.unwrap().into_inner().operation.unwrap();
    assert_eq!(operation.network, "storage");
    until_waiting(&stand, &operation.name).await;
    let confirm = v1::ConfirmNetworkRequest { meta: meta("c"), operation: operation.name.clone() };
    let status = old.confirm_network(confirm.clone()).await.unwrap_err();
    assert_eq!(status.get_details_error_info().unwrap().reason, reason::STALE_CONNECTION);
    let mut new = Client::new(stand.connect("role/operator/o").await);
    let answer = new.confirm_network(confirm).await.unwrap().into_inner();
    assert_eq!(answer.operation.unwrap().state(), v1::OperationState::Succeeded);
    assert_eq!(answer.change.unwrap().state(), v1::NetworkChangeState::Confirmed);
    let shown = old.get_network(v1::GetNetworkRequest { skip_checks: true }).await.unwrap().into_inner();
    assert!(shown.checks.is_empty() && shown.networks[0].in_sync);
    let link = shown.links.iter().find(|l| l.name == "eth1.100").unwrap();
    assert_eq!(link.network, "storage");
    // The agent's own connections come in over loopback, so nothing else is its listener.
    assert!(shown.links.iter().all(|l| l.name == "eth0" || l.name == "lo" || l.management.is_empty()), "{:?}", shown.links);
}

#[tokio::test]
async fn readers_plan_and_only_operators_and_administrators_change() {
    let stand = managing().await;
    let mut reader = Client::new(stand.connect("role/reader/r").await);
    let request = v1::PlanNetworkRequest { network: apply("a").network, remove: String::new() };
    assert_eq!(reader.plan_network(request).await.unwrap().into_inner().plan.unwrap().steps.len(), 1);
    let denied = reader.apply_network(apply("a")).await.unwrap_err();
    assert_eq!(denied.get_details_error_info().unwrap().reason, reason::ROLE);
    let mut operator = Client::new(stand.connect("role/operator/o").await);
    let denied = operator.clear_network(v1::ClearNetworkRequest { meta: meta("x") }).await.unwrap_err();
    assert_eq!(denied.get_details_error_info().unwrap().reason, reason::ROLE);
    let mut admin = Client::new(stand.connect("role/admin/a").await);
    let nothing = admin.clear_network(v1::ClearNetworkRequest { meta: meta("x") }).await.unwrap_err();
    assert_eq!(nothing.get_details_error_info().unwrap().reason, reason::NETWORK_NOT_WAITING);
    let mut tenant = Client::new(stand.connect("tenant/t/c").await);
    assert!(tenant.get_network(v1::GetNetworkRequest::default()).await.is_err());
    let bare = operator.apply_network(v1::ApplyNetworkRequest { meta: None, ..apply("b") }).await.unwrap_err();
    assert_eq!(bare.get_details_error_info().unwrap().reason, reason::INVALID_FIELD);
}

#[tokio::test]
async fn a_waiting_change_does_not_keep_the_agent_from_ending() {
    let stand = managing().await;
    let mut client = Client::new(stand.connect("role/operator/o").await);
    let operation = client.apply_network(apply("a")).await.unwrap().into_inner().operation.unwrap();
    until_waiting(&stand, &operation.name).await;
    let left = timeout(DEADLINE, stand.agent.drain(Duration::from_secs(600))).await.expect("at once");
    assert_eq!(left, 1);
}
