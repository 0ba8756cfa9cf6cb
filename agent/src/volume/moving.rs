//! MoveVolume. A detached volume is copied under its own name and then removed where it was; an attached one is moved by PVE, which gives it
//! a name of the VM's. In between there are two volumes: the one without a label, or the one that no slot holds, is the one to remove.

use std::sync::Arc;

use pvelet_proto::{reason, v1, volume::VolumeId};
use tokio::time::Instant;

use super::{
    Plan, begin,
    find::{self, Volume},
    hold::in_use,
    tenant_of,
    uses::{self, How, Use},
};
use crate::{
    crash_point,
    error::Error,
    host::{
        pve::{ClusterLock, ConfigCall, MoveCall, TaskEnd},
        storage::{At, Source, StorageConfig},
    },
    operation::{Handle, Lane, VolumeState},
    vm::{
        Call, Inner, Limit,
        failure::{Failed, lock_timeout},
        task::Backoff,
    },
};

/// A move under way.
struct Move {
    id: VolumeId,
    from: At,
    target: StorageConfig,
    format: String,
    label: String,
    lock: ClusterLock,
}

impl Inner {
    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_move_volume(this: &Arc<Self>, call: &Call, request: v1::MoveVolumeRequest) -> Result<String, Error> {
        let (id, storage) = find::reference(request.volume.as_ref(), "volume")?;
        pvelet_proto::id::storage(&request.storage).map_err(|e| Error::invalid("storage", reason::INVALID_FIELD, e.to_string()))?;
        this.writable()?;
        let volume = this.own_volume(id, &storage, tenant_of(call)).await?;
        let size = this.pve.volume(&volume.volid()).await?.map_or(0, |v| v.size);
        let target = this.target_storage(&request.storage, size).await?;
        let format = this.moved_format(&volume, &target, &request.format)?;
        let uses = this.uses(&volume);
        let mut plan = Plan::of(&volume).with_vm(&uses);
        plan.done = target.id == volume.at.storage.id && format == volume.at.format;
        if !plan.done {
            this.may_be_moved(&volume, &uses).await?;
            if let Some(there) = uses.iter().find(|u| u.how == How::Attached) {
                this.may_change_vm(call, there)?;
                plan.state.slot.clone_from(&there.slot);
            } else {
                plan.state.target_name = find::names(&target.kind, this.settings.volumes.owner_vmid, id, &format).1;
            }
            plan.state.target_storage = target.id;
        }
        begin(this, call, plan)
    }

    fn moved_format(&self, volume: &Volume, target: &StorageConfig, wanted: &str) -> Result<String, Error> {
        if wanted.is_empty() && !self.store.abilities(target).formats.contains(&volume.at.format.as_str()) {
            return Ok("raw".to_owned());
        }
        self.format_on(target, if wanted.is_empty() { &volume.at.format } else { wanted })
    }

    /// Errors: `VolumeInUse`, `VolumeHasSnapshots`.
    async fn may_be_moved(&self, volume: &Volume, uses: &[Use]) -> Result<(), Error> {
        if let Some(other) = uses.iter().find(|u| u.how != How::Attached) {
            return Err(in_use(volume.id, other, "delete the VM's snapshot, restart the VM, or detach the volume first"));
        }
        let snapshots = self.snapshot_names(volume).await?;
        if snapshots.is_empty() {
            return Ok(());
        }
        Err(Error::VolumeHasSnapshots { id: volume.id.to_string(), snapshots, why: "which do not move with it" })
    }

    /// Moves it, or goes on with that.
    pub(super) async fn run_move_volume(
        &self,
        h: &Handle,
        request: &v1::MoveVolumeRequest,
        limit: Limit,
        fresh: bool,
    ) -> Result<(), Error> {
        let state = h.state().volume;
        let id = Self::volume_id(&state)?;
        let source = self.volume_storage(&state.storage).await?;
        let target = self.volume_storage(&state.target_storage).await?;
        let shared = if source.shared { &source } else { &target };
        let lock = self.lock_volume(h, shared, id, limit).await?;
        self.pve.refresh().await?;
        self.writable()?;
        let from = find::at(&source, &state.name);
        let volume = Volume { id, at: from.clone(), label: None };
        let format = self.moved_format(&volume, &target, &request.format)?;
        let a_move = Move { id, from, target, format, label: state.label.clone(), lock };
        if state.slot.is_empty() {
            Box::pin(self.move_detached(h, &a_move, &state, limit, fresh)).await
        } else {
            Box::pin(self.move_attached(h, &a_move, &state.slot, limit, fresh)).await
        }
    }

