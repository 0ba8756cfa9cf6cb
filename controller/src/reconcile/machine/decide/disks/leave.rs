//! Disks that are not wanted any more, because the spec does not name them or the machine goes.

use super::{Findings, Pass, begin, entry, settling, sync};
use crate::{
    kind::{ABANDON, ActionKind, DiskPhase, DiskStatus},
    reconcile::{
        HostView, RunState, VmView,
        machine::decide::{Action, Inputs, SETTLE, after, attempt, draft::Draft, locate},
    },
};

impl Pass<'_> {
    /// A disk that has left the spec: detached, then deleted unless it is kept, then forgotten.
    pub(super) fn leaving(&mut self, draft: &mut Draft<'_>, volume: &str) -> Option<Action> {
        if let Some(entry) = entry(&mut draft.status, volume) {
            entry.phase = DiskPhase::Leaving;
            entry.slot = None;
        }
        if draft.status.disk(volume).is_some_and(|d| d.created)
            && let Err(step) = self.follow_vm(draft, volume)
        {
            return step;
        }
        // Not seen from the VM's node: the VM may hold its name all the same, and it is deleted where it lies.
        let known = draft.status.disk(volume).cloned()?;
        let held = self.held(volume).is_some();
        if known.missing_on.as_ref() != Some(&self.vm.node) && (held || known.attached) {
            if let Some(until) = settling(self.inputs, &known, ActionKind::DetachDisk).filter(|_| !known.attached) {
                self.findings.until(until);
                self.findings.problem("DetachingDisk", format!("disk {}", known.name));
                return None;
            }
            let host = self.host;
            return self.order(draft, ActionKind::DetachDisk, host, volume);
        }
        if !known.is_to_be_deleted() {
            draft.forget_disk(volume);
            return None;
        }
        let node = known.node.as_deref().unwrap_or(&self.vm.node);
        let host = locate::host_of(self.inputs, draft.status.cluster.as_deref(), Some(node));
        match usable(host, node) {
            Ok(host) => self.order(draft, ActionKind::DeleteDisk, host, volume),
            Err((reason, text)) => {
                self.findings.problem(reason, format!("disk {}: its volume is to be deleted, and {text}", known.name));
                None
            }
        }
    }
}

fn usable<'h>(host: Option<&'h HostView>, node: &str) -> Result<&'h HostView, (&'static str, String)> {
    let host = host.ok_or_else(|| ("HostNotFound", format!("for its node {node} there is no PveHost; add one")))?;
    host.obstacle().map_or(Ok(host), Err)
}

/// Before the VM goes, all volumes are detached from it: those that are kept because they would be in danger, and those that are deleted
/// because the agent deletes only what is attached nowhere. Nothing when none is left.
pub(in super::super) fn before_vm_goes<'p>(
    inputs: &'p Inputs<'p>,
    draft: &mut Draft<'_>,
    vm: &'p VmView,
    host: &'p HostView,
) -> Option<Action> {
    sync(inputs.machine, &mut draft.status);
    let mut pass = Pass { inputs, vm, host, findings: Findings::default() };
    let held =
        |pass: &Pass<'_>, d: &DiskStatus| d.missing_on.as_ref() != Some(&vm.node) && (d.attached || pass.held(&d.volume_id).is_some());
    let volumes: Vec<String> = draft.status.disks.iter().filter(|d| held(&pass, d)).map(|d| d.volume_id.clone()).collect();
    if volumes.is_empty() {
        return None;
    }
    // The agent would refuse to delete it, but only after its guest was stopped and lost its disks.
    let vmid = vm.vmid;
    let refusal = [
        (vm.protection, "VmProtected", format!("VM {vmid} is protected; remove its protection (qm set {vmid} --protection 0)")),
        (vm.ha_managed, "HaManaged", format!("PVE's HA manager has VM {vmid}; remove it from HA")),
        (vm.replicated, "VmReplicated", format!("a replication job copies VM {vmid}; remove the job")),
    ];
    if let Some((_, reason, text)) = refusal.into_iter().find(|(holds, ..)| *holds) {
        draft.not_ready(reason, text);
        return Some(Action::Wait(None));
    }
    if vm.state != RunState::Stopped {
        let last = inputs.machine.status.last_success.as_ref().filter(|s| s.action == ActionKind::Shutdown);
        if let Some(until) = last.map(|s| after(s.time, SETTLE)).filter(|until| inputs.now < *until) {
            return Some(Action::Wait(Some(until)));
        }
        draft.not_ready("Deleting", "the VM is stopped before its disks are detached");
        return Some(attempt::order(inputs, draft, ActionKind::Shutdown, host));
    }
    draft.not_ready("Deleting", "its disks are detached before the VM is removed");
    for volume in &volumes {
        // Before it is detached: afterwards nobody can tell on which node it is.
        if let Err(Some(action)) = pass.follow_vm(draft, volume) {
            return Some(action);
        }
        let known = draft.status.disk(volume).cloned().unwrap_or_default();
        if let Some(until) = settling(inputs, &known, ActionKind::DetachDisk).filter(|_| !known.attached) {
            pass.findings.until(until);
        } else if let Some(action) = pass.order(draft, ActionKind::DetachDisk, host, volume) {
            return Some(action);
        }
    }
    if let Some((reason, text)) = pass.findings.problems.first() {
        draft.not_ready(reason, text.clone());
    }
    Some(Action::Wait(pass.findings.rest.until))
}

/// The VM is gone or never was: removes the volumes that go with the machine, and lets the object go when none is left.
pub(in super::super) fn remove_rest(inputs: &Inputs<'_>, draft: &mut Draft<'_>) -> Action {
    sync(inputs.machine, &mut draft.status);
    draft.status.disks.retain(DiskStatus::is_to_be_deleted);
    let volumes: Vec<String> = draft.status.disks.iter().map(|d| d.volume_id.clone()).collect();
    let (mut until, mut told) = (None, false);
    for volume in &volumes {
        let known = draft.status.disk(volume).cloned().unwrap_or_default();
        let node = known.node.or_else(|| draft.status.node.clone()).unwrap_or_default();
        let host = locate::host_of(inputs, draft.status.cluster.as_deref(), Some(&node));
        let (reason, text) = match usable(host, &node) {
            Ok(host) => match draft.paused_after_failure(ActionKind::DeleteDisk, Some(volume)) {
                None => {
                    draft.not_ready("Deleting", "");
                    return begin(inputs, draft, ActionKind::DeleteDisk, host, volume);
                }
                Some((due, failure)) => {
                    until = Some(until.map_or(due, |u: jiff::Timestamp| u.min(due)));
                    (attempt::condition_reason(ActionKind::DeleteDisk, &failure.reason), failure.message)
                }
            },
            Err((reason, text)) => (reason.to_owned(), format!("disk {}: {text}", known.name)),
        };
        if !std::mem::replace(&mut told, true) {
            draft.not_ready(&reason, format!("{text}. To let go of the disk: annotation {ABANDON}"));
        }
    }
    if volumes.is_empty() { Action::Release } else { Action::Wait(until) }
}
