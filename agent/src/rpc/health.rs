//! `HealthService`.

use std::sync::Arc;

use pvelet_proto::v1::{self, health_service_server::HealthService};
use tonic::{Request, Response, Status};

use super::{BoxStream, Shared, caller, detached, missing_meta};
use crate::{
    auth::{Target, Verb},
    error::Error,
    health::view,
    operation::Caller,
};

/// `HealthService` of this agent.
#[derive(Clone)]
pub struct HealthRpc(Shared);

impl HealthRpc {
    /// On top of what the services share.
    pub fn new(shared: Shared) -> Self {
        Self(shared)
    }

    fn may_read(&self, caller: &Caller) -> Result<(), Error> {
        self.0.authorizer.authorize(&caller.identity, "", Verb::Read, Target::Host).map(drop)
    }
}

/// The result of a method.
type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl HealthService for HealthRpc {
    async fn get_health(&self, request: Request<v1::GetHealthRequest>) -> Answer<v1::GetHealthResponse> {
        self.may_read(&caller(&request)?)?;
        Ok(Response::new(self.0.health.get(request.get_ref(), self.0.repairs.status())?))
    }

    type WatchHealthStream = BoxStream<v1::WatchHealthResponse>;

    async fn watch_health(&self, request: Request<v1::WatchHealthRequest>) -> Answer<Self::WatchHealthStream> {
        self.may_read(&caller(&request)?)?;
        let (repairs, changed) = (self.0.repairs.clone(), self.0.repairs.changes());
        Ok(self.0.stream(self.0.health.watch(Arc::new(move || repairs.status()), changed)))
    }

    async fn run_check(&self, request: Request<v1::RunCheckRequest>) -> Answer<v1::RunCheckResponse> {
        self.may_read(&caller(&request)?)?;
        let (health, names) = (self.0.health.clone(), request.into_inner().checks);
        let known = detached(async move { health.run(&names).await }).await?;
        Ok(Response::new(v1::RunCheckResponse { checks: known.iter().map(view::check).collect() }))
    }

    async fn repair(&self, request: Request<v1::RepairRequest>) -> Answer<v1::RepairResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let meta = request.meta.clone();
        if request.dry_run {
            self.may_read(&caller)?;
        } else {
            let manages = self.0.repairs.require_manage();
            self.0.authorize_if(manages, &caller, v1::OperationKind::Repair, meta.as_ref().ok_or_else(missing_meta), None)?;
        }
        let repairs = self.0.repairs.clone();
        let mut answer = detached(async move { repairs.repair(&caller, request).await }).await?;
        if let Some(operation) = answer.operation.take() {
            answer.operation = Some(self.0.wait(operation, meta.as_ref()).await?);
        }
        Ok(Response::new(answer))
    }

    async fn clear_repair(&self, request: Request<v1::ClearRepairRequest>) -> Answer<v1::ClearRepairResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let meta = request.meta.as_ref().ok_or_else(missing_meta)?;
        // In observe mode too: it changes nothing on the host.
        self.0.authorizer.authorize(&caller.identity, &meta.tenant, Verb::Mutate, Target::Host)?;
        let repairs = self.0.repairs.clone();
        Ok(Response::new(detached(async move { repairs.clear(&caller, request).await }).await?))
    }
}
