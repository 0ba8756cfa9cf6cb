//! Snapshots of VMs that stand still: inside of their qcow2 images, with a section each in the configuration.

use serde_json::{Map, Value, json};

use super::{env::Env, options, status};
use crate::{
    api::{Call, Failure, Param, Params, Reply, Route, format},
    storage::{Storages, Volume},
    task::Worker,
    vmconf::{Drive, Section, Values, VmConfig, is_drive_key},
};

pub(super) fn routes() -> Vec<Route> {
    let vm = || Param::vmid("vmid");
    let name = || Param::text("snapname").format(format::config_id).max_length(40);
    let text = || Param::text("description").optional();
    let flag = |name| Param::boolean(name).optional();
    vec![
        Route::new("POST", "/nodes/{node}/qemu/{vmid}/snapshot", vec![vm(), name(), text(), flag("vmstate")], create),
        Route::new("GET", "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}", vec![vm(), name()], index),
        Route::new("DELETE", "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}", vec![vm(), name(), flag("force")], delete),
        Route::new("GET", "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/config", vec![vm(), name()], config),
        Route::new("PUT", "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/config", vec![vm(), name(), text()], describe),
        Route::new("POST", "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback", vec![vm(), name(), flag("start")], rollback),
    ]
}

fn task(call: &Call, kind: &str, action: &str) -> Result<Reply, Failure> {
    call.task(kind, &call.params.vmid().to_string(), action, json!(call.params))
}

fn create(call: &Call) -> Result<Reply, Failure> {
    if let Some(name @ ("current" | "pending")) = call.params.text("snapname") {
        return Err(Failure::die(format!("unable to use snapshot name '{name}' (reserved name)")));
    }
    task(call, "qmsnapshot", "snapshot")
}

fn delete(call: &Call) -> Result<Reply, Failure> {
    task(call, "qmdelsnapshot", "snapshot_delete")
}

fn rollback(call: &Call) -> Result<Reply, Failure> {
    if call.params.flag("start") {
        return Err(Failure::NotImplemented {
            method: "POST".into(),
            path: "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback?start=1".into(),
        });
    }
    task(call, "qmrollback", "snapshot_rollback")
}

fn index(_: &Call) -> Result<Reply, Failure> {
    Ok(Reply::from(json!([{"cmd": "rollback"}, {"cmd": "config"}])))
}

fn missing(name: &str) -> Failure {
    Failure::die(format!("snapshot '{name}' does not exist"))
}

fn config(call: &Call) -> Result<Reply, Failure> {
    let name = call.params.text("snapname").unwrap_or_default();
    let config = Env::of_call(call).load(call.params.vmid())?;
    let section = config.snapshots.get(name).ok_or_else(|| missing(name))?;
    let mut data: Map<String, Value> = section.values.iter().map(|(key, value)| (key.clone(), options::json(key, value))).collect();
    if let Some(text) = &section.description {
        data.insert("description".into(), json!(text));
    }
    Ok(Reply::from(Value::Object(data)))
}

fn describe(call: &Call) -> Result<Reply, Failure> {
    let (env, vmid) = (Env::of_call(call), call.params.vmid());
    let name = call.params.text("snapname").unwrap_or_default();
    let _held = env.lock(vmid)?;
    let mut config = env.load(vmid)?;
    config.check_lock()?;
    let section = config.snapshots.get_mut(name).ok_or_else(|| missing(name))?;
    if let Some(text) = call.params.text("description") {
        section.description = (!text.is_empty()).then(|| text.trim_end_matches('\n').to_owned());
    }
    env.store(vmid, &config)?;
    Ok(Reply::default())
}

fn read(args: &Value) -> Result<(Params, String), Failure> {
    let params: Params = serde_json::from_value(args.clone()).map_err(std::io::Error::other)?;
    let name = params.text("snapname").unwrap_or_default().to_owned();
    Ok((params, name))
}

/// The disks that are part of a snapshot.
fn disks(values: &Values) -> Result<Vec<(String, Volume)>, Failure> {
    let drives = values.iter().filter(|(key, _)| is_drive_key(key)).map(|(key, value)| (key, Drive::parse(value)));
    drives
        .filter(|(_, drive)| drive.has_volume() && !drive.is_cdrom())
        .map(|(key, drive)| Ok((key.clone(), Volume::parse(&drive.file)?)))
        .collect()
}

