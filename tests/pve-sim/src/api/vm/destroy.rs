//! Removing a VM.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{env::Env, ha};
use crate::{
    api::{Call, Failure, Param, Params, Reply, Route},
    storage::{Storages, Volume},
    task::Worker,
    vmconf::{Drive, Values, VmConfig, is_drive_key},
};

pub(super) fn routes() -> Vec<Route> {
    let flag = |name| Param::boolean(name).optional();
    let schema = vec![Param::vmid("vmid"), flag("skiplock"), flag("purge"), flag("destroy-unreferenced-disks")];
    vec![Route::new("DELETE", "/nodes/{node}/qemu/{vmid}", schema, destroy)]
}

fn destroy(call: &Call) -> Result<Reply, Failure> {
    let vmid = call.params.vmid();
    let env = Env::of_call(call);
    early_refusals(&env, vmid, &env.load(vmid)?, call.params.flag("purge"))?;
    call.task("qmdestroy", &vmid.to_string(), "destroy", json!(call.params))
}

/// What is refused at once, and again under the lock.
fn early_refusals(env: &Env<'_>, vmid: u32, config: &VmConfig, purge: bool) -> Result<(), Failure> {
    if config.flag("protection") {
        return Err(Failure::die(format!("can't remove VM {vmid} - protection mode enabled")));
    }
    if !purge && ha::resource(env.layout, vmid).is_some() {
        return Err(Failure::die(format!("unable to remove VM {vmid} - used in HA resources and purge parameter not set.")));
    }
    if !purge && is_replicated(env, vmid) {
        return Err(Failure::die(format!("There is a replication job '{vmid}-0' for guest '{vmid}' - Please remove that first.")));
    }
    if env.running(vmid).is_some() {
        return Err(Failure::die(format!("VM {vmid} is running - destroy failed")));
    }
    Ok(())
}

/// Whether a replication job copies the VM's disks.
pub(super) fn is_replicated(env: &Env<'_>, vmid: u32) -> bool {
    let text = std::fs::read_to_string(env.layout.etc_pve().join("replication.cfg")).unwrap_or_default();
    text.lines().any(|line| line.strip_prefix("local:").is_some_and(|id| id.trim().starts_with(&format!("{vmid}-"))))
}

/// The work of `qmdestroy`.
pub(super) fn work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params: Params = serde_json::from_value(args.clone()).map_err(std::io::Error::other)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    let _held = env.lock(vmid)?;
    let config = env.load(vmid)?;
    early_refusals(&env, vmid, &config, params.flag("purge"))?;
    // A VM whose state lies on disk may go; anything else that holds it must let go first.
    if !params.flag("skiplock") && config.lock() != Some("suspended") {
        config.check_lock()?;
    }
    let storages = env.storages()?;
    if config.flag("template") {
        for volume in config.drives().filter_map(|(_, drive)| Volume::parse(&drive.file).ok()) {
            if volume.owner == vmid && volume.is_base() && storages.is_in_use(&volume) {
                return Err(Failure::die(format!("base volume '{}' is still in use by linked cloned", volume.volid())));
            }
        }
    }
    env.begun();
    remove_disks(&env, &storages, vmid, &config);
    if params.flag("destroy-unreferenced-disks") {
        remove_unreferenced(&env, &storages, vmid)?;
    }
    // What is left keeps the VMID taken until everything else is done.
    crate::vmconf::replace(env.layout, vmid, "lock: destroyed\n")?;
    if params.flag("purge") {
        env.log(&format!("purging VM {vmid} from related configurations.."));
        if ha::resource(env.layout, vmid).is_some() {
            ha::remove(env.layout, vmid)?;
            env.log(&format!("NOTE: removed VM {vmid} from HA resource configuration."));
        }
    }
    super::pool::leave(env.layout, vmid)?;
    std::fs::remove_file(env.layout.vm_config(vmid))?;
    super::power::hold_cleanup_lock(&env, vmid);
    Ok(())
}

/// The volumes that go with a VM if it owns them: those of its slots, its unused ones and saved states. What only a snapshot names stays.
fn volumes_of(config: &VmConfig) -> BTreeSet<String> {
    let of = |values: &Values| -> Vec<String> {
        let known = |(key, value): (&String, &String)| {
            let drive = Drive::parse(value);
            let fits = (is_drive_key(key) && drive.has_volume()) || key.starts_with("unused") || key == "vmstate";
            fits.then_some(drive.file)
        };
        values.iter().filter_map(known).collect()
    };
    let states = config.snapshots.values().filter_map(|section| section.values.get("vmstate").cloned());
    of(&config.values).into_iter().chain(of(&config.pending)).chain(states).collect()
}

fn remove_disks(env: &Env<'_>, storages: &Storages, vmid: u32, config: &VmConfig) {
    for volid in volumes_of(config) {
        let volume = match Volume::parse(&volid).and_then(|volume| storages.get(&volume.storage).map(|_| volume)) {
            Ok(volume) => volume,
            Err(error) => {
                env.warn(&format!("failed to get path and owner of volume '{volid}': {error}"));
                continue;
            }
        };
        // Only what lies in the VM's own folder is its own; ISO images and others' disks stay.
        if volume.owner != vmid || volume.content != "images" {
            continue;
        }
        if let Err(error) = storages.free(&volume, &|line| env.log(line)) {
            env.warn(&format!("Could not remove disk '{volid}', check manually: {error}"));
        }
    }
}

fn remove_unreferenced(env: &Env<'_>, storages: &Storages, vmid: u32) -> Result<(), Failure> {
    for storage in &storages.config().storages {
        if storage.flag("disable") || !storage.is_for(env.layout.node()) || !storage.content().contains(&"images") {
            continue;
        }
        for entry in storages.list(&storage.id, Some(&["images"]), Some(vmid))? {
            if entry.volume.owner != vmid {
                continue;
            }
            if let Err(error) = storages.free(&entry.volume, &|line| env.log(line)) {
                env.warn(&format!("Could not remove disk '{}', check manually: {error}", entry.volume.volid()));
            }
        }
    }
    Ok(())
}
