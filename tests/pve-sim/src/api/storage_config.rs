//! Calls that change `storage.cfg`.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    Call, Failure, Param, Params, Reply, Route, cluster_file,
    storage::{content_list, id},
};
use crate::storage::{Config, Storage, config, is_storage_id};

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    let new = common().into_iter().chain([Param::choice("type", &config::KINDS), Param::text("path").optional()]);
    let change = common().into_iter().chain([Param::text("digest").optional(), Param::text("delete").optional()]);
    vec![
        Route::new("POST", "/storage", new.collect::<Vec<_>>(), add),
        Route::new("PUT", "/storage/{storage}", change.collect::<Vec<_>>(), update),
        Route::new("DELETE", "/storage/{storage}", vec![Param::text("storage")], remove),
    ]
}

fn common() -> Vec<Param> {
    vec![
        Param::text("storage").format(storage_id),
        Param::text("content").format(content_list).optional(),
        Param::text("nodes").optional(),
        Param::boolean("disable").optional(),
        Param::boolean("shared").optional(),
        Param::text("is_mountpoint").optional(),
    ]
}

fn storage_id(text: &str) -> Result<(), String> {
    if is_storage_id(text) { Ok(()) } else { Err(format!("storage ID '{text}' contains illegal characters")) }
}

fn options(params: &Params) -> BTreeMap<String, String> {
    let given = ["path", "content", "nodes", "disable", "shared", "is_mountpoint"];
    given.into_iter().filter_map(|key| params.text(key).map(|value| (key.to_owned(), value.to_owned()))).collect()
}

fn add(call: &Call) -> Result<Reply, Failure> {
    let kind = call.params.text("type").unwrap_or_default();
    cluster_file::change(call, "storage.cfg", "create storage", |text| {
        let mut config = Config::parse(text);
        if config.get(id(call)).is_some() {
            return Err(Failure::die(format!("storage ID '{}' already defined", id(call))));
        }
        config.storages.push(Storage { id: id(call).to_owned(), kind: kind.to_owned(), options: options(&call.params) });
        Ok(config.render())
    })?;
    Ok(Reply::from(json!({"storage": id(call), "type": kind})))
}

fn update(call: &Call) -> Result<Reply, Failure> {
    let mut kind = String::new();
    cluster_file::change(call, "storage.cfg", "update storage", |text| {
        let mut config = Config::parse(text);
        if call.params.text("digest").is_some_and(|digest| digest != config.digest) {
            return Err(Failure::die("detected modified configuration - file changed by other user? Try again."));
        }
        let Some(storage) = config.storages.iter_mut().find(|storage| storage.id == id(call)) else {
            return Err(Failure::die(format!("storage '{}' does not exist", id(call))));
        };
        kind.clone_from(&storage.kind);
        for key in call.params.text("delete").into_iter().flat_map(|list| list.split([',', ' ', ';'])) {
            storage.options.remove(key);
        }
        storage.options.extend(options(&call.params));
        Ok(config.render())
    })?;
    Ok(Reply::from(json!({"storage": id(call), "type": kind})))
}

fn remove(call: &Call) -> Result<Reply, Failure> {
    cluster_file::change(call, "storage.cfg", "delete storage", |text| {
        let mut config = Config::parse(text);
        if config.get(id(call)).is_none() {
            return Err(Failure::die(format!("storage '{}' does not exist", id(call))));
        }
        config.storages.retain(|storage| storage.id != id(call));
        Ok(config.render())
    })?;
    Ok(Reply::default())
}
