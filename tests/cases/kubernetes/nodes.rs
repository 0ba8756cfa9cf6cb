//! Nodes of a real API server: our condition and our taint come and go, and nothing else is touched.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use pvelet_controller::{
    kubernetes,
    nodes::{CONDITION, Effect, KubernetesNodes, Minor, NodeCondition, NodeView, Nodes, NodesError, Sight, Skew, TAINT},
};
use pvelet_tests::kubernetes::{ApiServer, Kube, PATIENCE, programs};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

const NODES: &str = "/api/v1/nodes";
const RBAC: &str = include_str!("../../../docs/examples/kubernetes-rbac.yaml");

/// An API server, and the controller's view of it under the role that the example gives.
struct World {
    server: ApiServer,
    nodes: KubernetesNodes,
    changes: mpsc::UnboundedReceiver<Option<String>>,
}

impl World {
    async fn start() -> Self {
        let server = ApiServer::start().await;
        let kubeconfig = service_account(&server).await;
        let nodes = KubernetesNodes::new(kubernetes::of_kubeconfig(&kubeconfig).await.unwrap());
        let changes = nodes.changes().unwrap();
        Self { server, nodes, changes }
    }

    /// A Node as a kubelet registers it, with a condition and a taint of others.
    async fn register(&self, name: &str, kubelet: &str) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"taints": [{"key": "example.org/dedicated", "value": "storage", "effect": "NoSchedule"}]},
        });
        self.server.admin.create(NODES, &node).await.unwrap();
        let condition = json!({
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "all is well",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let status = json!({"status": {"conditions": [condition], "nodeInfo": {"kubeletVersion": kubelet}}});
        self.server.admin.merge(&format!("{NODES}/{name}/status"), &status).await.unwrap();
    }

    async fn get(&self, name: &str) -> Value {
        self.server.admin.get(&format!("{NODES}/{name}")).await.unwrap()
    }

    /// Waits until what is known of a Node is as wanted.
    async fn until(&mut self, name: &str, wanted: impl Fn(&Sight) -> bool) -> Sight {
        let seen = timeout(PATIENCE, async {
            loop {
                let sight = self.nodes.node(name);
                if wanted(&sight) {
                    return sight;
                }
                self.changes.recv().await.unwrap();
            }
        });
        seen.await.unwrap_or_else(|_| panic!("{name} is {:?}", self.nodes.node(name)))
    }

    async fn seen(&mut self, name: &str, wanted: impl Fn(&NodeView) -> bool) -> NodeView {
        match self.until(name, |s| matches!(s, Sight::Seen(v) if wanted(v))).await {
            Sight::Seen(view) => view,
            other => panic!("{other:?}"),
        }
    }
}

/// The kubeconfig of a ServiceAccount that has what the example gives, and no more.
async fn service_account(server: &ApiServer) -> PathBuf {
    let object = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    server.admin.create("/api/v1/namespaces", &object("Namespace", "pvelet")).await.unwrap();
    server.admin.create("/api/v1/namespaces/pvelet/serviceaccounts", &object("ServiceAccount", "pvelet-controller")).await.unwrap();
    for document in serde_norway::Deserializer::from_str(RBAC) {
        let object = Value::deserialize(document).unwrap();
        let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
        server.admin.create(&format!("/apis/rbac.authorization.k8s.io/v1/{plural}"), &object).await.unwrap();
    }
    let user = server.service_account("pvelet", "pvelet-controller").await.unwrap();
    // The server learns of a role by a watch of its own: a moment later.
    let client = server.client(&user);
    timeout(PATIENCE, async { while client.get(NODES).await.is_err() {} }).await.unwrap();
    server.kubeconfig(&user)
}

fn unhealthy(message: &str) -> NodeCondition {
    NodeCondition { status: "False", reason: "ContainerdRuntimeType".into(), message: message.into() }
}

fn conditions(node: &Value) -> BTreeMap<String, Value> {
    let all = node["status"]["conditions"].as_array().unwrap();
    all.iter().map(|c| (c["type"].as_str().unwrap().to_owned(), c.clone())).collect()
}

/// `key:effect` of each taint. The API server itself puts one on a Node that is new.
fn taints(node: &Value) -> Vec<String> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let all = node["spec"]["taints"].as_array().into_iter().flatten();
    let mut all: Vec<_> = all.map(|t| format!("{}:{}", text(&t["key"]), text(&t["effect"]))).collect();
    all.sort();
    all
}

