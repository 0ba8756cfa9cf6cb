//! MTUs that do not fit on each other.

use super::{Check, Rule, Scene, Severity, sdn, some};
use crate::network::stack::is_guest_port;

pub(super) const CHAIN: Rule = Rule {
    id: "net.mtu-chain",
    severity: Severity::Warning,
    why: "frames that fit the upper interface and not the one below are dropped without a word: small packets pass, large transfers hang",
};

pub(super) const TAGS: Rule = Rule {
    id: "net.zone-mtu",
    severity: Severity::Warning,
    why: "each tag beyond the first takes 4 bytes of what the NIC and the switches let through, VXLAN takes 50; full-sized frames are dropped",
};

/// Bytes that VXLAN over IPv4 takes.
const VXLAN: u32 = 50;

pub(super) fn chain(scene: &Scene<'_>) -> Check {
    let (mut bad, mut names, mut looked) = (Vec::new(), Vec::new(), 0);
    // An MTU of 0 was not read.
    for link in scene.later.links().filter(|l| l.mtu > 0) {
        if let Some(parent) = link.parent.as_deref().and_then(|p| scene.later.link(p)).filter(|p| p.mtu > 0 && link.vlan.is_some()) {
            looked += 1;
            if link.mtu > parent.mtu {
                bad.push(format!("{} has {}, its parent {} only {}", link.name, link.mtu, parent.name, parent.mtu));
                names.push(link.name.clone());
            }
        }
        let what = if link.kind == "bond" { "member" } else { "port" };
        for port in scene.later.ports(&link.name).iter().filter(|p| p.mtu > 0 && !is_guest_port(&p.name)) {
            looked += 1;
            if link.mtu > port.mtu {
                bad.push(format!("{} has {}, its {what} {} only {}", link.name, link.mtu, port.name, port.mtu));
                names.push(link.name.clone());
            }
        }
    }
    match (bad.is_empty(), looked) {
        (true, 0) => CHAIN.not_applicable("no interface stands on another"),
        (true, n) => CHAIN.ok(format!("{n} pairs of interfaces fit")),
        (false, _) => CHAIN.failed(
            some(&bad),
            "raise the `mtu` of the lower interface (and of the switch port), or lower that of the upper one, from the bottom up",
            names,
        ),
    }
}

pub(super) fn room_for_tags(scene: &Scene<'_>) -> Check {
    let (mut bad, mut names, mut looked) = (Vec::new(), Vec::new(), 0);
    let mut need = |name: &str, mtu: u32, base: &str, base_mtu: u32, takes: u32, how: &str| {
        looked += 1;
        if mtu > base_mtu.saturating_sub(takes) {
            let room = base_mtu.saturating_sub(takes);
            bad.push(format!("{name} ({how}) has {mtu}, {base} has {base_mtu}: room is for {room}"));
            names.push(name.to_owned());
        }
    };
    for link in scene.later.links().filter(|l| l.mtu > 0) {
        let (tags, base) = scene.later.tags(link);
        if tags > 1 && base.mtu > 0 {
            need(&link.name, link.mtu, &base.name, base.mtu, 4 * (tags - 1), "QinQ");
        }
        if let ("vxlan", Some(under)) = (link.kind.as_str(), link.parent.as_deref().and_then(|p| scene.later.link(p)))
            && under.mtu > 0
        {
            need(&link.name, link.mtu, &under.name, under.mtu, VXLAN, "VXLAN");
        }
    }
    for (zone, bridge, mtu) in sdn::qinq_zones(scene.facts) {
        let Some(bridge) = scene.later.link(&bridge).filter(|b| b.mtu > 0) else { continue };
        // Without a word PVE leaves the kernel's 1500.
        let mtu = mtu.or_else(|| scene.later.link(&format!("z_{zone}")).map(|l| l.mtu)).unwrap_or(1500);
        need(&format!("zone {zone}"), mtu, &bridge.name, bridge.mtu, 4, "SDN QinQ");
    }
    match (bad.is_empty(), looked) {
        (true, 0) => TAGS.not_applicable("neither QinQ nor VXLAN is in use"),
        (true, n) => TAGS.ok(format!("{n} interfaces leave room for their tags")),
        (false, _) => TAGS.failed(
            some(&bad),
            "raise the MTU of the NIC, bond and switch ports by that much, or lower it above (zone MTU = uplink - 4)",
            names,
        ),
    }
}
