//! LVM: thin pools (`lvmthin`), whose snapshots are the thin volumes `snap_<volume>_<snapshot>` as PVE names them, and plain volumes (`lvm`),
//! which have none. Labels are tags.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    Abilities, At, Snapshot, StorageConfig,
    command::{Tool, device, failed, offline, unsupported},
    kind::{After, Kind, Place, Rename, no_snapshots},
    label,
    lvm_report::{self, Lv},
    names,
};
use crate::error::Error;

/// What stands before the name of the volume that a roll-back makes. PVE lists no volume of such a name.
const ROLL_BACK: &str = "pvelet-roll-back-";

/// A storage on a volume group.
#[derive(Debug)]
pub(super) struct Lvm {
    id: String,
    group: String,
    /// The thin pool; `None`: plain volumes.
    pool: Option<String>,
}

impl Lvm {
    pub(super) fn new(storage: &StorageConfig) -> Result<Self, Error> {
        let option = |name: &str| {
            let value = storage.options.get(name).filter(|v| !v.is_empty());
            value.map(|v| names::leaf(&storage.id, v).map(str::to_owned)).transpose()
        };
        let lacks = |name| offline(&storage.id, format!("storage.cfg does not tell its {name}"));
        let group = option("vgname")?.ok_or_else(|| lacks("vgname"))?;
        let pool = match storage.kind.as_str() {
            "lvmthin" => Some(option("thinpool")?.ok_or_else(|| lacks("thinpool"))?),
            _ => None,
        };
        Ok(Self { id: storage.id.clone(), group, pool })
    }

    /// All volumes of the group, once the thin pool is known to be there.
    async fn all(&self) -> Result<Vec<Lv>, Error> {
        let all = lvm_report::list(&self.id, &self.group).await?;
        match &self.pool {
            Some(pool) if !all.iter().any(|lv| lv.name == *pool && lv.is_thin_pool()) => {
                Err(offline(&self.id, format!("volume group '{}' has no thin pool '{pool}'", self.group)))
            }
            _ => Ok(all),
        }
    }

    fn ours(&self, lv: &Lv) -> bool {
        if self.pool.is_some() { lv.pool == self.pool } else { lv.is_linear() }
    }

    fn find<'a>(&self, all: &'a [Lv], name: &str) -> Option<&'a Lv> {
        all.iter().find(|lv| lv.name == name && self.ours(lv))
    }

    fn found<'a>(&self, all: &'a [Lv], name: &str) -> Result<&'a Lv, Error> {
        self.find(all, name).ok_or_else(|| failed(&self.id, format!("there is no logical volume {}/{name}", self.group)))
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }

    fn tool(&self, program: &'static str) -> Tool {
        Tool::new(&self.id, program)
    }

    /// Its name, for kinds and formats that are just bytes.
    fn raw<'a>(&self, volume: &'a At) -> Result<&'a str, Error> {
        if volume.format != "raw" {
            return Err(unsupported(&self.id, format!("{} volumes on LVM are not supported, use raw ones", volume.format)));
        }
        names::leaf(&self.id, &volume.name)
    }

    /// Activates a volume. PVE turns autoactivation off, and snapshots have a flag against activation besides (-K passes it by).
    async fn activate(&self, lv: &Lv) -> Result<PathBuf, Error> {
        if !lv.active() {
            self.tool("lvchange").args(["-a", "y", "-K", "--"]).arg(self.full_name(&lv.name)).change().await?;
        }
        let path = PathBuf::from(&lv.device);
        device(&self.id, &path).await?;
        Ok(path)
    }

    async fn remove(&self, name: &str) -> Result<(), Error> {
        self.tool("lvremove").args(["-f", "--"]).arg(self.full_name(name)).change().await?;
        if self.find(&self.all().await?, name).is_some() {
            return Err(failed(&self.id, format!("{} is still there after it was removed", self.full_name(name))));
        }
        Ok(())
    }

    async fn rename_lv(&self, old: &str, new: &str) -> Result<(), Error> {
        self.tool("lvrename").args(["--", &self.group, old, new]).change().await?;
        let all = self.all().await?;
        if self.find(&all, new).is_some() && self.find(&all, old).is_none() {
            return Ok(());
        }
        Err(failed(&self.id, format!("{old} was renamed, yet {new} is not there")))
    }
}

fn snapshot_name(volume: &str, snapshot: &str) -> String {
    format!("snap_{volume}_{snapshot}")
}

