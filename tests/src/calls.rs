//! More calls of a client, and what a refusal says.

use std::time::Duration;

use pvelet_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    Client,
    client::{operation_reason, reason},
};

/// Code, reason and text of a refusal, whether it came at once or with the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// gRPC's code.
    pub code: Code,
    /// pvelet's reason.
    pub reason: String,
    /// The message for people.
    pub text: String,
}

impl Refusal {
    /// Of a call that must not have succeeded.
    pub fn of(result: Result<v1::Operation, Status>) -> Self {
        match result {
            Err(status) => Self { code: status.code(), reason: reason(&status), text: status.message().to_owned() },
            Ok(op) => {
                let error = op.error.clone().unwrap_or_else(|| panic!("it should have failed: {op:?}"));
                Self { code: Code::from(error.code), reason: operation_reason(&op), text: error.message }
            }
        }
    }

    /// Panics unless it has this code and reason.
    pub fn is(&self, code: Code, reason: &str, what: &str) -> &Self {
        assert_eq!((self.code, self.reason.as_str()), (code, reason), "{what}: {}", self.text);
        self
    }
}

/// A value of the metadata of an error's reason; empty when there is none.
pub fn metadata(status: &Status, key: &str) -> String {
    status.get_details_error_info().and_then(|mut i| i.metadata.remove(key)).unwrap_or_default()
}

/// The operation of a call that must have succeeded.
pub fn succeeded(result: Result<v1::Operation, Status>) -> v1::Operation {
    let op = result.expect("the call is accepted");
    assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
    op
}

impl Client {
    /// Meta of a new request that is answered as soon as it is accepted.
    pub fn meta_at_once(&self, request_id: &str) -> Option<v1::RequestMeta> {
        self.meta(request_id).map(|m| v1::RequestMeta { wait: None, ..m })
    }

    /// Begins to start a VM.
    pub async fn begin_start(&self, request_id: &str, vm: &v1::VmRef) -> Result<v1::Operation, Status> {
        let request = v1::StartVmRequest { meta: self.meta_at_once(request_id), vm: Some(vm.clone()) };
        Ok(self.agent.vm().start_vm(request).await?.into_inner().operation.expect("operation"))
    }

    /// Begins to stop a VM.
    pub async fn begin_stop(&self, request_id: &str, vm: &v1::VmRef) -> Result<v1::Operation, Status> {
        let request = v1::StopVmRequest { meta: self.meta_at_once(request_id), vm: Some(vm.clone()) };
        Ok(self.agent.vm().stop_vm(request).await?.into_inner().operation.expect("operation"))
    }

    /// Begins a clone.
    pub async fn begin_clone(&self, mut request: v1::CloneVmRequest) -> Result<v1::Operation, Status> {
        if let Some(meta) = &mut request.meta {
            meta.wait = None;
        }
        self.clone_vm(request).await
    }

    /// A request for a full clone onto a storage.
    pub fn full_clone_request(&self, request_id: &str, template: u32, name: &str, storage: &str) -> v1::CloneVmRequest {
        let request = self.clone_request(request_id, template, name);
        v1::CloneVmRequest { mode: v1::CloneMode::Full.into(), storage: storage.into(), ..request }
    }

    /// Shuts down, and waits for the end.
    pub async fn shutdown(&self, request_id: &str, vm: &v1::VmRef, timeout: Duration, force_stop: bool) -> Result<v1::Operation, Status> {
        let timeout = Some(timeout.try_into().expect("a duration"));
        let request = v1::ShutdownVmRequest { meta: self.meta(request_id), vm: Some(vm.clone()), timeout, force_stop };
        Ok(self.agent.vm().shutdown_vm(request).await?.into_inner().operation.expect("operation"))
    }

    /// Resets, and waits for the end.
    pub async fn reset(&self, request_id: &str, vm: &v1::VmRef) -> Result<v1::Operation, Status> {
        let request = v1::ResetVmRequest { meta: self.meta(request_id), vm: Some(vm.clone()) };
        Ok(self.agent.vm().reset_vm(request).await?.into_inner().operation.expect("operation"))
    }

    /// Every mutation of an existing VM, each tried once: what was tried, and how it was refused.
    pub async fn refusals(&self, prefix: &str, vm: &v1::VmRef) -> Vec<(&'static str, Refusal)> {
        let id = |what: &str| format!("{prefix}-{what}");
        let config = v1::VmConfig { cores: Some(3), ..v1::VmConfig::default() };
        vec![
            ("configure", Refusal::of(self.configure(&id("configure"), vm, config).await)),
            ("start", Refusal::of(self.start(&id("start"), vm).await)),
            ("shutdown", Refusal::of(self.shutdown(&id("shutdown"), vm, Duration::from_secs(5), false).await)),
            ("stop", Refusal::of(self.stop(&id("stop"), vm).await)),
            ("reset", Refusal::of(self.reset(&id("reset"), vm).await)),
            ("delete", Refusal::of(self.delete(&id("delete"), vm).await)),
        ]
    }

    /// One operation by its request id, as it is now.
    pub async fn operation(&self, request_id: &str) -> Option<v1::Operation> {
        let request = v1::ListOperationsRequest {
            tenant: self.tenant.clone(),
            request_id: request_id.into(),
            ..v1::ListOperationsRequest::default()
        };
        self.agent.operation().list_operations(request).await.expect("list").into_inner().operations.pop()
    }

    /// VMs of the whole PVE cluster.
    pub async fn all_vms(&self) -> Vec<v1::Vm> {
        let request = v1::ListVmsRequest { all_nodes: true, ..v1::ListVmsRequest::default() };
        self.agent.vm().list_vms(request).await.expect("list").into_inner().vms
    }

    /// The host.
    pub async fn host(&self) -> Result<v1::Host, Status> {
        Ok(self.agent.host().get_host(v1::GetHostRequest {}).await?.into_inner().host.expect("host"))
    }
}
