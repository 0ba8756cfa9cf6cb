//! Whether the VM looks as the spec says. What the spec leaves out is nobody's business here.

use pvelet_proto::v1;
use sha2::{Digest, Sha256};

use super::{Action, Inputs, SETTLE, after, attempt, draft::Draft};
use crate::{
    kind::{ActionKind, CloudInitSpec, MachineSpec, NicSpec, PveMachine},
    reconcile::{HostView, VmView},
};

/// What to do about differences: order a change, wait until what is seen is fresh, or nothing.
pub(super) fn decide(inputs: &Inputs<'_>, draft: &mut Draft<'_>, vm: &VmView, host: &HostView) -> Option<Action> {
    let generation = inputs.machine.metadata.generation;
    let status = &inputs.machine.status;
    if difference(inputs.machine, vm).is_none() {
        draft.status.configured_generation = generation;
        draft.status.verified_generation = generation;
        draft.status.configured_digest = None;
        draft.status.failures.retain(|f| f.action != ActionKind::Configure);
        match shrink(&inputs.machine.spec, vm) {
            Some(text) => draft.condition("Configured", false, "DiskShrink", text),
            None => draft.condition("Configured", true, "Configured", ""),
        }
        return None;
    }
    let set = status.configured_generation == generation;
    let last = status.last_success.as_ref().filter(|s| matches!(s.action, ActionKind::Clone | ActionKind::Configure));
    if let Some(fresh) = last.map(|s| after(s.time, SETTLE)).filter(|until| set && inputs.now < *until) {
        return Some(Action::Wait(Some(fresh)));
    }
    if set && status.verified_generation != generation && status.configured_digest.is_none() {
        draft.status.configured_digest = Some(vm.digest.clone());
    }
    if set && draft.status.configured_digest.as_ref() == Some(&vm.digest) {
        let text = format!("PVE took the settings of VM {} but shows others; most likely they count from its next start", vm.vmid);
        draft.condition("Configured", false, "NotInEffect", text);
        return None;
    }
    if set && vm.ha_managed {
        draft.condition("Configured", false, "HaManaged", "changed by somebody; not repaired while PVE's HA manager has the VM");
        return None;
    }
    if set && let Some((reason, text)) = host.out_of_service() {
        draft.condition("Configured", false, reason, text);
        return None;
    }
    draft.condition("Configured", false, if set { "Drift" } else { "Changed" }, "");
    Some(attempt::order(inputs, draft, ActionKind::Configure, host))
}

/// The settings of a new VM.
pub(super) fn full_config(machine: &PveMachine) -> v1::VmConfig {
    let spec = &machine.spec;
    v1::VmConfig {
        name: Some(machine.vm_name().to_owned()),
        cores: spec.cores,
        sockets: spec.sockets,
        memory_mib: spec.memory.map(|m| m.mib()),
        nics: spec.nics.as_deref().map(|nics| v1::NicList { nics: wanted_nics(nics) }),
        cloud_init: spec.cloud_init.as_deref().map(wanted_cloud_init),
        tags: spec.tags.as_ref().map(|tags| v1::TagList { tags: tags.clone() }),
        start_on_boot: spec.start_on_boot,
        description: None,
        boot_disk_bytes: spec.boot_disk.map(|d| d.0),
    }
}

/// What must be set so that the VM looks as the spec says; nothing when it does.
pub(super) fn difference(machine: &PveMachine, vm: &VmView) -> Option<v1::VmConfig> {
    let mut config = full_config(machine);
    config.name.take_if(|name| *name == vm.name);
    config.cores.take_if(|cores| *cores == vm.cores);
    config.sockets.take_if(|sockets| *sockets == vm.sockets.max(1));
    config.memory_mib.take_if(|memory| *memory == vm.memory_mib);
    config.nics.take_if(|wanted| same_nics(&wanted.nics, &vm.nics));
    config.tags.take_if(|wanted| sorted(&wanted.tags) == sorted(&vm.tags));
    config.start_on_boot.take_if(|on| *on == vm.start_on_boot);
    // Shrinking is impossible and told elsewhere; an unknown size is not judged.
    config.boot_disk_bytes.take_if(|bytes| vm.boot_disk_bytes == 0 || *bytes <= vm.boot_disk_bytes);
    let given = machine.status.cloud_init_hash.is_some() && machine.status.cloud_init_hash == cloud_init_hash(&machine.spec);
    config.cloud_init.take_if(|wanted| given && vm.cloud_init.as_ref().is_none_or(|seen| same_cloud_init(wanted, seen)));
    (config != v1::VmConfig::default()).then_some(config)
}

