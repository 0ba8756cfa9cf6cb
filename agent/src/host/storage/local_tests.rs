#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make images with real tools")]
use std::{fs, os::unix::fs::MetadataExt, process::Command};

use super::*;

const MIB: usize = 1 << 20;

/// A storage of kind `dir` below a folder that stands for the root of a PVE host.
struct Host {
    root: tempfile::TempDir,
    store: LocalStore,
    storage: StorageConfig,
}

impl Host {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let storage = storage("dir", &[("path", "/srv/store")]);
        fs::create_dir_all(root.path().join("srv/store")).unwrap();
        Self { store: LocalStore::new(root.path().to_owned(), "/proc".into()), root, storage }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("srv/store/images").join(name)
    }

    /// A volume with bytes in it.
    fn volume(&self, name: &str, bytes: usize, data: &[u8]) -> At {
        let format = name.rsplit('.').next().unwrap();
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        let (path, raw) = (self.path(name), self.root.path().join("data"));
        qemu_img(&["create", "-f", format, path.to_str().unwrap(), &bytes.to_string()]);
        if !data.is_empty() {
            fs::write(&raw, data).unwrap();
            qemu_img(&["convert", "-n", "-f", "raw", "-O", format, raw.to_str().unwrap(), path.to_str().unwrap()]);
        }
        At { storage: self.storage.clone(), name: name.to_owned(), format: format.to_owned() }
    }

    fn read(&self, volume: &At) -> Vec<u8> {
        let (path, raw) = (self.path(&volume.name), self.root.path().join("read"));
        qemu_img(&["convert", "-f", &volume.format, "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
        fs::read(raw).unwrap()
    }

    async fn copy(&self, from: &Source, to: &At) -> Result<Vec<Copied>, Error> {
        let (sender, mut told) = mpsc::unbounded_channel();
        self.store.copy(from, to, sender).await?;
        let mut all = Vec::new();
        while let Ok(one) = told.try_recv() {
            all.push(one);
        }
        Ok(all)
    }
}

fn storage(kind: &str, options: &[(&str, &str)]) -> StorageConfig {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    StorageConfig { id: "s".into(), kind: kind.into(), shared: false, options }
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn data(seed: usize) -> Vec<u8> {
    let byte = |n: usize| (n.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13).to_le_bytes()[0];
    (0..3 * MIB).map(|n| if (n / 65536) % 3 == 1 { 0 } else { byte(n) }).collect()
}

fn of(at: &At, snapshot: Option<&str>) -> Source {
    Source::Volume { at: at.clone(), snapshot: snapshot.map(str::to_owned) }
}

fn padded(mut bytes: Vec<u8>, length: usize) -> Vec<u8> {
    bytes.resize(length, 0);
    bytes
}

/// Kind, options, formats, formats with snapshots, with snapshots of running guests.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, &'a str, &'a str);

#[test]
fn each_kind_says_what_it_can_and_an_unknown_one_can_nothing() {
    let store = LocalStore::new("/".into(), "/proc".into());
    let cases: [Case<'_>; 9] = [
        ("dir", &[("path", "/a")], "raw qcow2", "qcow2", ""),
        ("nfs", &[("format", "qcow2")], "qcow2 raw", "qcow2", ""),
        ("btrfs", &[("path", "/a")], "raw qcow2", "raw qcow2", "raw"),
        ("lvmthin", &[("vgname", "v"), ("thinpool", "p")], "raw", "raw", "raw"),
        ("lvm", &[("vgname", "v")], "raw", "", ""),
        ("zfspool", &[("pool", "a/b")], "raw", "raw", "raw"),
        ("rbd", &[], "raw", "raw", ""),
        ("rbd", &[("krbd", "1")], "raw", "raw", "raw"),
        ("iscsi", &[], "", "", ""),
    ];
    for (kind, options, formats, snapshots, live) in cases {
        let found = store.abilities(&storage(kind, options));
        assert_eq!(
            (found.formats.join(" "), found.snapshots.join(" "), found.live_snapshots.join(" ")),
            (formats.into(), snapshots.into(), live.into()),
            "{kind}"
        );
        assert_eq!(found.labels, !formats.is_empty(), "{kind}");
    }
}

#[tokio::test]
async fn labels_of_a_folder_are_read_even_if_something_in_it_is_broken() {
    let host = Host::new();
    assert!(host.store.labels(&host.storage).await.unwrap().is_empty());
    let (one, two) = (host.volume("100/vm-100-a.raw", MIB, &[]), host.volume("101/vm-101-b.qcow2", MIB, &[]));
    for folder in ["abc", "100/vm-100-sub.raw", "102"] {
        fs::create_dir_all(host.path(folder)).unwrap();
    }
    std::os::unix::fs::symlink(host.path("100/vm-100-a.raw"), host.path("100/vm-100-link.raw")).unwrap();
    std::os::unix::fs::symlink("nowhere", host.path("102/vm-102-dead.raw")).unwrap();
    fs::write(host.path("103"), "no folder").unwrap();
    host.store.set_label(&one, Some("pvelet:a")).await.unwrap();
    host.store.set_label(&two, Some("pvelet:b")).await.unwrap();
    let expected = BTreeMap::from([(one.name.clone(), "pvelet:a".to_owned()), (two.name.clone(), "pvelet:b".to_owned())]);
    assert_eq!(host.store.labels(&host.storage).await.unwrap(), expected);
    let link = At { name: "100/vm-100-link.raw".into(), ..one };
    assert!(host.store.set_label(&link, Some("pvelet:a")).await.is_err(), "a link is no volume");
}

#[tokio::test]
async fn a_missing_folder_or_mount_is_told_as_offline() {
    let host = Host::new();
    fs::remove_dir(host.root.path().join("srv/store")).unwrap();
    let at = At { storage: host.storage.clone(), name: "100/vm-100-a.raw".into(), format: "raw".into() };
    let other = At { name: "100/vm-100-b.raw".into(), ..at.clone() };
    for error in [
        host.store.labels(&host.storage).await.unwrap_err(),
        host.store.set_label(&at, Some("pvelet:a")).await.unwrap_err(),
        host.store.rename(&at, "101/vm-101-a.raw").await.unwrap_err(),
        host.store.grow(&at, 1).await.unwrap_err(),
        host.copy(&of(&at, None), &other).await.unwrap_err(),
    ] {
        assert_eq!(error.reason(), "STORAGE_OFFLINE", "{error}");
    }
    // The folder is there, and nothing is mounted on it.
    fs::create_dir_all(host.root.path().join("srv/store")).unwrap();
    for (kind, option) in [("dir", ("is_mountpoint", "yes")), ("dir", ("is_mountpoint", "/srv")), ("nfs", ("server", "x"))] {
        let storage = storage(kind, &[("path", "/srv/store"), option]);
        assert_eq!(host.store.labels(&storage).await.unwrap_err().reason(), "STORAGE_OFFLINE", "{kind} {option:?}");
    }
}

#[tokio::test]
async fn the_folder_of_images_may_have_another_name() {
    let host = Host::new();
    let storage = storage("dir", &[("path", "/srv/store"), ("content-dirs", "iso=i,images=some/where")]);
    let path = host.root.path().join("srv/store/some/where/100");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("vm-100-a.raw"), [0; 512]).unwrap();
    let at = At { storage: storage.clone(), name: "100/vm-100-a.raw".into(), format: "raw".into() };
    host.store.set_label(&at, Some("pvelet:a")).await.unwrap();
    assert_eq!(host.store.labels(&storage).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_rename_makes_and_removes_folders_and_takes_the_label_along() {
    let host = Host::new();
    let volume = host.volume("100/vm-100-a.qcow2", MIB, &[]);
    host.store.set_label(&volume, Some("pvelet:a")).await.unwrap();
    for _ in 0..2 {
        host.store.rename(&volume, "200/vm-200-b.qcow2").await.unwrap();
        assert!(!host.path("100").exists());
        assert_eq!(fs::metadata(host.path("200")).unwrap().mode() & 0o777, 0o740);
        assert_eq!(host.store.labels(&host.storage).await.unwrap(), BTreeMap::from([("200/vm-200-b.qcow2".into(), "pvelet:a".into())]));
    }
    let other = host.volume("100/vm-100-a.qcow2", MIB, &[]);
    assert_eq!(host.store.rename(&other, "200/vm-200-b.qcow2").await.unwrap_err().reason(), "STORAGE_FAILED");
    for bad in ["../x.raw", "200/../../x.raw", "/etc/x.raw", "x.raw", "abc/x.raw"] {
        assert!(host.store.rename(&other, bad).await.is_err(), "{bad}");
    }
    assert!(host.path("100/vm-100-a.qcow2").exists());
}

#[tokio::test]
async fn growing_keeps_the_data_and_never_shrinks() {
    let host = Host::new();
    for name in ["100/vm-100-a.raw", "100/vm-100-b.qcow2"] {
        let volume = host.volume(name, 3 * MIB, &data(1));
        for (bytes, expected) in [(5 * MIB, 5 * MIB), (MIB, 5 * MIB), (5 * MIB, 5 * MIB)] {
            host.store.grow(&volume, bytes as u64).await.unwrap();
            assert!(host.read(&volume) == padded(data(1), expected), "{name} to {bytes}");
        }
    }
}

#[tokio::test]
async fn snapshots_inside_a_qcow2_bring_back_every_byte() {
    let host = Host::new();
    let (volume, raw) = (host.volume("100/vm-100-a.qcow2", 3 * MIB, &data(1)), host.volume("100/vm-100-b.raw", MIB, &[]));
    for name in ["b", "b", "a"] {
        host.store.snapshot(&volume, name).await.unwrap();
    }
    let snapshots = host.store.snapshots(&volume).await.unwrap();
    assert_eq!(snapshots.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert!(snapshots.iter().all(|s| s.created.is_some_and(|t| t.elapsed().is_ok_and(|e| e.as_secs() < 600))));
    host.volume("100/vm-100-c.raw", 3 * MIB, &data(2));
    let changed = of(&At { name: "100/vm-100-c.raw".into(), format: "raw".into(), ..volume.clone() }, None);
    let copy = At { name: "100/vm-100-d.qcow2".into(), ..volume.clone() };
    host.volume(&copy.name, 3 * MIB, &[]);
    host.copy(&changed, &copy).await.unwrap();
    for _ in 0..2 {
        host.store.roll_back(&volume, "b").await.unwrap();
        assert!(host.read(&volume) == data(1));
    }
    for _ in 0..2 {
        host.store.delete_snapshot(&volume, "b").await.unwrap();
    }
    assert_eq!(host.store.roll_back(&volume, "b").await.unwrap_err().reason(), "SNAPSHOT_NOT_FOUND");
    assert_eq!(host.store.snapshots(&volume).await.unwrap().len(), 1);
    assert_eq!(host.store.snapshot(&raw, "a").await.unwrap_err().reason(), "STORAGE_UNSUPPORTED");
    assert!(host.store.snapshots(&raw).await.unwrap().is_empty());
    for bad in ["1", "-c", "a b", ""] {
        assert!(host.store.snapshot(&volume, bad).await.is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn copies_are_identical_whatever_the_formats_and_leave_the_owner_behind() {
    let host = Host::new();
    for from in ["100/vm-100-a.raw", "100/vm-100-a.qcow2"] {
        let source = host.volume(from, 3 * MIB, &data(1));
        host.store.set_label(&source, Some("pvelet:owner")).await.unwrap();
        for to in ["101/vm-101-b.raw", "101/vm-101-b.qcow2"] {
            for (size, before) in [(3 * MIB, vec![]), (5 * MIB, vec![]), (5 * MIB, vec![0xee; 5 * MIB])] {
                let target = host.volume(to, size, &before);
                let told = host.copy(&of(&source, None), &target).await.unwrap();
                let total = 3 * MIB as u64;
                assert_eq!(told.last(), Some(&Copied { done: total, total }));
                assert!(host.read(&target) == padded(data(1), size), "{from} to {to} of {size}");
            }
        }
    }
    let labels = host.store.labels(&host.storage).await.unwrap();
    assert!(labels.keys().all(|name| name.starts_with("100/")), "{labels:?}");
}

#[tokio::test]
async fn a_copy_of_a_snapshot_has_the_bytes_of_its_time() {
    let host = Host::new();
    let source = host.volume("100/vm-100-a.qcow2", 3 * MIB, &data(1));
    host.store.snapshot(&source, "one").await.unwrap();
    let (path, raw) = (host.path(&source.name), host.root.path().join("later"));
    fs::write(&raw, data(2)).unwrap();
    qemu_img(&["convert", "-n", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), path.to_str().unwrap()]);
    let target = host.volume("101/vm-101-a.raw", 4 * MIB, &[]);
    host.copy(&of(&source, Some("one")), &target).await.unwrap();
    assert!(host.read(&target) == padded(data(1), 4 * MIB) && host.read(&source) == data(2));
    assert_eq!(host.copy(&of(&source, Some("two")), &target).await.unwrap_err().reason(), "SNAPSHOT_NOT_FOUND");
    let error = host.copy(&of(&source, Some("one")), &source).await.unwrap_err();
    assert!(error.reason() == "STORAGE_FAILED" && host.read(&source) == data(2), "{error}");
    let small = host.volume("101/vm-101-b.raw", MIB, &[]);
    assert_eq!(host.copy(&of(&source, None), &small).await.unwrap_err().reason(), "STORAGE_FAILED");
}

#[tokio::test]
async fn an_image_is_imported_through_its_descriptor() {
    let host = Host::new();
    let folder = host.root.path().join("srv/store/import");
    fs::create_dir(&folder).unwrap();
    for format in ["raw", "qcow2"] {
        let (file, raw) = (folder.join("a.img"), host.root.path().join("content"));
        fs::write(&raw, data(1)).unwrap();
        qemu_img(&["convert", "-f", "raw", "-O", format, raw.to_str().unwrap(), file.to_str().unwrap()]);
        let (dir, name) = host.store.locate("/srv/store/import/a.img").unwrap();
        assert_eq!((&dir, name.as_str()), (&folder, "a.img"));
        let image = host.store.open_image(&[dir], &name).await.unwrap();
        let info = host.store.inspect(&image, None).await.unwrap();
        assert_eq!(info, ImageInfo { format: if format == "raw" { "raw" } else { "qcow2" }, virtual_size: 3 * MIB as u64 });
        // Another file under its name changes nothing.
        fs::rename(&file, folder.join("moved")).unwrap();
        fs::write(&file, [0xff; 512]).unwrap();
        for to in ["101/vm-101-a.raw", "101/vm-101-a.qcow2"] {
            let target = host.volume(to, 4 * MIB, &[]);
            host.copy(&Source::Image(image.clone(), info.clone()), &target).await.unwrap();
            assert!(host.read(&target) == padded(data(1), 4 * MIB), "{format} to {to}");
        }
        // It is an image of another kind by now: its bytes were changed after it was looked at.
        qemu_img(&["create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", folder.join("evil").to_str().unwrap(), "3M"]);
        fs::write(folder.join("moved"), fs::read(folder.join("evil")).unwrap()).unwrap();
        let target = host.volume("101/vm-101-b.raw", 4 * MIB, &[]);
        let error = host.copy(&Source::Image(image, info), &target).await.unwrap_err();
        assert_eq!(error.reason(), "IMAGE_REFUSED", "{error}");
    }
}

#[tokio::test]
async fn a_dropped_copy_leaves_no_process_behind() {
    let host = Host::new();
    let source = host.volume("100/vm-100-a.raw", 64 * MIB, &vec![0xa5; 64 * MIB]);
    let target = host.volume("101/vm-101-a.raw", 64 * MIB, &[]);
    let (sender, mut told) = mpsc::unbounded_channel();
    let (source, path) = (of(&source, None), host.path(&target.name).display().to_string());
    tokio::select! {
        result = host.store.copy(&source, &target, sender) => result.unwrap(),
        _ = told.recv() => {}
    }
    let writes = || {
        let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        let live = pids.into_iter().filter(|pid| crate::host::process::stat(Path::new("/proc"), *pid).is_some_and(|s| !s.ended()));
        live.into_iter().any(|pid| crate::host::process::arguments(Path::new("/proc"), pid).contains(&path))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while writes() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(host.store.writers(&target).await.unwrap().is_empty());
}

#[test]
fn only_absolute_paths_of_files_are_located() {
    let store = LocalStore::new("/r".into(), "/proc".into());
    assert_eq!(store.locate("/a/b/c.img"), Some(("/r/a/b".into(), "c.img".into())));
    for path in ["a/b", "", "/", "rbd:pool/x", "/a/../b", "/a/.."] {
        assert_eq!(store.locate(path), None, "{path}");
    }
}
