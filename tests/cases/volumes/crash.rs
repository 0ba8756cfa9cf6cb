//! The agent killed with SIGKILL between every two steps of each operation on a volume, then started again.

use std::os::unix::process::ExitStatusExt;

use pvelet_agent::crash::NAMES;
use pvelet_proto::v1;
use pvelet_tests::{
    Client, Stack,
    calls::succeeded,
    client::operation_reason,
    volumes::{Done, MIB, content_hash, fill, new_id, path_of, volume_ref},
};

use super::{one_node, seeded, slots};

/// Lets the agent die at `point` while `call` is made, and starts it again; returns a client of the new one. `false`: the operation ended
/// before it came to that point.
async fn dies<F: Future<Output = Done>>(stack: &mut Stack, point: &str, call: impl FnOnce(Client) -> F) -> (Client, bool) {
    stack.agent("pve1").kill();
    stack.agent("pve1").start_with(&[("PVELET_CRASH_AT", point)]).unwrap();
    let answer = call(stack.operator("pve1")).await;
    let answered = answer.is_ok();
    if let Err(status) = &answer {
        // In the middle of its answer that is Unknown to the client.
        assert!(matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown), "{point}: {status:?}");
    }
    if answered {
        // `volume.end_written` comes after the answer may have been given.
        stack.agent("pve1").kill();
    } else {
        let status = stack.agent("pve1").wait_exit();
        assert_eq!(status.signal(), Some(9), "{point}: {status}\n{}", stack.agent("pve1").log());
    }
    stack.agent("pve1").start();
    (stack.operator("pve1"), !answered)
}

async fn end(client: &Client, request_id: &str) -> Option<v1::Operation> {
    client.operation(request_id).await?;
    Some(client.operation_end(request_id).await)
}

/// The operation ended well, or nothing was done and it may be asked for again; then it succeeds.
async fn settled<F: Future<Output = Done>>(client: &Client, point: &str, again: impl FnOnce() -> F) {
    match end(client, point).await {
        Some(op) if op.state() == v1::OperationState::Succeeded => {}
        Some(op) => {
            assert_eq!(operation_reason(&op), "AGENT_RESTARTED", "{point}: {op:?}");
            succeeded(again().await);
        }
        None => drop(succeeded(again().await)),
    }
}

fn points(prefix: &str) -> Vec<&'static str> {
    let own = NAMES.iter().filter(|n| n.starts_with(prefix));
    let shared = ["volume.intent_written", "volume.config_called", "volume.before_end", "volume.end_written", "task.upid_written"];
    let used = |n: &str| match n {
        "volume.config_called" | "task.upid_written" => prefix.starts_with("attach") || prefix.starts_with("detach"),
        _ => true,
    };
    own.copied().chain(shared.into_iter().filter(|n| used(n))).collect()
}

#[tokio::test]
async fn making_a_copy_survives_a_kill_between_any_two_steps() {
    let mut stack = one_node();
    let client = stack.operator("pve1");
    let source = client.made_volume("source", "local", 4 * MIB, "raw").await;
    let layout = stack.sim.node("pve1");
    let path = path_of(&layout, &client.volume(&source).await.unwrap());
    fill(&path, "raw", 5, 2);
    let wanted = content_hash(&path, "raw");
    for point in points("create_volume.") {
        let id = new_id();
        let request = |client: &Client, request_id: &str| {
            let from = Some(v1::create_volume_request::Source::Volume(volume_ref(&source).unwrap()));
            v1::CreateVolumeRequest { source: from, ..client.volume_request(request_id, &id, "rawdir", 0) }
        };
        let (client, _) = dies(&mut stack, point, |client| async move { client.create_volume(request(&client, point)).await }).await;
        settled(&client, point, || async { client.create_volume(request(&client, &format!("again-{point}"))).await }).await;
        let found: Vec<_> = client.volumes().await.into_iter().filter(|v| v.storage == "rawdir").collect();
        assert_eq!(found.len(), 1, "{point}: {found:?}");
        assert!(found[0].id == id && found[0].owner.is_some(), "{point}: {found:?}");
        assert_eq!(content_hash(&path_of(&layout, &found[0]), "raw"), wanted, "{point}");
        succeeded(client.delete_volume(&format!("x-{point}"), &id).await);
    }
}

