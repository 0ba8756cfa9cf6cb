//! Attempts: begun under a number that was stored before, followed to their end, tried again under the next.

use std::time::Duration;

use pvelet_proto::{reason, v1};
use sha2::{Digest, Sha256};

use super::{Action, Inputs, Request, disks, draft::Draft, drift, locate, retained};
use crate::{
    kind::{ActionKind, Attempt, CloneMode, Failure, PAUSED, Phase, Success},
    reconcile::HostView,
};

/// First pause after a failure that time may mend.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest such pause.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// First pause after a failure that somebody must mend: a template that does not exist, a name that is refused.
const MEND_FIRST: Duration = Duration::from_secs(5);
/// Longest such pause.
const MEND_MAX: Duration = Duration::from_secs(300);

/// How long the guest of a VM may take to shut down that goes with all its volumes: nothing is kept that it could still write.
const PULL_PLUG: prost_types::Duration = prost_types::Duration { seconds: 1, nanos: 0 };

/// What is known of the attempt under way.
#[derive(Debug, Clone, PartialEq)]
pub enum Knowledge {
    /// Stored just now by this process, and sent by nobody yet.
    Unsent,
    /// It may have been sent; the agent must be asked before anything is concluded.
    Unsure,
    /// The agent was asked and has no such operation.
    Absent,
    /// The agent works on it.
    Active {
        /// The operation's name.
        name: String,
    },
    /// The operation ended.
    Ended(Ending),
    /// The agent refused the call, so that there is no operation.
    Refused(Ending),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// Done.
    Succeeded {
        /// The VM's id.
        vmid: u32,
        /// The VM's SMBIOS UUID.
        uuid: String,
    },
    /// Not done.
    Failed {
        /// The agent's reason.
        reason: String,
        /// The agent's message.
        message: String,
        /// Whether trying again may help by itself.
        retryable: bool,
        /// Whether something may have been left behind.
        remains: bool,
    },
}

/// The attempt under way: look at its end, or see to it that it gets there.
pub(super) fn follow(inputs: &Inputs<'_>, draft: &mut Draft<'_>) -> Action {
    let Some(attempt) = inputs.machine.status.operation.clone() else { return Action::Again };
    match &inputs.known {
        Knowledge::Ended(Ending::Succeeded { vmid, uuid }) => {
            succeeded(inputs, draft, &attempt, *vmid, uuid);
            Action::Again
        }
        Knowledge::Ended(Ending::Failed { reason, message, retryable, remains })
        | Knowledge::Refused(Ending::Failed { reason, message, retryable, remains }) => {
            failed(inputs, draft, &attempt, (reason, message, *retryable, *remains));
            Action::Again
        }
        // A refusal is never a success.
        Knowledge::Refused(Ending::Succeeded { .. }) => Action::LookUp,
        Knowledge::Active { name } => {
            if let Some(operation) = &mut draft.status.operation {
                operation.name = Some(name.clone());
            }
            let makes = matches!(attempt.action, ActionKind::Clone | ActionKind::CreateDisk);
            let unwanted = inputs.machine.is_deleting() && makes && !retained(inputs);
            if unwanted && !inputs.machine.has_flag(PAUSED) { Action::Cancel(name.clone()) } else { Action::Wait(None) }
        }
        Knowledge::Unsent | Knowledge::Unsure | Knowledge::Absent => unsettled(inputs, draft, &attempt),
    }
}

