//! Who has an address: by ARP (as RFC 5227 probes) and by neighbour solicitation (RFC 4861).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, HardwareAddress, Icmpv6Packet,
        Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscRepr, RawHardwareAddress,
    },
};
use socket2::SockFilter;
use tokio::time::{Instant, timeout_at};

use super::socket::{Interface, PacketSocket};
use crate::error::Error;

/// How often an address is asked for.
const ROUNDS: u32 = 3;
/// How many addresses are asked for at once.
const BATCH: usize = 16;
/// What is waited between batches, unless the time is short.
const PAUSE: Duration = Duration::from_millis(20);
/// Longer frames are no answers.
const BUFFER: usize = 1600;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// RFC 4861: who receives another hop limit knows that the packet was forwarded.
const HOP_LIMIT: u8 = 255;

/// Which of these addresses are answered for, and with which MAC address; this host's own answers do not count. Each is asked for three times
/// within the time; ends as soon as all were answered.
pub(super) async fn who_has(name: &str, addresses: &[IpAddr], timeout: Duration) -> Result<BTreeMap<IpAddr, String>, Error> {
    if addresses.is_empty() {
        return Ok(BTreeMap::new());
    }
    let name = name.to_owned();
    let found = tokio::task::spawn_blocking(move || Interface::find(&name)).await;
    let interface = found.unwrap_or_else(|e| Err(Error::Internal(e.to_string())))?;
    let end = Instant::now() + timeout;
    let (v4, v6): (BTreeSet<_>, BTreeSet<_>) = addresses.iter().partition(|a| a.is_ipv4());
    let v4 = ask(&interface, (ETHERTYPE_ARP, Vec::new), v4, (timeout, end), arp_request, arp_holder);
    let v6 = ask(&interface, (ETHERTYPE_IPV6, advertisements), v6, (timeout, end), solicitation, advertised);
    let (mut holders, v6) = tokio::try_join!(v4, v6)?;
    holders.extend(v6);
    Ok(holders.into_iter().map(|(address, mac)| (address, mac.to_string())).collect())
}

type Holder = (IpAddr, EthernetAddress);

async fn ask(
    interface: &Interface,
    (ethertype, filter): (u16, fn() -> Vec<SockFilter>),
    mut open: BTreeSet<IpAddr>,
    (timeout, end): (Duration, Instant),
    request: fn(&Interface, IpAddr) -> Option<Vec<u8>>,
    holder: fn(&[u8]) -> Option<Holder>,
) -> Result<BTreeMap<IpAddr, EthernetAddress>, Error> {
    let mut found = BTreeMap::new();
    if open.is_empty() {
        return Ok(found);
    }
    let socket = PacketSocket::open(interface, ethertype, filter).await?;
    let mut buffer = [0; BUFFER];
    for left in (0..ROUNDS).rev() {
        let round_end = end - timeout / ROUNDS * left;
        let addresses: Vec<_> = open.iter().copied().collect();
        let batches = u32::try_from(addresses.len().div_ceil(BATCH)).unwrap_or(u32::MAX);
        let pause = PAUSE.min(round_end.saturating_duration_since(Instant::now()) / (batches + 1));
        for (i, batch) in addresses.chunks(BATCH).enumerate() {
            for frame in batch.iter().filter(|a| open.contains(a)).filter_map(|a| request(interface, *a)) {
                socket.send(&frame).map_err(|e| interface.failed(&e))?;
            }
            let until = if (i + 1) * BATCH >= addresses.len() { round_end } else { round_end.min(Instant::now() + pause) };
            while !open.is_empty() {
                let Ok(frame) = timeout_at(until, socket.receive(&mut buffer)).await else { break };
                let frame = frame.map_err(|e| interface.failed(&e))?;
                if let Some((address, mac)) = holder(frame).filter(|(_, mac)| !interface.own.contains(mac))
                    && open.remove(&address)
                {
                    found.insert(address, mac);
                }
            }
            if open.is_empty() {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// A frame with this payload.
fn ethernet(from: EthernetAddress, to: EthernetAddress, ethertype: EthernetProtocol, length: usize, emit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let header = EthernetRepr { src_addr: from, dst_addr: to, ethertype };
    let mut frame = EthernetFrame::new_unchecked(vec![0; header.buffer_len() + length]);
    header.emit(&mut frame);
    emit(frame.payload_mut());
    frame.into_inner()
}

/// An ARP probe: with 0.0.0.0 for the sender's address, so that nobody learns a wrong one from it.
fn arp_request(interface: &Interface, address: IpAddr) -> Option<Vec<u8>> {
    let IpAddr::V4(target_protocol_addr) = address else { return None };
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: interface.mac,
        source_protocol_addr: Ipv4Addr::UNSPECIFIED,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr,
    };
    Some(ethernet(interface.mac, EthernetAddress::BROADCAST, EthernetProtocol::Arp, repr.buffer_len(), |payload| {
        repr.emit(&mut ArpPacket::new_unchecked(payload));
    }))
}

/// Who says, by reply or request, that an address is its own.
fn arp_holder(frame: &[u8]) -> Option<Holder> {
    let frame = EthernetFrame::new_checked(frame).ok().filter(|f| f.ethertype() == EthernetProtocol::Arp)?;
    let ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, .. } =
        ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).ok()?).ok()?
    else {
        return None;
    };
    source_hardware_addr.is_unicast().then_some((source_protocol_addr.into(), source_hardware_addr))
}

