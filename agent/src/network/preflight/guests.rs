//! Guests and the bridges they are on.

use std::collections::BTreeSet;

use super::{Check, Rule, Scene, Severity, some};
use crate::{
    host::net::{Action, KernelLink},
    network::{
        definition::{Interface, Kind},
        management::{interfaces, interfaces_after},
        stack::{guest_of, is_guest_port},
    },
};

pub(super) const IPV6: Rule = Rule {
    id: "net.bridge-ipv6",
    severity: Severity::Warning,
    why: "on a bridge that is there for guests the host has a link-local address and takes router advertisements: guests reach the host past its \
          firewall zones, and one that advertises itself becomes the host's router",
};

pub(super) const OWN_VLANS: Rule = Rule {
    id: "net.guest-vlans",
    severity: Severity::Info,
    why: "a guest whose own 802.1Q frames are not dropped can send and receive in every VLAN that passes there",
};

pub(super) const MISSING: Rule =
    Rule { id: "net.vm-bridges", severity: Severity::Warning, why: "a VM whose bridge does not exist cannot start, or be migrated here" };

pub(super) const IN_USE: Rule = Rule {
    id: "net.network-in-use",
    severity: Severity::Error,
    why: "a guest's NIC that loses its bridge is cut off, and does not come back with the bridge",
};

fn is_guest_bridge(link: &KernelLink) -> bool {
    // PVE turns IPv6 off on the bridges of its firewall itself.
    link.kind == "bridge" && link.addresses.is_empty() && !link.name.starts_with("fwbr")
}

/// Whether a stanza turns IPv6 off. `ipv6-addrgen off` does not: without a link-local address the kernel still takes router advertisements.
fn turns_ipv6_off(scene: &Scene<'_>, name: &str) -> bool {
    let commands = scene.stanzas.iter().filter(|s| s.name == name).flat_map(|s| &s.options);
    let off = |command: &str| command.contains("disable_ipv6") && command.contains('1') && command.contains(name);
    commands.into_iter().any(|(_, command)| off(command))
}

pub(super) fn bridge_ipv6(scene: &Scene<'_>) -> Check {
    let (mut on, mut unknown, mut fine) = (Vec::new(), Vec::new(), 0);
    for bridge in scene.now.links().filter(|l| is_guest_bridge(l)) {
        match bridge.ipv6_disabled {
            Some(true) => fine += 1,
            Some(false) => on.push(bridge.name.clone()),
            None if turns_ipv6_off(scene, &bridge.name) => fine += 1,
            None => unknown.push(bridge.name.clone()),
        }
    }
    if !on.is_empty() {
        let seen = format!("IPv6 is on although the host has no address there: {}", some(&on));
        let remedy = "`echo 1 > /proc/sys/net/ipv6/conf/<bridge>/disable_ipv6`, and the same as `post-up` in its stanza";
        return IPV6.failed(seen, remedy, on);
    }
    if !unknown.is_empty() {
        return IPV6.unknown(format!("whether IPv6 is on was not told of {}", some(&unknown)), "see `sysctl net.ipv6.conf`");
    }
    match fine {
        0 => IPV6.not_applicable("there is no bridge without addresses"),
        n => IPV6.ok(format!("it is off on {n} bridges without addresses")),
    }
}

/// How many VLANs a port is in.
fn vlan_count(link: &KernelLink) -> u32 {
    link.vlans.iter().map(|r| u32::from(r.last.saturating_sub(r.first)) + 1).sum()
}

pub(super) fn own_vlans(scene: &Scene<'_>) -> Check {
    let (mut bad, mut names, mut count) = (Vec::new(), Vec::new(), 0);
    for bridge in scene.later.links().filter(|l| l.kind == "bridge" && !l.name.starts_with("fwbr")) {
        let ports = scene.later.ports(&bridge.name);
        // A classic bridge does not look at tags: on a NIC or bond they go out as they are.
        let trunk = ports.iter().find(|p| matches!(p.kind.as_str(), "ether" | "bond") && !is_guest_port(&p.name));
        for port in ports.iter().filter(|p| is_guest_port(&p.name)) {
            count += 1;
            match (bridge.vlan_aware, trunk) {
                (true, _) if vlan_count(port) > 1 => {
                    bad.push(format!("{} on {} is in {} VLANs", port.name, bridge.name, vlan_count(port)));
                    names.push(port.name.clone());
                }
                (false, Some(trunk)) => {
                    bad.push(format!("{} on {}, which is not VLAN-aware and has {} as its port", port.name, bridge.name, trunk.name));
                    names.push(port.name.clone());
                }
                _ => {}
            }
        }
    }
    match (bad.is_empty(), count) {
        (true, 0) => OWN_VLANS.not_applicable("no guest is on a bridge"),
        (true, n) => OWN_VLANS.ok(format!("{n} ports of guests are in one VLAN each")),
        (false, _) => OWN_VLANS.failed(
            some(&bad),
            "give the NIC a tag on a VLAN-aware bridge (`qm set <vmid> --net0 ...,tag=<vlan>`), or `trunks=` with the VLANs it needs",
            names,
        ),
    }
}

