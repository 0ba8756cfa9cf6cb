//! Cloning a VM.

use serde_json::{Value, json};

use super::{env::Env, pool, status};
use crate::{
    api::{Call, Failure, Param, Params, Reply, Route, format},
    storage::{NewImage, Storages, Volume},
    task::Worker,
    vmconf::{self, Drive, Values, VmConfig},
};

/// The configuration of a clone in the making.
const TEMPORARY: &str = "# qmclone temporary file\nlock: clone\n";

pub(super) fn routes() -> Vec<Route> {
    let schema = vec![
        Param::vmid("vmid"),
        Param::vmid("newid"),
        Param::text("name").format(format::dns_name).optional(),
        Param::text("description").optional(),
        Param::text("pool").format(format::pool).optional(),
        Param::text("snapname").format(format::config_id).max_length(40).optional(),
        Param::text("storage").format(format::storage_id).optional(),
        Param::choice("format", &["raw", "qcow2", "vmdk"]).optional(),
        Param::boolean("full").optional(),
        Param::text("target").format(format::node).optional(),
        Param::integer("bwlimit").min(0).optional(),
    ];
    vec![Route::new("POST", "/nodes/{node}/qemu/{vmid}/clone", schema, clone)]
}

/// What is to be cloned.
struct Plan {
    description: Option<String>,
    values: Values,
    full: bool,
}

fn clone(call: &Call) -> Result<Reply, Failure> {
    let (env, params) = (Env::of_call(call), &call.params);
    super::check_quorum(env.layout)?;
    if let Some(pool) = params.text("pool") {
        pool::check(env.layout, pool)?;
    }
    if let Some(target) = params.text("target")
        && target != env.layout.node()
    {
        super::known_node(env.layout, target)?;
        check_shared(&env, params, target)?;
    }
    if let Some(storage) = params.text("storage") {
        let storages = env.storages()?;
        let target = storages.enabled(storage)?;
        if !target.content().contains(&"images") {
            return Err(Failure::parameter("storage", format!("storage '{storage}' does not support vm images")));
        }
    }
    plan(&env, params)?;
    call.task("qmclone", &params.vmid().to_string(), "clone", json!(params))
}

/// A clone on another node needs disks that are there too.
fn check_shared(env: &Env<'_>, params: &Params, target: &str) -> Result<(), Failure> {
    let (config, storages) = (env.load(params.vmid())?, env.storages()?);
    for (_, drive) in drives(&config.values) {
        let volume = Volume::parse(&drive.file)?;
        if !storages.get(params.text("storage").unwrap_or(&volume.storage))?.is_shared() {
            return Err(Failure::die(format!("can't clone VM to node '{target}' (VM uses local storage)")));
        }
    }
    Ok(())
}

fn newid(params: &Params) -> u32 {
    params.integer("newid").and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// Checks everything that can be checked without a change.
fn plan(env: &Env<'_>, params: &Params) -> Result<Plan, Failure> {
    let vmid = params.vmid();
    let missing = || Failure::die(format!("unable to find configuration file for VM {vmid} on node '{}'", env.layout.node()));
    let source = match env.load(vmid) {
        Err(Failure::Died(text)) if text.ends_with("does not exist") => return Err(missing()),
        other => other?,
    };
    source.check_lock()?;
    let (values, description) = match params.text("snapname") {
        Some(name) => {
            let section = source.snapshots.get(name).ok_or_else(|| Failure::die(format!("snapshot '{name}' does not exist")))?;
            (section.values.clone(), section.description.clone())
        }
        None => (source.values.clone(), source.description.clone()),
    };
    let full = params.flag_given("full").unwrap_or(!source.flag("template"));
    for name in ["storage", "format"] {
        if !full && params.has(name) {
            return Err(Failure::die(format!("parameter '{name}' not allowed for linked clones")));
        }
    }
    if vmconf::exists(env.layout, newid(params)) {
        return Err(Failure::die(format!("unable to create VM {}: config file already exists", newid(params))));
    }
    let storages = env.storages()?;
    for (key, drive) in drives(&values) {
        if drive.is_cdrom() {
            continue;
        }
        let volume = Volume::parse(&drive.file)?;
        storages.get(&volume.storage)?;
        if !full && !volume.is_base() {
            return Err(Failure::die(format!("Linked clone feature is not supported for '{}' ({key})", drive.file)));
        }
    }
    Ok(Plan { description, values, full })
}

fn drives(values: &Values) -> Vec<(String, Drive)> {
    let config = VmConfig { values: values.clone(), ..VmConfig::default() };
    let all: Vec<(String, Drive)> = config.drives().map(|(key, drive)| (key.to_owned(), drive)).collect();
    all.into_iter().filter(|(_, drive)| drive.has_volume()).collect()
}

/// The work of `qmclone`.
pub(super) fn work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params: Params = serde_json::from_value(args.clone()).map_err(std::io::Error::other)?;
    let (env, vmid, newid) = (Env::of_worker(worker), params.vmid(), newid(&params));
    // Clones of a VM that stands still share its lock; changes of it wait until they are done.
    let running = env.running(vmid).is_some();
    let _source = if running { env.lock_briefly(vmid)? } else { env.lock_shared(vmid)? };
    let _target = env.lock_briefly(newid)?;
    let plan = plan(&env, &params)?;
    env.log(&format!("creating a clone of VM {vmid} with ID {newid}"));
    vmconf::replace(env.layout, newid, TEMPORARY)?;
    let mut made = Vec::new();
    let done = build(&env, &params, plan, &mut made);
    let Err(error) = done else { return Ok(()) };
    if let Ok(storages) = env.storages() {
        for volume in &made {
            if let Err(error) = storages.free(volume, &|line| env.log(line)) {
                env.log(&error.to_string());
            }
        }
    }
    let _ = std::fs::remove_file(env.layout.vm_config(newid));
    let text = error.to_string();
    // A signal to the worker ends the copy.
    let text = if env.is_interrupted() { text.replace("failed: exit code 1", "failed: interrupted by signal") } else { text };
    Err(Failure::die(format!("clone failed: {text}")))
}

