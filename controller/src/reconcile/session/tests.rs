#![allow(clippy::unwrap_used)]
use super::*;
use crate::{
    agents::{
        Target,
        fake::{self, FakeAgent},
    },
    reconcile::testing,
};

/// A session that nobody runs, and what it tells.
fn session(client: AgentClient, common: &Arc<Common>) -> (Arc<Session>, mpsc::UnboundedReceiver<Wake>) {
    let (wake, woken) = mpsc::unbounded_channel();
    (Session::new("pve1".into(), client, testing::host("pve1"), Arc::clone(common), wake), woken)
}

fn target(address: &str) -> Target {
    Target { name: "pve1".into(), address: address.parse().unwrap(), cluster: Some("lab".into()), node: Some("pve1".into()) }
}

#[tokio::test]
async fn what_is_told_after_the_end_of_a_session_counts_for_nothing() {
    let (_, agents) = testing::agents();
    let common = Arc::<Common>::default();
    let (session, _woken) = session(agents.set(target("192.0.2.1:7443")), &common);
    let owner = v1::Owner { tenant: "default".into(), cluster: "test".into(), machine_uid: testing::UID.into() };
    let vm = v1::Vm { mark: Some(v1::Mark { owner: Some(owner), operation: String::new() }), ..fake::vm(101, "web-1", "pve1") };
    let event = || v1::VmEvent { r#type: v1::VmEventType::Created.into(), vm: Some(vm.clone()), from_node: String::new() };
    let known = || (common.marks.of_machine(testing::UID).len(), common.marks.of_name("web-1").len(), session.state().vms.all().count());
    session.vm_event(event(), None);
    assert_eq!(known(), (1, 1, 1));
    session.close();
    assert_eq!(known(), (0, 0, 0));
    // The task is cut off somewhere: what it had read is still put there.
    session.vm_event(event(), None);
    let mut table = VmTable::default();
    table.insert(session.told(vm.clone()));
    session.replace(table);
    assert_eq!(known(), (0, 0, 0));
}

#[tokio::test]
async fn of_a_long_history_the_newest_operations_are_kept_and_old_orders_to_stop_are_noted() {
    let (ca, agents) = testing::agents();
    let agent = FakeAgent::start(&ca, "pve1", vec![]).await;
    let operation = |n: u64| v1::Operation {
        name: format!("operations/{n}"),
        request_id: format!("r{n}"),
        kind: v1::OperationKind::StopVm.into(),
        target: Some(v1::VmRef { vmid: 101, uuid: format!("u{}", n / 100) }),
        state: v1::OperationState::Succeeded.into(),
        end_time: Some(prost_types::Timestamp { seconds: i64::try_from(n).unwrap(), nanos: 0 }),
        revision: n,
        ..v1::Operation::default()
    };
    agent.state.lock().unwrap().operations = (1..=350).map(operation).collect();
    let (session, _woken) = session(agents.set(Target { cluster: None, ..target(&agent.address.to_string()) }), &Arc::default());
    let (recent, revision) = session.history().await.unwrap();
    let ids: Vec<&str> = recent.iter().map(|o| o.request_id.as_str()).collect();
    assert_eq!((ids.len(), ids[0], ids[RECENT - 1], revision), (RECENT, "r350", "r287", 350));
    let state = session.state();
    let stop = |uuid: &str| state.operations.stop_of(uuid).map(|(name, _)| name.clone());
    assert_eq!((stop("u0").as_deref(), stop("u1").as_deref()), (Some("operations/99"), Some("operations/199")));
    // Of the newest these are noted with the rest, once they are taken over.
    assert_eq!((stop("u2").as_deref(), stop("u3")), (Some("operations/286"), None));
}
