//! An agent for tests: the real transport, services that answer from memory.
#![allow(clippy::unwrap_used)]

pub(crate) mod health;
mod net;
pub(crate) mod network;
pub(crate) mod volume;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures_util::{Stream, StreamExt, stream};
use pvelet_proto::{
    id::OperationName,
    reason,
    v1::{
        self, Operation, OperationKind, OperationState, Vm, VmRef, VmState,
        health_service_server::HealthServiceServer,
        host_service_server::{HostService, HostServiceServer},
        network_service_server::NetworkServiceServer,
        operation_service_server::{OperationService, OperationServiceServer},
        vm_service_server::{VmService, VmServiceServer},
        volume_service_server::VolumeServiceServer,
    },
};
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    sync::{broadcast, mpsc, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tonic::{Code, Request, Response, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};

use health::HealthFake;
pub(crate) use net::{Relay, ServerIo, server_config};
use network::{Book, NetworkFake};

use crate::pki::Ca;

/// A VM with what most tests look at.
pub(crate) fn vm(vmid: u32, name: &str, node: &str) -> Vm {
    Vm {
        vmid,
        uuid: format!("00000000-0000-4000-8000-{vmid:012}"),
        name: name.to_owned(),
        node: node.to_owned(),
        state: VmState::Stopped.into(),
        cores: 2,
        sockets: 1,
        memory_mib: 2048,
        ..Vm::default()
    }
}

/// How the operations of a fake end.
#[derive(Clone)]
pub(crate) enum Ending {
    /// As succeeded, after some progress.
    Success,
    /// As failed, with this error.
    Failure(Status),
    /// Not at all.
    Never,
}

pub(crate) struct State {
    pub(crate) host: v1::Host,
    pub(crate) vms: Vec<Vm>,
    pub(crate) volumes: volume::Volumes,
    pub(crate) operations: Vec<Operation>,
    pub(crate) ending: Ending,
    /// Refuses the next mutations with this.
    pub(crate) refusal: Option<Status>,
    /// The mutating requests, as text, for assertions.
    pub(crate) requests: Vec<String>,
    pub(crate) clones: Vec<v1::CloneVmRequest>,
    pub(crate) events: Vec<v1::WatchHostResponse>,
    by_request: HashMap<(String, String), String>,
}

/// A running fake; ends when dropped.
pub(crate) struct FakeAgent {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) network: NetworkFake,
    pub(crate) health: HealthFake,
    /// While `true`, reads are never answered.
    pub(crate) hang: watch::Sender<bool>,
    /// While `true`, mutations are done and never answered.
    pub(crate) mute: watch::Sender<bool>,
    /// Tells the streams of operations; its receivers are the open streams.
    pub(crate) changed: broadcast::Sender<Operation>,
    stop: tokio::task::AbortHandle,
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

#[derive(Clone)]
struct Service {
    state: Arc<Mutex<State>>,
    changed: broadcast::Sender<Operation>,
    hang: watch::Receiver<bool>,
    mute: watch::Receiver<bool>,
}

impl FakeAgent {
    /// Starts one for a host of cluster "lab" with a certificate of `ca`.
    pub(crate) async fn start(ca: &Ca, node: &str, vms: Vec<Vm>) -> Self {
        let own = ca.issue_host("lab", node, &[], &[], crate::pki::Lifetime::days(1)).unwrap();
        Self::start_with(server_config(ca, &own, None), node, vms).await
    }

    pub(crate) async fn start_with(config: ServerConfig, node: &str, vms: Vec<Vm>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (send, receive) = mpsc::channel(16);
        let accepting = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, send) = (acceptor.clone(), send.clone());
                tokio::spawn(async move {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        let _ = send.send(Ok::<_, io::Error>(ServerIo::new(tls))).await;
                    }
                });
            }
        });
        let host = v1::Host {
            node: node.to_owned(),
            cluster: "lab".to_owned(),
            agent_version: "0.1.0".to_owned(),
            api_version: pvelet_proto::API_VERSION.to_owned(),
            mode: v1::Mode::Manage.into(),
            state: v1::HostState::Active.into(),
            pve_version: "9.0.10".to_owned(),
            quorate: true,
            cpu: Some(v1::Cpu { threads: 16, utilization: 0.25, allocated: 4, ..v1::Cpu::default() }),
            memory: Some(v1::Memory { total_bytes: 64 << 30, available_bytes: 48 << 30, allocated_bytes: 8 << 30 }),
            vmid_range: Some(v1::VmidRange { first: 1000, last: 1999 }),
            features: vec!["health".to_owned()],
            ..v1::Host::default()
        };
        let state = Arc::new(Mutex::new(State {
            host,
            vms,
            volumes: volume::Volumes::default(),
            operations: Vec::new(),
            ending: Ending::Success,
            refusal: None,
            requests: Vec::new(),
            clones: Vec::new(),
            events: Vec::new(),
            by_request: HashMap::new(),
        }));
        let (hang, receive_hang) = watch::channel(false);
        let (mute, receive_mute) = watch::channel(false);
        let changed = broadcast::channel(64).0;
        let service = Service { state: Arc::clone(&state), changed: changed.clone(), hang: receive_hang, mute: receive_mute };
        let network = NetworkFake::new(Arc::new(service.clone()));
        let health = HealthFake::new(Arc::new(service.clone()));
        let server = Server::builder()
            .add_service(HealthServiceServer::new(health.clone()))
            .add_service(NetworkServiceServer::new(network.clone()))
            .add_service(HostServiceServer::new(service.clone()))
            .add_service(VmServiceServer::new(service.clone()))
            .add_service(VolumeServiceServer::new(service.clone()))
            .add_service(OperationServiceServer::new(service))
            .serve_with_incoming(ReceiverStream::new(receive));
        let running = tokio::spawn(async move {
            // Ends the acceptor with the server when the test drops its handle.
            let _accepting = AbortOnDrop(accepting.abort_handle());
            let _ = server.await;
        });
        Self { address, state, network, health, hang, mute, changed, stop: running.abort_handle() }
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An error in the agent's form.
pub(crate) fn refusal(code: Code, message: &str, reason: &str, field: Option<(&str, &str)>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, reason::DOMAIN, HashMap::from([("node".to_owned(), "pve9".to_owned())]));
    if let Some((field, description)) = field {
        details.add_bad_request_violation(field, description);
    }
    Status::with_error_details(code, message, details)
}

