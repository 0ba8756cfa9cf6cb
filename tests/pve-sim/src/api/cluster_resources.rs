//! The list of everything in the cluster.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use super::{Call, Failure, Param, Reply, Route, cluster, cluster_ha, cluster_pools, storage};
use crate::{
    guest,
    layout::NodeLayout,
    vmconf::{self, Drive, VmConfig},
};

const TYPES: [&str; 4] = ["vm", "storage", "node", "sdn"];

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    vec![Route::new("GET", "/cluster/resources", vec![Param::choice("type", &TYPES).optional()], resources)]
}

fn resources(call: &Call) -> Result<Reply, Failure> {
    let wanted = |kind: &str| call.params.text("type").is_none_or(|given| given == kind);
    let mut list = Vec::new();
    if call.params.text("type").is_none() {
        let pools = cluster_pools::load(&call.layout)?;
        list.extend(pools.iter().map(|pool| json!({"type": "pool", "pool": pool.id, "id": format!("/pool/{}", pool.id)})));
    }
    if wanted("vm") {
        list.extend(vms(&call.layout)?);
    }
    if wanted("node") {
        list.extend(cluster::all_nodes(&call.layout).iter().map(|(layout, online)| {
            let mut entry = cluster::node_entry(layout, *online);
            if *online {
                entry["cgroup-mode"] = json!(2);
            }
            entry
        }));
    }
    if wanted("storage") {
        list.extend(storages(call)?);
    }
    Ok(Reply::from(Value::from(list)))
}

/// Whether any node has this VM.
pub(super) fn exists(layout: &NodeLayout, vmid: u32) -> bool {
    cluster::all_vms(layout).is_ok_and(|all| all.iter().any(|(id, _)| *id == vmid))
}

/// Every VM of the cluster. One that the status daemon has not reported yet is `unknown`.
pub(super) fn vms(layout: &NodeLayout) -> Result<Vec<Value>, Failure> {
    let pools: BTreeMap<u32, String> =
        cluster_pools::load(layout)?.into_iter().flat_map(|pool| pool.vms.into_iter().map(move |vmid| (vmid, pool.id.clone()))).collect();
    let reported = fs::read_to_string(layout.etc_pve().join(".rrd")).ok();
    let cluster_dir = layout.root().parent().unwrap_or(layout.root());
    let mut list = Vec::new();
    for (vmid, node) in cluster::all_vms(layout)? {
        let path = layout.etc_pve().join(format!("nodes/{node}/qemu-server/{vmid}.conf"));
        let Ok(text) = fs::read(&path) else { continue };
        let config = VmConfig::parse(&String::from_utf8_lossy(&text));
        let known = reported.as_ref().is_none_or(|text| text.contains(&format!("-vm-9.0/{vmid}:")));
        let mut entry = json!({"type": "qemu", "id": format!("qemu/{vmid}"), "vmid": vmid, "node": node, "status": "unknown"});
        if known {
            measured(&mut entry, &config, &NodeLayout::new(cluster_dir, &node), vmid);
        }
        for key in ["tags", "lock"] {
            if let Some(value) = config.get(key) {
                entry[key] = json!(value);
            }
        }
        if let Some(state) = cluster_ha::state_of(layout, vmid)? {
            entry["hastate"] = json!(state);
        }
        if let Some(pool) = pools.get(&vmid) {
            entry["pool"] = json!(pool);
        }
        list.push(entry);
    }
    Ok(list)
}

fn measured(entry: &mut Value, config: &VmConfig, layout: &NodeLayout, vmid: u32) {
    let number =
        |key: &str, default: u64| config.get(key).and_then(|text| text.trim_start_matches("current=").parse().ok()).unwrap_or(default);
    let cores = number("cores", 1) * number("sockets", 1);
    let fields = json!({
        "status": if guest::running(layout, vmid).is_some() { "running" } else { "stopped" },
        "name": config.get("name").map_or_else(|| format!("VM {vmid}"), str::to_owned),
        "template": u8::from(config.flag("template")),
        "maxcpu": number("vcpus", cores), "maxmem": number("memory", 512) << 20, "maxdisk": boot_disk_size(config),
        "cpu": 0, "mem": 0, "memhost": 0, "disk": 0, "diskread": 0, "diskwrite": 0, "netin": 0, "netout": 0, "uptime": 0,
    });
    if let (Value::Object(entry), Value::Object(fields)) = (entry, fields) {
        entry.extend(fields);
    }
}

/// The size of the first disk that the VM boots from.
fn boot_disk_size(config: &VmConfig) -> u64 {
    let boot = config.get("boot").unwrap_or_default();
    let order = boot.split(',').find_map(|part| part.trim().strip_prefix("order=")).unwrap_or_default();
    let devices = order.split(';').chain(config.get("bootdisk"));
    devices
        .filter(|key| vmconf::is_drive_key(key))
        .filter_map(|key| config.get(key))
        .map(Drive::parse)
        .find(|drive| !drive.is_cdrom())
        .map_or(0, |d| d.size())
}

fn storages(call: &Call) -> Result<Vec<Value>, Failure> {
    let storages = storage::load(call)?;
    let node = call.layout.node();
    let entry = |storage: &crate::storage::Storage| {
        let status = storages.status(&storage.id);
        json!({
            "type": "storage", "id": format!("storage/{node}/{}", storage.id), "storage": storage.id, "node": node, "plugintype": storage.kind,
            "content": storage.content().join(","), "shared": u8::from(storage.is_shared()),
            "status": if status.active { "available" } else { "unknown" }, "disk": status.used, "maxdisk": status.total,
        })
    };
    Ok(storages.config().storages.iter().filter(|storage| storages.enabled(&storage.id).is_ok()).map(entry).collect())
}
