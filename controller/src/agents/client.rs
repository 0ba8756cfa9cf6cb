//! One agent's client.

use std::{sync::Arc, time::Duration};

use pvelet_proto::v1::{
    self, certificate_service_client::CertificateServiceClient, health_service_client::HealthServiceClient,
    host_service_client::HostServiceClient, network_service_client::NetworkServiceClient, operation_service_client::OperationServiceClient,
    vm_service_client::VmServiceClient, volume_service_client::VolumeServiceClient,
};
use tokio::sync::Semaphore;
use tonic::{Code, Response, Status};

use super::{
    AgentError, Shared, Target,
    guard::Guarded,
    watch::{self, Watch, Watched},
};
use crate::{pki::CertInfo, tls};

/// The largest answer: 10,000 VMs with room to spare.
pub(super) const MAX_MESSAGE: usize = 64 << 20;
/// VMs, volumes and operations to ask for at once.
const PAGE: u32 = 1000;

/// A client of one agent. Cheap to clone; clones share the channel and its bounds.
#[derive(Clone)]
pub struct AgentClient {
    target: Arc<Target>,
    guarded: Guarded,
    shared: Arc<Shared>,
}

impl AgentClient {
    pub(super) fn new(target: Target, shared: &Arc<Shared>) -> Self {
        Self::of(Arc::new(target), shared)
    }

    fn of(target: Arc<Target>, shared: &Arc<Shared>) -> Self {
        let own = Arc::new(Semaphore::new(shared.limits.per_agent));
        let guarded = Guarded::new(Arc::clone(&target), own, shared);
        Self { target, guarded, shared: Arc::clone(shared) }
    }

    /// The same agent over a connection of its own, which the first call opens and which ends with the last clone. What a network change
    /// has cut is not noticed on a connection that stands already.
    pub fn fresh(&self) -> Self {
        let deadline = self.guarded.deadline();
        Self::of(Arc::clone(&self.target), &self.shared).with_deadline(deadline)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.target.name
    }

    /// Where and what it is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether a connection is open.
    pub fn is_connected(&self) -> bool {
        self.guarded.is_connected()
    }

