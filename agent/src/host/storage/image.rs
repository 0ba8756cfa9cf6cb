//! Images to import: opened so that no link leads elsewhere, and looked at before any tool may follow what they say.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use pvelet_proto::reason;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Copied, copy, header, qemu_img};
use crate::error::Error;

/// The field of a request that names an image.
const FIELD: &str = "image.file";
/// The storage in messages about images, which may lie on none.
const PLACE: &str = "images";

/// An open image. It is read through its descriptor, so that nobody can put another file in its place.
#[derive(Debug, Clone)]
pub struct Image {
    /// The open file.
    pub file: Arc<File>,
    /// Its path, for people.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// "qcow2" or "raw".
    pub format: &'static str,
    /// Size that a guest sees, in bytes.
    pub virtual_size: u64,
}

fn refused(path: &str, why: &str) -> Error {
    Error::invalid(FIELD, reason::IMAGE_REFUSED, format!("'{path}' {why}"))
}

fn corrupt(path: &str, why: &str) -> Error {
    Error::invalid(FIELD, reason::IMAGE_CORRUPT, format!("'{path}' {why}"))
}

/// An image that somebody wrote to while it was used.
pub(super) fn changed(image: &Image) -> Error {
    corrupt(&image.path, "was changed while it was read; try again when nobody writes to it")
}

/// Opens an image below one of `folders`, tried in turn. Blocks.
pub(super) fn open(folders: &[PathBuf], path: &str) -> Result<Image, Error> {
    let parts = || path.split('/');
    if path.is_empty() || path.starts_with('/') || path.contains('\0') || parts().any(|p| p.is_empty() || p == "." || p == "..") {
        return Err(refused(
            path,
            "is no path below an image folder: name the file as it is called there, without '..' and without a leading '/'",
        ));
    }
    for folder in folders {
        let opened = open_below(folder, path);
        match opened {
            Ok(file) => return admit(file, folder, path),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::LOOP) => return Err(refused(path, "is a link, or lies behind one: put the file itself there")),
            Err(Errno::XDEV) => {
                return Err(refused(path, "leaves the folder, or lies on another file system that is mounted there: move the file"));
            }
            Err(Errno::NXIO | Errno::NODEV) => return Err(refused(path, "is no plain file: give an image")),
            Err(error) => {
                let error = io::Error::from(error);
                return Err(refused(path, &format!("in {} cannot be opened: {error}; make it readable", folder.display())));
            }
        }
    }
    let names: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
    let place = if names.is_empty() { "since no folder for images is configured".to_owned() } else { format!("in {}", names.join(", ")) };
    Err(Error::ImageNotFound { image: path.to_owned(), place })
}

fn open_below(folder: &Path, path: &str) -> Result<File, Errno> {
    let folder = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // NONBLOCK: a pipe without a writer would hold the call up for ever.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    loop {
        match openat2(&folder, path, flags, Mode::empty(), resolve) {
            // Somebody renamed a folder meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other.map(File::from),
        }
    }
}

fn admit(file: File, folder: &Path, path: &str) -> Result<Image, Error> {
    let found = file.metadata().map_err(|e| refused(path, &format!("cannot be looked at: {e}")))?;
    if !found.is_file() {
        return Err(refused(path, "is no plain file: give an image"));
    }
    if found.nlink() != 1 {
        return Err(refused(path, "has several names (hard links), so that it may be another owner's file: copy it to one of its own"));
    }
    if found.len() == 0 {
        return Err(refused(path, "is empty: give an image"));
    }
    Ok(Image { size: found.len(), file: Arc::new(file), path: folder.join(path).display().to_string() })
}

