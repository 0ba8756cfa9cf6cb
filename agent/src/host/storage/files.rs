//! Storages of files: `<path>/images/<vmid>/<file>`. Folders on this host (`dir`) and mounted ones (`nfs`, `cifs`, `cephfs`, `glusterfs`).

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FallocateFlags, OFlags, RenameFlags, fallocate, renameat_with};

use super::{
    Abilities, At, Snapshot, StorageConfig,
    command::{blocking, failed, io_error, offline},
    kind::{Kind, Place, Rename, no_snapshots},
    label, names, qemu_img,
};
use crate::error::Error;

/// Where PVE mounts storages that name no path themselves.
const MOUNTS: &str = "mnt/pve";
const MOUNTED: &[&str] = &["nfs", "cifs", "cephfs", "glusterfs"];
const RAW_FIRST: &[&str] = &["raw", "qcow2"];
const QCOW2_FIRST: &[&str] = &["qcow2", "raw"];

/// A storage of files.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) id: String,
    default_qcow2: bool,
    base: PathBuf,
    /// What must be mounted, where something must.
    mount: Option<PathBuf>,
    mountinfo: PathBuf,
    /// `<path>/images`, or what the option content-dirs says.
    pub(super) images: PathBuf,
    /// `<path>/snippets`, or what the option content-dirs says.
    pub(super) snippets: PathBuf,
}

impl Files {
    pub(super) fn new(root: &Path, proc: &Path, storage: &StorageConfig) -> Self {
        let option = |name: &str| storage.options.get(name).map(String::as_str).filter(|v| !v.is_empty());
        let base = option("path").map_or_else(|| root.join(MOUNTS).join(&storage.id), |path| below(root, path));
        let own = |content: &str| {
            let mut entries = option("content-dirs").unwrap_or_default().split(',').filter_map(|entry| entry.trim().split_once('='));
            let own = entries.find(|(name, _)| *name == content).map(|(_, folder)| folder);
            base.join(own.unwrap_or(content).trim_start_matches('/'))
        };
        let mount = match option("is_mountpoint") {
            Some("1" | "yes" | "true" | "on") => Some(base.clone()),
            Some(path) if path.starts_with('/') => Some(below(root, path)),
            _ => MOUNTED.contains(&storage.kind.as_str()).then(|| base.clone()),
        };
        Self {
            id: storage.id.clone(),
            default_qcow2: option("format") == Some("qcow2"),
            images: own("images"),
            snippets: own("snippets"),
            base,
            mount,
            mountinfo: proc.join("self/mountinfo"),
        }
    }

    /// Does something with the files, once the storage is known to be there.
    pub(super) async fn with<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        let files = self.clone();
        blocking(&self.id, move || {
            files.online()?;
            work(&files)
        })
        .await
    }

    fn online(&self) -> Result<(), Error> {
        let told = |what: &Path, why: &str| offline(&self.id, format!("{} {why}", what.display()));
        match fs::metadata(&self.base) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(told(&self.base, "is no folder")),
            Err(error) => return Err(told(&self.base, &format!("cannot be read ({error}); mount it, or make the folder"))),
        }
        let Some(mount) = &self.mount else { return Ok(()) };
        let real = fs::canonicalize(mount).map_err(|e| told(mount, &format!("cannot be read ({e}); mount it")))?;
        let table = fs::read_to_string(&self.mountinfo).map_err(|e| io_error(&self.id, self.mountinfo.display(), &e))?;
        if mounted(&table, &real) { Ok(()) } else { Err(told(mount, "is not mounted; mount it")) }
    }

    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        let (folder, file) = names::file(&self.id, name)?;
        Ok(self.images.join(folder).join(file))
    }

    /// The image's path, if it is there: a regular file, not a link to one.
    async fn found(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path(name)?;
        self.with(move |files| if is_file(&files.id, &path)? { Ok(path) } else { Err(missing(&files.id, &path)) }).await
    }

    /// Removes the folder of a VMID if nothing is left in it, as PVE does.
    fn tidy(folder: &Path) {
        if let Err(error) = fs::remove_dir(folder)
            && !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound)
        {
            tracing::warn!(%error, folder = %folder.display(), "an emptied folder could not be removed");
        }
    }
}

