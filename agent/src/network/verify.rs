//! Whether the kernel has what was declared, and whether it has again what it had. What the kernel and the guests do by themselves does not
//! count: link-local addresses, carriers, VLAN 1 of a VLAN-aware bridge, ports of guests that start and stop.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{
    definition::{Definition, Interface, Kind},
    own_file::{OwnFile, lower, vids_text},
    plan::Plan,
    stack::is_guest_port,
    validate::merged,
};
use crate::host::net::{Kernel, KernelLink, KernelRoute, VlanRange, VlanTag};

/// Links that come and go with guests and probes.
const EPHEMERAL: [&str; 6] = ["tap", "veth", "fwpr", "fwln", "fwbr", "pvprobe"];

fn is_ephemeral(name: &str) -> bool {
    EPHEMERAL.iter().any(|p| name.starts_with(p))
}

/// The links of a kernel by name and by what they stand on.
pub(super) struct Index<'a> {
    links: BTreeMap<&'a str, &'a KernelLink>,
    ports: BTreeMap<&'a str, Vec<&'a KernelLink>>,
    vlans: BTreeMap<&'a str, Vec<&'a KernelLink>>,
}

impl<'a> Index<'a> {
    pub(super) fn new(kernel: &'a Kernel) -> Self {
        let mut index = Self { links: BTreeMap::new(), ports: BTreeMap::new(), vlans: BTreeMap::new() };
        for link in &kernel.links {
            index.links.insert(&link.name, link);
            if let Some(master) = &link.master {
                index.ports.entry(master).or_default().push(link);
            }
            if let Some(parent) = &link.parent {
                index.vlans.entry(parent).or_default().push(link);
            }
        }
        index
    }

    /// The link with this very name.
    pub(super) fn link(&self, name: &str) -> Option<&'a KernelLink> {
        self.links.get(name).copied()
    }

    /// The ports of a bridge or bond.
    pub(super) fn ports(&self, name: &str) -> &[&'a KernelLink] {
        self.ports.get(name).map_or(&[], Vec::as_slice)
    }

    /// The VLANs that stand on a link.
    pub(super) fn vlans(&self, name: &str) -> &[&'a KernelLink] {
        self.vlans.get(name).map_or(&[], Vec::as_slice)
    }
}

/// How far an interface is from what was declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Repair {
    /// Another `ifup` mends it.
    Change,
    /// It must go away first.
    Remake,
    /// It is not there.
    Make,
}

/// One thing in which an interface is not as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) repair: Repair,
    pub(super) what: &'static str,
    pub(super) is: String,
    pub(super) wanted: String,
}

impl Gap {
    pub(super) fn new(repair: Repair, what: &'static str, is: impl Into<String>, wanted: impl Into<String>) -> Self {
        Self { repair, what, is: is.into(), wanted: wanted.into() }
    }

    fn tell(&self, name: &str) -> String {
        match self.repair {
            Repair::Make => format!("{name} does not exist"),
            _ => format!("{name}: {} is {}, not {}", self.what, self.is, self.wanted),
        }
    }
}

/// Where the kernel's interface is not as declared.
pub(super) fn gaps(interface: &Interface, index: &Index<'_>) -> Vec<Gap> {
    let Some(link) = index.link(&interface.name) else {
        return vec![Gap::new(Repair::Make, "interface", "missing", "there")];
    };
    let mut out = Vec::new();
    match &interface.kind {
        Kind::Vlan { parent, id, service } => {
            if link.kind != "vlan" {
                return vec![Gap::new(Repair::Remake, "kind", &link.kind, "vlan")];
            }
            if link.parent.as_ref() != Some(parent) {
                out.push(Gap::new(Repair::Remake, "parent", link.parent.as_deref().unwrap_or("unknown"), parent));
            }
            let wanted = VlanTag { id: *id, service: *service };
            if link.vlan != Some(wanted) {
                out.push(Gap::new(Repair::Remake, "tag", link.vlan.map_or_else(|| "unknown".into(), tag_text), tag_text(wanted)));
            }
        }
        Kind::Bridge { ports, vlan_aware, vids } => {
            if link.kind != "bridge" {
                return vec![Gap::new(Repair::Remake, "kind", &link.kind, "bridge")];
            }
            bridge_gaps(link, (ports, *vlan_aware, vids), index, &mut out);
        }
    }
    if !link.up {
        out.push(Gap::new(Repair::Change, "state", "down", "up"));
    }
    let inherited = match &interface.kind {
        Kind::Vlan { parent, .. } => index.link(parent).map(|p| p.mtu),
        // Without one in the file, a bridge's is the kernel's and ifupdown2's business.
        Kind::Bridge { .. } => None,
    };
    if let Some(mtu) = interface.mtu.or(inherited).filter(|m| *m != link.mtu) {
        out.push(Gap::new(Repair::Change, "mtu", link.mtu.to_string(), mtu.to_string()));
    }
    if !same_addresses(&interface.addresses, &link.addresses) {
        out.push(Gap::new(Repair::Change, "addresses", addresses_text(&link.addresses), addresses_text(&interface.addresses)));
    }
    out
}

