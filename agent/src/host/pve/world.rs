//! What the agent knows of the cluster: one state, changed by those who read, published as a whole, with an event for each difference.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use tokio::sync::broadcast;

use super::{
    Change, HaState, Inventory, RunState, VmRecord,
    config_file::ConfigFile,
    files::{Members, VmEntry, VmList},
};

/// Events that a receiver may be behind before it has to read the inventory again.
const BEHIND: usize = 1024;

/// What other files say about VMs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extras {
    /// Wanted states of HA-managed VMs.
    pub(super) ha: BTreeMap<u32, String>,
    /// VMs with a replication job.
    pub(super) replicated: BTreeSet<u32>,
    /// The pool of each VM.
    pub(super) pool_of: BTreeMap<u32, String>,
}

impl Extras {
    fn apply(&self, vm: &mut VmRecord) {
        vm.ha = self.ha.get(&vm.vmid).map(|requested| HaState { requested: requested.clone() });
        vm.replicated = self.replicated.contains(&vm.vmid);
        vm.pool = self.pool_of.get(&vm.vmid).cloned();
    }
}

#[derive(Debug)]
struct State {
    inventory: Inventory,
    extras: Extras,
    /// VMs with a process on this host, whether or not their configs have been read.
    running: HashMap<u32, RunState>,
    /// Why the cluster file system does not answer.
    hung: Option<String>,
}

/// The state, shared by its writers and readers.
#[derive(Debug)]
pub(super) struct World {
    state: Mutex<State>,
    published: ArcSwap<Inventory>,
    changes: broadcast::Sender<Change>,
}

impl World {
    pub(super) fn new(node: &str) -> Self {
        let inventory = Inventory { node: node.to_owned(), cluster: node.to_owned(), ..Inventory::default() };
        let state = State { inventory: inventory.clone(), extras: Extras::default(), running: HashMap::new(), hung: None };
        Self { state: Mutex::new(state), published: ArcSwap::from_pointee(inventory), changes: broadcast::channel(BEHIND).0 }
    }

