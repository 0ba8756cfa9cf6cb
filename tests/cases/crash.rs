//! The agent, and the controller, killed with SIGKILL between every two steps, then started again: the VM is whole, or nothing is left.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use pve_sim::{
    control::{Request, Seed},
    faults::{TaskEffect, TaskFault},
};
use pvelet_agent::crash::NAMES;
use pvelet_proto::v1;
use pvelet_tests::{
    Client, Stack, StackOptions,
    client::{operation_reason, vm_ref},
    status::{self, condition},
};
use serde_json::json;

fn stack() -> Stack {
    let stack = Stack::start(StackOptions { start_agents: false, ..StackOptions::default() });
    let seed = Seed { tags: "debian-13".into(), size_mib: 64, fill_mib: 8, ..Seed::new("pve1", 9000, "template") };
    stack.sim.control().call(&Request::SeedTemplate(seed)).unwrap();
    stack
}

/// Lets the agent die at `point` while `call` is made, and starts it again; returns a client of the new one.
async fn dies_and_comes_back<F: Future<Output = ()>>(stack: &mut Stack, point: &str, call: impl FnOnce(Client) -> F) -> Client {
    stack.agent("pve1").kill();
    stack.agent("pve1").start_with(&[("PVELET_CRASH_AT", point)]).unwrap();
    let client = stack.operator("pve1");
    // The answer is lost with the agent, whatever it would have been.
    call(client).await;
    let status = stack.agent("pve1").wait_exit();
    assert_eq!(status.signal(), Some(9), "{point}: {status}\n{}", stack.agent("pve1").log());
    stack.agent("pve1").start();
    stack.operator("pve1")
}

/// The end of an operation; `None` when the agent knows no such request.
async fn settled(client: &Client, request_id: &str) -> Option<v1::Operation> {
    let list = v1::ListOperationsRequest { tenant: "default".into(), request_id: request_id.into(), ..Default::default() };
    let known = client.agent.operation().list_operations(list).await.unwrap().into_inner().operations;
    if known.is_empty() { None } else { Some(client.operation_end(request_id).await) }
}

fn points(prefixes: &[&str]) -> impl Iterator<Item = &'static str> {
    let prefixes: Vec<String> = prefixes.iter().map(|p| (*p).to_owned()).collect();
    NAMES.iter().copied().filter(move |n| prefixes.iter().any(|p| n.starts_with(p.as_str())))
}

async fn clone_survives(mode: v1::CloneMode) {
    let mut stack = stack();
    stack.agent("pve1").start();
    let control = stack.sim.control();
    let before = control.leftovers().unwrap();
    for point in points(&["clone.", "task."]) {
        let request = |client: &Client| {
            let mut request = client.clone_request(point, 9000, "phoenix");
            request.mode = mode.into();
            let config = request.config.as_mut().unwrap();
            (config.cores, config.boot_disk_bytes) = (Some(3), Some(128 << 20));
            request
        };
        let client = dies_and_comes_back(&mut stack, point, |client| async move {
            let _ = client.clone_vm(request(&client)).await;
        })
        .await;
        let first = settled(&client, point).await;
        let vms: Vec<_> = client.vms().await.into_iter().filter(|vm| vm.name == "phoenix").collect();
        match first.as_ref().map(v1::Operation::state) {
            Some(v1::OperationState::Succeeded) => {
                assert_eq!(vms.len(), 1, "{point}: {first:?}");
                assert!(vms[0].lock.is_empty() && vms[0].mark.is_some() && vms[0].cores == 3, "{point}: {:?}", vms[0]);
                assert_eq!(vms[0].disks.iter().find(|d| d.slot == "scsi0").unwrap().size_bytes, 128 << 20, "{point}");
            }
            Some(v1::OperationState::Failed) | None => {
                assert!(vms.is_empty(), "{point}: {first:?} {vms:?}");
                assert_eq!(control.leftovers().unwrap(), before, "{point}: {first:?}");
            }
            other => panic!("{point}: {other:?}"),
        }
        // The same request never makes a second one; a lost one is simply made now.
        let again = client.clone_vm(request(&client)).await.unwrap();
        if let Some(first) = first {
            assert_eq!((again.name, again.state), (first.name, first.state), "{point}");
        }
        let vms: Vec<_> = client.vms().await.into_iter().filter(|vm| vm.name == "phoenix").collect();
        assert!(vms.len() <= 1, "{point}: {vms:?}");
        for vm in &vms {
            let op = client.delete(&format!("delete-{point}"), &vm_ref(vm)).await.unwrap();
            assert_eq!(op.state(), v1::OperationState::Succeeded, "{point}: {op:?}");
        }
        assert_eq!(control.leftovers().unwrap(), before, "{point}");
    }
}

