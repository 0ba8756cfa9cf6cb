//! With this machine's kernel, each test in a network namespace of its own.
#![allow(clippy::unwrap_used)]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkMessageBuilder, LinkVeth, RouteMessageBuilder, RouteNextHopBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::link::{BridgeStpState, Prop},
};

use super::*;

/// Runs a test in a network namespace of its own: that of a thread, and of those it starts.
pub(in super::super) fn in_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; tests run as root");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn make(request: RouteNetlinkMessage) {
    open().unwrap().change(request, NLM_F_CREATE | NLM_F_EXCL).unwrap();
}

fn make_link<T>(link: LinkMessageBuilder<T>) {
    make(RouteNetlinkMessage::NewLink(link.build()));
}

fn set(link: LinkMessageBuilder<LinkUnspec>) {
    open().unwrap().change(RouteNetlinkMessage::NewLink(link.build()), 0).unwrap();
}

fn index(name: &str) -> u32 {
    if_nametoindex(name).unwrap()
}

fn give_v4(link: &str, address: [u8; 4], prefix: u8) {
    let address = AddressMessageBuilder::<Ipv4Addr>::new().index(index(link)).address(address.into(), prefix);
    make(RouteNetlinkMessage::NewAddress(address.build()));
}

fn give_v6(link: &str, address: &str, prefix: u8) {
    let address = AddressMessageBuilder::<Ipv6Addr>::new().index(index(link)).address(address.parse().unwrap(), prefix);
    make(RouteNetlinkMessage::NewAddress(address.build()));
}

fn up(link: &str) {
    set(LinkUnspec::new_with_name(link).up());
}

#[test]
fn links_are_read_with_masters_altnames_and_addresses() {
    in_namespace(async || {
        make_link(LinkMessageBuilder::<LinkBridge>::new("vmbr0").stp_state(BridgeStpState::KernelStp));
        make_link(LinkVeth::new("eno1", "far").mtu(1400).address(vec![2, 0, 0, 0xab, 0, 1]));
        set(LinkUnspec::new_with_name("eno1").controller(index("vmbr0")));
        let mut property = LinkUnspec::new_with_name("eno1").build();
        property.attributes =
            vec![LinkAttribute::PropList(["enp1s0f0np0", "a-name-that-is-longer-than-fifteen"].map(|n| Prop::AltIfName(n.into())).into())];
        property.header.index = index("eno1");
        make(RouteNetlinkMessage::NewLinkProp(property));
        give_v6("vmbr0", "2001:db8::2", 64);
        give_v4("vmbr0", [192, 0, 2, 2], 24);
        give_v4("vmbr0", [192, 0, 2, 3], 24);
        up("eno1");
        up("far");

        let kernel = read().await.unwrap();
        assert_eq!(kernel.links.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["eno1", "far", "lo", "vmbr0"]);
        let (eno1, far, vmbr0) = (kernel.link("eno1").unwrap(), kernel.link("far").unwrap(), kernel.link("vmbr0").unwrap());
        assert_eq!(kernel.link("enp1s0f0np0"), Some(eno1));
        assert_eq!(eno1.altnames, ["enp1s0f0np0", "a-name-that-is-longer-than-fifteen"]);
        assert_eq!((eno1.kind.as_str(), eno1.mtu, eno1.mac.as_str()), ("veth", 1400, "02:00:00:ab:00:01"));
        assert_eq!((eno1.master.as_deref(), far.master.as_deref()), (Some("vmbr0"), None));
        assert_eq!((&eno1.parent, &far.parent), (&None, &None), "neither end of a veth stands on the other");
        assert_eq!((eno1.index, eno1.up, eno1.carrier), (index("eno1"), true, true));
        assert_eq!((vmbr0.kind.as_str(), vmbr0.up, vmbr0.carrier, vmbr0.stp, vmbr0.vlan_aware), ("bridge", false, false, true, false));
        let addresses: Vec<String> = vmbr0.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.2/24", "192.0.2.3/24", "2001:db8::2/64"]);
        assert_eq!(kernel.link("lo").unwrap().kind, "loopback");
    });
}

