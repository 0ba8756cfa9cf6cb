//! Trunks: whether they have a carrier, and whether their NICs mangle tags.

use super::{Check, Rule, Scene, Severity, some};
use crate::{host::net::KernelLink, network::stack::is_guest_port};

pub(super) const CARRIER: Rule = Rule {
    id: "net.trunk-down",
    severity: Severity::Warning,
    why: "what stands on a trunk that is down is cut off, and a change there cannot be tried with frames",
};

pub(super) const OFFLOAD: Rule = Rule {
    id: "net.tx-vlan-offload",
    severity: Severity::Warning,
    why: "some NICs that insert VLAN tags in hardware (ConnectX-3) lose the inner one of two: QinQ and guests' own VLANs fail without a word",
};

/// Drivers of NICs that are known to lose the inner tag.
const LOSERS: [&str; 1] = ["mlx4_en"];

/// The offload that inserts tags.
const TX: &str = "tx-vlan-hw-insert";

/// Whether a link is hardware, or hardware bundled, and not a guest's.
fn is_device(link: &KernelLink) -> bool {
    matches!(link.kind.as_str(), "ether" | "bond") && !is_guest_port(&link.name)
}

pub(super) fn carrier(scene: &Scene<'_>) -> Check {
    let (mut bad, mut names, mut count) = (Vec::new(), Vec::new(), 0);
    for link in scene.later.links().filter(|l| is_device(l)) {
        let vlans = scene.later.children(&link.name).len();
        let what = match (&link.master, vlans) {
            (Some(master), 0) => format!("in {master}"),
            (Some(master), n) => format!("in {master} and under {n} VLANs"),
            (None, 0) => continue,
            (None, n) => format!("under {n} VLANs"),
        };
        count += 1;
        if !link.up || !link.carrier {
            let how = if link.up { "has no carrier" } else { "is not brought up" };
            bad.push(format!("{} ({what}) {how}", link.name));
            names.push(link.name.clone());
        }
    }
    match (bad.is_empty(), count) {
        (true, 0) => CARRIER.not_applicable("no NIC or bond carries a bridge or a VLAN"),
        (true, n) => CARRIER.ok(format!("{n} NICs and bonds that carry others are up")),
        (false, _) => CARRIER.failed(some(&bad), "check cable, switch port and `ip -d link show <name>`", names),
    }
}

pub(super) fn tx_vlan_offload(scene: &Scene<'_>) -> Check {
    let (mut bad, mut names, mut unknown, mut fine) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut severity = Severity::Info;
    for nic in scene.later.links().filter(|l| l.kind == "ether" && !is_guest_port(&l.name)) {
        let above: Vec<&KernelLink> = scene.later.above(&nic.name).into_iter().filter_map(|n| scene.later.link(n)).collect();
        let double: Vec<&str> = above.iter().filter(|l| scene.later.tags(l).0 > 1).map(|l| l.name.as_str()).collect();
        let aware: Vec<&str> = above.iter().filter(|l| l.vlan_aware).map(|l| l.name.as_str()).collect();
        if double.is_empty() && aware.is_empty() {
            continue;
        }
        let Some(on) = scene.facts.offloads.get(&nic.name) else {
            unknown.push(nic.name.clone());
            continue;
        };
        if !on.iter().any(|o| o == TX) {
            fine.push(nic.name.clone());
            continue;
        }
        let loses = LOSERS.contains(&nic.driver.as_str());
        if loses || !double.is_empty() {
            severity = Severity::Warning;
        }
        let driver = if nic.driver.is_empty() { String::new() } else { format!(", driver {}", nic.driver) };
        let what = if double.is_empty() { "VLAN-aware bridge" } else { "QinQ" };
        let on_it = if double.is_empty() { aware } else { double };
        bad.push(format!("{} has {TX} on{driver}; on it stands {what} {}", nic.name, on_it.join(", ")));
        names.push(nic.name.clone());
    }
    if !bad.is_empty() {
        let remedy = names.iter().map(|n| format!("`ethtool -K {n} txvlan off`")).collect::<Vec<_>>();
        let remedy = format!("{} where double tags do not arrive, and the same as `post-up` of the NIC", some(&remedy));
        let check = OFFLOAD.failed(some(&bad), remedy, names);
        return Check { severity, ..check };
    }
    if !unknown.is_empty() {
        return OFFLOAD.unknown(format!("{} do not tell their offloads", unknown.join(", ")), "see `ethtool -k <name>`");
    }
    if fine.is_empty() {
        return OFFLOAD.not_applicable("neither QinQ nor a VLAN-aware bridge stands on a NIC");
    }
    OFFLOAD.ok(format!("{TX} is off on {}", fine.join(", ")))
}
