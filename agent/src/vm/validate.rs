//! What a request may say. All violations are told at once, each with field, value and remedy. PVE accepts several of these without a word.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use pvelet_proto::{id, reason, v1};

use super::{mark::looks_like_mark, missing, view};
use crate::{
    error::{Error, Violation},
    host::{links::BridgeInfo, pve::Inventory},
};

const MIB: u64 = 1 << 20;
/// Limits of PVE.
const CORES: (u32, u32) = (1, 512);
const SOCKETS: (u32, u32) = (1, 4);
const MEMORY_MIB: (u64, u64) = (16, 16_777_216);
const NICS: u32 = 32;
/// PVE stores 8 KiB; the mark needs room.
const DESCRIPTION: usize = 4096;
/// NIC models of QEMU that PVE knows.
const MODELS: [&str; 4] = ["virtio", "e1000", "e1000e", "vmxnet3"];

type Violations = Vec<Violation>;

fn add(violations: &mut Violations, field: impl Into<String>, reason: &'static str, text: impl Into<String>) {
    violations.push(Violation::new(field, reason, text));
}

/// The key of a call.
pub(crate) fn meta(meta: Option<&v1::RequestMeta>) -> Result<(), Error> {
    let meta = meta.ok_or_else(|| missing("meta"))?;
    let mut v = Violations::new();
    if let Err(e) = id::tenant(&meta.tenant) {
        add(&mut v, "meta.tenant", reason::INVALID_TENANT, e.to_string());
    }
    if let Err(e) = id::request_id(&meta.request_id) {
        add(&mut v, "meta.request_id", reason::INVALID_REQUEST_ID, e.to_string());
    }
    done(v)
}

/// The VM of a change: both parts are needed.
pub(super) fn vm_ref(vm: &v1::VmRef) -> Result<(), Error> {
    let mut v = Violations::new();
    if let Err(e) = id::vmid(vm.vmid) {
        add(&mut v, "vm.vmid", reason::VMID_OUT_OF_RANGE, e.to_string());
    }
    if let Err(e) = id::uuid(&vm.uuid) {
        add(&mut v, "vm.uuid", reason::INVALID_UUID, e.to_string());
    }
    done(v)
}

/// Nothing, or all of them.
pub(crate) fn done(violations: Violations) -> Result<(), Error> {
    if violations.is_empty() { Ok(()) } else { Err(Error::Invalid(violations)) }
}

/// What of a clone request can be judged by itself.
pub(super) fn clone_request(request: &v1::CloneVmRequest, range: (u32, u32)) -> Violations {
    let mut v = Violations::new();
    if request.vmid != 0 && !(range.0..=range.1).contains(&request.vmid) {
        let text = format!(
            "{} is outside this host's range {} to {}; choose one inside it, or 0 to let the agent choose",
            request.vmid, range.0, range.1
        );
        add(&mut v, "vmid", reason::VMID_OUT_OF_RANGE, text);
    }
    if v1::CloneMode::try_from(request.mode).is_err() {
        add(&mut v, "mode", reason::INVALID_FIELD, format!("{} is no mode; use LINKED or FULL", request.mode));
    }
    if !request.storage.is_empty() {
        if request.mode() != v1::CloneMode::Full {
            let text = format!(
                "'{}' cannot be chosen for a linked clone, which stays on its template's storage; leave it empty, or use mode FULL",
                request.storage
            );
            add(&mut v, "storage", reason::LINKED_CLONE_STORAGE, text);
        }
        if let Err(e) = id::storage(&request.storage) {
            add(&mut v, "storage", reason::INVALID_FIELD, e.to_string());
        }
    }
    if !request.pool.is_empty()
        && let Err(e) = id::pool(&request.pool)
    {
        add(&mut v, "pool", reason::INVALID_FIELD, e.to_string());
    }
    if let Some(v1::CloneSource { source: Some(v1::clone_source::Source::Tags(list)) }) = &request.source {
        for (i, tag) in list.tags.iter().enumerate() {
            if let Err(e) = id::tag(tag) {
                add(&mut v, format!("source.tags[{i}]"), reason::INVALID_FIELD, e.to_string());
            }
        }
    }
    if let Some(owner) = &request.owner {
        owner_of(owner, &request.meta.as_ref().map(|m| m.tenant.clone()).unwrap_or_default(), &mut v);
    }
    match &request.config {
        Some(config) if config.name.is_some() => {}
        _ => add(&mut v, "config.name", reason::INVALID_NAME, "it is missing; a new VM needs a name"),
    }
    v
}

