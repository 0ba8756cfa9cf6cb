//! `HealthService`.

use pvelet_proto::v1::{self, health_service_server::HealthService};
use tonic::{Request, Response, Status};

use super::{BoxStream, Shared, caller, detached};
use crate::{
    auth::{Target, Verb},
    error::Error,
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
        Ok(Response::new(self.0.health.get(request.get_ref(), v1::RepairStatus::default())?))
    }

    type WatchHealthStream = BoxStream<v1::WatchHealthResponse>;

    async fn watch_health(&self, request: Request<v1::WatchHealthRequest>) -> Answer<Self::WatchHealthStream> {
        self.may_read(&caller(&request)?)?;
        let changed = tokio::sync::watch::channel(()).1;
        Ok(self.0.stream(self.0.health.watch(std::sync::Arc::new(v1::RepairStatus::default), changed)))
    }

    async fn run_check(&self, request: Request<v1::RunCheckRequest>) -> Answer<v1::RunCheckResponse> {
        self.may_read(&caller(&request)?)?;
        let (health, names) = (self.0.health.clone(), request.into_inner().checks);
        let known = detached(async move { health.run(&names).await }).await?;
        Ok(Response::new(v1::RunCheckResponse { checks: known.iter().map(crate::health::view::check).collect() }))
    }

    async fn repair(&self, _: Request<v1::RepairRequest>) -> Answer<v1::RepairResponse> {
        Err(Status::unimplemented(""))
    }

    async fn clear_repair(&self, _: Request<v1::ClearRepairRequest>) -> Answer<v1::ClearRepairResponse> {
        Err(Status::unimplemented(""))
    }
}
