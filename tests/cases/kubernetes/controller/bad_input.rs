//! What is wrong is told at the object, with the remedy; nothing crashes or spins.

use std::time::{Duration, SystemTime};

use pvelet_controller::{crd::REVISION, pki::Lifetime};
use pvelet_proto::identity::Role;
use pvelet_tests::{
    kubernetes::{
        site::{HOSTS, LIMIT, MACHINES, Site, TENANTS},
        soon,
    },
    status::{condition, condition_field, condition_reason},
};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn ready(machine: &Value) -> bool {
    condition(machine, "Ready") == "True"
}

#[tokio::test]
async fn a_machine_is_its_namespaces_tenants_and_nobody_elses() {
    let site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"tenant": "default"}}});
    site.admin().create("/api/v1/namespaces", &namespace).await.unwrap();
    let shop = "/apis/pvelet.dev/v1alpha1/namespaces/shop/pvemachines";
    let reason = |reason: &'static str| move |m: &Value| condition_reason(m, "Ready") == reason;
    let spec = json!({"source": {"tags": ["debian-13"]}});
    site.create(shop, "PveMachine", "cart", spec.clone()).await;
    let refused = site.admin().wait(shop, "cart", LIMIT, reason("NamespaceNotBound")).await;
    assert!(condition_field(&refused, "Ready", "message").contains("PveTenant"), "{refused:#}");

    site.create(TENANTS, "PveTenant", "shop", json!({"namespaces": ["shop"]})).await;
    let made = site.admin().wait(shop, "cart", LIMIT, ready).await;
    assert_eq!(made["status"]["tenant"], "shop");

    let mut greedy = spec;
    greedy["tenant"] = json!("default");
    site.create(shop, "PveMachine", "greedy", greedy).await;
    site.admin().wait(shop, "greedy", LIMIT, reason("TenantNotAllowed")).await;

    site.create(TENANTS, "PveTenant", "bank", json!({"namespaces": ["shop"]})).await;
    for name in ["bank", "shop"] {
        site.admin().wait(TENANTS, name, LIMIT, reason("NamespaceDisputed")).await;
    }
    site.admin().wait(shop, "cart", LIMIT, reason("NamespaceDisputed")).await;
    site.admin().delete(&format!("{TENANTS}/bank")).await.unwrap();
    site.admin().wait(shop, "cart", LIMIT, ready).await;
    site.admin().wait(TENANTS, "shop", LIMIT, ready).await;
}

#[tokio::test]
async fn what_a_machine_names_and_is_not_there_is_told() {
    let site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    let rows: [(&str, Value, &str, &str); 4] = [
        ("no-host", json!({"host": "pve9"}), "HostNotUsable", "pve9"),
        ("no-template", json!({"source": {"tags": ["nothing"]}}), "NoHostFits", "no such template"),
        ("no-bridge", json!({"nics": [{"bridge": "vmbr99"}]}), "", "vmbr99"),
        ("pinned", json!({"host": "pve1", "vmid": 100_500}), "Running", ""),
    ];
    for (name, more, _, _) in &rows {
        site.machine(name, more.clone()).await;
    }
    for (name, _, reason, text) in rows {
        let told = |m: &Value| {
            let right = if reason.is_empty() { condition(m, "Ready") == "False" } else { condition_reason(m, "Ready") == reason };
            right && condition_field(m, "Ready", "message").contains(text)
        };
        site.wait(name, told).await;
    }
    site.machine("pinned-too", json!({"host": "pve1", "vmid": 100_500})).await;
    let told = |m: &Value| condition(m, "Ready") == "False" && condition_field(m, "Ready", "message").contains("100500");
    site.wait("pinned-too", told).await;
    assert_eq!(site.vms().await, ["pinned"]);
}

#[tokio::test]
async fn a_host_whose_certificate_names_another_is_not_taken_for_it() {
    let site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    let address = site.stack.agents["pve1"].address.to_string();
    site.create(HOSTS, "PveHost", "other", json!({"address": address, "cluster": "lab", "node": "pve7"})).await;
    let told = site.admin().wait(HOSTS, "other", LIMIT, |h| condition_reason(h, "Reachable") == "IdentityMismatch").await;
    assert!(condition_field(&told, "Reachable", "message").contains("pve1"), "{told:#}");
}

#[tokio::test]
async fn a_controller_whose_certificate_has_expired_is_told_so_and_goes_on_with_a_new_one() {
    let site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    let pki = &site.stack.pki;
    let issue = |lifetime| pki.deliver(&pki.ca.issue_role(Role::Operator, "lab", lifetime).unwrap());
    let (hour, now) = (Duration::from_secs(3600), SystemTime::now());
    issue(Lifetime::between(now - 2 * hour, now - hour));
    controller.start();
    let refused = |h: &Value| condition_reason(h, "Reachable") == "ClientCertificateRefused";
    let told = site.admin().wait(HOSTS, "pve1", LIMIT, refused).await;
    let message = condition_field(&told, "Reachable", "message");
    assert!(message.contains("expired"), "{told:#}");
    site.machine("web-1", json!({"host": "pve1"})).await;
    site.wait("web-1", |m| condition(m, "Ready") == "False").await;

    issue(Lifetime::days(1));
    site.wait("web-1", ready).await;
    site.admin().wait(HOSTS, "pve1", LIMIT, |h| condition(h, "Ready") == "True").await;
}

