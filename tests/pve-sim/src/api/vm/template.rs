//! Turning a VM into a template.

use serde_json::{Value, json};

use super::{env::Env, resize::DISKS};
use crate::{
    api::{Call, Failure, Param, Params, Reply, Route},
    storage::Volume,
    task::Worker,
    vmconf::Drive,
};

pub(super) fn routes() -> Vec<Route> {
    let schema = vec![Param::vmid("vmid"), Param::choice("disk", DISKS.as_slice()).optional()];
    vec![Route::new("POST", "/nodes/{node}/qemu/{vmid}/template", schema, template)]
}

fn template(call: &Call) -> Result<Reply, Failure> {
    let (env, vmid) = (Env::of_call(call), call.params.vmid());
    let disk = call.params.text("disk");
    check(&env, vmid, disk)?;
    call.task("qmtemplate", &vmid.to_string(), "template", json!(call.params))
}

fn check(env: &Env<'_>, vmid: u32, disk: Option<&str>) -> Result<(), Failure> {
    let config = env.load(vmid)?;
    config.check_lock()?;
    if !config.snapshots.is_empty() {
        return Err(Failure::die("unable to create template, because VM contains snapshots"));
    }
    if config.flag("template") && disk.is_none() {
        return Err(Failure::die("you can't convert a template to a template"));
    }
    if env.running(vmid).is_some() {
        return Err(Failure::die("you can't convert a VM to template if VM is running"));
    }
    Ok(())
}

/// The work of `qmtemplate`.
pub(super) fn work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params: Params = serde_json::from_value(args.clone()).map_err(std::io::Error::other)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    let _held = env.lock(vmid)?;
    check(&env, vmid, params.text("disk"))?;
    env.begun();
    convert(&env, vmid, params.text("disk"))
}

/// Makes base images of a VM's disks, or of one of them, and marks the VM as a template.
pub(super) fn convert(env: &Env<'_>, vmid: u32, only: Option<&str>) -> Result<(), Failure> {
    let mut config = env.load(vmid)?;
    config.values.insert("template".into(), "1".into());
    env.store(vmid, &config)?;
    let storages = env.storages()?;
    let keys: Vec<String> = config.drives().map(|(key, _)| key.to_owned()).collect();
    for key in keys.iter().filter(|key| only.is_none_or(|only| only == key.as_str())) {
        let Some(mut drive) = config.get(key).map(Drive::parse).filter(|drive| drive.has_volume() && !drive.is_cdrom()) else { continue };
        let volume = Volume::parse(&drive.file)?;
        if volume.is_base() {
            continue;
        }
        drive.file = storages.make_base(&volume, &|line| env.log(line))?.volid();
        config.values.insert(key.clone(), drive.print());
        env.store(vmid, &config)?;
    }
    Ok(())
}
