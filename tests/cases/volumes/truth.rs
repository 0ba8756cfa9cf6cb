//! Failures: what is told is what is true, and nothing is half made.

use std::{path::PathBuf, time::Duration};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pve_sim::{control::Request, faults::Hold};
use pvelet_proto::v1;
use pvelet_tests::{
    Stack,
    calls::{Refusal, succeeded},
    volumes::{MIB, content_hash, fill, new_id, path_of, storage_path, volume_ref},
};
use tonic::Code;

use super::{one_node, seeded, slots};

/// A storage that really has no more room than this: a file system of its own.
struct Small(PathBuf);

impl Small {
    fn mount(stack: &Stack, storage: &str, mib: u64) -> Self {
        let layout = stack.sim.node("pve1");
        let path = layout.host_path(&storage_path(&layout, storage));
        std::fs::create_dir_all(&path).unwrap();
        let options = format!("size={mib}m");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_guest_that_does_not_let_go_is_told_and_the_disk_is_still_attached() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let control = stack.sim.control();
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", MIB, "raw").await;
    succeeded(client.start("s", &vm).await);
    succeeded(client.attach_volume("a", &id, &vm).await);
    control.call(&Request::HoldDisk { vmid: 101, slot: "scsi1".into(), hold: Some(Hold::Disk) }).unwrap();
    let refused = Refusal::of(client.detach_volume("d", &id, &vm).await);
    refused.is(Code::Aborted, "GUEST_HOLDS_DISK", "the guest holds it");
    assert!(refused.text.contains("scsi1") && refused.text.contains("VM 101"), "{}", refused.text);
    let attachment = client.volume(&id).await.unwrap().attachment.unwrap();
    assert!(attachment.slot == "scsi1" && attachment.pending_detach, "{attachment:?}");
    Refusal::of(client.delete_volume("x", &id).await).is(Code::FailedPrecondition, "VOLUME_IN_USE", "it is still there");
    // Neither is it taken for attached: whether the guest still has it is not known.
    Refusal::of(client.attach_volume("a2", &id, &vm).await).is(Code::Aborted, "GUEST_HOLDS_DISK", "it is being let go of");
    // It lets go, and the next attempt succeeds.
    control.call(&Request::HoldDisk { vmid: 101, slot: "scsi1".into(), hold: None }).unwrap();
    succeeded(client.detach_volume("d2", &id, &vm).await);
    assert!(client.volume(&id).await.unwrap().attachment.is_none());
    assert!(slots(&client, 101).await.is_empty());
}

#[tokio::test]
async fn a_controller_that_the_guest_gives_up_late_does_not_keep_the_disk() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", MIB, "raw").await;
    succeeded(client.start("s", &vm).await);
    succeeded(client.attach_volume("a", &id, &vm).await);
    stack.sim.control().call(&Request::HoldDisk { vmid: 101, slot: "scsi1".into(), hold: Some(Hold::Controller) }).unwrap();
    succeeded(client.detach_volume("d", &id, &vm).await);
    assert!(slots(&client, 101).await.is_empty());
}

#[tokio::test]
async fn a_volume_that_pve_put_aside_with_a_snapshot_is_taken_back() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", MIB, "qcow2").await;
    succeeded(client.attach_volume("a", &id, &vm).await);
    assert_eq!(stack.pve("pve1").task("POST", "/qemu/101/snapshot", "snapname=before"), "TASK OK");
    succeeded(client.detach_volume("d", &id, &vm).await);
    assert_eq!(stack.pve("pve1").task("DELETE", "/qemu/101/snapshot/before", ""), "TASK OK");
    let attachment = client.volume(&id).await.unwrap().attachment.unwrap();
    assert!(attachment.slot.starts_with("unused"), "{attachment:?}");
    succeeded(client.detach_volume("d2", &id, &vm).await);
    assert!(client.volume(&id).await.unwrap().attachment.is_none());
    succeeded(client.delete_volume("x", &id).await);
}

#[tokio::test]
async fn a_vm_that_takes_no_disks_while_it_runs_gets_it_with_its_next_start() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    assert_eq!(stack.pve("pve1").call("PUT", "/qemu/101/config", "hotplug=0").unwrap().status, 200);
    succeeded(client.start("s", &vm).await);
    let id = client.made_volume("c", "local", MIB, "raw").await;
    let op = succeeded(client.attach_volume("a", &id, &vm).await);
    assert!(op.warnings.iter().any(|w| w.contains("next start")), "{op:?}");
    let attachment = client.volume(&id).await.unwrap().attachment.unwrap();
    assert!(attachment.pending_attach && attachment.slot == "scsi1", "{attachment:?}");
    succeeded(client.stop("stop", &vm).await);
    succeeded(client.start("s2", &vm).await);
    assert!(!client.volume(&id).await.unwrap().attachment.unwrap().pending_attach);
}

