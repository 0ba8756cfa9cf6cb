//! The host fails in one way or another: the caller is told what is true at once, reads go on, nothing is left, and all works when it is back.

use pve_sim::control::{PmxcfsAction, Request, Seed};
use pvelet_proto::v1::{self, OperationState, VmEventType as Kind, VmState};
use pvelet_tests::{
    Client, HostEvents, OperationEvents, Stack, StackOptions,
    calls::{Refusal, succeeded},
    client::{reason, vm_ref},
};
use serde_json::json;
use tonic::Code;

fn seed(control: &pve_sim::control::Client) {
    let seed = |vmid, name: &str| Seed { size_mib: 64, fill_mib: 8, ..Seed::new("pve1", vmid, name) };
    control.call(&Request::SeedTemplate(seed(9000, "template"))).unwrap();
    control.call(&Request::SeedVm(seed(200, "plain"))).unwrap();
}

fn seeded() -> (Stack, Client) {
    let stack = Stack::seeded(StackOptions::default(), seed);
    let client = stack.operator("pve1");
    (stack, client)
}

/// Two nodes, since a node alone always has quorum; the agent of the first runs.
fn pair() -> (Stack, Client) {
    let options = StackOptions { nodes: vec!["pve1", "pve2"], start_agents: false, ..StackOptions::default() };
    let mut stack = Stack::seeded(options, seed);
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    (stack, client)
}

fn faults(stack: &Stack, change: serde_json::Value) {
    stack.sim.control().call(&Request::Faults { node: "pve1".into(), change }).unwrap();
}

fn quorum(stack: &Stack, on: bool) {
    stack.sim.control().call(&Request::Quorum { node: None, on }).unwrap();
}

fn pmxcfs(stack: &Stack, action: PmxcfsAction) {
    stack.sim.control().call(&Request::Pmxcfs { node: "pve1".into(), action }).unwrap();
}

/// Clone, start, stop and delete: all works.
async fn all_works(client: &Client, prefix: &str) {
    let vm = client.cloned(&format!("{prefix}-clone"), 9000, prefix).await;
    succeeded(client.start(&format!("{prefix}-start"), &vm_ref(&vm)).await);
    succeeded(client.stop(&format!("{prefix}-stop"), &vm_ref(&vm)).await);
    succeeded(client.delete(&format!("{prefix}-delete"), &vm_ref(&vm)).await);
}

#[tokio::test]
async fn without_quorum_changes_are_refused_at_once_and_reads_go_on() {
    let (stack, client) = pair();
    let before = stack.sim.control().leftovers().unwrap();
    let vm = client.vm(200).await.unwrap();
    let mut events = HostEvents::open(&client).await;
    quorum(&stack, false);
    events.until_host("quorum is lost", |h| !h.quorate).await;
    Refusal::of(client.clone_vm(client.clone_request("clone", 9000, "x")).await).is(Code::Unavailable, "NO_QUORUM", "clone");
    for (what, refusal) in client.refusals("lost", &vm_ref(&vm)).await {
        refusal.is(Code::Unavailable, "NO_QUORUM", what);
    }
    assert_eq!(client.vm(200).await.unwrap().digest, vm.digest);
    assert!(client.vms().await.iter().any(|v| v.vmid == 9000));
    assert!(!client.host().await.unwrap().quorate);
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
    quorum(&stack, true);
    events.until_host("quorum is back", |h| h.quorate).await;
    all_works(&client, "back").await;
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
}

#[tokio::test]
async fn quorum_lost_in_the_middle_of_a_clone_leaves_nothing_once_it_is_back() {
    let (stack, client) = pair();
    let before = stack.sim.control().leftovers().unwrap();
    let mut operations = OperationEvents::open(&client, 0).await;
    let mut events = HostEvents::open(&client).await;
    faults(&stack, json!({"storages": {"local": {"rate_kib": 4096}}}));
    client.begin_clone(client.full_clone_request("cut", 9000, "cut", "")).await.unwrap();
    operations.until("the copy has begun", |op| op.request_id == "cut" && op.progress.is_some_and(|p| p.percent > 0)).await;
    quorum(&stack, false);
    events.until_host("quorum is lost", |h| !h.quorate).await;
    faults(&stack, json!({"storages": {"local": {"rate_kib": null}}}));
    // While it is away nothing can be undone, so the operation must not be reported as ended and clean.
    if let Some(op) = client.operation("cut").await.filter(|op| op.end_time.is_some()) {
        assert!(!op.warnings.is_empty() || stack.sim.control().leftovers().unwrap() == before, "{op:?}");
    }
    quorum(&stack, true);
    let op = operations.ended("cut").await;
    if op.state() == OperationState::Succeeded {
        let vm = client.vm(op.target.clone().unwrap().vmid).await.unwrap();
        assert!(vm.lock.is_empty() && vm.mark.is_some(), "{vm:?}");
        succeeded(client.delete("undo", &vm_ref(&vm)).await);
    }
    assert_eq!(stack.sim.control().leftovers().unwrap(), before, "{op:?}");
}

