//! What users do every day.

use pve_sim::control::Request;
use pvelet_proto::identity::Role;
use pvelet_tests::{
    StackOptions,
    kubernetes::{
        ControllerManager, programs,
        site::{LIMIT, MACHINES, Site},
    },
    program,
    status::{condition, condition_reason},
};
use serde_json::{Value, json};

fn ready(machine: &Value) -> bool {
    condition(machine, "Ready") == "True" && machine["status"]["observedGeneration"] == machine["metadata"]["generation"]
}

/// The events about an object, as `reason`.
async fn events(site: &Site, name: &str) -> Vec<String> {
    let all = site.admin().get("/apis/events.k8s.io/v1/namespaces/default/events").await.unwrap();
    let all = all["items"].as_array().cloned().unwrap_or_default();
    let about = |e: &&Value| e["regarding"]["name"] == name;
    all.iter().filter(about).map(|e| e["reason"].as_str().unwrap_or_default().to_owned()).collect()
}

/// What kubectl prints.
fn kubectl(site: &Site, args: &[&str]) -> String {
    let mut kubectl = std::process::Command::new(programs().path("kubectl"));
    let out = kubectl.arg("--kubeconfig").arg(site.server.admin_kubeconfig()).args(args).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What pveletctl prints, with the hosts of the cluster.
fn pveletctl(site: &Site, args: &[&str]) -> String {
    let (cert, key) = site.stack.pki.role(Role::Reader, "people");
    let mut pveletctl = std::process::Command::new(program("pveletctl"));
    pveletctl.env("PVELETCTL_CONFIG", "/nonexistent/config.toml").arg("--kubeconfig").arg(site.server.admin_kubeconfig());
    pveletctl.arg("--ca").arg(site.stack.pki.dir.ca_cert_path()).arg("--cert").arg(cert).arg("--key").arg(key);
    let out = pveletctl.args(args).output().unwrap();
    String::from_utf8_lossy(if out.status.success() { &out.stdout } else { &out.stderr }).into_owned()
}

#[tokio::test]
async fn pveletctl_finds_the_agents_by_the_clusters_hosts() {
    let site = Site::start(StackOptions { nodes: vec!["pve1", "pve2"], ..StackOptions::default() }).await;
    let shown = pveletctl(&site, &["hosts"]);
    assert!(["pve1", "pve2"].iter().all(|host| shown.lines().any(|l| l.starts_with(host))), "{shown}");
    let shown = pveletctl(&site, &["--host", "pve2", "vms"]);
    assert!(shown.contains("9002") && !shown.contains("9001"), "{shown}");
    assert!(pveletctl(&site, &["--host", "pve9", "vms"]).contains("use one of pve1, pve2"));
}

#[tokio::test]
async fn a_machine_is_made_changed_mended_and_removed() {
    let site = Site::one().await;
    let before = site.stack.sim.control().leftovers().unwrap();
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    site.machine("web-1", json!({"memory": "64Mi", "cores": 1})).await;
    let machine = site.wait("web-1", ready).await;
    assert_eq!(machine["status"]["tenant"], "default");
    assert_eq!(machine["metadata"]["finalizers"], json!(["pvelet.dev/machine"]));
    let owners: Vec<&str> = machine["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|f| f["subresource"] == "status")
        .map(|f| f["operation"].as_str().unwrap())
        .collect();
    assert_eq!(owners, ["Apply"], "the status is one manager's, by server-side apply");
    let vmid = u32::try_from(machine["status"]["vmid"].as_u64().unwrap()).unwrap();
    let told = events(&site, "web-1").await;
    assert!(told.iter().any(|reason| reason == "Placed"), "{told:?}");

    // As people see it.
    let shown = kubectl(&site, &["get", "pvehosts,pvemachines"]);
    println!("{shown}");
    let line = |name: &str| shown.lines().find(|l| l.contains(name)).unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    assert_eq!(line("pvehost.pvelet.dev/pve1")[1], "True", "{shown}");
    assert!(line("pvemachine.pvelet.dev/web-1").contains(&vmid.to_string().as_str()), "{shown}");

    // A change.
    let path = format!("{MACHINES}/web-1");
    site.admin().merge(&path, &json!({"spec": {"startOnBoot": true}})).await.unwrap();
    site.wait("web-1", |m| ready(m) && m["status"]["verifiedGeneration"] == m["metadata"]["generation"]).await;
    let config = std::fs::read_to_string(site.stack.sim.node("pve1").vm_config(vmid)).unwrap();
    assert!(config.contains("onboot: 1"), "{config}");

    // Nothing is written once all is as it should be.
    let settled = site.admin().get(&path).await.unwrap()["metadata"]["resourceVersion"].clone();
    site.machine("web-2", json!({})).await;
    site.wait("web-2", ready).await;
    assert_eq!(site.admin().get(&path).await.unwrap()["metadata"]["resourceVersion"], settled);

    // What somebody else wrote into a status goes with the next change, though an apply alone would leave it; and then there is rest again.
    let by_hand = json!({"status": {"addresses": ["192.0.2.9"]}});
    site.admin().merge(&format!("{path}/status"), &by_hand).await.unwrap();
    site.admin().merge(&path, &json!({"spec": {"startOnBoot": false}})).await.unwrap();
    let verified = |m: &Value| ready(m) && m["status"]["verifiedGeneration"] == m["metadata"]["generation"];
    site.wait("web-1", |m| verified(m) && m["status"]["addresses"].is_null()).await;
    let settled = site.admin().get(&path).await.unwrap()["metadata"]["resourceVersion"].clone();
    site.admin().merge(&format!("{MACHINES}/web-2"), &json!({"spec": {"startOnBoot": true}})).await.unwrap();
    site.wait("web-2", |m| ready(m) && m["status"]["verifiedGeneration"] == m["metadata"]["generation"]).await;
    assert_eq!(site.admin().get(&path).await.unwrap()["metadata"]["resourceVersion"], settled);

    // Drift: the guest dies. (What was counted of it goes a minute later, by a write of its own: after all that shall be at rest.)
    let start = machine["status"]["lastStart"].clone();
    site.stack.sim.control().call(&Request::KillGuest { vmid }).unwrap();
    site.wait("web-1", |m| ready(m) && m["status"]["lastStart"] != start).await;

    // Both deletion policies.
    site.admin().merge(&format!("{MACHINES}/web-2"), &json!({"spec": {"deletionPolicy": "Retain"}})).await.unwrap();
    let kept = site.wait("web-2", ready).await["status"]["vmid"].as_u64().unwrap();
    for name in ["web-1", "web-2"] {
        site.admin().delete(&format!("{MACHINES}/{name}")).await.unwrap();
        site.admin().wait_gone(MACHINES, name, LIMIT).await;
    }
    assert_eq!(site.vms().await, ["web-2"]);
    let vm = site.stack.operator("pve1").vm(u32::try_from(kept).unwrap()).await.unwrap();
    let client = site.stack.operator("pve1");
    client.stop("end", &pvelet_tests::client::vm_ref(&vm)).await.unwrap();
    client.delete("gone", &pvelet_tests::client::vm_ref(&vm)).await.unwrap();
    assert_eq!(site.stack.sim.control().leftovers().unwrap(), before);
    assert!(controller.stop().success());
}

#[tokio::test]
async fn a_paused_machine_is_left_alone_until_it_goes_on() {
    let site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    let paused = |value: Value| json!({"metadata": {"annotations": {"pvelet.dev/paused": value}}});
    let object = json!({
        "apiVersion": "pvelet.dev/v1alpha1", "kind": "PveMachine",
        "metadata": {"name": "web-1", "annotations": {"pvelet.dev/paused": "true"}},
        "spec": {"source": {"tags": ["debian-13"]}},
    });
    site.admin().create(MACHINES, &object).await.unwrap();
    site.wait("web-1", |m| condition_reason(m, "Ready") == "Paused").await;
    assert!(site.vms().await.is_empty());
    site.admin().merge(&format!("{MACHINES}/web-1"), &paused(Value::Null)).await.unwrap();
    site.wait("web-1", ready).await;
}

#[tokio::test]
async fn an_object_that_is_deleted_while_its_clone_runs_leaves_nothing() {
    let site = Site::one().await;
    let before = site.stack.sim.control().leftovers().unwrap();
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    // It is seen before it can end, and then copies slowly.
    let lock = site.hold_storage();
    let slow = json!({"storages": {"local": {"rate_kib": 256}}});
    site.stack.sim.control().call(&Request::Faults { node: "pve1".into(), change: slow }).unwrap();
    site.machine("web-1", json!({"cloneMode": "full"})).await;
    site.wait("web-1", |m| m["status"]["operation"]["action"] == "Clone").await;
    site.release(lock);
    site.admin().delete(&format!("{MACHINES}/web-1")).await.unwrap();
    site.admin().wait_gone(MACHINES, "web-1", LIMIT).await;
    assert_eq!(site.stack.sim.control().leftovers().unwrap(), before);
}

#[tokio::test]
async fn a_machine_whose_owner_goes_goes_too() {
    let site = Site::one().await;
    let _collector = ControllerManager::start(&site.server, "garbage-collector-controller", &[]).await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    let owners = "/api/v1/namespaces/default/configmaps";
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}});
    let owner = site.admin().create(owners, &owner).await.unwrap();
    let reference = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    });
    let object = json!({
        "apiVersion": "pvelet.dev/v1alpha1", "kind": "PveMachine",
        "metadata": {"name": "web-1", "ownerReferences": [reference]},
        "spec": {"source": {"tags": ["debian-13"]}},
    });
    site.admin().create(MACHINES, &object).await.unwrap();
    let machine = site.wait("web-1", ready).await;
    assert_eq!(machine["metadata"]["ownerReferences"], json!([reference]), "it stays as it was written");
    site.machine("web-2", json!({})).await;
    site.wait("web-2", ready).await;
    site.admin().delete(&format!("{owners}/owner")).await.unwrap();
    site.admin().wait_gone(MACHINES, "web-1", LIMIT).await;
    assert_eq!(site.vms().await, ["web-2"]);
}
