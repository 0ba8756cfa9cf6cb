//! Cloud-init drives. What stands on them matters to no agent: a real image of the right size and name is enough.

use serde_json::{Value, json};

use super::{env::Env, options};
use crate::{
    api::{Call, Failure, Param, Reply, Route},
    storage::{NewImage, Storages, Volume},
    vmconf::{Drive, VmConfig},
};

const KEYS: &[&str] = &["cicustom", "cipassword", "citype", "ciuser", "ciupgrade", "nameserver", "searchdomain", "sshkeys"];

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::new("GET", "/nodes/{node}/qemu/{vmid}/cloudinit", vec![Param::vmid("vmid")], pending),
        Route::new("PUT", "/nodes/{node}/qemu/{vmid}/cloudinit", vec![Param::vmid("vmid")], regenerate),
    ]
}

/// Writes the image of a VM that is about to start, or has changed; makes it when it is missing.
pub(super) fn generate(env: &Env<'_>, storages: &Storages, config: &VmConfig, drive: &Drive) -> Result<(), Failure> {
    env.log("generating cloud-init ISO");
    for part in config.get("cicustom").unwrap_or_default().split(',').filter(|part| !part.is_empty()) {
        let volid = part.split_once('=').map_or(part, |(_, volid)| volid);
        let volume = Volume::parse(volid)?;
        storages.activate(&volume.storage)?;
        if !storages.exists(&volume) {
            return Err(Failure::die(format!("volume '{volid}' does not exist")));
        }
    }
    let volume = Volume::parse(&drive.file)?;
    if !storages.exists(&volume) {
        let new = NewImage {
            storage: &volume.storage,
            vmid: volume.owner,
            format: "qcow2",
            name: Some(&volume.name),
            bytes: super::disk::CLOUDINIT_BYTES,
        };
        storages.allocate(&new, &|line| env.log(line))?;
    }
    Ok(())
}

fn pending(call: &Call) -> Result<Reply, Failure> {
    let config = Env::of_call(call).load(call.params.vmid())?;
    let ours = |key: &str| KEYS.contains(&key) && key != "cicustom" && key != "ciupgrade";
    let row = |(key, value): (&String, &String)| {
        let value = if key == "cipassword" { json!("**********") } else { options::json(key, value) };
        json!({"key": key, "value": value})
    };
    Ok(Reply::from(config.values.iter().filter(|(key, _)| ours(key)).map(row).collect::<Value>()))
}

fn regenerate(call: &Call) -> Result<Reply, Failure> {
    let (env, vmid) = (Env::of_call(call), call.params.vmid());
    let _held = env.lock(vmid)?;
    let config = env.load(vmid)?;
    config.check_lock()?;
    let storages = env.storages()?;
    let drives: Vec<Drive> = config.drives().filter(|(_, drive)| drive.is_cloudinit()).map(|(_, drive)| drive).collect();
    drives.iter().try_for_each(|drive| generate(&env, &storages, &config, drive))?;
    Ok(Reply::default())
}
