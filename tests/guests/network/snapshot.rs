//! The network of a host as two looks at it can be compared: `/etc/network` and what `ip -j` says, without what differs by itself.

use std::collections::BTreeMap;

use serde_json::Value;

/// What prints it.
pub const SCRIPT: &str = include_str!("files/snapshot.sh");

/// What tells indexes, times, counters and carriers: it is another one each time, or follows from the rest. ifupdown2 sets `mcast_hash_max` only where it does
/// not work for a boot.
const PASSING: [&str; 26] = [
    "mcast_hash_max",
    "fdb_n_learned",
    "ifindex",
    "link_index",
    "operstate",
    "valid_life_time",
    "preferred_life_time",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
    "forward_time_left",
    "message_age_timer",
    "forward_delay_timer",
    "hold_timer",
    "topology_change",
    "topology_change_detected",
    "root_port",
    "root_path_cost",
    "stats64",
    "state",
    "qdisc",
    "promiscuity",
    "allmulti",
    "parentbus",
    "tentative",
];
/// Flags that follow a carrier.
const PASSING_FLAGS: [&str; 6] = ["LOWER_UP", "NO-CARRIER", "M-DOWN", "linkdown", "dead", "RUNNING"];
/// The tests' own way in is none of the host's business.
const WAY_IN: &str = "eth0";

/// A look at a host: path -> value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    /// From the output of [`SCRIPT`].
    pub fn parse(text: &str) -> Self {
        let mut all = BTreeMap::new();
        let mut section = "";
        for line in text.lines() {
            if let Some(name) =
                line.strip_prefix('[').and_then(|l| l.strip_suffix(']')).filter(|n| n.bytes().all(|b| b.is_ascii_alphanumeric()))
            {
                section = name;
            } else if section == "files" {
                let (digest, path) = line.split_once("  ").unwrap_or((line, ""));
                all.insert(format!("file {path}"), digest.to_owned());
            } else if section == "ipv6" {
                let (path, value) = line.rsplit_once(':').unwrap_or((line, ""));
                let name = path.rsplit('/').nth(1).unwrap_or_default();
                if name != WAY_IN {
                    all.insert(format!("ipv6 off {name}"), value.to_owned());
                }
            } else {
                let list: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{section}: {e}: {line}"));
                for entry in list.as_array().into_iter().flatten() {
                    add(&mut all, section, entry);
                }
            }
        }
        Self(all)
    }

    /// What differs: one line each.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let keys: std::collections::BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let none = "nothing".to_owned();
        let value = |of: &Self, key: &String| of.0.get(key).unwrap_or(&none).clone();
        let pairs = keys.into_iter().map(|key| (key, value(self, key), value(other, key)));
        pairs.filter(|(_, a, b)| a != b).map(|(key, a, b)| format!("{key}: {a} -> {b}")).collect()
    }
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap_or_default()
}

fn add(all: &mut BTreeMap<String, String>, section: &str, entry: &Value) {
    if section.starts_with("route") {
        let (dst, dev) = (text(entry, "dst"), text(entry, "dev"));
        let own = dst.starts_with("fe80:") || dst == "multicast" || dst.starts_with("ff00:");
        if dev != WAY_IN && !own {
            let key = format!("{section} {dst} {dev} {} {}", text(entry, "type"), text(entry, "table"));
            flatten(all, &key, entry);
        }
        return;
    }
    let name = text(entry, "ifname");
    if name == WAY_IN {
        return;
    }
    if section != "address" {
        flatten(all, &format!("{section} {name}"), entry);
        return;
    }
    for address in entry["addr_info"].as_array().into_iter().flatten() {
        // Link-local ones come and go by themselves; whether there may be one is told by `ipv6 off`.
        if text(address, "scope") != "link" {
            flatten(all, &format!("address {name} {}", text(address, "local")), address);
        }
    }
}

fn flatten(all: &mut BTreeMap<String, String>, key: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| !PASSING.contains(&name.as_str())) {
                flatten(all, &format!("{key} {name}"), value);
            }
        }
        Value::Array(list) => {
            let mut words: Vec<String> = list.iter().map(plain).filter(|w| !PASSING_FLAGS.contains(&w.as_str())).collect();
            words.sort();
            all.insert(key.to_owned(), words.join(","));
        }
        other => {
            all.insert(key.to_owned(), plain(other));
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
