//! What the agents have told, reduced to what is decided by. With a thousand agents these are kept by the hundred thousand.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use jiff::Timestamp;
use pvelet_proto::{v1, volume::VolumeId};

use crate::kind::{MachineSpec, Quantity};

/// Slots in which PVE's templates have their boot disk, in the order of likelihood.
const BOOT_SLOTS: [&str; 4] = ["scsi0", "virtio0", "sata0", "ide0"];

/// The feature of agents that take user data.
const USER_DATA: &str = "vm.user_data";

/// What the slots of disks begin with that PVE has put aside.
pub(super) const ASIDE: &str = "unused";

/// How many views of one PVE cluster are kept before those that nobody holds are looked for.
const SWEEP: usize = 64;

/// A VM as one agent sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VmView {
    /// PVE's VMID.
    pub vmid: u32,
    /// SMBIOS UUID; may be empty.
    pub uuid: String,
    /// Its name.
    pub name: String,
    /// The node that holds its config.
    pub node: String,
    /// Whether it is a template.
    pub template: bool,
    /// Whether it runs.
    pub state: RunState,
    /// PVE's lock; empty when unlocked.
    pub lock: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Cores for each socket.
    pub cores: u32,
    /// Sockets.
    pub sockets: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Network interfaces by index.
    pub nics: Vec<v1::Nic>,
    /// Size of the boot disk in bytes; 0 when it is not known.
    pub boot_disk_bytes: u64,
    /// Its disks that are or may be volumes.
    pub disks: Vec<DiskView>,
    /// Cloud-init settings.
    pub cloud_init: Option<v1::CloudInitStatus>,
    /// Whether PVE starts it when the host boots.
    pub start_on_boot: bool,
    /// Whether PVE's HA manager decides over its run state.
    pub ha_managed: bool,
    /// Whether PVE refuses to remove it.
    pub protection: bool,
    /// Whether a replication job copies it, so that PVE refuses to remove it.
    pub replicated: bool,
    /// Another VM of the cluster has the same UUID.
    pub ambiguous_uuid: bool,
    /// Owner by the mark, when it is bound to this UUID.
    pub owner: Option<v1::Owner>,
    /// Digest of its config.
    pub digest: String,
    /// When its run began, by its host's clock.
    pub start_time: Option<Timestamp>,
}

/// A disk of a VM that is or may be a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskView {
    /// Its slot.
    pub slot: String,
    /// The storage it is on.
    pub storage: String,
    /// Size in bytes; 0 when it is not known.
    pub size_bytes: u64,
    /// The serial number that the guest sees; may be empty.
    pub serial: String,
    /// The volume's id as its name tells; may be empty.
    pub volume_id: String,
}

impl DiskView {
    /// Whether it is this volume.
    pub fn is(&self, volume: &str) -> bool {
        let serial = || volume.parse().is_ok_and(|id: VolumeId| self.serial == id.serial());
        if self.volume_id.is_empty() { serial() } else { self.volume_id == volume }
    }

    /// Whether PVE has put it aside: it stands in the config, but the guest does not have it.
    pub fn is_aside(&self) -> bool {
        self.slot.starts_with(ASIDE)
    }
}

/// Whether a VM runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RunState {
    /// Not told: another node's VM, or not readable.
    #[default]
    Unknown,
    /// It does not run.
    Stopped,
    /// It runs.
    Running,
    /// Its process runs, its processors do not.
    Paused,
}

impl From<v1::Vm> for VmView {
    fn from(mut vm: v1::Vm) -> Self {
        // They were read one by one, into room for four.
        vm.nics.shrink_to_fit();
        vm.tags.shrink_to_fit();
        let state = match vm.state() {
            v1::VmState::Stopped => RunState::Stopped,
            v1::VmState::Running => RunState::Running,
            v1::VmState::Paused => RunState::Paused,
            v1::VmState::Unknown | v1::VmState::Unspecified => RunState::Unknown,
        };
        let disk = BOOT_SLOTS.iter().find_map(|slot| vm.disks.iter().find(|d| d.slot == *slot && !d.cdrom));
        let named = |d: &v1::Disk| !d.volume_id.is_empty() || !d.serial.is_empty();
        let disks = vm.disks.iter().filter(|d| !d.cdrom && named(d)).map(|d| DiskView {
            slot: d.slot.clone(),
            storage: d.storage.clone(),
            size_bytes: d.size_bytes,
            serial: d.serial.clone(),
            volume_id: d.volume_id.clone(),
        });
        let disks = disks.collect();
        let start_time = vm.start_time.as_ref().and_then(timestamp);
        Self {
            vmid: vm.vmid,
            boot_disk_bytes: disk.map_or(0, |d| d.size_bytes),
            owner: vm.mark.and_then(|m| m.owner),
            uuid: vm.uuid,
            name: vm.name,
            node: vm.node,
            template: vm.template,
            state,
            lock: vm.lock,
            tags: vm.tags,
            cores: vm.cores,
            sockets: vm.sockets,
            memory_mib: vm.memory_mib,
            nics: vm.nics,
            disks,
            cloud_init: vm.cloud_init,
            start_on_boot: vm.start_on_boot,
            ha_managed: vm.ha_managed,
            protection: vm.protection,
            replicated: vm.replicated,
            ambiguous_uuid: vm.ambiguous_uuid,
            digest: vm.digest,
            start_time,
        }
    }
}

