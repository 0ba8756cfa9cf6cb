//! Clones that nothing interrupts, and those that go wrong while the agent runs.

use std::{collections::BTreeSet, time::Duration};

use pvelet_proto::{reason as reasons, v1};

use super::*;
use crate::{
    host::pve::{
        HaState, TaskEnd,
        fake::{FakePve, Fault},
    },
    vm::mark::Mark,
};

fn nothing_left(pve: &FakePve) {
    assert_eq!(pve.vmids(), BTreeSet::from([TEMPLATE]));
    let strange: Vec<_> =
        pve.volume_ids().into_iter().filter(|v| !v.ends_with(&format!("-{TEMPLATE}-disk-0.qcow2")) && !v.contains("cloudinit")).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert_eq!(pve.orphan_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_clone_is_configured_marked_and_bound() {
    let rig = rig();
    let mut request = clone_request("r1", "web-1", false);
    let config = request.config.as_mut().unwrap();
    config.description = Some("for people\nüß".into());
    config.boot_disk_bytes = Some(2 << 30);
    config.nics = Some(v1::NicList { nics: vec![v1::Nic { index: 0, bridge: "vmbr0".into(), vlan: 5, ..v1::Nic::default() }] });
    config.cloud_init = Some(v1::CloudInit {
        user: "ann".into(),
        ssh_keys: vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI ann@x".into()],
        ip_configs: vec![v1::IpConfig { nic: 0, ipv4: "10.0.0.5/24".into(), gateway4: "10.0.0.1".into(), ..v1::IpConfig::default() }],
        ..v1::CloudInit::default()
    });
    request.owner =
        Some(v1::Owner { machine_uid: "11111111-1111-1111-1111-111111111111".into(), cluster: "c1".into(), ..v1::Owner::default() });
    let op = rig.end(rig.vms.clone_vm(&caller(), request).await).await;
    succeeded(&op);
    let target = op.target.clone().unwrap();
    let vm = rig.vms.get(&target, Some("team-a")).await.unwrap();
    assert_eq!((vm.vmid, vm.name.as_str(), vm.cores, vm.description.as_str()), (200, "web-1", 2, "for people\nüß"));
    let mark = vm.mark.unwrap();
    assert_eq!((mark.operation.as_str(), mark.owner.unwrap().tenant.as_str()), (op.name.as_str(), "team-a"));
    assert_eq!(vm.disks.iter().find(|d| d.slot == "scsi0").unwrap().size_bytes, 2 << 30);
    assert_eq!((vm.nics[0].vlan, vm.nics[0].mac.is_empty()), (5, false));
    assert_eq!(vm.cloud_init.unwrap().ssh_key_count, 1);
    assert_eq!((op.upids.len(), op.progress.unwrap().percent), (2, 100));
    // One write binds and configures.
    assert_eq!(rig.pve.log(), ["clone 9000 200", "config 200", "resize 200 scsi0"]);
    assert_eq!(rig.vms.get(&target, Some("team-b")).await.unwrap_err().reason(), reasons::VM_NOT_FOUND);
    assert!(rig.ops.leased().is_empty());
}

#[tokio::test(start_paused = true)]
async fn fifty_identical_requests_at_once_make_one_vm() {
    let rig = rig();
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let vms = rig.vms.clone();
            tokio::spawn(async move { vms.clone_vm(&caller(), clone_request("same", "one", false)).await.unwrap().name })
        })
        .collect();
    let mut names = BTreeSet::new();
    for call in calls {
        names.insert(call.await.unwrap());
    }
    assert_eq!(names.len(), 1);
    let name = names.pop_first().unwrap();
    succeeded(&rig.ops.wait(&name, Duration::from_secs(60)).await.unwrap());
    assert_eq!(rig.pve.vmids().len(), 2);
    // Also long after, and whatever is true by then.
    rig.pve.remove_vm(200);
    assert_eq!(rig.vms.clone_vm(&caller(), clone_request("same", "one", false)).await.unwrap().name, name);
    let other = rig.vms.clone_vm(&caller(), clone_request("same", "two", false)).await.unwrap_err();
    assert_eq!(other.reason(), reasons::REQUEST_ID_REUSED);
}

