//! Labels, names, sizes and snapshots.

use std::sync::Arc;

use pvelet_agent::{
    error::Error,
    host::storage::{At, VolumeStore},
};

use super::{Lab, MIB, Place, VMIDS, content, place::tool, random, same};

async fn label(lab: &Lab, volume: &At) -> Option<String> {
    lab.store.labels(&volume.storage).await.unwrap().remove(&volume.name)
}

async fn names(lab: &Lab, volume: &At) -> Vec<String> {
    lab.store.snapshots(volume).await.unwrap().into_iter().map(|s| s.name).collect()
}

pub(super) async fn a_storage_that_is_not_there_is_told_as_offline(lab: Arc<Lab>, place: Place) {
    for option in ["path", "vgname", "thinpool", "pool"] {
        let mut volume = place.at(&place.name(VMIDS[0], "none"));
        let Some(value) = volume.storage.options.get_mut(option) else { continue };
        value.push_str("-not-there");
        let reasons = [
            lab.store.labels(&volume.storage).await.unwrap_err().reason(),
            lab.store.grow(&volume, MIB).await.unwrap_err().reason(),
            lab.store.set_label(&volume, Some("pvelet:a")).await.unwrap_err().reason(),
        ];
        assert_eq!(reasons, ["STORAGE_OFFLINE"; 3], "{option}");
    }
}

pub(super) async fn labels_are_read_back_rewritten_and_removed(lab: Arc<Lab>, place: Place) {
    let (volume, other) = (lab.volume(&place, 4 * MIB), lab.volume(&place, 4 * MIB));
    assert_eq!(label(&lab, &volume).await, None);
    lab.store.set_label(&volume, None).await.unwrap();
    let long = format!("pvelet:v1/{}", "aZ09_+.:/=-".repeat(90));
    for text in ["pvelet:tenant/a:id=1", "pvelet:tenant/a:id=1", "pvelet:tenant/b", &long] {
        lab.store.set_label(&volume, Some(text)).await.unwrap();
        assert_eq!(label(&lab, &volume).await.as_deref(), Some(text));
        assert_eq!(label(&lab, &other).await, None);
    }
    lab.store.set_label(&volume, None).await.unwrap();
    assert_eq!(label(&lab, &volume).await, None);
    assert!(lab.store.set_label(&volume, Some("pvelet:a b")).await.is_err());
    let missing = At { name: place.name(VMIDS[0], "none"), ..volume };
    assert!(lab.store.set_label(&missing, Some("pvelet:a")).await.is_err());
}

pub(super) async fn labels_survive_a_rename(lab: Arc<Lab>, place: Place) {
    let volume = lab.volume(&place, 4 * MIB);
    lab.store.set_label(&volume, Some("pvelet:a")).await.unwrap();
    let new = place.name(VMIDS[1], "renamed");
    lab.note(&place, &new);
    lab.store.rename(&volume, &new).await.unwrap();
    let labels = lab.store.labels(&volume.storage).await.unwrap();
    assert_eq!((labels.get(&new).map(String::as_str), labels.get(&volume.name)), (Some("pvelet:a"), None));
}

pub(super) async fn a_rename_goes_there_and_back_and_may_be_repeated(lab: Arc<Lab>, place: Place) {
    let (volume, bytes) = lab.filled(&place);
    let renamed = At { name: place.name(VMIDS[1], "renamed"), ..volume.clone() };
    lab.note(&place, &renamed.name);
    for (from, to) in [(&volume, &renamed), (&renamed, &volume)] {
        for _ in 0..2 {
            lab.store.rename(from, &to.name).await.unwrap();
            same(&bytes, &lab.read(&place, to), "after a rename");
            assert!(!place.path(&from.name).exists());
        }
    }
    // The folder of the other VMID was made for it and is empty again.
    let folder = place.path(&renamed.name).ancestors().find(|p| p.ends_with(VMIDS[1].to_string())).map(|p| p.exists());
    assert_ne!(folder, Some(true));
    let missing = At { name: place.name(VMIDS[0], "none"), ..volume };
    assert_eq!(lab.store.rename(&missing, &place.name(VMIDS[1], "none")).await.unwrap_err().reason(), "STORAGE_FAILED");
}

