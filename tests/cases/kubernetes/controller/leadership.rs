//! Two instances, one leader; and what becomes of a former one.

use pvelet_proto::{identity::Role, v1};
use pvelet_tests::{
    kubernetes::site::{HOSTS, LIMIT, MACHINES, Site},
    relay::Relay,
    status::{condition, condition_reason},
};
use serde_json::{Value, json};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/pvelet/leases";
const LEASE: &str = "pvelet-controller";

/// Waits until this instance leads, and returns the Lease.
async fn leads(site: &Site, instance: &str) -> Value {
    let prefix = format!("{instance}_");
    let ours = |l: &Value| l["spec"]["holderIdentity"].as_str().is_some_and(|h| h.starts_with(&prefix));
    site.admin().wait(LEASES, LEASE, LIMIT, ours).await
}

fn transitions(lease: &Value) -> u64 {
    lease["spec"]["leaseTransitions"].as_u64().unwrap()
}

#[tokio::test]
async fn a_leader_that_stood_still_is_followed_and_stands_by() {
    let site = Site::one().await;
    let (mut a, mut b) = (site.controller("lab", "a").await, site.controller("lab", "b").await);
    a.start_with(&[("POD_NAME", "a")]).unwrap();
    let first = leads(&site, "a").await;
    site.machine("web-1", json!({})).await;
    let before = site.wait("web-1", |m| condition(m, "Ready") == "True").await;
    b.start_with(&[("POD_NAME", "b")]).unwrap();

    a.freeze();
    let second = leads(&site, "b").await;
    assert_eq!(transitions(&second), transitions(&first) + 1);
    assert_eq!(second["metadata"]["uid"], first["metadata"]["uid"]);
    // The new leader works, so it has announced itself.
    site.machine("web-2", json!({})).await;
    site.wait("web-2", |m| condition(m, "Ready") == "True").await;

    // A new term is no reason to say that what was well is unknown.
    let web = site.admin().get(&format!("{MACHINES}/web-1")).await.unwrap();
    assert_eq!(web["status"], before["status"]);

    a.thaw();
    site.machine("web-3", json!({})).await;
    site.wait("web-3", |m| condition(m, "Ready") == "True").await;
    assert_eq!(site.vms().await, ["web-1", "web-2", "web-3"]);
    // Asked to end, the leader gives the Lease back, and the thawed one takes it at once.
    assert!(b.stop().success());
    let third = leads(&site, "a").await;
    assert_eq!(transitions(&third), transitions(&second) + 1);
    site.admin().delete(&format!("{MACHINES}/web-1")).await.unwrap();
    site.admin().wait_gone(MACHINES, "web-1", LIMIT).await;
    assert!(a.log().contains("not leading any more"), "{}", a.log());
}

/// What a request with these keys has at least, in bytes: more than anything else that a controller sends, and little enough to be sent in one go.
const LARGE: usize = 8 << 10;

