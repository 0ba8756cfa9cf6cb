//! ZFS pools (`zfspool`): volumes are zvols, labels the user property `pvelet:volume`, snapshots `<pool>/<volume>@<snapshot>`.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use super::{
    Abilities, At, Snapshot, StorageConfig,
    command::{Tool, device, failed, offline, unsupported},
    kind::{After, Kind, Place, Rename},
    label, names,
};
use crate::error::Error;

const PROPERTY: &str = "pvelet:volume";
/// What stands before the name of the clone through which a snapshot is read. PVE lists no volume of such a name.
const READING: &str = "pvelet-reading-";
/// Numbers the copies that read snapshots.
static COPIES: AtomicU64 = AtomicU64::new(0);
/// PVE rounds sizes of zvols to this, since they must be multiples of the zvol's blocks.
const ROUNDING: u64 = 1 << 20;

/// A storage on a ZFS pool or a dataset in one.
#[derive(Debug)]
pub(super) struct Zfs {
    id: String,
    pool: String,
}

impl Zfs {
    pub(super) fn new(storage: &StorageConfig) -> Result<Self, Error> {
        let pool = storage.options.get("pool").filter(|p| !p.is_empty());
        let pool = pool.ok_or_else(|| offline(&storage.id, "storage.cfg does not tell its pool"))?;
        names::leaf(&storage.id, pool)?;
        Ok(Self { id: storage.id.clone(), pool: pool.clone() })
    }

    fn dataset(&self, volume: &At) -> Result<String, Error> {
        if volume.format != "raw" {
            return Err(unsupported(&self.id, format!("{} volumes on ZFS are not supported, use raw ones", volume.format)));
        }
        Ok(self.full_name(names::leaf(&self.id, &volume.name)?))
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.pool)
    }

    fn tool(&self, verb: &str) -> Tool {
        Tool::new(&self.id, "zfs").arg(verb)
    }

    /// Sizes of all zvols of the storage, by full name.
    async fn all(&self) -> Result<BTreeMap<String, u64>, Error> {
        let ended =
            self.tool("list").args(["-H", "-p", "-d", "1", "-t", "volume", "-o", "name,volsize", "--"]).arg(&self.pool).ended().await?;
        if ended.code != Some(0) && ended.stderr.contains("does not exist") {
            return Err(offline(&self.id, format!("there is no ZFS pool or dataset '{}'; import the pool", self.pool)));
        }
        Ok(table(&ended.success(&self.id, "zfs")?).filter_map(|(name, size)| Some((name.to_owned(), size.parse().ok()?))).collect())
    }

    async fn size(&self, dataset: &str) -> Result<u64, Error> {
        self.all().await?.get(dataset).copied().ok_or_else(|| failed(&self.id, format!("there is no zvol {dataset}")))
    }

    async fn has_snapshot(&self, dataset: &str, name: &str) -> Result<bool, Error> {
        Ok(self.list(dataset).await?.iter().any(|s| s.name == name))
    }

    /// Snapshots of a zvol, oldest first: by transaction, since times have only seconds.
    async fn list(&self, dataset: &str) -> Result<Vec<Snapshot>, Error> {
        self.size(dataset).await?;
        let tool = self.tool("list").args(["-H", "-p", "-d", "1", "-t", "snapshot", "-s", "createtxg", "-o", "name,creation", "--"]);
        let text = tool.arg(dataset).read().await?;
        let snapshot = |(name, created): (&str, &str)| {
            let created = created.parse().ok().and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)));
            Some(Snapshot { name: name.split_once('@')?.1.to_owned(), created })
        };
        Ok(table(&text).filter_map(snapshot).collect())
    }

    /// The clone through which a snapshot is read: of this process and one copy, since a snapshot may be copied more than once at a time.
    fn reading(&self, dataset: &str, snapshot: &str) -> String {
        let copy = COPIES.fetch_add(1, Ordering::Relaxed);
        let name = dataset.rsplit('/').next().unwrap_or_default();
        self.full_name(&format!("{READING}{}-{copy}-{name}-{snapshot}", std::process::id()))
    }

    /// Removes the clones of a snapshot that a crash left; `all`: those of this process too, which nobody reads then.
    async fn remove_clones(&self, dataset: &str, snapshot: &str, all: bool) -> Result<(), Error> {
        let name = format!("{}-{snapshot}", dataset.rsplit('/').next().unwrap_or_default());
        for clone in self.all().await?.keys() {
            let reader = clone.strip_prefix(&self.full_name(READING)).and_then(|rest| left_by(rest, &name));
            if reader.is_some_and(|pid| all || pid != std::process::id()) {
                self.tool("destroy").arg("--").arg(clone).change().await?;
            }
        }
        Ok(())
    }
}

