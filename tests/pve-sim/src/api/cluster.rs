//! Calls on the cluster and its nodes: version, status, free VMIDs, what a node is.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{Call, Failure, Param, Reply, Route, cluster_file, cluster_machine as machine_of, cluster_options};
use crate::layout::NodeLayout;

const REPOSITORY: &str = "14a22df35955d97d";
const VERSION: &str = "9.2.11";

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::new("GET", "/version", vec![], version),
        Route::new("GET", "/nodes/{node}/version", vec![], version),
        Route::new("GET", "/cluster/status", vec![], status),
        Route::new("GET", "/cluster/nextid", vec![Param::vmid("vmid").optional()], next_id),
        Route::new("GET", "/cluster/config/nodes", vec![], config_nodes),
        Route::new("GET", "/nodes", vec![], nodes),
        Route::new("GET", "/nodes/{node}/status", vec![], node_status),
        Route::new("GET", "/nodes/{node}/hosts", vec![], hosts),
    ]
}

fn version(_: &Call) -> Result<Reply, Failure> {
    Ok(Reply::from(json!({"version": VERSION, "release": "9.2", "repoid": REPOSITORY})))
}

/// The nodes of the cluster by name, with what `.members` says of each; a node of no cluster knows only itself.
fn members(layout: &NodeLayout) -> (Value, Vec<(String, Value)>) {
    let text = fs::read_to_string(layout.etc_pve().join(".members")).unwrap_or_default();
    let all: Value = serde_json::from_str(&text).unwrap_or_default();
    let list = all["nodelist"].as_object().into_iter().flatten().map(|(name, node)| (name.clone(), node.clone())).collect();
    (all["cluster"].clone(), list)
}

fn status(call: &Call) -> Result<Reply, Failure> {
    let (cluster, nodes) = members(&call.layout);
    let own = call.layout.node();
    let entry = |name: &str, node: &Value| {
        json!({
            "type": "node", "id": format!("node/{name}"), "name": name, "level": "", "local": u8::from(name == own),
            "nodeid": node["id"].as_u64().unwrap_or(0), "online": node["online"].as_u64().unwrap_or(1),
            "ip": node["ip"].as_str().map_or_else(|| address(&call.layout, name), str::to_owned),
        })
    };
    if cluster.is_null() {
        return Ok(Reply::from(json!([entry(own, &Value::Null)])));
    }
    let mut list = vec![json!({
        "type": "cluster", "id": "cluster", "name": cluster["name"], "version": cluster["version"], "nodes": cluster["nodes"], "quorate": cluster["quorate"],
    })];
    list.extend(nodes.iter().map(|(name, node)| entry(name, node)));
    Ok(Reply::from(Value::from(list)))
}

/// A node's address by `/etc/hosts`.
fn address(layout: &NodeLayout, name: &str) -> String {
    let hosts = fs::read_to_string(layout.host_path("/etc/hosts")).unwrap_or_default();
    let line = hosts.lines().map(str::split_whitespace).find(|line| line.clone().skip(1).any(|host| host == name));
    line.and_then(|mut line| line.next()).unwrap_or("127.0.0.1").to_owned()
}

fn config_nodes(call: &Call) -> Result<Reply, Failure> {
    let (_, nodes) = members(&call.layout);
    Ok(Reply::from(
        nodes.iter().map(|(name, node)| json!({"node": name, "name": name, "nodeid": node["id"].to_string()})).collect::<Value>(),
    ))
}

