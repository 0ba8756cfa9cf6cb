//! Links, addresses, routes and VLAN tables out of netlink's messages.
//!
//! Only what is needed is looked at, so that a link of a kind that nobody here knows does no harm.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use rtnetlink::packet_core::{DecodeError, parse_u8, parse_u16, parse_u16_be, parse_u32};

use super::{KernelLink, VlanRange, VlanTag, kernel_socket::attributes};

/// The numbers of `linux/if_link.h`, `if_bridge.h`, `if_addr.h`, `rtnetlink.h` and others.
mod c {
    pub(super) const IFF_UP: u32 = 1;
    pub(super) const IFF_LOWER_UP: u32 = 1 << 16;
    pub(super) const ARPHRD_ETHER: u16 = 1;
    pub(super) const ARPHRD_INFINIBAND: u16 = 32;
    pub(super) const ARPHRD_LOOPBACK: u16 = 772;
    pub(super) const IFLA_ADDRESS: u16 = 1;
    pub(super) const IFLA_IFNAME: u16 = 3;
    pub(super) const IFLA_MTU: u16 = 4;
    pub(super) const IFLA_LINK: u16 = 5;
    pub(super) const IFLA_MASTER: u16 = 10;
    pub(super) const IFLA_LINKINFO: u16 = 18;
    pub(super) const IFLA_AF_SPEC: u16 = 26;
    pub(super) const IFLA_LINK_NETNSID: u16 = 37;
    pub(super) const IFLA_PROP_LIST: u16 = 52;
    pub(super) const IFLA_ALT_IFNAME: u16 = 53;
    pub(super) const IFLA_INFO_KIND: u16 = 1;
    pub(super) const IFLA_INFO_DATA: u16 = 2;
    pub(super) const IFLA_VLAN_ID: u16 = 1;
    pub(super) const IFLA_VLAN_PROTOCOL: u16 = 5;
    pub(super) const ETH_P_8021AD: u16 = 0x88A8;
    pub(super) const IFLA_BR_STP_STATE: u16 = 5;
    pub(super) const IFLA_BR_VLAN_FILTERING: u16 = 7;
    pub(super) const IFLA_BRIDGE_FLAGS: u16 = 0;
    pub(super) const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
    pub(super) const BRIDGE_FLAGS_SELF: u16 = 2;
    pub(super) const BRIDGE_VLAN_INFO_PVID: u16 = 2;
    pub(super) const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 4;
    pub(super) const BRIDGE_VLAN_INFO_RANGE_BEGIN: u16 = 8;
    pub(super) const BRIDGE_VLAN_INFO_RANGE_END: u16 = 16;
    pub(super) const AF_INET: u8 = 2;
    pub(super) const AF_INET6: u8 = 10;
    pub(super) const IFA_ADDRESS: u16 = 1;
    pub(super) const IFA_LOCAL: u16 = 2;
    pub(super) const IFA_PROTO: u16 = 11;
    pub(super) const IFAPROT_KERNEL_LL: u8 = 3;
    pub(super) const RT_TABLE_MAIN: u32 = 254;
    pub(super) const RTN_UNICAST: u8 = 1;
    pub(super) const RTM_F_CLONED: u32 = 0x200;
    pub(super) const RTA_DST: u16 = 1;
    pub(super) const RTA_OIF: u16 = 4;
    pub(super) const RTA_GATEWAY: u16 = 5;
    pub(super) const RTA_PRIORITY: u16 = 6;
    pub(super) const RTA_MULTIPATH: u16 = 9;
    pub(super) const RTA_TABLE: u16 = 15;
    pub(super) const RTA_VIA: u16 = 18;
}

/// The fixed part of a message, and its attributes.
fn split<const N: usize>(message: &[u8]) -> Result<(&[u8; N], &[u8]), DecodeError> {
    message.split_first_chunk().ok_or_else(|| DecodeError::buffer_too_small(message.len(), N))
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

fn address(bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    <[u8; 4]>::try_from(bytes)
        .map(|b| Ipv4Addr::from(b).into())
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(|b| Ipv6Addr::from(b).into()))
        .map_err(|_| DecodeError::invalid_ip_address(bytes.len()))
}

fn net(address: IpAddr, prefix: u8) -> Result<IpNet, DecodeError> {
    IpNet::new(address, prefix).map_err(|_| format!("{address}/{prefix} is no address").into())
}

/// A link, with others as indexes.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) link: KernelLink,
    pub(super) master: Option<u32>,
    pub(super) parent: Option<u32>,
}