fn owner_of(owner: &v1::Owner, tenant: &str, v: &mut Violations) {
    if !owner.tenant.is_empty() && owner.tenant != tenant {
        add(v, "owner.tenant", reason::INVALID_TENANT, format!("'{}' is not meta.tenant '{tenant}'; leave it empty", owner.tenant));
    }
    let fits =
        owner.cluster.len() <= 63 && owner.cluster.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'.' || c == b'-');
    if !fits {
        add(v, "owner.cluster", reason::INVALID_FIELD, format!("'{}' is not up to 63 characters of [a-z0-9.-]", owner.cluster));
    }
    if !owner.machine_uid.is_empty()
        && let Err(e) = id::uuid(&owner.machine_uid)
    {
        add(v, "owner.machine_uid", reason::INVALID_UUID, e.to_string());
    }
}

/// Settings, as far as they can be judged by themselves.
pub(super) fn config(config: &v1::VmConfig) -> Violations {
    let mut v = Violations::new();
    if let Some(name) = &config.name
        && let Err(e) = id::dns_name(name)
    {
        add(&mut v, "config.name", reason::INVALID_NAME, e.to_string());
    }
    let mut range = |field: &str, value: Option<u64>, (low, high): (u64, u64), unit: &str| {
        if let Some(value) = value.filter(|n| !(low..=high).contains(n)) {
            add(&mut v, field, reason::INVALID_FIELD, format!("{value} is outside {low} to {high}{unit}"));
        }
    };
    range("config.cores", config.cores.map(u64::from), (CORES.0.into(), CORES.1.into()), "");
    range("config.sockets", config.sockets.map(u64::from), (SOCKETS.0.into(), SOCKETS.1.into()), "");
    range("config.memory_mib", config.memory_mib, MEMORY_MIB, " MiB");
    if let Some(bytes) = config.boot_disk_bytes.filter(|b| *b == 0 || b % MIB != 0) {
        add(&mut v, "config.boot_disk_bytes", reason::INVALID_FIELD, format!("{bytes} is no multiple of 1 MiB ({MIB} bytes)"));
    }
    if let Some(text) = &config.description {
        if text.chars().count() > DESCRIPTION {
            add(
                &mut v,
                "config.description",
                reason::INVALID_FIELD,
                format!("it has {} characters; at most {DESCRIPTION} are possible", text.chars().count()),
            );
        }
        if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
            add(&mut v, "config.description", reason::INVALID_FIELD, "it holds control characters; leave out all but line feed and tab");
        }
        if text.lines().any(looks_like_mark) {
            add(
                &mut v,
                "config.description",
                reason::INVALID_FIELD,
                "a line begins with 'pvelet:v', which only pvelet itself may write; leave it out",
            );
        }
    }
    for (i, tag) in config.tags.iter().flat_map(|t| &t.tags).enumerate() {
        if let Err(e) = id::tag(tag) {
            add(&mut v, format!("config.tags[{i}]"), reason::INVALID_FIELD, e.to_string());
        }
    }
    if let Some(list) = &config.nics {
        nics(&list.nics, &mut v);
    }
    if let Some(cloud_init) = &config.cloud_init {
        cloud_init_settings(cloud_init, &mut v);
    }
    v
}

