//! Storages and volumes as the API shows them: read from the storages each time.

use std::collections::BTreeMap;

use pvelet_proto::{id, reason, v1, volume::VolumeId};

use super::{
    find::{self, Volume},
    uses::{self, Use},
};
use crate::{error::Error, host::storage::StorageConfig, inventory::slow, vm::Inner};

/// Volumes in a page at most, and when the caller does not say.
const PAGE: usize = 10_000;

/// A volume and what is known of it.
pub(super) struct Row {
    pub(super) volume: Volume,
    pub(super) uses: Vec<Use>,
    size: u64,
    used: u64,
    created: u64,
    pub(super) problem: String,
}

/// All volumes of this node.
pub(super) struct Survey {
    pub(super) rows: Vec<Row>,
    pub(super) unreachable: Vec<String>,
}

impl Row {
    /// The volume as the API shows it, without its snapshots.
    pub(super) fn show(&self) -> v1::Volume {
        let volume = &self.volume;
        let seconds = i64::try_from(self.created).unwrap_or(0);
        v1::Volume {
            id: volume.id.to_string(),
            volid: volume.volid(),
            storage: volume.at.storage.id.clone(),
            format: volume.at.format.clone(),
            size_bytes: self.size,
            used_bytes: self.used,
            owner: volume.label.as_ref().map(super::Label::owner),
            attachment: uses::attachment(&self.uses),
            snapshots: Vec::new(),
            serial: volume.id.serial(),
            device_path: volume.id.device_path(),
            name_vmid: volume.name_vmid(),
            problem: self.problem.clone(),
            create_time: (seconds > 0).then_some(prost_types::Timestamp { seconds, nanos: 0 }),
        }
    }
}

impl Inner {
    /// The storages that may hold disk images, as they are now.
    pub(super) async fn storage_states(&self) -> Result<v1::ListStoragesResponse, Error> {
        let mut storages = Vec::new();
        for info in self.pve.storages().await?.iter().filter(|s| s.content.iter().any(|c| c == "images")) {
            let config = self.storage_config(&info.id).await?;
            let able = self.store.abilities(&config);
            let text = |list: &[&str]| list.iter().map(|f| (*f).to_owned()).collect();
            let full = info.total > 0 && info.available == 0;
            storages.push(v1::StorageStatus {
                storage: Some(slow::storage(info.clone())),
                problem: find::problem(info).or(full.then_some("it is full")).unwrap_or_default().to_owned(),
                formats: text(able.formats),
                snapshot_formats: text(able.snapshots),
                volumes: able.labels,
            });
        }
        Ok(v1::ListStoragesResponse { storages })
    }

    /// All volumes, or those of one storage.
    pub(super) async fn survey(&self, storage: &str) -> Result<Survey, Error> {
        let (storages, unreachable) =
            if storage.is_empty() { self.volume_storages().await? } else { (vec![self.volume_storage(storage).await?], Vec::new()) };
        let mut seen = Survey { rows: Vec::new(), unreachable: unreachable.into_iter().map(|(id, e)| format!("{id}: {e}")).collect() };
        for config in &storages {
            match self.rows_of(config).await {
                Ok(rows) => seen.rows.extend(rows),
                Err(error @ (Error::StorageOffline { .. } | Error::StorageFailed { .. })) => {
                    seen.unreachable.push(format!("{}: {error}", config.id));
                }
                Err(error) => return Err(error),
            }
        }
        let mut by_id: BTreeMap<VolumeId, Vec<String>> = BTreeMap::new();
        for row in seen.rows.iter().filter(|r| r.volume.label.is_some()) {
            by_id.entry(row.volume.id).or_default().push(row.volume.volid());
        }
        for row in &mut seen.rows {
            if let Some(volids) = by_id.get(&row.volume.id).filter(|v| v.len() > 1) {
                row.problem = Error::AmbiguousVolume { id: row.volume.id.to_string(), volids: volids.clone() }.to_string();
            }
        }
        seen.rows.sort_by_key(|row| row.volume.volid());
        Ok(seen)
    }

