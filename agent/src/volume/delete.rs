//! DeleteVolume: freed by PVE once it is proven that nothing refers to it, and then proven gone.

use std::sync::Arc;

use pvelet_proto::v1;

use super::{
    Plan, begin,
    find::{self, Volume},
    hold::in_use,
    tenant_of,
    uses::Use,
};
use crate::{
    crash_point,
    error::Error,
    operation::{Handle, Lane, VolumeState},
    vm::{Call, Inner, Limit},
};

const REMEDY: &str = "detach it first, and delete snapshots of the VM that refer to it";

impl Inner {
    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_delete_volume(this: &Arc<Self>, call: &Call, request: v1::DeleteVolumeRequest) -> Result<String, Error> {
        let (id, storage) = find::reference(request.volume.as_ref(), "volume")?;
        this.writable()?;
        match this.locate(id, &storage).await? {
            // Proven gone: what was asked for is so.
            None => {
                let state = VolumeState { id: id.to_string(), storage, ..VolumeState::default() };
                begin(this, call, Plan { target: v1::VmRef::default(), id: Some(id), state, source: None, done: true })
            }
            Some(_) => {
                let volume = this.own_volume(id, &storage, tenant_of(call)).await?;
                this.may_be_deleted(&volume, &this.uses(&volume)).await?;
                begin(this, call, Plan::of(&volume))
            }
        }
    }

    /// Errors: `VolumeInUse`, `VolumeHasSnapshots`.
    pub(super) async fn may_be_deleted(&self, volume: &Volume, uses: &[Use]) -> Result<(), Error> {
        if let Some(first) = uses.first() {
            return Err(in_use(volume.id, first, REMEDY));
        }
        let snapshots = self.snapshot_names(volume).await?;
        if snapshots.is_empty() {
            return Ok(());
        }
        Err(Error::VolumeHasSnapshots { id: volume.id.to_string(), snapshots, why: "which would be lost with it" })
    }

    /// Removes it, or goes on with that.
    pub(super) async fn run_delete_volume(&self, h: &Handle, limit: Limit) -> Result<(), Error> {
        let Some(held) = self.hold(h, limit).await? else { return Ok(()) };
        if held.volume.label.as_ref().map(ToString::to_string).as_deref() != Some(h.state().volume.label.as_str()) {
            return Err(Error::NotOurs { what: format!("volume {} has changed hands meanwhile: it", held.volume.id) });
        }
        self.may_be_deleted(&held.volume, &held.uses).await?;
        let _place = h.enter(&held.volume.at.storage.id, Lane::Short, limit.at, limit.after).await?;
        crash_point!("delete_volume.checked");
        held.still()?;
        self.free_proven(h, &held.volume.at, limit).await?;
        crash_point!("delete_volume.freed");
        Ok(())
    }
}
