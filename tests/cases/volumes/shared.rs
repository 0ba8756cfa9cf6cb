//! Shared storages: hosts exclude each other by a lock of the PVE cluster; without quorum nothing is attached.

use pve_sim::control::Request;
use pvelet_proto::v1;
use pvelet_tests::{
    calls::{Refusal, succeeded},
    volumes::{Done, MIB},
};
use tonic::Code;

use super::{nodes, seeded, slots};

/// Repeats while another operation is in the way.
async fn insist<F: Future<Output = Done>>(call: impl Fn(u32) -> F) -> Done {
    for attempt in 0.. {
        match call(attempt).await {
            Err(status) if status.code() == Code::Aborted => tokio::task::yield_now().await,
            other => return other,
        }
    }
    unreachable!("it goes on until it is answered")
}

#[tokio::test]
async fn one_volume_to_two_vms_on_two_hosts_at_once_goes_to_one() {
    let stack = nodes(vec!["pve1", "pve2"]);
    let (one, two) = (stack.operator("pve1"), stack.operator("pve2"));
    let (here, there) = (seeded(&one, 101).await, seeded(&two, 201).await);
    for round in 0..10 {
        let id = one.made_volume(&format!("c{round}"), "shared", MIB, "raw").await;
        let (first, second) = tokio::join!(
            insist(|n| {
                let (client, id, vm) = (one.clone(), id.clone(), here.clone());
                async move { client.attach_volume(&format!("a{round}-{n}"), &id, &vm).await }
            }),
            insist(|n| {
                let (client, id, vm) = (two.clone(), id.clone(), there.clone());
                async move { client.attach_volume(&format!("b{round}-{n}"), &id, &vm).await }
            })
        );
        let won = |done: &Done| done.as_ref().is_ok_and(|op| op.state() == v1::OperationState::Succeeded);
        assert!(won(&first) != won(&second), "round {round}: {first:?} {second:?}");
        let lost = if won(&first) { second } else { first };
        Refusal::of(lost).is(Code::FailedPrecondition, "VOLUME_IN_USE", "the other host has it");
        let has = |slots: Vec<(String, String)>| slots.iter().filter(|(_, v)| *v == id).count();
        assert_eq!(has(slots(&one, 101).await) + has(slots(&two, 201).await), 1, "round {round}");
        // Both hosts tell the same.
        let (a, b) = (one.volume(&id).await.unwrap().attachment, two.volume(&id).await.unwrap().attachment);
        assert_eq!(a.map(|a| a.vm), b.map(|b| b.vm), "round {round}");
    }
}

#[tokio::test]
async fn a_volume_of_another_host_s_vm_is_neither_removed_nor_attached() {
    let stack = nodes(vec!["pve1", "pve2"]);
    let (one, two) = (stack.operator("pve1"), stack.operator("pve2"));
    let (here, there) = (seeded(&one, 101).await, seeded(&two, 201).await);
    let id = one.made_volume("c", "shared", MIB, "raw").await;
    succeeded(two.attach_volume("a", &id, &there).await);
    let refused = Refusal::of(one.delete_volume("x", &id).await);
    refused.is(Code::FailedPrecondition, "VOLUME_IN_USE", "pve2 has it");
    assert!(refused.text.contains("pve2") && refused.text.contains("VM 201"), "{}", refused.text);
    Refusal::of(one.attach_volume("a2", &id, &here).await).is(Code::FailedPrecondition, "VOLUME_IN_USE", "pve2 has it");
    Refusal::of(one.grow_volume("g", &id, 2 * MIB).await).is(Code::FailedPrecondition, "VM_ON_OTHER_HOST", "its VM is there");
    succeeded(two.detach_volume("d", &id, &there).await);
    succeeded(one.attach_volume("a3", &id, &here).await);
}

#[tokio::test]
async fn a_lock_that_another_node_holds_is_waited_for_and_one_that_expired_is_taken() {
    let stack = nodes(vec!["pve1", "pve2"]);
    let client = stack.operator("pve1");
    let control = stack.sim.control();
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "shared", MIB, "raw").await;
    let name = format!("pvelet-volume-{id}");
    control.call(&Request::TakeClusterLock { name: name.clone() }).unwrap();
    let request = v1::AttachVolumeRequest {
        meta: client.meta_at_once("a"),
        volume: pvelet_tests::volumes::volume_ref(&id),
        vm: Some(vm.clone()),
        options: None,
    };
    let op = client.agent.volume().attach_volume(request).await.unwrap().into_inner().operation.unwrap();
    assert_ne!(op.state(), v1::OperationState::Succeeded);
    assert!(slots(&client, 101).await.is_empty());
    control.call(&Request::ExpireClusterLock { name }).unwrap();
    let op = client.operation_end("a").await;
    assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
    assert_eq!(slots(&client, 101).await.len(), 1);
    // And it is given back.
    let locks = stack.sim.node("pve1").etc_pve().join("priv/lock");
    succeeded(client.detach_volume("d", &id, &vm).await);
    let left: Vec<_> = std::fs::read_dir(locks).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.is_empty() || left.iter().all(|n| !n.to_string_lossy().contains("pvelet")), "{left:?}");
}

#[tokio::test]
async fn without_quorum_nothing_is_attached() {
    let stack = nodes(vec!["pve1", "pve2"]);
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let id = client.made_volume("c", "shared", MIB, "raw").await;
    stack.sim.control().call(&Request::Quorum { node: None, on: false }).unwrap();
    let refused = |request_id: &'static str| {
        let (client, id, vm) = (client.clone(), id.clone(), vm.clone());
        async move { Refusal::of(client.attach_volume(request_id, &id, &vm).await) }
    };
    refused("a").await.is(Code::Unavailable, "NO_QUORUM", "attach");
    Refusal::of(client.delete_volume("x", &id).await).is(Code::Unavailable, "NO_QUORUM", "delete");
    stack.sim.control().call(&Request::Quorum { node: None, on: true }).unwrap();
    let mut events = 0;
    while let Err(status) = client.attach_volume(&format!("again-{events}"), &id, &vm).await {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        events += 1;
        tokio::task::yield_now().await;
    }
    assert_eq!(slots(&client, 101).await.len(), 1);
}
