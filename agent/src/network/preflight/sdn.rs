//! PVE's software-defined network: what is configured against what runs, and who holds its lock.
//!
//! PVE keeps what is wanted in `/etc/pve/sdn/<kind>.cfg` and what was last applied, as JSON, in `.running-config` beside it. It calls a change
//! pending when the two differ in a section or a key. `.lock` holds the token of somebody who locked SDN through the API.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Check, Facts, Rule, Scene, Severity, some};
use crate::host::net::TextFile;

pub(super) const PENDING: Rule = Rule {
    id: "net.sdn-pending",
    severity: Severity::Warning,
    why: "applying SDN runs `ifreload -a` on every node, which brings up everything that is declared, a change of the agent that waits for its \
          confirmation included",
};

pub(super) const LOCK: Rule = Rule {
    id: "net.sdn-lock",
    severity: Severity::Error,
    why: "somebody is in the middle of a change of SDN, whose end is an `ifreload -a` on every node",
};

/// The kinds that PVE compares.
const KINDS: [&str; 4] = ["zones", "vnets", "subnets", "controllers"];

/// Keys that hold lists in no order.
const LISTS: [&str; 3] = ["nodes", "exitnodes", "interfaces"];

/// Sections by id, and their keys with values in an order of their own.
type Sections = BTreeMap<String, BTreeMap<String, Vec<String>>>;

const UNREADABLE: &str = "/etc/pve/sdn cannot be read";
const MOUNT: &str = "check `systemctl status pve-cluster`";

fn file<'f>(facts: &Facts<'f>, name: &str) -> Option<&'f TextFile> {
    facts.files.sdn.iter().find(|f| f.path.file_name().is_some_and(|n| n == name))
}

fn values(key: &str, value: &str) -> Vec<String> {
    if LISTS.contains(&key) {
        value.split([',', ';', ' ', '\t']).filter(|v| !v.is_empty()).map(str::to_owned).collect()
    } else {
        vec![value.to_owned()]
    }
}

/// Sections `kind: id` with indented `key value` lines.
fn sections(text: &str) -> Sections {
    let mut all = Sections::new();
    let mut at: Option<&mut BTreeMap<String, Vec<String>>> = None;
    for line in text.lines().filter(|l| !l.trim_start().starts_with('#')) {
        if line.trim().is_empty() {
            at = None;
        } else if line.starts_with([' ', '\t']) {
            let (key, value) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), "1"));
            if let Some(section) = &mut at {
                section.entry(key.to_owned()).or_default().extend(values(key, value.trim()));
            }
        } else if let Some((kind, id)) = line.split_once(':') {
            let section = all.entry(id.trim().to_owned()).or_default();
            section.insert("type".to_owned(), vec![kind.trim().to_ascii_lowercase()]);
            at = Some(section);
        }
    }
    all.values_mut().flat_map(BTreeMap::values_mut).for_each(|v| v.sort());
    all
}

fn json_values(key: &str, value: &Value) -> Vec<String> {
    let mut found: Vec<String> = match value {
        Value::Array(items) => items.iter().flat_map(|i| json_values("", i)).collect(),
        Value::Object(map) => map.keys().cloned().collect(),
        Value::String(text) => values(key, text),
        Value::Bool(on) => vec![u8::from(*on).to_string()],
        Value::Null => Vec::new(),
        Value::Number(number) => vec![number.to_string()],
    };
    found.sort();
    found
}

fn running(config: &Value, kind: &str) -> Sections {
    let ids = config.get(kind).and_then(|k| k.get("ids")).and_then(Value::as_object);
    let section = |value: &Value| -> BTreeMap<String, Vec<String>> {
        let keys = value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), json_values(key, value)));
        keys.filter(|(_, values)| !values.is_empty()).collect()
    };
    ids.into_iter().flatten().map(|(id, value)| (id.clone(), section(value))).collect()
}