/// A time of the API.
pub fn timestamp(time: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// A `PveHost` and what is known of it now.
#[derive(Debug, Clone, PartialEq)]
pub struct HostView {
    /// The object's name.
    pub name: String,
    /// The PVE cluster.
    pub cluster: String,
    /// The PVE node.
    pub node: String,
    /// The object's labels.
    pub labels: BTreeMap<String, String>,
    /// No new VM by itself.
    pub cordon: bool,
    /// Declared to be in maintenance.
    pub maintenance: bool,
    /// Memory kept for the host itself.
    pub reserved_memory: Quantity,
    /// Cores of VMs for each processor.
    pub cpu_overcommit: u32,
    /// Whether there is a connection.
    pub link: Link,
    /// What the agent told last.
    pub facts: Option<Facts>,
}

/// Whether an agent can be worked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// No connection yet.
    Connecting,
    /// No connection, or one of no use.
    Down {
        /// A stable word in CamelCase.
        reason: &'static str,
        /// Why, and what to do.
        message: String,
    },
    /// Connected, all its VMs told, and our epoch announced where it manages.
    Up,
}

/// What an agent told about its host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The agent's version.
    pub agent_version: String,
    /// The API's version.
    pub api_version: String,
    /// PVE's version.
    pub pve_version: String,
    /// Whether it changes anything.
    pub manage: bool,
    /// Whether its part of the cluster may write.
    pub quorate: bool,
    /// Whether a network change could not be undone there.
    pub network_latched: bool,
    /// Whether PVE's HA manager has put the node into maintenance.
    pub maintenance: bool,
    /// Whether it is about to go.
    pub shutting_down: bool,
    /// Memory installed, in bytes.
    pub memory_bytes: u64,
    /// Logical processors.
    pub threads: u32,
    /// Whether the agent takes user data: an older one would make a VM without.
    pub user_data: bool,
}

impl From<&v1::Host> for Facts {
    fn from(host: &v1::Host) -> Self {
        Self {
            agent_version: host.agent_version.clone(),
            api_version: host.api_version.clone(),
            pve_version: host.pve_version.clone(),
            manage: host.mode() == v1::Mode::Manage,
            quorate: host.quorate,
            network_latched: host.network_latched,
            maintenance: host.state() == v1::HostState::Maintenance,
            shutting_down: host.state() == v1::HostState::ShuttingDown,
            memory_bytes: host.memory.as_ref().map_or(0, |m| m.total_bytes),
            threads: host.cpu.as_ref().map_or(0, |c| c.threads),
            user_data: host.features.iter().any(|f| f == USER_DATA),
        }
    }
}

impl HostView {
    /// Why this host's agent cannot make a VM as this spec says, with the remedy.
    pub fn lacks(&self, spec: &MachineSpec) -> Option<String> {
        let wanted = spec.cloud_init.as_ref().is_some_and(|c| c.user_data.is_some());
        let known = self.facts.as_ref().is_none_or(|facts| facts.user_data);
        (wanted && !known).then(|| format!("the agent of {} does not know user data; upgrade it", self.name))
    }

    /// Why nothing can be ordered here now: a stable word and a text with the remedy.
    pub fn obstacle(&self) -> Option<(&'static str, String)> {
        let name = &self.name;
        let facts = match (&self.link, &self.facts) {
            (Link::Connecting, _) | (Link::Up, None) => return Some(("AgentUnreachable", format!("connecting to the agent of {name}"))),
            (Link::Down { reason, message }, _) => return Some((reason, format!("{name}: {message}"))),
            (Link::Up, Some(facts)) => facts,
        };
        if !facts.manage {
            let text = format!(
                "the agent of {name} only observes; set mode = \"manage\" in its configuration, with a vm.vmid_range, and restart it"
            );
            return Some(("ObserveOnly", text));
        }
        if !facts.quorate {
            return Some(("NoQuorum", format!("{name} has no quorum: bring the other nodes of PVE cluster {} back", self.cluster)));
        }
        None
    }

