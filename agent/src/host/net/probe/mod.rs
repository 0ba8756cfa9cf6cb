//! Trying a link with real frames: whether they reach another host, up to which size, and who has an address.

mod frame;
mod neighbours;
mod port;
mod socket;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use smoltcp::wire::EthernetAddress;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

pub use self::port::{answer_on, send_on, who_has_on};
use self::{
    frame::{ETHERTYPE, Frame, Kind, MAX_FRAME},
    socket::{Interface, PacketSocket},
};
use super::{KernelLink, Probed};
use crate::error::Error;

/// So many probes are answered in one call: more than a sender sends in a minute.
const ANSWERS: usize = 4096;
/// How long a probe waits for its answer before it is sent again, first and at most; it doubles in between.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Which of these addresses somebody else on the link answers for, and the MAC address that does. Each is asked for three times within the
/// timeout; ends as soon as all were answered. Errors: `InterfaceNotFound`, `NetworkFailed`.
pub async fn who_has(link: &KernelLink, addresses: &[IpAddr], timeout: Duration) -> Result<BTreeMap<IpAddr, String>, Error> {
    neighbours::who_has(&link.name, addresses, timeout).await
}

async fn open(link: &KernelLink) -> Result<(Interface, PacketSocket), Error> {
    let name = link.name.clone();
    let found = tokio::task::spawn_blocking(move || Interface::find(&name)).await;
    let interface = found.unwrap_or_else(|e| Err(Error::Internal(e.to_string())))?;
    let socket = PacketSocket::open(&interface, ETHERTYPE, Vec::new).await?;
    Ok((interface, socket))
}

/// Answers probes that carry the token; returns how many. Each probe is answered once, to its sender alone and with as many bytes, so that
/// nobody can make more of it; at most 4096 in all, after which it ends early. Errors: `InterfaceNotFound`, `NetworkFailed`.
pub async fn answer(link: &KernelLink, token: &str, time: Duration) -> Result<u32, Error> {
    let end = Instant::now() + time;
    let (interface, socket) = open(link).await?;
    let (mut answered, mut buffer) = (HashSet::<(EthernetAddress, u64)>::new(), vec![0; MAX_FRAME]);
    while answered.len() < ANSWERS {
        let Ok(bytes) = timeout_at(end, socket.receive(&mut buffer)).await else { break };
        let bytes = bytes.map_err(|e| interface.failed(&e))?;
        let Some(probe) = Frame::decode(bytes, token).filter(|f| f.kind == Kind::Probe && f.from.is_unicast()) else { continue };
        let key = (probe.from, probe.sequence);
        if answered.contains(&key) {
            continue;
        }
        let answer = Frame { from: interface.mac, to: probe.from, kind: Kind::Answer, ..probe };
        if let Some(bytes) = answer.encode(token)
            && socket.send(&bytes).map_err(|e| interface.failed(&e))?
        {
            answered.insert(key);
        }
    }
    Ok(u32::try_from(answered.len()).unwrap_or(u32::MAX))
}

/// Sends probes of each size until it was answered with as many bytes, or the time is over. Sizes above the link's MTU count as not answered
/// and are not sent. Errors: `InterfaceNotFound`, `NetworkFailed`.
pub async fn send(link: &KernelLink, token: &str, mtus: &[u32], timeout: Duration) -> Result<Probed, Error> {
    let end = Instant::now() + timeout;
    let (interface, socket) = open(link).await?;
    let mut open: BTreeSet<u32> = mtus.iter().copied().filter(|mtu| *mtu <= link.mtu).collect();
    let (mut probed, mut sent, mut buffer) = (Probed::default(), HashMap::new(), vec![0; MAX_FRAME]);
    // An answerer that still runs has perhaps seen an earlier call with this token: sequences must not come again.
    let (mut sequence, _) = Uuid::new_v4().as_u64_pair();
    let mut pause = AGAIN.0;
    while !open.is_empty() && Instant::now() < end {
        for mtu in &open {
            sequence = sequence.wrapping_add(1);
            let probe = Frame { from: interface.mac, to: EthernetAddress::BROADCAST, kind: Kind::Probe, sequence, mtu: *mtu };
            let Some(bytes) = probe.encode(token) else { continue };
            let now = Instant::now();
            if socket.send(&bytes).map_err(|e| interface.failed(&e))? {
                sent.insert(sequence, (*mtu, now));
            }
        }
        let until = end.min(Instant::now() + pause);
        pause = AGAIN.1.min(pause * 2);
        while !open.is_empty() {
            let Ok(bytes) = timeout_at(until, socket.receive(&mut buffer)).await else { break };
            let bytes = bytes.map_err(|e| interface.failed(&e))?;
            let Some(answer) = Frame::decode(bytes, token).filter(|f| f.kind == Kind::Answer) else { continue };
            let Some((mtu, at)) = sent.get(&answer.sequence).filter(|(mtu, _)| *mtu == answer.mtu && open.contains(mtu)) else { continue };
            if probed.answers == 0 {
                probed.rtt = at.elapsed();
            }
            open.remove(mtu);
            probed.answers += 1;
            probed.largest_mtu = probed.largest_mtu.max(*mtu);
        }
    }
    Ok(probed)
}
