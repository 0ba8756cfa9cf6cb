#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use pvelet_proto::{reason, v1};

use super::{
    super::{
        declared::{self, Declared},
        testing::{bridge, bridge_link, file, host, in_sync, nic, plain, run, spec, usual, vlan, vlan_link},
        validate, verify,
    },
    *,
};
use crate::host::net::KernelLink;

/// With what the host's files declare, and this.
fn also(path: &str, text: &str) -> Declared {
    let mut declared = usual();
    declared.stanzas.extend(declared::parse(&[file(path, text)]).stanzas);
    declared
}

fn ask(own: Option<&str>, spec: &v1::NetworkSpec, kernel: &Kernel, declared: &Declared) -> Result<Plan, Error> {
    plan(own, &Wish::Apply(validate::definition(spec, "team-a", kernel)?), kernel, declared)
}

/// A host that has this network.
fn with(kernel: &Kernel, own: Option<&str>, spec: &v1::NetworkSpec) -> (Kernel, Option<String>) {
    let plan = ask(own, spec, kernel, &usual()).unwrap();
    let mut kernel = kernel.clone();
    run(&plan, &mut kernel);
    (kernel, plan.new_text)
}

fn told(plan: &Plan) -> Vec<String> {
    let step = |s: &Step| format!("{:?} {}", s.action, s.interface).to_lowercase();
    plan.steps.iter().map(step).chain(plan.changes.iter().cloned()).collect()
}

fn classic() -> v1::NetworkSpec {
    spec("guests", &[bridge("vmbr100", &["eth1.100"], None), vlan("eth1.100", "eth1", 100)])
}

fn aware() -> v1::NetworkSpec {
    spec("trunk", &[bridge("vmbr1", &["eth2"], Some(&["100-199"]))])
}

#[test]
fn a_new_network_comes_up_from_below() {
    let plan = ask(None, &classic(), &host(), &usual()).unwrap();
    assert_eq!(
        told(&plan),
        ["up eth1.100", "up vmbr100", "+ vlan eth1.100 (802.1Q 100 on eth1, mtu 1500)", "+ bridge vmbr100 (ports eth1.100, mtu 1500)",]
    );
    assert_eq!((plan.old_text, plan.gone), (None, Vec::<String>::new()));
    assert_eq!(plan.wanted.len(), 2);
}

#[test]
fn settings_are_changed_in_place_and_nothing_else_is_touched() {
    let first = spec("trunk", &[bridge("vmbr1", &["eth2"], Some(&["100-199"])), vlan("stor", "bond0", 70)]);
    let (kernel, own) = with(&host(), None, &first);
    let mut wanted = first.clone();
    let Some(v1::interface_spec::Kind::Bridge(b)) = &mut wanted.interfaces[0].kind else { panic!() };
    b.vids = vec!["100-299".into()];
    let plan = ask(own.as_deref(), &wanted, &kernel, &usual()).unwrap();
    assert_eq!(told(&plan), ["change vmbr1", "~ bridge vmbr1: vids 1 100-199 -> 1 100-299"]);

    type Row = (&'static str, fn(&mut v1::NetworkSpec), &'static str);
    let table: [Row; 5] = [
        ("mtu", |s| s.interfaces[1].mtu = 1400, "~ vlan stor: mtu 9000 -> 1400"),
        ("addresses", |s| s.interfaces[1].addresses = vec!["10.0.0.1/24".into()], "~ vlan stor: addresses none -> 10.0.0.1/24"),
        ("comment", |s| s.interfaces[1].comment = "Ceph".into(), "~ vlan stor: comment '' -> 'Ceph'"),
        ("id", |s| s.interfaces[1] = vlan("stor", "bond0", 71), "~ vlan stor: tag 802.1Q 70 -> 802.1Q 71, made anew"),
        ("parent", |s| s.interfaces[1] = vlan("stor", "eth1", 70), "~ vlan stor: parent bond0 -> eth1, mtu 9000 -> 1500, made anew"),
    ];
    for (what, change, line) in table {
        let mut wanted = first.clone();
        change(&mut wanted);
        let plan = ask(own.as_deref(), &wanted, &kernel, &usual()).unwrap();
        let steps: &[&str] = if matches!(what, "id" | "parent") { &["down stor", "up stor"] } else { &["change stor"] };
        assert_eq!(told(&plan), [steps, &[line]].concat(), "{what}");
    }
}

