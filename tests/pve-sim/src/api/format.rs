//! Formats of parameters, with PVE's texts for what does not fit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn fits(good: bool, text: &str) -> Result<(), String> {
    if good { Ok(()) } else { Err(text.to_owned()) }
}

/// Splits a PVE list: at commas, semicolons, blanks and NULs.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ';', ' ', '\0', '\n', '\t']).filter(|part| !part.is_empty())
}

/// A VMID.
pub(super) fn vmid(text: &str) -> Result<(), String> {
    let good = (3..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    fits(good, "value does not look like a valid VM ID")
}

/// A DNS name of one or more labels.
pub(super) fn dns_name(text: &str) -> Result<(), String> {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = bytes.first().is_some_and(u8::is_ascii_alphanumeric) && bytes.last().is_some_and(u8::is_ascii_alphanumeric);
        ends && label.len() <= 63 && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    fits(text.split('.').all(label), "value does not look like a valid DNS name")
}

/// An id in a configuration: a letter, then letters, digits, `-` and `_`.
pub(super) fn config_id(text: &str) -> Result<(), String> {
    let good = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.len() >= 2
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    fits(good, &format!("invalid configuration ID '{text}'"))
}

/// A list of ids in a configuration.
pub(super) fn config_id_list(text: &str) -> Result<(), String> {
    list(text).try_for_each(config_id)
}

/// The id of a storage.
pub(super) fn storage_id(text: &str) -> Result<(), String> {
    let good = text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    fits(good, &format!("storage ID '{text}' contains illegal characters"))
}

/// A node's name.
pub(super) fn node(text: &str) -> Result<(), String> {
    let good =
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !text.starts_with('-') && !text.ends_with('-') && !text.is_empty();
    fits(good, "value does not look like a valid node name")
}

/// A pool's id.
pub(super) fn pool(text: &str) -> Result<(), String> {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    fits(text.split('/').all(part), "invalid pool name")
}

/// Tags.
pub(super) fn tags(text: &str) -> Result<(), String> {
    let tag = |tag: &str| {
        tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+' | b'.'))
    };
    fits(list(text).all(tag), "invalid characters in tag")
}

/// Startup order.
pub(super) fn startup(text: &str) -> Result<(), String> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let part = |part: &str| match part.split_once('=') {
        Some(("order" | "up" | "down", value)) => number(value),
        Some(_) => false,
        None => number(part),
    };
    fits(text.split(',').all(part), "unable to parse startup options")
}

/// SSH keys, URL-encoded.
pub(super) fn urlencoded(text: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~!'()*%".contains(c);
    fits(text.chars().all(plain), &format!("invalid urlencoded string: {text}"))
}

/// The MAC address of one interface.
pub(super) fn mac(text: &str) -> Result<(), String> {
    let parts: Vec<&str> = text.split(':').collect();
    let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    let unicast = parts.first().and_then(|first| u8::from_str_radix(first, 16).ok()).is_some_and(|first| first & 1 == 0);
    fits(parts.len() == 6 && parts.iter().all(hex) && unicast, "value does not look like a valid unicast MAC address")
}

/// A volume id, or a path.
pub(super) fn volume(text: &str) -> Result<(), String> {
    if text.starts_with('/') {
        return Ok(());
    }
    let good = text
        .split_once(':')
        .is_some_and(|(storage, volume)| storage_id(storage).is_ok() && !volume.is_empty() && !volume.contains(char::is_whitespace));
    fits(good, &format!("unable to parse volume ID '{text}'"))
}

/// What stands for a drive's volume.
pub(super) fn drive_volume(text: &str) -> Result<(), String> {
    if matches!(text, "none" | "cdrom") { Ok(()) } else { volume(text) }
}

/// A size with unit, `32G`.
pub(super) fn disk_size(text: &str) -> Result<(), String> {
    fits(crate::vmconf::parse_size(text).is_some(), &format!("value does not look like a valid disk size: {text}"))
}

/// `ip=` of a cloud-init interface.
pub(super) fn ipv4_config(text: &str) -> Result<(), String> {
    fits(text == "dhcp" || cidr::<Ipv4Addr>(text, 32), "value does not look like a valid ipv4 network configuration")
}

/// `ip6=` of a cloud-init interface.
pub(super) fn ipv6_config(text: &str) -> Result<(), String> {
    fits(matches!(text, "dhcp" | "auto") || cidr::<Ipv6Addr>(text, 128), "value does not look like a valid ipv6 network configuration")
}

