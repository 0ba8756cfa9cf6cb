//! A kernel in memory, and what ifupdown2 does to it with the stanzas of the agent's own file.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{
    host::net::{Action, Kernel, KernelLink, KernelRoute, Step, TextFile, VlanRange, VlanTag},
    network::{
        declared::{self, Declared, Stanza},
        definition::{Interface, Kind},
    },
};

fn declared(text: &str) -> Declared {
    declared::parse(&[TextFile { path: "interfaces".into(), text: text.to_owned(), modified: None }])
}

/// The VLANs and bridges that a text declares.
fn interfaces(text: Option<&str>) -> Vec<Interface> {
    let one = |stanza: &Stanza| {
        let kind = match (stanza.parent(), stanza.option("bridge-ports")) {
            (Some(parent), _) => Kind::Vlan {
                parent: parent.to_owned(),
                id: stanza.option("vlan-id")?.parse().ok()?,
                service: stanza.option("vlan-protocol") == Some("802.1ad"),
            },
            (None, Some(_)) => Kind::Bridge {
                ports: stanza.ports().map(str::to_owned).collect(),
                vlan_aware: stanza.option("bridge-vlan-aware") == Some("yes"),
                vids: stanza.option("bridge-vids").into_iter().flat_map(str::split_whitespace).filter_map(range).collect(),
            },
            (None, None) => return None,
        };
        let addresses = stanza.options.iter().filter(|(key, _)| key == "address").filter_map(|(_, a)| a.parse().ok()).collect();
        let mtu = stanza.option("mtu").and_then(|m| m.parse().ok());
        Some(Interface { name: stanza.name.clone(), kind, mtu, addresses, comment: String::new() })
    };
    declared(text.unwrap_or_default()).stanzas.iter().filter_map(one).collect()
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// Ports that guests make and remove.
const GUESTS: [&str; 4] = ["tap", "veth", "fwpr", "fwln"];

/// What stands on the disk and what runs. All processes of a host share it.
#[derive(Debug, Clone)]
pub(super) struct Model {
    /// Links that are there without the agent's own file.
    pub(super) base: Kernel,
    pub(super) kernel: Kernel,
    pub(super) interfaces: String,
    pub(super) own: Option<String>,
    pub(super) old_own: Option<String>,
    pub(super) staged: Option<String>,
    pub(super) checkpoint: Option<Vec<u8>>,
    pub(super) kept: BTreeMap<String, Vec<u8>>,
    pub(super) armed: bool,
    pub(super) boot: u32,
    /// Steps that the transient unit has not done yet, with the text that declares them.
    pub(super) unit: Vec<(Step, Option<String>)>,
    /// Interfaces at which ifupdown2 hangs, and at which it fails.
    pub(super) hangs: BTreeSet<String>,
    pub(super) fails: BTreeSet<String>,
    /// Links that netlink does not remove.
    pub(super) sticky: BTreeSet<String>,
    /// Addresses that answer as long as these links are as they were at the beginning.
    pub(super) answering: Vec<(String, std::net::IpAddr)>,
    /// Guests' ports are taken off a bridge that is changed, as Debian's ifupdown2 does.
    pub(super) loses_guests: bool,
    /// No space is left: nothing new is written. What was made room for is.
    pub(super) disk_full: bool,
    pub(super) check_mark: u64,
}

fn nic(name: &str, index: u32) -> KernelLink {
    KernelLink {
        name: name.to_owned(),
        index,
        kind: "ether".to_owned(),
        up: true,
        carrier: true,
        mtu: 9000,
        mac: format!("02:00:00:00:00:{index:02x}"),
        ..KernelLink::default()
    }
}

impl Model {
    /// A host with a management NIC `eth0`, two more (`eth1`, `eth2`), and a gateway that answers.
    pub(super) fn new() -> Self {
        let mut lo = nic("lo", 1);
        (lo.kind, lo.mtu, lo.mac) = ("loopback".to_owned(), 65536, "00:00:00:00:00:00".to_owned());
        let mut eth0 = nic("eth0", 2);
        eth0.addresses = vec![IpNet::new_assert([192, 0, 2, 10].into(), 24)];
        let gateway = std::net::IpAddr::from([192, 0, 2, 1]);
        let default = KernelRoute { destination: None, gateway: Some(gateway), link: "eth0".to_owned(), metric: 0, v6: false };
        let kernel = Kernel { links: vec![lo, eth0, nic("eth1", 3), nic("eth2", 4)], routes: vec![default] };
        Self {
            base: kernel.clone(),
            kernel,
            interfaces:
                "auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet static\n\taddress 192.0.2.10/24\n\tgateway 192.0.2.1\n\
                         iface eth1 inet manual\niface eth2 inet manual\nsource /etc/network/interfaces.d/*\n"
                    .to_owned(),
            own: None,
            old_own: None,
            staged: None,
            checkpoint: None,
            kept: BTreeMap::new(),
            armed: false,
            boot: 1,
            unit: Vec::new(),
            hangs: BTreeSet::new(),
            fails: BTreeSet::new(),
            sticky: BTreeSet::new(),
            answering: vec![("eth0".to_owned(), gateway)],
            loses_guests: false,
            disk_full: false,
            check_mark: 0,
        }
    }

    /// The host goes down and comes up again: only what stands on the disk is left. The network is not up yet.
    pub(super) fn reboot(&mut self) {
        self.boot += 1;
        self.kernel = self.base.clone();
        self.armed = false;
        self.unit.clear();
    }

    /// `networking.service`: brings up all that is declared.
    pub(super) fn networking(&mut self) {
        let all = interfaces(self.own.as_deref());
        // What stands on others comes up after them, in whatever order they stand.
        for _ in 0..all.len() {
            for interface in &all {
                let _ = self.up(interface);
            }
        }
    }

    /// What ifupdown2 does in one step, the next one of the unit. Says what it complains about.
    pub(super) fn step(&mut self) -> Result<(), String> {
        if self.unit.is_empty() {
            return Ok(());
        }
        let (step, text) = self.unit.remove(0);
        let name = step.interface.as_str();
        if self.fails.contains(name) {
            return Err(format!("error: {name}: it fails, as the test wants it"));
        }
        let all = interfaces(text.as_deref().or(self.own.as_deref()));
        let Some(interface) = all.iter().find(|i| i.name == name) else {
            return Err(format!("error: cannot find interfaces: {name}"));
        };
        if step.action == Action::Down {
            self.delete(name);
            // It takes a bridge's ports along, and a VLAN's parent where the files do not declare that.
            let along: Vec<&String> = match &interface.kind {
                Kind::Bridge { ports, .. } => ports.iter().collect(),
                Kind::Vlan { parent, .. } => Some(parent).filter(|p| !self.is_declared(text.as_deref(), p)).into_iter().collect(),
            };
            for link in self.kernel.links.iter_mut().filter(|l| along.contains(&&l.name)) {
                link.up = false;
            }
            return Ok(());
        }
        self.up(interface)
    }

    fn is_declared(&self, text: Option<&str>, name: &str) -> bool {
        let text = text.map_or_else(|| format!("{}\n{}", self.interfaces, self.own.as_deref().unwrap_or_default()), str::to_owned);
        declared(&text).of(name).next().is_some()
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.kernel.links.iter().position(|l| l.name == name)
    }

    /// Removes a link, and the VLANs on it; its ports stay.
    pub(super) fn delete(&mut self, name: &str) {
        let children: Vec<String> =
            self.kernel.links.iter().filter(|l| l.parent.as_deref() == Some(name)).map(|l| l.name.clone()).collect();
        children.iter().for_each(|child| self.delete(child));
        self.kernel.links.retain(|l| l.name != name);
        for link in &mut self.kernel.links {
            if link.master.as_deref() == Some(name) {
                (link.master, link.vlans) = (None, Vec::new());
            }
        }
    }

    fn up(&mut self, interface: &Interface) -> Result<(), String> {
        let name = interface.name.as_str();
        let index = self.kernel.links.iter().map(|l| l.index).max().unwrap_or(0) + 1;
        let (kind, parent, vlan, vlan_aware) = match &interface.kind {
            Kind::Vlan { parent, id, service } => ("vlan", Some(parent.clone()), Some(VlanTag { id: *id, service: *service }), false),
            Kind::Bridge { vlan_aware, .. } => ("bridge", None, None, *vlan_aware),
        };
        let at = match self.position(name) {
            Some(at) => {
                let link = &self.kernel.links[at];
                if (link.kind.as_str(), &link.parent, link.vlan) != (kind, &parent, vlan) {
                    return Err(format!("error: {name}: cannot change what it is: operation not supported"));
                }
                at
            }
            None => {
                if let Some(parent) = parent.as_deref().filter(|p| self.position(p).is_none()) {
                    return Err(format!("error: {name}: rawdevice {parent} not present"));
                }
                self.kernel.links.push(KernelLink { name: name.to_owned(), index, kind: kind.to_owned(), ..KernelLink::default() });
                self.kernel.links.len() - 1
            }
        };
        let mtu = match &interface.kind {
            Kind::Vlan { parent, .. } => self.kernel.link(parent).map_or(1500, |l| l.mtu),
            Kind::Bridge { ports, vlan_aware, vids } => {
                self.ports(name, ports, *vlan_aware, vids);
                ports.iter().filter_map(|p| self.kernel.link(p)).map(|l| l.mtu).min().unwrap_or(1500)
            }
        };
        let link = &mut self.kernel.links[at];
        (link.parent, link.vlan, link.vlan_aware) = (parent, vlan, vlan_aware);
        (link.up, link.carrier, link.mtu) = (true, true, interface.mtu.unwrap_or(mtu));
        link.addresses.clone_from(&interface.addresses);
        Ok(())
    }

    /// Gives a bridge its ports; guests' ports are not its business.
    fn ports(&mut self, bridge: &str, ports: &[String], vlan_aware: bool, vids: &[(u16, u16)]) {
        let one = VlanRange { first: 1, last: 1, pvid: true, untagged: true };
        let range = |(first, last): &(u16, u16)| VlanRange { first: *first, last: *last, pvid: false, untagged: false };
        let stays = |name: &str| !self.loses_guests && GUESTS.iter().any(|g| name.starts_with(g));
        for link in &mut self.kernel.links {
            if ports.contains(&link.name) {
                link.master = Some(bridge.to_owned());
                link.vlans = if vlan_aware { std::iter::once(one).chain(vids.iter().map(range)).collect() } else { Vec::new() };
            } else if link.master.as_deref() == Some(bridge) && !stays(&link.name) {
                (link.master, link.vlans, link.up) = (None, Vec::new(), false);
            }
        }
    }
}
