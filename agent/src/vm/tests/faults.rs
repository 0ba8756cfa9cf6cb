//! What must hold when the world changes in the middle: others' volumes stay, a restarted cluster file system undoes nothing, a fault of
//! the agent holds nothing for ever.

use std::{collections::BTreeSet, time::Duration};

use pvelet_proto::{reason as reasons, v1};

use super::*;
use crate::host::pve::{
    TaskEnd,
    fake::{Fault, Freeze},
};

fn start(request_id: &str, vm: &v1::VmRef) -> v1::StartVmRequest {
    v1::StartVmRequest { meta: meta(request_id), vm: Some(vm.clone()) }
}

fn delete(request_id: &str, vm: &v1::VmRef) -> v1::DeleteVmRequest {
    v1::DeleteVmRequest { meta: meta(request_id), vm: Some(vm.clone()), stop: false }
}

/// Waits until something is so.
async fn until(what: impl Fn() -> bool) {
    let tried = tokio::time::timeout(Duration::from_secs(60), async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    tried.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn undoing_leaves_what_others_left_on_another_storage() {
    for end in
        [Fault::Killed { kind: "qmclone", stage: 2 }, Fault::TaskEnd { kind: "resize", end: TaskEnd::Error("no".into()), effect: false }]
    {
        let rig = rig();
        rig.pve.add_volume("other:200/vm-200-disk-9.raw", 200);
        rig.pve.fault(end);
        let mut request = clone_request("r", "a", true);
        request.config.as_mut().unwrap().boot_disk_bytes = Some(2 << 30);
        let op = rig.end(rig.vms.clone_vm(&caller(), request).await).await;
        assert_eq!((op.state(), op.warnings.len()), (v1::OperationState::Failed, 0), "{op:?}");
        assert_eq!((rig.pve.vmids(), rig.pve.orphan_count()), (BTreeSet::from([TEMPLATE]), 0));
        let left: Vec<_> = rig.pve.volume_ids().into_iter().filter(|v| v.contains("-200-")).collect();
        assert_eq!(left, ["other:200/vm-200-disk-9.raw"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_vmid_with_a_volume_on_any_storage_of_the_template_is_passed_over() {
    let rig = rig();
    rig.pve.edit(TEMPLATE, |vm| drop(vm.keys.insert("scsi1".into(), "other:9000/base-9000-disk-1.qcow2,size=1G".into())));
    rig.pve.add_volume("other:200/vm-200-disk-9.raw", 200);
    let op = rig.end(rig.vms.clone_vm(&caller(), clone_request("r", "a", false)).await).await;
    succeeded(&op);
    assert_eq!(op.target.unwrap().vmid, 201);
    assert!(rig.pve.volume_ids().contains("other:200/vm-200-disk-9.raw"));
}

#[test]
fn a_container_that_took_the_vmid_keeps_its_volumes() {
    let pve = FakePve::new(NODE);
    pve.add_template(TEMPLATE, "");
    pve.hold("qmclone");
    let dir = tempfile::tempdir().unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let name = runtime().block_on(async {
        let (ops, vms) = open(dir.path(), &pve);
        pve.freeze(Freeze::Before(3));
        let name = vms.clone_vm(&caller(), clone_request("r", "a", true)).await.unwrap().name;
        pve.frozen().await;
        ops.flushed().await;
        name
    });
    pve.release("qmclone");
    (0..2).for_each(|_| pve.step_tasks());
    pve.kill_tasks();
    let volume = pve.volume_ids().into_iter().find(|v| v.contains("vm-200-disk-0")).unwrap();
    pve.remove_vm(200);
    pve.add_container(200);
    pve.add_volume(&volume, 200);
    pve.thaw();
    runtime().block_on(async {
        let (ops, vms) = open(dir.path(), &pve);
        vms.settle().await;
        let op = ops.wait(&name, Duration::from_secs(24 * 3600)).await.unwrap();
        assert_eq!(op.state(), v1::OperationState::Failed);
    });
    assert!(pve.volume_ids().contains(&volume), "it is the container's now");
}

#[tokio::test(start_paused = true)]
async fn a_uuid_in_capitals_that_is_found_twice_is_ambiguous() {
    let rig = rig();
    let uuid = "3CE39E16-A6D8-4C28-AB96-A142978C9CD2";
    for vmid in [500, 501] {
        rig.pve.add_vm(vmid, &[("smbios1", &format!("uuid={uuid}"))]);
    }
    let vm = v1::VmRef { vmid: 500, uuid: uuid.to_ascii_lowercase() };
    assert_eq!(rig.vms.start_vm(&caller(), start("s", &vm)).await.unwrap_err().reason(), reasons::AMBIGUOUS_UUID);
}

#[tokio::test(start_paused = true)]
async fn a_machine_has_one_vm_however_its_uid_is_written() {
    let rig = rig();
    let request = |id: &str, uid: &str| v1::CloneVmRequest {
        owner: Some(v1::Owner { machine_uid: uid.into(), ..v1::Owner::default() }),
        ..clone_request(id, "a", false)
    };
    let uid = "3ce39e16-a6d8-4c28-ab96-a142978c9cd2";
    succeeded(&rig.end(rig.vms.clone_vm(&caller(), request("1", uid)).await).await);
    let refused = rig.vms.clone_vm(&caller(), request("2", &uid.to_ascii_uppercase())).await.unwrap_err();
    assert_eq!(refused.reason(), reasons::MACHINE_HAS_VM);
}

#[tokio::test(start_paused = true)]
async fn deletions_keep_their_place_in_the_lane_until_their_task_has_ended() {
    let rig = rig();
    let mut vms = Vec::new();
    for i in 0..5 {
        vms.push(rig.make(&format!("a{i}")).await);
    }
    rig.pve.hold("qmdestroy");
    let mut names = Vec::new();
    for (i, vm) in vms.iter().enumerate() {
        names.push(rig.vms.delete_vm(&caller(), delete(&format!("d{i}"), vm)).await.unwrap().name);
    }
    let waits = |name: &String| rig.ops.get(name).unwrap().step.starts_with("waiting for the short lane");
    until(|| names.iter().any(waits)).await;
    rig.pve.release("qmdestroy");
    for name in &names {
        succeeded(&rig.ops.wait(name, Duration::from_secs(3600)).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cluster_file_system_that_restarts_in_the_middle_changes_no_result() {
    let rig = rig();
    rig.pve.hold("qmclone");
    let op = rig.vms.clone_vm(&caller(), clone_request("c", "a", true)).await.unwrap();
    until(|| rig.pve.log().iter().any(|l| l == "clone 9000 200")).await;
    (0..3).for_each(|_| rig.pve.fault(Fault::Hung));
    rig.pve.release("qmclone");
    let op = rig.ops.wait(&op.name, Duration::from_secs(3600)).await.unwrap();
    succeeded(&op);
    let vm = op.target.unwrap();

    rig.pve.hold("qmstart");
    let op = rig.vms.start_vm(&caller(), start("s", &vm)).await.unwrap();
    until(|| rig.pve.log().iter().any(|l| l == "start 200")).await;
    rig.pve.fault(Fault::Hung);
    rig.pve.release("qmstart");
    succeeded(&rig.ops.wait(&op.name, Duration::from_secs(3600)).await.unwrap());
    assert_eq!(rig.pve.pending_faults(), 0);
}

#[tokio::test(start_paused = true)]
async fn whether_a_vm_is_gone_is_told_when_the_quorum_is_back() {
    let rig = rig();
    let vm = rig.make("a").await;
    rig.pve.hold("qmdestroy");
    let op = rig.vms.delete_vm(&caller(), delete("d", &vm)).await.unwrap();
    until(|| rig.pve.log().iter().any(|l| l == "destroy 200")).await;
    rig.pve.set_quorate(false);
    rig.pve.release("qmdestroy");
    until(|| rig.ops.get(&op.name).unwrap().step.starts_with("waiting, for")).await;
    rig.pve.set_quorate(true);
    succeeded(&rig.ops.wait(&op.name, Duration::from_secs(3600)).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_template_that_was_replaced_while_the_clone_waited_is_not_cloned() {
    let rig = rig();
    rig.pve.hold("qmclone");
    for i in 0..4 {
        rig.vms.clone_vm(&caller(), clone_request(&format!("r{i}"), "a", false)).await.unwrap();
    }
    until(|| rig.pve.log().len() == 4).await;
    let op = rig.vms.clone_vm(&caller(), clone_request("r", "a", false)).await.unwrap();
    until(|| rig.ops.get(&op.name).unwrap().step.starts_with("waiting for the short lane")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Somebody's VM, with somebody's data.
    rig.pve.edit(TEMPLATE, |vm| drop(vm.keys.remove("template")));
    rig.pve.release("qmclone");
    let op = rig.ops.wait(&op.name, Duration::from_secs(3600)).await.unwrap();
    assert_eq!(reason(&op), reasons::TEMPLATE_NOT_FOUND);
    assert_eq!(rig.pve.vmids().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_met_a_fault_of_the_agent_is_settled() {
    let rig = rig();
    rig.pve.fault(Fault::Panic { call: "set_config_now" });
    let op = rig.end(rig.vms.clone_vm(&caller(), clone_request("r", "a", false)).await).await;
    succeeded(&op);
    assert_eq!(rig.pve.log(), ["clone 9000 200", "config 200"]);
}

#[tokio::test(start_paused = true)]
async fn a_fault_that_comes_again_holds_nothing_for_ever_and_is_told() {
    let rig = rig();
    (0..2).for_each(|_| rig.pve.fault(Fault::Panic { call: "set_config_now" }));
    let op = rig.end(rig.vms.clone_vm(&caller(), clone_request("r", "a", false)).await).await;
    assert_eq!((op.state(), reason(&op).as_str()), (v1::OperationState::Failed, reasons::INTERNAL));
    assert!(op.warnings.iter().any(|w| w.contains("VM 200")), "{op:?}");
    assert!(rig.ops.leased().is_empty() && rig.ops.active() == 0);
    // What was left is there for all to see, and its VMID is not given out.
    assert_eq!(rig.make("b").await.vmid, 201);
}

#[tokio::test(start_paused = true)]
async fn the_vm_of_a_call_that_pve_takes_much_later_is_removed_when_it_comes() {
    let rig = rig();
    rig.vms.settle().await;
    rig.pve.fault(Fault::AnswerLost { call: "clone_vm", done: false });
    let op = rig.end(rig.vms.clone_vm(&caller(), clone_request("r", "a", false)).await).await;
    assert_eq!(reason(&op), reasons::PVE_DOWN);
    rig.pve.add_vm(200, &[]);
    rig.pve.edit(200, |vm| vm.description = format!("pvelet:v1 op={} tenant=team-a", op.name.trim_start_matches("operations/")));
    // One of somebody else's that only looks like it.
    let theirs = uuid::Uuid::from_u128(1);
    rig.pve.add_vm(201, &[]);
    rig.pve.edit(201, |vm| vm.description = format!("pvelet:v1 op={theirs} tenant=team-a"));
    [201, 200].into_iter().for_each(|vmid| rig.pve.tell(vmid));
    rig.pve.until(|p| p.vm(200).is_none()).await;
    assert!(rig.pve.vm(201).is_some());
}

#[test]
fn an_agent_that_observes_settles_nothing_before_it_manages() {
    let pve = FakePve::new(NODE);
    pve.add_template(TEMPLATE, "");
    let dir = tempfile::tempdir().unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let name = runtime().block_on(async {
        let (ops, vms) = open(dir.path(), &pve);
        pve.freeze(Freeze::Before(4));
        let name = vms.clone_vm(&caller(), clone_request("r", "a", false)).await.unwrap().name;
        pve.frozen().await;
        ops.flushed().await;
        name
    });
    pve.thaw();
    let before = pve.log();
    runtime().block_on(async {
        let (ops, vms) = open(dir.path(), &pve);
        vms.set_mode(Mode::Observe);
        vms.settle().await;
        until(|| ops.get(&name).unwrap().step.contains("only observes")).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(pve.log(), before);
        vms.set_mode(Mode::Manage);
        succeeded(&ops.wait(&name, Duration::from_secs(3600)).await.unwrap());
    });
}
