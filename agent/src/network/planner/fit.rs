//! Whether a network fits the host: everything it takes must be free, and everything it takes away unused.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use pvelet_proto::reason;

use super::{
    super::{
        declared::{Declared, Stanza},
        definition::{Definition, Interface, Kind},
        own_file::{OwnFile, lower},
        stack::guest_of,
        validate::{DEFAULT_MTU, effective_mtu, overlap},
        verify::{Index, addresses_text},
    },
    Fate, is_another,
};
use crate::{
    error::{Error, Violation},
    host::net::{Kernel, KernelLink, VlanTag},
};

/// The id of a check that only a plan can make.
const UNDECLARED: &str = "net.undeclared-parent";

pub(super) struct Fit<'a> {
    before: &'a [Interface],
    after: &'a [Interface],
    kernel: &'a Kernel,
    index: &'a Index<'a>,
    /// Names of the network's interfaces, before or after.
    ours: BTreeSet<&'a str>,
    /// Other names of links.
    altnames: BTreeMap<&'a str, &'a KernelLink>,
    /// The interfaces of the own file's other networks.
    others: Vec<(&'a str, &'a Interface)>,
    stanzas: BTreeMap<&'a str, Vec<&'a Stanza>>,
    /// Which stanza makes a link its port.
    declared_ports: BTreeMap<&'a str, &'a Stanza>,
    /// Stanzas that stand on a link as VLANs.
    declared_vlans: BTreeMap<&'a str, Vec<&'a Stanza>>,
}

fn taken(interface: &str, owner: impl Into<String>) -> Error {
    Error::InterfaceTaken { interface: interface.to_owned(), owner: owner.into() }
}

/// What is said of an interface of another network, whose tenant may be another.
fn network_text(network: &str) -> String {
    format!("network '{network}' of pvelet")
}

impl<'a> Fit<'a> {
    pub(super) fn new(
        network: &'a str,
        before: &'a [Interface],
        after: &'a [Interface],
        own_file: &'a OwnFile,
        kernel: &'a Kernel,
        index: &'a Index<'a>,
        declared: &'a Declared,
    ) -> Self {
        let mut fit = Self {
            before,
            after,
            kernel,
            index,
            ours: before.iter().chain(after).map(|i| i.name.as_str()).collect(),
            altnames: kernel.links.iter().flat_map(|l| l.altnames.iter().map(move |a| (a.as_str(), l))).collect(),
            others: own_file.interfaces().filter(|(n, _)| *n != network).collect(),
            stanzas: BTreeMap::new(),
            declared_ports: BTreeMap::new(),
            declared_vlans: BTreeMap::new(),
        };
        for stanza in &declared.stanzas {
            fit.stanzas.entry(&stanza.name).or_default().push(stanza);
            for port in stanza.ports() {
                fit.declared_ports.entry(port).or_insert(stanza);
            }
            if let Some(parent) = stanza.parent() {
                fit.declared_vlans.entry(parent).or_default().push(stanza);
            }
        }
        fit
    }