    /// Why run states are left alone here now.
    pub fn out_of_service(&self) -> Option<(&'static str, String)> {
        let facts = self.facts.as_ref();
        if facts.is_some_and(|f| f.shutting_down) {
            Some(("HostShuttingDown", format!("{} is shutting down", self.name)))
        } else if self.maintenance || facts.is_some_and(|f| f.maintenance) {
            Some(("HostInMaintenance", format!("{} is in maintenance", self.name)))
        } else {
            None
        }
    }
}

/// A VM and the agent that sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sighting {
    /// The PVE cluster.
    pub cluster: String,
    /// The node whose agent sees it.
    pub seen_by: String,
    /// The VM.
    pub vm: Arc<VmView>,
}

/// All VMs that one agent sees, found by VMID, UUID or machine. Each agent of a PVE cluster sees all VMs of the cluster, so that there are many
/// more entries than VMs: what finds them is kept small.
#[derive(Debug, Default)]
pub struct VmTable {
    vms: BTreeMap<u32, Arc<VmView>>,
    /// Digests of UUIDs, and of the machines that marks name. What has the same digest is looked at.
    by_uuid: BTreeSet<(u64, u32)>,
    by_machine: BTreeSet<(u64, u32)>,
    templates: BTreeSet<u32>,
    running: BTreeSet<u32>,
}

impl VmTable {
    /// Adds or replaces; returns what was there.
    pub fn insert(&mut self, vm: Arc<VmView>) -> Option<Arc<VmView>> {
        let old = self.remove(vm.vmid);
        self.by_uuid.insert((digest(&vm.uuid), vm.vmid));
        if let Some(uid) = machine_uid(&vm) {
            self.by_machine.insert((digest(uid), vm.vmid));
        }
        if vm.template {
            self.templates.insert(vm.vmid);
        }
        if matches!(vm.state, RunState::Running | RunState::Paused) {
            self.running.insert(vm.vmid);
        }
        self.vms.insert(vm.vmid, vm);
        old
    }

    /// Takes out.
    pub fn remove(&mut self, vmid: u32) -> Option<Arc<VmView>> {
        let old = self.vms.remove(&vmid)?;
        self.templates.remove(&vmid);
        self.running.remove(&vmid);
        self.by_uuid.remove(&(digest(&old.uuid), vmid));
        if let Some(uid) = machine_uid(&old) {
            self.by_machine.remove(&(digest(uid), vmid));
        }
        Some(old)
    }

    /// The one with this VMID.
    pub fn get(&self, vmid: u32) -> Option<Arc<VmView>> {
        self.vms.get(&vmid).cloned()
    }

    /// All.
    pub fn all(&self) -> impl Iterator<Item = &Arc<VmView>> {
        self.vms.values()
    }

    /// The templates.
    pub fn templates(&self) -> impl DoubleEndedIterator<Item = &Arc<VmView>> {
        self.templates.iter().filter_map(|id| self.vms.get(id))
    }

    /// Those that are known to run.
    pub fn running(&self) -> impl Iterator<Item = &Arc<VmView>> {
        self.running.iter().filter_map(|id| self.vms.get(id))
    }

    /// Whether a VM of this UUID is known to run on a node.
    pub fn runs(&self, uuid: &str, node: &str) -> bool {
        self.with_uuid(uuid).any(|vm| self.running.contains(&vm.vmid) && vm.node == node)
    }

    /// Those that may be this machine's.
    pub fn of_machine(&self, uid: &str, uuid: Option<&str>, vmid: Option<u32>) -> Vec<Arc<VmView>> {
        let marked = self.found(&self.by_machine, uid).filter(|vm| machine_uid(vm) == Some(uid));
        let same = uuid.into_iter().flat_map(|uuid| self.with_uuid(uuid));
        let mut vms: Vec<&Arc<VmView>> = marked.chain(same).chain(vmid.and_then(|id| self.vms.get(&id))).collect();
        vms.sort_unstable_by_key(|vm| vm.vmid);
        vms.dedup_by_key(|vm| vm.vmid);
        vms.into_iter().cloned().collect()
    }

    fn with_uuid<'a>(&'a self, uuid: &'a str) -> impl Iterator<Item = &'a Arc<VmView>> {
        self.found(&self.by_uuid, uuid).filter(move |vm| vm.uuid == uuid)
    }

