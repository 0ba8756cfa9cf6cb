//! What a network may look like by itself: every mistake of a request is told at once, with field, value and remedy. Whether it fits the host
//! is the planner's question.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use pvelet_proto::{id, reason, v1};

use super::definition::{Definition, Interface, Kind};
use crate::{
    error::{Error, Violation},
    host::net::{Kernel, KernelLink},
    vm::validate::done,
};

const INTERFACES: usize = 64;
const ADDRESSES: usize = 16;
const PORTS: usize = 16;
const COMMENT: usize = 64;
/// The longest name of a link: IFNAMSIZ without its end.
const NAME_MAX: usize = 15;
const MTU: std::ops::RangeInclusive<u32> = 576..=65535;
/// RFC 8200: the smallest MTU with which IPv6 works.
pub(super) const IPV6_MTU: u32 = 1280;
/// What ifupdown2 gives a bridge for which nothing is declared, whatever its ports have.
pub(super) const DEFAULT_MTU: u32 = 1500;
const VID: std::ops::RangeInclusive<u16> = 1..=4094;
/// What a VLAN-aware bridge lets pass if nothing is said: all but VLAN 1, which is that of untagged frames.
const ALL_VIDS: (u16, u16) = (2, 4094);
/// Names that mean something else to the kernel's sysctls or to ifupdown2, or belong to the system.
const RESERVED: [&str; 7] = ["lo", "all", "default", "none", "regex", "glob", "auto"];
/// First letters of interfaces that PVE and the agent make for guests and probes.
const RESERVED_PREFIXES: [&str; 6] = ["tap", "fwbr", "fwpr", "fwln", "veth", "pvprobe"];

type Violations = Vec<Violation>;

fn add(v: &mut Violations, field: impl Into<String>, reason: &'static str, text: impl Into<String>) {
    v.push(Violation::new(field, reason, text));
}

/// A network's name: 1 to 63 lower-case letters, digits and `-`, first and last a letter or digit. Errors: `INVALID_NETWORK_NAME`.
pub fn name(name: &str) -> Result<(), Error> {
    name_violation(name).map_or(Ok(()), |v| Err(Error::Invalid(vec![v])))
}

fn name_violation(name: &str) -> Option<Violation> {
    let b = name.as_bytes();
    let inner = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-';
    let good = (1..=63).contains(&b.len()) && b.iter().all(inner) && b[0] != b'-' && b[b.len() - 1] != b'-';
    let rule = "use 1 to 63 lower-case letters, digits and '-', first and last a letter or digit";
    (!good).then(|| Violation::new("network.name", reason::INVALID_NETWORK_NAME, format!("'{}' is no network's name: {rule}", cut(name))))
}

/// What was given, short enough for a message.
fn cut(value: &str) -> String {
    value.chars().take(64).filter(|c| !c.is_control()).collect()
}

/// Whether a name can stand in the own file: no link of another name is ever referred to there.
pub(super) fn is_link_name(name: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(ok) && name.as_bytes()[0].is_ascii_alphanumeric()
}

fn interface_name(name: &str, field: &str, bridge: bool, v: &mut Violations) {
    let mut say = |text: String| add(v, field, reason::INVALID_INTERFACE_NAME, text);
    if name.len() > NAME_MAX {
        say(format!("'{}' has {} bytes, and the kernel takes {NAME_MAX} at most; shorten it", cut(name), name.len()));
    } else if !is_link_name(name) || !name.as_bytes()[0].is_ascii_alphabetic() {
        say(format!("'{}' is no name for an interface: use letters, digits, '_', '.' and '-', first a letter", cut(name)));
    } else if RESERVED.contains(&name) || RESERVED_PREFIXES.iter().any(|p| name.starts_with(p)) {
        say(format!("'{name}' is a name of PVE's or the system's own interfaces; choose another"));
    } else if bridge && name.contains('.') {
        say(format!("'{name}' would be taken for a VLAN by ifupdown2; name a bridge without '.'"));
    }
}

