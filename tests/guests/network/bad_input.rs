//! Bad input: an error that names the thing, and nothing is touched.

use pvelet_proto::{identity::Role, reason, v1};
use pvelet_tests::calls::Refusal;
use tonic::Code;

use crate::{
    drive::{Drive, Wish},
    host::Api,
    lane::{Case, Lane},
    networks::{State, TRUNK, bridge, mtu, network, vlan, vlan_aware, with},
};

pub fn cases() -> Vec<Case> {
    vec![Case { start: State::First, run: Box::new(bad_input), ..Case::new("bad input", "-", |_| ()) }]
}

fn refused(lane: &Lane<'_>, api: &Api, what: &str, wish: &Wish, code: Code, reason: &str) {
    let refusal = Refusal::of(lane.wait(Drive::new(api).applied(wish)));
    let invalid = refusal.code == Code::InvalidArgument && refusal.reason == reason;
    assert!(invalid || (refusal.code == code && refusal.reason == reason), "{what}: {refusal:?}");
}

fn bad_input(lane: &mut Lane<'_>) -> State {
    let api = lane.host.api().clone();
    let n = lane.host.n;
    let v4 = format!("198.51.100.{n}/24");
    let one = |interface: v1::InterfaceSpec| Wish::Apply(network("bad", vec![interface]));
    let trials = [
        ("VLAN 0", one(vlan("bond0.7", TRUNK, 0)), Code::InvalidArgument, reason::INVALID_VLAN),
        ("VLAN 4095", one(vlan("bond0.7", TRUNK, 4095)), Code::InvalidArgument, reason::INVALID_VLAN),
        ("VID 4095", one(vlan_aware("vmbr7", &[TRUNK], &["100-4095"])), Code::InvalidArgument, reason::INVALID_VLAN),
        ("a name of 16 bytes", one(vlan("a234567890123456", TRUNK, 7)), Code::InvalidArgument, reason::INVALID_INTERFACE_NAME),
        ("a name with a slash", one(vlan("../bond0", TRUNK, 7)), Code::InvalidArgument, reason::INVALID_INTERFACE_NAME),
        ("a name with a newline", one(vlan("a\nauto b", TRUNK, 7)), Code::InvalidArgument, reason::INVALID_INTERFACE_NAME),
        ("a guest's name", one(vlan("tap100i0", TRUNK, 7)), Code::InvalidArgument, reason::INVALID_INTERFACE_NAME),
        ("a parent that is missing", one(vlan("eth9.7", "eth9", 7)), Code::NotFound, reason::INTERFACE_NOT_FOUND),
        ("a parent that is enslaved", one(vlan("eth2.7", "eth2", 7)), Code::FailedPrecondition, reason::INTERFACE_TAKEN),
        ("a port that is enslaved", one(bridge("vmbr7", &["eth2"])), Code::FailedPrecondition, reason::INTERFACE_TAKEN),
        ("a port that does not exist", one(bridge("vmbr7", &["eth9"])), Code::NotFound, reason::INTERFACE_NOT_FOUND),
        ("an interface of somebody else", one(vlan("bond0", "eth1", 7)), Code::FailedPrecondition, reason::INTERFACE_TAKEN),
        ("an address in use", one(with(vlan("bond0.7", TRUNK, 7), &[&v4])), Code::InvalidArgument, reason::ADDRESS_IN_USE),
        ("overlapping subnets", one(with(vlan("bond0.7", TRUNK, 7), &["198.51.0.99/16"])), Code::InvalidArgument, reason::SUBNET_OVERLAP),
        (
            "an address that is none",
            one(with(vlan("bond0.7", TRUNK, 7), &["198.51.100.300/24"])),
            Code::InvalidArgument,
            reason::INVALID_ADDRESS,
        ),
        ("an MTU over the parent's", one(mtu(vlan("bond0.7", TRUNK, 7), 9001)), Code::InvalidArgument, reason::INVALID_MTU),
        ("an MTU below the least", one(mtu(vlan("bond0.7", TRUNK, 7), 100)), Code::InvalidArgument, reason::INVALID_MTU),
        ("the management interface as a port", one(bridge("vmbr7", &["eth1"])), Code::FailedPrecondition, reason::INTERFACE_TAKEN),
    ];
    for (what, wish, code, reason) in &trials {
        refused(lane, &api, what, wish, *code, reason);
    }
    // The caller's scope: VLANs 100 to 199.
    let narrow = lane.lab.pki.role(Role::Operator, &format!("narrow-{n}"));
    let config = format!(
        "[[identity]]\nuri = \"spiffe://pvelet.test/role/operator/tester-{n}\"\ntenants = [\"*\"]\n\
         [[identity]]\nuri = \"spiffe://pvelet.test/role/operator/narrow-{n}\"\ntenants = [\"*\"]\nvlans = [\"100-199\"]\n"
    );
    lane.host.guest.sh(&format!(
        "cp /etc/pvelet/agent.toml.in /root/agent.toml.in; printf '{}' >>/etc/pvelet/agent.toml.in",
        config.replace('\n', "\\n")
    ));
    lane.host.restart_agent();
    let api = lane.host.api_as(narrow, "default");
    refused(lane, &api, "a VLAN outside the scope", &one(vlan("bond0.7", TRUNK, 7)), Code::PermissionDenied, reason::SCOPE_NETWORK);
    lane.host.guest.sh("mv /root/agent.toml.in /etc/pvelet/agent.toml.in");
    lane.host.restart_agent();
    State::First
}
