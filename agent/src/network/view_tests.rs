#![allow(clippy::unwrap_used)]

use super::*;
use crate::network::preflight::{
    checks,
    fixtures::{Host, OWN_PATH, bridge, change, host, link as bare_link, own, text, vlan, vlans},
};

#[test]
fn links_show_what_declares_them_and_what_hangs_on_them() {
    let mut fixture = Host::new();
    fixture.kernel.links.push(KernelLink { vlans: vec![vlans(2, 4094)], vlan_aware: true, ..bare_link("a", "bridge") });
    fixture.offloads.insert("eno1".into(), vec!["rx-vlan-hw-parse".into()]);
    fixture.link("eno2").altnames = vec!["enp2".into()];
    fixture.files.declared.push(text("/etc/network/interfaces.d/x", "iface enp2 inet manual\n"));
    fixture.files.own = own(&[bridge("a", &[], true)]).map(|t| text(OWN_PATH, &t));
    let own = OwnFile::parse(fixture.files.own.as_ref().map(|f| f.text.as_str())).unwrap();
    let links = fixture.with(|facts| links(facts, &own));
    assert!(links.windows(2).all(|w| w[0].name < w[1].name));
    let link = |name: &str| links.iter().find(|l| l.name == name).unwrap();
    assert_eq!(link("vmbr0").declared_in, ["/etc/network/interfaces:13"]);
    assert_eq!(link("vmbr0").management, ["default route", "agent's listener"]);
    assert_eq!(link("vmbr0").addresses, ["192.0.2.10/24"]);
    assert_eq!(link("eno1").offloads, ["rx-vlan-hw-parse"]);
    assert_eq!(link("eno2").declared_in, ["/etc/network/interfaces:5", "/etc/network/interfaces.d/x:1"]);
    let a = link("a");
    assert_eq!((a.network.as_str(), a.vlan_aware, a.vlan_protocol()), ("lab", true, v1::VlanProtocol::Unspecified));
    assert!(a.declared_in[0].starts_with(OWN_PATH), "{:?}", a.declared_in);
    assert_eq!(a.vlans, [v1::BridgeVlan { first: 2, last: 4094, pvid: false, untagged: false }]);
    let vlan = link("bond0.70");
    assert_eq!((vlan.parent.as_str(), vlan.vlan_id, vlan.vlan_protocol()), ("bond0", 70, v1::VlanProtocol::VlanProtocol8021q));
    assert!(vlan.management.is_empty() && vlan.network.is_empty());
}

#[test]
fn networks_show_their_vms() {
    let mut fixture = Host::new();
    fixture.users[0].vmid = 105;
    let mut service = vlan("bond0.70", "bond0", 70);
    service.kind = Kind::Vlan { parent: "bond0".into(), id: 70, service: true };
    let interfaces = [
        service,
        Interface { mtu: Some(1400), addresses: vec!["192.0.2.1/24".parse().unwrap()], ..bridge("vmbr70", &["bond0.70"], false) },
    ];
    let own = OwnFile::parse(own(&interfaces).as_deref()).unwrap();
    let networks = fixture.with(|facts| networks(facts, &own));
    assert_eq!(networks.len(), 1);
    // The tap of a guest that is there, and the NIC of a VM that is off.
    assert_eq!(networks[0].vmids, [100, 105]);
    assert_eq!(networks[0].in_sync, networks[0].differences.is_empty());
    let spec = networks[0].spec.as_ref().unwrap();
    assert_eq!((spec.name.as_str(), spec.tenant.as_str()), ("lab", "t"));
    let [lower, upper] = spec.interfaces.as_slice() else { panic!("{spec:?}") };
    assert_eq!((lower.mtu, upper.mtu, upper.addresses.as_slice()), (0, 1400, ["192.0.2.1/24".to_owned()].as_slice()));
    let vlan = v1::VlanSpec { parent: "bond0".into(), id: 70, protocol: v1::VlanProtocol::VlanProtocol8021ad.into() };
    assert_eq!(lower.kind, Some(v1::interface_spec::Kind::Vlan(vlan)));
    let bridge = v1::BridgeSpec { ports: vec!["bond0.70".into()], vlan_aware: false, vids: vec![] };
    assert_eq!(upper.kind, Some(v1::interface_spec::Kind::Bridge(bridge)));
}

#[test]
fn vids_are_shown_as_they_are_asked_for() {
    let kind = Kind::Bridge { ports: vec![], vlan_aware: true, vids: vec![(5, 5), (200, 299)] };
    let spec = interface(&Interface { kind, ..bridge("b", &[], true) });
    let Some(v1::interface_spec::Kind::Bridge(bridge)) = spec.kind else { panic!("no bridge") };
    assert_eq!(bridge.vids, ["5", "200-299"]);
}

#[test]
fn routes_and_plans_keep_their_order() {
    let mut kernel = host();
    kernel.routes.push(crate::host::net::KernelRoute {
        destination: Some("2001:db8::/64".parse().unwrap()),
        gateway: None,
        link: "vmbr0".into(),
        metric: 256,
        v6: true,
    });
    let routes = routes(&kernel);
    let flat = |r: &v1::Route| format!("{} {} {} {} {}", r.destination, r.gateway, r.link, r.metric, r.family);
    assert_eq!(routes.iter().map(flat).collect::<Vec<_>>(), ["default 192.0.2.1 vmbr0 0 4", "2001:db8::/64  vmbr0 256 6"]);
    let shown = plan(&change(&[bridge("a", &[], false)], &[bridge("b", &[], false)]), "diff".into());
    let steps: Vec<_> = shown.steps.iter().map(|s| (s.action(), s.interface.as_str())).collect();
    assert_eq!(steps, [(v1::NetworkAction::Down, "a"), (v1::NetworkAction::Up, "b")]);
    assert_eq!(shown.file_diff, "diff");
}

#[test]
fn checks_and_pending_changes_are_shown() {
    let mut fixture = Host::new();
    fixture.files.own_is_sourced = false;
    fixture.files.staged = Some(text("/etc/network/interfaces.new", "x\n"));
    let shown: Vec<v1::NetworkCheck> = fixture.with(|facts| checks(facts, None)).iter().map(check).collect();
    let line = shown.iter().find(|c| c.id == "net.source-line").unwrap();
    assert_eq!((line.state(), line.severity()), (v1::CheckState::Failed, v1::CheckSeverity::Error));
    assert!(!line.seen.is_empty() && !line.why.is_empty() && !line.remedy.is_empty());
    let pending = fixture.with(pending);
    assert_eq!(pending.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), ["interfaces.new"]);
}
