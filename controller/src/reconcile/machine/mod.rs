//! `PveMachine`: load, decide, store, act, again, until there is nothing to do but wait.

pub(super) mod decide;
mod volumes;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use pvelet_proto::{reason, v1};
use tonic::Code;
use tracing::{debug, info};

use self::decide::{Action, Ending, Inputs, Knowledge, Request, VolumeSight, decide};
use super::{
    Fleet,
    index::Index,
    operation::{answered, knowledge},
    session::Session,
    tenant::Refusal,
    view::{VmView, machine_uid},
};
use crate::{
    agents::AgentError,
    crash::crash_point,
    epoch::Epoch,
    kind::{ADOPT, ActionKind, Attempt, MACHINE_FINALIZER, Machine, ObjectKey, ObjectRef, PveMachine, UserDataRef},
    store::{Event, Store, StoreError, UserDataError},
};

/// A machine takes a handful of steps between two waits; more means that two decisions undo each other.
const MAX_STEPS: usize = 24;

/// What a pass ended with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Something will wake it.
    Sleep,
    /// Look again at this moment.
    At(Timestamp),
    /// Look again once all hosts have been asked what they have; that may be so at this moment.
    Asked(Timestamp),
    /// The agent could not be asked properly; look again after a pause that grows.
    Backoff,
}

pub(super) struct Machines<S> {
    pub(super) store: Arc<S>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) index: Arc<Index>,
    pub(super) controller: String,
    pub(super) epoch: Epoch,
    /// One placement at a time, so that each sees what the one before took. Held while one is decided, not while it is stored.
    pub(super) placing: Mutex<()>,
}

impl<S: Store> Machines<S> {
    pub(super) async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StoreError> {
        let Some(mut machine) = self.store.get::<Machine>(key).await? else {
            self.index.remove(key);
            return Ok(Next::Sleep);
        };
        machine.status.not_after(Timestamp::now());
        let session = machine.status.cluster.as_ref().zip(machine.status.node.as_ref());
        let session = session.and_then(|(cluster, node)| self.fleet.session(cluster, node));
        if let Some(until) = session.and_then(|s| s.waited_for(Timestamp::now()))
            && machine.status.observed_generation == machine.metadata.generation
        {
            // What was told before holds until its host answers, or is known not to; both wake it.
            self.index.put(key, &machine);
            return Ok(Next::At(until));
        }
        let mut tenant = machine.tenant().to_owned();
        let about = ObjectRef { kind: "PveMachine".to_owned(), key: key.clone() };
        // What this pass itself has learned of the attempt under way.
        let mut learned: Option<Knowledge> = None;
        // What agents were asked about volumes since the last call.
        let mut seen = BTreeMap::new();
        let mut finalizer = false;
        let mut stored = true;
        for _ in 0..MAX_STEPS {
            // What is under way is followed to its end, and what is to go goes.
            if machine.status.operation.is_none() && !machine.is_deleting() {
                match self.allowed(&machine) {
                    Ok(whose) => tenant = whose,
                    Err((reason, message)) => {
                        self.index.put(key, &machine);
                        super::refuse(&*self.store, machine, reason, message).await?;
                        return Ok(Next::Sleep);
                    }
                }
            }
            // Each answer of the store has the spec as it was written.
            machine.spec.tenant = Some(tenant.clone());
            self.index.put(key, &machine);
            if let Some(until) = self.unasked(&machine) {
                return Ok(Next::Asked(until));
            }
            let known = learned.clone().or_else(|| machine.status.operation.as_ref().and_then(|a| self.fleet.knowledge(a)));
            let decision = self.decide_in_turn(key, &machine, known.unwrap_or(Knowledge::Unsure), &seen);
            let begun =
                decision.status.operation.as_ref().map(|a| &a.request_id) != machine.status.operation.as_ref().map(|a| &a.request_id);
            if begun && stored && self.still_lacks(&machine, &decision.action).await {
                self.index.put(key, &machine);
                return Ok(Next::Backoff);
            }
            finalizer |= decision.finalizer;
            let before = std::mem::replace(&mut machine.status, decision.status);
            if machine.status.created && !before.created {
                // Its namesakes may have been told to take over the same VM.
                self.fleet.taken(machine.status.host.as_deref().unwrap_or_default(), machine.vm_name());
            }
            if decision.action == Action::Again {
                // Stored together with what is decided next, and in any case before the next call.
                (learned, stored) = (None, false);
                if machine.status.last_success != before.last_success {
                    self.refresh(&machine).await;
                }
                continue;
            }
            (machine, stored) = (self.store.update_status(&machine).await?, true);
            self.tell(&about, &before, &machine);
            self.index.put(key, &machine);
            // After the placement and before the call: a finalizer never stands without the status that says what it is for.
            if finalizer && !machine.metadata.finalizers.iter().any(|f| f == MACHINE_FINALIZER) {
                let mut finalizers = machine.metadata.finalizers.clone();
                finalizers.push(MACHINE_FINALIZER.to_owned());
                machine = self.store.set_finalizers(&machine, finalizers).await?;
                crash_point!("machine.finalizer.stored");
            }
            if begun {
                learned = Some(Knowledge::Unsent);
                crash_point!("machine.attempt.stored");
            } else {
                crash_point!("machine.status.stored");
            }
            match decision.action {
                Action::Again => {}
                Action::Wait(None) => return Ok(Next::Sleep),
                Action::Wait(Some(at)) => return Ok(Next::At(at)),
                Action::LookUp => match self.look_up(&machine).await {
                    Some(known) => learned = Some(known),
                    None => return Ok(Next::Backoff),
                },
                Action::Observe { cluster, node, volume } => match self.observe(&machine, &cluster, &node, &volume).await {
                    Some(sight) => drop(seen.insert((node, volume), sight)),
                    None => return Ok(Next::Backoff),
                },
                Action::Call(request) => {
                    seen.clear();
                    let unsent = learned == Some(Knowledge::Unsent);
                    match self.call(&machine, *request, unsent).await {
                        Some(known) => learned = Some(known),
                        None => return Ok(Next::Backoff),
                    }
                    crash_point!("machine.call.answered");
                }
                Action::Cancel(operation) => {
                    self.cancel(&machine, operation).await;
                    return Ok(Next::Sleep);
                }
                Action::Release => {
                    let mut finalizers = machine.metadata.finalizers.clone();
                    finalizers.retain(|f| f != MACHINE_FINALIZER);
                    self.store.set_finalizers(&machine, finalizers).await?;
                    crash_point!("machine.released");
                    return Ok(Next::Sleep);
                }
            }
        }
        debug!(object = %about, "no rest after {MAX_STEPS} steps");
        Ok(Next::Backoff)
    }