/// A message of RTM_GETLINK.
pub(super) fn link(message: &[u8]) -> Result<Link, DecodeError> {
    let (header, rest) = split::<16>(message)?;
    let flags = parse_u32(&header[8..12])?;
    let mut found = Link::default();
    let mut parent_is_elsewhere = false;
    found.link.index = parse_u32(&header[4..8])?;
    found.link.up = flags & c::IFF_UP != 0;
    found.link.carrier = flags & c::IFF_LOWER_UP != 0;
    found.link.kind = match parse_u16(&header[2..4])? {
        c::ARPHRD_ETHER => "ether",
        c::ARPHRD_LOOPBACK => "loopback",
        c::ARPHRD_INFINIBAND => "infiniband",
        _ => "other",
    }
    .into();
    for attribute in attributes(rest) {
        let (kind, value) = attribute?;
        match kind {
            c::IFLA_IFNAME => found.link.name = text(value),
            c::IFLA_ADDRESS => found.link.mac = value.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"),
            c::IFLA_MTU => found.link.mtu = parse_u32(value)?,
            c::IFLA_LINK => found.parent = Some(parse_u32(value)?),
            c::IFLA_LINK_NETNSID => parent_is_elsewhere = true,
            c::IFLA_MASTER => found.master = Some(parse_u32(value)?),
            c::IFLA_LINKINFO => info(&mut found.link, value)?,
            c::IFLA_PROP_LIST => {
                for property in attributes(value) {
                    let (kind, value) = property?;
                    if kind == c::IFLA_ALT_IFNAME {
                        found.link.altnames.push(text(value));
                    }
                }
            }
            _ => {}
        }
    }
    // Of these the kernel tells the other end: neither stands on the other.
    if parent_is_elsewhere || ["veth", "netkit", "vxcan"].contains(&found.link.kind.as_str()) {
        found.parent = None;
    }
    Ok(found)
}

