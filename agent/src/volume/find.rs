//! Finding volumes: by their labels on the storages, never by what the agent remembers.

use std::collections::BTreeMap;

use pvelet_proto::{id, reason, v1, volume::VolumeId};

use super::{
    label::Label,
    uses::{self, Use},
};
use crate::{
    error::Error,
    host::{
        pve::VolumeInfo,
        storage::{At, StorageConfig},
    },
    vm::{Inner, view},
};

/// A volume on its storage.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) id: VolumeId,
    pub(super) at: At,
    /// `None`: nobody's.
    pub(super) label: Option<Label>,
}

impl Volume {
    /// PVE's volume id.
    pub(super) fn volid(&self) -> String {
        format!("{}:{}", self.at.storage.id, self.at.name)
    }

    /// The VMID in its name.
    pub(super) fn name_vmid(&self) -> u32 {
        view::owner_of(&self.at.name).unwrap_or(0)
    }
}

/// Kinds of storages that keep volumes as files, named with folder and format.
const FILES: [&str; 6] = ["dir", "nfs", "cifs", "cephfs", "glusterfs", "btrfs"];

/// The format of a volume by its name.
pub(super) fn format_of(name: &str) -> &str {
    name.rsplit('/').next().and_then(|file| file.rsplit_once('.')).map_or("raw", |(_, format)| format)
}

/// What PVE calls a volume when it is made (the file's name), and behind the storage in its volid.
pub(super) fn names(kind: &str, vmid: u32, id: VolumeId, format: &str) -> (String, String) {
    let name = id.disk_name(vmid);
    if FILES.contains(&kind) {
        let file = format!("{name}.{format}");
        (file.clone(), format!("{vmid}/{file}"))
    } else {
        (name.clone(), name)
    }
}

/// A volume at a place of a storage.
pub(super) fn at(storage: &StorageConfig, name: &str) -> At {
    At { storage: storage.clone(), name: name.to_owned(), format: format_of(name).to_owned() }
}

/// What a volume reference says, checked.
pub(super) fn reference(volume: Option<&v1::VolumeRef>, field: &str) -> Result<(VolumeId, String), Error> {
    let volume = volume.cloned().unwrap_or_default();
    let invalid = |name: &str, reason, e: id::InvalidId| Error::invalid(format!("{field}.{name}"), reason, e.to_string());
    let id = volume.id.parse().map_err(|e| invalid("id", reason::INVALID_VOLUME_ID, e))?;
    if !volume.storage.is_empty() {
        id::storage(&volume.storage).map_err(|e| invalid("storage", reason::INVALID_FIELD, e))?;
    }
    Ok((id, volume.storage))
}

impl Inner {
    /// A storage that exists, works, and on which volumes can be kept. Errors: `StorageNotFound`, `StorageOffline`, `StorageUnsupported`.
    pub(super) async fn volume_storage(&self, storage: &str) -> Result<StorageConfig, Error> {
        let known = self.storages().await?;
        let not_found = || Error::StorageNotFound { storage: storage.to_owned(), node: self.settings.node.clone() };
        let info = known.iter().find(|s| s.id == storage).ok_or_else(not_found)?;
        if let Some(detail) = problem(info) {
            return Err(Error::StorageOffline { storage: storage.to_owned(), detail: detail.to_owned() });
        }
        let config = self.storage_config(storage).await?;
        if !self.store.abilities(&config).labels {
            let why = format!("owners of volumes cannot be kept on storages of type '{}'; choose another", info.kind);
            return Err(Error::StorageUnsupported { storage: storage.to_owned(), why });
        }
        Ok(config)
    }

    /// All storages on which volumes can be; and those that may hold some but cannot be asked, with the reason.
    pub(super) async fn volume_storages(&self) -> Result<(Vec<StorageConfig>, Vec<(String, Error)>), Error> {
        let (mut found, mut unreachable) = (Vec::new(), Vec::new());
        for info in self.storages().await?.iter().filter(|s| s.content.iter().any(|c| c == "images")) {
            match self.volume_storage(&info.id).await {
                Ok(config) => found.push(config),
                // It can hold none, or an administrator has taken it away.
                Err(Error::StorageUnsupported { .. }) => {}
                Err(Error::StorageOffline { .. }) if !info.enabled => {}
                Err(error @ (Error::StorageOffline { .. } | Error::StorageFailed { .. })) => unreachable.push((info.id.clone(), error)),
                Err(error) => return Err(error),
            }
        }
        Ok((found, unreachable))
    }

    /// Volumes of a storage that carry a label.
    pub(super) async fn labelled(&self, storage: &StorageConfig) -> Result<Vec<Volume>, Error> {
        let labels: BTreeMap<String, String> = self.store.labels(storage).await?;
        let volume = |(name, text): (String, String)| {
            let label = Label::of(&name, &text)?;
            Some(Volume { id: label.id, at: at(storage, &name), label: Some(label) })
        };
        Ok(labels.into_iter().filter_map(volume).collect())
    }

    /// What PVE lists under the reserved id on a storage.
    pub(super) async fn reserved(&self, storage: &str) -> Result<Vec<VolumeInfo>, Error> {
        self.pve.volumes(storage, self.settings.volumes.owner_vmid).await
    }

