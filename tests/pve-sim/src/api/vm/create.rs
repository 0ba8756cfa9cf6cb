//! Making a VM from nothing.

use serde_json::{Value, json};

use super::{clone, disk, env::Env, option_values, options, pool, update};
use crate::{
    api::{Call, Failure, Param, Params, Reply, Route, Schema, format},
    task::Worker,
    vmconf::{self, Drive, VmConfig, is_drive_key},
};

/// Parameters that are no options of the configuration.
const CONTROL: &[&str] = &[
    "vmid",
    "node",
    "archive",
    "force",
    "unique",
    "storage",
    "pool",
    "start",
    "bwlimit",
    "live-restore",
    "import-working-storage",
    "ha-managed",
];

pub(super) fn routes() -> Vec<Route> {
    let flag = |name| Param::boolean(name).optional();
    let more = [
        Param::vmid("vmid"),
        Param::text("archive").max_length(255).optional(),
        flag("force").requires("archive"),
        flag("unique").requires("archive"),
        flag("live-restore"),
        flag("start"),
        flag("ha-managed"),
        Param::text("storage").format(format::storage_id).optional(),
        Param::text("import-working-storage").format(format::storage_id).optional(),
        Param::text("pool").format(format::pool).optional(),
        Param::integer("bwlimit").min(0).optional(),
    ];
    let schema = Schema::from(options::OPTIONS.values().cloned().collect::<Vec<_>>()).with(more);
    vec![Route::new("POST", "/nodes/{node}/qemu", schema, create)]
}

fn settings(params: &Params) -> impl Iterator<Item = (&str, &str)> {
    let all = params.0.keys().filter(|name| !CONTROL.contains(&name.as_str()));
    all.map(|name| (if name == "cdrom" { "ide2" } else { name.as_str() }, params.text(name).unwrap_or_default()))
}

fn create(call: &Call) -> Result<Reply, Failure> {
    let (env, params) = (Env::of_call(call), &call.params);
    let vmid = params.vmid();
    super::check_quorum(env.layout)?;
    if let Some(pool) = params.text("pool") {
        pool::check(env.layout, pool)?;
    }
    if let Some(archive) = params.text("archive") {
        return Err(Failure::die(format!("volume '{archive}' does not exist")));
    }
    let storages = env.storages()?;
    for (key, value) in settings(params) {
        option_values::check_option(&env, &storages, key, value)?;
    }
    super::check_free(env.layout, vmid).map_err(|text| Failure::die(format!("unable to create VM {vmid} - {text}")))?;
    call.task("qmcreate", &vmid.to_string(), "create", json!(params))
}

/// The work of `qmcreate`.
pub(super) fn work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params: Params = serde_json::from_value(args.clone()).map_err(std::io::Error::other)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    {
        let _held = env.lock(vmid)?;
        let refused = |text: String| Failure::die(format!("unable to create VM {vmid} - {text}"));
        super::check_free(env.layout, vmid).map_err(refused)?;
        vmconf::replace(env.layout, vmid, "lock: create\n").map_err(|error| refused(error.to_string()))?;
        let mut made = Vec::new();
        let done = build(&env, &params, &mut made);
        if let Err(error) = done {
            disk::sweep(&env, &env.storages()?, &made);
            let _ = std::fs::remove_file(env.layout.vm_config(vmid));
            return Err(refused(error.to_string()));
        }
        if let Some(pool) = params.text("pool") {
            pool::join(env.layout, pool, vmid)?;
        }
    }
    if params.flag("start") {
        worker.log("Execute autostart");
        let _held = env.lock(vmid)?;
        if let Err(error) = update::autostart(&env, vmid) {
            worker.log(&error.to_string());
        }
    }
    Ok(())
}

fn build(env: &Env<'_>, params: &Params, made: &mut Vec<crate::storage::Volume>) -> Result<(), Failure> {
    let vmid = params.vmid();
    let storages = env.storages()?;
    let mut config = VmConfig::default();
    for (key, value) in settings(params) {
        env.check()?;
        if key == "description" {
            config.description = (!value.is_empty()).then(|| value.trim_end_matches('\n').to_owned());
            continue;
        }
        let value = if is_drive_key(key) { disk::create(env, &storages, vmid, key, value, false, made)? } else { kept(env, key, value) };
        config.values.insert(key.to_owned(), value);
    }
    if !config.values.contains_key("boot") {
        let order = default_order(&config);
        config.values.insert("boot".into(), if order.is_empty() { order } else { format!("order={order}") });
    }
    config.values.entry("vmgenid".into()).or_insert_with(|| uuid::Uuid::new_v4().to_string());
    let uuid = format!("uuid={}", uuid::Uuid::new_v4());
    let smbios = config.values.entry("smbios1".into()).or_insert_with(|| uuid.clone());
    if !smbios.contains("uuid=") {
        *smbios = format!("{uuid},{smbios}");
    }
    config.values.insert("meta".into(), clone::meta());
    env.begun();
    env.check()?;
    env.store(vmid, &config)
}

/// A value as it is kept. Only a change hashes the password.
fn kept(env: &Env<'_>, key: &str, value: &str) -> String {
    if key == "cipassword" { value.to_owned() } else { option_values::kept(env, key, value) }
}

/// What a VM boots from that does not say: its first disk, CD drive and network card.
fn default_order(config: &VmConfig) -> String {
    let drive = |cdrom: bool| {
        let fits = |key: &str| config.get(key).map(Drive::parse).is_some_and(|drive| drive.is_cdrom() == cdrom);
        let buses = [("ide", 4), ("scsi", 31), ("virtio", 16), ("sata", 6)];
        buses.iter().flat_map(|(bus, count)| (0..*count).map(move |n| format!("{bus}{n}"))).find(|key| fits(key))
    };
    let net = (0..32).map(|n| format!("net{n}")).find(|key| config.values.contains_key(key));
    [drive(false), drive(true), net].into_iter().flatten().collect::<Vec<_>>().join(";")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_boot_order_is_disk_cd_and_network() {
        for (text, order) in [
            ("scsi0: local:1/vm-1-disk-0.raw\nide2: none,media=cdrom\nnet0: virtio\n", "scsi0;ide2;net0"),
            ("net1: virtio\n", "net1"),
            ("ide2: none,media=cdrom\n", "ide2"),
            ("name: a\n", ""),
        ] {
            assert_eq!(default_order(&VmConfig::parse(text)), order);
        }
    }
}
