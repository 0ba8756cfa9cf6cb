//! Volumes of the cluster in memory. Storage `local` is each node's own; every other is shared.

use pvelet_proto::{reason, v1, volume::VolumeId};
use tonic::{Code, Request, Response, Status};

use super::{
    agent::Service,
    cluster::{Effect, State},
};
use crate::agents::fake::refusal;

/// What an operation on a volume does.
#[derive(Clone)]
pub(super) enum VolumeEffect {
    Create(Box<v1::CreateVolumeRequest>),
    Attach(u32, String, Box<v1::DiskOptions>),
    Detach(u32, String),
    Grow(String, u64),
    Limits(String, v1::DiskLimits),
    Delete(String),
}

/// A volume, and the node of its storage, unless that is shared.
pub(super) struct Stored {
    pub(super) volume: v1::Volume,
    pub(super) node: Option<String>,
}

fn missing() -> Status {
    refusal(Code::NotFound, "there is no such volume", reason::VOLUME_NOT_FOUND, None)
}

/// The controller does not make this call.
fn unasked<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not asked for here"))
}

impl State {
    fn index(&self, node: &str, id: &str) -> Option<usize> {
        self.volumes.iter().position(|s| s.volume.id == id && s.node.as_ref().is_none_or(|n| n == node))
    }

    fn find(&self, node: &str, volume: Option<v1::VolumeRef>) -> Result<&v1::Volume, Status> {
        let id = volume.unwrap_or_default().id;
        self.index(node, &id).map(|i| &self.volumes[i].volume).ok_or_else(missing)
    }

    /// A volume made by somebody else, on a shared storage.
    pub(super) fn add_volume(&mut self, id: &str, size_bytes: u64) {
        let volume = v1::Volume { id: id.into(), storage: "shared".into(), size_bytes, ..v1::Volume::default() };
        self.volumes.push(Stored { volume, node: None });
    }

    /// How many volumes that the node sees the VM has.
    pub(super) fn attached(&self, node: &str, vmid: u32) -> usize {
        let sees = |d: &&v1::Disk| {
            let mut seen = self.volumes.iter().filter(|s| s.node.as_ref().is_none_or(|n| n == node));
            seen.any(|s| s.volume.id.parse::<VolumeId>().unwrap().serial() == d.serial)
        };
        self.vms.get(&vmid).map_or(0, |vm| vm.disks.iter().filter(sees).count())
    }

    /// The VM is gone: nothing is attached to it any more.
    pub(super) fn forget_attachments(&mut self, vmid: u32) {
        for Stored { volume, .. } in &mut self.volumes {
            volume.attachment.take_if(|a| a.vm.as_ref().is_some_and(|vm| vm.vmid == vmid));
        }
    }

    pub(super) fn volume_ids(&self) -> Vec<String> {
        self.volumes.iter().map(|s| s.volume.id.clone()).collect()
    }

