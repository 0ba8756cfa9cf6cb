//! btrfs as PVE uses it: the raw volume `100/vm-100-x.raw` is the subvolume `images/100/vm-100-x` with `disk.raw` in it, its snapshots are
//! the subvolumes `vm-100-x@<snapshot>` beside it. Images of other formats are files as everywhere.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

use super::{
    Abilities, At, Snapshot, StorageConfig,
    command::{Tool, failed, io_error, utc},
    files::{self, Files},
    kind::{Kind, Place},
    label, names,
};
use crate::error::Error;

const DISK: &str = "disk.raw";
/// What stands behind the name of the subvolume that a roll-back makes. PVE lists no name with such an end.
const ROLL_BACK: &str = ".pvelet-roll-back";

/// A btrfs storage.
#[derive(Debug)]
pub(super) struct Btrfs {
    files: Files,
}

impl Btrfs {
    pub(super) fn new(root: &Path, proc: &Path, storage: &StorageConfig) -> Self {
        Self { files: Files::new(root, proc, storage) }
    }

    fn id(&self) -> &str {
        &self.files.id
    }

    /// The subvolume of a raw volume.
    fn subvolume(&self, name: &str) -> Result<PathBuf, Error> {
        let (folder, file) = names::file(self.id(), name)?;
        let Some(stem) = file.strip_suffix(".raw").filter(|s| !s.is_empty()) else {
            return Err(failed(self.id(), format!("'{name}' is not the name of a raw volume")));
        };
        Ok(self.files.images.join(folder).join(stem))
    }

    /// The subvolume of a raw volume that is there.
    async fn found(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.subvolume(name)?;
        self.present(path.clone()).await?.then_some(path).ok_or_else(|| failed(self.id(), format!("there is no volume {name}")))
    }

    async fn present(&self, subvolume: PathBuf) -> Result<bool, Error> {
        self.files.with(move |files| files::is_file(&files.id, &subvolume.join(DISK))).await
    }

    async fn run(&self, verb: &[&str], paths: &[&Path]) -> Result<(), Error> {
        let tool = Tool::new(self.id(), "btrfs").arg("subvolume").args(verb.iter().copied()).arg("--");
        tool.args(paths.iter().map(|p| p.as_os_str().to_owned())).change().await?;
        Ok(())
    }

    /// Writes out the file system's transaction, so that what was done outlives a power failure.
    async fn sync(&self, folder: &Path) -> Result<(), Error> {
        let folder = folder.to_owned();
        self.files
            .with(move |files| {
                let synced = fs::File::open(&folder).and_then(|f| Ok(syncfs(&f)?));
                synced.map_err(|e| io_error(&files.id, folder.display(), &e))
            })
            .await
    }

    async fn remove(&self, subvolume: &Path) -> Result<(), Error> {
        if self.present(subvolume.to_owned()).await? {
            self.run(&["delete"], &[subvolume]).await?;
            if self.present(subvolume.to_owned()).await? {
                return Err(failed(self.id(), format!("{} is still there after it was deleted", subvolume.display())));
            }
            self.sync(subvolume.parent().unwrap_or(subvolume)).await?;
        }
        Ok(())
    }

    /// When a snapshot was taken, and its id, which grows with time.
    async fn age(&self, subvolume: &Path) -> Result<(u64, Option<SystemTime>), Error> {
        let text = Tool::new(self.id(), "btrfs").args(["subvolume", "show", "--"]).arg(subvolume).read().await?;
        let field = |name: &str| text.lines().find_map(|l| l.trim().strip_prefix(name)).map(str::trim);
        let id = field("Subvolume ID:").and_then(|v| v.parse().ok()).unwrap_or_default();
        let created = field("Creation time:").and_then(|v| utc("%Y-%m-%d %H:%M:%S %z", v));
        Ok((id, created))
    }
}

fn with_snapshot(subvolume: &Path, name: &str) -> PathBuf {
    suffixed(subvolume, &format!("@{name}"))
}

