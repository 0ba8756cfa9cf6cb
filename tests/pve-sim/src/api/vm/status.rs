//! The run state of VMs as the list and `status/current` show it.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};

use crate::{
    guest,
    layout::NodeLayout,
    vmconf::{Drive, VmConfig, is_drive_key},
};

/// Memory of a VM that does not say how much, in MiB.
const DEFAULT_MEMORY_MIB: u64 = 512;
/// Clock ticks a second, of `/proc/<pid>/stat`.
const TICKS_PER_SECOND: u64 = 100;

/// The current memory of a VM in MiB.
pub(super) fn memory_mib(config: &VmConfig) -> u64 {
    let text = config.get("memory").unwrap_or_default();
    text.strip_prefix("current=").unwrap_or(text).parse().unwrap_or(DEFAULT_MEMORY_MIB)
}

/// The drives to boot from, in order.
pub(super) fn boot_drives(config: &VmConfig) -> Vec<String> {
    let boot = config.get("boot").unwrap_or_default();
    if let Some(order) = boot.split(',').find_map(|part| part.strip_prefix("order=")) {
        return order.split(';').map(str::to_owned).collect();
    }
    let legacy = config.get("bootdisk").map(str::to_owned);
    legacy.into_iter().collect()
}

fn boot_disk_size(config: &VmConfig) -> u64 {
    let keys = boot_drives(config);
    let drives = keys.iter().filter(|key| is_drive_key(key)).filter_map(|key| config.get(key)).map(Drive::parse);
    drives.filter(|drive| !drive.is_cdrom()).map(|drive| drive.size()).next().unwrap_or(0)
}

fn number(config: &VmConfig, key: &str) -> Option<u64> {
    config.get(key).and_then(|text| text.parse().ok())
}

/// What the list tells of a VM.
pub(super) fn entry(vmid: u32, config: &VmConfig, pid: Option<u32>) -> Map<String, Value> {
    let cpus = number(config, "vcpus").unwrap_or_else(|| number(config, "sockets").unwrap_or(1) * number(config, "cores").unwrap_or(1));
    let mut entry = json!({
        "vmid": vmid,
        "name": config.get("name").map_or_else(|| format!("VM {vmid}"), str::to_owned),
        "status": if pid.is_some() { "running" } else { "stopped" },
        "cpus": cpus, "cpu": 0, "mem": 0, "memhost": 0, "maxmem": memory_mib(config) << 20,
        "disk": 0, "maxdisk": boot_disk_size(config), "netin": 0, "netout": 0, "uptime": 0,
    });
    if config.flag("template") {
        entry["template"] = json!(1);
    }
    for key in ["lock", "tags"] {
        if let Some(text) = config.get(key) {
            entry[key] = json!(text);
        }
    }
    if config.values.keys().any(|key| key.starts_with("serial")) {
        entry["serial"] = json!(1);
    }
    if let Some(pid) = pid {
        entry["pid"] = json!(pid);
        entry["uptime"] = json!(uptime(pid));
        for resource in ["cpu", "io", "memory"] {
            for kind in ["some", "full"] {
                entry[format!("pressure{resource}{kind}")] = json!(0);
            }
        }
    }
    match entry {
        Value::Object(entry) => entry,
        _ => Map::new(),
    }
}

/// The state that QEMU itself tells: `running`, `paused`, `stopped`.
pub(super) fn qmp_status(layout: &NodeLayout, vmid: u32, pid: Option<u32>) -> String {
    let asked = pid.and_then(|_| guest::qmp::command(layout, vmid, "query-status").ok());
    match (pid, asked.as_ref().and_then(|answer| answer["status"].as_str())) {
        (None, _) => String::from("stopped"),
        (Some(_), Some(status)) => status.to_owned(),
        (Some(_), None) => String::from("running"),
    }
}

/// What `status/current` tells of a VM.
pub(super) fn current(layout: &NodeLayout, vmid: u32, config: &VmConfig) -> Map<String, Value> {
    let pid = guest::running(layout, vmid);
    let mut entry = entry(vmid, config, pid);
    entry.insert("qmpstatus".into(), json!(qmp_status(layout, vmid, pid)));
    entry.insert("ha".into(), super::ha::json(layout, vmid));
    if super::agent_enabled(config) {
        entry.insert("agent".into(), json!(1));
    }
    if config.get("vga").is_some() {
        entry.insert("clipboard".into(), Value::Null);
    }
    add_cards(&mut entry, vmid, config, pid);
    entry
}

/// The network cards of a running VM.
pub(super) fn add_cards(entry: &mut Map<String, Value>, vmid: u32, config: &VmConfig, pid: Option<u32>) {
    let cards: BTreeMap<String, Value> = config
        .values
        .keys()
        .filter_map(|key| Some((format!("tap{vmid}i{}", key.strip_prefix("net")?), json!({"netin": 0, "netout": 0}))))
        .collect();
    if pid.is_some() && !cards.is_empty() {
        entry.insert("nics".into(), json!(cards));
    }
}

fn uptime(pid: u32) -> u64 {
    let boot = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = boot.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let started = crate::task::process_start(pid).unwrap_or(0) / TICKS_PER_SECOND;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since boot")]
    (seconds as u64).saturating_sub(started)
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|passed| passed.as_secs()).unwrap_or_default()
}