fn nics(nics: &[v1::Nic], v: &mut Violations) {
    let (mut indexes, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for (i, nic) in nics.iter().enumerate() {
        let field = |name: &str| format!("config.nics[{i}].{name}");
        if nic.index >= NICS {
            add(v, field("index"), reason::INVALID_FIELD, format!("{} is outside 0 to {}", nic.index, NICS - 1));
        } else if !indexes.insert(nic.index) {
            add(v, field("index"), reason::INVALID_FIELD, format!("{} stands twice; each NIC needs its own", nic.index));
        }
        if !nic.model.is_empty() && !MODELS.contains(&nic.model.as_str()) {
            add(v, field("model"), reason::INVALID_FIELD, format!("'{}' is none of {}", nic.model, MODELS.join(", ")));
        }
        if !nic.mac.is_empty() {
            match id::mac(&nic.mac) {
                Err(e) => add(v, field("mac"), reason::INVALID_MAC, e.to_string()),
                Ok(mac) if !macs.insert(mac.clone()) => {
                    add(v, field("mac"), reason::INVALID_MAC, format!("{mac} stands twice; leave it empty to let PVE choose"));
                }
                Ok(_) => {}
            }
        }
        if let Err(e) = id::interface(&nic.bridge) {
            add(v, field("bridge"), reason::INVALID_FIELD, e.to_string());
        }
        if nic.vlan > 4094 {
            add(v, field("vlan"), reason::INVALID_FIELD, format!("{} is outside 1 to 4094 (0 for untagged)", nic.vlan));
        }
        if !(nic.mtu <= 1 || (576..=65520).contains(&nic.mtu)) {
            add(
                v,
                field("mtu"),
                reason::INVALID_FIELD,
                format!("{} is outside 576 to 65520 (0 for the default, 1 for the bridge's)", nic.mtu),
            );
        }
        if nic.mtu != 0 && !nic.model.is_empty() && nic.model != "virtio" {
            add(v, field("mtu"), reason::INVALID_FIELD, format!("model '{}' takes none; use virtio or leave it 0", nic.model));
        }
    }
}

fn cloud_init_settings(c: &v1::CloudInit, v: &mut Violations) {
    let user_ok = c.user.is_empty()
        || (c.user.len() <= 32
            && c.user.starts_with(|ch: char| ch.is_ascii_lowercase() || ch == '_')
            && c.user.chars().all(|ch| ch.is_ascii_lowercase() || ch.is_ascii_digit() || ch == '_' || ch == '-'));
    if !user_ok {
        add(v, "config.cloud_init.user", reason::INVALID_FIELD, format!("'{}' is not 1 to 32 characters of [a-z_][a-z0-9_-]*", c.user));
    }
    if c.user_data.as_ref().is_some_and(|data| !data.is_empty()) {
        let text = "it does not count beside user_data; leave it empty, and say it there";
        if !c.user.is_empty() {
            add(v, "config.cloud_init.user", reason::INVALID_FIELD, text);
        }
        if !c.ssh_keys.is_empty() {
            add(v, "config.cloud_init.ssh_keys", reason::INVALID_FIELD, text);
        }
    }
    for (i, key) in c.ssh_keys.iter().enumerate() {
        if let Err(why) = ssh_key(key) {
            add(v, format!("config.cloud_init.ssh_keys[{i}]"), reason::INVALID_SSH_KEY, why);
        }
    }
    for (i, server) in c.nameservers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            add(v, format!("config.cloud_init.nameservers[{i}]"), reason::INVALID_ADDRESS, format!("'{server}' is no IP address"));
        }
    }
    if !c.search_domain.is_empty()
        && let Err(e) = id::dns_name(&c.search_domain)
    {
        add(v, "config.cloud_init.search_domain", reason::INVALID_NAME, e.to_string());
    }
    let mut seen = BTreeSet::new();
    for (i, ip) in c.ip_configs.iter().enumerate() {
        let field = |name: &str| format!("config.cloud_init.ip_configs[{i}].{name}");
        if ip.nic >= NICS {
            add(v, field("nic"), reason::INVALID_FIELD, format!("{} is outside 0 to {}", ip.nic, NICS - 1));
        } else if !seen.insert(ip.nic) {
            add(v, field("nic"), reason::INVALID_FIELD, format!("{} stands twice", ip.nic));
        }
        address(&ip.ipv4, &ip.gateway4, (field("ipv4"), field("gateway4")), &["dhcp"], |a| a.is_ipv4(), v);
        address(&ip.ipv6, &ip.gateway6, (field("ipv6"), field("gateway6")), &["dhcp", "auto"], |a| a.is_ipv6(), v);
    }
}

