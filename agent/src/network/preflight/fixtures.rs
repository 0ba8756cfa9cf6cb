//! Hosts for tests.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    host::net::{KernelLink, KernelRoute, Step, TextFile, VlanRange, VlanTag},
    network::{
        definition::{Definition, Interface, Kind},
        own_file::OwnFile,
    },
};

pub(in crate::network) const OWN_PATH: &str = "/etc/network/interfaces.d/pvelet";

pub(in crate::network) const INTERFACES: &str = "\
auto lo
iface lo inet loopback

iface eno1 inet manual
iface eno2 inet manual

auto bond0
iface bond0 inet manual
\tbond-slaves eno1 eno2
\tbond-mode active-backup

auto vmbr0
iface vmbr0 inet static
\taddress 192.0.2.10/24
\tgateway 192.0.2.1
\tbridge-ports bond0
\tbridge-vlan-aware yes

auto bond0.70
iface bond0.70 inet manual

auto vmbr70
iface vmbr70 inet manual
\tbridge-ports bond0.70
\tpost-up echo 1 > /proc/sys/net/ipv6/conf/vmbr70/disable_ipv6

source /etc/network/interfaces.d/*
";

pub(in crate::network) const COROSYNC: &str = "\
totem {
  version: 2
  interface {
    linknumber: 0
  }
}
nodelist {
  # the nodes
  node {
    name: pve1
    nodeid: 1
    ring0_addr: 192.0.2.10
    ring1_addr: 198.51.100.10
  }
  node {
    name: pve2
    nodeid: 2
    ring0_addr: 192.0.2.11
    ring1_addr: 198.51.100.11
  }
}
";

pub(in crate::network) fn link(name: &str, kind: &str) -> KernelLink {
    KernelLink { name: name.into(), kind: kind.into(), up: true, carrier: true, mtu: 1500, ..KernelLink::default() }
}

pub(in crate::network) fn tag(id: u16) -> Option<VlanTag> {
    Some(VlanTag { id, service: false })
}

/// A bond of two NICs under a VLAN-aware bridge with the host's address, VLAN 70 of it under a classic bridge with a VM, a third NIC with an
/// address.
pub(in crate::network) fn host() -> Kernel {
    let port = |name: &str, kind: &str, master: &str| KernelLink { master: Some(master.into()), ..link(name, kind) };
    let links = vec![
        KernelLink { addresses: vec!["127.0.0.1/8".parse().unwrap()], mtu: 65536, ..link("lo", "loopback") },
        port("eno1", "ether", "bond0"),
        port("eno2", "ether", "bond0"),
        KernelLink { addresses: vec!["198.51.100.10/24".parse().unwrap()], ..link("eno3", "ether") },
        port("bond0", "bond", "vmbr0"),
        KernelLink { parent: Some("bond0".into()), vlan: tag(70), ..port("bond0.70", "vlan", "vmbr70") },
        KernelLink { vlan_aware: true, addresses: vec!["192.0.2.10/24".parse().unwrap()], ..link("vmbr0", "bridge") },
        KernelLink { ipv6_disabled: Some(true), ..link("vmbr70", "bridge") },
        port("tap100i0", "tun", "vmbr70"),
        KernelLink { vlans: vec![vlans(7, 7)], ..port("tap101i0", "tun", "vmbr0") },
    ];
    let gateway =
        KernelRoute { destination: None, gateway: Some("192.0.2.1".parse().unwrap()), link: "vmbr0".into(), metric: 0, v6: false };
    Kernel { links, routes: vec![gateway] }
}

pub(in crate::network) fn vlans(first: u16, last: u16) -> VlanRange {
    VlanRange { first, last, pvid: false, untagged: false }
}

pub(in crate::network) fn text(path: &str, text: &str) -> TextFile {
    TextFile { path: path.into(), text: text.into(), modified: None }
}

/// Facts that can be changed.
#[derive(Debug, Clone)]
pub(in crate::network) struct Host {
    pub(in crate::network) kernel: Kernel,
    pub(in crate::network) offloads: BTreeMap<String, Vec<String>>,
    pub(in crate::network) files: Files,
    pub(in crate::network) listeners: Vec<IpAddr>,
    pub(in crate::network) users: Vec<BridgeUser>,
    pub(in crate::network) sdn_known: bool,
}

impl Host {
    pub(in crate::network) fn new() -> Self {
        let files = Files {
            declared: vec![text("/etc/network/interfaces", INTERFACES)],
            own_is_sourced: true,
            ifupdown2: Some(true),
            ..Files::default()
        };
        let user = |vmid, bridge: &str| BridgeUser { vmid, nic: "net0".into(), bridge: bridge.into() };
        Self {
            kernel: host(),
            offloads: [("eno1", vec![]), ("eno2", vec![])].map(|(n, o)| (n.to_owned(), o)).into(),
            files,
            listeners: vec!["192.0.2.10".parse().unwrap()],
            users: vec![user(100, "vmbr70"), user(101, "vmbr0")],
            sdn_known: true,
        }
    }

    pub(in crate::network) fn with<T>(&self, f: impl FnOnce(&Facts<'_>) -> T) -> T {
        let declared = declared::parse(&self.files.declared);
        f(&Facts {
            kernel: &self.kernel,
            offloads: &self.offloads,
            files: &self.files,
            declared: &declared,
            node: "pve1",
            listeners: &self.listeners,
            users: &self.users,
            sdn_known: self.sdn_known,
        })
    }

    pub(in crate::network) fn checks(&self, plan: Option<&Plan>) -> Vec<Check> {
        self.with(|facts| checks(facts, plan))
    }

    pub(in crate::network) fn check(&self, id: &str, plan: Option<&Plan>) -> Check {
        self.checks(plan).into_iter().find(|c| c.id == id).unwrap_or_else(|| panic!("no check {id}"))
    }

    pub(in crate::network) fn refuse(&self, plan: &Plan) -> Result<(), Error> {
        self.with(|facts| refuse(facts, plan))
    }

    pub(in crate::network) fn link(&mut self, name: &str) -> &mut KernelLink {
        self.kernel.links.iter_mut().find(|l| l.name == name).unwrap()
    }

    /// Replaces a part of `/etc/network/interfaces`.
    pub(in crate::network) fn edit(&mut self, from: &str, to: &str) {
        assert!(self.files.declared[0].text.contains(from), "{from}");
        self.files.declared[0].text = self.files.declared[0].text.replace(from, to);
    }

    pub(in crate::network) fn sdn(&mut self, name: &str, content: &str) {
        self.files.sdn.push(text(&format!("/etc/pve/sdn/{name}"), content));
    }
}

pub(in crate::network) fn vlan(name: &str, parent: &str, id: u16) -> Interface {
    let kind = Kind::Vlan { parent: parent.into(), id, service: false };
    Interface { name: name.into(), kind, mtu: None, addresses: vec![], comment: String::new() }
}

pub(in crate::network) fn bridge(name: &str, ports: &[&str], vlan_aware: bool) -> Interface {
    let kind = Kind::Bridge { ports: ports.iter().map(|p| (*p).to_owned()).collect(), vlan_aware, vids: vec![] };
    Interface { name: name.into(), kind, mtu: None, addresses: vec![], comment: String::new() }
}

pub(in crate::network) fn own(interfaces: &[Interface]) -> Option<String> {
    let networks = match interfaces {
        [] => vec![],
        some => vec![Definition { name: "lab".into(), tenant: "t".into(), interfaces: some.to_vec() }],
    };
    OwnFile { networks }.render()
}

/// A change from one set of interfaces to another: what is new comes up, what is gone goes down, what differs is changed in place.
pub(in crate::network) fn change(before: &[Interface], after: &[Interface]) -> Plan {
    use crate::host::net::Action;
    let has = |all: &[Interface], name: &str| all.iter().any(|i| i.name == name);
    let gone: Vec<String> = before.iter().filter(|i| !has(after, &i.name)).map(|i| i.name.clone()).collect();
    let down = gone.iter().map(|name| Step { action: Action::Down, interface: name.clone() });
    let up = after.iter().filter(|i| !before.contains(i)).map(|i| {
        let action = if has(before, &i.name) { Action::Change } else { Action::Up };
        Step { action, interface: i.name.clone() }
    });
    let wanted = after.iter().filter(|i| !before.contains(i)).cloned().collect();
    Plan { steps: down.chain(up).collect(), old_text: own(before), new_text: own(after), wanted, gone, changes: vec![] }
}
