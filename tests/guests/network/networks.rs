//! The networks that the tests want, and the three states that a host goes through.

use pvelet_proto::v1::{self, interface_spec::Kind};

/// The network whose changes are interrupted.
pub const SUBJECT: &str = "guests";
/// The trunk for everything but management.
pub const TRUNK: &str = "bond0";

/// What a host has of [`SUBJECT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Nothing.
    Bare,
    /// A VLAN with a bridge on it that has addresses.
    First,
    /// Another VLAN as well, and the bridge changed.
    Second,
}

/// A change that is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    Add,
    Alter,
    Remove,
}

impl Change {
    pub const ALL: [Self; 3] = [Self::Add, Self::Alter, Self::Remove];

    pub fn from(self) -> State {
        if self == Self::Add { State::Bare } else { State::First }
    }

    pub fn to(self) -> State {
        match self {
            Self::Add => State::First,
            Self::Alter => State::Second,
            Self::Remove => State::Bare,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Alter => "change",
            Self::Remove => "remove",
        }
    }
}

/// The network on host `n` in a state.
pub fn subject(n: u8, state: State) -> Option<v1::NetworkSpec> {
    let v4 = format!("198.51.100.{n}/24");
    let v6 = format!("2001:db8:100::{n}/64");
    match state {
        State::Bare => None,
        State::First => {
            Some(network(SUBJECT, vec![mtu(vlan("bond0.100", TRUNK, 100), 9000), with(bridge("vmbr100", &["bond0.100"]), &[&v4, &v6])]))
        }
        State::Second => Some(network(
            SUBJECT,
            vec![
                mtu(vlan("bond0.100", TRUNK, 100), 1500),
                with(bridge("vmbr100", &["bond0.100"]), &[&format!("198.51.100.1{n}/24")]),
                vlan("bond0.101", TRUNK, 101),
            ],
        )),
    }
}

pub fn network(name: &str, interfaces: Vec<v1::InterfaceSpec>) -> v1::NetworkSpec {
    v1::NetworkSpec { name: name.into(), interfaces, ..v1::NetworkSpec::default() }
}

pub fn vlan(name: &str, parent: &str, id: u32) -> v1::InterfaceSpec {
    interface(name, Kind::Vlan(v1::VlanSpec { parent: parent.into(), id, protocol: 0 }))
}

/// The outer tag of QinQ.
pub fn service_vlan(name: &str, parent: &str, id: u32) -> v1::InterfaceSpec {
    interface(name, Kind::Vlan(v1::VlanSpec { parent: parent.into(), id, protocol: v1::VlanProtocol::VlanProtocol8021ad.into() }))
}

pub fn bridge(name: &str, ports: &[&str]) -> v1::InterfaceSpec {
    let ports = ports.iter().map(|p| (*p).to_owned()).collect();
    interface(name, Kind::Bridge(v1::BridgeSpec { ports, ..v1::BridgeSpec::default() }))
}

pub fn vlan_aware(name: &str, ports: &[&str], vids: &[&str]) -> v1::InterfaceSpec {
    let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
    interface(name, Kind::Bridge(v1::BridgeSpec { ports: list(ports), vlan_aware: true, vids: list(vids) }))
}

pub fn mtu(interface: v1::InterfaceSpec, mtu: u32) -> v1::InterfaceSpec {
    v1::InterfaceSpec { mtu, ..interface }
}

pub fn with(interface: v1::InterfaceSpec, addresses: &[&str]) -> v1::InterfaceSpec {
    v1::InterfaceSpec { addresses: addresses.iter().map(|a| (*a).to_owned()).collect(), ..interface }
}

fn interface(name: &str, kind: Kind) -> v1::InterfaceSpec {
    v1::InterfaceSpec { name: name.into(), kind: Some(kind), ..v1::InterfaceSpec::default() }
}
