//! DetachVolume: out of its slot, and out of the VM's name where it stood under it. PVE frees what a VM owns when the VM is destroyed, so a
//! detached volume may be left neither under the VM's name nor as `unusedN`.

use std::sync::Arc;

use pvelet_proto::v1;

use super::{
    Plan, begin, find,
    find::Volume,
    hold::in_use,
    tenant_of,
    uses::{self, How, Use},
};
use crate::{
    crash_point,
    error::Error,
    host::pve::{ConfigCall, RunState, VmRecord},
    operation::Handle,
    vm::{Call, Inner, Limit, task::Backoff, view},
};

/// What must not be taken from a VM, whatever stands in it. Errors: `DiskNotDetachable`.
pub(super) fn detachable(vm: &VmRecord, slot: &str) -> Result<(), Error> {
    let kind = slot.trim_end_matches(|c: char| c.is_ascii_digit());
    let boots = view::boot_disk(&vm.config).is_some_and(|disk| disk.slot == slot);
    let what = match kind {
        "efidisk" => "its EFI disk",
        "tpmstate" => "its TPM state",
        _ if boots => "its boot disk",
        _ if view::cloud_init_drive(&vm.config) == Some(slot) => "its cloud-init drive",
        _ => return Ok(()),
    };
    Err(Error::DiskNotDetachable { vmid: vm.vmid, slot: slot.to_owned(), what })
}

impl Inner {
    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_detach_volume(this: &Arc<Self>, call: &Call, request: v1::DetachVolumeRequest) -> Result<String, Error> {
        let (id, storage) = find::reference(request.volume.as_ref(), "volume")?;
        let vm = match this.disk_target(call).await {
            // Without its VM it is detached, as this node with quorum tells.
            Err(error @ (Error::VmNotFound { .. } | Error::UuidMismatch { .. }))
                if this.pve.inventory().by_uuid(&call.target.uuid.to_ascii_lowercase()).is_empty() =>
            {
                let volume = this.own_volume(id, &storage, tenant_of(call)).await?;
                if !this.uses(&volume).is_empty() || volume.name_vmid() != this.settings.volumes.owner_vmid {
                    return Err(error);
                }
                return begin(this, call, Plan { done: true, ..Plan::of(&volume) });
            }
            other => other?,
        };
        let volume = this.own_volume(id, &storage, tenant_of(call)).await?;
        let uses = this.uses(&volume);
        let mut plan = Plan::of(&volume);
        plan.target = v1::VmRef { vmid: vm.vmid, uuid: call.target.uuid.to_ascii_lowercase() };
        let here = uses.iter().find(|u| u.vm.vmid == vm.vmid && !matches!(u.how, How::Snapshot(_)));
        // One that another VM has put aside is that VM's too: there its name has to go out of the config.
        match (here, uses.iter().find(|u| u.vm.vmid != vm.vmid && !matches!(u.how, How::Snapshot(_)))) {
            (Some(there), _) => detachable(&vm, &there.slot)?,
            (None, Some(other)) => return Err(in_use(id, other, "name that VM to detach it")),
            (None, None) => plan.done = volume.name_vmid() == this.settings.volumes.owner_vmid,
        }
        if !plan.done {
            this.may_be_renamed(&volume, &uses).await?;
        }
        begin(this, call, plan)
    }

    /// Whether a volume that stands under its VM's name may get back its own. Errors: `VolumeInUse` when a snapshot of the VM knows it by
    /// that name, `VolumeHasSnapshots` when its own would be lost.
    async fn may_be_renamed(&self, volume: &Volume, uses: &[Use]) -> Result<(), Error> {
        if volume.name_vmid() == self.settings.volumes.owner_vmid {
            return Ok(());
        }
        if let Some(there) = uses.iter().find(|u| matches!(u.how, How::Snapshot(_))) {
            return Err(in_use(volume.id, there, "delete that snapshot first: detaching gives the volume another name"));
        }
        let bound = match volume.at.storage.kind.as_str() {
            "lvmthin" => true,
            "btrfs" => volume.at.format == "raw",
            _ => false,
        };
        let snapshots = if bound { self.snapshot_names(volume).await? } else { Vec::new() };
        if snapshots.is_empty() {
            return Ok(());
        }
        let why = "whose names are bound to the volume's, which detaching changes";
        Err(Error::VolumeHasSnapshots { id: volume.id.to_string(), snapshots, why })
    }

