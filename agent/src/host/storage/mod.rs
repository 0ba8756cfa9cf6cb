//! What PVE's API has no call for: owners of volumes, names, snapshots and copies of volumes that no VM has attached, and looking at images
//! before they are imported. Done where the data lies, with the tools of each kind of storage; everything else goes through PVE.

mod btrfs;
mod command;
mod copy;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
mod files;
mod header;
mod image;
mod kind;
mod label;
mod local;
mod lvm;
mod lvm_report;
mod names;
mod qemu_img;
mod rbd;
mod snippets;
mod writers;
mod zfs;

use std::{collections::BTreeMap, time::SystemTime};

use tokio::sync::mpsc;

use super::process::ProcessRef;
use crate::error::Error;

pub use image::{Image, ImageInfo};
pub use local::LocalStore;

/// A storage as `storage.cfg` defines it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageConfig {
    /// Its id.
    pub id: String,
    /// "dir", "lvmthin", ...
    pub kind: String,
    /// Whether all nodes see the same volumes.
    pub shared: bool,
    /// All options as PVE writes them: "path", "vgname", "thinpool", "pool", ...
    pub options: BTreeMap<String, String>,
}

/// What can be done on a kind of storage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Formats of volumes, the default first.
    pub formats: &'static [&'static str],
    /// Formats of which snapshots of single volumes can be taken.
    pub snapshots: &'static [&'static str],
    /// Formats whose snapshots can be taken while a running guest writes: the storage takes them, not QEMU.
    pub live_snapshots: &'static [&'static str],
    /// Whether owners can be written beside the data.
    pub labels: bool,
    /// Whether a new volume holds what others left there.
    pub stale: bool,
}

/// A snapshot of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was taken, where the storage tells.
    pub created: Option<SystemTime>,
}

/// A volume on its storage: `name` is what PVE has behind the storage in the volid, such as `100/vm-100-disk-0.raw` or `vm-100-disk-0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// The storage.
    pub storage: StorageConfig,
    /// The volume's name.
    pub name: String,
    /// "raw" or "qcow2".
    pub format: String,
}

/// What a copy is made of.
#[derive(Debug)]
pub enum Source {
    /// A volume as it is, or one of its snapshots.
    Volume {
        /// The volume. Nobody may write to it meanwhile, unless a snapshot is copied.
        at: At,
        /// A snapshot of it.
        snapshot: Option<String>,
    },
    /// An image that was looked at.
    Image(Image, ImageInfo),
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Bytes copied.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The storages of this host, beside PVE. Callers hold the volume's guard: two calls for one volume never run at once. Every call is off the
/// runtime's threads. Errors of all: `StorageOffline` where the storage's place is not there, `StorageFailed`, `StorageUnsupported`.
#[tonic::async_trait]
pub trait VolumeStore: Send + Sync + 'static {
    /// What can be done on this storage. Kinds that are not known can nothing.
    fn abilities(&self, storage: &StorageConfig) -> Abilities;

    /// The labels on a storage, by volume name; volumes without a label are left out.
    async fn labels(&self, storage: &StorageConfig) -> Result<BTreeMap<String, String>, Error>;

    /// Writes a volume's label: up to 1000 characters of `[A-Za-z0-9_+.:/=-]`. `None` takes it off. Writing it again does no harm.
    async fn set_label(&self, volume: &At, label: Option<&str>) -> Result<(), Error>;

    /// Gives a volume another name on its storage; its label goes with it. Done already (the old name is gone, the new one is there): a
    /// success. Errors: `StorageFailed` when both names or neither is there.
    async fn rename(&self, volume: &At, name: &str) -> Result<(), Error>;

    /// Grows a volume that no guest runs with to `bytes`. Errors: `StorageFull`.
    async fn grow(&self, volume: &At, bytes: u64) -> Result<(), Error>;

    /// The volume's snapshots, oldest first; none where the storage can have none.
    async fn snapshots(&self, volume: &At) -> Result<Vec<Snapshot>, Error>;

    /// Takes a snapshot. There already: a success. Errors: `StorageUnsupported`, `StorageFull`.
    async fn snapshot(&self, volume: &At, name: &str) -> Result<(), Error>;

    /// Removes a snapshot. Gone already: a success.
    async fn delete_snapshot(&self, volume: &At, name: &str) -> Result<(), Error>;

    /// Brings a volume back to a snapshot; after a crash half way it is done again. Errors: `SnapshotNotFound`, `SnapshotNotNewest`.
    async fn roll_back(&self, volume: &At, name: &str) -> Result<(), Error>;

    /// Copies into a volume that PVE has allocated, at least as large as the source; what lies beyond the source reads as zeros afterwards.
    /// Dropping the future ends the copying process. Errors: `StorageFull`, `SnapshotNotFound`.
    async fn copy(&self, from: &Source, to: &At, progress: mpsc::UnboundedSender<Copied>) -> Result<(), Error>;

    /// Makes a volume that PVE has just allocated read as zeros. Only where [`Abilities::stale`] says that it would not.
    /// Dropping the future ends the writing process.
    async fn blank(&self, volume: &At) -> Result<(), Error>;

    /// Processes of this host that still write to a volume though nobody waits for them: a copy whose agent was killed.
    async fn writers(&self, volume: &At) -> Result<Vec<ProcessRef>, Error>;

    /// Opens an image below one of `folders` (tried in turn) without following any link and without leaving the folder's file system.
    /// Errors: `ImageNotFound`; `Invalid` with `IMAGE_REFUSED` for a path that leaves the folder, a link, or what is no plain file.
    async fn open_image(&self, folders: &[std::path::PathBuf], path: &str) -> Result<Image, Error>;

    /// Where a file of a storage lies on this host, for [`VolumeStore::open_image`]: folder and name of `path`, a path that PVE told.
    fn locate(&self, path: &str) -> Option<(std::path::PathBuf, String)>;

    /// Looks at an image: its header first, and with qemu-img only what refers to no other file. `format`: what the caller says it is.
    /// Errors: `Invalid` with `IMAGE_REFUSED` (backing file, data file, unknown format or feature, another format than said) or
    /// `IMAGE_CORRUPT`.
    async fn inspect(&self, image: &Image, format: Option<&str>) -> Result<ImageInfo, Error>;

    /// Writes a snippet: whole under its name, or not at all, readable by root only, and on the disk when this returns. `name` is a file's name
    /// of `[A-Za-z0-9._-]`. One that is there is replaced. Errors: `StorageFull`; `UserDataStorage` where the storage keeps no files, or does
    /// not keep them to root.
    async fn write_snippet(&self, storage: &StorageConfig, name: &str, content: std::sync::Arc<[u8]>) -> Result<(), Error>;

    /// SHA-256 of a snippet, hexadecimal; `None` when there is none. What is no plain file, or larger than a snippet may be, has an empty one.
    async fn snippet_sha256(&self, storage: &StorageConfig, name: &str) -> Result<Option<String>, Error>;

    /// Removes a snippet, and what writing it left half done. Gone already: a success.
    async fn remove_snippet(&self, storage: &StorageConfig, name: &str) -> Result<(), Error>;

    /// SHA-256 of an image, hexadecimal; the file must not have changed meanwhile (`Invalid` with `IMAGE_CORRUPT`).
    async fn sha256(&self, image: &Image, progress: mpsc::UnboundedSender<Copied>) -> Result<String, Error>;
}
