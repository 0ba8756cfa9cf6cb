//! Calls on the options of the whole cluster, `datacenter.cfg`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Call, Failure, Param, Reply, Route, cluster_file};
use crate::layout::NodeLayout;

const FILE: &str = "datacenter.cfg";
const DEFAULT_RANGE: (u32, u32) = (100, 1_000_000);
const KEYBOARDS: [&str; 25] = [
    "de", "de-ch", "da", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it", "ja", "lt", "mk", "nl", "no",
    "pl", "pt", "pt-br", "sv", "sl", "tr",
];

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    let options = vec![
        Param::choice("keyboard", &KEYBOARDS).optional(),
        Param::text("next-id").optional(),
        Param::text("mac_prefix").optional(),
        Param::text("description").optional(),
        Param::text("delete").optional(),
    ];
    vec![Route::new("GET", "/cluster/options", vec![], get), Route::new("PUT", "/cluster/options", options, put)]
}

fn parse(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect()
}

fn load(layout: &NodeLayout) -> Result<BTreeMap<String, String>, Failure> {
    Ok(parse(&cluster_file::read(&layout.etc_pve().join(FILE))?))
}

/// First VMID that PVE proposes, and the one behind the last.
pub(super) fn next_id_range(layout: &NodeLayout) -> Result<(u32, u32), Failure> {
    let options = load(layout)?;
    let range = options.get("next-id").map(String::as_str).unwrap_or_default();
    let part =
        |key: &str| range.split(',').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key).and_then(|(_, v)| v.parse().ok());
    Ok((part("lower").unwrap_or(DEFAULT_RANGE.0), part("upper").unwrap_or(DEFAULT_RANGE.1)))
}

fn get(call: &Call) -> Result<Reply, Failure> {
    let mut data = Map::new();
    data.insert("mac_prefix".into(), json!("BC:24:11"));
    data.insert("description".into(), json!(""));
    data.insert("allowed-tags".into(), json!([]));
    for (key, value) in load(&call.layout)? {
        let value = match key.as_str() {
            "next-id" => Value::Object(value.split(',').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.to_owned(), json!(v))).collect()),
            _ => json!(value),
        };
        data.insert(key, value);
    }
    Ok(Reply::from(Value::Object(data)))
}

fn put(call: &Call) -> Result<Reply, Failure> {
    cluster_file::change(call, FILE, "update options", |text| {
        let mut options = parse(text);
        for key in call.params.text("delete").into_iter().flat_map(|list| list.split([',', ' ', ';'])) {
            options.remove(key);
        }
        for key in ["keyboard", "next-id", "mac_prefix"] {
            if let Some(value) = call.params.text(key) {
                options.insert(key.to_owned(), value.to_owned());
            }
        }
        // The first line is where a description would stand.
        Ok(std::iter::once(String::from("\n")).chain(options.iter().map(|(key, value)| format!("{key}: {value}\n"))).collect())
    })?;
    Ok(Reply::default())
}
