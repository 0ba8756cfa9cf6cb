//! PVE in memory: the behaviour of the recordings as far as the agent's own rules depend on it, with everything that may go wrong to be
//! switched on. Tasks go on one stage at a time while somebody follows them, and stand still when nobody does.

mod calls;
mod inventory;
mod job;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::{Notify, broadcast};
use uuid::Uuid;

use self::job::Job;
use super::{Change, HaState, Inventory, ProcessRef, RunState, StorageInfo, TaskEnd, Upid, VmRecord, VolumeInfo, config_file::ConfigFile};

/// A VM of the fake.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeVm {
    /// The node under which its config lies.
    pub node: String,
    /// Lines of the config.
    pub keys: BTreeMap<String, String>,
    /// The description.
    pub description: String,
    /// Run state.
    pub run: RunState,
    /// HA's wish.
    pub ha: Option<HaState>,
    /// Whether a job copies it.
    pub replicated: bool,
    /// Its pool.
    pub pool: Option<String>,
    version: u64,
}

/// What goes wrong next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The answer of the next call of this name is lost; `done`: it was carried out.
    AnswerLost {
        /// The call: `clone_vm`, `power`, ...
        call: &'static str,
        /// Whether PVE carried it out.
        done: bool,
    },
    /// The next task of this type ends so; `effect`: what it was started for has happened.
    TaskEnd {
        /// The type: `qmclone`, ...
        kind: &'static str,
        /// The end.
        end: TaskEnd,
        /// Whether it has done its work.
        effect: bool,
    },
    /// The next task of this type is killed at this stage, as by SIGKILL.
    Killed {
        /// The type.
        kind: &'static str,
        /// 0 is before anything is done.
        stage: u32,
    },
    /// The agent itself panics at its next call of this name, after PVE's state was read and before anything is done.
    Panic {
        /// The call: `set_config_now`, ...
        call: &'static str,
    },
    /// The cluster file system does not answer the next reading of a VM.
    Hung,
    /// The next attempt to take the lock of this storage, or VM ("VM 100"), times out.
    LockTimeout {
        /// What is locked.
        what: String,
    },
}

#[derive(Debug)]
struct Task {
    upid: Upid,
    lines: Vec<String>,
    end: Option<TaskEnd>,
    stage: u32,
    job: Job,
}

#[derive(Debug)]
struct Storage {
    info: StorageInfo,
    volumes: BTreeMap<String, VolumeInfo>,
}

/// When the fake stops answering, as if the agent had died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// Before the n-th call from now does anything.
    Before(u64),
    /// After the n-th call from now was carried out, before its answer.
    After(u64),
}

#[derive(Debug, Default)]
struct World {
    node: String,
    cluster: String,
    /// As it was asked for last, while nothing has changed since.
    inventory: Option<Arc<Inventory>>,
    /// What that is made from.
    records: BTreeMap<u32, (FakeVm, Arc<VmRecord>)>,
    /// What watchers know, where they hear of each VM.
    told: Option<Arc<Inventory>>,
    quorate: bool,
    down: bool,
    maintenance: bool,
    nodes: BTreeSet<String>,
    pools: Vec<String>,
    vms: BTreeMap<u32, FakeVm>,
    containers: BTreeMap<u32, String>,
    storages: BTreeMap<String, Storage>,
    tasks: Vec<Task>,
    orphans: Vec<(u32, ProcessRef)>,
    faults: VecDeque<Fault>,
    held: BTreeSet<&'static str>,
    log: Vec<String>,
    counter: u64,
    now: u64,
    freeze: Option<Freeze>,
    frozen: bool,
}

/// PVE in memory. Clones share it.
#[derive(Clone)]
pub struct FakePve {
    world: Arc<Mutex<World>>,
    moved: Arc<Notify>,
    changes: broadcast::Sender<Change>,
}

