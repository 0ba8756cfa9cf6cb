//! What the agent reads of a kernel's network, against what the system's own tools say; and its ports for probes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use pvelet_agent::host::net::{Kernel, KernelLink, VlanTag};
use pvelet_tests::{Guest, GuestOptions, Segment};
use serde_json::Value;

/// A bond with a VLAN and QinQ on it, a VLAN-aware bridge with ranges, a classic one on a VLAN, a VLAN whose parent is in another namespace.
const SETUP: &str = "
set -e
sysctl -q net.ipv6.conf.default.accept_ra=0
ip link add bond0 type bond mode active-backup miimon 100
for nic in eth1 eth2; do ip link set $nic down; ip link set $nic master bond0; done
ip link set bond0 mtu 9000 up
ip link property add dev eth1 altname enp9s0np0 altname a-name-that-is-longer-than-fifteen
ip link add link bond0 name bond0.70 mtu 1496 type vlan id 70
ip link add link bond0 name svc type vlan proto 802.1ad id 100
ip link add link svc name svc.7 type vlan id 7
ip link add vmbr70 type bridge stp_state 1 forward_delay 200
ip link set bond0.70 master vmbr70
ip link add vmbr1 type bridge vlan_filtering 1
ip link set vmbr1 mtu 9000
ip tuntap add tap100i0 mode tap
ip link set tap100i0 mtu 9000 address 02:00:00:00:00:64 master vmbr1
bridge vlan add dev tap100i0 vid 2-99
bridge vlan add dev tap100i0 vid 200 pvid untagged
bridge vlan add dev tap100i0 vid 300-301 untagged
bridge vlan add dev tap100i0 vid 302 untagged
bridge vlan add dev vmbr1 vid 30-40 self
ip netns add other
ip -n other link add ground type bridge
ip -n other link add link ground name moved type vlan id 9
ip -n other link set moved netns 1
ip link add veth100i0 type veth peer veth100i0p
sysctl -q net.ipv6.conf.vmbr1.disable_ipv6=1
for link in bond0.70 svc svc.7 vmbr70 vmbr1 tap100i0; do ip link set $link up; done
ip address add 203.0.113.5/24 dev vmbr70
ip address add 2001:db8:70::5/64 dev vmbr70 nodad
ip address add fe80::70/64 dev vmbr70 nodad
ip route add 198.51.100.0/24 metric 50 nexthop via 203.0.113.1 nexthop via 203.0.113.2
ip route add default via 203.0.113.1 dev vmbr70 metric 900
ip -6 route add default via 2001:db8:70::1 dev vmbr70 metric 2000
ip route add 192.0.2.0/24 via 203.0.113.9 table 100
ip route add blackhole 100.64.0.0/10
for link in eth1 eth2 bond0 bond0.70 svc svc.7 vmbr70; do
    timeout 120 sh -c 'until [ $(cat /sys/class/net/'$link'/carrier) = 1 ]; do :; done'
done
";

fn host() -> Guest {
    let nics = vec![Segment::new().unwrap(), Segment::new().unwrap()];
    let guest = Guest::boot(GuestOptions { name: "pve1".into(), nics, ..GuestOptions::default() }).unwrap();
    guest.copy_in_program("net-kernel").unwrap();
    guest.sh(SETUP);
    guest
}

fn json(guest: &Guest, command: &str) -> Vec<Value> {
    match serde_json::from_str(&guest.sh(command)).unwrap() {
        Value::Array(all) => all,
        one => vec![one],
    }
}

fn read(guest: &Guest) -> (Kernel, BTreeMap<String, Vec<String>>) {
    let mut all = json(guest, "net-kernel read").remove(0);
    (serde_json::from_value(all["kernel"].take()).unwrap(), serde_json::from_value(all["offloads"].take()).unwrap())
}

