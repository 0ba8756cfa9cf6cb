//! What a host is reached by, and what a change touches of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    definition::{Interface, Kind},
    own_file::OwnFile,
    plan::Plan,
    stack::Stack,
};
use crate::host::net::{Action, Kernel, KernelLink};

/// One of this node's addresses in corosync's nodelist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorosyncLink {
    /// Its number: 0 for `ring0_addr`.
    pub number: u8,
    /// As it stands there: an address, or a name.
    pub address: String,
}

impl CorosyncLink {
    /// The address; `None` for a name, which is not resolved: what it means here may not be what it means to corosync.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address.parse().ok()
    }

    /// As people call it.
    pub fn label(&self) -> String {
        format!("corosync link{}", self.number)
    }
}

/// What each link carries that nobody may cut: "default route", "agent's listener", "corosync link0". Holds what such a link stands on (bridge
/// ports, VLAN parents, bond members) too. `listeners` are addresses of this host at which the agent is reached; loopback and wildcard ones
/// are ignored, and so are corosync's links that are given by name.
pub fn management(kernel: &Kernel, corosync: Option<&str>, node: &str, listeners: &[IpAddr]) -> BTreeMap<String, Vec<String>> {
    let stack = Stack::new(kernel);
    let mut carried: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut carry = |link: &str, what: &str| {
        for name in stack.below(link) {
            let all = carried.entry(name.to_owned()).or_default();
            if !all.iter().any(|w| w == what) {
                all.push(what.to_owned());
            }
        }
    };
    for route in kernel.default_routes() {
        carry(&route.link, "default route");
    }
    for address in concrete(listeners) {
        for link in holders(kernel, address) {
            carry(&link.name, "agent's listener");
        }
    }
    for ring in corosync.map(|text| corosync_links(text, node, kernel)).unwrap_or_default() {
        for link in ring.ip().into_iter().flat_map(|ip| holders(kernel, ip)) {
            carry(&link.name, &ring.label());
        }
    }
    carried
}

/// Addresses that say where a client comes in.
pub(super) fn concrete(listeners: &[IpAddr]) -> BTreeSet<IpAddr> {
    listeners.iter().map(IpAddr::to_canonical).filter(|ip| !ip.is_loopback() && !ip.is_unspecified()).collect()
}

/// The links that have an address.
pub(super) fn holders(kernel: &Kernel, address: IpAddr) -> impl Iterator<Item = &KernelLink> {
    let address = address.to_canonical();
    kernel.links.iter().filter(move |l| l.addresses.iter().any(|net| net.addr() == address))
}

/// This node's links in the nodelist of `corosync.conf`, by number. A node without a name there is known by its addresses. Empty: the node is
/// not found.
pub fn corosync_links(text: &str, node: &str, kernel: &Kernel) -> Vec<CorosyncLink> {
    let nodes = nodelist(text);
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let named = nodes.iter().find(|n| n.name.as_deref().is_some_and(|name| short(name) == short(node)));
    let here = |n: &&Node| n.links.iter().filter_map(CorosyncLink::ip).any(|ip| holders(kernel, ip).next().is_some());
    let mut links = named.or_else(|| nodes.iter().find(here)).map(|n| n.links.clone()).unwrap_or_default();
    links.sort_by_key(|l| l.number);
    links
}

#[derive(Debug, Default)]
struct Node {
    name: Option<String>,
    links: Vec<CorosyncLink>,
}

/// The nodes of a `corosync.conf`: sections in braces, `key: value` lines, comments from `#` on.
fn nodelist(text: &str) -> Vec<Node> {
    let mut path: Vec<&str> = Vec::new();
    let mut nodes = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
        if let Some(section) = line.strip_suffix('{') {
            path.push(section.trim());
            if path == ["nodelist", "node"] {
                nodes.push(Node::default());
            }
        } else if line == "}" {
            path.pop();
        } else if let (Some((key, value)), ["nodelist", "node"], Some(node)) = (line.split_once(':'), path.as_slice(), nodes.last_mut()) {
            let (key, value) = (key.trim(), value.trim());
            if key == "name" {
                node.name = Some(value.to_owned());
            } else if let Some(number) = key.strip_prefix("ring").and_then(|k| k.strip_suffix("_addr")).and_then(|n| n.parse().ok()) {
                node.links.push(CorosyncLink { number, address: value.to_owned() });
            }
        }
    }
    nodes
}

/// The interfaces that a text of the own file declares. One that cannot be read declares nothing: the planner refuses it.
pub(super) fn interfaces(text: Option<&str>) -> BTreeMap<String, Interface> {
    let networks = OwnFile::parse(text).map(|f| f.networks).unwrap_or_default();
    networks.into_iter().flat_map(|n| n.interfaces).map(|i| (i.name.clone(), i)).collect()
}

/// The interfaces of the own file after a change.
pub(super) fn interfaces_after(plan: &Plan) -> BTreeMap<String, Interface> {
    let mut after = interfaces(plan.new_text.as_deref());
    after.extend(plan.wanted.iter().map(|i| (i.name.clone(), i.clone())));
    after.retain(|name, _| !plan.gone.contains(name));
    after
}

fn ports(interface: Option<&Interface>) -> BTreeSet<&str> {
    match interface.map(|i| &i.kind) {
        Some(Kind::Bridge { ports, .. }) => ports.iter().map(String::as_str).collect(),
        _ => BTreeSet::new(),
    }
}

/// The links that a change touches: interfaces of its steps, and ports that enter or leave a bridge. The parent of a VLAN that comes or goes is
/// not touched.
pub fn touched(plan: &Plan) -> BTreeSet<String> {
    let (before, after) = (interfaces(plan.old_text.as_deref()), interfaces_after(plan));
    let mut touched: BTreeSet<String> = plan.steps.iter().map(|s| s.interface.clone()).collect();
    touched.extend(plan.gone.iter().cloned());
    for name in before.keys().chain(after.keys()) {
        let (old, new) = (ports(before.get(name)), ports(after.get(name)));
        touched.extend(old.symmetric_difference(&new).map(|p| (*p).to_owned()));
        // One that is made anew loses its ports in between.
        if plan.steps.iter().any(|s| s.action == Action::Down && s.interface == *name) {
            touched.extend(old.union(&new).map(|p| (*p).to_owned()));
        }
    }
    touched
}

#[cfg(test)]
#[path = "management_tests.rs"]
mod tests;
