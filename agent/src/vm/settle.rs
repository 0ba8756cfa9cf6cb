//! Settlement: what the agent does at its start about operations that its last run left unfinished. It goes on where it can and undoes where
//! it cannot; settling twice changes nothing. A VM that carries the mark of a clone that failed is removed too: its call was taken by PVE
//! after everybody had given up on it.

use std::sync::Arc;

use pvelet_proto::{id::OperationName, v1};
use tokio::sync::broadcast::error::RecvError;

use super::{
    Inner, clone, configure, delete,
    mark::Mark,
    power::Wish,
    task::{Backoff, transient},
};
use crate::{
    error::Error,
    host::pve::Change,
    operation::{Handle, State, Unfinished},
};

impl Inner {
    /// Goes on with everything unfinished. Returns when each is being worked on.
    pub(super) async fn settle(this: &Arc<Self>) {
        for unfinished in this.ops.unfinished() {
            // The network, and what is repaired, are settled by their own parts, which do not wait for PVE.
            if matches!(unfinished.kind, v1::OperationKind::ApplyNetwork | v1::OperationKind::RemoveNetwork | v1::OperationKind::Repair) {
                continue;
            }
            tracing::info!(operation = unfinished.handle.name(), kind = unfinished.kind.as_str_name(), "settling an unfinished operation");
            let inner = Arc::clone(this);
            Self::spawn(this, unfinished.handle.clone(), async move { Box::pin(inner.settle_one(unfinished)).await });
        }
        let inner = Arc::clone(this);
        tokio::spawn(async move { Box::pin(inner.remove_strays()).await });
        let inner = Arc::clone(this);
        tokio::spawn(async move { Box::pin(inner.sweep_gone_user_data()).await });
    }

    pub(super) async fn settle_one(&self, unfinished: Unfinished) {
        let Unfinished { handle: h, kind, request, .. } = unfinished;
        self.wait_for_pve(&h).await;
        match kind {
            v1::OperationKind::CloneVm => match clone::decode(&request) {
                Ok(request) => self.run_clone(&h, &request, None).await,
                Err(error) => h.finish(Err(error), Some(self.settings.lease_quarantine)).await,
            },
            v1::OperationKind::ConfigureVm => match configure::decode(&request) {
                Ok(config) => self.run_configure(&h, &config, None).await,
                Err(error) => h.finish(Err(error), None).await,
            },
            v1::OperationKind::DeleteVm => match delete::decode(&request) {
                Ok(request) => self.run_delete(&h, &request, false).await,
                Err(error) => h.finish(Err(error), None).await,
            },
            v1::OperationKind::StartVm | v1::OperationKind::ShutdownVm | v1::OperationKind::StopVm | v1::OperationKind::ResetVm => {
                match Wish::decode(kind, &request) {
                    Ok(wish) => self.run_power(&h, wish, false).await,
                    Err(error) => h.finish(Err(error), None).await,
                }
            }
            v1::OperationKind::CreateVolume
            | v1::OperationKind::DeleteVolume
            | v1::OperationKind::AttachVolume
            | v1::OperationKind::DetachVolume
            | v1::OperationKind::GrowVolume
            | v1::OperationKind::SetVolumeLimits
            | v1::OperationKind::SnapshotVolume
            | v1::OperationKind::DeleteVolumeSnapshot
            | v1::OperationKind::RollBackVolume
            | v1::OperationKind::MoveVolume
            | v1::OperationKind::HandOverVolume
            | v1::OperationKind::ReclaimVolumes => self.run_volume(&h, kind, &request, false).await,
            v1::OperationKind::ApplyNetwork | v1::OperationKind::RemoveNetwork | v1::OperationKind::Repair => {
                h.finish(Err(Error::Internal("no operation on a VM".to_owned())), None).await;
            }
            v1::OperationKind::Unspecified => h.finish(Err(Error::Internal("an operation without a kind".to_owned())), None).await,
        }
    }

    /// Returns when the agent may change something, PVE answers, and this node may write. Until then the operation stays running and says
    /// why.
    async fn wait_for_pve(&self, h: &Handle) {
        let mut backoff = Backoff::new(self.settings.lock_pause);
        while !self.manages() {
            h.step("settling: waiting, for the agent only observes");
            tokio::time::sleep(backoff.next()).await;
        }
        loop {
            let error = match self.pve.refresh().await.map(drop).and_then(|()| self.writable().map(drop)) {
                Ok(()) => match self.pve.storages().await {
                    Ok(_) => return,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if !transient(&error) {
                tracing::warn!(operation = h.name(), %error, "settling without PVE's storages");
                return;
            }
            h.step(format!("settling: waiting, for {error}"));
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Removes VMs of clones that failed: those that are there now, and those that come later, since PVE may carry out a call long after
    /// everybody has given up on it.
    async fn remove_strays(&self) {
        let mut changes = self.pve.changes();
        let mut backoff = Backoff::new(self.settings.lock_pause);
        while !self.manages() {
            tokio::time::sleep(backoff.next()).await;
        }
        for (name, state) in self.ops.failed_clones() {
            self.remove_strays_of(&name, state.vmid).await;
        }
        loop {
            match changes.recv().await {
                Ok(Change::VmCreated(vm) | Change::VmChanged(vm)) => {
                    let unbound = Mark::of(&vm.config.description).filter(|mark| mark.uuid.is_none() && vm.config.lock().is_none());
                    let Some(mark) = unbound.filter(|_| self.manages()) else { continue };
                    let made_by = |(name, state): &(String, State)| {
                        state.vmid == vm.vmid && OperationName::parse(name).is_ok_and(|n| n.uuid() == mark.operation)
                    };
                    if let Some((name, state)) = self.ops.failed_clones().into_iter().find(made_by) {
                        self.remove_strays_of(&name, state.vmid).await;
                    }
                }
                // What was missed is found at the next start.
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn remove_strays_of(&self, name: &str, vmid: u32) {
        let Ok(operation) = OperationName::parse(name) else { return };
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            match self.remove_stray(operation.uuid(), vmid).await {
                Ok(()) => return,
                Err(error) if transient(&error) => tokio::time::sleep(backoff.next()).await,
                Err(error) => return tracing::warn!(operation = name, vmid, %error, "a VM of a failed clone is left"),
            }
        }
    }
}