    /// Detaches it, or goes on with that.
    pub(super) async fn run_detach_volume(&self, h: &Handle, limit: Limit, fresh: bool) -> Result<(), Error> {
        if !fresh {
            self.follow_last(h, "detach", &["qmconfig"], limit).await?;
        }
        let held = self.hold_existing(h, limit).await?;
        self.may_be_renamed(&held.volume, &held.uses).await?;
        let state = h.state();
        let volid = held.volume.volid();
        let mut backoff = Backoff::new(self.settings.lock_pause);
        let mut asked = false;
        loop {
            let vm = match self.same_vm(h, state.vmid, &state.uuid, limit).await {
                // Without its VM it is detached.
                Err(Error::VmNotFound { .. }) if !fresh => break,
                other => other?,
            };
            let found = uses::of_vm(&vm, &volid);
            let Some(there) = found.iter().find(|u| matches!(u.how, How::Attached | How::Pending)) else { break };
            detachable(&vm, &there.slot)?;
            if let Some(lock) = vm.config.lock() {
                return Err(Error::VmLocked { vmid: vm.vmid, lock: lock.to_owned() });
            }
            let call = ConfigCall { delete: vec![there.slot.clone()], digest: Some(vm.config.digest.clone()), ..ConfigCall::default() };
            held.still()?;
            crash_point!("detach_volume.checked");
            let failed = match self.configure_disk(h, "detach", vm.vmid, &held, &call, limit).await {
                Err(Error::ConfigChanged { .. }) if !limit.over() => {
                    tokio::time::sleep(backoff.next()).await;
                    continue;
                }
                other => other?,
            };
            crash_point!("detach_volume.task_ended");
            let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
            let after = uses::of_vm(&vm, &volid);
            let Some(still) = after.iter().find(|u| matches!(u.how, How::Attached | How::Pending)) else { break };
            match failed {
                Some(Error::LockTimeout { what }) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                // Where each disk has a controller of its own, the first attempt may take the disk away and give up on the controller; the
                // second then finds nothing left to wait for.
                _ if still.pending_detach && vm.run != RunState::Stopped && !asked => asked = true,
                // Asked, and not done: the guest holds it.
                _ if still.pending_detach && vm.run != RunState::Stopped => {
                    return Err(Error::GuestHoldsDisk { vmid: vm.vmid, slot: still.slot.clone() });
                }
                Some(error) => return Err(error),
                None => {
                    let message = format!("PVE's task ended, yet {volid} is still {}", still.words());
                    return Err(Error::PveFailed { message, upid: None });
                }
            }
        }
        held.still()?;
        self.out_of_vm_name(h, &held.volume, limit).await
    }

    /// Gives a volume back its reserved name, and takes it out of the VM's list of unused disks.
    async fn out_of_vm_name(&self, h: &Handle, volume: &Volume, limit: Limit) -> Result<(), Error> {
        let state = h.state();
        let (_, name) = find::names(&volume.at.storage.kind, self.settings.volumes.owner_vmid, volume.id, &volume.at.format);
        if volume.at.name != name {
            h.step("giving it back its own name");
            self.store.rename(&volume.at, &name).await?;
        }
        crash_point!("detach_volume.renamed");
        // After a crash it may have its own name already. PVE puts a volume aside under any name when a snapshot that had it goes.
        for old in [state.volume.name, find::names(&volume.at.storage.kind, state.vmid, volume.id, &volume.at.format).1, name] {
            self.forget_unused_name(h, &format!("{}:{old}", volume.at.storage.id), limit).await?;
        }
        Ok(())
    }

    /// Takes an `unusedN` entry that names a volume by a name it no longer has, or by one that is not the VM's, out of a VM's config. PVE
    /// frees what it takes out so and is the VM's own: that nothing is there any more under such a name is proven first.
    pub(super) async fn forget_unused_name(&self, h: &Handle, volid: &str, limit: Limit) -> Result<(), Error> {
        let state = h.state();
        let vmid = state.vmid;
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let vm = match self.same_vm(h, vmid, &state.uuid, limit).await {
                Err(Error::VmNotFound { .. }) => return Ok(()),
                other => other?,
            };
            let found = uses::of_vm(&vm, volid);
            let Some(slot) = found.iter().find(|u| u.how == How::Unused).map(|u| u.slot.clone()) else { return Ok(()) };
            if view::owner_of(volid) == Some(vmid) && self.pve.volume(volid).await?.is_some() {
                h.warn(format!("{slot} of VM {vmid} still names {volid}, which is there: it is left alone"));
                return Ok(());
            }
            let call = ConfigCall { delete: vec![slot.clone()], digest: Some(vm.config.digest.clone()), ..ConfigCall::default() };
            match self.pve.set_config_now(vmid, &call).await {
                // There may be another.
                Ok(()) if !limit.over() => {}
                Err(Error::PveAnswerLost { .. } | Error::ConfigChanged { .. }) if !limit.over() => tokio::time::sleep(backoff.next()).await,
                Err(Error::LockTimeout { what }) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                Ok(()) => return Ok(()),
                // It names nothing any more, so it can do no harm.
                Err(error) => {
                    h.warn(format!("{slot} of VM {vmid} names {volid}, which is gone, and could not be taken out: {error}"));
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::pve::config_file::ConfigFile;

    #[test]
    fn what_a_vm_boots_from_stays() {
        let vm = VmRecord {
            vmid: 100,
            node: "pve1".into(),
            version: 1,
            config: ConfigFile::parse(
                "boot: order=scsi2;net0\nefidisk0: a:100/vm-100-disk-1.raw\ntpmstate0: a:100/vm-100-disk-2.raw\nide2: a:100/vm-100-cloudinit.qcow2,media=cdrom\nscsi1: a:9/x.raw\nscsi2: a:9/y.raw\n",
            ),
            run: RunState::Stopped,
            ha: None,
            replicated: false,
            pool: None,
        };
        for (slot, may) in [("efidisk0", false), ("tpmstate0", false), ("ide2", false), ("scsi2", false), ("scsi1", true)] {
            assert_eq!(detachable(&vm, slot).is_ok(), may, "{slot}");
        }
    }
}