    pub(super) fn inventory(&self) -> Arc<Inventory> {
        self.published.load_full()
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state; what `change` returns is told after the new state is visible.
    fn update(&self, change: impl FnOnce(&mut State) -> Vec<Change>) {
        let mut state = self.lock();
        let events = change(&mut state);
        if events.is_empty() {
            return;
        }
        self.published.store(Arc::new(state.inventory.clone()));
        // Sent under the lock, so that events are in the order of the changes. Nobody listening is no error.
        for event in events {
            let _ = self.changes.send(event);
        }
    }

    /// Which configs must be read to follow `list`: those new, moved, or with another counter; all when the counters began again.
    pub(super) fn outdated(&self, list: &VmList, all: bool) -> Vec<(u32, VmEntry)> {
        let state = self.lock();
        let vms = list.ids.iter().filter(|(_, e)| e.kind == "qemu");
        let old = |(vmid, e): &(&u32, &VmEntry)| {
            all || state.inventory.vms.get(vmid).is_none_or(|vm| vm.version != e.version || vm.node != e.node)
        };
        vms.filter(old).map(|(vmid, e)| (*vmid, e.clone())).collect()
    }

    /// Whether a VM that is known is missing in `list`.
    pub(super) fn misses(&self, list: &VmList) -> bool {
        let state = self.lock();
        state.inventory.vms.keys().any(|vmid| list.ids.get(vmid).is_none_or(|e| e.kind != "qemu"))
    }

    /// Takes a new list and the configs that were read for it. `configs` need not hold all of [`World::outdated`]: one that could not be
    /// read keeps its old state. The first list is taken without events for its VMs.
    pub(super) fn set_vms(&self, list: &VmList, configs: Vec<(u32, VmEntry, ConfigFile)>) {
        self.update(|state| {
            let first = !state.inventory.complete;
            let before = state.inventory.vms.clone();
            let mut events = Vec::new();
            let mut vmids: BTreeMap<u32, String> = list.ids.iter().map(|(id, e)| (*id, e.node.clone())).collect();
            let gone: Vec<u32> =
                state.inventory.vms.keys().filter(|id| list.ids.get(id).is_none_or(|e| e.kind != "qemu")).copied().collect();
            for vmid in gone {
                if state.inventory.quorate {
                    events.extend(state.inventory.vms.remove(&vmid).map(Change::VmRemoved));
                } else if let Some(vm) = state.inventory.vms.get(&vmid) {
                    // Without quorum its absence proves nothing.
                    vmids.insert(vmid, vm.node.clone());
                }
            }
            let mut silent = state.inventory.vmids != vmids;
            state.inventory.vmids = vmids;
            for (vmid, entry, config) in configs {
                let (told, changed) = state.set_vm(vmid, &entry, config);
                events.extend(told);
                silent |= changed;
            }
            if first {
                state.inventory.complete = true;
                return vec![Change::Cluster];
            }
            events.extend(twins(&before, &state.inventory.vms, &events));
            if events.is_empty() && silent {
                self.published.store(Arc::new(state.inventory.clone()));
            }
            events
        });
    }

    /// Takes other files' news on VMs, and the list of pools.
    pub(super) fn set_extras(&self, extras: Extras, pools: Vec<String>) {
        self.update(|state| {
            let mut events = Vec::new();
            if state.inventory.pools != pools {
                state.inventory.pools = pools;
                events.push(Change::Cluster);
            }
            if state.extras != extras {
                for vm in state.inventory.vms.values_mut() {
                    let mut new = (**vm).clone();
                    extras.apply(&mut new);
                    if new != **vm {
                        *vm = Arc::new(new);
                        events.push(Change::VmChanged(vm.clone()));
                    }
                }
                state.extras = extras;
            }
            events
        });
    }

    pub(super) fn set_members(&self, members: &Members, clustered: bool) {
        self.update(|state| {
            let inventory = &mut state.inventory;
            let (cluster, quorate) = match &members.cluster {
                Some((name, quorate)) => (name.clone(), *quorate),
                // A cluster's node that has not reached its cluster yet tells no name, and may not write.
                None => (members.node.clone(), !clustered),
            };
            let same = inventory.quorate == quorate && inventory.cluster == cluster && inventory.nodes == members.nodes;
            (inventory.quorate, inventory.cluster, inventory.nodes) = (quorate, cluster, members.nodes.clone());
            if same { Vec::new() } else { vec![Change::Cluster] }
        });
    }

    pub(super) fn set_maintenance(&self, maintenance: bool) {
        self.update(|state| {
            let same = std::mem::replace(&mut state.inventory.maintenance, maintenance) == maintenance;
            if same { Vec::new() } else { vec![Change::Cluster] }
        });
    }

    pub(super) fn set_pve_version(&self, version: String) {
        self.update(|state| {
            let same = state.inventory.pve_version == version;
            state.inventory.pve_version = version;
            if same { Vec::new() } else { vec![Change::Cluster] }
        });
    }

    /// Sets or clears why the cluster file system does not answer.
    pub(super) fn set_hung(&self, why: Option<String>) {
        self.update(|state| {
            let was = state.hung.is_some();
            let is = why.is_some();
            state.hung = why;
            if was == is {
                return Vec::new();
            }
            state.inventory.hung_since = is.then(SystemTime::now);
            vec![Change::Cluster]
        });
    }

    /// Why the cluster file system does not answer, if it does not.
    pub(super) fn hung(&self) -> Option<String> {
        self.lock().hung.clone()
    }

    /// A VM's process on this host began, was paused, went on, or (`Stopped`) ended.
    pub(super) fn set_run(&self, vmid: u32, run: RunState) {
        self.update(|state| state.set_run(vmid, run));
    }

    /// Like [`World::set_run`], unless the VM's process has ended or been replaced meanwhile.
    pub(super) fn set_run_if_alive(&self, vmid: u32, pid: i32, run: RunState) {
        self.update(|state| {
            let same = |r: &RunState| matches!(r, RunState::Running { pid: p, .. } | RunState::Paused { pid: p, .. } if *p == pid);
            if state.running.get(&vmid).is_some_and(same) { state.set_run(vmid, run) } else { Vec::new() }
        });
    }

    /// A VM's process on this host.
    pub(super) fn running(&self, vmid: u32) -> Option<RunState> {
        self.lock().running.get(&vmid).cloned()
    }
}

/// A VM whose UUID has become another VM's too, or its own alone again, has changed without its config: nothing may be done to it while it is
/// ambiguous, and whoever waits for that must hear of it.
fn twins(before: &BTreeMap<u32, Arc<VmRecord>>, after: &BTreeMap<u32, Arc<VmRecord>>, told: &[Change]) -> Vec<Change> {
    let mut vmids = BTreeSet::new();
    let mut uuids = BTreeSet::new();
    for change in told {
        let (Change::VmCreated(vm) | Change::VmChanged(vm) | Change::VmMoved { vm, .. } | Change::VmRemoved(vm)) = change else { continue };
        vmids.insert(vm.vmid);
        uuids.extend([before.get(&vm.vmid), after.get(&vm.vmid)].into_iter().flatten().filter_map(|vm| vm.config.uuid()));
    }
    if uuids.is_empty() {
        return Vec::new();
    }
    let count = |vms: &BTreeMap<u32, Arc<VmRecord>>| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for uuid in vms.values().filter_map(|vm| vm.config.uuid()).filter(|uuid| uuids.contains(uuid)) {
            *counts.entry(uuid.to_owned()).or_default() += 1;
        }
        counts
    };
    let (was, is) = (count(before), count(after));
    let several = |counts: &HashMap<String, usize>, uuid: &str| counts.get(uuid).is_some_and(|n| *n > 1);
    let differs = |vm: &&Arc<VmRecord>| {
        !vmids.contains(&vm.vmid) && vm.config.uuid().is_some_and(|uuid| uuids.contains(uuid) && several(&was, uuid) != several(&is, uuid))
    };
    after.values().filter(differs).map(|vm| Change::VmChanged(vm.clone())).collect()
}

