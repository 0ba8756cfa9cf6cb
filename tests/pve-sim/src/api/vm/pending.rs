//! Pending changes: what a VM that stands still takes over at once, and a running one only in part.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    disk,
    env::Env,
    hotplug::{Refused, Running, is_fast},
};
use crate::{
    api::Failure,
    storage::Storages,
    vmconf::{Drive, VmConfig, is_drive_key},
};

/// Takes the pending changes of a VM that is about to start into its configuration. What fails stays pending, and the VM starts all the same.
pub(super) fn apply_pending(env: &Env<'_>, vmid: u32, config: &mut VmConfig) -> Result<(), Failure> {
    let storages = env.storages()?;
    if let Err(errors) = apply(env, &storages, vmid, config) {
        errors.values().for_each(|text| env.log(text.trim_end_matches('\n')));
    }
    env.store(vmid, config)
}

/// What could not be taken over, by key.
pub(super) type Errors = BTreeMap<String, String>;

/// Takes over every pending change. One that fails stays pending, and is told.
pub(super) fn apply(env: &Env<'_>, storages: &Storages, vmid: u32, config: &mut VmConfig) -> Result<(), Errors> {
    take_over(env, storages, vmid, config, |_, _, _| Ok(()), |key, text| format!("unable to apply pending change {key} : {text}"))
}

/// Takes over what a running VM can take over of the keys that a call names; the rest stays pending.
pub(super) fn hotplug(
    env: &Env<'_>,
    storages: &Storages,
    vmid: u32,
    config: &mut VmConfig,
    modified: &BTreeSet<String>,
) -> Result<(), Errors> {
    let running = Running { env, storages, vmid, features: config.get("hotplug").unwrap_or("1").to_owned() };
    let take = |config: &VmConfig, key: &str, deleted: bool| {
        if modified.contains(key) || (!deleted && is_fast(key)) { running.take(config, key, deleted) } else { Err(None) }
    };
    take_over(env, storages, vmid, config, take, |_, text| format!("hotplug problem - {text}"))
}

/// Drops what is pending and changes nothing.
pub(super) fn cleanup(config: &mut VmConfig) {
    let VmConfig { values, description, pending, pending_delete, .. } = config;
    pending.retain(|key, value| values.get(key) != Some(value));
    pending_delete.retain(|key, _| values.contains_key(key) || (key == "description" && description.is_some()));
}

/// Moves pending changes into the configuration. `take` tells whether a key can be taken over now, and `tell` how an error of it reads.
fn take_over(
    env: &Env<'_>,
    storages: &Storages,
    vmid: u32,
    config: &mut VmConfig,
    take: impl Fn(&VmConfig, &str, bool) -> Result<(), Refused>,
    tell: impl Fn(&str, &str) -> String,
) -> Result<(), Errors> {
    let mut errors = Errors::new();
    for (key, force) in config.pending_delete.clone() {
        if let Err(text) = take(config, &key, true) {
            errors.extend(text.map(|text| (key.clone(), tell(&key, &text))));
            continue;
        }
        let old = config.values.remove(&key);
        if let Some(old) = old.filter(|_| is_drive_key(&key))
            && let Err(error) = disk::detach(env, storages, config, vmid, &Drive::parse(&old), force)
        {
            config.values.insert(key.clone(), old);
            errors.insert(key.clone(), tell(&key, &format!("{error}\n")));
            continue;
        }
        if key == "description" {
            config.description = None;
        }
        config.pending_delete.remove(&key);
        if let Some(added) = &mut config.cloudinit_added {
            added.remove(&key);
        }
    }
    for (key, value) in config.pending.clone() {
        if let Err(text) = take(config, &key, false) {
            errors.extend(text.map(|text| (key.clone(), tell(&key, &text))));
            continue;
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
            errors.insert(key.clone(), tell(&key, &format!("{error}\n")));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
