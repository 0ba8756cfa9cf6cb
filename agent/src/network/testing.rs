//! What the tests of plans share: hosts, networks, and a model of what ifupdown2 and the kernel do with the own file.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use pvelet_proto::v1;

use super::{
    declared::{self, Declared, Stanza},
    own_file::OwnFile,
    plan::Plan,
};
use crate::host::net::{Action, Kernel, KernelLink, KernelRoute, TextFile, VlanRange, VlanTag};

pub(super) const PVID: VlanRange = VlanRange { first: 1, last: 1, pvid: true, untagged: true };

pub(super) fn nic(name: &str, index: u32, mtu: u32) -> KernelLink {
    let mac = format!("52:54:00:00:00:{index:02x}");
    KernelLink { name: name.into(), index, kind: "ether".into(), up: true, carrier: true, mtu, mac, ..KernelLink::default() }
}

pub(super) fn vlan_link(name: &str, parent: &str, id: u16, mtu: u32) -> KernelLink {
    let vlan = Some(VlanTag { id, service: false });
    KernelLink { kind: "vlan".into(), parent: Some(parent.into()), vlan, ..nic(name, 40 + u32::from(id % 100), mtu) }
}

pub(super) fn bridge_link(name: &str, index: u32) -> KernelLink {
    KernelLink { kind: "bridge".into(), vlans: vec![PVID], ..nic(name, index, 1500) }
}

/// A PVE host: `vmbr0` on `eth0` with address and default route; `eth1`, `eth2` (MTU 9000, altname `enp7s0`) and `bond0` are free.
pub(super) fn host() -> Kernel {
    let lo = KernelLink { kind: "loopback".into(), addresses: vec!["127.0.0.1/8".parse().unwrap()], ..nic("lo", 1, 65535) };
    let eth0 = KernelLink { master: Some("vmbr0".into()), vlans: vec![PVID], ..nic("eth0", 2, 1500) };
    let eth2 = KernelLink { altnames: vec!["enp7s0".into()], ..nic("eth2", 4, 9000) };
    let bond0 = KernelLink { kind: "bond".into(), ..nic("bond0", 5, 9000) };
    let vmbr0 = KernelLink { addresses: vec!["192.0.2.10/24".parse().unwrap()], ..bridge_link("vmbr0", 6) };
    let gateway = Some("192.0.2.1".parse().unwrap());
    let route = KernelRoute { destination: None, gateway, link: "vmbr0".into(), metric: 0, v6: false };
    let mut kernel = Kernel { links: vec![lo, eth0, nic("eth1", 3, 1500), eth2, bond0, vmbr0], routes: vec![route] };
    kernel.links.sort_by(|a, b| a.name.cmp(&b.name));
    kernel
}

/// What the files of that host declare, as PVE writes them: all its NICs.
pub(super) fn usual() -> Declared {
    let text = "auto lo\niface lo inet loopback\niface eth0 inet manual\niface eth1 inet manual\niface eth2 inet manual\n\tmtu 9000\n\
                auto bond0\niface bond0 inet manual\n\tmtu 9000\nauto vmbr0\niface vmbr0 inet static\n\taddress 192.0.2.10/24\n\
                \tgateway 192.0.2.1\n\tbridge-ports eth0\n";
    declared::parse(&[file("/etc/network/interfaces", text)])
}

pub(super) fn vlan(name: &str, parent: &str, id: u32) -> v1::InterfaceSpec {
    let kind = v1::interface_spec::Kind::Vlan(v1::VlanSpec { parent: parent.into(), id, protocol: 0 });
    v1::InterfaceSpec { name: name.into(), kind: Some(kind), ..Default::default() }
}

pub(super) fn bridge(name: &str, ports: &[&str], vids: Option<&[&str]>) -> v1::InterfaceSpec {
    let owned = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    let bridge = v1::BridgeSpec { ports: owned(ports), vlan_aware: vids.is_some(), vids: owned(vids.unwrap_or(&[])) };
    v1::InterfaceSpec { name: name.into(), kind: Some(v1::interface_spec::Kind::Bridge(bridge)), ..Default::default() }
}

pub(super) fn spec(name: &str, interfaces: &[v1::InterfaceSpec]) -> v1::NetworkSpec {
    v1::NetworkSpec { name: name.into(), tenant: String::new(), interfaces: interfaces.to_vec() }
}

pub(super) fn file(path: &str, text: &str) -> TextFile {
    TextFile { path: PathBuf::from(path), text: text.into(), modified: None }
}

/// Runs the steps of a plan on a kernel as ifupdown2 does, from the text of the own file alone. Panics where a step would fail there.
pub(super) fn run(plan: &Plan, kernel: &mut Kernel) {
    for step in &plan.steps {
        match step.action {
            Action::Down => down(kernel, &step.interface),
            Action::Up | Action::Change => up(kernel, plan.new_text.as_deref().unwrap_or(""), &step.interface),
        }
    }
    kernel.links.sort_by(|a, b| a.name.cmp(&b.name));
}

fn at<'a>(kernel: &'a mut Kernel, name: &str) -> Option<&'a mut KernelLink> {
    kernel.links.iter_mut().find(|l| l.name == name)
}

