//! What the fake shows of the cluster, and what it tells of changes.

use std::{collections::BTreeMap, sync::Arc};

use super::{FakePve, FakeVm, World};
use crate::host::pve::{Change, Inventory, NodeInfo, RunState, VmRecord};

impl FakePve {
    /// From now on whoever watches hears of each VM that comes, changes or goes, as on a real host. A new fake tells only that something has
    /// changed.
    pub fn tell_all(&self) {
        let mut world = self.lock();
        world.told = Some(world.inventory());
    }

    /// Puts the node into a PVE cluster of this name; at first it is `lab`.
    pub fn set_cluster(&self, name: &str) {
        self.change(|w| name.clone_into(&mut w.cluster));
    }

    /// The cluster file system brings in the config of a VM on another node, or that it is gone. What runs there is not to be seen.
    pub fn see(&self, vmid: u32, other: Option<FakeVm>) {
        let mut world = self.lock();
        let change = world.see(vmid, other.map(|vm| FakeVm { run: RunState::Stopped, ..vm }));
        // As in `change`.
        let _ = change.map(|change| self.changes.send(change));
        let _ = self.changes.send(Change::Cluster);
        drop(world);
        self.moved.notify_waiters();
    }
}

impl World {
    pub(super) fn inventory(&mut self) -> Arc<Inventory> {
        if self.inventory.is_none() {
            self.inventory = Some(Arc::new(self.look()));
        }
        // Never made twice: it was just put there.
        self.inventory.clone().unwrap_or_default()
    }

    /// Puts another node's VM in its place, and nothing else: in a large cluster this is most of what happens.
    fn see(&mut self, vmid: u32, other: Option<FakeVm>) -> Option<Change> {
        let before = self.inventory().vms.get(&vmid).cloned();
        match other {
            Some(vm) => drop(self.vms.insert(vmid, vm)),
            None => drop(self.vms.remove(&vmid)),
        }
        let now = self.vms.get(&vmid).cloned().zip(self.record(vmid));
        for inventory in [&mut self.inventory, &mut self.told].into_iter().flatten() {
            let inventory = Arc::make_mut(inventory);
            match &now {
                Some((vm, record)) => {
                    inventory.vms.insert(vmid, Arc::clone(record));
                    inventory.vmids.insert(vmid, vm.node.clone());
                }
                None => {
                    inventory.vms.remove(&vmid);
                    inventory.vmids.remove(&vmid);
                }
            }
        }
        let record = now.as_ref().map(|(_, record)| Arc::clone(record));
        match now {
            Some(now) => drop(self.records.insert(vmid, now)),
            None => drop(self.records.remove(&vmid)),
        }
        self.told.is_some().then_some(())?;
        match (before, record) {
            (None, Some(vm)) => Some(Change::VmCreated(vm)),
            (Some(_), Some(vm)) => Some(Change::VmChanged(vm)),
            (Some(vm), None) => Some(Change::VmRemoved(vm)),
            (None, None) => None,
        }
    }

    /// What has changed since it was told last.
    pub(super) fn news(&mut self) -> Vec<Change> {
        let Some(before) = self.told.take() else { return Vec::new() };
        let now = self.inventory();
        self.told = Some(Arc::clone(&now));
        let runs = |vm: &VmRecord| matches!(vm.run, RunState::Running { .. });
        let changed = now.vms.iter().filter_map(|(id, vm)| match before.vms.get(id) {
            None => Some(Change::VmCreated(Arc::clone(vm))),
            Some(old) if Arc::ptr_eq(old, vm) => None,
            Some(old) if !runs(old) && runs(vm) => Some(Change::VmStarted(Arc::clone(vm))),
            Some(old) if runs(old) && vm.run == RunState::Stopped => Some(Change::VmStopped(Arc::clone(vm))),
            Some(_) => Some(Change::VmChanged(Arc::clone(vm))),
        });
        let gone = before.vms.iter().filter(|(id, _)| !now.vms.contains_key(id)).map(|(_, vm)| Change::VmRemoved(Arc::clone(vm)));
        changed.chain(gone).collect()
    }

    /// All VMs; what has not changed is not made anew.
    fn all_records(&mut self) -> BTreeMap<u32, Arc<VmRecord>> {
        let mut known = std::mem::take(&mut self.records);
        let of = |(id, vm): (&u32, &FakeVm)| match known.remove(id) {
            Some(same) if same.0 == *vm => Some((*id, same)),
            _ => Some((*id, (vm.clone(), self.record(*id)?))),
        };
        self.records = self.vms.iter().filter_map(of).collect();
        self.records.iter().map(|(id, (_, record))| (*id, Arc::clone(record))).collect()
    }

    fn look(&mut self) -> Inventory {
        let vms = self.all_records();
        let mut vmids: BTreeMap<u32, String> = vms.iter().map(|(id, vm)| (*id, vm.node.clone())).collect();
        vmids.extend(self.containers.clone());
        Inventory {
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            quorate: self.quorate,
            nodes: self.nodes.iter().map(|name| NodeInfo { name: name.clone(), id: 0, online: true }).collect(),
            vms,
            vmids,
            hung_since: None,
            complete: true,
            pve_version: "9.2.11".to_owned(),
            maintenance: self.maintenance,
            pools: self.pools.clone(),
        }
    }
}
