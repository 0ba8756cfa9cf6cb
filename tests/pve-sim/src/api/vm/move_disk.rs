//! Moving a disk to another storage, or giving it to another VM.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::{disk, env::Env, resize::DISKS};
use crate::{
    api::{Call, Failure, Param, Params, Reply, Route, format},
    storage::{NewImage, Storages, Volume},
    task::Worker,
    vmconf::{self, Drive, VmConfig},
};

/// The disks that can be moved: those that can be resized, and unused ones.
static MOVABLE: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    // They live as long as the program, as the schemas do that hold them.
    let unused = (0..256).map(|n| &*Box::leak(format!("unused{n}").into_boxed_str()));
    DISKS.iter().copied().chain(unused).collect()
});

pub(super) fn routes() -> Vec<Route> {
    let schema = || {
        vec![
            Param::vmid("vmid"),
            Param::choice("disk", MOVABLE.as_slice()),
            Param::text("storage").format(format::storage_id).optional(),
            Param::choice("format", &["raw", "qcow2", "vmdk"]).optional(),
            Param::boolean("delete").optional(),
            Param::text("digest").max_length(40).optional(),
            Param::integer("bwlimit").min(0).optional(),
            Param::vmid("target-vmid").optional(),
            Param::choice("target-disk", MOVABLE.as_slice()).optional(),
            Param::text("target-digest").max_length(40).optional(),
        ]
    };
    vec![Route::new("POST", "/nodes/{node}/qemu/{vmid}/move_disk", schema(), move_disk)]
}

fn target_vmid(params: &Params) -> Option<u32> {
    params.integer("target-vmid").and_then(|n| u32::try_from(n).ok())
}

fn move_disk(call: &Call) -> Result<Reply, Failure> {
    let (env, params) = (Env::of_call(call), &call.params);
    let both = |text: &str| Err(Failure::Parameters(["storage", "target-vmid"].map(|name| (name.to_owned(), text.to_owned())).into()));
    let vmid = params.vmid();
    let id = match (params.text("storage"), target_vmid(params)) {
        (Some(_), Some(_)) => return both("either set 'storage' or 'target-vmid', but not both"),
        (None, None) => return both("both 'storage' and 'target-vmid' missing, either needs to be set"),
        (None, Some(target)) if target == vmid => {
            return Err(Failure::parameter("target-vmid", "must be different than source VMID to reassign disk"));
        }
        (None, Some(target)) => {
            check_gift(&env, params, target)?;
            let disk = params.text("disk").unwrap_or_default();
            format!("{vmid}-{disk}>{target}-{}", params.text("target-disk").unwrap_or(disk))
        }
        (Some(storage), None) => {
            check(&env, params, storage)?;
            vmid.to_string()
        }
    };
    call.task("qmmove", &id, "move_disk", json!(params))
}

fn modified() -> Failure {
    Failure::die("detected modified configuration - file changed by other user? Try again.")
}

/// Checks a move to a storage and gives the configuration, the drive and its volume.
fn check(env: &Env<'_>, params: &Params, storage: &str) -> Result<(VmConfig, Drive, Volume), Failure> {
    let config = env.load(params.vmid())?;
    config.check_lock()?;
    if params.text("digest").is_some_and(|digest| digest != config.digest) {
        return Err(modified());
    }
    let key = params.text("disk").unwrap_or_default();
    let drive = config.get(key).map(Drive::parse).ok_or_else(|| Failure::die(format!("disk '{key}' does not exist")))?;
    if !drive.has_volume() || (drive.is_cdrom() && !drive.is_cloudinit()) {
        return Err(Failure::die("you can't move a cdrom"));
    }
    let volume = Volume::parse(&drive.file)?;
    let same_format = params.text("format").is_none_or(|format| format == volume.format());
    if storage == volume.storage && same_format {
        return Err(Failure::die("you can't move to the same storage with same format"));
    }
    if !env.storages()?.enabled(storage)?.content().contains(&"images") {
        return Err(Failure::parameter("storage", format!("storage '{storage}' does not support vm images")));
    }
    if params.flag("delete") && config.uses(&drive.file, Some(key)) {
        return Err(Failure::die("you can't move a disk with snapshots and delete the source"));
    }
    Ok((config, drive, volume))
}

/// The work of `qmmove`.
pub(super) fn work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params: Params = serde_json::from_value(args.clone()).map_err(std::io::Error::other)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    let _held = env.lock(vmid)?;
    let storages = env.storages()?;
    match (params.text("storage"), target_vmid(&params)) {
        (Some(storage), _) => to_storage(&env, &storages, &params, storage),
        (None, target) => to_vm(&env, &storages, &params, target.unwrap_or_default()),
    }
}

