//! Calls to agents as some client, with the shortest way to what tests want to know.

use std::{net::SocketAddr, time::Duration};

use pvelet_controller::{
    agents::{AgentClient, Agents, Limits, Target},
    tls::Credentials,
};
use pvelet_proto::v1;
use tonic::Status;
use tonic_types::{RpcStatusExt, StatusExt};

use crate::Agent;

/// A client of one agent.
#[derive(Clone)]
pub struct Client {
    /// The connection.
    pub agent: AgentClient,
    /// The tenant it acts for.
    pub tenant: String,
    _agents: Agents,
}

/// Reason of an error; empty when it has none.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|i| i.reason).unwrap_or_default()
}

/// Reason of an operation's error; empty when it has none.
pub fn operation_reason(op: &v1::Operation) -> String {
    op.error.as_ref().and_then(RpcStatusExt::get_details_error_info).map(|i| i.reason).unwrap_or_default()
}

impl Client {
    /// A client of `agent` with these credentials.
    pub fn new(agent: &Agent, credentials: Credentials) -> Self {
        Self::at(agent.address, &agent.cluster, &agent.node, credentials)
    }

    /// A client of the agent of a node, wherever it is reached.
    pub fn at(address: SocketAddr, cluster: &str, node: &str, credentials: Credentials) -> Self {
        let agents = Agents::new(credentials, Limits { deadline: Duration::from_secs(120), per_agent: 256, ..Limits::default() });
        let target = Target {
            name: node.to_owned(),
            address: address.to_string().parse().expect("address"),
            cluster: Some(cluster.to_owned()),
            node: Some(node.to_owned()),
        };
        Self { agent: agents.set(target), tenant: "default".into(), _agents: agents }
    }

    /// Meta of a new request that is held open until its operation ends.
    pub fn meta(&self, request_id: &str) -> Option<v1::RequestMeta> {
        Some(v1::RequestMeta {
            tenant: self.tenant.clone(),
            request_id: request_id.into(),
            controller_epoch: None,
            wait: Some(std::time::Duration::from_secs(100).try_into().expect("a duration")),
        })
    }

    /// A clone request for a template, linked, with a name.
    pub fn clone_request(&self, request_id: &str, template: u32, name: &str) -> v1::CloneVmRequest {
        v1::CloneVmRequest {
            meta: self.meta(request_id),
            source: Some(v1::CloneSource { source: Some(v1::clone_source::Source::Vmid(template)) }),
            config: Some(v1::VmConfig { name: Some(name.into()), ..v1::VmConfig::default() }),
            ..v1::CloneVmRequest::default()
        }
    }

    /// Clones, and waits for the end.
    pub async fn clone_vm(&self, request: v1::CloneVmRequest) -> Result<v1::Operation, Status> {
        Ok(self.agent.vm().clone_vm(request).await?.into_inner().operation.expect("operation"))
    }

    /// Clones a VM and returns it; panics when that fails.
    pub async fn cloned(&self, request_id: &str, template: u32, name: &str) -> v1::Vm {
        let op = self.clone_vm(self.clone_request(request_id, template, name)).await.expect("clone is accepted");
        assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
        self.vm(op.target.expect("target").vmid).await.expect("the new VM")
    }

    /// One VM by VMID.
    pub async fn vm(&self, vmid: u32) -> Result<v1::Vm, Status> {
        let vm = Some(v1::VmRef { vmid, uuid: String::new() });
        Ok(self.agent.vm().get_vm(v1::GetVmRequest { vm }).await?.into_inner().vm.expect("vm"))
    }

    /// VMs of this node.
    pub async fn vms(&self) -> Vec<v1::Vm> {
        self.agent.vm().list_vms(v1::ListVmsRequest::default()).await.expect("list").into_inner().vms
    }

    /// Starts, and waits for the end.
    pub async fn start(&self, request_id: &str, vm: &v1::VmRef) -> Result<v1::Operation, Status> {
        let request = v1::StartVmRequest { meta: self.meta(request_id), vm: Some(vm.clone()) };
        Ok(self.agent.vm().start_vm(request).await?.into_inner().operation.expect("operation"))
    }

    /// Stops, and waits for the end.
    pub async fn stop(&self, request_id: &str, vm: &v1::VmRef) -> Result<v1::Operation, Status> {
        let request = v1::StopVmRequest { meta: self.meta(request_id), vm: Some(vm.clone()) };
        Ok(self.agent.vm().stop_vm(request).await?.into_inner().operation.expect("operation"))
    }

    /// Configures, and waits for the end.
    pub async fn configure(&self, request_id: &str, vm: &v1::VmRef, config: v1::VmConfig) -> Result<v1::Operation, Status> {
        let request = v1::ConfigureVmRequest { meta: self.meta(request_id), vm: Some(vm.clone()), config: Some(config) };
        Ok(self.agent.vm().configure_vm(request).await?.into_inner().operation.expect("operation"))
    }

    /// Deletes, and waits for the end.
    pub async fn delete(&self, request_id: &str, vm: &v1::VmRef) -> Result<v1::Operation, Status> {
        let request = v1::DeleteVmRequest { meta: self.meta(request_id), vm: Some(vm.clone()), stop: false };
        Ok(self.agent.vm().delete_vm(request).await?.into_inner().operation.expect("operation"))
    }

    /// Waits on the operations' stream until the operation with this request id has ended.
    pub async fn operation_end(&self, request_id: &str) -> v1::Operation {
        let request = v1::WatchOperationsRequest { tenant: self.tenant.clone(), since_revision: 0 };
        let mut stream = self.agent.operation().watch_operations(request).await.expect("watch").into_inner();
        let list = v1::ListOperationsRequest { tenant: self.tenant.clone(), request_id: request_id.into(), ..Default::default() };
        let known = self.agent.operation().list_operations(list).await.expect("list").into_inner().operations;
        if let Some(op) = known.into_iter().find(|op| op.end_time.is_some()) {
            return op;
        }
        let wait = async {
            loop {
                let message = stream.message().await.expect("stream goes on").expect("stream is open");
                if let Some(op) = message.operation.filter(|op| op.request_id == request_id && op.end_time.is_some()) {
                    return op;
                }
            }
        };
        tokio::time::timeout(crate::agent::SOON, wait).await.unwrap_or_else(|_| panic!("operation {request_id} did not end"))
    }
}

/// The reference to a VM.
pub fn vm_ref(vm: &v1::Vm) -> v1::VmRef {
    v1::VmRef { vmid: vm.vmid, uuid: vm.uuid.clone() }
}