/// A neighbour solicitation to the address's solicited-node group, from the link-local address. A link without one asks from `::`, as
/// duplicate address detection does, and is answered by multicast to all nodes.
fn solicitation(interface: &Interface, address: IpAddr) -> Option<Vec<u8>> {
    let IpAddr::V6(target_addr) = address else { return None };
    let [.., a, b, c] = target_addr.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let lladdr = interface.link_local.map(|_| RawHardwareAddress::from(HardwareAddress::Ethernet(interface.mac)));
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, lladdr });
    let ip = Ipv6Repr {
        src_addr: interface.link_local.unwrap_or(Ipv6Addr::UNSPECIFIED),
        dst_addr: group,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.buffer_len(),
        hop_limit: HOP_LIMIT,
    };
    let to = EthernetAddress([0x33, 0x33, 0xff, a, b, c]);
    Some(ethernet(interface.mac, to, EthernetProtocol::Ipv6, ip.buffer_len() + ip.payload_len, |payload| {
        let mut packet = Ipv6Packet::new_unchecked(payload);
        ip.emit(&mut packet);
        icmp.emit(&ip.src_addr, &ip.dst_addr, &mut Icmpv6Packet::new_unchecked(packet.payload_mut()), &ChecksumCapabilities::default());
    }))
}

/// Who says in a neighbour advertisement that an address is its own.
fn advertised(frame: &[u8]) -> Option<Holder> {
    let frame = EthernetFrame::new_checked(frame).ok().filter(|f| f.ethertype() == EthernetProtocol::Ipv6)?;
    let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
    let ip = Ipv6Repr::parse(&packet).ok().filter(|ip| ip.next_header == IpProtocol::Icmpv6 && ip.hop_limit == HOP_LIMIT)?;
    let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    let parsed = Icmpv6Repr::parse(&ip.src_addr, &ip.dst_addr, &icmp, &ChecksumCapabilities::default()).ok()?;
    let Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { target_addr, lladdr, .. }) = parsed else { return None };
    let mac = match lladdr.map(|raw| raw.parse(smoltcp::phy::Medium::Ethernet)) {
        Some(Ok(HardwareAddress::Ethernet(mac))) => mac,
        Some(_) => return None,
        // A solicited answer may leave it out.
        None => frame.src_addr(),
    };
    mac.is_unicast().then_some((target_addr.into(), mac))
}

/// Lets neighbour advertisements in and nothing else: a link may carry much IPv6.
fn advertisements() -> Vec<SockFilter> {
    // Next header of IPv6, and the type of ICMPv6; linux/filter.h has the codes.
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    vec![
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 6),
        SockFilter::new(JUMP_IF_EQUAL, 0, 3, 58),
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 40),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 136),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
