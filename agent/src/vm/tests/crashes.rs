//! The agent dies anywhere, again and again, while PVE and other people go on: still at most one VM, nothing leaked, nothing of others touched.

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use pvelet_proto::v1;

use super::*;
use crate::host::pve::{
    TaskEnd,
    fake::{Fault, Freeze},
};

/// What happens between two runs of the agent.
#[derive(Debug, Clone)]
enum Meanwhile {
    Nothing,
    TasksStep,
    TasksEnd,
    TasksKilled,
    /// Somebody makes a VM on the next VMID that is free.
    TheirVm,
}

#[derive(Debug, Clone)]
struct Crash {
    at: Freeze,
    then: Meanwhile,
}

fn crash() -> impl Strategy<Value = Crash> {
    let at = prop_oneof![(0_u64..25).prop_map(Freeze::Before), (0_u64..25).prop_map(Freeze::After)];
    let then = prop_oneof![
        Just(Meanwhile::Nothing),
        Just(Meanwhile::TasksStep),
        Just(Meanwhile::TasksEnd),
        Just(Meanwhile::TasksKilled),
        Just(Meanwhile::TheirVm)
    ];
    (at, then).prop_map(|(at, then)| Crash { at, then })
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    prop_oneof![
        Just(None),
        Just(Some(Fault::AnswerLost { call: "clone_vm", done: true })),
        Just(Some(Fault::AnswerLost { call: "clone_vm", done: false })),
        Just(Some(Fault::AnswerLost { call: "set_config_now", done: true })),
        Just(Some(Fault::AnswerLost { call: "destroy_vm", done: true })),
        (0_u32..4).prop_map(|stage| Some(Fault::Killed { kind: "qmclone", stage })),
        Just(Some(Fault::LockTimeout { what: "local".into() })),
        Just(Some(Fault::TaskEnd { kind: "qmclone", end: TaskEnd::NoEndLine, effect: true })),
        Just(Some(Fault::TaskEnd { kind: "resize", end: TaskEnd::Error("no".into()), effect: false })),
    ]
}

fn request(full: bool) -> v1::CloneVmRequest {
    let mut request = clone_request("r", "a", full);
    request.config.as_mut().unwrap().boot_disk_bytes = Some(2 << 30);
    request
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_clone_is_whole_or_nothing_however_often_the_agent_dies(
        full in any::<bool>(),
        faults in proptest::collection::vec(fault(), 0..3),
        crashes in proptest::collection::vec(crash(), 0..4),
        retries in any::<bool>(),
    ) {
        let pve = FakePve::new(NODE);
        pve.add_template(TEMPLATE, "");
        let before = pve.volume_ids();
        // Asked again only where PVE gave up on a lock and had left nothing.
        let locks = faults.iter().flatten().filter(|f| matches!(f, Fault::LockTimeout { .. })).count();
        faults.into_iter().flatten().for_each(|f| pve.fault(f));
        let dir = tempfile::tempdir().unwrap();
        let mut theirs: Vec<(u32, String)> = Vec::new();
        let mut began = false;
        for crash in crashes.iter().map(Some).chain([None]) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let (ops, vms) = open(dir.path(), &pve);
                match crash {
                    Some(crash) => pve.freeze(crash.at),
                    None => pve.thaw(),
                }
                vms.settle().await;
                if !began || retries {
                    // The caller repeats its call after each crash; it may be refused by then.
                    let begin = async { vms.clone_vm(&caller(), request(full)).await };
                    tokio::select! { begun = begin => { let _ = begun.unwrap(); began = true; } () = pve.frozen() => {} }
                }
                let ended = async {
                    while ops.active() > 0 {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                };
                tokio::select! { () = ended => {} () = pve.frozen() => {} }
                if crash.is_none() {
                    assert!(ops.leased().is_empty());
                }
            });
            drop(runtime);
            pve.thaw();
            match crash.map(|c| &c.then) {
                Some(Meanwhile::TasksStep) => pve.step_tasks(),
                Some(Meanwhile::TasksEnd) => pve.run_tasks(),
                Some(Meanwhile::TasksKilled) => pve.kill_tasks(),
                Some(Meanwhile::TheirVm) => {
                    if let Some(vmid) = (200..).find(|v| !pve.vmids().contains(v)) {
                        theirs.push((vmid, pve.add_vm(vmid, &[])));
                    }
                }
                Some(Meanwhile::Nothing) | None => {}
            }
        }
        // PVE's tasks come to their end also when nobody follows them.
        pve.run_tasks();
        for (vmid, uuid) in &theirs {
            let vm = pve.vm(*vmid).unwrap();
            prop_assert!(vm.keys["smbios1"].contains(uuid));
            let disk = vm.keys["scsi0"].split(',').next().unwrap();
            prop_assert!(pve.volume_ids().iter().any(|id| id == disk), "{} is gone", disk);
        }
        let ours: Vec<u32> = pve.vmids().into_iter().filter(|v| *v != TEMPLATE && !theirs.iter().any(|(t, _)| t == v)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let op = runtime.block_on(async {
            let (ops, _vms) = open(dir.path(), &pve);
            ops.list(&v1::ListOperationsRequest::default()).unwrap().operations.pop()
        });
        let Some(op) = op else { prop_assert!(ours.is_empty()); return Ok(()); };
        if op.state() == v1::OperationState::Succeeded {
            prop_assert_eq!(&ours, &vec![op.target.as_ref().unwrap().vmid]);
            let vm = pve.vm(ours[0]).unwrap();
            prop_assert!(vm.description.contains("uuid=") && vm.keys["cores"] == "2" && vm.keys["scsi0"].contains("size=2048M"), "{:?}", vm);
            prop_assert!(!vm.keys.contains_key("lock"));
        } else if op.warnings.is_empty() {
            // Whatever could not be proven ours is told as a warning; without one there is nothing.
            prop_assert!(ours.is_empty(), "{:?} {:?}", ours, op);
            let left: BTreeSet<_> = pve.volume_ids().difference(&before).filter(|v| !theirs.iter().any(|(t, _)| v.contains(&format!("-{t}-")))).cloned().collect();
            prop_assert!(left.is_empty(), "{:?} {:?}", left, op);
            prop_assert_eq!(pve.orphan_count(), 0);
        }
        prop_assert!(pve.log().iter().filter(|l| l.starts_with("clone")).count() <= 1 + locks);
    }
}
