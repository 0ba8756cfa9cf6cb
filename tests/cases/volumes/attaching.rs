//! Making, attaching, changing, detaching and removing volumes.

use pvelet_proto::v1;
use pvelet_tests::{
    calls::{Refusal, succeeded},
    client::reason,
    volumes::{MIB, new_id, volume_ref},
};
use tonic::Code;

use super::{one_node, seeded, slots};

#[tokio::test]
async fn a_volume_lives_from_its_making_to_its_removal() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let before = stack.sim.control().leftovers().unwrap();
    let vm = seeded(&client, 101).await;

    let id = new_id();
    let owner = Some(v1::VolumeOwner { cluster: "prod".into(), claim: "shop/data-0".into(), ..v1::VolumeOwner::default() });
    let request = v1::CreateVolumeRequest { owner, ..client.volume_request("c", &id, "local", 16 * MIB) };
    succeeded(client.create_volume(request).await);
    let made = client.volume(&id).await.unwrap();
    assert_eq!((made.size_bytes, made.name_vmid, made.format.as_str()), (16 * MIB, 999_999_999, "raw"));
    assert_eq!(made.volid, format!("local:999999999/vm-999999999-pvc-{id}.raw"));
    let owner = made.owner.unwrap();
    assert_eq!((owner.tenant.as_str(), owner.cluster.as_str(), owner.claim.as_str()), ("default", "prod", "shop/data-0"));
    assert!(made.attachment.is_none());

    // Attached to a stopped VM, grown while it runs, limited, detached while it runs.
    let options =
        v1::DiskOptions { cache: "none".into(), aio: "native".into(), iothread: true, discard: true, ssd: true, ..Default::default() };
    let op = succeeded(client.attach_volume_with("a", &id, &vm, options).await);
    assert_eq!((op.volume.unwrap().id, op.target.unwrap().vmid), (id.clone(), 101));
    assert_eq!(slots(&client, 101).await, [("scsi1".to_owned(), id.clone())]);
    let attached = client.volume(&id).await.unwrap();
    let attachment = attached.attachment.unwrap();
    let disk = client.vm(101).await.unwrap().disks.into_iter().find(|d| d.slot == "scsi1").unwrap();
    assert_eq!(disk.serial, attached.serial);
    assert_eq!(attached.device_path, format!("/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{}", disk.serial));
    let shown = attachment.options.unwrap();
    assert!(shown.iothread && shown.discard && shown.ssd && shown.backup == Some(false) && shown.aio == "native");

    succeeded(client.start("s", &vm).await);
    succeeded(client.grow_volume("g", &id, 32 * MIB).await);
    assert_eq!(client.volume(&id).await.unwrap().size_bytes, 32 * MIB);
    let limits = v1::DiskLimits { iops_write: 500, mbps_read: 20, ..v1::DiskLimits::default() };
    succeeded(client.limit_volume("l", &id, limits).await);
    let shown = client.volume(&id).await.unwrap().attachment.unwrap().options.unwrap();
    assert_eq!((shown.limits, shown.iothread), (Some(limits), true));

    succeeded(client.detach_volume("d", &id, &vm).await);
    assert!(client.volume(&id).await.unwrap().attachment.is_none());
    succeeded(client.stop("stop", &vm).await);
    succeeded(client.grow_volume("g2", &id, 48 * MIB).await);
    assert_eq!(client.volume(&id).await.unwrap().size_bytes, 48 * MIB);
    succeeded(client.delete_volume("x", &id).await);
    let there = Some(v1::VolumeRef { id: id.clone(), storage: "local".into() });
    let gone = client.agent.volume().get_volume(v1::GetVolumeRequest { volume: there }).await.unwrap_err();
    assert_eq!((gone.code(), reason(&gone).as_str()), (Code::NotFound, "VOLUME_NOT_FOUND"));
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
}

#[tokio::test]
async fn ten_attaches_at_once_get_ten_slots() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    succeeded(client.start("s", &vm).await);
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(client.made_volume(&format!("c{n}"), "local", 4 * MIB, "raw").await);
    }
    // One operation per VM at a time: the others are refused at once, and repeat until it is their turn.
    let attach = |n: usize, id: String| {
        let (client, vm) = (client.clone(), vm.clone());
        async move {
            for attempt in 0.. {
                match client.attach_volume(&format!("a{n}-{attempt}"), &id, &vm).await {
                    Err(status) if status.code() == Code::Aborted => tokio::task::yield_now().await,
                    other => return succeeded(other),
                }
            }
            unreachable!("it goes on until it is attached")
        }
    };
    futures_util::future::join_all(ids.iter().cloned().enumerate().map(|(n, id)| attach(n, id))).await;
    let slots = slots(&client, 101).await;
    assert_eq!(slots.len(), 10, "{slots:?}");
    let mut found: Vec<String> = slots.into_iter().map(|(_, id)| id).collect();
    found.sort();
    ids.sort();
    assert_eq!(found, ids);
}

