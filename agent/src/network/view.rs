//! The network as the API shows it.

use std::collections::{BTreeMap, BTreeSet};

use pvelet_proto::v1;

use super::{
    definition::{Definition, Interface, Kind},
    management::management,
    own_file::OwnFile,
    plan::Plan,
    preflight::{Check, Facts, Severity, State, pending as staged, stanzas},
    stack::{Stack, guest_of},
    verify,
};
use crate::host::net::{Action, Kernel, KernelLink, VlanRange, VlanTag};

/// All links, by name.
pub fn links(facts: &Facts<'_>, own: &OwnFile) -> Vec<v1::Link> {
    let corosync = facts.files.corosync.as_ref().map(|f| f.text.as_str());
    let management = management(facts.kernel, corosync, facts.node, facts.listeners);
    let mut declared: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for stanza in stanzas(facts) {
        let places = declared.entry(stanza.name).or_default();
        let place = format!("{}:{}", stanza.file.display(), stanza.line);
        // A file that is taken in twice.
        if !places.contains(&place) {
            places.push(place);
        }
    }
    let networks: BTreeMap<&str, &str> =
        own.networks.iter().flat_map(|n| n.interfaces.iter().map(|i| (i.name.as_str(), n.name.as_str()))).collect();
    let mut links: Vec<v1::Link> = facts.kernel.links.iter().map(link).collect();
    for link in &mut links {
        let names = std::iter::once(&link.name).chain(&link.altnames);
        link.declared_in = names.flat_map(|n| declared.get(n).into_iter().flatten()).cloned().collect();
        link.network = networks.get(link.name.as_str()).copied().unwrap_or_default().to_owned();
        link.management = management.get(&link.name).cloned().unwrap_or_default();
        link.offloads = facts.offloads.get(&link.name).cloned().unwrap_or_default();
    }
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links
}

fn link(link: &KernelLink) -> v1::Link {
    v1::Link {
        name: link.name.clone(),
        index: link.index,
        kind: link.kind.clone(),
        altnames: link.altnames.clone(),
        up: link.up,
        carrier: link.carrier,
        mtu: link.mtu,
        mac: link.mac.clone(),
        master: link.master.clone().unwrap_or_default(),
        parent: link.parent.clone().unwrap_or_default(),
        vlan_id: link.vlan.map(|v| v.id.into()).unwrap_or_default(),
        vlan_protocol: link.vlan.map(protocol).unwrap_or_default().into(),
        vlan_aware: link.vlan_aware,
        vlans: link.vlans.iter().copied().map(range).collect(),
        addresses: link.addresses.iter().map(ToString::to_string).collect(),
        ..v1::Link::default()
    }
}

fn protocol(tag: VlanTag) -> v1::VlanProtocol {
    if tag.service { v1::VlanProtocol::VlanProtocol8021ad } else { v1::VlanProtocol::VlanProtocol8021q }
}

fn range(range: VlanRange) -> v1::BridgeVlan {
    v1::BridgeVlan { first: range.first.into(), last: range.last.into(), pvid: range.pvid, untagged: range.untagged }
}

/// The routes of the main table.
pub fn routes(kernel: &Kernel) -> Vec<v1::Route> {
    let route = |r: &crate::host::net::KernelRoute| v1::Route {
        destination: r.destination.map_or_else(|| "default".to_owned(), |d| d.to_string()),
        gateway: r.gateway.map(|g| g.to_string()).unwrap_or_default(),
        link: r.link.clone(),
        metric: r.metric,
        family: if r.v6 { 6 } else { 4 },
    };
    kernel.routes.iter().map(route).collect()
}

/// The networks of the own file, by name.
pub fn networks(facts: &Facts<'_>, own: &OwnFile) -> Vec<v1::Network> {
    let stack = Stack::new(facts.kernel);
    let mut networks: Vec<v1::Network> = own.networks.iter().map(|n| network(n, facts, &stack)).collect();
    networks.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    networks
}

