//! `VolumeService`.

use pvelet_proto::v1::{self, OperationKind as Kind, volume_service_server::VolumeService};
use tonic::{Request, Response, Status};

use super::{Shared, caller, detached, missing_meta};
use crate::{
    auth::{Target, Verb},
    error::Error,
    operation::Caller,
};

/// `VolumeService` of this agent.
#[derive(Clone)]
pub struct VolumeRpc(Shared);

impl VolumeRpc {
    /// On top of what the services share.
    pub fn new(shared: Shared) -> Self {
        Self(shared)
    }

    fn authorize(&self, caller: &Caller, kind: Kind, meta: Option<&v1::RequestMeta>, vm: Option<&v1::VmRef>) -> Result<(), Error> {
        self.0.authorize(caller, kind, meta.ok_or_else(missing_meta), vm)
    }

    /// Whether the caller may read for this tenant (empty: for all it may see).
    fn may_read(&self, caller: &Caller, tenant: &str) -> Result<(), Error> {
        self.0.authorizer.authorize(&caller.identity, tenant, Verb::Read, Target::Host).map(drop)
    }
}

/// One mutation: authorized, carried out detached from the connection, answered when it has ended or the caller's `wait` is over.
macro_rules! mutate {
    ($self:ident, $request:ident, $kind:ident, $vm:expr, $call:ident, $response:ident $(, $field:ident: $value:expr)*) => {{
        let caller = caller(&$request)?;
        let $request = $request.into_inner();
        let meta = $request.meta.clone();
        $self.authorize(&caller, Kind::$kind, meta.as_ref(), $vm)?;
        $(let $field = $value;)*
        let volumes = $self.0.volumes.clone();
        let operation = detached(async move { volumes.$call(&caller, $request).await }).await?;
        let operation = $self.0.wait(operation, meta.as_ref()).await?;
        Ok(Response::new(v1::$response { operation: Some(operation) $(, $field)* }))
    }};
}

/// The result of a method.
type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl VolumeService for VolumeRpc {
    async fn list_storages(&self, request: Request<v1::ListStoragesRequest>) -> Answer<v1::ListStoragesResponse> {
        self.may_read(&caller(&request)?, "")?;
        Ok(Response::new(self.0.volumes.storages().await?))
    }

    async fn list_volumes(&self, request: Request<v1::ListVolumesRequest>) -> Answer<v1::ListVolumesResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        self.may_read(&caller, &request.tenant)?;
        Ok(Response::new(self.0.volumes.list(&request, caller.tenant()).await?))
    }

    async fn get_volume(&self, request: Request<v1::GetVolumeRequest>) -> Answer<v1::GetVolumeResponse> {
        let caller = caller(&request)?;
        self.may_read(&caller, "")?;
        let volume = self.0.volumes.get(request.into_inner().volume.as_ref(), caller.tenant()).await?;
        Ok(Response::new(v1::GetVolumeResponse { volume: Some(volume) }))
    }

    async fn get_volume_usage(&self, request: Request<v1::GetVolumeUsageRequest>) -> Answer<v1::GetVolumeUsageResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        self.may_read(&caller, &request.tenant)?;
        let tenant = caller.tenant().or(Some(request.tenant.as_str()).filter(|t| !t.is_empty()));
        Ok(Response::new(self.0.volumes.usage(tenant).await?))
    }

    async fn create_volume(&self, request: Request<v1::CreateVolumeRequest>) -> Answer<v1::CreateVolumeResponse> {
        mutate!(self, request, CreateVolume, None, create, CreateVolumeResponse)
    }

    async fn delete_volume(&self, request: Request<v1::DeleteVolumeRequest>) -> Answer<v1::DeleteVolumeResponse> {
        mutate!(self, request, DeleteVolume, None, delete, DeleteVolumeResponse)
    }

    async fn attach_volume(&self, request: Request<v1::AttachVolumeRequest>) -> Answer<v1::AttachVolumeResponse> {
        mutate!(self, request, AttachVolume, request.vm.as_ref(), attach, AttachVolumeResponse, device_path: device_path(&request))
    }

    async fn detach_volume(&self, request: Request<v1::DetachVolumeRequest>) -> Answer<v1::DetachVolumeResponse> {
        mutate!(self, request, DetachVolume, request.vm.as_ref(), detach, DetachVolumeResponse)
    }

    async fn grow_volume(&self, request: Request<v1::GrowVolumeRequest>) -> Answer<v1::GrowVolumeResponse> {
        mutate!(self, request, GrowVolume, None, grow, GrowVolumeResponse)
    }

    async fn set_volume_limits(&self, request: Request<v1::SetVolumeLimitsRequest>) -> Answer<v1::SetVolumeLimitsResponse> {
        mutate!(self, request, SetVolumeLimits, None, set_limits, SetVolumeLimitsResponse)
    }

    async fn snapshot_volume(&self, request: Request<v1::SnapshotVolumeRequest>) -> Answer<v1::SnapshotVolumeResponse> {
        mutate!(self, request, SnapshotVolume, None, snapshot, SnapshotVolumeResponse)
    }

    async fn delete_volume_snapshot(&self, request: Request<v1::DeleteVolumeSnapshotRequest>) -> Answer<v1::DeleteVolumeSnapshotResponse> {
        mutate!(self, request, DeleteVolumeSnapshot, None, delete_snapshot, DeleteVolumeSnapshotResponse)
    }

    async fn roll_back_volume(&self, request: Request<v1::RollBackVolumeRequest>) -> Answer<v1::RollBackVolumeResponse> {
        mutate!(self, request, RollBackVolume, None, roll_back, RollBackVolumeResponse)
    }

    async fn move_volume(&self, request: Request<v1::MoveVolumeRequest>) -> Answer<v1::MoveVolumeResponse> {
        mutate!(self, request, MoveVolume, None, move_to, MoveVolumeResponse)
    }

    async fn hand_over_volume(&self, request: Request<v1::HandOverVolumeRequest>) -> Answer<v1::HandOverVolumeResponse> {
        mutate!(self, request, HandOverVolume, request.vm.as_ref(), hand_over, HandOverVolumeResponse)
    }

    async fn reclaim_volumes(&self, request: Request<v1::ReclaimVolumesRequest>) -> Answer<v1::ReclaimVolumesResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let meta = request.meta.clone();
        self.authorize(&caller, Kind::ReclaimVolumes, meta.as_ref(), None)?;
        let tenant = meta.as_ref().map(|m| m.tenant.clone()).unwrap_or_default();
        let mut found = self.0.volumes.reclaimable(&request, &tenant).await?;
        if caller.tenant().is_some() {
            found.nobodys.clear();
        }
        if !request.dry_run {
            let volumes = self.0.volumes.clone();
            let operation = detached(async move { volumes.reclaim(&caller, request).await }).await?;
            found.operation = Some(self.0.wait(operation, meta.as_ref()).await?);
        }
        Ok(Response::new(found))
    }
}

/// Where a Linux guest finds the volume of a request; empty where the request names none.
fn device_path(request: &v1::AttachVolumeRequest) -> String {
    let id = request.volume.as_ref().and_then(|v| v.id.parse::<pvelet_proto::volume::VolumeId>().ok());
    id.map(|id| id.device_path()).unwrap_or_default()
}