fn cidr<A: std::str::FromStr>(text: &str, max: u8) -> bool {
    text.split_once('/').is_some_and(|(address, bits)| address.parse::<A>().is_ok() && bits.parse::<u8>().is_ok_and(|bits| bits <= max))
}

/// An IPv4 address.
pub(super) fn ipv4(text: &str) -> Result<(), String> {
    fits(text.parse::<Ipv4Addr>().is_ok(), "value does not look like a valid IPv4 address")
}

/// An IPv6 address.
pub(super) fn ipv6(text: &str) -> Result<(), String> {
    fits(text.parse::<Ipv6Addr>().is_ok(), "value does not look like a valid IPv6 address")
}

/// Name servers. PVE takes anything here.
pub(super) fn anything(text: &str) -> Result<(), String> {
    let _ = text.parse::<IpAddr>();
    Ok(())
}

/// A UUID.
pub(super) fn uuid(text: &str) -> Result<(), String> {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths = parts.iter().map(|part| part.len()).collect::<Vec<_>>() == [8, 4, 4, 4, 12];
    fits(lengths && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'), "value does not look like a valid UUID")
}

/// A CPU type.
pub(super) fn cpu_type(text: &str) -> Result<(), String> {
    const BUILT_IN: &str = "486 Broadwell Broadwell-IBRS Broadwell-noTSX Broadwell-noTSX-IBRS Cascadelake-Server Cascadelake-Server-noTSX \
        Cascadelake-Server-v2 Cascadelake-Server-v4 Cascadelake-Server-v5 Conroe Cooperlake Cooperlake-v2 EPYC EPYC-Genoa EPYC-IBPB EPYC-Milan \
        EPYC-Milan-v2 EPYC-Rome EPYC-Rome-v2 EPYC-Rome-v3 EPYC-Rome-v4 EPYC-v3 EPYC-v4 GraniteRapids Haswell Haswell-IBRS Haswell-noTSX \
        Haswell-noTSX-IBRS Icelake-Client Icelake-Client-noTSX Icelake-Server Icelake-Server-noTSX Icelake-Server-v3 Icelake-Server-v4 \
        Icelake-Server-v5 Icelake-Server-v6 IvyBridge IvyBridge-IBRS KnightsMill Nehalem Nehalem-IBRS Opteron_G1 Opteron_G2 Opteron_G3 Opteron_G4 \
        Opteron_G5 Penryn SandyBridge SandyBridge-IBRS SapphireRapids SapphireRapids-v2 Skylake-Client Skylake-Client-IBRS \
        Skylake-Client-noTSX-IBRS Skylake-Client-v4 Skylake-Server Skylake-Server-IBRS Skylake-Server-noTSX-IBRS Skylake-Server-v4 \
        Skylake-Server-v5 Westmere Westmere-IBRS athlon core2duo coreduo host kvm32 kvm64 max pentium pentium2 pentium3 phenom qemu32 qemu64 \
        x86-64-v2 x86-64-v2-AES x86-64-v3 x86-64-v4";
    let known = text.starts_with("custom-") || BUILT_IN.split_whitespace().any(|name| name == text);
    fits(known, &format!("Built-in cputype '{text}' is not defined (missing 'custom-' prefix?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_as_recorded() {
        let cases: [(super::super::schema::Format, &str, bool); 22] = [
            (vmid, "100", true),
            (vmid, "99", false),
            (vmid, "0302", false),
            (vmid, "1000000000", false),
            (dns_name, "web-1.example.com", true),
            (dns_name, "a_b", false),
            (dns_name, "bücher", false),
            (config_id, "s1", true),
            (config_id, "1 x", false),
            (tags, "Zz;aa;b_b", true),
            (tags, "a b!", false),
            (startup, "3", true),
            (startup, "order=3,up=10,down=20", true),
            (startup, "order=x", false),
            (urlencoded, "ssh-ed25519%20AAAA%2F", true),
            (urlencoded, "ssh-ed25519+AAAA", false),
            (mac, "BC:24:11:00:00:01", true),
            (mac, "01:24:11:00:00:01", false),
            (ipv4_config, "10.99.0.77", false),
            (ipv4_config, "10.99.0.77/24", true),
            (volume, "local:101/vm-101-disk-0.raw", true),
            (volume, "unused2", false),
        ];
        for (format, text, good) in cases {
            assert_eq!(format(text).is_ok(), good, "{text}");
        }
    }
}
