#![allow(clippy::unwrap_used)]
use super::{
    super::{
        plan::Wish,
        planner,
        testing::{PVID, bridge, host, nic, run, spec, usual, vlan, vlan_link},
        validate,
    },
    *,
};
use crate::host::net::KernelLink;

/// A host with a guest on `vmbr1`, and the change that gives that bridge other VLANs, a new one and takes one away.
fn change() -> (Plan, Kernel, Kernel) {
    let ask = |own: Option<&str>, interfaces: &[pvelet_proto::v1::InterfaceSpec], kernel: &Kernel| {
        let definition = validate::definition(&spec("n", interfaces), "team-a", kernel).unwrap();
        planner::plan(own, &Wish::Apply(definition), kernel, &usual()).unwrap()
    };
    let mut before = host();
    let first = ask(None, &[bridge("vmbr1", &["eth2"], Some(&["100"])), vlan("old", "eth1", 5)], &before);
    run(&first, &mut before);
    let tap = KernelLink { kind: "tun".into(), master: Some("vmbr1".into()), vlans: vec![PVID], ..nic("tap100i0", 50, 1500) };
    before.links.push(tap);
    let second = [bridge("vmbr1", &["eth2", "bond0"], Some(&["100-199"])), vlan("new", "eth1", 6)];
    let plan = ask(first.new_text.as_deref(), &second, &before);
    let mut now = before.clone();
    run(&plan, &mut now);
    (plan, before, now)
}

fn link<'a>(kernel: &'a mut Kernel, name: &str) -> &'a mut KernelLink {
    kernel.links.iter_mut().find(|l| l.name == name).unwrap()
}

type Harm = fn(&mut Kernel);

#[test]
fn what_is_not_as_planned_is_told() {
    let (plan, before, now) = change();
    let table: [(Harm, &[&str]); 19] = [
        (|_| {}, &[]),
        (|k| k.links.retain(|l| l.name != "new"), &["new does not exist"]),
        (|k| k.links.push(vlan_link("old", "eth1", 5, 1500)), &["old is still there"]),
        (|k| link(k, "new").up = false, &["new: state is down, not up"]),
        (|k| link(k, "new").mtu = 1400, &["new: mtu is 1400, not 1500"]),
        (|k| link(k, "bond0").master = None, &["vmbr1: ports is eth2, not bond0 eth2"]),
        (|k| link(k, "eth2").vlans = vec![PVID], &["vmbr1: vids is 1, not 1 100-199"]),
        (|k| link(k, "eth2").vlans[0].pvid = false, &["vmbr1: untagged VLAN is none, not 1"]),
        (|k| link(k, "vmbr1").vlan_aware = false, &["vmbr1: VLAN filter is off, not on"]),
        (|k| link(k, "vmbr1").stp = true, &["vmbr1: STP is on, not off"]),
        (|k| link(k, "tap100i0").master = None, &["tap100i0: bridge or bond is none, and was vmbr1"]),
        (|k| link(k, "tap100i0").vlans.clear(), &["tap100i0: VLANs is none, and was 1 pvid untagged"]),
        (|k| link(k, "vmbr0").addresses.clear(), &["vmbr0: addresses is none, and was 192.0.2.10/24"]),
        (|k| link(k, "eth0").master = None, &["eth0: bridge or bond is none, and was vmbr0"]),
        (|k| link(k, "eth1").up = false, &["eth1: state is down, and was up"]),
        (|k| link(k, "eth2").mtu = 1500, &["eth2: mtu is 1500, and was 9000"]),
        (|k| k.links.retain(|l| l.name != "lo"), &["lo is gone"]),
        (|k| k.routes.clear(), &["default route of IPv4 via 192.0.2.1 on vmbr0, metric 0 is gone"]),
        (
            |k| k.routes.push(KernelRoute { link: "new".into(), v6: true, metric: 1024, ..k.routes[0].clone() }),
            &["default route of IPv6 via 192.0.2.1 on new, metric 1024 is new"],
        ),
    ];
    for (harm, wanted) in table {
        let mut now = now.clone();
        harm(&mut now);
        assert_eq!(applied(&plan, &before, &now), wanted);
    }
}

