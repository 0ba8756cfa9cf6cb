//! What is wrong with a network's spec, told before any agent is asked. The rules are the API's (`proto/pvelet/v1/network.proto`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use pvelet_proto::id;

use super::{FieldError, InterfaceSpec, Metadata, NetworkSpec, Seconds, VlanSpec, check::Checker};

const MAX_INTERFACES: usize = 64;
const MAX_PORTS: usize = 16;
const MAX_ADDRESSES: usize = 16;
const MAX_COMMENT: usize = 64;
/// IPv6 does not work with less.
const MIN_MTU_IPV6: u32 = 1280;
/// Names that the system or PVE makes by itself; those that end in `*` are beginnings.
const RESERVED: [&str; 7] = ["lo", "tap*", "fwbr*", "fwpr*", "fwln*", "veth*", "pvprobe*"];
/// What the proto allows.
const CONFIRM: (Seconds, Seconds) = (Seconds(10), Seconds(600));
/// A probe takes some seconds, and is tried twice.
const CONFIRM_WITH_PROBE: Seconds = Seconds(30);

pub(super) fn check(metadata: &Metadata, spec: &NetworkSpec) -> Vec<FieldError> {
    let mut c = Checker::default();
    network_name(&mut c, "metadata.name", &metadata.name);
    c.id("spec.tenant", id::tenant(&spec.tenant));
    hosts(&mut c, spec);
    if let Some(timeout) = spec.confirm_timeout {
        let range = (CONFIRM.0..=CONFIRM.1).contains(&timeout);
        c.require(range, "spec.confirmTimeout", timeout, "use 10s to 10m");
        let enough = !range || !spec.probe.enabled || timeout >= CONFIRM_WITH_PROBE;
        c.require(enough, "spec.confirmTimeout", timeout, "a probe needs its time: use at least 30s, or set probe.enabled: false");
    }
    if let Some(mtu) = spec.probe.mtu {
        c.require((576..=65535).contains(&mtu), "spec.probe.mtu", mtu, "use 576 to 65535");
        let tried = spec.probe_targets();
        let smaller = |i: &&InterfaceSpec| i.mtu.is_some_and(|own| own < mtu) && tried.iter().any(|t| t.interface == i.name);
        if let Some(interface) = spec.interfaces.iter().find(smaller) {
            let own = interface.mtu.unwrap_or_default();
            c.require(false, "spec.probe.mtu", mtu, &format!("{} has {own}: use at most that, or raise it", interface.name));
        }
    }
    check_interfaces(&mut c, "spec.interfaces", &spec.interfaces);
    own_addresses(&mut c, spec);
    c.done()
}

/// The name of a network on a host.
pub(super) fn network_name(c: &mut Checker, path: &str, name: &str) {
    // The rule is that of a tenant: a DNS label.
    c.require(id::tenant(name).is_ok(), path, name, "use 1 to 63 lower-case letters, digits and '-', first and last a letter or digit");
}

fn hosts(c: &mut Checker, spec: &NetworkSpec) {
    let (names, labels) = (&spec.hosts.names, &spec.hosts.match_labels);
    c.require(!names.is_empty() || !labels.is_empty(), "spec.hosts", "", "select hosts by names: [...], by matchLabels: {...}, or by both");
    for (i, name) in names.iter().enumerate() {
        c.id(&format!("spec.hosts.names[{i}]"), id::dns_name(name));
        c.require(!names[..i].contains(name), &format!("spec.hosts.names[{i}]"), name, "it is there twice: name each host once");
    }
}

/// What of `spec` is about more than one host.
fn own_addresses(c: &mut Checker, spec: &NetworkSpec) {
    let (names, by_labels) = (&spec.hosts.names, !spec.hosts.match_labels.is_empty());
    let several = by_labels || names.len() > 1;
    // Who has an address: host and interface.
    let mut holders: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (i, interface) in spec.interfaces.iter().enumerate() {
        let at = format!("spec.interfaces[{i}]");
        let shared = several && interface.host_addresses.is_empty();
        let rule = "more than one host may be selected, and each needs its own address: use hostAddresses";
        c.require(!shared || interface.addresses.is_empty(), &format!("{at}.addresses"), interface.addresses.join(", "), rule);
        let both = !interface.addresses.is_empty() && !interface.host_addresses.is_empty();
        c.require(!both, &format!("{at}.addresses"), interface.addresses.join(", "), "hostAddresses is there too: use one of them");
        if interface.host_addresses.is_empty() {
            continue;
        }
        for (host, addresses) in &interface.host_addresses {
            let known = by_labels || names.contains(host);
            c.require(known, &format!("{at}.hostAddresses.{host}"), "", "spec.hosts does not select this host: correct the name");
            for address in addresses.iter().filter_map(|a| a.parse::<IpNet>().ok()) {
                if let Some(other) = holders.insert(address.addr(), format!("{host} ({})", interface.name)) {
                    let text = format!("{other} has this address already: give each host its own");
                    c.require(false, &format!("{at}.hostAddresses.{host}"), address, &text);
                }
            }
        }
        for name in names.iter().filter(|n| !interface.host_addresses.contains_key(*n)) {
            let rule = "its addresses are missing: list them, or [] for no address there";
            c.require(false, &format!("{at}.hostAddresses.{name}"), "", rule);
        }
    }
}

