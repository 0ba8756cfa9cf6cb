//! The controller's own tables of mistakes and of what is sound, held against the API server's rules.

use std::fmt::Write;

use pvelet_controller::kind::parse;
use pvelet_tests::counts;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{DRY_RUN, collection, server};

const MISTAKES: &str = include_str!("../../../../controller/src/kind/mistakes.yaml");
const SOUND: &str = include_str!("../../../../controller/src/kind/sound.yaml");

#[derive(Debug, Deserialize)]
struct Row {
    kind: String,
    name: Option<String>,
    spec: Option<Value>,
    disks: Option<Value>,
    interfaces: Option<Value>,
    node: Option<Value>,
    #[serde(default)]
    api: Vec<String>,
    only: Option<String>,
}

impl Row {
    fn object(&self) -> Value {
        let spec = match (&self.disks, &self.interfaces, &self.node) {
            (Some(disks), ..) => json!({"source": {"template": 9000}, "disks": disks}),
            (_, Some(interfaces), _) => json!({"hosts": {"names": ["pve1"]}, "interfaces": interfaces}),
            (.., Some(node)) => json!({"address": "pve1:7443", "cluster": "lab", "node": "pve1", "kubernetesNode": node}),
            _ => self.spec.clone().unwrap_or_default(),
        };
        let name = self.name.as_deref().unwrap_or("a");
        let object = json!({"apiVersion": "pvelet.dev/v1alpha1", "kind": self.kind, "metadata": {"name": name}, "spec": spec});
        serde_json::from_str(&object.to_string().replace("VOLUME", "0b951f20-53f9-4634-b1ce-5e6c3aa3a726")).unwrap()
    }
}

fn rows(text: &str) -> Vec<Row> {
    serde_norway::from_str(text).unwrap()
}

#[tokio::test]
async fn what_the_controller_would_refuse_is_refused_with_field_and_remedy() {
    let server = server().await;
    let (mut wrong, mut refused, mut untold) = (String::new(), 0, 0);
    for row in rows(MISTAKES) {
        let object = row.object();
        let answer = server.admin.create(&format!("{}?{DRY_RUN}", collection(&row.kind)), &object).await;
        match (&row.only, answer) {
            // What CEL cannot tell must still be so, or the row says too little.
            (Some(_), Ok(_)) => untold += 1,
            (Some(why), Err(e)) => writeln!(wrong, "{} is refused ({e}), though: {why}", object["spec"]).unwrap(),
            (None, Ok(_)) => writeln!(wrong, "{} is taken", object["spec"]).unwrap(),
            (None, Err(e)) => {
                let told = [400, 422].contains(&e.code) && row.api.iter().all(|part| e.message.contains(part));
                let evaluated = !e.message.contains("evaluating rule");
                refused += 1;
                if !told || !evaluated {
                    writeln!(wrong, "{}: {e}", object["spec"]).unwrap();
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(refused > 150 && untold < 10, "{refused} refused, {untold} not told");
    counts::tell(&format!(
        "definitions: {refused} mistakes refused by the API server with field and remedy; {untold} it cannot tell, the controller does"
    ));
}

#[tokio::test]
async fn what_is_sound_is_taken_and_what_is_stored_can_be_read() {
    let server = server().await;
    let examples = ["db-1", "host", "network", "tenant", "web-1"].map(|name| {
        let path = format!("{}/../docs/examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    });
    let documents = examples.iter().flat_map(|text| serde_norway::Deserializer::from_str(text));
    let examples = documents.map(|d| Value::deserialize(d).unwrap());
    let mut taken = 0;
    for object in rows(SOUND).iter().map(Row::object).chain(examples) {
        let kind = object["kind"].as_str().unwrap().to_owned();
        let stored = server.admin.create(&format!("{}?{DRY_RUN}", collection(&kind)), &object).await;
        let stored = stored.unwrap_or_else(|e| panic!("{}: {e}", object["spec"]));
        let document = json!({"apiVersion": object["apiVersion"], "kind": kind, "metadata": object["metadata"], "spec": stored["spec"]});
        let (read, problems) = parse(&document.to_string());
        assert!(problems.is_empty(), "{}: {problems:?}", stored["spec"]);
        // The API server fills in the same as the controller where a field is left out.
        assert_eq!(read[0].spec, parse(&object.to_string()).0[0].spec, "{}", stored["spec"]);
        taken += 1;
    }
    counts::tell(&format!("definitions: {taken} sound objects taken"));
}
