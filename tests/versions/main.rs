//! A controller works with agents of the version before and after its own, and state that one version wrote is taken up by the next.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use pve_sim::control::Request;
use pvelet_tests::{
    Controller, StackOptions, counts,
    kubernetes::site::{HOSTS, LIMIT, MACHINES, Site},
    status::condition,
    versions::previous,
};
use serde_json::{Value, json};

fn ready(machine: &Value) -> bool {
    condition(machine, "Ready") == "True" && machine["status"]["observedGeneration"] == machine["metadata"]["generation"]
}

fn verified(machine: &Value) -> bool {
    ready(machine) && machine["status"]["verifiedGeneration"] == machine["metadata"]["generation"]
}

fn old_program(name: &str) -> PathBuf {
    previous().join(name)
}

/// A line for people.
fn told(what: &str) -> String {
    let commit = previous().file_name().unwrap_or_default().to_string_lossy();
    format!("versions: {} beside this one: {what}", commit.get(..7).unwrap_or(&commit))
}

/// Two hosts, the agents of which are the old ones or those of today.
async fn site(old_agents: bool) -> Site {
    let programs = old_agents.then(|| previous().to_owned());
    Site::start(StackOptions { nodes: vec!["pve1", "pve2"], programs, ..StackOptions::default() }).await
}

/// What users do every day, on each host.
async fn every_day(site: &Site, controller: &mut Controller) {
    let before = site.stack.sim.control().leftovers().unwrap();
    controller.start();
    let nodes = ["pve1", "pve2"];
    for node in nodes {
        site.admin().wait(HOSTS, node, LIMIT, |h| condition(h, "Ready") == "True").await;
        site.machine(node, json!({"host": node, "memory": "64Mi"})).await;
    }
    for node in nodes {
        let machine = site.wait(node, ready).await;
        let vmid = u32::try_from(machine["status"]["vmid"].as_u64().unwrap()).unwrap();
        site.admin().merge(&format!("{MACHINES}/{node}"), &json!({"spec": {"startOnBoot": true}})).await.unwrap();
        site.wait(node, verified).await;
        let config = std::fs::read_to_string(site.stack.sim.node(node).vm_config(vmid)).unwrap();
        assert!(config.contains("onboot: 1"), "{config}");
        let start = machine["status"]["lastStart"].clone();
        site.stack.sim.control().call(&Request::KillGuest { vmid }).unwrap();
        site.wait(node, |m| ready(m) && m["status"]["lastStart"] != start).await;
    }
    for node in nodes {
        site.admin().delete(&format!("{MACHINES}/{node}")).await.unwrap();
        site.admin().wait_gone(MACHINES, node, LIMIT).await;
    }
    assert_eq!(site.stack.sim.control().leftovers().unwrap(), before);
}

#[tokio::test]
async fn a_controller_drives_agents_of_the_version_before() {
    let site = site(true).await;
    let mut controller = site.controller("lab", "a").await;
    every_day(&site, &mut controller).await;
    counts::tell(&told("agents of it under this controller: 2 machines made, changed, mended, removed"));
}

#[tokio::test]
async fn a_controller_of_the_version_before_drives_agents_of_this_one() {
    let site = site(false).await;
    let mut controller = site.controller("lab", "a").await;
    controller.program = old_program("pvelet-controller");
    every_day(&site, &mut controller).await;
    counts::tell(&told("a controller of it over agents of this version: 2 machines made, changed, mended, removed"));
}

#[tokio::test]
async fn an_agent_takes_up_what_the_version_before_had_begun() {
    let mut site = site(true).await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    // Until it is seen, no clone can end.
    let lock = site.hold_storage();
    for name in ["web-1", "web-2"] {
        site.machine(name, json!({"host": "pve1", "cloneMode": "full"})).await;
    }
    site.wait("web-1", |m| m["status"]["operation"]["action"] == "Clone").await;
    site.stack.agent("pve1").kill();
    site.release(lock);
    let agent = site.stack.agent("pve1");
    agent.program = pvelet_tests::program("pvelet-agent");
    agent.start();
    for name in ["web-1", "web-2"] {
        site.wait(name, ready).await;
    }
    assert_eq!(site.vms().await, ["web-1", "web-2"]);
    counts::tell(&told("an agent that took up what it had begun: 2 machines, 2 VMs"));
}

#[tokio::test]
async fn a_controller_takes_over_from_the_version_before_and_changes_nothing() {
    let site = site(false).await;
    let mut old = site.controller("lab", "a").await;
    old.program = old_program("pvelet-controller");
    old.start();
    site.machine("web-1", json!({"host": "pve1"})).await;
    let before = site.wait("web-1", ready).await;
    assert!(old.stop().success());
    let mut new = site.controller("lab", "b").await;
    new.start();
    site.machine("web-2", json!({"host": "pve2"})).await;
    site.wait("web-2", ready).await;
    let after = site.wait("web-1", ready).await;
    assert_eq!(after["spec"], before["spec"]);
    for field in ["vmid", "uuid", "lastStart"] {
        assert_eq!(after["status"][field], before["status"][field], "{field}");
    }
    assert_eq!(site.vms().await, ["web-1", "web-2"]);
    counts::tell(&told("a controller that took over from it: 1 machine as it was, 1 more made"));
}