/// Interfaces, whatever they are for.
pub(super) fn check_interfaces(c: &mut Checker, path: &str, interfaces: &[InterfaceSpec]) {
    let count = interfaces.len();
    c.require((1..=MAX_INTERFACES).contains(&count), path, count, "use 1 to 64 interfaces");
    let by_name: BTreeMap<&str, &InterfaceSpec> = interfaces.iter().map(|i| (i.name.as_str(), i)).collect();
    let (mut tags, mut masters) = (BTreeMap::new(), BTreeMap::new());
    for (i, interface) in interfaces.iter().enumerate() {
        let at = |field: &str| format!("{path}[{i}].{field}");
        name(c, &at("name"), &interface.name);
        let twice = interfaces[..i].iter().any(|other| other.name == interface.name);
        c.require(!twice, &at("name"), &interface.name, "another interface of this network has this name: give each its own");
        match (&interface.vlan, &interface.bridge) {
            (Some(v), None) => {
                vlan(c, &at("vlan"), v);
                if let Some(other) = tags.insert((v.parent.as_str(), v.id, v.protocol == super::VlanProtocol::Service), &interface.name) {
                    c.require(false, &at("vlan.id"), v.id, &format!("{other} is this VLAN of {} already: use another id", v.parent));
                }
            }
            (None, Some(b)) => {
                let ports = b.ports.len();
                c.require(ports <= MAX_PORTS, &at("bridge.ports"), ports, "use at most 16 ports");
                for (p, port) in b.ports.iter().enumerate() {
                    c.id(&at(&format!("bridge.ports[{p}]")), id::interface(port));
                    if let Some(other) = masters.insert(port.as_str(), &interface.name) {
                        let text = format!("it is a port of {other} already: a port belongs to one bridge");
                        c.require(false, &at(&format!("bridge.ports[{p}]")), port, &text);
                    }
                }
                c.require(
                    b.vlan_aware || b.vids.is_empty(),
                    &at("bridge.vids"),
                    b.vids.join(", "),
                    "only a bridge with vlanAware: true filters VLANs",
                );
                for (v, text) in b.vids.iter().enumerate() {
                    let rule = "use a VLAN or a range within 1 to 4094, such as \"100\" or \"200-299\"";
                    c.require(is_vids(text), &at(&format!("bridge.vids[{v}]")), text, rule);
                }
            }
            _ => {
                c.require(false, &format!("{path}[{i}]"), &interface.name, "say what it is: either vlan: {...} or bridge: {...}, not both");
            }
        }
        c.require(
            !stands_on_itself(&by_name, interface),
            &format!("{path}[{i}]"),
            &interface.name,
            "it stands on itself: take it out of the circle",
        );
        if interface.comment.chars().count() > MAX_COMMENT || interface.comment.chars().any(|ch| ch.is_control() || "\"'\\`".contains(ch)) {
            c.require(false, &at("comment"), &interface.comment, "use up to 64 printable characters without quotes and backslashes");
        }
        mtu(c, &at("mtu"), interface, &by_name);
        addresses(c, &at("addresses"), &interface.addresses);
        for (host, list) in &interface.host_addresses {
            addresses(c, &at(&format!("hostAddresses.{host}")), list);
        }
    }
    overlaps(c, path, interfaces);
}

fn name(c: &mut Checker, path: &str, name: &str) {
    c.id(path, id::interface(name));
    let letter = name.is_empty() || name.starts_with(|ch: char| ch.is_ascii_alphabetic());
    c.require(letter, path, name, "begin with a letter");
    let reserved = RESERVED.iter().find(|r| match r.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == **r,
    });
    if let Some(reserved) = reserved {
        c.require(false, path, name, &format!("{reserved} is the system's or PVE's own: use another name"));
    }
}

fn vlan(c: &mut Checker, path: &str, vlan: &VlanSpec) {
    c.id(&format!("{path}.parent"), id::interface(&vlan.parent));
    c.require((1..=4094).contains(&vlan.id), &format!("{path}.id"), vlan.id, "use 1 to 4094");
}

