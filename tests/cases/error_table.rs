//! Rows of the error table that no other case comes by: exhausted, overloaded, stale leaders, cancelled, a guest that does not obey.

use std::{collections::BTreeMap, time::Duration};

use pve_sim::{
    control::{Request, Seed},
    guest::{Behaviour, Shutdown},
};
use pvelet_proto::{identity::Role, v1};
use pvelet_tests::{
    Client, OperationEvents, Stack, StackOptions,
    calls::{Refusal, succeeded},
    client::vm_ref,
};
use serde_json::json;
use tonic::Code;

fn seeded(options: StackOptions) -> Stack {
    let seed = |vmid, name: &str| Seed { size_mib: 64, fill_mib: 32, ..Seed::new("pve1", vmid, name) };
    Stack::seeded(options, |control| {
        control.call(&Request::SeedTemplate(seed(9000, "template"))).unwrap();
        control.call(&Request::SeedVm(seed(200, "plain"))).unwrap();
    })
}

fn with(section: &str, text: &str) -> StackOptions {
    StackOptions { extra: BTreeMap::from([(section.to_owned(), text.to_owned())]), ..StackOptions::default() }
}

/// Begins a full clone that goes on for long, and returns when it copies.
async fn slow_clone(stack: &Stack, client: &Client, request_id: &str) -> v1::Operation {
    let change = json!({"storages": {"local": {"rate_kib": 512}}});
    stack.sim.control().call(&Request::Faults { node: "pve1".into(), change }).unwrap();
    let mut events = OperationEvents::open(client, 0).await;
    client.begin_clone(client.full_clone_request(request_id, 9000, request_id, "")).await.unwrap();
    events.until("a copy under way", |op| op.request_id == request_id && !op.upids.is_empty()).await
}

#[tokio::test]
async fn a_range_without_a_free_vmid_is_exhausted() {
    let mut stack = seeded(StackOptions { start_agents: false, ..StackOptions::default() });
    stack.agent("pve1").range = (100_000, 100_000);
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    client.cloned("first", 9000, "first").await;
    let second = Refusal::of(client.clone_vm(client.clone_request("second", 9000, "second")).await);
    second.is(Code::ResourceExhausted, "VMID_RANGE_EXHAUSTED", "second");
    assert!(second.text.contains("100000") && second.text.contains("vmid_range"), "{}", second.text);
}

#[tokio::test]
async fn a_mutation_beyond_the_limit_is_shed_at_once_and_reads_go_on() {
    let stack = seeded(with("limits", "mutations = 1"));
    let client = stack.operator("pve1");
    slow_clone(&stack, &client, "begun").await;
    // Asked for again, and held open until it ends: that takes the one place.
    let (first, again) = (client.clone(), client.full_clone_request("begun", 9000, "begun", ""));
    let held = tokio::spawn(async move { first.clone_vm(again).await });
    let vm = client.vm(200).await.unwrap();
    let shed = loop {
        // Until the held call has arrived, this one may be served: starting twice changes nothing.
        match client.begin_start("start", &vm_ref(&vm)).await {
            Ok(_) => {}
            Err(status) => break Refusal::of(Err(status)),
        }
    };
    shed.is(Code::ResourceExhausted, "OVERLOADED", "a second mutation");
    assert!(client.vm(200).await.is_ok());
    held.abort();
}

#[tokio::test]
async fn a_former_leader_and_an_unknown_lease_are_refused() {
    let stack = seeded(StackOptions::default());
    let client = stack.operator("pve1");
    let epoch = |lease: u32, transitions| v1::ControllerEpoch {
        controller: "main".into(),
        lease_uid: format!("00000000-0000-4000-8000-00000000000{lease}"),
        transitions,
    };
    let announce = v1::AnnounceControllerRequest { epoch: Some(epoch(1, 5)) };
    client.agent.host().announce_controller(announce).await.unwrap();
    let start = |id: &'static str, epoch| {
        let mut request = v1::StartVmRequest { meta: client.meta(id), vm: None };
        request.meta.as_mut().unwrap().controller_epoch = Some(epoch);
        let client = client.clone();
        async move {
            request.vm = Some(vm_ref(&client.vm(200).await.unwrap()));
            client.agent.vm().start_vm(request).await.map(|r| r.into_inner().operation.unwrap())
        }
    };
    Refusal::of(start("former", epoch(1, 4)).await).is(Code::FailedPrecondition, "STALE_EPOCH", "a former leader");
    Refusal::of(start("unknown", epoch(2, 9)).await).is(Code::FailedPrecondition, "UNKNOWN_LEASE", "a new lease");
    let accept = v1::AcceptControllerRequest { epoch: Some(epoch(2, 1)) };
    let denied = client.agent.host().accept_controller(accept.clone()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let admin = stack.client("pve1", Role::Admin);
    let previous = admin.agent.host().accept_controller(accept).await.unwrap().into_inner().previous;
    assert_eq!(previous, Some(epoch(1, 5)));
    succeeded(start("accepted", epoch(2, 1)).await);
    Refusal::of(start("old-lease", epoch(1, 5)).await).is(Code::FailedPrecondition, "UNKNOWN_LEASE", "the old lease");
}

