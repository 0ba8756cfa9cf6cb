//! Copies and imports.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pvelet_agent::host::{
    process,
    storage::{At, Source, StorageConfig, VolumeStore},
};

use super::{Lab, MIB, Place, content, place::tool, random, same};

fn volume(at: &At, snapshot: Option<&str>) -> Source {
    Source::Volume { at: at.clone(), snapshot: snapshot.map(str::to_owned) }
}

pub(super) async fn a_volume_is_copied_to_a_larger_one(lab: Arc<Lab>, place: Place) {
    let (from, bytes) = lab.filled(&place);
    lab.store.set_label(&from, Some("pvelet:source")).await.unwrap();
    for size in [8, 20] {
        let to = lab.volume(&place, size * MIB);
        lab.copy(&volume(&from, None), &to).await.unwrap();
        same(&bytes, &lab.read(&place, &to), "the copy");
        same(&bytes, &lab.read(&place, &from), "the source");
        assert_eq!(lab.store.labels(&to.storage).await.unwrap().get(&to.name), None, "the owner must not come along");
    }
}

pub(super) async fn a_snapshot_is_copied_to_a_larger_volume(lab: Arc<Lab>, place: Place) {
    if !place.has_snapshots() {
        return;
    }
    let (from, bytes) = lab.filled(&place);
    lab.store.snapshot(&from, "one").await.unwrap();
    let later = content(8 * MIB);
    place.write(&from, &later, lab.work.path());
    let to = lab.volume(&place, 20 * MIB);
    for _ in 0..2 {
        lab.copy(&volume(&from, Some("one")), &to).await.unwrap();
        same(&bytes, &lab.read(&place, &to), "the copy of the snapshot");
    }
    same(&later, &lab.read(&place, &from), "the source");
    assert_eq!(lab.copy(&volume(&from, Some("two")), &to).await.unwrap_err().reason(), "SNAPSHOT_NOT_FOUND");
    // Nothing is left that would hold the snapshot.
    lab.store.delete_snapshot(&from, "one").await.unwrap();
    assert!(lab.store.snapshots(&from).await.unwrap().is_empty());
}

pub(super) async fn a_copy_into_a_used_target_leaves_zeros_behind_the_source(lab: Arc<Lab>, place: Place) {
    let (from, bytes) = lab.filled(&place);
    let (to, mut junk) = (lab.volume(&place, 20 * MIB), vec![0; 20 << 20]);
    random(&mut junk);
    place.write(&to, &junk, lab.work.path());
    lab.copy(&volume(&from, None), &to).await.unwrap();
    same(&bytes, &lab.read(&place, &to), "the copy");
}

pub(super) async fn a_copy_into_a_smaller_target_is_refused(lab: Arc<Lab>, place: Place) {
    let ((from, _), to) = (lab.filled(&place), lab.volume(&place, 4 * MIB));
    assert_eq!(lab.copy(&volume(&from, None), &to).await.unwrap_err().reason(), "STORAGE_FAILED");
}

pub(super) async fn an_inactive_volume_is_copied(lab: Arc<Lab>, place: Place) {
    let (from, bytes) = lab.filled(&place);
    let to = lab.volume(&place, 8 * MIB);
    if place.config.kind.starts_with("lvm") {
        for at in [&from, &to] {
            tool(&["lvchange", "-an", &place.full(&at.name)]);
        }
    }
    lab.copy(&volume(&from, None), &to).await.unwrap();
    same(&bytes, &lab.read(&place, &to), "the copy");
}

pub(super) async fn an_image_is_imported(lab: Arc<Lab>, place: Place) {
    let (bytes, folder) = (content(8 * MIB), lab.work.path().to_owned());
    for (format, file) in [("raw", "image.raw"), ("qcow2", "image.qcow2")] {
        let (raw, path) = (folder.join("bytes"), folder.join(file));
        fs::write(&raw, &bytes).unwrap();
        tool(&["qemu-img", "convert", "-f", "raw", "-O", format, raw.to_str().unwrap(), path.to_str().unwrap()]);
        let image = lab.store.open_image(std::slice::from_ref(&folder), file).await.unwrap();
        let info = lab.store.inspect(&image, Some(format)).await.unwrap();
        assert_eq!((info.format, info.virtual_size), (format, 8 * MIB));
        // Another file takes its place: the open one is what counts.
        fs::rename(&raw, &path).unwrap();
        fs::write(&path, vec![0xff; 4096]).unwrap();
        let to = lab.volume(&place, 20 * MIB);
        lab.copy(&Source::Image(image, info), &to).await.unwrap();
        same(&bytes, &lab.read(&place, &to), format);
    }
}

pub(super) async fn a_volume_is_copied_across(lab: Arc<Lab>, from_place: Place, to_place: Place) {
    let (from, bytes) = lab.filled(&from_place);
    let to = lab.volume(&to_place, 12 * MIB);
    lab.copy(&volume(&from, None), &to).await.unwrap();
    same(&bytes, &lab.read(&to_place, &to), "the copy");
    same(&bytes, &lab.read(&from_place, &from), "the source");
}

