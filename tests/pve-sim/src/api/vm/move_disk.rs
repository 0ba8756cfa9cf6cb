//! Moving a disk to another storage, or giving it to another VM.

use serde_json::{Value, json};

use super::{env::Env, resize::DISKS};
use crate::{
    api::{Call, Failure, Param, Params, Reply, Route, format},
    storage::{NewImage, Storages, Volume},
    task::Worker,
    vmconf::{self, Drive, VmConfig},
};

pub(super) fn routes() -> Vec<Route> {
    let schema = || {
        vec![
            Param::vmid("vmid"),
            Param::choice("disk", DISKS.as_slice()),
            Param::text("storage").format(format::storage_id).optional(),
            Param::choice("format", &["raw", "qcow2", "vmdk"]).optional(),
            Param::boolean("delete").optional(),
            Param::text("digest").max_length(40).optional(),
            Param::integer("bwlimit").min(0).optional(),
            Param::vmid("target-vmid").optional(),
            Param::text("target-disk").optional(),
            Param::text("target-digest").max_length(40).optional(),
        ]
    };
    vec![Route::new("POST", "/nodes/{node}/qemu/{vmid}/move_disk", schema(), move_disk)]
}

fn move_disk(call: &Call) -> Result<Reply, Failure> {
    let (env, params) = (Env::of_call(call), &call.params);
    let both = |text: &str| Err(Failure::Parameters(["storage", "target-vmid"].map(|name| (name.to_owned(), text.to_owned())).into()));
    match (params.has("storage"), params.has("target-vmid")) {
        (true, true) => return both("either set 'storage' or 'target-vmid', but not both"),
        (false, false) => return both("both 'storage' and 'target-vmid' missing, either needs to be set"),
        _ => {}
    }
    if let Some(storage) = params.text("storage") {
        let storages = env.storages()?;
        if !storages.enabled(storage)?.content().contains(&"images") {
            return Err(Failure::parameter("storage", format!("storage '{storage}' does not support vm images")));
        }
    } else {
        let target = params.integer("target-vmid").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        if !vmconf::exists(env.layout, target) {
            return Err(Failure::die(format!("could not find target VM {target}")));
        }
    }
    check(&env, params)?;
    let disk = params.text("disk").unwrap_or_default();
    let id = match params.integer("target-vmid") {
        Some(target) => format!("{}-{disk}>{target}-{}", params.vmid(), params.text("target-disk").unwrap_or(disk)),
        None => params.vmid().to_string(),
    };
    call.task("qmmove", &id, "move_disk", json!(params))
}

/// Checks a move and gives the configuration, the drive and its volume.
fn check(env: &Env<'_>, params: &Params) -> Result<(VmConfig, Drive, Volume), Failure> {
    let config = env.load(params.vmid())?;
    config.check_lock()?;
    if params.text("digest").is_some_and(|digest| digest != config.digest) {
        return Err(Failure::die("detected modified configuration - file changed by other user? Try again."));
    }
    let key = params.text("disk").unwrap_or_default();
    let drive = config.get(key).map(Drive::parse).ok_or_else(|| Failure::die(format!("disk '{key}' does not exist")))?;
    if !drive.has_volume() || (drive.is_cdrom() && !drive.is_cloudinit()) {
        return Err(Failure::die("you can't move a cdrom"));
    }
    let volume = Volume::parse(&drive.file)?;
    let same_format = params.text("format").is_none_or(|format| format == volume.format());
    if params.text("storage") == Some(&volume.storage) && same_format {
        return Err(Failure::die("you can't move to the same storage with same format"));
    }
    Ok((config, drive, volume))
}

/// The work of `qmmove`.
pub(super) fn work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params: Params = serde_json::from_value(args.clone()).map_err(std::io::Error::other)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    let _held = env.lock(vmid)?;
    let (config, drive, volume) = check(&env, &params)?;
    let storages = env.storages()?;
    match params.text("storage") {
        Some(storage) => to_storage(&env, &storages, &params, storage, config, drive, &volume),
        None => to_vm(&env, &storages, &params, config, drive, &volume),
    }
}

