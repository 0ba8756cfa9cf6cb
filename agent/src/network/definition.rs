//! A network as it is wanted, validated: the agent's own form of `v1::NetworkSpec`. It stands in the own file, so its serialized form is
//! read again by later versions.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A network: interfaces that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// For whom.
    pub tenant: String,
    /// The interfaces, as they were given.
    pub interfaces: Vec<Interface>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes; `None`: what its parent or ports have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNet>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

/// What an interface is. Parents and ports are links' own names: altnames were resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kind {
    /// A VLAN.
    Vlan {
        /// What it stands on.
        parent: String,
        /// 1 to 4094.
        id: u16,
        /// 802.1ad instead of 802.1Q.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        service: bool,
    },
    /// A bridge.
    Bridge {
        /// Its ports.
        ports: Vec<String>,
        /// Whether it filters VLANs.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        vlan_aware: bool,
        /// First and last of each range of VLANs that pass, ascending and merged; empty unless `vlan_aware`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        vids: Vec<(u16, u16)>,
    },
}
