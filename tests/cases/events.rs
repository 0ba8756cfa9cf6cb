//! What the streams tell: whoever caused it, on whichever node, each thing once.

use pve_sim::control::{Request, Seed};
use pvelet_proto::v1::{self, OperationState, VmEventType as Kind, VmState};
use pvelet_tests::{Client, HostEvents, OperationEvents, Stack, StackOptions, calls::succeeded, client::vm_ref};

/// Two nodes, VM 200 and template 9000 on the first, VM 300 on the second; the agent of the first runs.
fn seeded() -> (Stack, Client) {
    let mut stack = Stack::start(StackOptions { nodes: vec!["pve1", "pve2"], start_agents: false, ..StackOptions::default() });
    let seed = |node, vmid, name: &str| Seed { size_mib: 64, fill_mib: 1, ..Seed::new(node, vmid, name) };
    let control = stack.sim.control();
    control.call(&Request::SeedTemplate(seed("pve1", 9000, "template"))).unwrap();
    control.call(&Request::SeedVm(seed("pve1", 200, "here"))).unwrap();
    control.call(&Request::SeedVm(seed("pve2", 300, "there"))).unwrap();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    (stack, client)
}

fn set_cores(stack: &Stack, vmid: u32, cores: u32) {
    let request = Request::SetConfig { vmid, key: "cores".into(), value: Some(cores.to_string()) };
    stack.sim.control().call(&request).unwrap();
}

/// Changes a VM silently and waits for that change: all that came before has been told then.
async fn mark(stack: &Stack, events: &mut HostEvents, vmid: u32, cores: u32) {
    set_cores(stack, vmid, cores);
    events.until_vm("the mark", |e| e.vm.as_ref().is_some_and(|vm| vm.vmid == vmid && vm.cores == cores)).await;
}

#[tokio::test]
async fn a_stream_begins_with_what_exists() {
    let (stack, client) = seeded();
    let events = HostEvents::open(&client).await;
    let known: Vec<_> = events.existing.iter().map(|vm| (vm.vmid, vm.node.as_str(), vm.template)).collect();
    assert_eq!(known, [(200, "pve1", false), (300, "pve2", false), (9000, "pve1", true)]);
    assert_eq!(events.existing.iter().map(v1::Vm::state).collect::<Vec<_>>(), [VmState::Stopped, VmState::Unknown, VmState::Stopped]);
    assert!(events.seen.is_empty(), "{:?}", events.seen);
    drop(stack);
}

#[tokio::test]
async fn what_this_agent_does_is_told() {
    let (stack, client) = seeded();
    let mut events = HostEvents::open(&client).await;
    let vm = client.cloned("clone", 9000, "made").await;
    events.until(Kind::Created, vm.vmid).await;
    succeeded(client.start("start", &vm_ref(&vm)).await);
    assert_eq!(events.until(Kind::Started, vm.vmid).await.state(), VmState::Running);
    succeeded(client.stop("stop", &vm_ref(&vm)).await);
    assert_eq!(events.until(Kind::Stopped, vm.vmid).await.state(), VmState::Stopped);
    succeeded(client.delete("delete", &vm_ref(&vm)).await);
    let gone = events.until(Kind::Removed, vm.vmid).await;
    assert_eq!((gone.uuid, gone.name.as_str()), (vm.uuid, "made"));
    mark(&stack, &mut events, 300, 7).await;
    for kind in [Kind::Created, Kind::Started, Kind::Stopped, Kind::Removed] {
        assert_eq!(events.count(kind, vm.vmid), 1, "{:?}", events.kinds(vm.vmid));
    }
    assert_eq!(events.kinds(vm.vmid).first(), Some(&Kind::Created));
    assert_eq!(events.kinds(vm.vmid).last(), Some(&Kind::Removed));
    assert!(events.revisions.is_sorted_by(|a, b| a < b), "{:?}", events.revisions);
}

