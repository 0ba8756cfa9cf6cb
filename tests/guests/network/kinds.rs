//! What can be declared, each made, used with real frames, and removed without a trace.

use pvelet_proto::v1::{self, probe_network_request::Probe};
use tonic::Status;

use crate::{
    drive::{Drive, Wish, look, told},
    lane::{Case, Lane, succeeded},
    networks::{State, TRUNK, bridge, mtu, network, service_vlan, vlan, vlan_aware, with},
};

/// The peer's address on VLAN 100, and that on VLAN 200.
const ON_100: &str = "198.51.100.3";
const ON_200: &str = "203.0.113.3";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("VLAN on a bond", "-", vlan_on_a_bond),
        Case::new("classic bridge on a VLAN", "-", classic_bridge),
        Case::new("VLAN-aware bridge, 100 but not 200", "-", vlan_aware_bridge),
        Case::new("QinQ", "-", qinq),
        Case::new("MTU 9000", "-", jumbo),
        Case::new("IPv6", "-", ipv6),
        Case::new("tap ports stay on their bridge", "-", taps_stay),
        Case { start: State::First, ..Case::new("a reboot keeps it", "reboot", |_| ()) }.keeping(reboot),
        Case { start: State::First, ..Case::new("the same again changes nothing", "-", |_| ()) }.keeping(again),
    ]
}

impl Case {
    /// A case that ends in the state it begins in.
    fn keeping(self, run: impl Fn(&mut Lane<'_>) + Send + 'static) -> Self {
        let start = self.start;
        let run = move |lane: &mut Lane<'_>| {
            run(lane);
            start
        };
        Self { run: Box::new(run), ..self }
    }
}

/// With the network there, something is tried; then it is removed.
fn with_network(lane: &Lane<'_>, spec: v1::NetworkSpec, trial: impl FnOnce()) {
    let name = spec.name.clone();
    lane.change(&Wish::Apply(spec));
    let seen = lane.wait(look(lane.host.api(), true)).unwrap();
    let mine = seen.networks.iter().find(|n| n.spec.as_ref().is_some_and(|s| s.name == name)).expect("it is declared");
    assert!(mine.in_sync, "{:?}", mine.differences);
    trial();
    lane.change(&Wish::Remove(name));
}

fn reaches(lane: &Lane<'_>, address: &str, options: &str) {
    lane.host.guest.sh(&ping(&format!("{options} {address}")));
}

/// One answer is enough, however late. (`ping` gives up when nobody tells it a MAC address for three seconds.)
pub fn ping(what: &str) -> String {
    format!("timeout 120 sh -c 'until ping -q -c 1 -W 10 {what}; do sleep 0.2; done'")
}

fn vlan_on_a_bond(lane: &mut Lane<'_>) {
    let address = format!("198.51.100.{}/24", lane.host.n);
    let spec = network("plain", vec![with(vlan("storage", TRUNK, 100), &[&address])]);
    with_network(lane, spec, || {
        reaches(lane, ON_100, "");
        // The frames are really tagged: the peer sees VLAN 100 on its bond.
        let ping = format!("ping -q -c 200 -i 0.05 {ON_100} >/dev/null 2>&1 &");
        lane.host.guest.sh(&ping);
        let capture = format!("timeout 120 tcpdump -c 1 -e -n -i bond0 'vlan 100 and icmp and src 198.51.100.{}'", lane.host.n);
        let seen = lane.way_in.shell.sh(&capture);
        assert!(seen.contains("vlan 100"), "{seen}");
    });
}

fn classic_bridge(lane: &mut Lane<'_>) {
    let address = format!("198.51.100.{}/24", lane.host.n);
    let spec = network("classic", vec![with(bridge("vmbr70", &["bond0.100"]), &[&address]), vlan("bond0.100", TRUNK, 100)]);
    with_network(lane, spec, || reaches(lane, ON_100, ""));
}

/// A guest's NIC on a bridge: the end outside is in a namespace of its own, as a VM's would be in the VM.
fn plug(lane: &Lane<'_>, bridge: &str, vid: u16, address: &str) {
    lane.host.guest.sh(&format!(
        "ip netns add vm{vid}; ip link add tap{vid}i0 type veth peer name eth0 netns vm{vid}; ip link set tap{vid}i0 master {bridge} up; \
         bridge vlan del dev tap{vid}i0 vid 1; bridge vlan add dev tap{vid}i0 vid {vid} pvid untagged; \
         ip -n vm{vid} link set eth0 up; ip -n vm{vid} address add {address} dev eth0"
    ));
}

fn unplug(lane: &Lane<'_>, vid: u16) {
    lane.host.guest.sh(&format!("ip link del tap{vid}i0; ip netns del vm{vid}"));
}

