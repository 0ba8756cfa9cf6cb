//! Reading manifests: every mistake of a file at once, and as much of the rest as is sound.

use std::collections::BTreeMap;

use pvelet_proto::id;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{API_VERSION, DEFAULT_NAMESPACE, FieldError, Host, Kind, Machine, Metadata, Network, ObjectKey, ObjectRef, Tenant};

/// More mistakes than this in one document help nobody.
const MAX_MISTAKES: usize = 50;

/// One sound document.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Kind and key.
    pub id: ObjectRef,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The spec in its one canonical form, defaults filled in.
    pub spec: Value,
}

/// One unsound document, or a whole file that is no YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which document of the file, from 1; 0 when the file cannot be split into documents.
    pub document: usize,
    /// The object it is about, where at least that can be read.
    pub id: Option<ObjectRef>,
    /// Every mistake.
    pub mistakes: Vec<FieldError>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UserMetadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Reads a file of one or more documents.
pub fn parse(text: &str) -> (Vec<Manifest>, Vec<Problem>) {
    let (mut manifests, mut problems) = (Vec::new(), Vec::new());
    for (index, document) in serde_norway::Deserializer::from_str(text).enumerate() {
        match Value::deserialize(document) {
            Ok(Value::Null) => {}
            Ok(value) => match read(value) {
                Ok(manifest) => manifests.push(manifest),
                Err((id, mistakes)) => problems.push(Problem { document: index + 1, id, mistakes }),
            },
            Err(e) => {
                // The reader cannot find the next document behind a syntax error.
                let problem = format!("not valid YAML: {e}; mend the file (two spaces for each level, no tabs, quotes closed)");
                problems.push(Problem { document: 0, id: None, mistakes: vec![FieldError::new("", "", problem)] });
                break;
            }
        }
    }
    (manifests, problems)
}

type Unsound = (Option<ObjectRef>, Vec<FieldError>);

fn read(value: Value) -> Result<Manifest, Unsound> {
    let Value::Object(mut document) = value else {
        return Err((None, vec![FieldError::new("", "", "a document is a mapping with apiVersion, kind, metadata and spec")]));
    };
    let id = identity(&document);
    let mut mistakes = Vec::new();
    let api_version = document.remove("apiVersion").unwrap_or_default();
    if api_version != API_VERSION {
        mistakes.push(FieldError::new("apiVersion", show(&api_version), format!("use {API_VERSION}")));
    }
    let kind = document.remove("kind").unwrap_or_default();
    let metadata = document.remove("metadata").unwrap_or(Value::Object(Map::new()));
    let spec = document.remove("spec").unwrap_or(Value::Object(Map::new()));
    // Written back by tools that export objects; it is the controller's and ignored.
    document.remove("status");
    for (field, value) in &document {
        mistakes.push(FieldError::new(field, show(value), "unknown field; a document has apiVersion, kind, metadata and spec"));
    }
    let user: Option<UserMetadata> = typed(metadata, "metadata", &mut mistakes);
    if let Some(user) = &user {
        if let Err(e) = id::dns_name(&user.name) {
            mistakes.push(FieldError::new("metadata.name", &e.value, format!("not {}: {}", e.kind, e.rule)));
        }
        if let Some(Err(e)) = user.namespace.as_deref().map(id::tenant) {
            mistakes.push(FieldError::new("metadata.namespace", &e.value, e.rule));
        }
    }
    let spec = match kind.as_str() {
        Some(Host::KIND) => typed_spec::<Host>(spec, user.as_ref(), &mut mistakes),
        Some(Machine::KIND) => typed_spec::<Machine>(spec, user.as_ref(), &mut mistakes),
        Some(Network::KIND) => typed_spec::<Network>(spec, user.as_ref(), &mut mistakes),
        Some(Tenant::KIND) => typed_spec::<Tenant>(spec, user.as_ref(), &mut mistakes),
        _ => {
            let kinds = [Host::KIND, Machine::KIND, Network::KIND].join(", ");
            mistakes.push(FieldError::new("kind", show(&kind), format!("use {kinds} or {}", Tenant::KIND)));
            None
        }
    };
    match (id, user, spec) {
        (Some(id), Some(user), Some(spec)) if mistakes.is_empty() => {
            Ok(Manifest { id, labels: user.labels, annotations: user.annotations, spec })
        }
        (id, ..) => Err((id, mistakes)),
    }
}