impl Service {
    async fn may_hang(&self) {
        let mut hang = self.hang.clone();
        let _ = hang.wait_for(|h| !*h).await;
    }

    fn find(&self, wanted: &VmRef) -> Result<Vm, Status> {
        let state = self.state.lock().unwrap();
        let found = state.vms.iter().find(|v| if wanted.vmid == 0 { v.uuid == wanted.uuid } else { v.vmid == wanted.vmid });
        let missing = || refusal(Code::NotFound, &format!("VM {} does not exist", wanted.vmid), reason::VM_NOT_FOUND, None);
        let vm = found.cloned().ok_or_else(missing)?;
        if !wanted.uuid.is_empty() && vm.uuid != wanted.uuid {
            return Err(refusal(Code::FailedPrecondition, "another VM has this VMID", reason::UUID_MISMATCH, None));
        }
        Ok(vm)
    }

    /// Starts an operation; its end is told on the stream. `text` goes into the list of requests.
    fn mutate(&self, meta: Option<v1::RequestMeta>, kind: OperationKind, target: VmRef, text: String) -> Result<Operation, Status> {
        self.mutate_on(meta, kind, Some(target), None, text)
    }

    fn mutate_on(
        &self,
        meta: Option<v1::RequestMeta>,
        kind: OperationKind,
        target: Option<VmRef>,
        volume: Option<v1::OperationVolume>,
        text: String,
    ) -> Result<Operation, Status> {
        let meta = meta.unwrap_or_default();
        let mut state = self.state.lock().unwrap();
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone());
        }
        pvelet_proto::id::tenant(&meta.tenant).map_err(|e| Status::invalid_argument(e.to_string()))?;
        pvelet_proto::id::request_id(&meta.request_id).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if let Some(name) = state.by_request.get(&(meta.tenant.clone(), meta.request_id.clone())) {
            return Ok(state.operations.iter().find(|o| o.name == *name).unwrap().clone());
        }
        state.requests.push(text);
        let mut operation = Operation {
            name: OperationName::random().to_string(),
            request_id: meta.request_id.clone(),
            tenant: meta.tenant.clone(),
            kind: kind.into(),
            target,
            volume,
            state: OperationState::Running.into(),
            progress: Some(v1::Progress { percent: 0, done_bytes: 0, total_bytes: 0 }),
            step: "waiting for storage lane".to_owned(),
            create_time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
            caller: "spiffe://pvelet.example/role/operator/ann".to_owned(),
            revision: state.operations.len() as u64 + 1,
            ..Operation::default()
        };
        state.by_request.insert((meta.tenant, meta.request_id), operation.name.clone());
        let accepted = operation.clone();
        match state.ending.clone() {
            Ending::Never => {}
            Ending::Success => {
                operation.state = OperationState::Succeeded.into();
                operation.progress = Some(v1::Progress { percent: 100, done_bytes: 0, total_bytes: 0 });
            }
            Ending::Failure(status) => {
                operation.state = OperationState::Failed.into();
                let details = prost::Message::decode(status.details()).unwrap_or_default();
                let tonic_types::pb::Status { details, .. } = details;
                operation.error =
                    Some(tonic_types::pb::Status { code: status.code().into(), message: status.message().to_owned(), details });
            }
        }
        if operation.state != i32::from(OperationState::Running) {
            operation.end_time = Some(prost_types::Timestamp { seconds: 1_800_000_002, nanos: 500_000_000 });
            operation.pve_task_ms = 2345;
        }
        state.operations.push(operation.clone());
        let _ = self.changed.send(operation);
        Ok(accepted)
    }
}