    /// Whose the machine is; or why nothing new is begun with it.
    fn allowed(&self, machine: &PveMachine) -> Result<String, Refusal> {
        if let Some(problem) = super::invalid(machine) {
            return Err((super::INVALID, problem));
        }
        let namespace = machine.key().namespace;
        super::tenant::of(machine, &namespace, self.store.tenancy(&namespace))
    }

    /// Until when hosts are asked what they have before a machine is placed: the first that answer would get more than their share.
    fn unasked(&self, machine: &PveMachine) -> Option<Timestamp> {
        let status = &machine.status;
        let unplaced = status.host.is_none() && !status.created && machine.spec.host.is_none() && !machine.is_deleting();
        if unplaced { self.fleet.asking(Timestamp::now()) } else { None }
    }

    /// Decides. A placement counts for those that are decided after it, though it is stored later; where it cannot be, the machine is looked at
    /// again, and what it took is free.
    fn decide_in_turn(
        &self,
        key: &ObjectKey,
        machine: &PveMachine,
        known: Knowledge,
        volumes: &BTreeMap<(String, String), VolumeSight>,
    ) -> decide::Decision {
        if machine.status.host.is_some() {
            return self.decide(machine, known, volumes);
        }
        let _turn = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        let decision = self.decide(machine, known, volumes);
        if decision.status.host.is_some() {
            self.index.put(key, &PveMachine { status: decision.status.clone(), ..machine.clone() });
        }
        decision
    }

