//! Image files: made, copied, resized and snapshotted by the real qemu-img; their headers are read directly.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

use super::Log;
use crate::{api::Failure, layout::NodeLayout};

/// The program, as messages name it.
pub(super) const QEMU_IMG: &str = "/usr/bin/qemu-img";
/// The largest file on a real host's ext4, and on one of 1 KiB blocks as a small file system has them.
const MAX_FILE: u64 = (16 << 40) - 4096;
const MAX_FILE_SMALL: u64 = (4 << 40) - 1024;

/// What is known about an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Bytes that the guest sees.
    pub size: u64,
    /// Bytes that it takes.
    pub used: u64,
    /// `raw`, `qcow2`, `vmdk`.
    pub format: String,
    /// The backing file, as it stands in the image.
    pub parent: Option<String>,
    /// Seconds since 1970 of the last change.
    pub ctime: i64,
}

/// Reads an image's size, use and backing file.
///
/// # Errors
/// When it cannot be read.
pub(super) fn info(path: &Path, format: &str) -> io::Result<Info> {
    let meta = fs::metadata(path)?;
    let mut info = Info { size: meta.len(), used: meta.blocks() * 512, format: format.to_owned(), parent: None, ctime: meta.ctime() };
    let mut head = Vec::new();
    match format {
        "qcow2" => {
            File::open(path)?.take(64 << 10).read_to_end(&mut head)?;
            let number = |at: usize, length: usize| head.get(at..at + length).map(|b| b.iter().fold(0u64, |n, b| (n << 8) | u64::from(*b)));
            if head.starts_with(b"QFI\xfb") {
                info.size = number(24, 8).unwrap_or(0);
                let (at, length) = (number(8, 8).unwrap_or(0), number(16, 4).unwrap_or(0));
                let range = usize::try_from(at).unwrap_or(0)..usize::try_from(at + length).unwrap_or(0);
                if let (false, Some(name)) = (range.is_empty(), head.get(range)) {
                    info.parent = Some(String::from_utf8_lossy(name).into_owned());
                }
            }
        }
        "vmdk" => {
            // A sparse extent tells its capacity in sectors of 512 bytes at offset 12.
            File::open(path)?.take(20).read_to_end(&mut head)?;
            if let (true, Some(sectors)) = (head.starts_with(b"KDMV"), head.get(12..20)) {
                info.size = sectors.iter().rev().fold(0u64, |n, b| (n << 8) | u64::from(*b)) * 512;
            }
        }
        _ => {}
    }
    Ok(info)
}

/// Where images are made: the node, and how many bytes are left on the storage's file system if that is a small one.
pub(super) struct Place<'a> {
    pub(super) layout: &'a NodeLayout,
    pub(super) room: Option<u64>,
}