fn build(env: &Env<'_>, params: &Params, plan: Plan, made: &mut Vec<Volume>) -> Result<(), Failure> {
    let newid = newid(params);
    let storages = env.storages()?;
    let Plan { description, values, full } = plan;
    let mut config = VmConfig { description, values, ..VmConfig::default() };
    for key in ["template", "parent", "lock", "snaptime", "snapstate", "vmstate", "runningmachine", "runningcpu"] {
        config.values.remove(key);
    }
    config.values.retain(|key, _| !key.starts_with("unused"));
    for (key, value) in &mut config.values {
        if key.strip_prefix("net").is_some_and(|rest| vmconf::number(rest).is_some()) {
            *value = super::with_new_mac(env.layout, value);
        }
    }
    config.values.insert("smbios1".into(), with_new_uuid(config.get("smbios1").unwrap_or_default()));
    if config.get("vmgenid") != Some("0") {
        config.values.insert("vmgenid".into(), uuid::Uuid::new_v4().to_string());
    }
    let old_name = config.get("name").map_or_else(|| params.vmid().to_string(), str::to_owned);
    let name = params.text("name").map_or_else(|| format!("Copy-of-VM-{old_name}"), str::to_owned);
    config.values.insert("name".into(), name);
    if let Some(text) = params.text("description") {
        config.description = (!text.is_empty()).then(|| text.trim_end_matches('\n').to_owned());
    }
    config.values.insert("lock".into(), "clone".into());

    let drives = drives(&config.values);
    for (_, drive) in drives.iter().filter(|(_, drive)| drive_is_cloned(drive)) {
        let volume = Volume::parse(&drive.file)?;
        storages.activate(&volume.storage)?;
        if !storages.exists(&volume) {
            return Err(Failure::die(format!("volume '{}' does not exist", drive.file)));
        }
    }
    for (key, mut drive) in drives.into_iter().filter(|(_, drive)| drive_is_cloned(drive)) {
        env.check()?;
        let from = Volume::parse(&drive.file)?;
        let linked = !full && from.is_base();
        env.log(&format!("create {} clone of drive {key} ({})", if linked { "linked" } else { "full" }, drive.file));
        let to = if linked {
            let volume = storages.linked_clone(&from, newid, &|line| env.log(line))?;
            made.push(volume.clone());
            volume
        } else {
            copy(env, &storages, params, &key, &drive, newid, made)?
        };
        env.begun();
        drive.file = to.volid();
        drive.options.remove("format");
        drive.set("size", vmconf::print_size(storages.info(&to)?.size));
        config.values.insert(key, drive.print());
        env.store(newid, &config)?;
    }
    config.values.remove("lock");
    env.check()?;
    env.store(newid, &config)?;
    if let Some(target) = params.text("target")
        && target != env.layout.node()
    {
        super::move_config(env.layout, newid, target)?;
    }
    params.text("pool").map_or(Ok(()), |pool| pool::join(env.layout, pool, newid))
}

fn drive_is_cloned(drive: &Drive) -> bool {
    !drive.is_cdrom() || drive.is_cloudinit()
}

/// A full copy of one volume.
fn copy(
    env: &Env<'_>,
    storages: &Storages,
    params: &Params,
    key: &str,
    drive: &Drive,
    newid: u32,
    made: &mut Vec<Volume>,
) -> Result<Volume, Failure> {
    let (from, cloudinit) = (&Volume::parse(&drive.file)?, drive.is_cloudinit());
    let storage = params.text("storage").unwrap_or(&from.storage);
    let wanted = params.text("format").unwrap_or(from.format());
    let format = super::target_format(storages, storage, wanted)?;
    if params.has("format") && format != wanted {
        env.log(&format!("format '{wanted}' is not supported by the target storage '{storage}' - using '{format}' instead"));
    }
    let name = cloudinit.then(|| format!("vm-{newid}-cloudinit.qcow2"));
    let (format, bytes) = if cloudinit { ("qcow2", super::disk::CLOUDINIT_BYTES) } else { (format, storages.info(from)?.size) };
    let new = NewImage { storage, vmid: newid, format, name: name.as_deref(), bytes };
    let to = storages.allocate(&new, &|line| env.log(line))?;
    made.push(to.clone());
    env.log(&format!("allocated target volume '{}'", to.volid()));
    if !cloudinit {
        storages.copy(from, params.text("snapname"), &to, &|line| {
            // Firmware variables are copied without a word.
            if !key.starts_with("efidisk") {
                env.log(line);
            }
            env.begun();
        })?;
    }
    Ok(to)
}

/// SMBIOS fields with another UUID.
fn with_new_uuid(fields: &str) -> String {
    let others = fields.split(',').filter(|field| !field.is_empty() && !field.starts_with("uuid=")).map(str::to_owned);
    std::iter::once(format!("uuid={}", uuid::Uuid::new_v4())).chain(others).collect::<Vec<_>>().join(",")
}

/// The moment of a VM's creation, as `meta` keeps it.
pub(super) fn meta() -> String {
    format!("creation-qemu=10.0.13,ctime={}", status::now())
}