#[tokio::test]
async fn what_others_do_on_this_host_is_told() {
    let (stack, client) = seeded();
    let pve = stack.pve("pve1");
    let mut events = HostEvents::open(&client).await;
    assert_eq!(pve.call("PUT", "/qemu/200/config", "cores=2").unwrap().status, 200);
    assert_eq!(events.until(Kind::Changed, 200).await.cores, 2);
    assert_eq!(pve.task("POST", "/qemu/200/status/start", ""), "TASK OK");
    events.until(Kind::Started, 200).await;
    assert_eq!(pve.task("POST", "/qemu/200/status/stop", ""), "TASK OK");
    events.until(Kind::Stopped, 200).await;
    assert_eq!(pve.task("POST", "/qemu/9000/clone", "newid=210&name=by-hand"), "TASK OK");
    let whole = |vm: &v1::Vm| vm.vmid == 210 && vm.name == "by-hand" && vm.lock.is_empty();
    // Told while it is in the making, or only when it is whole.
    if !whole(&events.until(Kind::Created, 210).await) {
        events.until_vm("it is whole", |e| e.vm.as_ref().is_some_and(whole)).await;
    }
    assert_eq!(pve.task("DELETE", "/qemu/210", ""), "TASK OK");
    events.until(Kind::Removed, 210).await;
    // A guest that is started by hand and killed: PVE itself says nothing of either.
    let control = stack.sim.control();
    control.call(&Request::StartGuest { vmid: 200 }).unwrap();
    let running = events.until(Kind::Started, 200).await;
    assert!(running.start_time.is_some());
    control.call(&Request::KillGuest { vmid: 200 }).unwrap();
    assert_eq!(events.until(Kind::Stopped, 200).await.state(), VmState::Stopped);
    assert_eq!((events.count(Kind::Started, 200), events.count(Kind::Stopped, 200)), (2, 2));
}