impl FakePve {
    /// One node with the storages `local` and `other`, bridge-less, without VMs.
    pub fn new(node: &str) -> Self {
        let mut world = World {
            node: node.to_owned(),
            cluster: "lab".to_owned(),
            quorate: true,
            nodes: [node.to_owned(), "other-node".to_owned()].into(),
            now: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            ..World::default()
        };
        for id in ["local", "other"] {
            let info = StorageInfo {
                id: id.to_owned(),
                kind: "dir".to_owned(),
                content: ["images", "iso", "snippets"].map(str::to_owned).into(),
                active: true,
                enabled: true,
                shared: false,
                total: 1 << 40,
                available: 1 << 39,
            };
            world.storages.insert(id.to_owned(), Storage { info, volumes: BTreeMap::new() });
        }
        Self { world: Arc::new(Mutex::new(world)), moved: Arc::new(Notify::new()), changes: broadcast::channel(1024).0 }
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change of the fake itself, which no watcher of PVE sees.
    fn quietly<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let result = self.lock().changed(change);
        self.moved.notify_waiters();
        result
    }

    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.lock();
        let result = world.changed(change);
        // Under the lock, so that they are told in the order in which they happened. Nobody listening is no error.
        for change in world.news() {
            let _ = self.changes.send(change);
        }
        // What changed is read anew by whoever listens.
        let _ = self.changes.send(Change::Cluster);
        drop(world);
        self.moved.notify_waiters();
        result
    }

    /// Adds a template with one 1 GiB disk on `local`, a cloud-init drive and a NIC.
    pub fn add_template(&self, vmid: u32, tags: &str) {
        self.add_vm(vmid, &[("template", "1"), ("tags", tags)]);
        self.change(|w| {
            let base = format!("local:{vmid}/base-{vmid}-disk-0.qcow2");
            w.free(&format!("local:{vmid}/vm-{vmid}-disk-0.qcow2"));
            w.put("local", &base, vmid, 1 << 30, None);
            if let Some(vm) = w.vms.get_mut(&vmid) {
                vm.keys.insert("scsi0".to_owned(), format!("{base},size=1G"));
                vm.keys.insert("ide2".to_owned(), format!("local:{vmid}/vm-{vmid}-cloudinit.qcow2,media=cdrom"));
            }
            w.put("local", &format!("local:{vmid}/vm-{vmid}-cloudinit.qcow2"), vmid, 4 << 20, None);
        });
    }

    /// Adds a VM with one 1 GiB disk on `local`, and returns its UUID.
    pub fn add_vm(&self, vmid: u32, keys: &[(&str, &str)]) -> String {
        let uuid = Uuid::new_v4().to_string();
        self.change(|w| {
            // As PVE: what lies there under a name, left by whomever, is not taken again.
            let taken = |disk: &String| w.storages.values().any(|s| s.volumes.contains_key(disk));
            let disk = (0..).map(|n| format!("local:{vmid}/vm-{vmid}-disk-{n}.qcow2")).find(|disk| !taken(disk)).unwrap_or_default();
            w.put("local", &disk, vmid, 1 << 30, None);
            let mut all: BTreeMap<String, String> = [
                ("name", format!("vm{vmid}")),
                ("memory", "512".to_owned()),
                ("boot", "order=scsi0;net0".to_owned()),
                ("scsi0", format!("{disk},size=1G")),
                ("net0", format!("virtio=BC:24:11:FF:{:02X}:{:02X},bridge=vmbr0", vmid / 256 % 256, vmid % 256)),
                ("smbios1", format!("uuid={uuid}")),
            ]
            .map(|(k, v)| (k.to_owned(), v))
            .into();
            all.extend(keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
            let node = w.node.clone();
            w.insert_vm(vmid, &node, all, String::new());
        });
        uuid
    }

    /// Adds a container, which has a VMID like a VM.
    pub fn add_container(&self, vmid: u32) {
        self.change(|w| w.containers.insert(vmid, w.node.clone()));
    }

    /// Tells whoever watches that a VM has changed.
    pub fn tell(&self, vmid: u32) {
        if let Some(vm) = self.lock().record(vmid) {
            let _ = self.changes.send(Change::VmChanged(vm));
        }
    }

    /// Changes a VM behind everybody's back.
    pub fn edit(&self, vmid: u32, edit: impl FnOnce(&mut FakeVm)) {
        self.change(|w| {
            w.counter += 1;
            let version = w.counter;
            if let Some(vm) = w.vms.get_mut(&vmid) {
                edit(vm);
                vm.version = version;
            }
        });
    }

    /// A VM as it is now.
    pub fn vm(&self, vmid: u32) -> Option<FakeVm> {
        self.lock().vms.get(&vmid).cloned()
    }

    /// Removes a VM and its volumes at once, as somebody else may.
    pub fn remove_vm(&self, vmid: u32) {
        let was = self.lock().record(vmid);
        self.change(|w| w.remove(vmid, true));
        if let Some(vm) = was {
            let _ = self.changes.send(Change::VmRemoved(vm));
        }
    }

    /// Lets something go wrong.
    pub fn fault(&self, fault: Fault) {
        self.change(|w| w.faults.push_back(fault));
    }

    /// Faults that have not happened yet.
    pub fn pending_faults(&self) -> usize {
        self.lock().faults.len()
    }

    /// Tasks of this type stand still until [`FakePve::release`].
    pub fn hold(&self, kind: &'static str) {
        self.change(|w| w.held.insert(kind));
    }

    /// Lets held tasks go on.
    pub fn release(&self, kind: &'static str) {
        self.change(|w| w.held.remove(kind));
    }

    /// Sets the quorum.
    pub fn set_quorate(&self, quorate: bool) {
        self.change(|w| w.quorate = quorate);
    }

    /// Takes the local daemon away, or brings it back.
    pub fn set_down(&self, down: bool) {
        self.change(|w| w.down = down);
    }

    /// Puts the node into HA maintenance.
    pub fn set_maintenance(&self, on: bool) {
        self.change(|w| w.maintenance = on);
    }

    /// Changes a storage's facts.
    pub fn edit_storage(&self, id: &str, edit: impl FnOnce(&mut StorageInfo)) {
        self.change(|w| {
            if let Some(storage) = w.storages.get_mut(id) {
                edit(&mut storage.info);
            }
        });
    }

    /// Adds a volume that no config names.
    pub fn add_volume(&self, volid: &str, vmid: u32) {
        self.change(|w| w.put(volid.split(':').next().unwrap_or_default(), volid, vmid, 1 << 20, None));
    }

    /// All volumes.
    pub fn volume_ids(&self) -> BTreeSet<String> {
        self.lock().storages.values().flat_map(|s| s.volumes.keys().cloned()).collect()
    }

    /// All VMIDs.
    pub fn vmids(&self) -> BTreeSet<u32> {
        self.lock().vms.keys().copied().collect()
    }

    /// Orphaned processes.
    pub fn orphan_count(&self) -> usize {
        self.lock().orphans.len()
    }

    /// Adds a pool.
    pub fn add_pool(&self, name: &str) {
        self.change(|w| w.pools.push(name.to_owned()));
    }

    /// Calls that changed something, in their order, such as `clone 9000 200`.
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    /// Stops answering at a call, as if the agent had died there. [`FakePve::frozen`] tells when.
    pub fn freeze(&self, freeze: Freeze) {
        self.change(|w| w.freeze = Some(freeze));
    }

    /// Answers again.
    pub fn thaw(&self) {
        self.change(|w| (w.freeze, w.frozen) = (None, false));
    }

    /// Returns when the fake has stopped answering.
    pub async fn frozen(&self) {
        loop {
            let moved = self.moved.notified();
            if self.lock().frozen {
                return;
            }
            moved.await;
        }
    }

    /// Brings all running tasks to their end, as PVE does while no agent is there.
    pub fn run_tasks(&self) {
        self.change(|w| while w.step_any() {});
    }

    /// Lets each running task go on by one stage.
    pub fn step_tasks(&self) {
        self.change(|w| {
            for index in 0..w.tasks.len() {
                w.step(index);
            }
        });
    }

    /// Kills all running tasks, as by SIGKILL.
    pub fn kill_tasks(&self) {
        self.change(|w| {
            for index in 0..w.tasks.len() {
                w.kill(index);
            }
        });
    }

    /// Whether a task runs.
    pub fn running(&self) -> usize {
        self.lock().tasks.iter().filter(|t| t.end.is_none()).count()
    }

    /// Returns when `check` holds.
    pub async fn until(&self, check: impl Fn(&Self) -> bool) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if check(self) {
                return;
            }
            // Some things that are waited for are none of the fake's, so it looks again from time to time.
            let _ = tokio::time::timeout(Duration::from_millis(5), moved).await;
        }
    }
}