#[tokio::test]
async fn a_daemon_that_is_down_is_told_and_reads_go_on() {
    let (stack, client) = seeded();
    let before = stack.sim.control().leftovers().unwrap();
    let vm = client.vm(200).await.unwrap();
    let control = stack.sim.control();
    control.call(&Request::Daemon { node: "pve1".into(), up: false }).unwrap();
    Refusal::of(client.clone_vm(client.clone_request("clone", 9000, "x")).await).is(Code::Unavailable, "PVE_DOWN", "linked clone");
    let full = client.full_clone_request("full", 9000, "x", "rawdir");
    Refusal::of(client.clone_vm(full).await).is(Code::Unavailable, "PVE_DOWN", "full clone");
    Refusal::of(client.start("start", &vm_ref(&vm)).await).is(Code::Unavailable, "PVE_DOWN", "start");
    let config = v1::VmConfig { cores: Some(3), ..v1::VmConfig::default() };
    Refusal::of(client.configure("configure", &vm_ref(&vm), config).await).is(Code::Unavailable, "PVE_DOWN", "configure");
    Refusal::of(client.delete("delete", &vm_ref(&vm)).await).is(Code::Unavailable, "PVE_DOWN", "delete");
    assert_eq!(client.vm(200).await.unwrap().digest, vm.digest);
    assert_eq!(client.host().await.unwrap().node, "pve1");
    assert_eq!(control.leftovers().unwrap(), before);
    control.call(&Request::Daemon { node: "pve1".into(), up: true }).unwrap();
    all_works(&client, "back").await;
    assert_eq!(control.leftovers().unwrap(), before);
}

#[tokio::test]
async fn a_hung_cluster_file_system_hangs_nobody_and_is_recovered_from() {
    let (mut stack, client) = seeded();
    let vm = client.vm(200).await.unwrap();
    let mut events = HostEvents::open(&client).await;
    pmxcfs(&stack, PmxcfsAction::Hang);
    Refusal::of(client.start("hung", &vm_ref(&vm)).await).is(Code::Unavailable, "PVE_FS_HUNG", "start");
    Refusal::of(client.clone_vm(client.clone_request("clone", 9000, "x")).await).is(Code::Unavailable, "PVE_FS_HUNG", "clone");
    // Reads are answered: with what was last known, or with the reason.
    for result in [client.vm(200).await.map(drop), client.host().await.map(drop)] {
        assert!(result.as_ref().is_ok() || reason(result.as_ref().unwrap_err()) == "PVE_FS_HUNG", "{result:?}");
    }
    assert!(client.operation("nosuch").await.is_none());
    assert!(stack.agent("pve1").process().alive());
    pmxcfs(&stack, PmxcfsAction::Resume);
    stack.sim.control().call(&Request::SetConfig { vmid: 200, key: "cores".into(), value: Some("2".into()) }).unwrap();
    assert_eq!(events.until(Kind::Changed, 200).await.cores, 2);
    all_works(&client, "back").await;
}

