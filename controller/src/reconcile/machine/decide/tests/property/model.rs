//! The world: agents, VMs and volumes as they really are, and what the controller has been told.

mod agents;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use pvelet_proto::v1;

use super::{
    super::super::{Action, Ending, Inputs, Knowledge, Request, VolumeSight, decide},
    Event, Sent,
};
use crate::{
    kind::{DeletionPolicy, DiskSpec, MACHINE_FINALIZER, PveMachine, Quantity, RecreatePolicy, RunPolicy},
    placement::{Candidate, Size},
    reconcile::{DiskView, HostView, Link, RunState, Sighting, VmView, testing},
};

/// The volume of disk `data`, which lies on a local storage and goes with the machine.
pub(super) const DATA: &str = "45aa0f64-4ff8-59b8-adad-e51f5b083b1f";
/// The volume of disk `keep`, which is made on a shared storage and retained.
const KEEP: &str = "8ad59d47-0c61-5d74-ba5a-f89aa43f49ab";
/// A volume that exists before the machine.
const EXISTING: &str = "0b951f20-53f9-4634-b1ce-5e6c3aa3a726";
/// What is never deleted.
pub(super) const KEPT: [&str; 2] = [KEEP, EXISTING];

/// An operation at an agent: on which node, what, and how it stands.
struct Operation {
    node: String,
    request: Request,
    known: Knowledge,
}

/// A volume: its id, and the node of its storage, unless that is shared.
type Volume = (String, Option<String>);

pub(super) struct Model {
    pub(super) stored: Option<PveMachine>,
    pub(super) hosts: Vec<HostView>,
    /// What really exists.
    pub(super) vms: Vec<VmView>,
    volumes: Vec<Volume>,
    /// Volumes that existed at any time.
    pub(super) ever: BTreeSet<String>,
    /// What must never be done, and was.
    pub(super) violations: Vec<String>,
    /// What agents have told.
    told: Vec<VmView>,
    operations: BTreeMap<String, Operation>,
    /// What the controller's process has learned; lost in a crash.
    memory: BTreeMap<String, Knowledge>,
    now: Timestamp,
    pub(super) made: u32,
}

/// The spec's disks: which of the three there are, and how large the first is.
fn disks(bits: u8) -> Vec<DiskSpec> {
    let made = |name: &str, storage: &str, policy| DiskSpec {
        name: name.into(),
        size: Some(Quantity(if bits & 8 == 0 { 1 << 30 } else { 4 << 30 })),
        storage: Some(storage.into()),
        deletion_policy: policy,
        ..DiskSpec::default()
    };
    let existing = DiskSpec { name: "mine".into(), existing: Some(EXISTING.into()), ..DiskSpec::default() };
    let all = [made("data", "local", None), made("keep", "shared", Some(DeletionPolicy::Retain)), existing];
    all.into_iter().enumerate().filter(|(i, _)| bits & (1 << i) == 0).map(|(_, disk)| disk).collect()
}

