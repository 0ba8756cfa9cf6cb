//! ProbeNetwork: what is asked for, whether it can be, and what came of it.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use pvelet_proto::{reason, v1};

use crate::{
    auth::Vlans,
    error::{Error, Violation},
    host::net::{Kernel, KernelLink, Network, ProbePort},
};

/// Where the request tells no time.
const TIMEOUT: Duration = Duration::from_secs(3);
const TIMEOUTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
const TOKEN: (usize, usize) = (16, 64);
const MTU: (u32, u32) = (576, 65_535);
const MTUS: usize = 16;
/// Tried where the request names none: what IPv6 needs, and what Ethernet has.
const COMMON_MTUS: [u32; 2] = [1280, 1500];
const ADDRESSES: usize = 256;
/// Altnames are at most as long.
const NAME: usize = 127;

/// A request that can be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Probe {
    port: ProbePort,
    /// The link's MTU.
    mtu: u32,
    timeout: Duration,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Answer { token: String },
    Send { token: String, mtus: Vec<u32> },
    Addresses(Vec<IpAddr>),
}

/// Carries out a probe, in the VLANs that the caller may touch. Errors: `Invalid`, `InterfaceNotFound`, `NetworkPreflight` (the link is down),
/// `ScopeNetwork`, `NetworkFailed`.
pub async fn probe(net: &dyn Network, request: &v1::ProbeNetworkRequest, vlans: &Vlans) -> Result<v1::ProbeNetworkResponse, Error> {
    let (timeout, what) = parse(request)?;
    let kernel = net.kernel().await?;
    let Probe { port, mtu, timeout, what } = on(&kernel, request, timeout, what)?;
    let tag = kernel.link(&port.link).and_then(|link| link.vlan).map(|tag| tag.id);
    port.vlan.into_iter().chain(tag).try_for_each(|vlan| vlans.allow(vlan, vlan))?;
    let mut response = v1::ProbeNetworkResponse { interface_mtu: mtu, ..Default::default() };
    match what {
        What::Answer { token } => response.answers = net.probe_answer(&port, &token, timeout).await?,
        What::Send { token, mtus } => {
            let probed = net.probe_send(&port, &token, &mtus, timeout).await?;
            response.answers = probed.answers;
            response.largest_mtu = probed.largest_mtu;
            response.rtt_us = u64::try_from(probed.rtt.as_micros()).unwrap_or(u64::MAX);
        }
        What::Addresses(addresses) => {
            let holders = net.who_has(&port, &addresses, timeout).await?;
            response.holders = holders.into_iter().map(|(a, mac)| v1::AddressHolder { address: a.to_string(), mac }).collect();
        }
    }
    Ok(response)
}

/// What of a request can be judged by itself; all violations at once.
fn parse(request: &v1::ProbeNetworkRequest) -> Result<(Duration, What), Error> {
    use v1::probe_network_request::Probe as P;
    let mut v = Vec::new();
    if !(1..=NAME).contains(&request.interface.len()) {
        v.push(Violation::new("interface", reason::INVALID_FIELD, "it is empty or longer than 127 bytes; name a link of this host"));
    }
    if request.vlan > 4094 {
        v.push(Violation::new("vlan", reason::INVALID_VLAN, format!("{} is outside 1 to 4094 (0 for none)", request.vlan)));
    }
    let timeout = match request.timeout {
        None => TIMEOUT,
        Some(asked) => match Duration::try_from(asked).ok().filter(|t| (TIMEOUTS.0..=TIMEOUTS.1).contains(t)) {
            Some(timeout) => timeout,
            None => {
                let text = format!("{asked} is outside 100 ms to 60 s; leave it unset for 3 s");
                v.push(Violation::new("timeout", reason::INVALID_FIELD, text));
                TIMEOUT
            }
        },
    };
    let what = match &request.probe {
        None => {
            v.push(Violation::new("probe", reason::INVALID_FIELD, "it is missing; set one of answer, send, addresses"));
            What::Addresses(Vec::new())
        }
        Some(P::Answer(answer)) => What::Answer { token: token("answer.token", &answer.token, &mut v) },
        Some(P::Send(send)) => {
            if send.mtus.len() > MTUS {
                v.push(Violation::new("send.mtus", reason::INVALID_FIELD, format!("{} MTUs; at most {MTUS}", send.mtus.len())));
            }
            for (i, mtu) in send.mtus.iter().enumerate().filter(|(_, m)| !(MTU.0..=MTU.1).contains(*m)).take(MTUS) {
                v.push(Violation::new(
                    format!("send.mtus[{i}]"),
                    reason::INVALID_FIELD,
                    format!("{mtu} is outside {} to {}", MTU.0, MTU.1),
                ));
            }
            What::Send { token: token("send.token", &send.token, &mut v), mtus: send.mtus.clone() }
        }
        Some(P::Addresses(list)) => What::Addresses(addresses(&list.addresses, &mut v)),
    };
    if v.is_empty() { Ok((timeout, what)) } else { Err(Error::Invalid(v)) }
}

