//! Disks that are not wanted any more, and VMs that are.

use super::*;

#[test]
fn a_disk_that_left_the_spec_is_let_go_of() {
    let left = |disk: DiskSpec| with(settled(World::running(), disk), |w| w.machine.spec.disks.clear());
    let detached = |disk: DiskSpec| {
        with(left(disk), |w| {
            unseen(w);
            status(w).attached = false;
        })
    };
    let retained = || DiskSpec { deletion_policy: Some(DeletionPolicy::Retain), ..data() };
    check(vec![
        ("a made one is detached", left(data()), "call detach-disk 4", "DetachingDisk"),
        ("and deleted", detached(data()), "call delete-disk 4", "DeletingDisk"),
        ("a retained one is detached", left(retained()), "call detach-disk 4", "DetachingDisk"),
        ("and kept", detached(retained()), "wait", "Running"),
        ("an existing one is detached", left(existing()), "call detach-disk 4", "DetachingDisk"),
        ("and kept, too", detached(existing()), "wait", "Running"),
        (
            "put aside counts as attached",
            with(detached(data()), |w| {
                w.edit_vm(|vm| {
                    vm.disks.push(DiskView { slot: "unused0".into(), volume_id: id(&data()).to_string(), ..DiskView::default() });
                });
            }),
            "call detach-disk 4",
            "DetachingDisk",
        ),
        ("never asked for", with(detached(data()), |w| (status(w).requested, status(w).created) = (false, false)), "wait", "Running"),
        (
            "the host that has it is away",
            with(detached(data()), |w| {
                status(w).node = Some("pve2".into());
                sight(w, "pve1", &data(), VolumeSight::Missing);
                w.hosts[1].link = Link::Down { reason: "AgentUnreachable", message: "no route".into() };
            }),
            "wait",
            "AgentUnreachable",
        ),
        ("one in its place: the old one goes first", wanted(left(data()), existing()), "call detach-disk 4", "DetachingDisk"),
    ]);
    assert!(detached(retained()).decide().status.disks.is_empty());
    assert_eq!(left(data()).decide().status.disks[0].phase, DiskPhase::Leaving);
    // A made disk that the spec now calls existing is the same volume, and is kept from now on.
    let mut world = settled(World::running(), data());
    let kept = DiskSpec { name: "kept".into(), existing: Some(id(&data()).to_string()), ..DiskSpec::default() };
    world.machine.spec.disks = vec![kept];
    let disks = world.decide().status.disks;
    assert_eq!((disks.len(), disks[0].name.as_str(), disks[0].is_to_be_deleted()), (1, "kept", false));
}

