//! What to do next for a machine. Pure: what is known goes in, the next status and one action come out.
//!
//! The order of the questions is the safety argument:
//! 1. Did the attempt under way end? Nothing else is begun before that is known.
//! 2. Is the machine paused, or on its way out?
//! 3. Was its VM ever made? If so it is looked for, and its absence believed only when proven.
//! 4. If not: does a VM already carry this machine's mark? Only then is one cloned.
//! 5. Does it look as the spec says, does it have its disks, and does it run as the policy says?

mod attempt;
mod delete;
mod disks;
mod draft;
mod drift;
mod locate;
mod run_state;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use pvelet_proto::v1;

use self::{draft::Draft, locate::Place};
use crate::{
    kind::{ABANDON, ADOPT, ActionKind, DeletionPolicy, MACHINE_FINALIZER, MachineStatus, PAUSED, Phase, PveMachine, RecreatePolicy},
    placement::{self, Candidate},
    reconcile::{HostView, Link, Sighting, machine_uid},
    store::UserDataError,
};

pub(in crate::reconcile) use attempt::camel_reason;
pub use attempt::{Ending, Knowledge};
pub use disks::VolumeSight;

/// Why a machine is placed nowhere, where that depends on nothing but what it needs and what the hosts have.
pub(in crate::reconcile) const NO_ROOM: [&str; 2] = ["NoHostFits", "HostNotUsable"];

/// How long after an operation what is seen may still be from before it.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

/// All that a decision may depend on.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// The object.
    pub machine: &'a PveMachine,
    /// This controller's name.
    pub controller: &'a str,
    /// All hosts while the machine is not placed, then those of its PVE cluster.
    pub hosts: &'a [Arc<HostView>],
    /// VMs that carry the machine's mark, UUID or VMID, each as each agent sees it.
    pub sightings: &'a [Sighting],
    /// Hosts with what is free on them; only needed while the machine is not placed.
    pub candidates: &'a [Candidate],
    /// A VM that this controller made for a machine that no longer exists and that has this machine's VM name.
    pub orphan: Option<&'a Sighting>,
    /// What is known of the attempt under way.
    pub known: Knowledge,
    /// What agents were asked about volumes in this pass, by node and volume id.
    pub volumes: &'a BTreeMap<(String, String), VolumeSight>,
    /// The newest order by somebody else to stop the VM that was carried out: the operation's name, and when, by its host's clock.
    pub stop_order: Option<(String, Timestamp)>,
    /// Now.
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Nothing until something changes, or until this moment.
    Wait(Option<Timestamp>),
    /// Store the status and decide again.
    Again,
    /// Ask the agent for the operation of the attempt under way.
    LookUp,
    /// Ask an agent about a volume, and decide again.
    Observe {
        /// The PVE cluster.
        cluster: String,
        /// The node whose agent is asked.
        node: String,
        /// The volume's id.
        volume: String,
    },
    /// Send the attempt under way.
    Call(Box<Request>),
    /// Cancel this operation.
    Cancel(String),
    /// Let the object go.
    Release,
}

/// A call. `meta` holds tenant and request id; the epoch is added when it is sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// `VmService.CloneVm`
    Clone(v1::CloneVmRequest),
    /// `VmService.ConfigureVm`
    Configure(v1::ConfigureVmRequest),
    /// `VmService.StartVm`
    Start(v1::StartVmRequest),
    /// `VmService.ShutdownVm`
    Shutdown(v1::ShutdownVmRequest),
    /// `VmService.DeleteVm`
    Delete(v1::DeleteVmRequest),
    /// `VolumeService.CreateVolume`
    CreateVolume(v1::CreateVolumeRequest),
    /// `VolumeService.AttachVolume`
    AttachVolume(v1::AttachVolumeRequest),
    /// `VolumeService.GrowVolume`
    GrowVolume(v1::GrowVolumeRequest),
    /// `VolumeService.SetVolumeLimits`
    SetVolumeLimits(v1::SetVolumeLimitsRequest),
    /// `VolumeService.DetachVolume`
    DetachVolume(v1::DetachVolumeRequest),
    /// `VolumeService.DeleteVolume`
    DeleteVolume(v1::DeleteVolumeRequest),
}

/// The next status, to be stored before the action is taken, and the action.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The status.
    pub status: MachineStatus,
    /// Whether the finalizer must be there before the action is taken; it is stored after the status.
    pub finalizer: bool,
    /// The action.
    pub action: Action,
}

/// Decides.
pub fn decide(inputs: &Inputs<'_>) -> Decision {
    let mut draft = Draft::new(inputs);
    let action = if inputs.machine.status.operation.is_some() {
        attempt::follow(inputs, &mut draft)
    } else if inputs.machine.has_flag(PAUSED) {
        let text = format!("nothing is done while annotation {PAUSED} is \"true\"; remove it to go on");
        draft.not_ready("Paused", text);
        Action::Wait(None)
    } else if inputs.machine.is_deleting() {
        delete::decide(inputs, &mut draft)
    } else if inputs.machine.status.created {
        existing(inputs, &mut draft)
    } else {
        missing(inputs, &mut draft)
    };
    draft.finish(action)
}