/// A rename that overwrites nothing, is on disk when it returns, and does no harm when it is done again.
pub(super) fn move_to(storage: &str, old: &Path, new: &Path) -> Result<(), Error> {
    let exists = |path: &Path| match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error(storage, path.display(), &error)),
    };
    let (from, to) = (old.display().to_string(), new.display().to_string());
    let (Some(old_folder), Some(new_folder)) = (old.parent(), new.parent()) else {
        return Err(failed(storage, format!("{from} cannot become {to}")));
    };
    if Rename::decide(storage, (&from, exists(old)?), (&to, exists(new)?))? == Rename::Needed {
        // The mode that PVE gives these folders.
        match fs::DirBuilder::new().mode(0o740).create(new_folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error(storage, new_folder.display(), &error)),
            _ => {}
        }
        let renamed = match renameat_with(CWD, old, CWD, new, RenameFlags::NOREPLACE) {
            // A file system that cannot refuse by itself: it was checked above, and callers hold the volume's guard.
            Err(rustix::io::Errno::INVAL) => fs::rename(old, new),
            other => other.map_err(Into::into),
        };
        renamed.map_err(|e| io_error(storage, format!("{from} cannot become {to}"), &e))?;
    }
    // Also when it was done already: whoever did it may have been cut off here.
    for folder in [new_folder, old_folder, new_folder.parent().unwrap_or(new_folder)] {
        sync_folder(storage, folder)?;
    }
    if old_folder != new_folder {
        Files::tidy(old_folder);
    }
    if exists(new)? && !exists(old)? { Ok(()) } else { Err(failed(storage, format!("{from} was renamed, yet {to} is not there"))) }
}

/// A folder that is gone already needs no syncing.
pub(super) fn sync_folder(storage: &str, folder: &Path) -> Result<(), Error> {
    match fs::File::open(folder).and_then(|f| f.sync_all()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A file system that cannot sync folders.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other.map_err(|e| io_error(storage, folder.display(), &e)),
    }
}

pub(super) fn missing(storage: &str, path: &Path) -> Error {
    failed(storage, format!("there is no image {}", path.display()))
}

pub(super) fn is_file(storage: &str, path: &Path) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(found.is_file()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error(storage, path.display(), &error)),
    }
}

/// An absolute path below the prefix that tests put before all of them.
pub(super) fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Whether `/proc/self/mountinfo` has a mount on exactly this path. Blanks and the like are written as octal escapes there.
fn mounted(table: &str, path: &Path) -> bool {
    let escaped = path.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012");
    table.lines().any(|line| line.split(' ').nth(4) == Some(escaped.as_str()))
}

/// Walks `images/<vmid>/*`. What cannot be read is passed over with a line in the log: one broken file must not hide the others.
pub(super) fn walk(files: &Files, mut each: impl FnMut(&str, &str, &Path)) -> Result<(), Error> {
    let folders = match fs::read_dir(&files.images) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| io_error(&files.id, files.images.display(), &e))?,
    };
    let warn = |path: &Path, error: &io::Error| tracing::warn!(storage = files.id, path = %path.display(), %error, "passed over");
    for folder in folders {
        let Ok(folder) = folder.inspect_err(|e| warn(&files.images, e)) else { continue };
        let vmid = folder.file_name();
        let Some(vmid) = vmid.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let Ok(entries) = fs::read_dir(folder.path()).inspect_err(|e| warn(&folder.path(), e)) else { continue };
        for entry in entries {
            let Ok(entry) = entry.inspect_err(|e| warn(&folder.path(), e)) else { continue };
            if let Some(name) = entry.file_name().to_str() {
                each(vmid, name, &entry.path());
            }
        }
    }
    Ok(())
}