impl Model {
    pub(super) fn new(recreate: bool) -> Self {
        let mut machine = testing::machine("web-1");
        machine.spec.recreate_policy = if recreate { RecreatePolicy::Recreate } else { RecreatePolicy::Never };
        machine.spec.disks = disks(0);
        Self {
            stored: Some(machine),
            hosts: ["pve1", "pve2", "pve3"].map(testing::host).to_vec(),
            vms: Vec::new(),
            volumes: vec![(EXISTING.into(), None)],
            ever: BTreeSet::from([EXISTING.to_owned()]),
            violations: Vec::new(),
            told: Vec::new(),
            operations: BTreeMap::new(),
            memory: BTreeMap::new(),
            now: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1),
            made: 0,
        }
    }

    pub(super) fn has_volume(&self, id: &str) -> bool {
        self.volumes.iter().any(|(v, _)| v == id)
    }

    pub(super) fn disks_with_two_volumes(&self) -> Vec<String> {
        let count = |id: &str| self.volumes.iter().filter(|(v, _)| v == id).count();
        self.ever.iter().filter(|id| count(id) > 1).cloned().collect()
    }

    /// Whether a node's agent sees the volume.
    fn sees(&self, node: &str, id: &str) -> bool {
        self.volumes.iter().any(|(v, on)| v == id && on.as_ref().is_none_or(|on| on == node))
    }

    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Pass { crash, sent } => {
                if self.pass(crash.unwrap_or(u8::MAX), sent).is_none() {
                    self.memory.clear();
                }
            }
            Event::Finish(well) => self.finish(well),
            Event::Tick(seconds) => {
                self.told.clone_from(&self.vms);
                self.now += SignedDuration::from_secs(seconds);
            }
            Event::Toggle(i) => {
                let down = Link::Down { reason: "AgentUnreachable", message: String::new() };
                let link = &mut self.hosts[i].link;
                *link = if *link == Link::Up { down } else { Link::Up };
                // A new connection begins with all that exists.
                self.told.clone_from(&self.vms);
            }
            Event::Migrate(i) => self.vms.iter_mut().for_each(|vm| vm.node = format!("pve{}", i + 1)),
            Event::Remove => self.vms.clear(),
            Event::Detach(false) => self.vms.iter_mut().for_each(|vm| vm.disks.clear()),
            Event::Detach(true) => self.vms.iter_mut().flat_map(|vm| &mut vm.disks).for_each(|d| d.slot = "unused0".into()),
            Event::Stop => self.vms.iter_mut().for_each(|vm| vm.state = RunState::Stopped),
            Event::Edit(n) => {
                if let Some(machine) = &mut self.stored {
                    machine.metadata.generation += 1;
                    machine.spec.cores = Some(u32::from(n) % 4 + 1);
                    machine.spec.disks = disks(n >> 1);
                    machine.spec.run_policy = if n % 2 == 0 { RunPolicy::Always } else { RunPolicy::Manual };
                }
            }
            Event::Forget => self.memory.clear(),
            Event::Delete => {
                if let Some(machine) = &mut self.stored {
                    machine.metadata.deletion_timestamp.get_or_insert(self.now);
                }
                // The store lets an object without finalizers go at once.
                self.stored.take_if(|m| m.metadata.finalizers.is_empty());
            }
        }
    }

    /// `None` when the controller died in it.
    fn pass(&mut self, crash_after: u8, sent: Sent) -> Option<()> {
        let mut machine = self.stored.clone()?;
        let mut learned: Option<Knowledge> = None;
        let mut seen = BTreeMap::new();
        let mut finalizer = false;
        for step in 0..20u8 {
            if step == crash_after {
                return None;
            }
            let known = learned.clone().or_else(|| self.memory.get(&machine.status.operation.as_ref()?.request_id).cloned());
            let decision = self.decide(&machine, known.unwrap_or(Knowledge::Unsure), &seen);
            let id = |m: &PveMachine| m.status.operation.as_ref().map(|a| a.request_id.clone());
            let before = id(&machine);
            finalizer |= decision.finalizer;
            machine.status = decision.status;
            if decision.action == Action::Again {
                learned = None;
                continue;
            }
            self.stored.as_mut()?.status = machine.status.clone();
            if finalizer && crash_after == 100 + step {
                return None;
            }
            if finalizer && machine.metadata.finalizers.is_empty() {
                machine.metadata.finalizers.push(MACHINE_FINALIZER.into());
                self.stored.as_mut()?.metadata.finalizers = machine.metadata.finalizers.clone();
            }
            if id(&machine) != before {
                learned = Some(Knowledge::Unsent);
            }
            match decision.action {
                Action::Again | Action::Wait(_) => return Some(()),
                Action::LookUp => learned = Some(self.look_up(&id(&machine)?)),
                Action::Observe { node, volume, .. } => {
                    let sight = self.observe(&machine, &node, &volume);
                    seen.insert((node, volume), sight);
                }
                Action::Call(request) => {
                    seen.clear();
                    let unsent = learned == Some(Knowledge::Unsent);
                    match self.send(&machine, &request, unsent, sent) {
                        Some(known) => learned = Some(known),
                        None => return Some(()),
                    }
                }
                Action::Cancel(_) => {
                    let request_id = id(&machine)?;
                    if let Some(operation) = self.operations.get_mut(&request_id) {
                        operation.known = failed("CANCELLED", true);
                        self.memory.insert(request_id, operation.known.clone());
                    }
                    return Some(());
                }
                Action::Release => {
                    self.stored = None;
                    return Some(());
                }
            }
        }
        panic!("no rest: {:?}", self.stored.as_ref().map(|m| &m.status));
    }

    fn observe(&self, machine: &PveMachine, node: &str, id: &str) -> VolumeSight {
        if !self.sees(node, id) {
            return VolumeSight::Missing;
        }
        let disk = machine.spec.disks_of(&machine.metadata.uid).into_iter().find(|(v, _)| v.to_string() == id).map(|(_, d)| d.name.clone());
        let owner = v1::VolumeOwner {
            tenant: "default".into(),
            cluster: "test".into(),
            claim: format!("machine/web-1/{}", disk.unwrap_or_default()),
        };
        let holder = self.vms.iter().find_map(|vm| vm.disks.iter().find(|d| d.volume_id == id).map(|d| (vm, d)));
        let attachment = holder.map(|(vm, disk)| v1::VolumeAttachment {
            slot: disk.slot.clone(),
            vm: Some(v1::VmRef { vmid: vm.vmid, uuid: vm.uuid.clone() }),
            ..v1::VolumeAttachment::default()
        });
        VolumeSight::Found(Box::new(v1::Volume { id: id.into(), owner: Some(owner), attachment, ..v1::Volume::default() }))
    }

    fn decide(
        &self,
        machine: &PveMachine,
        known: Knowledge,
        volumes: &BTreeMap<(String, String), VolumeSight>,
    ) -> super::super::super::Decision {
        let hosts: Vec<Arc<HostView>> = self.hosts.iter().cloned().map(Arc::new).collect();
        let candidate = |host: &Arc<HostView>| Candidate {
            host: Arc::clone(host),
            used_memory_mib: 0,
            used_cores: 0,
            template: Some(Size { memory_mib: 512, cores: 1 }),
        };
        let candidates: Vec<Candidate> = hosts.iter().map(candidate).collect();
        let up = self.hosts.iter().filter(|h| h.link == Link::Up);
        let sightings: Vec<Sighting> = up
            .flat_map(|host| {
                self.told.iter().map(|vm| Sighting { cluster: "lab".into(), seen_by: host.node.clone(), vm: Arc::new(vm.clone()) })
            })
            .collect();
        decide(&Inputs {
            machine,
            controller: "test",
            hosts: &hosts,
            sightings: &sightings,
            candidates: &candidates,
            orphan: None,
            known,
            volumes,
            stop_order: None,
            now: self.now,
        })
    }

    fn look_up(&mut self, request_id: &str) -> Knowledge {
        let known = self.operations.get(request_id).map_or(Knowledge::Absent, |o| o.known.clone());
        if known != Knowledge::Absent {
            self.memory.insert(request_id.to_owned(), known.clone());
        }
        known
    }

    fn send(&mut self, machine: &PveMachine, request: &Request, unsent: bool, sent: Sent) -> Option<Knowledge> {
        let attempt = machine.status.operation.clone().unwrap();
        let arrives = matches!(sent, Sent::Answered | Sent::LostAfter);
        if arrives && !self.operations.contains_key(&attempt.request_id) {
            let known = Knowledge::Active { name: attempt.request_id.clone() };
            let (makes, target) = match request {
                Request::Clone(_) | Request::CreateVolume(_) => (true, None),
                // About a volume wherever it is.
                Request::GrowVolume(_) | Request::SetVolumeLimits(_) | Request::DeleteVolume(_) => (true, None),
                Request::Configure(r) => (false, r.vm.clone()),
                Request::Start(r) => (false, r.vm.clone()),
                Request::Shutdown(r) => (false, r.vm.clone()),
                Request::Delete(r) => (false, r.vm.clone()),
                Request::AttachVolume(r) => (false, r.vm.clone()),
                Request::DetachVolume(r) => (false, r.vm.clone()),
            };
            let here = |vm: &&VmView| target.as_ref().is_some_and(|t| t.uuid == vm.uuid && t.vmid == vm.vmid) && vm.node == attempt.node;
            if !makes && self.vms.iter().find(here).is_none() {
                return Some(refused("VM_ON_OTHER_HOST"));
            }
            let operation = Operation { node: attempt.node, request: request.clone(), known };
            self.operations.insert(attempt.request_id.clone(), operation);
        }
        match sent {
            Sent::Answered => Some(self.look_up(&attempt.request_id)),
            Sent::LostAfter | Sent::LostBefore => None,
            Sent::RefusedForNow | Sent::Refused if unsent => Some(refused("VM_LOCKED")),
            Sent::RefusedForNow | Sent::Refused => match self.look_up(&attempt.request_id) {
                Knowledge::Absent if sent == Sent::RefusedForNow => None,
                Knowledge::Absent => Some(refused("VM_LOCKED")),
                known => Some(known),
            },
        }
    }

    /// All that is under way ends, and most of it is told.
    fn finish(&mut self, well: bool) {
        let active = |o: &Operation| matches!(o.known, Knowledge::Active { .. });
        let ids: Vec<String> = self.operations.iter().filter(|(_, o)| active(o)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let Some(operation) = self.operations.get(&id) else { continue };
            let (node, request) = (operation.node.clone(), operation.request.clone());
            let known = if well { self.carry_out(&node, request) } else { failed("PVE_FAILED", false) };
            if let Some(operation) = self.operations.get_mut(&id) {
                operation.known = known.clone();
            }
            self.memory.insert(id, known);
        }
    }
}

fn failed(reason: &str, retryable: bool) -> Knowledge {
    Knowledge::Ended(Ending::Failed { reason: reason.into(), message: "m".into(), retryable, remains: false })
}

fn refused(reason: &str) -> Knowledge {
    Knowledge::Refused(Ending::Failed { reason: reason.into(), message: "m".into(), retryable: true, remains: false })
}
