//! AttachVolume: into a slot that the agent chooses, by PVE, under both guards, PVE's digest and, on a shared storage, the cluster's lock.

use std::sync::Arc;

use pvelet_proto::{reason, v1};
use tokio::time::Instant;

use super::{
    Plan, begin, find,
    hold::{Held, in_use},
    options, tenant_of,
    uses::{self, How, Use},
};
use crate::{
    crash_point,
    error::Error,
    host::pve::{ConfigCall, RunState, TaskEnd, VmRecord},
    operation::{Handle, Lane},
    vm::{
        Call, Inner, Limit,
        failure::{Failed, lock_timeout},
        task::Backoff,
        validate, view,
    },
};

const REMEDY: &str = "detach it there first";

/// Whether the references to a volume leave room for `vmid`: `Some` is its slot there already. Errors: `VolumeInUse`.
fn attached_to(id: pvelet_proto::volume::VolumeId, uses: &[Use], vmid: u32) -> Result<Option<&Use>, Error> {
    match uses.first() {
        Some(first) if first.vm.vmid != vmid => Err(in_use(id, first, REMEDY)),
        Some(other) => match uses.iter().find(|u| u.vm.vmid != vmid) {
            Some(elsewhere) => Err(in_use(id, elsewhere, REMEDY)),
            None => Ok(Some(other).filter(|u| matches!(u.how, How::Attached | How::Pending))),
        },
        None => Ok(None),
    }
}

impl Inner {
    /// A VM that may be given disks, or have some taken. Errors: those of `target`, `VmLocked`, `VmIsTemplate`.
    pub(super) async fn disk_target(&self, call: &Call) -> Result<Arc<VmRecord>, Error> {
        let vm = self.target(call).await?;
        if vm.config.is_template() {
            return Err(Error::VmIsTemplate { vmid: vm.vmid });
        }
        if let Some(lock) = vm.config.lock() {
            return Err(Error::VmLocked { vmid: vm.vmid, lock: lock.to_owned() });
        }
        // An operator acts for one tenant at a time: a VM that is another's gets none of its disks.
        if let Some(mark) = view::bound_mark(&vm).filter(|mark| mark.tenant != tenant_of(call)) {
            let caller = format!("{} for tenant '{}'", call.caller.identity, tenant_of(call));
            tracing::debug!(owner = mark.tenant, caller, "a VM of another tenant");
            return Err(Error::ScopeVm { caller, vmid: vm.vmid });
        }
        Ok(vm)
    }

    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_attach_volume(this: &Arc<Self>, call: &Call, request: v1::AttachVolumeRequest) -> Result<String, Error> {
        let wanted = request.options.clone().unwrap_or_default();
        validate::done(options::check(&wanted))?;
        let (id, storage) = find::reference(request.volume.as_ref(), "volume")?;
        let vm = this.disk_target(call).await?;
        let volume = this.own_volume(id, &storage, tenant_of(call)).await?;
        let uses = this.uses(&volume);
        let mut plan = Plan::of(&volume);
        plan.target = v1::VmRef { vmid: vm.vmid, uuid: call.target.uuid.to_ascii_lowercase() };
        match attached_to(id, &uses, vm.vmid)? {
            // One that the guest is letting go of is attached anew.
            Some(there) if there.pending_detach => {}
            Some(there) if options::same(&there.value, &wanted) => plan.done = true,
            Some(there) => {
                let text = format!("volume {id} is attached as {} with other options; detach it first, or set limits alone", there.slot);
                return Err(Error::invalid("options", reason::INVALID_FIELD, text));
            }
            None => {
                this.slot_for(&vm)?;
                if wanted.iothread && vm.config.get("scsihw") != Some("virtio-scsi-single") {
                    let text = "it needs a VM with scsihw virtio-scsi-single; leave it unset, or change the VM";
                    return Err(Error::invalid("options.iothread", reason::INVALID_FIELD, text));
                }
            }
        }
        begin(this, call, plan)
    }

    fn slot_for(&self, vm: &VmRecord) -> Result<String, Error> {
        let last = self.settings.volumes.max_slots;
        options::free_slot(&vm.config, last).ok_or(Error::NoFreeSlot { vmid: vm.vmid, first: 1, last })
    }

