//! PVE's locks are waited for, visibly, until the operation's deadline; the agent's own guards refuse at once.

use std::collections::BTreeSet;

use pve_sim::control::{Request, Seed};
use pvelet_proto::v1::{OperationState, VmState};
use pvelet_tests::{
    Client, OperationEvents, Stack, StackOptions,
    agent::SOON,
    calls::{Refusal, metadata, succeeded},
    client::{reason, vm_ref},
};
use tonic::Code;

/// PVE waits for its locks for so many seconds here.
const PVE_WAITS_S: f64 = 0.3;

fn seeded(lock_factor: f64) -> (Stack, Client) {
    let seed = |vmid, name: &str, fill_mib| Seed { size_mib: 64, fill_mib, ..Seed::new("pve1", vmid, name) };
    let stack = Stack::seeded(StackOptions { lock_factor, ..StackOptions::default() }, |control| {
        control.call(&Request::SeedTemplate(seed(9000, "template", 4))).unwrap();
        control.call(&Request::SeedVm(seed(200, "plain", 0))).unwrap();
    });
    let client = stack.operator("pve1");
    (stack, client)
}

fn hold(stack: &Stack, vmid: Option<u32>, storage: Option<&str>) -> Option<u64> {
    let request = Request::HoldLock { node: "pve1".into(), vmid, storage: storage.map(str::to_owned) };
    // Refused while somebody else has it.
    stack.sim.control().call(&request).ok().map(|id| id.as_u64().unwrap())
}

fn release(stack: &Stack, id: u64) {
    stack.sim.control().call(&Request::ReleaseLock { id }).unwrap();
}

#[tokio::test]
async fn thirty_full_clones_at_once_onto_one_storage_all_succeed_with_progress() {
    const CLONES: usize = 30;
    const HOLDS: usize = 5;
    let (stack, client) = seeded(PVE_WAITS_S / 10.0);
    let mut operations = OperationEvents::open(&client, 0).await;
    let begun = (0..CLONES).map(|i| {
        let client = client.clone();
        async move { client.begin_clone(client.full_clone_request(&format!("c{i}"), 9000, &format!("c{i}"), "")).await.unwrap() }
    });
    let begun = futures_util::future::join_all(begun).await;
    assert_eq!(begun.iter().map(|op| op.target.as_ref().unwrap().vmid).collect::<BTreeSet<_>>().len(), CLONES);

    // The web interface's stand-in takes the storage's lock again and again, each time until PVE has given up on it for one of ours.
    let (mut held, mut holds, mut ended) = (None, 0, BTreeSet::new());
    let (mut moved, mut waited) = (BTreeSet::new(), BTreeSet::new());
    while ended.len() < CLONES {
        let op = operations.until_within("the next step of a clone", SOON * 2, |_| true).await;
        let percent = op.progress.as_ref().map_or(0, |p| p.percent);
        if (1..100).contains(&percent) && op.end_time.is_none() {
            moved.insert(op.request_id.clone());
        }
        if op.step.contains("lock on") {
            waited.insert(op.request_id.clone());
            if let Some(id) = held.take() {
                release(&stack, id);
            }
        }
        if op.end_time.is_some() {
            assert_eq!(op.state(), OperationState::Succeeded, "{op:?}");
            ended.insert(op.request_id.clone());
        }
        let left = CLONES - ended.len();
        if held.is_none() && holds < HOLDS && left > 4 {
            held = hold(&stack, None, Some("local"));
            holds += usize::from(held.is_some());
        } else if left <= 2
            && let Some(id) = held.take()
        {
            release(&stack, id);
        }
    }
    assert!(holds > 0 && !waited.is_empty(), "the lock was taken {holds} times, waited for by {waited:?}");
    assert!(moved.len() > CLONES / 2, "only these told progress: {moved:?}");
    let names: BTreeSet<_> = client.vms().await.into_iter().map(|vm| vm.name).filter(|n| n.starts_with('c')).collect();
    assert_eq!(names.len(), CLONES);
}

