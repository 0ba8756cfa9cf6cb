//! From wanted settings to lines of a config.

use std::collections::{BTreeMap, BTreeSet};

use pvelet_proto::v1;

use super::{
    mark::{self, Mark},
    user_data::UserPart,
    view,
};
use crate::host::pve::{ConfigCall, config_file::ConfigFile};

/// What has to be written so that `current` becomes what is wanted; empty where it is so already. `mark`: what the description ends in.
/// Cloud-init settings are replaced as a whole: what the message leaves empty is removed. `user`: where the user data is.
pub(super) fn plan(wanted: &v1::VmConfig, current: &ConfigFile, mark: Option<&Mark>, user: &UserPart) -> ConfigCall {
    let mut set: BTreeMap<String, String> = BTreeMap::new();
    let mut delete = Vec::new();
    let mut put = |key: &str, value: Option<String>| match value {
        Some(value) => drop(set.insert(key.to_owned(), value)),
        None => delete.push(key.to_owned()),
    };
    if let Some(name) = &wanted.name {
        put("name", Some(name.clone()));
    }
    if let Some(cores) = wanted.cores {
        put("cores", Some(cores.to_string()));
    }
    if let Some(sockets) = wanted.sockets {
        put("sockets", Some(sockets.to_string()));
    }
    if let Some(memory) = wanted.memory_mib {
        put("memory", Some(memory.to_string()));
    }
    if let Some(on) = wanted.start_on_boot {
        put("onboot", Some(u8::from(on).to_string()));
    }
    if let Some(list) = &wanted.tags {
        let mut tags = list.tags.clone();
        tags.sort();
        tags.dedup();
        put("tags", Some(tags.join(";")).filter(|t| !t.is_empty()));
    }
    if let Some(list) = &wanted.nics {
        let present = view::nics(current);
        for index in 0..32 {
            let key = format!("net{index}");
            match (list.nics.iter().find(|n| n.index == index), present.iter().find(|n| n.index == index)) {
                (Some(nic), before) => put(&key, Some(nic_line(nic, before))),
                (None, Some(_)) => put(&key, None),
                (None, None) => {}
            }
        }
    }
    if let Some(c) = &wanted.cloud_init {
        put("ciuser", Some(c.user.clone()).filter(|u| !u.is_empty()));
        put("sshkeys", Some(c.ssh_keys.iter().map(|k| k.trim()).collect::<Vec<_>>().join("\n")).filter(|k| !k.is_empty()));
        put("nameserver", Some(c.nameservers.join(" ")).filter(|n| !n.is_empty()));
        put("searchdomain", Some(c.search_domain.clone()).filter(|d| !d.is_empty()));
        for index in 0..32 {
            let line = c.ip_configs.iter().find(|ip| ip.nic == index).map(ip_line).filter(|line| !line.is_empty());
            put(&format!("ipconfig{index}"), line);
        }
    }
    if *user != UserPart::Stays {
        let cicustom = current.pending.get("cicustom").or_else(|| current.keys.get("cicustom"));
        put("cicustom", user.apply(cicustom.map(String::as_str).unwrap_or_default()));
    }
    let text = wanted.description.clone().unwrap_or_else(|| mark::strip(&current.description));
    let description = mark.map_or_else(|| mark::strip(&text), |mark| mark.append_to(&text));
    // Nobody asked for another one: what stands there stays, somebody else's mark included.
    let untouched = wanted.description.is_none() && mark.is_none();
    if description != current.description && !untouched {
        put("description", Some(description).filter(|d| !d.is_empty()));
    }
    // Without this a template's whole config would be written to every clone; and an unchanged line is no change.
    set.retain(|key, value| !holds(current, key, value));
    delete.retain(|key| {
        current.get(key).is_some() || current.pending.contains_key(key) || (key == "description" && !current.description.is_empty())
    });
    ConfigCall { set, delete, digest: Some(current.digest.clone()), skip_lock: false }
}

/// Keys of `call` that `config` does not hold, neither now nor after the next restart of the VM. PVE writes some values in another form.
pub(super) fn unmet(call: &ConfigCall, config: &ConfigFile) -> Vec<String> {
    let gone = |key: &&String| config.get(key).is_none() || pending_delete(config, key);
    let set = call.set.iter().filter(|(key, value)| !holds(config, key, value)).map(|(key, _)| key.clone());
    set.chain(call.delete.iter().filter(|key| !gone(key)).cloned()).collect()
}

/// Keys of `call` that wait for the next restart of the VM.
pub(super) fn waiting(call: &ConfigCall, config: &ConfigFile) -> Vec<String> {
    let set = call.set.keys().filter(|key| config.pending.contains_key(*key)).cloned();
    set.chain(call.delete.iter().filter(|key| pending_delete(config, key)).cloned()).collect()
}

fn pending_delete(config: &ConfigFile, key: &str) -> bool {
    config.pending.get("delete").is_some_and(|list| list.split([',', ';', ' ']).any(|k| k.trim_start_matches('!') == key))
}

fn holds(config: &ConfigFile, key: &str, value: &str) -> bool {
    let same = |found: &str| match key {
        "sshkeys" => {
            let lines = |text: &str| text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect::<Vec<_>>();
            lines(&percent_encoding::percent_decode_str(found).decode_utf8_lossy()) == lines(value)
        }
        "tags" => {
            let sorted = |text: &str| ConfigFile { keys: [("tags".to_owned(), text.to_owned())].into(), ..ConfigFile::default() }.tags();
            sorted(found) == sorted(value)
        }
        "cicustom" => {
            let parts = |text: &str| text.split(',').map(str::to_owned).collect::<BTreeSet<_>>();
            parts(found) == parts(value)
        }
        key if key.starts_with("net") => {
            let (wanted, found) = (parts(value), parts(found));
            // Where no MAC address was given, PVE has chosen one.
            wanted.iter().all(|(k, v)| found.get(k).is_some_and(|f| v.is_empty() || f.eq_ignore_ascii_case(v)))
                && found.len() == wanted.len()
        }
        _ => found == value,
    };
    match key {
        "description" => config.description.trim_end_matches('\n') == value.trim_end_matches('\n'),
        _ => config.pending.get(key).or_else(|| config.keys.get(key)).is_some_and(|found| same(found)),
    }
}