    async fn move_detached(&self, h: &Handle, m: &Move, state: &VolumeState, limit: Limit, fresh: bool) -> Result<(), Error> {
        let to = find::at(&m.target, &state.target_name);
        if !state.copied {
            if !fresh {
                // Not whole, and without a label: this operation's own, of which nothing is lost.
                if state.asked {
                    self.free_unlabelled(h, &to, limit).await?;
                }
                return Err(Error::AgentRestarted);
            }
            if let Err(error) = Box::pin(self.copy_over(h, m, &to, limit)).await {
                // Before PVE was asked, what may have that name is not this operation's to remove.
                if h.state().volume.asked {
                    h.undo(&error).await?;
                    self.take_back(h, &to).await;
                }
                return Err(error);
            }
            crash_point!("move_volume.copied");
            h.save(|state| state.volume.copied = true).await?;
        }
        // Whoever got it meanwhile, by whichever way, writes to it: then it stays the volume, and the copy is none.
        if let Err(error) = self.nobody_has(m).await {
            // After a restart it may be removed where it was already: only what is proven is undone.
            if fresh || matches!(error, Error::VolumeInUse { .. }) {
                h.undo(&error).await?;
                self.take_back(h, &to).await;
            }
            return Err(error);
        }
        self.write_label(&to, &m.label).await?;
        crash_point!("move_volume.labelled");
        self.take_label_off(&m.from).await?;
        self.free_proven(h, &m.from, limit).await?;
        crash_point!("move_volume.source_freed");
        Ok(())
    }

    /// Errors: `VolumeInUse`; `LockTimeout` when another host may have it.
    async fn nobody_has(&self, m: &Move) -> Result<(), Error> {
        if m.lock.is_lost() {
            return Err(Error::LockTimeout { what: format!("volume {}", m.id) });
        }
        self.pve.refresh().await?;
        match self.uses(&Volume { id: m.id, at: m.from.clone(), label: None }).first() {
            Some(first) => Err(in_use(m.id, first, "detach it first")),
            None => Ok(()),
        }
    }

    /// What a volume was moved from is nobody's from now on, whatever hinders its removal: two with one label are none.
    async fn take_label_off(&self, from: &At) -> Result<(), Error> {
        if self.store.labels(&from.storage).await?.contains_key(&from.name) {
            self.store.set_label(from, None).await?;
        }
        Ok(())
    }

    /// Copies the volume to where it is to be.
    async fn copy_over(&self, h: &Handle, m: &Move, to: &At, limit: Limit) -> Result<(), Error> {
        let volume = Volume { id: m.id, at: m.from.clone(), label: None };
        let uses = self.uses(&volume);
        if let Some(first) = uses.first() {
            return Err(in_use(m.id, first, "detach it first"));
        }
        self.may_be_moved(&volume, &uses).await?;
        if self.store.labels(&m.from.storage).await?.get(&m.from.name) != Some(&m.label) {
            return Err(Error::NotOurs { what: format!("volume {} has changed hands meanwhile: it", m.id) });
        }
        let not_found = || Error::VolumeNotFound { id: m.id.to_string(), storage: m.from.storage.id.clone() };
        let size = self.pve.volume(&volume.volid()).await?.ok_or_else(not_found)?.size;
        let at = self.allocate_volume(h, &m.target, m.id, (&m.format, size), limit).await?;
        crash_point!("move_volume.allocated");
        if at.name != to.name {
            return Err(Error::Internal(format!("{} was made where {} was meant", at.name, to.name)));
        }
        self.copy_volume(h, &Source::Volume { at: m.from.clone(), snapshot: None }, to, limit).await
    }

