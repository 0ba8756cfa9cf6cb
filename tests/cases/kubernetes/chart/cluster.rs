//! The chart on a real API server: it takes every object, and gives the controller what it needs and nothing else.

use std::time::Instant;

use pvelet_tests::{
    counts,
    helm::{Helm, NAMESPACE, RELEASE, chart, collection},
    kubernetes::{ApiServer, Kube, PATIENCE},
    script::folder_of,
};
use serde_json::{Value, json};

use super::{crd_files, full, render, yaml};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// An API server with namespaces; pods in the chart's one must be as restricted as Kubernetes knows.
async fn server() -> ApiServer {
    let server = ApiServer::start().await;
    for name in [NAMESPACE, "team-a", "team-b"] {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        server.admin.create("/api/v1/namespaces", &namespace).await.unwrap();
    }
    server
}

async fn establish(kube: &Kube, crd: &Value) {
    kube.create(CRDS, crd).await.unwrap_or_else(|e| panic!("{e}\n{crd:#}"));
    let established = |c: &Value| {
        let conditions = c["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Established" && c["status"] == "True"))
    };
    kube.wait(CRDS, crd["metadata"]["name"].as_str().unwrap(), PATIENCE, established).await;
}

/// What the API server says to the making of an object, with nothing made.
async fn try_create(kube: &Kube, object: &Value) {
    let path = collection(kube, object).await.unwrap_or_else(|e| panic!("{e}"));
    let made = kube.create(&format!("{path}?dryRun=All&fieldValidation=Strict"), object).await;
    made.unwrap_or_else(|e| panic!("{path}: {e}\n{object:#}"));
}

#[tokio::test]
async fn every_object_is_taken_by_a_real_api_server() {
    let server = server().await;
    // cert-manager's and the Prometheus operator's own, which refuse what they do not know.
    for crd in std::fs::read_dir(folder_of("tests/helm/definitions.sh")).unwrap() {
        establish(&server.admin, &yaml(crd.unwrap().path())).await;
    }
    for crd in crd_files() {
        establish(&server.admin, &yaml(crd)).await;
    }
    for values in [json!({}), full()] {
        for object in render(&values) {
            if object["kind"] == "CustomResourceDefinition" {
                continue;
            }
            try_create(&server.admin, &object).await;
            if object["kind"] == "Deployment" {
                let mut metadata = object["spec"]["template"]["metadata"].clone();
                metadata["name"] = json!("one-of-them");
                let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": object["spec"]["template"]["spec"]});
                // What no cluster here has.
                pod["spec"]["serviceAccountName"] = json!("default");
                let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
                let _ = server.admin.create(&format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts"), &account).await;
                try_create(&server.admin, &pod).await;
            }
        }
    }
}

/// What the controller may do: verb, group, resource, name, namespace.
struct Right(&'static str, &'static str, &'static str, &'static str, &'static str);

impl Right {
    async fn granted(&self, kube: &Kube) -> bool {
        let Self(verb, group, resource, name, namespace) = self;
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let groups = ["system:serviceaccounts", "system:serviceaccounts:pvelet", "system:authenticated"];
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": "system:serviceaccount:pvelet:pvelet", "groups": groups, "resourceAttributes": {
                "verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name, "namespace": namespace,
            }},
        });
        kube.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await.unwrap()["status"]["allowed"] == true
    }
}

const CRD: &str = "customresourcedefinitions";
const API: &str = "apiextensions.k8s.io";

/// Whatever the values are.
const ALWAYS: &[Right] = &[
    Right("list", "pvelet.dev", "pvemachines", "", ""),
    Right("watch", "pvelet.dev", "pvehosts", "", ""),
    Right("patch", "pvelet.dev", "pvenetworks", "lan", ""),
    Right("patch", "pvelet.dev", "pvemachines", "web-1", "team-a"),
    Right("get", "pvelet.dev", "pvetenants", "team-a", ""),
    Right("patch", "pvelet.dev", "pvemachines/status", "web-1", "team-a"),
    Right("update", "pvelet.dev", "pvehosts/status", "pve1", ""),
    Right("get", API, CRD, "pvemachines.pvelet.dev", ""),
    Right("create", "events.k8s.io", "events", "", "team-a"),
    Right("create", "coordination.k8s.io", "leases", "", "pvelet"),
    Right("update", "coordination.k8s.io", "leases", "pvelet", "pvelet"),
    // With a field selector, it is asked for by name.
    Right("watch", "coordination.k8s.io", "leases", "pvelet", "pvelet"),
];

