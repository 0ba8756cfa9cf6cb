//! A VM as the API shows it.

use std::net::IpAddr;

use pvelet_proto::{v1, volume::VolumeId};

use super::{
    mark::{self, Mark},
    user_data,
};
use crate::host::pve::{
    Inventory, RunState, VmRecord,
    config_file::{ConfigFile, properties},
};

/// A VM. Keys and passwords are left out.
pub fn to_proto(inventory: &Inventory, vm: &VmRecord) -> v1::Vm {
    let ambiguous = vm.config.uuid().is_some_and(|uuid| inventory.by_uuid(uuid).len() > 1);
    with_ambiguity(vm, ambiguous)
}

/// The same, where it is known already whether another VM has the same UUID.
pub(super) fn with_ambiguity(vm: &VmRecord, ambiguous_uuid: bool) -> v1::Vm {
    let config = &vm.config;
    let (state, start_time) = match &vm.run {
        RunState::Stopped => (v1::VmState::Stopped, None),
        RunState::Running { since, .. } => (v1::VmState::Running, Some((*since).into())),
        RunState::Paused { since, .. } => (v1::VmState::Paused, Some((*since).into())),
        RunState::Unknown => (v1::VmState::Unknown, None),
    };
    v1::Vm {
        vmid: vm.vmid,
        uuid: config.uuid().unwrap_or_default().to_ascii_lowercase(),
        name: config.get("name").unwrap_or_default().to_owned(),
        node: vm.node.clone(),
        template: config.is_template(),
        state: state.into(),
        lock: config.lock().unwrap_or_default().to_owned(),
        tags: config.tags(),
        cores: small(config.number("cores"), 1),
        sockets: small(config.number("sockets"), 1),
        memory_mib: memory_mib(config),
        nics: nics(config),
        disks: config.drives().map(|(slot, value)| disk(slot, value)).collect(),
        cloud_init: cloud_init(config),
        start_on_boot: config.flag("onboot"),
        protection: config.flag("protection"),
        ha_managed: vm.ha.is_some(),
        replicated: vm.replicated,
        pool: vm.pool.clone().unwrap_or_default(),
        description: mark::strip(&config.description),
        mark: bound_mark(vm).map(|mark| v1::Mark {
            operation: format!("operations/{}", mark.operation),
            owner: Some(v1::Owner { tenant: mark.tenant, cluster: mark.cluster, machine_uid: mark.machine_uid }),
        }),
        digest: config.digest.clone(),
        ambiguous_uuid,
        start_time,
    }
}

/// The VM's mark, when it is bound to the VM's own UUID.
pub fn bound_mark(vm: &VmRecord) -> Option<Mark> {
    let uuid = vm.config.uuid().map(str::to_ascii_lowercase);
    Mark::bound(&vm.config.description, uuid.as_deref())
}

fn small(value: Option<u64>, default: u32) -> u32 {
    value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default)
}

/// `memory: 512`, or in newer configs `memory: current=512`.
pub(super) fn memory_mib(config: &ConfigFile) -> u64 {
    let Some(value) = config.get("memory") else { return 512 };
    let (lead, properties) = properties(value);
    lead.or_else(|| properties.get("current").copied()).and_then(|v| v.parse().ok()).unwrap_or(512)
}

/// Models that PVE writes as the key of the MAC address.
fn nic(index: u32, value: &str) -> v1::Nic {
    let mut nic = v1::Nic { index, ..v1::Nic::default() };
    for (i, part) in value.split(',').enumerate() {
        match part.split_once('=') {
            // `virtio=BC:24:11:..`: the model stands first.
            Some((model, mac)) if i == 0 && model != "model" => (nic.model, nic.mac) = (model.to_owned(), mac.to_ascii_uppercase()),
            Some(("model", model)) => model.clone_into(&mut nic.model),
            Some(("macaddr", mac)) => nic.mac = mac.to_ascii_uppercase(),
            Some(("bridge", bridge)) => bridge.clone_into(&mut nic.bridge),
            Some(("tag", tag)) => nic.vlan = tag.parse().unwrap_or(0),
            Some(("mtu", mtu)) => nic.mtu = mtu.parse().unwrap_or(0),
            Some(("firewall", on)) => nic.firewall = on == "1",
            None if i == 0 => part.clone_into(&mut nic.model),
            _ => {}
        }
    }
    nic
}