/// The same with one more.
fn and(taints: &[String], one: &str) -> Vec<String> {
    let mut all = taints.to_vec();
    all.push(one.to_owned());
    all.sort();
    all
}

#[tokio::test]
async fn a_condition_and_a_taint_come_and_go_and_those_of_others_stay() {
    let mut world = World::start().await;
    world.register("pve1", "v1.34.2").await;
    let before = world.get("pve1").await;
    let view = world.seen("pve1", |v| !v.kubelet.is_empty()).await;
    assert_eq!(view, NodeView { condition: None, taints: vec![], kubelet: "v1.34.2".into() });

    world.nodes.set_taint("pve1", Some(Effect::NoSchedule)).await.unwrap();
    world.nodes.set_condition("pve1", Some(&unhealthy("line 12"))).await.unwrap();
    let node = world.get("pve1").await;
    let ours = conditions(&node)[CONDITION].clone();
    assert_eq!((&ours["status"], &ours["reason"], &ours["message"]), (&json!("False"), &json!("ContainerdRuntimeType"), &json!("line 12")));
    assert_eq!(conditions(&node)["Ready"], conditions(&before)["Ready"]);
    assert_eq!(taints(&node), and(&taints(&before), &format!("{TAINT}:NoSchedule")));
    let view = world.seen("pve1", |v| v.condition.is_some() && !v.taints.is_empty()).await;
    assert_eq!(view.condition.unwrap().message, "line 12");

    // Another text for the same: the transition stays. Writing what is so already changes nothing.
    world.nodes.set_condition("pve1", Some(&unhealthy("line 13"))).await.unwrap();
    let again = conditions(&world.get("pve1").await)[CONDITION].clone();
    assert_eq!((&again["message"], &again["lastTransitionTime"]), (&json!("line 13"), &ours["lastTransitionTime"]));
    let version = world.get("pve1").await["metadata"]["resourceVersion"].clone();
    world.nodes.set_taint("pve1", Some(Effect::NoSchedule)).await.unwrap();
    assert_eq!(world.get("pve1").await["metadata"]["resourceVersion"], version);

    world.nodes.set_taint("pve1", Some(Effect::NoExecute)).await.unwrap();
    assert_eq!(taints(&world.get("pve1").await), and(&taints(&before), &format!("{TAINT}:NoExecute")));
    let value = world.get("pve1").await["spec"]["taints"].as_array().unwrap().iter().find(|t| t["value"] == "storage").cloned();
    assert!(value.is_some(), "the value of another's taint is lost");

    for _ in 0..2 {
        world.nodes.set_taint("pve1", None).await.unwrap();
        world.nodes.set_condition("pve1", None).await.unwrap();
    }
    let after = world.get("pve1").await;
    assert_eq!((&after["spec"], &after["status"]), (&before["spec"], &before["status"]));
    world.seen("pve1", |v| v.condition.is_none() && v.taints.is_empty()).await;
}

#[tokio::test]
async fn what_somebody_else_does_to_a_node_is_seen_and_told() {
    let mut world = World::start().await;
    world.until("pve1", |s| *s == Sight::Absent).await;
    world.register("pve1", "v1.34.2").await;
    world.seen("pve1", |_| true).await;
    world.nodes.set_taint("pve1", Some(Effect::NoSchedule)).await.unwrap();
    // A person takes our taint away.
    world.server.admin.merge(&format!("{NODES}/pve1"), &json!({"spec": {"taints": null}})).await.unwrap();
    world.seen("pve1", |v| v.taints.is_empty()).await;
    world.server.admin.delete(&format!("{NODES}/pve1")).await.unwrap();
    world.until("pve1", |s| *s == Sight::Absent).await;
    assert_eq!(world.nodes.set_condition("pve1", Some(&unhealthy(""))).await, Err(NodesError::Absent("pve1".into())));
    assert_eq!(world.nodes.set_taint("pve1", None).await, Err(NodesError::Absent("pve1".into())));
}

/// Puts a taint of its own on a Node and takes it away again, as often as asked, as another controller does.
async fn another_controller(kube: Kube, times: u32) {
    for i in 0..times {
        loop {
            let node = kube.get(&format!("{NODES}/pve1")).await.unwrap();
            let mut all = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
            all.retain(|t| t["key"] != "example.org/other");
            if i % 2 == 0 {
                all.push(json!({"key": "example.org/other", "effect": "NoSchedule"}));
            }
            let patch = json!({"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": all}});
            match kube.merge(&format!("{NODES}/pve1"), &patch).await {
                Ok(_) => break,
                Err(e) => assert_eq!(e.code, 409, "{e}"),
            }
        }
    }
}