    /// The volume with this id on one storage by its label. Errors: `AmbiguousVolume`.
    pub(super) async fn labelled_on(&self, storage: &StorageConfig, id: VolumeId) -> Result<Option<Volume>, Error> {
        let mut found: Vec<Volume> = self.labelled(storage).await?.into_iter().filter(|v| v.id == id).collect();
        if found.len() > 1 {
            return Err(Error::AmbiguousVolume { id: id.to_string(), volids: found.iter().map(Volume::volid).collect() });
        }
        Ok(found.pop())
    }

    /// The volume with this id on one storage: the labelled one, or else one whose name alone says so.
    pub(super) async fn on_storage(&self, storage: &StorageConfig, id: VolumeId) -> Result<Option<Volume>, Error> {
        match self.labelled_on(storage, id).await? {
            Some(volume) => Ok(Some(volume)),
            None => self.unlabelled_on(storage, id).await,
        }
    }

    /// The volume with this id on one storage by its name; it may have a label too. PVE looks at each volume to list it.
    async fn unlabelled_on(&self, storage: &StorageConfig, id: VolumeId) -> Result<Option<Volume>, Error> {
        let listed = self.reserved(&storage.id).await?;
        let named = |v: &VolumeInfo| {
            let (_, name) = v.volid.split_once(':')?;
            (VolumeId::of_name(name)?.1 == id).then(|| Volume { id, at: at(storage, name), label: None })
        };
        Ok(listed.iter().find_map(named))
    }

    /// The volume that is meant, on the named storage or on any; `None`: it is nowhere, proven. Errors: `AmbiguousVolume`; `StorageOffline`
    /// where a storage that may hold it cannot be asked.
    pub(super) async fn locate(&self, id: VolumeId, storage: &str) -> Result<Option<Volume>, Error> {
        if !storage.is_empty() {
            let config = self.volume_storage(storage).await?;
            return self.on_storage(&config, id).await;
        }
        let (storages, mut unreachable) = self.volume_storages().await?;
        let mut found = Vec::new();
        for storage in &storages {
            match self.labelled_on(storage, id).await {
                Ok(volume) => found.extend(volume),
                Err(error @ (Error::StorageOffline { .. } | Error::StorageFailed { .. })) => unreachable.push((storage.id.clone(), error)),
                Err(error) => return Err(error),
            }
        }
        if found.len() > 1 {
            return Err(Error::AmbiguousVolume { id: id.to_string(), volids: found.iter().map(Volume::volid).collect() });
        }
        // Only where no storage has it labelled: while a volume is moved, the copy that is being made has no label yet.
        for storage in storages.iter().filter(|s| found.is_empty() && !unreachable.iter().any(|(id, _)| *id == s.id)) {
            if let Some(volume) = self.unlabelled_on(storage, id).await? {
                return Ok(Some(volume));
            }
        }
        match (found.pop(), unreachable.into_iter().next()) {
            (Some(volume), _) => Ok(Some(volume)),
            (None, Some((_, error))) => Err(error),
            (None, None) => Ok(None),
        }
    }

    /// The volume that a change means, when it is `tenant`'s. Errors: those of [`Inner::locate`], `VolumeNotFound`, `NotOurs`.
    pub(super) async fn own_volume(&self, id: VolumeId, storage: &str, tenant: &str) -> Result<Volume, Error> {
        let not_found = || Error::VolumeNotFound { id: id.to_string(), storage: storage.to_owned() };
        let volume = self.locate(id, storage).await?.ok_or_else(not_found)?;
        match &volume.label {
            None => Err(Error::NotOurs { what: format!("volume {id} ({}) has no owner: it", volume.volid()) }),
            Some(label) if label.tenant != tenant => Err(not_found()),
            Some(_) => Ok(volume),
        }
    }

    /// Which VMs refer to a volume, as is known now.
    pub(super) fn uses(&self, volume: &Volume) -> Vec<Use> {
        uses::by_name(&self.pve.inventory(), &volume.volid(), volume.at.storage.shared)
    }
}

/// Why a storage cannot be used now.
pub(super) fn problem(info: &crate::host::pve::StorageInfo) -> Option<&'static str> {
    if !info.enabled {
        Some("it is disabled")
    } else if !info.active {
        Some("it is not active on this node")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_have_folder_and_format_on_file_storages_only() {
        let id: VolumeId = "0b951f20-53f9-4634-b1ce-5e6c3aa3a726".parse().unwrap();
        for (kind, file, name) in [
            ("dir", format!("vm-9-pvc-{id}.qcow2"), format!("9/vm-9-pvc-{id}.qcow2")),
            ("btrfs", format!("vm-9-pvc-{id}.qcow2"), format!("9/vm-9-pvc-{id}.qcow2")),
            ("lvmthin", format!("vm-9-pvc-{id}"), format!("vm-9-pvc-{id}")),
            ("zfspool", format!("vm-9-pvc-{id}"), format!("vm-9-pvc-{id}")),
        ] {
            assert_eq!(names(kind, 9, id, "qcow2"), (file, name), "{kind}");
        }
        assert_eq!((format_of("9/vm-9-pvc-x.qcow2"), format_of("vm-9-pvc-x")), ("qcow2", "raw"));
    }
}