/// The label of an image file; none when it is not there.
pub(super) fn label_of(files: &Files, path: &Path) -> Option<String> {
    let gone = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    match label::read(path) {
        Ok(label) => label,
        Err(error) if gone(&error) => None,
        Err(error) => {
            tracing::warn!(storage = files.id, path = %path.display(), %error, "its label cannot be read");
            Some(label::UNREADABLE.to_owned())
        }
    }
}

/// Makes what lies beyond `from` bytes of a raw file read as zeros; `true`: all of it does, since the rest was a hole or became one.
fn clear_raw(storage: &str, path: &Path, size: u64, from: u64) -> Result<bool, Error> {
    let told = |e: io::Error| io_error(storage, format!("zeros in {}", path.display()), &e);
    let file = fs::File::options().write(true).custom_flags(custom(OFlags::NOFOLLOW)).open(path).map_err(told)?;
    match fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, size) {
        Ok(()) => return Ok(true),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(error) => return Err(told(error.into())),
    }
    // An older NFS: zeros are written, where a fresh file has any blocks at all.
    let zeros = vec![0; 1 << 20];
    let mut at = from;
    while at < size {
        let n = (size - at).min(1 << 20);
        std::os::unix::fs::FileExt::write_all_at(&file, &zeros[..usize::try_from(n).unwrap_or(zeros.len())], at).map_err(told)?;
        at += n;
    }
    Ok(false)
}

fn custom(flags: OFlags) -> i32 {
    i32::try_from(flags.bits()).unwrap_or_default()
}

#[tonic::async_trait]
impl Kind for Files {
    fn abilities(&self) -> Abilities {
        let formats = if self.default_qcow2 { QCOW2_FIRST } else { RAW_FIRST };
        Abilities { formats, snapshots: &["qcow2"], live_snapshots: &[], labels: true, stale: false }
    }

    async fn labels(&self) -> Result<BTreeMap<String, String>, Error> {
        self.with(|files| {
            let mut found = BTreeMap::new();
            walk(files, |vmid, name, path| {
                if (name.ends_with(".raw") || name.ends_with(".qcow2"))
                    && let Some(label) = label_of(files, path)
                {
                    found.insert(format!("{vmid}/{name}"), label);
                }
            })?;
            Ok(found)
        })
        .await
    }

    async fn set_label(&self, volume: &At, label: Option<&str>) -> Result<(), Error> {
        let path = self.found(&volume.name).await?;
        let label = label.map(str::to_owned);
        self.with(move |files| label::write(&files.id, &path, label.as_deref())).await
    }

    async fn rename(&self, volume: &At, name: &str) -> Result<(), Error> {
        let (old, new) = (self.path(&volume.name)?, self.path(name)?);
        self.with(move |files| move_to(&files.id, &old, &new)).await
    }

    async fn grow(&self, volume: &At, bytes: u64) -> Result<(), Error> {
        let path = self.found(&volume.name).await?;
        grow(&self.id, &volume.format, &path, bytes).await
    }

    async fn snapshots(&self, volume: &At) -> Result<Vec<Snapshot>, Error> {
        if volume.format != "qcow2" {
            return Ok(Vec::new());
        }
        let path = self.found(&volume.name).await?;
        Ok(qemu_img::info(&self.id, "qcow2", &path).await?.snapshots())
    }

