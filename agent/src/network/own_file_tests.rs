#![allow(clippy::unwrap_used)]
use std::path::PathBuf;

use proptest::prelude::*;

use super::{super::declared, *};
use crate::host::net::TextFile;

fn interface(name: &str, kind: Kind) -> Interface {
    Interface { name: name.into(), kind, mtu: None, addresses: Vec::new(), comment: String::new() }
}

fn sample() -> OwnFile {
    let vlan = |parent: &str, id, service| Kind::Vlan { parent: parent.into(), id, service };
    let bridge = Interface {
        mtu: Some(9000),
        comment: "guests' trunk, 50% $HOME".into(),
        ..interface("vmbr1", Kind::Bridge { ports: vec!["svc".into(), "eth3".into()], vlan_aware: true, vids: vec![(2, 2), (100, 299)] })
    };
    let svc = Interface {
        addresses: vec!["2001:db8::1/64".parse().unwrap(), "10.0.0.1/24".parse().unwrap()],
        ..interface("svc", vlan("bond0", 300, true))
    };
    let network = |name: &str, interfaces| Definition { name: name.into(), tenant: "team-a".into(), interfaces };
    let empty = interface("vmbr2", Kind::Bridge { ports: Vec::new(), vlan_aware: false, vids: Vec::new() });
    OwnFile { networks: vec![network("a", vec![bridge, svc]), network("b", vec![empty, interface("eth1.5", vlan("eth1", 5, false))])] }
}

/// Written out, so that a change of what a host gets shows as such.
#[test]
fn the_file_is_what_ifupdown2_takes() {
    let text = sample().render().unwrap();
    let body = text.split_once("\n\n").unwrap().1;
    assert_eq!(
        body,
        r#"# pvelet-network: {"name":"a","tenant":"team-a","interfaces":[{"name":"vmbr1","kind":{"bridge":{"ports":["svc","eth3"],"vlan_aware":true,"vids":[[2,2],[100,299]]}},"mtu":9000,"comment":"guests' trunk, 50\u0025 \u0024HOME"},{"name":"svc","kind":{"vlan":{"parent":"bond0","id":300,"service":true}},"addresses":["2001:db8::1/64","10.0.0.1/24"]}]}
auto svc
iface svc inet static
	address 10.0.0.1/24
	address 2001:db8::1/64
	vlan-raw-device bond0
	vlan-id 300
	vlan-protocol 802.1ad
#  guests_ trunk, 50_ _HOME
auto vmbr1
iface vmbr1 inet manual
	bridge-ports svc eth3
	bridge-ports-condone-regex ^(tap|veth|fwpr|fwln|pvprobe)[0-9]
	bridge-stp off
	bridge-fd 0
	bridge-vlan-aware yes
	bridge-vids 2 100-299
	mtu 9000
	ipv6-addrgen off

# pvelet-network: {"name":"b","tenant":"team-a","interfaces":[{"name":"vmbr2","kind":{"bridge":{"ports":[]}}},{"name":"eth1.5","kind":{"vlan":{"parent":"eth1","id":5}}}]}
auto vmbr2
iface vmbr2 inet manual
	bridge-ports none
	bridge-ports-condone-regex ^(tap|veth|fwpr|fwln|pvprobe)[0-9]
	bridge-stp off
	bridge-fd 0
	ipv6-addrgen off
auto eth1.5
iface eth1.5 inet manual
	vlan-raw-device eth1
	vlan-id 5
	ipv6-addrgen off
"#
    );
    assert!(text.starts_with("# The interfaces that pvelet declares on this host."));
}

#[test]
fn without_networks_there_is_no_file() {
    assert_eq!(OwnFile::default().render(), None);
    assert_eq!(OwnFile::parse(None), Ok(OwnFile::default()));
    assert_eq!(sample().with("a", None).with("b", None).render(), None);
}

