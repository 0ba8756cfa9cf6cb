//! Snapshots of single volumes: what PVE has no call for. They are taken by the storage, or inside a qcow2 image that nobody writes to.

use std::sync::Arc;

use pvelet_proto::{id, reason, v1};

use super::{
    Plan, begin,
    find::{self, Volume},
    hold::{Held, in_use},
    tenant_of,
    uses::{How, Use},
};
use crate::{
    crash_point,
    error::{Error, Violation},
    operation::{Handle, Lane},
    vm::{Call, Inner, Limit, validate},
};

/// What is wrong with a snapshot's name.
pub(super) fn check_name(name: &str, field: &str) -> Option<Violation> {
    id::snapshot(name).err().map(|e| Violation::new(field, reason::INVALID_SNAPSHOT_NAME, e.to_string()))
}

impl Inner {
    /// Names of a volume's snapshots, oldest first.
    pub(super) async fn snapshot_names(&self, volume: &Volume) -> Result<Vec<String>, Error> {
        Ok(self.store.snapshots(&volume.at).await?.into_iter().map(|s| s.name).collect())
    }

    /// Errors: `SnapshotNotFound`.
    pub(super) async fn snapshot_exists(&self, volume: &Volume, name: &str) -> Result<(), Error> {
        if self.snapshot_names(volume).await?.iter().any(|s| s == name) {
            return Ok(());
        }
        Err(Error::SnapshotNotFound { id: volume.id.to_string(), snapshot: name.to_owned() })
    }

    /// Errors: `StorageUnsupported` where the storage has no snapshots of such volumes.
    fn has_snapshots(&self, volume: &Volume) -> Result<(), Error> {
        let able = self.store.abilities(&volume.at.storage);
        if able.snapshots.contains(&volume.at.format.as_str()) {
            return Ok(());
        }
        let (storage, kind) = (volume.at.storage.id.clone(), &volume.at.storage.kind);
        let instead = if able.snapshots.is_empty() {
            "no volume there can have any".to_owned()
        } else {
            format!("{} can", able.snapshots.join(", "))
        };
        let why = format!("volumes of format {} on storages of type {kind} have no snapshots; {instead}", volume.at.format);
        Err(Error::StorageUnsupported { storage, why })
    }

    /// Errors: `VolumeInUse` when a running VM stands in the way. `live`: the storage can do it all the same.
    fn not_running(&self, volume: &Volume, uses: &[Use], live: bool) -> Result<(), Error> {
        let able = live && self.store.abilities(&volume.at.storage).live_snapshots.contains(&volume.at.format.as_str());
        match uses.iter().find(|u| u.how == How::Attached && self.may_run(u)) {
            Some(there) if !able => Err(in_use(volume.id, there, "stop the VM, or detach the volume")),
            _ => Ok(()),
        }
    }

    async fn accept_on_snapshot(
        this: &Arc<Self>,
        call: &Call,
        volume: Option<&v1::VolumeRef>,
        name: &str,
        live: bool,
    ) -> Result<Plan, Error> {
        validate::done(check_name(name, "name").into_iter().collect())?;
        let (id, storage) = find::reference(volume, "volume")?;
        this.writable()?;
        let volume = this.own_volume(id, &storage, tenant_of(call)).await?;
        this.has_snapshots(&volume)?;
        let uses = this.uses(&volume);
        if let Some(there) = uses.iter().find(|u| u.how == How::Attached) {
            this.may_change_vm(call, there)?;
        }
        this.not_running(&volume, &uses, live)?;
        Ok(Plan::of(&volume).with_vm(&uses))
    }

    /// Holds the volume for a change of its snapshots.
    async fn hold_for_snapshot(&self, h: &Handle, limit: Limit, live: bool) -> Result<Held, Error> {
        let held = if live { self.hold_existing(h, limit).await? } else { self.hold_rolled_back(h, limit).await? };
        self.not_running(&held.volume, &held.uses, live)?;
        held.still()?;
        Ok(held)
    }