    /// The same client with another deadline for unary calls, such as for one with `RequestMeta.wait`.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        let (target, shared) = (Arc::clone(&self.target), Arc::clone(&self.shared));
        Self { target, guarded: self.guarded.with_deadline(deadline), shared }
    }

    /// The certificate that the host shows on a connection opened now, verified as for any call.
    pub async fn served_certificate(&self) -> Result<CertInfo, AgentError> {
        let (cluster, node) = (self.target.cluster.as_deref(), self.target.node.as_deref());
        let failed = |e: &tls::TlsError| AgentError::from_tls(self.name(), e);
        let connection = tls::connect(&self.target.address, cluster, node, &self.shared.credentials).await.map_err(|e| failed(&e))?;
        let shown = connection.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let der = shown.ok_or_else(|| AgentError::here(self.name(), "the host has shown no certificate"))?;
        CertInfo::from_der(der).map_err(|e| AgentError::here(self.name(), &e.to_string()))
    }

    /// Calls of CertificateService.
    pub fn certificate(&self) -> CertificateServiceClient<Guarded> {
        CertificateServiceClient::new(self.guarded.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Calls of HostService.
    pub fn host(&self) -> HostServiceClient<Guarded> {
        HostServiceClient::new(self.guarded.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Calls of VmService.
    pub fn vm(&self) -> VmServiceClient<Guarded> {
        VmServiceClient::new(self.guarded.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Calls of VolumeService.
    pub fn volume(&self) -> VolumeServiceClient<Guarded> {
        VolumeServiceClient::new(self.guarded.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Calls of NetworkService.
    pub fn network(&self) -> NetworkServiceClient<Guarded> {
        NetworkServiceClient::new(self.guarded.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Calls of HealthService.
    pub fn health(&self) -> HealthServiceClient<Guarded> {
        HealthServiceClient::new(self.guarded.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Calls of OperationService.
    pub fn operation(&self) -> OperationServiceClient<Guarded> {
        OperationServiceClient::new(self.guarded.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Listens to what the agent tells.
    ///
    /// # Errors
    /// The agent's, or the connection's, as it came.
    pub async fn watch<W: Watched>(&self, request: W) -> Result<Watch<W::Event>, Status> {
        watch::open(self.guarded.clone(), &request).await
    }

    /// Turns what a typed client returned into the answer, or an error that names this host.
    pub fn answer<T>(&self, result: Result<Response<T>, Status>) -> Result<T, AgentError> {
        result.map(Response::into_inner).map_err(|s| self.error(&s))
    }

    /// A status as an error that names this host.
    pub fn error(&self, status: &Status) -> AgentError {
        AgentError::from_status(self.name(), status)
    }

    /// The host's facts.
    pub async fn get_host(&self) -> Result<v1::Host, AgentError> {
        self.answer(self.host().get_host(v1::GetHostRequest {}).await)?.host.ok_or_else(|| self.incomplete("GetHost", "host"))
    }

    /// The host's network, without the preflight checks.
    pub async fn get_network(&self) -> Result<v1::GetNetworkResponse, AgentError> {
        self.answer(self.network().get_network(v1::GetNetworkRequest { skip_checks: true }).await)
    }

    /// How the host is, as it was last seen: these groups, or all.
    ///
    /// # Errors
    /// UNIMPLEMENTED where the agent is too old to tell.
    pub async fn get_health(&self, groups: &[String]) -> Result<v1::Health, AgentError> {
        let request = v1::GetHealthRequest { groups: groups.to_vec() };
        let answer = self.health().get_health(request).await.map_err(|s| self.health_error(s))?;
        answer.into_inner().health.ok_or_else(|| self.incomplete("GetHealth", "health"))
    }

    /// Runs these checks, or groups of them, now. `self` should have a deadline that lets the slowest of them end.
    ///
    /// # Errors
    /// NOT_FOUND CHECK_NOT_FOUND; UNIMPLEMENTED where the agent is too old to tell.
    pub async fn run_checks(&self, checks: &[String]) -> Result<Vec<v1::HealthCheck>, AgentError> {
        let request = v1::RunCheckRequest { checks: checks.to_vec() };
        Ok(self.health().run_check(request).await.map_err(|s| self.health_error(s))?.into_inner().checks)
    }

    /// A status of a call of HealthService, which older agents do not have, as an error that says so.
    pub fn health_error(&self, status: Status) -> AgentError {
        let old = status.code() == Code::Unimplemented;
        let status =
            if old { Status::unimplemented("the agent does not tell its host's health yet; upgrade pvelet-agent there") } else { status };
        self.error(&status)
    }

    /// All VMs that fit, over all pages.
    pub async fn list_vms(&self, all_nodes: bool, tenant: &str, tags: &[String]) -> Result<Vec<v1::Vm>, AgentError> {
        let mut request =
            v1::ListVmsRequest { all_nodes, tenant: tenant.to_owned(), tags: tags.to_vec(), page_size: PAGE, page_token: String::new() };
        let mut all = Vec::new();
        loop {
            let page = self.answer(self.vm().list_vms(request.clone()).await)?;
            all.extend(page.vms);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// All volumes that fit, over all pages, and the storages that could not be asked: `<storage>: <why>`, each once.
    pub async fn list_volumes(&self, filter: &v1::ListVolumesRequest) -> Result<(Vec<v1::Volume>, Vec<String>), AgentError> {
        let mut request = v1::ListVolumesRequest { page_size: PAGE, page_token: String::new(), ..filter.clone() };
        let (mut all, mut unreachable) = (Vec::new(), Vec::new());
        loop {
            let page = self.answer(self.volume().list_volumes(request.clone()).await)?;
            all.extend(page.volumes);
            for storage in page.unreachable {
                if !unreachable.contains(&storage) {
                    unreachable.push(storage);
                }
            }
            if page.next_page_token.is_empty() {
                return Ok((all, unreachable));
            }
            request.page_token = page.next_page_token;
        }
    }

    /// All operations that fit, newest first, over all pages but at most `limit`.
    pub async fn list_operations(&self, tenant: &str, active_only: bool, limit: usize) -> Result<Vec<v1::Operation>, AgentError> {
        let mut request = v1::ListOperationsRequest {
            tenant: tenant.to_owned(),
            active_only,
            request_id: String::new(),
            page_size: u32::try_from(limit).unwrap_or(PAGE).clamp(1, PAGE),
            page_token: String::new(),
        };
        let mut all = Vec::new();
        loop {
            let page = self.answer(self.operation().list_operations(request.clone()).await)?;
            all.extend(page.operations);
            if page.next_page_token.is_empty() || all.len() >= limit {
                all.truncate(limit);
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// An answer without a field that it must have.
    pub fn incomplete(&self, call: &str, field: &str) -> AgentError {
        self.error(&Status::internal(format!("the agent's answer to {call} has no {field}; are the versions compatible?")))
    }
}

impl std::fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentClient").field("target", &self.target).finish_non_exhaustive()
    }
}