#[test]
fn an_edited_or_newer_file_is_refused() {
    let text = sample().render().unwrap();
    let table = [
        (String::new(), "header is gone"),
        (text.replace("vlan-id 300", "vlan-id 301"), "digest does not fit"),
        (format!("{text}auto eth9\niface eth9 inet dhcp\n"), "digest does not fit"),
        (text.replace("# pvelet-sha256: ", "# "), "header is gone"),
        (text.replace("# pvelet-format: 1", "# pvelet-format: 2"), "update the agent"),
        (text.replace("# pvelet-format: 1", "# pvelet-format: x"), "header is broken"),
        (text.replace("# pvelet-format: 1\n", ""), "header is broken"),
        (text[..text.len() / 2].to_owned(), "digest does not fit"),
        (text.replace('\n', "\r\n"), "header is broken"),
    ];
    for (text, why) in table {
        let error = OwnFile::parse(Some(&text)).unwrap_err();
        assert!(error.contains(why), "{error}: {why}");
    }
}

#[test]
fn a_comment_never_passes_for_a_network() {
    let mut file = sample();
    file.networks[0].interfaces[0].comment = r#"pvelet-network: {"name":"x"}"#.into();
    assert_eq!(OwnFile::parse(file.render().as_deref()), Ok(file));
}

fn files() -> impl Strategy<Value = OwnFile> {
    let name = "[a-z][a-z0-9_-]{0,8}";
    let kind = prop_oneof![
        (name, 1..4095u16, any::<bool>()).prop_map(|(parent, id, service)| Kind::Vlan { parent, id, service }),
        (proptest::collection::vec(name, 0..4), any::<bool>(), proptest::collection::vec((1..4095u16, 1..4095u16), 0..4))
            .prop_map(|(ports, vlan_aware, vids)| Kind::Bridge { ports, vlan_aware, vids }),
    ];
    let address = (any::<[u8; 16]>(), any::<bool>(), 0..=32u8).prop_map(|(bytes, v6, length)| {
        let v4: [u8; 4] = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if v6 { IpNet::new(bytes.into(), length * 4).unwrap() } else { IpNet::new(v4.into(), length).unwrap() }
    });
    let interface = (name, kind, proptest::option::of(576..65536u32), proptest::collection::vec(address, 0..4), ".{0,64}")
        .prop_map(|(name, kind, mtu, addresses, comment)| Interface { name, kind, mtu, addresses, comment });
    let network = proptest::collection::vec(interface, 1..5);
    proptest::collection::btree_map("[a-z]{1,8}", network, 0..4).prop_map(|networks| OwnFile {
        networks: networks.into_iter().map(|(name, interfaces)| Definition { name, tenant: "t".into(), interfaces }).collect(),
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(file in files()) {
        prop_assert_eq!(OwnFile::parse(file.render().as_deref()), Ok(file));
    }

    /// Whatever a caller put into a comment: ASCII, no template, no continued line, and ifupdown2 finds each interface with its keys.
    #[test]
    fn every_stanza_is_found_and_nothing_else(file in files()) {
        let Some(text) = file.render() else { return Ok(()) };
        prop_assert!(text.chars().all(|c| matches!(c, ' '..='~' | '\n' | '\t') && !matches!(c, '%' | '$')));
        let read = declared::parse(&[TextFile { path: PathBuf::from("own"), text: text.clone(), modified: None }]);
        prop_assert_eq!(&read.problems, &Vec::<String>::new());
        let mut found: Vec<&str> = read.stanzas.iter().map(|s| s.name.as_str()).collect();
        let mut wanted: Vec<&str> = file.interfaces().map(|(_, i)| i.name.as_str()).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        prop_assert_eq!(found, wanted);
        for stanza in &read.stanzas {
            prop_assert!(stanza.auto);
            let line = text.lines().nth(stanza.line - 1).unwrap();
            let start = format!("iface {} ", stanza.name);
            prop_assert!(line.starts_with(&start));
            prop_assert!(stanza.option("bridge-ports").is_some() != stanza.option("vlan-id").is_some());
        }
    }

    #[test]
    fn one_changed_character_is_noticed(at in any::<prop::sample::Index>()) {
        let text = sample().render().unwrap();
        let body = text.find("\n\n").unwrap() + 1;
        let at = body + at.index(text.len() - body);
        let mut bytes = text.into_bytes();
        bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
        prop_assert!(OwnFile::parse(Some(&String::from_utf8(bytes).unwrap())).is_err());
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>(), middle in ".{0,40}") {
        let _ = OwnFile::parse(Some(&text));
        let _ = OwnFile::parse(Some(&format!("# pvelet-format: 1\n# pvelet-sha256: {}\n{middle}", digest(&middle))));
    }
}