fn shrink(spec: &MachineSpec, vm: &VmView) -> Option<String> {
    let wanted = spec.boot_disk.filter(|w| vm.boot_disk_bytes > w.0)?;
    Some(format!("spec.bootDisk = {wanted}: the disk has {} bytes and cannot shrink; set at least that", vm.boot_disk_bytes))
}

fn wanted_nics(specs: &[NicSpec]) -> Vec<v1::Nic> {
    (0..)
        .zip(specs)
        .map(|(index, nic)| v1::Nic {
            index,
            model: nic.model.clone().unwrap_or_else(|| "virtio".to_owned()),
            mac: nic.mac.as_deref().unwrap_or_default().to_ascii_uppercase(),
            bridge: nic.bridge.clone(),
            vlan: nic.vlan.unwrap_or(0),
            mtu: nic.mtu.unwrap_or(0),
            firewall: nic.firewall,
        })
        .collect()
}

fn same_nics(wanted: &[v1::Nic], seen: &[v1::Nic]) -> bool {
    wanted.len() == seen.len()
        && wanted.iter().all(|w| {
            seen.iter().any(|s| {
                let model = if s.model.is_empty() { "virtio" } else { &s.model };
                let mac = w.mac.is_empty() || w.mac.eq_ignore_ascii_case(&s.mac);
                mac && (w.index, w.model.as_str(), &w.bridge, w.vlan, w.mtu, w.firewall)
                    == (s.index, model, &s.bridge, s.vlan, s.mtu, s.firewall)
            })
        })
}

fn sorted(tags: &[String]) -> Vec<&str> {
    let mut tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

fn wanted_cloud_init(spec: &CloudInitSpec) -> v1::CloudInit {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    v1::CloudInit {
        user: text(&spec.user),
        ssh_keys: spec.ssh_keys.clone(),
        ip_configs: spec
            .ip_configs
            .iter()
            .map(|ip| v1::IpConfig {
                nic: ip.nic,
                ipv4: text(&ip.ipv4),
                gateway4: text(&ip.gateway4),
                ipv6: text(&ip.ipv6),
                gateway6: text(&ip.gateway6),
            })
            .collect(),
        nameservers: spec.nameservers.clone(),
        search_domain: text(&spec.search_domain),
        // Given once, when the VM is made, by whoever sends the call: it is not decided by, and what a VM has of it stays.
        user_data: None,
    }
}

/// Only what the spec sets is compared.
fn same_cloud_init(wanted: &v1::CloudInit, seen: &v1::CloudInitStatus) -> bool {
    let keys = u32::try_from(wanted.ssh_keys.len()).unwrap_or(u32::MAX);
    let by_nic = |list: &[v1::IpConfig]| {
        let mut list: Vec<_> = list.iter().filter(|ip| !ip.ipv4.is_empty() || !ip.ipv6.is_empty()).cloned().collect();
        list.sort_by_key(|ip| ip.nic);
        list
    };
    (wanted.user.is_empty() || wanted.user == seen.user)
        && (keys == 0 || keys == seen.ssh_key_count)
        && (wanted.ip_configs.is_empty() || by_nic(&wanted.ip_configs) == by_nic(&seen.ip_configs))
        && (wanted.nameservers.is_empty() || wanted.nameservers == seen.nameservers)
        && (wanted.search_domain.is_empty() || wanted.search_domain == seen.search_domain)
}

/// Identifies the cloud-init settings of a spec, whose keys cannot be read back from the VM. Where its user data is from is none of them.
pub(super) fn cloud_init_hash(spec: &MachineSpec) -> Option<String> {
    let settings = CloudInitSpec { user_data: None, ..(**spec.cloud_init.as_ref()?).clone() };
    let text = serde_json::to_string(&settings).ok()?;
    Some(hex::encode(Sha256::digest(text)))
}

/// The fixed addresses that the spec orders.
pub(super) fn addresses(spec: &MachineSpec) -> Vec<String> {
    let ips = spec.cloud_init.iter().flat_map(|c| &c.ip_configs).flat_map(|ip| [&ip.ipv4, &ip.ipv6]).flatten();
    ips.filter_map(|text| text.split_once('/').map(|(address, _)| address.to_owned())).collect()
}