fn token(field: &str, token: &str, v: &mut Vec<Violation>) -> String {
    if !(TOKEN.0..=TOKEN.1).contains(&token.len()) || !token.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        // A token is a secret of the two ends: what was given is not repeated.
        let text = format!("it is not {} to {} characters of [A-Za-z0-9-]; use a new UUID, the same at both ends", TOKEN.0, TOKEN.1);
        v.push(Violation::new(field, reason::INVALID_FIELD, text));
    }
    token.to_owned()
}

fn addresses(texts: &[String], v: &mut Vec<Violation>) -> Vec<IpAddr> {
    if !(1..=ADDRESSES).contains(&texts.len()) {
        let text = format!("{} addresses; ask for 1 to {ADDRESSES} at once", texts.len());
        v.push(Violation::new("addresses.addresses", reason::INVALID_FIELD, text));
        return Vec::new();
    }
    let mut parsed = BTreeSet::new();
    for (i, text) in texts.iter().enumerate() {
        match address(text) {
            Ok(address) => drop(parsed.insert(address)),
            Err(why) => {
                let shown: String = text.chars().take(64).collect();
                let text = format!("'{}' {why}", shown.escape_debug());
                v.push(Violation::new(format!("addresses.addresses[{i}]"), reason::INVALID_ADDRESS, text));
            }
        }
    }
    parsed.into_iter().collect()
}

/// An address that one host on a link can have.
fn address(text: &str) -> Result<IpAddr, &'static str> {
    let address: IpAddr = text.parse().map_err(|_| "is no IP address; write it as 192.0.2.1 or 2001:db8::1, without prefix length")?;
    match address {
        a if a.is_multicast() => Err("is a multicast address, which nobody has; name a unicast one"),
        a if a.is_unspecified() || a.is_loopback() => Err("is every host's own address; name one that is unique on the link"),
        IpAddr::V4(a) if a.is_broadcast() => Err("is the broadcast address, which nobody has; name a unicast one"),
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => Err("is an IPv4 address inside IPv6, which is on no link; write it as IPv4"),
        a => Ok(a),
    }
}

/// The link, and whether it can be probed so.
fn on(kernel: &Kernel, request: &v1::ProbeNetworkRequest, timeout: Duration, what: What) -> Result<Probe, Error> {
    let name = &request.interface;
    let link = kernel.link(name).ok_or_else(|| Error::InterfaceNotFound { interface: name.clone() })?;
    let vlan = match u16::try_from(request.vlan) {
        Ok(0) => None,
        Ok(vlan) if link.vlan_aware => Some(vlan),
        _ => {
            let text = format!(
                "{} with {name}, which is no VLAN-aware bridge; probe the interface of that VLAN itself, with vlan 0",
                request.vlan
            );
            return Err(Error::invalid("vlan", reason::INVALID_VLAN, text));
        }
    };
    if link.kind == "loopback" || link.mac.is_empty() {
        return Err(Error::invalid("interface", reason::INVALID_FIELD, format!("{name} is no Ethernet link; only those can be probed")));
    }
    if let Some(master) = takes_all(kernel, link) {
        let text = format!("{name} is a port of {master}, which takes all that arrives there; probe {master}");
        return Err(Error::invalid("interface", reason::INVALID_FIELD, text));
    }
    if !link.up {
        let text = format!("{name} is down, so no frame goes in or out; bring it up");
        return Err(Error::NetworkPreflight { checks: vec![("net.probe-link-down".into(), text)] });
    }
    let what = match what {
        What::Send { token, mtus } => {
            let own = [link.mtu.min(MTU.1)];
            let mtus: BTreeSet<u32> =
                if mtus.is_empty() { COMMON_MTUS.into_iter().chain(own).collect() } else { mtus.into_iter().collect() };
            What::Send { token, mtus: mtus.into_iter().collect() }
        }
        other => other,
    };
    Ok(Probe { port: ProbePort { link: link.name.clone(), vlan }, mtu: link.mtu, timeout, what })
}

/// The bridge or bond that this link hands all its frames to. Other masters (VRFs) leave them where they are.
fn takes_all<'k>(kernel: &'k Kernel, link: &KernelLink) -> Option<&'k str> {
    let master = kernel.link(link.master.as_deref()?)?;
    matches!(master.kind.as_str(), "bridge" | "bond" | "team" | "openvswitch").then_some(master.name.as_str())
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
