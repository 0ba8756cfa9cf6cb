//! The fake's VolumeService: storages and volumes in memory. A mutation changes them at once when its operation is to succeed.

use pvelet_proto::{
    reason,
    v1::{
        self, OperationKind, OperationVolume, Storage, StorageStatus, VmRef, Volume, VolumeAttachment, VolumeOwner, VolumeRef,
        volume_service_server::VolumeService,
    },
    volume::VolumeId,
};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::{Ending, Service, State, refusal};

/// The reserved id in the names of the fake's volumes.
const RESERVED: u32 = 9999;

/// What the fake holds of volumes.
#[derive(Default)]
pub(crate) struct Volumes {
    pub(crate) storages: Vec<StorageStatus>,
    pub(crate) volumes: Vec<Volume>,
    /// Storages that cannot be asked, `<storage>: <why>`.
    pub(crate) unreachable: Vec<String>,
    /// Requests with more in them than their line in the list of requests tells.
    pub(crate) creates: Vec<v1::CreateVolumeRequest>,
    pub(crate) attaches: Vec<v1::AttachVolumeRequest>,
    pub(crate) limits: Vec<v1::SetVolumeLimitsRequest>,
}

/// A volume id that is easy to tell from others: `<n>` in its first eight digits.
pub(crate) fn id(n: u32) -> String {
    format!("{n:08}-53f9-4634-b1ce-5e6c3aa3a726")
}

/// A volume of 10 GiB of tenant "default".
pub(crate) fn volume(n: u32, storage: &str) -> Volume {
    let id = VolumeId::new(Uuid::parse_str(&id(n)).unwrap());
    Volume {
        id: id.to_string(),
        volid: format!("{storage}:{}", id.disk_name(RESERVED)),
        storage: storage.to_owned(),
        format: "raw".to_owned(),
        size_bytes: 10 << 30,
        used_bytes: 1 << 30,
        owner: Some(VolumeOwner { tenant: "default".to_owned(), cluster: "prod".to_owned(), claim: format!("ns/data-{n}") }),
        serial: id.serial(),
        device_path: id.device_path(),
        name_vmid: RESERVED,
        ..Volume::default()
    }
}

/// Attached to a VM of a node.
pub(crate) fn attached(volume: Volume, vm: &v1::Vm, slot: &str) -> Volume {
    let vm_ref = VmRef { vmid: vm.vmid, uuid: vm.uuid.clone() };
    let options = Some(v1::DiskOptions { cache: "none".to_owned(), iothread: true, ..v1::DiskOptions::default() });
    let attachment =
        VolumeAttachment { vm: Some(vm_ref), node: vm.node.clone(), slot: slot.to_owned(), options, ..VolumeAttachment::default() };
    Volume { attachment: Some(attachment), ..volume }
}

/// A storage that can have volumes.
pub(crate) fn storage(id: &str, shared: bool) -> StorageStatus {
    let storage = Storage {
        id: id.to_owned(),
        r#type: if shared { "rbd" } else { "lvmthin" }.to_owned(),
        content: vec!["images".to_owned(), "rootdir".to_owned()],
        active: true,
        enabled: true,
        shared,
        total_bytes: 100 << 30,
        available_bytes: 75 << 30,
    };
    let raw = || vec!["raw".to_owned()];
    StorageStatus { storage: Some(storage), problem: String::new(), formats: raw(), snapshot_formats: raw(), volumes: true }
}

impl State {
    /// Adds a storage, to the host's facts too.
    pub(crate) fn add_storage(&mut self, status: StorageStatus) {
        self.host.storages.extend(status.storage.clone());
        self.volumes.storages.push(status);
    }

    fn has_storage(&self, id: &str) -> Result<(), Status> {
        if id.is_empty() || self.host.storages.iter().any(|s| s.id == id) {
            return Ok(());
        }
        Err(refusal(Code::NotFound, &format!("storage '{id}' does not exist on node {}", self.host.node), reason::STORAGE_NOT_FOUND, None))
    }
}

fn is_of(volume: &Volume, tenant: &str) -> bool {
    volume.owner.as_ref().is_some_and(|o| o.tenant == tenant)
}

impl Service {
    fn find_volume(&self, wanted: &VolumeRef) -> Result<Volume, Status> {
        let state = self.state.lock().unwrap();
        state.has_storage(&wanted.storage)?;
        let mut volumes = state.volumes.volumes.iter();
        let found = volumes.find(|v| v.id == wanted.id && (wanted.storage.is_empty() || v.storage == wanted.storage));
        let missing = || refusal(Code::NotFound, &format!("no volume {}", wanted.id), reason::VOLUME_NOT_FOUND, None);
        found.cloned().ok_or_else(missing)
    }

