#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::{
    super::testing::{bridge, host, spec, vlan},
    *,
};

fn check(interfaces: &[v1::InterfaceSpec]) -> Result<Definition, Error> {
    definition(&spec("n", interfaces), "team-a", &host())
}

fn told(result: Result<Definition, Error>) -> Vec<(String, &'static str)> {
    match result {
        Err(Error::Invalid(v)) => v.into_iter().map(|v| (v.field, v.reason)).collect(),
        other => panic!("{other:?}"),
    }
}

fn first(result: Result<Definition, Error>) -> String {
    match result {
        Err(Error::Invalid(v)) => format!("{}: {}", v[0].field, v[0].description),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_network_becomes_its_definition() {
    let inner =
        v1::InterfaceSpec { mtu: 1400, addresses: vec!["10.1.0.1/24".into(), "2001:DB8::1/64".into()], ..vlan("inner", "outer", 5) };
    let mut outer = vlan("outer", "enp7s0", 300);
    let Some(v1::interface_spec::Kind::Vlan(v)) = &mut outer.kind else { panic!() };
    v.protocol = v1::VlanProtocol::VlanProtocol8021ad.into();
    let trunk =
        v1::InterfaceSpec { comment: "Gäste: 100-299".into(), ..bridge("vmbr1", &["bond0"], Some(&["200-299", "100", "101-199"])) };
    let made = check(&[inner, outer, trunk, bridge("vmbr2", &[], Some(&[]))]).unwrap();
    let interface = |name: &str, kind| Interface { name: name.into(), kind, mtu: None, addresses: Vec::new(), comment: String::new() };
    assert_eq!(made.tenant, "team-a");
    assert_eq!(
        made.interfaces,
        [
            Interface {
                mtu: Some(1400),
                addresses: vec!["10.1.0.1/24".parse().unwrap(), "2001:db8::1/64".parse().unwrap()],
                ..interface("inner", Kind::Vlan { parent: "outer".into(), id: 5, service: false })
            },
            // The altname is resolved.
            interface("outer", Kind::Vlan { parent: "eth2".into(), id: 300, service: true }),
            Interface {
                mtu: Some(9000),
                comment: "Gäste: 100-299".into(),
                ..interface("vmbr1", Kind::Bridge { ports: vec!["bond0".into()], vlan_aware: true, vids: vec![(100, 299)] })
            },
            interface("vmbr2", Kind::Bridge { ports: Vec::new(), vlan_aware: true, vids: vec![(2, 4094)] }),
        ]
    );
}

#[test]
fn every_mistake_is_told_at_once() {
    let bad =
        v1::InterfaceSpec { mtu: 100, addresses: vec!["x".into(), "10.0.0.0/24".into()], comment: "\"".into(), ..vlan("lo", "eth1", 0) };
    let mut network = spec("Bad_", &[bad, bridge("averyveryverylongname", &["eth1", "eth1"], Some(&["0", "7"]))]);
    network.tenant = "other".into();
    let fields: Vec<_> = told(definition(&network, "team-a", &host()));
    let at = |field: &str, reason| (format!("network.{field}"), reason);
    assert_eq!(
        fields,
        [
            at("name", reason::INVALID_NETWORK_NAME),
            at("tenant", reason::INVALID_TENANT),
            at("interfaces[0].name", reason::INVALID_INTERFACE_NAME),
            at("interfaces[0].vlan.id", reason::INVALID_VLAN),
            at("interfaces[0].addresses[0]", reason::INVALID_ADDRESS),
            at("interfaces[0].addresses[1]", reason::INVALID_ADDRESS),
            at("interfaces[0].mtu", reason::INVALID_MTU),
            at("interfaces[0].comment", reason::INVALID_FIELD),
            at("interfaces[1].name", reason::INVALID_INTERFACE_NAME),
            at("interfaces[1].bridge.vids[0]", reason::INVALID_VLAN),
            at("interfaces[1].bridge.ports[1]", reason::INVALID_FIELD),
            at("interfaces[0].vlan.parent", reason::INVALID_FIELD),
        ]
    );
}

#[test]
fn names_are_those_the_kernel_takes_and_nobody_has() {
    let good = ["a", "vmbr70", "eth1.100", "A-b_c.d", "fifteen-bytes-x"];
    for name in good {
        assert!(check(&[vlan(name, "eth1", 100)]).is_ok(), "{name}");
    }
    let table = [
        ("", "no name"),
        ("sixteen-bytes-xx", "has 16 bytes"),
        ("ééééééééé", "has 18 bytes"),
        ("1eth", "no name"),
        ("-a", "no name"),
        ("a b", "no name"),
        ("a/b", "no name"),
        ("a:1", "no name"),
        ("é", "no name"),
        ("a\n", "no name"),
        ("a%", "no name"),
        ("lo", "system's own"),
        ("all", "system's own"),
        ("default", "system's own"),
        ("tap100i0", "system's own"),
        ("fwbr1", "system's own"),
        ("fwpr1p0", "system's own"),
        ("fwln1", "system's own"),
        ("veth7", "system's own"),
        ("pvprobe0", "system's own"),
        ("eth1.101", "another VLAN than 100"),
        ("eth1.0100x", ""),
    ];
    for (name, why) in table {
        match check(&[vlan(name, "eth1", 100)]) {
            Ok(_) => assert!(why.is_empty(), "{name}"),
            error => assert!(!why.is_empty() && first(error.clone()).contains(why), "{name}: {error:?}"),
        }
    }
    assert!(first(check(&[bridge("vmbr0.1", &[], None)])).contains("without '.'"));
    assert!(first(check(&[bridge("b", &[], None), vlan("b", "eth1", 1)])).contains("interfaces[0] too"));
}

#[test]
fn a_networks_name_is_a_label() {
    for good in ["a", "guests-2", &"x".repeat(63)] {
        assert_eq!(name(good), Ok(()), "{good}");
    }
    for bad in ["", "-a", "a-", "A", "a_b", "a.b", &"x".repeat(64), "ä"] {
        assert_eq!(name(bad).unwrap_err().reason(), reason::INVALID_NETWORK_NAME, "{bad}");
    }
}

#[test]
fn vlans_are_1_to_4094() {
    for (id, ok) in [(0, false), (1, true), (4094, true), (4095, false), (65536 + 100, false), (u32::MAX, false)] {
        let result = check(&[vlan("v", "eth1", id)]);
        assert_eq!(result.is_ok(), ok, "{id}");
        if !ok {
            assert!(first(result).starts_with(&format!("network.interfaces[0].vlan.id: {id} is no VLAN; use 1 to 4094")));
        }
    }
    let mut odd = vlan("v", "eth1", 5);
    let Some(v1::interface_spec::Kind::Vlan(v)) = &mut odd.kind else { panic!() };
    v.protocol = 7;
    assert_eq!(told(check(&[odd.clone()])), [("network.interfaces[0].vlan.protocol".into(), reason::INVALID_VLAN)]);
    let Some(v1::interface_spec::Kind::Vlan(v)) = &mut odd.kind else { panic!() };
    v.protocol = 2;
    // The same number with another tag is another VLAN.
    assert!(check(&[odd.clone(), vlan("w", "eth1", 5)]).is_ok());
    assert!(first(check(&[vlan("v", "enp7s0", 5), vlan("w", "eth2", 5)])).contains("'eth2' has VLAN 5 as 'v'"));
}

#[test]
fn vids_are_numbers_and_ranges() {
    type Row = (&'static [&'static str], Option<&'static [(u16, u16)]>);
    let table: [Row; 15] = [
        (&[], Some(&[(2, 4094)])),
        (&["100"], Some(&[(100, 100)])),
        (&["1-4094"], Some(&[(1, 4094)])),
        (&["7", "5", "6", "100-200", "150-300"], Some(&[(5, 7), (100, 300)])),
        (&["0"], None),
        (&["4095"], None),
        (&["10-5"], None),
        (&["5-"], None),
        (&["-5"], None),
        (&[""], None),
        (&["+5"], None),
        (&["5 6"], None),
        (&["1-2-3"], None),
        (&["00100"], None),
        (&["٣"], None),
    ];
    for (vids, wanted) in table {
        let got = check(&[bridge("b", &[], Some(vids))]).ok().map(|d| match &d.interfaces[0].kind {
            Kind::Bridge { vids, .. } => vids.clone(),
            Kind::Vlan { .. } => panic!(),
        });
        assert_eq!(got.as_deref(), wanted, "{vids:?}");
    }
    let mut plain = bridge("b", &[], None);
    let Some(v1::interface_spec::Kind::Bridge(b)) = &mut plain.kind else { panic!() };
    b.vids = vec!["5".into()];
    assert!(first(check(&[plain])).contains("only a bridge with vlan_aware"));
}

#[test]
fn addresses_are_those_a_host_can_have() {
    let good =
        ["192.0.2.1/24", "10.0.0.0/31", "10.0.0.1/31", "10.0.0.1/32", "169.254.1.1/16", "2001:db8::1/64", "2001:db8::/127", "fd00::1/8"];
    for address in good {
        let result = check(&[v1::InterfaceSpec { addresses: vec![address.into()], ..vlan("v", "eth1", 5) }]);
        assert!(result.is_ok(), "{address}: {result:?}");
    }
    let table = [
        ("192.0.2.1", "with prefix length"),
        ("192.0.2.1/33", "with prefix length"),
        ("192.0.2.1/24 ", "with prefix length"),
        ("", "with prefix length"),
        ("192.0.2.0/24", "network itself"),
        ("192.0.2.255/24", "broadcast"),
        ("0.0.0.0/0", "unspecified"),
        ("0.1.2.3/8", "0.0.0.0/8"),
        ("10.0.0.1/0", "prefix length 0"),
        ("127.0.0.1/8", "loopback"),
        ("224.0.0.1/24", "multicast"),
        ("255.255.255.255/32", "reserved"),
        ("::1/128", "loopback"),
        ("::/0", "unspecified"),
        ("ff02::1/64", "multicast"),
        ("fe80::1/64", "link-local"),
        ("2001:db8::/64", "all routers"),
        ("::ffff:10.0.0.1/120", "IPv4 address in IPv6 form"),
    ];
    for (address, why) in table {
        let text = first(check(&[v1::InterfaceSpec { addresses: vec![address.into()], ..vlan("v", "eth1", 5) }]));
        assert!(text.starts_with(&format!("network.interfaces[0].addresses[0]: '{address}'")) && text.contains(why), "{text}");
    }
}

#[test]
fn an_address_or_subnet_stands_in_a_request_once() {
    let with = |name: &str, id, addresses: &[&str]| v1::InterfaceSpec {
        addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        ..vlan(name, "eth1", id)
    };
    let table: [(&[&str], &[&str], Option<&str>); 6] = [
        (&["10.0.0.1/24", "10.0.0.2/24"], &["10.0.1.1/24"], None),
        (&["10.0.0.1/24", "10.0.0.1/24"], &[], Some(reason::ADDRESS_IN_USE)),
        (&["10.0.0.1/24"], &["10.0.0.1/24"], Some(reason::ADDRESS_IN_USE)),
        (&["10.0.0.1/24"], &["10.0.0.2/24"], Some(reason::SUBNET_OVERLAP)),
        (&["10.0.0.1/16"], &["10.0.7.1/24"], Some(reason::SUBNET_OVERLAP)),
        (&["2001:db8::1/64"], &["2001:db8::2/48"], Some(reason::SUBNET_OVERLAP)),
    ];
    for (a, b, wanted) in table {
        let result = check(&[with("a", 1, a), with("b", 2, b)]);
        assert_eq!(result.err().map(|e| e.reason()), wanted, "{a:?} {b:?}");
    }
}

#[test]
fn an_mtu_is_in_range_and_large_enough_for_ipv6() {
    let mtu = |mtu, address: &str| v1::InterfaceSpec { mtu, addresses: vec![address.into()], ..vlan("v", "eth2", 5) };
    for (value, address, ok) in [
        (0, "10.0.0.1/24", true),
        (575, "10.0.0.1/24", false),
        (576, "10.0.0.1/24", true),
        (65535, "10.0.0.1/24", true),
        (65536, "10.0.0.1/24", false),
        (1279, "2001:db8::1/64", false),
        (1280, "2001:db8::1/64", true),
    ] {
        let result = check(&[mtu(value, address)]);
        assert_eq!(result.is_ok(), ok, "{value}");
        if !ok {
            assert_eq!(told(result), [("network.interfaces[0].mtu".into(), reason::INVALID_MTU)]);
        }
    }
    // Inherited counts as well.
    let inner = v1::InterfaceSpec { addresses: vec!["2001:db8::1/64".into()], ..vlan("inner", "v", 6) };
    assert!(first(check(&[mtu(1000, "10.0.0.1/24"), inner])).contains("what it stands on has 1000"));
}

#[test]
fn ports_and_parents_make_no_tangle() {
    let addressed = v1::InterfaceSpec { addresses: vec!["10.0.0.1/24".into()], ..vlan("v", "eth1", 5) };
    let table: [(&[v1::InterfaceSpec], &str); 10] = [
        (&[bridge("a", &["eth1"], None), bridge("b", &["eth1"], None)], "'eth1' is a port of 'a' already"),
        (&[bridge("a", &["eth2", "enp7s0"], None)], "'eth2' is a port of 'a' already"),
        (&[bridge("a", &["vmbr0"], None)], "can be no port"),
        (&[bridge("a", &["lo"], None)], "can be no port"),
        (&[bridge("a", &[], None), bridge("b", &["a"], None)], "can be no port"),
        (&[vlan("v", "lo", 5)], "loopback"),
        (&[bridge("a", &["eth1"], None), vlan("v", "eth1", 5)], "takes its frames away; put it on 'a'"),
        (&[bridge("a", &["v"], None), addressed], "which a port cannot have"),
        (&[vlan("v", "v", 5)], "would stand on itself"),
        (&[vlan("v", "w", 5), vlan("w", "x", 5), vlan("x", "v", 5)], "would stand on itself"),
    ];
    for (interfaces, why) in table {
        let text = first(check(interfaces));
        assert!(text.contains(why), "{text}: {why}");
    }
    assert!(first(check(&[bridge("a", &["v"], None), vlan("v", "a", 5)])).contains("would stand on itself"));
    assert!(first(check(&[v1::InterfaceSpec { name: "x".into(), ..Default::default() }])).contains("set vlan or bridge"));
    assert!(first(check(&[vlan("v", "", 5)])).contains("name a link of this host"));
}

#[test]
fn a_parent_or_port_that_is_nowhere_is_not_found() {
    for interface in [vlan("v", "eth9", 5), bridge("b", &["eth1", "eth9"], None)] {
        assert_eq!(check(&[interface]), Err(Error::InterfaceNotFound { interface: "eth9".into() }));
    }
    // Other mistakes come first: they have a field.
    assert_eq!(told(check(&[vlan("v", "eth9", 0)])).len(), 1);
}

#[test]
fn a_link_with_an_odd_name_is_not_written_into_a_file() {
    for odd in ["a#b", "a$b", "a%b", "a\\b", "ü"] {
        let mut kernel = host();
        kernel.links[1].name = odd.into();
        let result = definition(&spec("n", &[vlan("v", odd, 5)]), "team-a", &kernel);
        assert!(first(result).contains("rename that link"), "{odd}");
    }
}

#[test]
fn there_are_bounds() {
    let many = |n: usize| (0..n).map(|i| vlan(&format!("v{i}"), "eth1", u32::try_from(i + 1).unwrap())).collect::<Vec<_>>();
    assert!(check(&many(64)).is_ok());
    for interfaces in [many(0), many(65), many(10_000)] {
        assert_eq!(told(check(&interfaces))[0].0, "network.interfaces");
    }
    let addresses: Vec<String> = (1..=17).map(|i| format!("10.0.{i}.1/24")).collect();
    assert_eq!(told(check(&[v1::InterfaceSpec { addresses, ..vlan("v", "eth1", 5) }]))[0].0, "network.interfaces[0].addresses");
    let ports: Vec<String> = (0..17).map(|i| format!("p{i}")).collect();
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    assert_eq!(told(check(&[bridge("b", &ports, None)]))[0].0, "network.interfaces[0].bridge.ports");
    for (comment, ok) in
        [("ü".repeat(64), true), ("x".repeat(65), false), ("a\nb".into(), false), ("it's".into(), false), ("\u{202e}".into(), false)]
    {
        assert_eq!(check(&[v1::InterfaceSpec { comment, ..vlan("v", "eth1", 5) }]).is_ok(), ok);
    }
}

proptest! {
    /// Whatever comes in, what is accepted can be written down and read again, and is in order.
    #[test]
    fn what_is_accepted_can_be_kept(
        names in proptest::collection::vec("[a-z.%\n-]{0,6}", 1..4), parent in "[a-z0-9]{0,5}|eth1", id in 0..5000u32,
        vids in proptest::collection::vec("[0-9-]{0,5}", 0..3), comment in ".{0,70}", address in "[0-9./:a]{0,14}|10.0.0.1/24",
    ) {
        let interfaces: Vec<_> = names.iter().enumerate().map(|(i, name)| {
            let vids: Vec<&str> = vids.iter().map(String::as_str).collect();
            let interface = if i == 1 { bridge(name, &[&parent], Some(&vids)) } else { vlan(name, &parent, id) };
            v1::InterfaceSpec { comment: comment.clone(), addresses: vec![address.clone()], ..interface }
        }).collect();
        if let Ok(made) = check(&interfaces) {
            let file = super::super::own_file::OwnFile { networks: vec![made] };
            prop_assert_eq!(super::super::own_file::OwnFile::parse(file.render().as_deref()), Ok(file));
        }
    }
}