#[test]
fn what_kernel_and_guests_do_by_themselves_does_not_count() {
    let (plan, before, now) = change();
    let table: [Harm; 8] = [
        |k| k.links.iter_mut().for_each(|l| l.carrier = false),
        |k| k.links.reverse(),
        // A guest that stopped, one that started, and one that did both.
        |k| k.links.retain(|l| l.name != "tap100i0"),
        |k| k.links.push(KernelLink { master: Some("vmbr1".into()), ..nic("tap101i0", 60, 1500) }),
        |k| *link(k, "tap100i0") = KernelLink { master: Some("vmbr0".into()), ..nic("tap100i0", 61, 1500) },
        |k| k.links.push(KernelLink { master: Some("vmbr1".into()), ..nic("pvprobe0p", 62, 1500) }),
        |k| link(k, "eth0").mac = "52:54:00:00:00:99".into(),
        |k| link(k, "vmbr0").addresses.push("2001:db8::77/64".parse().unwrap()),
    ];
    for (n, harm) in table.into_iter().enumerate() {
        let mut now = now.clone();
        harm(&mut now);
        assert_eq!(applied(&plan, &before, &now), Vec::<String>::new(), "{n}");
    }
}

#[test]
fn the_old_state_is_back_when_everything_is() {
    let (plan, before, now) = change();
    assert_eq!(restored(&plan, &before, &before), Vec::<String>::new());
    assert_eq!(
        restored(&plan, &before, &now),
        [
            "bond0: bridge or bond is vmbr1, and was none",
            "bond0: VLANs is 1 pvid untagged, 100-199, and was none",
            "eth2: VLANs is 1 pvid untagged, 100-199, and was 1 pvid untagged, 100",
            "old is gone",
            "new is still there",
        ]
    );
    let table: [(Harm, &[&str]); 9] = [
        // Made anew is as good, and a guest may have gone meanwhile.
        (|k| link(k, "old").index = 99, &[]),
        (|k| k.links.retain(|l| l.name != "tap100i0"), &[]),
        (|k| k.links.push(nic("tap7i0", 70, 1500)), &[]),
        (|k| link(k, "old").up = false, &["old: state is down, and was up"]),
        (|k| link(k, "old").mtu = 1400, &["old: mtu is 1400, and was 1500"]),
        (|k| link(k, "old").vlan = None, &["old: tag is none, and was 802.1Q 5"]),
        (|k| link(k, "old").addresses.push("10.0.0.1/8".parse().unwrap()), &["old: addresses is 10.0.0.1/8, and was none"]),
        (|k| link(k, "tap100i0").master = None, &["tap100i0: bridge or bond is none, and was vmbr1"]),
        (|k| link(k, "vmbr1").vlans.clear(), &["vmbr1: VLANs is none, and was 1 pvid untagged"]),
    ];
    for (harm, wanted) in table {
        let mut now = before.clone();
        harm(&mut now);
        assert_eq!(restored(&plan, &before, &now), wanted);
    }
}

#[test]
fn addresses_by_router_advertisement_are_nobodys_mistake() {
    let with = |addresses: &[&str]| pvelet_proto::v1::InterfaceSpec {
        addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        ..vlan("v", "eth1", 5)
    };
    let table: [(&[&str], &[&str], bool); 6] = [
        (&["2001:db8::1/64"], &["2001:db8::1/64", "2001:db8::5054:ff/64"], true),
        (&["2001:db8::1/64"], &["2001:db8::5054:ff/64"], false),
        (&["10.0.0.1/24"], &["10.0.0.1/24", "2001:db8::5054:ff/64"], false),
        (&["10.0.0.1/24"], &["10.0.0.1/24", "10.0.0.2/24"], false),
        (&["10.0.0.1/24", "10.0.0.2/24"], &["10.0.0.2/24", "10.0.0.1/24"], true),
        (&[], &["10.0.0.2/24"], false),
    ];
    for (wanted, is, good) in table {
        let definition = validate::definition(&spec("n", &[with(wanted)]), "team-a", &host()).unwrap();
        let mut kernel = host();
        let addresses = is.iter().map(|a| a.parse().unwrap()).collect();
        kernel.links.push(KernelLink { addresses, ..vlan_link("v", "eth1", 5, 1500) });
        assert_eq!(in_sync(&definition, &kernel).is_empty(), good, "{wanted:?} {is:?}");
    }
}