/// What the agent reads, and what the tools say at that time: links that have just come up get addresses and routes a moment later.
fn beside<T>(guest: &Guest, tools: impl Fn() -> T) -> (Kernel, BTreeMap<String, Vec<String>>, T) {
    let end = Instant::now() + Duration::from_secs(300);
    loop {
        let (before, said, (kernel, offloads)) = (read(guest), tools(), read(guest));
        if before == (kernel.clone(), offloads.clone()) || Instant::now() > end {
            return (kernel, offloads, said);
        }
    }
}

fn texts(values: &Value) -> Vec<String> {
    values.as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// What `ip -j -d link` says of a link, as the agent puts it.
fn as_ip_says(link: &Value) -> KernelLink {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let (info, flags) = (&link["linkinfo"]["info_data"], texts(&link["flags"]));
    let kind = text(&link["linkinfo"]["info_kind"]).or(text(&link["link_type"])).unwrap();
    KernelLink {
        name: text(&link["ifname"]).unwrap(),
        index: link["ifindex"].as_u64().unwrap().try_into().unwrap(),
        altnames: texts(&link["altnames"]),
        up: flags.contains(&"UP".into()),
        carrier: flags.contains(&"LOWER_UP".into()),
        mtu: link["mtu"].as_u64().unwrap().try_into().unwrap(),
        mac: text(&link["address"]).unwrap(),
        master: text(&link["master"]),
        // Of a veth it is the other end.
        parent: text(&link["link"]).filter(|_| kind != "veth"),
        vlan: info["id"]
            .as_u64()
            .filter(|_| kind == "vlan")
            .map(|id| VlanTag { id: id.try_into().unwrap(), service: info["protocol"] == "802.1ad" }),
        vlan_aware: info["vlan_filtering"] == 1,
        stp: info["stp_state"] == 1,
        kind,
        ..KernelLink::default()
    }
}

/// Driver, and whether IPv6 is off, by link: no netlink message tells.
fn as_the_files_say(guest: &Guest) -> BTreeMap<String, (String, Option<bool>)> {
    let script = "cd /sys/class/net; for l in */; do l=${l%/}; d=$(readlink $l/device/driver || :); \
                  echo $l ${d##*/}. $(cat /proc/sys/net/ipv6/conf/$l/disable_ipv6); done";
    let line = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let (name, driver, off) = (words.next()?, words.next()?, words.next()?);
        Some((name, (driver.trim_end_matches('.').to_owned(), Some(off == "1"))))
    };
    guest.sh(script).lines().map(|l| line(l).unwrap()).collect()
}

/// One VLAN after the other: link, VLAN, PVID, untagged.
type Vlans = BTreeSet<(String, u16, bool, bool)>;

fn vlans_as_bridge_says(guest: &Guest) -> Vlans {
    let mut all = Vlans::new();
    for port in json(guest, "bridge -j vlan show") {
        for vlan in port["vlans"].as_array().unwrap() {
            let (first, flags) = (vlan["vlan"].as_u64().unwrap(), texts(&vlan["flags"]));
            let flag = |name: &str| flags.iter().any(|f| f == name);
            for id in first..=vlan["vlanEnd"].as_u64().unwrap_or(first) {
                let name = port["ifname"].as_str().unwrap().to_owned();
                all.insert((name, id.try_into().unwrap(), flag("PVID"), flag("Egress Untagged")));
            }
        }
    }
    all
}

fn vlans(kernel: &Kernel) -> Vlans {
    let of = |l: &KernelLink| {
        let name = l.name.clone();
        l.vlans
            .clone()
            .into_iter()
            .flat_map(move |r| (r.first..=r.last).map(|id| (id, r)).collect::<Vec<_>>())
            .map(move |(id, r)| (name.clone(), id, r.pvid, r.untagged))
    };
    kernel.links.iter().flat_map(of).collect()
}

/// Destination, gateway, link, metric; one for each next hop.
type Routes = BTreeSet<(String, Option<String>, String, u64)>;

