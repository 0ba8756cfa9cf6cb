//! Configure, power, delete, and whose VM it is.

use std::{collections::BTreeSet, time::Duration};

use pvelet_proto::{reason as reasons, v1};

use super::*;
use crate::host::pve::{HaState, RunState, TaskEnd, fake::Fault};

fn start(request_id: &str, vm: &v1::VmRef) -> v1::StartVmRequest {
    v1::StartVmRequest { meta: meta(request_id), vm: Some(vm.clone()) }
}

fn stop(request_id: &str, vm: &v1::VmRef) -> v1::StopVmRequest {
    v1::StopVmRequest { meta: meta(request_id), vm: Some(vm.clone()) }
}

fn delete(request_id: &str, vm: &v1::VmRef) -> v1::DeleteVmRequest {
    v1::DeleteVmRequest { meta: meta(request_id), vm: Some(vm.clone()), stop: false }
}

fn configure(request_id: &str, vm: &v1::VmRef, config: v1::VmConfig) -> v1::ConfigureVmRequest {
    v1::ConfigureVmRequest { meta: meta(request_id), vm: Some(vm.clone()), config: Some(config) }
}

fn tenants(tenant: &str) -> Caller {
    Caller { identity: Identity::parse(&format!("spiffe://pvelet.example/tenant/{tenant}/csi")).unwrap() }
}

