//! Calls on storages: list, status, what they hold.

use serde_json::{Map, Value, json};

use super::{Call, Failure, Param, Reply, Route};
use crate::storage::{Storage, Storages};

const CONTENT_TYPES: [&str; 8] = ["backup", "images", "import", "iso", "none", "rootdir", "snippets", "vztmpl"];
const SUBDIRS: [&str; 11] = [
    "content",
    "download-url",
    "file-restore",
    "import-metadata",
    "identity",
    "oci-registry-pull",
    "prunebackups",
    "rrd",
    "rrddata",
    "status",
    "upload",
];

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    let storage = || Param::text("storage");
    let list = vec![
        Param::text("storage").optional(),
        Param::text("content").format(content_list).optional(),
        Param::boolean("enabled").optional(),
        Param::text("target").optional(),
        Param::boolean("format").optional(),
    ];
    let content = vec![storage(), Param::text("content").format(content_list).optional(), Param::vmid("vmid").optional()];
    vec![
        Route::new("GET", "/storage", vec![Param::text("type").optional()], configured),
        Route::new("GET", "/storage/{storage}", vec![storage()], one_configured),
        Route::new("GET", "/nodes/{node}/storage", list, node_list),
        Route::new("GET", "/nodes/{node}/storage/{storage}", vec![storage()], index),
        Route::new("GET", "/nodes/{node}/storage/{storage}/status", vec![storage()], status),
        Route::new("GET", "/nodes/{node}/storage/{storage}/content", content, content_of),
    ]
}

/// Checks a list of content types.
pub(super) fn content_list(text: &str) -> Result<(), String> {
    let wrong = text.split(',').map(str::trim).find(|kind| !CONTENT_TYPES.contains(kind));
    wrong.map_or(Ok(()), |kind| Err(format!("invalid content type '{kind}'")))
}

/// The node's storages; a broken section makes every call fail, as on a real host.
pub(super) fn load(call: &Call) -> Result<Storages, Failure> {
    Storages::load(&call.layout, call.settings.lock_factor)
}

/// The storage that the path names.
pub(super) fn id(call: &Call) -> &str {
    call.params.text("storage").unwrap_or_default()
}

fn described(storage: &Storage, digest: &str) -> Value {
    let mut entry = Map::new();
    for (key, text) in &storage.options {
        let value = match key.as_str() {
            "disable" | "shared" | "priority" | "create-subdirs" | "create-base-path" => {
                text.parse::<i64>().map_or(json!(text), Value::from)
            }
            "nodes" => json!(storage.nodes().unwrap_or_default().join(",")),
            "content-dirs" => pairs(text),
            _ => json!(text),
        };
        entry.insert(key.clone(), value);
    }
    entry.insert("content".into(), json!(storage.content().join(",")));
    entry.insert("storage".into(), json!(storage.id));
    entry.insert("type".into(), json!(storage.kind));
    entry.insert("digest".into(), json!(digest));
    if storage.is_shared() {
        entry.insert("shared".into(), json!(1));
    }
    Value::Object(entry)
}

fn pairs(text: &str) -> Value {
    Value::Object(text.split(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), json!(v))).collect())
}

fn configured(call: &Call) -> Result<Reply, Failure> {
    let storages = load(call)?;
    if let Some(broken) = storages.config().broken() {
        return Err(Failure::die(format!("storage '{}' does not exist", broken.id)));
    }
    let config = storages.config();
    let wanted = call.params.text("type");
    let fits = |storage: &&Storage| wanted.is_none_or(|kind| storage.kind == kind);
    Ok(Reply::from(config.storages.iter().filter(fits).map(|s| described(s, &config.digest)).collect::<Value>()))
}

fn one_configured(call: &Call) -> Result<Reply, Failure> {
    let storages = load(call)?;
    Ok(Reply::from(described(storages.get(id(call))?, &storages.config().digest)))
}

fn index(_: &Call) -> Result<Reply, Failure> {
    Ok(Reply::from(SUBDIRS.iter().map(|name| json!({"subdir": name})).collect::<Value>()))
}

/// One line of the node's list, without the storage's id.
fn measured(storages: &Storages, storage: &Storage, node: &str) -> Map<String, Value> {
    let enabled = !storage.flag("disable") && storage.is_for(node);
    let status = storages.status(&storage.id);
    let entry = json!({
        "type": storage.kind, "content": storage.content().join(","), "shared": u8::from(storage.is_shared()), "enabled": u8::from(enabled),
        "active": u8::from(status.active), "total": status.total, "used": status.used, "avail": status.avail,
    });
    match entry {
        Value::Object(entry) => entry,
        _ => Map::new(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a fraction for people")]
fn node_list(call: &Call) -> Result<Reply, Failure> {
    let storages = load(call)?;
    let node = call.layout.node();
    let wanted: Option<Vec<&str>> = call.params.text("content").map(|list| list.split(',').map(str::trim).collect());
    if let Some(id) = call.params.text("storage")
        && storages.config().get(id).is_none()
    {
        return Err(Failure::parameter("storage", "No such storage."));
    }
    let mut list = Vec::new();
    for storage in &storages.config().storages {
        let usable = storages.enabled(&storage.id).is_ok();
        let left_out = call.params.text("storage").is_some_and(|id| id != storage.id)
            || wanted.as_ref().is_some_and(|kinds| !usable || !storage.content().iter().any(|kind| kinds.contains(kind)))
            || (call.params.flag("enabled") && storage.flag("disable"))
            || call
                .params
                .text("target")
                .is_some_and(|target| target != node && !(usable && storage.is_for(target) && storage.is_shared()));
        if left_out {
            continue;
        }
        let mut entry = measured(&storages, storage, node);
        entry.insert("storage".into(), json!(storage.id));
        let (used, total) = (entry["used"].as_u64().unwrap_or(0), entry["total"].as_u64().unwrap_or(0));
        if total > 0 {
            entry.insert("used_fraction".into(), json!(used as f64 / total as f64));
        }
        if usable && call.params.flag("format") {
            let formats = storage.formats();
            let mut supported = formats.to_vec();
            supported.sort_unstable();
            let known: Map<String, Value> = formats.iter().map(|format| ((*format).to_owned(), json!(1))).collect();
            entry.insert("format".into(), json!([known, "raw"]));
            entry.insert("formats".into(), json!({"default": "raw", "supported": supported}));
        }
        list.push(Value::Object(entry));
    }
    Ok(Reply::from(Value::from(list)))
}

fn status(call: &Call) -> Result<Reply, Failure> {
    let storages = load(call)?;
    let storage = storages.config().get(id(call)).ok_or_else(|| Failure::parameter("storage", "No such storage."))?;
    Ok(Reply::from(Value::Object(measured(&storages, storage, call.layout.node()))))
}

fn content_of(call: &Call) -> Result<Reply, Failure> {
    let storages = load(call)?;
    let wanted: Option<Vec<&str>> = call.params.text("content").map(|list| list.split(',').map(str::trim).collect());
    let vmid = call.params.has("vmid").then(|| call.params.vmid());
    let entries = storages.list(id(call), wanted.as_deref(), vmid)?;
    Ok(Reply::from(entries.iter().map(crate::storage::Entry::json).collect::<Value>()))
}
