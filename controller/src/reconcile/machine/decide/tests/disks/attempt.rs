//! Attempts at disks: what they send, and what their end means.

use super::*;
use crate::reconcile::Knowledge;

fn attempting(action: ActionKind, known: Knowledge, disk: DiskSpec) -> World {
    let attempt = World::attempting(action, known);
    let mut world = settled(World::running(), disk.clone());
    world.machine.status.attempt = 7;
    let operation = attempt.machine.status.operation.map(|o| Box::new(crate::kind::Attempt { volume: Some(id(&disk).to_string()), ..*o }));
    world.machine.status.operation = operation;
    world.known = attempt.known;
    world
}

#[test]
fn the_end_of_an_attempt_is_written_down() {
    use ActionKind::{AttachDisk, CreateDisk, DeleteDisk, DetachDisk, GrowDisk, SetDiskLimits};
    let entry = |world: World| world.decide().status.disks.first().cloned();
    let made = entry(with(attempting(CreateDisk, succeeded(), data()), |w| status(w).created = false)).unwrap();
    assert_eq!((made.created, made.last, made.node.as_deref()), (true, Some(CreateDisk), Some("pve1")));
    assert!(!entry(attempting(DetachDisk, succeeded(), data())).unwrap().attached);
    assert_eq!(entry(attempting(DeleteDisk, succeeded(), data())), None);
    assert_eq!(entry(attempting(DeleteDisk, ended_badly(reason::VOLUME_NOT_FOUND, false), data())), None, "gone already");
    let missing = entry(attempting(DetachDisk, ended_badly(reason::VOLUME_NOT_FOUND, false), data())).unwrap();
    assert_eq!((missing.attached, missing.missing_on.as_deref()), (false, Some("pve1")));
    // What failed and was undone is nowhere; what may have been left is looked for.
    let not_made = |reason: &str, remains| {
        let world = with(attempting(CreateDisk, ended_badly(reason, remains), data()), |w| status(w).created = false);
        entry(world).unwrap().requested
    };
    assert!(!not_made(reason::STORAGE_FULL, false));
    assert!(not_made(reason::STORAGE_FULL, true) && not_made(reason::VOLUME_EXISTS, false));
    assert!(entry(attempting(AttachDisk, ended_badly(reason::VM_LOCKED, false), data())).unwrap().attached);
    assert_eq!(entry(attempting(SetDiskLimits, ended_badly(reason::VM_LOCKED, false), data())).unwrap().limits, None);
    assert_eq!(entry(attempting(GrowDisk, ended_badly(reason::STORAGE_FULL, false), data())).unwrap().ordered_size, None);
    // Never sent, and the spec changed: the limits were not set.
    let world = with(attempting(SetDiskLimits, Knowledge::Absent, data()), |w| w.machine.metadata.generation = 2);
    assert_eq!(entry(world).unwrap().limits, None);
    // Another VM has it: it is detached from this one.
    let world = with(attempting(DetachDisk, ended_badly(reason::VOLUME_IN_USE, false), existing()), unseen);
    let decision = world.decide();
    assert_eq!((decision.status.disks[0].attached, decision.status.failures.len()), (false, 0));
    let failed = attempting(CreateDisk, ended_badly(reason::STORAGE_FULL, false), data()).decide().status.failures.remove(0);
    assert_eq!((failed.message.as_str(), failed.volume), ("disk data: because", Some(id(&data()).to_string())));
}