/// A place that is too small for 8 MiB, and what takes it down again.
struct Small {
    place: Place,
    down: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new(&self.down[0]).args(&self.down[1..]).output();
    }
}

/// How long a thin pool that queues holds writes up before it fails them; in seconds, 60 unless told otherwise.
const QUEUE_TIMEOUT: &str = "/sys/module/dm_thin_pool/parameters/no_space_timeout";

/// `queues`: a thin pool that holds writes up for a while when it is full, as PVE makes them.
fn small(lab: &Lab, place: &Place, queues: bool) -> Option<Small> {
    let folder = tempfile::tempdir_in(lab.work.path()).unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let options = |add: &[(&str, &str)]| {
        let mut options = place.config.options.clone();
        options.extend(add.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        StorageConfig { id: "small".to_owned(), options, ..place.config.clone() }
    };
    let (config, down) = match place.config.kind.as_str() {
        "dir" => {
            tool(&["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", &path]);
            (options(&[("path", &path)]), vec!["umount".to_owned(), path])
        }
        "lvmthin" => {
            let pool = place.full("pvelet_small");
            tool(&["lvcreate", "-qq", "-L", "4m", "--errorwhenfull", if queues { "n" } else { "y" }, "-T", &pool]);
            (options(&[("thinpool", "pvelet_small")]), ["lvremove", "-qq", "-f", &pool].map(str::to_owned).to_vec())
        }
        // All others have room for what they allocated, or none that can be made small.
        _ => return None,
    };
    Some(Small { place: Place { config, ..place.clone() }, down, _folder: folder })
}

pub(super) async fn a_copy_to_a_full_target_leaves_the_source_intact(lab: Arc<Lab>, place: Place) {
    fills_up(&lab, &place, false).await;
}

pub(super) async fn a_copy_to_a_full_pool_that_queues_ends_as_well(lab: Arc<Lab>, place: Place) {
    if place.config.kind == "lvmthin" {
        let before = fs::read_to_string(QUEUE_TIMEOUT).unwrap();
        fs::write(QUEUE_TIMEOUT, "3").unwrap();
        fills_up(&lab, &place, true).await;
        fs::write(QUEUE_TIMEOUT, before.trim()).unwrap();
    }
}

async fn fills_up(lab: &Lab, place: &Place, queues: bool) {
    let Some(small) = small(lab, place, queues) else { return };
    let (from, bytes) = lab.filled(place);
    let name = small.place.name(super::VMIDS[0], "full");
    small.place.allocate(&name, 8 * MIB);
    let error = lab.copy(&volume(&from, None), &small.place.at(&name)).await.unwrap_err();
    assert_eq!(error.reason(), "STORAGE_FULL", "{error}");
    same(&bytes, &lab.read(place, &from), "the source");
    small.place.free(&name);
}

/// The conversion into `target` that a process has started.
fn conversion(parent: i32, target: &Path) -> Option<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let target = target.to_str().unwrap();
    pids.into_iter().find(|pid| {
        process::stat(Path::new("/proc"), *pid).is_some_and(|s| s.parent == parent) && {
            let arguments = process::arguments(Path::new("/proc"), *pid);
            arguments.get(1).is_some_and(|a| a == "convert") && arguments.last().is_some_and(|a| a == target)
        }
    })
}

pub(super) async fn a_killed_copy_is_found_as_a_writer(lab: Arc<Lab>, place: Place) {
    let (from, to) = (lab.volume(&place, 64 * MIB), lab.volume(&place, 64 * MIB));
    let mut bytes = vec![0; 64 << 20];
    random(&mut bytes);
    place.write(&from, &bytes, lab.work.path());
    // The copy may be over before it was stopped: it is made again then.
    for _ in 0..20 {
        let program = std::env::current_exe().unwrap();
        let arguments = ["copy-for-a-killed-agent", &place.spec, place.format, &from.name, &to.name];
        let mut helper = Command::new(program).args(arguments).stdout(Stdio::null()).spawn().unwrap();
        let agent = i32::try_from(helper.id()).unwrap();
        let mut writer = None;
        while writer.is_none() && helper.try_wait().unwrap().is_none() {
            writer = conversion(agent, &place.path(&to.name));
            tokio::task::yield_now().await;
        }
        let stopped = writer.filter(|pid| kill(Pid::from_raw(*pid), Signal::SIGSTOP).is_ok());
        if let Some(pid) = stopped {
            assert!(lab.store.writers(&to).await.unwrap().is_empty(), "its agent lives");
            helper.kill().unwrap();
            helper.wait().unwrap();
            let found = lab.store.writers(&to).await.unwrap();
            assert!(lab.store.writers(&from).await.unwrap().is_empty(), "the source is not written");
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            assert_eq!(found.iter().map(|p| p.pid).collect::<Vec<_>>(), [pid], "{found:?}");
            let deadline = Instant::now() + Duration::from_secs(10);
            while !lab.store.writers(&to).await.unwrap().is_empty() {
                assert!(Instant::now() < deadline, "it does not end");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            return;
        }
        helper.wait().unwrap();
    }
    panic!("the copy was always over before it could be stopped");
}