/// The process that made a clone, by what stands behind [`READING`] in its name, if it is one of `<volume>-<snapshot>`.
fn left_by(rest: &str, name: &str) -> Option<u32> {
    let (pid, rest) = rest.split_once('-')?;
    let (copy, of) = rest.split_once('-')?;
    copy.parse::<u64>().ok()?;
    pid.parse().ok().filter(|_| of == name)
}

fn table(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once('\t'))
}

#[tonic::async_trait]
impl Kind for Zfs {
    fn abilities(&self) -> Abilities {
        Abilities { formats: &["raw"], snapshots: &["raw"], live_snapshots: &["raw"], labels: true, stale: false }
    }

    async fn labels(&self) -> Result<BTreeMap<String, String>, Error> {
        let volumes = self.all().await?;
        let tool = self.tool("get").args(["-H", "-p", "-d", "1", "-t", "volume", "-s", "local,received", "-o", "name,value", PROPERTY]);
        let text = tool.arg(&self.pool).read().await?;
        let ours = table(&text).filter(|(name, label)| label.starts_with(label::PREFIX) && volumes.contains_key(*name));
        let short = ours.filter_map(|(name, label)| Some((name.strip_prefix(&self.pool)?.strip_prefix('/')?, label)));
        Ok(short.filter(|(name, _)| !name.starts_with(READING)).map(|(name, label)| (name.to_owned(), label.to_owned())).collect())
    }

    async fn set_label(&self, volume: &At, label: Option<&str>) -> Result<(), Error> {
        let dataset = self.dataset(volume)?;
        self.size(&dataset).await?;
        match label {
            Some(label) => self.tool("set").arg(format!("{PROPERTY}={label}")).arg(&dataset).change().await?,
            None => self.tool("inherit").arg(PROPERTY).arg(&dataset).change().await?,
        };
        let text = self.tool("get").args(["-H", "-p", "-s", "local,received", "-o", "value", PROPERTY]).arg(&dataset).read().await?;
        let found = Some(text.trim()).filter(|v| !v.is_empty() && *v != "-");
        if found == label { Ok(()) } else { Err(failed(&self.id, format!("{dataset} has label {found:?} after {label:?} was written"))) }
    }

    async fn rename(&self, volume: &At, name: &str) -> Result<(), Error> {
        let (old, new) = (self.dataset(volume)?, self.full_name(names::leaf(&self.id, name)?));
        let all = self.all().await?;
        if Rename::decide(&self.id, (&old, all.contains_key(&old)), (&new, all.contains_key(&new)))? == Rename::Done {
            return Ok(());
        }
        self.tool("rename").args(["--", &old, &new]).change().await?;
        let all = self.all().await?;
        let done = all.contains_key(&new) && !all.contains_key(&old);
        if done { Ok(()) } else { Err(failed(&self.id, format!("{old} was renamed, yet {new} is not there"))) }
    }

    async fn grow(&self, volume: &At, bytes: u64) -> Result<(), Error> {
        let dataset = self.dataset(volume)?;
        if self.size(&dataset).await? >= bytes {
            return Ok(());
        }
        self.tool("set").arg(format!("volsize={}", bytes.next_multiple_of(ROUNDING))).arg(&dataset).change().await?;
        let found = self.size(&dataset).await?;
        if found >= bytes { Ok(()) } else { Err(failed(&self.id, format!("{dataset} has {found} bytes, not {bytes}, after it was grown"))) }
    }

