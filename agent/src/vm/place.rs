//! Where a clone's disks go.

use pvelet_proto::v1;

use super::{Inner, view};
use crate::{error::Error, host::pve::VmRecord};

impl Inner {
    /// Where the new disks go, the lane's storage first; it exists, works and has room as far as can be told.
    pub(super) async fn clone_storages(&self, request: &v1::CloneVmRequest, template: &VmRecord, full: bool) -> Result<Vec<String>, Error> {
        let disks: Vec<(String, u64)> = template
            .config
            .drives()
            .filter_map(|(_, value)| {
                let volume = value.split(',').next().unwrap_or_default();
                let size = value.split(',').find_map(|p| p.strip_prefix("size=")).and_then(view::parse_size);
                let (storage, _) = volume.split_once(':')?;
                view::owner_of(volume).map(|_| (storage.to_owned(), size.unwrap_or(0)))
            })
            .collect();
        let boot = view::boot_disk(&template.config).map(|d| d.storage);
        let mut storages: Vec<String> =
            if full && !request.storage.is_empty() { vec![request.storage.clone()] } else { boot.into_iter().collect() };
        if request.storage.is_empty() {
            storages.extend(disks.iter().map(|(s, _)| s.clone()));
        }
        let mut seen = std::collections::BTreeSet::new();
        storages.retain(|s| seen.insert(s.clone()));
        if !full {
            // PVE itself takes 20 ms a storage to tell its state, more than the clone's own share; a storage that fails ends the task.
            return Ok(storages);
        }
        let known = self.storages().await?;
        for storage in &storages {
            let not_found = || Error::StorageNotFound { storage: storage.clone(), node: self.settings.node.clone() };
            let info = known.iter().find(|s| s.id == *storage).ok_or_else(not_found)?;
            let offline = |detail: &str| Error::StorageOffline { storage: storage.clone(), detail: detail.to_owned() };
            if !info.enabled {
                return Err(offline("it is disabled"));
            }
            if !info.active {
                return Err(offline("it is not active on this node"));
            }
            if !info.content.iter().any(|c| c == "images") {
                let text = format!(
                    "'{storage}' does not hold disk images (content: {}); choose another, or add content type images to it",
                    info.content.join(", ")
                );
                return Err(Error::invalid("storage", pvelet_proto::reason::INVALID_FIELD, text));
            }
            let here = |s: &str| !request.storage.is_empty() || s == *storage;
            let needed: u64 = disks.iter().filter(|(s, _)| here(s)).map(|(_, size)| size).sum();
            // Thin storages may promise more than they have; one that is fuller than full is refused, a tight one is left to PVE.
            if info.total > 0 && info.available == 0 && needed > 0 {
                return Err(Error::StorageFull { storage: storage.clone(), detail: format!("{needed} bytes are needed, none is free") });
            }
            let thick = matches!(info.kind.as_str(), "lvm" | "iscsi" | "iscsidirect");
            if thick && info.available < needed {
                let detail = format!("{needed} bytes are needed, {} are free", info.available);
                return Err(Error::StorageFull { storage: storage.clone(), detail });
            }
        }
        Ok(storages)
    }
}
