//! The kinds of `pvelet.dev/v1alpha1`: what a manifest says, and what the controller writes beside it.

mod check;
mod condition;
mod disk;
mod disk_check;
mod disk_status;
mod host;
mod kubernetes_node;
mod machine;
mod machine_check;
mod machine_status;
mod manifest;
#[cfg(test)]
mod mistakes;
mod network;
mod network_check;
mod network_rules;
mod network_status;
mod quantity;
mod schema;
mod seconds;
mod tenant;

use std::{collections::BTreeMap, fmt, fmt::Debug};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use check::FieldError;
pub use condition::{Condition, ConditionStatus, set_condition};
pub use disk::{DiskFormat, DiskLimits, DiskSpec, ImageSpec, SnapshotSpec, claim};
pub use disk_status::{DiskPhase, DiskStatus};
pub use host::{Capacity, Host, HostResource, HostSpec, HostStatus, PveHost};
pub use kubernetes_node::{KubernetesNodeSpec, KubernetesNodeStatus, TaintWish};
pub use machine::{
    CloneMode, CloudInitSpec, DataKeyRef, DeletionPolicy, IpConfigSpec, Machine, MachineResource, MachineSpec, NicSpec, PveMachine,
    RecreatePolicy, RunPolicy, SourceSpec, UserDataRef,
};
pub use machine_status::{ActionKind, Attempt, Failure, MachineStatus, Phase, Success};
pub use manifest::{Manifest, Problem, parse};
pub use network::{
    BridgeSpec, HostSelector, InterfaceSpec, Network, NetworkResource, NetworkSpec, ProbeSpec, ProbeTarget, PveNetwork, VlanProtocol,
    VlanSpec, check_network,
};
pub use network_status::{NetworkAttempt, NetworkFailure, NetworkHost, NetworkHostState, NetworkStatus, NetworkVerb, ProbeStatus, Undo};
pub use quantity::Quantity;
pub use seconds::Seconds;
pub use tenant::{PveTenant, Tenant, TenantResource, TenantSpec, TenantStatus};

/// The value of `apiVersion` in every manifest.
pub const API_VERSION: &str = "pvelet.dev/v1alpha1";
/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// The tenant of an object that names none.
pub const DEFAULT_TENANT: &str = "default";
/// Annotation that, set to `"true"`, stops every action on the object.
pub const PAUSED: &str = "pvelet.dev/paused";
/// Annotation on an object being deleted that, set to `"true"`, lets go of a VM that can no longer be reached, or of a host's Node of
/// Kubernetes. On an object that has none, none is made: in a folder the annotation is given by a manifest that comes back.
pub const ABANDON: &str = "pvelet.dev/abandon";
/// Annotation that names the SMBIOS UUID of an existing VM, made by this controller, that the object takes over.
pub const ADOPT: &str = "pvelet.dev/adopt";
/// The finalizer that keeps a machine's record until its VM has been dealt with.
pub const MACHINE_FINALIZER: &str = "pvelet.dev/machine";
/// The finalizer that keeps a host's record until what was told on its Node of Kubernetes is taken away.
pub const HOST_FINALIZER: &str = "pvelet.dev/host";
/// The finalizer that keeps a network's record until the network is removed from its hosts.
pub const NETWORK_FINALIZER: &str = "pvelet.dev/network";
/// Annotation on a network whose change was undone: another value, whatever it is, lets it be tried again.
pub const RETRY: &str = "pvelet.dev/retry";

/// A kind: its name, the shape of its spec and of its status.
pub trait Kind: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// The value of `kind` in a manifest.
    const KIND: &'static str;
    /// The kind's name in paths of the Kubernetes API.
    const PLURAL: &'static str;
    /// Whether its objects are in namespaces. Those that are not count as the default namespace's inside the controller.
    const NAMESPACED: bool;
    /// What a manifest says.
    type Spec: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What the controller writes.
    type Status: Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What the shape alone cannot rule out: every mistake, with its path below the document.
    fn check(metadata: &Metadata, spec: &Self::Spec) -> Vec<FieldError>;
    /// The conditions, and the generation that they are about.
    fn told(status: &mut Self::Status) -> (&mut Vec<Condition>, &mut i64);
}

/// An object: metadata, spec, status.
#[derive(Debug, Clone, PartialEq)]
pub struct Object<K: Kind> {
    /// Name, uid, versions.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: K::Spec,
    /// What is.
    pub status: K::Status,
}

impl<K: Kind> Object<K> {
    /// The object's name as the store knows it.
    pub fn key(&self) -> ObjectKey {
        self.metadata.key()
    }

    /// Whether the object is to go.
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Whether an annotation is `"true"`.
    pub fn has_flag(&self, annotation: &str) -> bool {
        self.metadata.annotations.get(annotation).is_some_and(|v| v == "true")
    }
}

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The namespace; [`DEFAULT_NAMESPACE`] where the manifest names none.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectKey {
    /// A key in the default namespace.
    pub fn named(name: &str) -> Self {
        Self { namespace: DEFAULT_NAMESPACE.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace == DEFAULT_NAMESPACE { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Kind and key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// `PveHost`, `PveMachine`, `PveNetwork` or `PveTenant`.
    pub kind: String,
    /// Which one.
    pub key: ObjectKey,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

/// Kubernetes' object metadata, as far as it is used. A manifest sets name, namespace, labels and annotations; the rest is the store's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// A DNS name.
    pub name: String,
    /// A DNS label; absent for `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// A UUID given once, when the object is first seen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Grows by one with each change of the spec, from 1.
    #[serde(default)]
    pub generation: i64,
    /// Changes with each change of the object; a write that carries an older one is refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// When the object was first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub creation_timestamp: Option<Timestamp>,
    /// When its removal was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub deletion_timestamp: Option<Timestamp>,
    /// Who must agree before it goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// For selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For people and tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    /// The object's name as the store knows it.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { namespace: self.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()), name: self.name.clone() }
    }
}
