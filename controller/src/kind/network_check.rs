//! What is wrong with a network's spec, told before any agent is asked. The rules are the API's (`proto/pvelet/v1/network.proto`).

use std::collections::{BTreeMap, BTreeSet};

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
    let mut holders: BTreeMap<std::net::IpAddr, String> = BTreeMap::new();
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
                c.require(false, &format!("{path}[{i}]"), &interface.name, "say what it is: either vlan: {...} or bridge: {...}, not both")
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
        let Ok(net) = text.parse::<IpNet>() else {
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
mod tests {
    use crate::kind::parse;

    fn mistakes(spec: &str) -> Vec<String> {
        let text = format!("apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {{name: storage}}\nspec: {spec}\n");
        parse(&text).1.into_iter().flat_map(|p| p.mistakes).map(|m| m.to_string()).collect()
    }

    fn with(interfaces: &str) -> Vec<String> {
        mistakes(&format!("{{hosts: {{names: [pve1]}}, interfaces: {interfaces}}}"))
    }

    #[test]
    fn the_example_is_sound() {
        let (manifests, problems) = parse(include_str!("../../../docs/examples/network.yaml"));
        assert_eq!(problems, vec![]);
        assert!(manifests.iter().all(|m| m.id.kind == "PveNetwork") && !manifests.is_empty());
    }

    #[test]
    fn every_kind_of_interface_is_taken() {
        let told = with(
            "[{name: bond0.100, vlan: {parent: bond0, id: 100}, addresses: [192.0.2.1/24, '2001:db8::1/64'], mtu: 9000, comment: Storage}, \
             {name: outer, vlan: {parent: bond0, id: 200, protocol: 802.1ad}}, {name: inner, vlan: {parent: outer, id: 100}}, \
             {name: vmbr1, bridge: {ports: [eth1], vlanAware: true, vids: ['100', '200-299']}}, \
             {name: vmbr100, bridge: {ports: [bond0.100]}}, {name: vmbr2, bridge: {}}, {name: p2p, vlan: {parent: eth2, id: 1}, addresses: [198.51.100.0/31]}]",
        );
        assert_eq!(told, Vec::<String>::new());
        let told = mistakes(
            "{hosts: {matchLabels: {rack: a}, names: [pve1, pve2]}, confirmTimeout: 2m, probe: {mtu: 9000}, deletionPolicy: Retain, \
             interfaces: [{name: eth1.7, vlan: {parent: eth1, id: 7}, hostAddresses: {pve1: [192.0.2.1/24], pve2: [192.0.2.2/24], pve3: []}}]}",
        );
        assert_eq!(told, Vec::<String>::new());
    }

    #[test]
    fn each_mistake_of_an_interface_is_told_with_its_rule() {
        for (interfaces, want) in [
            ("[]", "spec.interfaces = 0: use 1 to 64"),
            ("[{name: a-name-too-long1, vlan: {parent: e, id: 1}}]", "spec.interfaces[0].name = a-name-too-long1: not an interface name"),
            ("[{name: 1st, vlan: {parent: e, id: 1}}]", "spec.interfaces[0].name = 1st: begin with a letter"),
            ("[{name: tap7, vlan: {parent: e, id: 1}}]", "spec.interfaces[0].name = tap7: tap* is the system's"),
            ("[{name: lo, vlan: {parent: e, id: 1}}]", "spec.interfaces[0].name = lo: lo is the system's"),
            ("[{name: a, vlan: {parent: e, id: 0}}]", "spec.interfaces[0].vlan.id = 0: use 1 to 4094"),
            ("[{name: a, vlan: {parent: e, id: 4095}}]", "spec.interfaces[0].vlan.id = 4095"),
            ("[{name: a, vlan: {parent: e/f, id: 1}}]", "spec.interfaces[0].vlan.parent = e/f"),
            ("[{name: a, vlan: {parent: e, id: 1, protocol: 802.1x}}]", "spec.interfaces[0].vlan.protocol = '802.1x': unknown variant"),
            (
                "[{name: a, vlan: {parent: e, id: 1}}, {name: b, vlan: {parent: e, id: 1}}]",
                "spec.interfaces[1].vlan.id = 1: a is this VLAN of e already",
            ),
            ("[{name: a, vlan: {parent: e, id: 1}}, {name: a, bridge: {}}]", "spec.interfaces[1].name = a: another interface"),
            ("[{name: a}]", "spec.interfaces[0] = a: say what it is"),
            ("[{name: a, vlan: {parent: e, id: 1}, bridge: {}}]", "spec.interfaces[0] = a: say what it is"),
            ("[{name: a, vlan: {parent: b, id: 1}}, {name: b, vlan: {parent: a, id: 2}}]", "spec.interfaces[0] = a: it stands on itself"),
            (
                "[{name: a, bridge: {ports: [e]}}, {name: b, bridge: {ports: [e]}}]",
                "spec.interfaces[1].bridge.ports[0] = e: it is a port of a already",
            ),
            ("[{name: a, bridge: {vids: ['7']}}]", "spec.interfaces[0].bridge.vids = 7: only a bridge with vlanAware"),
            ("[{name: a, bridge: {vlanAware: true, vids: ['9-7']}}]", "spec.interfaces[0].bridge.vids[0] = 9-7: use a VLAN or a range"),
            ("[{name: a, bridge: {vlanAware: true, vids: ['0']}}]", "spec.interfaces[0].bridge.vids[0] = 0"),
            ("[{name: a, bridge: {}, mtu: 500}]", "spec.interfaces[0].mtu = 500: use 576 to 65535"),
            (
                "[{name: a, bridge: {}, mtu: 1000, addresses: ['2001:db8::1/64']}]",
                "spec.interfaces[0].mtu = 1000: IPv6 needs at least 1280",
            ),
            (
                "[{name: a, bridge: {}, mtu: 1500}, {name: b, vlan: {parent: a, id: 2}, mtu: 9000}]",
                "spec.interfaces[1].mtu = 9000: it stands on a, which has 1500",
            ),
            ("[{name: a, bridge: {}, addresses: [192.0.2.1]}]", "spec.interfaces[0].addresses[0] = 192.0.2.1: use an address with prefix"),
            ("[{name: a, bridge: {}, addresses: [192.0.2.0/24]}]", "spec.interfaces[0].addresses[0] = 192.0.2.0/24: no host can have it"),
            ("[{name: a, bridge: {}, addresses: [192.0.2.255/24]}]", "no host can have it"),
            ("[{name: a, bridge: {}, addresses: [127.0.0.1/8]}]", "no host can have it"),
            ("[{name: a, bridge: {}, comment: 'x\"y'}]", "spec.interfaces[0].comment = x\"y: use up to 64"),
            (
                "[{name: a, bridge: {}, addresses: [192.0.2.1/24]}, {name: b, bridge: {}, addresses: [192.0.2.129/25]}]",
                "spec.interfaces[1].addresses[0] = 192.0.2.129/25: it overlaps with 192.0.2.1/24 of a",
            ),
            (
                "[{name: a, bridge: {}, addresses: [192.0.2.1/24, 192.0.2.1/24]}]",
                "spec.interfaces[0].addresses[1] = 192.0.2.1/24: it overlaps",
            ),
            ("[{name: a, bridge: {port: [e]}}]", "spec.interfaces[0].bridge.port"),
        ] {
            let told = with(interfaces);
            assert!(told.iter().any(|t| t.contains(want)), "{interfaces}: {told:#?}");
        }
    }

    #[test]
    fn each_mistake_about_hosts_and_time_is_told_with_its_rule() {
        const VLAN: &str = "name: a, vlan: {parent: e, id: 1}";
        for (spec, want) in [
            ("hosts: {}, interfaces: [{VLAN}]", "spec.hosts: select hosts by names"),
            ("hosts: {names: [p_1]}, interfaces: [{VLAN}]", "spec.hosts.names[0] = p_1: not a DNS name"),
            ("hosts: {names: [p1, p1]}, interfaces: [{VLAN}]", "spec.hosts.names[1] = p1: it is there twice"),
            ("hosts: {names: [p1, p2]}, interfaces: [{VLAN, addresses: [192.0.2.1/24]}]", "each needs its own address"),
            ("hosts: {matchLabels: {a: b}}, interfaces: [{VLAN, addresses: [192.0.2.1/24]}]", "each needs its own address"),
            (
                "hosts: {names: [p1, p2]}, interfaces: [{VLAN, hostAddresses: {p1: [192.0.2.1/24], p2: [192.0.2.1/24]}}]",
                "spec.interfaces[0].hostAddresses.p2 = 192.0.2.1/24: p1 (a) has this address already",
            ),
            (
                "hosts: {names: [p1, p2]}, interfaces: [{VLAN, hostAddresses: {p1: []}}]",
                "spec.interfaces[0].hostAddresses.p2: its addresses are missing",
            ),
            (
                "hosts: {names: [p1]}, interfaces: [{VLAN, hostAddresses: {p1: [], p9: []}}]",
                "spec.interfaces[0].hostAddresses.p9: spec.hosts does not",
            ),
            (
                "hosts: {names: [p1]}, interfaces: [{VLAN, hostAddresses: {p1: [x]}}]",
                "spec.interfaces[0].hostAddresses.p1[0] = x: use an address",
            ),
            ("hosts: {names: [p1]}, interfaces: [{VLAN}], confirmTimeout: 5s", "spec.confirmTimeout = 5s: use 10s to 10m"),
            ("hosts: {names: [p1]}, interfaces: [{VLAN}], confirmTimeout: 20s", "spec.confirmTimeout = 20s: a probe needs its time"),
            ("hosts: {names: [p1]}, interfaces: [{VLAN}], confirmTimeout: 60", "spec.confirmTimeout = 60: use a span of time with a unit"),
            ("hosts: {names: [p1]}, interfaces: [{VLAN}], probe: {mtu: 9}", "spec.probe.mtu = 9: use 576 to 65535"),
            ("hosts: {names: [p1]}, interfaces: [{VLAN}], tenant: A", "spec.tenant = A"),
        ] {
            let told = mistakes(&format!("{{{}}}", spec.replace("VLAN", VLAN)));
            assert!(told.iter().any(|t| t.contains(want)), "{spec}: {told:#?}");
        }
        let told = parse("apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: a.b}\nspec: {hosts: {names: [p]}, interfaces: [{name: a, bridge: {}}]}\n").1;
        assert!(told[0].mistakes[0].to_string().starts_with("metadata.name = a.b: use 1 to 63"), "{told:?}");
    }

    #[test]
    fn a_host_gets_its_own_addresses_and_a_forgotten_one_is_told() {
        let text = "apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: s}\nspec: {hosts: {matchLabels: {a: b}}, interfaces: \
                    [{name: e.7, vlan: {parent: e, id: 7}, hostAddresses: {pve1: [192.0.2.1/24], pve2: []}}]}\n";
        let spec: crate::kind::NetworkSpec = serde_json::from_value(parse(text).0.remove(0).spec).unwrap_or_else(|e| panic!("{e}"));
        let on = |host: &str| spec.on_host("s", "t", host).map(|n| n.interfaces[0].addresses.clone());
        assert_eq!((on("pve1"), on("pve2")), (Ok(vec!["192.0.2.1/24".to_owned()]), Ok(vec![])));
        assert!(on("pve3").is_err_and(|e| e.contains("add hostAddresses.pve3")));
    }

    #[test]
    fn what_others_stand_on_is_not_probed_and_of_a_trunk_one_vlan_of_each_entry() {
        let text = "apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: s}\nspec: {hosts: {names: [a]}, interfaces: \
                    [{name: e.7, vlan: {parent: e, id: 7}}, {name: vmbr7, mtu: 9000, bridge: {ports: [e.7]}}, {name: alone, bridge: {}}, \
                    {name: trunk, bridge: {ports: [f], vlanAware: true, vids: ['100', '200-299']}}, {name: all, bridge: {ports: [g], vlanAware: true}}]}\n";
        let spec: crate::kind::NetworkSpec = serde_json::from_value(parse(text).0.remove(0).spec).unwrap_or_else(|e| panic!("{e}"));
        let told: Vec<(String, u32, Option<u32>)> = spec.probe_targets().into_iter().map(|t| (t.interface, t.vlan, t.mtu)).collect();
        assert_eq!(told, [("vmbr7".to_owned(), 0, Some(9000)), ("trunk".to_owned(), 100, None), ("trunk".to_owned(), 200, None)]);
    }
}