/// NICs by index.
pub(super) fn nics(config: &ConfigFile) -> Vec<v1::Nic> {
    config.indexed("net").into_iter().map(|(index, value)| nic(index, value)).collect()
}

fn disk(slot: &str, value: &str) -> v1::Disk {
    let (volume, properties) = properties(value);
    let volume = volume.or_else(|| properties.get("file").copied()).unwrap_or_default();
    v1::Disk {
        slot: slot.to_owned(),
        volume: volume.to_owned(),
        storage: volume.split_once(':').map(|(s, _)| s.to_owned()).unwrap_or_default(),
        size_bytes: properties.get("size").and_then(|s| parse_size(s)).unwrap_or(0),
        cdrom: properties.get("media") == Some(&"cdrom"),
        serial: properties.get("serial").map(|s| (*s).to_owned()).unwrap_or_default(),
        volume_id: volume.split_once(':').and_then(|(_, name)| VolumeId::of_name(name)).map(|(_, id)| id.to_string()).unwrap_or_default(),
    }
}

/// The drive that holds a volume; none that was put aside.
pub(crate) fn disk_of(config: &ConfigFile, volid: &str) -> Option<v1::Disk> {
    config.drives().filter(|(slot, _)| !slot.starts_with("unused")).map(|(slot, value)| disk(slot, value)).find(|d| d.volume == volid)
}

/// A size as PVE writes it: `1G`, `2252M`, `528K`, or bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let unit = 1_u64 << shift;
    match number.parse::<u64>() {
        Ok(n) => n.checked_mul(unit),
        // PVE writes fractions for odd sizes.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        Err(_) => number.parse::<f64>().ok().filter(|n| *n >= 0.0).map(|n| (n * unit as f64) as u64),
    }
}

/// The drive that holds the cloud-init image.
pub(crate) fn cloud_init_drive(config: &ConfigFile) -> Option<&str> {
    config.drives().find(|(_, value)| is_cloud_init(value)).map(|(slot, _)| slot)
}

fn is_cloud_init(value: &str) -> bool {
    let volume = value.split(',').next().unwrap_or_default();
    let name = volume.rsplit(['/', ':']).next().unwrap_or_default();
    name == "cloudinit" || (name.starts_with("vm-") && name.contains("-cloudinit"))
}

/// The disk that the VM boots from: the first of `boot: order=` that is a disk, else the first of the usual slots.
pub(crate) fn boot_disk(config: &ConfigFile) -> Option<v1::Disk> {
    let disks: Vec<v1::Disk> = config
        .drives()
        .filter(|(slot, value)| {
            let kind = slot.trim_end_matches(|c: char| c.is_ascii_digit());
            matches!(kind, "scsi" | "virtio" | "sata" | "ide") && !is_cloud_init(value)
        })
        .map(|(slot, value)| disk(slot, value))
        .filter(|d| !d.cdrom && d.volume.contains(':'))
        .collect();
    let order = config.get("boot").and_then(|b| properties(b).1.get("order").copied()).unwrap_or_default();
    let named = order.split(';').chain(config.get("bootdisk"));
    named
        .into_iter()
        .find_map(|slot| disks.iter().find(|d| d.slot == slot))
        .or_else(|| ["scsi0", "virtio0", "sata0", "ide0"].iter().find_map(|slot| disks.iter().find(|d| d.slot == *slot)))
        .cloned()
}

/// Volumes of the config that are this VM's own: images, not CDs, and not another VM's.
pub(crate) fn own_volumes(vm: &VmRecord) -> Vec<String> {
    let mut volumes: Vec<String> = vm
        .config
        .drives()
        .map(|(slot, value)| (disk(slot, value), is_cloud_init(value)))
        .filter(|(d, cloud_init)| d.volume.contains(':') && (!d.cdrom || *cloud_init))
        .map(|(d, _)| d.volume)
        .filter(|volume| owner_of(volume) == Some(vm.vmid))
        .collect();
    volumes.sort();
    volumes.dedup();
    volumes
}

/// The VMID that stands in a volume's name, as `vm-100-disk-0.qcow2` or `base-100-disk-0`.
pub(crate) fn owner_of(volume: &str) -> Option<u32> {
    let name = volume.rsplit(['/', ':']).next()?;
    let rest = name.strip_prefix("vm-").or_else(|| name.strip_prefix("base-")).or_else(|| name.strip_prefix("subvol-"))?;
    rest.split('-').next()?.parse().ok()
}