#[tokio::test]
async fn restarted_counters_make_no_event_and_hide_none() {
    let (stack, client) = pair();
    let control = stack.sim.control();
    let set = |vmid, cores: u32| {
        control.call(&Request::SetConfig { vmid, key: "cores".into(), value: Some(cores.to_string()) }).unwrap();
    };
    control.call(&Request::SeedVms { node: "pve2".into(), first: 300, count: 3 }).unwrap();
    let mut events = HostEvents::open(&client).await;
    // The counters are far beyond what they will be after the restart.
    for cores in 2..12 {
        set(200, cores);
        events.until_vm("the change", |e| e.vm.as_ref().is_some_and(|vm| vm.vmid == 200 && vm.cores == cores)).await;
    }
    events.seen.clear();
    pmxcfs(&stack, PmxcfsAction::Restart);
    set(301, 4);
    assert_eq!(events.until(Kind::Changed, 301).await.cores, 4);
    // What happens while it is away is told when it is back, and what is away with it is not told as gone.
    pmxcfs(&stack, PmxcfsAction::Down);
    set(302, 5);
    control.call(&Request::SeedVms { node: "pve2".into(), first: 400, count: 1 }).unwrap();
    control.call(&Request::RemoveFile { path: "nodes/pve2/qemu-server/300.conf".into() }).unwrap();
    pmxcfs(&stack, PmxcfsAction::Up);
    for (kind, vmid) in [(Kind::Changed, 302), (Kind::Created, 400), (Kind::Removed, 300)] {
        if events.count(kind, vmid) == 0 {
            events.until(kind, vmid).await;
        }
    }
    // One more change as the end of what is looked at.
    set(200, 20);
    events.until_vm("the last change", |e| e.vm.as_ref().is_some_and(|vm| vm.vmid == 200 && vm.cores == 20)).await;
    let seen: Vec<_> = events.seen.iter().map(|e| (e.r#type(), e.vm.as_ref().unwrap().vmid)).collect();
    assert_eq!(seen.len(), 5, "{seen:?}");
    all_works(&client, "after").await;
}

#[tokio::test]
async fn a_storage_that_fills_up_in_the_middle_of_a_copy_is_named_and_nothing_is_left() {
    let (stack, client) = seeded();
    let before = stack.sim.control().leftovers().unwrap();
    faults(&stack, json!({"storages": {"rawdir": {"full_after_bytes": 2 << 20}}}));
    let refusal = Refusal::of(client.clone_vm(client.full_clone_request("full", 9000, "x", "rawdir")).await);
    refusal.is(Code::ResourceExhausted, "STORAGE_FULL", "full clone");
    assert!(refusal.text.contains("rawdir"), "{}", refusal.text);
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
    faults(&stack, json!({"storages": null}));
    let op = succeeded(client.clone_vm(client.full_clone_request("again", 9000, "x", "rawdir")).await);
    assert!(client.vm(op.target.unwrap().vmid).await.unwrap().disks.iter().any(|d| d.storage == "rawdir"));
}

#[tokio::test]
async fn a_storage_that_goes_offline_is_named_and_nothing_is_left() {
    let (stack, client) = seeded();
    let before = stack.sim.control().leftovers().unwrap();
    // The agent has just seen that it works.
    assert!(client.host().await.unwrap().storages.iter().any(|s| s.id == "rawdir" && s.active));
    faults(&stack, json!({"storages": {"rawdir": {"offline": true}, "local": {"offline": true}}}));
    let refusal = Refusal::of(client.clone_vm(client.full_clone_request("full", 9000, "x", "rawdir")).await);
    refusal.is(Code::Unavailable, "STORAGE_OFFLINE", "full clone");
    let refusal = Refusal::of(client.clone_vm(client.clone_request("linked", 9000, "x")).await);
    refusal.is(Code::Unavailable, "STORAGE_OFFLINE", "linked clone");
    assert!(refusal.text.contains("local"), "{}", refusal.text);
    faults(&stack, json!({"storages": null}));
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
    all_works(&client, "back").await;
}

#[tokio::test]
async fn a_hung_storage_hangs_only_what_needs_it() {
    let (stack, client) = seeded();
    let before = stack.sim.control().leftovers().unwrap();
    let vm = client.vm(200).await.unwrap();
    let mut operations = OperationEvents::open(&client, 0).await;
    faults(&stack, json!({"storages": {"local": {"hung": true}}}));
    client.begin_clone(client.clone_request("hung", 9000, "hung")).await.unwrap();
    // Reads go on, and the agent says what it has always known.
    assert_eq!(client.vm(200).await.unwrap().digest, vm.digest);
    assert_eq!(client.host().await.unwrap().node, "pve1");
    assert!(client.operation("hung").await.unwrap().end_time.is_none());
    faults(&stack, json!({"storages": null}));
    let op = operations.ended("hung").await;
    assert_eq!(op.state(), OperationState::Succeeded, "{op:?}");
    let made = client.vm(op.target.unwrap().vmid).await.unwrap();
    succeeded(client.delete("delete", &vm_ref(&made)).await);
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
}

#[tokio::test]
async fn a_ticket_of_a_key_that_was_rotated_is_replaced() {
    let (stack, client) = seeded();
    let vm = client.vm(200).await.unwrap();
    succeeded(client.start("start", &vm_ref(&vm)).await);
    let content = "another key\n".repeat(4);
    stack.sim.control().call(&Request::WriteFile { path: "priv/authkey.key".into(), content, node: None }).unwrap();
    succeeded(client.stop("stop", &vm_ref(&vm)).await);
    assert_eq!(client.vm(200).await.unwrap().state(), VmState::Stopped);
}

#[tokio::test]
async fn a_request_is_never_split_so_that_the_daemon_does_not_lose_its_user() {
    let (stack, client) = seeded();
    faults(&stack, json!({"split_request_bug": true}));
    // The fault is there: somebody who sends header and body apart is hit. (The kernel may join the two, so not every time.)
    let pve = stack.pve("pve1");
    let hit = (0..20).any(|_| {
        let answer = pve.call_split("PUT", "/qemu/200/config", "description=x").unwrap();
        answer.status == 500 && format!("{answer:?}").contains("user name not set")
    });
    assert!(hit, "the fault is not on");
    all_works(&client, "whole").await;
    let vm = client.vm(200).await.unwrap();
    let config = v1::VmConfig { cores: Some(3), description: Some("x".repeat(4000)), ..v1::VmConfig::default() };
    succeeded(client.configure("configure", &vm_ref(&vm), config).await);
}

#[tokio::test]
async fn the_clean_up_after_a_stop_is_waited_for() {
    // PVE gives up on the lock after half a second, so that the agent has to ask again.
    let stack = Stack::seeded(StackOptions { lock_factor: 0.05, ..StackOptions::default() }, seed);
    let client = stack.operator("pve1");
    let vm = client.vm(200).await.unwrap();
    succeeded(client.start("first", &vm_ref(&vm)).await);
    // Long enough to be met by whoever comes late; the agent asks again every half second.
    faults(&stack, json!({"cleanup_holds_lock_s": 6.0}));
    let mut upids = Vec::new();
    for round in 0..10 {
        succeeded(client.stop(&format!("stop-{round}"), &vm_ref(&vm)).await);
        upids = succeeded(client.start(&format!("start-{round}"), &vm_ref(&vm)).await).upids;
        // Who cleans up takes the lock once the task has let go of it: until then the start may have it.
        if upids.len() > 1 {
            break;
        }
    }
    assert!(upids.len() > 1, "the lock was never in the way: {upids:?}");
    assert_eq!(client.vm(200).await.unwrap().state(), VmState::Running);
}

#[tokio::test]
async fn a_vmid_just_freed_is_not_used_again() {
    let (mut stack, client) = seeded();
    let first = client.cloned("first", 9000, "first").await;
    succeeded(client.delete("delete", &vm_ref(&first)).await);
    let second = client.cloned("second", 9000, "second").await;
    assert_ne!(second.vmid, first.vmid);
    let mut request = client.clone_request("named", 9000, "named");
    request.vmid = first.vmid;
    Refusal::of(client.clone_vm(request).await).is(Code::AlreadyExists, "VMID_IN_USE", "the id by name");
    // Nor after a restart.
    stack.agent("pve1").stop();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let third = client.cloned("third", 9000, "third").await;
    assert!(third.vmid != first.vmid && third.vmid != second.vmid);
}

#[tokio::test]
async fn a_delete_that_races_with_the_clean_up_of_a_stop_is_whole() {
    let stack = Stack::seeded(StackOptions { lock_factor: 0.05, ..StackOptions::default() }, seed);
    let client = stack.operator("pve1");
    let before = stack.sim.control().leftovers().unwrap();
    let vm = client.cloned("clone", 9000, "short-lived").await;
    succeeded(client.start("start", &vm_ref(&vm)).await);
    faults(&stack, json!({"cleanup_holds_lock_s": 1.0}));
    let request = v1::DeleteVmRequest { meta: client.meta("delete"), vm: Some(vm_ref(&vm)), stop: true };
    let op = client.agent.vm().delete_vm(request).await.unwrap().into_inner().operation.unwrap();
    assert_eq!(op.state(), OperationState::Succeeded, "{op:?}");
    assert_eq!(client.vm(vm.vmid).await.unwrap_err().code(), Code::NotFound);
    faults(&stack, json!({"cleanup_holds_lock_s": 0.0}));
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
}
