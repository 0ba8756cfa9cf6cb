//! PVE answers 200 and a UPID, and then the task fails, warns, or ends without a word: what is reported is what is true.

use pve_sim::{
    control::{Request, Seed},
    faults::{TaskEffect, TaskFault},
};
use pvelet_proto::v1;
use pvelet_tests::{
    Client, Stack, StackOptions,
    client::{operation_reason, vm_ref},
};
use serde_json::json;

fn seeded() -> (Stack, Client) {
    let seed = |vmid, name: &str| Seed { size_mib: 64, fill_mib: 1, ..Seed::new("pve1", vmid, name) };
    let stack = Stack::seeded(StackOptions::default(), |control| {
        control.call(&Request::SeedTemplate(seed(9000, "template"))).unwrap();
        control.call(&Request::SeedVm(seed(200, "plain"))).unwrap();
    });
    let client = stack.operator("pve1");
    (stack, client)
}

fn fault(stack: &Stack, kind: &str, effect: TaskEffect) {
    let tasks = vec![TaskFault { kind: kind.into(), effect }];
    stack.sim.control().call(&Request::Faults { node: "pve1".into(), change: json!({ "tasks": tasks }) }).unwrap();
}

#[tokio::test]
async fn a_start_whose_task_fails_is_a_failure() {
    let (stack, client) = seeded();
    let vm = client.vm(200).await.unwrap();
    fault(&stack, "qmstart", TaskEffect::Error("start failed: QEMU exited with code 1".into()));
    let op = client.start("r1", &vm_ref(&vm)).await.unwrap();
    assert_eq!((op.state(), operation_reason(&op).as_str()), (v1::OperationState::Failed, "PVE_FAILED"));
    assert!(op.error.as_ref().unwrap().message.contains("QEMU exited with code 1"), "{op:?}");
    assert_eq!(client.vm(200).await.unwrap().state(), v1::VmState::Stopped);
}

#[tokio::test]
async fn a_start_that_ends_without_a_word_is_judged_by_the_run_state() {
    let (stack, client) = seeded();
    let vm = client.vm(200).await.unwrap();
    fault(&stack, "qmstart", TaskEffect::NoEndLine);
    let op = client.start("r1", &vm_ref(&vm)).await.unwrap();
    assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
    assert_eq!(client.vm(200).await.unwrap().state(), v1::VmState::Running);
}

#[tokio::test]
async fn a_start_whose_worker_is_killed_is_judged_by_the_run_state() {
    let (stack, client) = seeded();
    let vm = client.vm(200).await.unwrap();
    fault(&stack, "qmstart", TaskEffect::Killed);
    let op = client.start("r1", &vm_ref(&vm)).await.unwrap();
    let running = client.vm(200).await.unwrap().state() == v1::VmState::Running;
    assert_eq!(op.state() == v1::OperationState::Succeeded, running, "{op:?}");
}

#[tokio::test]
async fn a_resize_whose_task_fails_is_a_failure_and_the_size_is_as_it_was() {
    let (stack, client) = seeded();
    let vm = client.vm(200).await.unwrap();
    fault(&stack, "resize", TaskEffect::Error("command 'qemu-img resize' failed: exit code 1".into()));
    let config = v1::VmConfig { boot_disk_bytes: Some(128 << 20), ..Default::default() };
    let op = client.configure("r1", &vm_ref(&vm), config).await.unwrap();
    assert_eq!(op.state(), v1::OperationState::Failed, "{op:?}");
    assert_eq!(client.vm(200).await.unwrap().disks.iter().find(|d| d.slot == "scsi0").unwrap().size_bytes, 64 << 20);
}

#[tokio::test]
async fn a_delete_that_warns_with_a_disk_left_names_the_disk() {
    let (stack, client) = seeded();
    let vm = client.vm(200).await.unwrap();
    let change = json!({"storages": {"local": {"remove_fails": true}}});
    stack.sim.control().call(&Request::Faults { node: "pve1".into(), change }).unwrap();
    let op = client.delete("r1", &vm_ref(&vm)).await.unwrap();
    assert_eq!((op.state(), operation_reason(&op).as_str()), (v1::OperationState::Failed, "DISK_LEFT"), "{op:?}");
    assert!(op.error.as_ref().unwrap().message.contains("vm-200-disk-0"), "{op:?}");
    // The VM is gone all the same, and that is what reads say.
    assert_eq!(client.vm(200).await.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn a_delete_whose_task_fails_leaves_the_vm_and_says_so() {
    let (stack, client) = seeded();
    let vm = client.vm(200).await.unwrap();
    fault(&stack, "qmdestroy", TaskEffect::Error("something went wrong".into()));
    let op = client.delete("r1", &vm_ref(&vm)).await.unwrap();
    assert_eq!(op.state(), v1::OperationState::Failed, "{op:?}");
    assert_eq!(client.vm(200).await.unwrap().uuid, vm.uuid);
}

#[tokio::test]
async fn a_clone_whose_task_fails_warns_or_dies_leaves_the_vm_whole_or_nothing() {
    let (stack, client) = seeded();
    let before = stack.sim.control().leftovers().unwrap();
    let effects = [
        TaskEffect::Error("clone failed: got no luck".into()),
        TaskEffect::Killed,
        TaskEffect::Terminated,
        TaskEffect::NoEndLine,
        TaskEffect::Warnings(1),
    ];
    for (i, effect) in effects.into_iter().enumerate() {
        for mode in [v1::CloneMode::Linked, v1::CloneMode::Full] {
            let what = format!("{effect:?} {mode:?}");
            fault(&stack, "qmclone", effect.clone());
            let mut request = client.clone_request(&format!("c{i}-{mode:?}"), 9000, "clone");
            request.mode = mode.into();
            let op = client.clone_vm(request).await.unwrap();
            let vms: Vec<_> = client.vms().await.into_iter().filter(|vm| vm.name == "clone").collect();
            if op.state() == v1::OperationState::Succeeded {
                assert_eq!(vms.len(), 1, "{what}: {op:?}");
                assert!(vms[0].lock.is_empty() && vms[0].mark.is_some(), "{what}: {:?}", vms[0]);
                client.delete(&format!("d{i}-{mode:?}"), &vm_ref(&vms[0])).await.unwrap();
            } else {
                assert_eq!(op.state(), v1::OperationState::Failed, "{what}: {op:?}");
                assert!(vms.is_empty(), "{what}: {vms:?}");
            }
            assert_eq!(stack.sim.control().leftovers().unwrap(), before, "{what}: {op:?}");
        }
    }
}