#[tokio::test]
async fn attaching_and_detaching_survive_a_kill_between_any_two_steps() {
    let mut stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", MIB, "raw").await;
    succeeded(client.start("s", &vm).await);
    for point in points("attach_volume.") {
        let request_id = format!("attach-{point}");
        let (name, volume, target) = (request_id.clone(), id.clone(), vm.clone());
        let (client, _) = dies(&mut stack, point, |c| async move { c.attach_volume(&name, &volume, &target).await }).await;
        let again = format!("again-{request_id}");
        settled(&client, &request_id, || client.attach_volume(&again, &id, &vm)).await;
        assert_eq!(slots(&client, 101).await, [("scsi1".to_owned(), id.clone())], "{point}");
        succeeded(client.detach_volume(&format!("d-{point}"), &id, &vm).await);
    }
    for point in points("detach_volume.") {
        let client = stack.operator("pve1");
        succeeded(client.attach_volume(&format!("a-{point}"), &id, &vm).await);
        let request_id = format!("detach-{point}");
        let (name, volume, target) = (request_id.clone(), id.clone(), vm.clone());
        let (client, _) = dies(&mut stack, point, |c| async move { c.detach_volume(&name, &volume, &target).await }).await;
        let again = format!("again-{request_id}");
        settled(&client, &request_id, || client.detach_volume(&again, &id, &vm)).await;
        assert!(slots(&client, 101).await.is_empty(), "{point}");
        assert_eq!(client.volume(&id).await.unwrap().name_vmid, 999_999_999, "{point}");
    }
}

#[tokio::test]
async fn moves_survive_a_kill_between_any_two_steps() {
    let mut stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", 4 * MIB, "raw").await;
    let layout = stack.sim.node("pve1");
    let path = path_of(&layout, &client.volume(&id).await.unwrap());
    fill(&path, "raw", 5, 2);
    let wanted = content_hash(&path, "raw");
    for attached in [false, true] {
        for point in points("move_volume.") {
            let client = stack.operator("pve1");
            let to = if client.volume(&id).await.unwrap().storage == "local" { "rawdir" } else { "local" };
            let request_id = format!("{point}-{attached}");
            if attached {
                succeeded(client.attach_volume(&format!("a-{request_id}"), &id, &vm).await);
            }
            let (name, volume) = (request_id.clone(), id.clone());
            let (client, _) = dies(&mut stack, point, |c| async move { c.move_volume(&name, &volume, to, "raw").await }).await;
            let again = format!("again-{request_id}");
            settled(&client, &request_id, || client.move_volume(&again, &id, to, "raw")).await;
            if attached {
                succeeded(client.detach_volume(&format!("d-{request_id}"), &id, &vm).await);
            }
            let all = client.volumes().await;
            assert_eq!(all.len(), 1, "{request_id}: {all:?}");
            assert_eq!((all[0].storage.as_str(), all[0].name_vmid), (to, 999_999_999), "{request_id}");
            assert_eq!(content_hash(&path_of(&layout, &all[0]), "raw"), wanted, "{request_id}");
        }
    }
}

#[tokio::test]
async fn growing_handing_over_and_deleting_survive_a_kill_between_any_two_steps() {
    let mut stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let mut size = MIB;
    let id = client.made_volume("c", "local", size, "raw").await;
    for point in points("grow_volume.") {
        size += MIB;
        let request_id = format!("grow-{point}");
        let (name, volume) = (request_id.clone(), id.clone());
        let (client, _) = dies(&mut stack, point, |c| async move { c.grow_volume(&name, &volume, size).await }).await;
        let again = format!("again-{request_id}");
        settled(&client, &request_id, || client.grow_volume(&again, &id, size)).await;
        assert_eq!(client.volume(&id).await.unwrap().size_bytes, size, "{point}");
    }
    let client = stack.operator("pve1");
    succeeded(client.attach_volume("a", &id, &vm).await);
    for name in [v1::VolumeName::Vm, v1::VolumeName::Reserved] {
        for point in points("hand_over_volume.") {
            let client = stack.operator("pve1");
            let request_id = format!("{point}-{}", name as i32);
            let back = if name == v1::VolumeName::Vm { v1::VolumeName::Reserved } else { v1::VolumeName::Vm };
            succeeded(client.hand_over_volume(&format!("back-{request_id}"), &id, &vm, back).await);
            let (call, volume, target) = (request_id.clone(), id.clone(), vm.clone());
            let (client, _) = dies(&mut stack, point, |c| async move { c.hand_over_volume(&call, &volume, &target, name).await }).await;
            let again = format!("again-{request_id}");
            settled(&client, &request_id, || client.hand_over_volume(&again, &id, &vm, name)).await;
            let shown = client.volume(&id).await.unwrap();
            let expected = if name == v1::VolumeName::Vm { 101 } else { 999_999_999 };
            assert_eq!((shown.name_vmid, shown.attachment.unwrap().slot.as_str()), (expected, "scsi1"), "{request_id}");
            let disks = client.vm(101).await.unwrap().disks;
            assert!(disks.iter().all(|d| !d.slot.starts_with("unused")), "{request_id}: {disks:?}");
        }
    }
    let client = stack.operator("pve1");
    succeeded(client.detach_volume("d", &id, &vm).await);
    succeeded(client.delete_volume("x", &id).await);
    let before = stack.sim.control().leftovers().unwrap();
    for point in points("delete_volume.") {
        let client = stack.operator("pve1");
        let id = client.made_volume(&format!("c-{point}"), "local", MIB, "raw").await;
        let request_id = format!("delete-{point}");
        let (name, volume) = (request_id.clone(), id.clone());
        let (client, _) = dies(&mut stack, point, |c| async move { c.delete_volume(&name, &volume).await }).await;
        let again = format!("again-{request_id}");
        settled(&client, &request_id, || client.delete_volume(&again, &id)).await;
        assert_eq!(stack.sim.control().leftovers().unwrap(), before, "{point}");
    }
}