#[tokio::test]
async fn the_same_attach_twice_is_one_disk() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let (vm, other) = (seeded(&client, 101).await, seeded(&client, 102).await);
    let id = client.made_volume("c", "local", 4 * MIB, "").await;
    let first = succeeded(client.attach_volume("a", &id, &vm).await);
    // The same request is the same operation; another request for what is so already does nothing.
    assert_eq!(succeeded(client.attach_volume("a", &id, &vm).await).name, first.name);
    assert!(succeeded(client.attach_volume("a2", &id, &vm).await).upids.is_empty());
    assert_eq!(slots(&client, 101).await.len(), 1);
    let refused = Refusal::of(client.attach_volume("a3", &id, &other).await);
    refused.is(Code::FailedPrecondition, "VOLUME_IN_USE", "attached to 101");
    assert!(refused.text.contains("VM 101") && refused.text.contains("scsi1"), "{}", refused.text);
    assert!(slots(&client, 102).await.is_empty());
    // With other options it is not the same.
    let read_only = v1::DiskOptions { read_only: true, ..v1::DiskOptions::default() };
    Refusal::of(client.attach_volume_with("a4", &id, &vm, read_only).await).is(Code::InvalidArgument, "INVALID_FIELD", "other options");
    // Neither is it removed, nor attached elsewhere, while a VM has it.
    Refusal::of(client.delete_volume("x", &id).await).is(Code::FailedPrecondition, "VOLUME_IN_USE", "attached");
    Refusal::of(client.detach_volume("d", &id, &other).await).is(Code::FailedPrecondition, "VOLUME_IN_USE", "another VM has it");
    succeeded(client.detach_volume("d2", &id, &vm).await);
    succeeded(client.detach_volume("d3", &id, &vm).await);
}

#[tokio::test]
async fn a_vm_that_holds_volumes_under_its_name_is_not_deleted() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", 4 * MIB, "raw").await;
    succeeded(client.attach_volume("a", &id, &vm).await);
    succeeded(client.hand_over_volume("h", &id, &vm, v1::VolumeName::Vm).await);
    let there = client.volume(&id).await.unwrap();
    assert_eq!((there.name_vmid, there.volid.as_str()), (101, format!("local:101/vm-101-pvc-{id}.raw").as_str()));
    let refused = Refusal::of(client.delete("x", &vm).await);
    refused.is(Code::FailedPrecondition, "VOLUMES_RETAINED", "handed over");
    assert!(refused.text.contains(&id), "{}", refused.text);

    succeeded(client.hand_over_volume("h2", &id, &vm, v1::VolumeName::Reserved).await);
    let there = client.volume(&id).await.unwrap();
    assert_eq!((there.name_vmid, there.attachment.unwrap().slot.as_str()), (999_999_999, "scsi1"));
    // Attached under its own name it outlives the VM.
    succeeded(client.delete("x2", &vm).await);
    let left = client.volume(&id).await.unwrap();
    assert!(left.attachment.is_none() && left.size_bytes == 4 * MIB);
}

#[tokio::test]
async fn a_detached_volume_is_left_neither_under_the_vm_s_name_nor_as_unused() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", 4 * MIB, "raw").await;
    succeeded(client.attach_volume("a", &id, &vm).await);
    // Moved by PVE while it is attached, it stands under PVE's own name.
    succeeded(client.move_volume("m", &id, "rawdir", "raw").await);
    let moved = client.volume(&id).await.unwrap();
    assert_eq!((moved.storage.as_str(), moved.name_vmid), ("rawdir", 101), "{moved:?}");
    assert_eq!(moved.owner.unwrap().tenant, "default");
    Refusal::of(client.delete("x", &vm).await).is(Code::FailedPrecondition, "VOLUMES_RETAINED", "it would be freed with the VM");
    succeeded(client.detach_volume("d", &id, &vm).await);
    let back = client.volume(&id).await.unwrap();
    assert_eq!((back.name_vmid, back.volid.as_str()), (999_999_999, format!("rawdir:999999999/vm-999999999-pvc-{id}.raw").as_str()));
    assert!(client.vm(101).await.unwrap().disks.iter().all(|d| !d.slot.starts_with("unused")));
    succeeded(client.delete("x2", &vm).await);
    assert_eq!(client.volume(&id).await.unwrap().volid, back.volid);
}

