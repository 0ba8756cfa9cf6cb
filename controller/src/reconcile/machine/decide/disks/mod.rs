//! The machine's disks: made, attached, grown and limited as the spec says, and let go of when it does not name them any more.
//!
//! Three things keep data safe. A made volume's id follows from machine and disk name, so that asking twice makes one. A volume that is
//! known to exist is never made again: one that is missing is told. And what may have been attached or made is written down before the
//! call, so that nothing is forgotten that must be detached or removed.

mod ending;
mod leave;
mod request;
mod wanted;

use std::time::Duration;

use jiff::Timestamp;
use pvelet_proto::v1;

use super::{Action, Inputs, SETTLE, after, attempt, draft::Draft, locate};
use crate::{
    kind::{ActionKind, ConditionStatus, DiskPhase, DiskStatus, MachineStatus, PveMachine},
    reconcile::{DiskView, HostView, Link, VmView},
};

pub(super) use ending::{failed, not_done, succeeded};
pub(super) use leave::{before_vm_goes, remove_rest};
pub(super) use request::request;

/// When a volume that an agent was asked about is asked about again: no stream tells of volumes that are attached to nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What an agent said about a volume in this pass.
#[derive(Debug, Clone, PartialEq)]
pub enum VolumeSight {
    /// It is there.
    Found(Box<v1::Volume>),
    /// It is not.
    Missing,
    /// It cannot be told.
    Refused {
        /// The agent's reason.
        reason: String,
        /// Its message.
        message: String,
    },
}

/// Nothing is to be done about disks now.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// When to look again.
    pub(super) until: Option<Timestamp>,
    /// Why the VM is not to be started yet.
    pub(super) hold: Option<(String, String)>,
}

/// What is wrong, in the order of the disks.
#[derive(Default)]
struct Findings {
    rest: Rest,
    problems: Vec<(String, String)>,
    /// What is as it is, but worth telling.
    notes: Vec<String>,
}

impl Findings {
    fn until(&mut self, at: Timestamp) {
        self.rest.until = Some(self.rest.until.map_or(at, |u| u.min(at)));
    }

    fn problem(&mut self, reason: impl Into<String>, text: impl Into<String>) {
        self.problems.push((reason.into(), text.into()));
    }

    /// A problem without whose end the VM is not started.
    fn hold(&mut self, reason: impl Into<String>, text: impl Into<String>) {
        let problem = (reason.into(), text.into());
        self.rest.hold.get_or_insert_with(|| problem.clone());
        self.problems.push(problem);
    }
}

/// All that a disk is looked at with.
struct Pass<'p> {
    inputs: &'p Inputs<'p>,
    vm: &'p VmView,
    host: &'p HostView,
    findings: Findings,
}

/// The VM is there and configured: sees to its disks, one step at a time.
pub(super) fn decide<'p>(inputs: &'p Inputs<'p>, draft: &mut Draft<'_>, vm: &'p VmView, host: &'p HostView) -> Result<Rest, Action> {
    sync(inputs.machine, &mut draft.status);
    let wanted = inputs.machine.disks();
    let mut pass = Pass { inputs, vm, host, findings: Findings::default() };
    // What leaves goes first, so that its slot and its place on the storage are free.
    let leaving: Vec<String> = draft.status.disks.iter().map(|d| d.volume_id.clone()).collect();
    for volume in leaving.iter().filter(|id| !wanted.iter().any(|(w, _)| w.to_string() == **id)) {
        if let Some(action) = pass.leaving(draft, volume) {
            return Err(action);
        }
    }
    for (id, spec) in &wanted {
        if let Some(action) = pass.wanted(draft, &id.to_string(), spec) {
            return Err(action);
        }
    }
    tell(draft, &pass.findings);
    Ok(pass.findings.rest)
}

fn tell(draft: &mut Draft<'_>, findings: &Findings) {
    let text = |problems: &[(String, String)]| problems.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("; ");
    match findings.problems.first() {
        Some((reason, _)) => draft.condition("DisksReady", false, reason, text(&findings.problems)),
        None if draft.status.disks.is_empty() => draft.status.conditions.retain(|c| c.kind != "DisksReady"),
        None => draft.condition("DisksReady", true, "Attached", findings.notes.join("; ")),
    }
}

/// Takes the spec's disks over into the status. An entry whose disk has left the spec keeps what it was told last.
fn sync(machine: &PveMachine, status: &mut MachineStatus) {
    let uid = status.disks_uid.clone();
    for (id, spec) in machine.spec.disks_of(uid.as_deref().unwrap_or(&machine.metadata.uid)) {
        let volume = id.to_string();
        if status.disk(&volume).is_none() {
            status.disks.push(DiskStatus {
                volume_id: volume.clone(),
                device_path: id.device_path(),
                made: spec.is_made(),
                created: !spec.is_made(),
                ..DiskStatus::default()
            });
        }
        if let Some(entry) = entry(status, &volume) {
            entry.name.clone_from(&spec.name);
            entry.deletion_policy = spec.policy();
            if entry.storage.is_none() {
                entry.storage.clone_from(&spec.storage);
            }
        }
    }
}

/// A VM was found that the machine did not know of: its disks may have been made too.
pub(super) fn adopted(machine: &PveMachine, status: &mut MachineStatus, node: &str) {
    let known: Vec<String> = status.disks.iter().map(|d| d.volume_id.clone()).collect();
    sync(machine, status);
    for entry in status.disks.iter_mut().filter(|d| d.made && !known.contains(&d.volume_id)) {
        entry.requested = true;
        entry.node = Some(node.to_owned());
    }
}

