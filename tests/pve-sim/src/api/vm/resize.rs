//! Growing a disk.

use serde_json::{Value, json};

use super::env::Env;
use crate::{
    api::{Call, Failure, Param, Params, Reply, Route},
    storage::Volume,
    task::Worker,
    vmconf::{self, Drive},
};

/// The disks that can be resized, as PVE lists them.
pub(super) static DISKS: std::sync::LazyLock<Vec<&'static str>> = std::sync::LazyLock::new(|| {
    let buses = [("ide", 4), ("scsi", 31), ("virtio", 16), ("sata", 6), ("efidisk", 1), ("tpmstate", 1)];
    // They live as long as the program, as the schemas do that hold them.
    buses.iter().flat_map(|(bus, count)| (0..*count).map(move |n| &*Box::leak(format!("{bus}{n}").into_boxed_str()))).collect()
});

pub(super) fn routes() -> Vec<Route> {
    let schema = vec![
        Param::vmid("vmid"),
        Param::boolean("skiplock").optional(),
        Param::choice("disk", DISKS.as_slice()),
        Param::text("size").pattern(|text| vmconf::parse_size(text.strip_prefix('+').unwrap_or(text)).is_some()),
        Param::text("digest").max_length(40).optional(),
    ];
    vec![Route::new("PUT", "/nodes/{node}/qemu/{vmid}/resize", schema, resize)]
}

fn resize(call: &Call) -> Result<Reply, Failure> {
    call.task("resize", &call.params.vmid().to_string(), "resize", json!(call.params))
}

/// The work of `resize`.
pub(super) fn work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params: Params = serde_json::from_value(args.clone()).map_err(std::io::Error::other)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    let _held = env.lock(vmid)?;
    let mut config = env.load(vmid)?;
    if params.text("digest").is_some_and(|digest| digest != config.digest) {
        return Err(Failure::die("checksum mismatch (file change by other user?)"));
    }
    if !params.flag("skiplock") {
        config.check_lock()?;
    }
    let key = params.text("disk").unwrap_or_default();
    let mut drive = config.get(key).map(Drive::parse).ok_or_else(|| Failure::die(format!("disk '{key}' does not exist")))?;
    if drive.is_cdrom() {
        return Err(Failure::die("you can't resize a cdrom"));
    }
    let storages = env.storages()?;
    let volume = Volume::parse(&drive.file)?;
    storages.activate(&volume.storage)?;
    if !storages.exists(&volume) {
        return Err(Failure::die(format!("volume '{}' does not exist", drive.file)));
    }
    let now = storages.info(&volume)?.size;
    let text = params.text("size").unwrap_or_default();
    let wanted = match text.strip_prefix('+') {
        Some(more) => now.saturating_add(vmconf::parse_size(more).unwrap_or(0)),
        None => vmconf::parse_size(text).unwrap_or(0),
    };
    if wanted < now {
        return Err(Failure::die("shrinking disks is not supported"));
    }
    if wanted == now {
        return Ok(());
    }
    env.begun();
    let running = env.running(vmid).is_some();
    // Images grow by whole KiB; the configuration tells what was asked for.
    storages.resize(&volume, wanted.div_ceil(1024) * 1024, &|line| {
        // QEMU itself grows the disk of a running VM, without a word.
        if !running || line != "Image resized." {
            env.log(line);
        }
    })?;
    drive.set("size", vmconf::print_size(wanted));
    config.values.insert(key.to_owned(), drive.print());
    env.store(vmid, &config)
}
