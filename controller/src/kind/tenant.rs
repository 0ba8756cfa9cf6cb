//! `PveTenant`: which namespaces of Kubernetes are a tenant's.

use kube::CustomResource;
use pvelet_proto::id;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, FieldError, Kind, Metadata, Object, check::Checker, schema};

/// More namespaces than a cluster has.
const MAX_NAMESPACES: usize = 1000;

/// The kind `PveTenant`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant;

/// A tenant, by name. Only who may write cluster-scoped objects says whose a namespace is; nobody inside the namespace can.
pub type PveTenant = Object<Tenant>;

/// What is a tenant's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "pvelet.dev",
    version = "v1alpha1",
    kind = "PveTenant",
    root = "TenantResource",
    doc = "The namespaces whose machines are a tenant's. The object's name is the tenant's.",
    status = "TenantStatus",
    shortname = "pvt",
    category = "pvelet",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Namespaces", type_ = "string", json_path = ".spec.namespaces"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct TenantSpec {
    /// The namespaces, up to 1000. A namespace is one tenant's at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<schema::Label>", length(max = 1000), extend("x-kubernetes-list-type" = "set"))]
    pub namespaces: Vec<String>,
}

/// What is known of the tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TenantStatus {
    /// The generation of the spec this was found for.
    #[serde(default)]
    pub observed_generation: i64,
    /// `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl Kind for Tenant {
    const KIND: &'static str = "PveTenant";
    type Spec = TenantSpec;
    type Status = TenantStatus;

    fn check(metadata: &Metadata, spec: &TenantSpec) -> Vec<FieldError> {
        let mut c = Checker::default();
        c.id("metadata.name", id::tenant(&metadata.name));
        let count = spec.namespaces.len();
        c.require(count <= MAX_NAMESPACES, "spec.namespaces", count, "use at most 1000");
        for (i, namespace) in spec.namespaces.iter().enumerate() {
            let at = format!("spec.namespaces[{i}]");
            let rule =
                "use the name of a namespace: 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit";
            c.require(id::tenant(namespace).is_ok(), &at, namespace, rule);
            c.require(!spec.namespaces[..i].contains(namespace), &at, namespace, "it is there twice: name each namespace once");
        }
        c.done()
    }
}

#[cfg(test)]
mod tests {
    use crate::kind::parse;

    fn mistakes(name: &str, spec: &str) -> Vec<String> {
        let text = format!("apiVersion: pvelet.dev/v1alpha1\nkind: PveTenant\nmetadata: {{name: {name}}}\nspec: {spec}\n");
        parse(&text).1.into_iter().flat_map(|p| p.mistakes).map(|m| m.to_string()).collect()
    }

    #[test]
    fn a_tenant_may_have_several_namespaces_or_none_yet() {
        for spec in ["{}", "{namespaces: []}", "{namespaces: [team-a, team-a-test]}"] {
            assert_eq!(mistakes("team-a", spec), Vec::<String>::new(), "{spec}");
        }
    }

    #[test]
    fn mistakes_name_field_value_and_remedy() {
        for (name, spec, want) in [
            ("a.b", "{}", "metadata.name = a.b: not a tenant or controller name: use 1 to 63 lower-case"),
            ("a", "{namespaces: [Team]}", "spec.namespaces[0] = Team: use the name of a namespace"),
            ("a", "{namespaces: [b, b]}", "spec.namespaces[1] = b: it is there twice"),
            ("a", "{namespace: b}", "unknown field `namespace`"),
        ] {
            let told = mistakes(name, spec);
            assert!(told.iter().any(|t| t.contains(want)), "{name} {spec}: {told:?}");
        }
    }
}
