//! Calls that only read: list, config, pending changes, status, features, snapshots.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{env::Env, options, status};
use crate::{
    api::{Call, Failure, Param, Reply, Route, format},
    guest,
    storage::Volume,
    vmconf::{self, Values, VmConfig},
};

pub(super) fn routes() -> Vec<Route> {
    let vm = || Param::vmid("vmid");
    let flag = |name| Param::boolean(name).optional();
    let snapshot = |name| Param::text(name).format(format::config_id).max_length(40).optional();
    vec![
        Route::new("GET", "/nodes/{node}/qemu", vec![flag("full")], list),
        Route::new("GET", "/nodes/{node}/qemu/{vmid}", vec![vm()], vm_index),
        Route::new("GET", "/nodes/{node}/qemu/{vmid}/config", vec![vm(), flag("current"), snapshot("snapshot")], config),
        Route::new("GET", "/nodes/{node}/qemu/{vmid}/pending", vec![vm()], pending),
        Route::new("GET", "/nodes/{node}/qemu/{vmid}/status", vec![vm()], status_index),
        Route::new("GET", "/nodes/{node}/qemu/{vmid}/status/current", vec![vm()], current),
        Route::new(
            "GET",
            "/nodes/{node}/qemu/{vmid}/feature",
            vec![vm(), Param::choice("feature", &["snapshot", "clone", "copy"]), snapshot("snapname")],
            feature,
        ),
        Route::new("GET", "/nodes/{node}/qemu/{vmid}/snapshot", vec![vm()], snapshots),
    ]
}

fn list(call: &Call) -> Result<Reply, Failure> {
    let full = call.params.flag("full");
    let running: BTreeMap<u32, u32> = guest::all_running(&call.layout).into_iter().collect();
    let mut entries = Vec::new();
    for vmid in vmconf::vmids(&call.layout)? {
        // One that vanishes in between is gone.
        let Ok(config) = vmconf::load(&call.layout, vmid) else { continue };
        let pid = running.get(&vmid).copied();
        let mut entry = status::entry(vmid, &config, pid);
        if full {
            entry.insert("qmpstatus".into(), json!(status::qmp_status(&call.layout, vmid, pid)));
            status::add_cards(&mut entry, vmid, &config, pid);
        }
        entries.push(Value::Object(entry));
    }
    Ok(Reply::from(Value::Array(entries)))
}

fn vm_index(call: &Call) -> Result<Reply, Failure> {
    vmconf::load(&call.layout, call.params.vmid())?;
    let names = [
        "config",
        "cloudinit",
        "pending",
        "status",
        "unlink",
        "vncproxy",
        "termproxy",
        "migrate",
        "resize",
        "move",
        "rrd",
        "rrddata",
        "monitor",
        "agent",
        "snapshot",
        "spiceproxy",
        "sendkey",
        "firewall",
        "mtunnel",
        "remote_migrate",
    ];
    Ok(Reply::from(names.map(|name| json!({"subdir": name})).into_iter().collect::<Value>()))
}

fn status_index(call: &Call) -> Result<Reply, Failure> {
    vmconf::load(&call.layout, call.params.vmid())?;
    let names = ["current", "start", "stop", "reset", "shutdown", "suspend", "reboot"];
    Ok(Reply::from(names.map(|name| json!({"subdir": name})).into_iter().collect::<Value>()))
}

/// The values of a section as JSON, passwords hidden.
fn shown(values: &Values, description: Option<&String>) -> Map<String, Value> {
    let hidden = |key: &str, value: &str| if key == "cipassword" { json!("**********") } else { options::json(key, value) };
    let mut all: Map<String, Value> = values.iter().map(|(key, value)| (key.clone(), hidden(key, value))).collect();
    if let Some(text) = description {
        all.insert("description".into(), json!(text));
    }
    all
}

/// The configuration with the pending changes taken over.
pub(super) fn with_pending(config: &VmConfig) -> VmConfig {
    let mut all = config.clone();
    for key in config.pending_delete.keys() {
        all.values.remove(key);
    }
    for (key, value) in &config.pending {
        if key == "description" {
            all.description = Some(value.clone());
        } else {
            all.values.insert(key.clone(), value.clone());
        }
    }
    all
}

