#![allow(clippy::unwrap_used)]

use std::slice::from_ref;

use super::*;
use crate::network::preflight::fixtures::*;

fn carried(kernel: &Kernel, corosync: Option<&str>, listeners: &[&str]) -> Vec<String> {
    let listeners: Vec<IpAddr> = listeners.iter().map(|l| l.parse().unwrap()).collect();
    management(kernel, corosync, "pve1", &listeners).into_iter().map(|(link, what)| format!("{link}: {}", what.join(", "))).collect()
}

#[test]
fn the_default_route_stands_on_everything_below_its_link() {
    let expect = ["bond0: default route", "eno1: default route", "eno2: default route", "vmbr0: default route"];
    assert_eq!(carried(&host(), None, &[]), expect);
    let mut kernel = host();
    kernel.routes[0].link = "vmbr70".into();
    let below = ["bond0", "bond0.70", "eno1", "eno2", "vmbr70"].map(|l| format!("{l}: default route"));
    assert_eq!(carried(&kernel, None, &[]), below);
    kernel.routes.clear();
    assert!(carried(&kernel, None, &[]).is_empty());
}

#[test]
fn listeners_count_where_a_client_can_come_in() {
    let mut kernel = host();
    kernel.routes.clear();
    assert_eq!(carried(&kernel, None, &["198.51.100.10"]), ["eno3: agent's listener"]);
    assert_eq!(carried(&kernel, None, &["::ffff:198.51.100.10"]), ["eno3: agent's listener"]);
    assert!(carried(&kernel, None, &["127.0.0.1", "::1", "0.0.0.0", "::", "203.0.113.1"]).is_empty());
}

#[test]
fn corosyncs_links_are_those_of_this_node() {
    let mut kernel = host();
    kernel.routes.clear();
    let vmbr0 = ["bond0", "eno1", "eno2"].map(|l| format!("{l}: corosync link0"));
    let all = [vmbr0.as_slice(), &["eno3: corosync link1".to_owned(), "vmbr0: corosync link0".to_owned()]].concat();
    assert_eq!(carried(&kernel, Some(COROSYNC), &[]), all);
    // A name with a domain; no name, but an address of this host; a name instead of an address.
    assert_eq!(carried(&kernel, Some(&COROSYNC.replace("name: pve1", "name: PVE1.example.org")), &[]), all);
    assert_eq!(carried(&kernel, Some(&COROSYNC.replace("name: pve1\n", "\n")), &[]), all);
    assert_eq!(carried(&kernel, Some(&COROSYNC.replace("192.0.2.10", "pve1")), &[]), ["eno3: corosync link1"]);
    for text in ["", "nodelist {", "}}}", "node {\nring0_addr: 192.0.2.10\n}", "nodelist {\nring0_addr: 192.0.2.10\n}"] {
        assert!(carried(&kernel, Some(text), &[]).is_empty(), "{text}");
    }
}

#[test]
fn a_change_touches_its_interfaces_and_ports_that_move() {
    let touches = |before: &[Interface], after: &[Interface]| touched(&change(before, after)).into_iter().collect::<Vec<_>>().join(" ");
    let (lower, upper) = (vlan("bond0.70", "bond0", 70), bridge("vmbr70", &["bond0.70"], false));
    // The parent of a VLAN is not touched.
    assert_eq!(touches(&[], from_ref(&lower)), "bond0.70");
    assert_eq!(touches(&[], &[lower.clone(), upper.clone()]), "bond0.70 vmbr70");
    assert_eq!(touches(&[lower.clone(), upper.clone()], &[]), "bond0.70 vmbr70");
    assert_eq!(touches(&[bridge("b", &["eno1"], false)], &[bridge("b", &["eno2"], false)]), "b eno1 eno2");
    // Ports that stay are left alone, unless the bridge is made anew.
    let (before, after) = (bridge("b", &["eno1"], false), bridge("b", &["eno1", "eno2"], false));
    assert_eq!(touches(from_ref(&before), from_ref(&after)), "b eno2");
    let mut plan = change(&[before], &[after]);
    plan.steps.insert(0, crate::host::net::Step { action: Action::Down, interface: "b".into() });
    assert_eq!(touched(&plan).into_iter().collect::<Vec<_>>(), ["b", "eno1", "eno2"]);
    assert!(touched(&Plan::default()).is_empty());
    // Another network's interfaces in the same file are not touched.
    let mut plan = change(from_ref(&upper), &[upper.clone(), lower]);
    assert_eq!(touched(&plan).into_iter().collect::<Vec<_>>(), ["bond0.70"]);
    // A file that cannot be read says nothing of ports, yet the steps stand.
    plan.old_text = Some("edited".into());
    assert!(touched(&plan).contains("bond0.70"));
}
