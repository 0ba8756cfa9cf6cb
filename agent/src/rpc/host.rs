//! `HostService`.

use pvelet_proto::{
    reason,
    v1::{self, host_service_server::HostService},
};
use tonic::{Request, Response, Status};

use super::{BoxStream, Shared, caller, detached};
use crate::{
    auth::{Target, Verb},
    error::Error,
    operation::{AuditLine, Caller},
};

/// `HostService` of this agent.
#[derive(Clone)]
pub struct HostRpc(Shared);

fn required(epoch: Option<v1::ControllerEpoch>) -> Result<v1::ControllerEpoch, Error> {
    epoch.ok_or_else(|| Error::invalid("epoch", reason::INVALID_FIELD, "it is missing; it names the controller, its lease and its number"))
}

impl HostRpc {
    /// On top of what the services share.
    pub fn new(shared: Shared) -> Self {
        Self(shared)
    }

    fn audit<T>(&self, caller: &Caller, action: &str, epoch: &v1::ControllerEpoch, result: &Result<T, Error>) {
        self.0.operations.audit(&AuditLine {
            time: self.0.host.now(),
            caller: caller.identity.to_string(),
            action: action.to_owned(),
            target: format!("controller {} lease {} epoch {}", epoch.controller, epoch.lease_uid, epoch.transitions),
            decision: if result.is_ok() { "succeeded" } else { "refused" }.to_owned(),
            reason: result.as_ref().err().map(Error::reason).unwrap_or_default().to_owned(),
            ..AuditLine::default()
        });
    }
}

#[tonic::async_trait]
impl HostService for HostRpc {
    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Result<Response<v1::GetHostResponse>, Status> {
        let caller = caller(&request)?;
        self.0.authorizer.authorize(&caller.identity, caller.tenant().unwrap_or_default(), Verb::Read, Target::Host)?;
        Ok(Response::new(v1::GetHostResponse { host: Some(self.0.host.host().await?) }))
    }

    type WatchHostStream = BoxStream<v1::WatchHostResponse>;

    async fn watch_host(&self, request: Request<v1::WatchHostRequest>) -> Result<Response<Self::WatchHostStream>, Status> {
        let caller = caller(&request)?;
        let tenant = caller.tenant();
        self.0.authorizer.authorize(&caller.identity, tenant.unwrap_or_default(), Verb::Read, Target::Host)?;
        Ok(self.0.stream(self.0.host.clone().watch(tenant)?))
    }

    async fn announce_controller(
        &self,
        request: Request<v1::AnnounceControllerRequest>,
    ) -> Result<Response<v1::AnnounceControllerResponse>, Status> {
        let caller = caller(&request)?;
        let epoch = required(request.into_inner().epoch)?;
        let this = self.clone();
        let newest = detached(async move {
            let result = this.0.operations.announce(&epoch).await;
            this.audit(&caller, "ANNOUNCE_CONTROLLER", &epoch, &result);
            result
        });
        Ok(Response::new(v1::AnnounceControllerResponse { newest: Some(newest.await?) }))
    }

    async fn accept_controller(
        &self,
        request: Request<v1::AcceptControllerRequest>,
    ) -> Result<Response<v1::AcceptControllerResponse>, Status> {
        let caller = caller(&request)?;
        let epoch = required(request.into_inner().epoch)?;
        let this = self.clone();
        let previous = detached(async move {
            let result = this.0.operations.accept(&epoch).await;
            this.audit(&caller, "ACCEPT_CONTROLLER", &epoch, &result);
            result
        });
        Ok(Response::new(v1::AcceptControllerResponse { previous: previous.await? }))
    }
}
