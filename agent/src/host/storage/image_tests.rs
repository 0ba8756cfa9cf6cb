#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests make images with real tools")]
use std::{fs, os::unix::fs::symlink, process::Command};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

fn reason_of(result: Result<Image, Error>) -> &'static str {
    match result {
        Ok(_) => "opened",
        Err(error) => error.reason(),
    }
}

/// A folder of images beside one of somebody else.
fn folders() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (images, other) = (dir.path().join("images"), dir.path().join("other"));
    for folder in [&images, &images.join("sub"), &other] {
        fs::create_dir(folder).unwrap();
    }
    for file in [images.join("a.raw"), images.join("sub/b.raw"), other.join("secret.raw")] {
        fs::write(file, [7; 512]).unwrap();
    }
    (dir, images)
}

#[test]
fn nothing_but_a_plain_file_of_the_folder_is_opened() {
    let (dir, images) = folders();
    let other = dir.path().join("other");
    let secret = other.join("secret.raw");
    symlink(&secret, images.join("link.raw")).unwrap();
    symlink("a.raw", images.join("inner-link.raw")).unwrap();
    symlink(&other, images.join("folder-link")).unwrap();
    symlink("/proc/self/fd/0", images.join("magic.raw")).unwrap();
    fs::hard_link(&secret, images.join("hard.raw")).unwrap();
    nix::unistd::mkfifo(&images.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::net::UnixListener::bind(images.join("socket")).unwrap();
    fs::write(images.join("empty.raw"), "").unwrap();
    for odd in ["-f.raw", "--help", "json:{}", "a b\n.raw", "nbd:localhost:1", "ä.raw", "..a"] {
        fs::write(images.join(odd), [1; 512]).unwrap();
    }
    let (refused, missing, opened) = ("IMAGE_REFUSED", "IMAGE_NOT_FOUND", "opened");
    let absolute = secret.to_str().unwrap().to_owned();
    let within = images.join("a.raw").to_str().unwrap().to_owned();
    let long = "x/".repeat(3000) + "x";
    let cases = [
        ("a.raw", opened),
        ("sub/b.raw", opened),
        ("-f.raw", opened),
        ("--help", opened),
        ("json:{}", opened),
        ("a b\n.raw", opened),
        ("nbd:localhost:1", opened),
        ("ä.raw", opened),
        ("..a", opened),
        ("", refused),
        (".", refused),
        ("..", refused),
        ("../other/secret.raw", refused),
        ("sub/../../other/secret.raw", refused),
        ("sub/../a.raw", refused),
        ("./a.raw", refused),
        ("sub//b.raw", refused),
        ("a.raw/", refused),
        ("a\0.raw", refused),
        (&absolute, refused),
        (&within, refused),
        ("/etc/passwd", refused),
        ("link.raw", refused),
        ("inner-link.raw", refused),
        ("folder-link/secret.raw", refused),
        ("magic.raw", refused),
        ("hard.raw", refused),
        ("pipe", refused),
        ("socket", refused),
        ("sub", refused),
        ("empty.raw", refused),
        (&long, refused),
        ("none.raw", missing),
        ("a.raw/b", missing),
    ];
    let folders = [dir.path().join("does-not-exist"), images];
    for (path, expected) in cases {
        assert_eq!(reason_of(open(&folders, path)), expected, "{path:?}");
    }
    assert_eq!(reason_of(open(&[], "a.raw")), missing);
}

#[test]
fn folders_are_tried_in_turn() {
    let (dir, images) = folders();
    let found = open(&[images.join("sub"), images.clone(), dir.path().join("other")], "secret.raw").unwrap();
    assert_eq!((found.size, found.path), (512, dir.path().join("other/secret.raw").display().to_string()));
}

/// Something that is mounted below the folder, until the test ends.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn what_is_mounted_below_the_folder_is_not_entered() {
    let (dir, images) = folders();
    let none: Option<&str> = None;
    // Only root may mount.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bind = images.join("sub");
    mount(Some(&dir.path().join("other")), &bind, none, MsFlags::MS_BIND, none).unwrap();
    let _bind = Mounted(bind);
    let file = images.join("file.raw");
    fs::write(&file, [1; 512]).unwrap();
    mount(Some("/etc/passwd"), &file, none, MsFlags::MS_BIND, none).unwrap();
    let _file = Mounted(file);
    for path in ["sub/secret.raw", "file.raw"] {
        assert_eq!(reason_of(open(std::slice::from_ref(&images), path)), "IMAGE_REFUSED", "{path}");
    }
}

fn qemu_img(dir: &Path, args: &[&str]) {
    assert!(Command::new("qemu-img").args(args).current_dir(dir).output().unwrap().status.success(), "{args:?}");
}

fn image(dir: &Path, name: &str) -> Image {
    open(&[dir.to_owned()], name).unwrap()
}

async fn inspected(dir: &Path, name: &str, format: Option<&str>) -> Result<ImageInfo, &'static str> {
    inspect(&image(dir, name), format).await.map_err(|e| {
        assert!(matches!(&e, Error::Invalid(v) if v[0].field == FIELD && v[0].description.contains(name)), "{e}");
        e.reason()
    })
}

