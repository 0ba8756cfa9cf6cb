//! Whose volumes: read back from the storages, never from the agent's state; nobody's are told and left alone.

use std::fs;

use pvelet_proto::v1;
use pvelet_tests::{
    Client,
    calls::{Refusal, succeeded},
    volumes::{MIB, new_id, path_of},
};
use tonic::Code;

use super::{one_node, seeded};

async fn owned(client: &Client, request_id: &str, cluster: &str, storage: &str) -> String {
    let id = new_id();
    let owner = Some(v1::VolumeOwner { cluster: cluster.into(), claim: format!("shop/{request_id}"), ..v1::VolumeOwner::default() });
    succeeded(client.create_volume(v1::CreateVolumeRequest { owner, ..client.volume_request(request_id, &id, storage, MIB) }).await);
    id
}

fn reclaim(client: &Client, request_id: &str, cluster: &str, dry_run: bool) -> v1::ReclaimVolumesRequest {
    v1::ReclaimVolumesRequest { meta: client.meta(request_id), cluster: cluster.into(), all_clusters: false, dry_run }
}

#[tokio::test]
async fn the_owner_is_known_after_the_agent_has_lost_its_state() {
    let mut stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let (loose, held) = (owned(&client, "loose", "prod", "local").await, owned(&client, "held", "prod", "rawdir").await);
    succeeded(client.attach_volume("a", &held, &vm).await);
    let before = client.volumes().await;
    stack.agent("pve1").stop();
    let state = stack.agent("pve1").state_dir();
    fs::remove_dir_all(state).unwrap();
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    assert_eq!(client.volumes().await, before);
    let owner = client.volume(&loose).await.unwrap().owner.unwrap();
    assert_eq!((owner.tenant.as_str(), owner.cluster.as_str(), owner.claim.as_str()), ("default", "prod", "shop/loose"));
    succeeded(client.detach_volume("d", &held, &vm).await);
    succeeded(client.delete_volume("x", &held).await);
}

#[tokio::test]
async fn what_a_torn_down_owner_left_is_reclaimed_and_nothing_else() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let other = stack.tenant("pve1", "team-b");
    let vm = seeded(&client, 101).await;
    let gone = [owned(&client, "g1", "old", "local").await, owned(&client, "g2", "old", "rawdir").await];
    let attached = owned(&client, "g3", "old", "local").await;
    succeeded(client.attach_volume("a", &attached, &vm).await);
    let kept = owned(&client, "k", "new", "local").await;
    let theirs = owned(&other, "t", "old", "local").await;
    // One without an owner: somebody's by hand, or left by a crash.
    let layout = stack.sim.node("pve1");
    let nobodys = path_of(&layout, &client.volume(&gone[0]).await.unwrap()).with_file_name(format!("vm-999999999-pvc-{}.raw", new_id()));
    fs::write(&nobodys, vec![0; 1 << 20]).unwrap();

    let answer = client.agent.volume().reclaim_volumes(reclaim(&client, "dry", "old", true)).await.unwrap().into_inner();
    let mut found: Vec<String> = answer.volumes.iter().map(|v| v.id.clone()).collect();
    found.sort();
    let mut wanted = gone.to_vec();
    wanted.sort();
    assert_eq!(found, wanted);
    assert!(answer.operation.is_none() && answer.kept.len() == 1 && answer.nobodys.len() == 1, "{answer:?}");
    assert!(answer.kept[0].id == attached && answer.kept[0].problem.contains("VM 101"));
    assert_eq!(client.volumes().await.len(), 6, "a dry run removes nothing");

    let answer = client.agent.volume().reclaim_volumes(reclaim(&client, "do", "old", false)).await.unwrap().into_inner();
    succeeded(Ok(answer.operation.unwrap()));
    let mut left: Vec<String> = client.volumes().await.into_iter().filter(|v| v.owner.is_some()).map(|v| v.id).collect();
    left.sort();
    let mut wanted = vec![attached, kept, theirs];
    wanted.sort();
    assert_eq!(left, wanted);
    assert!(nobodys.exists(), "nobody's volume is never removed");
}