#[tokio::test]
async fn a_machine_that_has_a_vm_gets_no_second_one() {
    let stack = seeded(StackOptions::default());
    let client = stack.operator("pve1");
    let request = |id: &str| {
        let owner = v1::Owner { machine_uid: "7b0f5f5e-3c1e-4a55-9d0a-111111111111".into(), cluster: "c".into(), ..Default::default() };
        v1::CloneVmRequest { owner: Some(owner), ..client.clone_request(id, 9000, id) }
    };
    let first = succeeded(client.clone_vm(request("one")).await);
    let second = Refusal::of(client.clone_vm(request("two")).await);
    second.is(Code::AlreadyExists, "MACHINE_HAS_VM", "two");
    assert!(second.text.contains(&first.target.unwrap().vmid.to_string()), "{}", second.text);
}

#[tokio::test]
async fn a_cancelled_clone_leaves_nothing_and_what_has_ended_cannot_be_cancelled() {
    let stack = seeded(StackOptions::default());
    let client = stack.operator("pve1");
    let before = stack.sim.control().leftovers().unwrap();
    let op = slow_clone(&stack, &client, "slow").await;
    let cancel = |id: &str| v1::CancelOperationRequest { meta: client.meta(id), name: op.name.clone() };
    client.agent.operation().cancel_operation(cancel("cancel")).await.unwrap();
    let ended = client.operation_end("slow").await;
    assert_eq!(ended.state(), v1::OperationState::Cancelled, "{ended:?}");
    Refusal::of(Ok(ended)).is(Code::Cancelled, "CANCELLED", "slow");
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
    // Asked twice is asked once; what has succeeded is past it.
    client.agent.operation().cancel_operation(cancel("again")).await.unwrap();
    let done = succeeded(client.clone_vm(client.clone_request("quick", 9000, "quick")).await);
    let late = v1::CancelOperationRequest { meta: client.meta("late"), name: done.name };
    let late = client.agent.operation().cancel_operation(late).await.unwrap_err();
    Refusal::of(Err(late)).is(Code::FailedPrecondition, "NOT_CANCELLABLE", "late");
}

#[tokio::test]
async fn a_guest_that_does_not_obey_is_told_and_can_be_forced() {
    let stack = seeded(StackOptions::default());
    let client = stack.operator("pve1");
    let vm = client.vm(200).await.unwrap();
    succeeded(client.start("start", &vm_ref(&vm)).await);
    let behaviour = Behaviour { shutdown: Shutdown::Ignored, agent_silent: false };
    stack.sim.control().call(&Request::GuestBehaviour { vmid: 200, behaviour }).unwrap();
    let refused = Refusal::of(client.shutdown("ask", &vm_ref(&vm), Duration::from_secs(1), false).await);
    refused.is(Code::DeadlineExceeded, "SHUTDOWN_TIMEOUT", "ask");
    assert_eq!(client.vm(200).await.unwrap().state(), v1::VmState::Running);
    succeeded(client.shutdown("force", &vm_ref(&vm), Duration::from_secs(1), true).await);
    assert_eq!(client.vm(200).await.unwrap().state(), v1::VmState::Stopped);
}

#[tokio::test]
async fn a_lock_that_is_never_given_back_ends_the_operation_at_its_deadline() {
    let stack = seeded(StackOptions { lock_factor: 0.03, ..with("vm", "configure_deadline = \"10s\"") });
    let client = stack.operator("pve1");
    let vm = client.vm(200).await.unwrap();
    stack.sim.control().call(&Request::HoldLock { node: "pve1".into(), vmid: Some(200), storage: None }).unwrap();
    let config = v1::VmConfig { cores: Some(3), ..Default::default() };
    let refused = Refusal::of(client.configure("cores", &vm_ref(&vm), config).await);
    refused.is(Code::Aborted, "LOCK_TIMEOUT", "cores");
    assert_ne!(client.vm(200).await.unwrap().cores, 3);
}
