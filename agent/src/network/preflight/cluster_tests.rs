//! The checks that look beyond the host's own files: guests, SDN, corosync, the way in.

#![allow(clippy::unwrap_used)]

use super::{
    Severity::{Error as E, Info as I, Warning as W},
    State::{Failed, NotApplicable, Ok as Well, Unknown},
    fixtures::*,
    tests::table,
    *,
};
use crate::{host::net::KernelLink, network::definition::Interface};

#[test]
fn bridges_without_addresses_need_no_ipv6() {
    table(
        "net.bridge-ipv6",
        &[
            ("off", |_| {}, Well, W, "1 bridges", &[]),
            ("off by a command, as far as is known", |h| h.link("vmbr70").ipv6_disabled = None, Well, W, "", &[]),
            ("on, whatever is declared", |h| h.link("vmbr70").ipv6_disabled = Some(false), Failed, W, "vmbr70", &["vmbr70"]),
            (
                "not told: without a link-local address advertisements are taken all the same",
                |h| {
                    h.edit("post-up", "ipv6-addrgen off\n\t#");
                    h.link("vmbr70").ipv6_disabled = None;
                },
                Unknown,
                W,
                "vmbr70",
                &[],
            ),
            ("the host has an address there", |h| h.kernel.links.retain(|l| l.name != "vmbr70"), NotApplicable, W, "", &[]),
        ],
    );
}

#[test]
fn guests_that_choose_their_own_vlans_are_told() {
    table(
        "net.guest-vlans",
        &[
            ("one VLAN each", |_| {}, Well, I, "2 ports", &[]),
            (
                "all VLANs",
                |h| h.link("tap101i0").vlans = vec![vlans(1, 1), vlans(2, 4094)],
                Failed,
                I,
                "tap101i0 on vmbr0 is in 4094 VLANs",
                &["tap101i0"],
            ),
            (
                "a classic bridge on a trunk",
                |h| h.link("vmbr0").vlan_aware = false,
                Failed,
                I,
                "tap101i0 on vmbr0, which is not VLAN-aware and has bond0 as its port",
                &["tap101i0"],
            ),
            (
                "behind the firewall",
                |h| {
                    h.kernel.links.push(link("fwbr101i0", "bridge"));
                    h.link("tap101i0").master = Some("fwbr101i0".into());
                    let port = KernelLink { master: Some("vmbr0".into()), vlans: vec![vlans(1, 9)], ..link("fwpr101p0", "veth") };
                    h.kernel.links.push(port);
                },
                Failed,
                I,
                "fwpr101p0 on vmbr0 is in 9 VLANs",
                &["fwpr101p0"],
            ),
            ("no guests", |h| h.kernel.links.retain(|l| !l.name.starts_with("tap")), NotApplicable, I, "", &[]),
        ],
    );
}

#[test]
fn vms_need_their_bridges() {
    table(
        "net.vm-bridges",
        &[
            ("there", |_| {}, Well, W, "2 NICs", &[]),
            ("none", |h| h.users.clear(), NotApplicable, W, "", &[]),
            ("missing", |h| h.users[0].bridge = "vmbr9".into(), Failed, W, "net0 of VM 100 is on vmbr9", &["vmbr9"]),
        ],
    );
}

const ZONES: &str = "vlan: lab\n\tbridge vmbr0\n\tnodes pve2,pve1\n\tipam pve\n\n# none\nsimple: dmz\n\tmtu 1400\n";
const RUNNING: &str = r#"{"version":3,"zones":{"ids":{"lab":{"type":"vlan","bridge":"vmbr0","nodes":{"pve1":1,"pve2":1},"ipam":"pve"},
    "dmz":{"type":"simple","mtu":1400}}},"subnets":{"ids":{"s":{"type":"subnet","dhcp-range":["a=1","b=2"]}}},"vnets":{"ids":{}}}"#;
const SUBNETS: &str = "subnet: s\n\tdhcp-range b=2\n\tdhcp-range a=1\n";

fn sdn(h: &mut Host) {
    h.sdn("zones.cfg", ZONES);
    h.sdn("subnets.cfg", SUBNETS);
    h.sdn(".running-config", RUNNING);
}