/// Validates a network, resolves altnames, and takes for the MTU of a bridge what its ports have, where ifupdown2 would not.
///
/// Errors: `Invalid` with all violations; `InterfaceNotFound` for a parent or port that is neither a link of this host nor of the request.
pub fn definition(spec: &v1::NetworkSpec, tenant: &str, kernel: &Kernel) -> Result<Definition, Error> {
    let mut check = Check { spec, kernel, v: Vec::new(), missing: None, interfaces: Vec::new() };
    check.v.extend(name_violation(&spec.name));
    if let Err(e) = id::tenant(tenant) {
        add(&mut check.v, "meta.tenant", reason::INVALID_TENANT, e.to_string());
    } else if !spec.tenant.is_empty() && spec.tenant != tenant {
        let text = format!("'{}' is not the caller's tenant '{tenant}'; leave it empty", cut(&spec.tenant));
        add(&mut check.v, "network.tenant", reason::INVALID_TENANT, text);
    }
    match spec.interfaces.len() {
        0 => add(&mut check.v, "network.interfaces", reason::INVALID_FIELD, "a network without interfaces is none; name 1 to 64"),
        n if n > INTERFACES => {
            // Each of many thousand is not worth a look.
            let text = format!("{n} interfaces are too many; split them into networks of {INTERFACES} at most");
            return Err(Error::invalid("network.interfaces", reason::INVALID_FIELD, text));
        }
        _ => {}
    }
    for (index, interface) in spec.interfaces.iter().enumerate() {
        check.interface(index, interface);
    }
    check.names();
    check.tags();
    check.ports();
    check.cycles();
    check.addresses();
    let Check { v, missing, mut interfaces, .. } = check;
    done(v)?;
    if let Some(interface) = missing {
        return Err(Error::InterfaceNotFound { interface });
    }
    bridge_mtus(&mut interfaces, kernel)?;
    Ok(Definition { name: spec.name.clone(), tenant: tenant.to_owned(), interfaces })
}

struct Check<'a> {
    spec: &'a v1::NetworkSpec,
    kernel: &'a Kernel,
    v: Violations,
    /// The first parent or port that does not exist. Told only when all else is well, since it has a code of its own.
    missing: Option<String>,
    /// One for each of the request, as far as it can be understood.
    interfaces: Vec<Interface>,
}

fn at(index: usize, field: &str) -> String {
    format!("network.interfaces[{index}].{field}")
}