fn cloud_init(config: &ConfigFile) -> Option<v1::CloudInitStatus> {
    let words = |key: &str| {
        config.get(key).unwrap_or_default().split([' ', ',', ';']).filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let keys = config.get("sshkeys").map(|k| percent_encoding::percent_decode_str(k).decode_utf8_lossy().into_owned()).unwrap_or_default();
    let ip_config = |(nic, value): (u32, &str)| {
        let (_, p) = properties(value);
        let get = |key| p.get(key).copied().unwrap_or_default().to_owned();
        v1::IpConfig { nic, ipv4: get("ip"), gateway4: get("gw"), ipv6: get("ip6"), gateway6: get("gw6") }
    };
    let ip_configs: Vec<v1::IpConfig> = config.indexed("ipconfig").into_iter().map(ip_config).collect();
    let status = v1::CloudInitStatus {
        user: config.get("ciuser").unwrap_or_default().to_owned(),
        ssh_key_count: u32::try_from(keys.lines().filter(|l| !l.trim().is_empty()).count()).unwrap_or(u32::MAX),
        ip_configs,
        nameservers: words("nameserver"),
        search_domain: config.get("searchdomain").unwrap_or_default().to_owned(),
        user_data_sha256: user_data::own(config).map(|snippet| snippet.sha256).unwrap_or_default(),
    };
    (status != v1::CloudInitStatus::default() || cloud_init_drive(config).is_some()).then_some(status)
}

/// Whether `gateway` lies in the subnet of `address/prefix`.
pub(super) fn in_subnet(address: IpAddr, prefix: u8, gateway: IpAddr) -> bool {
    let cut = |a: u128, bits: u8| a.checked_shr(u32::from(bits)).unwrap_or(0);
    match (address, gateway) {
        (IpAddr::V4(a), IpAddr::V4(g)) => cut(a.to_bits().into(), 32 - prefix) == cut(g.to_bits().into(), 32 - prefix),
        (IpAddr::V6(a), IpAddr::V6(g)) => cut(a.to_bits(), 128 - prefix) == cut(g.to_bits(), 128 - prefix),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_as_pve_writes_them() {
        for (text, bytes) in [
            ("1G", Some(1 << 30)),
            ("2252M", Some(2252 << 20)),
            ("528K", Some(528 << 10)),
            ("512", Some(512)),
            ("1.5G", Some(3 << 29)),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn nics_disks_and_cloud_init_are_read() {
        let config = ConfigFile::parse(
            "boot: order=ide2;scsi0;net0\nide2: local:100/vm-100-cloudinit.qcow2,media=cdrom\nscsi0: local:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2,size=1G\nide0: local:iso/a.iso,media=cdrom\nnet0: virtio=bc:24:11:00:00:01,bridge=vmbr0,tag=7,firewall=1\nnet2: e1000,bridge=vmbr1,mtu=1\nciuser: ann\nsshkeys: ssh-ed25519%20AAAA%0Assh-rsa%20BBBB%0A\nipconfig0: ip=10.0.0.5/24,gw=10.0.0.1\n",
        );
        let nics = nics(&config);
        assert_eq!((nics.len(), nics[0].mac.as_str(), nics[0].vlan, nics[0].firewall), (2, "BC:24:11:00:00:01", 7, true));
        assert_eq!((nics[1].index, nics[1].model.as_str(), nics[1].mtu), (2, "e1000", 1));
        assert_eq!(boot_disk(&config).unwrap().slot, "scsi0");
        assert_eq!(cloud_init_drive(&config), Some("ide2"));
        let status = cloud_init(&config).unwrap();
        assert_eq!((status.user.as_str(), status.ssh_key_count, status.ip_configs[0].gateway4.as_str()), ("ann", 2, "10.0.0.1"));
    }

    #[test]
    fn only_volumes_named_for_the_vm_are_its_own() {
        for (volume, owner) in [
            ("local:100/vm-100-disk-0.qcow2", Some(100)),
            ("local:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2", Some(100)),
            ("lvm:vm-100-cloudinit", Some(100)),
            ("local:9000/base-9000-disk-0.qcow2", Some(9000)),
            ("local:iso/debian.iso", None),
        ] {
            assert_eq!(owner_of(volume), owner, "{volume}");
        }
    }
}