/// What runs; `None`: unreadable. Never applied: nothing runs.
fn running_config(facts: &Facts<'_>) -> Option<Value> {
    match file(facts, ".running-config") {
        Some(file) if !file.text.trim().is_empty() => serde_json::from_str(&file.text).ok(),
        _ => Some(Value::Null),
    }
}

/// What is configured and does not run, or the other way round: "zone dmz: new". `None`: it cannot be told.
pub(super) fn pending_seen(facts: &Facts<'_>) -> Option<Vec<String>> {
    if !facts.sdn_known {
        return None;
    }
    let config = running_config(facts)?;
    let mut changes = Vec::new();
    for kind in KINDS {
        let wanted = file(facts, &format!("{kind}.cfg")).map(|f| sections(&f.text)).unwrap_or_default();
        let runs = running(&config, kind);
        let one = kind.trim_end_matches('s');
        for id in wanted.keys().chain(runs.keys()).collect::<BTreeSet<_>>() {
            match (wanted.get(id), runs.get(id)) {
                (Some(_), None) => changes.push(format!("{one} {id}: new")),
                (None, Some(_)) => changes.push(format!("{one} {id}: deleted")),
                (Some(wanted), Some(runs)) if wanted != runs => {
                    let keys = wanted.keys().chain(runs.keys()).filter(|k| wanted.get(*k) != runs.get(*k)).collect::<BTreeSet<_>>();
                    let keys: Vec<&str> = keys.into_iter().map(String::as_str).collect();
                    changes.push(format!("{one} {id}: changed ({})", keys.join(", ")));
                }
                _ => {}
            }
        }
    }
    Some(changes)
}

/// Who holds SDN's lock.
pub(super) fn lock_seen(facts: &Facts<'_>) -> Option<String> {
    file(facts, ".lock").map(|lock| format!("SDN is locked through PVE's API ({})", lock.path.display()))
}

/// Zones of QinQ that run: zone, bridge it stands on, MTU.
pub(super) fn qinq_zones(facts: &Facts<'_>) -> Vec<(String, String, Option<u32>)> {
    let zones = running_config(facts).map(|c| running(&c, "zones")).unwrap_or_default();
    let first = |zone: &BTreeMap<String, Vec<String>>, key: &str| zone.get(key).and_then(|v| v.first()).cloned();
    let qinq = zones.into_iter().filter(|(_, zone)| first(zone, "type").as_deref() == Some("qinq"));
    qinq.filter_map(|(id, zone)| Some((id, first(&zone, "bridge")?, first(&zone, "mtu").and_then(|m| m.parse().ok())))).collect()
}

pub(super) fn pending(scene: &Scene<'_>) -> Check {
    match pending_seen(scene.facts) {
        None if !scene.facts.sdn_known => PENDING.unknown(UNREADABLE, MOUNT),
        None => PENDING.unknown("/etc/pve/sdn/.running-config is no JSON", "apply SDN once in PVE, which writes it anew"),
        Some(_) if scene.facts.files.sdn.is_empty() => PENDING.not_applicable("SDN is not configured"),
        Some(changes) if changes.is_empty() => PENDING.ok("what is configured runs"),
        Some(changes) => {
            PENDING.failed(some(&changes), "apply it (`pvesh set /cluster/sdn`) or take it back (`pvesh create /cluster/sdn/rollback`)", [])
        }
    }
}

pub(super) fn lock(scene: &Scene<'_>) -> Check {
    match lock_seen(scene.facts) {
        Some(seen) => LOCK.failed(seen, "wait for its holder; a forgotten one goes with `pvesh delete /cluster/sdn/lock --force 1`", []),
        None if !scene.facts.sdn_known => LOCK.unknown(UNREADABLE, MOUNT),
        None if scene.facts.files.sdn.is_empty() => LOCK.not_applicable("SDN is not configured"),
        None => LOCK.ok("nobody holds it"),
    }
}
