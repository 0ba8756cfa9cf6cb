//! The agent's own file, `/etc/network/interfaces.d/pvelet`: what ifupdown2 brings up, and at once the only record of what was applied.
//!
//! A header with the digest of the rest; then each network: a comment line with its [`Definition`] as JSON, and the stanzas of its interfaces,
//! what others stand on first. Text of a caller never stands in it as it came: names are checked, addresses are written anew, and since
//! ifupdown2 hands a text with a `%` to a template engine that runs code, there is no `%` or `$` in it, nor anything but printable ASCII.

use std::fmt::Write as _;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::{
    definition::{Definition, Interface, Kind},
    validate,
};

/// The first lines, before format and digest.
const HEADER: &str = "# The interfaces that pvelet declares on this host. Made by pvelet-agent: do not edit.\n\
                      # An edited file is refused; `pveletctl network` changes it.\n";
const FORMAT: &str = "# pvelet-format: ";
const DIGEST: &str = "# pvelet-sha256: ";
const NETWORK: &str = "# pvelet-network: ";
/// The format this version writes.
const VERSION: u32 = 1;
/// Ports that stay on a bridge when it is changed, though no file declares them: guests', and those of probes. PVE's build of ifupdown2 keeps
/// guests' by itself; no other does.
const CONDONED: &str = "^(tap|veth|fwpr|fwln|pvprobe)[0-9]";
/// Below this there is no IPv6 on a link, so nothing to turn off.
const IPV6_MTU: u32 = 1280;

/// The networks of the own file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnFile {
    /// By name.
    pub networks: Vec<Definition>,
}

impl OwnFile {
    /// Reads the file; `None`: there is none, and so no networks. Errors: somebody edited it, or a later version wrote it.
    pub fn parse(text: Option<&str>) -> Result<Self, String> {
        let Some(text) = text else { return Ok(Self::default()) };
        let mut body = text;
        let (mut format, mut digest) = (None, None);
        while digest.is_none() {
            let Some((line, rest)) = body.split_once('\n') else { return Err("its header is gone, so somebody edited it".into()) };
            body = rest;
            format = format.or(line.strip_prefix(FORMAT));
            digest = line.strip_prefix(DIGEST);
        }
        match format.map(str::parse::<u32>) {
            Some(Ok(VERSION)) => {}
            Some(Ok(v)) if v > VERSION => {
                return Err(format!("it has format {v}, and this agent knows {VERSION} at most: update the agent"));
            }
            _ => return Err("its header is broken, so somebody edited it".into()),
        }
        if digest != Some(self::digest(body).as_str()) {
            return Err("its digest does not fit, so somebody edited it".into());
        }
        let mut networks = Vec::new();
        for json in body.lines().filter_map(|l| l.strip_prefix(NETWORK)) {
            let definition: Definition = serde_json::from_str(json).map_err(|e| format!("a network in it cannot be read: {e}"))?;
            networks.push(definition);
        }
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(w) = networks.windows(2).find(|w| w[0].name == w[1].name) {
            return Err(format!("network '{}' is in it twice", w[0].name));
        }
        if let Some(name) = networks.iter().flat_map(names).find(|n| !validate::is_link_name(n)) {
            return Err(format!("'{name}' in it is no name of an interface"));
        }
        Ok(Self { networks })
    }

    /// The file's text; `None` without networks: there is no file then. `parse` gives back the same networks.
    pub fn render(&self) -> Option<String> {
        if self.networks.is_empty() {
            return None;
        }
        let mut networks: Vec<&Definition> = self.networks.iter().collect();
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        let mut body = String::new();
        for network in networks {
            let _ = writeln!(body, "\n{NETWORK}{}", json(network));
            for interface in in_order(&network.interfaces) {
                stanza(&mut body, interface);
            }
        }
        Some(format!("{HEADER}{FORMAT}{VERSION}\n{DIGEST}{}\n{body}", digest(&body)))
    }

    /// The network with this name.
    pub fn network(&self, name: &str) -> Option<&Definition> {
        self.networks.iter().find(|n| n.name == name)
    }

    /// The file with this network instead of the one of its name; with `None`, without it.
    #[must_use]
    pub fn with(&self, name: &str, network: Option<&Definition>) -> Self {
        let mut networks: Vec<Definition> = self.networks.iter().filter(|n| n.name != name).cloned().collect();
        networks.extend(network.cloned());
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        Self { networks }
    }

    /// All interfaces, with the name of their network.
    pub fn interfaces(&self) -> impl Iterator<Item = (&str, &Interface)> {
        self.networks.iter().flat_map(|n| n.interfaces.iter().map(move |i| (n.name.as_str(), i)))
    }
}