#[test]
fn what_becomes_another_thing_goes_first_with_the_vlans_on_it() {
    let qinq = |outer: u32| {
        spec(
            "qinq",
            &[vlan("inner", "outer", 5), vlan("outer", "eth2", outer), bridge("vmbr5", &["inner"], None), vlan("other", "eth2", 9)],
        )
    };
    let (kernel, own) = with(&host(), None, &qinq(300));
    let plan = ask(own.as_deref(), &qinq(301), &kernel, &usual()).unwrap();
    assert_eq!(
        plan.steps.iter().map(|s| (s.action, s.interface.as_str())).collect::<Vec<_>>(),
        [
            (Action::Down, "inner"),
            (Action::Down, "outer"),
            (Action::Up, "outer"),
            (Action::Up, "inner"),
            // The bridge keeps its guests; only its port comes again.
            (Action::Change, "vmbr5"),
        ]
    );
    assert_eq!(
        plan.changes,
        ["~ vlan outer: tag 802.1Q 300 -> 802.1Q 301, made anew", "~ vlan inner: made anew", "~ bridge vmbr5: what it stands on changes"]
    );
}

#[test]
fn an_interface_that_is_no_longer_asked_for_goes() {
    let (kernel, own) = with(&host(), None, &classic());
    let plan = ask(own.as_deref(), &spec("guests", &[bridge("vmbr100", &[], None)]), &kernel, &usual()).unwrap();
    assert_eq!(told(&plan), ["down eth1.100", "change vmbr100", "- vlan eth1.100", "~ bridge vmbr100: ports eth1.100 -> none"]);
    assert_eq!(plan.gone, ["eth1.100"]);
}

#[test]
fn a_vlan_may_be_given_another_name() {
    let (kernel, own) = with(&host(), None, &spec("n", &[vlan("eth1.100", "eth1", 100)]));
    let plan = ask(own.as_deref(), &spec("n", &[vlan("stor", "eth1", 100)]), &kernel, &usual()).unwrap();
    assert_eq!(told(&plan)[..2], ["down eth1.100", "up stor"]);
}

#[test]
fn what_the_kernel_lost_is_mended() {
    let (kernel, own) = with(&host(), None, &classic());
    type Row = (fn(&mut Kernel), &'static [&'static str]);
    let table: [Row; 5] = [
        (|_| {}, &[]),
        (|k| k.links.retain(|l| l.name != "vmbr100"), &["up vmbr100", "+ bridge vmbr100 (ports eth1.100, mtu 1500)"]),
        (|k| link(k, "eth1.100").up = false, &["change eth1.100", "~ vlan eth1.100: state down -> up"]),
        (|k| link(k, "eth1.100").master = None, &["change vmbr100", "~ bridge vmbr100: ports none -> eth1.100"]),
        (|k| link(k, "vmbr100").vlan_aware = true, &["down vmbr100", "up vmbr100", "~ bridge vmbr100: VLAN filter on -> off, made anew"]),
    ];
    for (harm, wanted) in table {
        let mut kernel = kernel.clone();
        harm(&mut kernel);
        let plan = ask(own.as_deref(), &classic(), &kernel, &usual()).unwrap();
        assert_eq!(told(&plan), wanted);
        assert_eq!(plan.old_text, plan.new_text);
        assert_eq!(plan.is_empty(), wanted.is_empty());
    }
}

fn link<'a>(kernel: &'a mut Kernel, name: &str) -> &'a mut KernelLink {
    kernel.links.iter_mut().find(|l| l.name == name).unwrap()
}

#[test]
fn a_network_goes_from_above_and_leaves_no_file() {
    let (kernel, own) = with(&host(), None, &classic());
    let plan = plan(own.as_deref(), &Wish::Remove("guests".into()), &kernel, &usual()).unwrap();
    assert_eq!(told(&plan), ["down vmbr100", "down eth1.100", "- bridge vmbr100", "- vlan eth1.100"]);
    assert_eq!((plan.new_text.as_deref(), plan.gone.len(), plan.wanted.len()), (None, 2, 0));
    assert!(file_diff(&plan).starts_with("--- /etc/network/interfaces.d/pvelet\n+++ /dev/null\n"));
}