impl Check<'_> {
    fn interface(&mut self, index: usize, given: &v1::InterfaceSpec) {
        use v1::interface_spec::Kind as Given;
        interface_name(&given.name, &at(index, "name"), matches!(given.kind, Some(Given::Bridge(_))), &mut self.v);
        let kind = match &given.kind {
            Some(Given::Vlan(vlan)) => self.vlan(index, &given.name, vlan),
            Some(Given::Bridge(bridge)) => self.bridge(index, bridge),
            None => {
                add(&mut self.v, at(index, "kind"), reason::INVALID_FIELD, "not told; set vlan or bridge");
                Kind::Bridge { ports: Vec::new(), vlan_aware: false, vids: Vec::new() }
            }
        };
        let addresses = self.own_addresses(index, &given.addresses);
        let v6 = addresses.iter().any(|a| a.addr().is_ipv6());
        let mtu = (given.mtu != 0).then_some(given.mtu);
        if let Some(mtu) = mtu {
            if !MTU.contains(&mtu) {
                let text =
                    format!("{mtu} is outside {} to {}; choose one inside, or 0 for that of what it stands on", MTU.start(), MTU.end());
                add(&mut self.v, at(index, "mtu"), reason::INVALID_MTU, text);
            } else if v6 && mtu < IPV6_MTU {
                add(&mut self.v, at(index, "mtu"), reason::INVALID_MTU, format!("{mtu} is too small for IPv6; use {IPV6_MTU} or more"));
            }
        }
        let comment = given.comment.clone();
        if comment.chars().count() > COMMENT {
            add(&mut self.v, at(index, "comment"), reason::INVALID_FIELD, format!("longer than {COMMENT} characters; shorten it"));
        } else if let Some(bad) = comment.chars().find(|c| !is_printable(*c)) {
            let text = format!("{:?} is no printable character, a quote or a backslash; leave it out", bad);
            add(&mut self.v, at(index, "comment"), reason::INVALID_FIELD, text);
        }
        self.interfaces.push(Interface { name: given.name.clone(), kind, mtu, addresses, comment });
    }

    fn vlan(&mut self, index: usize, name: &str, vlan: &v1::VlanSpec) -> Kind {
        let id = u16::try_from(vlan.id).unwrap_or(u16::MAX);
        if !VID.contains(&id) {
            let text = format!("{} is no VLAN; use {} to {}", vlan.id, VID.start(), VID.end());
            add(&mut self.v, at(index, "vlan.id"), reason::INVALID_VLAN, text);
        } else if let Some((_, end)) = name.rsplit_once('.')
            && end.bytes().all(|b| b.is_ascii_digit())
            && end.parse() != Ok(id)
        {
            let text = format!("'{name}' is the name of another VLAN than {id}; end it in '.{id}', or name it without '.'");
            add(&mut self.v, at(index, "name"), reason::INVALID_INTERFACE_NAME, text);
        }
        let service = match v1::VlanProtocol::try_from(vlan.protocol) {
            Ok(protocol) => protocol == v1::VlanProtocol::VlanProtocol8021ad,
            Err(_) => {
                let text = format!("{} is no protocol; use 8021Q or 8021AD", vlan.protocol);
                add(&mut self.v, at(index, "vlan.protocol"), reason::INVALID_VLAN, text);
                false
            }
        };
        let parent = self.resolve(&vlan.parent, &at(index, "vlan.parent"));
        if self.kernel.link(&parent).is_some_and(|l| l.kind == "loopback") {
            let text = format!("'{parent}' is the loopback, which carries no VLANs; choose a NIC, bond, bridge or VLAN");
            add(&mut self.v, at(index, "vlan.parent"), reason::INVALID_FIELD, text);
        }
        Kind::Vlan { parent, id, service }
    }

    fn bridge(&mut self, index: usize, bridge: &v1::BridgeSpec) -> Kind {
        if bridge.ports.len() > PORTS {
            let text = format!("{} ports are too many; {PORTS} at most", bridge.ports.len());
            add(&mut self.v, at(index, "bridge.ports"), reason::INVALID_FIELD, text);
        }
        let ports: Vec<String> = bridge
            .ports
            .iter()
            .take(PORTS)
            .enumerate()
            .map(|(p, port)| {
                let field = at(index, &format!("bridge.ports[{p}]"));
                let port = self.resolve(port, &field);
                let in_request = self.spec.interfaces.iter().find(|i| i.name == port);
                let bridge = match in_request {
                    Some(i) => matches!(i.kind, Some(v1::interface_spec::Kind::Bridge(_))),
                    None => self.kernel.link(&port).is_some_and(|l| matches!(l.kind.as_str(), "bridge" | "loopback")),
                };
                if bridge {
                    let text = format!("'{port}' is a bridge or the loopback, and can be no port; choose a NIC, bond or VLAN");
                    add(&mut self.v, field, reason::INVALID_FIELD, text);
                }
                port
            })
            .collect();
        let vids = if bridge.vlan_aware {
            self.vids(index, &bridge.vids)
        } else {
            if !bridge.vids.is_empty() {
                let text = "only a bridge with vlan_aware filters VLANs; set it, or leave vids empty";
                add(&mut self.v, at(index, "bridge.vids"), reason::INVALID_VLAN, text);
            }
            Vec::new()
        };
        Kind::Bridge { ports, vlan_aware: bridge.vlan_aware, vids }
    }

    /// Ascending and merged.
    fn vids(&mut self, index: usize, given: &[String]) -> Vec<(u16, u16)> {
        let mut ranges: Vec<(u16, u16)> = if given.is_empty() { vec![ALL_VIDS] } else { Vec::new() };
        for (n, text) in given.iter().enumerate() {
            if let Some(range) = vid_range(text) {
                ranges.push(range);
            } else {
                let text = format!("'{}' is no VLAN or range; write it as '100' or '200-299', within 1 to 4094", cut(text));
                add(&mut self.v, at(index, &format!("bridge.vids[{n}]")), reason::INVALID_VLAN, text);
            }
        }
        merged(ranges)
    }

    /// The own name of a parent or port.
    fn resolve(&mut self, given: &str, field: &str) -> String {
        if self.spec.interfaces.iter().any(|i| i.name == given) {
            return given.to_owned();
        }
        let found = self.kernel.link(given).map(|l| l.name.clone());
        match found {
            _ if given.is_empty() => add(&mut self.v, field, reason::INVALID_FIELD, "not told; name a link of this host"),
            Some(name) if !is_link_name(&name) => {
                let text = format!("'{}' has a name that a configuration file cannot hold; rename that link", cut(&name));
                add(&mut self.v, field, reason::INVALID_INTERFACE_NAME, text);
            }
            Some(name) => return name,
            None => {
                self.missing.get_or_insert_with(|| cut(given));
            }
        }
        given.to_owned()
    }

    fn names(&mut self) {
        let mut seen = BTreeMap::new();
        for (index, interface) in self.spec.interfaces.iter().enumerate() {
            if let Some(first) = seen.insert(&interface.name, index) {
                let text = format!("'{}' is the name of interfaces[{first}] too; name each interface once", cut(&interface.name));
                add(&mut self.v, at(index, "name"), reason::INVALID_INTERFACE_NAME, text);
            }
        }
    }

    fn tags(&mut self) {
        let mut seen = BTreeMap::new();
        for (index, interface) in self.interfaces.iter().enumerate() {
            if let Kind::Vlan { parent, id, service } = &interface.kind
                && let Some(first) = seen.insert((parent, *id, *service), &interface.name)
                && first != &interface.name
            {
                let text = format!("'{parent}' has VLAN {id} as '{first}' in this request; one VLAN is one interface");
                add(&mut self.v, at(index, "vlan.id"), reason::INVALID_VLAN, text);
            }
        }
    }

    /// A link is the port of one bridge, and carries nothing else then.
    fn ports(&mut self) {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for (index, interface) in self.interfaces.iter().enumerate() {
            let Kind::Bridge { ports, .. } = &interface.kind else { continue };
            for (p, port) in ports.iter().enumerate().filter(|(_, port)| !port.is_empty()) {
                let field = at(index, &format!("bridge.ports[{p}]"));
                if let Some(other) = seen.insert(port, &interface.name) {
                    let text = format!("'{port}' is a port of '{other}' already; a link is a port once");
                    add(&mut self.v, field.clone(), reason::INVALID_FIELD, text);
                }
                if let Some(own) = self.interfaces.iter().find(|i| &i.name == port && !i.addresses.is_empty()) {
                    let text = format!("'{}' has addresses, which a port cannot have; give them to the bridge", own.name);
                    add(&mut self.v, field, reason::INVALID_FIELD, text);
                }
            }
        }
        for (index, interface) in self.interfaces.iter().enumerate() {
            if let Kind::Vlan { parent, .. } = &interface.kind
                && let Some(bridge) = seen.get(parent.as_str())
            {
                let text = format!("'{parent}' is a port of '{bridge}', and a VLAN on a port takes its frames away; put it on '{bridge}'");
                add(&mut self.v, at(index, "vlan.parent"), reason::INVALID_FIELD, text);
            }
        }
    }

    fn cycles(&mut self) {
        let lower: BTreeMap<&str, &[String]> = self.interfaces.iter().map(|i| (i.name.as_str(), super::own_file::lower(i))).collect();
        for (index, interface) in self.interfaces.iter().enumerate() {
            let (mut seen, mut todo) = (BTreeSet::new(), vec![interface.name.as_str()]);
            let mut cycle = false;
            while let Some(name) = todo.pop() {
                for next in lower.get(name).into_iter().flat_map(|l| l.iter()) {
                    cycle |= *next == interface.name;
                    if seen.insert(next.as_str()) {
                        todo.push(next);
                    }
                }
            }
            if cycle {
                let field = if matches!(interface.kind, Kind::Vlan { .. }) { "vlan.parent" } else { "bridge.ports" };
                let text = format!("'{}' would stand on itself; break the circle", cut(&interface.name));
                add(&mut self.v, at(index, field), reason::INVALID_FIELD, text);
            }
        }
    }

    fn own_addresses(&mut self, index: usize, given: &[String]) -> Vec<IpNet> {
        if given.len() > ADDRESSES {
            let text = format!("{} addresses are too many; {ADDRESSES} at most", given.len());
            add(&mut self.v, at(index, "addresses"), reason::INVALID_ADDRESS, text);
        }
        let mut out = Vec::new();
        for (n, text) in given.iter().take(ADDRESSES).enumerate() {
            match address(text) {
                Ok(net) => out.push(net),
                Err(why) => {
                    let text = format!("'{}' {why}", cut(text));
                    add(&mut self.v, at(index, &format!("addresses[{n}]")), reason::INVALID_ADDRESS, text);
                }
            }
        }
        out
    }

    fn addresses(&mut self) {
        let mut seen: Vec<(usize, IpNet)> = Vec::new();
        let mut found = Vec::new();
        for (index, interface) in self.interfaces.iter().enumerate() {
            for net in &interface.addresses {
                let field = at(index, "addresses");
                if seen.iter().any(|(_, o)| o.addr() == net.addr()) {
                    found.push(Violation::new(field, reason::ADDRESS_IN_USE, format!("{} is given twice; give it once", net.addr())));
                } else if let Some((other, o)) = seen.iter().find(|(i, o)| *i != index && overlap(o, net)) {
                    let other = &self.interfaces[*other].name;
                    let text = format!("{net} overlaps with {o} of '{other}'; a subnet belongs to one interface");
                    found.push(Violation::new(field, reason::SUBNET_OVERLAP, text));
                }
                seen.push((index, *net));
            }
        }
        self.v.extend(found);
    }
}