#[tokio::test(start_paused = true)]
async fn thirty_full_clones_at_once_succeed_while_others_take_the_storage_lock() {
    let rig = rig();
    for _ in 0..10 {
        rig.pve.fault(Fault::LockTimeout { what: "other".into() });
    }
    let mut names = Vec::new();
    for i in 0..30 {
        let request = v1::CloneVmRequest { storage: "other".into(), ..clone_request(&format!("r{i}"), &format!("vm-{i}"), true) };
        names.push(rig.vms.clone_vm(&caller(), request).await.unwrap().name);
    }
    for name in names {
        succeeded(&rig.ops.wait(&name, Duration::from_secs(3600)).await.unwrap());
    }
    assert_eq!((rig.pve.vmids().len(), rig.pve.pending_faults()), (31, 0));
}

#[tokio::test(start_paused = true)]
async fn a_linked_clone_does_not_wait_behind_full_ones() {
    let rig = rig();
    rig.pve.hold("qmclone");
    let mut full = Vec::new();
    for i in 0..4 {
        full.push(rig.vms.clone_vm(&caller(), clone_request(&format!("f{i}"), &format!("f-{i}"), true)).await.unwrap().name);
    }
    rig.pve.until(|p| p.running() == 2).await;
    let linked = rig.vms.clone_vm(&caller(), clone_request("l", "l", false)).await.unwrap().name;
    rig.pve.until(|p| p.running() == 3).await;
    let step = |name: &str| rig.ops.get(name).unwrap().step;
    assert_eq!((step(&linked).as_str(), step(&full[3]).as_str()), ("cloning", "waiting for the long lane of storage local"));
    rig.pve.release("qmclone");
    for name in full.iter().chain([&linked]) {
        succeeded(&rig.ops.wait(name, Duration::from_secs(60)).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_clone_is_undone() {
    let rig = rig();
    rig.pve.hold("qmclone");
    let name = rig.vms.clone_vm(&caller(), clone_request("r", "a", true)).await.unwrap().name;
    rig.pve.until(|p| p.running() == 1).await;
    let cancel = v1::CancelOperationRequest { meta: meta("c"), name: name.clone() };
    rig.ops.cancel(&caller(), &cancel).unwrap();
    let op = rig.ops.wait(&name, Duration::from_secs(600)).await.unwrap();
    assert_eq!((op.state(), reason(&op).as_str()), (v1::OperationState::Cancelled, reasons::CANCELLED));
    nothing_left(&rig.pve);
    // Asking again is no error; asking for what has succeeded is.
    assert_eq!(rig.ops.cancel(&caller(), &cancel).unwrap().state(), v1::OperationState::Cancelled);
    rig.pve.release("qmclone");
    rig.make("b").await;
    let made = rig.ops.list(&v1::ListOperationsRequest::default()).unwrap().operations[0].name.clone();
    let late = v1::CancelOperationRequest { meta: meta("d"), name: made };
    assert_eq!(rig.ops.cancel(&caller(), &late).unwrap_err().reason(), reasons::NOT_CANCELLABLE);
}

#[tokio::test(start_paused = true)]
async fn what_fails_leaves_nothing() {
    let cases: Vec<(Vec<Fault>, bool, &str)> = vec![
        (
            vec![Fault::TaskEnd { kind: "qmclone", end: TaskEnd::Error("clone failed: x".into()), effect: false }],
            false,
            reasons::PVE_FAILED,
        ),
        (vec![Fault::Killed { kind: "qmclone", stage: 0 }], false, reasons::PVE_FAILED),
        (vec![Fault::Killed { kind: "qmclone", stage: 2 }], false, reasons::PVE_FAILED),
        (vec![Fault::Killed { kind: "qmclone", stage: 2 }], true, reasons::PVE_FAILED),
        (vec![Fault::Killed { kind: "qmclone", stage: 3 }], true, reasons::PVE_FAILED),
        (vec![Fault::TaskEnd { kind: "qmclone", end: TaskEnd::Ok, effect: false }], false, reasons::PVE_FAILED),
        (vec![Fault::AnswerLost { call: "clone_vm", done: false }], false, reasons::PVE_DOWN),
        (vec![Fault::TaskEnd { kind: "resize", end: TaskEnd::Error("no".into()), effect: false }], false, reasons::PVE_FAILED),
        (vec![Fault::TaskEnd { kind: "resize", end: TaskEnd::Ok, effect: false }], false, reasons::PVE_FAILED),
        (
            vec![
                Fault::Killed { kind: "qmclone", stage: 3 },
                Fault::LockTimeout { what: "VM 200".into() },
                Fault::AnswerLost { call: "destroy_vm", done: false },
            ],
            true,
            reasons::PVE_FAILED,
        ),
    ];
    for (faults, full, expected) in cases {
        let rig = rig();
        let shown = format!("{faults:?}");
        faults.into_iter().for_each(|f| rig.pve.fault(f));
        let mut request = clone_request("r", "a", full);
        request.config.as_mut().unwrap().boot_disk_bytes = Some(2 << 30);
        let op = rig.end(rig.vms.clone_vm(&caller(), request).await).await;
        assert_eq!((op.state(), reason(&op).as_str()), (v1::OperationState::Failed, expected), "{shown}");
        assert_eq!((op.warnings.len(), rig.pve.pending_faults()), (0, 0), "{shown}: {:?}", op.warnings);
        nothing_left(&rig.pve);
        assert!(rig.ops.leased().is_empty());
        let log = rig.pve.log();
        let place = |what: &str| log.iter().position(|l| l.starts_with(what));
        if let (Some(orphan), Some(destroy)) = (place("end qemu-img"), place("destroy")) {
            assert!(orphan < destroy, "the orphan ends before its volume goes: {log:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_looks_like_a_failure_succeeds() {
    for fault in [
        Fault::TaskEnd { kind: "qmclone", end: TaskEnd::NoEndLine, effect: true },
        Fault::TaskEnd { kind: "qmclone", end: TaskEnd::Warnings(vec!["WARN: x".into()]), effect: true },
        Fault::AnswerLost { call: "clone_vm", done: true },
        Fault::AnswerLost { call: "set_config_now", done: true },
        Fault::AnswerLost { call: "set_config_now", done: false },
        Fault::LockTimeout { what: "VM 200".into() },
        Fault::LockTimeout { what: "local".into() },
    ] {
        let rig = rig();
        let shown = format!("{fault:?}");
        rig.pve.fault(fault);
        let op = rig.end(rig.vms.clone_vm(&caller(), clone_request("r", "a", false)).await).await;
        assert_eq!(op.state(), v1::OperationState::Succeeded, "{shown}: {op:?}");
        assert_eq!(rig.pve.vmids(), BTreeSet::from([200, TEMPLATE]), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_storage_is_told_and_nothing_is_left() {
    let rig = rig();
    rig.pve.edit_storage("other", |s| s.available = 1);
    let request = v1::CloneVmRequest { storage: "other".into(), ..clone_request("r", "a", true) };
    let op = rig.end(rig.vms.clone_vm(&caller(), request).await).await;
    assert_eq!(reason(&op), reasons::STORAGE_FULL);
    nothing_left(&rig.pve);
}

#[tokio::test(start_paused = true)]
async fn somebody_else_s_vm_on_the_leased_vmid_is_untouched() {
    let rig = rig();
    rig.pve.hold("qmclone");
    let name = rig.vms.clone_vm(&caller(), clone_request("r", "a", false)).await.unwrap().name;
    rig.pve.until(|p| p.running() == 1).await;
    rig.pve.kill_tasks();
    rig.pve.remove_vm(200);
    let theirs = rig.pve.add_vm(200, &[("name", "theirs")]);
    let op = rig.ops.wait(&name, Duration::from_secs(600)).await.unwrap();
    assert_eq!(op.state(), v1::OperationState::Failed);
    assert!(rig.pve.vm(200).unwrap().keys["smbios1"].contains(&theirs));
    assert!(rig.pve.volume_ids().contains("local:200/vm-200-disk-0.qcow2"));
}

#[tokio::test(start_paused = true)]
async fn a_vmid_with_left_over_volumes_is_passed_over() {
    let rig = rig();
    rig.pve.add_volume("local:200/vm-200-disk-7.qcow2", 200);
    assert_eq!(rig.make("a").await.vmid, 201);
    assert!(rig.pve.volume_ids().contains("local:200/vm-200-disk-7.qcow2"));
    let request = v1::CloneVmRequest { vmid: 202, ..clone_request("r", "b", false) };
    rig.pve.add_volume("local:202/vm-202-disk-7.qcow2", 202);
    let op = rig.end(rig.vms.clone_vm(&caller(), request).await).await;
    assert_eq!(reason(&op), reasons::NOT_OURS);
    assert!(rig.pve.volume_ids().contains("local:202/vm-202-disk-7.qcow2"));
}

#[tokio::test(start_paused = true)]
async fn requests_that_cannot_be_are_refused_before_anything_is_done() {
    type Change = fn(&mut v1::CloneVmRequest);
    let cases: Vec<(Change, &str)> = vec![
        (|r| r.config.as_mut().unwrap().name = Some("under_score".into()), reasons::INVALID_NAME),
        (|r| r.config.as_mut().unwrap().name = None, reasons::INVALID_NAME),
        (|r| r.vmid = 199, reasons::VMID_OUT_OF_RANGE),
        (|r| r.vmid = 250, reasons::VMID_IN_USE),
        (|r| r.storage = "other".into(), reasons::LINKED_CLONE_STORAGE),
        (|r| (r.mode, r.storage) = (2, "nosuch".into()), reasons::STORAGE_NOT_FOUND),
        (|r| (r.mode, r.storage) = (2, "offline".into()), reasons::STORAGE_NOT_FOUND),
        (|r| r.pool = "nosuch".into(), reasons::POOL_NOT_FOUND),
        (|r| r.source = None, reasons::INVALID_FIELD),
        (|r| r.source = Some(v1::CloneSource { source: Some(v1::clone_source::Source::Vmid(9999)) }), reasons::TEMPLATE_NOT_FOUND),
        (|r| r.source = Some(v1::CloneSource { source: Some(v1::clone_source::Source::Vmid(250)) }), reasons::NOT_A_TEMPLATE),
        (
            |r| {
                r.source = Some(v1::CloneSource {
                    source: Some(v1::clone_source::Source::Tags(v1::TagList { tags: vec!["k8s".into(), "windows".into()] })),
                });
            },
            reasons::TEMPLATE_NOT_FOUND,
        ),
        (|r| r.config.as_mut().unwrap().cores = Some(0), reasons::INVALID_FIELD),
        (|r| r.config.as_mut().unwrap().memory_mib = Some(1), reasons::INVALID_FIELD),
        (|r| r.config.as_mut().unwrap().boot_disk_bytes = Some(1 << 20), reasons::DISK_SHRINK),
        (|r| r.config.as_mut().unwrap().description = Some("x\npvelet:v1 op=y".into()), reasons::INVALID_FIELD),
        (
            |r| {
                r.config.as_mut().unwrap().nics =
                    Some(v1::NicList { nics: vec![v1::Nic { bridge: "vmbr9".into(), ..v1::Nic::default() }] });
            },
            reasons::BRIDGE_NOT_FOUND,
        ),
        (
            |r| {
                r.config.as_mut().unwrap().nics = Some(v1::NicList {
                    nics: vec![v1::Nic { bridge: "vmbr0".into(), mac: "BC:24:11:FF:00:FA".into(), ..v1::Nic::default() }],
                });
            },
            reasons::INVALID_MAC,
        ),
        (
            |r| {
                r.config.as_mut().unwrap().cloud_init =
                    Some(v1::CloudInit { nameservers: vec!["not-an-ip".into()], ..v1::CloudInit::default() });
            },
            reasons::INVALID_ADDRESS,
        ),
        (
            |r| {
                let ip = v1::IpConfig { ipv4: "10.0.0.5/24".into(), gateway4: "10.0.1.1".into(), ..v1::IpConfig::default() };
                r.config.as_mut().unwrap().cloud_init = Some(v1::CloudInit { ip_configs: vec![ip], ..v1::CloudInit::default() });
            },
            reasons::INVALID_GATEWAY,
        ),
        (
            |r| r.config.as_mut().unwrap().cloud_init = Some(v1::CloudInit { ssh_keys: vec!["hello".into()], ..v1::CloudInit::default() }),
            reasons::INVALID_SSH_KEY,
        ),
        (|r| r.meta.as_mut().unwrap().tenant = "Team".into(), reasons::INVALID_TENANT),
        (|r| r.meta = None, reasons::INVALID_FIELD),
    ];
    let rig = rig();
    rig.pve.add_vm(250, &[]);
    for (i, (change, expected)) in cases.into_iter().enumerate() {
        let mut request = clone_request(&format!("r{i}"), "a", false);
        change(&mut request);
        let error = rig.vms.clone_vm(&caller(), request).await.unwrap_err();
        assert_eq!(error.reason(), expected, "case {i}: {error}");
    }
    assert!(rig.pve.log().is_empty() && rig.ops.leased().is_empty() && rig.ops.active() == 0);
    let mut request = clone_request("all", "a_b", false);
    request.vmid = 5;
    request.config.as_mut().unwrap().cores = Some(9999);
    let Err(Error::Invalid(violations)) = rig.vms.clone_vm(&caller(), request).await else { panic!("it was accepted") };
    assert_eq!(violations.iter().map(|v| v.field.as_str()).collect::<Vec<_>>(), ["vmid", "config.name", "config.cores"]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_has_one_vm_at_most() {
    let rig = rig();
    let owner = Some(v1::Owner { machine_uid: "11111111-1111-1111-1111-111111111111".into(), ..v1::Owner::default() });
    let request = |id: &str| v1::CloneVmRequest { owner: owner.clone(), ..clone_request(id, "a", false) };
    rig.pve.hold("qmclone");
    let first = rig.vms.clone_vm(&caller(), request("1")).await.unwrap();
    assert_eq!(rig.vms.clone_vm(&caller(), request("2")).await.unwrap_err().reason(), reasons::OPERATION_IN_PROGRESS);
    rig.pve.release("qmclone");
    succeeded(&rig.end(Ok(first)).await);
    assert_eq!(rig.vms.clone_vm(&caller(), request("2")).await.unwrap_err().reason(), reasons::MACHINE_HAS_VM);
    // Also after it was moved to another host.
    rig.pve.edit(200, |vm| vm.node = "pve2".into());
    assert_eq!(rig.vms.clone_vm(&caller(), request("3")).await.unwrap_err().reason(), reasons::MACHINE_HAS_VM);
}

#[tokio::test(start_paused = true)]
async fn observe_mode_quorum_and_a_dead_daemon_refuse() {
    let rig = rig();
    rig.vms.set_mode(Mode::Observe);
    assert_eq!(rig.vms.clone_vm(&caller(), clone_request("1", "a", false)).await.unwrap_err().reason(), reasons::OBSERVE_ONLY);
    rig.vms.set_mode(Mode::Manage);
    rig.pve.set_quorate(false);
    assert_eq!(rig.vms.clone_vm(&caller(), clone_request("1", "a", false)).await.unwrap_err().reason(), reasons::NO_QUORUM);
    rig.pve.set_quorate(true);
    rig.pve.set_down(true);
    assert_eq!(rig.vms.clone_vm(&caller(), clone_request("1", "a", true)).await.unwrap_err().reason(), reasons::PVE_DOWN);
    rig.pve.set_down(false);
    rig.make("a").await;
}

#[tokio::test(start_paused = true)]
async fn the_template_s_description_goes_on_without_its_mark() {
    let rig = rig();
    let old = Mark {
        operation: uuid::Uuid::from_u128(5),
        tenant: "x".into(),
        cluster: String::new(),
        machine_uid: String::new(),
        uuid: Some("old".into()),
    };
    rig.pve.edit(TEMPLATE, |vm| {
        vm.description = old.append_to("golden image");
        vm.ha = Some(HaState { requested: "ignored".into() });
    });
    let vm = rig.make("a").await;
    let vm = rig.vms.get(&vm, None).await.unwrap();
    assert_eq!(vm.description, "golden image");
    assert_eq!(vm.mark.unwrap().owner.unwrap().tenant, "team-a");
}
