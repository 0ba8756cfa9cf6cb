//! GrowVolume and SetVolumeLimits: what is changed of a volume that stays where it is.

use std::sync::Arc;

use pvelet_proto::{reason, v1};

use super::{
    Plan, begin,
    create::{MIB, check_size},
    find::{self, Volume},
    options, tenant_of,
    uses::{self, How, Use},
};
use crate::{
    crash_point,
    error::Error,
    host::pve::ConfigCall,
    operation::{Handle, Lane},
    vm::{Call, Inner, Limit, configure::Growing, task::Backoff, validate},
};

/// LVM's extents, unless an administrator chose others: sizes are rounded up to them.
const LVM_EXTENT: u64 = 4 * MIB;

/// The reference to the VM that has a volume in a slot now.
fn attached(uses: &[Use]) -> Option<&Use> {
    uses.iter().find(|u| u.how == How::Attached)
}

impl Inner {
    /// The VM of this node that has the volume, when it may be changed by this caller. Errors: `VmOnOtherHost`, `VmLocked`, `ScopeVm`.
    pub(super) fn may_change_vm(&self, call: &Call, vm_use: &Use) -> Result<(), Error> {
        let vm = &vm_use.vm;
        if vm.node != self.settings.node {
            return Err(Error::VmOnOtherHost { vmid: vm.vmid, node: vm.node.clone() });
        }
        if let Some(lock) = vm.config.lock() {
            return Err(Error::VmLocked { vmid: vm.vmid, lock: lock.to_owned() });
        }
        if crate::vm::view::bound_mark(vm).is_some_and(|mark| mark.tenant != tenant_of(call)) {
            return Err(Error::ScopeVm { caller: call.caller.identity.to_string(), vmid: vm.vmid });
        }
        Ok(())
    }

    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_grow_volume(this: &Arc<Self>, call: &Call, request: v1::GrowVolumeRequest) -> Result<String, Error> {
        validate::done(check_size(request.size_bytes, false).into_iter().collect())?;
        let (id, storage) = find::reference(request.volume.as_ref(), "volume")?;
        this.writable()?;
        let volume = this.own_volume(id, &storage, tenant_of(call)).await?;
        let uses = this.uses(&volume);
        if let Some(there) = attached(&uses) {
            this.may_change_vm(call, there)?;
        }
        let mut plan = Plan::of(&volume).with_vm(&uses);
        plan.done = this.is_grown(&volume, request.size_bytes).await?;
        if !plan.done {
            this.target_storage(&volume.at.storage.id, 0).await?;
            let snapshots = if volume.at.format == "qcow2" { this.snapshot_names(&volume).await? } else { Vec::new() };
            if !snapshots.is_empty() {
                return Err(Error::VolumeHasSnapshots { id: id.to_string(), snapshots, why: "with which a qcow2 image does not grow" });
            }
        }
        begin(this, call, plan)
    }

    /// Whether it has the size already. Errors: `Invalid` with `DISK_SHRINK`.
    async fn is_grown(&self, volume: &Volume, bytes: u64) -> Result<bool, Error> {
        let not_found = || Error::VolumeNotFound { id: volume.id.to_string(), storage: volume.at.storage.id.clone() };
        let size = self.pve.volume(&volume.volid()).await?.ok_or_else(not_found)?.size;
        // Storages round up: what was asked for before is still so when it is asked for again.
        let rounding = if volume.at.storage.kind.starts_with("lvm") { LVM_EXTENT } else { MIB };
        if size >= bytes.saturating_add(rounding) {
            let text = format!("{bytes} is less than the {size} bytes that volume {} has; a volume can only grow", volume.id);
            return Err(Error::invalid("size_bytes", reason::DISK_SHRINK, text));
        }
        Ok(size >= bytes)
    }

