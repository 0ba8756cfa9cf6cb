//! What a restarted agent makes of what its last run left.

use std::{collections::BTreeSet, path::Path, time::Duration};

use pvelet_proto::{reason as reasons, v1};

use super::*;
use crate::{
    host::pve::{
        RunState, TaskEnd,
        fake::{Fault, Freeze},
    },
    vm::{
        failure::Failed,
        verdict::{Found, Verdict, verdict},
    },
};

/// Runs `begin` in an agent that dies when the fake has frozen, and returns the name of what it began.
fn die<F: Future<Output = String>>(dir: &Path, pve: &FakePve, freeze: Freeze, begin: impl FnOnce(Vms) -> F) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (ops, vms) = open(dir, pve);
        pve.freeze(freeze);
        let name = begin(vms).await;
        pve.frozen().await;
        // What is queued for the journal may or may not be there after a crash: these cases are about the one where it is.
        ops.flushed().await;
        name
    })
}

/// Starts the agent anew and returns how the operation ended.
fn settle(dir: &Path, pve: &FakePve, name: &str) -> v1::Operation {
    pve.thaw();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (ops, vms) = open(dir, pve);
        vms.settle().await;
        let op = ops.wait(name, Duration::from_secs(24 * 3600)).await.unwrap();
        assert!(ops.leased().is_empty());
        op
    })
}

fn cloned(dir: &Path, pve: &FakePve, freeze: Freeze, full: bool) -> String {
    die(dir, pve, freeze, |vms| async move { vms.clone_vm(&caller(), clone_request("r", "a", full)).await.unwrap().name })
}

fn world() -> (tempfile::TempDir, FakePve) {
    let pve = FakePve::new(NODE);
    pve.add_template(TEMPLATE, "");
    (tempfile::tempdir().unwrap(), pve)
}

/// The calls of a linked clone: 0 volumes, 1 clone, 2 follow, 3 read, 4 config, 5 read; a full one asks for the storages first.
#[test]
fn a_clone_whose_task_ended_well_is_finished() {
    for freeze in [Freeze::After(1), Freeze::Before(3), Freeze::Before(4), Freeze::After(4), Freeze::Before(5)] {
        let (dir, pve) = world();
        let name = cloned(dir.path(), &pve, freeze, false);
        pve.run_tasks();
        let op = settle(dir.path(), &pve, &name);
        assert_eq!(op.state(), v1::OperationState::Succeeded, "{freeze:?}: {op:?}");
        assert_eq!(pve.vmids(), BTreeSet::from([200, TEMPLATE]));
        assert_eq!(pve.log().iter().filter(|l| l.starts_with("clone")).count(), 1);
        assert_eq!(pve.vm(200).unwrap().keys["cores"], "2");
    }
}

#[test]
fn a_clone_that_was_never_asked_for_fails_and_leaves_nothing() {
    let (dir, pve) = world();
    let name = cloned(dir.path(), &pve, Freeze::Before(1), false);
    let op = settle(dir.path(), &pve, &name);
    assert_eq!((op.state(), reason(&op).as_str()), (v1::OperationState::Failed, reasons::AGENT_RESTARTED));
    assert_eq!(pve.vmids(), BTreeSet::from([TEMPLATE]));
    // Settling again changes nothing.
    let again = settle(dir.path(), &pve, &name);
    assert_eq!(again, v1::Operation { revision: again.revision, ..op });
}

#[test]
fn a_killed_clone_is_removed_with_its_orphan() {
    let (dir, pve) = world();
    pve.hold("qmclone");
    let name = cloned(dir.path(), &pve, Freeze::Before(3), true);
    pve.release("qmclone");
    (0..3).for_each(|_| pve.step_tasks());
    pve.kill_tasks();
    assert_eq!((pve.orphan_count(), pve.vmids().len()), (1, 2));
    let op = settle(dir.path(), &pve, &name);
    assert_eq!(op.state(), v1::OperationState::Failed);
    assert_eq!((pve.orphan_count(), pve.vmids(), op.warnings.len()), (0, BTreeSet::from([TEMPLATE]), 0), "{op:?}");
    assert!(!pve.volume_ids().iter().any(|v| v.contains("-200-")));
}