fn to_storage(
    env: &Env<'_>,
    storages: &Storages,
    params: &Params,
    storage: &str,
    mut config: VmConfig,
    mut drive: Drive,
    from: &Volume,
) -> Result<(), Failure> {
    let (vmid, key) = (params.vmid(), params.text("disk").unwrap_or_default());
    let moved = || format!("copying volume '{}' from current storage '{}' to target storage '{storage}'", from.volid(), from.storage);
    env.log(&moved());
    if !config.snapshots.is_empty() {
        env.log("moving disk with snapshots, snapshots will not be moved!");
    }
    if !storages.exists(from) {
        return Err(Failure::die(format!("storage migration failed: volume '{}' does not exist", from.volid())));
    }
    env.log(&format!("create full clone of drive {key} ({})", from.volid()));
    let cloudinit = drive.is_cloudinit();
    let format = super::target_format(storages, storage, params.text("format").unwrap_or(from.format()))?;
    let new = NewImage {
        storage,
        vmid,
        format,
        name: cloudinit.then_some(from.name.as_str()),
        bytes: if cloudinit { super::disk::CLOUDINIT_BYTES } else { storages.info(from)?.size },
    };
    let failed = |error: Failure| Failure::die(format!("storage migration failed: {error}"));
    let to = storages.allocate(&new, &|line| env.log(line)).map_err(failed)?;
    env.log(&format!("allocated target volume '{}'", to.volid()));
    env.begun();
    if !cloudinit && let Err(error) = storages.copy(from, None, &to, &|line| env.log(line)) {
        super::disk::sweep(env, storages, std::slice::from_ref(&to));
        return Err(failed(error));
    }
    let to = if config.flag("template") && !cloudinit { storages.make_base(&to, &|line| env.log(line))? } else { to };
    drive.file = to.volid();
    drive.set("size", vmconf::print_size(storages.info(&to)?.size));
    config.values.insert(key.to_owned(), drive.print());
    if cloudinit {
        env.log(&format!("found unused cloudinit disk '{}', removing it", from.volid()));
        env.store(vmid, &config)?;
        return storages.free(from, &|line| env.log(line));
    }
    if params.flag("delete") {
        env.store(vmid, &config)?;
        env.log(&format!("removing source volume '{}' after successful copy", from.volid()));
        if let Err(error) = storages.free(from, &|line| env.log(line)) {
            env.warn(&error.to_string());
        }
        return Ok(());
    }
    let slot = config.free_unused();
    env.log(&format!("adding source volume '{}' as '{slot}' to config", from.volid()));
    config.values.insert(slot, from.volid());
    env.store(vmid, &config)
}

fn to_vm(
    env: &Env<'_>,
    storages: &Storages,
    params: &Params,
    mut config: VmConfig,
    mut drive: Drive,
    from: &Volume,
) -> Result<(), Failure> {
    let (vmid, key) = (params.vmid(), params.text("disk").unwrap_or_default());
    let target = params.integer("target-vmid").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let slot = params.text("target-disk").unwrap_or(key);
    let _held = env.lock(target)?;
    let mut other = env.load(target)?;
    other.check_lock()?;
    if other.values.contains_key(slot) {
        return Err(Failure::die(format!("Target disk key '{slot}' is already in use for guest '{target}'")));
    }
    env.log(&format!("reassign disk '{key}' from VM '{vmid}' as '{slot}' to VM '{target}'"));
    env.begun();
    let to = storages.reassign(from, target, &|line| env.log(line))?;
    env.log(&format!("removing disk '{key}' from VM '{vmid}' config"));
    config.values.remove(key);
    env.store(vmid, &config)?;
    drive.file = to.volid();
    env.log(&format!("update VM {target}: -{slot} {}", drive.print()));
    other.values.insert(slot.to_owned(), drive.print());
    env.store(target, &other)
}