/// Whether two subnets have an address in common.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn vid_range(text: &str) -> Option<(u16, u16)> {
    let number = |t: &str| (t.len() <= 4 && !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit())).then(|| t.parse().ok()).flatten();
    let (first, last) = match text.split_once('-') {
        Some((a, b)) => (number(a)?, number(b)?),
        None => (number(text)?, number(text)?),
    };
    (VID.contains(&first) && VID.contains(&last) && first <= last).then_some((first, last))
}

/// Ascending, and what touches made one.
pub(super) fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut out: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

/// Printable, and nothing that hides or turns text.
fn is_printable(c: char) -> bool {
    let hidden = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !hidden && !matches!(c, '"' | '\'' | '`' | '\\')
}

/// An address that a host can have on an interface.
fn address(text: &str) -> Result<IpNet, String> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err("is no address with prefix length; write it as '192.0.2.1/24' or '2001:db8::1/64'".into());
    };
    let why = match net.addr() {
        a if a.is_unspecified() => "is the unspecified address",
        a if a.is_loopback() => "is a loopback address",
        a if a.is_multicast() => "is a multicast address",
        _ if net.prefix_len() == 0 => "has prefix length 0, which is everything",
        IpAddr::V4(a) if a.octets()[0] == 0 => "is in 0.0.0.0/8, which no host has",
        IpAddr::V4(a) if a.octets()[0] >= 240 => "is in 240.0.0.0/4, which is reserved",
        IpAddr::V4(_) if net.prefix_len() <= 30 && net.addr() == net.network() => "is the address of the network itself",
        IpAddr::V4(_) if net.prefix_len() <= 30 && net.addr() == net.broadcast() => "is the broadcast address of its network",
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => "is an IPv4 address in IPv6 form",
        IpAddr::V6(a) if a.is_unicast_link_local() => "is a link-local address, which the kernel gives by itself",
        IpAddr::V6(_) if net.prefix_len() <= 126 && net.addr() == net.network() => "is the address of all routers of its network",
        _ => return Ok(net),
    };
    Err(format!("{why}; choose an address of a host"))
}

