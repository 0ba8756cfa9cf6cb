//! The plan of a network on a host with many interfaces.

use std::{fmt::Write, time::Instant};

use pvelet_agent::{
    host::net::{Kernel, KernelLink, TextFile, VlanTag},
    network::{
        declared,
        definition::{Definition, Interface, Kind},
        own_file::OwnFile,
        plan::Wish,
        planner, validate,
    },
};
use pvelet_proto::v1;
use tokio::runtime::Runtime;

use crate::report::{Report, ms, quantile};

/// How many interfaces the host has.
const INTERFACES: usize = 500;
/// VLANs that `/etc/network/interfaces` declares, each with a bridge on it.
const DECLARED: u16 = 160;
/// Those of the agent, a network each.
const OWN: u16 = 20;

fn link(name: &str, kind: &str) -> KernelLink {
    let mac = "02:00:00:00:00:01".to_owned();
    KernelLink { name: name.to_owned(), kind: kind.to_owned(), mac, mtu: 1500, up: true, carrier: true, ..Default::default() }
}

/// A VLAN on the bond and a bridge on it, with an address.
fn pair(vlan: u16) -> [KernelLink; 2] {
    let (name, bridge) = (format!("bond0.{vlan}"), format!("vmbr{vlan}"));
    let tag = Some(VlanTag { id: vlan, service: false });
    let address = format!("10.{}.{}.1/24", vlan / 256, vlan % 256).parse().unwrap();
    [
        KernelLink { parent: Some("bond0".into()), vlan: tag, master: Some(bridge.clone()), ..link(&name, "vlan") },
        KernelLink { addresses: vec![address], ..link(&bridge, "bridge") },
    ]
}

fn kernel() -> Kernel {
    let port = |name: &str| KernelLink { master: Some("bond0".into()), ..link(name, "ether") };
    let mut links = vec![link("lo", "loopback"), port("eno1"), port("eno2"), link("bond0", "bond")];
    links.extend((1..=DECLARED + OWN).flat_map(pair));
    for (i, bridge) in (links.len()..INTERFACES).zip((1..=DECLARED + OWN).cycle()) {
        links.push(KernelLink { master: Some(format!("vmbr{bridge}")), ..link(&format!("tap{i}i0"), "tun") });
    }
    for (index, link) in (1..).zip(&mut links) {
        link.index = index;
    }
    links.sort_by(|a, b| a.name.cmp(&b.name));
    Kernel { links, routes: Vec::new() }
}

fn interfaces() -> TextFile {
    let mut text = "auto lo\niface lo inet loopback\n\nauto bond0\niface bond0 inet manual\n\tbond-slaves eno1 eno2\n\n".to_owned();
    for vlan in 1..=DECLARED {
        let address = format!("10.{}.{}.1/24", vlan / 256, vlan % 256);
        write!(
            text,
            "auto bond0.{vlan}\niface bond0.{vlan} inet manual\n\nauto vmbr{vlan}\niface vmbr{vlan} inet static\n\taddress {address}\n"
        )
        .unwrap();
        write!(text, "\tbridge-ports bond0.{vlan}\n\tbridge-stp off\n\tbridge-fd 0\n\n").unwrap();
    }
    text.push_str("source /etc/network/interfaces.d/*\n");
    TextFile { path: "/etc/network/interfaces".into(), text, modified: None }
}

fn own_file() -> Option<String> {
    let networks = (DECLARED + 1..=DECLARED + OWN).map(|vlan| {
        let [under, bridge] = pair(vlan);
        let interface = |name, kind, addresses| Interface { name, kind, mtu: None, addresses, comment: String::new() };
        let kind = Kind::Vlan { parent: "bond0".into(), id: vlan, service: false };
        let on_it = Kind::Bridge { ports: vec![under.name.clone()], vlan_aware: false, vids: Vec::new() };
        let interfaces = vec![interface(under.name, kind, Vec::new()), interface(bridge.name, on_it, bridge.addresses)];
        Definition { name: format!("net{vlan:04}"), tenant: "bench".into(), interfaces }
    });
    OwnFile { networks: networks.collect() }.render()
}

fn wish() -> v1::NetworkSpec {
    let vlan = v1::VlanSpec { parent: "bond0".into(), id: 4000, protocol: v1::VlanProtocol::Unspecified.into() };
    let bridge = v1::BridgeSpec { ports: vec!["bond0.4000".into()], vlan_aware: false, vids: Vec::new() };
    let interface = |name: &str, kind| v1::InterfaceSpec { name: name.into(), kind: Some(kind), ..Default::default() };
    let bridge = interface("vmbr4000", v1::interface_spec::Kind::Bridge(bridge));
    v1::NetworkSpec {
        name: "new".into(),
        tenant: String::new(),
        interfaces: vec![
            interface("bond0.4000", v1::interface_spec::Kind::Vlan(vlan)),
            v1::InterfaceSpec { addresses: vec!["192.0.2.1/24".into()], ..bridge },
        ],
    }
}

pub(crate) fn run(_: &Runtime, report: &mut Report) {
    let (kernel, files, own, spec) = (kernel(), [interfaces()], own_file(), wish());
    assert_eq!(kernel.links.len(), INTERFACES);
    let mut times = Vec::new();
    for _ in 0..300 {
        let begun = Instant::now();
        let declared = declared::parse(&files);
        let definition = validate::definition(&spec, "bench", &kernel).unwrap();
        let plan = planner::plan(own.as_deref(), &Wish::Apply(definition), &kernel, &declared).unwrap();
        let diff = planner::file_diff(&plan);
        times.push(ms(begun.elapsed()));
        assert!(plan.steps.len() == 2 && diff.contains("vmbr4000"), "{plan:?}");
    }
    report.at_most("network planned on a host with 500 interfaces, p99", quantile(&mut times, 0.99), "ms", 20.0);
}
