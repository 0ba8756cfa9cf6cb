//! Calls on pools, which stand in `user.cfg`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Call, Failure, Param, Params, Reply, Route, cluster_file, cluster_resources};
use crate::layout::NodeLayout;

const FILE: &str = "user.cfg";

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    let pool = || Param::text("poolid");
    let change = || {
        vec![
            pool(),
            Param::text("comment").optional(),
            Param::text("vms").optional(),
            Param::text("storage").optional(),
            Param::boolean("allow-move").optional(),
            Param::boolean("delete").optional(),
        ]
    };
    vec![
        Route::new("GET", "/pools", vec![pool().optional(), Param::text("type").optional()], list),
        Route::new("POST", "/pools", vec![pool(), Param::text("comment").optional()], create),
        Route::new("PUT", "/pools", change(), update),
        Route::new("PUT", "/pools/{poolid}", change(), update),
        Route::new("DELETE", "/pools", vec![pool()], delete),
        Route::new("DELETE", "/pools/{poolid}", vec![pool()], delete),
        Route::new("GET", "/pools/{poolid}", vec![pool(), Param::text("type").optional()], one),
    ]
}

/// One pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) id: String,
    comment: String,
    pub(super) vms: BTreeSet<u32>,
    storages: BTreeSet<String>,
}

impl Pool {
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.strip_prefix("pool:")?.split(':');
        let mut next = || parts.next().unwrap_or_default();
        let (id, comment, vms, storages) = (next().to_owned(), next(), next(), next());
        let list = |text: &str| text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect::<BTreeSet<_>>();
        let vms = list(vms).iter().filter_map(|id| id.parse().ok()).collect();
        Some(Self { id, comment: comment.to_owned(), vms, storages: list(storages) })
    }

    fn print(&self) -> String {
        let vms = self.vms.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let storages = self.storages.iter().cloned().collect::<Vec<_>>().join(",");
        format!("pool:{}:{}:{vms}:{storages}:", self.id, self.comment)
    }
}

/// The pools of the cluster.
pub(super) fn load(layout: &NodeLayout) -> Result<Vec<Pool>, Failure> {
    let text = cluster_file::read(&layout.etc_pve().join(FILE))?;
    Ok(text.lines().filter_map(Pool::parse).collect())
}

/// Changes the pools and leaves the other lines as they are.
fn change(call: &Call, what: &str, edit: impl FnOnce(&mut Vec<Pool>) -> Result<(), Failure>) -> Result<Reply, Failure> {
    cluster_file::change(call, FILE, what, |text| {
        let mut pools: Vec<Pool> = text.lines().filter_map(Pool::parse).collect();
        edit(&mut pools)?;
        pools.sort_by(|a, b| a.id.cmp(&b.id));
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.iter().position(|line| line.starts_with("pool:"));
        let at = first.unwrap_or_else(|| lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| (last + 3).min(lines.len())));
        let before = lines[..at].iter().map(|line| (*line).to_owned());
        let after = lines[at..].iter().filter(|line| !line.starts_with("pool:")).map(|line| (*line).to_owned());
        let all: Vec<String> = before.chain(pools.iter().map(Pool::print)).chain(after).collect();
        Ok(all.iter().map(|line| format!("{line}\n")).collect())
    })?;
    Ok(Reply::default())
}

fn id(params: &Params) -> &str {
    params.text("poolid").unwrap_or_default()
}

fn missing(id: &str) -> Failure {
    Failure::die(format!("pool '{id}' does not exist"))
}

fn described(call: &Call, pool: &Pool) -> Result<Value, Failure> {
    let members: Vec<Value> = cluster_resources::vms(&call.layout)?.into_iter().filter(|vm| vm["pool"] == pool.id.as_str()).collect();
    let mut entry = json!({"poolid": pool.id, "members": members});
    if !pool.comment.is_empty() {
        entry["comment"] = json!(pool.comment);
    }
    Ok(entry)
}