/// Nobody knows whether the agent has it.
fn unsettled(inputs: &Inputs<'_>, draft: &mut Draft<'_>, attempt: &Attempt) -> Action {
    let host = locate::host_of(inputs, Some(&attempt.cluster), Some(&attempt.node));
    let obstacle = match host {
        Some(host) => host.obstacle(),
        None => Some((
            "HostNotFound",
            format!(
                "PveHost {} (PVE cluster {}, node {}), where '{}' may be under way, is gone; add it again",
                attempt.host,
                attempt.cluster,
                attempt.node,
                attempt.action.as_str()
            ),
        )),
    };
    if inputs.machine.is_deleting() && retained(inputs) {
        return Action::Release;
    }
    // An operation can be looked up wherever the agent answers; ordering needs more.
    let asked = matches!(&inputs.known, Knowledge::Absent | Knowledge::Unsent);
    let answers = host.is_some_and(|h| h.link == crate::reconcile::Link::Up);
    if !asked && answers {
        return Action::LookUp;
    }
    // Nothing is begun any more for an object that goes, is paused, or was changed meanwhile so that the order would be another.
    let removes = matches!(attempt.action, ActionKind::Delete | ActionKind::DetachDisk | ActionKind::DeleteDisk);
    let stale = inputs.machine.is_deleting() && !removes;
    if asked && (stale || (attempt.action != ActionKind::Clone && attempt.generation != inputs.machine.metadata.generation)) {
        return dropped(draft, attempt);
    }
    // An agent that lost its journal knows nothing of the operation, but the VM carries its mark.
    if inputs.known == Knowledge::Absent && attempt.action == ActionKind::Clone && locate::marked(inputs).is_some() {
        return dropped(draft, attempt);
    }
    if let Some((reason, text)) = obstacle {
        draft.unknown(reason, text);
        return Action::Wait(None);
    }
    if inputs.machine.has_flag(PAUSED) {
        draft.not_ready("Paused", format!("nothing is done while annotation {PAUSED} is \"true\"; remove it to go on"));
        return Action::Wait(None);
    }
    draft.finalizer = true;
    match request(inputs, draft, attempt) {
        Some(request) => Action::Call(Box::new(request)),
        None => dropped(draft, attempt),
    }
}

/// The agent does not have it, and it is not sent any more.
fn dropped(draft: &mut Draft<'_>, attempt: &Attempt) -> Action {
    draft.status.operation = None;
    disks::not_done(&mut draft.status, attempt);
    Action::Again
}

fn succeeded(inputs: &Inputs<'_>, draft: &mut Draft<'_>, attempt: &Attempt, vmid: u32, uuid: &str) {
    let status = &mut draft.status;
    status.operation = None;
    status.failures.retain(|f| (f.action, &f.volume) != (attempt.action, &attempt.volume));
    status.last_success = Some(Success { action: attempt.action, time: inputs.now });
    // A spec that was edited meanwhile is not what the VM was given; its keys cannot be read back, so they are set again.
    let given = attempt.generation == inputs.machine.metadata.generation;
    match attempt.action {
        ActionKind::Clone => {
            status.created = true;
            status.seen = false;
            status.vmid = Some(vmid);
            status.uuid = Some(uuid.to_owned());
            status.configured_generation = attempt.generation;
            status.verified_generation = 0;
            status.cloud_init_hash = given.then(|| drift::cloud_init_hash(&inputs.machine.spec)).flatten();
            status.addresses = drift::addresses(&inputs.machine.spec);
            draft.condition("Created", true, "Created", format!("VM {vmid}"));
            draft.condition("Configured", true, "Configured", "");
        }
        ActionKind::Configure => {
            status.configured_generation = attempt.generation;
            status.verified_generation = 0;
            status.cloud_init_hash = given.then(|| drift::cloud_init_hash(&inputs.machine.spec)).flatten();
            status.addresses = drift::addresses(&inputs.machine.spec);
            draft.condition("Configured", true, "Configured", "");
        }
        ActionKind::Start => status.stopped_by = None,
        ActionKind::Shutdown => {}
        ActionKind::Delete => {
            status.created = false;
            status.uuid = None;
            disks::forget_vm(&mut status.disks);
        }
        _ => disks::succeeded(status, attempt, inputs.now),
    }
}

