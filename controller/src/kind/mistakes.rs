//! The tables of mistakes and of what is sound. An API server's rules are held to the same ones (`tests/cases/kubernetes/crds/tables.rs`).

use serde::Deserialize;
use serde_json::{Value, json};

use super::parse;

/// A row of `mistakes.yaml` or `sound.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    kind: String,
    #[serde(default = "name")]
    name: String,
    spec: Option<Value>,
    disks: Option<Value>,
    interfaces: Option<Value>,
    node: Option<Value>,
    #[serde(default)]
    told: String,
    #[serde(default)]
    api: Vec<String>,
    only: Option<String>,
}

fn name() -> String {
    "a".to_owned()
}

impl Row {
    fn manifest(&self) -> String {
        let spec = match (&self.disks, &self.interfaces, &self.node) {
            (Some(disks), ..) => json!({"source": {"template": 9000}, "disks": disks}),
            (_, Some(interfaces), _) => json!({"hosts": {"names": ["pve1"]}, "interfaces": interfaces}),
            (.., Some(node)) => json!({"address": "pve1:7443", "cluster": "lab", "node": "pve1", "kubernetesNode": node}),
            _ => self.spec.clone().unwrap_or_default(),
        };
        let manifest = json!({"apiVersion": super::API_VERSION, "kind": self.kind, "metadata": {"name": self.name}, "spec": spec});
        manifest.to_string().replace("VOLUME", "0b951f20-53f9-4634-b1ce-5e6c3aa3a726")
    }

    fn mistakes(&self) -> Vec<String> {
        parse(&self.manifest()).1.iter().flat_map(|p| &p.mistakes).map(ToString::to_string).collect()
    }
}

fn rows(text: &str) -> Vec<Row> {
    serde_norway::from_str(text).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn each_mistake_is_told_with_field_value_and_remedy() {
    for row in rows(include_str!("mistakes.yaml")) {
        let told = row.mistakes();
        assert!(!row.told.is_empty() && told.iter().any(|t| t.contains(&row.told)), "{row:?}: {told:#?}");
        assert!((row.api.len() == 2) != row.only.is_some(), "either api: [field, remedy] or only: why, not both: {row:?}");
    }
}

#[test]
fn what_is_sound_is_taken() {
    for row in rows(include_str!("sound.yaml")) {
        assert_eq!(row.mistakes(), Vec::<String>::new(), "{row:?}");
    }
}
