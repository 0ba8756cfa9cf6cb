//! Verbs that concern a node: quorum, cluster file system, daemon, faults, locks.

use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
    sync::{MutexGuard, PoisonError},
};

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use super::{HeldLock, PmxcfsAction, Sim};
use crate::{
    faults::{Faults, Hold},
    fuse::Mount,
    guest,
    layout::NodeLayout,
    run::{processes, share},
    storage::{Config, is_storage_id},
};

impl Sim {
    fn mount(&self, node: &str) -> io::Result<MutexGuard<'_, Mount>> {
        Ok(self.mounts[self.node(node)?].lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn status(&self) -> io::Result<Value> {
        let names: Vec<(String, bool, bool)> =
            self.store.with_nodes(|nodes| nodes.iter().map(|n| (n.name.clone(), n.quorate, n.up)).collect());
        let mut nodes = serde_json::Map::new();
        for (name, quorate, up) in names {
            let layout = self.layout(&name);
            let guests: Vec<u32> = guest::all_running(&layout).into_iter().map(|(vmid, _)| vmid).collect();
            let api = fs::read_to_string(layout.api_address()).unwrap_or_default();
            let faults = Faults::load(&layout.faults())?;
            nodes.insert(name, json!({"quorate": quorate, "pmxcfs": up, "api": api.trim(), "running": guests, "faults": faults}));
        }
        let vms: serde_json::Map<String, Value> =
            self.store.vms().into_iter().map(|(vmid, node)| (vmid.to_string(), node.into())).collect();
        Ok(json!({"dir": self.dir, "nodes": nodes, "vms": vms, "ha": self.ha.mode()}))
    }

    pub(super) fn set_quorum(&self, node: Option<&str>, on: bool) -> io::Result<()> {
        let nodes = match node {
            Some(node) => vec![self.node(node)?],
            None => (0..self.mounts.len()).collect(),
        };
        nodes.into_iter().for_each(|node| self.store.set_quorum(node, on));
        Ok(())
    }

    pub(super) fn pmxcfs(&self, node: &str, action: PmxcfsAction) -> io::Result<()> {
        let index = self.node(node)?;
        let mut mount = self.mount(node)?;
        match action {
            PmxcfsAction::Hang => mount.hang(),
            PmxcfsAction::Resume => mount.resume(),
            PmxcfsAction::Restart => mount.restart()?,
            PmxcfsAction::Down => mount.down(),
            PmxcfsAction::Up => {
                if !mount.is_up() {
                    self.store.restart(index);
                    mount.up()?;
                }
            }
        }
        Ok(())
    }

    /// Stops a node's local API if its faults say that it is down.
    pub(crate) fn restore_daemon(&self, layout: &NodeLayout) -> io::Result<()> {
        if Faults::load(&layout.faults())?.daemon_down {
            self.runtime.block_on(self.apis[self.node(layout.node())?].stop());
        }
        Ok(())
    }

    /// The end: nobody is served any more, and nothing blocks.
    pub(crate) fn end(&self) {
        for mount in &self.mounts {
            mount.lock().unwrap_or_else(PoisonError::into_inner).resume();
        }
        for api in &self.apis {
            self.runtime.block_on(api.stop());
        }
        processes::kill_all(&self.dir);
        for mount in &self.mounts {
            mount.lock().unwrap_or_else(PoisonError::into_inner).down();
        }
    }

    pub(super) fn daemon(&self, node: &str, up: bool) -> io::Result<()> {
        self.change_faults(node, &json!({ "daemon_down": !up })).map(drop)
    }

    /// Merges changed fields into a node's faults and gives the result. `daemon_down` is also carried out.
    pub(super) fn change_faults(&self, node: &str, change: &Value) -> io::Result<Value> {
        let index = self.node(node)?;
        let path = self.layout(node).faults();
        let (before, after) = Faults::update(&path, |faults| {
            let before = faults.clone();
            let mut value = serde_json::to_value(&before).map_err(io::Error::other)?;
            merge(&mut value, change);
            *faults = serde_json::from_value(value).map_err(io::Error::other)?;
            Ok((before, faults.clone()))
        })?;
        if after.daemon_down && !before.daemon_down {
            self.runtime.block_on(self.apis[index].stop());
        } else if before.daemon_down && !after.daemon_down {
            self.runtime.block_on(self.apis[index].start())?;
        }
        serde_json::to_value(after).map_err(io::Error::other)
    }

    pub(super) fn hold_disk(&self, vmid: u32, slot: &str, hold: Option<Hold>) -> io::Result<()> {
        Faults::update(&self.vm(vmid)?.faults(), |faults| {
            faults.let_go(vmid, slot);
            if let Some(hold) = hold {
                faults.held_disks.entry(vmid).or_default().insert(slot.to_owned(), hold);
            }
            Ok(())
        })
    }

    pub(super) fn add_shared_storage(&self, id: &str) -> io::Result<()> {
        if !is_storage_id(id) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("'{id}' is no id of a storage")));
        }
        let mut text = String::from_utf8_lossy(&self.store.read_path("storage.cfg")?).into_owned();
        if Config::parse(&text).get(id).is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("there is a storage '{id}' already")));
        }
        let names: Vec<String> = self.store.with_nodes(|nodes| nodes.iter().map(|node| node.name.clone()).collect());
        for name in names {
            share(&self.layout(&name), &self.dir, id)?;
        }
        text.push_str(&format!("dir: {id}\n\tpath /mnt/pve/{id}\n\tcontent images\n\tshared 1\n\n"));
        Ok(self.store.replace("storage.cfg", text.as_bytes())?)
    }

    pub(super) fn hold_lock(&self, node: &str, vmid: Option<u32>, storage: Option<&str>) -> io::Result<u64> {
        self.node(node)?;
        let layout = self.layout(node);
        let held = match (vmid, storage) {
            (Some(vmid), None) => hold(&layout.vm_lock(vmid))?,
            (None, Some(storage)) if self.is_shared(storage)? => {
                let name = format!("storage-{storage}");
                self.take_cluster_lock(&name)?;
                HeldLock::Cluster(name)
            }
            (None, Some(storage)) => hold(&layout.storage_lock(storage))?,
            _ => return Err(io::Error::other("give either vmid or storage")),
        };
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let id = locks.keys().next_back().map_or(1, |last| last + 1);
        locks.insert(id, held);
        Ok(id)
    }

    fn is_shared(&self, storage: &str) -> io::Result<bool> {
        let text = self.store.read_path("storage.cfg")?;
        Ok(Config::parse(&String::from_utf8_lossy(&text)).get(storage).is_some_and(crate::storage::Storage::is_shared))
    }

    pub(super) fn release_lock(&self, id: u64) -> io::Result<()> {
        let held = self.locks.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        match held.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no lock {id}")))? {
            HeldLock::File(_) => Ok(()),
            HeldLock::Cluster(name) => Ok(self.store.remove_path(&format!("priv/lock/{name}"))?),
        }
    }

    pub(super) fn take_cluster_lock(&self, name: &str) -> io::Result<()> {
        let folder = "priv/lock".split('/').try_fold(1, |ino, part| self.store.lookup(0, ino, part).map(|found| found.ino))?;
        self.store.mkdir(None, folder, name)?;
        Ok(())
    }
}

fn hold(path: &Path) -> io::Result<HeldLock> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    Ok(HeldLock::File(Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?))
}

/// JSON merge patch (RFC 7396).
fn merge(value: &mut Value, change: &Value) {
    let Value::Object(changes) = change else {
        value.clone_from(change);
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (key, change) in changes {
        if change.is_null() {
            value.as_object_mut().map(|fields| fields.remove(key));
        } else {
            merge(&mut value[key], change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_given_fields_change() {
        let mut value = json!({"daemon_down": false, "storages": {"local": {"hung": true}}});
        merge(&mut value, &json!({"storages": {"local": null, "small": {"offline": true}}}));
        assert_eq!(value, json!({"daemon_down": false, "storages": {"small": {"offline": true}}}));
    }
}
