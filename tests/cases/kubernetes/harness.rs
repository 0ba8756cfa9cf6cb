//! The harness itself: the API server is the real one, and comes back with its data whatever ends it.

use std::process::Command;

use pvelet_tests::kubernetes::{ApiServer, ControllerManager, Kube, PATIENCE, programs, soon};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": value}})
}

async fn value(kube: &Kube, name: &str) -> Value {
    kube.get(&format!("{CONFIG_MAPS}/{name}")).await.unwrap()["data"]["key"].clone()
}

#[tokio::test]
async fn api_servers_tell_the_version_that_was_built_and_do_not_share_anything() {
    let (one, two) = tokio::join!(ApiServer::start(), ApiServer::start());
    for server in [&one, &two] {
        let version = server.admin.get("/version").await.unwrap();
        assert_eq!(version["gitVersion"], programs().version.as_str());
        assert_eq!(version["major"], "1");
    }
    assert_ne!(one.address(), two.address());
    one.admin.create(CONFIG_MAPS, &config_map("here", "1")).await.unwrap();
    let missing = two.admin.get(&format!("{CONFIG_MAPS}/here")).await.unwrap_err();
    assert_eq!((missing.code, missing.reason.as_str()), (404, "NotFound"));
    // Each has its own CA: whoever may do everything on one is nobody on the other.
    let stranger = two.client(&one.user("kubernetes-admin", Some("system:masters")));
    assert_eq!(stranger.get(CONFIG_MAPS).await.unwrap_err().code, 401);
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart_a_kill_and_an_etcd_that_was_gone() {
    let mut server = ApiServer::start().await;
    server.admin.create(CONFIG_MAPS, &config_map("kept", "1")).await.unwrap();
    let address = server.address();
    server.restart().await;
    assert_eq!(server.address(), address);
    assert_eq!(value(&server.admin, "kept").await, "1");
    server.kill();
    server.start_again().await;
    assert_eq!(value(&server.admin, "kept").await, "1");

    server.etcd.stop();
    let refused = server.admin.merge(&format!("{CONFIG_MAPS}/kept?timeout=1s"), &json!({"data": {"key": "2"}})).await.unwrap_err();
    // Where its own deadline and the request's meet, the server ends the connection without an answer.
    assert!(refused.code >= 500 || refused.code == 0, "{refused}");
    assert!(server.admin.text("/readyz").await.is_err());
    server.etcd.start_again();
    server.ready(PATIENCE).await;
    assert_eq!(value(&server.admin, "kept").await, "1");
    server.admin.merge(&format!("{CONFIG_MAPS}/kept"), &json!({"data": {"key": "3"}})).await.unwrap();
    server.etcd.kill();
    server.etcd.start_again();
    server.ready(PATIENCE).await;
    assert_eq!(value(&server.admin, "kept").await, "3");
}

#[tokio::test]
async fn a_service_account_may_do_what_its_role_says_and_nothing_else() {
    let server = ApiServer::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}});
    server.admin.create("/api/v1/namespaces/default/serviceaccounts", &account).await.unwrap();
    let reader = server.client(&server.service_account("default", "reader").await.unwrap());
    let refused = reader.get(CONFIG_MAPS).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (403, "Forbidden"));
    assert!(refused.message.contains("system:serviceaccount:default:reader"), "{refused}");

    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}],
    });
    server.admin.create(&format!("{rbac}/roles"), &role).await.unwrap();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}],
    });
    server.admin.create(&format!("{rbac}/rolebindings"), &binding).await.unwrap();
    // The server learns of a role by a watch of its own: a moment later.
    soon("the role counts", async || reader.get(CONFIG_MAPS).await.is_ok()).await;
    assert_eq!(reader.create(CONFIG_MAPS, &config_map("new", "1")).await.unwrap_err().code, 403);
}

#[tokio::test]
async fn a_wait_goes_on_over_a_restart_and_a_frozen_server_answers_once_it_is_thawed() {
    let mut server = ApiServer::start().await;
    let object = server.admin.create(CONFIG_MAPS, &config_map("seen", "1")).await.unwrap();
    let version = object["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = server.admin.watch(CONFIG_MAPS, version).await.unwrap();
    server.admin.merge(&format!("{CONFIG_MAPS}/seen"), &json!({"data": {"key": "2"}})).await.unwrap();
    let (kind, changed) = events.next().await.unwrap();
    assert_eq!((kind.as_str(), &changed["data"]["key"]), ("MODIFIED", &json!("2")));

    let kube = server.admin.clone();
    let waiting = tokio::spawn(async move { kube.wait(CONFIG_MAPS, "seen", PATIENCE, |o| o["data"]["key"] == "3").await });
    server.kill();
    server.start_again().await;
    assert!(events.next().await.is_none(), "a watch ends with its server");
    server.freeze();
    let kube = server.admin.clone();
    let change = tokio::spawn(async move { kube.merge(&format!("{CONFIG_MAPS}/seen"), &json!({"data": {"key": "3"}})).await });
    server.thaw();
    change.await.unwrap().unwrap();
    assert_eq!(waiting.await.unwrap()["data"]["key"], "3");
}

#[tokio::test]
async fn the_controller_manager_empties_a_namespace_that_ends_and_collects_what_has_no_owner() {
    let server = ApiServer::start().await;
    let _manager = ControllerManager::start(&server, "*", &[]).await;
    // Made by the controller manager.
    server.admin.wait("/api/v1/namespaces/default/serviceaccounts", "default", PATIENCE, |_| true).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "short"}});
    server.admin.create("/api/v1/namespaces", &namespace).await.unwrap();
    let owner = server.admin.create("/api/v1/namespaces/short/configmaps", &config_map("owner", "1")).await.unwrap();
    let mut owned = config_map("owned", "1");
    owned["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}]);
    server.admin.create("/api/v1/namespaces/short/configmaps", &owned).await.unwrap();
    server.admin.delete("/api/v1/namespaces/short/configmaps/owner").await.unwrap();
    server.admin.wait_gone("/api/v1/namespaces/short/configmaps", "owned", PATIENCE).await;
    server.admin.delete("/api/v1/namespaces/short").await.unwrap();
    server.admin.wait_gone("/api/v1/namespaces", "short", PATIENCE).await;
}

#[tokio::test]
async fn kubectl_reads_the_kubeconfig_that_is_written() {
    let server = ApiServer::start().await;
    let out = Command::new(programs().path("kubectl"))
        .args(["get", "namespaces", "--output=name", "--kubeconfig"])
        .arg(server.admin_kubeconfig())
        .env("HOME", server.folder())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stdout).lines().any(|line| line == "namespace/default"));
}