#[test]
fn an_attempt_at_a_disk_goes_on_after_a_crash() {
    use ActionKind::{AttachDisk, CreateDisk, DeleteDisk, DetachDisk};
    use Knowledge::{Absent, Active, Unsure};
    let deleting = |world: World| with(world, |w| w.machine.metadata.deletion_timestamp = Some(w.now));
    let active = || Active { name: "operations/x".into() };
    let row = |name, world: World, action: &'static str| {
        assert_eq!(describe(&world.decide().action), action, "{name}");
    };
    row("the agent is asked first", attempting(CreateDisk, Unsure, data()), "look up");
    row("it does not have it: sent again under its number", attempting(CreateDisk, Absent, data()), "call create-disk 7");
    row("attach likewise", attempting(AttachDisk, Absent, data()), "call attach-disk 7");
    row("waited for", attempting(AttachDisk, active(), data()), "wait");
    row("being made while the object goes: cancelled", deleting(attempting(CreateDisk, active(), data())), "cancel operations/x");
    row("not sent while the object goes", deleting(attempting(CreateDisk, Absent, data())), "again");
    row("what removes is sent again", deleting(attempting(DetachDisk, Absent, data())), "call detach-disk 7");
    row("likewise", deleting(attempting(DeleteDisk, Absent, data())), "call delete-disk 7");
    let readded = with(attempting(DeleteDisk, Absent, data()), |w| w.machine.metadata.generation = 2);
    row("a disk that came back to the spec before it was deleted is not deleted", readded, "again");
}

#[test]
fn a_volume_is_found_by_its_id_and_only_attached_where_the_spec_says() {
    let disk = || DiskSpec { storage: Some("shared".into()), ..existing() };
    let called = |world: World| match world.decide().action {
        Action::Call(request) => *request,
        other => panic!("{other:?}"),
    };
    let on = |storage: &str| Some(v1::VolumeRef { id: EXISTING.into(), storage: storage.into() });
    let attach = called(wanted(World::running(), disk()));
    assert!(matches!(attach, Request::AttachVolume(r) if r.volume == on("shared")));
    let detach = called(with(settled(World::stopped(), disk()), |w| w.machine.metadata.deletion_timestamp = Some(w.now)));
    assert!(matches!(detach, Request::DetachVolume(r) if r.volume == on("")));
}

#[test]
fn each_source_is_passed_on_with_owner_and_id() {
    let source = |disk: DiskSpec| {
        let world = wanted(World::running(), disk);
        let Action::Call(request) = world.decide().action else { panic!("{:?}", world.decide().action) };
        let Request::CreateVolume(request) = *request else { panic!("{request:?}") };
        request
    };
    let request = source(DiskSpec { format: Some(DiskFormat::Raw), ..data() });
    assert_eq!(request.id, id(&data()).to_string());
    assert_eq!((request.storage.as_str(), request.size_bytes, request.format.as_str()), ("fast", 1 << 30, "raw"));
    assert_eq!(request.meta.unwrap().request_id, format!("{}:create-disk:4", testing::UID));
    let owner = v1::VolumeOwner { tenant: "default".into(), cluster: "test".into(), claim: "machine/web-1/data".into() };
    assert_eq!((request.owner, request.source), (Some(owner), None));
    let image = ImageSpec { file: Some("a.qcow2".into()), sha256: Some("AB".into()), ..ImageSpec::default() };
    let request = source(DiskSpec { size: None, image: Some(image), ..data() });
    let location = Some(v1::image_source::Location::File("a.qcow2".into()));
    let image = v1::ImageSource { location, format: String::new(), sha256: "ab".into() };
    assert_eq!((request.size_bytes, request.source), (0, Some(v1::create_volume_request::Source::Image(image))));
    let volume = v1::VolumeRef { id: EXISTING.into(), storage: String::new() };
    let request = source(DiskSpec { volume: Some(EXISTING.into()), ..data() });
    assert_eq!(request.source, Some(v1::create_volume_request::Source::Volume(volume.clone())));
    let snapshot = SnapshotSpec { volume: EXISTING.into(), name: "before".into() };
    let request = source(DiskSpec { snapshot: Some(snapshot), ..data() });
    let snapshot = v1::SnapshotSource { volume: Some(volume), name: "before".into() };
    assert_eq!(request.source, Some(v1::create_volume_request::Source::Snapshot(snapshot)));
}