fn failed(inputs: &Inputs<'_>, draft: &mut Draft<'_>, attempt: &Attempt, what: (&str, &str, bool, bool)) {
    let (reason, message, retryable, remains) = what;
    draft.status.operation = None;
    // Removing what is gone already has reached its aim.
    if attempt.action == ActionKind::Delete && reason == reason::VM_NOT_FOUND {
        return;
    }
    if disks::failed(inputs, draft, attempt, reason, remains) {
        draft.status.failures.retain(|f| (f.action, &f.volume) != (attempt.action, &attempt.volume));
        return;
    }
    let volume = attempt.volume.as_deref();
    let before = inputs.machine.status.failure_with(attempt.action, volume).filter(|f| f.generation == attempt.generation);
    let disk = volume.and_then(|v| draft.status.disk(v)).map(|d| format!("disk {}: ", d.name)).unwrap_or_default();
    let status = &mut draft.status;
    let failure = Failure {
        action: attempt.action,
        volume: attempt.volume.clone(),
        host: attempt.host.clone(),
        reason: reason.to_owned(),
        message: format!("{disk}{message}"),
        retryable,
        count: before.map_or(0, |f| f.count).saturating_add(1),
        time: inputs.now,
        generation: attempt.generation,
    };
    let text = failure.message.clone();
    status.failures.retain(|f| (f.action, &f.volume) != (attempt.action, &attempt.volume));
    status.failures.push(failure);
    status.phase = Phase::Failed;
    // Undone, or never begun: the host does not hold the VM, so a machine that may be anywhere may be tried elsewhere.
    // Unless its disks wait for it there.
    let free = inputs.machine.spec.host.is_none() && !disks::bind_to_host(status);
    if attempt.action == ActionKind::Clone && !remains && free {
        (status.host, status.cluster, status.node, status.tenant) = (None, None, None, None);
    }
    let reason = condition_reason(attempt.action, reason);
    match attempt.action {
        ActionKind::Clone => draft.condition("Created", false, &reason, text.clone()),
        ActionKind::Configure => draft.condition("Configured", false, &reason, text.clone()),
        ActionKind::Start | ActionKind::Shutdown | ActionKind::Delete => {}
        _ => draft.condition("DisksReady", false, &reason, text.clone()),
    }
    draft.not_ready(&reason, text);
}

/// `STORAGE_FULL` becomes `CloneFailed.StorageFull`'s CamelCase brother `CloneFailedStorageFull`.
pub(super) fn condition_reason(action: ActionKind, reason: &str) -> String {
    // What is wrong with user data is said by its own word, whether the controller or the agent found it.
    if reason.starts_with("USER_DATA_") {
        return camel_reason(reason);
    }
    format!("{}Failed{}", camel_reason(action.as_str()), camel_reason(reason))
}

/// `STORAGE_FULL` as `StorageFull`.
pub(in crate::reconcile) fn camel_reason(reason: &str) -> String {
    let camel = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|c| c.to_ascii_uppercase().to_string() + &letters.as_str().to_ascii_lowercase()).unwrap_or_default()
    };
    reason.split(['_', '-']).map(camel).collect()
}

/// How long to wait after a failure: doubled each time up to a bound, and spread over a quarter of it so that many machines that failed
/// together do not come back together. The spread follows from the machine and the count, so that a decision stays a pure function.
pub(super) fn backoff(failure: &Failure, uid: &str) -> Duration {
    let (first, max) = if failure.retryable { (RETRY_FIRST, RETRY_MAX) } else { (MEND_FIRST, MEND_MAX) };
    let span = first.saturating_mul(1 << failure.count.saturating_sub(1).min(16)).min(max);
    let mut hash = Sha256::new();
    hash.update(uid);
    hash.update(failure.count.to_be_bytes());
    let byte = u32::from(hash.finalize()[0]);
    span.mul_f64(1.0 - f64::from(byte) / 1024.0)
}

/// Numbers a new attempt. It is stored before it is sent.
fn begin(inputs: &Inputs<'_>, draft: &mut Draft<'_>, action: ActionKind, host: &HostView, volume: Option<&str>) -> Attempt {
    let number = inputs.machine.status.attempt + 1;
    let attempt = Attempt {
        action,
        volume: volume.map(str::to_owned),
        attempt: number,
        host: host.name.clone(),
        cluster: host.cluster.clone(),
        node: host.node.clone(),
        request_id: format!("{}:{}:{number}", inputs.machine.metadata.uid, action.as_str()),
        generation: inputs.machine.metadata.generation,
        name: None,
    };
    draft.finalizer = true;
    draft.status.attempt = number;
    draft.status.operation = Some(Box::new(attempt.clone()));
    draft.status.phase = match action {
        ActionKind::Clone => Phase::Creating,
        ActionKind::Configure => Phase::Configuring,
        ActionKind::Start => Phase::Starting,
        ActionKind::Shutdown => Phase::Stopping,
        ActionKind::Delete => Phase::Deleting,
        _ if inputs.machine.is_deleting() => Phase::Deleting,
        _ => Phase::Configuring,
    };
    if draft.status.tenant.is_none() {
        draft.status.tenant = Some(inputs.machine.spec.tenant().to_owned());
    }
    attempt
}

