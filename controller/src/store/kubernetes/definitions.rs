//! Whether the cluster has the definitions of the resources that this program works with.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};

use crate::{
    crd::{REVISION, REVISION_ANNOTATION},
    kind::{Host, Kind, Machine, Network, Tenant},
    kubernetes::within,
};

/// The group of the resources.
const GROUP: &str = "pvelet.dev";

/// What is wrong where the API server keeps less of a status than it was sent.
pub(super) const DROPPED: &str = "the API server keeps less than was written, so the resource definitions are older than this controller; \
    install its own: pvelet-controller crds | kubectl apply --server-side -f -";

/// Looks whether all definitions are there, served, and of this revision or a newer one.
///
/// # Errors
/// What is missing or too old, and the remedy; or why it cannot be told.
pub async fn check(client: &Client) -> Result<(), String> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut wrong = Vec::new();
    for plural in [Host::PLURAL, Machine::PLURAL, Network::PLURAL, Tenant::PLURAL] {
        let name = format!("{plural}.{GROUP}");
        let found = within(api.get_opt(&name)).await.map_err(|e| format!("cannot read the resource definition {name}: {}", e.text()))?;
        wrong.extend(problem(found.as_ref()).map(|problem| format!("{name} {problem}")));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!(
        "waiting for resource definitions: {}. Install them: pvelet-controller crds | kubectl apply --server-side -f - (or let the chart do it)",
        wrong.join(", ")
    ))
}

fn problem(found: Option<&CustomResourceDefinition>) -> Option<String> {
    let Some(crd) = found else { return Some("is missing".to_owned()) };
    let conditions = crd.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let established = conditions.into_iter().any(|c| c.type_ == "Established" && c.status == "True");
    let revision = crd.metadata.annotations.as_ref().and_then(|a| a.get(REVISION_ANNOTATION)).map(String::as_str);
    match revision.and_then(|r| r.parse::<u32>().ok()) {
        None => Some(format!("has no {REVISION_ANNOTATION}: it is not of pvelet, or of a version before the first release")),
        Some(revision) if revision < REVISION => Some(format!("is of revision {revision}, and {REVISION} is needed")),
        Some(_) if !established => Some("is not established yet".to_owned()),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_that_is_older_foreign_or_not_served_is_waited_for() {
        let crd = |revision: Option<&str>, established: &str| -> CustomResourceDefinition {
            let annotations = revision.map(|r| json!({REVISION_ANNOTATION: r}));
            serde_json::from_value(json!({
                "metadata": {"name": "x", "annotations": annotations},
                "spec": {"group": GROUP, "names": {"kind": "X", "plural": "x"}, "scope": "Cluster", "versions": []},
                "status": {"conditions": [{"type": "Established", "status": established}]},
            }))
            .unwrap()
        };
        let newer = (REVISION + 1).to_string();
        assert_eq!(problem(Some(&crd(Some(&REVISION.to_string()), "True"))), None);
        assert_eq!(problem(Some(&crd(Some(&newer), "True"))), None);
        for (found, want) in [
            (None, "is missing"),
            (Some(crd(Some("0"), "True")), "is of revision 0"),
            (Some(crd(Some("x"), "True")), "has no pvelet.dev/crd-revision"),
            (Some(crd(None, "True")), "has no pvelet.dev/crd-revision"),
            (Some(crd(Some(&newer), "False")), "is not established"),
        ] {
            assert!(problem(found.as_ref()).unwrap().contains(want), "{want}");
        }
    }
}