fn edit_sdn(h: &mut Host, from: &str, to: &str) {
    sdn(h);
    assert!(h.files.sdn[0].text.contains(from));
    h.files.sdn[0].text = h.files.sdn[0].text.replace(from, to);
}

#[test]
fn what_is_configured_in_sdn_and_does_not_run_is_told() {
    table(
        "net.sdn-pending",
        &[
            ("none", |_| {}, NotApplicable, W, "", &[]),
            ("all runs", sdn, Well, W, "runs", &[]),
            ("new", |h| h.sdn("zones.cfg", ZONES), Failed, W, "zone dmz: new; zone lab: new", &[]),
            ("deleted", |h| edit_sdn(h, "simple: dmz\n\tmtu 1400\n", ""), Failed, W, "zone dmz: deleted", &[]),
            ("changed", |h| edit_sdn(h, "mtu 1400", "mtu 1300"), Failed, W, "zone dmz: changed (mtu)", &[]),
            ("a node less", |h| edit_sdn(h, "pve2,pve1", "pve1"), Failed, W, "zone lab: changed (nodes)", &[]),
            ("a key less", |h| edit_sdn(h, "\tipam pve\n", ""), Failed, W, "zone lab: changed (ipam)", &[]),
            ("not read", |h| h.sdn_known = false, Unknown, W, "cannot be read", &[]),
            ("no JSON", |h| h.sdn(".running-config", "{"), Unknown, W, "no JSON", &[]),
        ],
    );
}

#[test]
fn a_lock_on_sdn_is_told() {
    table(
        "net.sdn-lock",
        &[
            ("no SDN", |_| {}, NotApplicable, E, "", &[]),
            ("none", sdn, Well, E, "nobody", &[]),
            ("held", |h| h.sdn(".lock", "0198"), Failed, E, "/etc/pve/sdn/.lock", &[]),
            ("not read", |h| h.sdn_known = false, Unknown, E, "cannot be read", &[]),
        ],
    );
}

fn cluster(h: &mut Host) {
    h.files.corosync = Some(text("/etc/corosync/corosync.conf", COROSYNC));
}

fn edit_cluster(h: &mut Host, from: &str, to: &str) {
    assert!(COROSYNC.contains(from));
    h.files.corosync = Some(text("/etc/corosync/corosync.conf", &COROSYNC.replace(from, to)));
}

#[test]
fn corosync_wants_two_links_that_do_not_fall_together() {
    const SECOND: &str = "    ring1_addr: 198.51.100.10\n";
    table(
        "net.corosync-single-link",
        &[
            ("no cluster", |_| {}, NotApplicable, E, "", &[]),
            ("two", cluster, Well, E, "link0 192.0.2.10 on vmbr0 over eno1, eno2; link1 198.51.100.10 on eno3", &[]),
            ("one on a bridge", |h| edit_cluster(h, SECOND, ""), Failed, W, "the only link: link0 192.0.2.10 on vmbr0", &["vmbr0"]),
            (
                "one on a NIC",
                |h| edit_cluster(h, "    ring0_addr: 192.0.2.10\n", ""),
                Failed,
                I,
                "the only link: link1 198.51.100.10 on eno3",
                &["eno3"],
            ),
            (
                "two on one device",
                |h| {
                    cluster(h);
                    let second = h.link("eno3").addresses.remove(0);
                    h.link("bond0.70").addresses.push(second);
                },
                Failed,
                W,
                "all links share their devices",
                &["bond0.70", "vmbr0"],
            ),
            ("by name", |h| edit_cluster(h, "ring0_addr: 192.0.2.10", "ring0_addr: pve1"), Unknown, E, "by name: pve1", &[]),
            (
                "an address that nobody has",
                |h| edit_cluster(h, "198.51.100.10", "198.51.100.9"),
                Unknown,
                E,
                "no link has 198.51.100.9",
                &[],
            ),
            ("not this node", |h| edit_cluster(h, "name: pve1", "name: other"), Well, E, "", &[]),
            ("no nodes", |h| edit_cluster(h, "nodelist", "nodes"), Unknown, E, "node pve1 has no address", &[]),
        ],
    );
}