fn to_storage(env: &Env<'_>, storages: &Storages, params: &Params, storage: &str) -> Result<(), Failure> {
    let (mut config, drive, from) = check(env, params, storage)?;
    let (vmid, key) = (params.vmid(), params.text("disk").unwrap_or_default());
    env.log(&format!("copying volume '{}' from current storage '{}' to target storage '{storage}'", from.volid(), from.storage));
    storages.activate(&from.storage)?;
    if !storages.exists(&from) {
        return Err(Failure::die(format!("volume '{}' does not exist", from.volid())));
    }
    if config.uses(&drive.file, Some(key)) {
        env.log("moving disk with snapshots, snapshots will not be moved!");
    }
    let mut made = Vec::new();
    let done = copy(env, storages, params, storage, &drive, &from, &mut made).and_then(|to| {
        // The disk goes on under its new name; whoever owned the old one, this VM owns the new one.
        let to = if config.flag("template") && !drive.is_cloudinit() { storages.make_base(&to, &|line| env.log(line))? } else { to };
        let mut moved = drive.clone();
        moved.file = to.volid();
        moved.options.remove("format");
        if !key.starts_with("unused") {
            moved.set("size", vmconf::print_size(storages.info(&to)?.size));
        }
        config.values.insert(key.to_owned(), moved.print());
        if !params.flag("delete") {
            keep(env, storages, &mut config, &from, drive.is_cloudinit())?;
        }
        env.store(vmid, &config)
    });
    if let Err(error) = done {
        disk::sweep(env, storages, &made);
        let text = error.to_string();
        let text = if env.is_interrupted() { text.replace("failed: exit code 1", "failed: interrupted by signal") } else { text };
        return Err(Failure::die(format!("storage migration failed: {text}")));
    }
    if params.flag("delete") {
        env.log(&format!("removing source volume '{}' after successful copy", from.volid()));
        if let Err(error) = storages.free(&from, &|line| env.log(line)) {
            env.log(&error.to_string());
        }
    }
    Ok(())
}

/// Makes the new volume and fills it. A running VM's QEMU mirrors its disk itself.
fn copy(
    env: &Env<'_>,
    storages: &Storages,
    params: &Params,
    storage: &str,
    drive: &Drive,
    from: &Volume,
    made: &mut Vec<Volume>,
) -> Result<Volume, Failure> {
    let (vmid, key) = (params.vmid(), params.text("disk").unwrap_or_default());
    let mirrored = env.running(vmid).is_some() && !key.starts_with("unused");
    if mirrored && key == "tpmstate0" {
        return Err(Failure::die("cannot move TPM state while VM is running"));
    }
    env.log(&format!("create full clone of drive {key} ({})", from.volid()));
    let cloudinit = drive.is_cloudinit();
    let wanted = params.text("format").unwrap_or(from.format());
    let format = super::target_format(storages, storage, wanted)?;
    if params.has("format") && format != wanted {
        env.log(&format!("format '{wanted}' is not supported by the target storage '{storage}' - using '{format}' instead"));
    }
    let name = cloudinit.then(|| format!("vm-{vmid}-cloudinit.{format}"));
    let bytes = if cloudinit { disk::CLOUDINIT_BYTES } else { storages.info(from)?.size };
    let new = NewImage { storage, vmid, format, name: name.as_deref(), bytes };
    let to = storages.allocate(&new, &|line| env.log(line))?;
    made.push(to.clone());
    env.log(&format!("allocated target volume '{}'", to.volid()));
    env.begun();
    env.check()?;
    let limit = params.integer("bwlimit").and_then(|rate| u64::try_from(rate).ok()).filter(|rate| *rate > 0);
    if cloudinit {
        return Ok(to);
    }
    if mirrored {
        let limited = limit.map(|rate| format!(" with bandwidth limit: {rate} KiB/s")).unwrap_or_default();
        env.log(&format!("drive mirror is starting for drive-{key}{limited}"));
        let done = storages.mirror(from, &to, &format!("mirror-{key}"), limit, &|line| env.log(line));
        if done.is_err() && env.is_interrupted() {
            return Err(Failure::die("block job (mirror) error: interrupted by signal"));
        }
        done?;
    } else {
        storages.copy_slowly(from, &to, limit, &|line| env.log(line))?;
    }
    Ok(to)
}