    fn decide(&self, machine: &PveMachine, known: Knowledge, volumes: &BTreeMap<(String, String), VolumeSight>) -> decide::Decision {
        let status = &machine.status;
        let unplaced = status.host.is_none() && !status.created;
        let candidates = if unplaced { self.fleet.candidates(machine, &self.index) } else { Vec::new() };
        let orphan = if unplaced {
            let wanted = machine.metadata.annotations.get(ADOPT).map(String::as_str);
            self.fleet.orphan(machine.vm_name(), machine.tenant(), wanted, |vm| self.is_somebodys(vm))
        } else {
            None
        };
        let (hosts, sightings) = self.fleet.look(&machine.metadata.uid, status, orphan.as_ref());
        decide(&Inputs {
            machine,
            controller: &self.controller,
            hosts: &hosts,
            sightings: &sightings,
            candidates: &candidates,
            orphan: orphan.as_ref(),
            known,
            volumes,
            stop_order: self.fleet.stop_order(status),
            now: Timestamp::now(),
        })
    }

    /// Whether a machine exists for which a VM was made, or that has taken it over: the mark stays as it was.
    fn is_somebodys(&self, vm: &VmView) -> bool {
        self.index.has_uuid(&vm.uuid) || machine_uid(vm).is_none_or(|uid| self.index.has_uid(uid) || self.store.is_unreadable(uid))
    }

    fn session(&self, attempt: &Attempt) -> Option<Arc<Session>> {
        self.fleet.session(&attempt.cluster, &attempt.node)
    }

    /// Asks the agent for the attempt's operation.
    async fn look_up(&self, machine: &PveMachine) -> Option<Knowledge> {
        let attempt = machine.status.operation.as_ref()?;
        let session = self.session(attempt)?;
        let found = session.look_up(machine.tenant(), &attempt.request_id).await;
        found.inspect_err(|e| info!(machine = %machine.key(), "cannot ask for the operation: {e}")).ok()
    }

    /// Sends the attempt. Nothing comes back when it is not known what became of it.
    async fn call(&self, machine: &PveMachine, request: Request, unsent: bool) -> Option<Knowledge> {
        let attempt = machine.status.operation.as_ref()?;
        let session = self.session(attempt)?;
        let request = match self.complete(machine, request).await {
            Ok(request) => request,
            Err(error) => {
                info!(machine = %machine.key(), action = attempt.action.as_str(), "{error}");
                let (reason, message) = (error.reason().to_owned(), error.to_string());
                let refused = Knowledge::Refused(Ending::Failed { reason, message, retryable: true, remains: false });
                if unsent {
                    return Some(refused);
                }
                // It may have been sent while there still was what is missing now.
                return Some(self.look_up(machine).await?).map(|known| if known == Knowledge::Absent { refused } else { known });
            }
        };
        let error = match self.send(&session, request).await {
            Ok(operation) => {
                session.operation(&operation);
                return self.fleet.knowledge(attempt).or_else(|| Some(knowledge(&session.name, &operation)));
            }
            Err(e) => e,
        };
        info!(machine = %machine.key(), action = attempt.action.as_str(), "{error}");
        if error.is(reason::REQUEST_ID_REUSED) {
            // Sent before with another body, by this process or a former one: that one counts.
            return self.look_up(machine).await;
        }
        let why = answered(&error)?;
        if !unsent {
            // It may have been sent before and be under way, though now it is refused.
            match self.look_up(machine).await? {
                Knowledge::Absent if error.retryable() => return None,
                Knowledge::Absent => {}
                known => return Some(known),
            }
        }
        let retryable = error.retryable() || error.code == Code::FailedPrecondition;
        Some(Knowledge::Refused(Ending::Failed { reason: why, message: error.text(), retryable, remains: false }))
    }

    /// Whether a clone would fail for want of the same user data as the last one: then nothing has changed, nothing is begun, and nothing is written.
    async fn still_lacks(&self, machine: &PveMachine, action: &Action) -> bool {
        let failure = machine.status.failure_of(ActionKind::Clone).filter(|f| f.generation == machine.metadata.generation);
        let lacked = failure.filter(|f| UserDataError::REASONS.contains(&f.reason.as_str()));
        let clones = matches!(action, Action::Call(request) if matches!(**request, Request::Clone(_)));
        let (Some(lacked), Some(from), true) = (lacked, user_data(machine), clones) else { return false };
        let error = self.store.user_data(&machine.key().namespace, from).await.err();
        error.is_some_and(|e| (e.reason(), e.to_string().as_str()) == (lacked.reason.as_str(), lacked.message.as_str()))
    }