    fn old(&self, name: &str) -> Option<&'a Interface> {
        self.before.iter().find(|i| i.name == name)
    }

    fn new_of(&self, name: &str) -> Option<&'a Interface> {
        self.after.iter().find(|i| i.name == name)
    }

    /// Whether everything the network takes is free.
    pub(super) fn check(&self, network: &Definition, fates: &[Fate]) -> Result<(), Error> {
        let mut v = Vec::new();
        for (index, interface) in network.interfaces.iter().enumerate() {
            self.name(interface)?;
            match &interface.kind {
                Kind::Vlan { parent, id, service } => {
                    self.parent(parent)?;
                    self.tag(index, interface, (parent, VlanTag { id: *id, service: *service }), fates, &mut v);
                }
                Kind::Bridge { ports, .. } => {
                    for port in ports {
                        self.port(interface, port)?;
                    }
                }
            }
            for link in lower(interface) {
                self.declared(link)?;
            }
            self.mtu(index, interface, &mut v);
        }
        self.addresses(network, &mut v);
        if v.is_empty() { Ok(()) } else { Err(Error::Invalid(v)) }
    }

    fn name(&self, interface: &Interface) -> Result<(), Error> {
        let name = interface.name.as_str();
        if let Some((network, _)) = self.others.iter().find(|(_, i)| i.name == name) {
            return Err(taken(name, network_text(network)));
        }
        if let Some(stanza) = self.stanzas.get(name).and_then(|s| s.first()) {
            return Err(taken(name, stanza.place()));
        }
        let there = self.index.link(name).filter(|_| self.old(name).is_none()).or_else(|| self.altnames.get(name).copied());
        match there {
            Some(link) if link.name == name => {
                Err(taken(name, format!("somebody who made it by hand (the kernel has a {} of this name)", link.kind)))
            }
            Some(link) => Err(taken(name, format!("link '{}', which has it as its other name", link.name))),
            None => Ok(()),
        }
    }

    /// A VLAN's parent is there, and nobody's port.
    fn parent(&self, parent: &str) -> Result<(), Error> {
        if self.new_of(parent).is_some() {
            return Ok(());
        }
        let Some(link) = self.index.link(parent).filter(|_| self.old(parent).is_none()) else {
            return Err(Error::InterfaceNotFound { interface: parent.to_owned() });
        };
        self.not_a_port(link, None)
    }

    /// `except`: the bridge that may have it.
    fn not_a_port(&self, link: &KernelLink, except: Option<&str>) -> Result<(), Error> {
        let name = link.name.as_str();
        let given_up = |master: &str| {
            let has = |i: &Interface| lower(i).iter().any(|p| p == name);
            self.old(master).is_some_and(has) && !self.new_of(master).is_some_and(has)
        };
        let other_master = link.master.as_deref().filter(|m| Some(*m) != except && !given_up(m));
        if let Some((network, bridge)) = self.others.iter().find(|(_, i)| is_port(i, name)) {
            return Err(taken(name, format!("bridge '{}' of {}, as a port", bridge.name, network_text(network))));
        }
        if let Some(master) = other_master {
            let kind = self.index.link(master).map_or("link", |m| &m.kind);
            return Err(taken(name, format!("{kind} '{master}', as a port")));
        }
        if let Some(stanza) = self.declared_ports.get(name) {
            return Err(taken(name, format!("'{}' in {}, as a port", stanza.name, stanza.place())));
        }
        Ok(())
    }

    /// One VLAN of a link is one interface.
    fn tag(&self, at: usize, interface: &Interface, (parent, tag): (&str, VlanTag), fates: &[Fate], v: &mut Vec<Violation>) {
        let stays = |name: &str| {
            let fate = self.after.iter().zip(fates).find(|(i, _)| i.name == name).map(|(_, f)| *f);
            match fate {
                Some(fate) => fate != Fate::Remake,
                None => self.old(name).is_none(),
            }
        };
        let link = self.index.vlans(parent).iter().find(|l| l.vlan == Some(tag) && l.name != interface.name && stays(&l.name));
        let other = self.others.iter().find(|(_, i)| i.kind == interface.kind);
        let stanza = self.declared_vlans.get(parent).into_iter().flatten().find(|s| stanza_tag(s) == Some(tag));
        let who = match (link, other, stanza) {
            (Some(link), ..) => format!("'{}'", link.name),
            (_, Some((network, other)), _) => format!("'{}' of {}", other.name, network_text(network)),
            (.., Some(stanza)) => format!("'{}' in {}", stanza.name, stanza.place()),
            _ => return,
        };
        let text = format!("'{parent}' has VLAN {} as {who} already; use that, or choose another VLAN", tag.id);
        v.push(Violation::new(format!("network.interfaces[{at}].vlan.id"), reason::INVALID_VLAN, text));
    }

    /// A bridge's port is there, nobody else's, and has no addresses.
    fn port(&self, bridge: &Interface, port: &str) -> Result<(), Error> {
        let new = self.new_of(port);
        let link = self.index.link(port).filter(|_| new.is_some() || self.old(port).is_none());
        if link.is_none() && new.is_none() {
            return Err(Error::InterfaceNotFound { interface: port.to_owned() });
        }
        if let Some((network, _)) = self.others.iter().find(|(_, i)| i.name == port && !i.addresses.is_empty()) {
            return Err(taken(port, format!("{}, which gives it addresses", network_text(network))));
        }
        if let Some(link) = link {
            let own_port = self.old(&bridge.name).is_some().then_some(bridge.name.as_str());
            self.not_a_port(link, own_port)?;
            // Bridges are changed one after the other: it would be wanted by the one before the other has let it go.
            let stays = |m: &&Interface| !self.old(&m.name).is_some_and(|old| is_another(old, m));
            if let Some(giver) = link.master.as_deref().filter(|m| *m != bridge.name).and_then(|m| self.new_of(m)).filter(stays) {
                return Err(taken(port, format!("bridge '{}' until that is changed; take it off there in a change before", giver.name)));
            }
            if let Some(address) = link.addresses.first().filter(|_| new.is_none()) {
                return Err(taken(port, format!("the host itself, which has address {address} on it")));
            }
        }
        if let Some(stanza) = self.stanzas.get(port).into_iter().flatten().find(|s| s.has_addresses()) {
            return Err(taken(port, format!("{}, which gives it addresses", stanza.place())));
        }
        self.carries_nothing(port)
    }

    /// A VLAN on a port takes its frames before the bridge sees them, and goes down with the port when that leaves the bridge.
    fn carries_nothing(&self, port: &str) -> Result<(), Error> {
        let stays = |l: &&&KernelLink| self.old(&l.name).is_none() || self.new_of(&l.name).is_some();
        let link = self.index.vlans(port).iter().find(stays).map(|l| format!("VLAN '{}', which stands on it", l.name));
        let own = self.others.iter().find(|(_, i)| matches!(&i.kind, Kind::Vlan { parent, .. } if parent == port));
        let own = own.map(|(network, i)| format!("VLAN '{}' of {}, which stands on it", i.name, network_text(network)));
        let stanza = self.declared_vlans.get(port).and_then(|s| s.first());
        match link.or(own).or(stanza.map(|s| format!("VLAN '{}' in {}, which stands on it", s.name, s.place()))) {
            Some(owner) => Err(taken(port, owner)),
            None => Ok(()),
        }
    }

    /// A link below that no file declares is ifupdown2's own: with what stands on it, it gets MTU 1500 and loses its addresses.
    fn declared(&self, name: &str) -> Result<(), Error> {
        let ours = self.ours.contains(name) || self.others.iter().any(|(_, i)| i.name == name);
        let Some(link) = self.index.link(name).filter(|_| !ours && !self.stanzas.contains_key(name)) else { return Ok(()) };
        let loss = match link.addresses.as_slice() {
            [] if link.mtu == DEFAULT_MTU => return Ok(()),
            [] => format!("set its MTU from {} to {DEFAULT_MTU}", link.mtu),
            addresses => format!("take its addresses ({}) away", addresses_text(addresses)),
        };
        let seen = format!("no file declares '{name}', so ifupdown2 would {loss}; declare it in /etc/network/interfaces as it is");
        Err(Error::NetworkPreflight { checks: vec![(UNDECLARED.to_owned(), seen)] })
    }

    /// Not more than what it stands on has, nor less than what stands on it has.
    fn mtu(&self, at: usize, interface: &Interface, v: &mut Vec<Violation>) {
        let Some(mtu) = effective_mtu(&interface.name, self.after, self.kernel) else { return };
        let mut say = |text: String| v.push(Violation::new(format!("network.interfaces[{at}].mtu"), reason::INVALID_MTU, text));
        if interface.mtu.is_some() {
            let lower = lower(interface).iter().filter_map(|l| Some((l, effective_mtu(l, self.after, self.kernel)?)));
            if let Some((name, most)) = lower.min_by_key(|(_, m)| *m).filter(|(_, m)| *m < mtu) {
                say(format!("{mtu} is more than the {most} of '{name}'; use {most} at most, or raise that first"));
            }
        }
        let vlans = self.index.vlans(&interface.name).iter().copied();
        let bridge = self.index.link(&interface.name).and_then(|l| l.master.as_deref()).and_then(|m| self.index.link(m));
        let upper = vlans.chain(bridge).find(|u| !self.ours.contains(u.name.as_str()) && u.mtu > mtu);
        if let Some(upper) = upper {
            say(format!("{mtu} is less than the {} of '{}', which stands on it; lower that first", upper.mtu, upper.name));
        }
    }

    /// No address and no subnet of the network belongs to another interface, running or declared.
    fn addresses(&self, network: &Definition, v: &mut Vec<Violation>) {
        if network.interfaces.iter().all(|i| i.addresses.is_empty()) {
            return;
        }
        let mut known: Vec<(&str, IpNet)> = Vec::new();
        for link in self.kernel.links.iter().filter(|l| !self.ours.contains(l.name.as_str())) {
            known.extend(link.addresses.iter().map(|a| (link.name.as_str(), *a)));
        }
        known.extend(self.others.iter().flat_map(|(_, i)| i.addresses.iter().map(|a| (i.name.as_str(), *a))));
        let declared = self.stanzas.values().flatten().filter(|s| !self.ours.contains(s.name.as_str()));
        known.extend(declared.flat_map(|s| stanza_addresses(s).map(|a| (s.name.as_str(), a))));
        for (at, interface) in network.interfaces.iter().enumerate() {
            for (n, net) in interface.addresses.iter().enumerate() {
                let field = || format!("network.interfaces[{at}].addresses[{n}]");
                if let Some((name, _)) = known.iter().find(|(_, k)| k.addr() == net.addr()) {
                    let text = format!("{} is an address of '{name}' already; choose another", net.addr());
                    v.push(Violation::new(field(), reason::ADDRESS_IN_USE, text));
                } else if let Some((name, other)) = known.iter().find(|(_, k)| k.prefix_len() < k.max_prefix_len() && overlap(k, net)) {
                    let text = format!("{net} overlaps with {} of '{name}'; choose another subnet", other.trunc());
                    v.push(Violation::new(field(), reason::SUBNET_OVERLAP, text));
                }
            }
        }
    }

    /// Whether nobody needs what goes, for ever or until it is made anew.
    pub(super) fn unused<'b>(&self, going: impl Iterator<Item = &'b Interface>) -> Result<(), Error> {
        for interface in going {
            let name = interface.name.as_str();
            let mut users: BTreeSet<String> = BTreeSet::new();
            users.extend(
                self.others
                    .iter()
                    .filter(|(_, i)| lower(i).iter().any(|l| l == name))
                    .map(|(n, i)| format!("{} ({})", network_text(n), i.name)),
            );
            let known = |l: &&&KernelLink| !self.ours.contains(l.name.as_str()) && !self.others.iter().any(|(_, i)| i.name == l.name);
            users.extend(self.index.vlans(name).iter().filter(known).map(|l| l.name.clone()));
            let declared = self.declared_vlans.get(name).into_iter().flatten().chain(self.declared_ports.get(name));
            users.extend(declared.map(|s| format!("{} ({})", s.name, s.place())));
            let declared_port = |l: &KernelLink| self.old(name).is_some_and(|old| lower(old).contains(&l.name));
            let ports = self
                .index
                .ports(name)
                .iter()
                .filter(|l| !declared_port(l) && !l.name.starts_with("pvprobe") && !self.ours.contains(l.name.as_str()));
            users.extend(ports.map(|l| port_text(&l.name)));
            let master = self.index.link(name).and_then(|l| l.master.as_deref()).filter(|m| !self.ours.contains(m));
            users.extend(master.filter(|m| !self.others.iter().any(|(_, i)| i.name == *m)).map(str::to_owned));
            if !users.is_empty() {
                return Err(Error::NetworkInUse { what: format!("interface '{name}'"), users: users.into_iter().collect() });
            }
        }
        Ok(())
    }
}