    /// Holds a volume that the last run may have rolled back: its label may be gone, but not another's.
    async fn hold_rolled_back(&self, h: &Handle, limit: Limit) -> Result<Held, Error> {
        let state = h.state().volume;
        let not_found = || Error::VolumeNotFound { id: state.id.clone(), storage: state.storage.clone() };
        let held = self.hold(h, limit).await?.ok_or_else(not_found)?;
        if held.volume.label.as_ref().is_none_or(|label| label.to_string() == state.label) {
            return Ok(held);
        }
        Err(Error::NotOurs { what: format!("volume {} has changed hands meanwhile: it", held.volume.id) })
    }

    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_snapshot_volume(this: &Arc<Self>, call: &Call, request: v1::SnapshotVolumeRequest) -> Result<String, Error> {
        let plan = Self::accept_on_snapshot(this, call, request.volume.as_ref(), &request.name, true).await?;
        begin(this, call, plan)
    }

    /// Takes it; there already is as good.
    pub(super) async fn run_snapshot_volume(&self, h: &Handle, request: &v1::SnapshotVolumeRequest, limit: Limit) -> Result<(), Error> {
        let held = self.hold_for_snapshot(h, limit, true).await?;
        let _place = h.enter(&held.volume.at.storage.id, Lane::Short, limit.at, limit.after).await?;
        h.step(format!("taking snapshot {}", request.name));
        self.store.snapshot(&held.volume.at, &request.name).await?;
        crash_point!("snapshot_volume.taken");
        self.snapshot_exists(&held.volume, &request.name).await
    }

    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_delete_volume_snapshot(
        this: &Arc<Self>,
        call: &Call,
        request: v1::DeleteVolumeSnapshotRequest,
    ) -> Result<String, Error> {
        let plan = Self::accept_on_snapshot(this, call, request.volume.as_ref(), &request.name, true).await?;
        begin(this, call, plan)
    }

    /// Removes it; gone already is as good.
    pub(super) async fn run_delete_volume_snapshot(
        &self,
        h: &Handle,
        request: &v1::DeleteVolumeSnapshotRequest,
        limit: Limit,
    ) -> Result<(), Error> {
        let held = self.hold_for_snapshot(h, limit, true).await?;
        let _place = h.enter(&held.volume.at.storage.id, Lane::Short, limit.at, limit.after).await?;
        h.step(format!("removing snapshot {}", request.name));
        self.store.delete_snapshot(&held.volume.at, &request.name).await?;
        crash_point!("delete_volume_snapshot.removed");
        if !self.snapshot_names(&held.volume).await?.contains(&request.name) {
            return Ok(());
        }
        let message = format!("snapshot '{}' of {} was removed, yet it is there", request.name, held.volume.volid());
        Err(Error::StorageFailed { storage: held.volume.at.storage.id.clone(), message })
    }

    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_roll_back_volume(
        this: &Arc<Self>,
        call: &Call,
        request: v1::RollBackVolumeRequest,
    ) -> Result<String, Error> {
        let plan = Self::accept_on_snapshot(this, call, request.volume.as_ref(), &request.name, false).await?;
        let (id, storage) = find::reference(request.volume.as_ref(), "volume")?;
        let volume = this.own_volume(id, &storage, tenant_of(call)).await?;
        this.snapshot_exists(&volume, &request.name).await?;
        begin(this, call, plan)
    }

    /// Brings it back, or does that again: it is the same whoever does it how often.
    pub(super) async fn run_roll_back_volume(&self, h: &Handle, request: &v1::RollBackVolumeRequest, limit: Limit) -> Result<(), Error> {
        // Done before a crash: whoever has started the VM since keeps what it wrote.
        if h.state().volume.copied {
            let held = self.hold_rolled_back(h, limit).await?;
            return self.write_label(&held.volume.at, &h.state().volume.label).await;
        }
        let held = self.hold_for_snapshot(h, limit, false).await?;
        let _place = h.enter(&held.volume.at.storage.id, Lane::Short, limit.at, limit.after).await?;
        h.step(format!("rolling back to {}", request.name));
        held.still()?;
        self.store.roll_back(&held.volume.at, &request.name).await?;
        h.save(|state| state.volume.copied = true).await?;
        crash_point!("roll_back_volume.done");
        // On some storages the snapshot's own label, or none, stands on what came back.
        self.write_label(&held.volume.at, &h.state().volume.label).await
    }
}