#[tokio::test(start_paused = true)]
async fn a_vm_starts_stops_and_goes_without_a_trace() {
    let rig = rig();
    let vm = rig.make("a").await;
    succeeded(&rig.end(rig.vms.start_vm(&caller(), start("s", &vm)).await).await);
    assert_eq!(rig.vms.get(&vm, None).await.unwrap().state(), v1::VmState::Running);
    // It runs already: nothing is asked of PVE.
    succeeded(&rig.end(rig.vms.start_vm(&caller(), start("s2", &vm)).await).await);
    assert_eq!(rig.vms.delete_vm(&caller(), delete("d", &vm)).await.unwrap_err().reason(), reasons::VM_RUNNING);
    succeeded(&rig.end(rig.vms.reset_vm(&caller(), v1::ResetVmRequest { meta: meta("r"), vm: Some(vm.clone()) }).await).await);
    succeeded(&rig.end(rig.vms.stop_vm(&caller(), stop("t", &vm)).await).await);
    succeeded(&rig.end(rig.vms.delete_vm(&caller(), delete("d2", &vm)).await).await);
    assert_eq!(rig.pve.log(), ["clone 9000 200", "config 200", "start 200", "reset 200", "stop 200", "destroy 200"]);
    assert_eq!(rig.pve.volume_ids().into_iter().filter(|v| v.contains("-200-")).count(), 0);
    // Gone already, and known: what is asked for is so. The VMID rests.
    succeeded(&rig.end(rig.vms.delete_vm(&caller(), delete("d3", &vm)).await).await);
    assert_eq!(rig.make("b").await.vmid, 201);
    let never = v1::VmRef { vmid: 777, uuid: vm.uuid.clone() };
    assert_eq!(rig.vms.delete_vm(&caller(), delete("d4", &never)).await.unwrap_err().reason(), reasons::VM_NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn a_running_vm_is_stopped_before_its_deletion_when_asked() {
    let rig = rig();
    let vm = rig.make("a").await;
    succeeded(&rig.end(rig.vms.start_vm(&caller(), start("s", &vm)).await).await);
    let request = v1::DeleteVmRequest { stop: true, ..delete("d", &vm) };
    succeeded(&rig.end(rig.vms.delete_vm(&caller(), request).await).await);
    assert_eq!(rig.pve.vmids(), BTreeSet::from([TEMPLATE]));
}

#[tokio::test(start_paused = true)]
async fn what_pve_says_at_the_end_of_a_task_is_not_believed() {
    type Case = (&'static str, TaskEnd, bool, Option<&'static str>);
    let cases: [Case; 8] = [
        ("qmstart", TaskEnd::Ok, false, Some(reasons::PVE_FAILED)),
        ("qmstart", TaskEnd::NoEndLine, false, Some(reasons::PVE_FAILED)),
        ("qmstart", TaskEnd::NoEndLine, true, None),
        ("qmstart", TaskEnd::Warnings(vec!["WARN: x".into()]), true, None),
        ("qmstart", TaskEnd::Error("VM is locked (backup)".into()), false, Some(reasons::VM_LOCKED)),
        ("qmdestroy", TaskEnd::Ok, false, Some(reasons::PVE_FAILED)),
        ("qmdestroy", TaskEnd::NoEndLine, true, None),
        ("qmdestroy", TaskEnd::Error("unable to activate storage 'small' - x".into()), false, Some(reasons::STORAGE_OFFLINE)),
    ];
    for (kind, end, effect, expected) in cases {
        let rig = rig();
        let vm = rig.make("a").await;
        let shown = format!("{kind} {end:?} {effect}");
        rig.pve.fault(Fault::TaskEnd { kind, end, effect });
        let op = match kind {
            "qmstart" => rig.end(rig.vms.start_vm(&caller(), start("x", &vm)).await).await,
            _ => rig.end(rig.vms.delete_vm(&caller(), delete("x", &vm)).await).await,
        };
        match expected {
            None => assert_eq!(op.state(), v1::OperationState::Succeeded, "{shown}: {op:?}"),
            Some(expected) => assert_eq!(reason(&op), expected, "{shown}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_of_others_is_waited_for_until_the_deadline() {
    let rig = rig();
    let vm = rig.make("a").await;
    for _ in 0..5 {
        rig.pve.fault(Fault::LockTimeout { what: "VM 200".into() });
    }
    succeeded(&rig.end(rig.vms.start_vm(&caller(), start("s", &vm)).await).await);
    for _ in 0..1000 {
        rig.pve.fault(Fault::LockTimeout { what: "VM 200".into() });
    }
    let op = rig.end(rig.vms.stop_vm(&caller(), stop("t", &vm)).await).await;
    assert_eq!(reason(&op), reasons::LOCK_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_shut_down_is_told_or_stopped() {
    let rig = rig();
    let vm = rig.make("a").await;
    rig.pve.edit(200, |vm| {
        vm.keys.insert("deaf".into(), "1".into());
    });
    succeeded(&rig.end(rig.vms.start_vm(&caller(), start("s", &vm)).await).await);
    let request = |id: &str, force_stop| v1::ShutdownVmRequest { meta: meta(id), vm: Some(vm.clone()), timeout: None, force_stop };
    let op = rig.end(rig.vms.shutdown_vm(&caller(), request("1", false)).await).await;
    assert_eq!(reason(&op), reasons::SHUTDOWN_TIMEOUT);
    succeeded(&rig.end(rig.vms.shutdown_vm(&caller(), request("2", true)).await).await);
    let mut bad = request("3", false);
    bad.timeout = Some(prost_types::Duration { seconds: 7200, nanos: 0 });
    assert_eq!(rig.vms.shutdown_vm(&caller(), bad).await.unwrap_err().reason(), reasons::INVALID_FIELD);
}

#[tokio::test(start_paused = true)]
async fn an_ha_managed_vm_counts_as_started_when_it_runs_wherever_that_is() {
    for node in [NODE, "pve2"] {
        let rig = rig();
        let vm = rig.make("a").await;
        rig.pve.edit(200, |vm| vm.ha = Some(HaState { requested: "stopped".into() }));
        let name = rig.vms.start_vm(&caller(), start("s", &vm)).await.unwrap().name;
        rig.pve.until(|_| rig.ops.get(&name).unwrap().step.contains("HA manager")).await;
        assert_eq!(rig.vms.get(&vm, None).await.unwrap().state(), v1::VmState::Stopped);
        rig.pve.ha_acts(200, node, true);
        let op = rig.ops.wait(&name, Duration::from_secs(60)).await.unwrap();
        succeeded(&op);
        assert_eq!(op.warnings.len(), usize::from(node != NODE));
    }
    let rig = rig();
    let vm = rig.make("a").await;
    rig.pve.edit(200, |vm| vm.ha = Some(HaState { requested: "stopped".into() }));
    let op = rig.end(rig.vms.start_vm(&caller(), start("s", &vm)).await).await;
    assert_eq!(reason(&op), reasons::OPERATION_TIMEOUT);
    assert_eq!(rig.vms.delete_vm(&caller(), delete("d", &vm)).await.unwrap_err().reason(), reasons::VM_HA_MANAGED);
}

#[tokio::test(start_paused = true)]
async fn what_forbids_a_change_is_told_by_its_reason() {
    let rig = rig();
    let vm = rig.make("a").await;
    let twin = rig.pve.add_vm(300, &[]);
    type Edit = fn(&mut crate::host::pve::fake::FakeVm);
    let cases: [(Edit, Option<&str>, Option<&str>); 7] = [
        (|vm| drop(vm.keys.insert("protection".into(), "1".into())), Some(reasons::VM_PROTECTED), None),
        (|vm| vm.replicated = true, Some(reasons::VM_REPLICATED), None),
        (|vm| drop(vm.keys.insert("lock".into(), "backup".into())), Some(reasons::VM_LOCKED), Some(reasons::VM_LOCKED)),
        (|vm| drop(vm.keys.insert("lock".into(), "suspended".into())), None, None),
        (|vm| vm.node = "pve2".into(), Some(reasons::VM_ON_OTHER_HOST), Some(reasons::VM_ON_OTHER_HOST)),
        (
            |vm| drop(vm.keys.insert("smbios1".into(), "uuid=22222222-2222-2222-2222-222222222222".into())),
            Some(reasons::UUID_MISMATCH),
            Some(reasons::UUID_MISMATCH),
        ),
        (|vm| vm.run = RunState::Running { pid: 1, since: std::time::SystemTime::UNIX_EPOCH }, Some(reasons::VM_RUNNING), None),
    ];
    for (i, (edit, deleting, starting)) in cases.into_iter().enumerate() {
        let before = rig.pve.vm(200).unwrap();
        rig.pve.edit(200, edit);
        let refused = rig.vms.start_vm(&caller(), start(&format!("s{i}"), &vm)).await;
        match refused {
            Ok(op) => assert!(rig.end(Ok(op)).await.error.is_none() && starting.is_none(), "case {i}"),
            Err(e) => assert_eq!(Some(e.reason()), starting, "case {i}: {e}"),
        }
        if let Some(deleting) = deleting {
            rig.pve.edit(200, |vm| vm.run = RunState::Stopped);
            rig.pve.edit(200, edit);
            assert_eq!(rig.vms.delete_vm(&caller(), delete(&format!("d{i}"), &vm)).await.unwrap_err().reason(), deleting, "case {i}");
        }
        rig.pve.edit(200, |vm| *vm = before);
    }
    rig.pve.edit(300, |vm3| drop(vm3.keys.insert("smbios1".into(), format!("uuid={}", vm.uuid))));
    assert_eq!(rig.vms.start_vm(&caller(), start("amb", &vm)).await.unwrap_err().reason(), reasons::AMBIGUOUS_UUID);
    rig.pve.edit(300, |vm3| drop(vm3.keys.insert("smbios1".into(), format!("uuid={twin}"))));
    rig.pve.set_maintenance(true);
    assert_eq!(rig.vms.start_vm(&caller(), start("maint", &vm)).await.unwrap_err().reason(), reasons::HOST_SHUTTING_DOWN);
}

#[tokio::test(start_paused = true)]
async fn a_template_in_use_stays() {
    let rig = rig();
    let uuid = rig.pve.vm(TEMPLATE).unwrap().keys["smbios1"].trim_start_matches("uuid=").to_owned();
    let template = v1::VmRef { vmid: TEMPLATE, uuid };
    let vm = rig.make("a").await;
    assert_eq!(rig.vms.delete_vm(&caller(), delete("t", &template)).await.unwrap_err().reason(), reasons::TEMPLATE_IN_USE);
    assert_eq!(rig.vms.start_vm(&caller(), start("t", &template)).await.unwrap_err().reason(), reasons::VM_IS_TEMPLATE);
    succeeded(&rig.end(rig.vms.delete_vm(&caller(), delete("d", &vm)).await).await);
    succeeded(&rig.end(rig.vms.delete_vm(&caller(), delete("t2", &template)).await).await);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_a_lock_kept_is_freed_and_one_on_a_dead_storage_is_told() {
    let rig = rig();
    let vm = rig.make("a").await;
    rig.pve.fault(Fault::LockTimeout { what: "local".into() });
    succeeded(&rig.end(rig.vms.delete_vm(&caller(), delete("d", &vm)).await).await);
    assert_eq!(rig.pve.volume_ids().into_iter().filter(|v| v.contains("-200-")).count(), 0);

    let vm = rig.make("b").await;
    rig.pve.edit_storage("local", |s| s.active = false);
    let op = rig.end(rig.vms.delete_vm(&caller(), delete("d2", &vm)).await).await;
    assert_eq!(reason(&op), reasons::DISK_LEFT);
    assert!(rig.pve.vm(201).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_tenant_touches_only_what_carries_its_mark() {
    let rig = rig();
    let vm = rig.make("a").await;
    let unmarked = v1::VmRef { vmid: 300, uuid: rig.pve.add_vm(300, &[]) };
    let other = tenants("team-b");
    for target in [&vm, &unmarked] {
        assert_eq!(rig.vms.start_vm(&other, start(&format!("x{}", target.vmid), target)).await.unwrap_err().reason(), reasons::SCOPE_VM);
        assert_eq!(rig.vms.get(target, Some("team-b")).await.unwrap_err().reason(), reasons::VM_NOT_FOUND);
    }
    succeeded(&rig.end(rig.vms.start_vm(&tenants("team-a"), start("own", &vm)).await).await);
    // A copy that carries the mark of the original is nobody's.
    let description = rig.pve.vm(200).unwrap().description;
    rig.pve.edit(300, |copy| copy.description = description);
    assert_eq!(rig.vms.start_vm(&tenants("team-a"), start("copy", &unmarked)).await.unwrap_err().reason(), reasons::SCOPE_VM);
    let all = v1::ListVmsRequest { all_nodes: true, ..v1::ListVmsRequest::default() };
    let ids = |tenant: Option<&str>| rig.vms.list(&all, tenant).unwrap().vms.iter().map(|vm| vm.vmid).collect::<Vec<_>>();
    assert_eq!((ids(Some("team-a")), ids(Some("team-b")), ids(None)), (vec![200], vec![], vec![200, 300, TEMPLATE]));
    // People with a role may delete what is unmarked.
    succeeded(&rig.end(rig.vms.delete_vm(&caller(), delete("d", &unmarked)).await).await);
}

#[tokio::test(start_paused = true)]
async fn one_operation_at_a_time_works_on_a_vm() {
    let rig = rig();
    let vm = rig.make("a").await;
    rig.pve.hold("qmstart");
    let first = rig.vms.start_vm(&caller(), start("1", &vm)).await.unwrap();
    let Err(Error::OperationInProgress { holder, .. }) = rig.vms.stop_vm(&caller(), stop("2", &vm)).await else {
        panic!("it was accepted")
    };
    assert_eq!(holder, first.name);
    rig.pve.release("qmstart");
    succeeded(&rig.end(Ok(first)).await);
    succeeded(&rig.end(rig.vms.stop_vm(&caller(), stop("2", &vm)).await).await);
}

#[tokio::test(start_paused = true)]
async fn settings_change_and_the_mark_stays() {
    let rig = rig();
    let vm = rig.make("a").await;
    let config =
        v1::VmConfig { cores: Some(8), description: Some("new text".into()), boot_disk_bytes: Some(4 << 30), ..v1::VmConfig::default() };
    succeeded(&rig.end(rig.vms.configure_vm(&caller(), configure("c", &vm, config.clone())).await).await);
    let now = rig.vms.get(&vm, Some("team-a")).await.unwrap();
    assert_eq!((now.cores, now.description.as_str(), now.mark.is_some()), (8, "new text", true));
    assert_eq!(now.disks.iter().find(|d| d.slot == "scsi0").unwrap().size_bytes, 4 << 30);
    // What is so already is not written again.
    let calls = rig.pve.log().len();
    succeeded(&rig.end(rig.vms.configure_vm(&caller(), configure("c2", &vm, config)).await).await);
    assert_eq!(rig.pve.log().len(), calls);
    let shrink = v1::VmConfig { boot_disk_bytes: Some(1 << 30), ..v1::VmConfig::default() };
    assert_eq!(rig.vms.configure_vm(&caller(), configure("c3", &vm, shrink)).await.unwrap_err().reason(), reasons::DISK_SHRINK);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_settled_by_what_is_true() {
    for done in [true, false] {
        let rig = rig();
        let vm = rig.make("a").await;
        rig.pve.fault(Fault::AnswerLost { call: "power", done });
        let op = rig.end(rig.vms.start_vm(&caller(), start("s", &vm)).await).await;
        assert_eq!(op.state() == v1::OperationState::Succeeded, done, "{op:?}");
        assert_eq!(rig.pve.log().iter().filter(|l| l.starts_with("start")).count(), usize::from(done));
        rig.pve.edit(200, |vm| vm.run = RunState::Stopped);
        rig.pve.fault(Fault::AnswerLost { call: "destroy_vm", done });
        let op = rig.end(rig.vms.delete_vm(&caller(), delete("d", &vm)).await).await;
        assert_eq!((op.state() == v1::OperationState::Succeeded, rig.pve.vm(200).is_none()), (done, done));
    }
}