#[tokio::test]
async fn sound_images_are_told_by_format_and_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    qemu_img(path, &["create", "-f", "qcow2", "a.qcow2", "3M"]);
    qemu_img(path, &["create", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "3M"]);
    qemu_img(path, &["create", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k,lazy_refcounts=on", "new.qcow2", "3M"]);
    qemu_img(path, &["create", "-f", "raw", "a.raw", "3M"]);
    fs::write(path.join("noise"), vec![0xa5; 8 << 20]).unwrap();
    qemu_img(path, &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", "noise", "packed.qcow2"]);
    let qcow2 = |virtual_size| Ok(ImageInfo { format: "qcow2", virtual_size });
    for name in ["a.qcow2", "old.qcow2", "new.qcow2"] {
        assert_eq!(inspected(path, name, None).await, qcow2(3 << 20), "{name}");
        assert_eq!(inspected(path, name, Some("qcow2")).await, qcow2(3 << 20), "{name}");
        assert_eq!(inspected(path, name, Some("raw")).await, Err("IMAGE_REFUSED"), "{name}");
    }
    assert_eq!(inspected(path, "packed.qcow2", None).await, qcow2(8 << 20));
    assert_eq!(inspected(path, "a.raw", None).await, Ok(ImageInfo { format: "raw", virtual_size: 3 << 20 }));
    assert_eq!(inspected(path, "a.raw", Some("qcow2")).await, Err("IMAGE_REFUSED"));
    assert_eq!(inspected(path, "a.raw", Some("vmdk")).await, Err("IMAGE_REFUSED"));
}

#[tokio::test]
async fn images_that_refer_to_files_of_the_host_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    qemu_img(path, &["create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "backing.qcow2", "1M"]);
    qemu_img(path, &["create", "-f", "qcow2", "-o", "data_file=data.raw", "data.qcow2", "1M"]);
    qemu_img(path, &["create", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "raw-data.qcow2", "1M"]);
    qemu_img(path, &["create", "-f", "qcow", "v1.qcow", "1M"]);
    qemu_img(path, &["create", "-f", "qed", "a.qed", "1M"]);
    fs::write(path.join("flat.vmdk"), "# Disk DescriptorFile\nversion=1\nRW 8 FLAT \"/etc/passwd\" 0\n").unwrap();
    for (format, name) in [("vmdk", "a.vmdk"), ("vdi", "a.vdi"), ("vhdx", "a.vhdx"), ("vpc", "a.vhd"), ("parallels", "a.hds")] {
        qemu_img(path, &["create", "-f", format, name, "8M"]);
    }
    qemu_img(path, &["create", "-f", "vpc", "-o", "subformat=fixed", "fixed.vhd", "8M"]);
    for entry in fs::read_dir(path).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name == "data.raw" {
            continue;
        }
        for format in [None, Some("raw"), Some("qcow2")] {
            assert_eq!(inspected(path, &name, format).await, Err("IMAGE_REFUSED"), "{name} as {format:?}");
        }
    }
}

#[tokio::test]
async fn a_data_file_that_the_header_hides_is_not_opened() {
    // The name stands in an extension, the feature bit is taken off: refused all the same.
    let dir = tempfile::tempdir().unwrap();
    qemu_img(dir.path(), &["create", "-f", "qcow2", "-o", "data_file=data.raw", "a.qcow2", "1M"]);
    let file = fs::File::options().write(true).open(dir.path().join("a.qcow2")).unwrap();
    file.write_all_at(&[0; 8], 72).unwrap();
    assert_eq!(inspected(dir.path(), "a.qcow2", None).await, Err("IMAGE_REFUSED"));
}

#[tokio::test]
async fn images_that_were_cut_off_or_damaged_are_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fs::write(path.join("noise"), (0..4_u32 << 20).map(|n| n.to_le_bytes()[1] ^ 0x5a).collect::<Vec<_>>()).unwrap();
    qemu_img(path, &["convert", "-f", "raw", "-O", "qcow2", "noise", "a.qcow2"]);
    let whole = fs::read(path.join("a.qcow2")).unwrap();
    for length in [50, 4096, 100_000, whole.len() / 2, whole.len() - 70_000] {
        fs::write(path.join("cut.qcow2"), &whole[..length]).unwrap();
        assert_eq!(inspected(path, "cut.qcow2", None).await, Err("IMAGE_CORRUPT"), "{length} of {}", whole.len());
    }
    // An entry of the L2 table points at a cluster that nobody counted.
    let mut damaged = whole.clone();
    let l1 = usize::try_from(u64::from_be_bytes(whole[40..48].try_into().unwrap())).unwrap();
    let l2 = usize::try_from(u64::from_be_bytes(whole[l1..l1 + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00).unwrap();
    damaged[l2..l2 + 8].copy_from_slice(&(1_u64 << 63 | 0x1000_0000).to_be_bytes());
    fs::write(path.join("damaged.qcow2"), &damaged).unwrap();
    assert_eq!(inspected(path, "damaged.qcow2", None).await, Err("IMAGE_CORRUPT"));
    fs::write(path.join("odd.raw"), [1; 513]).unwrap();
    assert_eq!(inspected(path, "odd.raw", None).await, Err("IMAGE_CORRUPT"));
}

#[tokio::test]
async fn the_checksum_is_that_of_the_open_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), vec![b'a'; 3_000_000]).unwrap();
    let image = image(dir.path(), "a");
    fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
    let (sender, mut told) = mpsc::unbounded_channel();
    let expected = hex::encode(Sha256::digest(vec![b'a'; 3_000_000]));
    // The rename changed the file's times before the reading began, not meanwhile.
    assert_eq!(sha256(&image, sender.clone()).await.unwrap(), expected);
    let mut last = None;
    while let Ok(copied) = told.try_recv() {
        last = Some(copied);
    }
    assert_eq!(last, Some(Copied { done: 3_000_000, total: 3_000_000 }));
    // It has grown since it was opened.
    fs::write(dir.path().join("b"), vec![b'a'; 3_000_001]).unwrap();
    assert_eq!(sha256(&image, sender).await.unwrap_err().reason(), "IMAGE_CORRUPT");
}
