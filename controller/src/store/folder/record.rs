//! One object's record, as it lies in its status file.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::super::StoreError;
use crate::kind::{API_VERSION, DEFAULT_NAMESPACE, Kind, Manifest, Metadata, Object, ObjectRef};

/// How the names of status files end.
pub(super) const SUFFIX: &str = ".status.yaml";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Record {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) metadata: Metadata,
    /// The manifest file it was last found in.
    pub(super) source: String,
    pub(super) spec: Value,
    #[serde(default)]
    pub(super) status: Value,
}

impl Record {
    pub(super) fn new(manifest: Manifest, source: &str, resource_version: String) -> Self {
        let namespace = Some(manifest.id.key.namespace).filter(|n| n != DEFAULT_NAMESPACE);
        Self {
            api_version: API_VERSION.to_owned(),
            kind: manifest.id.kind,
            metadata: Metadata {
                name: manifest.id.key.name,
                namespace,
                uid: Uuid::new_v4().to_string(),
                generation: 1,
                resource_version,
                creation_timestamp: Some(Timestamp::now()),
                labels: manifest.labels,
                annotations: manifest.annotations,
                ..Metadata::default()
            },
            source: source.to_owned(),
            spec: manifest.spec,
            status: Value::Null,
        }
    }

    pub(super) fn id(&self) -> ObjectRef {
        ObjectRef { kind: self.kind.clone(), key: self.metadata.key() }
    }

    /// The record with what the manifest says now; nothing when it says the same.
    pub(super) fn with_manifest(&self, manifest: &Manifest, source: &str) -> Option<Self> {
        let mut new = self.clone();
        new.metadata.labels.clone_from(&manifest.labels);
        new.metadata.annotations.clone_from(&manifest.annotations);
        source.clone_into(&mut new.source);
        if self.spec != manifest.spec {
            new.spec = manifest.spec.clone();
            new.metadata.generation += 1;
        }
        (new != *self).then_some(new)
    }

    pub(super) fn object<K: Kind>(&self) -> Result<Object<K>, StoreError> {
        let damaged = |e: serde_json::Error| StoreError::Damaged { path: PathBuf::from(file_name(&self.id())), problem: e.to_string() };
        let status =
            if self.status.is_null() { K::Status::default() } else { serde_json::from_value(self.status.clone()).map_err(damaged)? };
        Ok(Object { metadata: self.metadata.clone(), spec: serde_json::from_value(self.spec.clone()).map_err(damaged)?, status })
    }
}

/// `pvemachine.web-1.status.yaml`; with a namespace other than `default`: `pvemachine.<namespace>_web-1.status.yaml` (no name has a `_`).
pub(super) fn file_name(id: &ObjectRef) -> String {
    let kind = id.kind.to_ascii_lowercase();
    if id.key.namespace == DEFAULT_NAMESPACE {
        format!("{kind}.{}{SUFFIX}", id.key.name)
    } else {
        format!("{kind}.{}_{}{SUFFIX}", id.key.namespace, id.key.name)
    }
}

pub(super) fn to_value<T: Serialize>(value: &T) -> Result<Value, StoreError> {
    serde_json::to_value(value).map_err(|e| StoreError::Damaged { path: PathBuf::new(), problem: e.to_string() })
}
