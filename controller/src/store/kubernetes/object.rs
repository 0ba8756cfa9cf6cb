//! Objects of the API as the controller knows them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    ResourceExt,
    api::{ApiResource, DynamicObject},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::StoreError;
use crate::kind::{API_VERSION, Kind, Metadata, Object, ObjectKey, ObjectRef};

/// How the API is asked for a kind.
pub(super) fn resource<K: Kind>() -> ApiResource {
    let (group, version) = API_VERSION.split_once('/').unwrap_or(("", API_VERSION));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        plural: K::PLURAL.to_owned(),
    }
}

/// The name of an object.
pub(super) fn key(raw: &DynamicObject) -> ObjectKey {
    let name = raw.name_any();
    raw.namespace().map_or_else(|| ObjectKey::named(&name), |namespace| ObjectKey { namespace, name: name.clone() })
}

/// Kind and name.
pub(super) fn about<K: Kind>(key: &ObjectKey) -> ObjectRef {
    ObjectRef { kind: K::KIND.to_owned(), key: key.clone() }
}

/// The number of an object's version: larger is newer, within one kind.
pub(super) fn version(raw: &DynamicObject) -> u64 {
    raw.resource_version().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// An object, typed. The error names the field.
pub(super) fn read<K: Kind>(raw: DynamicObject) -> Result<Object<K>, String> {
    let mut data = raw.data;
    let spec = typed(data["spec"].take(), "spec")?.ok_or("spec: missing")?;
    let status = typed(data["status"].take(), "status")?.unwrap_or_default();
    let of = raw.metadata;
    let metadata = Metadata {
        name: of.name.unwrap_or_default(),
        namespace: of.namespace,
        uid: of.uid.unwrap_or_default(),
        generation: of.generation.unwrap_or(0),
        resource_version: of.resource_version.unwrap_or_default(),
        creation_timestamp: of.creation_timestamp.as_ref().and_then(time),
        deletion_timestamp: of.deletion_timestamp.as_ref().and_then(time),
        finalizers: of.finalizers.unwrap_or_default(),
        labels: of.labels.unwrap_or_default(),
        annotations: of.annotations.unwrap_or_default(),
    };
    Ok(Object { metadata, spec, status })
}

/// A time, in the version of the library that the rest of the controller uses.
fn time(time: &Time) -> Option<Timestamp> {
    Timestamp::from_nanosecond(time.0.as_nanosecond()).ok()
}

fn typed<T: DeserializeOwned>(value: Value, at: &str) -> Result<Option<T>, String> {
    if value.is_null() {
        return Ok(None);
    }
    serde_path_to_error::deserialize(value).map(Some).map_err(|e| match e.path().to_string().as_str() {
        "." => format!("{at}: {}", e.inner()),
        path => format!("{at}.{path}: {}", e.inner()),
    })
}

/// What is sent to have this status. The version and the uid make the API server refuse it once somebody changed the object, or there is
/// another one of that name.
pub(super) fn status_patch<K: Kind>(object: &Object<K>) -> Result<Value, StoreError> {
    Ok(json!({
        "apiVersion": API_VERSION,
        "kind": K::KIND,
        "metadata": precondition(&object.metadata),
        "status": status(object)?,
    }))
}

/// The status as it is sent.
pub(super) fn status<K: Kind>(object: &Object<K>) -> Result<Value, StoreError> {
    serde_json::to_value(&object.status)
        .map_err(|e| StoreError::Api { what: format!("write the status of {}", about::<K>(&object.key())), message: e.to_string() })
}

/// What is sent to have these finalizers, under the same conditions.
pub(super) fn finalizers_patch(metadata: &Metadata, finalizers: &[String]) -> Value {
    let mut precondition = precondition(metadata);
    precondition["finalizers"] = json!(finalizers);
    json!({ "metadata": precondition })
}

fn precondition(metadata: &Metadata) -> Value {
    let mut value = json!({"name": metadata.name, "uid": metadata.uid, "resourceVersion": metadata.resource_version});
    if let Some(namespace) = &metadata.namespace {
        value["namespace"] = json!(namespace);
    }
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kind::{Host, Machine};

    fn raw(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_object_is_read_with_its_metadata_and_an_empty_status() {
        let object = raw(json!({
            "apiVersion": API_VERSION, "kind": "PveMachine",
            "metadata": {
                "name": "web-1", "namespace": "shop", "uid": "u", "generation": 3, "resourceVersion": "77",
                "creationTimestamp": "2026-01-02T03:04:05Z", "deletionTimestamp": "2026-01-03T03:04:05Z", "finalizers": ["a"],
                "labels": {"l": "1"}, "annotations": {"n": "2"}, "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {"source": {"template": 100}},
        }));
        assert_eq!((key(&object).to_string(), version(&object)), ("shop/web-1".to_owned(), 77));
        let machine = read::<Machine>(object).unwrap();
        assert_eq!((machine.metadata.generation, machine.is_deleting(), machine.status.attempt), (3, true, 0));
        assert_eq!(machine.metadata.creation_timestamp.unwrap().to_string(), "2026-01-02T03:04:05Z");
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        let host = |spec: Value, status: Value| {
            let value = json!({"apiVersion": API_VERSION, "kind": "PveHost", "metadata": {"name": "pve1"}, "spec": spec, "status": status});
            read::<Host>(raw(value)).unwrap_err()
        };
        let good = json!({"address": "pve1:7443", "cluster": "lab", "node": "pve1"});
        assert!(host(Value::Null, Value::Null).contains("spec: missing"));
        let mut bad = good.clone();
        bad["kubernetesNode"] = json!({"taint": "Sometimes"});
        assert!(host(bad, Value::Null).starts_with("spec.kubernetesNode.taint: unknown variant `Sometimes`"));
        assert!(host(good, json!({"of": "tomorrow"})).starts_with("status.of: unknown field"));
    }

    #[test]
    fn an_object_without_a_namespace_counts_as_the_default_ones() {
        let value = json!({"apiVersion": API_VERSION, "kind": "PveHost", "metadata": {"name": "pve1"}, "spec": {}});
        assert_eq!(key(&raw(value)), ObjectKey::named("pve1"));
    }
}