/// Keeps the source as unused, even if it is another VM's. A cloud-init drive is removed instead.
fn keep(env: &Env<'_>, storages: &Storages, config: &mut VmConfig, from: &Volume, cloudinit: bool) -> Result<(), Failure> {
    if cloudinit {
        env.log(&format!("found unused cloudinit disk '{}', removing it", from.volid()));
        storages.free(from, &|line| env.log(line))?;
        env.log(&format!("adding source volume '{}' as '' to config", from.volid()));
        return Ok(());
    }
    let slot = config.free_unused();
    env.log(&format!("adding source volume '{}' as '{slot}' to config", from.volid()));
    config.values.insert(slot, from.volid());
    Ok(())
}

/// Checks whether a disk can be given to another VM, and gives both configurations and the drive.
fn check_gift(env: &Env<'_>, params: &Params, target: u32) -> Result<(VmConfig, VmConfig, Drive), Failure> {
    let vmid = params.vmid();
    for (vmid, what) in [(vmid, "VM"), (target, "target VM")] {
        if vmconf::holder(env.layout, vmid).is_none() {
            return Err(Failure::die(format!("could not find {what} {vmid}")));
        }
    }
    if let (Some((_, source)), Some((_, node))) = (vmconf::holder(env.layout, vmid), vmconf::holder(env.layout, target))
        && source != node
    {
        return Err(Failure::die(format!("Both VMs need to be on the same node ({source} != {node})")));
    }
    let (config, other) = (env.load(vmid)?, env.load(target)?);
    config.check_lock()?;
    other.check_lock()?;
    if config.flag("template") || other.flag("template") {
        return Err(Failure::die("Can't move disks from or to template VMs"));
    }
    for (name, vmid, config) in [("digest", vmid, &config), ("target-digest", target, &other)] {
        if params.text(name).is_some_and(|digest| digest != config.digest) {
            return Err(Failure::die(format!("VM {vmid}: {}", modified())));
        }
    }
    let key = params.text("disk").unwrap_or_default();
    let slot = params.text("target-disk").unwrap_or(key);
    let drive = config.get(key).map(Drive::parse);
    let drive = drive.ok_or_else(|| Failure::die(format!("Disk '{key}' for VM '{vmid}' does not exist")))?;
    if other.values.contains_key(slot) {
        return Err(Failure::die(format!("Target disk key '{slot}' is already in use for VM '{target}'")));
    }
    if drive.is_cdrom() && !drive.is_cloudinit() {
        return Err(Failure::die("CD drive contents can't be moved to another VM"));
    }
    if !drive.has_volume() {
        return Err(Failure::die(format!("Volume '{}' not managed by PVE", drive.file)));
    }
    if config.uses(&drive.file, Some(key)) {
        return Err(Failure::die("Can't move disk used by a snapshot to another VM"));
    }
    if env.running(vmid).is_some() && !key.starts_with("unused") {
        return Err(Failure::die("Cannot move disk to another VM while the source VM is running - detach first"));
    }
    Ok((config, other, drive))
}

fn to_vm(env: &Env<'_>, storages: &Storages, params: &Params, target: u32) -> Result<(), Failure> {
    let (vmid, key) = (params.vmid(), params.text("disk").unwrap_or_default());
    let slot = params.text("target-disk").unwrap_or(key);
    let _held = env.lock(target)?;
    let (mut config, mut other, mut drive) = check_gift(env, params, target)?;
    let from = Volume::parse(&drive.file)?;
    env.log(&format!("reassign disk '{key}' from VM '{vmid}' as '{slot}' to VM '{target}'"));
    env.begun();
    let to = storages.reassign(&from, target, &|line| env.log(line))?;
    if let Some(order) = config.get("boot").and_then(|boot| boot.strip_prefix("order="))
        && order.split(';').any(|device| device == key)
    {
        env.log(&format!("removing disk '{key}' from boot order config"));
        let left: Vec<&str> = order.split(';').filter(|device| *device != key).collect();
        let left = if left.is_empty() { String::from(" ") } else { format!("order={}", left.join(";")) };
        config.values.insert("boot".into(), left);
    }
    env.log(&format!("removing disk '{key}' from VM '{vmid}' config"));
    config.values.remove(key);
    env.store(vmid, &config)?;
    drive.file = to.volid();
    if slot.starts_with("unused") {
        other.values.insert(slot.to_owned(), drive.file);
    } else {
        env.log(&format!("update VM {target}: -{slot} {}", drive.print()));
        drive.set("size", vmconf::print_size(storages.info(&to)?.size));
        other.values.insert(slot.to_owned(), drive.print());
    }
    env.store(target, &other)
}
