//! VMs of PVE's HA manager: its requests end at once with nothing changed yet, so an operation ends when what was asked for is so.

use std::time::Duration;

use pve_sim::{
    control::{Request, Seed},
    ha::Mode,
};
use pvelet_proto::v1::{OperationState, VmState};
use pvelet_tests::{
    Client, OperationEvents, Stack, StackOptions,
    calls::{Refusal, succeeded},
    client::{operation_reason, vm_ref},
};
use tonic::Code;

fn seeded(power_deadline: &str) -> (Stack, Client) {
    let extra = [("vm".to_owned(), format!("power_deadline = \"{power_deadline}\""))].into();
    let mut stack = Stack::start(StackOptions { nodes: vec!["pve1", "pve2"], start_agents: false, extra, ..StackOptions::default() });
    let control = stack.sim.control();
    control.call(&Request::SeedVm(Seed { size_mib: 16, ..Seed::new("pve1", 200, "managed") })).unwrap();
    mode(&stack, Mode { hold: true, ..Mode::default() });
    control.call(&Request::HaAdd { vmid: 200, state: "stopped".into() }).unwrap();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    (stack, client)
}

fn mode(stack: &Stack, mode: Mode) {
    stack.sim.control().call(&Request::HaMode(mode)).unwrap();
}

fn prompt() -> Mode {
    Mode { delay_ms: 50, ..Mode::default() }
}

/// Nodes on which a VM's guest runs.
fn runs_on(stack: &Stack, vmid: u32) -> Vec<String> {
    let status = stack.sim.control().call(&Request::Status {}).unwrap();
    let nodes = status["nodes"].as_object().unwrap();
    nodes.iter().filter(|(_, n)| n["running"].as_array().unwrap().iter().any(|v| v == vmid)).map(|(name, _)| name.clone()).collect()
}

/// Waits until PVE's task of an operation has ended OK while the operation goes on.
async fn queued(stack: &Stack, operations: &mut OperationEvents, request_id: &str) {
    let op = operations.until("PVE's task is known", |op| op.request_id == request_id && !op.upids.is_empty()).await;
    assert_eq!(stack.pve("pve1").task_end(&op.upids[0]), "TASK OK");
    assert!(op.upids[0].contains(":hast"), "{op:?}");
}

#[tokio::test]
async fn a_start_and_a_stop_end_when_the_run_state_is_reached() {
    let (stack, client) = seeded("60s");
    let vm = client.vm(200).await.unwrap();
    assert!(vm.ha_managed);
    let mut operations = OperationEvents::open(&client, 0).await;

    client.begin_start("start", &vm_ref(&vm)).await.unwrap();
    queued(&stack, &mut operations, "start").await;
    operations.until("it waits", |op| op.request_id == "start" && op.step.contains("HA")).await;
    assert!(client.operation("start").await.unwrap().end_time.is_none());
    assert_eq!(client.vm(200).await.unwrap().state(), VmState::Stopped);
    mode(&stack, prompt());
    assert_eq!(operations.ended("start").await.state(), OperationState::Succeeded);
    assert_eq!(client.vm(200).await.unwrap().state(), VmState::Running);
    assert_eq!(runs_on(&stack, 200), ["pve1"]);

    mode(&stack, Mode { hold: true, ..Mode::default() });
    client.begin_stop("stop", &vm_ref(&vm)).await.unwrap();
    queued(&stack, &mut operations, "stop").await;
    operations.until("it waits", |op| op.request_id == "stop" && op.step.contains("HA")).await;
    assert!(client.operation("stop").await.unwrap().end_time.is_none());
    assert_eq!(runs_on(&stack, 200), ["pve1"]);
    mode(&stack, prompt());
    assert_eq!(operations.ended("stop").await.state(), OperationState::Succeeded);
    assert_eq!(client.vm(200).await.unwrap().state(), VmState::Stopped);
    assert!(runs_on(&stack, 200).is_empty());

    // Without a hold: start, then shut down.
    succeeded(client.start("again", &vm_ref(&vm)).await);
    assert_eq!(runs_on(&stack, 200), ["pve1"]);
    succeeded(client.shutdown("shutdown", &vm_ref(&vm), Duration::from_secs(30), false).await);
    assert!(runs_on(&stack, 200).is_empty());
}

#[tokio::test]
async fn a_start_that_ends_on_another_node_ends_when_the_vm_runs_there() {
    let (stack, client) = seeded("60s");
    let vm = client.vm(200).await.unwrap();
    mode(&stack, Mode { move_to: Some("pve2".into()), ..prompt() });
    let op = succeeded(client.start("start", &vm_ref(&vm)).await);
    assert_eq!(runs_on(&stack, 200), ["pve2"], "{op:?}");
    assert_eq!(client.vm(200).await.unwrap().node, "pve2");
    let refusal = Refusal::of(client.stop("stop", &vm_ref(&vm)).await);
    refusal.is(Code::FailedPrecondition, "VM_ON_OTHER_HOST", "stop");
}

#[tokio::test]
async fn a_request_that_nobody_carries_out_ends_at_the_deadline() {
    // The shortest that can be configured.
    let (stack, client) = seeded("10s");
    let vm = client.vm(200).await.unwrap();
    let op = client.start("start", &vm_ref(&vm)).await.unwrap();
    assert_eq!((op.state(), operation_reason(&op).as_str()), (OperationState::Failed, "OPERATION_TIMEOUT"), "{op:?}");
    assert_eq!(op.error.unwrap().code, i32::from(Code::DeadlineExceeded));
    assert!(runs_on(&stack, 200).is_empty());
    // The VM is free again: another operation is not refused as being in progress.
    mode(&stack, prompt());
    succeeded(client.start("again", &vm_ref(&vm)).await);
}

#[tokio::test]
async fn a_vm_under_ha_is_not_deleted() {
    let (stack, client) = seeded("60s");
    let vm = client.vm(200).await.unwrap();
    let before = stack.sim.control().leftovers().unwrap();
    let refusal = Refusal::of(client.delete("delete", &vm_ref(&vm)).await);
    refusal.is(Code::FailedPrecondition, "VM_HA_MANAGED", "delete");
    assert!(refusal.text.contains("200") && refusal.text.contains("HA"), "{}", refusal.text);
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
    stack.sim.control().call(&Request::HaRemove { vmid: 200 }).unwrap();
    // Told as a change, after which it may be deleted.
    let mut events = pvelet_tests::HostEvents::open(&client).await;
    if events.existing.iter().any(|vm| vm.vmid == 200 && vm.ha_managed) {
        events.until_vm("it is out of HA", |e| e.vm.as_ref().is_some_and(|vm| vm.vmid == 200 && !vm.ha_managed)).await;
    }
    succeeded(client.delete("again", &vm_ref(&vm)).await);
}