fn is_port(bridge: &Interface, name: &str) -> bool {
    matches!(&bridge.kind, Kind::Bridge { ports, .. } if ports.iter().any(|p| p == name))
}

/// A guest's port with its guest: `VM 100 (tap100i0)`.
fn port_text(name: &str) -> String {
    let kind = match name {
        _ if name.starts_with("tap") => "VM",
        _ if name.starts_with("veth") => "CT",
        _ => "guest",
    };
    guest_of(name).map_or_else(|| name.to_owned(), |vmid| format!("{kind} {vmid} ({name})"))
}

/// The tag of a VLAN that a stanza declares.
fn stanza_tag(stanza: &Stanza) -> Option<VlanTag> {
    let id = match stanza.option("vlan-id") {
        Some(id) => id,
        None => stanza.name.rsplit_once('.').map(|(_, id)| id).or_else(|| stanza.name.strip_prefix("vlan"))?,
    };
    let service = stanza.option("vlan-protocol").is_some_and(|p| p.eq_ignore_ascii_case("802.1ad"));
    Some(VlanTag { id: id.parse().ok()?, service })
}

/// The addresses that a stanza gives its interface; a netmask in a line of its own counts for the first.
fn stanza_addresses(stanza: &Stanza) -> impl Iterator<Item = IpNet> {
    let mask = stanza.option("netmask");
    let addresses = stanza.options.iter().filter(|(k, _)| k == "address").filter_map(|(_, v)| v.split_whitespace().next());
    addresses.filter_map(move |text| {
        if let Ok(net) = text.parse() {
            return Some(net);
        }
        let address: IpAddr = text.parse().ok()?;
        let length = match mask.map(|m| (m.parse::<u8>(), m.parse::<IpAddr>())) {
            Some((Ok(length), _)) => length,
            Some((_, Ok(mask))) => ipnet::ip_mask_to_prefix(mask).ok()?,
            _ => IpNet::from(address).prefix_len(),
        };
        IpNet::new(address, length).ok()
    })
}
