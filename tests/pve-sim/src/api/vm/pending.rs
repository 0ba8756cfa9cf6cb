//! Pending changes: what a VM that stands still takes over at once, and a running one only in part.

use std::collections::BTreeMap;

use super::{disk, env::Env, power, status};
use crate::{
    api::Failure,
    storage::{Storages, Volume},
    vmconf::{self, Drive, VmConfig, is_drive_key},
};

/// Options that a running VM takes over at once.
const FAST: &[&str] = &[
    "description",
    "hookscript",
    "lock",
    "migrate_downtime",
    "migrate_speed",
    "name",
    "onboot",
    "protection",
    "shares",
    "startup",
    "tags",
    "vmstatestorage",
    "affinity",
    "ciuser",
    "cipassword",
    "citype",
    "cicustom",
    "ciupgrade",
    "nameserver",
    "searchdomain",
    "sshkeys",
    "hotplug",
];

/// Takes the pending changes of a VM that is about to start into its configuration.
pub(super) fn apply_pending(env: &Env<'_>, vmid: u32, config: &mut VmConfig) -> Result<(), Failure> {
    let storages = env.storages()?;
    apply(env, &storages, vmid, config).map_err(Failure::Parameters)?;
    env.store(vmid, config)
}

/// What could not be taken over, by key.
pub(super) type Errors = BTreeMap<String, String>;

/// Takes over every pending change. One that fails stays pending, and is told.
pub(super) fn apply(env: &Env<'_>, storages: &Storages, vmid: u32, config: &mut VmConfig) -> Result<(), Errors> {
    take_over(env, storages, vmid, config, |_, _| Ok(()))
}

/// Takes over what a running VM can take over; the rest stays pending.
pub(super) fn hotplug(env: &Env<'_>, storages: &Storages, vmid: u32, config: &mut VmConfig) -> Result<(), Errors> {
    let features = config.get("hotplug").unwrap_or("1").to_owned();
    let has = |feature: &str| features == "1" || features.split(',').any(|one| one == feature);
    let boot: Vec<String> = status::boot_drives(config);
    let gone: Vec<String> = config.pending_delete.keys().cloned().collect();
    let planned = config.pending.clone();
    take_over(env, storages, vmid, config, |key, deleted| {
        if FAST.contains(&key) || key.starts_with("ipconfig") {
            return Ok(());
        }
        if (key.starts_with("scsi") && is_drive_key(key)) || key.starts_with("virtio") && is_drive_key(key) {
            if deleted && boot.iter().any(|device| device == key) && gone.iter().any(|gone| gone == key) {
                return Err(Some(format!("hotplug problem - can't unplug bootdisk '{key}'\n")));
            }
            let base = planned
                .get(key)
                .filter(|_| !deleted)
                .and_then(|value| Volume::parse(&Drive::parse(value).file).ok())
                .filter(Volume::is_base);
            if let Some(path) = base.and_then(|volume| storages.shown_path(&volume).ok()) {
                let why = format!("VM {vmid} qmp command 'blockdev-add' failed - Could not open '{path}': Operation not permitted");
                return Err(Some(format!("hotplug problem - adding blockdev 'drive-{key}' failed : {why}\n\n")));
            }
            return if has("disk") { Ok(()) } else { Err(None) };
        }
        if key.strip_prefix("net").is_some_and(|rest| vmconf::number(rest).is_some()) {
            let value = planned.get(key).filter(|_| !deleted);
            if let Some(bridge) = value.and_then(|value| power::unknown_bridge(env, key, value)) {
                let script = "network script /usr/libexec/qemu-server/pve-bridge-hotplug failed with status 512";
                tracing::debug!(bridge, "no such bridge");
                return Err(Some(format!("hotplug problem - VM {vmid} qmp command 'netdev_add' failed - {script}\n")));
            }
            return if has("network") { Ok(()) } else { Err(None) };
        }
        if key.starts_with("unused") {
            return Ok(());
        }
        Err(None)
    })
}

/// Moves pending changes into the configuration. `may` tells whether a key can be taken over now; an error with a text is told, one without keeps it pending.
fn take_over(
    env: &Env<'_>,
    storages: &Storages,
    vmid: u32,
    config: &mut VmConfig,
    may: impl Fn(&str, bool) -> Result<(), Option<String>>,
) -> Result<(), Errors> {
    let mut errors = Errors::new();
    for (key, force) in config.pending_delete.clone() {
        match may(&key, true) {
            Ok(()) => {}
            Err(text) => {
                errors.extend(text.map(|text| (key, text)));
                continue;
            }
        }
        if key == "description" {
            config.description = None;
        }
        let old = config.values.remove(&key);
        if let Some(old) = old.filter(|_| is_drive_key(&key))
            && let Err(error) = disk::detach(env, storages, config, vmid, &Drive::parse(&old), force)
        {
            config.values.insert(key.clone(), old);
            errors.insert(key.clone(), format!("unable to apply pending change {key} : {error}\n"));
            continue;
        }
        config.pending_delete.remove(&key);
        if let Some(added) = &mut config.cloudinit_added {
            added.remove(&key);
        }
    }
    for (key, value) in config.pending.clone() {
        match may(&key, false) {
            Ok(()) => {}
            Err(text) => {
                errors.extend(text.map(|text| (key, text)));
                continue;
            }
        }
        // An empty text is never taken over; it stays until the file is read again.
        if key == "sshkeys" && value.is_empty() {
            continue;
        }
        config.pending.remove(&key);
        if key == "description" {
            config.description = (!value.is_empty()).then(|| value.trim_end_matches('\n').to_owned());
            continue;
        }
        let old = config.values.insert(key.clone(), value.clone());
        if old.is_none() && key.starts_with("net") && env.running(vmid).is_some() && config.drives().any(|(_, drive)| drive.is_cloudinit())
        {
            config.cloudinit_added.get_or_insert_default().insert(key.clone());
        }
        let moved = old.map(|old| Drive::parse(&old)).filter(|old| is_drive_key(&key) && old.file != Drive::parse(&value).file);
        if let Some(old) = moved
            && let Err(error) = disk::detach(env, storages, config, vmid, &old, false)
        {
            errors.insert(key.clone(), format!("unable to apply pending change {key} : {error}\n"));
        }
        if is_drive_key(&key) {
            let file = Drive::parse(&value).file;
            config.values.retain(|key, value| !(key.starts_with("unused") && *value == file));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
