//! The storages of this host: finds the kind of a storage and lets it do the work.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{
    Abilities, At, Copied, Image, ImageInfo, Snapshot, Source, StorageConfig, VolumeStore,
    btrfs::Btrfs,
    command::{blocking, io_error, unsupported},
    copy,
    files::{Files, below},
    image,
    kind::Kind,
    label,
    lvm::Lvm,
    names,
    rbd::Rbd,
    snippets, writers,
    zfs::Zfs,
};
use crate::{error::Error, host::process::ProcessRef};

/// The storages of this host, by the tools of each kind.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    proc: PathBuf,
}

impl LocalStore {
    /// `root` stands before every absolute path that PVE tells (`/` on a PVE host); `proc` is the kernel's list of processes.
    pub fn new(root: PathBuf, proc: PathBuf) -> Self {
        Self { root, proc }
    }

    fn kind(&self, storage: &StorageConfig) -> Result<Box<dyn Kind>, Error> {
        Ok(match storage.kind.as_str() {
            "dir" | "nfs" | "cifs" | "cephfs" | "glusterfs" => Box::new(Files::new(&self.root, &self.proc, storage)),
            "btrfs" => Box::new(Btrfs::new(&self.root, &self.proc, storage)),
            "lvm" | "lvmthin" => Box::new(Lvm::new(storage)?),
            "zfspool" => Box::new(Zfs::new(storage)?),
            "rbd" => Box::new(Rbd::new(&self.root, storage)?),
            other => return Err(unsupported(&storage.id, format!("storages of kind '{other}' are not known to this agent"))),
        })
    }

    /// Where files of other content than images lie. Errors: `UserDataStorage` where there are none.
    fn files(&self, storage: &StorageConfig) -> Result<Files, Error> {
        match storage.kind.as_str() {
            "dir" | "nfs" | "cifs" | "cephfs" | "glusterfs" | "btrfs" => Ok(Files::new(&self.root, &self.proc, storage)),
            other => {
                Err(Error::UserDataStorage { storage: storage.id.clone(), why: format!("a storage of kind '{other}' keeps no files") })
            }
        }
    }

    fn of(&self, volume: &At) -> Result<Box<dyn Kind>, Error> {
        self.kind(&volume.storage)
    }
}

async fn needs(kind: &dyn Kind, volume: &At, snapshot: &str) -> Result<(), Error> {
    names::snapshot(&volume.storage.id, snapshot)?;
    if kind.snapshots(volume).await?.iter().any(|s| s.name == snapshot) {
        return Ok(());
    }
    Err(Error::SnapshotNotFound { id: volume.name.clone(), snapshot: snapshot.to_owned() })
}

#[tonic::async_trait]
impl VolumeStore for LocalStore {
    fn abilities(&self, storage: &StorageConfig) -> Abilities {
        self.kind(storage).map(|kind| kind.abilities()).unwrap_or_default()
    }

    async fn labels(&self, storage: &StorageConfig) -> Result<BTreeMap<String, String>, Error> {
        self.kind(storage)?.labels().await
    }

    async fn set_label(&self, volume: &At, label: Option<&str>) -> Result<(), Error> {
        if let Some(label) = label {
            label::check(&volume.storage.id, label)?;
        }
        self.of(volume)?.set_label(volume, label).await
    }

    async fn rename(&self, volume: &At, name: &str) -> Result<(), Error> {
        if volume.name == name {
            return Ok(());
        }
        self.of(volume)?.rename(volume, name).await
    }

    async fn grow(&self, volume: &At, bytes: u64) -> Result<(), Error> {
        self.of(volume)?.grow(volume, bytes).await
    }

    async fn snapshots(&self, volume: &At) -> Result<Vec<Snapshot>, Error> {
        self.of(volume)?.snapshots(volume).await
    }

    async fn snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        names::snapshot(&volume.storage.id, name)?;
        self.of(volume)?.snapshot(volume, name).await
    }

    async fn delete_snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        names::snapshot(&volume.storage.id, name)?;
        self.of(volume)?.delete_snapshot(volume, name).await
    }

    async fn roll_back(&self, volume: &At, name: &str) -> Result<(), Error> {
        let kind = self.of(volume)?;
        needs(kind.as_ref(), volume, name).await?;
        kind.roll_back(volume, name).await
    }

    async fn copy(&self, from: &Source, to: &At, progress: mpsc::UnboundedSender<Copied>) -> Result<(), Error> {
        let source = match from {
            Source::Volume { at, snapshot } => {
                let kind = self.of(at)?;
                if let Some(snapshot) = snapshot {
                    needs(kind.as_ref(), at, snapshot).await?;
                }
                Some(kind)
            }
            Source::Image(..) => None,
        };
        let target = self.of(to)?;
        copy::run(from, source.as_deref(), to, target.as_ref(), progress).await
    }

    async fn blank(&self, volume: &At) -> Result<(), Error> {
        self.of(volume)?.blank(volume).await
    }

    async fn writers(&self, volume: &At) -> Result<Vec<ProcessRef>, Error> {
        let (targets, proc) = (self.of(volume)?.written_as(volume), self.proc.clone());
        let id = volume.storage.id.clone();
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        blocking(&volume.storage.id, move || writers::find(&proc, &targets, own).map_err(|e| io_error(&id, proc.display(), &e))).await
    }

    async fn open_image(&self, folders: &[PathBuf], path: &str) -> Result<Image, Error> {
        let (folders, path) = (folders.to_vec(), path.to_owned());
        blocking("images", move || image::open(&folders, &path)).await
    }

    fn locate(&self, path: &str) -> Option<(PathBuf, String)> {
        let path = Path::new(path).has_root().then_some(path).filter(|p| !p.split('/').any(|part| part == ".."))?;
        let name = Path::new(path).file_name()?.to_str()?.to_owned();
        let path = below(&self.root, path);
        Some((path.parent()?.to_owned(), name))
    }

    async fn inspect(&self, image: &Image, format: Option<&str>) -> Result<ImageInfo, Error> {
        image::inspect(image, format).await
    }

    async fn write_snippet(&self, storage: &StorageConfig, name: &str, content: Arc<[u8]>) -> Result<(), Error> {
        snippets::write(&self.files(storage)?, name, content).await
    }

    async fn snippet_sha256(&self, storage: &StorageConfig, name: &str) -> Result<Option<String>, Error> {
        snippets::sha256(&self.files(storage)?, name).await
    }

    async fn remove_snippet(&self, storage: &StorageConfig, name: &str) -> Result<(), Error> {
        snippets::remove(&self.files(storage)?, name).await
    }

    async fn sha256(&self, image: &Image, progress: mpsc::UnboundedSender<Copied>) -> Result<String, Error> {
        image::sha256(image, progress).await
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
