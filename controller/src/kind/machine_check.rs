//! What is wrong with a machine's spec, told before any agent is asked. The rules are the API's (`proto/pvelet/v1/vm.proto`).

use std::{collections::HashMap, net::IpAddr};

use pvelet_proto::id;

use super::{
    CloneMode, CloudInitSpec, FieldError, IpConfigSpec, MachineSpec, Metadata, NicSpec, Quantity, UserDataRef, check::Checker, disk_check,
};

pub(super) const MODELS: [&str; 5] = ["virtio", "e1000", "e1000e", "rtl8139", "vmxnet3"];
const MIN_MEMORY: Quantity = Quantity(16 << 20);
const MAX_MEMORY: Quantity = Quantity(16 << 40);
/// PVE has net0 to net31.
const MAX_NICS: usize = 32;

pub(super) fn check(metadata: &Metadata, spec: &MachineSpec) -> Vec<FieldError> {
    let mut c = Checker::default();
    if let Some(name) = &spec.name {
        c.id("spec.name", id::dns_name(name));
    } else {
        c.id("metadata.name", id::dns_name(&metadata.name));
    }
    if let Some(tenant) = &spec.tenant {
        c.id("spec.tenant", id::tenant(tenant));
    }
    if let Some(host) = &spec.host {
        c.id("spec.host", id::dns_name(host));
    }
    source(&mut c, spec);
    if let Some(pool) = &spec.pool {
        c.id("spec.pool", id::pool(pool));
    }
    if let Some(vmid) = spec.vmid {
        c.id("spec.vmid", id::vmid(vmid));
    }
    if let Some(cores) = spec.cores {
        c.require((1..=512).contains(&cores), "spec.cores", cores, "use 1 to 512");
    }
    if let Some(sockets) = spec.sockets {
        c.require((1..=4).contains(&sockets), "spec.sockets", sockets, "use 1 to 4");
    }
    if let Some(memory) = spec.memory {
        c.require(
            (MIN_MEMORY..=MAX_MEMORY).contains(&memory) && memory.0.is_multiple_of(1 << 20),
            "spec.memory",
            memory,
            "use whole MiB from 16Mi to 16Ti, such as 2Gi; a number without a unit means bytes",
        );
    }
    if let Some(disk) = spec.boot_disk {
        c.require(disk.0 > 0 && disk.0.is_multiple_of(1 << 20), "spec.bootDisk", disk, "use whole MiB, such as 20Gi");
    }
    disk_check::check(&mut c, metadata, &spec.disks);
    let mut macs = HashMap::new();
    for (i, nic_spec) in spec.nics.iter().flatten().enumerate() {
        nic(&mut c, i, nic_spec);
        if let Some(mac) = &nic_spec.mac
            && let Some(first) = macs.insert(mac.to_ascii_uppercase(), i)
        {
            let text = format!("spec.nics[{first}] has that address already; give each its own, or leave it out to have PVE choose");
            c.require(false, &format!("spec.nics[{i}].mac"), mac, &text);
        }
    }
    let count = spec.nics.as_ref().map_or(0, Vec::len);
    c.require(count <= MAX_NICS, "spec.nics", count, "use at most 32");
    for (i, tag) in spec.tags.iter().flatten().enumerate() {
        c.id(&format!("spec.tags[{i}]"), id::tag(tag));
    }
    if let Some(cloud_init_spec) = &spec.cloud_init {
        cloud_init(&mut c, cloud_init_spec);
    }
    c.done()
}

fn source(c: &mut Checker, spec: &MachineSpec) {
    let tags = spec.source.tags.as_deref();
    c.require(
        spec.source.template.is_some() != tags.is_some(),
        "spec.source",
        "",
        "name the template either by template: <vmid> or by tags: [...], not both",
    );
    if let Some(vmid) = spec.source.template {
        c.id("spec.source.template", id::vmid(vmid));
    }
    c.require(tags != Some(&[]), "spec.source.tags", "[]", "name at least one tag");
    for (i, tag) in tags.unwrap_or_default().iter().enumerate() {
        c.id(&format!("spec.source.tags[{i}]"), id::tag(tag));
    }
    if let Some(storage) = &spec.storage {
        c.id("spec.storage", id::storage(storage));
        c.require(
            spec.clone_mode == CloneMode::Full,
            "spec.storage",
            storage,
            "a linked clone lies on the template's storage; leave it out or set cloneMode: full",
        );
    }
}