#[tokio::test]
async fn two_who_write_taints_at_the_same_time_lose_none() {
    let world = World::start().await;
    world.register("pve1", "v1.34.2").await;
    let before = taints(&world.get("pve1").await);
    // An odd number: in the end it stands.
    let other = tokio::spawn(another_controller(world.server.admin.clone(), 41));
    for i in 0..41 {
        let effect = (i % 2 == 0).then_some(Effect::NoSchedule);
        world.nodes.set_taint("pve1", effect).await.unwrap();
        assert_eq!(taints(&world.get("pve1").await).iter().any(|t| t.starts_with(TAINT)), effect.is_some());
    }
    other.await.unwrap();
    let both = and(&and(&before, "example.org/other:NoSchedule"), &format!("{TAINT}:NoSchedule"));
    assert_eq!(taints(&world.get("pve1").await), both);
}

#[tokio::test]
async fn an_api_server_that_goes_and_comes_back_is_told_and_written_again() {
    let mut world = World::start().await;
    world.register("pve1", "v1.34.2").await;
    world.seen("pve1", |_| true).await;
    world.nodes.set_taint("pve1", Some(Effect::NoSchedule)).await.unwrap();
    world.server.kill();
    world.until("pve1", |s| matches!(s, Sight::Unknown(_))).await;
    let error = world.nodes.set_condition("pve1", Some(&unhealthy("m"))).await.unwrap_err();
    assert!(matches!(error, NodesError::Failed(_)), "{error}");
    assert!(matches!(world.nodes.set_taint("pve1", None).await, Err(NodesError::Failed(_))));
    world.server.start_again().await;
    let view = world.seen("pve1", |_| true).await;
    assert_eq!(view.taints, ["NoSchedule"], "nothing was lost, nothing was written");
    world.nodes.set_condition("pve1", Some(&unhealthy("m"))).await.unwrap();
    world.nodes.set_taint("pve1", None).await.unwrap();
    world.seen("pve1", |v| v.taints.is_empty() && v.condition.is_some()).await;
    world.server.freeze();
    let begun = std::time::Instant::now();
    let error = world.nodes.set_taint("pve1", Some(Effect::NoExecute)).await.unwrap_err();
    world.server.thaw();
    assert_eq!(error, NodesError::Failed("no answer within 10 s".into()));
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn the_skew_between_kubelet_and_api_server_is_found() {
    let mut world = World::start().await;
    let server = Minor::parse(&programs().version).unwrap();
    let kubelet = |back: u32| format!("v1.{}.0", server.minor - back);
    world.register("old", &kubelet(4)).await;
    world.register("right", &kubelet(3)).await;
    world.register("new", &format!("v1.{}.0", server.minor + 1)).await;
    for (name, want) in [("old", Skew::TooOld { allowed: 3 }), ("right", Skew::Supported), ("new", Skew::Newer)] {
        let view = world.seen(name, |v| !v.kubelet.is_empty()).await;
        assert_eq!(world.nodes.server(), Some(server));
        assert_eq!(Skew::of(Minor::parse(&view.kubelet).unwrap(), server), want, "{name}");
    }
}

#[tokio::test]
async fn who_may_not_do_it_is_told_what_is_missing() {
    let server = ApiServer::start().await;
    let stranger = server.kubeconfig(&server.user("stranger", None));
    let nodes = KubernetesNodes::new(kubernetes::of_kubeconfig(&stranger).await.unwrap());
    let mut changes = nodes.changes().unwrap();
    let told = timeout(PATIENCE, async {
        loop {
            match nodes.node("pve1") {
                Sight::Forbidden(why) => return why,
                _ => drop(changes.recv().await.unwrap()),
            }
        }
    });
    assert!(told.await.unwrap().contains("cannot list resource"));
    let error = nodes.set_taint("pve1", Some(Effect::NoSchedule)).await.unwrap_err();
    assert!(matches!(&error, NodesError::Forbidden(_)), "{error}");
    assert!(error.to_string().contains("docs/examples/kubernetes-rbac.yaml"), "{error}");
    let missing = kubernetes::of_kubeconfig(&server.folder().join("nothing")).await.err().unwrap();
    assert!(missing.contains("nothing"), "{missing}");
}