    /// Attaches it, or goes on with that: where it is attached already, nothing more is done.
    pub(super) async fn run_attach_volume(
        &self,
        h: &Handle,
        request: &v1::AttachVolumeRequest,
        limit: Limit,
        fresh: bool,
    ) -> Result<(), Error> {
        let wanted = request.options.clone().unwrap_or_default();
        if !fresh {
            // PVE may still be at work for the agent's last run.
            self.follow_last(h, "attach", &["qmconfig"], limit).await?;
        }
        let held = self.hold_existing(h, limit).await?;
        let state = h.state();
        let volid = held.volume.volid();
        let mut backoff = Backoff::new(self.settings.lock_pause);
        let mut letting_go = false;
        loop {
            let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
            if let Some(lock) = vm.config.lock() {
                return Err(Error::VmLocked { vmid: vm.vmid, lock: lock.to_owned() });
            }
            let uses = self.uses(&held.volume);
            let mut call = match attached_to(held.volume.id, &uses, vm.vmid)? {
                Some(there) if !there.pending_detach => return self.tell_pending(h, there, &vm),
                // Whether the guest still has the disk is not known: it has to let go of it before it gets it again.
                Some(there) => {
                    let slot = there.slot.clone();
                    if letting_go {
                        return Err(Error::GuestHoldsDisk { vmid: vm.vmid, slot });
                    }
                    letting_go = true;
                    ConfigCall { delete: vec![slot], ..ConfigCall::default() }
                }
                None => {
                    let line = options::line(&volid, held.volume.id, &wanted);
                    ConfigCall { set: [(self.slot_for(&vm)?, line)].into(), ..ConfigCall::default() }
                }
            };
            call.digest = Some(vm.config.digest.clone());
            held.still()?;
            crash_point!("attach_volume.checked");
            let end = match self.configure_disk(h, "attach", vm.vmid, &held, &call, limit).await {
                Err(Error::ConfigChanged { .. }) if !limit.over() => {
                    tokio::time::sleep(backoff.next()).await;
                    continue;
                }
                other => other?,
            };
            crash_point!("attach_volume.task_ended");
            if !call.delete.is_empty() {
                continue;
            }
            let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
            let found = uses::of_vm(&vm, &volid);
            match (found.iter().find(|u| matches!(u.how, How::Attached | How::Pending)), end) {
                (Some(there), None) => return self.tell_pending(h, there, &vm),
                // The guest did not take it: it would come with the next start, which nobody asked for.
                (Some(there), Some(error)) if there.how == How::Pending => {
                    let back =
                        ConfigCall { delete: vec![there.slot.clone()], digest: Some(vm.config.digest.clone()), ..ConfigCall::default() };
                    if let Err(undo) = self.pve.set_config_now(vm.vmid, &back).await {
                        h.warn(format!("{} of VM {} waits for its next start, and could not be taken back: {undo}", there.slot, vm.vmid));
                    }
                    return Err(error);
                }
                (Some(there), Some(_)) => return self.tell_pending(h, there, &vm),
                (None, Some(Error::LockTimeout { what })) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                (None, Some(error)) => return Err(error),
                (None, None) => {
                    let message = format!("PVE's task ended, yet {volid} is not attached to VM {}", vm.vmid);
                    return Err(Error::PveFailed { message, upid: None });
                }
            }
        }
    }

    /// Ends well; what comes only with the VM's next start is told.
    fn tell_pending(&self, h: &Handle, there: &Use, vm: &VmRecord) -> Result<(), Error> {
        if there.how == How::Pending && vm.run != RunState::Stopped {
            h.warn(format!("VM {} takes no disks while it runs (hotplug): {} comes with its next start", vm.vmid, there.slot));
        }
        Ok(())
    }

    /// Changes a VM's drives by a task of PVE and follows it. The inner error is what PVE said of a task that failed: the config tells
    /// what came of it. Errors: those of the call itself, `ConfigChanged` first of all.
    pub(super) async fn configure_disk(
        &self,
        h: &Handle,
        purpose: &str,
        vmid: u32,
        held: &Held,
        call: &ConfigCall,
        limit: Limit,
    ) -> Result<Option<Error>, Error> {
        let storage = &held.volume.at.storage.id;
        let _place = h.enter(storage, Lane::Short, limit.at, limit.after).await?;
        h.step(format!("{purpose}: PVE is at work"));
        let called = Instant::now();
        let upid = self.start_task(h, purpose, &["qmconfig"], &vmid.to_string(), limit, || self.pve.set_config(vmid, call)).await?;
        crash_point!("volume.config_called");
        let followed = self.follow(h, &upid, called, limit, false).await?;
        Ok(match &followed.end {
            TaskEnd::Ok => None,
            TaskEnd::Warnings(lines) => {
                lines.iter().for_each(|line| h.warn(line.clone()));
                None
            }
            TaskEnd::Error(message) => match lock_timeout(message) {
                Some(what) => Some(Error::LockTimeout { what }),
                None => {
                    let (lines, node) = (&followed.lines, self.settings.node.as_str());
                    match (Failed { vmid, upid: &upid.text, message, lines, storage, node }.error()) {
                        changed @ Error::ConfigChanged { .. } => return Err(changed),
                        error => Some(error),
                    }
                }
            },
            TaskEnd::NoEndLine => Some(Error::PveFailed { message: "the task was killed".to_owned(), upid: Some(upid.text) }),
        })
    }

    /// Follows the task that the agent's last run started, if there is one, to its end; what came of it is read from the config.
    pub(super) async fn follow_last(&self, h: &Handle, purpose: &str, kinds: &[&str], limit: Limit) -> Result<(), Error> {
        let state = h.state();
        let known = state.task(purpose).and_then(|t| crate::host::pve::Upid::parse(&t.upid));
        let upid = match known {
            Some(upid) => Some(upid),
            None if state.vmid == 0 => None,
            None => self.find_lost(h, kinds, &state.vmid.to_string(), h.accepted_at().saturating_sub(1), None).await?,
        };
        if let Some(upid) = upid {
            self.follow(h, &upid, Instant::now(), limit, false).await?;
        }
        Ok(())
    }
}
