//! `OperationService`.

use futures_util::StreamExt;
use pvelet_proto::v1::{self, operation_service_server::OperationService};
use tonic::{Request, Response, Status};

use super::{BoxStream, Shared, caller, missing_meta};
use crate::{
    auth::{Target, Verb},
    error::Error,
    operation::{AuditLine, Caller},
};

/// `OperationService` of this agent.
#[derive(Clone)]
pub struct OperationRpc(Shared);

impl OperationRpc {
    /// On top of what the services share.
    pub fn new(shared: Shared) -> Self {
        Self(shared)
    }

    /// The tenant to which a read is confined: the caller's own, or the one it asked for.
    fn tenant(&self, caller: &Caller, asked: String) -> Result<String, Error> {
        self.0.authorizer.authorize(&caller.identity, &asked, Verb::Read, Target::Host)?;
        Ok(caller.tenant().map_or(asked, str::to_owned))
    }

    fn cancel(&self, caller: &Caller, request: &v1::CancelOperationRequest) -> Result<v1::Operation, Error> {
        let meta = request.meta.as_ref().ok_or_else(missing_meta)?;
        let operation = self.0.operations.get(&request.name)?;
        let target = Target::Operation { name: &request.name, tenant: &operation.tenant };
        self.0.authorizer.authorize(&caller.identity, &meta.tenant, Verb::Mutate, target)?;
        self.0.host.require_manage()?;
        self.0.operations.cancel(caller, request)
    }

    fn audit_refusal(&self, caller: &Caller, request: &v1::CancelOperationRequest, error: &Error) {
        let meta = request.meta.clone().unwrap_or_default();
        self.0.operations.audit(&AuditLine {
            time: self.0.host.now(),
            caller: caller.identity.to_string(),
            tenant: meta.tenant,
            action: "CANCEL_OPERATION".to_owned(),
            decision: "refused".to_owned(),
            reason: error.reason().to_owned(),
            operation: request.name.clone(),
            request_id: meta.request_id,
            ..AuditLine::default()
        });
    }
}

#[tonic::async_trait]
impl OperationService for OperationRpc {
    async fn get_operation(&self, request: Request<v1::GetOperationRequest>) -> Result<Response<v1::GetOperationResponse>, Status> {
        let caller = caller(&request)?;
        let operation = self.0.operations.get(&request.get_ref().name)?;
        let target = Target::Operation { name: &operation.name, tenant: &operation.tenant };
        self.0.authorizer.authorize(&caller.identity, "", Verb::Read, target)?;
        Ok(Response::new(v1::GetOperationResponse { operation: Some(operation) }))
    }

    async fn list_operations(&self, request: Request<v1::ListOperationsRequest>) -> Result<Response<v1::ListOperationsResponse>, Status> {
        let caller = caller(&request)?;
        let mut request = request.into_inner();
        request.tenant = self.tenant(&caller, std::mem::take(&mut request.tenant))?;
        Ok(Response::new(self.0.operations.list(&request)?))
    }

    type WatchOperationsStream = BoxStream<v1::WatchOperationsResponse>;

    async fn watch_operations(
        &self,
        request: Request<v1::WatchOperationsRequest>,
    ) -> Result<Response<Self::WatchOperationsStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let tenant = self.tenant(&caller, request.tenant)?;
        let tenant = (!tenant.is_empty()).then_some(tenant);
        let items = self.0.operations.watch(tenant.as_deref(), request.since_revision);
        Ok(self.0.stream(items.map(|item| item.map(|operation| v1::WatchOperationsResponse { operation }))))
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::CancelOperationResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let operation = self.cancel(&caller, &request).inspect_err(|error| self.audit_refusal(&caller, &request, error))?;
        let operation = self.0.wait(operation, request.meta.as_ref()).await?;
        Ok(Response::new(v1::CancelOperationResponse { operation: Some(operation) }))
    }
}
