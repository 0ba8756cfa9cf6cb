//! User data from Secrets and ConfigMaps: with the rights that the chart gives, and told to nobody but the host.

use base64::{Engine, engine::general_purpose::STANDARD};
use pvelet_tests::{
    kubernetes::site::{MACHINES, Site, allow_more},
    status::{condition, condition_field, condition_reason},
};
use serde_json::{Value, json};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// A word that stands nowhere else.
const SECRET: &str = "correct-horse-battery";

fn user_data(from: &str, name: &str, key: &str) -> Value {
    json!({"cloudInit": {"userData": {from: {"name": name, "key": key}}}})
}

fn secret(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

/// Waits for a machine that is not made for this reason, and returns what it says.
async fn refused(site: &Site, name: &str, reason: &str) -> String {
    let machine = site.wait(name, |m| condition_reason(m, "Ready") == reason).await;
    condition_field(&machine, "Ready", "message").to_owned()
}

/// No one of these has the secret, plain or as an API shows it.
fn has_no_secret(what: &str, text: &str) {
    for form in [SECRET.to_owned(), STANDARD.encode(SECRET)] {
        assert!(!text.contains(&form), "{what} has the secret: {text}");
    }
}

#[tokio::test]
async fn a_machine_waits_for_the_right_and_the_secret_and_tells_nobody_what_it_holds() {
    let mut site = Site::one().await;
    let mut controller = site.controller("lab", "a").await;
    controller.start_with(&[("PVELET_LOG", "debug")]).unwrap();
    site.machine("web-1", user_data("secretRef", "web", "worker")).await;
    let told = refused(&site, "web-1", "UserDataForbidden").await;
    for part in ["Secret default/web", "chart's value userData", "namespace: default", "secrets"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    allow_more(site.admin(), &json!({"userData": [{"namespace": "default", "secrets": ["web"]}]})).await;
    let told = refused(&site, "web-1", "UserDataNotFound").await;
    assert!(told.contains("Secret default/web does not exist"), "{told}");
    site.admin().create(SECRETS, &secret("web", &json!({"other": SECRET}))).await.unwrap();
    let told = refused(&site, "web-1", "UserDataKeyNotFound").await;
    assert!(told.contains("worker"), "{told}");
    assert_eq!((site.vms().await.len(), site.stack.snippets("pve1").len()), (0, 0), "nothing is made without it");

    let text = format!("#cloud-config\npassword: {SECRET}\n");
    site.admin().merge(&format!("{SECRETS}/web"), &json!({"stringData": {"worker": text}})).await.unwrap();
    site.wait("web-1", |m| condition(m, "Ready") == "True").await;
    let snippets = site.stack.snippets("pve1");
    assert_eq!(snippets.values().collect::<Vec<_>>(), [&text], "it is on the host as it is in the Secret");

    // A Secret that the chart's value does not name stays out of reach.
    site.admin().create(SECRETS, &secret("other", &json!({"worker": SECRET}))).await.unwrap();
    site.machine("web-2", user_data("secretRef", "other", "worker")).await;
    refused(&site, "web-2", "UserDataForbidden").await;

    // Every object that is told of, with what is kept about its fields; and every log.
    for of in [MACHINES, "/apis/pvelet.dev/v1alpha1/pvehosts", "/apis/events.k8s.io/v1/events", "/apis/coordination.k8s.io/v1/leases"] {
        let all = site.admin().get(of).await.unwrap();
        assert!(!all["items"].as_array().unwrap().is_empty(), "{of}");
        has_no_secret(of, &all.to_string());
    }
    has_no_secret("the controller's log", &controller.log());
    has_no_secret("the agent's log", &site.stack.agent("pve1").log());
}

const TEXT: &str = "#cloud-config\n";
const BYTES: &str = "#!/bin/sh\n\0\n";

#[tokio::test]
async fn a_config_map_gives_text_and_bytes_and_what_cannot_be_used_is_told() {
    let site = Site::one().await;
    allow_more(site.admin(), &json!({"userData": [{"namespace": "default"}]})).await;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"},
        "data": {"text": TEXT, "empty": "", "large": "x".repeat(512 * 1024 + 1)},
        "binaryData": {"bytes": STANDARD.encode(BYTES)},
    });
    site.admin().create(CONFIG_MAPS, &map).await.unwrap();
    let mut controller = site.controller("lab", "a").await;
    controller.start();
    for key in ["text", "bytes", "empty", "large"] {
        site.machine(key, user_data("configMapRef", "web", key)).await;
    }
    site.machine("absent", user_data("configMapRef", "nothing", "text")).await;
    for (name, reason, part) in [
        ("empty", "UserDataEmpty", "ConfigMap default/web"),
        ("large", "UserDataTooLarge", "524289"),
        ("absent", "UserDataNotFound", "ConfigMap default/nothing does not exist"),
    ] {
        let told = refused(&site, name, reason).await;
        assert!(told.contains(part), "{name}: {told}");
    }
    for name in ["text", "bytes"] {
        site.wait(name, |m| condition(m, "Ready") == "True").await;
    }
    let mut snippets: Vec<String> = site.stack.snippets("pve1").into_values().collect();
    snippets.sort();
    assert_eq!(snippets, [BYTES, TEXT]);
    assert_eq!(site.vms().await, ["bytes", "text"]);
}