fn routes_as_ip_says(guest: &Guest) -> Routes {
    let mut all = Routes::new();
    for route in [json(guest, "ip -j route show table main"), json(guest, "ip -6 -j route show table main")].concat() {
        if route["type"] == "blackhole" || route["type"] == "unreachable" {
            continue;
        }
        let own = [route.clone()];
        for hop in route["nexthops"].as_array().map_or(&own[..], Vec::as_slice) {
            let text = |key: &str| hop[key].as_str().map(str::to_owned);
            all.insert((
                route["dst"].as_str().unwrap().into(),
                text("gateway"),
                text("dev").unwrap(),
                route["metric"].as_u64().unwrap_or(0),
            ));
        }
    }
    all
}

/// What `ethtool -k` says is on; it has names of its own for two.
fn offloads_as_ethtool_says(guest: &Guest, link: &str) -> Vec<String> {
    let said = guest.sh(&format!("ethtool -k {link}"));
    let on = said.lines().filter_map(|l| l.trim().split_once(": ")).filter(|(_, state)| state.starts_with("on")).map(|(name, _)| name);
    let mut names: Vec<String> = on
        .map(|name| match name {
            "tx-vlan-offload" => "tx-vlan-hw-insert".into(),
            "rx-vlan-offload" => "rx-vlan-hw-parse".into(),
            name => name.to_owned(),
        })
        .filter(|name| name.contains("vlan"))
        .collect();
    names.sort();
    names
}

#[test]
fn the_agent_sees_what_the_systems_tools_see() {
    let guest = host();
    let tools = || (as_the_files_say(&guest), json(&guest, "ip -j -d link show"), vlans_as_bridge_says(&guest), routes_as_ip_says(&guest));
    let (kernel, offloads, (mut files, links_as_ip_says, bridge_vlans, ip_routes)) = beside(&guest, tools);

    let mut links: Vec<KernelLink> = links_as_ip_says
        .iter()
        .map(as_ip_says)
        .map(|link| {
            let (driver, ipv6_disabled) = files.remove(&link.name).unwrap();
            KernelLink { driver, ipv6_disabled, ..link }
        })
        .collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    let bare: Vec<KernelLink> = kernel.links.iter().map(|l| KernelLink { vlans: Vec::new(), addresses: Vec::new(), ..l.clone() }).collect();
    assert_eq!(bare, links);
    assert_eq!((kernel.link("eth1").unwrap().driver.as_str(), kernel.link("vmbr1").unwrap().ipv6_disabled), ("virtio_net", Some(true)));
    // The tools and the agent could be wrong together.
    let (service, inner, moved) = (kernel.link("svc").unwrap(), kernel.link("svc.7").unwrap(), kernel.link("moved").unwrap());
    assert_eq!((service.vlan.unwrap().id, service.vlan.unwrap().service, service.parent.as_deref()), (100, true, Some("bond0")));
    assert_eq!((inner.vlan.unwrap().id, inner.vlan.unwrap().service, inner.parent.as_deref()), (7, false, Some("svc")));
    assert_eq!((moved.vlan.unwrap().id, &moved.parent), (9, &None));
    assert_eq!(kernel.link("enp9s0np0").map(|l| (l.name.as_str(), l.master.as_deref())), Some(("eth1", Some("bond0"))));

    assert_eq!(vlans(&kernel), bridge_vlans);
    let ranges = |name: &str| kernel.link(name).unwrap().vlans.iter().map(|r| (r.first, r.last, r.pvid, r.untagged)).collect::<Vec<_>>();
    assert_eq!(ranges("tap100i0"), [(1, 1, false, true), (2, 99, false, false), (200, 200, true, true), (300, 302, false, true)]);
    assert_eq!(ranges("vmbr1"), [(1, 1, true, true), (30, 40, false, false)]);

    let addresses: Vec<String> = kernel.link("vmbr70").unwrap().addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["203.0.113.5/24", "2001:db8:70::5/64", "fe80::70/64"]);
    assert!(kernel.link("bond0").unwrap().addresses.is_empty(), "the kernel's own link-local address");
    let routes: Routes = kernel
        .routes
        .iter()
        .map(|r| {
            // `ip` leaves the prefix of single hosts out.
            let text = |d: ipnet::IpNet| if d.prefix_len() == d.max_prefix_len() { d.addr().to_string() } else { d.to_string() };
            let destination = r.destination.map_or("default".into(), text);
            (destination, r.gateway.map(|g| g.to_string()), r.link.clone(), r.metric.into())
        })
        .collect();
    assert_eq!(routes, ip_routes);
    assert_eq!(kernel.routes.iter().filter(|r| r.metric == 50).count(), 2);

    for link in kernel.links.iter().filter(|l| l.kind == "ether" || l.kind == "bond") {
        assert_eq!(offloads[&link.name], offloads_as_ethtool_says(&guest, &link.name), "{}", link.name);
    }
    assert!(!offloads["bond0"].is_empty() && !offloads.contains_key("vmbr1"), "{offloads:?}");

    guest.sh("net-kernel delete svc.7; net-kernel delete svc.7");
    assert_ne!(guest.run("net-kernel delete eth1").status, 0);
    let (after, _) = read(&guest);
    assert!(after.link("svc.7").is_none() && after.link("eth1").is_some());
}

