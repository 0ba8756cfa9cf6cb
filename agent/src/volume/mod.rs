//! Volumes: what the calls of `VolumeService` mean.
//!
//! As with VMs each mutation has two parts: `accept` checks what can be checked and begins the operation, `run` carries it out, and goes on
//! with it after a restart of the agent. What is true is read from the storages and from PVE's configs, never from what the agent remembers;
//! the journal only tells what the operation was about to do.
//!
//! Guards keep this agent's operations apart; on a shared storage a lock of the PVE cluster keeps the hosts apart; PVE's digest keeps
//! everybody else apart.

mod attach;
mod change;
mod create;
mod delete;
mod detach;
mod find;
mod hand_over;
mod hold;
mod image;
mod label;
mod list;
mod moving;
mod options;
mod reclaim;
pub(crate) mod retained;
mod run;
mod snapshot;
mod uses;

use prost::Message;
use pvelet_proto::{v1, volume::VolumeId};

use crate::{
    error::Error,
    operation::{Caller, VolumeState, canonical_meta},
    vm::{Call, Inner, Vms},
};

use label::Label;
use run::begin;

/// The volumes of this host. Cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    vms: Vms,
}

/// What an accepted call is about to do.
struct Plan {
    /// The VM; its guard is held where there is one.
    target: v1::VmRef,
    /// The volume; `None` where there are several, in `state.list`.
    id: Option<VolumeId>,
    state: VolumeState,
    /// A volume that must stay as it is meanwhile.
    source: Option<VolumeId>,
    /// What was asked for is so already.
    done: bool,
}

impl Plan {
    /// For a volume that no VM has.
    fn of(volume: &find::Volume) -> Self {
        let state = VolumeState {
            id: volume.id.to_string(),
            storage: volume.at.storage.id.clone(),
            name: volume.at.name.clone(),
            label: volume.label.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..VolumeState::default()
        };
        Self { target: v1::VmRef::default(), id: Some(volume.id), state, source: None, done: false }
    }

    /// Also holds the VM that has the volume.
    fn with_vm(mut self, uses: &[uses::Use]) -> Self {
        if let Some(first) = uses.first() {
            self.target = v1::VmRef { vmid: first.vm.vmid, uuid: first.vm.config.uuid().unwrap_or_default().to_owned() };
        }
        self
    }
}