fn is_volume(name: &str) -> bool {
    name.starts_with("vm-") || name.starts_with("base-")
}

/// Labels by name. What a roll-back made whose volume is gone is that volume: a crash came before it got the name, and without being found
/// the roll-back could not be ended.
fn labels_of(all: &[&Lv]) -> BTreeMap<String, String> {
    let name_of = |lv: &Lv| match lv.name.strip_prefix(ROLL_BACK) {
        Some(name) => (!all.iter().any(|other| other.name == name)).then(|| name.to_owned()),
        None => Some(lv.name.clone()),
    };
    let label = |lv: &&&Lv| lv.tags.iter().find(|t| t.starts_with(label::PREFIX)).cloned();
    all.iter().filter_map(|lv| Some((name_of(lv).filter(|n| is_volume(n))?, label(&lv)?))).collect()
}

/// Snapshots of a volume, oldest first. A snapshot's name does not tell for certain where the volume's name ends: its origin does, and
/// where that was rolled back or removed, the longest name of a volume that fits.
fn snapshots_of(all: &[&Lv], volume: &str) -> Vec<Snapshot> {
    let prefix = snapshot_name(volume, "");
    let belongs = |lv: &Lv| {
        if let Some(origin) = lv.origin.as_deref().filter(|o| lv.name.starts_with(&snapshot_name(o, ""))) {
            return origin == volume;
        }
        !all.iter().any(|other| other.name.len() > volume.len() && lv.name.starts_with(&snapshot_name(&other.name, "")))
    };
    let mut found: Vec<Snapshot> = all
        .iter()
        .filter(|lv| lv.name.starts_with(&prefix) && belongs(lv))
        .map(|lv| Snapshot { name: lv.name[prefix.len()..].to_owned(), created: lv.created })
        .collect();
    found.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    found
}

#[tonic::async_trait]
impl Kind for Lvm {
    fn abilities(&self) -> Abilities {
        let snapshots: &[&str] = if self.pool.is_some() { &["raw"] } else { &[] };
        Abilities { formats: &["raw"], snapshots, live_snapshots: snapshots, labels: true, stale: self.pool.is_none() }
    }

    async fn labels(&self) -> Result<BTreeMap<String, String>, Error> {
        let all = self.all().await?;
        Ok(labels_of(&all.iter().filter(|lv| self.ours(lv)).collect::<Vec<_>>()))
    }

    async fn set_label(&self, volume: &At, label: Option<&str>) -> Result<(), Error> {
        let name = names::leaf(&self.id, &volume.name)?;
        let all = self.all().await?;
        let tags = |lv: &Lv| lv.tags.iter().filter(|t| t.starts_with(label::PREFIX)).cloned().collect::<Vec<_>>();
        let old = tags(self.found(&all, name)?);
        let wanted: Vec<String> = label.into_iter().map(str::to_owned).collect();
        if old == wanted {
            return Ok(());
        }
        // One command, so that the volume is never without an owner in between.
        let mut tool = self.tool("lvchange");
        for tag in old.iter().filter(|t| !wanted.contains(t)) {
            tool = tool.args(["--deltag", tag]);
        }
        for tag in wanted.iter().filter(|t| !old.contains(t)) {
            tool = tool.args(["--addtag", tag]);
        }
        tool.arg("--").arg(self.full_name(name)).change().await?;
        let found = tags(self.found(&self.all().await?, name)?);
        if found == wanted { Ok(()) } else { Err(failed(&self.id, format!("{name} has labels {found:?} after {label:?} was written"))) }
    }

    async fn rename(&self, volume: &At, name: &str) -> Result<(), Error> {
        let (old, new) = (names::leaf(&self.id, &volume.name)?, names::leaf(&self.id, name)?);
        let all = self.all().await?;
        // Any volume of the group is in the way, whatever it is.
        let taken = all.iter().any(|lv| lv.name == new);
        match Rename::decide(&self.id, (old, self.find(&all, old).is_some()), (new, taken))? {
            Rename::Needed => self.rename_lv(old, new).await,
            Rename::Done => self.found(&all, new).map(drop),
        }
    }