/// Begins an attempt at anything but a clone.
pub(super) fn order(inputs: &Inputs<'_>, draft: &mut Draft<'_>, action: ActionKind, host: &HostView) -> Action {
    if let Some(due) = draft.must_wait_for(action) {
        return Action::Wait(Some(due));
    }
    begin_and_send(inputs, draft, action, host, None)
}

pub(super) fn begin_and_send(
    inputs: &Inputs<'_>,
    draft: &mut Draft<'_>,
    action: ActionKind,
    host: &HostView,
    volume: Option<&str>,
) -> Action {
    let attempt = begin(inputs, draft, action, host, volume);
    match request(inputs, draft, &attempt) {
        Some(request) => Action::Call(Box::new(request)),
        None => Action::Wait(None),
    }
}

/// Places the machine, if it is not, and begins a clone.
pub(super) fn clone(inputs: &Inputs<'_>, draft: &mut Draft<'_>, host: &HostView) -> Action {
    draft.status.host = Some(host.name.clone());
    draft.status.cluster = Some(host.cluster.clone());
    draft.status.node = Some(host.node.clone());
    draft.condition("Placed", true, "Placed", format!("on {}", host.name));
    if let Some((reason, text)) = host.obstacle().or_else(|| host.out_of_service()) {
        draft.not_ready(reason, text);
        return Action::Wait(None);
    }
    if let Some(text) = host.lacks(&inputs.machine.spec) {
        draft.not_ready("AgentTooOld", text);
        return Action::Wait(None);
    }
    draft.condition("Created", false, "Creating", "");
    draft.not_ready("Creating", "");
    begin_and_send(inputs, draft, ActionKind::Clone, host, None)
}

/// The call of an attempt; nothing when there is nothing left to order.
fn request(inputs: &Inputs<'_>, draft: &Draft<'_>, attempt: &Attempt) -> Option<Request> {
    let (machine, spec) = (inputs.machine, &inputs.machine.spec);
    let tenant = draft.tenant();
    let meta = v1::RequestMeta { tenant: tenant.clone(), request_id: attempt.request_id.clone(), controller_epoch: None, wait: None };
    if attempt.volume.is_some() {
        return disks::request(inputs, draft, attempt, meta);
    }
    let meta = Some(meta);
    let vm = draft.status.vmid.zip(draft.status.uuid.clone()).map(|(vmid, uuid)| v1::VmRef { vmid, uuid });
    Some(match attempt.action {
        ActionKind::Clone => {
            let source = match (spec.source.template, &spec.source.tags) {
                (Some(vmid), _) => v1::clone_source::Source::Vmid(vmid),
                (None, tags) => v1::clone_source::Source::Tags(v1::TagList { tags: tags.clone().unwrap_or_default() }),
            };
            let mode = if spec.clone_mode == CloneMode::Full { v1::CloneMode::Full } else { v1::CloneMode::Linked };
            Request::Clone(v1::CloneVmRequest {
                meta,
                source: Some(v1::CloneSource { source: Some(source) }),
                vmid: spec.vmid.unwrap_or(0),
                mode: mode.into(),
                storage: spec.storage.clone().unwrap_or_default(),
                pool: spec.pool.clone().unwrap_or_default(),
                owner: Some(v1::Owner { tenant, cluster: inputs.controller.to_owned(), machine_uid: machine.metadata.uid.clone() }),
                config: Some(drift::full_config(machine)),
            })
        }
        ActionKind::Configure => {
            let sighting = match locate::locate(inputs) {
                locate::Place::Found(sighting, _) => sighting,
                _ => return None,
            };
            let config = drift::difference(machine, &sighting.vm)?;
            Request::Configure(v1::ConfigureVmRequest { meta, vm: Some(vm?), config: Some(config) })
        }
        ActionKind::Start => Request::Start(v1::StartVmRequest { meta, vm: Some(vm?) }),
        ActionKind::Shutdown => {
            let timeout = disks::may_pull_plug(inputs, &draft.status).then_some(PULL_PLUG);
            Request::Shutdown(v1::ShutdownVmRequest { meta, vm: Some(vm?), timeout, force_stop: true })
        }
        ActionKind::Delete => Request::Delete(v1::DeleteVmRequest { meta, vm: Some(vm?), stop: true }),
        // Of a disk, which an attempt without a volume has none of.
        _ => return None,
    })
}