/// A mutating call: the request without what does not count for its identity, then `accept`.
macro_rules! mutation {
    ($(#[$doc:meta])* $name:ident, $request:ident, $kind:ident, $target:expr, $accept:ident) => {
        $(#[$doc])*
        pub async fn $name(&self, caller: &Caller, request: v1::$request) -> Result<v1::Operation, Error> {
            #[allow(clippy::redundant_closure_call)]
            let target: v1::VmRef = ($target)(&request);
            let canonical = v1::$request { meta: request.meta.as_ref().map(canonical_meta), ..request };
            let kind = v1::OperationKind::$kind;
            let call = self.vms.call(caller, kind, canonical.meta.as_ref(), request.meta.as_ref(), target, &canonical)?;
            let inner = &self.vms.inner;
            Inner::answer(inner, &call, Inner::$accept(inner, &call, canonical)).await
        }
    };
}

fn no_vm<T>(_: &T) -> v1::VmRef {
    v1::VmRef::default()
}

impl Volumes {
    /// The volumes beside `vms`.
    pub fn new(vms: &Vms) -> Self {
        Self { vms: vms.clone() }
    }

    mutation!(
        /// Begins to make a volume. Errors: those of `VolumeService.CreateVolume`.
        create, CreateVolumeRequest, CreateVolume, no_vm, accept_create_volume
    );
    mutation!(
        /// Begins to remove a volume. Errors: those of `VolumeService.DeleteVolume`.
        delete, DeleteVolumeRequest, DeleteVolume, no_vm, accept_delete_volume
    );
    mutation!(
        /// Begins to attach a volume. Errors: those of `VolumeService.AttachVolume`.
        attach, AttachVolumeRequest, AttachVolume, |r: &v1::AttachVolumeRequest| r.vm.clone().unwrap_or_default(), accept_attach_volume
    );
    mutation!(
        /// Begins to detach a volume. Errors: those of `VolumeService.DetachVolume`.
        detach, DetachVolumeRequest, DetachVolume, |r: &v1::DetachVolumeRequest| r.vm.clone().unwrap_or_default(), accept_detach_volume
    );
    mutation!(
        /// Begins to grow a volume. Errors: those of `VolumeService.GrowVolume`.
        grow, GrowVolumeRequest, GrowVolume, no_vm, accept_grow_volume
    );
    mutation!(
        /// Begins to change limits. Errors: those of `VolumeService.SetVolumeLimits`.
        set_limits, SetVolumeLimitsRequest, SetVolumeLimits, no_vm, accept_set_volume_limits
    );
    mutation!(
        /// Begins to take a snapshot. Errors: those of `VolumeService.SnapshotVolume`.
        snapshot, SnapshotVolumeRequest, SnapshotVolume, no_vm, accept_snapshot_volume
    );
    mutation!(
        /// Begins to remove a snapshot. Errors: those of `VolumeService.DeleteVolumeSnapshot`.
        delete_snapshot, DeleteVolumeSnapshotRequest, DeleteVolumeSnapshot, no_vm, accept_delete_volume_snapshot
    );
    mutation!(
        /// Begins to bring a volume back to a snapshot. Errors: those of `VolumeService.RollBackVolume`.
        roll_back, RollBackVolumeRequest, RollBackVolume, no_vm, accept_roll_back_volume
    );
    mutation!(
        /// Begins to move a volume. Errors: those of `VolumeService.MoveVolume`.
        move_to, MoveVolumeRequest, MoveVolume, no_vm, accept_move_volume
    );
    mutation!(
        /// Begins to rename a volume. Errors: those of `VolumeService.HandOverVolume`.
        hand_over, HandOverVolumeRequest, HandOverVolume, |r: &v1::HandOverVolumeRequest| r.vm.clone().unwrap_or_default(), accept_hand_over_volume
    );
    mutation!(
        /// Begins to remove what an owner left. Errors: those of `VolumeService.ReclaimVolumes`.
        reclaim, ReclaimVolumesRequest, ReclaimVolumes, no_vm, accept_reclaim_volumes
    );

    /// What reclaiming would do. Errors: `PveDown`, `PveFsHung`.
    pub async fn reclaimable(&self, request: &v1::ReclaimVolumesRequest, tenant: &str) -> Result<v1::ReclaimVolumesResponse, Error> {
        self.vms.inner.reclaimable(request, tenant).await
    }

    /// The storages that may hold volumes. Errors: `PveDown`.
    pub async fn storages(&self) -> Result<v1::ListStoragesResponse, Error> {
        self.vms.inner.storage_states().await
    }

    /// Volumes by volid. `tenant`: only those of this one, whatever the request says.
    pub async fn list(&self, request: &v1::ListVolumesRequest, tenant: Option<&str>) -> Result<v1::ListVolumesResponse, Error> {
        self.vms.inner.list_volumes(request, tenant).await
    }

    /// One volume. `tenant`: another's is not found.
    pub async fn get(&self, volume: Option<&v1::VolumeRef>, tenant: Option<&str>) -> Result<v1::Volume, Error> {
        self.vms.inner.get_volume(volume, tenant).await
    }

    /// Sums by owner and storage. `tenant`: only its own.
    pub async fn usage(&self, tenant: Option<&str>) -> Result<v1::GetVolumeUsageResponse, Error> {
        self.vms.inner.volume_usage(tenant).await
    }
}

/// A journalled request.
fn decode<T: Message + Default>(request: &[u8]) -> Result<T, Error> {
    T::decode(request).map_err(|e| Error::Internal(format!("the journalled request cannot be read: {e}")))
}

/// For whom a call is made.
fn tenant_of(call: &Call) -> &str {
    &call.meta.tenant
}