    async fn grow(&self, volume: &At, bytes: u64) -> Result<(), Error> {
        let name = self.raw(volume)?;
        let before = self.found(&self.all().await?, name)?.clone();
        if before.size >= bytes {
            return Ok(());
        }
        // Sizes are in sectors; LVM rounds up to its extents by itself.
        let wanted = bytes.next_multiple_of(512);
        self.tool("lvextend").args(["-L", &format!("{wanted}B"), "--", &self.full_name(name)]).change().await?;
        let after = self.found(&self.all().await?, name)?.clone();
        if after.size < bytes {
            return Err(failed(&self.id, format!("{name} has {} bytes, not {bytes}, after it was grown", after.size)));
        }
        if self.pool.is_none() {
            // The new extents hold what others left there.
            self.zero(&after, before.size, after.size - before.size).await?;
        }
        Ok(())
    }

    async fn snapshots(&self, volume: &At) -> Result<Vec<Snapshot>, Error> {
        if self.pool.is_none() {
            return Ok(Vec::new());
        }
        let (name, all) = (self.raw(volume)?, self.all().await?);
        // A roll-back that a crash cut off may have left no volume of this name.
        self.found(&all, name).or_else(|error| self.find(&all, &format!("{ROLL_BACK}{name}")).ok_or(error))?;
        Ok(snapshots_of(&all.iter().filter(|lv| self.ours(lv)).collect::<Vec<_>>(), name))
    }

    async fn snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        if self.pool.is_none() {
            return no_snapshots(volume);
        }
        let (lv, all) = (self.raw(volume)?, self.all().await?);
        self.found(&all, lv)?;
        let snapshot = snapshot_name(lv, name);
        if self.find(&all, &snapshot).is_some() {
            return Ok(());
        }
        self.tool("lvcreate").args(["-n", &snapshot, "-p", "r", "-s", "--", &self.full_name(lv)]).change().await?;
        self.found(&self.all().await?, &snapshot).map(drop)
    }

    async fn delete_snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        if self.pool.is_none() {
            return Ok(());
        }
        let snapshot = snapshot_name(self.raw(volume)?, name);
        if self.find(&self.all().await?, &snapshot).is_none() {
            return Ok(());
        }
        self.remove(&snapshot).await
    }

    /// A writable snapshot of the snapshot takes the volume's place. It is made, labels included, before the volume is removed: whenever a
    /// crash comes, one of the two is there, and doing it again goes on from it.
    async fn roll_back(&self, volume: &At, name: &str) -> Result<(), Error> {
        if self.pool.is_none() {
            return no_snapshots(volume);
        }
        let (lv, all) = (self.raw(volume)?, self.all().await?);
        let (snapshot, fresh) = (snapshot_name(lv, name), format!("{ROLL_BACK}{lv}"));
        let Some(present) = self.find(&all, lv) else {
            self.found(&all, &fresh)?;
            return self.rename_lv(&fresh, lv).await;
        };
        self.found(&all, &snapshot)?;
        if self.find(&all, &fresh).is_some() {
            self.remove(&fresh).await?;
        }
        let mut tool = self.tool("lvcreate").args(["-k", "n", "-n", &fresh]);
        for tag in &present.tags {
            tool = tool.args(["--addtag", tag]);
        }
        tool.args(["-s", "--", &self.full_name(&snapshot)]).change().await?;
        self.found(&self.all().await?, &fresh)?;
        self.tool("lvchange").args(["--setautoactivation", "n", "--", &self.full_name(&fresh)]).change().await?;
        // Fails when somebody has the volume open.
        if let Err(error) = self.remove(lv).await {
            if self.find(&self.all().await?, lv).is_some() {
                self.remove(&fresh).await?;
            }
            return Err(error);
        }
        self.rename_lv(&fresh, lv).await
    }

    async fn place(&self, volume: &At, snapshot: Option<&str>) -> Result<Place, Error> {
        let (name, all) = (self.raw(volume)?, self.all().await?);
        let wanted = snapshot.map_or_else(|| name.to_owned(), |s| snapshot_name(name, s));
        let lv = self.found(&all, &wanted)?;
        let path = self.activate(lv).await?;
        // Snapshots are inactive on a PVE host, except while they are read.
        let after = (snapshot.is_some() && !lv.active())
            .then(|| After::new(self.tool("lvchange").args(["-a", "n", "--"]).arg(self.full_name(&wanted))));
        let (url, format) = (lv.device.clone(), "raw".to_owned());
        Ok(Place { url, format, path: Some(path), direct: true, snapshot: None, size: lv.size, after })
    }

    async fn clear(&self, volume: &At, place: &Place, from: u64) -> Result<bool, Error> {
        let (name, all) = (self.raw(volume)?, self.all().await?);
        let lv = self.found(&all, name)?;
        let from = from.next_multiple_of(512).min(place.size);
        let Some(pool) = all.iter().find(|p| Some(&p.name) == self.pool.as_ref()) else {
            self.zero(lv, from, place.size - from).await?;
            return Ok(false);
        };
        // Without its chunks a thin volume reads as zeros. Pools may refuse to give chunks back.
        let discarded = self.tool("blkdiscard").arg(&lv.device).follow(|_| ()).await.is_ok();
        let chunk = pool.chunk.max(512);
        if !discarded {
            let mapped = lv.data_percent.parse::<f64>().is_ok_and(|p| p > 0.0);
            let end = if mapped { place.size } else { from.next_multiple_of(chunk).min(place.size) };
            self.zero(lv, from, end - from).await?;
            return Ok(false);
        }
        // Only whole chunks are given back: the last may be cut off by the volume's end.
        let whole = place.size / chunk * chunk;
        self.zero(lv, whole, place.size - whole).await?;
        if pool.zeroes() {
            return Ok(true);
        }
        // New chunks hold what others left there: the one in which the source ends is cleared, the rest is written in full.
        let end = from.next_multiple_of(chunk).min(place.size);
        self.zero(lv, from, end - from).await?;
        Ok(false)
    }

    async fn blank(&self, volume: &At) -> Result<(), Error> {
        if self.pool.is_some() {
            return Ok(());
        }
        let (name, all) = (self.raw(volume)?, self.all().await?);
        let lv = self.found(&all, name)?;
        self.zero(lv, 0, lv.size).await
    }

    async fn full(&self) -> Option<String> {
        let pool = self.pool.as_ref()?;
        let all = self.all().await.ok()?;
        let full = all.iter().any(|lv| lv.name == *pool && lv.out_of_space());
        full.then(|| format!("thin pool {}/{pool} has no space left", self.group))
    }

    fn written_as(&self, volume: &At) -> Vec<String> {
        let Ok(name) = names::leaf(&self.id, &volume.name) else { return Vec::new() };
        let mapped = |part: &str| part.replace('-', "--");
        vec![format!("/dev/{}/{name}", self.group), format!("/dev/mapper/{}-{}", mapped(&self.group), mapped(name))]
    }
}