#[tokio::test]
async fn a_lock_that_is_held_longer_than_pve_waits_is_waited_for() {
    let (stack, client) = seeded(PVE_WAITS_S / 10.0);
    let vm = client.vm(200).await.unwrap();
    let mut operations = OperationEvents::open(&client, 0).await;
    // The VM's own lock, in the way of a start.
    let id = hold(&stack, Some(200), None).unwrap();
    client.begin_start("start", &vm_ref(&vm)).await.unwrap();
    let step = operations.until("it says that it waits", |op| op.request_id == "start" && op.step.contains("lock on")).await.step;
    assert!(step.contains("VM 200"), "{step}");
    // Not only once: PVE gives up again, and is asked again.
    operations.until("it asks again", |op| op.request_id == "start" && op.upids.len() >= 2).await;
    release(&stack, id);
    assert_eq!(operations.ended("start").await.state(), OperationState::Succeeded);
    assert_eq!(client.vm(200).await.unwrap().state(), VmState::Running);
    succeeded(client.stop("stop", &vm_ref(&vm)).await);
    // The storage's, in the way of a linked clone and of a delete.
    let id = hold(&stack, None, Some("local")).unwrap();
    client.begin_clone(client.clone_request("clone", 9000, "made")).await.unwrap();
    let step = operations.until("it says that it waits", |op| op.request_id == "clone" && op.step.contains("lock on")).await.step;
    assert!(step.contains("local"), "{step}");
    release(&stack, id);
    let op = operations.ended("clone").await;
    assert_eq!(op.state(), OperationState::Succeeded, "{op:?}");
    let made = client.vm(op.target.unwrap().vmid).await.unwrap();

    let before: Vec<_> = std::fs::read_dir(stack.sim.node("pve1").host_path("/var/lib/vz/images")).unwrap().flatten().collect();
    let id = hold(&stack, None, Some("local")).unwrap();
    let request = pvelet_proto::v1::DeleteVmRequest { meta: client.meta_at_once("delete"), vm: Some(vm_ref(&made)), stop: false };
    client.agent.vm().delete_vm(request).await.unwrap();
    operations.until("it waits", |op| op.request_id == "delete" && op.step.contains("lock on")).await;
    release(&stack, id);
    let op = operations.ended("delete").await;
    assert_eq!(op.state(), OperationState::Succeeded, "{op:?}");
    let after: Vec<_> = std::fs::read_dir(stack.sim.node("pve1").host_path("/var/lib/vz/images")).unwrap().flatten().collect();
    assert_eq!(after.len(), before.len() - 1, "{after:?}");
}

#[tokio::test]
async fn a_configuration_waits_for_the_lock_too() {
    let (stack, client) = seeded(PVE_WAITS_S / 10.0);
    let vm = client.vm(200).await.unwrap();
    let mut operations = OperationEvents::open(&client, 0).await;
    let id = hold(&stack, Some(200), None).unwrap();
    let config = pvelet_proto::v1::VmConfig { cores: Some(4), ..Default::default() };
    let request =
        pvelet_proto::v1::ConfigureVmRequest { meta: client.meta_at_once("configure"), vm: Some(vm_ref(&vm)), config: Some(config) };
    client.agent.vm().configure_vm(request).await.unwrap();
    operations.until("it waits", |op| op.request_id == "configure" && op.step.contains("lock on")).await;
    release(&stack, id);
    assert_eq!(operations.ended("configure").await.state(), OperationState::Succeeded);
    assert_eq!(client.vm(200).await.unwrap().cores, 4);
}

#[tokio::test]
async fn a_second_operation_on_a_vm_is_told_who_works_on_it() {
    let (stack, client) = seeded(1.0);
    let vm = client.vm(200).await.unwrap();
    let id = hold(&stack, Some(200), None).unwrap();
    let first = client.begin_start("first", &vm_ref(&vm)).await.unwrap();
    for (what, refusal) in client.refusals("second", &vm_ref(&vm)).await {
        if what == "reset" {
            // It does not run yet, which is told first.
            assert!(["OPERATION_IN_PROGRESS", "VM_NOT_RUNNING"].contains(&refusal.reason.as_str()), "{refusal:?}");
            continue;
        }
        refusal.is(Code::Aborted, "OPERATION_IN_PROGRESS", what);
        assert!(refusal.text.contains(&first.name), "{what}: {}", refusal.text);
    }
    let status = client.stop("third", &vm_ref(&vm)).await.unwrap_err();
    assert_eq!((reason(&status).as_str(), metadata(&status, "operation")), ("OPERATION_IN_PROGRESS", first.name.clone()));
    // The same request again is no second operation.
    assert_eq!(client.begin_start("first", &vm_ref(&vm)).await.unwrap().name, first.name);
    // Another VM is nobody's business.
    succeeded(client.clone_vm(client.clone_request("clone", 9000, "beside")).await);
    release(&stack, id);
    assert_eq!(client.operation_end("first").await.state(), OperationState::Succeeded);
    succeeded(client.stop("stop", &vm_ref(&vm)).await);
}

#[tokio::test]
async fn a_template_in_use_by_a_clone_is_not_changed_meanwhile() {
    let (stack, client) = seeded(1.0);
    let template = client.vm(9000).await.unwrap();
    let id = hold(&stack, None, Some("local")).unwrap();
    let clone = client.begin_clone(client.clone_request("clone", 9000, "made")).await.unwrap();
    let config = pvelet_proto::v1::VmConfig { cores: Some(4), ..Default::default() };
    let refusal = Refusal::of(client.configure("configure", &vm_ref(&template), config).await);
    refusal.is(Code::Aborted, "OPERATION_IN_PROGRESS", "configure");
    assert!(refusal.text.contains(&clone.name), "{}", refusal.text);
    Refusal::of(client.delete("delete", &vm_ref(&template)).await).is(Code::Aborted, "OPERATION_IN_PROGRESS", "delete");
    // A second clone of it is no change.
    let second = client.begin_clone(client.clone_request("beside", 9000, "beside")).await.unwrap();
    release(&stack, id);
    for id in ["clone", "beside"] {
        assert_eq!(client.operation_end(id).await.state(), OperationState::Succeeded);
    }
    assert_ne!(second.target.unwrap().vmid, clone.target.unwrap().vmid);
}
