//! Changing a configuration: `PUT` does it at once, `POST` in a task.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    disk,
    env::Env,
    option_values::{check_option, kept},
    options, pending, power, read, status,
};
use crate::{
    api::{Call, Failure, Param, Params, Reply, Route, Schema, format},
    storage::{Storages, Volume},
    task::{self, Worker, log},
    vmconf::{Drive, VmConfig, is_drive_key},
};

pub(super) fn routes() -> Vec<Route> {
    let flag = |name| Param::boolean(name).optional();
    let more = || {
        [
            Param::vmid("vmid"),
            flag("skiplock"),
            flag("force"),
            Param::text("delete").format(format::config_id_list).optional(),
            Param::text("revert").format(format::config_id_list).optional(),
            Param::text("digest").max_length(40).optional(),
            Param::text("import-working-storage").format(format::storage_id).optional(),
        ]
    };
    let options = || Schema::from(options::OPTIONS.values().cloned().collect::<Vec<_>>()).with(more());
    let delay = Param::integer("background_delay").range(1, 30).optional();
    let list = Param::text("idlist").format(format::config_id_list);
    vec![
        Route::new("PUT", "/nodes/{node}/qemu/{vmid}/config", options(), put),
        Route::new("POST", "/nodes/{node}/qemu/{vmid}/config", options().with([delay]), post),
        Route::new("PUT", "/nodes/{node}/qemu/{vmid}/unlink", vec![Param::vmid("vmid"), list, flag("force")], unlink),
    ]
}

/// What a call changes.
struct Change {
    vmid: u32,
    set: BTreeMap<String, String>,
    delete: Vec<String>,
    revert: Vec<String>,
    force: bool,
    skiplock: bool,
    digest: Option<String>,
    /// For the log: the options as they were sent.
    told: String,
}

