//! DeleteVm: a VM and its disks, and the proof that nothing is left. A destroy task that could not remove a disk only warns.

use std::{collections::BTreeSet, sync::Arc};

use prost::Message;
use pvelet_proto::v1;
use tokio::time::Instant;

use super::{
    Call, Inner, Limit,
    failure::{Failed, lock_timeout},
    power::Wish,
    select,
    task::{Backoff, transient},
    user_data::Sweep,
    verdict::{Found, judge},
    view,
};
use crate::{
    crash_point,
    error::Error,
    host::pve::{DestroyCall, RunState, TaskEnd, TaskState, TaskUpdate, Upid, VmRecord},
    operation::{Begin, Begun, Guards, Handle, Lane, State},
    volume::retained,
};

/// What forbids a deletion, whoever asks.
pub(super) fn forbidden(vm: &VmRecord, stop: bool) -> Result<(), Error> {
    let vmid = vm.vmid;
    if vm.config.flag("protection") {
        return Err(Error::VmProtected { vmid });
    }
    if vm.ha.is_some() {
        return Err(Error::VmHaManaged { vmid });
    }
    if vm.replicated {
        return Err(Error::VmReplicated { vmid });
    }
    // A suspended VM may be deleted; PVE removes its saved state.
    if let Some(lock) = vm.config.lock().filter(|lock| *lock != "suspended") {
        return Err(Error::VmLocked { vmid, lock: lock.to_owned() });
    }
    if !stop && vm.run != RunState::Stopped {
        return Err(Error::VmRunning { vmid });
    }
    Ok(())
}

/// Volumes that a destroy task says it could not remove.
pub(super) fn left_by_log(lines: &[String]) -> BTreeSet<String> {
    let quoted = |line: &str, before: &str| Some(line.split_once(before)?.1.split_once('\'')?.0.to_owned());
    lines.iter().filter_map(|l| quoted(l, "Could not remove disk '").or_else(|| quoted(l, "path and owner of volume '"))).collect()
}

impl Inner {
    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_delete(this: &Arc<Self>, call: &Call, request: v1::DeleteVmRequest) -> Result<String, Error> {
        let uuid = call.target.uuid.to_ascii_lowercase();
        let vm = match this.target(call).await {
            // Gone already, told by a node with quorum, and it was known: what was asked for is so.
            Err(Error::VmNotFound { .. }) if this.ops.knew(call.target.vmid, &uuid, false) && this.nowhere(&uuid) => None,
            // Its VMID is another VM's by now.
            Err(Error::UuidMismatch { ref found, .. })
                if !found.is_empty() && this.ops.knew(call.target.vmid, &uuid, true) && this.nowhere(&uuid) =>
            {
                None
            }
            found => Some(found?),
        };
        let mut volumes = Vec::new();
        if let Some(vm) = &vm {
            forbidden(vm, request.stop)?;
            if vm.config.is_template() {
                let clones = select::linked_clones(&this.pve.inventory().vms, vm.vmid);
                if !clones.is_empty() {
                    let detail = format!("VMs {}", clones.iter().map(u32::to_string).collect::<Vec<_>>().join(", "));
                    return Err(Error::TemplateInUse { vmid: vm.vmid, detail });
                }
            }
            let retained = retained::by_name(vm);
            if !retained.is_empty() {
                return Err(Error::VolumesRetained { vmid: vm.vmid, volumes: retained });
            }
            volumes = view::own_volumes(vm);
        }
        let vmid = call.target.vmid;
        let begin = Begin {
            caller: &call.caller,
            meta: &call.meta,
            kind: call.kind,
            body: call.body.clone(),
            target: v1::VmRef { vmid, uuid: uuid.clone() },
            guards: Guards { exclusive: vec![Guards::vm(vmid)], shared: Vec::new() },
            lease: None,
            state: State { vmid, uuid, volumes, ..State::default() },
        };
        match this.ops.begin(begin)? {
            Begun::Existing(name) => Ok(name),
            Begun::New(h) => {
                let name = h.name().to_owned();
                let inner = Arc::clone(this);
                let gone = vm.is_none();
                Self::spawn(this, h.clone(), async move {
                    if h.written().await.is_err() {
                        return;
                    }
                    crash_point!("delete.intent_written");
                    if gone { h.finish(Ok(()), None).await } else { inner.run_delete(&h, &request, true).await }
                });
                Ok(name)
            }
        }
    }

    fn nowhere(&self, uuid: &str) -> bool {
        self.pve.inventory().by_uuid(uuid).is_empty()
    }

