//! Parts that go away.

use pve_sim::control::Request;
use pvelet_tests::{
    kubernetes::site::{HOSTS, LIMIT, MACHINES, Site},
    stack::StackOptions,
    status::condition,
};
use serde_json::{Value, json};

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

#[tokio::test]
async fn etcd_that_is_away_for_longer_than_a_lease_costs_a_term_and_no_more() {
    let mut site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    site.machine("web-1", json!({})).await;
    site.wait("web-1", ready).await;
    let vmid = site.admin().get(&format!("{MACHINES}/web-1")).await.unwrap()["status"]["vmid"].as_u64().unwrap();
    site.server.etcd.stop();
    controller.wait_log("not leading any more", LIMIT);
    // Meanwhile something happens that nobody can write down.
    site.stack.sim.control().call(&Request::KillGuest { vmid: u32::try_from(vmid).unwrap() }).unwrap();
    site.server.etcd.start_again();
    site.server.ready(LIMIT).await;
    site.machine("web-2", json!({})).await;
    site.wait("web-2", ready).await;
    site.wait("web-1", ready).await;
    assert_eq!(site.vms().await, ["web-1", "web-2"]);
}

#[tokio::test]
async fn a_watch_that_is_too_old_begins_anew_and_misses_nothing() {
    let mut site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
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
}

#[tokio::test]
async fn a_controller_that_is_killed_again_and_again_makes_each_vm_once() {
    let rounds: u32 = std::env::var("PVELET_CONTROLLER_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(12);
    let machines = if rounds > 50 { 30 } else { 8 };
    let site = Site::start(StackOptions { nodes: vec!["pve1", "pve2"], ..StackOptions::default() }).await;
    let mut controller = site.controller("lab", "a").await;
    // One that is killed does not give the Lease back.
    controller.with("--lease-duration", "2");
    // Room for all, on however small a machine this runs.
    for node in ["pve1", "pve2"] {
        site.admin().merge(&format!("{HOSTS}/{node}"), &json!({"spec": {"cpuOvercommit": 100}})).await.unwrap();
    }
    for i in 0..machines {
        site.machine(&format!("web-{i}"), json!({"memory": "128Mi"})).await;
    }
    // Each start dies at a point of its own: while it waits for the Lease, places, writes, calls, starts.
    let points = ["machine.attempt.stored", "machine.finalizer.stored", "machine.call.answered", "machine.status.stored"];
    for round in 0..rounds {
        let (point, nth) = (points[round as usize % points.len()], 1 + (round * 7) % 5);
        controller.start_with(&[("PVELET_CRASH_AT", &format!("{point}:{nth}"))]).unwrap();
        controller.run_for(LIMIT_OF_A_ROUND);
    }
    controller.start();
    for i in 0..machines {
        site.wait(&format!("web-{i}"), ready).await;
    }
    let vms = site.vms().await;
    println!("controller: {rounds} kills, {machines} machines, {} VMs", vms.len());
    assert_eq!(vms.len(), machines, "{vms:?}");
}

/// A round in which there is nothing left to die of is ended after this long.
const LIMIT_OF_A_ROUND: std::time::Duration = std::time::Duration::from_secs(6);

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