#[tokio::test]
async fn a_linked_clone_survives_a_kill_between_any_two_steps() {
    clone_survives(v1::CloneMode::Linked).await;
}

#[tokio::test]
async fn a_full_clone_survives_a_kill_between_any_two_steps() {
    clone_survives(v1::CloneMode::Full).await;
}

#[tokio::test]
async fn undoing_a_clone_survives_a_kill_between_any_two_steps() {
    let mut stack = stack();
    stack.agent("pve1").start();
    let control = stack.sim.control();
    let before = control.leftovers().unwrap();
    for point in points(&["rollback."]) {
        // The worker dies half way: lock, disk, and a copy that runs on.
        let tasks = vec![TaskFault { kind: "qmclone".into(), effect: TaskEffect::Killed }];
        let change = json!({ "tasks": tasks, "storages": {"local": {"rate_kib": 2048}} });
        control.call(&Request::Faults { node: "pve1".into(), change }).unwrap();
        let client = dies_and_comes_back(&mut stack, point, |client| async move {
            let mut request = client.clone_request(point, 9000, "phoenix");
            request.mode = v1::CloneMode::Full.into();
            let _ = client.clone_vm(request).await;
        })
        .await;
        let op = settled(&client, point).await.unwrap();
        assert_eq!(op.state(), v1::OperationState::Failed, "{point}: {op:?}");
        assert_eq!(control.leftovers().unwrap(), before, "{point}: {op:?}");
    }
}

#[tokio::test]
async fn settings_survive_a_kill_between_any_two_steps() {
    let mut stack = stack();
    stack.agent("pve1").start();
    let mut size = 64 << 20;
    let vm = stack.operator("pve1").cloned("vm", 9000, "steady").await;
    for (cores, point) in (2_u32..).zip(points(&["configure."])) {
        size += 64 << 20;
        let config = v1::VmConfig { cores: Some(cores), boot_disk_bytes: Some(size), ..Default::default() };
        let (target, wanted) = (vm_ref(&vm), config.clone());
        let client = dies_and_comes_back(&mut stack, point, |client| async move {
            let _ = client.configure(point, &target, wanted).await;
        })
        .await;
        let op = settled(&client, point).await.unwrap();
        if op.state() != v1::OperationState::Succeeded {
            let op = client.configure(&format!("again-{point}"), &vm_ref(&vm), config).await.unwrap();
            assert_eq!(op.state(), v1::OperationState::Succeeded, "{point}: {op:?}");
        }
        let now = client.vm(vm.vmid).await.unwrap();
        assert_eq!((now.cores, now.lock.as_str(), &now.uuid), (cores, "", &vm.uuid), "{point}");
        assert_eq!(now.disks.iter().find(|d| d.slot == "scsi0").unwrap().size_bytes, size, "{point}");
    }
}

#[tokio::test]
async fn start_and_stop_survive_a_kill_between_any_two_steps() {
    let mut stack = stack();
    stack.agent("pve1").start();
    let vm = stack.operator("pve1").cloned("vm", 9000, "steady").await;
    for point in points(&["power."]) {
        for (kind, wanted) in [("start", v1::VmState::Running), ("stop", v1::VmState::Stopped)] {
            let (id, target) = (format!("{kind}-{point}"), vm_ref(&vm));
            let request_id = id.clone();
            let client = dies_and_comes_back(&mut stack, point, |client| async move {
                let _ = if kind == "start" { client.start(&id, &target).await } else { client.stop(&id, &target).await };
            })
            .await;
            let mut op = settled(&client, &request_id).await.unwrap();
            if operation_reason(&op) == "AGENT_RESTARTED" {
                // PVE had not been asked: an order that may be old by now is not carried out unasked, and the caller may repeat it.
                assert!(op.upids.is_empty(), "{point} {kind}: {op:?}");
                let (id, target) = (format!("again-{kind}-{point}"), vm_ref(&vm));
                op = if kind == "start" { client.start(&id, &target).await } else { client.stop(&id, &target).await }.unwrap();
            }
            assert_eq!(op.state(), v1::OperationState::Succeeded, "{point} {kind}: {op:?}");
            assert_eq!(client.vm(vm.vmid).await.unwrap().state(), wanted, "{point} {kind}: {op:?}");
        }
    }
}