fn is_vids(text: &str) -> bool {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let vid = |t: &str| t.parse::<u16>().ok().filter(|v| (1..=4094).contains(v) && t.bytes().all(|b| b.is_ascii_digit()));
    vid(first).zip(vid(last)).is_some_and(|(first, last)| first <= last)
}

fn stands_on_itself(by_name: &BTreeMap<&str, &InterfaceSpec>, interface: &InterfaceSpec) -> bool {
    let (mut seen, mut todo) = (BTreeSet::new(), vec![interface]);
    while let Some(here) = todo.pop() {
        for below in here.below() {
            if below == interface.name {
                return true;
            }
            if seen.insert(below) {
                todo.extend(by_name.get(below));
            }
        }
    }
    false
}

fn mtu(c: &mut Checker, path: &str, interface: &InterfaceSpec, by_name: &BTreeMap<&str, &InterfaceSpec>) {
    let Some(mtu) = interface.mtu else { return };
    c.require((576..=65535).contains(&mtu), path, mtu, "use 576 to 65535, or leave it out for that of what it stands on");
    let all = interface.addresses.iter().chain(interface.host_addresses.values().flatten());
    let ipv6 = all.filter_map(|a| a.parse::<IpNet>().ok()).any(|a| a.addr().is_ipv6());
    c.require(!ipv6 || mtu >= MIN_MTU_IPV6, path, mtu, "IPv6 needs at least 1280");
    for below in interface.below() {
        if let Some(less) = by_name.get(below).and_then(|b| b.mtu).filter(|less| *less < mtu) {
            c.require(false, path, mtu, &format!("it stands on {below}, which has {less}: use at most that, or raise {below}'s"));
        }
    }
}

fn addresses(c: &mut Checker, path: &str, addresses: &[String]) {
    c.require(addresses.len() <= MAX_ADDRESSES, path, addresses.len(), "use at most 16 addresses");
    for (i, text) in addresses.iter().enumerate() {
        let at = format!("{path}[{i}]");
        let rule = "use an address with prefix length, such as 192.0.2.1/24 or 2001:db8::1/64";
        // ipnet alone takes 010.0.0.1, which others read as 8.0.0.1.
        let plain = text.split('/').next().is_some_and(|ip| ip.parse::<IpAddr>().is_ok());
        let Some(net) = text.parse::<IpNet>().ok().filter(|_| plain) else {
            c.require(false, &at, text, rule);
            continue;
        };
        let ip = net.addr();
        let host = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
        // The first and last address of an IPv4 subnet are nobody's, but a /31 or /32 has no others.
        let usable = match net {
            IpNet::V4(v4) => v4.prefix_len() >= 31 || (v4.addr() != v4.network() && v4.addr() != v4.broadcast()),
            IpNet::V6(_) => true,
        };
        c.require(
            host && usable && net.prefix_len() > 0,
            &at,
            text,
            "no host can have it: use a host's address with its subnet's prefix length",
        );
    }
}

/// Two interfaces of one host in one subnet: the host would answer from the wrong one.
fn overlaps(c: &mut Checker, path: &str, interfaces: &[InterfaceSpec]) {
    let hosts: BTreeSet<&str> = interfaces.iter().flat_map(|i| i.host_addresses.keys().map(String::as_str)).collect();
    let mut told = BTreeSet::new();
    for host in hosts.into_iter().map(Some).chain([None]) {
        let mut seen: Vec<(usize, IpNet)> = Vec::new();
        for (i, interface) in interfaces.iter().enumerate() {
            let (list, field) = match host {
                Some(host) => match interface.host_addresses.get(host) {
                    Some(list) => (list, format!("hostAddresses.{host}")),
                    None => (&interface.addresses, "addresses".to_owned()),
                },
                None => (&interface.addresses, "addresses".to_owned()),
            };
            for (a, net) in list.iter().enumerate().filter_map(|(a, text)| Some((a, text.parse::<IpNet>().ok()?))) {
                let clash = seen.iter().find(|(j, other)| {
                    (*j != i && (other.contains(&net.trunc()) || net.contains(&other.trunc()))) || other.addr() == net.addr()
                });
                if let Some((j, other)) = clash
                    && told.insert((i, field.clone(), a))
                {
                    let text = format!("it overlaps with {other} of {}: use another subnet", interfaces[*j].name);
                    c.require(false, &format!("{path}[{i}].{field}[{a}]"), net, &text);
                }
                seen.push((i, net));
            }
        }
    }
}

#[cfg(test)]
mod tests;