    /// Carries it out, or goes on with it.
    pub(super) async fn run_delete(&self, h: &Handle, request: &v1::DeleteVmRequest, fresh: bool) {
        let limit = Self::deadline(self.ops.settings().deadlines.delete);
        let result = match h.commit("PVE is being asked") {
            Ok(()) => Box::pin(self.delete(h, request, limit, fresh)).await,
            Err(cancelled) => Err(cancelled),
        };
        // Also after a failure: the VM may be gone all the same, and its VMID must rest.
        let gone = !matches!(self.pve.read_vm(h.state().vmid).await, Ok(Some(_)));
        if gone {
            self.user_data_goes(h, Sweep::Gone(&h.state().uuid)).await;
        }
        h.finish(result, gone.then_some(self.settings.lease_quarantine)).await;
        crash_point!("delete.end_written");
    }

    async fn delete(&self, h: &Handle, request: &v1::DeleteVmRequest, limit: Limit, fresh: bool) -> Result<(), Error> {
        let state = h.state();
        let (vmid, id) = (state.vmid, state.vmid.to_string());
        let mut backoff = Backoff::new(self.settings.lock_pause);
        // A destroy task of the agent's last run goes first.
        let mut found = None;
        if !fresh {
            found = match state.task("destroy").and_then(|t| Upid::parse(&t.upid)) {
                Some(upid) => Some(upid),
                None => self.find_lost(h, &["qmdestroy"], &id, h.accepted_at().saturating_sub(1), None).await?,
            };
        }
        loop {
            let called = Instant::now();
            let mut place = None;
            let upid = match found.take() {
                Some(upid) => upid,
                None => {
                    let mut vm = match self.same_vm(h, vmid, &state.uuid, limit).await {
                        Ok(vm) => vm,
                        // Gone without a task that is known: somebody else removed it, or the agent died between its task and the end.
                        Err(Error::VmNotFound { .. }) if !fresh => return self.nothing_left(h, &[], limit).await,
                        Err(error) => return Err(error),
                    };
                    forbidden(&vm, request.stop)?;
                    if vm.run != RunState::Stopped {
                        Box::pin(self.power(h, Wish::Stop, limit)).await?;
                        crash_point!("delete.stopped");
                        // Somebody may have attached a volume meanwhile.
                        vm = self.same_vm(h, vmid, &state.uuid, limit).await?;
                    }
                    self.no_volume_retained(&vm).await?;
                    if let Err(error) = self.note_user_data(&vm).await {
                        h.warn(format!("its user data will be left: {error}"));
                    }
                    let storage = state.volumes.first().and_then(|v| v.split(':').next()).unwrap_or_default().to_owned();
                    place = Some(h.enter(&storage, Lane::Short, limit.at, limit.after).await?);
                    h.step("deleting");
                    let call = DestroyCall::default();
                    self.start_task(h, "destroy", &["qmdestroy"], &id, limit, || self.pve.destroy_vm(vmid, &call)).await?
                }
            };
            crash_point!("delete.called");
            let followed = self.follow(h, &upid, called, limit, false).await?;
            crash_point!("delete.task_ended");
            drop(place);
            // Without quorum the list of VMs proves nothing, neither that it is there nor that it is gone.
            self.wait_until_writable(h, limit).await?;
            match self.same_vm(h, vmid, &state.uuid, limit).await {
                // What a destroy leaves that is killed at its very end: a lock and nothing else. It names nobody, and it is not gone.
                Err(Error::UuidMismatch { found, .. }) if found.is_empty() => {
                    let message = format!(
                        "the removal of VM {vmid} was interrupted and its config is left with a lock only; end it with `qm destroy {vmid} --skiplock`"
                    );
                    return Err(Error::PveFailed { message, upid: Some(upid.text.clone()) });
                }
                Err(Error::VmNotFound { .. } | Error::UuidMismatch { .. }) => return self.nothing_left(h, &followed.lines, limit).await,
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            match &followed.end {
                TaskEnd::Error(message) => match lock_timeout(message) {
                    Some(what) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                    None => {
                        let storage = state.volumes.first().and_then(|v| v.split(':').next()).unwrap_or_default();
                        let (lines, node) = (&followed.lines, self.settings.node.as_str());
                        return Err(Failed { vmid, upid: &upid.text, message, lines, storage, node }.error());
                    }
                },
                TaskEnd::Ok | TaskEnd::Warnings(_) | TaskEnd::NoEndLine => {
                    let said = if followed.end == TaskEnd::NoEndLine { "was killed" } else { "ended" };
                    return Err(Error::PveFailed {
                        message: format!("the destroy task {said}, yet VM {vmid} is still there"),
                        upid: Some(upid.text),
                    });
                }
            }
        }
    }

    /// Proves that no volume of the VM is left. One that PVE left because of a lock is freed, since the VM's config named it as its own
    /// before it was destroyed. Errors: `DiskLeft`.
    async fn nothing_left(&self, h: &Handle, lines: &[String], limit: Limit) -> Result<(), Error> {
        let state = h.state();
        let vmid = state.vmid;
        let named = left_by_log(lines);
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let mut left: BTreeSet<String> = BTreeSet::new();
            let mut busy = None;
            for volume in &state.volumes {
                let storage = volume.split(':').next().unwrap_or_default();
                match self.pve.volumes(storage, vmid).await {
                    Ok(volumes) if volumes.iter().any(|v| v.volid == *volume) => match self.free_own(vmid, volume, limit).await {
                        Ok(()) => {}
                        Err(Error::LockTimeout { what }) => {
                            left.insert(volume.clone());
                            busy = Some(what);
                        }
                        Err(error) => {
                            h.warn(format!("volume {volume} could not be removed: {error}"));
                            left.insert(volume.clone());
                        }
                    },
                    Ok(_) => {}
                    Err(error) if transient(&error) => {
                        left.insert(volume.clone());
                        busy = Some(error.to_string());
                    }
                    // The storage cannot be asked: what PVE's log says is all there is.
                    Err(error) => {
                        if named.contains(volume) || lines.is_empty() {
                            h.warn(format!("whether volume {volume} is left could not be told: {error}"));
                            left.insert(volume.clone());
                        }
                    }
                }
            }
            crash_point!("delete.volumes_checked");
            match busy {
                _ if left.is_empty() => return Ok(()),
                Some(what) if !limit.over() => {
                    let disk_left = Error::DiskLeft { vmid, volumes: left.into_iter().collect() };
                    let tried = self.wait_for_lock(h, &what, &mut backoff, limit).await;
                    tried.map_err(|e| if matches!(e, Error::LockTimeout { .. }) { disk_left } else { e })?;
                }
                _ => return Err(Error::DiskLeft { vmid, volumes: left.into_iter().collect() }),
            }
        }
    }