    async fn snapshots(&self, volume: &At) -> Result<Vec<Snapshot>, Error> {
        let all = self.list(&self.dataset(volume)?).await?;
        // PVE's own, of templates and replication, have names that no snapshot of a user may have.
        Ok(all.into_iter().filter(|s| !s.name.starts_with("__")).collect())
    }

    async fn snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        let dataset = self.dataset(volume)?;
        if self.has_snapshot(&dataset, name).await? {
            return Ok(());
        }
        self.tool("snapshot").arg("--").arg(format!("{dataset}@{name}")).change().await?;
        let done = self.has_snapshot(&dataset, name).await?;
        if done { Ok(()) } else { Err(failed(&self.id, format!("snapshot {dataset}@{name} is not there after it was made"))) }
    }

    async fn delete_snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        let dataset = self.dataset(volume)?;
        if !self.has_snapshot(&dataset, name).await? {
            return Ok(());
        }
        self.remove_clones(&dataset, name, true).await?;
        self.tool("destroy").arg("--").arg(format!("{dataset}@{name}")).change().await?;
        let left = self.has_snapshot(&dataset, name).await?;
        if left { Err(failed(&self.id, format!("snapshot {dataset}@{name} is still there after it was destroyed"))) } else { Ok(()) }
    }

    async fn roll_back(&self, volume: &At, name: &str) -> Result<(), Error> {
        let dataset = self.dataset(volume)?;
        let snapshots = self.list(&dataset).await?;
        let newer: Vec<String> = snapshots.into_iter().rev().map(|s| s.name).take_while(|n| n != name).collect();
        if !newer.is_empty() {
            return Err(Error::SnapshotNotNewest { id: volume.name.clone(), snapshot: name.to_owned(), newer });
        }
        // Without -r: nothing that is newer is ever removed here.
        self.tool("rollback").arg("--").arg(format!("{dataset}@{name}")).change().await.map(drop)
    }

    async fn place(&self, volume: &At, snapshot: Option<&str>) -> Result<Place, Error> {
        let mut dataset = self.dataset(volume)?;
        let mut size = self.size(&dataset).await?;
        let mut after = None;
        if let Some(name) = snapshot {
            let clone = self.reading(&dataset, name);
            self.remove_clones(&dataset, name, false).await?;
            self.tool("clone").args(["-o", "readonly=on", "--"]).arg(format!("{dataset}@{name}")).arg(&clone).change().await?;
            after = Some(After::new(self.tool("destroy").arg("--").arg(&clone)));
            size = self.size(&clone).await?;
            dataset = clone;
        }
        let url = format!("/dev/zvol/{dataset}");
        let path = PathBuf::from(&url);
        device(&self.id, &path).await?;
        Ok(Place { url, format: "raw".to_owned(), path: Some(path), direct: true, snapshot: None, size, after })
    }

    async fn clear(&self, _volume: &At, place: &Place, from: u64) -> Result<bool, Error> {
        let from = from.next_multiple_of(512).min(place.size);
        if from < place.size {
            let tool = Tool::new(&self.id, "blkdiscard").args(["-z", "-o", &from.to_string(), "-l", &(place.size - from).to_string()]);
            tool.arg(&place.url).follow(|_| ()).await?;
        }
        Ok(false)
    }

    fn written_as(&self, volume: &At) -> Vec<String> {
        self.dataset(volume).map(|d| vec![format!("/dev/zvol/{d}"), d]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_says_who_made_it_and_of_what() {
        assert_eq!(left_by("12-0-vm-1-a-snap", "vm-1-a-snap"), Some(12));
        for other in ["12-0-vm-1-a-snap2", "12-0-vm-1-ab-snap", "12-x-vm-1-a-snap", "x-0-vm-1-a-snap", "vm-1-a-snap", ""] {
            assert_eq!(left_by(other, "vm-1-a-snap"), None, "{other}");
        }
    }
}