/// What a link's kind says about it.
fn info(link: &mut KernelLink, bytes: &[u8]) -> Result<(), DecodeError> {
    // The kind comes before its data.
    for attribute in attributes(bytes) {
        let (kind, value) = attribute?;
        match (kind, link.kind.as_str()) {
            (c::IFLA_INFO_KIND, _) => link.kind = text(value),
            (c::IFLA_INFO_DATA, "vlan") => {
                let mut tag = VlanTag { id: 0, service: false };
                for datum in attributes(value) {
                    match datum? {
                        (c::IFLA_VLAN_ID, value) => tag.id = parse_u16(value)?,
                        (c::IFLA_VLAN_PROTOCOL, value) => tag.service = parse_u16_be(value)? == c::ETH_P_8021AD,
                        _ => {}
                    }
                }
                link.vlan = Some(tag);
            }
            (c::IFLA_INFO_DATA, "bridge") => {
                for datum in attributes(value) {
                    match datum? {
                        (c::IFLA_BR_STP_STATE, value) => link.stp = parse_u32(value)? != 0,
                        (c::IFLA_BR_VLAN_FILTERING, value) => link.vlan_aware = parse_u8(value)? != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A message of RTM_GETLINK for AF_BRIDGE: index and VLAN table. `None` where a network card tells of its own switch.
pub(super) fn vlans(message: &[u8]) -> Result<Option<(u32, Vec<VlanRange>)>, DecodeError> {
    let (header, rest) = split::<16>(message)?;
    let mut ranges: Vec<VlanRange> = Vec::new();
    let mut begin = None;
    for attribute in attributes(rest) {
        let (c::IFLA_AF_SPEC, value) = attribute? else { continue };
        for entry in attributes(value) {
            match entry? {
                (c::IFLA_BRIDGE_FLAGS, value) if parse_u16(value)? & c::BRIDGE_FLAGS_SELF != 0 => return Ok(None),
                (c::IFLA_BRIDGE_VLAN_INFO, value) if value.len() >= 4 => {
                    let (flags, id) = (parse_u16(&value[..2])?, parse_u16(&value[2..4])?);
                    if flags & c::BRIDGE_VLAN_INFO_RANGE_BEGIN != 0 {
                        begin = Some(id);
                        continue;
                    }
                    let first = if flags & c::BRIDGE_VLAN_INFO_RANGE_END != 0 { begin.take().unwrap_or(id) } else { id };
                    ranges.push(VlanRange {
                        first,
                        last: id,
                        pvid: flags & c::BRIDGE_VLAN_INFO_PVID != 0,
                        untagged: flags & c::BRIDGE_VLAN_INFO_UNTAGGED != 0,
                    });
                }
                _ => {}
            }
        }
    }
    Ok(Some((parse_u32(&header[4..8])?, merge(ranges))))
}

/// Ascending, and neighbours with the same flags as one.
fn merge(mut ranges: Vec<VlanRange>) -> Vec<VlanRange> {
    ranges.sort_by_key(|r| r.first);
    let mut merged: Vec<VlanRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.last + 1 == range.first && (last.pvid, last.untagged) == (range.pvid, range.untagged) => {
                last.last = range.last;
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// An address of a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) index: u32,
    pub(super) net: IpNet,
    /// Who gave it (IFA_PROTO), where the kernel tells: it does since 5.18, and not for those given without saying so.
    pub(super) giver: Option<u8>,
}

/// A message of RTM_GETADDR. `None`: neither IPv4 nor IPv6.
pub(super) fn ip_address(message: &[u8]) -> Result<Option<Address>, DecodeError> {
    let (header, rest) = split::<8>(message)?;
    if ![c::AF_INET, c::AF_INET6].contains(&header[0]) {
        return Ok(None);
    }
    let (mut local, mut peer, mut giver) = (None, None, None);
    for attribute in attributes(rest) {
        match attribute? {
            // Where there is a peer, IFA_ADDRESS is the peer's.
            (c::IFA_LOCAL, value) => local = Some(address(value)?),
            (c::IFA_ADDRESS, value) => peer = Some(address(value)?),
            (c::IFA_PROTO, value) => giver = Some(parse_u8(value)?),
            _ => {}
        }
    }
    let Some(address) = local.or(peer) else { return Ok(None) };
    Ok(Some(Address { index: parse_u32(&header[4..8])?, net: net(address, header[1])?, giver }))
}

/// Addresses by link, IPv4 first, without the link-local ones that the kernel made.
pub(super) fn addresses(found: Vec<Address>) -> BTreeMap<u32, Vec<IpNet>> {
    // The loopback addresses are the kernel's own: a kernel that knows givers names one at least for those. One that does not may have made
    // any link-local address, and it would be a mistake to take such a one for a declared address.
    let tells = found.iter().any(|a| a.giver.is_some());
    let mut by_link: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
    for address in found {
        let link_local = matches!(address.net, IpNet::V6(net) if net.addr().is_unicast_link_local());
        if link_local && (!tells || address.giver == Some(c::IFAPROT_KERNEL_LL)) {
            continue;
        }
        by_link.entry(address.index).or_default().push(address.net);
    }
    for addresses in by_link.values_mut() {
        addresses.sort_by_key(|a| matches!(a, IpNet::V6(_)));
    }
    by_link
}

/// A route over one next hop, its link as an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: Option<IpNet>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) index: u32,
    pub(super) metric: u32,
    pub(super) v6: bool,
}

/// A message of RTM_GETROUTE: the routes of the main table that lead somewhere, one for each next hop.
pub(super) fn routes(message: &[u8], v6: bool) -> Result<Vec<Route>, DecodeError> {
    let (header, rest) = split::<12>(message)?;
    let [family, prefix, _, _, table, _, _, kind, ..] = *header;
    let (mut table, flags) = (u32::from(table), parse_u32(&header[8..12])?);
    let (mut destination, mut gateway, mut metric, mut hops) = (None, None, 0, Vec::new());
    let mut link = None;
    for attribute in attributes(rest) {
        match attribute? {
            (c::RTA_DST, value) => destination = Some(address(value)?),
            (c::RTA_OIF, value) => link = Some(parse_u32(value)?),
            (c::RTA_PRIORITY, value) => metric = parse_u32(value)?,
            (c::RTA_TABLE, value) => table = parse_u32(value)?,
            (c::RTA_MULTIPATH, value) => hops = next_hops(value)?,
            (kind, value) => gateway = self::gateway(kind, value)?.or(gateway),
        }
    }
    // A kernel without IPv6 answers with the routes of IPv4.
    let asked = family == if v6 { c::AF_INET6 } else { c::AF_INET };
    if !asked || table != c::RT_TABLE_MAIN || kind != c::RTN_UNICAST || flags & c::RTM_F_CLONED != 0 {
        return Ok(Vec::new());
    }
    hops.extend(link.map(|index| (index, gateway)));
    let destination = destination.filter(|_| prefix != 0).map(|d| net(d, prefix)).transpose()?;
    Ok(hops.into_iter().map(|(index, gateway)| Route { destination, gateway, index, metric, v6 }).collect())
}

fn gateway(kind: u16, value: &[u8]) -> Result<Option<IpAddr>, DecodeError> {
    match kind {
        c::RTA_GATEWAY => address(value).map(Some),
        // A gateway of the other family; its family comes first.
        c::RTA_VIA => address(value.get(2..).unwrap_or_default()).map(Some),
        _ => Ok(None),
    }
}

/// RTA_MULTIPATH: a length, two bytes, and an index, then attributes; again and again.
fn next_hops(mut bytes: &[u8]) -> Result<Vec<(u32, Option<IpAddr>)>, DecodeError> {
    let mut hops = Vec::new();
    while !bytes.is_empty() {
        let (header, _) = split::<8>(bytes)?;
        let length = usize::from(parse_u16(&header[..2])?);
        let hop = bytes.get(8..length).ok_or_else(|| DecodeError::buffer_too_small(bytes.len(), length.max(8)))?;
        let mut gateway = None;
        for attribute in attributes(hop) {
            let (kind, value) = attribute?;
            gateway = self::gateway(kind, value)?.or(gateway);
        }
        hops.push((parse_u32(&header[4..8])?, gateway));
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(hops)
}

#[cfg(test)]
mod tests;
