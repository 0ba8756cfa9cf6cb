//! The agent of one node of the cluster in memory, over the real transport.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use pvelet_proto::v1::{
    self,
    health_service_server::HealthServiceServer,
    host_service_server::{HostService, HostServiceServer},
    network_service_server::NetworkServiceServer,
    operation_service_server::{OperationService, OperationServiceServer},
    vm_service_server::{VmService, VmServiceServer},
    volume_service_server::VolumeServiceServer,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tonic::{Request, Response, Status, transport::Server};

use super::{
    cluster::{Cluster, Effect, Told},
    network::NodeBook,
};
use crate::{
    agents::fake::{ServerIo, health::HealthFake, network::NetworkFake, server_config},
    pki::{Ca, Lifetime},
};

/// Runs until dropped.
pub(super) struct Agent {
    pub(super) address: SocketAddr,
    pub(super) network: NetworkFake,
    pub(super) health: HealthFake,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Clone)]
pub(super) struct Service {
    pub(super) cluster: Arc<Cluster>,
    pub(super) node: String,
    pub(super) health: HealthFake,
}

impl Agent {
    pub(super) async fn start(ca: &Ca, cluster: &Arc<Cluster>, node: &str) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").await.unwrap(), ca, cluster, node)
    }

    fn listen(listener: TcpListener, ca: &Ca, cluster: &Arc<Cluster>, node: &str) -> Self {
        let address = listener.local_addr().unwrap();
        let own = ca.issue_host("lab", node, &[], &[], Lifetime::days(1)).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server_config(ca, &own, None)));
        let (send, receive) = tokio::sync::mpsc::channel(16);
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
        let book = Arc::new(NodeBook { cluster: Arc::clone(cluster), node: node.to_owned() });
        let (network, health) = (NetworkFake::new(book.clone()), HealthFake::new(book));
        let service = Service { cluster: Arc::clone(cluster), node: node.to_owned(), health: health.clone() };
        let server = Server::builder()
            .add_service(HealthServiceServer::new(health.clone()))
            .add_service(NetworkServiceServer::new(network.clone()))
            .add_service(HostServiceServer::new(service.clone()))
            .add_service(VmServiceServer::new(service.clone()))
            .add_service(VolumeServiceServer::new(service.clone()))
            .add_service(OperationServiceServer::new(service))
            .serve_with_incoming(ReceiverStream::new(receive));
        let serving = tokio::spawn(async move {
            let _ = server.await;
        });
        Self { address, network, health, tasks: vec![accepting, serving] }
    }
}

impl Service {
    fn host(&self) -> v1::Host {
        v1::Host {
            node: self.node.clone(),
            cluster: "lab".into(),
            agent_version: "0.1.0".into(),
            api_version: pvelet_proto::API_VERSION.into(),
            mode: v1::Mode::Manage.into(),
            state: v1::HostState::Active.into(),
            pve_version: "9.0.10".into(),
            quorate: true,
            features: if self.health.lock().old { vec![] } else { vec!["health".into(), "vm.user_data".into()] },
            cpu: Some(v1::Cpu { threads: 16, ..v1::Cpu::default() }),
            memory: Some(v1::Memory { total_bytes: 64 << 30, ..v1::Memory::default() }),
            ..v1::Host::default()
        }
    }

    /// As this node's agent sees it.
    fn seen(&self, mut vm: v1::Vm) -> v1::Vm {
        if vm.node != self.node {
            vm.state = v1::VmState::Unknown.into();
            vm.start_time = None;
        }
        vm
    }

    fn event(&self, mut event: v1::VmEvent) -> v1::WatchHostResponse {
        event.vm = event.vm.map(|vm| self.seen(vm));
        v1::WatchHostResponse { event: Some(v1::watch_host_response::Event::Vm(event)), ..v1::WatchHostResponse::default() }
    }

