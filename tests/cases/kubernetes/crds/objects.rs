//! Objects that are stored: defaults, what must stay as it is, and a status of which nothing is lost.

use pvelet_controller::{
    crd,
    kind::{HostStatus, MachineStatus, NetworkStatus, TenantStatus},
};
use pvelet_tests::kubernetes::Kube;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{collection, server};

async fn create(kube: &Kube, kind: &str, name: &str, spec: Value) -> Value {
    let object = json!({"apiVersion": "pvelet.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    kube.create(&collection(kind), &object).await.unwrap()
}

async fn set_status(kube: &Kube, kind: &str, name: &str, status: &Value) -> Value {
    let path = format!("{}/{name}/status?fieldValidation=Strict", collection(kind));
    kube.merge(&path, &json!({"status": status})).await.unwrap()
}

#[tokio::test]
async fn what_is_left_out_is_filled_in() {
    let server = server().await;
    let kube = &server.admin;
    let disk = json!({"name": "data", "size": "1Gi", "storage": "fast", "limits": {"iopsRead": 5}});
    let machine =
        create(kube, "PveMachine", "a", json!({"source": {"template": 9000}, "disks": [disk], "nics": [{"bridge": "vmbr0"}]})).await;
    assert_eq!(
        machine["spec"],
        json!({
            "source": {"template": 9000}, "cloneMode": "linked", "runPolicy": "RerunOnFailure", "deletionPolicy": "Delete",
            "recreatePolicy": "Never", "nics": [{"bridge": "vmbr0", "firewall": false}],
            "disks": [{
                "name": "data", "size": "1Gi", "storage": "fast", "iothread": false, "discard": false, "ssd": false, "readOnly": false,
                "limits": {"iopsRead": 5, "iopsWrite": 0, "mbpsRead": 0, "mbpsWrite": 0},
            }],
        })
    );
    assert_eq!(machine["metadata"]["generation"], 1);
    let host = create(kube, "PveHost", "a", json!({"address": "a:7443", "cluster": "lab", "node": "a", "kubernetesNode": {}})).await;
    assert_eq!(
        host["spec"],
        json!({
            "address": "a:7443", "cluster": "lab", "node": "a", "cordon": false, "maintenance": false, "reservedMemory": "1Gi", "cpuOvercommit": 4,
            "kubernetesNode": {"condition": true, "taint": "none", "groups": ["containerd", "kubelet"], "failedAfter": "30s", "wellAfter": "120s"},
        })
    );
    let spec =
        json!({"hosts": {"names": ["a"]}, "interfaces": [{"name": "e.7", "vlan": {"parent": "e", "id": 7}}, {"name": "b", "bridge": {}}]});
    let network = create(kube, "PveNetwork", "a", spec).await;
    assert_eq!(
        network["spec"],
        json!({
            "hosts": {"names": ["a"]}, "tenant": "default", "probe": {"enabled": true}, "deletionPolicy": "Delete",
            "interfaces": [{"name": "e.7", "vlan": {"parent": "e", "id": 7}}, {"name": "b", "bridge": {"vlanAware": false}}],
        })
    );
    // Nothing that is not known is stored, and of a status nothing is filled in.
    assert_eq!(set_status(kube, "PveMachine", "a", &json!({"phase": "Pending"})).await["status"], json!({"phase": "Pending"}));
}

#[tokio::test]
async fn a_tenant_can_be_corrected_until_something_was_made_for_it() {
    let server = server().await;
    let kube = &server.admin;
    create(kube, "PveMachine", "a", json!({"source": {"template": 9000}})).await;
    create(kube, "PveNetwork", "a", json!({"hosts": {"names": ["a"]}, "interfaces": [{"name": "b", "bridge": {}}]})).await;
    for kind in ["PveMachine", "PveNetwork"] {
        let path = format!("{}/a", collection(kind));
        let to = async |tenant: Value| kube.merge(&path, &json!({"spec": {"tenant": tenant}})).await;
        to(json!("team-b")).await.unwrap();
        to(json!("team-a")).await.unwrap();
        set_status(kube, kind, "a", &json!({"tenant": "team-a"})).await;
        let refused = to(json!("team-b")).await.unwrap_err();
        assert_eq!(refused.code, 422);
        assert!(refused.message.contains("spec.tenant") && refused.message.contains("leave spec.tenant as it is"), "{refused}");
        // Anything else can be changed still, and what is as it was made.
        kube.merge(&path, &json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
        to(json!("team-a")).await.unwrap();
        set_status(kube, kind, "a", &json!({"observedGeneration": 3})).await;
    }
    // One that was made for another tenant than its spec says now is not stuck.
    set_status(kube, "PveMachine", "a", &json!({"tenant": "team-c"})).await;
    let path = format!("{}/a", collection("PveMachine"));
    kube.merge(&path, &json!({"spec": {"cores": 2}})).await.unwrap();
    kube.merge(&path, &json!({"spec": {"tenant": "team-c"}})).await.unwrap();
    kube.merge(&path, &json!({"spec": {"tenant": null}})).await.unwrap();
}

/// Every field of a schema, as paths, with `[]` for entries.
fn fields(schema: &Value, at: &str, all: &mut Vec<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{at}.{name}");
        fields(property, &path, all);
        all.push(path);
    }
    if let Some(items) = schema.get("items") {
        fields(items, &format!("{at}[]"), all);
    }
}

/// The same of a value.
fn present(value: &Value, at: &str, all: &mut Vec<String>) {
    for (name, inner) in value.as_object().into_iter().flatten() {
        let path = format!("{at}.{name}");
        present(inner, &path, all);
        all.push(path);
    }
    for inner in value.as_array().into_iter().flatten() {
        present(inner, &format!("{at}[]"), all);
    }
}

/// What the type writes of a value in which no field is missing.
fn written<T: Serialize + DeserializeOwned>(kind: &str, given: &Value) -> Value {
    let crd = crd::all().into_iter().find(|c| c["spec"]["names"]["kind"] == kind).unwrap();
    let (mut wanted, mut found) = (Vec::new(), Vec::new());
    fields(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"], "", &mut wanted);
    let typed: T = serde_json::from_value(given[kind].clone()).unwrap_or_else(|e| panic!("{kind}: {e}"));
    let value = serde_json::to_value(&typed).unwrap();
    present(&value, "", &mut found);
    wanted.retain(|field| !found.contains(field));
    assert!(wanted.is_empty(), "{kind}: status.yaml gives no {wanted:?}");
    value
}

#[tokio::test]
async fn nothing_of_a_status_is_lost() {
    let server = server().await;
    let kube = &server.admin;
    // A status of each kind in which no field is missing.
    let given: Value = serde_norway::from_str(include_str!("status.yaml")).unwrap();
    let machine = written::<MachineStatus>("PveMachine", &given);
    let host = written::<HostStatus>("PveHost", &given);
    let network = written::<NetworkStatus>("PveNetwork", &given);
    let tenant = written::<TenantStatus>("PveTenant", &given);
    let time = "2026-01-02T03:04:05Z";
    create(kube, "PveMachine", "a", json!({"source": {"template": 9000}})).await;
    create(kube, "PveHost", "a", json!({"address": "a:7443", "cluster": "lab", "node": "a"})).await;
    create(kube, "PveNetwork", "a", json!({"hosts": {"names": ["a"]}, "interfaces": [{"name": "b", "bridge": {}}]})).await;
    create(kube, "PveTenant", "a", json!({})).await;
    for (kind, status) in [("PveMachine", machine), ("PveHost", host), ("PveNetwork", network), ("PveTenant", tenant)] {
        assert_eq!(set_status(kube, kind, "a", &status).await["status"], status, "{kind}");
        // What is a status is not set by who may write specs.
        let meddled = kube.merge(&format!("{}/a", collection(kind)), &json!({"status": {"observedGeneration": 9}})).await.unwrap();
        assert_eq!(meddled["status"], status, "{kind}");
        // Conditions are told apart by their type.
        let one = json!({
            "apiVersion": "pvelet.dev/v1alpha1", "kind": kind,
            "status": {"conditions": [{"type": "Extra", "status": "True", "reason": "R", "observedGeneration": 1, "lastTransitionTime": time}]},
        });
        let applied = kube.apply(&format!("{}/a/status", collection(kind)), "somebody", false, &one).await;
        let count = |object: &Value| object["status"]["conditions"].as_array().map(Vec::len);
        assert_eq!(applied.map(|o| count(&o)).unwrap(), Some(3), "{kind}");
    }
}
