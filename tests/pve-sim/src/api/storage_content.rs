//! Calls on volumes: allocate, look at, free.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    Call, Failure, Param, Params, Reply, Route,
    storage::{id, load},
};
use crate::{
    storage::{NewImage, Storages, Volume, image_name},
    task::{Upid, Work, Worker, log},
};

const FORMATS: [&str; 4] = ["raw", "qcow2", "subvol", "vmdk"];
const VOLUME: &str = "/nodes/{node}/storage/{storage}/content/{volume}";

/// The work of this file's tasks.
pub(crate) const WORKS: [(&str, Work); 1] = [("imgdel", free)];

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    let storage = || Param::text("storage");
    let one = || vec![storage(), Param::text("volume")];
    let new = vec![
        storage(),
        Param::text("filename"),
        Param::vmid("vmid"),
        Param::text("size").pattern(is_size),
        Param::choice("format", &FORMATS).optional(),
    ];
    let attributes = vec![storage(), Param::text("volume"), Param::text("notes").optional(), Param::boolean("protected").optional()];
    let removal = vec![storage(), Param::text("volume"), Param::integer("delay").range(1, 30).optional()];
    vec![
        Route::new("POST", "/nodes/{node}/storage/{storage}/content", new, allocate),
        Route::new("GET", VOLUME, one(), look),
        Route::new("PUT", VOLUME, attributes, set_attributes),
        Route::new("DELETE", VOLUME, removal, remove),
    ]
}

fn is_size(text: &str) -> bool {
    let digits = text.strip_suffix(['M', 'G']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// A size in KiB, or with M or G behind it, in bytes.
fn bytes(size: &str) -> u64 {
    let shift = match size.as_bytes().last() {
        Some(b'M') => 20,
        Some(b'G') => 30,
        _ => 10,
    };
    size.trim_end_matches(['M', 'G']).parse::<u64>().unwrap_or(0).saturating_mul(1 << shift)
}

fn allocate(call: &Call) -> Result<Reply, Failure> {
    let params = &call.params;
    let name = params.text("filename").unwrap_or_default();
    let end = name.rsplit_once('.').map(|(_, end)| end).filter(|end| FORMATS.contains(end));
    let format = match (params.text("format"), end) {
        (Some(format), Some(end)) if format != end => {
            return Err(Failure::parameter("format", format!("different storage formats ({format} != {end})")));
        }
        (Some(format), _) => format,
        (None, Some(end)) => end,
        (None, None) => "raw",
    };
    let storages = load(call)?;
    if !name.is_empty() {
        storages.enabled(id(call))?;
        image_name(name)?;
    }
    let new = NewImage {
        storage: id(call),
        vmid: params.vmid(),
        format,
        name: Some(name).filter(|name| !name.is_empty()),
        bytes: bytes(params.text("size").unwrap_or_default()),
    };
    let volume = storages.allocate(&new, &|_| {})?;
    Ok(Reply::from(json!(volume.volid())))
}

/// The volume of a call's path: a whole id of this storage, or the name alone.
fn volume(params: &Params) -> Result<Volume, Failure> {
    let (storage, volume) = (params.text("storage").unwrap_or_default(), params.text("volume").unwrap_or_default());
    match volume.split_once(':') {
        Some((other, _)) if other != storage => Err(Failure::parameter("volume", format!("storage ID mismatch ({other} != {storage})\n"))),
        Some((_, name)) => Volume::of(storage, name),
        None => Volume::of(storage, volume),
    }
}

fn look(call: &Call) -> Result<Reply, Failure> {
    let volume = volume(&call.params)?;
    let storages = load(call)?;
    let info = storages.info(&volume)?;
    Ok(Reply::from(json!({"path": storages.shown_path(&volume)?, "size": info.size, "used": info.used, "format": info.format})))
}

fn set_attributes(call: &Call) -> Result<Reply, Failure> {
    volume(&call.params)?;
    if call.params.has("notes") {
        return Err(Failure::die("only backups can have notes"));
    }
    if call.params.has("protected") {
        return Err(Failure::die("only backups support attribute 'protected'"));
    }
    Ok(Reply::default())
}

fn remove(call: &Call) -> Result<Reply, Failure> {
    let volume = volume(&call.params)?;
    load(call)?.get(&volume.storage)?;
    let task = call.task("imgdel", &format!("{}@{}", volume.owner, volume.storage), "imgdel", json!({"volid": volume.volid()}))?;
    let Some(delay) = call.params.integer("delay").and_then(|seconds| u64::try_from(seconds).ok()) else { return Ok(task) };
    let Some(upid) = task.data.as_str().and_then(|text| text.parse::<Upid>().ok()) else { return Ok(task) };
    let deadline = Instant::now() + Duration::from_secs(delay);
    while upid.is_running() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    if upid.is_running() {
        return Ok(task);
    }
    match log::exit_status(&call.layout, &upid).as_str() {
        "OK" => Ok(Reply::default()),
        other => Err(Failure::die(other)),
    }
}

fn free(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let volume = Volume::parse(args["volid"].as_str().unwrap_or_default())?;
    let storages = Storages::load(&worker.layout, worker.lock_factor)?;
    storages.free(&volume, &|line| worker.log(line))?;
    worker.log(&format!("Removed volume '{}'", volume.volid()));
    Ok(())
}