pub(super) async fn a_rename_never_replaces_a_volume(lab: Arc<Lab>, place: Place) {
    let ((one, first), (two, second)) = (lab.filled(&place), lab.filled(&place));
    assert_eq!(lab.store.rename(&one, &two.name).await.unwrap_err().reason(), "STORAGE_FAILED");
    same(&first, &lab.read(&place, &one), "the volume");
    same(&second, &lab.read(&place, &two), "the one in the way");
}

pub(super) async fn growing_keeps_the_bytes_and_the_rest_is_zero(lab: Arc<Lab>, place: Place) {
    // What somebody else left on the same blocks.
    let (used, mut junk) = (lab.volume(&place, 24 * MIB), vec![0; 24 << 20]);
    random(&mut junk);
    place.write(&used, &junk, lab.work.path());
    place.free(&used.name);
    let (volume, bytes) = lab.filled(&place);
    for wanted in [16 * MIB, 16 * MIB, 4 * MIB, 16 * MIB + 512] {
        lab.store.grow(&volume, wanted).await.unwrap();
        let found = lab.read(&place, &volume);
        assert!(found.len() as u64 >= wanted.max(16 * MIB), "{} of {wanted}", found.len());
        same(&bytes, &found, "after growing");
    }
}

/// What storages without snapshots answer.
async fn refuses_snapshots(lab: &Lab, volume: &At) {
    assert_eq!(lab.store.snapshot(volume, "one").await.unwrap_err().reason(), "STORAGE_UNSUPPORTED");
    assert_eq!(names(lab, volume).await, [""; 0]);
    lab.store.delete_snapshot(volume, "one").await.unwrap();
    assert_eq!(lab.store.roll_back(volume, "one").await.unwrap_err().reason(), "SNAPSHOT_NOT_FOUND");
}

pub(super) async fn snapshot_and_roll_back_keep_every_byte(lab: Arc<Lab>, place: Place) {
    let (volume, bytes) = lab.filled(&place);
    if !place.has_snapshots() {
        return refuses_snapshots(&lab, &volume).await;
    }
    for _ in 0..2 {
        lab.store.snapshot(&volume, "before").await.unwrap();
    }
    for _ in 0..2 {
        let changed = content(8 * MIB);
        place.write(&volume, &changed, lab.work.path());
        same(&changed, &lab.read(&place, &volume), "what was written");
        lab.store.roll_back(&volume, "before").await.unwrap();
        same(&bytes, &lab.read(&place, &volume), "what was brought back");
        assert_eq!(names(&lab, &volume).await, ["before"]);
    }
    assert_eq!(lab.store.roll_back(&volume, "other").await.unwrap_err().reason(), "SNAPSHOT_NOT_FOUND");
    // Still a volume that can be written.
    place.write(&volume, &bytes, lab.work.path());
}

pub(super) async fn a_roll_back_keeps_the_present_label(lab: Arc<Lab>, place: Place) {
    let (volume, _) = lab.filled(&place);
    if !place.has_snapshots() {
        return;
    }
    lab.store.set_label(&volume, Some("pvelet:old")).await.unwrap();
    lab.store.snapshot(&volume, "one").await.unwrap();
    lab.store.set_label(&volume, Some("pvelet:new")).await.unwrap();
    lab.store.roll_back(&volume, "one").await.unwrap();
    let labels = lab.store.labels(&volume.storage).await.unwrap();
    let ours: Vec<_> = labels.iter().filter(|(name, _)| name.contains("vm-9100-")).collect();
    assert_eq!(ours, [(&volume.name, &"pvelet:new".to_owned())]);
}

