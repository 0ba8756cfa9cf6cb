#![allow(clippy::unwrap_used)]
use std::{fs, path::PathBuf};

use proptest::prelude::*;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::*;
use crate::kind::{Host, Kind, Machine, Network, Tenant};

/// For each revision the digest of what it stores and refuses.
const REVISIONS: &str = include_str!("revisions.txt");

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging/crds")
}

fn schema_of(kind: &str) -> Value {
    let crd = all().into_iter().find(|c| c["spec"]["names"]["kind"] == kind).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Every schema within one, with its path.
fn walk(schema: &Value, at: &str, see: &mut impl FnMut(&Value, &str)) {
    see(schema, at);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, &format!("{at}.{name}"), see);
    }
    for (key, sign) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(inner) = schema.get(key) {
            walk(inner, &format!("{at}{sign}"), see);
        }
    }
}

#[test]
fn the_files_in_packaging_are_current() {
    let bless = std::env::var_os("PVELET_BLESS").is_some();
    for (name, text) in files().unwrap() {
        let path = folder().join(&name);
        if bless {
            fs::create_dir_all(folder()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "packaging/crds/{name} is not what the types say: PVELET_BLESS=1 cargo test -p pvelet-controller crd");
    }
    assert_eq!(fs::read_dir(folder()).unwrap().count(), files().unwrap().len(), "packaging/crds holds other files");
}

/// A controller tells by the revision whether the cluster has the definitions that it needs, so none may change under its revision.
#[test]
fn a_revision_stands_for_one_schema() {
    let mut specs: Vec<Value> = all().iter().map(|crd| crd["spec"].clone()).collect();
    specs.iter_mut().for_each(without_texts);
    let digest = hex::encode(Sha256::digest(serde_json::to_string(&specs).unwrap()));
    let line = format!("{REVISION} {digest}");
    let known = REVISIONS.lines().any(|l| l.split(' ').next() == Some(&REVISION.to_string()));
    if !known && std::env::var_os("PVELET_BLESS").is_some() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/crd/revisions.txt");
        return fs::write(path, format!("{REVISIONS}{line}\n")).unwrap();
    }
    assert!(
        REVISIONS.lines().last() == Some(&line),
        "the definitions store or refuse something else than revision {REVISION} did. Raise crd::REVISION (or, if {REVISION} was in no \
         release, take its line out of controller/src/crd/revisions.txt), then: PVELET_BLESS=1 cargo test -p pvelet-controller crd"
    );
}

/// Takes out what changes nothing for objects: what is written for people.
fn without_texts(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| {
                key != "additionalPrinterColumns" && !(["description", "message"].contains(&key.as_str()) && value.is_string())
            });
            map.values_mut().for_each(without_texts);
        }
        Value::Array(list) => list.iter_mut().for_each(without_texts),
        _ => {}
    }
}

#[test]
fn schemas_keep_to_what_an_api_server_knows_and_describe_every_field() {
    for crd in all() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        walk(schema, &kind, &mut |schema, at| {
            assert!(schema.is_object(), "{at} = {schema}");
            let known = ["", "int32", "int64", "double", "cidr"];
            assert!(known.contains(&schema["format"].as_str().unwrap_or_default()), "{at}: format {}", schema["format"]);
            for key in ["nullable", "anyOf", "oneOf", "$ref", "x-pvelet-values", "title", "const"] {
                assert!(schema.get(key).is_none(), "{at}: {key} in {schema}");
            }
            assert!(schema["type"].is_string() || schema["x-kubernetes-int-or-string"] == true, "{at}: no type");
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let own = format!("{at}.{name}");
                let standard = ["apiVersion", "kind", "metadata"].iter().any(|n| own.starts_with(&format!("{kind}.{n}")));
                let root = own == format!("{kind}.spec") || own == format!("{kind}.status");
                assert!(standard || root || property["description"].is_string(), "{own}: no description");
            }
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                let message = rule["message"].as_str().unwrap_or_default();
                assert!(!message.is_empty() && !message.contains('\n'), "{at}: {rule}");
            }
        });
    }
}