fn nic(c: &mut Checker, index: usize, nic: &NicSpec) {
    let at = |field: &str| format!("spec.nics[{index}].{field}");
    c.id(&at("bridge"), id::interface(&nic.bridge));
    if let Some(vlan) = nic.vlan {
        c.require((1..=4094).contains(&vlan), &at("vlan"), vlan, "use 1 to 4094, or leave it out for untagged");
    }
    if let Some(mac) = &nic.mac {
        c.id(&at("mac"), id::mac(mac));
    }
    if let Some(model) = &nic.model {
        c.require(MODELS.contains(&model.as_str()), &at("model"), model, "use virtio, e1000, e1000e, rtl8139 or vmxnet3");
    }
    if let Some(mtu) = nic.mtu {
        c.require(mtu == 1 || (576..=65520).contains(&mtu), &at("mtu"), mtu, "use 576 to 65520, or 1 for the bridge's");
        let takes = nic.model.as_deref().is_none_or(|model| model == "virtio");
        c.require(takes, &at("mtu"), mtu, "only model virtio takes one: use virtio, or leave it out");
    }
}

fn cloud_init(c: &mut Checker, spec: &CloudInitSpec) {
    if let Some(user) = &spec.user {
        let b = user.as_bytes();
        let first = |x: &u8| x.is_ascii_lowercase() || *x == b'_';
        let ok = (1..=32).contains(&b.len()) && first(&b[0]) && b.iter().all(|x| first(x) || x.is_ascii_digit() || *x == b'-');
        c.require(ok, "spec.cloudInit.user", user, "use 1 to 32 of [a-z0-9_-], beginning with a letter or '_'");
    }
    for (i, key) in spec.ssh_keys.iter().enumerate() {
        let mut words = key.split_ascii_whitespace();
        let kind = words.next().unwrap_or_default();
        let known = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"].iter().any(|p| kind.starts_with(p));
        let ok = known && words.next().is_some_and(|blob| blob.starts_with("AAAA")) && !key.contains('\n');
        // The value is not repeated: somebody may have put a private key here.
        c.require(
            ok,
            &format!("spec.cloudInit.sshKeys[{i}]"),
            "",
            "use one public key in OpenSSH's format, such as 'ssh-ed25519 AAAA... name'",
        );
    }
    for (i, ip) in spec.ip_configs.iter().enumerate() {
        ip_config(c, i, ip);
        let twice = spec.ip_configs[..i].iter().any(|other| other.nic == ip.nic);
        c.require(!twice, &format!("spec.cloudInit.ipConfigs[{i}].nic"), ip.nic, "it is there twice: put both into one entry");
    }
    for (i, address) in spec.nameservers.iter().enumerate() {
        c.require(address.parse::<IpAddr>().is_ok(), &format!("spec.cloudInit.nameservers[{i}]"), address, "use an IP address");
    }
    if let Some(domain) = &spec.search_domain {
        c.id("spec.cloudInit.searchDomain", id::dns_name(domain));
    }
    if let Some(user_data) = &spec.user_data {
        let beside = "it does not count beside userData: leave it out, and say it there";
        let user = spec.user.as_deref().unwrap_or_default();
        c.require(spec.user.is_none(), "spec.cloudInit.user", user, beside);
        c.require(spec.ssh_keys.is_empty(), "spec.cloudInit.sshKeys", "", beside);
        user_data_ref(c, user_data);
    }
}

fn user_data_ref(c: &mut Checker, user_data: &UserDataRef) {
    let (secret, map) = (&user_data.secret_ref, &user_data.config_map_ref);
    let remedy = "name the user data either by secretRef: {name, key} or by configMapRef: {name, key}, not both";
    c.require(secret.is_some() != map.is_some(), "spec.cloudInit.userData", "", remedy);
    for (field, named) in [("secretRef", secret), ("configMapRef", map)] {
        let Some(named) = named else { continue };
        let at = |part: &str| format!("spec.cloudInit.userData.{field}.{part}");
        // As Kubernetes has it: its labels may be longer than those of DNS.
        let part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let label = |l: &str| !l.is_empty() && l.bytes().all(part) && !l.starts_with('-') && !l.ends_with('-');
        let sound = named.name.len() <= 253 && named.name.split('.').all(label);
        let remedy = "use the name of an object: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit";
        c.require(sound, &at("name"), &named.name, remedy);
        let known = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let key = named.key.as_str();
        let ok = (1..=253).contains(&key.len()) && key.bytes().all(known) && !key.starts_with("..") && key != ".";
        c.require(ok, &at("key"), key, "use 1 to 253 letters, digits, '-', '_' and '.', not beginning with '..'");
    }
}

/// An address with prefix length.
fn subnet(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
}

