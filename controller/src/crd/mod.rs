//! The CustomResourceDefinitions of the kinds, made from their Rust types. `packaging/crds/` holds them as YAML; a test keeps it current.

mod rules;
mod schema;
#[cfg(test)]
mod tests;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::crd::v1::CustomResourceExt;
use schemars::JsonSchema;
use serde_json::{Value, json};

use crate::kind::{HostResource, MachineResource, NetworkResource, TenantResource};

/// Annotation that tells which revision of the definitions is installed.
pub const REVISION_ANNOTATION: &str = "pvelet.dev/crd-revision";
/// The revision of the definitions that this program was built with. It grows by one whenever they change what is stored or refused.
pub const REVISION: u32 = 1;

/// The definitions, in the order of their names.
pub fn all() -> Vec<Value> {
    vec![definition::<HostResource>(), definition::<MachineResource>(), definition::<NetworkResource>(), definition::<TenantResource>()]
}

/// The definitions as YAML, one document each: file name and text.
///
/// # Errors
/// None that is known: what they are made of can be written.
pub fn files() -> Result<Vec<(String, String)>, serde_norway::Error> {
    let file = |crd: Value| {
        let name = crd["spec"]["names"]["plural"].as_str().unwrap_or_default().to_owned();
        Ok((format!("{name}.yaml"), serde_norway::to_string(&crd)?))
    };
    all().into_iter().map(file).collect()
}

fn definition<R: CustomResourceExt + JsonSchema>() -> Value {
    let crd: CustomResourceDefinition = R::crd();
    let kind = crd.spec.names.kind.clone();
    let mut crd = serde_json::to_value(crd).unwrap_or_default();
    let mut schema = schema::of::<R>();
    schema["x-kubernetes-validations"] = Value::Array(rules::of(&kind));
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema;
    crd["metadata"]["annotations"] = json!({REVISION_ANNOTATION: REVISION.to_string()});
    crd
}