    fn found<'a>(&'a self, index: &'a BTreeSet<(u64, u32)>, key: &str) -> impl Iterator<Item = &'a Arc<VmView>> + use<'a> {
        let digest = digest(key);
        index.range((digest, 0)..=(digest, u32::MAX)).filter_map(|(_, id)| self.vms.get(id))
    }
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// What agents of one PVE cluster tell alike about the VMs of other nodes: kept once.
#[derive(Debug, Default)]
pub(super) struct Alike(Mutex<HashMap<String, Views>>);

#[derive(Debug, Default)]
struct Views {
    views: HashMap<u32, Weak<VmView>>,
    /// At this many those that nobody holds any more are taken out.
    sweep: usize,
}

impl Alike {
    /// A VM as the agent on this node of the cluster tells it.
    pub(super) fn share(&self, cluster: &str, node: &str, vm: VmView) -> Arc<VmView> {
        // Its own node tells more of it than the others.
        if vm.node == node {
            return Arc::new(vm);
        }
        // Each change under the lock is one insert or remove.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(cluster.to_owned()).or_default();
        if let Some(same) = known.views.get(&vm.vmid).and_then(Weak::upgrade).filter(|same| **same == vm) {
            return same;
        }
        if known.views.len() >= known.sweep {
            known.views.retain(|_, view| view.strong_count() > 0);
            known.sweep = known.views.len() * 2 + SWEEP;
        }
        let vm = Arc::new(vm);
        known.views.insert(vm.vmid, Arc::downgrade(&vm));
        vm
    }
}

/// The machine that a VM's mark names.
pub fn machine_uid(vm: &VmView) -> Option<&str> {
    vm.owner.as_ref().map(|o| o.machine_uid.as_str()).filter(|uid| !uid.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing;

    #[test]
    fn vms_are_found_by_mark_uuid_and_vmid_and_no_longer_once_they_are_gone() {
        let mut table = VmTable::default();
        let vm = testing::vm(RunState::Running);
        let copy = VmView { vmid: 102, owner: None, ..vm.clone() };
        let other = VmView { vmid: 103, uuid: "other".into(), owner: None, ..vm.clone() };
        for vm in [&vm, &copy, &other] {
            assert_eq!(table.insert(Arc::new(vm.clone())), None);
        }
        let ids = |table: &VmTable, uid: &str, uuid: Option<&str>, vmid: Option<u32>| {
            table.of_machine(uid, uuid, vmid).iter().map(|vm| vm.vmid).collect::<Vec<_>>()
        };
        assert_eq!(ids(&table, testing::UID, None, None), [101]);
        assert_eq!(ids(&table, testing::UID, Some(testing::UUID), Some(103)), [101, 102, 103]);
        assert!(table.runs("other", "pve1") && !table.runs("other", "pve2") && !table.runs("", "pve1"));
        table.insert(Arc::new(VmView { uuid: "new".into(), state: RunState::Stopped, ..vm }));
        assert_eq!(ids(&table, "", Some(testing::UUID), None), [102]);
        assert!(!table.runs("new", "pve1"));
        table.remove(101);
        assert!(ids(&table, testing::UID, Some("new"), Some(101)).is_empty());
    }

    #[test]
    fn what_other_nodes_tell_alike_is_kept_once_and_what_its_own_node_tells_is_not_mixed_up_with_it() {
        let alike = Alike::default();
        let vm = |state| testing::vm(state);
        let (two, three) = (alike.share("lab", "pve2", vm(RunState::Unknown)), alike.share("lab", "pve3", vm(RunState::Unknown)));
        assert!(Arc::ptr_eq(&two, &three));
        let own = alike.share("lab", "pve1", vm(RunState::Running));
        assert_eq!(own.state, RunState::Running);
        assert!(!Arc::ptr_eq(&two, &alike.share("other", "pve2", vm(RunState::Unknown))));
        let changed = VmView { digest: "d2".into(), ..vm(RunState::Unknown) };
        assert_eq!(alike.share("lab", "pve2", changed.clone()).digest, "d2");
        assert_eq!(two.digest, "d1");
        drop((two, three));
        for vmid in 0..10_000 {
            alike.share("lab", "pve2", VmView { vmid, ..changed.clone() });
        }
        assert!(alike.0.lock().unwrap_or_else(PoisonError::into_inner)["lab"].views.len() <= SWEEP + 1, "what nobody holds is forgotten");
    }
}