impl Lvm {
    /// Writes zeros over a part of a volume.
    async fn zero(&self, lv: &Lv, from: u64, length: u64) -> Result<(), Error> {
        if length == 0 {
            return Ok(());
        }
        let path = self.activate(lv).await?;
        let tool = self.tool("blkdiscard").args(["-z", "-o", &from.to_string(), "-l", &length.to_string()]).arg(path);
        tool.follow(|_| ()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lv(name: &str, origin: &str) -> Lv {
        Lv { name: name.into(), origin: (!origin.is_empty()).then(|| origin.into()), ..Lv::default() }
    }

    #[test]
    fn a_volume_of_which_only_the_roll_back_is_left_is_found_by_its_label() {
        let labelled = |name: &str| Lv { tags: vec!["x".into(), "pvelet:v1:a".into()], ..lv(name, "") };
        let (whole, back, half) = (labelled("vm-1-a"), labelled("pvelet-roll-back-vm-1-a"), labelled("pvelet-roll-back-vm-1-b"));
        let names = |all: &[&Lv]| labels_of(all).into_keys().collect::<Vec<_>>();
        assert_eq!(names(&[&whole, &back, &half, &labelled("other"), &lv("vm-1-c", "")]), ["vm-1-a", "vm-1-b"]);
        assert_eq!(names(&[&back]), ["vm-1-a"]);
    }

    #[test]
    fn snapshots_go_to_the_volume_they_were_taken_of() {
        let all = [
            lv("vm-1-a", ""),
            lv("vm-1-a_b", ""),
            lv("snap_vm-1-a_one", "vm-1-a"),
            lv("snap_vm-1-a_b_two", "vm-1-a"),
            lv("snap_vm-1-a_b_three", "vm-1-a_b"),
            // The origin was rolled back: it is another volume by now.
            lv("snap_vm-1-a_b_four", ""),
            lv("snap_vm-1-a_five", ""),
            lv("snap_vm-1-ab_six", ""),
        ];
        let names = |volume: &str| snapshots_of(&all.iter().collect::<Vec<_>>(), volume).into_iter().map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(names("vm-1-a"), ["b_two", "five", "one"]);
        assert_eq!(names("vm-1-a_b"), ["four", "three"]);
    }
}
