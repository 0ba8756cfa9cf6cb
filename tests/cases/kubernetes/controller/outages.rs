//! Parts that go away.

use std::time::{Duration, Instant};

use pve_sim::control::Request;
use pvelet_tests::{
    Controller,
    kubernetes::site::{HOSTS, LIMIT, MACHINES, Site},
    relay::Relay,
    stack::StackOptions,
    status::condition,
};
use serde_json::{Value, json};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/pvelet/leases/pvelet-controller";

fn ready(machine: &Value) -> bool {
    condition(machine, "Ready") == "True"
}

#[tokio::test]
async fn an_api_server_that_restarts_loses_and_doubles_nothing() {
    let mut site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    // Until it is seen, no clone can end.
    let lock = site.hold_storage();
    for i in 0..4 {
        site.machine(&format!("web-{i}"), json!({"cloneMode": "full"})).await;
    }
    site.wait("web-0", |m| m["status"]["operation"]["action"] == "Clone").await;
    site.server.kill();
    site.release(lock);
    site.server.start_again().await;
    for i in 0..4 {
        site.wait(&format!("web-{i}"), ready).await;
    }
    assert_eq!(site.vms().await, ["web-0", "web-1", "web-2", "web-3"]);
}

/// How long etcd is away: twice as long as the controller's Lease lives without being renewed.
const AWAY: Duration = Duration::from_secs(30);

#[tokio::test]
async fn etcd_that_is_away_for_thirty_seconds_costs_a_term_and_no_vm() {
    let mut site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    site.machine("web-1", json!({})).await;
    let vmid = site.wait("web-1", ready).await["status"]["vmid"].as_u64().unwrap();
    let term = async |site: &Site| site.admin().get(LEASE).await.unwrap()["spec"]["leaseTransitions"].as_u64().unwrap();
    let before = term(&site).await;
    site.server.etcd.stop();
    let end = Instant::now() + AWAY;
    // Meanwhile something happens that nobody can write down.
    site.stack.sim.control().call(&Request::KillGuest { vmid: u32::try_from(vmid).unwrap() }).unwrap();
    let mut refused = 0;
    while Instant::now() < end {
        let written = site.admin().merge(&format!("{MACHINES}/web-1?timeout=1s"), &json!({"metadata": {"labels": {"a": "b"}}})).await;
        let error = written.expect_err("no write without etcd");
        // No answer at all is one too.
        assert!(error.code == 0 || error.code >= 429, "{error}");
        refused += 1;
    }
    assert!(refused > 1, "it was asked all the time");
    controller.wait_log("not leading any more", LIMIT);
    site.server.etcd.start_again();
    site.server.ready(LIMIT).await;
    site.machine("web-2", json!({})).await;
    site.wait("web-2", ready).await;
    site.wait("web-1", ready).await;
    assert!(term(&site).await > before, "another term");
    assert_eq!(site.vms().await, ["web-1", "web-2"]);
}

#[tokio::test]
async fn a_watch_that_is_too_old_begins_anew_and_misses_nothing() {
    let mut site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    // Its term outlives all of this: a new one would begin by reading everything anew.
    controller.with("--lease-duration", "300");
    controller.start_with(&[("PVELET_LOG", "info,pvelet_controller=debug")]).unwrap();
    for name in ["gone", "web-1"] {
        site.machine(name, json!({})).await;
        site.wait(name, ready).await;
    }
    // While it stands still, the API server forgets the versions that it knows: its cache of changes begins anew.
    controller.freeze();
    site.admin().delete(&format!("{MACHINES}/gone")).await.unwrap();
    site.machine("web-2", json!({})).await;
    site.server.kill();
    site.server.start_again().await;
    controller.thaw();
    site.wait("web-2", ready).await;
    site.admin().wait_gone(MACHINES, "gone", LIMIT).await;
    assert_eq!(site.vms().await, ["web-1", "web-2"]);
    controller.wait_log("too old resource version", LIMIT);
    one_term(&controller);
}

#[tokio::test]
async fn watches_that_break_or_go_silent_while_the_api_server_lives_go_on_and_miss_nothing() {
    let site = Site::one().await;
    let relay = Relay::to(site.server.address());
    let mut controller = site.controller_by(&relay, "lab", "a").await;
    controller.with("--lease-duration", "300");
    controller.start();
    site.machine("web-1", json!({})).await;
    site.wait("web-1", ready).await;
    relay.cut();
    site.machine("web-2", json!({})).await;
    site.wait("web-2", ready).await;
    // As when a firewall forgets its connections: nobody is told, and only silence tells. About a minute.
    let silent = relay.hold();
    relay.heal();
    site.machine("web-3", json!({})).await;
    site.admin().delete(&format!("{MACHINES}/web-1")).await.unwrap();
    site.wait("web-3", ready).await;
    site.admin().wait_gone(MACHINES, "web-1", LIMIT).await;
    assert_eq!(site.vms().await, ["web-2", "web-3"]);
    one_term(&controller);
    drop(silent);
}

/// Nothing of it was done by a new term, which would read everything anew.
fn one_term(controller: &Controller) {
    let log = controller.log();
    assert_eq!((log.matches(" leading ").count(), log.matches("not leading any more").count()), (1, 0), "{log}");
}

#[tokio::test]
async fn a_host_that_is_gone_for_good_holds_nobody_up_and_can_be_let_go_of() {
    let mut site = Site::start(StackOptions { nodes: vec!["pve1", "pve2"], ..StackOptions::default() }).await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    site.machine("lost", json!({"host": "pve2"})).await;
    site.wait("lost", ready).await;
    site.stack.agent("pve2").kill();
    site.admin().wait(HOSTS, "pve2", LIMIT, |h| condition(h, "Reachable") == "False").await;
    site.machine("web-1", json!({"host": "pve1"})).await;
    site.wait("web-1", ready).await;
    site.admin().delete(&format!("{MACHINES}/lost")).await.unwrap();
    let waiting = site.wait("lost", |m| !m["metadata"]["deletionTimestamp"].is_null() && condition(m, "Ready") == "False").await;
    let text = pvelet_tests::status::condition_field(&waiting, "Ready", "message");
    assert!(text.contains("pvelet.dev/abandon"), "it tells the way out: {text}");
    site.admin().merge(&format!("{MACHINES}/lost"), &json!({"metadata": {"annotations": {"pvelet.dev/abandon": "true"}}})).await.unwrap();
    site.admin().wait_gone(MACHINES, "lost", LIMIT).await;
    assert!(ready(&site.admin().get(&format!("{MACHINES}/web-1")).await.unwrap()));
}