    /// Does it; the VM that changed with it, if any.
    pub(super) fn apply_volume(&mut self, node: &str, effect: VolumeEffect) -> Option<u32> {
        match effect {
            VolumeEffect::Create(request) => {
                if self.index(node, &request.id).is_none() {
                    let on = (request.storage == "local").then(|| node.to_owned());
                    let v1::CreateVolumeRequest { id, storage, size_bytes, owner, .. } = *request;
                    let size_bytes = size_bytes.max(1 << 20);
                    let volume = v1::Volume { id, storage, size_bytes, owner, ..v1::Volume::default() };
                    self.volumes.push(Stored { volume, node: on });
                }
                None
            }
            VolumeEffect::Attach(vmid, id, options) => {
                let at = self.index(node, &id)?;
                let vm = self.vms.get_mut(&vmid)?;
                let slot = format!("scsi{}", vm.disks.len() + 1);
                let serial = id.parse::<VolumeId>().unwrap().serial();
                let stored = &mut self.volumes[at].volume;
                let disk = v1::Disk {
                    slot: slot.clone(),
                    storage: stored.storage.clone(),
                    size_bytes: stored.size_bytes,
                    serial,
                    ..v1::Disk::default()
                };
                stored.attachment = Some(v1::VolumeAttachment {
                    vm: Some(v1::VmRef { vmid, uuid: vm.uuid.clone() }),
                    slot,
                    options: Some(*options),
                    pending_attach: self.attach_later,
                    ..v1::VolumeAttachment::default()
                });
                let there = vm.disks.iter().any(|d| d.serial == disk.serial);
                if !there && !self.attach_later {
                    vm.disks.push(disk);
                    vm.digest.push('a');
                }
                Some(vmid)
            }
            VolumeEffect::Detach(vmid, id) => {
                let at = self.index(node, &id)?;
                self.volumes[at].volume.attachment = None;
                let vm = self.vms.get_mut(&vmid)?;
                let serial = id.parse::<VolumeId>().unwrap().serial();
                vm.disks.retain(|d| d.serial != serial);
                vm.digest.push('d');
                Some(vmid)
            }
            VolumeEffect::Grow(id, size) => {
                let at = self.index(node, &id)?;
                let stored = &mut self.volumes[at].volume;
                stored.size_bytes = size;
                let vmid = stored.attachment.as_ref()?.vm.as_ref()?.vmid;
                let serial = id.parse::<VolumeId>().unwrap().serial();
                let vm = self.vms.get_mut(&vmid)?;
                vm.disks.iter_mut().filter(|d| d.serial == serial).for_each(|d| d.size_bytes = size);
                Some(vmid)
            }
            VolumeEffect::Limits(id, limits) => {
                let at = self.index(node, &id)?;
                let options = self.volumes[at].volume.attachment.as_mut()?.options.as_mut()?;
                options.limits = Some(limits);
                None
            }
            VolumeEffect::Delete(id) => {
                if let Some(at) = self.index(node, &id) {
                    self.volumes.remove(at);
                }
                None
            }
        }
    }
}

impl Service {
    fn volume_order(
        &self,
        call: &'static str,
        meta: Option<v1::RequestMeta>,
        kind: v1::OperationKind,
        effect: impl FnOnce(&mut State) -> Result<VolumeEffect, Status>,
    ) -> Result<Option<v1::Operation>, Status> {
        self.cluster.begin(&self.node, call, meta, kind, |state| effect(state).map(Effect::Volume)).map(Some)
    }
}

#[tonic::async_trait]
impl v1::volume_service_server::VolumeService for Service {
    async fn get_volume(&self, request: Request<v1::GetVolumeRequest>) -> Result<Response<v1::GetVolumeResponse>, Status> {
        let state = self.cluster.lock();
        let volume = state.find(&self.node, request.into_inner().volume)?.clone();
        Ok(Response::new(v1::GetVolumeResponse { volume: Some(volume) }))
    }