#[tokio::test]
async fn what_comes_in_silently_from_another_node_is_told() {
    let (stack, client) = seeded();
    let control = stack.sim.control();
    let mut events = HostEvents::open(&client).await;
    mark(&stack, &mut events, 200, 3).await;
    control.call(&Request::SeedVm(Seed { size_mib: 0, cloudinit: false, ..Seed::new("pve2", 301, "fresh") })).unwrap();
    let made = events.until(Kind::Created, 301).await;
    assert_eq!((made.node.as_str(), made.name.as_str(), made.state()), ("pve2", "fresh", VmState::Unknown));
    control.call(&Request::Migrate { vmid: 200, to: "pve2".into() }).unwrap();
    let moved = events.until_vm("moved", |e| e.r#type() == Kind::Moved).await;
    assert_eq!((moved.from_node.as_str(), moved.vm.unwrap().node.as_str()), ("pve1", "pve2"));
    control.call(&Request::Migrate { vmid: 300, to: "pve1".into() }).unwrap();
    let moved = events.until_vm("moved", |e| e.r#type() == Kind::Moved).await;
    let vm = moved.vm.unwrap();
    assert_eq!((moved.from_node.as_str(), vm.node.as_str(), vm.state()), ("pve2", "pve1", VmState::Stopped));
    control.call(&Request::RemoveFile { path: "nodes/pve2/qemu-server/301.conf".into() }).unwrap();
    events.until(Kind::Removed, 301).await;
    mark(&stack, &mut events, 200, 4).await;
    // A move is one event, not a removal and a creation.
    assert_eq!(events.kinds(300), [Kind::Moved]);
    assert_eq!(events.kinds(301), [Kind::Created, Kind::Removed]);
    assert_eq!(events.kinds(200), [Kind::Changed, Kind::Moved, Kind::Changed]);
}

#[tokio::test]
async fn a_vm_that_moves_while_it_runs_goes_on_running_there() {
    let stack = Stack::seeded(StackOptions { nodes: vec!["pve1", "pve2"], ..StackOptions::default() }, |control| {
        control.call(&Request::SeedVms { node: "pve1".into(), first: 200, count: 1 }).unwrap();
    });
    let control = stack.sim.control();
    let (one, two) = (stack.operator("pve1"), stack.operator("pve2"));
    let (mut here, mut there) = (HostEvents::open(&one).await, HostEvents::open(&two).await);
    control.call(&Request::StartGuest { vmid: 200 }).unwrap();
    here.until(Kind::Started, 200).await;
    control.call(&Request::Migrate { vmid: 200, to: "pve2".into() }).unwrap();
    here.until(Kind::Moved, 200).await;
    there.until(Kind::Started, 200).await;
    assert_eq!(two.vm(200).await.unwrap().state(), VmState::Running);
    assert_eq!(one.vm(200).await.unwrap().state(), VmState::Unknown);
    assert_eq!((here.count(Kind::Removed, 200), there.count(Kind::Removed, 200)), (0, 0));
}

#[tokio::test]
async fn without_quorum_nothing_is_told_as_gone() {
    let (stack, client) = seeded();
    let control = stack.sim.control();
    let mut events = HostEvents::open(&client).await;
    control.call(&Request::Quorum { node: None, on: false }).unwrap();
    events.until_host("quorum is lost", |h| !h.quorate).await;
    control.call(&Request::RemoveFile { path: "nodes/pve2/qemu-server/300.conf".into() }).unwrap();
    mark(&stack, &mut events, 200, 5).await;
    assert_eq!(events.count(Kind::Removed, 300), 0);
    // Who connects now is told of it too: its absence is not proven.
    assert!(HostEvents::open(&client).await.existing.iter().any(|vm| vm.vmid == 300));
    control.call(&Request::Quorum { node: None, on: true }).unwrap();
    events.until(Kind::Removed, 300).await;
    assert_eq!(events.count(Kind::Removed, 300), 1);
}

#[tokio::test]
async fn a_client_that_connects_again_gets_the_whole_picture() {
    let (mut stack, client) = seeded();
    let first = HostEvents::open(&client).await;
    assert_eq!(first.existing.len(), 3);
    // While nobody listens, and while the agent itself is away, things happen.
    drop(first);
    set_cores(&stack, 200, 6);
    stack.agent("pve1").kill();
    let control = stack.sim.control();
    control.call(&Request::RemoveFile { path: "nodes/pve2/qemu-server/300.conf".into() }).unwrap();
    control.call(&Request::SeedVms { node: "pve2".into(), first: 301, count: 1 }).unwrap();
    control.call(&Request::StartGuest { vmid: 200 }).unwrap();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let again = HostEvents::open(&client).await;
    let known: Vec<_> = again.existing.iter().map(|vm| (vm.vmid, vm.cores, vm.state())).collect();
    assert_eq!(known, [(200, 6, VmState::Running), (301, 1, VmState::Unknown), (9000, 1, VmState::Stopped)]);
}

#[tokio::test]
async fn operations_are_told_in_order_and_can_be_resumed() {
    let (stack, client) = seeded();
    let mut operations = OperationEvents::open(&client, 0).await;
    assert!(operations.first.is_empty());
    let vm = client.cloned("one", 9000, "one").await;
    let end = operations.ended("one").await;
    assert_eq!(end.state(), OperationState::Succeeded);
    assert_eq!(end.target, Some(vm_ref(&vm)));
    let seen: Vec<_> = operations.seen.iter().filter(|op| op.request_id == "one").collect();
    assert!(seen.len() >= 3, "{seen:?}");
    assert!(seen.is_sorted_by(|a, b| a.revision < b.revision));
    assert!(seen.iter().all(|op| op.name == end.name && op.tenant == "default" && op.kind() == v1::OperationKind::CloneVm));
    // The VMID is told from the beginning, the UPID as soon as it is known, and progress never goes back.
    assert!(seen.iter().all(|op| op.target.as_ref().is_some_and(|t| t.vmid == vm.vmid)));
    assert!(seen.iter().any(|op| op.end_time.is_none() && op.upids.len() == 1));
    let percents: Vec<u32> = seen.iter().map(|op| op.progress.map_or(0, |p| p.percent)).collect();
    assert!(percents.is_sorted(), "{percents:?}");
    assert_eq!(seen.iter().filter(|op| op.end_time.is_some()).count(), 1);

    // From the beginning: only what has not ended. From a revision: what changed after it, ended or not.
    assert!(OperationEvents::open(&client, 0).await.first.is_empty());
    assert!(OperationEvents::open(&client, end.revision).await.first.is_empty());
    let earlier = seen[0].revision;
    let resumed = OperationEvents::open(&client, earlier).await.first;
    assert_eq!(resumed.iter().map(|op| (&op.name, op.revision)).collect::<Vec<_>>(), [(&end.name, end.revision)]);
    succeeded(client.delete("two", &vm_ref(&vm)).await);
    let resumed = OperationEvents::open(&client, end.revision).await.first;
    assert_eq!(resumed.iter().map(|op| op.request_id.as_str()).collect::<Vec<_>>(), ["two"]);
    drop(stack);
}

#[tokio::test]
async fn revisions_of_operations_go_on_after_a_restart() {
    let (mut stack, client) = seeded();
    client.cloned("one", 9000, "one").await;
    let before = client.operation("one").await.unwrap().revision;
    stack.agent("pve1").kill();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    client.cloned("two", 9000, "two").await;
    let resumed = OperationEvents::open(&client, before).await.first;
    assert_eq!(resumed.iter().map(|op| op.request_id.as_str()).collect::<Vec<_>>(), ["two"]);
    assert!(resumed[0].revision > before);
}
