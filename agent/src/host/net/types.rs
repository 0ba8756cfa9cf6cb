//! What the kernel has, and what ifupdown2 is told.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The network of the kernel at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// By name.
    pub links: Vec<KernelLink>,
    /// Of the main table, IPv4 first.
    pub routes: Vec<KernelRoute>,
}

/// A link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelLink {
    /// Its name.
    pub name: String,
    /// The kernel's index.
    pub index: u32,
    /// "vlan", "bridge", "bond", "tun", "veth", ...; "ether" or "loopback" for devices without a kind.
    pub kind: String,
    /// Other names.
    pub altnames: Vec<String>,
    /// Whether it was brought up (IFF_UP).
    pub up: bool,
    /// Whether it has a carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// Bytes.
    pub mtu: u32,
    /// MAC address, lower case with colons.
    pub mac: String,
    /// The bridge or bond it is a port of.
    pub master: Option<String>,
    /// The link it stands on; a VLAN's. `None` also where that link is in another namespace.
    pub parent: Option<String>,
    /// The tag of a VLAN.
    pub vlan: Option<VlanTag>,
    /// Of a bridge: whether it filters VLANs.
    pub vlan_aware: bool,
    /// Of a bridge: whether it speaks STP.
    pub stp: bool,
    /// The VLAN table of a bridge or of its port, ascending, ranges merged.
    pub vlans: Vec<VlanRange>,
    /// Addresses, IPv4 first; link-local ones that the kernel made itself are left out.
    pub addresses: Vec<IpNet>,
    /// The driver of a device, such as "mlx4_en"; empty for links without one.
    pub driver: String,
    /// Whether IPv6 is off on it; `None`: not told.
    pub ipv6_disabled: Option<bool>,
}

/// A VLAN's tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VlanTag {
    /// 1 to 4094.
    pub id: u16,
    /// 802.1ad instead of 802.1Q.
    pub service: bool,
}

/// VLANs in a bridge's table with the same flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VlanRange {
    /// First.
    pub first: u16,
    /// Last.
    pub last: u16,
    /// Untagged frames that come in belong to it.
    pub pvid: bool,
    /// Its frames go out untagged.
    pub untagged: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRoute {
    /// Destination; `None` for a default route.
    pub destination: Option<IpNet>,
    /// Gateway; `None` for what is on the link.
    pub gateway: Option<std::net::IpAddr>,
    /// Link.
    pub link: String,
    /// Metric.
    pub metric: u32,
    /// Whether it is one of IPv6.
    pub v6: bool,
}

impl Kernel {
    /// The link with this name or altname.
    pub fn link(&self, name: &str) -> Option<&KernelLink> {
        self.links.iter().find(|l| l.name == name).or_else(|| self.links.iter().find(|l| l.altnames.iter().any(|a| a == name)))
    }

    /// The default routes.
    pub fn default_routes(&self) -> impl Iterator<Item = &KernelRoute> {
        self.routes.iter().filter(|r| r.destination.is_none())
    }
}

/// What ifupdown2 does to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// `ifdown`: it goes away.
    Down,
    /// `ifup`: it is made.
    Up,
    /// `ifup` on one that is up: changed in place.
    Change,
}

/// One interface that is brought down or up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// To which interface.
    pub interface: String,
}
