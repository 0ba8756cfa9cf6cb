//! Disks: one row a scenario: how the world is, what is done, and what `DisksReady` and `Ready` say.

mod attempt;
mod leave;

use jiff::SignedDuration;
use pvelet_proto::{reason, v1, volume::VolumeId};

use super::{
    super::{Action, Request, VolumeSight},
    world::{World, describe, ended_badly, succeeded},
};
use crate::{
    kind::{
        ABANDON, ActionKind, DeletionPolicy, DiskFormat, DiskLimits, DiskPhase, DiskSpec, DiskStatus, Failure, ImageSpec, Quantity,
        RecreatePolicy, RunPolicy, SnapshotSpec, Success,
    },
    reconcile::{DiskView, Link, RunState, testing},
};

const EXISTING: &str = "0b951f20-53f9-4634-b1ce-5e6c3aa3a726";

type Row = (&'static str, World, &'static str, &'static str);

fn check(rows: Vec<Row>) {
    for (name, world, action, reason) in rows {
        let decision = world.decide();
        let found = |kind: &str| decision.status.conditions.iter().find(|c| c.kind == kind).map(|c| c.reason.clone());
        let told = found("DisksReady").or_else(|| found("Ready")).unwrap_or_default();
        assert_eq!((describe(&decision.action).as_str(), told.as_str()), (action, reason), "{name}");
    }
}

fn data() -> DiskSpec {
    DiskSpec { name: "data".into(), size: Some(Quantity(1 << 30)), storage: Some("fast".into()), ..DiskSpec::default() }
}

fn existing() -> DiskSpec {
    DiskSpec { name: "data".into(), existing: Some(EXISTING.into()), ..DiskSpec::default() }
}

fn id(disk: &DiskSpec) -> VolumeId {
    disk.volume_id(testing::UID)
}

/// The spec names the disk; nothing has been done about it.
fn wanted(mut world: World, disk: DiskSpec) -> World {
    world.machine.spec.disks.push(disk);
    world
}

/// The disk was made or taken over long ago, and is attached.
fn settled(world: World, disk: DiskSpec) -> World {
    let mut world = wanted(world, disk.clone());
    let id = id(&disk);
    world.machine.status.disks.push(DiskStatus {
        name: disk.name.clone(),
        volume_id: id.to_string(),
        device_path: id.device_path(),
        made: disk.is_made(),
        deletion_policy: disk.policy(),
        requested: true,
        created: true,
        attached: true,
        node: Some("pve1".into()),
        ordered_size: disk.size,
        limits: Some(disk.wanted_limits()),
        options_hash: Some(disk.options_hash()),
        last: Some(ActionKind::AttachDisk),
        last_time: Some(world.now - SignedDuration::from_hours(1)),
        ..DiskStatus::default()
    });
    world.edit_vm(|vm| {
        let view =
            DiskView { slot: "scsi1".into(), storage: "fast".into(), size_bytes: 1 << 30, serial: id.serial(), ..DiskView::default() };
        vm.disks.push(view);
    });
    world
}

fn with(mut world: World, edit: impl FnOnce(&mut World)) -> World {
    edit(&mut world);
    world
}

fn status(world: &mut World) -> &mut DiskStatus {
    world.machine.status.disks.last_mut().unwrap()
}

fn unseen(world: &mut World) {
    world.edit_vm(|vm| vm.disks.clear());
}

fn sight(world: &mut World, node: &str, disk: &DiskSpec, sight: VolumeSight) {
    world.volumes.insert((node.into(), id(disk).to_string()), sight);
}

fn found(attached_to: Option<&str>, claim: &str) -> VolumeSight {
    let owner = v1::VolumeOwner { tenant: "default".into(), cluster: "test".into(), claim: claim.into() };
    let vm = |uuid: &str| v1::VmRef { vmid: 101, uuid: uuid.into() };
    let attachment =
        attached_to.map(|uuid| v1::VolumeAttachment { vm: Some(vm(uuid)), slot: "scsi1".into(), ..v1::VolumeAttachment::default() });
    VolumeSight::Found(Box::new(v1::Volume { owner: Some(owner), attachment, storage: "fast".into(), ..v1::Volume::default() }))
}

fn never_started(world: World) -> World {
    with(world, |w| {
        w.machine.status.last_start = None;
        w.machine.status.last_success = Some(Success { action: ActionKind::Clone, time: w.now - SignedDuration::from_hours(1) });
    })
}

fn failure(world: &mut World, action: ActionKind, disk: &DiskSpec) {
    world.machine.status.failures.push(Failure {
        action,
        volume: Some(id(disk).to_string()),
        host: "pve1".into(),
        reason: "STORAGE_FULL".into(),
        message: format!("disk {}: storage fast is full", disk.name),
        retryable: false,
        count: 1,
        time: world.now,
        generation: 1,
    });
}

fn elsewhere(world: &mut World) {
    world.edit_vm(|vm| vm.node = "pve2".into());
    world.see_from(&["pve1", "pve2"]);
}

/// The attempt under way is about the world's last disk.
#[test]
fn a_disk_is_made_attached_and_only_then_the_vm_started() {
    use World as W;
    let made = |w: &mut World| {
        unseen(w);
        let d = status(w);
        (d.attached, d.last, d.limits, d.options_hash) = (false, Some(ActionKind::CreateDisk), None, None);
    };
    check(vec![
        ("nothing made", wanted(never_started(W::stopped()), data()), "call create-disk 4", "CreatingDisk"),
        ("made", with(settled(never_started(W::stopped()), data()), made), "call attach-disk 4", "AttachingDisk"),
        ("attached: started", settled(never_started(W::stopped()), data()), "call start 4", "Attached"),
        ("an existing one is attached at once", wanted(never_started(W::stopped()), existing()), "call attach-disk 4", "AttachingDisk"),
        ("two: one after the other", wanted(settled(W::stopped(), data()), existing()), "call attach-disk 4", "AttachingDisk"),
        ("on a running VM too", wanted(W::running(), data()), "call create-disk 4", "CreatingDisk"),
        (
            "on one that is halted",
            with(wanted(W::stopped(), data()), |w| w.machine.spec.run_policy = RunPolicy::Halted),
            "call create-disk 4",
            "CreatingDisk",
        ),
        (
            "attached just now, not seen yet: not started",
            with(settled(never_started(W::stopped()), data()), |w| {
                unseen(w);
                let now = w.now;
                status(w).last_time = Some(now);
            }),
            "wait a while",
            "AttachingDisk",
        ),
        ("all as it should be", settled(W::running(), data()), "wait", "Attached"),
        ("no disks, no condition", W::running(), "wait", "Running"),
        ("configuration comes first", with(wanted(W::running(), data()), |w| w.machine.spec.cores = Some(7)), "call configure 4", ""),
        ("its host is in maintenance", with(wanted(W::stopped(), data()), |w| w.hosts[0].maintenance = true), "wait", "HostInMaintenance"),
    ]);
}

#[test]
fn a_failed_disk_is_told_and_delays_the_first_start_only() {
    let failing = |world: World| with(wanted(world, data()), |w| failure(w, ActionKind::CreateDisk, &data()));
    let reattach = |world: World| {
        with(settled(world, data()), |w| {
            unseen(w);
            failure(w, ActionKind::AttachDisk, &data());
        })
    };
    check(vec![
        ("before the first start", failing(never_started(World::stopped())), "wait a while", "CreateDiskFailedStorageFull"),
        ("a VM that ran before is started", reattach(World::stopped()), "call start 4", "AttachDiskFailedStorageFull"),
        ("the others go on", wanted(failing(World::running()), existing_named("other")), "call attach-disk 4", "AttachingDisk"),
        (
            "a changed spec is tried at once",
            with(failing(World::running()), |w| w.machine.metadata.generation = 2),
            "call create-disk 4",
            "CreatingDisk",
        ),
    ]);
    let decision = failing(World::running()).decide();
    let ready = decision.status.conditions.iter().find(|c| c.kind == "Ready").unwrap();
    assert_eq!(ready.message, "disk data: storage fast is full");
}

fn existing_named(name: &str) -> DiskSpec {
    DiskSpec { name: name.into(), ..existing() }
}

#[test]
fn drift_is_repaired() {
    use World as W;
    let running = || settled(W::running(), data());
    let spec = |w: &mut World, edit: fn(&mut DiskSpec)| edit(w.machine.spec.disks.last_mut().unwrap());
    let detached = |w: &mut World| {
        unseen(w);
        sight(w, "pve1", &data(), found(None, "machine/web-1/data"));
    };
    check(vec![
        ("not in the config: the agent is asked whether it waits for a restart", with(running(), unseen), "observe on pve1", ""),
        ("detached by somebody", with(running(), detached), "call attach-disk 4", "AttachingDisk"),
        (
            "put aside by somebody",
            with(running(), |w| {
                detached(w);
                w.edit_vm(|vm| {
                    vm.disks.push(DiskView { slot: "unused0".into(), volume_id: id(&data()).to_string(), ..DiskView::default() });
                });
            }),
            "call attach-disk 4",
            "AttachingDisk",
        ),
        (
            "detached while HA has the VM: left alone",
            with(running(), |w| {
                detached(w);
                w.edit_vm(|vm| vm.ha_managed = true);
            }),
            "wait",
            "HaManaged",
        ),
        (
            "it comes with the next start",
            with(running(), |w| {
                unseen(w);
                sight(w, "pve1", &data(), found(Some(testing::UUID), "machine/web-1/data"));
            }),
            "wait a while",
            "DiskPendingRestart",
        ),
        ("a larger one is wanted", with(running(), |w| spec(w, |d| d.size = Some(Quantity(2 << 30)))), "call grow-disk 4", "GrowingDisk"),
        (
            "grown just now, not seen yet",
            with(running(), |w| {
                spec(w, |d| d.size = Some(Quantity(2 << 30)));
                let now = w.now;
                let d = status(w);
                (d.last, d.last_time, d.ordered_size) = (Some(ActionKind::GrowDisk), Some(now), Some(Quantity(2 << 30)));
            }),
            "wait a while",
            "GrowingDisk",
        ),
        (
            "grown, and PVE's config never shows it: not grown for ever",
            with(running(), |w| {
                spec(w, |d| d.size = Some(Quantity(2 << 30)));
                let d = status(w);
                (d.last, d.ordered_size) = (Some(ActionKind::GrowDisk), Some(Quantity(2 << 30)));
            }),
            "wait",
            "Attached",
        ),
        ("a smaller one is wanted", with(running(), |w| spec(w, |d| d.size = Some(Quantity(1 << 29)))), "wait", "DiskShrinkRefused"),
        ("rounded up by its storage", with(running(), |w| w.edit_vm(|vm| vm.disks[0].size_bytes += 4 << 20)), "wait", "Attached"),
        (
            "other limits",
            with(running(), |w| spec(w, |d| d.limits = Some(DiskLimits { iops_read: 9, ..DiskLimits::default() }))),
            "call set-disk-limits 4",
            "SettingDiskLimits",
        ),
        ("limits not known", with(running(), |w| status(w).limits = None), "call set-disk-limits 4", "SettingDiskLimits"),
        ("other options, running", with(running(), |w| spec(w, |d| d.ssd = true)), "wait", "DiskOptionsNotInEffect"),
        (
            "other options, stopped: attached anew",
            with(settled(W::stopped(), data()), |w| spec(w, |d| d.ssd = true)),
            "call detach-disk 4",
            "DetachingDisk",
        ),
    ]);
}

#[test]
fn what_may_exist_already_is_looked_for_before_it_is_made() {
    let asked = |edit: &dyn Fn(&mut World)| {
        let mut world = settled(World::running(), data());
        unseen(&mut world);
        let d = status(&mut world);
        (d.created, d.attached, d.last) = (false, false, None);
        edit(&mut world);
        world
    };
    check(vec![
        ("asked for before", asked(&|_| ()), "observe on pve1", ""),
        ("it is there", asked(&|w| sight(w, "pve1", &data(), found(None, "machine/web-1/data"))), "call attach-disk 4", "AttachingDisk"),
        ("it is somebody else's", asked(&|w| sight(w, "pve1", &data(), found(None, "pvc-7"))), "wait a while", "VolumeNotOurs"),
        ("it is not there", asked(&|w| sight(w, "pve1", &data(), VolumeSight::Missing)), "call create-disk 4", "CreatingDisk"),
        ("asked for on another node: that one is asked", asked(&|w| status(w).node = Some("pve2".into())), "observe on pve2", ""),
        (
            "whose agent is away",
            asked(&|w| {
                status(w).node = Some("pve2".into());
                w.hosts[1].link = Link::Connecting;
            }),
            "wait",
            "AgentUnreachable",
        ),
    ]);
}

#[test]
fn disks_of_shared_storages_move_with_the_vm_and_others_are_told() {
    let moved = || with(settled(World::running(), data()), elsewhere);
    check(vec![
        ("its new node is asked", moved(), "observe on pve2", ""),
        ("it sees the volume", with(moved(), |w| sight(w, "pve2", &data(), found(None, "x"))), "wait", "Attached"),
        ("it does not", with(moved(), |w| sight(w, "pve2", &data(), VolumeSight::Missing)), "wait a while", "DiskOnOtherHost"),
    ]);
    let mut world = moved();
    sight(&mut world, "pve2", &data(), found(None, "x"));
    assert_eq!(world.decide().status.disks[0].node.as_deref(), Some("pve2"));
}

#[test]
fn a_machine_that_lost_its_status_finds_its_disks_by_their_ids() {
    let mut world = wanted(World::fresh(), data());
    world.add_vm("lab", "pve1", |_| ());
    let status = world.decide().status;
    assert_eq!((status.disks[0].requested, status.disks[0].created, status.disks[0].node.as_deref()), (true, false, Some("pve1")));
}
