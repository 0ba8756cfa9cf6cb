//! Values of the hosts' network.

use std::{net::IpAddr, time::Duration};

use pvelet_proto::id;

use super::{Parsed, checked, duration};

/// More than any pool of a load balancer.
const MAX_ADDRESSES: usize = 4096;

/// Addresses, each once, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Addresses(pub(in crate::cli) Vec<IpAddr>);

/// A VLAN as `<parent>:<id>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct VlanArg {
    pub(in crate::cli) parent: String,
    pub(in crate::cli) id: u32,
}

pub(in crate::cli) fn interface(value: &str) -> Parsed<String> {
    checked(value, id::interface)
}

pub(in crate::cli) fn network(value: &str) -> Parsed<String> {
    // The rule is that of a tenant: a DNS label.
    id::tenant(value).map_err(|_| {
        format!("'{value}' is not a network's name: use 1 to 63 lower-case letters, digits and '-', first and last a letter or digit")
    })?;
    Ok(value.to_owned())
}

pub(in crate::cli) fn vlan(value: &str) -> Parsed<VlanArg> {
    let wrong = || format!("'{value}' is not a VLAN: use <parent>:<1 to 4094>, such as bond0:100");
    let (parent, number) = value.rsplit_once(':').ok_or_else(wrong)?;
    let number = number.parse().ok().filter(|n| (1..=4094).contains(n)).ok_or_else(wrong)?;
    Ok(VlanArg { parent: interface(parent)?, id: number })
}

pub(in crate::cli) fn confirm_timeout(value: &str) -> Parsed<Duration> {
    let time = duration(value)?;
    let range = Duration::from_secs(10)..=Duration::from_secs(600);
    if range.contains(&time) { Ok(time) } else { Err(format!("'{value}' is out of range: use 10s to 10m")) }
}

/// `192.0.2.10-192.0.2.20,2001:db8::5`.
pub(in crate::cli) fn addresses(value: &str) -> Parsed<Addresses> {
    let wrong = |part: &str| format!("'{part}' is no address and no range: use such as 192.0.2.10, 192.0.2.10-192.0.2.20 or 2001:db8::5");
    let mut all: Vec<IpAddr> = Vec::new();
    for part in value.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (IpAddr, IpAddr) = first.parse().ok().zip(last.parse().ok()).ok_or_else(|| wrong(part))?;
        let span = match (first, last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(b.to_bits()).checked_sub(a.to_bits().into()),
            (IpAddr::V6(a), IpAddr::V6(b)) => b.to_bits().checked_sub(a.to_bits()),
            _ => None,
        };
        let span = span.ok_or_else(|| format!("'{part}' ends before it begins: write the smaller address first"))?;
        let fits = usize::try_from(span).is_ok_and(|span| all.len() + span < MAX_ADDRESSES);
        if !fits {
            return Err(format!("'{value}' has more than {MAX_ADDRESSES} addresses: ask for fewer at once"));
        }
        for step in 0..=span {
            let address = match first {
                IpAddr::V4(a) => u32::try_from(step).ok().and_then(|s| a.to_bits().checked_add(s)).map(|b| IpAddr::V4(b.into())),
                IpAddr::V6(a) => a.to_bits().checked_add(step).map(|b| IpAddr::V6(b.into())),
            };
            if let Some(address) = address.filter(|a| !all.contains(a)) {
                all.push(address);
            }
        }
    }
    Ok(Addresses(all))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_and_ranges_are_listed_once_each() {
        let text = |value: &str| addresses(value).map(|a| a.0.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(text("192.0.2.9-192.0.2.11, 2001:db8::5,192.0.2.10").unwrap(), ["192.0.2.9", "192.0.2.10", "192.0.2.11", "2001:db8::5"]);
        assert_eq!(text("255.255.255.254-255.255.255.255").unwrap().len(), 2);
        assert_eq!(text("2001:db8::-2001:db8::ff").unwrap().len(), 256);
        for (value, want) in [
            ("192.0.2.20-192.0.2.10", "ends before it begins"),
            ("192.0.2.1-2001:db8::1", "ends before it begins"),
            ("192.0.2.0/24", "is no address"),
            ("", "is no address"),
            ("10.0.0.0-10.255.255.255", "more than 4096"),
            ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "more than 4096"),
        ] {
            assert!(text(value).is_err_and(|e| e.contains(want)), "{value}");
        }
    }

    #[test]
    fn a_vlan_is_a_parent_and_a_number() {
        assert_eq!(vlan("bond0:100"), Ok(VlanArg { parent: "bond0".into(), id: 100 }));
        for wrong in ["bond0", "bond0:0", "bond0:4095", "a/b:7", ":7"] {
            assert!(vlan(wrong).is_err(), "{wrong}");
        }
        assert!(confirm_timeout("5s").is_err() && confirm_timeout("11m").is_err() && confirm_timeout("10s").is_ok());
        assert!(network("a.b").is_err_and(|e| e.contains("use 1 to 63")));
    }
}