#[test]
fn the_way_in_must_be_known() {
    table(
        "net.management-path",
        &[
            ("known", |_| {}, Well, E, "vmbr0: default route, agent's listener", &[]),
            (
                "nothing",
                |h| {
                    h.kernel.routes.clear();
                    h.listeners.clear();
                },
                Unknown,
                E,
                "no link carries",
                &[],
            ),
            ("an address that nobody has", |h| h.listeners.push("203.0.113.1".parse().unwrap()), Unknown, E, "203.0.113.1", &[]),
            ("loopback and wildcard", |h| h.listeners.extend(["127.0.0.1", "::"].map(|a| a.parse::<IpAddr>().unwrap())), Well, E, "", &[]),
        ],
    );
}

#[test]
fn a_change_of_the_way_in_is_refused() {
    let mut host = Host::new();
    host.files.corosync = Some(text("/etc/corosync/corosync.conf", COROSYNC));
    let refused = |host: &Host, plan: &Plan| match host.refuse(plan) {
        Err(Error::ManagementPath { interface, path }) => format!("{interface}: {path}"),
        other => format!("{other:?}"),
    };
    // A port that enters a bridge.
    assert_eq!(refused(&host, &change(&[], &[bridge("vmbr9", &["eno3"], false)])), "eno3: corosync link1");
    let way = "default route, agent's listener, corosync link0";
    assert_eq!(refused(&host, &change(&[], &[bridge("vmbr9", &["eno1"], false)])), format!("eno1: {way}"));
    // One that leaves it.
    let plan = change(&[bridge("vmbr0", &["bond0"], true)], &[bridge("vmbr0", &[], true)]);
    assert_eq!(refused(&host, &plan), format!("bond0: {way}"));
    // The agent's own interface, changed in place or gone.
    let plan = change(&[bridge("vmbr0", &["bond0"], true)], &[Interface { mtu: Some(1400), ..bridge("vmbr0", &["bond0"], true) }]);
    assert_eq!(refused(&host, &plan), format!("vmbr0: {way}"));
    let plan = change(&[bridge("vmbr0", &["bond0"], true)], &[]);
    assert_eq!(refused(&host, &plan), format!("bond0: {way}"));
    assert_eq!(host.check("net.management-path", Some(&plan)).interfaces, ["bond0", "vmbr0"]);
    // A VLAN on the way in leaves it alone.
    assert_eq!(host.refuse(&change(&[], &[vlan("bond0.80", "bond0", 80)])), Ok(()));
    assert_eq!(host.refuse(&change(&[vlan("bond0.80", "bond0", 80)], &[])), Ok(()));
}

#[test]
fn a_change_of_corosyncs_only_link_is_an_error() {
    let mut host = Host::new();
    edit_cluster(&mut host, "    ring1_addr: 198.51.100.10\n", "");
    let plan = change(&[], &[bridge("vmbr9", &["eno2"], false)]);
    let check = host.check("net.corosync-single-link", Some(&plan));
    assert_eq!((check.state, check.severity), (Failed, E), "{}", check.seen);
}