    async fn snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        self.change(volume, "-c", name, true).await
    }

    async fn delete_snapshot(&self, volume: &At, name: &str) -> Result<(), Error> {
        if volume.format != "qcow2" {
            return Ok(());
        }
        self.change(volume, "-d", name, false).await
    }

    async fn roll_back(&self, volume: &At, name: &str) -> Result<(), Error> {
        if volume.format != "qcow2" {
            return no_snapshots(volume);
        }
        let path = self.found(&volume.name).await?;
        qemu_img::snapshot(&self.id, "-a", name, &path).await
    }

    async fn place(&self, volume: &At, snapshot: Option<&str>) -> Result<Place, Error> {
        let path = self.found(&volume.name).await?;
        place(&self.id, &volume.format, path, snapshot).await
    }

    async fn clear(&self, volume: &At, place: &Place, from: u64) -> Result<bool, Error> {
        let path = self.found(&volume.name).await?;
        clear(&self.id, &volume.format, path, place.size, from).await
    }

    fn written_as(&self, volume: &At) -> Vec<String> {
        self.path(&volume.name).map(|p| p.display().to_string()).into_iter().collect()
    }
}

impl Files {
    /// Makes or removes a snapshot inside a qcow2 file, if that is still to be done.
    async fn change(&self, volume: &At, flag: &str, name: &str, there: bool) -> Result<(), Error> {
        if volume.format != "qcow2" {
            return no_snapshots(volume);
        }
        let path = self.found(&volume.name).await?;
        if self.has(&path, name).await? == there {
            return Ok(());
        }
        qemu_img::snapshot(&self.id, flag, name, &path).await?;
        if self.has(&path, name).await? == there {
            return Ok(());
        }
        Err(failed(&self.id, format!("snapshot '{name}' of {} is {}", path.display(), if there { "not there" } else { "still there" })))
    }

    async fn has(&self, path: &Path, name: &str) -> Result<bool, Error> {
        Ok(qemu_img::info(&self.id, "qcow2", path).await?.snapshots().iter().any(|s| s.name == name))
    }
}

/// Grows an image file, unless it is as large already.
pub(super) async fn grow(storage: &str, format: &str, path: &Path, bytes: u64) -> Result<(), Error> {
    if qemu_img::info(storage, format, path).await?.virtual_size >= bytes {
        return Ok(());
    }
    qemu_img::resize(storage, format, path, bytes).await?;
    let found = qemu_img::info(storage, format, path).await?.virtual_size;
    if found >= bytes { Ok(()) } else { Err(failed(storage, format!("{} has {found} bytes, not {bytes}", path.display()))) }
}

/// Where an image file can be read or written.
pub(super) async fn place(storage: &str, format: &str, path: PathBuf, snapshot: Option<&str>) -> Result<Place, Error> {
    let size = qemu_img::info(storage, format, &path).await?.virtual_size;
    let Some(url) = path.to_str().map(str::to_owned) else { return Err(failed(storage, format!("{} is not UTF-8", path.display()))) };
    let snapshot = snapshot.map(str::to_owned);
    Ok(Place { url, format: format.to_owned(), path: Some(path), direct: false, snapshot, size, after: None })
}

/// Makes a target file read as zeros.
pub(super) async fn clear(storage: &str, format: &str, path: PathBuf, size: u64, from: u64) -> Result<bool, Error> {
    if format == "raw" {
        let id = storage.to_owned();
        // No deadline of a listing: an old NFS may have much to write.
        let work = tokio::task::spawn_blocking(move || clear_raw(&id, &path, size, from));
        return work.await.unwrap_or_else(|e| Err(Error::Internal(format!("storage '{storage}': {e}"))));
    }
    if !qemu_img::reads_zero(storage, format, &path).await {
        qemu_img::wipe(storage, format, &path, size).await?;
        if !qemu_img::reads_zero(storage, format, &path).await {
            return Err(failed(storage, format!("{} does not read as zeros after it was cleared", path.display())));
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_exact_path() {
        let table = "36 35 98:0 / /mnt/pve/a rw - nfs a:/x rw\n37 35 98:0 / /mnt/b\\040c rw - ext4 /dev/x rw\n";
        for (path, there) in [("/mnt/pve/a", true), ("/mnt/b c", true), ("/mnt/pve", false), ("/mnt/pve/a/b", false)] {
            assert_eq!(mounted(table, Path::new(path)), there, "{path}");
        }
    }
}