#[test]
fn link_local_addresses_are_told_where_somebody_gave_them() {
    in_namespace(async || {
        make_link(LinkVeth::new("eno1", "far"));
        ["lo", "eno1", "far"].into_iter().for_each(up);
        give_v6("eno1", "fe80::1", 64);
        let kernel = read().await.unwrap();
        assert_eq!(kernel.link("eno1").unwrap().addresses, ["fe80::1/64".parse().unwrap()]);
        assert!(kernel.link("far").unwrap().addresses.is_empty());
        let loopback: Vec<String> = kernel.link("lo").unwrap().addresses.iter().map(ToString::to_string).collect();
        assert_eq!(loopback, ["127.0.0.1/8", "::1/128"]);
    });
}

#[test]
fn routes_of_the_main_table_are_read_one_for_each_next_hop() {
    in_namespace(async || {
        assert!(read().await.unwrap().routes.is_empty());
        for (link, far) in [("eno1", "far1"), ("eno2", "far2")] {
            make_link(LinkVeth::new(link, far));
            ["lo", link, far].into_iter().for_each(up);
        }
        give_v4("eno1", [192, 0, 2, 2], 24);
        give_v4("eno2", [198, 51, 100, 2], 24);
        give_v6("eno1", "2001:db8:1::2", 64);
        let (one, two): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "198.51.100.1".parse().unwrap());
        let hop = |link, via| RouteNextHopBuilder::new_ipv4().interface(index(link)).via(via).unwrap().build();
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new;
        make(RouteNetlinkMessage::NewRoute(v4().multipath(vec![hop("eno1", one), hop("eno2", two)]).priority(7).build()));
        let other_table = v4().destination_prefix([203, 0, 113, 0].into(), 24).gateway([192, 0, 2, 9].into()).table_id(100);
        make(RouteNetlinkMessage::NewRoute(other_table.build()));
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new();
        make(RouteNetlinkMessage::NewRoute(v6.gateway("2001:db8:1::1".parse().unwrap()).output_interface(index("eno1")).build()));

        let kernel = read().await.unwrap();
        let default =
            |gateway, link: &str, metric, v6| KernelRoute { destination: None, gateway: Some(gateway), link: link.into(), metric, v6 };
        let defaults =
            [default(one, "eno1", 7, false), default(two, "eno2", 7, false), default("2001:db8:1::1".parse().unwrap(), "eno1", 1024, true)];
        assert_eq!(kernel.default_routes().cloned().collect::<Vec<_>>(), defaults);
        let on_link =
            |net: &str, metric, v6| KernelRoute { destination: Some(net.parse().unwrap()), gateway: None, link: "eno1".into(), metric, v6 };
        assert!(kernel.routes.contains(&on_link("192.0.2.0/24", 0, false)), "{kernel:?}");
        assert!(kernel.routes.contains(&on_link("2001:db8:1::/64", 256, true)), "{kernel:?}");
        assert!(kernel.routes.is_sorted_by_key(|r| r.v6));
        let seen: Vec<_> = kernel.routes.iter().filter_map(|r| r.destination).map(|d| d.to_string()).collect();
        assert!(!seen.iter().any(|d| d.starts_with("203.") || d.starts_with("127.")), "{seen:?}");
    });
}

#[test]
fn five_hundred_links_are_read_while_others_come_and_go() {
    in_namespace(async || {
        for n in 0..500 {
            make_link(LinkBridge::new(&format!("vmbr{n}")));
        }
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    make_link(LinkBridge::new("guest"));
                    delete_with(&mut open().unwrap(), "guest").unwrap();
                }
            });
            let mut socket = open().unwrap();
            let complete = (0..20).all(|_| {
                let kernel = read_with(&mut socket).unwrap();
                kernel.links.iter().filter(|l| l.name.starts_with("vmbr")).count() == 500
            });
            over.store(true, Ordering::Relaxed);
            assert!(complete);
        });
    });
}

#[test]
fn a_link_is_deleted_once_and_hardware_never() {
    in_namespace(async || {
        make_link(LinkBridge::new("vmbr0"));
        delete_link("vmbr0").await.unwrap();
        assert!(read().await.unwrap().link("vmbr0").is_none());
        delete_link("vmbr0").await.unwrap();
        let error = delete_link("lo").await.unwrap_err();
        assert!(error.to_string().starts_with("removing the link 'lo': "), "{error}");
    });
}