#[test]
fn a_probe_port_is_in_its_vlan_alone_and_leaves_nothing() {
    let guest = host();
    let links = "for link in /sys/class/net/*/; do echo $link $(cat $link/address $link/mtu $link/flags); done";
    let before = guest.sh(links);
    let bridge = guest.sh("cat /sys/class/net/vmbr1/address /sys/class/net/vmbr1/mtu");

    for wrong in ["add vmbr1 4095", "add vmbr70 200", "add vmbr2 200"] {
        assert_ne!(guest.run(&format!("net-kernel {wrong}")).status, 0, "{wrong}");
    }
    assert_eq!(guest.sh(links), before);

    for (n, vlan) in [200, 200, 300].into_iter().enumerate() {
        assert_eq!(guest.sh(&format!("net-kernel add vmbr1 {vlan}")).trim(), format!("pvprobe{n}"));
        let port = format!("pvprobe{n}p");
        let (kernel, _) = read(&guest);
        let (end, port) = (kernel.link(&format!("pvprobe{n}")).unwrap(), kernel.link(&port).unwrap());
        assert_eq!((end.master.as_deref(), port.master.as_deref()), (None, Some("vmbr1")));
        assert_eq!((end.mtu, port.mtu, end.up, port.up, end.carrier), (9000, 9000, true, true, true));
        let table: Vec<_> = vlans_as_bridge_says(&guest).into_iter().filter(|(name, ..)| *name == port.name).collect();
        assert_eq!(table, [(port.name.clone(), vlan, true, true)]);
    }
    assert_eq!(guest.sh("ip -6 -o address show | grep pvprobe || true"), "");
    assert_eq!(guest.sh("cat /sys/class/net/vmbr1/address /sys/class/net/vmbr1/mtu"), bridge);

    // Frames of its own VLAN reach it, those of another do not.
    guest.sh("ip address add 192.0.2.1/24 dev pvprobe0");
    for n in [1, 2] {
        guest.sh(&format!("ip netns add probe{n}; ip link set pvprobe{n} netns probe{n}"));
        guest.sh(&format!("ip -n probe{n} address add 192.0.2.{}/24 dev pvprobe{n}; ip -n probe{n} link set pvprobe{n} up", n + 1));
    }
    guest.sh("ping -c 1 -W 60 192.0.2.2");
    assert_ne!(guest.run("ping -c 1 -W 5 192.0.2.3").status, 0);

    guest.sh("net-kernel remove pvprobe0; net-kernel remove pvprobe0; net-kernel sweep; net-kernel sweep");
    assert_eq!(guest.sh(links), before);
    assert_eq!(guest.sh("cat /sys/class/net/vmbr1/address /sys/class/net/vmbr1/mtu"), bridge);
}