#[test]
fn theirs_on_our_vmid_is_untouched() {
    for freeze in [Freeze::Before(1), Freeze::After(1), Freeze::Before(4)] {
        let (dir, pve) = world();
        pve.hold("qmclone");
        let held = freeze != Freeze::Before(4);
        if !held {
            pve.release("qmclone");
        }
        let name = cloned(dir.path(), &pve, freeze, false);
        pve.kill_tasks();
        pve.remove_vm(200);
        let uuid = pve.add_vm(200, &[]);
        let op = settle(dir.path(), &pve, &name);
        assert_eq!(op.state(), v1::OperationState::Failed, "{freeze:?}");
        assert!(pve.vm(200).unwrap().keys["smbios1"].contains(&uuid));
        assert!(pve.volume_ids().contains("local:200/vm-200-disk-0.qcow2"));
    }
}

#[test]
fn without_quorum_settlement_waits() {
    let (dir, pve) = world();
    let name = cloned(dir.path(), &pve, Freeze::Before(4), false);
    pve.thaw();
    pve.set_quorate(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (ops, vms) = open(dir.path(), &pve);
        vms.settle().await;
        pve.until(|_| ops.get(&name).unwrap().step.contains("quorum")).await;
        assert_eq!(ops.get(&name).unwrap().state(), v1::OperationState::Running);
        let request = v1::StartVmRequest { meta: meta("s"), vm: Some(v1::VmRef { vmid: 200, uuid: uuid::Uuid::nil().to_string() }) };
        assert_eq!(vms.start_vm(&caller(), request).await.unwrap_err().reason(), reasons::NO_QUORUM);
        pve.set_quorate(true);
        succeeded(&ops.wait(&name, Duration::from_secs(60)).await.unwrap());
    });
}

#[test]
fn power_and_delete_are_settled_by_what_is_true() {
    let make = || {
        let (dir, pve) = world();
        let uuid = pve.add_vm(200, &[]);
        (dir, pve, v1::VmRef { vmid: 200, uuid })
    };
    // Calls of a start: 0 read, 1 read, 2 power, 3 follow.
    for (freeze, runs) in [(Freeze::Before(2), false), (Freeze::After(2), true), (Freeze::Before(3), true)] {
        let (dir, pve, vm) = make();
        let name = die(dir.path(), &pve, freeze, |vms| async move {
            vms.start_vm(&caller(), v1::StartVmRequest { meta: meta("s"), vm: Some(vm) }).await.unwrap().name
        });
        pve.run_tasks();
        let op = settle(dir.path(), &pve, &name);
        assert_eq!(op.state() == v1::OperationState::Succeeded, runs, "{freeze:?}: {op:?}");
        assert_eq!(pve.vm(200).unwrap().run != RunState::Stopped, runs);
    }
    // A delete goes on: it was asked for, and what is left of the VM is nobody's wish.
    // Calls: 0 read, 1 read, 2 storages (is a volume to be kept?), 3 and 4 what they are, 5 destroy.
    for freeze in [Freeze::Before(2), Freeze::Before(4), Freeze::Before(5), Freeze::After(5), Freeze::Before(6), Freeze::Before(7)] {
        let (dir, pve, vm) = make();
        let name = die(dir.path(), &pve, freeze, |vms| async move {
            vms.delete_vm(&caller(), v1::DeleteVmRequest { meta: meta("d"), vm: Some(vm), stop: false }).await.unwrap().name
        });
        pve.run_tasks();
        let op = settle(dir.path(), &pve, &name);
        assert_eq!(op.state(), v1::OperationState::Succeeded, "{freeze:?}: {op:?}");
        assert_eq!(pve.vmids(), BTreeSet::from([TEMPLATE]));
        assert!(!pve.volume_ids().iter().any(|v| v.contains("-200-")));
    }
}

#[test]
fn a_destroy_that_was_killed_at_its_end_is_not_told_as_done() {
    let (dir, pve) = world();
    let vm = v1::VmRef { vmid: 200, uuid: pve.add_vm(200, &[]) };
    pve.hold("qmdestroy");
    let name = die(dir.path(), &pve, Freeze::Before(6), |vms| async move {
        vms.delete_vm(&caller(), v1::DeleteVmRequest { meta: meta("d"), vm: Some(vm), stop: false }).await.unwrap().name
    });
    pve.kill_tasks();
    pve.edit(200, |vm| {
        vm.keys.clear();
        vm.keys.insert("lock".into(), "destroyed".into());
    });
    pve.release("qmdestroy");
    let op = settle(dir.path(), &pve, &name);
    assert_eq!((op.state(), reason(&op).as_str()), (v1::OperationState::Failed, reasons::PVE_FAILED), "{op:?}");
    assert!(op.error.unwrap().message.contains("--skiplock"));
    assert!(pve.vmids().contains(&200));
}