impl Place<'_> {
    fn too_large(&self, format: &str, bytes: u64) -> bool {
        format == "raw" && bytes > if self.room.is_some() { MAX_FILE_SMALL } else { MAX_FILE }
    }

    /// The path of a real host.
    pub(super) fn shown(&self, path: &Path) -> String {
        format!("/{}", path.strip_prefix(self.layout.root()).unwrap_or(path).display())
    }

    /// Makes an image; `backing` is path and format of a base, relative to the image's folder.
    pub(super) fn create(&self, path: &Path, format: &str, bytes: u64, backing: Option<(&str, &str)>, log: Log<'_>) -> Result<(), Failure> {
        let shown = self.shown(path);
        let preallocation = if format == "qcow2" && backing.is_none_or(|(_, f)| f == "qcow2") { "metadata" } else { "off" };
        let mut command = Command::new(QEMU_IMG);
        command.args(["create", "-q"]);
        if let Some((file, file_format)) = backing {
            command.args(["-b", file, "-F", file_format]);
        }
        command.args(["-f", format]);
        let details = match (format, backing) {
            ("qcow2", Some((file, file_format))) => {
                command.args(["-o", &format!("cluster_size=128k,extended_l2=on,preallocation={preallocation}")]);
                format!(
                    "cluster_size=131072 extended_l2=on preallocation={preallocation} compression_type=zlib size={bytes} \
                     backing_file={file} backing_fmt={file_format} lazy_refcounts=off refcount_bits=16"
                )
            }
            ("qcow2", None) => {
                command.args(["-o", "preallocation=metadata"]);
                format!(
                    "cluster_size=65536 extended_l2=off preallocation=metadata compression_type=zlib size={bytes} lazy_refcounts=off refcount_bits=16"
                )
            }
            ("vmdk", _) => format!("size={bytes} compat6=off hwversion=undefined"),
            _ => format!("size={bytes} preallocation=off"),
        };
        command.arg(path);
        if backing.is_none() {
            command.arg(bytes.to_string());
        }
        log(&format!("Formatting '{shown}', fmt={format} {details}"));
        if self.too_large(format, bytes) {
            return Err(Failure::die(format!(
                "unable to create image: qemu-img: {shown}: The image size is too large for file format 'raw'"
            )));
        }
        // An image without content needs next to nothing, but qcow2 with its tables made beforehand needs eight bytes for each cluster of 64 KiB.
        let tables = if format == "qcow2" && backing.is_none() { bytes / (64 << 10) * 8 } else { 0 };
        let why = match self.room {
            Some(0) => Some(format!("Could not create '{shown}'")),
            Some(room) if room < tables => Some(String::from("Could not resize image: Allocating clusters failed")),
            _ => None,
        };
        if let Some(why) = why {
            return Err(Failure::die(format!("unable to create image: qemu-img: {shown}: {why}: No space left on device")));
        }
        match self.run(&mut command) {
            // PVE works with umask 0027.
            Ok(()) => Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o640))?),
            Err(lines) => Err(Failure::die(format!("unable to create image: {}", lines.last().cloned().unwrap_or_default()))),
        }
    }

    /// Grows an image to `bytes`.
    pub(super) fn resize(&self, path: &Path, format: &str, bytes: u64, log: Log<'_>) -> Result<(), Failure> {
        let shown = self.shown(path);
        let preallocation = if format == "qcow2" { "metadata" } else { "off" };
        let failed =
            format!("command '{QEMU_IMG} resize '--preallocation={preallocation}' -f {format} {shown} {bytes}' failed: exit code 1");
        if self.too_large(format, bytes) {
            log("qemu-img: Could not resize file: File too large");
            return Err(Failure::die(failed));
        }
        if fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o200 == 0) {
            // A base image is immutable on a real host; here its mode stands for that.
            log(&format!("qemu-img: Could not open '{shown}': Could not open '{shown}': Operation not permitted"));
            return Err(Failure::die(failed));
        }
        let mut command = Command::new(QEMU_IMG);
        command.args(["resize", "-q", &format!("--preallocation={preallocation}"), "-f", format]).arg(path).arg(bytes.to_string());
        match self.run(&mut command) {
            Ok(()) => {
                log("Image resized.");
                Ok(())
            }
            Err(lines) => {
                lines.iter().for_each(|line| log(line));
                Err(Failure::die(failed))
            }
        }
    }

    /// `qemu-img snapshot <action> <name>` (`-c` make, `-a` roll back, `-d` delete).
    pub(super) fn snapshot(&self, path: &Path, action: &str, name: &str) -> Result<(), Failure> {
        let mut command = Command::new(QEMU_IMG);
        command.args(["snapshot", action, name]).arg(path);
        self.run(&mut command).map_err(|lines| {
            let shown = self.shown(path);
            let last = lines.last().cloned().unwrap_or_default();
            Failure::die(format!("command '{QEMU_IMG} snapshot {action} {name} {shown}' failed: {last}"))
        })
    }

    fn run(&self, command: &mut Command) -> Result<(), Vec<String>> {
        match command.stdin(Stdio::null()).output() {
            Ok(done) if done.status.success() => Ok(()),
            Ok(done) => Err(self.lines(&done.stderr)),
            Err(error) => Err(vec![format!("qemu-img: {error}")]),
        }
    }

    pub(super) fn lines(&self, output: &[u8]) -> Vec<String> {
        let root = self.layout.root().display().to_string();
        String::from_utf8_lossy(output).replace(&root, "").lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_header_tells_size_and_backing_file() {
        let folder = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(folder.path(), "n");
        let place = Place { layout: &layout, room: None };
        let (base, clone) = (folder.path().join("base.qcow2"), folder.path().join("clone.qcow2"));
        place.create(&base, "qcow2", 64 << 20, None, &|_| {}).unwrap();
        place.create(&clone, "qcow2", 64 << 20, Some(("base.qcow2", "qcow2")), &|_| {}).unwrap();
        let found = info(&clone, "qcow2").unwrap();
        assert_eq!((found.size, found.parent.as_deref()), (64 << 20, Some("base.qcow2")));
        assert_eq!(info(&base, "qcow2").unwrap().parent, None);
    }
}