    /// Grows it, or goes on with that: the size is absolute.
    pub(super) async fn run_grow_volume(&self, h: &Handle, request: &v1::GrowVolumeRequest, limit: Limit) -> Result<(), Error> {
        let held = self.hold_existing(h, limit).await?;
        let volid = held.volume.volid();
        let bytes = request.size_bytes;
        if self.is_grown(&held.volume, bytes).await? {
            return Ok(());
        }
        let state = h.state();
        match attached(&held.uses) {
            Some(there) if there.vm.vmid == state.vmid => {
                self.same_vm(h, state.vmid, &state.uuid, limit).await?;
                held.still()?;
                self.grow(h, state.vmid, Growing::Volume(&volid), bytes, limit, false).await?;
            }
            Some(other) => return Err(super::hold::in_use(held.volume.id, other, "try again")),
            None => {
                let _place = h.enter(&held.volume.at.storage.id, Lane::Short, limit.at, limit.after).await?;
                held.still()?;
                h.step(format!("growing {volid}"));
                self.store.grow(&held.volume.at, bytes).await?;
            }
        }
        crash_point!("grow_volume.grown");
        // With larger extents it may have more than it was rounded up to above.
        if self.pve.volume(&volid).await?.is_some_and(|v| v.size >= bytes) {
            return Ok(());
        }
        let message = format!("{volid} was grown, yet has fewer than {bytes} bytes");
        Err(Error::StorageFailed { storage: held.volume.at.storage.id.clone(), message })
    }

    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_set_volume_limits(
        this: &Arc<Self>,
        call: &Call,
        request: v1::SetVolumeLimitsRequest,
    ) -> Result<String, Error> {
        let limits = request.limits.unwrap_or_default();
        validate::done(options::check_limits(&limits, "limits"))?;
        let (id, storage) = find::reference(request.volume.as_ref(), "volume")?;
        this.writable()?;
        let volume = this.own_volume(id, &storage, tenant_of(call)).await?;
        let uses = this.uses(&volume);
        let there = attached(&uses).ok_or_else(|| Error::VolumeNotAttached { id: id.to_string() })?;
        this.may_change_vm(call, there)?;
        let mut plan = Plan::of(&volume).with_vm(&uses);
        plan.done = options::read(&there.value).limits.unwrap_or_default() == limits;
        begin(this, call, plan)
    }

    /// Sets them, or goes on with that.
    pub(super) async fn run_set_volume_limits(&self, h: &Handle, request: &v1::SetVolumeLimitsRequest, limit: Limit) -> Result<(), Error> {
        let limits = request.limits.unwrap_or_default();
        let held = self.hold_existing(h, limit).await?;
        let (state, volid) = (h.state(), held.volume.volid());
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
            let found = uses::of_vm(&vm, &volid);
            let there = attached(&found).ok_or_else(|| Error::VolumeNotAttached { id: state.volume.id.clone() })?;
            if options::read(&there.value).limits.unwrap_or_default() == limits {
                return Ok(());
            }
            let set = [(there.slot.clone(), options::with_limits(&there.value, &limits))].into();
            let call = ConfigCall { set, digest: Some(vm.config.digest.clone()), ..ConfigCall::default() };
            held.still()?;
            match self.configure_disk(h, "limits", vm.vmid, &held, &call, limit).await {
                Err(Error::ConfigChanged { .. }) if !limit.over() => tokio::time::sleep(backoff.next()).await,
                Err(error) => return Err(error),
                Ok(Some(Error::LockTimeout { what })) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                Ok(Some(error)) => return Err(error),
                Ok(None) => {
                    let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
                    let holds = |value: &str| options::read(value).limits.unwrap_or_default() == limits;
                    if vm.config.pending.get(&there.slot).is_some_and(|value| holds(value)) {
                        h.warn(format!("the limits of {} of VM {} come with its next start", there.slot, vm.vmid));
                        return Ok(());
                    }
                    if vm.config.get(&there.slot).is_some_and(holds) {
                        return Ok(());
                    }
                    let message = format!("PVE did not take the limits of {}", there.slot);
                    return Err(Error::PveFailed { message, upid: None });
                }
            }
        }
    }
}