#[tokio::test]
async fn nobodys_volumes_are_told_and_not_touched() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let vm = seeded(&client, 101).await;
    let mine = client.made_volume("c", "local", MIB, "raw").await;
    let id = new_id();
    let path = path_of(&stack.sim.node("pve1"), &client.volume(&mine).await.unwrap());
    fs::write(path.with_file_name(format!("vm-999999999-pvc-{id}.raw")), vec![0; 1 << 20]).unwrap();
    let shown = client.volume(&id).await.unwrap();
    assert!(shown.owner.is_none() && shown.size_bytes == MIB);
    for (what, refused) in [
        ("delete", Refusal::of(client.delete_volume("x", &id).await)),
        ("attach", Refusal::of(client.attach_volume("a", &id, &vm).await)),
        ("grow", Refusal::of(client.grow_volume("g", &id, 2 * MIB).await)),
        ("move", Refusal::of(client.move_volume("m", &id, "rawdir", "").await)),
    ] {
        refused.is(Code::FailedPrecondition, "NOT_OURS", what);
    }
    let request = v1::ListVolumesRequest { nobodys: true, ..v1::ListVolumesRequest::default() };
    let listed = client.agent.volume().list_volumes(request).await.unwrap().into_inner().volumes;
    assert_eq!(listed.iter().map(|v| v.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
}

#[tokio::test]
async fn a_tenant_sees_and_touches_its_own_alone() {
    let stack = one_node();
    let (a, b) = (stack.tenant("pve1", "team-a"), stack.tenant("pve1", "team-b"));
    let mine = owned(&a, "mine", "prod", "local").await;
    let theirs = owned(&b, "theirs", "prod", "local").await;
    assert_eq!(a.volumes().await.iter().map(|v| v.id.as_str()).collect::<Vec<_>>(), [mine.as_str()]);
    assert_eq!(a.volume(&theirs).await.unwrap_err().code(), Code::NotFound);
    Refusal::of(a.delete_volume("x", &theirs).await).is(Code::NotFound, "VOLUME_NOT_FOUND", "another tenant's");
    Refusal::of(a.move_volume("m", &theirs, "rawdir", "").await).is(Code::NotFound, "VOLUME_NOT_FOUND", "another tenant's");
    // An operator acts for the tenant it names, and for no other at the same time.
    let operator = stack.operator("pve1");
    Refusal::of(operator.delete_volume("x2", &theirs).await).is(Code::NotFound, "VOLUME_NOT_FOUND", "named another tenant");

    let usage = |client: &Client| {
        let client = client.clone();
        async move { client.agent.volume().get_volume_usage(v1::GetVolumeUsageRequest::default()).await.unwrap().into_inner().usage }
    };
    let sums = usage(&a).await;
    assert_eq!((sums.len(), sums[0].volumes, sums[0].size_bytes), (1, 1, MIB));
    assert_eq!(sums[0].owner.clone().unwrap().tenant, "team-a");
    assert_eq!(usage(&operator).await.len(), 2);
}

#[tokio::test]
async fn two_volumes_with_one_id_are_touched_by_nobody() {
    let stack = one_node();
    let client = stack.operator("pve1");
    let id = client.made_volume("c", "local", MIB, "raw").await;
    let volume = client.volume(&id).await.unwrap();
    let path = path_of(&stack.sim.node("pve1"), &volume);
    // A copy by hand, label and all.
    let copy = path.with_file_name(format!("vm-999999999-pvc-{id}.qcow2"));
    let done = std::process::Command::new("cp").args(["--preserve=xattr"]).arg(&path).arg(&copy).status().unwrap();
    assert!(done.success());
    Refusal::of(client.delete_volume("x", &id).await).is(Code::FailedPrecondition, "AMBIGUOUS_VOLUME", "twice");
    assert!(client.volumes().await.iter().all(|v| !v.problem.is_empty()));
    fs::remove_file(&copy).unwrap();
    succeeded(client.delete_volume("x2", &id).await);
}
