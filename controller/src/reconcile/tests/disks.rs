//! A machine's disks, from the manifest to the agents and back.

use std::{fs, sync::Arc};

use pvelet_proto::{reason, v1};
use tonic::Code;

use super::{Bench, because, ready, through_crash, until, until_gone};
use crate::{
    agents::fake::refusal,
    crash::testing as crash,
    kind::{DiskPhase, Machine, PveMachine, Quantity},
    store::folder::FolderStore,
};

const EXISTING: &str = "0b951f20-53f9-4634-b1ce-5e6c3aa3a726";
const TWO: &str = ", disks: [{name: data, size: 1Gi, storage: local}, {name: mine, existing: 0b951f20-53f9-4634-b1ce-5e6c3aa3a726}]";

fn calls(bench: &Bench) -> Vec<&'static str> {
    bench.cluster.asked().into_iter().map(|(_, call)| call).collect()
}

fn disk<'m>(machine: &'m PveMachine, name: &str) -> &'m crate::kind::DiskStatus {
    machine.status.disks.iter().find(|d| d.name == name).unwrap()
}

async fn bench() -> Bench {
    let bench = Bench::new(&["pve1"]).await;
    bench.cluster.lock().add_volume(EXISTING, 2 << 30);
    bench
}

#[tokio::test]
async fn disks_are_made_and_attached_before_the_first_start_and_kept_or_removed_at_the_end() {
    let bench = bench().await;
    let running = bench.start().await;
    bench.add_machine("db-1", TWO);
    let machine = running.until::<Machine>("db-1", ready).await;
    assert_eq!(calls(&bench), ["CloneVm", "CreateVolume", "AttachVolume", "AttachVolume", "StartVm"]);
    let data = disk(&machine, "data");
    assert_eq!((data.phase, data.slot.as_deref(), data.size), (DiskPhase::Attached, Some("scsi1"), Some(Quantity(1 << 30))));
    assert_eq!(data.device_path, format!("/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{}", &data.volume_id.replace('-', "")[..20]));
    {
        let state = bench.cluster.lock();
        let owner = state.volumes.iter().find(|s| s.volume.id == data.volume_id).unwrap().volume.owner.clone().unwrap();
        assert_eq!((owner.tenant.as_str(), owner.cluster.as_str(), owner.claim.as_str()), ("default", "test", "machine/db-1/data"));
    }
    bench.cluster.lock().asked.clear();
    fs::remove_file(bench.path().join("db-1.yaml")).unwrap();
    running.until_gone("db-1").await;
    assert_eq!(calls(&bench), ["ShutdownVm", "DetachVolume", "DetachVolume", "DeleteVm", "DeleteVolume"]);
    assert_eq!(bench.cluster.lock().volume_ids(), [EXISTING]);
}

#[tokio::test]
async fn a_controller_killed_between_any_two_steps_makes_each_disk_once_and_removes_what_is_to_go() {
    let mut crashes = 0;
    for name in crash::ALL {
        for nth in [1, 2, 3, 5, 7] {
            let bench = bench().await;
            let crash = crash::arm(name, nth);
            let running = bench.start().await;
            bench.add_machine("db-1", TWO);
            let made = |store: Arc<FolderStore>| async move { drop(until::<Machine>(&store, "db-1", ready).await) };
            let running = through_crash(&bench, running, &crash, made).await;
            assert_eq!(bench.cluster.lock().volume_ids().len(), 2, "{name} {nth}");
            assert_eq!(bench.cluster.machines()[0].disks.len(), 2, "{name} {nth}");
            crashes += u32::from(crash.is_cancelled());

            let crash = crash::arm(name, nth);
            fs::remove_file(bench.path().join("db-1.yaml")).unwrap();
            let gone = |store: Arc<FolderStore>| async move { until_gone(&store, "db-1").await };
            drop(through_crash(&bench, running, &crash, gone).await);
            crashes += u32::from(crash.is_cancelled());
            assert_eq!(bench.cluster.machines(), [], "{name} {nth}");
            assert_eq!(bench.cluster.lock().volume_ids(), [EXISTING], "{name} {nth}");
        }
    }
    assert!(crashes >= 12, "only {crashes} crash points were reached");
}

#[tokio::test]
async fn disks_are_added_grown_limited_and_taken_away_while_the_vm_runs() {
    let bench = bench().await;
    let running = bench.start().await;
    bench.add_machine("db-1", "");
    running.until::<Machine>("db-1", ready).await;
    bench.cluster.lock().asked.clear();
    bench.add_machine("db-1", TWO);
    running.until::<Machine>("db-1", |m| ready(m) && m.status.disks.len() == 2).await;
    bench.add_machine("db-1", ", disks: [{name: data, size: 3Gi, storage: local, limits: {iopsRead: 500}}]");
    let machine = running.until::<Machine>("db-1", |m| ready(m) && m.status.disks.len() == 1).await;
    assert_eq!(disk(&machine, "data").size, Some(Quantity(3 << 30)));
    assert_eq!(disk(&machine, "data").limits.unwrap().iops_read, 500);
    bench.add_machine("db-1", "");
    running.until::<Machine>("db-1", |m| ready(m) && m.status.disks.is_empty()).await;
    let wanted =
        ["CreateVolume", "AttachVolume", "AttachVolume", "DetachVolume", "GrowVolume", "SetVolumeLimits", "DetachVolume", "DeleteVolume"];
    assert_eq!(calls(&bench), wanted);
    assert_eq!(bench.cluster.lock().volume_ids(), [EXISTING]);
}