fn suffixed(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

#[tonic::async_trait]
impl Kind for Btrfs {
    fn abilities(&self) -> Abilities {
        Abilities { snapshots: &["raw", "qcow2"], live_snapshots: &["raw"], ..self.files.abilities() }
    }

    async fn labels(&self) -> Result<BTreeMap<String, String>, Error> {
        let found = self.files.with(|files| {
            let mut found = BTreeMap::new();
            files::walk(files, |vmid, name, path| {
                // Snapshots carry the label of their time.
                if !name.contains(['@', '.'])
                    && let Some(label) = files::label_of(files, &path.join(DISK))
                {
                    found.insert(format!("{vmid}/{name}.raw"), label);
                }
            })?;
            Ok(found)
        });
        let mut all = found.await?;
        all.extend(self.files.labels().await?.into_iter().filter(|(name, _)| !name.ends_with(".raw")));
        Ok(all)
    }

    async fn set_label(&self, volume: &At, label: Option<&str>) -> Result<(), Error> {
        if volume.format != "raw" {
            return self.files.set_label(volume, label).await;
        }
        let disk = self.found(&volume.name).await?.join(DISK);
        let label = label.map(str::to_owned);
        self.files.with(move |files| label::write(&files.id, &disk, label.as_deref())).await
    }

    async fn rename(&self, volume: &At, name: &str) -> Result<(), Error> {
        if volume.format != "raw" {
            return self.files.rename(volume, name).await;
        }
        let (old, new) = (self.subvolume(&volume.name)?, self.subvolume(name)?);
        self.files.with(move |files| files::move_to(&files.id, &old, &new)).await
    }

    async fn grow(&self, volume: &At, bytes: u64) -> Result<(), Error> {
        if volume.format != "raw" {
            return self.files.grow(volume, bytes).await;
        }
        files::grow(self.id(), "raw", &self.found(&volume.name).await?.join(DISK), bytes).await
    }

    async fn snapshots(&self, volume: &At) -> Result<Vec<Snapshot>, Error> {
        if volume.format != "raw" {
            return self.files.snapshots(volume).await;
        }
        let subvolume = self.found(&volume.name).await?;
        let paths = self.files.with(move |files| snapshots_beside(files, &subvolume)).await?;
        let mut found = Vec::new();
        for (name, path) in paths {
            let (id, created) = self.age(&path).await?;
            found.push((id, Snapshot { name, created }));
        }
        found.sort_by_key(|(id, _)| *id);
        Ok(found.into_iter().map(|(_, snapshot)| snapshot).collect())
    }

    async fn snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        if volume.format != "raw" {
            return self.files.snapshot(volume, name).await;
        }
        let subvolume = self.found(&volume.name).await?;
        let snapshot = with_snapshot(&subvolume, name);
        if !self.present(snapshot.clone()).await? {
            self.run(&["snapshot", "-r"], &[&subvolume, &snapshot]).await?;
            if !self.present(snapshot.clone()).await? {
                return Err(failed(self.id(), format!("{} is not there after it was made", snapshot.display())));
            }
        }
        self.sync(subvolume.parent().unwrap_or(&subvolume)).await
    }

    async fn delete_snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        if volume.format != "raw" {
            return self.files.delete_snapshot(volume, name).await;
        }
        self.remove(&with_snapshot(&self.subvolume(&volume.name)?, name)).await
    }

    async fn roll_back(&self, volume: &At, name: &str) -> Result<(), Error> {
        if volume.format != "raw" {
            return self.files.roll_back(volume, name).await;
        }
        let subvolume = self.found(&volume.name).await?;
        let fresh = suffixed(&subvolume, ROLL_BACK);
        // Left by a crash: either not yet in its place, or what was exchanged for it. The roll-back is done again in either case.
        self.remove(&fresh).await?;
        self.run(&["snapshot"], &[&with_snapshot(&subvolume, name), &fresh]).await?;
        let (old, new) = (subvolume.clone(), fresh.clone());
        let exchanged = self
            .files
            .with(move |files| {
                // The owner is the present one, not that of the snapshot's time.
                let label = label::read(&old.join(DISK)).map_err(|e| io_error(&files.id, old.display(), &e))?;
                label::write(&files.id, &new.join(DISK), label.as_deref())?;
                let exchanged = renameat_with(CWD, &new, CWD, &old, RenameFlags::EXCHANGE);
                exchanged.map_err(|e| io_error(&files.id, format!("roll-back of {}", old.display()), &e.into()))
            })
            .await;
        if let Err(error) = exchanged {
            self.remove(&fresh).await?;
            return Err(error);
        }
        self.sync(subvolume.parent().unwrap_or(&subvolume)).await?;
        self.remove(&fresh).await
    }

    async fn place(&self, volume: &At, snapshot: Option<&str>) -> Result<Place, Error> {
        if volume.format != "raw" {
            return self.files.place(volume, snapshot).await;
        }
        let subvolume = self.found(&volume.name).await?;
        let subvolume = snapshot.map_or(subvolume.clone(), |name| with_snapshot(&subvolume, name));
        files::place(self.id(), "raw", subvolume.join(DISK), None).await
    }

    async fn clear(&self, volume: &At, place: &Place, from: u64) -> Result<bool, Error> {
        if volume.format != "raw" {
            return self.files.clear(volume, place, from).await;
        }
        files::clear(self.id(), "raw", self.found(&volume.name).await?.join(DISK), place.size, from).await
    }

    fn written_as(&self, volume: &At) -> Vec<String> {
        if volume.format != "raw" {
            return self.files.written_as(volume);
        }
        self.subvolume(&volume.name).map(|p| p.join(DISK).display().to_string()).into_iter().collect()
    }
}

/// Names and paths of the snapshots of a subvolume.
fn snapshots_beside(files: &Files, subvolume: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let (Some(folder), Some(stem)) = (subvolume.parent(), subvolume.file_name().and_then(|n| n.to_str())) else { return Ok(Vec::new()) };
    let told = |e: std::io::Error| io_error(&files.id, folder.display(), &e);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(told)? {
        let entry = entry.map_err(told)?;
        let name = entry.file_name();
        let snapshot = name.to_str().and_then(|n| n.strip_prefix(stem)?.strip_prefix('@'));
        if let Some(snapshot) = snapshot.filter(|s| names::snapshot(&files.id, s).is_ok()) {
            found.push((snapshot.to_owned(), entry.path()));
        }
    }
    Ok(found)
}