#[test]
fn removing_what_is_not_there_is_an_empty_plan() {
    let (kernel, own) = with(&host(), None, &classic());
    for own in [None, own.as_deref()] {
        let plan = plan(own, &Wish::Remove("other".into()), &kernel, &usual()).unwrap();
        assert!(plan.is_empty() && plan.changes.is_empty() && file_diff(&plan).is_empty());
    }
}

fn violations(result: Result<Plan, Error>) -> Vec<(&'static str, String)> {
    match result.unwrap_err() {
        Error::Invalid(v) => v.into_iter().map(|v| (v.reason, format!("{}: {}", v.field, v.description))).collect(),
        other => panic!("{other:?}"),
    }
}

fn owner_of(result: Result<Plan, Error>) -> (String, String) {
    match result.unwrap_err() {
        Error::InterfaceTaken { interface, owner } => (interface, owner),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_that_somebody_has_is_refused() {
    let (mut kernel, own) = with(&host(), None, &classic());
    kernel.links.push(bridge_link("hand0", 30));
    let declared = also("/etc/network/interfaces", "auto vmbr7\niface vmbr7 inet manual\n\tbridge-ports none\n");
    let table = [
        (spec("n", &[bridge("vmbr0", &[], None)]), "/etc/network/interfaces:11"),
        (spec("n", &[bridge("hand0", &[], None)]), "somebody who made it by hand (the kernel has a bridge of this name)"),
        (spec("n", &[bridge("enp7s0", &[], None)]), "link 'eth2', which has it as its other name"),
        (spec("n", &[bridge("vmbr7", &[], None)]), "/etc/network/interfaces:2"),
        (spec("n", &[bridge("vmbr100", &[], None)]), "network 'guests' of pvelet"),
    ];
    for (wanted, owner) in table {
        assert_eq!(owner_of(ask(own.as_deref(), &wanted, &kernel, &declared)), (wanted.interfaces[0].name.clone(), owner.to_owned()));
    }
}

#[test]
fn what_an_interface_stands_on_must_be_free() {
    let mut kernel = host();
    link(&mut kernel, "bond0").addresses = vec!["10.9.0.1/24".parse().unwrap()];
    kernel.links.push(KernelLink { master: Some("bond0".into()), ..nic("eth3", 9, 9000) });
    let (kernel, own) = with(&kernel, None, &aware());
    let text = "iface eth1 inet static\n\taddress 10.8.0.1/24\niface bond9\n\tbond-slaves eth1\n";
    let addressed = also("/etc/network/interfaces", &text[..text.find("iface bond9").unwrap()]);
    let enslaved = also("/etc/network/interfaces", &text[text.find("iface bond9").unwrap()..]);
    let table = [
        (bridge("b", &["eth0"], None), usual(), ("eth0", "bridge 'vmbr0', as a port")),
        (bridge("b", &["eth3"], None), usual(), ("eth3", "bond 'bond0', as a port")),
        (vlan("v", "eth3", 5), usual(), ("eth3", "bond 'bond0', as a port")),
        (vlan("v", "eth0", 5), usual(), ("eth0", "bridge 'vmbr0', as a port")),
        (bridge("b", &["bond0"], None), usual(), ("bond0", "the host itself, which has address 10.9.0.1/24 on it")),
        (bridge("b", &["eth1"], None), addressed, ("eth1", "/etc/network/interfaces:1, which gives it addresses")),
        (bridge("b", &["eth1"], None), enslaved, ("eth1", "'bond9' in /etc/network/interfaces:1, as a port")),
        (bridge("b", &["eth2"], None), usual(), ("eth2", "bridge 'vmbr1' of network 'trunk' of pvelet, as a port")),
        (vlan("v", "eth2", 5), usual(), ("eth2", "bridge 'vmbr1' of network 'trunk' of pvelet, as a port")),
    ];
    for (interface, declared, (name, owner)) in table {
        assert_eq!(owner_of(ask(own.as_deref(), &spec("n", &[interface]), &kernel, &declared)), (name.to_owned(), owner.to_owned()));
    }
    // A VLAN on a bridge is fine: that is how a host has an address in one of its VLANs.
    assert!(ask(own.as_deref(), &spec("n", &[vlan("vmbr0.5", "vmbr0", 5)]), &kernel, &usual()).is_ok());
}

#[test]
fn a_port_changes_bridges_only_when_the_first_has_let_it_go() {
    let (kernel, own) = with(&host(), None, &spec("n", &[bridge("a", &["eth2"], None), bridge("b", &[], None)]));
    let moved = spec("n", &[bridge("a", &[], None), bridge("b", &["eth2"], None)]);
    let owner = "bridge 'a' until that is changed; take it off there in a change before";
    assert_eq!(owner_of(ask(own.as_deref(), &moved, &kernel, &usual())), ("eth2".into(), owner.into()));
    // One that goes, or is made anew, has let it go before anything comes.
    for first in [vec![], vec![bridge("a", &[], Some(&["100"]))]] {
        let moved: Vec<_> = first.into_iter().chain([bridge("b", &["eth2"], None)]).collect();
        assert!(ask(own.as_deref(), &spec("n", &moved), &kernel, &usual()).is_ok());
    }
}

#[test]
fn a_parent_that_goes_with_the_change_is_not_found() {
    let (kernel, own) = with(&host(), None, &spec("n", &[vlan("outer", "eth1", 5)]));
    for interface in [vlan("inner", "outer", 6), bridge("b", &["outer"], None)] {
        let result = ask(own.as_deref(), &spec("n", &[interface]), &kernel, &usual());
        assert_eq!(result.unwrap_err(), Error::InterfaceNotFound { interface: "outer".into() });
    }
}

#[test]
fn a_vlan_of_a_link_is_one_interface() {
    let mut kernel = host();
    kernel.links.push(vlan_link("byhand", "eth1", 7, 1500));
    let declared = also(
        "/etc/network/interfaces.d/x",
        "iface eth1.8 inet manual\niface q\n vlan-raw-device eth1\n vlan-id 9\n vlan-protocol 802.1AD\n",
    );
    let (kernel, own) = with(&kernel, None, &spec("first", &[vlan("eth1.6", "eth1", 6)]));
    let table = [(7, "'byhand'"), (8, "'eth1.8' in /etc/network/interfaces.d/x:1"), (6, "'eth1.6'")];
    for (id, who) in table {
        let found = violations(ask(own.as_deref(), &spec("n", &[vlan("v", "eth1", id)]), &kernel, &declared));
        let text = format!("network.interfaces[0].vlan.id: 'eth1' has VLAN {id} as {who} already; use that, or choose another VLAN");
        assert_eq!(found, [(reason::INVALID_VLAN, text)]);
    }
    // Another tag type is another VLAN, and so is another parent's.
    for free in [vlan("v", "eth1", 9), vlan("v", "eth2", 7)] {
        assert!(ask(own.as_deref(), &spec("n", &[free]), &kernel, &declared).is_ok());
    }
}

#[test]
fn a_port_carries_nothing_else() {
    let wanted = spec("n", &[bridge("b", &["eth1"], None)]);
    let mut kernel = host();
    kernel.links.push(vlan_link("byhand", "eth1", 7, 1500));
    assert_eq!(owner_of(ask(None, &wanted, &kernel, &usual())).1, "VLAN 'byhand', which stands on it");
    let declared = also("/etc/network/interfaces", "iface eth1.8 inet manual\n");
    assert_eq!(owner_of(ask(None, &wanted, &host(), &declared)).1, "VLAN 'eth1.8' in /etc/network/interfaces:1, which stands on it");
    let (mut kernel, own) = with(&host(), None, &spec("first", &[vlan("eth1.6", "eth1", 6)]));
    assert_eq!(owner_of(ask(own.as_deref(), &wanted, &kernel, &usual())).1, "VLAN 'eth1.6', which stands on it");
    kernel.links.retain(|l| l.name != "eth1.6");
    let owner = owner_of(ask(own.as_deref(), &wanted, &kernel, &usual())).1;
    assert_eq!(owner, "VLAN 'eth1.6' of network 'first' of pvelet, which stands on it");
    // One that goes with the same change is no hindrance.
    let (kernel, own) = with(&host(), None, &spec("n", &[vlan("eth1.6", "eth1", 6)]));
    assert_eq!(told(&ask(own.as_deref(), &wanted, &kernel, &usual()).unwrap())[..2], ["down eth1.6", "up b"]);
}

#[test]
fn a_link_that_no_file_declares_is_not_stood_on_where_ifupdown2_would_harm_it() {
    let mut kernel = host();
    kernel.links.push(nic("eth5", 20, 9000));
    kernel.links.push(KernelLink { addresses: vec!["10.55.0.1/24".parse().unwrap()], ..nic("eth6", 21, 1500) });
    kernel.links.push(nic("eth7", 22, 1500));
    let table = [
        (vlan("v", "eth5", 5), Some("so ifupdown2 would set its MTU from 9000 to 1500")),
        (bridge("b", &["eth1", "eth5"], None), Some("no file declares 'eth5'")),
        (vlan("v", "eth6", 5), Some("would take its addresses (10.55.0.1/24) away; declare it in /etc/network/interfaces as it is")),
        (vlan("v", "eth7", 5), None),
    ];
    for (interface, wanted) in table {
        match (ask(None, &spec("n", &[interface]), &kernel, &usual()), wanted) {
            (Ok(_), None) => {}
            (Err(Error::NetworkPreflight { checks }), Some(text)) => {
                assert!(checks[0].0 == "net.undeclared-parent" && checks[0].1.contains(text), "{checks:?}");
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_so_already_stays_so_whatever_came_beside_it() {
    let wanted = spec("n", &[v1::InterfaceSpec { addresses: vec!["10.1.0.1/24".into()], ..vlan("v", "eth1", 5) }]);
    let (mut kernel, own) = with(&host(), None, &wanted);
    link(&mut kernel, "eth2").addresses.push("10.1.0.2/16".parse().unwrap());
    assert!(ask(own.as_deref(), &wanted, &kernel, &usual()).unwrap().is_empty());
    link(&mut kernel, "v").up = false;
    assert_eq!(violations(ask(own.as_deref(), &wanted, &kernel, &usual()))[0].0, reason::SUBNET_OVERLAP);
}

#[test]
fn what_loses_its_ipv6_with_its_parent_gets_it_back() {
    let with_v6 = |name: &str, parent: &str, id, v6: bool| v1::InterfaceSpec {
        addresses: v6.then(|| format!("2001:db8:{id}::1/64")).into_iter().collect(),
        ..vlan(name, parent, id)
    };
    let wanted =
        |v6| spec("n", &[with_v6("a", "eth1", 1, v6), with_v6("b", "a", 2, true), with_v6("c", "b", 3, true), with_v6("d", "a", 4, false)]);
    let (kernel, own) = with(&host(), None, &wanted(false));
    let plan = ask(own.as_deref(), &wanted(true), &kernel, &usual()).unwrap();
    assert_eq!(told(&plan)[..3], ["change a", "change b", "change c"]);
    assert_eq!(plan.steps.len(), 3);
}

#[test]
fn addresses_and_subnets_of_others_are_refused() {
    let mut kernel = host();
    link(&mut kernel, "lo").addresses.push("10.5.0.1/32".parse().unwrap());
    let (kernel, own) =
        with(&kernel, None, &spec("first", &[v1::InterfaceSpec { addresses: vec!["10.6.0.1/24".into()], ..vlan("v6", "eth1", 6) }]));
    let text = "iface x inet static\n address 10.7.0.1\n netmask 255.255.255.0\niface y inet6 static\n address 2001:db8:7::1/64\n";
    let declared = also("/etc/network/interfaces", text);
    let table = [
        ("192.0.2.10/24", Some((reason::ADDRESS_IN_USE, "192.0.2.10 is an address of 'vmbr0' already; choose another"))),
        ("192.0.2.11/28", Some((reason::SUBNET_OVERLAP, "192.0.2.11/28 overlaps with 192.0.2.0/24 of 'vmbr0'; choose another subnet"))),
        ("192.0.0.1/16", Some((reason::SUBNET_OVERLAP, "192.0.0.1/16 overlaps with 192.0.2.0/24 of 'vmbr0'; choose another subnet"))),
        ("10.6.0.2/24", Some((reason::SUBNET_OVERLAP, "10.6.0.2/24 overlaps with 10.6.0.0/24 of 'v6'; choose another subnet"))),
        ("10.7.0.2/24", Some((reason::SUBNET_OVERLAP, "10.7.0.2/24 overlaps with 10.7.0.0/24 of 'x'; choose another subnet"))),
        ("2001:db8:7::1/64", Some((reason::ADDRESS_IN_USE, "2001:db8:7::1 is an address of 'y' already; choose another"))),
        ("10.5.0.1/24", Some((reason::ADDRESS_IN_USE, "10.5.0.1 is an address of 'lo' already; choose another"))),
        // An address for the host alone has no subnet.
        ("10.5.0.2/24", None),
        ("10.8.0.2/24", None),
    ];
    for (address, wanted) in table {
        let interface = v1::InterfaceSpec { addresses: vec![address.into()], ..vlan("v", "eth1", 5) };
        let result = ask(own.as_deref(), &spec("n", &[interface]), &kernel, &declared);
        match wanted {
            Some((reason, text)) => assert_eq!(violations(result), [(reason, format!("network.interfaces[0].addresses[0]: {text}"))]),
            None => assert!(result.is_ok(), "{address}"),
        }
    }
}

#[test]
fn an_mtu_fits_between_what_is_below_and_what_is_above() {
    let mut kernel = host();
    kernel.links.push(vlan_link("upper", "stor", 7, 1500));
    kernel.links.push(vlan_link("stor", "eth2", 70, 9000));
    let (_, own) = with(&host(), None, &spec("n", &[vlan("stor", "eth2", 70)]));
    let mtu = |interface: v1::InterfaceSpec, mtu| v1::InterfaceSpec { mtu, ..interface };
    let ok = |interfaces: &[v1::InterfaceSpec]| ask(own.as_deref(), &spec("n", interfaces), &kernel, &usual()).map(|_| ());
    let refused = |interfaces: &[v1::InterfaceSpec]| violations(ask(own.as_deref(), &spec("n", interfaces), &kernel, &usual())).remove(0).1;
    let stor = vlan("stor", "eth2", 70);
    assert_eq!(ok(&[mtu(stor.clone(), 9000)]), Ok(()));
    assert_eq!(
        refused(&[mtu(stor.clone(), 9001)]),
        "network.interfaces[0].mtu: 9001 is more than the 9000 of 'eth2'; use 9000 at most, or raise that first"
    );
    assert_eq!(
        refused(&[mtu(stor.clone(), 1400)]),
        "network.interfaces[0].mtu: 1400 is less than the 1500 of 'upper', which stands on it; lower that first"
    );
    // QinQ: the inner tag is the outer's payload, so the same is fine; what a parent of the request gets counts.
    assert_eq!(ok(&[stor.clone(), mtu(vlan("q", "stor", 5), 9000)]), Ok(()));
    assert!(refused(&[mtu(stor.clone(), 8000), mtu(vlan("q", "stor", 5), 8001)]).contains("more than the 8000 of 'stor'"));
    assert!(refused(&[stor, mtu(bridge("b", &["bond0", "eth1"], None), 1501)]).contains("more than the 1500 of 'eth1'"));
}

#[test]
fn a_bridge_gets_the_mtu_of_its_smallest_port() {
    let wanted = spec(
        "n",
        &[bridge("b", &["v", "bond0"], None), v1::InterfaceSpec { mtu: 8000, ..vlan("v", "eth2", 5) }, bridge("c", &["eth1"], None)],
    );
    let definition = validate::definition(&wanted, "team-a", &host()).unwrap();
    assert_eq!(definition.interfaces.iter().map(|i| i.mtu).collect::<Vec<_>>(), [Some(8000), Some(8000), None]);
}

fn users(result: Result<Plan, Error>) -> Vec<String> {
    match result.unwrap_err() {
        Error::NetworkInUse { users, .. } => users,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_others_need_neither_goes_nor_is_made_anew() {
    let (kernel, own) = with(&host(), None, &spec("base", &[vlan("stor", "eth2", 70), bridge("vmbr1", &["eth1"], None)]));
    let remove =
        |kernel: &Kernel, own: &Option<String>, declared: &Declared| plan(own.as_deref(), &Wish::Remove("base".into()), kernel, declared);
    let anew = spec("base", &[vlan("stor", "eth2", 71), bridge("vmbr1", &["eth1"], Some(&[]))]);

    let (stacked, both) = with(&kernel, own.as_deref(), &spec("top", &[bridge("vmbr70", &["stor"], None)]));
    assert_eq!(users(remove(&stacked, &both, &usual())), ["network 'top' of pvelet (vmbr70)"]);
    assert_eq!(users(ask(both.as_deref(), &anew, &stacked, &usual())), ["network 'top' of pvelet (vmbr70)"]);
    let more = spec("base", &[v1::InterfaceSpec { comment: "x".into(), ..vlan("stor", "eth2", 70) }, bridge("vmbr1", &["eth1"], None)]);
    assert_eq!(told(&ask(both.as_deref(), &more, &stacked, &usual()).unwrap())[0], "change stor");

    let mut guest = kernel.clone();
    guest.links.push(KernelLink { master: Some("vmbr1".into()), kind: "tun".into(), ..nic("tap100i0", 50, 1500) });
    guest.links.push(KernelLink { master: Some("vmbr1".into()), kind: "veth".into(), ..nic("veth101i0", 51, 1500) });
    for result in [remove(&guest, &own, &usual()), ask(own.as_deref(), &anew, &guest, &usual())] {
        assert_eq!(users(result), ["CT 101 (veth101i0)", "VM 100 (tap100i0)"]);
    }
    let mut foreign = kernel.clone();
    foreign.links.push(vlan_link("hand", "stor", 3, 1500));
    assert_eq!(users(remove(&foreign, &own, &usual())), ["hand"]);
    let declared = also("/etc/network/interfaces", "iface stor.9 inet manual\n");
    assert_eq!(users(remove(&kernel, &own, &declared)), ["stor.9 (/etc/network/interfaces:1)"]);
}

#[test]
fn another_tenants_network_is_not_ours() {
    let (kernel, own) = with(&host(), None, &classic());
    let definition = validate::definition(&classic(), "team-b", &kernel).unwrap();
    let error = plan(own.as_deref(), &Wish::Apply(definition), &kernel, &usual()).unwrap_err();
    assert_eq!(error, Error::NotOurs { what: "network 'guests'".into() });
}

#[test]
fn an_edited_file_is_not_overwritten() {
    let (kernel, own) = with(&host(), None, &classic());
    let edited = own.unwrap().replace("vlan-id 100", "vlan-id 101");
    let error = ask(Some(&edited), &classic(), &kernel, &usual()).unwrap_err();
    assert_eq!(
        error,
        Error::NetworkChanged { what: "/etc/network/interfaces.d/pvelet: its digest does not fit, so somebody edited it".into() }
    );
}

/// Networks over the links of `host()`, most of them possible.
fn networks() -> impl Strategy<Value = v1::NetworkSpec> {
    let kind = (0..7usize, 0..6usize, 2..6u32, any::<bool>(), 0..4usize, 0..3u32);
    proptest::collection::vec(kind, 1..6).prop_map(|kinds| {
        let names: Vec<String> = (0..kinds.len()).map(|i| format!("x{i}")).collect();
        let lower = |at: usize| match at {
            0 => "eth1".to_owned(),
            1 => "eth2".to_owned(),
            2 => "bond0".to_owned(),
            n => names.get(n - 3).cloned().unwrap_or_else(|| "eth2".into()),
        };
        let interfaces = kinds.iter().enumerate().map(|(i, (what, on, id, aware, mtu, address))| {
            let mut interface = match what {
                0..4 => vlan(&names[i], &lower(*on), *id),
                _ => {
                    let ports: Vec<String> = (0..what - 4).map(|p| lower(on + p)).collect();
                    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
                    bridge(&names[i], &ports, aware.then_some(&["100", "7-30"][..(*id % 3) as usize]))
                }
            };
            if let Some(v1::interface_spec::Kind::Vlan(vlan)) = &mut interface.kind
                && *aware
            {
                vlan.protocol = v1::VlanProtocol::VlanProtocol8021ad.into();
            }
            interface.mtu = [0, 0, 1400, 1500][*mtu];
            interface.addresses = match address {
                0 => vec![format!("10.{i}.0.1/24"), format!("2001:db8:{i}::1/64")],
                1 => vec![format!("10.{i}.0.2/24")],
                _ => Vec::new(),
            };
            interface
        });
        spec("n", &interfaces.collect::<Vec<_>>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// From nothing to one network, to another, and back: after each the kernel has what the file says, nothing else changed, and the same
    /// question finds nothing to do.
    #[test]
    fn plans_bring_about_what_they_say(first in networks(), second in networks(), third in networks()) {
        let bare = host();
        let (mut kernel, mut own): (Kernel, Option<String>) = (bare.clone(), None);
        for wanted in [first, second, third] {
            let Ok(definition) = validate::definition(&wanted, "team-a", &kernel) else { continue };
            let wish = Wish::Apply(definition);
            let Ok(made) = plan(own.as_deref(), &wish, &kernel, &usual()) else { continue };
            let twice = plan(own.as_deref(), &wish, &kernel, &usual());
            prop_assert_eq!(Ok(&made), twice.as_ref(), "the same question has the same answer");
            let before = kernel.clone();
            run(&made, &mut kernel);
            prop_assert_eq!(in_sync(made.new_text.as_deref(), &kernel), Vec::<String>::new());
            prop_assert_eq!(verify::applied(&made, &before, &kernel), Vec::<String>::new());
            if !made.is_empty() {
                prop_assert!(!verify::restored(&made, &before, &kernel).is_empty() || made.changes.iter().all(|c| c.starts_with('~')));
            }
            own = made.new_text;
            let again = plan(own.as_deref(), &wish, &kernel, &usual()).unwrap();
            prop_assert!(again.is_empty() && again.changes.is_empty(), "{:?}", again);
        }
        let removal = plan(own.as_deref(), &Wish::Remove("n".into()), &kernel, &usual()).unwrap();
        run(&removal, &mut kernel);
        prop_assert_eq!(removal.new_text, None);
        prop_assert_eq!(plain(&kernel), plain(&bare));
        prop_assert_eq!(verify::restored(&Plan::default(), &bare, &kernel), Vec::<String>::new());
    }

    /// Whatever the kernel lost or has otherwise, the plan mends it or refuses, and a network beside it stays as it is.
    #[test]
    fn drift_is_mended(wanted in networks(), harm in proptest::collection::vec((any::<prop::sample::Index>(), 0..6u8), 0..4)) {
        let (mut kernel, own) = with(&host(), None, &spec("beside", &[vlan("beside", "eth1", 4000)]));
        let Ok(made) = ask(own.as_deref(), &wanted, &kernel, &usual()) else { return Ok(()) };
        run(&made, &mut kernel);
        let names: Vec<String> = made.wanted.iter().map(|i| i.name.clone()).collect();
        for (index, how) in harm {
            let name = index.get(&names);
            let Some(link) = kernel.links.iter_mut().find(|l| &l.name == name) else { continue };
            match how {
                0 => link.up = false,
                1 => link.addresses.clear(),
                2 => link.addresses.push("10.200.0.1/24".parse().unwrap()),
                3 => (link.master, link.vlans) = (None, link.vlans.iter().copied().filter(|_| link.kind == "bridge").collect()),
                4 if link.kind == "vlan" => link.mtu = 1000,
                _ => {
                    let mut gone = vec![name.clone()];
                    while let Some(name) = gone.pop() {
                        gone.extend(kernel.links.iter().filter(|l| l.parent.as_ref() == Some(&name)).map(|l| l.name.clone()));
                        kernel.links.retain(|l| l.name != name);
                        for port in kernel.links.iter_mut().filter(|l| l.master.as_ref() == Some(&name)) {
                            (port.master, port.vlans) = (None, Vec::new());
                        }
                    }
                }
            }
        }
        let Ok(mend) = ask(made.new_text.as_deref(), &wanted, &kernel, &usual()) else { return Ok(()) };
        run(&mend, &mut kernel);
        prop_assert_eq!(in_sync(mend.new_text.as_deref(), &kernel), Vec::<String>::new());
    }
}
