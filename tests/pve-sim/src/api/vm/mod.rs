//! Calls on VMs, and the works of the tasks they start.

mod agent;
mod clone;
mod cloudinit;
mod create;
mod destroy;
mod disk;
mod drive;
mod env;
mod ha;
mod hotplug;
mod move_disk;
mod option_values;
mod options;
mod pending;
mod pool;
mod power;
mod read;
mod resize;
mod snapshot;
mod status;
mod template;
mod update;

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};

use serde_json::Value;

use super::{Failure, Route, params::boolean};
use crate::{
    layout::NodeLayout,
    storage::Storages,
    task::Work,
    vmconf::{self, VmConfig},
};

/// The works of VM tasks by name.
pub const WORKS: &[(&str, Work)] = &[
    ("clone", clone::work),
    ("config", update::work),
    ("create", create::work),
    ("destroy", destroy::work),
    ("ha_start", power::ha_start_work),
    ("ha_stop", power::ha_stop_work),
    ("move_disk", move_disk::work),
    ("reboot", power::reboot_work),
    ("reset", power::reset_work),
    ("resize", resize::work),
    ("resume", power::resume_work),
    ("shutdown", power::shutdown_work),
    ("snapshot", snapshot::create_work),
    ("snapshot_delete", snapshot::delete_work),
    ("snapshot_rollback", snapshot::rollback_work),
    ("start", power::start_work),
    ("stop", power::stop_work),
    ("suspend", power::suspend_work),
    ("template", template::work),
];

/// The calls on VMs.
pub(super) fn routes() -> Vec<Route> {
    let all = [read::routes, power::routes, clone::routes, create::routes, update::routes, resize::routes, template::routes];
    let more = [cloudinit::routes, destroy::routes, agent::routes, snapshot::routes, move_disk::routes];
    all.iter().chain(&more).flat_map(|routes| routes()).collect()
}

/// Whether a VM's configuration enables the guest agent.
fn agent_enabled(config: &VmConfig) -> bool {
    let first = config.get("agent").unwrap_or_default().split(',').next().unwrap_or_default();
    boolean(first.strip_prefix("enabled=").unwrap_or(first)).unwrap_or(false)
}

/// The format of a new volume: the wanted one where the storage has it, raw otherwise.
fn target_format(storages: &Storages, storage: &str, wanted: &str) -> Result<&'static str, Failure> {
    let storage = storages.get(storage)?;
    let known = storage.formats().iter().find(|format| **format == wanted).copied();
    Ok(known.unwrap_or("raw"))
}

/// Refuses a call that needs quorum. The node's own folder can be written to only with it, which its mode tells.
fn check_quorum(layout: &NodeLayout) -> Result<(), Failure> {
    let mode = fs::metadata(layout.etc_pve().join("nodes").join(layout.node())).map(|meta| meta.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o200 == 0) { Err(Failure::die("cluster not ready - no quorum?")) } else { Ok(()) }
}

/// Refuses a node that the cluster does not have.
fn known_node(layout: &NodeLayout, node: &str) -> Result<(), Failure> {
    let text = fs::read(layout.etc_pve().join(".members")).unwrap_or_default();
    let members: Value = serde_json::from_slice(&text).unwrap_or_default();
    if members["nodelist"][node].is_object() { Ok(()) } else { Err(Failure::die(format!("no such cluster node '{node}'"))) }
}

/// Gives a VM of this node to another node: its configuration's file moves.
fn move_config(layout: &NodeLayout, vmid: u32, node: &str) -> Result<(), Failure> {
    let target = layout.etc_pve().join(format!("nodes/{node}/qemu-server/{vmid}.conf"));
    fs::rename(layout.vm_config(vmid), target)?;
    Ok(())
}

/// A network device with a MAC address: one that has none gets one.
fn with_mac(layout: &NodeLayout, text: &str) -> String {
    net(layout, text, false)
}

/// A network device with a MAC address of its own.
fn with_new_mac(layout: &NodeLayout, text: &str) -> String {
    net(layout, text, true)
}

fn net(layout: &NodeLayout, text: &str, new: bool) -> String {
    let Some(mut parts) = options::net("net0", text) else { return text.to_owned() };
    let model = parts.remove("model").unwrap_or_else(|| String::from("virtio"));
    let mac = parts.remove("macaddr").filter(|_| !new).map_or_else(|| random_mac(layout), |mac| mac.to_ascii_uppercase());
    let others: BTreeMap<String, String> = parts;
    std::iter::once(format!("{model}={mac}"))
        .chain(others.iter().map(|(key, value)| format!("{key}={value}")))
        .collect::<Vec<_>>()
        .join(",")
}

/// A MAC address with the cluster's prefix.
fn random_mac(layout: &NodeLayout) -> String {
    let settings = fs::read_to_string(layout.etc_pve().join("datacenter.cfg")).unwrap_or_default();
    let prefix = settings.lines().find_map(|line| line.strip_prefix("mac_prefix:")).map_or("BC:24:11", str::trim).to_owned();
    let random: [u8; 6] = rand::random();
    let given = prefix.split(':').count();
    let rest: String = random.iter().skip(given).map(|byte| format!(":{byte:02X}")).collect();
    format!("{prefix}{rest}")
}

/// Whether a VMID is taken in the cluster, with the kind and node of who has it.
fn check_free(layout: &NodeLayout, vmid: u32) -> Result<(), String> {
    match vmconf::holder(layout, vmid) {
        None => Ok(()),
        Some((kind, node)) => {
            let kind = if kind == "lxc" { "CT" } else { "VM" };
            Err(format!("{kind} {vmid} already exists on node '{node}'"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_network_device_is_written_in_order_and_gets_an_address() {
        let layout = NodeLayout::new("/nowhere".as_ref(), "n");
        let sorted = with_mac(&layout, "virtio=bc:24:11:00:00:01,tag=100,bridge=vmbr0,link_down=1");
        assert_eq!(sorted, "virtio=BC:24:11:00:00:01,bridge=vmbr0,link_down=1,tag=100");
        let made = with_mac(&layout, "virtio,bridge=vmbr0");
        assert!(made.starts_with("virtio=BC:24:11:") && made.ends_with(",bridge=vmbr0") && made.len() == 37, "{made}");
        assert_ne!(with_new_mac(&layout, &sorted), sorted);
    }

    #[test]
    fn the_agent_is_enabled_by_its_first_value() {
        for (text, enabled) in [("1", true), ("enabled=1,type=virtio", true), ("0", false), ("1,freeze-fs-on-backup=0", true)] {
            let config = VmConfig::parse(&format!("agent: {text}\n"));
            assert_eq!(agent_enabled(&config), enabled, "{text}");
        }
    }
}