#[test]
fn what_somebody_uses_does_not_go_away() {
    let in_use = |host: &Host, plan: &Plan| match host.refuse(plan) {
        Err(Error::NetworkInUse { what, users }) => format!("{what}: {}", users.join(", ")),
        other => format!("{other:?}"),
    };
    let mut host = Host::new();
    let (lower, upper) = (vlan("bond0.70", "bond0", 70), bridge("vmbr70", &["bond0.70"], false));
    let both = [lower.clone(), upper.clone()];
    assert_eq!(in_use(&host, &change(&both, &[])), "bridge 'vmbr70': VM 100 (net0)");
    // A running guest that has no config here: a container.
    host.users.remove(0);
    assert_eq!(in_use(&host, &change(&both, &[])), "bridge 'vmbr70': guest 100 (tap100i0)");
    // Another kind cuts it off as well; another MTU does not.
    assert_eq!(
        in_use(&host, &change(&both, &[lower.clone(), bridge("vmbr70", &["bond0.70"], true)])),
        "bridge 'vmbr70': guest 100 (tap100i0)"
    );
    assert_eq!(in_use(&host, &change(&both, &[lower.clone(), Interface { mtu: Some(1400), ..upper.clone() }])), "Ok(())");
    // Ports and VLANs of somebody else.
    host.kernel.links.retain(|l| l.name != "tap100i0");
    host.kernel.links.push(KernelLink { master: Some("vmbr70".into()), ..link("dummy0", "dummy") });
    host.kernel.links.push(KernelLink { parent: Some("vmbr70".into()), vlan: tag(5), ..link("vmbr70.5", "vlan") });
    assert_eq!(in_use(&host, &change(&both, &[])), "bridge 'vmbr70': interface vmbr70.5, port dummy0");
    // The VLAN alone goes from under a bridge that is not the agent's.
    assert_eq!(in_use(&host, &change(std::slice::from_ref(&lower), &[])), "vlan 'bond0.70': interface vmbr70");
    // Nobody is left.
    host.kernel.links.retain(|l| !matches!(l.name.as_str(), "dummy0" | "vmbr70.5"));
    assert_eq!(in_use(&host, &change(&both, &[])), "Ok(())");
    assert_eq!(host.check("net.network-in-use", Some(&change(&both, &[]))).state, Well);
    assert_eq!(host.check("net.network-in-use", None).state, NotApplicable);
    // Made anew with guests on it.
    let host = Host::new();
    let mut plan = change(&both, &[lower, Interface { mtu: Some(1400), ..upper }]);
    plan.steps.insert(0, crate::host::net::Step { action: crate::host::net::Action::Down, interface: "vmbr70".into() });
    assert_eq!(in_use(&host, &plan), "bridge 'vmbr70': VM 100 (net0)");
}

#[test]
fn what_others_have_begun_comes_first() {
    let plan = change(&[], &[vlan("bond0.80", "bond0", 80)]);
    let mut host = Host::new();
    assert_eq!(host.refuse(&plan), Ok(()));
    // What only hurts does not refuse.
    host.sdn("zones.cfg", ZONES);
    host.link("eno2").carrier = false;
    assert_eq!(host.refuse(&plan), Ok(()));
    // All that is an error is named.
    host.files.own_is_sourced = false;
    host.files.ifupdown2 = Some(false);
    let Err(Error::NetworkPreflight { checks }) = host.refuse(&plan) else { panic!("not refused") };
    assert_eq!(checks.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["net.ifupdown2", "net.source-line"]);
    host.sdn(".lock", "0198");
    assert!(matches!(host.refuse(&plan), Err(Error::ForeignChangePending { change }) if change.contains("SDN is locked")));
    host.files.staged = Some(text("/etc/network/interfaces.new", ""));
    assert!(matches!(host.refuse(&plan), Err(Error::ForeignChangePending { change }) if change.contains("interfaces.new")));
    let kinds: Vec<_> = host.with(pending).into_iter().map(|p| p.kind).collect();
    assert_eq!(kinds, ["interfaces.new", "sdn", "sdn-lock"]);
    // Nothing to do is never refused.
    assert_eq!(host.refuse(&Plan::default()), Ok(()));
}

#[test]
fn a_change_is_looked_at_as_it_will_be() {
    let mut host = Host::new();
    // QinQ that takes the MTU of what it stands on, the upper one given first.
    let plan = change(&[], &[vlan("inner", "outer", 5), vlan("outer", "eno3", 70)]);
    host.offloads.insert("eno3".into(), vec!["tx-vlan-hw-insert".into()]);
    assert_eq!(host.check("net.zone-mtu", None).state, NotApplicable);
    let check = host.check("net.zone-mtu", Some(&plan));
    assert_eq!((check.state, check.interfaces), (Failed, vec!["inner".to_owned()]));
    let check = host.check("net.tx-vlan-offload", Some(&plan));
    assert_eq!((check.severity, check.interfaces), (W, vec!["eno3".to_owned()]));
    host.link("eno3").carrier = false;
    assert_eq!(host.check("net.trunk-down", None).state, Well);
    assert_eq!(host.check("net.trunk-down", Some(&plan)).interfaces, ["eno3"]);
    // A VM whose bridge comes with the change.
    host.users[0].bridge = "vmbr9".into();
    assert_eq!(host.check("net.vm-bridges", Some(&change(&[], &[bridge("vmbr9", &[], false)]))).state, Well);
}