fn vlan_aware_bridge(lane: &mut Lane<'_>) {
    let n = lane.host.n;
    let spec = network("trunk", vec![vlan_aware("vmbr1", &[TRUNK], &["100", "300-303"])]);
    with_network(lane, spec, || {
        plug(lane, "vmbr1", 100, &format!("198.51.100.{n}/24"));
        plug(lane, "vmbr1", 200, &format!("203.0.113.{n}/24"));
        lane.host.guest.sh(&format!("ip netns exec vm100 {}", ping(ON_100)));
        let lost = lane.host.guest.run(&format!("ip netns exec vm200 ping -q -c 3 -w 5 {ON_200}"));
        assert_eq!(lost.status, 1, "a frame of VLAN 200 came through: {lost:?}");
        // The same asked of the agent: who has the peer's addresses on these VLANs.
        let holders = |vlan: u32, address: &str| {
            let ask = v1::ProbeAddresses { addresses: vec![address.into()] };
            let probed = lane.wait(probe(lane, "vmbr1", vlan, Probe::Addresses(ask))).unwrap();
            probed.holders.into_iter().map(|h| h.address).collect::<Vec<_>>()
        };
        assert_eq!(holders(100, ON_100), [ON_100]);
        assert_eq!(holders(200, ON_200), [""; 0]);
        unplug(lane, 100);
        unplug(lane, 200);
    });
}

async fn probe(lane: &Lane<'_>, interface: &str, vlan: u32, probe: Probe) -> Result<v1::ProbeNetworkResponse, Status> {
    let client = lane.host.api().fresh();
    let timeout = std::time::Duration::from_secs(5).try_into().ok();
    let request = v1::ProbeNetworkRequest { interface: interface.into(), vlan, probe: Some(probe), timeout };
    Ok(client.agent.network().probe_network(request).await?.into_inner())
}

fn qinq(lane: &mut Lane<'_>) {
    let n = lane.host.n;
    let outer = with(service_vlan("outer", TRUNK, 300), &[&format!("10.30.0.{n}/24")]);
    let inner = with(vlan("inner", "outer", 40), &[&format!("10.40.0.{n}/24")]);
    with_network(lane, network("qinq", vec![inner, outer]), || {
        reaches(lane, "10.30.0.3", "");
        reaches(lane, "10.40.0.3", "");
    });
}

fn jumbo(lane: &mut Lane<'_>) {
    let address = format!("198.51.100.{}/24", lane.host.n);
    let spec =
        network("jumbo", vec![mtu(vlan("bond0.100", TRUNK, 100), 9000), with(mtu(bridge("vmbr9", &["bond0.100"]), 9000), &[&address])]);
    with_network(lane, spec, || {
        reaches(lane, ON_100, "-M do -s 8972");
        assert_ne!(lane.host.guest.run(&format!("ping -q -c 1 -w 5 -M do -s 8973 {ON_100}")).status, 0);
    });
}

fn ipv6(lane: &mut Lane<'_>) {
    let address = format!("2001:db8:100::{}/64", lane.host.n);
    let spec = network("six", vec![with(vlan("bond0.100", TRUNK, 100), &[&address])]);
    with_network(lane, spec, || reaches(lane, "2001:db8:100::3", "-6"));
}

/// The own file has guests' ports condoned by their names, which Debian's ifupdown2 understands as PVE's does. What this cannot prove is PVE's
/// own patch for bridges that others declare: such a bridge is never touched.
fn taps_stay(lane: &mut Lane<'_>) {
    let spec = |vids: &[&str]| network("trunk", vec![vlan_aware("vmbr1", &[TRUNK], vids)]);
    let ports = || lane.host.guest.sh("bridge link show master vmbr1 | cut -d: -f2; bridge vlan show dev tap100i0");
    with_network(lane, spec(&["100", "200"]), || {
        lane.host.guest.sh("ip tuntap add tap100i0 mode tap; ip link set tap100i0 master vmbr1 up; bridge vlan del dev tap100i0 vid 1; \
             bridge vlan add dev tap100i0 vid 100 pvid untagged");
        let before = ports();
        assert!(before.contains("tap100i0"), "{before}");
        // A change beside it, and one of its own bridge.
        lane.change(&Wish::Apply(network("beside", vec![bridge("vmbr8", &[])])));
        lane.change(&Wish::Apply(spec(&["100", "300"])));
        assert_eq!(ports(), before);
        lane.change(&Wish::Remove("beside".into()));
        assert_eq!(ports(), before);
        lane.host.guest.sh("ip link del tap100i0");
    });
}

fn reboot(lane: &mut Lane<'_>) {
    lane.host.guest.reboot().unwrap();
    lane.host.start_agent();
    reaches(lane, ON_100, "");
}

fn again(lane: &mut Lane<'_>) {
    let indexes = || lane.host.guest.sh("ip -j link | tr ',' '\\n' | grep ifindex");
    let before = indexes();
    let result = lane.wait(Drive::new(lane.host.api()).applied(&lane.wish(State::First)));
    let text = told(&result);
    let op = succeeded(result);
    assert!(op.end_time.is_some(), "it waits for a confirmation of nothing: {text}");
    assert_eq!(indexes(), before);
}