    fn order(
        &self,
        call: &'static str,
        meta: Option<v1::RequestMeta>,
        vm: Option<v1::VmRef>,
        kind: v1::OperationKind,
        effect: impl FnOnce(u32) -> Effect,
    ) -> Result<Option<v1::Operation>, Status> {
        self.cluster.begin(&self.node, call, meta, kind, |state| Ok(effect(state.target(&self.node, vm)?))).map(Some)
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl HostService for Service {
    type WatchHostStream = Streamed<v1::WatchHostResponse>;

    async fn get_host(&self, _: Request<v1::GetHostRequest>) -> Result<Response<v1::GetHostResponse>, Status> {
        Ok(Response::new(v1::GetHostResponse { host: Some(self.host()) }))
    }

    async fn watch_host(&self, _: Request<v1::WatchHostRequest>) -> Result<Response<Self::WatchHostStream>, Status> {
        let state = self.cluster.lock();
        let live = BroadcastStream::new(self.cluster.told.subscribe());
        let existing = |vm: &v1::Vm| {
            let kind = v1::VmEventType::Existing.into();
            Ok(self.event(v1::VmEvent { r#type: kind, vm: Some(vm.clone()), from_node: String::new() }))
        };
        let mut first: Vec<_> = state.vms.values().map(existing).collect();
        let synced = Some(v1::watch_host_response::Event::Synced(v1::Synced {}));
        first.push(Ok(v1::WatchHostResponse { event: synced, ..v1::WatchHostResponse::default() }));
        let service = self.clone();
        let live = live.filter_map(move |told| {
            let event = match told {
                Ok(Told::Vm(event)) => Some(Ok(service.event(event))),
                _ => None,
            };
            async move { event }
        });
        Ok(Response::new(Box::pin(stream::iter(first).chain(live))))
    }

    async fn announce_controller(
        &self,
        request: Request<v1::AnnounceControllerRequest>,
    ) -> Result<Response<v1::AnnounceControllerResponse>, Status> {
        let epoch = request.into_inner().epoch;
        self.cluster.lock().epochs.extend(epoch.clone());
        Ok(Response::new(v1::AnnounceControllerResponse { newest: epoch }))
    }

    async fn accept_controller(&self, _: Request<v1::AcceptControllerRequest>) -> Result<Response<v1::AcceptControllerResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

#[tonic::async_trait]
impl VmService for Service {
    async fn list_vms(&self, _: Request<v1::ListVmsRequest>) -> Result<Response<v1::ListVmsResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Result<Response<v1::GetVmResponse>, Status> {
        let wanted = request.into_inner().vm.unwrap_or_default();
        let found = self.cluster.lock().vms.get(&wanted.vmid).cloned().ok_or_else(|| Status::not_found("no such VM"))?;
        Ok(Response::new(v1::GetVmResponse { vm: Some(self.seen(found)) }))
    }

    async fn clone_vm(&self, request: Request<v1::CloneVmRequest>) -> Result<Response<v1::CloneVmResponse>, Status> {
        let request = request.into_inner();
        let meta = request.meta.clone();
        let operation = self.cluster.begin(&self.node, "CloneVm", meta, v1::OperationKind::CloneVm, |state| {
            let taken = state.operations.values().flatten().filter(|o| o.kind() == v1::OperationKind::CloneVm).count();
            Ok(Effect::Clone(Box::new(request), 1000 + u32::try_from(taken).unwrap()))
        })?;
        Ok(Response::new(v1::CloneVmResponse { operation: Some(operation) }))
    }

    async fn configure_vm(&self, request: Request<v1::ConfigureVmRequest>) -> Result<Response<v1::ConfigureVmResponse>, Status> {
        let v1::ConfigureVmRequest { meta, vm, config } = request.into_inner();
        let effect = |vmid| Effect::Configure(vmid, Box::new(config.unwrap_or_default()));
        let operation = self.order("ConfigureVm", meta, vm, v1::OperationKind::ConfigureVm, effect)?;
        Ok(Response::new(v1::ConfigureVmResponse { operation }))
    }

    async fn start_vm(&self, request: Request<v1::StartVmRequest>) -> Result<Response<v1::StartVmResponse>, Status> {
        let v1::StartVmRequest { meta, vm } = request.into_inner();
        let operation = self.order("StartVm", meta, vm, v1::OperationKind::StartVm, |vmid| Effect::Run(vmid, true))?;
        Ok(Response::new(v1::StartVmResponse { operation }))
    }

    async fn shutdown_vm(&self, request: Request<v1::ShutdownVmRequest>) -> Result<Response<v1::ShutdownVmResponse>, Status> {
        let v1::ShutdownVmRequest { meta, vm, .. } = request.into_inner();
        let operation = self.order("ShutdownVm", meta, vm, v1::OperationKind::ShutdownVm, |vmid| Effect::Run(vmid, false))?;
        Ok(Response::new(v1::ShutdownVmResponse { operation }))
    }

    async fn stop_vm(&self, request: Request<v1::StopVmRequest>) -> Result<Response<v1::StopVmResponse>, Status> {
        let v1::StopVmRequest { meta, vm } = request.into_inner();
        let operation = self.order("StopVm", meta, vm, v1::OperationKind::StopVm, |vmid| Effect::Run(vmid, false))?;
        Ok(Response::new(v1::StopVmResponse { operation }))
    }

    async fn reset_vm(&self, _: Request<v1::ResetVmRequest>) -> Result<Response<v1::ResetVmResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn delete_vm(&self, request: Request<v1::DeleteVmRequest>) -> Result<Response<v1::DeleteVmResponse>, Status> {
        let v1::DeleteVmRequest { meta, vm, .. } = request.into_inner();
        let attached = self.cluster.lock().attached(&self.node, vm.clone().unwrap_or_default().vmid);
        assert_eq!(attached, 0, "the VM is deleted with volumes attached");
        let operation = self.order("DeleteVm", meta, vm, v1::OperationKind::DeleteVm, Effect::Delete)?;
        Ok(Response::new(v1::DeleteVmResponse { operation }))
    }
}

#[tonic::async_trait]
impl OperationService for Service {
    type WatchOperationsStream = Streamed<v1::WatchOperationsResponse>;

    async fn get_operation(&self, _: Request<v1::GetOperationRequest>) -> Result<Response<v1::GetOperationResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn list_operations(&self, request: Request<v1::ListOperationsRequest>) -> Result<Response<v1::ListOperationsResponse>, Status> {
        let request = request.into_inner();
        let state = self.cluster.lock();
        let fits =
            |o: &&v1::Operation| request.request_id.is_empty() || (&o.request_id, &o.tenant) == (&request.request_id, &request.tenant);
        let operations = state.operations.get(&self.node).into_iter().flatten().filter(fits).rev().cloned().collect();
        Ok(Response::new(v1::ListOperationsResponse { operations, next_page_token: String::new() }))
    }

    async fn watch_operations(
        &self,
        request: Request<v1::WatchOperationsRequest>,
    ) -> Result<Response<Self::WatchOperationsStream>, Status> {
        let since = request.into_inner().since_revision;
        let state = self.cluster.lock();
        let live = BroadcastStream::new(self.cluster.told.subscribe());
        let news = |o: &&v1::Operation| o.state() == v1::OperationState::Running || (since > 0 && o.revision > since);
        let told = |operation| Ok(v1::WatchOperationsResponse { operation });
        let mut first: Vec<_> = state.operations.get(&self.node).into_iter().flatten().filter(news).cloned().map(Some).map(told).collect();
        first.push(told(None));
        let node = self.node.clone();
        let live = live.filter_map(move |message| {
            let message = match message {
                Ok(Told::Operation(on, operation)) if on == node => Some(Ok(v1::WatchOperationsResponse { operation: Some(operation) })),
                _ => None,
            };
            async move { message }
        });
        Ok(Response::new(Box::pin(stream::iter(first).chain(live))))
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::CancelOperationResponse>, Status> {
        let name = request.into_inner().name;
        self.cluster.cancel(&self.node, &name);
        self.cluster.lock().asked.push((self.node.clone(), "CancelOperation", String::new()));
        Ok(Response::new(v1::CancelOperationResponse { operation: None }))
    }
}