#[test]
fn short_names_are_nobody_elses() {
    // Kubernetes' and KubeVirt's.
    let taken = ["pv", "pvc", "vm", "vms", "vmi", "vmis", "vmim", "vmims", "vmpool", "vmsnapshot"];
    for crd in all() {
        let names = &crd["spec"]["names"];
        let short = names["shortNames"].as_array().unwrap();
        assert!(short.iter().all(|s| !taken.contains(&s.as_str().unwrap())) && short.len() == 1, "{names}");
        assert_eq!(names["categories"], json!(["pvelet"]));
    }
}

#[test]
fn what_a_status_leaves_out_is_not_filled_in() {
    for crd in all() {
        let status = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
        walk(status, "status", &mut |schema, at| assert!(schema.get("default").is_none(), "{at} has a default"));
    }
}

/// Any value that a schema takes; texts are ones that its rules take.
fn any_value(schema: &Value) -> BoxedStrategy<Value> {
    if let Some(values) = schema["enum"].as_array() {
        return prop::sample::select(values.clone()).boxed();
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return prop_oneof![Just(json!(1_073_741_824)), Just(json!("2Gi")), Just(json!("1.5Gi")), Just(json!("20480M"))].boxed();
    }
    match schema["type"].as_str().unwrap_or_default() {
        "boolean" => any::<bool>().prop_map(Value::from).boxed(),
        "integer" => {
            let (least, most) = (schema["minimum"].as_i64().unwrap_or(i64::MIN), schema["maximum"].as_i64().unwrap_or(i64::MAX));
            prop_oneof![least..=most, Just(least), Just(most)].prop_map(Value::from).boxed()
        }
        "array" => prop::collection::vec(any_value(&schema["items"]), 0..3).prop_map(Value::from).boxed(),
        "object" if schema.get("additionalProperties").is_some() => {
            prop::collection::btree_map("[a-z]{1,3}", any_value(&schema["additionalProperties"]), 0..3).prop_map(|m| json!(m)).boxed()
        }
        "object" => {
            let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let mut fields = Just(serde_json::Map::new()).boxed();
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let (name, needed) = (name.clone(), required.contains(&name.as_str()));
                let value = if needed { any_value(property).prop_map(Some).boxed() } else { prop::option::of(any_value(property)).boxed() };
                fields = (fields, value)
                    .prop_map(move |(mut map, value)| {
                        value.into_iter().for_each(|v| drop(map.insert(name.clone(), v)));
                        map
                    })
                    .boxed();
            }
            fields.prop_map(Value::Object).boxed()
        }
        _ if schema.to_string().contains("duration(") => prop_oneof![Just(json!("30s")), Just(json!("1h")), Just(json!("2m5s"))].boxed(),
        _ => "[a-z]{0,5}".prop_map(Value::from).boxed(),
    }
}

/// An object that an API server stored must not stop the controller from reading its neighbours, so it must be readable.
fn every_spec_is_readable<K: Kind>() {
    let spec = any_value(&schema_of(K::KIND)["properties"]["spec"]);
    proptest!(|(spec in spec)| readable::<K::Spec>(spec));
}

fn readable<T: DeserializeOwned>(value: Value) {
    if let Err(e) = serde_path_to_error::deserialize::<_, T>(value.clone()) {
        panic!("{e}: {value}");
    }
}

#[test]
fn what_the_schema_of_a_host_takes_can_be_read() {
    every_spec_is_readable::<Host>();
}

#[test]
fn what_the_schema_of_a_machine_takes_can_be_read() {
    every_spec_is_readable::<Machine>();
}

#[test]
fn what_the_schema_of_a_network_takes_can_be_read() {
    every_spec_is_readable::<Network>();
}

#[test]
fn what_the_schema_of_a_tenant_takes_can_be_read() {
    every_spec_is_readable::<Tenant>();
}
