//! Bad input: refused with field, value and remedy before anything is done.

use pve_sim::control::Request;
use pvelet_proto::v1;
use pvelet_tests::{
    calls::{Refusal, succeeded},
    volumes::{MIB, new_id},
};
use tonic::Code;

use super::{one_node, seeded};

#[tokio::test]
async fn a_request_that_cannot_be_right_is_refused_before_anything_is_done() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let before = stack.sim.control().leftovers().unwrap();
    type Change = fn(&mut v1::CreateVolumeRequest);
    let rows: [(&str, Change, Code, &str); 8] = [
        ("no size", |r| r.size_bytes = 0, Code::InvalidArgument, "INVALID_SIZE"),
        ("an odd size", |r| r.size_bytes = 12_345, Code::InvalidArgument, "INVALID_SIZE"),
        ("no UUID", |r| r.id = "data".into(), Code::InvalidArgument, "INVALID_VOLUME_ID"),
        ("an unknown storage", |r| r.storage = "nosuch".into(), Code::NotFound, "STORAGE_NOT_FOUND"),
        ("a disabled storage", |r| r.storage = "disabled".into(), Code::Unavailable, "STORAGE_OFFLINE"),
        ("an offline storage", |r| r.storage = "offline".into(), Code::Unavailable, "STORAGE_OFFLINE"),
        ("a storage without images", |r| r.storage = "isoonly".into(), Code::InvalidArgument, "INVALID_FIELD"),
        ("an unknown format", |r| r.format = "vmdk".into(), Code::InvalidArgument, "INVALID_FORMAT"),
    ];
    // In this cluster the storage is well until it is taken offline.
    let change = serde_json::json!({ "storages": { "offline": { "offline": true } } });
    stack.sim.control().call(&Request::Faults { node: "pve1".into(), change }).unwrap();
    for (n, (what, change, code, reason)) in rows.into_iter().enumerate() {
        let mut request = client.volume_request(&format!("r{n}"), &new_id(), "local", MIB);
        change(&mut request);
        Refusal::of(client.create_volume(request).await).is(code, reason, what);
    }
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
}

#[tokio::test]
async fn a_volume_never_shrinks() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", 8 * MIB, "").await;
    for attached in [false, true] {
        if attached {
            succeeded(client.attach_volume("a", &id, &vm).await);
        }
        let refused = Refusal::of(client.grow_volume(&format!("g{attached}"), &id, 4 * MIB).await);
        refused.is(Code::InvalidArgument, "DISK_SHRINK", "smaller");
        assert!(refused.text.contains("size_bytes") && refused.text.contains("8388608"), "{}", refused.text);
        succeeded(client.grow_volume(&format!("same{attached}"), &id, 8 * MIB).await);
    }
}

#[tokio::test]
async fn full_slots_taken_slots_and_vms_that_take_none_are_told() {
    let mut stack = one_node();
    stack.agent("pve1").stop();
    stack.agent("pve1").extra.insert("volumes".into(), "max_slots = 2".into());
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    // Somebody has taken scsi1 for a disk of the VM's own: its slot is passed over.
    assert_eq!(stack.pve("pve1").call("PUT", "/qemu/101/config", "scsi1=local:1").unwrap().status, 200);
    let (one, two) = (client.made_volume("c1", "local", MIB, "").await, client.made_volume("c2", "local", MIB, "").await);
    succeeded(client.attach_volume("a1", &one, &vm).await);
    assert_eq!(client.volume(&one).await.unwrap().attachment.unwrap().slot, "scsi2");
    let refused = Refusal::of(client.attach_volume("a2", &two, &vm).await);
    refused.is(Code::FailedPrecondition, "NO_FREE_SLOT", "two slots, both taken");
    assert!(refused.text.contains("max_slots"), "{}", refused.text);
    // The VM's own disks are no volumes: none is listed, and its boot disk cannot be named.
    assert_eq!(client.volumes().await.len(), 2);

    stack.sim.control().call(&Request::LockVm { vmid: 102, lock: "backup".into() }).unwrap();
    let locked = seeded(&client, 102).await;
    Refusal::of(client.attach_volume("a3", &two, &locked).await).is(Code::Aborted, "VM_LOCKED", "a backup runs");
    let bad = v1::DiskOptions { cache: "fast".into(), ..v1::DiskOptions::default() };
    Refusal::of(client.attach_volume_with("a4", &two, &vm, bad).await).is(Code::InvalidArgument, "INVALID_FIELD", "no such cache");
    Refusal::of(client.attach_volume("a5", &new_id(), &vm).await);
}

#[tokio::test]
async fn an_id_that_is_taken_is_not_made_again() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let id = client.made_volume("c", "local", 4 * MIB, "").await;
    succeeded(client.create_volume(client.volume_request("again", &id, "local", 4 * MIB)).await);
    assert_eq!(client.volumes().await.len(), 1);
    let larger = client.volume_request("larger", &id, "local", 8 * MIB);
    Refusal::of(client.create_volume(larger).await).is(Code::AlreadyExists, "VOLUME_EXISTS", "smaller than asked for");
    let elsewhere = client.volume_request("elsewhere", &id, "rawdir", 4 * MIB);
    Refusal::of(client.create_volume(elsewhere).await).is(Code::AlreadyExists, "VOLUME_EXISTS", "on another storage");
    let other = stack.tenant("pve1", "team-b");
    let theirs = other.volume_request("theirs", &id, "local", 4 * MIB);
    let refused = Refusal::of(other.create_volume(theirs).await);
    refused.is(Code::AlreadyExists, "VOLUME_EXISTS", "another tenant's");
    assert!(!refused.text.contains("default"), "{}", refused.text);
}