fn config(call: &Call) -> Result<Reply, Failure> {
    let config = vmconf::load(&call.layout, call.params.vmid());
    let current = call.params.flag("current");
    if let Some(name) = call.params.text("snapshot") {
        if current {
            let text = String::from("cannot use 'snapshot' parameter with 'current'");
            return Err(Failure::Parameters([("current", &text), ("snapshot", &text)].map(|(k, v)| (k.to_owned(), v.clone())).into()));
        }
        let config = config?;
        let section = config.snapshots.get(name).ok_or_else(|| Failure::die(format!("snapshot '{name}' does not exist")))?;
        let mut data = shown(&section.values, section.description.as_ref());
        data.insert("digest".into(), json!(config.digest));
        return Ok(Reply::from(Value::Object(data)));
    }
    let config = config?;
    let all = if current { config.clone() } else { with_pending(&config) };
    let mut data = shown(&all.values, all.description.as_ref());
    data.insert("digest".into(), json!(config.digest));
    Ok(Reply::from(Value::Object(data)))
}

fn pending(call: &Call) -> Result<Reply, Failure> {
    let config = vmconf::load(&call.layout, call.params.vmid())?;
    let mut rows: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut set = |key: &str, field: &str, value: Value| {
        let row = rows.entry(key.to_owned()).or_default();
        row.insert("key".into(), json!(key));
        row.insert(field.into(), value);
    };
    for (key, value) in shown(&config.values, config.description.as_ref()) {
        set(&key, "value", value);
    }
    set("digest", "value", json!(config.digest));
    for (key, value) in shown(&config.pending, None) {
        set(&key, "pending", value);
    }
    for (key, force) in &config.pending_delete {
        set(key, "delete", json!(if *force { 2 } else { 1 }));
    }
    Ok(Reply::from(rows.into_values().map(Value::Object).collect::<Value>()))
}

fn current(call: &Call) -> Result<Reply, Failure> {
    let vmid = call.params.vmid();
    let config = vmconf::load(&call.layout, vmid)?;
    Ok(Reply::from(Value::Object(status::current(&call.layout, vmid, &config))))
}

fn snapshots(call: &Call) -> Result<Reply, Failure> {
    let vmid = call.params.vmid();
    let config = vmconf::load(&call.layout, vmid)?;
    let mut rows: Vec<Value> = Vec::new();
    for (name, section) in &config.snapshots {
        let time: u64 = section.values.get("snaptime").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut row = json!({"name": name, "snaptime": time, "vmstate": u8::from(section.values.contains_key("vmstate"))});
        row["description"] = json!(section.description.as_deref().unwrap_or_default());
        if let Some(parent) = section.values.get("parent") {
            row["parent"] = json!(parent);
        }
        rows.push(row);
    }
    let running = u8::from(guest::running(&call.layout, vmid).is_some());
    let mut now = json!({"name": "current", "description": "You are here!", "digest": config.digest, "running": running});
    if let Some(parent) = config.get("parent") {
        now["parent"] = json!(parent);
    }
    rows.push(now);
    Ok(Reply::from(Value::Array(rows)))
}

fn feature(call: &Call) -> Result<Reply, Failure> {
    let env = Env::of_call(call);
    let config = env.load(call.params.vmid())?;
    let snapshot = call.params.text("snapname");
    let values = match snapshot {
        Some(name) => &config.snapshots.get(name).ok_or_else(|| Failure::die(format!("snapshot '{name}' does not exist")))?.values,
        None => &config.values,
    };
    let source = VmConfig { values: values.clone(), ..VmConfig::default() };
    let volumes: Vec<Volume> = source
        .drives()
        .filter(|(_, drive)| drive.has_volume() && !drive.is_cdrom())
        .filter_map(|(_, drive)| Volume::parse(&drive.file).ok())
        .collect();
    let fits = match call.params.text("feature") {
        Some("snapshot") => volumes.iter().all(|volume| volume.format() == "qcow2" && !volume.is_base()),
        Some("clone") => snapshot.is_none() && volumes.iter().all(Volume::is_base),
        _ => true,
    };
    Ok(Reply::from(json!({"hasFeature": u8::from(fits), "nodes": [call.layout.node()]})))
}