#[tokio::test]
async fn a_disk_that_somebody_detached_is_attached_again() {
    let bench = bench().await;
    let running = bench.start().await;
    bench.add_machine("db-1", TWO);
    let machine = running.until::<Machine>("db-1", ready).await;
    let id = disk(&machine, "data").volume_id.clone();
    for stored in &mut bench.cluster.lock().volumes {
        if stored.volume.id == id {
            stored.volume.attachment = None;
        }
    }
    bench.cluster.change(1000, v1::VmEventType::Changed, |vm| drop(vm.disks.remove(0)));
    running.until::<Machine>("db-1", |m| !ready(m)).await;
    running.until::<Machine>("db-1", ready).await;
    assert_eq!(calls(&bench).iter().filter(|c| **c == "AttachVolume").count(), 3);
    assert_eq!(bench.cluster.lock().volume_ids().len(), 2);
}

#[tokio::test]
async fn a_vm_made_anew_gets_the_same_disks() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    bench.cluster.lock().add_volume(EXISTING, 2 << 30);
    let running = bench.start().await;
    bench.add_machine("db-1", &format!("{TWO}, host: pve2, recreatePolicy: Recreate"));
    running.until::<Machine>("db-1", ready).await;
    bench.cluster.lock().forget_attachments(1000);
    bench.cluster.remove(1000);
    let machine = running.until::<Machine>("db-1", |m| ready(m) && m.status.vmid == Some(1001)).await;
    assert_eq!(machine.status.node.as_deref(), Some("pve2"));
    assert_eq!(calls(&bench).iter().filter(|c| **c == "CreateVolume").count(), 1);
    assert_eq!(bench.cluster.machines()[0].disks.len(), 2);
}

#[tokio::test]
async fn a_vm_that_moves_takes_shared_disks_along_and_a_local_one_is_told() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    bench.cluster.lock().add_volume(EXISTING, 2 << 30);
    let running = bench.start().await;
    bench.add_machine("db-1", &format!("{TWO}, host: pve1"));
    running.until::<Machine>("db-1", ready).await;
    bench.cluster.change(1000, v1::VmEventType::Moved, |vm| vm.node = "pve2".into());
    let machine = running.until::<Machine>("db-1", because("DiskOnOtherHost")).await;
    let nodes = [disk(&machine, "data").node.as_deref(), disk(&machine, "mine").node.as_deref()];
    assert_eq!(nodes, [Some("pve1"), Some("pve2")]);
    // When the machine goes, the local one is removed where it lies.
    fs::remove_file(bench.path().join("db-1.yaml")).unwrap();
    running.until_gone("db-1").await;
    assert_eq!(bench.cluster.lock().volume_ids(), [EXISTING]);
}

#[tokio::test]
async fn a_failed_disk_is_told_by_its_name_and_keeps_the_vm_from_starting() {
    let bench = bench().await;
    let running = bench.start().await;
    bench.cluster.lock().hold = true;
    bench.add_machine("db-1", TWO);
    running.until::<Machine>("db-1", |m| m.status.operation.as_ref().is_some_and(|o| o.name.is_some())).await;
    bench.cluster.lock().refusal = Some(refusal(Code::ResourceExhausted, "storage local is full", reason::STORAGE_FULL, None));
    bench.cluster.let_go();
    let machine = running.until::<Machine>("db-1", because("CreateDiskFailedStorageFull")).await;
    assert!(machine.status.failures[0].message.starts_with("disk data: storage local is full"), "{:?}", machine.status.failures);
    assert!(!calls(&bench).contains(&"StartVm"));
}

#[tokio::test]
async fn a_volume_that_the_guest_sees_only_from_its_next_start_is_told() {
    let bench = bench().await;
    let running = bench.start().await;
    bench.add_machine("db-1", "");
    running.until::<Machine>("db-1", ready).await;
    bench.cluster.lock().attach_later = true;
    bench.add_machine("db-1", ", disks: [{name: data, size: 1Gi, storage: local}]");
    let machine = running.until::<Machine>("db-1", because("DiskPendingRestart")).await;
    assert_eq!(disk(&machine, "data").phase, DiskPhase::AttachedFromNextStart);
    assert_eq!(calls(&bench).iter().filter(|c| **c == "AttachVolume").count(), 1);
}