impl Book for Service {
    fn begin(&self, meta: &v1::RequestMeta, kind: OperationKind, network: &str) -> Result<(Operation, bool), Status> {
        let ending = std::mem::replace(&mut self.state.lock().unwrap().ending, Ending::Never);
        let before = self.state.lock().unwrap().operations.len();
        let begun = self.mutate_on(Some(meta.clone()), kind, None, None, format!("{} {network}", kind.as_str_name()));
        let mut state = self.state.lock().unwrap();
        state.ending = ending;
        let operation = Operation { network: network.to_owned(), ..begun? };
        Ok((operation, state.operations.len() > before))
    }

    fn update(&self, operation: Operation) {
        let mut state = self.state.lock().unwrap();
        let operation = Operation { revision: operation.revision + 100, ..operation };
        if let Some(kept) = state.operations.iter_mut().find(|o| o.name == operation.name) {
            kept.clone_from(&operation);
        }
        let _ = self.changed.send(operation);
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl HostService for Service {
    type WatchHostStream = Streamed<v1::WatchHostResponse>;

    async fn get_host(&self, _: Request<v1::GetHostRequest>) -> Result<Response<v1::GetHostResponse>, Status> {
        self.may_hang().await;
        Ok(Response::new(v1::GetHostResponse { host: Some(self.state.lock().unwrap().host.clone()) }))
    }

    async fn watch_host(&self, _: Request<v1::WatchHostRequest>) -> Result<Response<Self::WatchHostStream>, Status> {
        let events = self.state.lock().unwrap().events.clone();
        let ended = Status::resource_exhausted("the stream ends here");
        Ok(Response::new(Box::pin(stream::iter(events.into_iter().map(Ok)).chain(stream::once(async { Err(ended) })))))
    }

    async fn announce_controller(
        &self,
        request: Request<v1::AnnounceControllerRequest>,
    ) -> Result<Response<v1::AnnounceControllerResponse>, Status> {
        Ok(Response::new(v1::AnnounceControllerResponse { newest: request.into_inner().epoch }))
    }

    async fn accept_controller(
        &self,
        request: Request<v1::AcceptControllerRequest>,
    ) -> Result<Response<v1::AcceptControllerResponse>, Status> {
        let epoch = request.into_inner().epoch.unwrap_or_default();
        self.state
            .lock()
            .unwrap()
            .requests
            .push(format!("accept_controller {} {} {}", epoch.controller, epoch.lease_uid, epoch.transitions));
        Ok(Response::new(v1::AcceptControllerResponse { previous: None }))
    }
}

macro_rules! power {
    ($($method:ident $request:ident $response:ident $kind:ident;)*) => {
        #[tonic::async_trait]
        impl VmService for Service {
            async fn list_vms(&self, request: Request<v1::ListVmsRequest>) -> Result<Response<v1::ListVmsResponse>, Status> {
                self.may_hang().await;
                let request = request.into_inner();
                let state = self.state.lock().unwrap();
                let fits = |v: &&Vm| {
                    (request.all_nodes || v.node == state.host.node)
                        && request.tags.iter().all(|t| v.tags.contains(t))
                        && (request.tenant.is_empty()
                            || v.mark.as_ref().and_then(|m| m.owner.as_ref()).is_some_and(|o| o.tenant == request.tenant))
                };
                // Pages of two show that clients read on.
                let from: usize = request.page_token.parse().unwrap_or(0);
                let fitting: Vec<Vm> = state.vms.iter().filter(fits).cloned().collect();
                let next_page_token = if from + 2 < fitting.len() { (from + 2).to_string() } else { String::new() };
                Ok(Response::new(v1::ListVmsResponse { vms: fitting.into_iter().skip(from).take(2).collect(), next_page_token }))
            }

            async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Result<Response<v1::GetVmResponse>, Status> {
                self.may_hang().await;
                Ok(Response::new(v1::GetVmResponse { vm: Some(self.find(&request.into_inner().vm.unwrap_or_default())?) }))
            }

            async fn clone_vm(&self, request: Request<v1::CloneVmRequest>) -> Result<Response<v1::CloneVmResponse>, Status> {
                let request = request.into_inner();
                let name = request.config.clone().unwrap_or_default().name.unwrap_or_default();
                let vmid = if request.vmid == 0 { 1000 } else { request.vmid };
                let operation = self.mutate(
                    request.meta.clone(),
                    OperationKind::CloneVm,
                    VmRef { vmid, uuid: String::new() },
                    format!("clone {name}"),
                )?;
                self.state.lock().unwrap().clones.push(request);
                Ok(Response::new(v1::CloneVmResponse { operation: Some(operation) }))
            }

            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                let request = request.into_inner();
                let target = request.vm.clone().unwrap_or_default();
                self.find(&target)?;
                let text = format!("{} {} {}", stringify!($method), target.vmid, target.uuid);
                let operation = self.mutate(request.meta, OperationKind::$kind, target, text)?;
                let _ = self.mute.clone().wait_for(|m| !*m).await;
                Ok(Response::new(v1::$response { operation: Some(operation) }))
            })*
        }
    };
}

