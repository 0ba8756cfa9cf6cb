//! What the end of an attempt says about a disk.

use jiff::Timestamp;
use pvelet_proto::reason;

use super::{Draft, Inputs, entry, wanted::may_exist};
use crate::kind::{ActionKind, Attempt, MachineStatus};

pub(in super::super) fn succeeded(status: &mut MachineStatus, attempt: &Attempt, now: Timestamp) {
    let Some(volume) = attempt.volume.as_deref() else { return };
    if attempt.action == ActionKind::DeleteDisk {
        status.disks.retain(|d| d.volume_id != volume);
        status.failures.retain(|f| f.volume.as_deref() != Some(volume));
        return;
    }
    let Some(entry) = entry(status, volume) else { return };
    entry.last = Some(attempt.action);
    entry.last_time = Some(now);
    match attempt.action {
        ActionKind::CreateDisk => entry.created = true,
        ActionKind::AttachDisk => entry.missing_on = None,
        ActionKind::DetachDisk => {
            (entry.attached, entry.slot) = (false, None);
            (entry.limits, entry.options_hash) = (None, None);
        }
        _ => {}
    }
    // It was just had there, whichever storage it is on. Detached is also what is not there at all.
    if attempt.action != ActionKind::DetachDisk {
        entry.node = Some(attempt.node.clone());
    }
}

/// What an attempt was to bring about is not so.
pub(in super::super) fn not_done(status: &mut MachineStatus, attempt: &Attempt) {
    let Some(entry) = attempt.volume.as_deref().and_then(|volume| entry(status, volume)) else { return };
    match attempt.action {
        ActionKind::CreateDisk | ActionKind::GrowDisk => entry.ordered_size = None,
        // `attached` stays: to detach what is not attached costs one call, to forget what is attached costs the data.
        ActionKind::AttachDisk => (entry.limits, entry.options_hash) = (None, None),
        ActionKind::SetDiskLimits => entry.limits = None,
        _ => {}
    }
}

/// Takes a failure in; true when the aim is reached nevertheless, and there is nothing to tell.
pub(in super::super) fn failed(inputs: &Inputs<'_>, draft: &mut Draft<'_>, attempt: &Attempt, why: &str, remains: bool) -> bool {
    let Some(volume) = attempt.volume.as_deref() else { return false };
    let shown = inputs.sightings.iter().any(|s| Some(&s.vm.uuid) == draft.status.uuid.as_ref() && s.vm.disks.iter().any(|d| d.is(volume)));
    if attempt.action == ActionKind::DeleteDisk && why == reason::VOLUME_NOT_FOUND {
        succeeded(&mut draft.status, attempt, inputs.now);
        return true;
    }
    not_done(&mut draft.status, attempt);
    let Some(entry) = entry(&mut draft.status, volume) else { return false };
    match attempt.action {
        // Undone, or never begun: it is nowhere.
        ActionKind::CreateDisk if !remains && !may_exist(why) && !entry.created => {
            (entry.requested, entry.node) = (false, None);
            false
        }
        ActionKind::DetachDisk if why == reason::VOLUME_NOT_FOUND => {
            (entry.attached, entry.missing_on) = (false, Some(attempt.node.clone()));
            true
        }
        // Another VM has it, or this VM is gone. What the VM's config shows is tried again, ever more slowly.
        ActionKind::DetachDisk if !shown && matches!(why, reason::VOLUME_IN_USE | reason::VM_NOT_FOUND) => {
            entry.attached = false;
            true
        }
        _ => false,
    }
}