fn name_of(network: &v1::Network) -> &str {
    network.spec.as_ref().map_or("", |s| s.name.as_str())
}

fn network(definition: &Definition, facts: &Facts<'_>, stack: &Stack<'_>) -> v1::Network {
    let differences = verify::in_sync(definition, facts.kernel);
    let bridges: BTreeSet<&str> =
        definition.interfaces.iter().filter(|i| matches!(i.kind, Kind::Bridge { .. })).map(|i| i.name.as_str()).collect();
    let configured = facts.users.iter().filter(|u| bridges.contains(u.bridge.as_str())).map(|u| u.vmid);
    let plugged = bridges.iter().flat_map(|b| stack.ports(b)).filter_map(|p| guest_of(&p.name));
    let vmids: BTreeSet<u32> = configured.chain(plugged).collect();
    v1::Network { spec: Some(spec(definition)), in_sync: differences.is_empty(), differences, vmids: vmids.into_iter().collect() }
}

/// A network as it was asked for.
pub fn spec(definition: &Definition) -> v1::NetworkSpec {
    v1::NetworkSpec {
        name: definition.name.clone(),
        tenant: definition.tenant.clone(),
        interfaces: definition.interfaces.iter().map(interface).collect(),
    }
}

fn interface(interface: &Interface) -> v1::InterfaceSpec {
    let kind = match &interface.kind {
        Kind::Vlan { parent, id, service } => v1::interface_spec::Kind::Vlan(v1::VlanSpec {
            parent: parent.clone(),
            id: (*id).into(),
            protocol: protocol(VlanTag { id: *id, service: *service }).into(),
        }),
        Kind::Bridge { ports, vlan_aware, vids } => v1::interface_spec::Kind::Bridge(v1::BridgeSpec {
            ports: ports.clone(),
            vlan_aware: *vlan_aware,
            vids: vids.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") }).collect(),
        }),
    };
    v1::InterfaceSpec {
        name: interface.name.clone(),
        kind: Some(kind),
        mtu: interface.mtu.unwrap_or_default(),
        addresses: interface.addresses.iter().map(ToString::to_string).collect(),
        comment: interface.comment.clone(),
    }
}

/// Changes of others that wait: PVE's staged file, SDN's pending changes and lock. The agent's own is not among them.
pub fn pending(facts: &Facts<'_>) -> Vec<v1::PendingNetworkChange> {
    staged(facts).into_iter().map(|p| v1::PendingNetworkChange { kind: p.kind.to_owned(), detail: p.detail }).collect()
}

/// A check.
pub fn check(check: &Check) -> v1::NetworkCheck {
    let state = match check.state {
        State::Ok => v1::CheckState::Ok,
        State::Failed => v1::CheckState::Failed,
        State::Unknown => v1::CheckState::Unknown,
        State::NotApplicable => v1::CheckState::NotApplicable,
    };
    let severity = match check.severity {
        Severity::Info => v1::CheckSeverity::Info,
        Severity::Warning => v1::CheckSeverity::Warning,
        Severity::Error => v1::CheckSeverity::Error,
    };
    v1::NetworkCheck {
        id: check.id.to_owned(),
        state: state.into(),
        severity: severity.into(),
        seen: check.seen.clone(),
        why: check.why.to_owned(),
        remedy: check.remedy.clone(),
        interfaces: check.interfaces.clone(),
    }
}

/// A plan, with the change of the own file as a unified diff.
pub fn plan(plan: &Plan, diff: String) -> v1::NetworkPlan {
    let action = |action: Action| match action {
        Action::Down => v1::NetworkAction::Down,
        Action::Up => v1::NetworkAction::Up,
        Action::Change => v1::NetworkAction::Change,
    };
    let steps = plan.steps.iter().map(|s| v1::NetworkStep { action: action(s.action).into(), interface: s.interface.clone() });
    v1::NetworkPlan { steps: steps.collect(), file_diff: diff, changes: plan.changes.clone() }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