    /// Frees a volume that was the deleted VM's own, unless a VM has that VMID again.
    async fn free_own(&self, vmid: u32, volume: &str, limit: Limit) -> Result<(), Error> {
        // Or a container: its volumes may have the very same names.
        if self.pve.read_vm(vmid).await?.is_some() || self.writable()?.vmids.contains_key(&vmid) {
            return Err(Error::VmidInUse { vmid, node: None });
        }
        self.not_a_volume(volume).await?;
        let Some(upid) = self.pve.free_volume(volume).await? else { return Ok(()) };
        let mut updates = self.pve.follow_task(&upid);
        let mut end = None;
        let timeout = |_| limit.timeout(format!("PVE's task {upid} still runs"));
        while let Some(update) = tokio::time::timeout_at(limit.at, updates.recv()).await.map_err(timeout)? {
            if let TaskUpdate::End(e) = update {
                end = Some(e);
            }
        }
        if let Some(TaskEnd::Error(message)) = end {
            return Err(match lock_timeout(&message) {
                Some(what) => Error::LockTimeout { what },
                None => Error::PveFailed { message, upid: Some(upid.text) },
            });
        }
        let storage = volume.split(':').next().unwrap_or_default();
        if self.pve.volumes(storage, vmid).await?.iter().any(|v| v.volid == volume) {
            return Err(Error::PveFailed { message: "it is still there".to_owned(), upid: Some(upid.text) });
        }
        Ok(())
    }

    /// Removes the VM of a clone that failed, if one came into being after all.
    pub(super) async fn remove_stray(&self, operation: uuid::Uuid, vmid: u32) -> Result<(), Error> {
        let Found::Ours(vm) = judge(self.pve.read_vm(vmid).await?, operation, &self.settings.node) else { return Ok(()) };
        self.writable()?;
        // Only one that was never bound: a bound one was whole, and whoever has it may have come to like it.
        if view::bound_mark(&vm).is_some() || vm.config.lock().is_some() || vm.run != RunState::Stopped {
            return Err(Error::NotOurs { what: format!("VM {vmid}, whose clone failed,") });
        }
        self.no_volume_retained(&vm).await?;
        tracing::warn!(vmid, %operation, "removing the VM of a failed clone");
        let upid = self.pve.destroy_vm(vmid, &DestroyCall::default()).await?;
        let mut updates = self.pve.follow_task(&upid);
        while updates.recv().await.is_some() {}
        match self.pve.task(&upid).await? {
            TaskState::Ended(TaskEnd::Error(message)) => Err(Error::PveFailed { message, upid: Some(upid.text) }),
            _ => Ok(()),
        }
    }
}

/// A journalled request.
pub(super) fn decode(request: &[u8]) -> Result<v1::DeleteVmRequest, Error> {
    v1::DeleteVmRequest::decode(request).map_err(|e| Error::Internal(format!("the journalled request cannot be read: {e}")))
}