impl Change {
    fn read(params: &Params) -> Result<Self, Failure> {
        let control = ["vmid", "node", "skiplock", "force", "delete", "revert", "digest", "background_delay", "import-working-storage"];
        let mut set = BTreeMap::new();
        for name in params.0.keys().filter(|name| !control.contains(&name.as_str())) {
            if params.0.get(name).is_some_and(serde_json::Value::is_null) {
                return Err(Failure::die(format!("unable to parse value of '{name}' - got undefined value")));
            }
            let key = if name == "cdrom" { "ide2" } else { name };
            set.insert(key.to_owned(), params.text(name).unwrap_or_default().to_owned());
        }
        let list = |name| params.text(name).map(|text| format::list(text).map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default();
        let (delete, revert) = (list("delete"), list("revert"));
        if set.is_empty() && delete.is_empty() && revert.is_empty() {
            return Err(Failure::die("no options specified"));
        }
        let known = |key: &str| options::OPTIONS.contains_key(key) || matches!(key, "parent" | "meta");
        for key in &delete {
            if set.contains_key(key) {
                return Err(Failure::parameter("delete", format!("you can't use '-{key}' and -delete {key}' at the same time")));
            }
            if !known(key) {
                return Err(Failure::parameter("delete", format!("unknown option '{key}'")));
            }
        }
        for key in &revert {
            if !known(key) {
                return Err(Failure::parameter("revert", format!("unknown option '{key}'")));
            }
            if delete.contains(key) {
                return Err(Failure::parameter("revert", format!("you can't use '-delete {key}' and -revert {key}' at the same time")));
            }
        }
        let told = told(params);
        let (force, skiplock) = (params.flag("force"), params.flag("skiplock"));
        Ok(Self { vmid: params.vmid(), set, delete, revert, force, skiplock, digest: params.text("digest").map(str::to_owned), told })
    }

    /// Refuses what can be refused without a change.
    fn check(&self, env: &Env<'_>, config: &VmConfig) -> Result<(), Failure> {
        if self.digest.as_ref().is_some_and(|digest| *digest != config.digest) {
            return Err(Failure::die("checksum mismatch (file change by other user?)"));
        }
        if !self.skiplock {
            config.check_lock()?;
        }
        let storages = env.storages()?;
        for (key, value) in &self.set {
            check_option(env, &storages, key, value)?;
            if is_drive_key(key) && super::destroy::is_replicated(env, self.vmid) {
                let drive = Drive::parse(value);
                if drive.has_volume() && !drive.is_cdrom() && drive.option("replicate") != Some("0") {
                    return Err(Failure::die("cannot add non-replicatable volume to a replicated VM"));
                }
            }
        }
        self.check_balloon(config)
    }

    fn check_balloon(&self, config: &VmConfig) -> Result<(), Failure> {
        if !self.set.contains_key("memory") && !self.set.contains_key("balloon") {
            return Ok(());
        }
        let mut planned = read::with_pending(config);
        planned.values.extend(self.set.iter().map(|(key, value)| (key.clone(), value.clone())));
        let balloon: u64 = planned.get("balloon").and_then(|text| text.parse().ok()).unwrap_or(0);
        if balloon > status::memory_mib(&planned) && !self.delete.iter().any(|key| key == "balloon") {
            return Err(Failure::die("balloon value too large (must be smaller than assigned memory)"));
        }
        Ok(())
    }
}

/// The options of a call as the task's log tells them.
fn told(params: &Params) -> String {
    let silent = ["vmid", "node", "digest", "background_delay", "skiplock", "force"];
    let mut text = String::new();
    for name in params.0.keys().filter(|name| !silent.contains(&name.as_str())) {
        let value = if name == "cipassword" { "<hidden>" } else { params.text(name).unwrap_or_default() };
        text += &format!(" -{name} {value}");
    }
    text
}

fn put(call: &Call) -> Result<Reply, Failure> {
    let env = Env::of_call(call);
    let change = Change::read(&call.params)?;
    change.check(&env, &env.load(change.vmid)?)?;
    run(&env, &change)?;
    Ok(Reply::default())
}

fn unlink(call: &Call) -> Result<Reply, Failure> {
    let mut params = call.params.clone();
    let list = params.take("idlist").unwrap_or_default();
    params.set("delete", list);
    let env = Env::of_call(call);
    let change = Change::read(&params)?;
    change.check(&env, &env.load(change.vmid)?)?;
    run(&env, &change)?;
    Ok(Reply::default())
}

fn post(call: &Call) -> Result<Reply, Failure> {
    let env = Env::of_call(call);
    let change = Change::read(&call.params)?;
    change.check(&env, &env.load(change.vmid)?)?;
    let reply = call.task("qmconfig", &change.vmid.to_string(), "config", json!(call.params))?;
    let Some(delay) = call.params.integer("background_delay") else { return Ok(reply) };
    let Some(upid) = reply.data.as_str().and_then(|text| text.parse::<task::Upid>().ok()) else { return Ok(reply) };
    let deadline = Instant::now() + Duration::from_secs(delay.unsigned_abs());
    while upid.is_running() {
        if Instant::now() >= deadline {
            return Ok(reply);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match log::exit_status(env.layout, &upid).as_str() {
        "OK" => Ok(Reply::default()),
        error => Err(Failure::die(error)),
    }
}

/// The work of `qmconfig`.
pub(super) fn work(worker: &Worker, args: &serde_json::Value) -> Result<(), Failure> {
    let params: Params = serde_json::from_value(args.clone()).map_err(std::io::Error::other)?;
    run(&Env::of_worker(worker), &Change::read(&params)?)
}

/// Makes the change under the VM's lock.
fn run(env: &Env<'_>, change: &Change) -> Result<(), Failure> {
    let vmid = change.vmid;
    let _held = env.lock(vmid)?;
    let mut config = env.load(vmid)?;
    change.check(env, &config)?;
    env.log(&format!("update VM {vmid}:{}", change.told));
    let storages = env.storages()?;
    let (mut set_now, mut delete_now) = (change.set.clone(), change.delete.clone());
    for key in &change.revert {
        match config.get(key) {
            Some(value) => {
                set_now.insert(key.clone(), value.to_owned());
            }
            None if key == "description" && config.description.is_some() => {
                config.pending.remove(key);
                config.pending_delete.remove(key);
            }
            None => delete_now.extend(config.pending.contains_key(key).then(|| key.clone())),
        }
    }
    let (boot, mut modified) = (config.pending.get("boot").cloned(), BTreeSet::new());
    for key in &delete_now {
        if delete(env, &storages, change, &mut config, key)? {
            modified.insert(key.clone());
        }
    }
    for (key, value) in &set_now {
        modified.insert(key.clone());
        set(env, &storages, vmid, &mut config, key, value, &set_now)?;
    }
    if config.pending.get("boot") != boot.as_ref() {
        modified.insert("boot".into());
    }
    pending::cleanup(&mut config);
    env.begun();
    let result = if env.running(vmid).is_some() {
        pending::hotplug(env, &storages, vmid, &mut config, &modified)
    } else {
        pending::apply(env, &storages, vmid, &mut config)
    };
    env.store(vmid, &config)?;
    if let Err(errors) = result {
        return Err(Failure::Parameters(errors));
    }
    if change.set.get("template").is_some_and(|value| value == "1") {
        super::template::convert(env, vmid, None)?;
    }
    if change.set.contains_key("cicustom") || change.set.contains_key("ide2") {
        let config = env.load(vmid)?;
        if let Some((_, drive)) = config.drives().find(|(_, drive)| drive.is_cloudinit() && change.set.contains_key("ide2")) {
            super::cloudinit::generate(env, &storages, &config, &drive)?;
        }
    }
    Ok(())
}

/// Notes one new value as pending. What was made for earlier ones is pending already, and stays when this one fails.
fn set(
    env: &Env<'_>,
    storages: &Storages,
    vmid: u32,
    config: &mut VmConfig,
    key: &str,
    value: &str,
    all: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    if key == "boot"
        && let Some(device) = unknown_boot_device(config, all)
    {
        return Err(Failure::die(format!("invalid bootorder: device '{device}' does not exist'")));
    }
    let value = if is_drive_key(key) {
        let template = config.flag("template");
        let mut made = Vec::new();
        let created = disk::create(env, storages, vmid, key, value, template, &mut made);
        created.inspect_err(|_| disk::sweep(env, storages, &made))?
    } else {
        kept(env, key, value)
    };
    let drive = Drive::parse(&value);
    if is_drive_key(key) && drive.is_cdrom() && !drive.is_cloudinit() && !config.values.contains_key(key) {
        add_to_boot_order(config, key);
    }
    if key == "ostype" && value.starts_with('w') && !config.values.contains_key("machine") && !all.contains_key("machine") {
        // Windows is tied to the machine that it saw first.
        config.pending.insert("machine".into(), "pc-i440fx-10.0+pve1".into());
    }
    if key == "boot" && value.starts_with("order=") {
        // The older way of saying it goes.
        config.values.remove("bootdisk");
    }
    config.pending_delete.remove(key);
    if let Some(old) = config.pending.insert(key.to_owned(), value.clone())
        && is_drive_key(key)
        && Drive::parse(&old).file != drive.file
    {
        disk::detach(env, storages, config, vmid, &Drive::parse(&old), false)?;
    }
    if is_drive_key(key) {
        env.store(vmid, config)?;
    }
    Ok(())
}

fn add_to_boot_order(config: &mut VmConfig, key: &str) {
    let boot = config.pending.get("boot").map(String::as_str).or_else(|| config.get("boot")).unwrap_or_default();
    let Some(order) = boot.strip_prefix("order=").filter(|order| !order.split(';').any(|device| device == key)) else { return };
    config.pending.insert("boot".into(), format!("order={order};{key}"));
}

fn unknown_boot_device(config: &VmConfig, set: &BTreeMap<String, String>) -> Option<String> {
    let order = set.get("boot")?.strip_prefix("order=")?;
    let known = |device: &str| config.values.contains_key(device) || config.pending.contains_key(device) || set.contains_key(device);
    order.split(';').find(|device| !device.is_empty() && !known(device)).map(str::to_owned)
}

/// Notes that a key is to go, and tells whether there is anything to take away.
fn delete(env: &Env<'_>, storages: &Storages, change: &Change, config: &mut VmConfig, key: &str) -> Result<bool, Failure> {
    let set = config.values.contains_key(key) || (key == "description" && config.description.is_some());
    if !set && !config.pending.contains_key(key) {
        env.log(&format!("cannot delete '{key}' - not set in current configuration!"));
        return Ok(false);
    }
    if config.flag("protection") {
        let shown = if key.starts_with("unused") {
            Some(format!("unused disk '{}'", Drive::parse(config.get(key).unwrap_or_default()).file))
        } else {
            is_drive_key(key).then(|| format!("drive '{key}'"))
        };
        if let Some(shown) = shown {
            return Err(Failure::die(format!("can't remove {shown} - protection mode enabled")));
        }
    }
    if let Some(value) = config.pending.remove(key)
        && is_drive_key(key)
    {
        disk::detach(env, storages, config, change.vmid, &Drive::parse(&value), false)?;
    }
    if key.starts_with("unused") {
        let Some(value) = config.get(key) else { return Ok(true) };
        let volume = Volume::parse(&Drive::parse(value).file)?;
        if volume.owner == change.vmid {
            disk::check_unused(config, &volume.volid())?;
            storages.free(&volume, &|line| env.log(line))?;
        }
        config.values.remove(key);
        env.store(change.vmid, config)?;
        return Ok(true);
    }
    if set {
        config.pending_delete.insert(key.to_owned(), change.force);
        drop_from_boot_order(config, key);
        if is_drive_key(key) {
            // Whoever is killed while a guest holds on to the disk leaves this behind.
            env.store(change.vmid, config)?;
        }
    }
    Ok(true)
}

fn drop_from_boot_order(config: &mut VmConfig, key: &str) {
    let boot = config.pending.get("boot").cloned().or_else(|| config.get("boot").map(str::to_owned)).unwrap_or_default();
    let Some(order) = boot.strip_prefix("order=") else { return };
    if order.split(';').any(|device| device == key) {
        let left: Vec<&str> = order.split(';').filter(|device| *device != key).collect();
        config.pending.insert("boot".into(), if left.is_empty() { String::from(" ") } else { format!("order={}", left.join(";")) });
    }
}

/// Starts a VM that was made to be started.
pub(super) fn autostart(env: &Env<'_>, vmid: u32) -> Result<(), Failure> {
    power::start_locked(env, vmid, true, None)
}
