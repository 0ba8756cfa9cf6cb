//! ReclaimVolumes: what an owner left is removed, volume by volume, each as if it had been asked for alone. Nobody's volumes never are.

use std::sync::Arc;

use pvelet_proto::v1;

use super::{
    Plan, begin,
    find::{self, Volume},
    tenant_of,
};
use crate::{
    error::Error,
    operation::{Handle, Lane, VolumeState},
    vm::{Call, Inner, Limit},
};

/// Whether a volume is the owner's that a request means.
fn meant(volume: &Volume, request: &v1::ReclaimVolumesRequest, tenant: &str) -> bool {
    volume.label.as_ref().is_some_and(|l| l.tenant == tenant && (request.all_clusters || l.cluster == request.cluster))
}

impl Inner {
    /// What reclaiming would remove, what it would keep, and what is nobody's.
    pub(super) async fn reclaimable(&self, request: &v1::ReclaimVolumesRequest, tenant: &str) -> Result<v1::ReclaimVolumesResponse, Error> {
        let seen = self.survey("").await?;
        let mut answer = v1::ReclaimVolumesResponse { unreachable: seen.unreachable, ..v1::ReclaimVolumesResponse::default() };
        for row in seen.rows {
            let shown = row.show();
            if row.volume.label.is_none() {
                answer.nobodys.push(shown);
            } else if meant(&row.volume, request, tenant) {
                match self.may_be_deleted(&row.volume, &row.uses).await {
                    Ok(()) if row.problem.is_empty() => answer.volumes.push(shown),
                    Ok(()) => answer.kept.push(shown),
                    Err(error) => answer.kept.push(v1::Volume { problem: error.to_string(), ..shown }),
                }
            }
        }
        Ok(answer)
    }

    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_reclaim_volumes(this: &Arc<Self>, call: &Call, request: v1::ReclaimVolumesRequest) -> Result<String, Error> {
        this.writable()?;
        let found = this.reclaimable(&request, tenant_of(call)).await?;
        let list = found.volumes.iter().map(|v| (v.storage.clone(), v.id.clone())).collect();
        let state = VolumeState { list, ..VolumeState::default() };
        begin(this, call, Plan { target: v1::VmRef::default(), id: None, state, source: None, done: found.volumes.is_empty() })
    }

    /// Removes them, or goes on with that. One that cannot be removed any more is told and kept.
    pub(super) async fn run_reclaim_volumes(&self, h: &Handle, request: &v1::ReclaimVolumesRequest, limit: Limit) -> Result<(), Error> {
        let list = h.state().volume.list;
        let total = list.len() as u64;
        for (done, (storage, id)) in (0_u64..).zip(&list) {
            h.progress(u8::try_from(done * 100 / total.max(1)).unwrap_or(100), 0, 0);
            match self.reclaim_one(h, (storage, id), request, limit).await {
                Ok(()) => {}
                Err(error) => h.warn(format!("volume {id} on {storage} was kept: {error}")),
            }
        }
        Ok(())
    }

    async fn reclaim_one(
        &self,
        h: &Handle,
        (storage, id): (&str, &str),
        request: &v1::ReclaimVolumesRequest,
        limit: Limit,
    ) -> Result<(), Error> {
        let tenant = request.meta.as_ref().map(|m| m.tenant.as_str()).unwrap_or_default();
        let reference = v1::VolumeRef { id: id.to_owned(), storage: storage.to_owned() };
        let (id, storage) = find::reference(Some(&reference), "volume")?;
        let config = self.volume_storage(&storage).await?;
        let lock = self.lock_volume(h, &config, id, limit).await?;
        self.pve.refresh().await?;
        self.writable()?;
        let Some(volume) = self.on_storage(&config, id).await? else { return Ok(()) };
        if !meant(&volume, request, tenant) {
            return Err(Error::NotOurs { what: format!("volume {id} has changed hands meanwhile: it") });
        }
        self.may_be_deleted(&volume, &self.uses(&volume)).await?;
        let _place = h.enter(&storage, Lane::Short, limit.at, limit.after).await?;
        if lock.is_lost() {
            return Err(Error::LockTimeout { what: format!("volume {id}") });
        }
        self.free_proven(h, &volume.at, limit).await
    }
}