    /// A mutation of a volume that exists; `effect` is what it does to the volume, which is removed where `false` comes back.
    fn change(
        &self,
        meta: Option<v1::RequestMeta>,
        kind: OperationKind,
        volume: Option<VolumeRef>,
        target: Option<VmRef>,
        text: &str,
        effect: impl FnOnce(&mut Volume) -> bool,
    ) -> Result<Option<v1::Operation>, Status> {
        let volume = volume.unwrap_or_default();
        let known = self.find_volume(&volume);
        // Deleting what is gone is a success.
        if !matches!(kind, OperationKind::DeleteVolume) {
            known.as_ref().map_err(Clone::clone)?;
        }
        let text = format!("{} {}{}", word(kind), volume.id, if text.is_empty() { String::new() } else { format!(" {text}") });
        let named = OperationVolume { id: volume.id.clone(), storage: known.map(|v| v.storage).unwrap_or_default() };
        let operation = self.mutate_on(meta, kind, target, Some(named), text)?;
        let mut state = self.state.lock().unwrap();
        if matches!(state.ending, Ending::Success)
            && let Some(at) = state.volumes.volumes.iter().position(|v| v.id == volume.id)
            && !effect(&mut state.volumes.volumes[at])
        {
            state.volumes.volumes.remove(at);
        }
        Ok(Some(operation))
    }
}

fn word(kind: OperationKind) -> String {
    kind.as_str_name().trim_start_matches("OPERATION_KIND_").to_ascii_lowercase()
}

/// The VM as a line of the list of requests names it.
fn vm_text(vm: Option<&VmRef>) -> String {
    vm.map(|vm| format!("{} {}", vm.vmid, vm.uuid)).unwrap_or_default()
}

#[tonic::async_trait]
impl VolumeService for Service {
    async fn list_storages(&self, _: Request<v1::ListStoragesRequest>) -> Result<Response<v1::ListStoragesResponse>, Status> {
        self.may_hang().await;
        Ok(Response::new(v1::ListStoragesResponse { storages: self.state.lock().unwrap().volumes.storages.clone() }))
    }

    async fn list_volumes(&self, request: Request<v1::ListVolumesRequest>) -> Result<Response<v1::ListVolumesResponse>, Status> {
        self.may_hang().await;
        let request = request.into_inner();
        let state = self.state.lock().unwrap();
        state.has_storage(&request.storage)?;
        let same = |wanted: &str, has: &str| wanted.is_empty() || wanted == has;
        let fits = |v: &&Volume| {
            let owner = v.owner.clone().unwrap_or_default();
            same(&request.storage, &v.storage)
                && same(&request.tenant, &owner.tenant)
                && same(&request.cluster, &owner.cluster)
                && same(&request.claim, &owner.claim)
                && (!request.nobodys || v.owner.is_none())
        };
        let mut fitting: Vec<Volume> = state.volumes.volumes.iter().filter(fits).cloned().collect();
        fitting.sort_by(|a, b| a.volid.cmp(&b.volid));
        for v in &mut fitting {
            v.snapshots.clear();
        }
        // Pages of two show that clients read on.
        let from: usize = request.page_token.parse().unwrap_or(0);
        let next_page_token = if from + 2 < fitting.len() { (from + 2).to_string() } else { String::new() };
        let volumes = fitting.into_iter().skip(from).take(2).collect();
        Ok(Response::new(v1::ListVolumesResponse { volumes, next_page_token, unreachable: state.volumes.unreachable.clone() }))
    }

    async fn get_volume(&self, request: Request<v1::GetVolumeRequest>) -> Result<Response<v1::GetVolumeResponse>, Status> {
        self.may_hang().await;
        let volume = self.find_volume(&request.into_inner().volume.unwrap_or_default())?;
        Ok(Response::new(v1::GetVolumeResponse { volume: Some(volume) }))
    }