/// The machine has no VM yet.
fn missing(inputs: &Inputs<'_>, draft: &mut Draft<'_>) -> Action {
    if let Some(found) = locate::marked(inputs) {
        return match found {
            Ok(sighting) => {
                draft.adopt(sighting);
                Action::Again
            }
            Err(text) => {
                draft.fail("DuplicateVms", text);
                Action::Wait(None)
            }
        };
    }
    // Another tenant's is not for this one to take over, or to hear of.
    let own = |orphan: &&Sighting| orphan.vm.owner.as_ref().is_some_and(|o| o.tenant == draft.tenant());
    if let Some(orphan) = inputs.orphan.filter(own) {
        if inputs.machine.metadata.annotations.get(ADOPT) == Some(&orphan.vm.uuid) {
            draft.adopt(orphan);
            return Action::Again;
        }
        draft.fail(
            "NameHasVm",
            format!(
                "VM {} ({}) on node {} has this name and was made by this controller for an object that no longer exists; remove that VM, or \
                 take it over with annotation {ADOPT}: {}",
                orphan.vm.vmid, orphan.vm.uuid, orphan.vm.node, orphan.vm.uuid
            ),
        );
        return Action::Wait(None);
    }
    if inputs.machine.has_flag(ABANDON) {
        let text =
            format!("annotation {ABANDON} lets go of a VM, so none is made; remove the manifest, or the annotation to have one made");
        draft.unplaced("Abandoned", text);
        return Action::Wait(None);
    }
    if let Some(at) = draft.must_wait_for(ActionKind::Clone) {
        return Action::Wait(Some(at));
    }
    // The finalizer is stored after the placement. Where it stands without one the status was lost, and a VM may exist anywhere.
    if inputs.machine.metadata.finalizers.iter().any(|f| f == MACHINE_FINALIZER) && inputs.machine.status.attempt == 0 {
        let unseen: Vec<&str> = inputs.hosts.iter().filter(|h| h.link != Link::Up).map(|h| h.name.as_str()).collect();
        if !unseen.is_empty() {
            let text = format!("the VM may exist already; before one is made these hosts must be asked: {}", unseen.join(", "));
            draft.unplaced("WaitingForHosts", text);
            return Action::Wait(None);
        }
    }
    // What the controller itself did not find is no fault of a host.
    let failed_there = inputs.machine.status.failure_of(ActionKind::Clone).filter(|f| !UserDataError::REASONS.contains(&f.reason.as_str()));
    let avoid = failed_there.map(|f| f.host.as_str());
    let host = match (&inputs.machine.status.host, &inputs.machine.spec.host) {
        (Some(placed), _) => locate::host_of(inputs, draft.status.cluster.as_deref(), draft.status.node.as_deref())
            .ok_or_else(|| ("HostNotFound", format!("PveHost {placed}, on which the VM is to be made, is gone; add it again"))),
        (None, Some(name)) => placement::named(name, &inputs.machine.spec, inputs.candidates).map_err(|why| ("HostNotUsable", why)),
        (None, None) => placement::place(&inputs.machine.spec, inputs.candidates, avoid).map_err(|why| ("NoHostFits", why)),
    };
    match host {
        Ok(host) => attempt::clone(inputs, draft, host),
        Err((reason, text)) => {
            draft.unplaced(reason, text);
            Action::Wait(None)
        }
    }
}

/// The machine's VM was made.
fn existing(inputs: &Inputs<'_>, draft: &mut Draft<'_>) -> Action {
    match locate::locate(inputs) {
        Place::Found(sighting, host) => {
            draft.found(sighting, host);
            let vm = &sighting.vm;
            let Some(host) = host else {
                draft.unknown("HostNotFound", format!("VM {} is on node {}, for which there is no PveHost; add one", vm.vmid, vm.node));
                return Action::Wait(None);
            };
            if let Some((reason, text)) = host.obstacle() {
                draft.unknown(reason, text);
                return Action::Wait(None);
            }
            if !vm.lock.is_empty() {
                draft.running_as_seen(vm);
                draft.not_ready("VmLocked", format!("PVE holds lock '{}' on VM {}; it goes on when that ends", vm.lock, vm.vmid));
                return Action::Wait(None);
            }
            let configure = drift::decide(inputs, draft, vm, host);
            match configure {
                Some(action @ (Action::Call(_) | Action::Again)) => action,
                other => match disks::decide(inputs, draft, vm, host) {
                    Err(action) => action,
                    Ok(rest) => run_state::decide(inputs, draft, vm, host, (rest, other)),
                },
            }
        }
        Place::Ambiguous(text) => {
            draft.fail("AmbiguousUuid", text);
            Action::Wait(None)
        }
        Place::Unproven(text) => {
            draft.unknown("NotSeen", text);
            Action::Wait(None)
        }
        Place::Settling(until) => Action::Wait(Some(until)),
        Place::Gone(text) => gone(inputs, draft, text),
    }
}

/// The VM is proven gone.
fn gone(inputs: &Inputs<'_>, draft: &mut Draft<'_>, text: String) -> Action {
    if inputs.machine.spec.recreate_policy == RecreatePolicy::Recreate {
        draft.start_over();
        return Action::Again;
    }
    draft.status.phase = Phase::Gone;
    draft.condition("Created", false, "VmGone", text.clone());
    draft.not_ready("VmGone", format!("{text}; restore it, remove the manifest, or set recreatePolicy: Recreate to have it made anew"));
    Action::Wait(None)
}

fn after(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|d| time.checked_add(d).ok()).unwrap_or(Timestamp::MAX)
}

fn retained(inputs: &Inputs<'_>) -> bool {
    inputs.machine.spec.deletion_policy == DeletionPolicy::Retain || inputs.machine.has_flag(ABANDON)
}

fn is_ours(sighting: &Sighting, uid: &str) -> bool {
    machine_uid(&sighting.vm) == Some(uid)
}

#[cfg(test)]
mod tests;