/// What an interface stands on: a VLAN's parent, a bridge's ports.
pub(super) fn lower(interface: &Interface) -> &[String] {
    match &interface.kind {
        Kind::Vlan { parent, .. } => std::slice::from_ref(parent),
        Kind::Bridge { ports, .. } => ports,
    }
}

fn names(network: &Definition) -> impl Iterator<Item = &str> {
    network.interfaces.iter().flat_map(|i| std::iter::once(i.name.as_str()).chain(lower(i).iter().map(String::as_str)))
}

/// Interfaces of one network so that each comes after what it stands on; otherwise in the order given.
pub(super) fn in_order(interfaces: &[Interface]) -> Vec<&Interface> {
    let mut out: Vec<&Interface> = Vec::with_capacity(interfaces.len());
    let mut left: Vec<&Interface> = interfaces.iter().collect();
    while !left.is_empty() {
        let waits = |i: &Interface| lower(i).iter().any(|l| left.iter().any(|o| &o.name == l));
        let (ready, rest): (Vec<_>, Vec<_>) = left.iter().partition(|i| !waits(i));
        if ready.is_empty() {
            // A cycle: no validated network has one. The order is then nobody's.
            out.extend(rest);
            break;
        }
        out.extend(ready);
        left = rest;
    }
    out
}

fn digest(body: &str) -> String {
    hex::encode(Sha256::digest(body.as_bytes()))
}

/// JSON in printable ASCII without `%` and `$`: such characters stand inside strings only, where JSON has an escape for each.
fn json(network: &Definition) -> String {
    let plain = serde_json::to_string(network).unwrap_or_default();
    let mut out = String::with_capacity(plain.len());
    for c in plain.chars() {
        if matches!(c, ' '..='~') && !matches!(c, '%' | '$') {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// The `iface` stanza of an interface, with its `auto` line.
pub(super) fn stanza(out: &mut String, interface: &Interface) {
    let name = &interface.name;
    let comment: String = interface.comment.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    if !comment.trim().is_empty() {
        // Two blanks: no comment can pass for one of the lines that are read again.
        let _ = writeln!(out, "#  {}", comment.trim());
    }
    let (v4, v6): (Vec<&IpNet>, Vec<&IpNet>) = interface.addresses.iter().partition(|a| a.addr().is_ipv4());
    // One stanza for both families: of several, ifupdown2 removes no address that is gone, and resets the MTU.
    let method = match (v4.is_empty(), v6.is_empty()) {
        (true, true) => "inet manual",
        (true, false) => "inet6 static",
        _ => "inet static",
    };
    let _ = writeln!(out, "auto {name}\niface {name} {method}");
    for address in v4.iter().chain(&v6) {
        let _ = writeln!(out, "\taddress {address}");
    }
    match &interface.kind {
        Kind::Vlan { parent, id, service } => {
            let _ = writeln!(out, "\tvlan-raw-device {parent}\n\tvlan-id {id}");
            if *service {
                let _ = writeln!(out, "\tvlan-protocol 802.1ad");
            }
        }
        Kind::Bridge { ports, vlan_aware, vids } => {
            let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(" ") };
            let _ = writeln!(out, "\tbridge-ports {ports}\n\tbridge-ports-condone-regex {CONDONED}\n\tbridge-stp off\n\tbridge-fd 0");
            if *vlan_aware {
                let _ = writeln!(out, "\tbridge-vlan-aware yes");
            }
            if *vlan_aware && !vids.is_empty() {
                let _ = writeln!(out, "\tbridge-vids {}", vids_text(vids, " "));
            }
        }
    }
    if let Some(mtu) = interface.mtu {
        let _ = writeln!(out, "\tmtu {mtu}");
    }
    // The host has no business in a network in which it has no address: no link-local one, and none by router advertisements.
    if v6.is_empty() && interface.mtu.is_none_or(|m| m >= IPV6_MTU) {
        let _ = writeln!(out, "\tipv6-addrgen off");
    }
}

/// What of a comment is written for people; the JSON has all of it.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || " ,.:;/()+=_@!?*-".contains(c)
}

/// Ranges such as `1 5-9`.
pub(super) fn vids_text(vids: &[(u16, u16)], between: &str) -> String {
    let one = |&(a, b): &(u16, u16)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    vids.iter().map(one).collect::<Vec<_>>().join(between)
}

#[cfg(test)]
#[path = "own_file_tests.rs"]
mod tests;
