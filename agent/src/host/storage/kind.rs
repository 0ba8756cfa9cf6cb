//! What each kind of storage must be able to do, and how qemu-img reaches a volume.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Abilities, At, Snapshot, command::Tool, command::unsupported};
use crate::error::Error;

/// A kind of storage, made for one storage. Names have the meaning of [`super::VolumeStore`], whose contract holds here too.
#[tonic::async_trait]
pub(super) trait Kind: Send + Sync {
    fn abilities(&self) -> Abilities;

    async fn labels(&self) -> Result<BTreeMap<String, String>, Error>;

    async fn set_label(&self, volume: &At, label: Option<&str>) -> Result<(), Error>;

    async fn rename(&self, volume: &At, name: &str) -> Result<(), Error>;

    async fn grow(&self, volume: &At, bytes: u64) -> Result<(), Error>;

    async fn snapshots(&self, volume: &At) -> Result<Vec<Snapshot>, Error>;

    async fn snapshot(&self, volume: &At, name: &str) -> Result<(), Error>;

    async fn delete_snapshot(&self, volume: &At, name: &str) -> Result<(), Error>;

    async fn roll_back(&self, volume: &At, name: &str) -> Result<(), Error>;

    /// Where a volume, or a snapshot that exists, can be read or written; made reachable first.
    async fn place(&self, volume: &At, snapshot: Option<&str>) -> Result<Place, Error>;

    /// Makes what lies beyond `from` bytes of a target read as zeros. `true`: all of the target does, so that zeros need not be written.
    async fn clear(&self, volume: &At, place: &Place, from: u64) -> Result<bool, Error>;

    /// Makes a fresh volume read as zeros, where it does not by itself.
    async fn blank(&self, _: &At) -> Result<(), Error> {
        Ok(())
    }

    /// A reason why writes fail that the writer was not told, such as a thin pool that ran out of space.
    async fn full(&self) -> Option<String> {
        None
    }

    /// How a volume is named in the arguments of those who write to it.
    fn written_as(&self, volume: &At) -> Vec<String>;
}

/// How qemu-img reaches the bytes of a volume or snapshot.
#[derive(Debug)]
pub(super) struct Place {
    /// A path, or what qemu-img takes in the place of one.
    pub(super) url: String,
    pub(super) format: String,
    /// The path of a file or device that can be opened and synced; `None` where the bytes are reached through a library.
    pub(super) path: Option<PathBuf>,
    /// Whether the page cache must be passed by: for devices, which other nodes may have written.
    pub(super) direct: bool,
    /// A snapshot inside the image.
    pub(super) snapshot: Option<String>,
    /// Size that a guest sees.
    pub(super) size: u64,
    /// What ends the reachability.
    pub(super) after: Option<After>,
}

/// A tool that is run when a place is no longer needed, even if its user was cancelled.
#[derive(Debug)]
pub(super) struct After(Option<Tool>);

impl After {
    pub(super) fn new(tool: Tool) -> Self {
        Self(Some(tool))
    }

    /// Runs it now. A failure is logged: what it leaves behind harms nothing, and is removed with the snapshot.
    pub(super) async fn run(mut self) {
        if let Some(tool) = self.0.take() {
            report(tool.change().await);
        }
    }
}

impl Drop for After {
    fn drop(&mut self) {
        if let (Some(tool), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async { report(tool.change().await) });
        }
    }
}

fn report(result: Result<String, Error>) {
    if let Err(error) = result {
        tracing::warn!(%error, "what was made for a copy could not be removed");
    }
}

/// The answer of kinds without snapshots.
pub(super) fn no_snapshots<T>(volume: &At) -> Result<T, Error> {
    Err(unsupported(
        &volume.storage.id,
        format!("a storage of kind '{}' has no snapshots of {} volumes", volume.storage.kind, volume.format),
    ))
}

/// What a rename has to do, by which of the two names exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rename {
    Needed,
    Done,
}

impl Rename {
    /// Errors: both names exist, or neither.
    pub(super) fn decide(storage: &str, old: (&str, bool), new: (&str, bool)) -> Result<Self, Error> {
        match (old.1, new.1) {
            (true, false) => Ok(Self::Needed),
            (false, true) => Ok(Self::Done),
            (true, true) => Err(super::command::failed(storage, format!("volume {} cannot become {}, which exists already", old.0, new.0))),
            (false, false) => Err(super::command::failed(storage, format!("there is neither a volume {} nor {}", old.0, new.0))),
        }
    }
}