/// While PVE removes a VM, a line `lock: destroyed` is all that its config holds.
fn is_remains(config: &ConfigFile) -> bool {
    config.lock() == Some("destroyed") && config.uuid().is_none()
}

/// What is known of a VM in destruction: whose it is and which must still be told when it is gone.
fn with_lock_of(known: &ConfigFile, remains: ConfigFile) -> ConfigFile {
    let mut config = known.clone();
    config.keys.extend(remains.keys);
    config.digest = remains.digest;
    config
}

fn run_change(was: &RunState, vm: &Arc<VmRecord>) -> Change {
    match (was, &vm.run) {
        (_, RunState::Stopped) => Change::VmStopped(vm.clone()),
        // Another process: it was stopped and started again between two looks.
        (
            RunState::Running { pid: old, .. } | RunState::Paused { pid: old, .. },
            RunState::Running { pid, .. } | RunState::Paused { pid, .. },
        ) if old == pid => Change::VmChanged(vm.clone()),
        _ => Change::VmStarted(vm.clone()),
    }
}

impl State {
    fn run_of(&self, vmid: u32, node: &str) -> RunState {
        if node != self.inventory.node {
            return RunState::Unknown;
        }
        self.running.get(&vmid).cloned().unwrap_or(RunState::Stopped)
    }

    fn set_run(&mut self, vmid: u32, run: RunState) -> Vec<Change> {
        if run == RunState::Stopped {
            self.running.remove(&vmid);
        } else {
            self.running.insert(vmid, run);
        }
        let run = self.run_of(vmid, &self.inventory.node);
        let node = &self.inventory.node;
        let Some(vm) = self.inventory.vms.get_mut(&vmid).filter(|vm| vm.node == *node && vm.run != run) else { return Vec::new() };
        let was = std::mem::replace(&mut Arc::make_mut(vm).run, run);
        vec![run_change(&was, vm)]
    }

    /// The events, and whether anything changed at all.
    fn set_vm(&mut self, vmid: u32, entry: &VmEntry, config: ConfigFile) -> (Vec<Change>, bool) {
        let run = self.run_of(vmid, &entry.node);
        let old = self.inventory.vms.get(&vmid);
        let config = match old.filter(|old| old.node == entry.node && is_remains(&config)) {
            Some(old) => with_lock_of(&old.config, config),
            None => config,
        };
        let mut new =
            VmRecord { vmid, node: entry.node.clone(), version: entry.version, config, run, ha: None, replicated: false, pool: None };
        self.extras.apply(&mut new);
        let Some(old) = old else {
            let vm = Arc::new(new);
            self.inventory.vms.insert(vmid, vm.clone());
            let mut events = vec![Change::VmCreated(vm.clone())];
            if matches!(vm.run, RunState::Running { .. } | RunState::Paused { .. }) {
                events.push(Change::VmStarted(vm));
            }
            return (events, true);
        };
        if **old == new {
            return (Vec::new(), false);
        }
        let (from, was) = (old.node.clone(), old.run.clone());
        let only_counter = {
            let mut probe = (**old).clone();
            probe.version = new.version;
            probe == new
        };
        let vm = Arc::new(new);
        self.inventory.vms.insert(vmid, vm.clone());
        if only_counter {
            return (Vec::new(), true);
        }
        if from != vm.node {
            let mut events = vec![Change::VmMoved { vm: vm.clone(), from }];
            // The process came before the config, as in a live migration.
            if matches!(vm.run, RunState::Running { .. } | RunState::Paused { .. }) {
                events.push(Change::VmStarted(vm));
            }
            return (events, true);
        }
        if was != vm.run {
            return (vec![Change::VmChanged(vm.clone()), run_change(&was, &vm)], true);
        }
        (vec![Change::VmChanged(vm)], true)
    }
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