    async fn get_volume_usage(&self, request: Request<v1::GetVolumeUsageRequest>) -> Result<Response<v1::GetVolumeUsageResponse>, Status> {
        self.may_hang().await;
        let tenant = request.into_inner().tenant;
        let state = self.state.lock().unwrap();
        let mut usage: Vec<v1::VolumeUsage> = Vec::new();
        for v in state.volumes.volumes.iter().filter(|v| tenant.is_empty() || is_of(v, &tenant)) {
            let owner = v.owner.clone().map(|o| VolumeOwner { claim: String::new(), ..o });
            let known = usage.iter_mut().find(|u| u.owner == owner && u.storage == v.storage);
            let sum = match known {
                Some(sum) => sum,
                None => {
                    usage.push(v1::VolumeUsage { owner, storage: v.storage.clone(), ..v1::VolumeUsage::default() });
                    usage.last_mut().unwrap()
                }
            };
            sum.volumes += 1;
            sum.size_bytes += v.size_bytes;
            sum.used_bytes += v.used_bytes;
        }
        Ok(Response::new(v1::GetVolumeUsageResponse { usage, unreachable: state.volumes.unreachable.clone() }))
    }

    async fn create_volume(&self, request: Request<v1::CreateVolumeRequest>) -> Result<Response<v1::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        self.state.lock().unwrap().has_storage(&request.storage)?;
        let id = if request.id.is_empty() { VolumeId::random() } else { request.id.parse().unwrap() };
        let named = OperationVolume { id: id.to_string(), storage: request.storage.clone() };
        let text = format!("create_volume {} {}", request.storage, request.size_bytes);
        let operation = self.mutate_on(request.meta.clone(), OperationKind::CreateVolume, None, Some(named), text)?;
        let mut state = self.state.lock().unwrap();
        if matches!(state.ending, Ending::Success) {
            let tenant = request.meta.clone().unwrap_or_default().tenant;
            state.volumes.volumes.push(Volume {
                id: id.to_string(),
                volid: format!("{}:{}", request.storage, id.disk_name(RESERVED)),
                size_bytes: request.size_bytes,
                owner: Some(VolumeOwner { tenant, ..request.owner.clone().unwrap_or_default() }),
                serial: id.serial(),
                device_path: id.device_path(),
                ..volume(0, &request.storage)
            });
        }
        state.volumes.creates.push(request);
        Ok(Response::new(v1::CreateVolumeResponse { operation: Some(operation) }))
    }

    async fn delete_volume(&self, request: Request<v1::DeleteVolumeRequest>) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let r = request.into_inner();
        let operation = self.change(r.meta, OperationKind::DeleteVolume, r.volume, None, "", |_| false)?;
        let _ = self.mute.clone().wait_for(|m| !*m).await;
        Ok(Response::new(v1::DeleteVolumeResponse { operation }))
    }

    async fn attach_volume(&self, request: Request<v1::AttachVolumeRequest>) -> Result<Response<v1::AttachVolumeResponse>, Status> {
        let r = request.into_inner();
        let vm = self.find(&r.vm.clone().unwrap_or_default())?;
        let device_path = self.find_volume(&r.volume.clone().unwrap_or_default())?.device_path;
        self.state.lock().unwrap().volumes.attaches.push(r.clone());
        let text = vm_text(r.vm.as_ref());
        let operation = self.change(r.meta, OperationKind::AttachVolume, r.volume, r.vm, &text, |v| {
            *v = attached(v.clone(), &vm, "scsi1");
            true
        })?;
        Ok(Response::new(v1::AttachVolumeResponse { operation, device_path }))
    }

    async fn detach_volume(&self, request: Request<v1::DetachVolumeRequest>) -> Result<Response<v1::DetachVolumeResponse>, Status> {
        let r = request.into_inner();
        self.find(&r.vm.clone().unwrap_or_default())?;
        let text = vm_text(r.vm.as_ref());
        let operation = self.change(r.meta, OperationKind::DetachVolume, r.volume, r.vm, &text, |v| {
            v.attachment = None;
            true
        })?;
        Ok(Response::new(v1::DetachVolumeResponse { operation }))
    }

    async fn grow_volume(&self, request: Request<v1::GrowVolumeRequest>) -> Result<Response<v1::GrowVolumeResponse>, Status> {
        let r = request.into_inner();
        let text = r.size_bytes.to_string();
        let operation = self.change(r.meta, OperationKind::GrowVolume, r.volume, None, &text, |v| {
            v.size_bytes = r.size_bytes;
            true
        })?;
        Ok(Response::new(v1::GrowVolumeResponse { operation }))
    }

    async fn set_volume_limits(
        &self,
        request: Request<v1::SetVolumeLimitsRequest>,
    ) -> Result<Response<v1::SetVolumeLimitsResponse>, Status> {
        let r = request.into_inner();
        self.state.lock().unwrap().volumes.limits.push(r.clone());
        let operation = self.change(r.meta, OperationKind::SetVolumeLimits, r.volume, None, "", |v| {
            if let Some(options) = v.attachment.as_mut().and_then(|a| a.options.as_mut()) {
                options.limits = r.limits;
            }
            true
        })?;
        Ok(Response::new(v1::SetVolumeLimitsResponse { operation }))
    }

    async fn snapshot_volume(&self, request: Request<v1::SnapshotVolumeRequest>) -> Result<Response<v1::SnapshotVolumeResponse>, Status> {
        let r = request.into_inner();
        let operation = self.change(r.meta, OperationKind::SnapshotVolume, r.volume, None, &r.name, |v| {
            v.snapshots.push(v1::VolumeSnapshot { name: r.name.clone(), create_time: None });
            true
        })?;
        Ok(Response::new(v1::SnapshotVolumeResponse { operation }))
    }

    async fn delete_volume_snapshot(
        &self,
        request: Request<v1::DeleteVolumeSnapshotRequest>,
    ) -> Result<Response<v1::DeleteVolumeSnapshotResponse>, Status> {
        let r = request.into_inner();
        let operation = self.change(r.meta, OperationKind::DeleteVolumeSnapshot, r.volume, None, &r.name, |v| {
            v.snapshots.retain(|s| s.name != r.name);
            true
        })?;
        Ok(Response::new(v1::DeleteVolumeSnapshotResponse { operation }))
    }

    async fn roll_back_volume(&self, request: Request<v1::RollBackVolumeRequest>) -> Result<Response<v1::RollBackVolumeResponse>, Status> {
        let r = request.into_inner();
        let operation = self.change(r.meta, OperationKind::RollBackVolume, r.volume, None, &r.name, |_| true)?;
        Ok(Response::new(v1::RollBackVolumeResponse { operation }))
    }

    async fn move_volume(&self, request: Request<v1::MoveVolumeRequest>) -> Result<Response<v1::MoveVolumeResponse>, Status> {
        let r = request.into_inner();
        let text = format!("{} {}", r.storage, r.format).trim_end().to_owned();
        let operation = self.change(r.meta, OperationKind::MoveVolume, r.volume, None, &text, |v| {
            v.storage.clone_from(&r.storage);
            true
        })?;
        Ok(Response::new(v1::MoveVolumeResponse { operation }))
    }

    async fn hand_over_volume(&self, request: Request<v1::HandOverVolumeRequest>) -> Result<Response<v1::HandOverVolumeResponse>, Status> {
        let r = request.into_inner();
        let vmid = r.vm.as_ref().map_or(0, |vm| vm.vmid);
        let name_vmid = if r.name() == v1::VolumeName::Vm { vmid } else { RESERVED };
        let text = format!("{} to {name_vmid}", vm_text(r.vm.as_ref()));
        let operation = self.change(r.meta, OperationKind::HandOverVolume, r.volume, r.vm, &text, |v| {
            v.name_vmid = name_vmid;
            true
        })?;
        Ok(Response::new(v1::HandOverVolumeResponse { operation }))
    }

    async fn reclaim_volumes(&self, request: Request<v1::ReclaimVolumesRequest>) -> Result<Response<v1::ReclaimVolumesResponse>, Status> {
        let r = request.into_inner();
        let tenant = r.meta.clone().unwrap_or_default().tenant;
        let mut answer = v1::ReclaimVolumesResponse::default();
        {
            let state = self.state.lock().unwrap();
            for v in &state.volumes.volumes {
                let Some(owner) = &v.owner else {
                    answer.nobodys.push(v.clone());
                    continue;
                };
                if owner.tenant != tenant || (!r.all_clusters && owner.cluster != r.cluster) {
                    continue;
                }
                match &v.attachment {
                    Some(a) => {
                        let vmid = a.vm.as_ref().map_or(0, |vm| vm.vmid);
                        answer.kept.push(Volume { problem: format!("attached to VM {vmid}"), ..v.clone() });
                    }
                    None => answer.volumes.push(v.clone()),
                }
            }
            answer.unreachable.clone_from(&state.volumes.unreachable);
        }
        if !r.dry_run {
            let text = format!("reclaim_volumes {tenant} {}", if r.all_clusters { "*" } else { &r.cluster });
            answer.operation = Some(self.mutate_on(r.meta, OperationKind::ReclaimVolumes, None, None, text)?);
            let mut state = self.state.lock().unwrap();
            if matches!(state.ending, Ending::Success) {
                state.volumes.volumes.retain(|v| !answer.volumes.iter().any(|gone| gone.volid == v.volid));
            }
        }
        Ok(Response::new(answer))
    }
}