#[test]
fn settings_are_written_unless_somebody_was_faster() {
    // Calls: 0 read, 1 read, 2 config.
    for (freeze, theirs, expected) in
        [(Freeze::Before(2), false, None), (Freeze::After(2), false, None), (Freeze::Before(2), true, Some(reasons::CONFIG_CHANGED))]
    {
        let (dir, pve) = world();
        let vm = v1::VmRef { vmid: 200, uuid: pve.add_vm(200, &[]) };
        let name = die(dir.path(), &pve, freeze, |vms| async move {
            let config = Some(v1::VmConfig { cores: Some(8), ..v1::VmConfig::default() });
            vms.configure_vm(&caller(), v1::ConfigureVmRequest { meta: meta("c"), vm: Some(vm), config }).await.unwrap().name
        });
        if theirs {
            pve.edit(200, |vm| drop(vm.keys.insert("cores".into(), "3".into())));
        }
        let op = settle(dir.path(), &pve, &name);
        match expected {
            None => assert_eq!((op.state(), pve.vm(200).unwrap().keys["cores"].as_str()), (v1::OperationState::Succeeded, "8"), "{op:?}"),
            Some(expected) => assert_eq!(reason(&op), expected),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_vm_of_a_call_that_pve_took_after_all_is_removed() {
    let rig = rig();
    rig.pve.fault(Fault::AnswerLost { call: "clone_vm", done: false });
    let op = rig.end(rig.vms.clone_vm(&caller(), clone_request("r", "a", false)).await).await;
    assert_eq!(reason(&op), reasons::PVE_DOWN);
    rig.pve.add_vm(200, &[]);
    rig.pve.edit(200, |vm| vm.description = format!("pvelet:v1 op={} tenant=team-a", op.name.trim_start_matches("operations/")));
    rig.vms.settle().await;
    rig.pve.until(|p| p.vm(200).is_none()).await;
}

#[test]
fn the_end_of_a_clone_task_and_what_stands_there_decide_together() {
    let (_dir, pve) = world();
    pve.add_vm(200, &[]);
    let vm = crate::host::pve::Pve::inventory(&pve).vms[&200].clone();
    pve.edit(200, |vm| drop(vm.keys.insert("lock".into(), "clone".into())));
    let locked = crate::host::pve::Pve::inventory(&pve).vms[&200].clone();
    let lock = "clone failed: can't lock file '/var/lock/pve-manager/pve-storage-local' - got timeout";
    let error = |m: &str| TaskEnd::Error(m.to_owned());
    for (end, found, expected) in [
        (TaskEnd::Ok, Found::Ours(vm.clone()), "made"),
        (TaskEnd::Warnings(vec![]), Found::Ours(vm.clone()), "made"),
        (TaskEnd::NoEndLine, Found::Ours(vm.clone()), "made"),
        (error("x"), Found::Ours(vm.clone()), reasons::PVE_FAILED),
        (TaskEnd::Ok, Found::Ours(locked.clone()), reasons::PVE_FAILED),
        (TaskEnd::NoEndLine, Found::Ours(locked), reasons::PVE_FAILED),
        (TaskEnd::Ok, Found::Absent, reasons::PVE_FAILED),
        (TaskEnd::NoEndLine, Found::InTheMaking, reasons::PVE_FAILED),
        (TaskEnd::Ok, Found::Foreign, reasons::VMID_IN_USE),
        (TaskEnd::Ok, Found::OursElsewhere(vm), reasons::VM_ON_OTHER_HOST),
        (error(lock), Found::Absent, "again"),
        (error(lock), Found::InTheMaking, reasons::LOCK_TIMEOUT),
        (error("unable to create VM 200: config file already exists"), Found::Foreign, reasons::VMID_IN_USE),
    ] {
        let message = if let TaskEnd::Error(m) = &end { m.clone() } else { String::new() };
        let failed = Failed { vmid: 200, upid: "UPID", message: &message, lines: &[], storage: "local", node: NODE };
        let said = match verdict(&end, found.clone(), &failed) {
            Verdict::Made(_) => "made",
            Verdict::Again(_) => "again",
            Verdict::Failed(error) => error.reason(),
        };
        assert_eq!(said, expected, "{end:?} {found:?}");
    }
}