fn bridge_gaps(link: &KernelLink, (ports, vlan_aware, vids): (&[String], bool, &[(u16, u16)]), index: &Index<'_>, out: &mut Vec<Gap>) {
    if link.vlan_aware != vlan_aware {
        let text = |aware| if aware { "on" } else { "off" };
        out.push(Gap::new(Repair::Remake, "VLAN filter", text(link.vlan_aware), text(vlan_aware)));
    }
    if link.stp {
        out.push(Gap::new(Repair::Change, "STP", "on", "off"));
    }
    let wanted: BTreeSet<&str> = ports.iter().map(String::as_str).collect();
    let all: BTreeSet<&str> = index.ports(&link.name).iter().map(|p| p.name.as_str()).collect();
    let there: BTreeSet<&str> = all.iter().copied().filter(|p| wanted.contains(p) || !is_ephemeral(p)).collect();
    if there != wanted {
        out.push(Gap::new(Repair::Change, "ports", list(there.iter().copied()), list(wanted.iter().copied())));
    }
    if !vlan_aware {
        return;
    }
    // Tagged, with untagged frames as VLAN 1: so ifupdown2 sets ports up. One that is not there is told above.
    let tagged = merged([&[(1, 1)], vids].concat());
    let of = |port: &KernelLink, pvid: bool| merged(port.vlans.iter().filter(|r| r.pvid || !pvid).map(|r| (r.first, r.last)).collect());
    for port in ports.iter().filter_map(|p| index.link(p)).filter(|p| p.master.as_deref() == Some(&link.name)) {
        if of(port, false) != tagged {
            out.push(Gap::new(Repair::Change, "vids", ids(&of(port, false)), ids(&tagged)));
            break;
        } else if of(port, true) != [(1, 1)] {
            out.push(Gap::new(Repair::Change, "untagged VLAN", ids(&of(port, true)), "1"));
            break;
        }
    }
}

fn ids(vids: &[(u16, u16)]) -> String {
    if vids.is_empty() { "none".into() } else { vids_text(vids, " ") }
}

/// An interface with IPv6 gets more addresses by router advertisements: those are nobody's mistake.
fn same_addresses(wanted: &[IpNet], is: &[IpNet]) -> bool {
    let v6 = wanted.iter().any(|a| a.addr().is_ipv6());
    wanted.iter().all(|a| is.contains(a)) && is.iter().all(|a| wanted.contains(a) || (v6 && a.addr().is_ipv6()))
}

/// "802.1Q 100".
pub(super) fn tag_text(tag: VlanTag) -> String {
    format!("{} {}", if tag.service { "802.1ad" } else { "802.1Q" }, tag.id)
}

/// Addresses, or "none".
pub(super) fn addresses_text(addresses: &[IpNet]) -> String {
    list(addresses.iter().map(ToString::to_string))
}

/// Names, or "none".
pub(super) fn list<T: AsRef<str>>(items: impl Iterator<Item = T>) -> String {
    let mut out = String::new();
    for item in items {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(item.as_ref());
    }
    if out.is_empty() { "none".into() } else { out }
}

/// Where the kernel does not have a network as it was applied. Empty: nowhere.
pub fn in_sync(definition: &Definition, kernel: &Kernel) -> Vec<String> {
    let index = Index::new(kernel);
    definition.interfaces.iter().flat_map(|i| gaps(i, &index).into_iter().map(|g| g.tell(&i.name))).collect()
}

/// The interfaces that a plan makes, changes or removes.
fn of_plan(plan: &Plan) -> BTreeSet<&str> {
    let wanted = plan.wanted.iter().map(|i| i.name.as_str());
    wanted.chain(plan.gone.iter().map(String::as_str)).chain(plan.steps.iter().map(|s| s.interface.as_str())).collect()
}

/// What is not as the plan says after its steps: its interfaces, those it removes, guests' ports, and everything else that was not to change.
/// Empty: all is well.
pub fn applied(plan: &Plan, before: &Kernel, now: &Kernel) -> Vec<String> {
    let (old, new) = (Index::new(before), Index::new(now));
    let ours = of_plan(plan);
    let mut out: Vec<String> = plan.wanted.iter().flat_map(|i| gaps(i, &new).into_iter().map(|g| g.tell(&i.name))).collect();
    out.extend(plan.gone.iter().filter(|g| new.link(g).is_some()).map(|g| format!("{g} is still there")));
    // Ports may come to a bridge of the plan, leave it, or get other VLANs there.
    let mut ports: BTreeSet<&str> = plan.wanted.iter().flat_map(lower).map(String::as_str).collect();
    ports.extend(ours.iter().flat_map(|o| old.ports(o)).map(|p| p.name.as_str()).filter(|p| !is_guest_port(p)));
    for was in before.links.iter().filter(|l| !ours.contains(l.name.as_str())) {
        let moved = ports.contains(was.name.as_str());
        let look = Look { master: !moved, vlans: !moved && was.kind != "bridge", strict: false, addresses: None };
        changed(was, &new, look, &mut out);
    }
    default_routes(before, now, &mut out);
    out
}