#[test]
fn when_the_object_goes_disks_are_detached_before_the_vm_is_removed_and_deleted_after_it() {
    let going = |world: World| with(world, |w| w.machine.metadata.deletion_timestamp = Some(w.now));
    let stopped = |disk: DiskSpec| going(settled(World::stopped(), disk));
    let detached = |disk: DiskSpec| {
        with(stopped(disk), |w| {
            unseen(w);
            status(w).attached = false;
        })
    };
    let vm_gone = |disk: DiskSpec| {
        with(detached(disk), |w| {
            w.machine.status.created = false;
            w.machine.status.uuid = None;
            w.sightings.clear();
            w.machine.status.last_success = Some(Success { action: ActionKind::Delete, time: w.now });
        })
    };
    let retained = || DiskSpec { deletion_policy: Some(DeletionPolicy::Retain), ..data() };
    let protected = |edit: fn(&mut crate::reconcile::VmView)| with(going(settled(World::running(), data())), |w| w.edit_vm(edit));
    let never_made = |w: &mut World| w.machine.status.last_success = None;
    let ready = |rows: Vec<Row>| {
        for (name, world, action, reason) in rows {
            let decision = world.decide();
            let ready = decision.status.conditions.iter().find(|c| c.kind == "Ready").map_or("", |c| c.reason.as_str());
            assert_eq!((describe(&decision.action).as_str(), ready), (action, reason), "{name}");
        }
    };
    ready(vec![
        ("a running VM is stopped", going(settled(World::running(), data())), "call shutdown 4", "Deleting"),
        ("then its disks are detached", stopped(data()), "call detach-disk 4", "Deleting"),
        ("an existing one too", stopped(existing()), "call detach-disk 4", "Deleting"),
        ("not seen, but never detached by us", with(stopped(retained()), unseen), "call detach-disk 4", "Deleting"),
        (
            "seen, though detached just now",
            with(stopped(retained()), |w| {
                let now = w.now;
                let d = status(w);
                (d.attached, d.last, d.last_time) = (false, Some(ActionKind::DetachDisk), Some(now));
            }),
            "wait a while",
            "Deleting",
        ),
        ("then the VM is removed", detached(data()), "call delete 4", "Deleting"),
        ("then what was made is deleted", vm_gone(data()), "call delete-disk 4", "Deleting"),
        ("what is retained is not", vm_gone(retained()), "release", ""),
        ("what existed is not", vm_gone(existing()), "release", ""),
        ("its VM was never made, but a disk was", with(vm_gone(data()), never_made), "call delete-disk 4", "Deleting"),
        ("its VM is gone already", with(stopped(data()), |w| w.sightings.clear()), "call delete-disk 4", "Deleting"),
        ("nothing was ever asked for", going(wanted(World::fresh(), data())), "release", ""),
        (
            "the VM stays: so do its disks",
            with(stopped(data()), |w| w.machine.spec.deletion_policy = DeletionPolicy::Retain),
            "release",
            "",
        ),
        (
            "let go of",
            with(vm_gone(data()), |w| {
                w.machine.metadata.annotations.insert(ABANDON.into(), "true".into());
            }),
            "release",
            "",
        ),
        ("the disk's host is away", with(vm_gone(data()), |w| w.hosts[0].link = Link::Connecting), "wait", "AgentUnreachable"),
        ("a protected VM keeps its disks", protected(|vm| vm.protection = true), "wait", "VmProtected"),
        ("one that HA has, too", protected(|vm| vm.ha_managed = true), "wait", "HaManaged"),
        ("and one that is replicated", protected(|vm| vm.replicated = true), "wait", "VmReplicated"),
        (
            "a deletion that failed is told",
            with(vm_gone(data()), |w| failure(w, ActionKind::DeleteDisk, &data())),
            "wait a while",
            "DeleteDiskFailedStorageFull",
        ),
        (
            "it moved: where the disk is must be known before it is detached",
            with(stopped(data()), |w| {
                elsewhere(w);
                w.edit_vm(|vm| vm.state = RunState::Stopped);
            }),
            "observe on pve2",
            "Deleting",
        ),
        (
            "its name alone is left in the VM",
            with(stopped(data()), |w| status(w).missing_on = Some("pve1".into())),
            "call delete 4",
            "Deleting",
        ),
    ]);
}

#[test]
fn a_guest_whose_disks_are_kept_may_shut_down_and_one_that_goes_with_all_is_stopped_at_once() {
    for (disk, timeout) in [(existing(), None), (data(), Some(1))] {
        let mut world = settled(World::running(), disk);
        world.machine.metadata.deletion_timestamp = Some(world.now);
        let Action::Call(request) = world.decide().action else { panic!("{:?}", world.decide().action) };
        let Request::Shutdown(request) = *request else { panic!("{request:?}") };
        assert_eq!((request.timeout.map(|t| t.seconds), request.force_stop), (timeout, true));
    }
}

#[test]
fn a_machine_made_anew_is_placed_where_its_disks_are_and_makes_none_again() {
    let mut world = settled(World::running(), data());
    world.sightings.clear();
    world.machine.spec.recreate_policy = RecreatePolicy::Recreate;
    let status = world.decide().status;
    assert_eq!((status.created, status.host.as_deref(), status.tenant.as_deref()), (false, Some("pve1"), Some("default")));
    assert_eq!((status.disks[0].created, status.disks[0].attached), (true, false));
    world.machine.status.disks[0].node = Some("pve2".into());
    assert_eq!(world.decide().status.host.as_deref(), Some("pve2"), "a volume that did not follow the old VM decides");
}
