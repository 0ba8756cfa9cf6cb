//! Storages in memory that hold no volume, for tests of what is not about volumes. Volumes are tested on real files, with real tools.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use tokio::sync::mpsc;

use super::{Abilities, At, Copied, Image, ImageInfo, Snapshot, Source, StorageConfig, VolumeStore};
use crate::{error::Error, host::process::ProcessRef};

/// Storages without volumes, on which nothing can be done.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmptyStore;

fn nothing<T>(storage: &StorageConfig) -> Result<T, Error> {
    Err(Error::StorageUnsupported { storage: storage.id.clone(), why: "this storage holds nothing".to_owned() })
}

#[tonic::async_trait]
impl VolumeStore for EmptyStore {
    fn abilities(&self, _: &StorageConfig) -> Abilities {
        Abilities::default()
    }
    async fn labels(&self, _: &StorageConfig) -> Result<BTreeMap<String, String>, Error> {
        Ok(BTreeMap::new())
    }
    async fn set_label(&self, volume: &At, _: Option<&str>) -> Result<(), Error> {
        nothing(&volume.storage)
    }
    async fn rename(&self, volume: &At, _: &str) -> Result<(), Error> {
        nothing(&volume.storage)
    }
    async fn grow(&self, volume: &At, _: u64) -> Result<(), Error> {
        nothing(&volume.storage)
    }
    async fn snapshots(&self, _: &At) -> Result<Vec<Snapshot>, Error> {
        Ok(Vec::new())
    }
    async fn snapshot(&self, volume: &At, _: &str) -> Result<(), Error> {
        nothing(&volume.storage)
    }
    async fn delete_snapshot(&self, volume: &At, _: &str) -> Result<(), Error> {
        nothing(&volume.storage)
    }
    async fn roll_back(&self, volume: &At, _: &str) -> Result<(), Error> {
        nothing(&volume.storage)
    }
    async fn copy(&self, _: &Source, to: &At, _: mpsc::UnboundedSender<Copied>) -> Result<(), Error> {
        nothing(&to.storage)
    }
    async fn blank(&self, volume: &At) -> Result<(), Error> {
        nothing(&volume.storage)
    }
    async fn writers(&self, _: &At) -> Result<Vec<ProcessRef>, Error> {
        Ok(Vec::new())
    }
    async fn open_image(&self, _: &[PathBuf], path: &str) -> Result<Image, Error> {
        Err(Error::ImageNotFound { image: path.to_owned(), place: "anywhere".to_owned() })
    }
    fn locate(&self, _: &str) -> Option<(PathBuf, String)> {
        None
    }
    async fn inspect(&self, image: &Image, _: Option<&str>) -> Result<ImageInfo, Error> {
        Err(Error::ImageNotFound { image: image.path.clone(), place: "anywhere".to_owned() })
    }
    async fn write_snippet(&self, storage: &StorageConfig, _: &str, _: Arc<[u8]>) -> Result<(), Error> {
        nothing(storage)
    }
    async fn snippet_sha256(&self, _: &StorageConfig, _: &str) -> Result<Option<String>, Error> {
        Ok(None)
    }
    async fn remove_snippet(&self, _: &StorageConfig, _: &str) -> Result<(), Error> {
        Ok(())
    }
    async fn sha256(&self, image: &Image, _: mpsc::UnboundedSender<Copied>) -> Result<String, Error> {
        Err(Error::ImageNotFound { image: image.path.clone(), place: "anywhere".to_owned() })
    }
}