fn contains((network, prefix): (IpAddr, u8), address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => (n.to_bits() ^ a.to_bits()).checked_shr(32 - u32::from(prefix)).is_none_or(|x| x == 0),
        (IpAddr::V6(n), IpAddr::V6(a)) => {
            a.is_unicast_link_local() || (n.to_bits() ^ a.to_bits()).checked_shr(128 - u32::from(prefix)).is_none_or(|x| x == 0)
        }
        _ => false,
    }
}

fn ip_config(c: &mut Checker, index: usize, ip: &IpConfigSpec) {
    let families = [("ipv4", &ip.ipv4, "gateway4", &ip.gateway4, true), ("ipv6", &ip.ipv6, "gateway6", &ip.gateway6, false)];
    for (field, value, gateway_field, gateway, v4) in families {
        let at = |field: &str| format!("spec.cloudInit.ipConfigs[{index}].{field}");
        let fixed = value.as_deref().and_then(subnet).filter(|(a, _)| a.is_ipv4() == v4);
        if let Some(text) = value {
            let ok = fixed.is_some() || text == "dhcp" || (text == "auto" && !v4);
            let rule =
                if v4 { "use dhcp or an address such as 10.0.0.5/24" } else { "use dhcp, auto or an address such as 2001:db8::5/64" };
            c.require(ok, &at(field), text, rule);
        }
        if let Some(text) = gateway {
            let inside = text.parse().ok().zip(fixed).is_some_and(|(g, net)| contains(net, g));
            c.require(inside, &at(gateway_field), text, "use an address inside the subnet of the fixed address");
            let own = inside && text.parse().ok() == fixed.map(|(address, _)| address);
            c.require(!own, &at(gateway_field), text, "it is the VM's own address: use another one inside its subnet");
        }
    }
    c.require(ip.nic < 32, &format!("spec.cloudInit.ipConfigs[{index}].nic"), ip.nic, "use 0 to 31");
}

#[cfg(test)]
mod tests {
    use crate::kind::parse;

    fn mistakes(cloud_init: &str) -> Vec<String> {
        let text = format!(
            "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {{name: web-1}}\nspec: {{source: {{template: 9000}}, cloudInit: {cloud_init}}}\n"
        );
        parse(&text).1.into_iter().flat_map(|p| p.mistakes).map(|m| m.to_string()).collect()
    }

    #[test]
    fn the_example_with_user_data_is_sound() {
        let (manifests, problems) = parse(include_str!("../../../docs/examples/talos-1.yaml"));
        assert_eq!((manifests.len(), problems), (1, vec![]));
    }

    #[test]
    fn user_data_has_one_source_and_rules_out_what_would_not_count() {
        const SECRET: &str = "userData: {secretRef: {name: a.b-c, key: user_data.yaml}}";
        for (cloud_init, want) in [
            (format!("{{{SECRET}, nameservers: [10.0.0.1]}}"), None),
            ("{userData: {configMapRef: {name: a, key: .k}}}".to_owned(), None),
            ("{userData: {}}".to_owned(), Some("spec.cloudInit.userData: name the user data either by secretRef")),
            (
                "{userData: {secretRef: {name: a, key: k}, configMapRef: {name: a, key: k}}}".to_owned(),
                Some("spec.cloudInit.userData: name the user data either by secretRef"),
            ),
            (format!("{{{SECRET}, user: ann}}"), Some("spec.cloudInit.user = ann: it does not count beside userData")),
            (format!("{{{SECRET}, sshKeys: [ssh-ed25519 AAAAC3Nz]}}"), Some("spec.cloudInit.sshKeys: it does not count beside userData")),
            (
                "{userData: {secretRef: {name: ../a, key: k}}}".to_owned(),
                Some("spec.cloudInit.userData.secretRef.name = ../a: use the name"),
            ),
            ("{userData: {secretRef: {name: A, key: k}}}".to_owned(), Some("spec.cloudInit.userData.secretRef.name = A: use the name")),
            (
                "{userData: {configMapRef: {name: a, key: ..}}}".to_owned(),
                Some("spec.cloudInit.userData.configMapRef.key = ..: use 1 to 253"),
            ),
            (
                "{userData: {configMapRef: {name: a, key: a/b}}}".to_owned(),
                Some("spec.cloudInit.userData.configMapRef.key = a/b: use 1 to 253"),
            ),
            ("{userData: {secretRef: {name: a, key: k, value: x}}}".to_owned(), Some("unknown field `value`")),
        ] {
            let told = mistakes(&cloud_init);
            match want {
                None => assert_eq!(told, Vec::<String>::new(), "{cloud_init}"),
                Some(want) => assert!(told.len() == 1 && told[0].contains(want), "{cloud_init}: {told:?}"),
            }
        }
    }
}