fn down(kernel: &mut Kernel, name: &str) {
    assert!(at(kernel, name).is_some(), "{name} cannot go: it is not there");
    assert!(!kernel.links.iter().any(|l| l.parent.as_deref() == Some(name)), "something stands on {name} as it goes");
    kernel.links.retain(|l| l.name != name);
    for port in kernel.links.iter_mut().filter(|l| l.master.as_deref() == Some(name)) {
        (port.master, port.vlans) = (None, Vec::new());
    }
}

fn up(kernel: &mut Kernel, text: &str, name: &str) {
    let declared = declared::parse(&[file("own", text)]);
    let stanza = declared.of(name).next().unwrap_or_else(|| panic!("{name} has no stanza"));
    assert!(stanza.auto, "{name} would not come back after a reboot");
    let bridge = stanza.option("bridge-ports").is_some();
    let exists = at(kernel, name).is_some();
    if !exists {
        let index = kernel.links.iter().map(|l| l.index).max().unwrap_or(0) + 1;
        let new = if bridge { bridge_link(name, index) } else { new_vlan(kernel, stanza, index) };
        kernel.links.push(KernelLink { mac: String::new(), ..new });
    }
    let inherited = if bridge { 1500 } else { at(kernel, stanza.parent().unwrap()).unwrap().mtu };
    let mtu = stanza.option("mtu").map_or(inherited, |m| m.parse().unwrap());
    if bridge {
        ports(kernel, stanza);
    } else {
        assert!(mtu <= inherited, "{name} has a larger MTU than what it stands on");
        let (id, service) = tag(stanza);
        let link = at(kernel, name).unwrap();
        assert_eq!(
            (link.parent.as_deref(), link.vlan),
            (stanza.parent(), Some(VlanTag { id, service })),
            "{name} cannot be turned into that"
        );
    }
    let addresses: Vec<_> = stanza.options.iter().filter(|(k, _)| k == "address").map(|(_, v)| v.parse().unwrap()).collect();
    let link = at(kernel, name).unwrap();
    (link.up, link.mtu, link.addresses) = (true, mtu, addresses);
    // The kernel lowers what stands on a link with it, and raises nothing.
    for upper in kernel.links.iter_mut().filter(|l| l.parent.as_deref() == Some(name)) {
        upper.mtu = upper.mtu.min(mtu);
    }
}

fn tag(stanza: &Stanza) -> (u16, bool) {
    (stanza.option("vlan-id").unwrap().parse().unwrap(), stanza.option("vlan-protocol") == Some("802.1ad"))
}

fn new_vlan(kernel: &mut Kernel, stanza: &Stanza, index: u32) -> KernelLink {
    let parent = stanza.parent().unwrap();
    let mtu = at(kernel, parent).unwrap_or_else(|| panic!("{parent} is not there when {} comes", stanza.name)).mtu;
    let (id, service) = tag(stanza);
    let vlan = Some(VlanTag { id, service });
    assert!(!kernel.links.iter().any(|l| l.parent.as_deref() == Some(parent) && l.vlan == vlan), "{parent} has VLAN {id} twice");
    KernelLink { kind: "vlan".into(), parent: Some(parent.into()), vlan, ..nic(&stanza.name, index, mtu) }
}

fn ports(kernel: &mut Kernel, stanza: &Stanza) {
    let aware = stanza.option("bridge-vlan-aware") == Some("yes");
    let name = stanza.name.as_str();
    let link = at(kernel, name).unwrap();
    if link.vlan_aware != aware {
        assert!(link.index >= 7, "{name} is not the agent's");
        link.vlan_aware = aware;
    }
    let mut vlans = vec![PVID];
    for vid in stanza.option("bridge-vids").filter(|_| aware).into_iter().flat_map(str::split_whitespace) {
        let (first, last) = vid.split_once('-').unwrap_or((vid, vid));
        let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
        // VLAN 1 is there already, untagged.
        let first = first.max(2);
        if first <= last {
            vlans.push(VlanRange { first, last, pvid: false, untagged: false });
        }
    }
    let wanted: Vec<&str> = stanza.ports().collect();
    for port in &wanted {
        let port = at(kernel, port).unwrap_or_else(|| panic!("port {port} of {name} is not there"));
        assert!(port.master.is_none() || port.master.as_deref() == Some(name), "{} is a port elsewhere", port.name);
        (port.master, port.vlans, port.up) = (Some(name.into()), vlans.clone(), true);
    }
    let guest = |n: &str| ["tap", "veth", "fwpr", "fwln"].iter().any(|p| n.starts_with(p));
    for link in kernel.links.iter_mut().filter(|l| l.master.as_deref() == Some(name)) {
        if !wanted.contains(&link.name.as_str()) && !guest(&link.name) {
            (link.master, link.vlans) = (None, Vec::new());
        }
    }
}

/// The network as the own file has it after a plan.
pub(super) fn in_sync(text: Option<&str>, kernel: &Kernel) -> Vec<String> {
    OwnFile::parse(text).unwrap().networks.iter().flat_map(|n| super::verify::in_sync(n, kernel)).collect()
}

/// A kernel without what differs between two that are the same to everybody: indexes and MACs of what was made anew.
pub(super) fn plain(kernel: &Kernel) -> Kernel {
    let mut kernel = kernel.clone();
    for link in &mut kernel.links {
        (link.index, link.mac) = (0, String::new());
    }
    kernel
}
