//! What must not be lost: volumes that another made, got or moved while an operation was under way.

use std::{
    fs,
    time::{Duration, Instant},
};

use pve_sim::control::Request;
use pvelet_proto::v1;
use pvelet_tests::{
    Stack,
    calls::{Refusal, succeeded},
    client::operation_reason,
    volumes::{MIB, content_hash, fill, new_id, path_of, storage_path, volume_ref},
};
use tonic::Code;

use super::{nodes, one_node, seeded, slots};

/// How long somebody who is done may hold on to a lock.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets nobody of pvelet have a volume for as long as the test wants.
fn lock(stack: &Stack, id: &str) -> String {
    let name = format!("pvelet-volume-{id}");
    let begun = Instant::now();
    // An operation tells its end a moment before it lets go.
    while let Err(error) = stack.sim.control().call(&Request::TakeClusterLock { name: name.clone() }) {
        assert!(error.to_string().contains("File exists") && begun.elapsed() < PATIENCE, "{error}");
    }
    name
}

fn unlock(stack: &Stack, name: String) {
    stack.sim.control().call(&Request::ReleaseClusterLock { name }).unwrap();
}

fn set_config(stack: &Stack, vmid: u32, key: &str, value: Option<String>) {
    stack.sim.control().call(&Request::SetConfig { vmid, key: key.into(), value }).unwrap();
}

#[tokio::test]
async fn a_volume_that_another_host_made_meanwhile_outlives_a_failed_attempt_to_make_it() {
    let mut stack = nodes(vec!["pve1", "pve2"]);
    let (one, two) = (stack.operator("pve1"), stack.operator("pve2"));
    let id = new_id();
    let held = lock(&stack, &id);
    let request = v1::CreateVolumeRequest { meta: one.meta_at_once("c"), ..one.volume_request("c", &id, "shared", MIB) };
    one.agent.volume().create_volume(request).await.unwrap();
    stack.agent("pve1").kill();
    unlock(&stack, held);
    let owner = Some(v1::VolumeOwner { cluster: "theirs".into(), ..v1::VolumeOwner::default() });
    succeeded(two.create_volume(v1::CreateVolumeRequest { owner, ..two.volume_request("c", &id, "shared", MIB) }).await);
    let path = path_of(&stack.sim.node("pve2"), &two.volume(&id).await.unwrap());
    fill(&path, "raw", 7, 1);
    let before = content_hash(&path, "raw");
    stack.agent("pve1").start();
    let one = stack.operator("pve1");
    let ended = one.operation_end("c").await;
    assert_eq!(operation_reason(&ended), "AGENT_RESTARTED", "{ended:?}");
    assert_eq!(content_hash(&path, "raw"), before);
    assert_eq!(one.volume(&id).await.unwrap().owner.unwrap().cluster, "theirs");
}

#[tokio::test]
async fn what_has_the_name_of_a_volume_that_was_never_made_stays() {
    let stack = nodes(vec!["pve1", "pve2"]);
    let client = stack.operator("pve1");
    let other = client.made_volume("o", "shared", MIB, "raw").await;
    let path = path_of(&stack.sim.node("pve1"), &client.volume(&other).await.unwrap());
    let id = new_id();
    let held = lock(&stack, &id);
    // Its source is gone when it is its turn, so that PVE is never asked for the new one.
    let source = client.made_volume("s", "local", MIB, "raw").await;
    let from = Some(v1::create_volume_request::Source::Volume(volume_ref(&source).unwrap()));
    let request =
        v1::CreateVolumeRequest { meta: client.meta_at_once("c"), source: from, ..client.volume_request("c", &id, "shared", MIB) };
    client.agent.volume().create_volume(request).await.unwrap();
    fs::remove_file(path_of(&stack.sim.node("pve1"), &client.volume(&source).await.unwrap())).unwrap();
    let theirs = path.with_file_name(format!("vm-999999999-pvc-{id}.raw"));
    fs::write(&theirs, vec![1; 1 << 20]).unwrap();
    unlock(&stack, held);
    let ended = client.operation_end("c").await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(fs::read(&theirs).unwrap(), vec![1; 1 << 20]);
}

#[tokio::test]
async fn a_volume_that_a_vm_got_while_it_was_moved_stays_where_it_is() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let id = client.made_volume("c", "local", 4 * MIB, "raw").await;
    let volume = client.volume(&id).await.unwrap();
    let path = path_of(&stack.sim.node("pve1"), &volume);
    fill(&path, "raw", 5, 2);
    let before = content_hash(&path, "raw");
    let hold = Request::HoldLock { node: "pve1".into(), vmid: None, storage: Some("rawdir".into()) };
    let held = stack.sim.control().call(&hold).unwrap();
    let request =
        v1::MoveVolumeRequest { meta: client.meta_at_once("m"), volume: volume_ref(&id), storage: "rawdir".into(), format: "raw".into() };
    client.agent.volume().move_volume(request).await.unwrap();
    while !client.operation("m").await.unwrap().step.contains("making") && !client.operation("m").await.unwrap().step.contains("waiting") {
        tokio::task::yield_now().await;
    }
    set_config(&stack, 101, "scsi5", Some(volume.volid.clone()));
    stack.sim.control().call(&Request::ReleaseLock { id: held.as_u64().unwrap() }).unwrap();
    let ended = client.operation_end("m").await;
    assert_eq!(operation_reason(&ended), "VOLUME_IN_USE", "{ended:?}");
    assert_eq!(content_hash(&path, "raw"), before);
    let all = client.volumes().await;
    assert_eq!(all.iter().map(|v| v.volid.as_str()).collect::<Vec<_>>(), [volume.volid.as_str()], "{all:?}");
}