/// What is not as it was before the plan's steps. Empty: the old state is back.
pub fn restored(plan: &Plan, before: &Kernel, now: &Kernel) -> Vec<String> {
    let (old, new) = (Index::new(before), Index::new(now));
    let ours = of_plan(plan);
    let declared = OwnFile::parse(plan.old_text.as_deref()).unwrap_or_default();
    let declared: BTreeMap<&str, &Interface> = declared.interfaces().map(|(_, i)| (i.name.as_str(), i)).collect();
    let mut out = Vec::new();
    for was in &before.links {
        let strict = ours.contains(was.name.as_str());
        let look = Look { master: true, vlans: true, strict, addresses: declared.get(was.name.as_str()).map(|i| i.addresses.as_slice()) };
        changed(was, &new, look, &mut out);
    }
    out.extend(ours.iter().filter(|o| old.link(o).is_none() && new.link(o).is_some()).map(|o| format!("{o} is still there")));
    default_routes(before, now, &mut out);
    out
}

/// How closely a link is looked at.
#[derive(Clone, Copy)]
struct Look<'a> {
    master: bool,
    vlans: bool,
    /// Whether coming up, and more addresses, count: on the plan's own interfaces.
    strict: bool,
    /// The addresses that are declared, where that is known.
    addresses: Option<&'a [IpNet]>,
}

fn changed(was: &KernelLink, now: &Index<'_>, look: Look<'_>, out: &mut Vec<String>) {
    let name = &was.name;
    let Some(is) = now.link(name) else {
        if !is_ephemeral(name) {
            out.push(format!("{name} is gone"));
        }
        return;
    };
    // The same name on another link: a guest was stopped and started meanwhile.
    if is_ephemeral(name) && is.index != was.index {
        return;
    }
    let mut tell = |what: &str, was: &str, is: &str| out.push(format!("{name}: {what} is {is}, and was {was}"));
    if is.kind != was.kind {
        tell("kind", &was.kind, &is.kind);
    }
    let word = |w: &Option<String>| w.clone().unwrap_or_else(|| "none".into());
    if is.parent != was.parent {
        tell("parent", &word(&was.parent), &word(&is.parent));
    }
    if is.vlan != was.vlan {
        let text = |t: Option<VlanTag>| t.map_or_else(|| "none".into(), tag_text);
        tell("tag", &text(was.vlan), &text(is.vlan));
    }
    if look.master && is.master != was.master {
        tell("bridge or bond", &word(&was.master), &word(&is.master));
    }
    if is.vlan_aware != was.vlan_aware {
        tell("VLAN filter", on(was.vlan_aware), on(is.vlan_aware));
    }
    if is.stp != was.stp {
        tell("STP", on(was.stp), on(is.stp));
    }
    if was.up && !is.up || look.strict && is.up && !was.up {
        tell("state", up(was.up), up(is.up));
    }
    if is.mtu != was.mtu {
        tell("mtu", &was.mtu.to_string(), &is.mtu.to_string());
    }
    if look.vlans && is.vlans != was.vlans {
        tell("VLANs", &ranges_text(&was.vlans), &ranges_text(&is.vlans));
    }
    // What a router advertised comes back when the router likes.
    let counts = |a: &IpNet| !look.strict || a.addr().is_ipv4() || look.addresses.is_none_or(|d| d.contains(a));
    let lost = was.addresses.iter().any(|a| counts(a) && !is.addresses.contains(a));
    let more = look.strict && is.addresses.iter().any(|a| counts(a) && !was.addresses.contains(a));
    if lost || more {
        tell("addresses", &addresses_text(&was.addresses), &addresses_text(&is.addresses));
    }
}

fn on(yes: bool) -> &'static str {
    if yes { "on" } else { "off" }
}

fn up(yes: bool) -> &'static str {
    if yes { "up" } else { "down" }
}

fn ranges_text(ranges: &[VlanRange]) -> String {
    let flags = |r: &VlanRange| format!("{}{}", if r.pvid { " pvid" } else { "" }, if r.untagged { " untagged" } else { "" });
    let texts: Vec<String> = ranges.iter().map(|r| format!("{}{}", vids_text(&[(r.first, r.last)], " "), flags(r))).collect();
    if texts.is_empty() { "none".into() } else { texts.join(", ") }
}

fn default_routes(before: &Kernel, now: &Kernel, out: &mut Vec<String>) {
    let text = |r: &KernelRoute| {
        let via = r.gateway.map(|g| format!(" via {g}")).unwrap_or_default();
        format!("default route of IPv{}{via} on {}, metric {}", if r.v6 { 6 } else { 4 }, r.link, r.metric)
    };
    let set = |k: &Kernel| k.default_routes().map(text).collect::<BTreeSet<_>>();
    let (was, is) = (set(before), set(now));
    out.extend(was.difference(&is).map(|r| format!("{r} is gone")));
    out.extend(is.difference(&was).map(|r| format!("{r} is new")));
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