/// The work of `qmsnapshot`.
pub(super) fn create_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let (params, name) = read(args)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    let _held = env.lock(vmid)?;
    let mut config = env.load(vmid)?;
    if config.flag("template") {
        return Err(Failure::die("you can't take a snapshot if it's a template"));
    }
    config.check_lock()?;
    if config.snapshots.contains_key(&name) {
        return Err(Failure::die(format!("snapshot name '{name}' already used")));
    }
    let disks = disks(&config.values)?;
    if env.running(vmid).is_some() || disks.iter().any(|(_, volume)| volume.format() != "qcow2") {
        return Err(Failure::die("snapshot feature is not available"));
    }
    let storages = env.storages()?;
    for (key, volume) in &disks {
        env.log(&format!("snapshotting 'drive-{key}' ({})", volume.volid()));
        storages.snapshot(volume, "-c", &name)?;
        env.begun();
    }
    let mut values = config.values.clone();
    values.retain(|key, _| !key.starts_with("unused"));
    values.insert("snaptime".into(), status::now().to_string());
    let description = params.text("description").filter(|text| !text.is_empty()).map(|text| text.trim_end_matches('\n').to_owned());
    config.snapshots.insert(name.clone(), Section { description, values });
    config.values.insert("parent".into(), name);
    env.store(vmid, &config)
}

/// The work of `qmdelsnapshot`.
pub(super) fn delete_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let (params, name) = read(args)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    let _held = env.lock(vmid)?;
    let mut config = env.load(vmid)?;
    config.check_lock()?;
    let section = config.snapshots.get(&name).cloned().ok_or_else(|| missing(&name))?;
    env.begun();
    each_image(&env.storages()?, &section.values, "-d", &name, params.flag("force"))?;
    config.snapshots.remove(&name);
    // What no slot has any more is kept as unused, whoever owns it.
    for (_, volume) in disks(&section.values)? {
        config.add_unused(&volume.volid());
    }
    let heir = section.values.get("parent");
    let all = std::iter::once(&mut config.values).chain(config.snapshots.values_mut().map(|section| &mut section.values));
    for values in all.filter(|values| values.get("parent") == Some(&name)) {
        match heir {
            Some(parent) => values.insert("parent".into(), parent.clone()),
            None => values.remove("parent"),
        };
    }
    env.store(vmid, &config)
}

fn each_image(storages: &Storages, values: &Values, action: &str, name: &str, force: bool) -> Result<(), Failure> {
    for (_, volume) in disks(values)? {
        match storages.snapshot(&volume, action, name) {
            Err(_) if force => {}
            other => other?,
        }
    }
    Ok(())
}

/// The work of `qmrollback`.
pub(super) fn rollback_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let (params, name) = read(args)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    let _held = env.lock(vmid)?;
    let mut config = env.load(vmid)?;
    if config.flag("template") {
        return Err(Failure::die("you can't rollback if vm is a template"));
    }
    config.check_lock()?;
    let section = config.snapshots.get(&name).cloned().ok_or_else(|| missing(&name))?;
    if env.running(vmid).is_some() {
        return Err(Failure::die("VM is running - rollback needs it to be stopped here"));
    }
    env.begun();
    each_image(&env.storages()?, &section.values, "-a", &name, false)?;
    restore(&mut config, &name, section.values);
    env.store(vmid, &config)
}

/// Takes a snapshot's values back. Disks that it does not know stay as unused, whoever owns them.
fn restore(config: &mut VmConfig, name: &str, mut values: Values) {
    let used: Vec<String> = values.iter().filter(|(key, _)| is_drive_key(key)).map(|(_, value)| Drive::parse(value).file).collect();
    let disks = config.drives().filter(|(_, drive)| drive.has_volume() && !drive.is_cdrom()).map(|(_, drive)| drive.file);
    let later: Vec<String> = disks.filter(|volid| !used.contains(volid)).collect();
    later.iter().for_each(|volid| config.add_unused(volid));
    let unused = config.values.iter().filter(|(key, value)| key.starts_with("unused") && !used.contains(value));
    let numbered: Vec<(String, String)> = unused.map(|(key, value)| (key.clone(), value.clone())).collect();
    values.remove("snaptime");
    values.insert("parent".into(), name.to_owned());
    values.extend(numbered);
    if values.get("vmgenid").is_some_and(|id| id != "0") {
        values.insert("vmgenid".into(), uuid::Uuid::new_v4().to_string());
    }
    config.values = values;
}