power! {
    configure_vm ConfigureVmRequest ConfigureVmResponse ConfigureVm;
    start_vm StartVmRequest StartVmResponse StartVm;
    shutdown_vm ShutdownVmRequest ShutdownVmResponse ShutdownVm;
    stop_vm StopVmRequest StopVmResponse StopVm;
    reset_vm ResetVmRequest ResetVmResponse ResetVm;
    delete_vm DeleteVmRequest DeleteVmResponse DeleteVm;
}

#[tonic::async_trait]
impl OperationService for Service {
    type WatchOperationsStream = Streamed<v1::WatchOperationsResponse>;

    async fn get_operation(&self, request: Request<v1::GetOperationRequest>) -> Result<Response<v1::GetOperationResponse>, Status> {
        let name = request.into_inner().name;
        let found = self.state.lock().unwrap().operations.iter().find(|o| o.name == name).cloned();
        let missing = || refusal(Code::NotFound, &format!("{name} is not known here"), reason::OPERATION_NOT_FOUND, None);
        Ok(Response::new(v1::GetOperationResponse { operation: Some(found.ok_or_else(missing)?) }))
    }

    async fn list_operations(&self, request: Request<v1::ListOperationsRequest>) -> Result<Response<v1::ListOperationsResponse>, Status> {
        let request = request.into_inner();
        let mut operations = self.state.lock().unwrap().operations.clone();
        operations.retain(|o| {
            (!request.active_only || o.state() == OperationState::Running) && (request.tenant.is_empty() || o.tenant == request.tenant)
        });
        operations.reverse();
        let (from, size) = (request.page_token.parse().unwrap_or(0), request.page_size as usize);
        let next_page_token = if size > 0 && from + size < operations.len() { (from + size).to_string() } else { String::new() };
        let operations = operations.into_iter().skip(from).take(if size > 0 { size } else { usize::MAX }).collect();
        Ok(Response::new(v1::ListOperationsResponse { operations, next_page_token }))
    }

    async fn watch_operations(
        &self,
        request: Request<v1::WatchOperationsRequest>,
    ) -> Result<Response<Self::WatchOperationsStream>, Status> {
        let since = request.into_inner().since_revision;
        let changes = BroadcastStream::new(self.changed.subscribe());
        let state = self.state.lock().unwrap();
        let known = state.operations.iter().filter(|o| o.state() == OperationState::Running || (since > 0 && o.revision > since));
        let mut first: Vec<_> = known.cloned().map(|o| v1::WatchOperationsResponse { operation: Some(o) }).collect();
        first.push(v1::WatchOperationsResponse { operation: None });
        let changes =
            changes.map(|o| Ok(v1::WatchOperationsResponse { operation: Some(o.map_err(|_| Status::resource_exhausted("slow"))?) }));
        Ok(Response::new(Box::pin(stream::iter(first.into_iter().map(Ok)).chain(changes))))
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::CancelOperationResponse>, Status> {
        let name = request.into_inner().name;
        let mut state = self.state.lock().unwrap();
        let missing = || refusal(Code::NotFound, &format!("{name} is not known here"), reason::OPERATION_NOT_FOUND, None);
        let operation = state.operations.iter_mut().find(|o| o.name == name).ok_or_else(missing)?;
        if operation.state() != OperationState::Running {
            return Err(refusal(Code::FailedPrecondition, "it has ended", reason::NOT_CANCELLABLE, None));
        }
        operation.state = OperationState::Cancelled.into();
        operation.end_time = Some(prost_types::Timestamp { seconds: 1_800_000_003, nanos: 0 });
        let operation = operation.clone();
        let _ = self.changed.send(operation.clone());
        Ok(Response::new(v1::CancelOperationResponse { operation: Some(operation) }))
    }
}