    async fn move_attached(&self, h: &Handle, m: &Move, slot: &str, limit: Limit, fresh: bool) -> Result<(), Error> {
        let state = h.state();
        let old = format!("{}:{}", m.from.storage.id, m.from.name);
        if !fresh {
            self.follow_last(h, "move", &["qmmove"], limit).await?;
        }
        let mut backoff = Backoff::new(self.settings.lock_pause);
        let mut failed = if fresh { None } else { Some(Error::AgentRestarted) };
        let new = loop {
            let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
            let now = uses::volume_of(vm.config.get(slot).unwrap_or_default()).to_owned();
            if now != old {
                break now;
            }
            if let Some(error) = failed {
                return Err(error);
            }
            let _place = h.enter(&m.target.id, Lane::Long, limit.at, limit.after).await?;
            let call = MoveCall {
                slot: slot.to_owned(),
                storage: m.target.id.clone(),
                format: m.format.clone(),
                digest: vm.config.digest.clone(),
            };
            h.step(format!("moving {slot} to {}", m.target.id));
            let called = Instant::now();
            let asked =
                self.start_task(h, "move", &["qmmove"], &state.vmid.to_string(), limit, || self.pve.move_disk(state.vmid, &call)).await;
            let upid = match asked {
                Err(Error::ConfigChanged { .. }) if !limit.over() => {
                    tokio::time::sleep(backoff.next()).await;
                    continue;
                }
                other => other?,
            };
            crash_point!("move_volume.called");
            let followed = self.follow(h, &upid, called, limit, false).await?;
            crash_point!("move_volume.task_ended");
            failed = match &followed.end {
                TaskEnd::Ok | TaskEnd::Warnings(_) => Some(Error::PveFailed {
                    message: format!("the move ended, yet {slot} still holds {old}"),
                    upid: Some(upid.text.clone()),
                }),
                TaskEnd::NoEndLine => Some(Error::PveFailed { message: "the move was killed".to_owned(), upid: Some(upid.text.clone()) }),
                TaskEnd::Error(message) => match lock_timeout(message) {
                    Some(what) => {
                        self.wait_for_lock(h, &what, &mut backoff, limit).await?;
                        None
                    }
                    None => {
                        let (lines, node, storage) = (&followed.lines, self.settings.node.as_str(), m.target.id.as_str());
                        Some(Failed { vmid: state.vmid, upid: &upid.text, message, lines, storage, node }.error())
                    }
                },
            };
        };
        self.settle_moved(h, m, slot, &new, limit).await
    }

    /// After PVE has moved it: the label goes over, and what it was moved from is removed.
    async fn settle_moved(&self, h: &Handle, m: &Move, slot: &str, new: &str, limit: Limit) -> Result<(), Error> {
        let state = h.state();
        let old = format!("{}:{}", m.from.storage.id, m.from.name);
        let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
        let (_, keys) = crate::host::pve::config_file::properties(vm.config.get(slot).unwrap_or_default());
        let ours = keys.get("serial").is_some_and(|serial| *serial == m.id.serial());
        let Some((_, name)) = new.split_once(':').filter(|(storage, _)| ours && *storage == m.target.id) else {
            let message = format!("{slot} of VM {} holds {new} now, which is not volume {}", vm.vmid, m.id);
            return Err(Error::PveFailed { message, upid: None });
        };
        self.write_label(&find::at(&m.target, name), &m.label).await?;
        crash_point!("move_volume.new_labelled");
        self.take_label_off(&m.from).await?;
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
            let found = uses::of_vm(&vm, &old);
            if let Some(other) = found.iter().find(|u| u.how != How::Unused) {
                h.warn(format!("{old}, from which the volume was moved, is {} and so was left", other.words()));
                return Ok(());
            }
            // PVE frees what it takes out of the list of unused disks.
            let Some(unused) = found.first() else { break };
            let call = ConfigCall { delete: vec![unused.slot.clone()], digest: Some(vm.config.digest.clone()), ..ConfigCall::default() };
            match self.pve.set_config_now(vm.vmid, &call).await {
                Ok(()) => {}
                Err(Error::ConfigChanged { .. } | Error::PveAnswerLost { .. }) if !limit.over() => tokio::time::sleep(backoff.next()).await,
                Err(Error::LockTimeout { what }) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                Err(error) => return Err(error),
            }
        }
        self.free_proven(h, &m.from, limit).await
    }
}