    async fn rows_of(&self, config: &StorageConfig) -> Result<Vec<Row>, Error> {
        let labelled = self.labelled(config).await?;
        let listed = self.reserved(&config.id).await?;
        let mut rows = Vec::with_capacity(listed.len());
        for info in &listed {
            let Some((_, name)) = info.volid.split_once(':') else { continue };
            let known = labelled.iter().find(|v| v.at.name == name).cloned();
            let by_name = || {
                let (_, id) = VolumeId::of_name(name)?;
                Some(Volume { id, at: find::at(config, name), label: None })
            };
            let Some(volume) = known.or_else(by_name) else { continue };
            let uses = self.uses(&volume);
            rows.push(Row { volume, uses, size: info.size, used: info.used, created: info.ctime, problem: String::new() });
        }
        // Those that stand under a VM's name.
        for volume in labelled.into_iter().filter(|v| v.name_vmid() != self.settings.volumes.owner_vmid) {
            let Some(detail) = self.pve.volume(&volume.volid()).await? else { continue };
            let uses = self.uses(&volume);
            rows.push(Row { volume, uses, size: detail.size, used: detail.used, created: 0, problem: String::new() });
        }
        Ok(rows)
    }

    /// Volumes by ascending volid.
    pub(super) async fn list_volumes(
        &self,
        request: &v1::ListVolumesRequest,
        tenant: Option<&str>,
    ) -> Result<v1::ListVolumesResponse, Error> {
        if !request.storage.is_empty() {
            id::storage(&request.storage).map_err(|e| Error::invalid("storage", reason::INVALID_FIELD, e.to_string()))?;
        }
        let size = match request.page_size as usize {
            0 => PAGE,
            n => n.min(PAGE),
        };
        let seen = self.survey(&request.storage).await?;
        let wanted = |volume: &Volume| {
            let is = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
            match &volume.label {
                None => tenant.is_none() && request.tenant.is_empty() && request.cluster.is_empty() && request.claim.is_empty(),
                Some(label) => {
                    !request.nobodys
                        && tenant.is_none_or(|t| t == label.tenant)
                        && is(&request.tenant, &label.tenant)
                        && is(&request.cluster, &label.cluster)
                        && is(&request.claim, &label.claim)
                }
            }
        };
        let rows = seen.rows.iter().filter(|row| wanted(&row.volume) && row.volume.volid() > request.page_token);
        let mut volumes: Vec<v1::Volume> = rows.take(size.saturating_add(1)).map(Row::show).collect();
        let more = volumes.len() > size;
        volumes.truncate(size);
        let next_page_token = volumes.last().filter(|_| more).map(|v| v.volid.clone()).unwrap_or_default();
        Ok(v1::ListVolumesResponse { volumes, next_page_token, unreachable: seen.unreachable })
    }

    /// One volume with its snapshots.
    pub(super) async fn get_volume(&self, volume: Option<&v1::VolumeRef>, tenant: Option<&str>) -> Result<v1::Volume, Error> {
        let (id, storage) = find::reference(volume, "volume")?;
        let not_found = || Error::VolumeNotFound { id: id.to_string(), storage: storage.clone() };
        let volume = self.locate(id, &storage).await?.ok_or_else(not_found)?;
        if tenant.is_some_and(|t| volume.label.as_ref().is_none_or(|l| l.tenant != t)) {
            return Err(not_found());
        }
        let detail = self.pve.volume(&volume.volid()).await?.ok_or_else(not_found)?;
        let snapshots = self.store.snapshots(&volume.at).await?;
        let uses = self.uses(&volume);
        let row = Row { volume, uses, size: detail.size, used: detail.used, created: 0, problem: String::new() };
        let shown = |s: crate::host::storage::Snapshot| v1::VolumeSnapshot { name: s.name, create_time: s.created.map(Into::into) };
        Ok(v1::Volume { snapshots: snapshots.into_iter().map(shown).collect(), ..row.show() })
    }

    /// Sums by owner and storage.
    pub(super) async fn volume_usage(&self, tenant: Option<&str>) -> Result<v1::GetVolumeUsageResponse, Error> {
        let seen = self.survey("").await?;
        let mut sums: BTreeMap<(String, Option<(String, String)>), v1::VolumeUsage> = BTreeMap::new();
        for row in &seen.rows {
            let owner = row.volume.label.as_ref().map(|l| (l.tenant.clone(), l.cluster.clone()));
            if tenant.is_some_and(|t| owner.as_ref().is_none_or(|(of, _)| of != t)) {
                continue;
            }
            let storage = row.volume.at.storage.id.clone();
            let sum = sums.entry((storage.clone(), owner.clone())).or_insert_with(|| v1::VolumeUsage {
                owner: owner.map(|(tenant, cluster)| v1::VolumeOwner { tenant, cluster, claim: String::new() }),
                storage,
                ..v1::VolumeUsage::default()
            });
            sum.volumes += 1;
            sum.size_bytes = sum.size_bytes.saturating_add(row.size);
            sum.used_bytes = sum.used_bytes.saturating_add(row.used);
        }
        Ok(v1::GetVolumeUsageResponse { usage: sums.into_values().collect(), unreachable: seen.unreachable })
    }
}
