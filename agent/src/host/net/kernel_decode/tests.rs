#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rtnetlink::{
    LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVlan,
    packet_core::Emitable,
    packet_route::{
        AddressFamily,
        link::{AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags as Flags, LinkAttribute, LinkMessage, VlanProtocol},
    },
};

use super::*;

fn bytes(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn table(entries: Vec<AfSpecBridge>) -> LinkMessage {
    let mut message = LinkUnspec::new_with_index(7).interface_family(AddressFamily::Bridge).build();
    message.attributes.push(LinkAttribute::AfSpecBridge(entries));
    message
}

fn entry(vid: u16, flags: Flags) -> AfSpecBridge {
    AfSpecBridge::VlanInfo(BridgeVlanInfo { vid, flags })
}

fn range(first: u16, last: u16, pvid: bool, untagged: bool) -> VlanRange {
    VlanRange { first, last, pvid, untagged }
}

#[test]
fn a_vlan_table_has_ranges_that_are_ascending_and_merged() {
    let none = Flags::empty();
    for (entries, wanted) in [
        (vec![], vec![]),
        (vec![entry(1, Flags::Pvid | Flags::Untagged)], vec![range(1, 1, true, true)]),
        (vec![entry(2, Flags::RangeBegin), entry(4094, Flags::RangeEnd)], vec![range(2, 4094, false, false)]),
        // A port's own VLAN splits a range; untagged ones are none of it.
        (
            vec![
                entry(1, none),
                entry(2, Flags::RangeBegin),
                entry(9, Flags::RangeEnd),
                entry(10, Flags::Pvid | Flags::Untagged),
                entry(11, none),
                entry(12, Flags::Untagged | Flags::RangeBegin),
                entry(13, Flags::Untagged | Flags::RangeEnd),
                entry(14, Flags::Untagged),
                entry(16, Flags::Untagged),
            ],
            vec![
                range(1, 9, false, false),
                range(10, 10, true, true),
                range(11, 11, false, false),
                range(12, 14, false, true),
                range(16, 16, false, true),
            ],
        ),
    ] {
        assert_eq!(vlans(&bytes(&table(entries.clone()))).unwrap(), Some((7, wanted)), "{entries:?}");
    }
}

#[test]
fn the_switch_of_a_network_card_is_no_bridge() {
    let entries = vec![AfSpecBridge::Flags(BridgeFlag::LowerDev), entry(1, Flags::empty())];
    assert_eq!(vlans(&bytes(&table(entries))).unwrap(), None);
}

proptest! {
    #[test]
    fn merging_loses_nothing_and_leaves_nothing_to_merge(kinds in proptest::collection::vec(0_u8..4, 1..300)) {
        let single: Vec<VlanRange> =
            (1_u16..).zip(&kinds).filter(|(_, kind)| **kind > 0).map(|(id, kind)| range(id, id, false, *kind > 1)).collect();
        let merged = merge(single.clone());
        let apart: Vec<VlanRange> =
            merged.iter().flat_map(|r| (r.first..=r.last).map(|id| range(id, id, r.pvid, r.untagged))).collect();
        prop_assert_eq!(apart, single);
        prop_assert!(merged.windows(2).all(|w| w[0].last + 1 < w[1].first || w[0].untagged != w[1].untagged));
    }
}

fn decoded<T>(builder: LinkMessageBuilder<T>) -> Link {
    link(&bytes(&builder.build())).unwrap()
}

#[test]
fn a_vlan_has_its_tag_and_its_parent_unless_that_is_in_another_namespace() {
    let inner = decoded(LinkVlan::new("bond0.70", 3, 70));
    assert_eq!((inner.link.name.as_str(), inner.link.kind.as_str(), inner.parent), ("bond0.70", "vlan", Some(3)));
    assert_eq!(inner.link.vlan, Some(VlanTag { id: 70, service: false }));
    let outer = decoded(LinkVlan::new("svc", 3, 4094).protocol(VlanProtocol::Ieee8021Ad));
    assert_eq!(outer.link.vlan, Some(VlanTag { id: 4094, service: true }));
    let far = decoded(LinkVlan::new("moved", 3, 5).append_extra_attribute(LinkAttribute::LinkNetNsId(0)));
    assert_eq!((far.parent, far.link.vlan.unwrap().id), (None, 5));
}

#[test]
fn a_bridge_says_whether_it_filters_vlans() {
    let aware = decoded(LinkBridge::new("vmbr1").vlan_filtering(true)).link;
    assert_eq!((aware.kind.as_str(), aware.vlan_aware, aware.stp), ("bridge", true, false));
    assert!(!decoded(LinkBridge::new("vmbr1").vlan_filtering(false)).link.vlan_aware);
}

#[test]
fn a_link_of_a_kind_nobody_knows_is_read_as_far_as_it_is_known() {
    let info = [[8, 0, 1, 0], *b"odd\0", [5, 0, 2, 0], [9, 0, 0, 0]].concat();
    let length = u8::try_from(4 + info.len()).unwrap();
    let mut message = bytes(&LinkUnspec::new_with_name("odd0").mtu(900).build());
    message.extend([length, 0, 18, 0]);
    message.extend(info);
    let found = link(&message).unwrap().link;
    assert_eq!((found.name.as_str(), found.kind.as_str(), found.mtu), ("odd0", "odd", 900));
}

#[test]
fn link_local_addresses_are_left_out_where_the_kernel_made_them_or_does_not_tell() {
    let all = |giver, loopback| {
        let address = |index, net: &str, giver| Address { index, net: net.parse().unwrap(), giver };
        let found = vec![
            address(1, "::1/128", loopback),
            address(2, "2001:db8::1/64", None),
            address(2, "fe80::1/64", giver),
            address(2, "192.0.2.1/24", None),
        ];
        let two = addresses(found).remove(&2).unwrap();
        two.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(all(Some(c::IFAPROT_KERNEL_LL), Some(1)), ["192.0.2.1/24", "2001:db8::1/64"]);
    assert_eq!(all(None, Some(1)), ["192.0.2.1/24", "2001:db8::1/64", "fe80::1/64"]);
    assert_eq!(all(None, None), ["192.0.2.1/24", "2001:db8::1/64"]);
}

proptest! {
    #[test]
    fn no_message_makes_it_panic(message in proptest::collection::vec(any::<u8>(), 0..120)) {
        _ = link(&message);
        _ = vlans(&message);
        _ = ip_address(&message);
        _ = routes(&message, false);
        _ = next_hops(&message);
    }
}