fn list(call: &Call) -> Result<Reply, Failure> {
    let pools = load(&call.layout)?;
    if call.params.has("poolid") {
        let pool = pools.iter().find(|pool| pool.id == id(&call.params)).ok_or_else(|| missing(id(&call.params)))?;
        return Ok(Reply::from(json!([described(call, pool)?])));
    }
    let entry = |pool: &Pool| match pool.comment.is_empty() {
        true => json!({"poolid": pool.id}),
        false => json!({"poolid": pool.id, "comment": pool.comment}),
    };
    Ok(Reply::from(pools.iter().map(entry).collect::<Value>()))
}

fn one(call: &Call) -> Result<Reply, Failure> {
    let pools = load(&call.layout)?;
    let pool = pools.iter().find(|pool| pool.id == id(&call.params)).ok_or_else(|| missing(id(&call.params)))?;
    let mut entry = described(call, pool)?;
    entry["poolid"] = json!(pool.id);
    Ok(Reply::from(entry))
}

fn create(call: &Call) -> Result<Reply, Failure> {
    let comment = call.params.text("comment").unwrap_or_default().to_owned();
    change(call, "create pool", |pools| {
        if pools.iter().any(|pool| pool.id == id(&call.params)) {
            return Err(Failure::die(format!("pool '{}' already exists", id(&call.params))));
        }
        pools.push(Pool { id: id(&call.params).to_owned(), comment, ..Pool::default() });
        Ok(())
    })
}

fn update(call: &Call) -> Result<Reply, Failure> {
    let params = &call.params;
    let vms: Vec<u32> =
        params.text("vms").into_iter().flat_map(|list| list.split([',', ' ', ';'])).filter_map(|id| id.parse().ok()).collect();
    change(call, "update pools", |pools| {
        if !pools.iter().any(|pool| pool.id == id(params)) {
            return Err(missing(id(params)));
        }
        for vmid in vms {
            let owner = pools.iter().find(|pool| pool.vms.contains(&vmid)).map(|pool| pool.id.clone());
            match (&owner, params.flag("delete")) {
                (Some(pool), true) if pool == id(params) => {}
                (_, true) => return Err(Failure::die(format!("VM {vmid} is not a pool member"))),
                (Some(pool), false) if pool == id(params) => return Err(Failure::die(format!("VM {vmid} is already a pool member"))),
                (Some(pool), false) if !params.flag("allow-move") => {
                    return Err(Failure::die(format!("VM {vmid} belongs already to pool '{pool}' and 'allow-move' is not set")));
                }
                _ => {}
            }
            for pool in &mut *pools {
                pool.vms.remove(&vmid);
                if pool.id == id(params) && !params.flag("delete") {
                    pool.vms.insert(vmid);
                }
            }
        }
        for pool in pools.iter_mut().filter(|pool| pool.id == id(params)) {
            if let Some(comment) = params.text("comment") {
                comment.clone_into(&mut pool.comment);
            }
            for storage in params.text("storage").into_iter().flat_map(|list| list.split([',', ' ', ';'])) {
                match params.flag("delete") {
                    true => pool.storages.remove(storage),
                    false => pool.storages.insert(storage.to_owned()),
                };
            }
        }
        Ok(())
    })
}

fn delete(call: &Call) -> Result<Reply, Failure> {
    change(call, "delete pool", |pools| {
        let pool = pools.iter().find(|pool| pool.id == id(&call.params)).ok_or_else(|| missing(id(&call.params)))?;
        if !pool.vms.is_empty() && pool.vms.iter().any(|vmid| cluster_resources::exists(&call.layout, *vmid)) {
            return Err(Failure::die(format!(
                "pool '{}' is not empty (contains VM {})",
                pool.id,
                pool.vms.iter().next().copied().unwrap_or(0)
            )));
        }
        pools.retain(|pool| pool.id != id(&call.params));
        Ok(())
    })
}