#[tokio::test]
async fn a_volume_that_was_detached_before_it_was_handed_over_keeps_its_name() {
    let stack = nodes(vec!["pve1", "pve2"]);
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "shared", MIB, "raw").await;
    succeeded(client.attach_volume("a", &id, &vm).await);
    let held = lock(&stack, &id);
    let request = v1::HandOverVolumeRequest {
        meta: client.meta_at_once("h"),
        volume: volume_ref(&id),
        vm: Some(vm),
        name: v1::VolumeName::Vm.into(),
    };
    client.agent.volume().hand_over_volume(request).await.unwrap();
    let line = client.volume(&id).await.unwrap().volid;
    set_config(&stack, 101, "scsi1", None);
    set_config(&stack, 102, "scsi1", Some(line.clone()));
    unlock(&stack, held);
    let ended = client.operation_end("h").await;
    assert_eq!(operation_reason(&ended), "VOLUME_IN_USE", "{ended:?}");
    assert_eq!(client.volume(&id).await.unwrap().volid, line);
    assert_eq!(slots(&client, 102).await, [("scsi1".to_owned(), id)]);
}

#[tokio::test]
async fn what_an_administrator_moved_out_of_its_label_is_not_deleted_with_the_vm() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", MIB, "raw").await;
    succeeded(client.attach_volume("a", &id, &vm).await);
    assert_eq!(stack.pve("pve1").task("POST", "/qemu/101/move_disk", "disk=scsi1&storage=rawdir&delete=1"), "TASK OK");
    let refused = Refusal::of(client.delete("x", &vm).await);
    refused.is(Code::FailedPrecondition, "VOLUMES_RETAINED", "its data is in the VM");
    assert!(refused.text.contains("rawdir:101/vm-101-disk-"), "{}", refused.text);
}

#[tokio::test]
async fn a_volume_whose_vm_is_gone_is_detached() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", MIB, "raw").await;
    succeeded(client.attach_volume("a", &id, &vm).await);
    succeeded(client.delete("x", &vm).await);
    succeeded(client.detach_volume("d", &id, &vm).await);
    assert!(client.volume(&id).await.unwrap().attachment.is_none());
}

#[tokio::test]
async fn a_volume_is_in_use_by_whichever_storage_its_vm_names_it() {
    let mut stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", MIB, "raw").await;
    succeeded(client.attach_volume("a", &id, &vm).await);
    let path = path_of(&stack.sim.node("pve1"), &client.volume(&id).await.unwrap());
    let place = storage_path(&stack.sim.node("pve1"), "local");
    let config = stack.sim.control().call(&Request::ReadFile { path: "storage.cfg".into() }).unwrap();
    let content = format!("{}\n\ndir: alias\n\tpath {place}\n\tcontent images\n", config.as_str().unwrap().trim_end());
    stack.sim.control().call(&Request::WriteFile { path: "storage.cfg".into(), content, node: None }).unwrap();
    // A new agent reads the list of storages anew.
    stack.agent("pve1").stop();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    let volume = Some(v1::VolumeRef { id, storage: "alias".into() });
    let request = v1::DeleteVolumeRequest { meta: client.meta("x"), volume };
    let refused = Refusal::of(client.agent.volume().delete_volume(request).await.map(|r| r.into_inner().operation.unwrap()));
    refused.is(Code::FailedPrecondition, "VOLUME_IN_USE", "VM 101 has it by its other name");
    assert!(path.exists());
}

#[tokio::test]
async fn what_a_vm_of_another_host_may_be_writing_is_not_copied() {
    let stack = nodes(vec!["pve1", "pve2"]);
    let (one, two) = (stack.operator("pve1"), stack.operator("pve2"));
    let there = seeded(&two, 201).await;
    let id = two.made_volume("c", "shared", MIB, "raw").await;
    succeeded(two.attach_volume("a", &id, &there).await);
    succeeded(two.start("s", &there).await);
    let from = Some(v1::create_volume_request::Source::Volume(volume_ref(&id).unwrap()));
    let request = v1::CreateVolumeRequest { source: from, ..one.volume_request("copy", &new_id(), "local", 0) };
    Refusal::of(one.create_volume(request).await).is(Code::FailedPrecondition, "VOLUME_IN_USE", "it runs on pve2");
}