#[tokio::test]
async fn definitions_that_are_missing_or_older_are_waited_for_and_nothing_is_written() {
    let site = Site::one().await;
    site.machine("web-1", json!({})).await;
    let old = json!({"metadata": {"annotations": {"pvelet.dev/crd-revision": "0"}}});
    site.admin().merge(&format!("{DEFINITIONS}/pvemachines.pvelet.dev"), &old).await.unwrap();
    site.admin().delete(&format!("{DEFINITIONS}/pvenetworks.pvelet.dev")).await.unwrap();
    site.admin().wait_gone(DEFINITIONS, "pvenetworks.pvelet.dev", LIMIT).await;
    let before = written(&site).await;
    let mut controller = site.controller("lab", "a").await;
    controller.with("--metrics-address", "127.0.0.1:0");
    controller.start();
    for told in ["pvemachines.pvelet.dev is of revision 0", "pvenetworks.pvelet.dev is missing", "pvelet-controller crds | kubectl apply"] {
        controller.wait_log(told, LIMIT);
    }
    assert_eq!(written(&site).await, before);
    assert_eq!((controller.http("/readyz").await.0, controller.http("/healthz").await.0), (503, 200));

    // One of the two is mended: it is looked at again, and not enough.
    let network = pvelet_controller::crd::all().into_iter().find(|c| c["metadata"]["name"] == "pvenetworks.pvelet.dev").unwrap();
    site.admin().create(DEFINITIONS, &network).await.unwrap();
    let still = format!("waiting for resource definitions: pvemachines.pvelet.dev is of revision 0, and {REVISION} is needed. Install");
    controller.wait_log(&still, LIMIT);
    assert_eq!(written(&site).await, before);
    assert_eq!(controller.http("/readyz").await.0, 503);

    site.define().await;
    site.wait("web-1", ready).await;
    assert_eq!(controller.http("/readyz").await.0, 200);
}

/// What a controller would write first: its Lease, and the objects that it knows.
async fn written(site: &Site) -> Vec<Value> {
    let mut all = Vec::new();
    for path in ["/apis/coordination.k8s.io/v1/namespaces/pvelet/leases", MACHINES, HOSTS, TENANTS] {
        all.push(site.admin().get(path).await.unwrap()["items"].take());
    }
    assert_eq!(all[0], json!([]), "there is no Lease");
    all
}

#[tokio::test]
async fn an_object_of_another_version_is_told_and_left_alone() {
    let site = Site::one().await;
    // A later definition knows a field that this controller does not.
    let path = format!("{DEFINITIONS}/pvemachines.pvelet.dev");
    let mut crd = site.admin().get(&path).await.unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["ofTomorrow"] = json!({"type": "string"});
    site.admin().replace(&path, &crd).await.unwrap();
    let spec = json!({"source": {"tags": ["debian-13"]}, "ofTomorrow": "yes"});
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    let object = json!({"apiVersion": "pvelet.dev/v1alpha1", "kind": "PveMachine", "metadata": {"name": "later"}, "spec": spec});
    // The new field is served a moment after the definition was written.
    let try_out = format!("{MACHINES}?dryRun=All");
    let served = async || !site.admin().create(&try_out, &object).await.unwrap()["spec"]["ofTomorrow"].is_null();
    soon("the new field of machines is served", served).await;
    site.admin().create(MACHINES, &object).await.unwrap();
    let told = site.wait("later", |m| condition_reason(m, "Ready") == "NotUnderstood").await;
    assert!(condition_field(&told, "Ready", "message").contains("ofTomorrow"), "{told:#}");
    assert!(site.vms().await.is_empty());

    // A tenant of a later version still has its namespaces.
    let path = format!("{DEFINITIONS}/pvetenants.pvelet.dev");
    let mut crd = site.admin().get(&path).await.unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["ofTomorrow"] = json!({"type": "string"});
    site.admin().replace(&path, &crd).await.unwrap();
    let later = json!({"spec": {"ofTomorrow": "yes"}});
    let changed = async || !site.admin().merge(&format!("{TENANTS}/default"), &later).await.unwrap()["spec"]["ofTomorrow"].is_null();
    soon("the new field of tenants is served", changed).await;
    site.admin().wait(TENANTS, "default", LIMIT, |t| condition_reason(t, "Ready") == "NotUnderstood").await;
    site.machine("web-1", json!({})).await;
    site.wait("web-1", ready).await;
}