/// Every VMID in use, with its node, from the config files of all nodes.
pub(super) fn all_vms(layout: &NodeLayout) -> Result<Vec<(u32, String)>, Failure> {
    let mut found = Vec::new();
    let nodes = layout.etc_pve().join("nodes");
    for node in names(&nodes) {
        for file in names(&nodes.join(&node).join("qemu-server")) {
            found.extend(file.strip_suffix(".conf").and_then(|id| id.parse().ok()).map(|id| (id, node.clone())));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn next_id(call: &Call) -> Result<Reply, Failure> {
    let used: Vec<u32> = all_vms(&call.layout)?.into_iter().map(|(id, _)| id).collect();
    if call.params.has("vmid") {
        let vmid = call.params.vmid();
        return match used.contains(&vmid) {
            true => Err(Failure::parameter("vmid", format!("VM {vmid} already exists"))),
            false => Ok(Reply::from(json!(vmid.to_string()))),
        };
    }
    let (lower, upper) = cluster_options::next_id_range(&call.layout)?;
    let free = (lower..upper).find(|id| !used.contains(id));
    let none = || Failure::die(format!("unable to get any free VMID in range [{lower}, {}]", upper.saturating_sub(1)));
    Ok(Reply::from(json!(free.ok_or_else(none)?.to_string())))
}

/// Memory and uptime of this machine: (total, available, uptime in seconds).
fn machine() -> (u64, u64, f64) {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    (kib("MemTotal") << 10, kib("MemAvailable") << 10, seconds)
}

fn root_disk(layout: &NodeLayout) -> (u64, u64, u64) {
    let Ok(stat) = nix::sys::statvfs::statvfs(layout.root()) else { return (0, 0, 0) };
    let block = stat.fragment_size();
    (stat.blocks() * block, stat.blocks_free() * block, stat.blocks_available() * block)
}

/// What PVE lists of a node: without measured values when it is not online.
pub(super) fn node_entry(layout: &NodeLayout, online: bool) -> Value {
    let name = layout.node();
    if !online {
        return json!({"type": "node", "id": format!("node/{name}"), "node": name, "status": "offline"});
    }
    let (total, available, uptime) = machine();
    let (disk_total, disk_free, _) = root_disk(layout);
    json!({
        "type": "node", "id": format!("node/{name}"), "node": name, "status": "online", "level": "", "cpu": 0.0, "maxcpu": machine_of::CORES,
        "mem": total - available, "maxmem": total, "disk": disk_total - disk_free, "maxdisk": disk_total, "uptime": whole(uptime),
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since boot fit")]
fn whole(seconds: f64) -> u64 {
    seconds as u64
}

/// Every node of the cluster with whether it is online.
pub(super) fn all_nodes(layout: &NodeLayout) -> Vec<(NodeLayout, bool)> {
    let (_, nodes) = members(layout);
    if nodes.is_empty() {
        return vec![(layout.clone(), true)];
    }
    let cluster = layout.root().parent().unwrap_or(layout.root());
    nodes.iter().map(|(name, node)| (NodeLayout::new(cluster, name), node["online"] == 1)).collect()
}

/// The fingerprint of the certificate that a real node has; a stand-in of the same shape.
fn fingerprint(name: &str) -> String {
    use sha1::{Digest, Sha1};
    let bytes = [Sha1::digest(name.as_bytes()).to_vec(), Sha1::digest(b"certificate").to_vec()].concat();
    bytes.iter().take(32).map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

fn nodes(call: &Call) -> Result<Reply, Failure> {
    let entry = |(layout, online): &(NodeLayout, bool)| {
        let mut entry = node_entry(layout, *online);
        entry["ssl_fingerprint"] = json!(fingerprint(layout.node()));
        entry
    };
    Ok(Reply::from(all_nodes(&call.layout).iter().map(entry).collect::<Value>()))
}

fn node_status(call: &Call) -> Result<Reply, Failure> {
    let (total, available, uptime) = machine();
    let (disk_total, disk_free, disk_available) = root_disk(&call.layout);
    let (release, build) = machine_of::KERNEL;
    let (model, vendor, family, mhz) = machine_of::CPU;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Ok(Reply::from(json!({
        "pveversion": format!("pve-manager/{VERSION}/{REPOSITORY}"),
        "kversion": format!("Linux {release} {build}"),
        "current-kernel": {"sysname": "Linux", "release": release, "version": build, "machine": "x86_64"},
        "boot-info": {"mode": "legacy-bios"},
        "cpu": 0, "wait": 0, "idle": 0, "uptime": whole(uptime),
        "loadavg": load.split_whitespace().take(3).collect::<Vec<_>>(),
        "cpuinfo": {
            "cpus": machine_of::CORES, "cores": machine_of::CORES, "sockets": 1, "user_hz": 100, "hvm": "", "family": family, "model": model,
            "vendor": vendor, "mhz": mhz, "flags": machine_of::CPU_FLAGS,
        },
        "memory": {"total": total, "used": total - available, "free": available, "available": available},
        "swap": {"total": 0, "used": 0, "free": 0},
        "ksm": {"shared": 0},
        "rootfs": {"total": disk_total, "used": disk_total - disk_free, "free": disk_free, "avail": disk_available},
    })))
}

fn hosts(call: &Call) -> Result<Reply, Failure> {
    let text = cluster_file::read(&call.layout.host_path("/etc/hosts"))?;
    Ok(Reply::from(json!({"data": text, "digest": crate::vmconf::digest(&text)})))
}