fn parts(value: &str) -> BTreeMap<&str, &str> {
    value.split(',').map(|part| part.split_once('=').unwrap_or((part, ""))).collect()
}

fn nic_line(nic: &v1::Nic, before: Option<&v1::Nic>) -> String {
    let model = if nic.model.is_empty() { "virtio" } else { &nic.model };
    let mac = match nic.mac.as_str() {
        "" => before.map(|n| n.mac.clone()).unwrap_or_default(),
        mac => mac.to_ascii_uppercase().replace('-', ":"),
    };
    let mut line = if mac.is_empty() { model.to_owned() } else { format!("{model}={mac}") };
    line.push_str(&format!(",bridge={}", nic.bridge));
    if nic.firewall {
        line.push_str(",firewall=1");
    }
    if nic.mtu != 0 {
        line.push_str(&format!(",mtu={}", nic.mtu));
    }
    if nic.vlan != 0 {
        line.push_str(&format!(",tag={}", nic.vlan));
    }
    line
}

fn ip_line(ip: &v1::IpConfig) -> String {
    let parts = [("gw", &ip.gateway4), ("gw6", &ip.gateway6), ("ip", &ip.ipv4), ("ip6", &ip.ipv6)];
    parts.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> ConfigFile {
        ConfigFile::parse(
            "#note\nname: a\ncores: 2\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nnet1: virtio=BC:24:11:00:00:02,bridge=vmbr0\nciuser: old\nipconfig0: ip=dhcp\n",
        )
    }

    #[test]
    fn what_is_unset_or_the_same_is_not_written() {
        let wanted = v1::VmConfig { name: Some("a".into()), cores: Some(4), ..v1::VmConfig::default() };
        let call = plan(&wanted, &current(), None, &UserPart::Stays);
        assert_eq!(call.set, [("cores".to_owned(), "4".to_owned())].into());
        assert!(call.delete.is_empty() && call.digest.is_some());
        assert_eq!(unmet(&call, &current()), ["cores"]);
    }

    #[test]
    fn a_description_that_nobody_asked_for_stays() {
        let copied = ConfigFile::parse("#note\n#pvelet%3Av1 op=00000000-0000-0000-0000-000000000001 tenant=a uuid=x\ncores: 2\n");
        let wanted = v1::VmConfig { cores: Some(4), ..v1::VmConfig::default() };
        let call = plan(&wanted, &copied, None, &UserPart::Stays);
        assert_eq!(call.set.keys().collect::<Vec<_>>(), ["cores"]);
        let wanted = v1::VmConfig { description: Some("new".into()), ..v1::VmConfig::default() };
        assert_eq!(plan(&wanted, &copied, None, &UserPart::Stays).set["description"], "new");
    }

    #[test]
    fn nics_keep_their_mac_and_missing_ones_go() {
        let nic = v1::Nic { index: 0, bridge: "vmbr1".into(), vlan: 7, ..v1::Nic::default() };
        let wanted = v1::VmConfig { nics: Some(v1::NicList { nics: vec![nic] }), ..v1::VmConfig::default() };
        let call = plan(&wanted, &current(), None, &UserPart::Stays);
        assert_eq!(call.set["net0"], "virtio=BC:24:11:00:00:01,bridge=vmbr1,tag=7");
        assert_eq!(call.delete, ["net1"]);
    }

    #[test]
    fn cloud_init_is_replaced_as_a_whole() {
        let wanted = v1::VmConfig {
            cloud_init: Some(v1::CloudInit { ssh_keys: vec!["ssh-rsa A x".into()], ..v1::CloudInit::default() }),
            ..v1::VmConfig::default()
        };
        let call = plan(&wanted, &current(), None, &UserPart::Stays);
        assert_eq!(call.set, [("sshkeys".to_owned(), "ssh-rsa A x".to_owned())].into());
        assert_eq!(call.delete, ["ciuser", "ipconfig0"]);
        let after = ConfigFile::parse("#note\nsshkeys: ssh-rsa%20A%20x\n");
        assert!(unmet(&call, &after).is_empty());
    }

    #[test]
    fn a_change_that_waits_for_a_restart_is_met_and_told() {
        let call = ConfigCall { set: [("cores".to_owned(), "4".to_owned())].into(), delete: vec!["net1".into()], ..ConfigCall::default() };
        let config = ConfigFile::parse("cores: 2\nnet1: virtio=x,bridge=a\n\n[PENDING]\ncores: 4\ndelete: net1\n");
        assert!(unmet(&call, &config).is_empty());
        assert_eq!(waiting(&call, &config), ["cores", "net1"]);
    }

    #[test]
    fn a_mac_that_pve_chose_meets_a_nic_without_one() {
        let call = ConfigCall { set: [("net0".to_owned(), "virtio,bridge=vmbr0".to_owned())].into(), ..ConfigCall::default() };
        assert!(unmet(&call, &ConfigFile::parse("net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n")).is_empty());
        assert_eq!(unmet(&call, &ConfigFile::parse("net0: virtio=BC:24:11:00:00:01,bridge=vmbr1\n")), ["net0"]);
    }
}
