//! `NetworkService`.

use std::time::Duration;

use pvelet_proto::v1::{self, OperationKind as Kind, network_service_server::NetworkService};
use tonic::{Request, Response, Status};

use super::{Shared, caller, detached, missing_meta};
use crate::{
    auth::{Target, Verb},
    error::Error,
    operation::Caller,
    tls::Peer,
};

/// `NetworkService` of this agent.
#[derive(Clone)]
pub struct NetworkRpc(Shared);

impl NetworkRpc {
    /// On top of what the services share.
    pub fn new(shared: Shared) -> Self {
        Self(shared)
    }

    fn may_read(&self, caller: &Caller) -> Result<(), Error> {
        self.0.authorizer.authorize(&caller.identity, "", Verb::Read, Target::Host).map(drop)
    }

    /// Authorizes what is no operation of its own, but changes one.
    fn may_decide(&self, caller: &Caller, meta: Option<&v1::RequestMeta>, operation: &str) -> Result<(), Error> {
        let meta = meta.ok_or_else(missing_meta)?;
        let known = self.0.operations.get(operation).ok();
        let target = match &known {
            Some(known) => Target::Operation { name: operation, tenant: &known.tenant },
            // Its journal may be lost; the change itself is not.
            None => Target::Host,
        };
        self.0.authorizer.authorize(&caller.identity, &meta.tenant, Verb::Mutate, target)?;
        self.0.host.require_manage()
    }
}

/// When the caller's connection was opened.
fn opened<T>(request: &Request<T>) -> Duration {
    request.extensions().get::<Peer>().map(Peer::opened).unwrap_or_default()
}

/// The result of a method.
type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl NetworkService for NetworkRpc {
    async fn get_network(&self, request: Request<v1::GetNetworkRequest>) -> Answer<v1::GetNetworkResponse> {
        self.may_read(&caller(&request)?)?;
        Ok(Response::new(self.0.networks.get(request.get_ref()).await?))
    }

    async fn plan_network(&self, request: Request<v1::PlanNetworkRequest>) -> Answer<v1::PlanNetworkResponse> {
        let caller = caller(&request)?;
        self.may_read(&caller)?;
        let vlans = self.0.authorizer.vlans(&caller.identity);
        Ok(Response::new(self.0.networks.plan(request.into_inner(), &vlans).await?))
    }

    async fn apply_network(&self, request: Request<v1::ApplyNetworkRequest>) -> Answer<v1::ApplyNetworkResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let meta = request.meta.clone();
        self.0.authorize(&caller, Kind::ApplyNetwork, meta.as_ref().ok_or_else(missing_meta), None)?;
        let (networks, vlans) = (self.0.networks.clone(), self.0.authorizer.vlans(&caller.identity));
        let operation = detached(async move { networks.apply(&caller, request, &vlans).await }).await?;
        let operation = Some(self.0.wait(operation, meta.as_ref()).await?);
        Ok(Response::new(v1::ApplyNetworkResponse { operation }))
    }

    async fn remove_network(&self, request: Request<v1::RemoveNetworkRequest>) -> Answer<v1::RemoveNetworkResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let meta = request.meta.clone();
        self.0.authorize(&caller, Kind::RemoveNetwork, meta.as_ref().ok_or_else(missing_meta), None)?;
        let (networks, vlans) = (self.0.networks.clone(), self.0.authorizer.vlans(&caller.identity));
        let operation = detached(async move { networks.remove(&caller, request, &vlans).await }).await?;
        let operation = Some(self.0.wait(operation, meta.as_ref()).await?);
        Ok(Response::new(v1::RemoveNetworkResponse { operation }))
    }

    async fn confirm_network(&self, request: Request<v1::ConfirmNetworkRequest>) -> Answer<v1::ConfirmNetworkResponse> {
        let (caller, opened) = (caller(&request)?, opened(&request));
        let request = request.into_inner();
        self.may_decide(&caller, request.meta.as_ref(), &request.operation)?;
        let networks = self.0.networks.clone();
        Ok(Response::new(detached(async move { networks.confirm(&caller, request, opened).await }).await?))
    }

    async fn rollback_network(&self, request: Request<v1::RollbackNetworkRequest>) -> Answer<v1::RollbackNetworkResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        self.may_decide(&caller, request.meta.as_ref(), &request.operation)?;
        let networks = self.0.networks.clone();
        Ok(Response::new(detached(async move { networks.roll_back(&caller, request).await }).await?))
    }

    async fn clear_network(&self, request: Request<v1::ClearNetworkRequest>) -> Answer<v1::ClearNetworkResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        self.may_decide(&caller, request.meta.as_ref(), "")?;
        let networks = self.0.networks.clone();
        detached(async move { networks.clear(&caller, request).await }).await?;
        Ok(Response::new(v1::ClearNetworkResponse {}))
    }

    async fn probe_network(&self, request: Request<v1::ProbeNetworkRequest>) -> Answer<v1::ProbeNetworkResponse> {
        let caller = caller(&request)?;
        self.may_read(&caller)?;
        let vlans = self.0.authorizer.vlans(&caller.identity);
        let (networks, request) = (self.0.networks.clone(), request.into_inner());
        // The port that it makes is removed though the caller goes away.
        Ok(Response::new(detached(async move { networks.probe(&request, &vlans).await }).await?))
    }
}