#[tokio::test]
async fn snapshots_survive_a_kill_between_any_two_steps() {
    let mut stack = one_node();
    let client = stack.operator("pve1");
    let id = client.made_volume("c", "local", 4 * MIB, "qcow2").await;
    let path = path_of(&stack.sim.node("pve1"), &client.volume(&id).await.unwrap());
    for (kind, prefix) in [("take", "snapshot_volume."), ("back", "roll_back_volume."), ("drop", "delete_volume_snapshot.")] {
        for point in points(prefix) {
            let client = stack.operator("pve1");
            let request_id = format!("{kind}-{point}");
            fill(&path, "qcow2", 1, 1);
            let before = content_hash(&path, "qcow2");
            if kind != "take" {
                succeeded(client.snapshot_volume(&format!("s-{request_id}"), &id, "snap").await);
            }
            if kind == "back" {
                fill(&path, "qcow2", 9, 2);
            }
            let call = |c: Client, name: String, volume: String| async move {
                match kind {
                    "take" => c.snapshot_volume(&name, &volume, "snap").await,
                    "back" => c.roll_back_volume(&name, &volume, "snap").await,
                    _ => c.delete_volume_snapshot(&name, &volume, "snap").await,
                }
            };
            let (name, volume) = (request_id.clone(), id.clone());
            let (client, _) = dies(&mut stack, point, |c| call(c, name, volume)).await;
            settled(&client, &request_id, || call(client.clone(), format!("again-{request_id}"), id.clone())).await;
            let names: Vec<String> = client.volume(&id).await.unwrap().snapshots.into_iter().map(|s| s.name).collect();
            assert_eq!(names.len(), usize::from(kind != "drop"), "{request_id}: {names:?}");
            assert_eq!(content_hash(&path, "qcow2"), before, "{request_id}");
            succeeded(client.delete_volume_snapshot(&format!("ds-{request_id}"), &id, "snap").await);
        }
    }
}

#[tokio::test]
async fn what_is_so_already_stays_a_success_when_the_agent_is_killed() {
    let mut stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "local", MIB, "raw").await;
    succeeded(client.attach_volume("a", &id, &vm).await);
    let gone = client.made_volume("gone", "local", MIB, "raw").await;
    succeeded(client.delete_volume("x", &gone).await);
    for what in ["move", "hand-over", "delete"] {
        let (id, gone, vm) = (id.clone(), gone.clone(), vm.clone());
        let call = |client: Client| async move {
            match what {
                "move" => client.move_volume(what, &id, "local", "raw").await,
                "hand-over" => client.hand_over_volume(what, &id, &vm, v1::VolumeName::Reserved).await,
                // Where it was has to be told: not every storage can be asked.
                _ => {
                    let volume = Some(v1::VolumeRef { id: gone, storage: "local".into() });
                    let request = v1::DeleteVolumeRequest { meta: client.meta(what), volume };
                    Ok(client.agent.volume().delete_volume(request).await?.into_inner().operation.unwrap())
                }
            }
        };
        let (client, died) = dies(&mut stack, "volume.intent_written", call).await;
        assert!(died, "{what}");
        succeeded(Ok(end(&client, what).await.unwrap()));
    }
}