#[tokio::test]
async fn what_a_frozen_leader_had_sent_is_refused_by_the_host_once_the_next_one_has_announced_itself() {
    let site = Site::one().await;
    // A network in which packets can be late.
    let relay = Relay::to(site.stack.agents["pve1"].address);
    let by_relay = json!({"spec": {"address": relay.address().to_string()}});
    site.admin().merge(&format!("{HOSTS}/pve1"), &by_relay).await.unwrap();
    let (mut a, mut b) = (site.controller("lab", "a").await, site.controller("lab", "b").await);
    for controller in [&mut a, &mut b] {
        controller.with("--lease-duration", "3");
    }
    a.start_with(&[("POD_NAME", "a")]).unwrap();
    leads(&site, "a").await;
    site.machine("web-1", json!({})).await;
    site.wait("web-1", |m| condition(m, "Ready") == "True").await;

    // It orders a clone, which is on its way for as long as the leader stands still.
    let late = relay.hold();
    let keys: Vec<String> = (0..8).map(|i| format!("ssh-ed25519 AAAA{} key-{i}", "A".repeat(LARGE / 8))).collect();
    site.machine("web-2", json!({"cloudInit": {"sshKeys": keys}})).await;
    late.bytes(LARGE as u64, LIMIT).await;
    let ordered = site.wait("web-2", |m| m["status"]["operation"]["action"] == "Clone").await["status"]["operation"].clone();
    a.freeze();
    relay.heal();
    b.start_with(&[("POD_NAME", "b")]).unwrap();
    let second = leads(&site, "b").await;
    // The next leader has made it: it has announced itself.
    site.wait("web-2", |m| m["status"]["created"] == true).await;

    late.release();
    let request_id = ordered["requestId"].as_str().unwrap();
    let refused = |line: &str| line.contains("pvelet::audit") && line.contains("STALE_EPOCH") && line.contains(request_id);
    let line = site.stack.agents["pve1"].wait_line(LIMIT, refused);
    assert!(line.contains("CLONE_VM") && line.contains("decision=refused"), "{line}");
    a.thaw();
    a.wait_log("not leading any more", LIMIT);
    site.wait("web-2", |m| condition(m, "Ready") == "True").await;
    site.machine("web-3", json!({})).await;
    site.wait("web-3", |m| condition(m, "Ready") == "True").await;
    assert_eq!(site.vms().await, ["web-1", "web-2", "web-3"]);
    assert_eq!(transitions(&leads(&site, "b").await), transitions(&second));
}

#[tokio::test]
async fn a_lease_that_is_made_anew_needs_an_administrators_word() {
    let site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    controller.start_with(&[("POD_NAME", "a")]).unwrap();
    let old = leads(&site, "a").await["metadata"]["uid"].clone();
    let host = |reason: &'static str| move |h: &Value| condition_reason(h, "Ready") == reason;
    site.admin().wait(HOSTS, "pve1", LIMIT, host("Ready")).await;

    site.admin().delete(&format!("{LEASES}/{LEASE}")).await.unwrap();
    let anew = |l: &Value| l["metadata"]["uid"] != old && !l["spec"]["holderIdentity"].as_str().unwrap_or_default().is_empty();
    let lease = site.admin().wait(LEASES, LEASE, LIMIT, anew).await;
    let told = site.admin().wait(HOSTS, "pve1", LIMIT, host("UnknownLease")).await;
    let text = pvelet_tests::status::condition_field(&told, "Ready", "message");
    assert!(text.contains("accept"), "it tells the remedy: {text}");

    let admin = site.stack.client("pve1", Role::Admin);
    let epoch = v1::ControllerEpoch {
        controller: "lab".into(),
        lease_uid: lease["metadata"]["uid"].as_str().unwrap().to_owned(),
        transitions: transitions(&lease),
    };
    let request = v1::AcceptControllerRequest { epoch: Some(epoch) };
    admin.agent.host().accept_controller(request).await.unwrap();
    site.admin().wait(HOSTS, "pve1", LIMIT, host("Ready")).await;
}

#[tokio::test]
async fn two_installations_share_hosts_and_keep_their_hands_off_each_others_vms() {
    let site = Site::one().await;
    let mut lab = site.controller("lab", "a").await;
    lab.start();
    site.machine("web-1", json!({})).await;
    site.wait("web-1", |m| condition(m, "Ready") == "True").await;
    // The other one has a folder: for an agent that makes no difference.
    let mut other = site.stack.controller();
    other.write(
        "web-1.yaml",
        "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {name: web-1}\nspec: {source: {tags: [debian-13]}}\n",
    );
    other.start();
    let both = |r: &pvelet_tests::status::Records| r.get("pvemachine.web-1").is_some_and(|m| condition(m, "Ready") == "True");
    pvelet_tests::status::wait_for(&other.manifests, LIMIT, both).unwrap();
    assert_eq!(site.vms().await, ["web-1", "web-1"]);
    other.remove("web-1.yaml");
    pvelet_tests::status::wait_for(&other.manifests, LIMIT, |r| !r.contains_key("pvemachine.web-1")).unwrap();
    assert_eq!(site.vms().await, ["web-1"]);
    let machine = site.admin().get(&format!("{MACHINES}/web-1")).await.unwrap();
    assert_eq!(condition(&machine, "Ready"), "True", "{machine:#}");
}