/// Kind and key, read leniently: a manifest with a mistake still says which object it holds.
fn identity(document: &Map<String, Value>) -> Option<ObjectRef> {
    let metadata = document.get("metadata")?;
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or(DEFAULT_NAMESPACE);
    let key = ObjectKey { namespace: namespace.to_owned(), name: metadata.get("name")?.as_str()?.to_owned() };
    Some(ObjectRef { kind: document.get("kind")?.as_str()?.to_owned(), key })
}

fn typed_spec<K: Kind>(spec: Value, user: Option<&UserMetadata>, mistakes: &mut Vec<FieldError>) -> Option<Value> {
    let before = mistakes.len();
    let spec: K::Spec = typed(spec, "spec", mistakes)?;
    let metadata = user.map(|u| Metadata { name: u.name.clone(), ..Metadata::default() }).unwrap_or_default();
    // Of a document with a malformed field only what is left could be checked, and that may mislead.
    if mistakes.len() == before {
        mistakes.extend(K::check(&metadata, &spec).into_iter().filter(|m| user.is_some() || !m.path.starts_with("metadata")));
    }
    serde_json::to_value(&spec).ok()
}

/// Reads a value into its type. After a mistake the field is taken out and the rest read again, so that all mistakes are told.
fn typed<T: DeserializeOwned>(mut value: Value, at: &str, mistakes: &mut Vec<FieldError>) -> Option<T> {
    let before = mistakes.len();
    while mistakes.len() - before < MAX_MISTAKES {
        match serde_path_to_error::deserialize::<_, T>(value.clone()) {
            Ok(typed) if mistakes.len() == before => return Some(typed),
            Ok(_) => return None,
            Err(e) => {
                let steps = pointer(e.path());
                let taken = take(&mut value, &steps);
                // A required field that was taken out as malformed is reported as that, not as missing.
                let artefact = taken.is_none()
                    && mistakes[before..].iter().any(|m| e.inner().to_string() == format!("missing field `{}`", last_name(&m.path)));
                if !artefact {
                    let inner = e.path().to_string();
                    let path = if inner == "." { at.to_owned() } else { format!("{at}.{inner}") };
                    mistakes.push(FieldError::new(path, taken.as_ref().map(show).unwrap_or_default(), e.inner().to_string()));
                }
                taken?;
            }
        }
    }
    None
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

enum Step {
    Key(String),
    Index(usize),
}

fn pointer(path: &serde_path_to_error::Path) -> Vec<Step> {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn take(value: &mut Value, steps: &[Step]) -> Option<Value> {
    let (last, parents) = steps.split_last()?;
    let mut here = value;
    for step in parents {
        here = match step {
            Step::Key(key) => here.get_mut(key)?,
            Step::Index(index) => here.get_mut(index)?,
        };
    }
    match (here, last) {
        (Value::Object(map), Step::Key(key)) => map.remove(key),
        (Value::Array(list), Step::Index(index)) if *index < list.len() => Some(list.remove(*index)),
        _ => None,
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => format!("'{s}'"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {name: web-1}\nspec: {source: {template: 9000}}\n";

    fn mistakes(text: &str) -> Vec<String> {
        parse(text).1.iter().flat_map(|p| &p.mistakes).map(ToString::to_string).collect()
    }

    #[test]
    fn a_machine_needs_no_more_than_a_source() {
        let (manifests, problems) = parse(GOOD);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(manifests[0].id, ObjectRef { kind: "PveMachine".into(), key: ObjectKey::named("web-1") });
        assert_eq!(manifests[0].spec["runPolicy"], "RerunOnFailure");
        assert_eq!(manifests[0].spec["cloneMode"], "linked");
    }

    #[test]
    fn every_mistake_is_told_with_path_value_and_remedy() {
        let text = "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {name: web-1}\nspec:\n  source: {template: 9000, tag: a}\n  \
                    memroy: 2Gi\n  cores: many\n  memory: 2gigs\n  nics: [{bridge: vmbr0}, {bridge: vmbr1, vlan: x}]\n  runPolicy: Sometimes\n";
        let told = mistakes(text);
        for want in [
            "spec.source.tag = 'a': unknown field `tag`, expected `template` or `tags`",
            "spec.memroy = '2Gi': unknown field `memroy`",
            "spec.cores = 'many': invalid type: string \"many\", expected u32",
            "a quantity of bytes such as 2Gi, 512Mi or 20G",
            "spec.nics[1].vlan = 'x'",
            "spec.runPolicy = 'Sometimes': unknown variant `Sometimes`, expected one of `Always`",
        ] {
            assert!(told.iter().any(|t| t.contains(want)), "{want}\nin {told:#?}");
        }
        assert_eq!(told.len(), 6, "{told:#?}");
    }

    #[test]
    fn values_out_of_range_are_refused_with_their_rule() {
        for (spec, want) in [
            ("source: {}", "spec.source: name the template either by"),
            ("source: {template: 9000, tags: [a]}", "not both"),
            ("source: {template: 99}", "spec.source.template = 99: not a VMID"),
            ("source: {tags: []}", "at least one tag"),
            ("{source: {template: 9000}, memory: 2048}", "a number without a unit means bytes"),
            ("{source: {template: 9000}, name: a_b}", "spec.name = a_b: not a DNS name"),
            ("{source: {template: 9000}, storage: fast}", "cloneMode: full"),
            ("{source: {template: 9000}, vmid: 5}", "spec.vmid = 5"),
            ("{source: {template: 9000}, nics: [{bridge: vmbr0, vlan: 4095}]}", "spec.nics[0].vlan = 4095"),
            ("{source: {template: 9000}, nics: [{bridge: vmbr0, mac: nonsense}]}", "spec.nics[0].mac = nonsense"),
            ("{source: {template: 9000}, cloudInit: {nameservers: [not-an-ip]}}", "spec.cloudInit.nameservers[0] = not-an-ip"),
            (
                "{source: {template: 9000}, cloudInit: {ipConfigs: [{ipv4: 10.0.0.5/24, gateway4: 10.0.1.1}]}}",
                "gateway4 = 10.0.1.1: use an address inside",
            ),
            ("{source: {template: 9000}, cloudInit: {ipConfigs: [{ipv4: 10.0.0.5}]}}", "ipConfigs[0].ipv4 = 10.0.0.5"),
            ("{source: {template: 9000}, cloudInit: {sshKeys: [nonsense]}}", "spec.cloudInit.sshKeys[0]: use one public key"),
        ] {
            let told = mistakes(&format!("apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {{name: a}}\nspec:\n  {spec}\n"));
            assert!(told.iter().any(|t| t.contains(want)), "{spec}: {told:?}");
        }
    }

    #[test]
    fn gateways_inside_the_subnet_or_link_local_are_taken() {
        let spec = "{source: {template: 9000}, cloudInit: {ipConfigs: [{ipv4: 10.0.0.5/24, gateway4: 10.0.0.1, ipv6: '2001:db8::5/64', gateway6: 'fe80::1'}]}}";
        let told = mistakes(&format!("apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {{name: a}}\nspec: {spec}\n"));
        assert!(told.is_empty(), "{told:?}");
    }

    #[test]
    fn a_bad_document_leaves_its_neighbours_alone_and_says_which_object_it_holds() {
        let text = format!("{GOOD}---\n{}", GOOD.replace("web-1", "web-2").replace("9000", "none"));
        let (manifests, problems) = parse(&text);
        assert_eq!(manifests.len(), 1);
        assert_eq!((problems[0].document, problems[0].id.clone().unwrap().key), (2, ObjectKey::named("web-2")));
    }

    #[test]
    fn a_file_that_is_no_yaml_says_where() {
        let (_, problems) = parse("a: [1\nb: }");
        assert_eq!((problems[0].document, &problems[0].id), (0, &None));
        assert!(problems[0].mistakes[0].to_string().contains("line"), "{problems:?}");
    }

    #[test]
    fn an_unknown_kind_or_version_is_refused() {
        let told = mistakes("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nextra: 1\n");
        assert_eq!(told.len(), 3, "{told:?}");
    }
}