/// Where the values ask for it.
const ASKED: &[Right] = &[
    Right("list", "", "nodes", "", ""),
    Right("patch", "", "nodes", "pve1", ""),
    Right("patch", "", "nodes/status", "pve1", ""),
    Right("get", "", "secrets", "talos", "team-a"),
    Right("get", "", "secrets", "any", "team-b"),
    Right("get", "", "configmaps", "any", "team-b"),
];

/// Never.
const NEVER: &[Right] = &[
    Right("create", "pvelet.dev", "pvemachines", "", "team-a"),
    Right("delete", "pvelet.dev", "pvemachines", "web-1", "team-a"),
    Right("update", "pvelet.dev", "pvemachines", "web-1", "team-a"),
    Right("patch", "pvelet.dev", "pvetenants", "team-a", ""),
    Right("delete", "pvelet.dev", "pvehosts", "pve1", ""),
    Right("list", API, CRD, "", ""),
    Right("get", API, CRD, "issuers.cert-manager.io", ""),
    Right("update", API, CRD, "pvemachines.pvelet.dev", ""),
    Right("list", "events.k8s.io", "events", "", ""),
    Right("update", "coordination.k8s.io", "leases", "other", "pvelet"),
    Right("watch", "coordination.k8s.io", "leases", "", "pvelet"),
    Right("create", "coordination.k8s.io", "leases", "", "team-a"),
    Right("get", "", "secrets", "pvelet-credentials", "pvelet"),
    Right("get", "", "secrets", "other", "team-a"),
    Right("list", "", "secrets", "", "team-a"),
    Right("list", "", "secrets", "", "team-b"),
    Right("get", "", "configmaps", "any", "team-a"),
    Right("get", "", "pods", "any", "pvelet"),
    Right("delete", "", "nodes", "pve1", ""),
    Right("update", "", "nodes", "pve1", ""),
    Right("create", "", "pods/exec", "any", "pvelet"),
    Right("escalate", "rbac.authorization.k8s.io", "clusterroles", "any", ""),
    Right("impersonate", "", "users", "any", ""),
];

/// The API server learns of roles by a watch of its own, so what is granted at last comes a moment later.
async fn has(kube: &Kube, asked: bool) {
    let rows = ALWAYS.iter().map(|r| (r, true)).chain(ASKED.iter().map(|r| (r, asked))).chain(NEVER.iter().map(|r| (r, false)));
    let rows: Vec<_> = rows.collect();
    let wrong = async || {
        let mut wrong = Vec::new();
        for (Right(verb, group, resource, name, namespace), want) in &rows {
            if Right(verb, group, resource, name, namespace).granted(kube).await != *want {
                wrong.push(format!("{verb} {group}/{resource} {name} in {namespace:?}: {}", !want));
            }
        }
        wrong
    };
    let end = Instant::now() + PATIENCE;
    loop {
        let wrong = wrong().await;
        if wrong.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "{wrong:#?}");
    }
}

#[tokio::test]
async fn a_release_is_installed_upgraded_and_uninstalled_has_the_least_rights_and_its_crds_stay() {
    let server = server().await;
    let helm = Helm::with_cluster(server.admin_kubeconfig());
    let run = |command: &[&str], values: &Value| helm.run(command, values).unwrap_or_else(|e| panic!("{command:?}: {e}"));
    // The API server cannot know the kind PveTenant before the CRDs are there. Nothing is left of it.
    let said = helm.run(&["install", RELEASE, &chart()], &json!({"tenants": full()["tenants"]})).unwrap_err();
    assert!(said.contains("PveTenant") && said.contains("ensure CRDs are installed first"), "{said}");
    let said = run(&["install", RELEASE, &chart()], &json!({}));
    assert!(said.contains("STATUS: deployed") && said.contains("create secret generic pvelet-credentials"), "{said}");
    has(&server.admin, false).await;
    let values = json!({"tenants": full()["tenants"], "userData": full()["userData"], "rbac": {"nodes": true}});
    run(&["upgrade", RELEASE, &chart()], &values);
    let tenant = server.admin.get("/apis/pvelet.dev/v1alpha1/pvetenants/team-a").await.unwrap();
    assert_eq!(tenant["spec"]["namespaces"], json!(["team-a", "team-a-staging"]));
    has(&server.admin, true).await;
    counts::tell(&format!(
        "chart: {} rights always granted, {} where values ask for them, {} never",
        ALWAYS.len(),
        ASKED.len(),
        NEVER.len()
    ));
    run(&["uninstall", RELEASE], &json!({}));
    let left = server.admin.get(CRDS).await.unwrap()["items"].as_array().map_or(0, Vec::len);
    assert_eq!(left, crd_files().len());
    let deployments = server.admin.get(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments")).await.unwrap();
    assert_eq!(deployments["items"], json!([]));
    // They are taken over by the next one.
    run(&["install", RELEASE, &chart()], &values);
}