    async fn create_volume(&self, request: Request<v1::CreateVolumeRequest>) -> Result<Response<v1::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let effect = VolumeEffect::Create(Box::new(request.clone()));
        let operation = self.volume_order("CreateVolume", request.meta, v1::OperationKind::CreateVolume, |_| Ok(effect))?;
        Ok(Response::new(v1::CreateVolumeResponse { operation }))
    }

    async fn delete_volume(&self, request: Request<v1::DeleteVolumeRequest>) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let v1::DeleteVolumeRequest { meta, volume } = request.into_inner();
        let operation = self.volume_order("DeleteVolume", meta, v1::OperationKind::DeleteVolume, |state| {
            match state.find(&self.node, volume.clone()) {
                Ok(found) if found.attachment.is_some() => {
                    Err(refusal(Code::FailedPrecondition, "it is attached", reason::VOLUME_IN_USE, None))
                }
                _ => Ok(VolumeEffect::Delete(volume.unwrap_or_default().id)),
            }
        })?;
        Ok(Response::new(v1::DeleteVolumeResponse { operation }))
    }

    async fn attach_volume(&self, request: Request<v1::AttachVolumeRequest>) -> Result<Response<v1::AttachVolumeResponse>, Status> {
        let v1::AttachVolumeRequest { meta, volume, vm, options } = request.into_inner();
        let operation = self.volume_order("AttachVolume", meta, v1::OperationKind::AttachVolume, |state| {
            let vmid = state.target(&self.node, vm)?;
            let found = state.find(&self.node, volume)?;
            let holder = found.attachment.as_ref().and_then(|a| a.vm.as_ref()).map(|vm| vm.vmid);
            if holder.is_some_and(|h| h != vmid) {
                return Err(refusal(Code::FailedPrecondition, "another VM has it", reason::VOLUME_IN_USE, None));
            }
            Ok(VolumeEffect::Attach(vmid, found.id.clone(), Box::new(options.unwrap_or_default())))
        })?;
        Ok(Response::new(v1::AttachVolumeResponse { operation, device_path: String::new() }))
    }

    async fn detach_volume(&self, request: Request<v1::DetachVolumeRequest>) -> Result<Response<v1::DetachVolumeResponse>, Status> {
        let v1::DetachVolumeRequest { meta, volume, vm } = request.into_inner();
        let operation = self.volume_order("DetachVolume", meta, v1::OperationKind::DetachVolume, |state| {
            let vmid = state.target(&self.node, vm)?;
            Ok(VolumeEffect::Detach(vmid, state.find(&self.node, volume)?.id.clone()))
        })?;
        Ok(Response::new(v1::DetachVolumeResponse { operation }))
    }

    async fn grow_volume(&self, request: Request<v1::GrowVolumeRequest>) -> Result<Response<v1::GrowVolumeResponse>, Status> {
        let v1::GrowVolumeRequest { meta, volume, size_bytes } = request.into_inner();
        let operation = self.volume_order("GrowVolume", meta, v1::OperationKind::GrowVolume, |state| {
            Ok(VolumeEffect::Grow(state.find(&self.node, volume)?.id.clone(), size_bytes))
        })?;
        Ok(Response::new(v1::GrowVolumeResponse { operation }))
    }

    async fn set_volume_limits(
        &self,
        request: Request<v1::SetVolumeLimitsRequest>,
    ) -> Result<Response<v1::SetVolumeLimitsResponse>, Status> {
        let v1::SetVolumeLimitsRequest { meta, volume, limits } = request.into_inner();
        let operation = self.volume_order("SetVolumeLimits", meta, v1::OperationKind::SetVolumeLimits, |state| {
            Ok(VolumeEffect::Limits(state.find(&self.node, volume)?.id.clone(), limits.unwrap_or_default()))
        })?;
        Ok(Response::new(v1::SetVolumeLimitsResponse { operation }))
    }

    async fn list_storages(&self, _: Request<v1::ListStoragesRequest>) -> Result<Response<v1::ListStoragesResponse>, Status> {
        unasked()
    }

    async fn list_volumes(&self, _: Request<v1::ListVolumesRequest>) -> Result<Response<v1::ListVolumesResponse>, Status> {
        unasked()
    }

    async fn get_volume_usage(&self, _: Request<v1::GetVolumeUsageRequest>) -> Result<Response<v1::GetVolumeUsageResponse>, Status> {
        unasked()
    }

    async fn snapshot_volume(&self, _: Request<v1::SnapshotVolumeRequest>) -> Result<Response<v1::SnapshotVolumeResponse>, Status> {
        unasked()
    }

    async fn delete_volume_snapshot(
        &self,
        _: Request<v1::DeleteVolumeSnapshotRequest>,
    ) -> Result<Response<v1::DeleteVolumeSnapshotResponse>, Status> {
        unasked()
    }

    async fn roll_back_volume(&self, _: Request<v1::RollBackVolumeRequest>) -> Result<Response<v1::RollBackVolumeResponse>, Status> {
        unasked()
    }

    async fn move_volume(&self, _: Request<v1::MoveVolumeRequest>) -> Result<Response<v1::MoveVolumeResponse>, Status> {
        unasked()
    }

    async fn hand_over_volume(&self, _: Request<v1::HandOverVolumeRequest>) -> Result<Response<v1::HandOverVolumeResponse>, Status> {
        unasked()
    }

    async fn reclaim_volumes(&self, _: Request<v1::ReclaimVolumesRequest>) -> Result<Response<v1::ReclaimVolumesResponse>, Status> {
        unasked()
    }
}