    /// The request with what is not decided by: the user data of a VM that is made.
    async fn complete(&self, machine: &PveMachine, mut request: Request) -> Result<Request, UserDataError> {
        if let (Request::Clone(clone), Some(from)) = (&mut request, user_data(machine)) {
            let data = self.store.user_data(&machine.key().namespace, from).await?;
            clone.config.get_or_insert_default().cloud_init.get_or_insert_default().user_data = Some(data);
        }
        Ok(request)
    }

    async fn send(&self, session: &Session, request: Request) -> Result<v1::Operation, AgentError> {
        let (client, epoch) = (&session.client, self.epoch.to_message(&self.controller));
        let with_epoch = |meta: &mut Option<v1::RequestMeta>| {
            if let Some(meta) = meta {
                meta.controller_epoch = Some(epoch.clone());
            }
        };
        let (call, operation) = match request {
            Request::Clone(mut r) => {
                with_epoch(&mut r.meta);
                ("CloneVm", client.answer(client.vm().clone_vm(r).await)?.operation)
            }
            Request::Configure(mut r) => {
                with_epoch(&mut r.meta);
                ("ConfigureVm", client.answer(client.vm().configure_vm(r).await)?.operation)
            }
            Request::Start(mut r) => {
                with_epoch(&mut r.meta);
                ("StartVm", client.answer(client.vm().start_vm(r).await)?.operation)
            }
            Request::Shutdown(mut r) => {
                with_epoch(&mut r.meta);
                ("ShutdownVm", client.answer(client.vm().shutdown_vm(r).await)?.operation)
            }
            Request::Delete(mut r) => {
                with_epoch(&mut r.meta);
                ("DeleteVm", client.answer(client.vm().delete_vm(r).await)?.operation)
            }
            request => volumes::send(client, request, epoch.clone()).await?,
        };
        operation.ok_or_else(|| client.incomplete(call, "operation"))
    }

    async fn cancel(&self, machine: &PveMachine, name: String) {
        let Some(attempt) = &machine.status.operation else { return };
        let Some(session) = self.session(attempt) else { return };
        let meta = v1::RequestMeta {
            tenant: machine.tenant().to_owned(),
            request_id: format!("{}:cancel", attempt.request_id),
            controller_epoch: Some(self.epoch.to_message(&self.controller)),
            wait: None,
        };
        let request = v1::CancelOperationRequest { meta: Some(meta), name };
        if let Err(e) = session.client.answer(session.client.operation().cancel_operation(request).await) {
            // It ends by itself then, and what it made is removed.
            info!(machine = %machine.key(), "cannot cancel: {e}");
        }
    }

    /// Sees the VM as it is after an operation.
    async fn refresh(&self, machine: &PveMachine) {
        let status = &machine.status;
        let (Some(vmid), Some(uuid), Some(cluster), Some(node)) = (status.vmid, &status.uuid, &status.cluster, &status.node) else {
            return;
        };
        if let Some(session) = self.fleet.session(cluster, node) {
            session.refresh(vmid, uuid).await;
        }
    }

    fn tell(&self, about: &ObjectRef, before: &crate::kind::MachineStatus, machine: &PveMachine) {
        let ready = |conditions: &[crate::kind::Condition]| {
            conditions.iter().find(|c| c.kind == "Ready").map(|c| (c.reason.clone(), c.message.clone())).unwrap_or_default()
        };
        let (old, new) = (ready(&before.conditions), ready(&machine.status.conditions));
        let status = &machine.status;
        if before.host.is_none()
            && let Some(host) = &status.host
        {
            self.store.record_event(about, Event { warning: false, reason: "Placed", message: format!("placed on {host}") });
        }
        let fresh = status.failures.iter().find(|f| !before.failures.contains(f));
        if let Some(failure) = fresh {
            let message = failure.message.clone();
            self.store.record_event(about, Event { warning: true, reason: "AttemptFailed", message });
        } else if old.0 != new.0 && !new.0.is_empty() {
            let message = if new.1.is_empty() { new.0 } else { format!("{}: {}", new.0, new.1) };
            self.store.record_event(about, Event { warning: false, reason: "StateChanged", message });
        }
    }
}

/// Where a machine's user data is, if it has any.
fn user_data(machine: &PveMachine) -> Option<&UserDataRef> {
    machine.spec.cloud_init.as_ref()?.user_data.as_ref()
}