impl World {
    fn changed<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        self.inventory = None;
        change(self)
    }

    fn insert_vm(&mut self, vmid: u32, node: &str, keys: BTreeMap<String, String>, description: String) {
        self.counter += 1;
        let vm = FakeVm {
            node: node.to_owned(),
            keys,
            description,
            run: RunState::Stopped,
            ha: None,
            replicated: false,
            pool: None,
            version: self.counter,
        };
        self.vms.insert(vmid, vm);
    }

    fn put(&mut self, storage: &str, volid: &str, vmid: u32, size: u64, parent: Option<String>) {
        if let Some(storage) = self.storages.get_mut(storage) {
            let volume = VolumeInfo { volid: volid.to_owned(), vmid, size, format: "qcow2".to_owned(), parent, used: 0, ctime: 0 };
            storage.volumes.insert(volid.to_owned(), volume);
        }
    }

    fn free(&mut self, volid: &str) -> bool {
        self.storages.values_mut().any(|s| s.volumes.remove(volid).is_some())
    }

    /// Removes a config and the volumes that it names, or all that carry its number.
    fn remove(&mut self, vmid: u32, unreferenced: bool) {
        let Some(vm) = self.vms.remove(&vmid) else { return };
        for value in vm.keys.values() {
            let volume = value.split(',').next().unwrap_or_default();
            if volume.rsplit('/').next().is_some_and(|f| f.contains(&format!("-{vmid}-"))) {
                self.free(volume);
            }
        }
        if unreferenced {
            for storage in self.storages.values_mut() {
                storage.volumes.retain(|_, v| v.vmid != vmid);
            }
        }
    }

    fn text(vm: &FakeVm) -> String {
        let mut text = String::new();
        for line in vm.description.split('\n').filter(|_| !vm.description.is_empty()) {
            text.push('#');
            for c in line.chars() {
                if c == '%' || !c.is_ascii() || c.is_ascii_control() {
                    c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| text.push_str(&format!("%{b:02X}")));
                } else {
                    text.push(c);
                }
            }
            text.push('\n');
        }
        for (key, value) in &vm.keys {
            text.push_str(&format!("{key}: {value}\n"));
        }
        text
    }

    fn record(&self, vmid: u32) -> Option<Arc<VmRecord>> {
        let vm = self.vms.get(&vmid)?;
        let run = if vm.node == self.node { vm.run.clone() } else { RunState::Unknown };
        Some(Arc::new(VmRecord {
            vmid,
            node: vm.node.clone(),
            version: vm.version,
            config: ConfigFile::parse(&Self::text(vm)),
            run,
            ha: vm.ha.clone(),
            replicated: vm.replicated,
            pool: vm.pool.clone(),
        }))
    }

    fn take_fault(&mut self, wanted: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let index = self.faults.iter().position(wanted)?;
        self.faults.remove(index)
    }

    fn lock_times_out(&mut self, wanted: &str) -> bool {
        self.take_fault(|f| matches!(f, Fault::LockTimeout { what } if what == wanted)).is_some()
    }
}
