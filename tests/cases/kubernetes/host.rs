//! A host that is a Node too, through the whole stack: agent, controller, API server.

use std::collections::BTreeMap;

use pvelet_controller::nodes::{CONDITION, TAINT};
use pvelet_tests::{
    Agent, Controller, Stack,
    kubernetes::{ApiServer, PATIENCE},
    stack::StackOptions,
    status::{self, Records, condition, condition_reason},
};
use serde_json::{Value, json};

const NODES: &str = "/api/v1/nodes";
const WISH: &str = "\n  kubernetesNode: {taint: NoSchedule, groups: [containerd], failedAfter: 1s, wellAfter: 1s}";

fn taints(node: &Value) -> Vec<&str> {
    node["spec"]["taints"].as_array().into_iter().flatten().filter_map(|t| t["key"].as_str()).collect()
}

/// Status and reason of our condition.
fn told(node: &Value) -> Option<(&str, &str)> {
    let all = node["status"]["conditions"].as_array().into_iter().flatten();
    let ours = all.filter(|c| c["type"] == CONDITION).collect::<Vec<_>>();
    assert!(ours.len() <= 1, "{ours:?}");
    ours.first().map(|c| (c["status"].as_str().unwrap_or_default(), c["reason"].as_str().unwrap_or_default()))
}

/// Whether the host is to be a worker of Kubernetes; its containerd is not there.
fn health(worker: &str) -> String {
    format!("[health]\nworker = \"{worker}\"\ncontainerd_socket = \"/nonexistent/containerd.sock\"\n")
}

fn host(controller: &Controller, agent: &Agent, wish: &str) {
    let (node, address, cluster) = (&agent.node, agent.address, &agent.cluster);
    let spec = format!("spec:\n  address: \"{address}\"\n  cluster: {cluster}\n  node: {node}{wish}\n");
    let text = format!("apiVersion: pvelet.dev/v1alpha1\nkind: PveHost\nmetadata:\n  name: {node}\n{spec}");
    controller.write(&format!("host-{node}.yaml"), &text);
}

fn wait(controller: &Controller, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = |r: &Records| r.get("pvehost.pve1").is_some_and(&wanted);
    status::wait_for(&controller.manifests, PATIENCE, found).unwrap_or_else(|e| panic!("{e}\n{}", controller.log()))["pvehost.pve1"].clone()
}

#[tokio::test]
async fn a_sick_host_taints_its_node_over_restarts_of_everything_and_leaves_nothing() {
    let mut server = ApiServer::start().await;
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "pve1"},
        "spec": {"taints": [{"key": "example.org/dedicated", "effect": "NoSchedule"}]},
    });
    let made = server.admin.create(NODES, &node).await.unwrap();
    // The API server itself puts one on a Node that is new.
    let others = taints(&made);
    let kubelet = json!({"status": {"nodeInfo": {"kubeletVersion": "v1.20.0"}}});
    server.admin.merge(&format!("{NODES}/pve1/status"), &kubelet).await.unwrap();
    let extra = BTreeMap::from([("rest".to_owned(), health("yes"))]);
    let mut stack = Stack::start(StackOptions { extra, ..StackOptions::default() });
    let mut controller = stack.controller();
    controller.with("--kubeconfig", &server.admin_kubeconfig().display().to_string());
    host(&controller, stack.agent("pve1"), WISH);
    controller.start();
    let tainted = |n: &Value| taints(n).contains(&TAINT) && told(n).is_some_and(|(status, _)| status == "False");
    let node = server.admin.wait(NODES, "pve1", PATIENCE, tainted).await;
    assert!(others.iter().all(|t| taints(&node).contains(t)), "{node:#}");
    let told_all = |h: &Value| condition(h, "NodeInSync") == "True" && condition(h, "ClockInSync") == "True";
    let record = wait(&controller, |h| told_all(h) && condition(h, "ContainerdHealthy") == "False");
    assert_eq!((condition(&record, "Ready"), condition(&record, "Reachable")), ("True", "True"), "{record:#}");
    assert_eq!((condition(&record, "VersionSkew"), condition_reason(&record, "VersionSkew")), ("True", "KubeletTooOld"));
    assert_eq!(record["metadata"]["finalizers"], json!(["pvelet.dev/host"]));

    // The host becomes well while nobody can write it down.
    server.kill();
    wait(&controller, |h| condition_reason(h, "NodeInSync") == "ApiServerUnreachable");
    let agent = stack.agent("pve1");
    agent.stop();
    agent.extra.insert("rest".to_owned(), health("no"));
    agent.start();
    wait(&controller, |h| condition_reason(h, "ContainerdHealthy") == "NotApplicable");
    server.start_again().await;
    let well = |n: &Value| taints(n) == others && told(n) == Some(("True", "Healthy"));
    server.admin.wait(NODES, "pve1", PATIENCE, well).await;

    // The wish is withdrawn while there is no controller.
    wait(&controller, |h| condition(h, "NodeInSync") == "True");
    controller.kill();
    host(&controller, stack.agent("pve1"), "");
    controller.start();
    let node = server.admin.wait(NODES, "pve1", PATIENCE, |n| told(n).is_none()).await;
    assert_eq!(taints(&node), others);
    wait(&controller, |h| {
        h["status"]["kubernetesNode"].is_null() && condition(h, "NodeInSync").is_empty() && condition(h, "Ready") == "True"
    });
}