fn address(text: &str, gateway: &str, fields: (String, String), words: &[&str], family: fn(&IpAddr) -> bool, v: &mut Violations) {
    let fixed = match text {
        "" => None,
        word if words.contains(&word) => None,
        _ => {
            let parsed = text.split_once('/').and_then(|(a, p)| Some((a.parse::<IpAddr>().ok().filter(family)?, p.parse::<u8>().ok()?)));
            match parsed.filter(|(a, p)| *p <= if a.is_ipv4() { 32 } else { 128 }) {
                Some(found) => Some(found),
                None => {
                    let text = format!(
                        "'{text}' is none of {}, and no address with a prefix length such as 10.0.0.5/24 or 2001:db8::5/64",
                        words.join(", ")
                    );
                    return add(v, fields.0, reason::INVALID_ADDRESS, text);
                }
            }
        }
    };
    if gateway.is_empty() {
        return;
    }
    match (gateway.parse::<IpAddr>().ok().filter(family), fixed) {
        (None, _) => add(v, fields.1, reason::INVALID_ADDRESS, format!("'{gateway}' is no such IP address")),
        (Some(_), None) => add(v, fields.1, reason::INVALID_GATEWAY, format!("'{gateway}' needs a fixed address; leave it empty")),
        (Some(IpAddr::V6(g)), Some(_)) if g.is_unicast_link_local() => {}
        (Some(g), Some((a, prefix))) if !view::in_subnet(a, prefix, g) => {
            add(v, fields.1, reason::INVALID_GATEWAY, format!("{g} is outside {a}/{prefix}"));
        }
        (Some(g), Some((a, _))) if g == a => add(v, fields.1, reason::INVALID_GATEWAY, format!("{g} is the VM's own address")),
        _ => {}
    }
}

/// An OpenSSH public key: type, base64, and maybe a comment, in one line; the type stands again inside the base64.
fn ssh_key(key: &str) -> Result<(), String> {
    let shown: String = key.chars().take(40).collect();
    // Also what only YAML takes for the end of a line: PVE writes the key into such a file.
    let breaks = |c: char| (c.is_control() && c != '\t') || matches!(c, '\u{2028}' | '\u{2029}');
    if key.contains(breaks) {
        return Err(format!("'{}...' has several lines or control characters; give each key as its own entry", shown.escape_debug()));
    }
    let mut words = key.split_ascii_whitespace();
    let (kind, data) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let known =
        matches!(kind, "ssh-rsa" | "ssh-ed25519" | "ssh-dss" | "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" | "ecdsa-sha2-nistp521")
            || kind.starts_with("sk-ssh-ed25519@")
            || kind.starts_with("sk-ecdsa-sha2-nistp256@");
    if !known {
        return Err(format!("'{shown}' does not begin with a key type such as ssh-ed25519"));
    }
    let charset = data.trim_end_matches('=').bytes().all(|c| c.is_ascii_alphanumeric() || c == b'+' || c == b'/');
    // Every key begins with the four bytes of its type's length, three of which are 0: "AAAA".
    if data.len() < 16 || !charset || !data.starts_with("AAAA") {
        return Err(format!("'{shown}...' has no base64 key after its type; paste the whole line of the .pub file"));
    }
    Ok(())
}

/// What of NICs depends on the host and the cluster: bridges exist, and nobody else has the MAC addresses.
pub(super) fn nics_here(nics: &[v1::Nic], bridges: &[BridgeInfo], inventory: &Inventory, own: u32, node: &str) -> Result<(), Error> {
    let mut v = Violations::new();
    if nics.iter().any(|n| !n.mac.is_empty()) {
        let mut taken: BTreeMap<String, u32> = BTreeMap::new();
        for vm in inventory.vms.values().filter(|vm| vm.vmid != own) {
            taken.extend(view::nics(&vm.config).into_iter().map(|nic| (nic.mac, vm.vmid)));
        }
        for (i, nic) in nics.iter().enumerate().filter(|(_, n)| !n.mac.is_empty()) {
            if let Some((mac, vmid)) = id::mac(&nic.mac).ok().and_then(|mac| taken.get(&mac).map(|vmid| (mac, *vmid))) {
                let text = format!("{mac} is VM {vmid}'s; choose another, or leave it empty to let PVE choose");
                add(&mut v, format!("config.nics[{i}].mac"), reason::INVALID_MAC, text);
            }
        }
    }
    for (i, nic) in nics.iter().enumerate() {
        match bridges.iter().find(|b| b.name == nic.bridge) {
            None => return Err(Error::BridgeNotFound { bridge: nic.bridge.clone(), node: node.to_owned() }),
            Some(bridge) if nic.vlan != 0 && !bridge.vlan_aware => {
                // PVE makes a bridge `vmbr0v7` for such a tag by itself, which needs a physical port; that is the host's affair.
                tracing::debug!(bridge = %bridge.name, vlan = nic.vlan, nic = i, "VLAN tag on a bridge that is not VLAN-aware");
            }
            Some(_) => {}
        }
    }
    done(v)
}