#[tokio::test]
async fn a_delete_survives_a_kill_between_any_two_steps() {
    let mut stack = stack();
    stack.agent("pve1").start();
    let control = stack.sim.control();
    let before = control.leftovers().unwrap();
    for point in points(&["delete."]) {
        let client = stack.operator("pve1");
        let vm = client.cloned(&format!("vm-{point}"), 9000, "doomed").await;
        client.start(&format!("run-{point}"), &vm_ref(&vm)).await.unwrap();
        let target = vm_ref(&vm);
        let client = dies_and_comes_back(&mut stack, point, |client| async move {
            let request = v1::DeleteVmRequest { meta: client.meta(point), vm: Some(target), stop: true };
            let _ = client.agent.vm().delete_vm(request).await;
        })
        .await;
        let op = settled(&client, point).await.unwrap();
        assert_eq!(op.state(), v1::OperationState::Succeeded, "{point}: {op:?}");
        assert_eq!(control.leftovers().unwrap(), before, "{point}: {op:?}");
    }
}

const SECRET: &str = "#cloud-config\npassword: correct-horse-battery\n";

/// The snippets, once it is sure that neither the agent's state nor its log holds what must be there alone.
fn snippets(stack: &Stack) -> std::collections::BTreeMap<String, String> {
    let agent = &stack.agents["pve1"];
    for file in std::fs::read_dir(agent.state_dir()).unwrap().flatten().map(|f| f.path()).filter(|p| p.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(13).any(|part| part == b"correct-horse"), "{}", file.display());
    }
    assert!(!agent.log().contains("correct-horse"));
    stack.snippets("pve1")
}

#[tokio::test]
async fn user_data_is_whole_or_gone_after_a_kill_between_any_two_steps() {
    let mut stack = stack();
    stack.agents.get_mut("pve1").unwrap().extra.insert("log".into(), "level = \"trace\"".into());
    stack.agent("pve1").start();
    let control = stack.sim.control();
    let before = control.leftovers().unwrap();
    let with_data = |client: &Client, id: &str| {
        let mut request = client.clone_request(id, 9000, "phoenix");
        let cloud_init = v1::CloudInit { user_data: Some(SECRET.into()), ..Default::default() };
        request.config.as_mut().unwrap().cloud_init = Some(cloud_init);
        request
    };
    let whole = |stack: &Stack, vm: &v1::Vm| {
        let sha256 = vm.cloud_init.as_ref().unwrap().user_data_sha256.clone();
        assert_eq!(snippets(stack), [(format!("pvelet-{}-{sha256}.yaml", vm.uuid), SECRET.to_owned())].into());
    };
    for point in ["clone.task_ended", "clone.checked", "user_data.noted", "user_data.written", "clone.bound", "clone.end_written"] {
        let mut client = dies_and_comes_back(&mut stack, point, |client| async move {
            let _ = client.clone_vm(with_data(&client, point)).await;
        })
        .await;
        let first = settled(&client, point).await.unwrap();
        if first.state() == v1::OperationState::Failed {
            // What the agent had of it died with it; whoever asked has it still.
            assert_eq!(operation_reason(&first), "USER_DATA_LOST", "{point}: {first:?}");
            assert_eq!((control.leftovers().unwrap(), snippets(&stack).len()), (before.clone(), 0), "{point}");
            let again = client.clone_vm(with_data(&client, &format!("again-{point}"))).await.unwrap();
            assert_eq!(again.state(), v1::OperationState::Succeeded, "{point}: {again:?}");
        }
        let vm = client.vms().await.into_iter().find(|vm| vm.name == "phoenix").unwrap();
        whole(&stack, &vm);
        // PVE reads it at the start.
        let started = client.start(&format!("start-{point}"), &vm_ref(&vm)).await.unwrap();
        assert_eq!(started.state(), v1::OperationState::Succeeded, "{point}: {started:?}");
        let (id, target) = (format!("delete-{point}"), vm_ref(&vm));
        let request = |client: &Client| v1::DeleteVmRequest { meta: client.meta(&id), vm: Some(target.clone()), stop: true };
        // At its removal it dies as well, before that is on the disk and after.
        let dies_at = if point.starts_with("user_data.") { "user_data.removed" } else { "delete.volumes_checked" };
        client = dies_and_comes_back(&mut stack, dies_at, |client| async move {
            let _ = client.agent.vm().delete_vm(request(&client)).await;
        })
        .await;
        let gone = settled(&client, &id).await.unwrap();
        assert_eq!(gone.state(), v1::OperationState::Succeeded, "{point}: {gone:?}");
        assert_eq!((control.leftovers().unwrap(), snippets(&stack).len()), (before.clone(), 0), "{point}: {gone:?}");
    }
}