/// The MTU that an interface gets: its own, or that of what it stands on. `None`: not known.
pub(super) fn effective_mtu(name: &str, interfaces: &[Interface], kernel: &Kernel) -> Option<u32> {
    fn of(name: &str, interfaces: &[Interface], kernel: &Kernel, depth: usize) -> Option<u32> {
        let Some(interface) = interfaces.iter().find(|i| i.name == name) else { return kernel.link(name).map(|l: &KernelLink| l.mtu) };
        if interface.mtu.is_some() || depth == 0 {
            return interface.mtu;
        }
        match &interface.kind {
            Kind::Vlan { parent, .. } => of(parent, interfaces, kernel, depth - 1),
            Kind::Bridge { .. } => Some(DEFAULT_MTU),
        }
    }
    of(name, interfaces, kernel, interfaces.len() + 1)
}

/// ifupdown2 gives a bridge for which no MTU is declared 1500, whatever its ports have. So what the ports have is declared, if it is another.
fn bridge_mtus(interfaces: &mut [Interface], kernel: &Kernel) -> Result<(), Error> {
    let order: Vec<String> = super::own_file::in_order(interfaces).iter().map(|i| i.name.clone()).collect();
    let mut v = Violations::new();
    for name in order {
        let Some(index) = interfaces.iter().position(|i| i.name == name) else { continue };
        if interfaces[index].mtu.is_some() {
            continue;
        }
        if let Kind::Bridge { ports, .. } = &interfaces[index].kind {
            let smallest = ports.iter().filter_map(|p| effective_mtu(p, interfaces, kernel)).min();
            interfaces[index].mtu = smallest.filter(|m| *m != DEFAULT_MTU);
        }
        let v6 = interfaces[index].addresses.iter().any(|a| a.addr().is_ipv6());
        if let Some(mtu) = effective_mtu(&name, interfaces, kernel).filter(|m| v6 && *m < IPV6_MTU) {
            let text =
                format!("what it stands on has {mtu}, too small for IPv6; raise that to {IPV6_MTU}, or leave out the IPv6 addresses");
            add(&mut v, at(index, "mtu"), reason::INVALID_MTU, text);
        }
    }
    done(v)
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
