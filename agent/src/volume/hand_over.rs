//! HandOverVolume: the volume of a stopped VM gets the VM's own name, so that PVE migrates it with the VM, or its reserved one back.

use std::sync::Arc;

use pvelet_proto::{reason, v1};

use super::{
    Plan, begin, find,
    hold::in_use,
    options, tenant_of,
    uses::{self, How},
};
use crate::{
    crash_point,
    error::Error,
    host::{
        pve::{ConfigCall, RunState},
        storage::At,
    },
    operation::Handle,
    vm::{Call, Inner, Limit, task::Backoff},
};

impl Inner {
    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_hand_over_volume(
        this: &Arc<Self>,
        call: &Call,
        request: v1::HandOverVolumeRequest,
    ) -> Result<String, Error> {
        let owner = match request.name() {
            v1::VolumeName::Vm => call.target.vmid,
            v1::VolumeName::Reserved => this.settings.volumes.owner_vmid,
            v1::VolumeName::Unspecified => {
                return Err(Error::invalid("name", reason::INVALID_FIELD, "it is missing; say VOLUME_NAME_VM or VOLUME_NAME_RESERVED"));
            }
        };
        let (id, storage) = find::reference(request.volume.as_ref(), "volume")?;
        let vm = this.disk_target(call).await?;
        let volume = this.own_volume(id, &storage, tenant_of(call)).await?;
        let uses = this.uses(&volume);
        if let Some(other) = uses.iter().find(|u| u.vm.vmid != vm.vmid || u.how != How::Attached) {
            return Err(in_use(id, other, "delete snapshots of VMs that refer to it, and detach it from others"));
        }
        let there = uses.first().ok_or_else(|| Error::VolumeNotAttached { id: id.to_string() })?;
        let mut plan = Plan::of(&volume).with_vm(&uses);
        plan.state.slot.clone_from(&there.slot);
        plan.state.target_name = find::names(&volume.at.storage.kind, owner, id, &volume.at.format).1;
        plan.done = plan.state.target_name == volume.at.name;
        if !plan.done {
            if vm.run != RunState::Stopped {
                return Err(Error::VmRunning { vmid: vm.vmid });
            }
            let snapshots = this.snapshot_names(&volume).await?;
            if !snapshots.is_empty() {
                return Err(Error::VolumeHasSnapshots { id: id.to_string(), snapshots, why: "whose names are bound to the volume's" });
            }
        }
        begin(this, call, plan)
    }

    /// Renames it and tells the VM, or goes on with that.
    pub(super) async fn run_hand_over_volume(&self, h: &Handle, limit: Limit) -> Result<(), Error> {
        let held = self.hold_existing(h, limit).await?;
        let (state, storage) = (h.state(), held.volume.at.storage.clone());
        let (old, new) = (format!("{}:{}", storage.id, state.volume.name), format!("{}:{}", storage.id, state.volume.target_name));
        let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
        if vm.run != RunState::Stopped {
            return Err(Error::VmRunning { vmid: vm.vmid });
        }
        // Renamed already by the last run: then the VM still knows it by the old name.
        if held.volume.at.name == state.volume.name {
            if let Some(other) = held.uses.iter().find(|u| u.vm.vmid != vm.vmid || u.how != How::Attached) {
                return Err(in_use(held.volume.id, other, "it was used otherwise meanwhile; try again"));
            }
            if held.uses.is_empty() {
                return Err(Error::VolumeNotAttached { id: state.volume.id });
            }
        }
        held.still()?;
        h.step("renaming");
        self.store.rename(&find::at(&storage, &state.volume.name), &state.volume.target_name).await?;
        crash_point!("hand_over_volume.renamed");
        if let Err(error) = self.tell_vm(h, &old, &new, limit).await {
            self.name_back(h, (&find::at(&storage, &state.volume.target_name), &state.volume.name), &old).await;
            return Err(error);
        }
        crash_point!("hand_over_volume.configured");
        let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
        if !uses::of_vm(&vm, &new).iter().any(|u| u.how == How::Attached) {
            let message = format!("VM {} does not name {new} in any slot", vm.vmid);
            return Err(Error::PveFailed { message, upid: None });
        }
        self.forget_unused_name(h, &old, limit).await
    }

    /// Has the VM call a volume by its new name.
    async fn tell_vm(&self, h: &Handle, old: &str, new: &str, limit: Limit) -> Result<(), Error> {
        let state = h.state();
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
            let found = uses::of_vm(&vm, old);
            let Some(there) = found.iter().find(|u| u.how == How::Attached) else { return Ok(()) };
            let set = [(there.slot.clone(), options::with_volume(&there.value, new))].into();
            let call = ConfigCall { set, digest: Some(vm.config.digest.clone()), ..ConfigCall::default() };
            match self.pve.set_config_now(vm.vmid, &call).await {
                Ok(()) if !limit.over() => {}
                Err(Error::ConfigChanged { .. } | Error::PveAnswerLost { .. }) if !limit.over() => {
                    tokio::time::sleep(backoff.next()).await;
                }
                Err(Error::LockTimeout { what }) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                Ok(()) => return Err(limit.timeout("PVE did not take the volume's new name")),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives a volume back the name by which its VM still knows it; as long as that cannot be told it is tried for a while.
    async fn name_back(&self, h: &Handle, (volume, name): (&At, &str), old: &str) {
        let (state, limit) = (h.state(), Self::deadline(self.ops.settings().deadlines.configure));
        match self.same_vm(h, state.vmid, &state.uuid, limit).await {
            Ok(vm) if uses::of_vm(&vm, old).is_empty() => {}
            Ok(_) => {
                if let Err(error) = self.store.rename(volume, name).await {
                    h.warn(format!("VM {} names {old}, and the volume did not get that name back: {error}", state.vmid));
                }
            }
            Err(error) => {
                h.warn(format!("whether VM {} names {old} could not be told, so the volume is {}: {error}", state.vmid, volume.name));
            }
        }
    }
}
