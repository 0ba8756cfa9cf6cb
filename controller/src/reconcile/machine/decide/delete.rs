//! The object is to go; what becomes of its VM.

use super::{
    Action, Inputs, attempt, disks,
    draft::Draft,
    locate::{self, Place},
    retained,
};
use crate::kind::{ABANDON, ActionKind, Phase};

pub(super) fn decide(inputs: &Inputs<'_>, draft: &mut Draft<'_>) -> Action {
    if retained(inputs) {
        return Action::Release;
    }
    draft.status.phase = Phase::Deleting;
    if !inputs.machine.status.created {
        return match locate::marked(inputs) {
            // A clone whose answer was lost made it after all. After a deletion what is seen may be from before it.
            Some(Ok(sighting)) if !deleted(inputs) => {
                draft.adopt(sighting);
                Action::Again
            }
            Some(Err(text)) => {
                draft.fail("DuplicateVms", text);
                Action::Wait(None)
            }
            _ => disks::remove_rest(inputs, draft),
        };
    }
    match locate::locate(inputs) {
        Place::Found(sighting, host) => {
            draft.found(sighting, host);
            let vm = &sighting.vm;
            let Some(host) = host else {
                draft.unknown("HostNotFound", format!("VM {} is on node {}, for which there is no PveHost; add one", vm.vmid, vm.node));
                return Action::Wait(None);
            };
            if let Some((reason, text)) = host.obstacle() {
                draft
                    .not_ready(reason, format!("{text}; VM {} is removed when it is back. To let go of it: annotation {ABANDON}", vm.vmid));
                return Action::Wait(None);
            }
            if !vm.lock.is_empty() {
                draft.not_ready("VmLocked", format!("PVE holds lock '{}' on VM {}; it is removed when that ends", vm.lock, vm.vmid));
                return Action::Wait(None);
            }
            if let Some(action) = disks::before_vm_goes(inputs, draft, vm, host) {
                return action;
            }
            draft.not_ready("Deleting", "");
            attempt::order(inputs, draft, ActionKind::Delete, host)
        }
        Place::Ambiguous(text) => {
            draft.fail("AmbiguousUuid", text);
            Action::Wait(None)
        }
        Place::Unproven(text) => {
            draft.not_ready("NotSeen", format!("{text}; it is removed when it is seen again. To let go of it: annotation {ABANDON}"));
            Action::Wait(None)
        }
        Place::Settling(until) => Action::Wait(Some(until)),
        Place::Gone(_) => disks::remove_rest(inputs, draft),
    }
}

/// Whether the VM was removed by us; after it nothing but disks is.
fn deleted(inputs: &Inputs<'_>) -> bool {
    inputs.machine.status.last_success.as_ref().is_some_and(|s| matches!(s.action, ActionKind::Delete | ActionKind::DeleteDisk))
}