pub(super) fn missing_bridges(scene: &Scene<'_>) -> Check {
    let users = scene.facts.users;
    let missing = users.iter().filter(|u| scene.later.link(&u.bridge).is_none());
    let seen: Vec<String> = missing.clone().map(|u| format!("{} of VM {} is on {}", u.nic, u.vmid, u.bridge)).collect();
    match (seen.is_empty(), users.is_empty()) {
        (true, true) => MISSING.not_applicable("no VM of this host has a NIC on a bridge"),
        (true, false) => MISSING.ok(format!("the bridges of {} NICs exist", users.len())),
        (false, _) => {
            let names: Vec<String> = missing.map(|u| u.bridge.clone()).collect();
            MISSING.failed(some(&seen), "bring the bridge up, or put the NIC on another", names)
        }
    }
}

/// Whether two definitions of one name cannot be changed into each other while somebody uses it.
fn another_kind(before: &Interface, after: &Interface) -> bool {
    match (&before.kind, &after.kind) {
        (Kind::Bridge { vlan_aware: a, .. }, Kind::Bridge { vlan_aware: b, .. }) => a != b,
        (Kind::Vlan { .. }, Kind::Vlan { .. }) => false,
        _ => true,
    }
}

fn stands_on(interface: &Interface, name: &str) -> bool {
    match &interface.kind {
        Kind::Vlan { parent, .. } => parent == name,
        Kind::Bridge { ports, .. } => ports.iter().any(|p| p == name),
    }
}

/// Interfaces of the change that go away, are made anew, or change their kind while somebody uses them: what, and its users.
pub(super) fn in_use(scene: &Scene<'_>) -> Vec<(String, Vec<String>)> {
    let Some(plan) = scene.plan else { return Vec::new() };
    let (before, after) = (interfaces(plan.old_text.as_deref()), interfaces_after(plan));
    let down = plan.steps.iter().filter(|s| s.action == Action::Down).map(|s| s.interface.as_str());
    let changed = after.iter().filter(|(name, i)| before.get(*name).is_some_and(|b| another_kind(b, i))).map(|(name, _)| name.as_str());
    let names: BTreeSet<&str> = plan.gone.iter().map(String::as_str).chain(down).chain(changed).collect();
    let mut found = Vec::new();
    for name in names {
        let gone = !after.contains_key(name);
        let mut users: BTreeSet<String> = BTreeSet::new();
        for user in scene.facts.users.iter().filter(|u| u.bridge == name) {
            users.insert(format!("VM {} ({})", user.vmid, user.nic));
        }
        for port in scene.now.ports(name) {
            let is_own_port = before.get(name).is_some_and(|b| stands_on(b, &port.name));
            users.extend(match guest_of(&port.name) {
                // Told already by its config.
                Some(vmid) if scene.facts.users.iter().any(|u| u.vmid == vmid && u.bridge == name) => None,
                Some(vmid) => Some(format!("guest {vmid} ({})", port.name)),
                None if is_guest_port(&port.name) => Some(format!("a guest ({})", port.name)),
                None if !is_own_port => Some(format!("port {}", port.name)),
                None => None,
            });
        }
        // What stands on it, unless it goes with it or will stand elsewhere. One that is made anew takes its own file's interfaces along.
        let master = scene.now.link(name).and_then(|l| l.master.as_deref());
        let on_it = scene.now.children(name).iter().map(|l| l.name.as_str()).chain(master);
        let stays = |other: &&str| match after.get(*other) {
            Some(own) => gone && stands_on(own, name),
            None => !plan.gone.iter().any(|g| g == other),
        };
        users.extend(on_it.filter(stays).map(|other| format!("interface {other}")));
        let declared = after.values().filter(|i| gone && stands_on(i, name));
        users.extend(declared.map(|i| format!("interface {}", i.name)));
        if !users.is_empty() {
            let kind = scene.now.link(name).map_or("interface", |l| l.kind.as_str());
            found.push((format!("{kind} '{name}'"), users.into_iter().collect()));
        }
    }
    found
}

pub(super) fn network_in_use(scene: &Scene<'_>) -> Check {
    if scene.plan.is_none() {
        return IN_USE.not_applicable("there is no change to look at");
    }
    let used = in_use(scene);
    if used.is_empty() {
        return IN_USE.ok("nobody uses what goes away or changes its kind");
    }
    let seen: Vec<String> = used.iter().map(|(what, users)| format!("{what}: {}", users.join(", "))).collect();
    let names = used.iter().filter_map(|(what, _)| what.split('\'').nth(1)).map(str::to_owned);
    IN_USE.failed(some(&seen), "put their NICs on another bridge, or stop and remove them", names)
}