#[tokio::test]
async fn a_volume_that_a_vm_has_put_aside_is_detached_from_that_vm_alone() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let (vm, other) = (seeded(&client, 101).await, seeded(&client, 102).await);
    let id = client.made_volume("c", "local", 4 * MIB, "raw").await;
    succeeded(client.attach_volume("a", &id, &vm).await);
    succeeded(client.hand_over_volume("h", &id, &vm, v1::VolumeName::Vm).await);
    // Somebody detaches it by PVE, which keeps it as unused0.
    assert_eq!(stack.pve("pve1").task("POST", "/qemu/101/config", "delete=scsi1"), "TASK OK");
    while client.volume(&id).await.unwrap().attachment.unwrap().slot != "unused0" {}
    Refusal::of(client.detach_volume("d", &id, &other).await).is(Code::FailedPrecondition, "VOLUME_IN_USE", "101 has it");
    assert_eq!(client.volume(&id).await.unwrap().name_vmid, 101);
    succeeded(client.detach_volume("d2", &id, &vm).await);
    let back = client.volume(&id).await.unwrap();
    assert!(back.attachment.is_none() && back.name_vmid == 999_999_999, "{back:?}");
    assert!(client.vm(101).await.unwrap().disks.iter().all(|d| !d.slot.starts_with("unused")));
}

#[tokio::test]
async fn the_serial_stays_in_every_slot_vm_and_storage() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let (vm, other) = (seeded(&client, 101).await, seeded(&client, 102).await);
    let id = client.made_volume("c", "local", 4 * MIB, "raw").await;
    let first = client.made_volume("c0", "local", 4 * MIB, "raw").await;
    succeeded(client.attach_volume("a0", &first, &other).await);
    let serial = |client: &pvelet_tests::Client, vmid: u32| {
        let (client, id) = (client.clone(), id.clone());
        async move {
            let slot = client.volume(&id).await.unwrap().attachment.unwrap().slot;
            client.vm(vmid).await.unwrap().disks.into_iter().find(|d| d.slot == slot).map(|d| (d.slot, d.serial)).unwrap()
        }
    };
    succeeded(client.attach_volume("a", &id, &vm).await);
    let (slot, wanted) = serial(&client, 101).await;
    assert_eq!((slot.as_str(), wanted.len()), ("scsi1", 20));
    succeeded(client.move_volume("m", &id, "rawdir", "raw").await);
    assert_eq!(serial(&client, 101).await, (slot, wanted.clone()));
    succeeded(client.detach_volume("d", &id, &vm).await);
    succeeded(client.attach_volume("a2", &id, &other).await);
    assert_eq!(serial(&client, 102).await, ("scsi2".to_owned(), wanted));
}

#[tokio::test]
async fn storages_tell_what_can_be_done_on_them() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let answer = client.agent.volume().list_storages(v1::ListStoragesRequest {}).await.unwrap().into_inner();
    let by_id = |id: &str| answer.storages.iter().find(|s| s.storage.as_ref().is_some_and(|s| s.id == id)).cloned().unwrap();
    let local = by_id("local");
    assert!(local.volumes && local.problem.is_empty() && local.formats.contains(&"raw".to_owned()));
    assert_eq!(local.snapshot_formats, ["qcow2"]);
    assert!(by_id("disabled").problem.contains("disabled"));
    assert!(by_id("shared").storage.unwrap().shared);
    assert!(!answer.storages.iter().any(|s| s.storage.as_ref().is_some_and(|s| s.id == "isoonly")));
}

#[tokio::test]
async fn a_volume_that_a_snapshot_of_the_vm_refers_to_is_kept() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", 4 * MIB, "qcow2").await;
    succeeded(client.attach_volume("a", &id, &vm).await);
    assert_eq!(stack.pve("pve1").task("POST", "/qemu/101/snapshot", "snapname=before"), "TASK OK");
    succeeded(client.detach_volume("d", &id, &vm).await);
    let attachment = client.volume(&id).await.unwrap().attachment.unwrap();
    assert_eq!((attachment.slot.as_str(), attachment.vm_snapshots.as_slice()), ("", ["before".to_owned()].as_slice()));
    let refused = Refusal::of(client.delete_volume("x", &id).await);
    refused.is(Code::FailedPrecondition, "VOLUME_IN_USE", "a snapshot needs it");
    assert!(refused.text.contains("'before'"), "{}", refused.text);
    let request = v1::GetVolumeRequest { volume: volume_ref(&id) };
    assert!(client.agent.volume().get_volume(request).await.is_ok());
}