#[tokio::test]
async fn a_copy_onto_a_storage_that_fills_up_leaves_nothing_and_loses_nothing() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let small = Small::mount(&stack, "small", 6);
    let id = client.made_volume("c", "local", 16 * MIB, "raw").await;
    let layout = stack.sim.node("pve1");
    let path = path_of(&layout, &client.volume(&id).await.unwrap());
    fill(&path, "raw", 3, 12);
    let before = content_hash(&path, "raw");
    let source = Some(v1::create_volume_request::Source::Volume(volume_ref(&id).unwrap()));
    let copy = v1::CreateVolumeRequest { source, ..client.volume_request("copy", &new_id(), "small", 0) };
    Refusal::of(client.create_volume(copy).await).is(Code::ResourceExhausted, "STORAGE_FULL", "copy");
    Refusal::of(client.move_volume("m", &id, "small", "raw").await).is(Code::ResourceExhausted, "STORAGE_FULL", "move");
    let all = client.volumes().await;
    assert_eq!(all.iter().map(|v| (v.id.as_str(), v.storage.as_str())).collect::<Vec<_>>(), [(id.as_str(), "local")]);
    assert_eq!(content_hash(&path, "raw"), before);
    let images = small.0.join("images/999999999");
    assert!(!images.exists() || std::fs::read_dir(images).unwrap().next().is_none());
    // There is still room for a small one.
    client.made_volume("c2", "small", MIB, "raw").await;
    drop(small);
}

#[tokio::test]
async fn a_volume_on_a_storage_that_is_offline_is_not_taken_for_gone() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let id = client.made_volume("c", "rawdir", MIB, "raw").await;
    let set = |on: bool| {
        let change = serde_json::json!({ "storages": { "rawdir": { "offline": on } } });
        stack.sim.control().call(&Request::Faults { node: "pve1".into(), change }).unwrap();
    };
    set(true);
    let request = |n: u32| v1::DeleteVolumeRequest {
        meta: client.meta(&format!("x{n}")),
        volume: Some(v1::VolumeRef { id: id.clone(), storage: "rawdir".into() }),
    };
    // What was known of the storage may be ten seconds old; PVE itself refuses until then.
    let refused = client.agent.volume().delete_volume(request(0)).await.map(|r| r.into_inner().operation.unwrap());
    Refusal::of(refused).is(Code::Unavailable, "STORAGE_OFFLINE", "delete");
    set(false);
    let mut n = 1;
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match client.agent.volume().delete_volume(request(n)).await {
            Err(status) if status.code() == Code::Unavailable && std::time::Instant::now() < end => tokio::task::yield_now().await,
            other => {
                succeeded(other.map(|r| r.into_inner().operation.unwrap()));
                break;
            }
        }
        n += 1;
    }
    assert!(client.volumes().await.is_empty());
}

#[tokio::test]
async fn an_agent_that_observes_changes_no_volume() {
    let mut stack = one_node();
    let client = stack.operator("pve1");
    let id = client.made_volume("c", "local", MIB, "raw").await;
    stack.agent("pve1").stop();
    stack.agent("pve1").mode = "observe".into();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    assert_eq!(client.volume(&id).await.unwrap().size_bytes, MIB);
    Refusal::of(client.delete_volume("x", &id).await).is(Code::FailedPrecondition, "OBSERVE_ONLY", "delete");
    Refusal::of(client.grow_volume("g", &id, 2 * MIB).await).is(Code::FailedPrecondition, "OBSERVE_ONLY", "grow");
}

#[tokio::test]
async fn a_guest_with_the_reserved_id_keeps_volumes_from_being_made() {
    let stack = one_node();
    let client = stack.operator("pve1");
    stack.sim.control().call(&Request::SeedVms { node: "pve1".into(), first: 999_999_999, count: 1 }).unwrap();
    client.vm(999_999_999).await.unwrap();
    let refused = Refusal::of(client.create_volume(client.volume_request("c", &new_id(), "local", MIB)).await);
    refused.is(Code::FailedPrecondition, "RESERVED_ID_TAKEN", "a VM has it");
}
