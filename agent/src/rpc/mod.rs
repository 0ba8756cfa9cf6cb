//! The services: decode, authorize, call, encode; nothing else.

mod certificate;
mod health;
mod host;
mod network;
mod operation;
mod vm;
mod volume;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use pvelet_proto::{reason, v1};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

pub use certificate::CertificateRpc;
pub use health::HealthRpc;
pub use host::HostRpc;
pub use network::NetworkRpc;
pub use operation::OperationRpc;
pub use vm::VmRpc;
pub use volume::VolumeRpc;

use crate::{
    auth::{Authorizer, Target, Verb},
    error::Error,
    health::{Health, repair::Repairs},
    inventory::HostView,
    metrics::Metrics,
    network::Networks,
    operation::{Caller, Operations},
    tls::{Certificates, Peer},
    vm::Vms,
    volume::Volumes,
};

/// A call is held open no longer than this, whatever it asks for: a promise of the API.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// What the services share.
#[derive(Clone)]
pub struct Shared {
    /// The VMs.
    pub vms: Vms,
    /// The volumes.
    pub volumes: Volumes,
    /// The host's network.
    pub networks: Networks,
    /// The host's health.
    pub health: Health,
    /// What is mended of it.
    pub repairs: Repairs,
    /// What the agent is known by, and knows its clients by.
    pub certificates: Certificates,
    /// The operations.
    pub operations: Arc<Operations>,
    /// The host.
    pub host: Arc<HostView>,
    /// Who may act for whom.
    pub authorizer: Arc<Authorizer>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when open streams and held-open calls have to end.
    pub ending: CancellationToken,
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who calls. The handshake has put it there; without it nothing is allowed.
fn caller<T>(request: &Request<T>) -> Result<Caller, Error> {
    let peer = request.extensions().get::<Peer>().ok_or_else(|| Error::Internal("a call without identity".into()))?;
    Ok(Caller { identity: peer.identity().clone() })
}

/// A mutation does not say for whom it is.
fn missing_meta() -> Error {
    Error::invalid("meta", reason::INVALID_FIELD, "it is missing; it names the tenant and the request's id")
}

/// Carries `work` out whether or not its client stays: who goes away drops the handler, and nothing else.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Result<T, Error> {
    tokio::spawn(work).await.map_err(|e| Error::Internal(format!("the call failed: {e}")))?
}

impl Shared {
    /// Authorizes a mutation; a refusal is audited. `meta`: or why there is none.
    fn authorize(
        &self,
        caller: &Caller,
        kind: v1::OperationKind,
        meta: Result<&v1::RequestMeta, Error>,
        vm: Option<&v1::VmRef>,
    ) -> Result<(), Error> {
        self.authorize_if(self.host.require_manage(), caller, kind, meta, vm)
    }

    /// As [`Self::authorize`], where `manages` says whether anything is changed.
    fn authorize_if(
        &self,
        manages: Result<(), Error>,
        caller: &Caller,
        kind: v1::OperationKind,
        meta: Result<&v1::RequestMeta, Error>,
        vm: Option<&v1::VmRef>,
    ) -> Result<(), Error> {
        let vm_ref = vm.cloned().unwrap_or_default();
        let meta = match meta {
            Ok(meta) => meta,
            Err(error) => {
                self.operations.refused(caller, &v1::RequestMeta::default(), kind, &vm_ref, &error);
                return Err(error);
            }
        };
        let owner = vm.and_then(|vm| self.host.owner(vm.vmid));
        let target = match vm {
            // What does not exist has no owner; whether it exists is said by who carries the call out.
            Some(vm) if self.host.has_vm(vm.vmid) => Target::Vm { vmid: vm.vmid, owner: owner.as_deref() },
            _ => Target::New,
        };
        let allowed = self.authorizer.authorize(&caller.identity, &meta.tenant, Verb::Mutate, target);
        match allowed.and_then(|decision| manages.map(|()| decision)) {
            Ok(decision) => {
                tracing::debug!(caller = %caller.identity, tenant = meta.tenant, ?kind, decision = decision.as_str(), "allowed");
                Ok(())
            }
            Err(error) => {
                self.operations.refused(caller, meta, kind, &vm_ref, &error);
                Err(error)
            }
        }
    }

    /// The operation once it has ended, `wait` is over, or the agent ends.
    async fn wait(&self, operation: v1::Operation, meta: Option<&v1::RequestMeta>) -> Result<v1::Operation, Error> {
        let wait = meta.and_then(|m| m.wait).and_then(|w| Duration::try_from(w).ok()).unwrap_or_default().min(MAX_WAIT);
        if wait.is_zero() {
            return Ok(operation);
        }
        tokio::select! {
            operation = self.operations.wait(&operation.name, wait) => operation,
            () = self.ending.cancelled() => self.operations.get(&operation.name),
        }
    }

    /// A stream as it is answered: with the agent it ends, after what is ready to be told.
    fn stream<T: Send + 'static>(&self, items: impl Stream<Item = Result<T, Error>> + Send + 'static) -> Response<BoxStream<T>> {
        let metrics = self.metrics.clone();
        let items = Box::pin(items.map(move |item| {
            item.map_err(|error| {
                if error == Error::SlowConsumer {
                    metrics.slow_consumer();
                }
                Status::from(error)
            })
        }));
        let ending = Box::pin(self.ending.clone().cancelled_owned());
        let stream = stream::unfold(Some((items, ending)), |open| async {
            let (mut items, mut ending) = open?;
            tokio::select! {
                biased;
                item = items.next() => item.map(|item| (item, Some((items, ending)))),
                () = &mut ending => Some((Err(Error::AgentDraining.into()), None)),
            }
        });
        Response::new(Box::pin(stream))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn what_was_begun_ends_without_its_client() {
        let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut call = Box::pin(detached(async move {
            wait.await.map_err(|e| Error::Internal(e.to_string()))?;
            tell.send("done").map_err(|e| Error::Internal(e.into()))
        }));
        assert!(futures_util::poll!(call.as_mut()).is_pending());
        drop(call);
        go_on.send(()).unwrap();
        assert_eq!(told.await.unwrap(), "done");
    }
}