/// What an image says of itself, read without any tool.
pub(super) async fn look_at(image: &Image) -> Result<ImageInfo, Error> {
    let open = image.clone();
    let found = super::command::blocking(PLACE, move || {
        let read = |at: u64, length: usize| {
            let mut bytes = vec![0; length];
            open.file.read_exact_at(&mut bytes, at).map(|()| bytes)
        };
        let size = open.file.metadata().map_err(|e| unreadable(&open, &e))?.len();
        let length = |max: usize| usize::try_from(size).unwrap_or(max).min(max);
        let head = read(0, length(header::HEAD)).map_err(|e| unreadable(&open, &e))?;
        let tail = length(header::TAIL);
        let tail = read(size - tail as u64, tail).map_err(|e| unreadable(&open, &e))?;
        header::look(&head, &tail, size).map(|found| (found, size)).map_err(|refusal| {
            let description = format!("'{}' is refused: {}", open.path, refusal.why);
            Error::invalid(FIELD, refusal.reason, description)
        })
    });
    Ok(match found.await? {
        (header::Found::Qcow2 { virtual_size }, _) => ImageInfo { format: "qcow2", virtual_size },
        (header::Found::Raw, size) => ImageInfo { format: "raw", virtual_size: size },
    })
}

fn unreadable(image: &Image, error: &io::Error) -> Error {
    corrupt(&image.path, &format!("cannot be read: {error}"))
}

/// Looks at an image: its header first; a qcow2 then with qemu-img.
pub(super) async fn inspect(image: &Image, format: Option<&str>) -> Result<ImageInfo, Error> {
    let found = look_at(image).await?;
    if let Some(said) = format.filter(|said| *said != found.format) {
        let what = format!("is no {said} image but {}: leave the format out, or say what it is", found.format);
        return Err(refused(&image.path, &what));
    }
    if found.format != "qcow2" {
        return Ok(found);
    }
    let told = qemu_img::info_of_open(PLACE, found.format, image).await.map_err(|error| unsound(image, error))?;
    if let Some(key) = refers(&told) {
        return Err(refused(
            &image.path,
            &format!("refers to another file ({key}): make it whole first, as with `qemu-img convert -O qcow2`"),
        ));
    }
    let size = told.get("virtual-size").and_then(Value::as_u64);
    if size != Some(found.virtual_size) {
        return Err(changed(image));
    }
    let ended = qemu_img::check_open(PLACE, found.format, image).await?;
    match ended.code {
        // Leaks waste space and harm nothing.
        Some(0 | 3) => Ok(found),
        Some(2) => Err(corrupt(&image.path, "is damaged; repair it with `qemu-img check -r all`, or copy it again")),
        _ => Err(unsound(image, ended.success(PLACE, "qemu-img").err().unwrap_or_else(|| changed(image)))),
    }
}

/// What qemu-img cannot open though its header looks sound.
fn unsound(image: &Image, error: Error) -> Error {
    match error {
        Error::StorageFailed { message, .. } => corrupt(&image.path, &format!("cannot be read as what it is: {message}")),
        other => other,
    }
}

/// A key, anywhere in what qemu-img tells, that names another file.
fn refers(told: &Value) -> Option<&str> {
    const KEYS: &[&str] = &["backing-filename", "full-backing-filename", "backing-filename-format", "data-file", "encrypt"];
    match told {
        Value::Object(map) => map.iter().find_map(|(key, value)| KEYS.iter().find(|k| key == *k).copied().or_else(|| refers(value))),
        Value::Array(list) => list.iter().find_map(refers),
        _ => None,
    }
}

/// Ends the reading when nobody waits for it any more.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// SHA-256 of an image that nobody writes to meanwhile.
pub(super) async fn sha256(image: &Image, progress: mpsc::UnboundedSender<Copied>) -> Result<String, Error> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let _cancel = Cancel(cancelled.clone());
    let image = image.clone();
    let work = tokio::task::spawn_blocking(move || {
        let before = copy::stamp(&image)?;
        let (mut hash, mut at, mut buffer) = (Sha256::new(), 0_u64, vec![0; 1 << 20]);
        loop {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Error::Internal("nobody waits for the checksum".into()));
            }
            match image.file.read_at(&mut buffer, at) {
                Ok(0) => break,
                Ok(n) => {
                    hash.update(&buffer[..n]);
                    at += n as u64;
                    // Nobody may be interested in it.
                    let _ = progress.send(Copied { done: at, total: image.size.max(at) });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(&image, &error)),
            }
        }
        if copy::stamp(&image)? != before || at != image.size {
            return Err(changed(&image));
        }
        Ok(hex::encode(hash.finalize()))
    });
    work.await.unwrap_or_else(|e| Err(Error::Internal(format!("checksum: {e}"))))
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
