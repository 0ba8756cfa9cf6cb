//! Calls on a node's network configuration: what stands in `/etc/network/interfaces`. Staged changes are not offered.

use serde_json::{Map, Value, json};

use super::{Call, Failure, Param, Reply, Route, cluster_file};
use crate::layout::NodeLayout;

const TYPES: [&str; 14] = [
    "bridge",
    "bond",
    "eth",
    "alias",
    "vlan",
    "fabric",
    "OVSBridge",
    "OVSBond",
    "OVSPort",
    "OVSIntPort",
    "vnet",
    "any_bridge",
    "any_local_bridge",
    "include_sdn",
];
/// The first number that PVE gives an interface of the file.
const FIRST_PRIORITY: usize = 3;

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::new("GET", "/nodes/{node}/network", vec![Param::choice("type", &TYPES).optional()], list),
        Route::new("GET", "/nodes/{node}/network/{iface}", vec![Param::text("iface")], one),
    ]
}

fn list(call: &Call) -> Result<Reply, Failure> {
    let wanted = call.params.text("type");
    let fits = |entry: &Value| match wanted {
        None | Some("include_sdn") => true,
        Some("any_bridge" | "any_local_bridge") => entry["type"] == "bridge",
        Some(kind) => entry["type"] == kind,
    };
    Ok(Reply::from(interfaces(&call.layout)?.into_iter().filter(|entry| fits(entry)).collect::<Value>()))
}

fn one(call: &Call) -> Result<Reply, Failure> {
    let name = call.params.text("iface").unwrap_or_default();
    let entry = interfaces(&call.layout)?.into_iter().find(|entry| entry["iface"] == name);
    let mut entry = entry.ok_or_else(|| Failure::parameter("iface", "interface does not exist"))?;
    if let Value::Object(entry) = &mut entry {
        entry.remove("iface");
    }
    Ok(Reply::from(entry))
}

/// The interfaces of the file, without the loopback.
fn interfaces(layout: &NodeLayout) -> Result<Vec<Value>, Failure> {
    let text = cluster_file::read(&layout.host_path("/etc/network/interfaces"))?;
    let automatic: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("auto ")).flat_map(str::split_whitespace).collect();
    let mut list: Vec<Map<String, Value>> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["iface", name, "inet", method] => list.push(new(name, method, automatic.contains(&name))),
            [key, ..] if line.starts_with([' ', '\t']) => {
                if let Some(entry) = list.last_mut() {
                    option(entry, key, &words[1..].join(" "));
                }
            }
            _ => {}
        }
    }
    list.retain(|entry| entry["iface"] != "lo");
    for (at, entry) in list.iter_mut().enumerate() {
        entry.insert("priority".into(), json!(FIRST_PRIORITY + at));
    }
    Ok(list.into_iter().map(Value::Object).collect())
}

fn new(name: &str, method: &str, automatic: bool) -> Map<String, Value> {
    let kind = if name.starts_with("vmbr") {
        "bridge"
    } else if name.contains('.') {
        "vlan"
    } else {
        "eth"
    };
    let mut entry = Map::new();
    for (key, value) in [("iface", name), ("type", kind), ("method", method), ("method6", "manual")] {
        entry.insert(key.into(), json!(value));
    }
    entry.insert("families".into(), json!(["inet"]));
    if automatic {
        // What comes up by itself is up here.
        entry.insert("autostart".into(), json!(1));
        entry.insert("active".into(), json!(1));
    }
    entry
}

fn option(entry: &mut Map<String, Value>, key: &str, value: &str) {
    match key {
        "address" => {
            let (address, prefix) = value.split_once('/').unwrap_or((value, ""));
            entry.insert("address".into(), json!(address));
            if !prefix.is_empty() {
                entry.insert("netmask".into(), json!(prefix));
                entry.insert("cidr".into(), json!(value));
            }
        }
        "bridge-ports" => {
            entry.insert("bridge_ports".into(), json!(if value == "none" { "" } else { value }));
        }
        _ => {
            entry.insert(key.replace('-', "_"), json!(value));
        }
    }
}
