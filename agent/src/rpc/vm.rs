//! `VmService`.

use pvelet_proto::v1::{self, OperationKind as Kind, vm_service_server::VmService};
use tonic::{Request, Response, Status};

use super::{Shared, caller, detached, missing_meta};
use crate::{
    auth::{Target, Verb},
    error::Error,
    operation::Caller,
};

/// `VmService` of this agent.
#[derive(Clone)]
pub struct VmRpc(Shared);

impl VmRpc {
    /// On top of what the services share.
    pub fn new(shared: Shared) -> Self {
        Self(shared)
    }

    fn authorize(&self, caller: &Caller, kind: Kind, meta: Option<&v1::RequestMeta>, vm: Option<&v1::VmRef>) -> Result<(), Error> {
        self.0.authorize(caller, kind, meta.ok_or_else(missing_meta), vm)
    }
}

/// One mutation: authorized, carried out detached from the connection, answered when it has ended or the caller's `wait` is over.
macro_rules! mutate {
    ($self:ident, $request:ident, $kind:expr, $vm:expr, $call:ident, $response:ident) => {{
        let caller = caller(&$request)?;
        let $request = $request.into_inner();
        let meta = $request.meta.clone();
        $self.authorize(&caller, $kind, meta.as_ref(), $vm)?;
        let vms = $self.0.vms.clone();
        let operation = detached(async move { vms.$call(&caller, $request).await }).await?;
        let operation = $self.0.wait(operation, meta.as_ref()).await?;
        Ok(Response::new(v1::$response { operation: Some(operation) }))
    }};
}

#[tonic::async_trait]
impl VmService for VmRpc {
    async fn list_vms(&self, request: Request<v1::ListVmsRequest>) -> Result<Response<v1::ListVmsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        self.0.authorizer.authorize(&caller.identity, &request.tenant, Verb::Read, Target::Host)?;
        Ok(Response::new(self.0.vms.list(&request, caller.tenant())?))
    }

    async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Result<Response<v1::GetVmResponse>, Status> {
        let caller = caller(&request)?;
        let vm = self.0.vms.get(&request.into_inner().vm.unwrap_or_default(), caller.tenant()).await?;
        let owner = vm.mark.as_ref().and_then(|m| m.owner.as_ref()).map(|o| o.tenant.as_str());
        self.0.authorizer.authorize(&caller.identity, "", Verb::Read, Target::Vm { vmid: vm.vmid, owner })?;
        Ok(Response::new(v1::GetVmResponse { vm: Some(vm) }))
    }

    async fn clone_vm(&self, request: Request<v1::CloneVmRequest>) -> Result<Response<v1::CloneVmResponse>, Status> {
        mutate!(self, request, Kind::CloneVm, None, clone_vm, CloneVmResponse)
    }

    async fn configure_vm(&self, request: Request<v1::ConfigureVmRequest>) -> Result<Response<v1::ConfigureVmResponse>, Status> {
        mutate!(self, request, Kind::ConfigureVm, request.vm.as_ref(), configure_vm, ConfigureVmResponse)
    }

    async fn start_vm(&self, request: Request<v1::StartVmRequest>) -> Result<Response<v1::StartVmResponse>, Status> {
        mutate!(self, request, Kind::StartVm, request.vm.as_ref(), start_vm, StartVmResponse)
    }

    async fn shutdown_vm(&self, request: Request<v1::ShutdownVmRequest>) -> Result<Response<v1::ShutdownVmResponse>, Status> {
        mutate!(self, request, Kind::ShutdownVm, request.vm.as_ref(), shutdown_vm, ShutdownVmResponse)
    }

    async fn stop_vm(&self, request: Request<v1::StopVmRequest>) -> Result<Response<v1::StopVmResponse>, Status> {
        mutate!(self, request, Kind::StopVm, request.vm.as_ref(), stop_vm, StopVmResponse)
    }

    async fn reset_vm(&self, request: Request<v1::ResetVmRequest>) -> Result<Response<v1::ResetVmResponse>, Status> {
        mutate!(self, request, Kind::ResetVm, request.vm.as_ref(), reset_vm, ResetVmResponse)
    }

    async fn delete_vm(&self, request: Request<v1::DeleteVmRequest>) -> Result<Response<v1::DeleteVmResponse>, Status> {
        mutate!(self, request, Kind::DeleteVm, request.vm.as_ref(), delete_vm, DeleteVmResponse)
    }
}
