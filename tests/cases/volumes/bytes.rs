//! Bytes stay the same after snapshot, roll-back, copy, move, grow and hand-over: real images, checksums of what a guest would read.

use pvelet_proto::v1;
use pvelet_tests::{
    Client, Stack,
    calls::{Refusal, succeeded},
    volumes::{MIB, content_hash, fill, new_id, path_of, volume_ref},
};
use tonic::Code;

use super::{one_node, seeded};

async fn hash(stack: &Stack, client: &Client, id: &str) -> String {
    let volume = client.volume(id).await.unwrap();
    content_hash(&path_of(&stack.sim.node("pve1"), &volume), &volume.format)
}

async fn write(stack: &Stack, client: &Client, id: &str, seed: u64, mib: usize) {
    let volume = client.volume(id).await.unwrap();
    fill(&path_of(&stack.sim.node("pve1"), &volume), &volume.format, seed, mib);
}

#[tokio::test]
async fn every_byte_survives_copy_move_grow_and_hand_over() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    for (n, format) in ["raw", "qcow2"].into_iter().enumerate() {
        let id = client.made_volume(&format!("c{n}"), "local", 8 * MIB, format).await;
        write(&stack, &client, &id, 7 + n as u64, 3).await;
        let wanted = hash(&stack, &client, &id).await;
        let step = |what: &str| format!("{what}-{n}");

        let copy = new_id();
        let source = Some(v1::create_volume_request::Source::Volume(volume_ref(&id).unwrap()));
        let request =
            v1::CreateVolumeRequest { source, format: "qcow2".into(), ..client.volume_request(&step("copy"), &copy, "rawdir", 16 * MIB) };
        succeeded(client.create_volume(request).await);
        assert_eq!(hash(&stack, &client, &copy).await, wanted, "{format}: copy");
        assert_eq!(client.volume(&copy).await.unwrap().size_bytes, 16 * MIB);

        succeeded(client.grow_volume(&step("grow"), &id, 12 * MIB).await);
        assert_eq!(hash(&stack, &client, &id).await, wanted, "{format}: grown");

        for (storage, to) in [("rawdir", "raw"), ("local", "qcow2"), ("local", format)] {
            succeeded(client.move_volume(&step(&format!("move-{storage}-{to}")), &id, storage, to).await);
            let moved = client.volume(&id).await.unwrap();
            assert_eq!((moved.storage.as_str(), moved.format.as_str(), moved.size_bytes), (storage, to, 12 * MIB));
            assert_eq!(hash(&stack, &client, &id).await, wanted, "{format}: moved to {storage} as {to}");
        }
        assert_eq!(client.volumes().await.iter().filter(|v| v.id == id).count(), 1);

        succeeded(client.attach_volume(&step("a"), &id, &vm).await);
        succeeded(client.hand_over_volume(&step("to-vm"), &id, &vm, v1::VolumeName::Vm).await);
        assert_eq!(hash(&stack, &client, &id).await, wanted, "{format}: handed over");
        // Moved by PVE while the VM runs.
        succeeded(client.start(&step("start"), &vm).await);
        succeeded(client.move_volume(&step("hot"), &id, "rawdir", format).await);
        succeeded(client.grow_volume(&step("hot-grow"), &id, 20 * MIB).await);
        succeeded(client.stop(&step("stop"), &vm).await);
        assert_eq!(hash(&stack, &client, &id).await, wanted, "{format}: moved while it runs");
        succeeded(client.detach_volume(&step("d"), &id, &vm).await);
        assert_eq!(hash(&stack, &client, &id).await, wanted, "{format}: detached");
        assert_eq!(client.volume(&id).await.unwrap().size_bytes, 20 * MIB);
    }
}

#[tokio::test]
async fn a_snapshot_brings_every_byte_back() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let id = client.made_volume("c", "local", 8 * MIB, "qcow2").await;
    write(&stack, &client, &id, 1, 3).await;
    let before = hash(&stack, &client, &id).await;
    succeeded(client.snapshot_volume("s", &id, "before").await);
    succeeded(client.snapshot_volume("s2", &id, "before").await);
    assert_eq!(client.volume(&id).await.unwrap().snapshots.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["before"]);

    write(&stack, &client, &id, 2, 4).await;
    let after = hash(&stack, &client, &id).await;
    assert_ne!(before, after);
    // A copy of the snapshot has what was, the volume what is.
    let copy = new_id();
    let source = v1::SnapshotSource { volume: volume_ref(&id), name: "before".into() };
    let request = v1::CreateVolumeRequest {
        source: Some(v1::create_volume_request::Source::Snapshot(source)),
        ..client.volume_request("copy", &copy, "rawdir", 0)
    };
    succeeded(client.create_volume(request).await);
    assert_eq!(hash(&stack, &client, &copy).await, before);
    assert_eq!(hash(&stack, &client, &id).await, after);

    // What would lose the snapshot is refused.
    Refusal::of(client.delete_volume("x", &id).await).is(Code::FailedPrecondition, "VOLUME_HAS_SNAPSHOTS", "delete");
    Refusal::of(client.move_volume("m", &id, "rawdir", "").await).is(Code::FailedPrecondition, "VOLUME_HAS_SNAPSHOTS", "move");
    Refusal::of(client.grow_volume("g", &id, 16 * MIB).await).is(Code::FailedPrecondition, "VOLUME_HAS_SNAPSHOTS", "grow");

    succeeded(client.roll_back_volume("r", &id, "before").await);
    assert_eq!(hash(&stack, &client, &id).await, before);
    assert_eq!(client.volume(&id).await.unwrap().owner.unwrap().tenant, "default");
    succeeded(client.delete_volume_snapshot("ds", &id, "before").await);
    succeeded(client.delete_volume_snapshot("ds2", &id, "before").await);
    assert_eq!(hash(&stack, &client, &id).await, before);
    Refusal::of(client.roll_back_volume("r2", &id, "before").await).is(Code::NotFound, "SNAPSHOT_NOT_FOUND", "it is gone");
    succeeded(client.delete_volume("x2", &id).await);
}
