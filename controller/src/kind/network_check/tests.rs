use crate::kind::parse;

fn mistakes(spec: &str) -> Vec<String> {
    let text = format!("apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {{name: storage}}\nspec: {spec}\n");
    parse(&text).1.into_iter().flat_map(|p| p.mistakes).map(|m| m.to_string()).collect()
}

fn with(interfaces: &str) -> Vec<String> {
    mistakes(&format!("{{hosts: {{names: [pve1]}}, interfaces: {interfaces}}}"))
}

#[test]
fn the_example_is_sound() {
    let (manifests, problems) = parse(include_str!("../../../../docs/examples/network.yaml"));
    assert_eq!(problems, vec![]);
    assert!(manifests.iter().all(|m| m.id.kind == "PveNetwork") && !manifests.is_empty());
}

#[test]
fn every_kind_of_interface_is_taken() {
    let told = with(
        "[{name: bond0.100, vlan: {parent: bond0, id: 100}, addresses: [192.0.2.1/24, '2001:db8::1/64'], mtu: 9000, comment: Storage}, \
         {name: outer, vlan: {parent: bond0, id: 200, protocol: 802.1ad}}, {name: inner, vlan: {parent: outer, id: 100}}, \
         {name: vmbr1, bridge: {ports: [eth1], vlanAware: true, vids: ['100', '200-299']}}, \
         {name: vmbr100, bridge: {ports: [bond0.100]}}, {name: vmbr2, bridge: {}}, {name: p2p, vlan: {parent: eth2, id: 1}, addresses: [198.51.100.0/31]}]",
    );
    assert_eq!(told, Vec::<String>::new());
    let told = mistakes(
        "{hosts: {matchLabels: {rack: a}, names: [pve1, pve2]}, confirmTimeout: 2m, probe: {mtu: 9000}, deletionPolicy: Retain, \
         interfaces: [{name: eth1.7, vlan: {parent: eth1, id: 7}, hostAddresses: {pve1: [192.0.2.1/24], pve2: [192.0.2.2/24], pve3: []}}]}",
    );
    assert_eq!(told, Vec::<String>::new());
}

