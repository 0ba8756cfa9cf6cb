//! What the daemons of the nodes report to the cluster file system: `.clusterlog` and `.rrd`. It is read from the nodes' files at the moment of reading, where a
//! real host's status daemon reports every ten seconds.

use std::{
    fmt::Write,
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    guest,
    layout::NodeLayout,
    storage::Config,
    task::Upid,
    vmconf::{Drive, VmConfig},
};

/// Entries that are kept.
const LOG_ENTRIES: usize = 50;
/// Fields of a VM that are unknown while it does not run.
const UNKNOWN: &str = "U:U:U:U:U:U:U:U:U:U:U";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}

/// The beginnings and ends of the nodes' last tasks, the newest first.
pub(super) fn cluster_log(nodes: &[NodeLayout]) -> String {
    let mut entries = Vec::new();
    for layout in nodes {
        let active = fs::read_to_string(layout.tasks().join("active")).unwrap_or_default();
        for line in active.lines() {
            let mut parts = line.splitn(4, ' ');
            let Some(upid) = parts.next().and_then(|text| text.parse::<Upid>().ok()) else { continue };
            entries.push((upid.starttime, upid.pid, layout.node().to_owned(), format!("starting task {upid}")));
            if let (Some("1"), Some(end), Some(status)) = (parts.next(), parts.next(), parts.next()) {
                let end = u64::from_str_radix(end, 16).unwrap_or(upid.starttime);
                entries.push((end, upid.pid, layout.node().to_owned(), format!("end task {upid} {status}")));
            }
        }
    }
    entries.sort_by_key(|(time, ..)| *time);
    let first = entries.len().saturating_sub(LOG_ENTRIES);
    let lines: Vec<String> = entries[first..]
        .iter()
        .enumerate()
        .rev()
        .map(|(uid, (time, pid, node, message))| {
            let message = serde_json::Value::from(message.as_str());
            format!(
                "{{\"uid\": {}, \"time\": {time}, \"pri\": 6, \"tag\": \"pvedaemon\", \"pid\": {pid}, \"node\": \"{node}\", \"user\": \"root@pam\", \"msg\": {message}}}",
                first + uid + 1
            )
        })
        .collect();
    if lines.is_empty() { String::from("{\n\"data\": [\n]\n}\n") } else { format!("{{\n\"data\": [\n{}\n]\n}}\n", lines.join(",\n")) }
}

/// The state of the VMs, given with the node that has them and their configs, and of the nodes' storages by `storage.cfg`.
pub(super) fn statistics<'a>(nodes: &[NodeLayout], storage_cfg: &str, vms: impl Iterator<Item = (u32, &'a str, String)>) -> String {
    let storages = Config::parse(storage_cfg).storages;
    let time = now();
    let mut text = String::new();
    for (vmid, node, config) in vms {
        let Some(layout) = nodes.iter().find(|layout| layout.node() == node) else { continue };
        let _ = writeln!(text, "{}", vm(vmid, layout, &VmConfig::parse(&config), time));
    }
    for layout in nodes {
        for storage in storages.iter().filter(|storage| !storage.flag("disable") && storage.is_for(layout.node())) {
            let Ok(stat) = nix::sys::statvfs::statvfs(&layout.host_path(storage.path())) else { continue };
            let (total, free) = (stat.blocks() * stat.fragment_size(), stat.blocks_free() * stat.fragment_size());
            let _ = writeln!(text, "pve-storage-9.0/{}/{}:{time}:{total}:{}", layout.node(), storage.id, total - free);
        }
    }
    text
}

fn vm(vmid: u32, layout: &NodeLayout, config: &VmConfig, time: u64) -> String {
    let number = |key: &str, default: u64| config.get(key).and_then(|text| text.parse().ok()).unwrap_or(default);
    let name = config.get("name").map_or_else(|| format!("VM {vmid}"), str::to_owned);
    let cores = number("cores", 1) * number("sockets", 1);
    let memory = number("memory", 512) << 20;
    let order = config.get("boot").and_then(|boot| boot.trim().strip_prefix("order=")).unwrap_or_default();
    let disk = order.split(';').filter_map(|key| config.get(key)).map(Drive::parse).find(|drive| drive.has_volume() && !drive.is_cdrom());
    let disk = disk.map_or(0, |drive| drive.size());
    let template = u8::from(config.flag("template"));
    match guest::running(layout, vmid) {
        Some(_) => format!("pve-vm-9.0/{vmid}:0:{name}:running:{template}:{time}:{cores}:0:{memory}:0:{disk}:0:0:0:U:U:0:0:0:0:0:0:0"),
        None => format!("pve-vm-9.0/{vmid}:0:{name}:stopped:{template}:{time}:{cores}:U:{memory}:U:{disk}:0:{UNKNOWN}"),
    }
}