/// The VM is gone, and with it what was attached to it. Its volumes are not.
pub(super) fn forget_vm(disks: &mut [DiskStatus]) {
    for disk in disks {
        disk.attached = false;
        disk.slot = None;
        disk.limits = None;
        disk.options_hash = None;
        disk.phase = if disk.created { DiskPhase::Detached } else { DiskPhase::Pending };
    }
}

/// Whether volumes bind the machine to a host.
pub(super) fn bind_to_host(status: &MachineStatus) -> bool {
    status.disks.iter().any(|d| d.node.is_some())
}

/// The node where a new VM finds the volumes of the old one. One that did not follow the old VM is on a local storage and decides.
pub(super) fn node_of_volumes(status: &MachineStatus) -> Option<String> {
    let mut nodes = status.disks.iter().filter_map(|d| d.node.as_ref());
    nodes.clone().find(|n| status.node.as_ref() != Some(*n)).or_else(|| nodes.next()).cloned()
}

/// Whether the VM goes with all its volumes, so that its guest need not be waited for.
pub(super) fn may_pull_plug(inputs: &Inputs<'_>, status: &MachineStatus) -> bool {
    inputs.machine.is_deleting() && status.disks.iter().all(DiskStatus::is_to_be_deleted)
}

fn entry<'s>(status: &'s mut MachineStatus, volume: &str) -> Option<&'s mut DiskStatus> {
    status.disks.iter_mut().find(|d| d.volume_id == volume)
}

/// The disk's name, for people.
fn name(status: &MachineStatus, volume: &str) -> String {
    status.disk(volume).map_or_else(|| volume.to_owned(), |d| d.name.clone())
}

/// Until when what is seen may be from before the last thing done with the disk, if that was this.
fn settling(inputs: &Inputs<'_>, entry: &DiskStatus, action: ActionKind) -> Option<Timestamp> {
    let until = after(entry.last_time.filter(|_| entry.last == Some(action))?, SETTLE);
    (inputs.now < until).then_some(until)
}

impl Pass<'_> {
    /// The disk in the VM's config, put aside or not.
    fn held(&self, volume: &str) -> Option<&DiskView> {
        let mut found = self.vm.disks.iter().filter(|d| d.is(volume)).collect::<Vec<_>>();
        found.sort_by_key(|d| d.is_aside());
        found.first().copied()
    }

    /// What is known about the volume on a node; an action where the agent must be asked first.
    fn look(&mut self, draft: &Draft<'_>, volume: &str, node: &str) -> Result<Option<VolumeSight>, Action> {
        let key = (node.to_owned(), volume.to_owned());
        if let Some(sight) = self.inputs.volumes.get(&key) {
            return Ok(Some(sight.clone()));
        }
        let cluster = draft.status.cluster.as_deref();
        let name = name(&draft.status, volume);
        let up = locate::host_of(self.inputs, cluster, Some(node)).filter(|h| h.link == Link::Up);
        if up.is_none() {
            let text = format!("disk {name}: node {node} must be asked for its volume, and its agent does not answer; bring it back");
            self.findings.hold("AgentUnreachable", text);
            return Ok(None);
        }
        let (node, volume) = key;
        Err(Action::Observe { cluster: cluster.unwrap_or_default().to_owned(), node, volume })
    }

    /// Begins to do something with a disk, unless it failed just now.
    fn order(&mut self, draft: &mut Draft<'_>, action: ActionKind, host: &HostView, volume: &str) -> Option<Action> {
        if let Some((due, failure)) = draft.paused_after_failure(action, Some(volume)) {
            self.findings.until(due);
            let reason = attempt::condition_reason(action, &failure.reason);
            // A VM that ran before is not kept down by a disk that cannot be attached or grown now.
            if prepares(action) && draft.status.last_start.is_none() {
                self.findings.hold(reason, failure.message);
            } else {
                self.findings.problem(reason, failure.message);
            }
            return None;
        }
        Some(begin(self.inputs, draft, action, host, volume))
    }
}

/// Whether the guest waits for it.
fn prepares(action: ActionKind) -> bool {
    matches!(action, ActionKind::CreateDisk | ActionKind::AttachDisk | ActionKind::GrowDisk)
}

/// Numbers an attempt, writes down what it may bring about, and sends it.
fn begin(inputs: &Inputs<'_>, draft: &mut Draft<'_>, action: ActionKind, host: &HostView, volume: &str) -> Action {
    let spec = inputs.machine.disks().into_iter().find(|(id, _)| id.to_string() == volume);
    if let Some(entry) = entry(&mut draft.status, volume) {
        match (action, spec) {
            (ActionKind::CreateDisk, Some((_, spec))) => {
                entry.requested = true;
                entry.node = Some(host.node.clone());
                entry.ordered_size = spec.size;
            }
            (ActionKind::AttachDisk, Some((_, spec))) => {
                entry.attached = true;
                entry.options_hash = Some(spec.options_hash());
                entry.limits = Some(spec.wanted_limits());
            }
            (ActionKind::GrowDisk, Some((_, spec))) => {
                entry.ordered_size = spec.size;
                entry.grown_digest = None;
            }
            (ActionKind::SetDiskLimits, Some((_, spec))) => entry.limits = Some(spec.wanted_limits()),
            _ => {}
        }
    }
    let doing = match action {
        ActionKind::CreateDisk => "CreatingDisk",
        ActionKind::AttachDisk => "AttachingDisk",
        ActionKind::GrowDisk => "GrowingDisk",
        ActionKind::SetDiskLimits => "SettingDiskLimits",
        ActionKind::DetachDisk => "DetachingDisk",
        _ => "DeletingDisk",
    };
    let text = format!("disk {}", name(&draft.status, volume));
    draft.set("DisksReady", ConditionStatus::False, doing, text.clone());
    if prepares(action) {
        draft.not_ready(doing, text);
    }
    attempt::begin_and_send(inputs, draft, action, host, Some(volume))
}