pub(super) async fn a_roll_back_that_was_cut_off_is_done_again(lab: Arc<Lab>, place: Place) {
    let (volume, bytes) = lab.filled(&place);
    if !place.has_snapshots() {
        return;
    }
    lab.store.snapshot(&volume, "one").await.unwrap();
    lab.store.set_label(&volume, Some("pvelet:a")).await.unwrap();
    let path = place.path(&volume.name);
    match place.config.kind.as_str() {
        "lvmthin" => {
            let (fresh, snapshot) = (format!("pvelet-roll-back-{}", volume.name), place.full(&format!("snap_{}_one", volume.name)));
            for removed in [false, true] {
                place.write(&volume, &content(8 * MIB), lab.work.path());
                tool(&["lvcreate", "-qq", "-kn", "-n", &fresh, "--addtag", "pvelet:a", "-s", &snapshot]);
                if removed {
                    tool(&["lvremove", "-qq", "-f", &place.full(&volume.name)]);
                }
                lab.store.roll_back(&volume, "one").await.unwrap();
                same(&bytes, &lab.read(&place, &volume), "what was brought back");
            }
        }
        "btrfs" if place.format == "raw" => {
            let subvolume = path.parent().unwrap().to_str().unwrap();
            tool(&["btrfs", "-q", "subvolume", "snapshot", subvolume, &format!("{subvolume}.pvelet-roll-back")]);
            place.write(&volume, &content(8 * MIB), lab.work.path());
            lab.store.roll_back(&volume, "one").await.unwrap();
            same(&bytes, &lab.read(&place, &volume), "what was brought back");
        }
        // One step, which is done or not.
        _ => {
            lab.store.roll_back(&volume, "one").await.unwrap();
            lab.store.roll_back(&volume, "one").await.unwrap();
        }
    }
    assert_eq!(label(&lab, &volume).await.as_deref(), Some("pvelet:a"));
}

pub(super) async fn snapshots_are_listed_oldest_first_and_removed(lab: Arc<Lab>, place: Place) {
    let (volume, bytes) = lab.filled(&place);
    if !place.has_snapshots() {
        return;
    }
    let before = std::time::SystemTime::now() - std::time::Duration::from_secs(5);
    for name in ["zz", "m_m", "a-1"] {
        lab.store.snapshot(&volume, name).await.unwrap();
        // Some storages tell whole seconds.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
    let found = lab.store.snapshots(&volume).await.unwrap();
    assert_eq!(found.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["zz", "m_m", "a-1"]);
    assert!(found.iter().all(|s| s.created.is_some_and(|t| t >= before && t <= std::time::SystemTime::now())), "{found:?}");
    for _ in 0..2 {
        lab.store.delete_snapshot(&volume, "m_m").await.unwrap();
        assert_eq!(names(&lab, &volume).await, ["zz", "a-1"]);
    }
    for name in ["zz", "a-1"] {
        lab.store.delete_snapshot(&volume, name).await.unwrap();
    }
    assert!(names(&lab, &volume).await.is_empty());
    same(&bytes, &lab.read(&place, &volume), "the volume");
    assert!(lab.store.snapshot(&volume, "-a").await.is_err() && lab.store.snapshot(&volume, "1").await.is_err());
}

pub(super) async fn an_older_snapshot_is_brought_back_or_refused(lab: Arc<Lab>, place: Place) {
    let (volume, bytes) = lab.filled(&place);
    if !place.has_snapshots() {
        return;
    }
    lab.store.snapshot(&volume, "one").await.unwrap();
    let later = content(8 * MIB);
    place.write(&volume, &later, lab.work.path());
    lab.store.snapshot(&volume, "two").await.unwrap();
    match lab.store.roll_back(&volume, "one").await {
        Ok(()) => {
            same(&bytes, &lab.read(&place, &volume), "the older snapshot");
            lab.store.roll_back(&volume, "two").await.unwrap();
        }
        Err(error) => {
            assert!(matches!(&error, Error::SnapshotNotNewest { newer, .. } if *newer == ["two"]), "{error}");
            assert_eq!(place.config.kind, "zfspool");
        }
    }
    same(&later, &lab.read(&place, &volume), "the newer snapshot");
}
