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
    let text = |mac: EthernetAddress| mac.as_bytes().iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    Ok(holders.into_iter().map(|(address, mac)| (address, text(mac))).collect())
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
fn ethernet(
    from: EthernetAddress,
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    length: usize,
    emit: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use socket2::{Domain, Socket, Type};

    use super::*;

    const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 7]);

    /// A neighbour advertisement as Linux sends it.
    fn advertisement(address: Ipv6Addr, lladdr: Option<EthernetAddress>, hop_limit: u8) -> Vec<u8> {
        let lladdr = lladdr.map(|mac| RawHardwareAddress::from(HardwareAddress::Ethernet(mac)));
        let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
            flags: smoltcp::wire::NdiscNeighborFlags::SOLICITED,
            target_addr: address,
            lladdr,
        });
        let (src_addr, dst_addr) = (address, "fe80::1".parse().unwrap());
        let ip = Ipv6Repr { src_addr, dst_addr, next_header: IpProtocol::Icmpv6, payload_len: icmp.buffer_len(), hop_limit };
        ethernet(MAC, EthernetAddress([2; 6]), EthernetProtocol::Ipv6, ip.buffer_len() + ip.payload_len, |payload| {
            let mut packet = Ipv6Packet::new_unchecked(payload);
            ip.emit(&mut packet);
            icmp.emit(&src_addr, &dst_addr, &mut Icmpv6Packet::new_unchecked(packet.payload_mut()), &ChecksumCapabilities::default());
        })
    }

    fn arp(operation: ArpOperation, holder: Ipv4Addr, mac: EthernetAddress) -> Vec<u8> {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: mac,
            source_protocol_addr: holder,
            target_hardware_addr: EthernetAddress([2; 6]),
            target_protocol_addr: Ipv4Addr::new(192, 0, 2, 1),
        };
        ethernet(MAC, EthernetAddress([2; 6]), EthernetProtocol::Arp, repr.buffer_len(), |payload| {
            repr.emit(&mut ArpPacket::new_unchecked(payload));
        })
    }

    proptest! {
        #[test]
        fn who_answers_is_read(v4 in any::<[u8; 4]>(), v6 in any::<[u8; 16]>(), mac in any::<[u8; 6]>(), request in any::<bool>()) {
            let (v4, v6, mac) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6), EthernetAddress(mac));
            let operation = if request { ArpOperation::Request } else { ArpOperation::Reply };
            let some = mac.is_unicast();
            prop_assert_eq!(arp_holder(&arp(operation, v4, mac)), some.then_some((IpAddr::V4(v4), mac)));
            prop_assert_eq!(advertised(&advertisement(v6, Some(mac), 255)), some.then_some((IpAddr::V6(v6), mac)));
            // Without the option it is the frame's source; a forwarded one counts for nothing.
            prop_assert_eq!(advertised(&advertisement(v6, None, 255)), Some((IpAddr::V6(v6), MAC)));
            prop_assert_eq!(advertised(&advertisement(v6, Some(mac), 254)), None);
        }

        #[test]
        fn no_frame_makes_the_readers_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            changes in proptest::collection::vec((0usize..120, any::<u8>()), 0..8),
            cut in 0usize..120,
            padding in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            arp_holder(&noise);
            advertised(&noise);
            let address = Ipv6Addr::LOCALHOST;
            for whole in [advertisement(address, Some(MAC), 255), arp(ArpOperation::Reply, Ipv4Addr::LOCALHOST, MAC)] {
                let mut frame = [whole, padding.clone()].concat();
                for (at, value) in &changes {
                    if let Some(byte) = frame.get_mut(*at) {
                        *byte = *value;
                    }
                }
                frame.truncate(cut);
                arp_holder(&frame);
                advertised(&frame);
            }
        }

        #[test]
        fn no_icmpv6_message_with_a_good_checksum_makes_the_reader_panic(message in proptest::collection::vec(any::<u8>(), 8..120), ndisc in any::<bool>()) {
            let mut message = message;
            if ndisc {
                message[..2].copy_from_slice(&[136, 0]);
            }
            let (src, dst) = (Ipv6Addr::LOCALHOST, "fe80::1".parse().unwrap());
            let ip = Ipv6Repr { src_addr: src, dst_addr: dst, next_header: IpProtocol::Icmpv6, payload_len: message.len(), hop_limit: 255 };
            let frame = ethernet(MAC, MAC, EthernetProtocol::Ipv6, ip.buffer_len() + message.len(), |payload| {
                let mut packet = Ipv6Packet::new_unchecked(payload);
                ip.emit(&mut packet);
                packet.payload_mut().copy_from_slice(&message);
                Icmpv6Packet::new_unchecked(packet.payload_mut()).fill_checksum(&src, &dst);
            });
            advertised(&frame);
        }
    }

    #[test]
    fn the_kernel_takes_the_filter() {
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
        socket.attach_filter(&advertisements()).unwrap();
    }
}