#[test]
fn each_mistake_of_an_interface_is_told_with_its_rule() {
    for (interfaces, want) in [
        ("[]", "spec.interfaces = 0: use 1 to 64"),
        ("[{name: a-name-too-long1, vlan: {parent: e, id: 1}}]", "spec.interfaces[0].name = a-name-too-long1: not an interface name"),
        ("[{name: 1st, vlan: {parent: e, id: 1}}]", "spec.interfaces[0].name = 1st: begin with a letter"),
        ("[{name: tap7, vlan: {parent: e, id: 1}}]", "spec.interfaces[0].name = tap7: tap* is the system's"),
        ("[{name: lo, vlan: {parent: e, id: 1}}]", "spec.interfaces[0].name = lo: lo is the system's"),
        ("[{name: a, vlan: {parent: e, id: 0}}]", "spec.interfaces[0].vlan.id = 0: use 1 to 4094"),
        ("[{name: a, vlan: {parent: e, id: 4095}}]", "spec.interfaces[0].vlan.id = 4095"),
        ("[{name: a, vlan: {parent: e/f, id: 1}}]", "spec.interfaces[0].vlan.parent = e/f"),
        ("[{name: a, vlan: {parent: e, id: 1, protocol: 802.1x}}]", "spec.interfaces[0].vlan.protocol = '802.1x': unknown variant"),
        (
            "[{name: a, vlan: {parent: e, id: 1}}, {name: b, vlan: {parent: e, id: 1}}]",
            "spec.interfaces[1].vlan.id = 1: a is this VLAN of e already",
        ),
        ("[{name: a, vlan: {parent: e, id: 1}}, {name: a, bridge: {}}]", "spec.interfaces[1].name = a: another interface"),
        ("[{name: a}]", "spec.interfaces[0] = a: say what it is"),
        ("[{name: a, vlan: {parent: e, id: 1}, bridge: {}}]", "spec.interfaces[0] = a: say what it is"),
        ("[{name: a, vlan: {parent: b, id: 1}}, {name: b, vlan: {parent: a, id: 2}}]", "spec.interfaces[0] = a: it stands on itself"),
        (
            "[{name: a, bridge: {ports: [e]}}, {name: b, bridge: {ports: [e]}}]",
            "spec.interfaces[1].bridge.ports[0] = e: it is a port of a already",
        ),
        ("[{name: a, bridge: {vids: ['7']}}]", "spec.interfaces[0].bridge.vids = 7: only a bridge with vlanAware"),
        ("[{name: a, bridge: {vlanAware: true, vids: ['9-7']}}]", "spec.interfaces[0].bridge.vids[0] = 9-7: use a VLAN or a range"),
        ("[{name: a, bridge: {vlanAware: true, vids: ['0']}}]", "spec.interfaces[0].bridge.vids[0] = 0"),
        ("[{name: a, bridge: {}, mtu: 500}]", "spec.interfaces[0].mtu = 500: use 576 to 65535"),
        ("[{name: a, bridge: {}, mtu: 1000, addresses: ['2001:db8::1/64']}]", "spec.interfaces[0].mtu = 1000: IPv6 needs at least 1280"),
        (
            "[{name: a, bridge: {}, mtu: 1500}, {name: b, vlan: {parent: a, id: 2}, mtu: 9000}]",
            "spec.interfaces[1].mtu = 9000: it stands on a, which has 1500",
        ),
        ("[{name: a, bridge: {}, addresses: [192.0.2.1]}]", "spec.interfaces[0].addresses[0] = 192.0.2.1: use an address with prefix"),
        ("[{name: a, bridge: {}, addresses: [192.0.2.0/24]}]", "spec.interfaces[0].addresses[0] = 192.0.2.0/24: no host can have it"),
        ("[{name: a, bridge: {}, addresses: [192.0.2.255/24]}]", "no host can have it"),
        ("[{name: a, bridge: {}, addresses: [127.0.0.1/8]}]", "no host can have it"),
        ("[{name: a, bridge: {}, comment: 'x\"y'}]", "spec.interfaces[0].comment = x\"y: use up to 64"),
        (
            "[{name: a, bridge: {}, addresses: [192.0.2.1/24]}, {name: b, bridge: {}, addresses: [192.0.2.129/25]}]",
            "spec.interfaces[1].addresses[0] = 192.0.2.129/25: it overlaps with 192.0.2.1/24 of a",
        ),
        ("[{name: a, bridge: {}, addresses: [192.0.2.1/24, 192.0.2.1/24]}]", "spec.interfaces[0].addresses[1] = 192.0.2.1/24: it overlaps"),
        ("[{name: a, bridge: {port: [e]}}]", "spec.interfaces[0].bridge.port"),
    ] {
        let told = with(interfaces);
        assert!(told.iter().any(|t| t.contains(want)), "{interfaces}: {told:#?}");
    }
}