/// Where the controller can be made to die, and at which pass: between every two steps of placement, attempt, call and status.
const CONTROLLER: &[(&str, u32)] = &[
    ("machine.finalizer.stored", 1),
    ("machine.attempt.stored", 1),
    ("machine.attempt.stored", 2),
    ("machine.status.stored", 1),
    ("machine.status.stored", 2),
    ("machine.call.answered", 1),
    ("machine.call.answered", 2),
];

#[test]
fn a_machine_is_one_vm_wherever_the_controller_dies() {
    let mut stack = stack();
    stack.agent("pve1").start();
    let before = stack.sim.control().leftovers().unwrap();
    for (i, (point, pass)) in CONTROLLER.iter().enumerate() {
        let name = format!("web-{i}");
        let what = format!("{point}:{pass}");
        let mut controller = stack.controller();
        controller.write(&format!("{name}.yaml"), &include_str!("../../docs/examples/web-1.yaml").replace("web-1", &name));
        controller.start_with(&[("PVELET_CRASH_AT", &what)]).unwrap();
        let status = controller.wait_exit();
        assert_eq!(status.signal(), Some(9), "{what}: {status}\n{}", controller.log());
        controller.start();
        let key = format!("pvemachine.{name}");
        let limit = Duration::from_secs(60);
        status::wait_for(&controller.manifests, limit, |r| r.get(&key).is_some_and(|m| condition(m, "Ready") == "True")).unwrap();
        let configs = std::fs::read_dir(stack.sim.node("pve1").etc_pve().join("nodes/pve1/qemu-server")).unwrap();
        let made = configs.flatten().filter(|f| std::fs::read_to_string(f.path()).unwrap().contains(&format!("name: {name}\n"))).count();
        assert_eq!(made, 1, "{what}");
        controller.remove(&format!("{name}.yaml"));
        status::wait_for(&controller.manifests, limit, |r| !r.contains_key(&key)).unwrap();
        assert_eq!(stack.sim.control().leftovers().unwrap(), before, "{what}");
    }
}

#[test]
fn a_machine_that_is_being_removed_goes_wherever_the_controller_dies() {
    let mut stack = stack();
    stack.agent("pve1").start();
    let before = stack.sim.control().leftovers().unwrap();
    for point in ["machine.attempt.stored:1", "machine.call.answered:1", "machine.released:1"] {
        let mut controller = stack.controller();
        controller.write("web-1.yaml", include_str!("../../docs/examples/web-1.yaml"));
        controller.start();
        let limit = Duration::from_secs(60);
        let key = "pvemachine.web-1";
        status::wait_for(&controller.manifests, limit, |r| r.get(key).is_some_and(|m| condition(m, "Ready") == "True")).unwrap();
        controller.kill();
        controller.remove("web-1.yaml");
        controller.start_with(&[("PVELET_CRASH_AT", point)]).unwrap();
        let status = controller.wait_exit();
        assert_eq!(status.signal(), Some(9), "{point}: {status}\n{}", controller.log());
        controller.start();
        status::wait_for(&controller.manifests, limit, |r| !r.contains_key(key)).unwrap();
        assert_eq!(stack.sim.control().leftovers().unwrap(), before, "{point}");
    }
}
