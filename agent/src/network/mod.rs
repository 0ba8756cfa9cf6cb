//! The host's network: what the calls of `NetworkService` mean.
//!
//! A change is planned by pure functions from what is true now, checked, and carried out under a lock. Before anything is touched a checkpoint
//! is on the disk that is enough to undo the change without the agent, and a timer of systemd watches over it. The change is final only once
//! somebody confirms it over a connection that was opened after it.

mod change;
pub mod checkpoint;
mod confirm;
pub mod declared;
pub mod definition;
pub mod descent;
pub(crate) mod diff;
mod facts;
mod laps;
pub mod management;
pub mod own_file;
pub mod plan;
pub mod planner;
pub mod preflight;
pub mod probe;
mod read;
pub mod recover;
mod stack;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod text_check;
mod undo;
pub mod users;
pub mod validate;
pub mod verify;
pub mod view;

use std::{net::IpAddr, sync::Arc, time::Duration};

use pvelet_proto::v1;
use tokio::sync::watch;

use crate::{
    auth::Vlans,
    error::Error,
    host::net::Network,
    operation::{Caller, canonical_meta},
    vm::{self, Vms},
};

use change::Asked;
use text_check::EarlyChecks;

/// What is configured about the network.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a change waits for its confirmation, unless the request says otherwise.
    pub confirm_timeout: Duration,
}

/// What the rest of the agent knows, and is told.
#[derive(Clone)]
pub struct Agent {
    /// Tells the addresses of this host at which clients find the agent.
    pub listeners: Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>,
    /// Is told whether a change could not be undone.
    pub latched: Arc<dyn Fn(bool) + Send + Sync>,
}

/// The network of this host. Cheap to clone.
#[derive(Clone)]
pub struct Networks {
    inner: Arc<Inner>,
}

struct Inner {
    net: Arc<dyn Network>,
    /// For operations, mode and inventory.
    vms: Vms,
    settings: Settings,
    agent: Agent,
    checks: EarlyChecks,
    /// Told when the checkpoint has changed.
    changes: watch::Sender<()>,
    /// Operation whose change is to be undone, and who asked for it.
    undo_asked: watch::Sender<Option<(String, String)>>,
}

impl Networks {
    /// The network beside `vms`.
    pub fn new(vms: &Vms, net: Arc<dyn Network>, settings: Settings, agent: Agent) -> Self {
        let (changes, undo_asked) = (watch::channel(()).0, watch::channel(None).0);
        Self { inner: Arc::new(Inner { net, vms: vms.clone(), settings, agent, checks: EarlyChecks::default(), changes, undo_asked }) }
    }

    /// Goes on with the change that the last run of the agent left unfinished. To be called once, before calls are served.
    pub async fn settle(&self) {
        Inner::settle(&self.inner).await;
    }

    /// The network as it is. Errors: `NetworkFailed`.
    pub async fn get(&self, request: &v1::GetNetworkRequest) -> Result<v1::GetNetworkResponse, Error> {
        self.inner.get(request).await
    }

    /// How the preflight checks come out, with no change in mind. Errors: `NetworkFailed`.
    pub async fn preflight(&self) -> Result<Vec<preflight::Check>, Error> {
        self.inner.preflight().await
    }

    /// What a change would do; `vlans`: those of the caller. Errors: those of `NetworkService.PlanNetwork`.
    pub async fn plan(&self, request: v1::PlanNetworkRequest, vlans: &Vlans) -> Result<v1::PlanNetworkResponse, Error> {
        self.inner.plan_request(request, vlans).await
    }

    /// Begins to make a network. Errors: those of `NetworkService.ApplyNetwork`.
    pub async fn apply(&self, caller: &Caller, request: v1::ApplyNetworkRequest, vlans: &Vlans) -> Result<v1::Operation, Error> {
        let meta = request.meta.clone();
        let mut canonical = v1::ApplyNetworkRequest { meta: meta.as_ref().map(canonical_meta), ..request };
        // For whom it is says the meta data alone.
        canonical.network.get_or_insert_default().tenant.clear();
        let kind = v1::OperationKind::ApplyNetwork;
        let call = self.inner.vms.call(caller, kind, canonical.meta.as_ref(), meta.as_ref(), v1::VmRef::default(), &canonical)?;
        let asked = Asked::Apply(canonical.network.unwrap_or_default());
        let accept = Inner::accept(&self.inner, &call, asked, canonical.confirm_timeout, vlans);
        vm::Inner::answer(&self.inner.vms.inner, &call, accept).await
    }

    /// Begins to remove a network. Errors: those of `NetworkService.RemoveNetwork`.
    pub async fn remove(&self, caller: &Caller, request: v1::RemoveNetworkRequest, vlans: &Vlans) -> Result<v1::Operation, Error> {
        let meta = request.meta.clone();
        let canonical = v1::RemoveNetworkRequest { meta: meta.as_ref().map(canonical_meta), ..request };
        let kind = v1::OperationKind::RemoveNetwork;
        let call = self.inner.vms.call(caller, kind, canonical.meta.as_ref(), meta.as_ref(), v1::VmRef::default(), &canonical)?;
        let accept = Inner::accept(&self.inner, &call, Asked::Remove(canonical.name), canonical.confirm_timeout, vlans);
        vm::Inner::answer(&self.inner.vms.inner, &call, accept).await
    }

    /// Makes the change final that waits; `opened`: when the caller's connection was opened, since boot. Errors: those of
    /// `NetworkService.ConfirmNetwork`.
    pub async fn confirm(
        &self,
        caller: &Caller,
        request: v1::ConfirmNetworkRequest,
        opened: Duration,
    ) -> Result<v1::ConfirmNetworkResponse, Error> {
        let result = self.inner.confirm(&request, opened).await;
        self.inner.audit(caller, request.meta.as_ref(), "CONFIRM_NETWORK", &request.operation, result.as_ref().map(drop));
        let (change, operation) = (Some(result?.shown()), self.operation(&request.operation));
        Ok(v1::ConfirmNetworkResponse { change, operation })
    }

    /// Undoes the change that is being made or waits. Errors: those of `NetworkService.RollbackNetwork`.
    pub async fn roll_back(&self, caller: &Caller, request: v1::RollbackNetworkRequest) -> Result<v1::RollbackNetworkResponse, Error> {
        let result = self.inner.roll_back(caller, &request).await;
        self.inner.audit(caller, request.meta.as_ref(), "ROLLBACK_NETWORK", &request.operation, result.as_ref().map(drop));
        let (change, operation) = (Some(result?.shown()), self.operation(&request.operation));
        Ok(v1::RollbackNetworkResponse { change, operation })
    }

    /// Ends the latch after a change that could not be undone. Errors: those of `NetworkService.ClearNetwork`.
    pub async fn clear(&self, caller: &Caller, request: v1::ClearNetworkRequest) -> Result<(), Error> {
        let result = self.inner.clear(&request).await;
        self.inner.audit(caller, request.meta.as_ref(), "CLEAR_NETWORK", "", result.as_ref().map(drop));
        result
    }

    /// Tries an interface with real frames. Errors: those of `NetworkService.ProbeNetwork`.
    pub async fn probe(&self, request: &v1::ProbeNetworkRequest, vlans: &Vlans) -> Result<v1::ProbeNetworkResponse, Error> {
        probe::probe(&*self.inner.net, request, vlans).await
    }

    /// An operation as the API shows it; `None` where the journal that had it is lost.
    fn operation(&self, name: &str) -> Option<v1::Operation> {
        self.inner.vms.inner.ops.get(name).ok()
    }
}