#[test]
fn each_mistake_about_hosts_and_time_is_told_with_its_rule() {
    const VLAN: &str = "name: a, vlan: {parent: e, id: 1}";
    for (spec, want) in [
        ("hosts: {}, interfaces: [{VLAN}]", "spec.hosts: select hosts by names"),
        ("hosts: {names: [p_1]}, interfaces: [{VLAN}]", "spec.hosts.names[0] = p_1: not a DNS name"),
        ("hosts: {names: [p1, p1]}, interfaces: [{VLAN}]", "spec.hosts.names[1] = p1: it is there twice"),
        ("hosts: {names: [p1, p2]}, interfaces: [{VLAN, addresses: [192.0.2.1/24]}]", "each needs its own address"),
        ("hosts: {matchLabels: {a: b}}, interfaces: [{VLAN, addresses: [192.0.2.1/24]}]", "each needs its own address"),
        (
            "hosts: {names: [p1, p2]}, interfaces: [{VLAN, hostAddresses: {p1: [192.0.2.1/24], p2: [192.0.2.1/24]}}]",
            "spec.interfaces[0].hostAddresses.p2 = 192.0.2.1/24: p1 (a) has this address already",
        ),
        (
            "hosts: {names: [p1, p2]}, interfaces: [{VLAN, hostAddresses: {p1: []}}]",
            "spec.interfaces[0].hostAddresses.p2: its addresses are missing",
        ),
        (
            "hosts: {names: [p1]}, interfaces: [{VLAN, hostAddresses: {p1: [], p9: []}}]",
            "spec.interfaces[0].hostAddresses.p9: spec.hosts does not",
        ),
        (
            "hosts: {names: [p1]}, interfaces: [{VLAN, hostAddresses: {p1: [x]}}]",
            "spec.interfaces[0].hostAddresses.p1[0] = x: use an address",
        ),
        ("hosts: {names: [p1]}, interfaces: [{VLAN}], confirmTimeout: 5s", "spec.confirmTimeout = 5s: use 10s to 10m"),
        ("hosts: {names: [p1]}, interfaces: [{VLAN}], confirmTimeout: 20s", "spec.confirmTimeout = 20s: a probe needs its time"),
        ("hosts: {names: [p1]}, interfaces: [{VLAN}], confirmTimeout: 60", "spec.confirmTimeout = 60: use a span of time with a unit"),
        ("hosts: {names: [p1]}, interfaces: [{VLAN}], probe: {mtu: 9}", "spec.probe.mtu = 9: use 576 to 65535"),
        (
            "hosts: {names: [p1]}, interfaces: [{VLAN, mtu: 1500}], probe: {mtu: 9000}",
            "spec.probe.mtu = 9000: a has 1500: use at most that, or raise it",
        ),
        ("hosts: {names: [p1]}, interfaces: [{VLAN}], tenant: A", "spec.tenant = A"),
    ] {
        let told = mistakes(&format!("{{{}}}", spec.replace("VLAN", VLAN)));
        assert!(told.iter().any(|t| t.contains(want)), "{spec}: {told:#?}");
    }
    let told = parse("apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: a.b}\nspec: {hosts: {names: [p]}, interfaces: [{name: a, bridge: {}}]}\n").1;
    assert!(told[0].mistakes[0].to_string().starts_with("metadata.name = a.b: use 1 to 63"), "{told:?}");
}

#[test]
fn a_host_gets_its_own_addresses_and_a_forgotten_one_is_told() {
    let text = "apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: s}\nspec: {hosts: {matchLabels: {a: b}}, interfaces: \
                [{name: e.7, vlan: {parent: e, id: 7}, hostAddresses: {pve1: [192.0.2.1/24], pve2: []}}]}\n";
    let spec: crate::kind::NetworkSpec = serde_json::from_value(parse(text).0.remove(0).spec).unwrap_or_else(|e| panic!("{e}"));
    let on = |host: &str| spec.on_host("s", "t", host).map(|n| n.interfaces[0].addresses.clone());
    assert_eq!((on("pve1"), on("pve2")), (Ok(vec!["192.0.2.1/24".to_owned()]), Ok(vec![])));
    assert!(on("pve3").is_err_and(|e| e.contains("add hostAddresses.pve3")));
}

#[test]
fn what_others_stand_on_is_not_probed_and_of_a_trunk_one_vlan_of_each_entry() {
    let text = "apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: s}\nspec: {hosts: {names: [a]}, interfaces: \
                [{name: e.7, vlan: {parent: e, id: 7}}, {name: vmbr7, mtu: 9000, bridge: {ports: [e.7]}}, {name: alone, bridge: {}}, \
                {name: trunk, bridge: {ports: [f], vlanAware: true, vids: ['100', '200-299']}}, {name: all, bridge: {ports: [g], vlanAware: true}}]}\n";
    let spec: crate::kind::NetworkSpec = serde_json::from_value(parse(text).0.remove(0).spec).unwrap_or_else(|e| panic!("{e}"));
    let told: Vec<(String, u32, Option<u32>)> = spec.probe_targets().into_iter().map(|t| (t.interface, t.vlan, t.mtu)).collect();
    assert_eq!(told, [("vmbr7".to_owned(), 0, Some(9000)), ("trunk".to_owned(), 100, None), ("trunk".to_owned(), 200, None)]);
}
