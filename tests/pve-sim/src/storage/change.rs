//! Changes of images that exist: copied, mirrored, grown, snapshotted, given away.

use std::{fs, path::Path};

use super::{Storages, Volume, copy, image, lock::Log};
use crate::api::Failure;

impl Storages {
    /// Copies a volume, or a snapshot of it, into one that exists.
    ///
    /// # Errors
    /// `copy failed: ...` when qemu-img fails or the target has no room.
    pub fn copy(&self, from: &Volume, snapshot: Option<&str>, to: &Volume, log: Log<'_>) -> Result<(), Failure> {
        self.copy_file(&self.path(from)?, from.format(), snapshot, to, log)
    }

    /// Copies any image file into a volume that exists.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn copy_file(&self, from: &Path, format: &str, snapshot: Option<&str>, to: &Volume, log: Log<'_>) -> Result<(), Failure> {
        self.with_copy(from, format, snapshot, to, None, |place, copy| place.copy(copy, log))
    }

    /// Copies a volume into one that exists, at this many KiB a second.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn copy_slowly(&self, from: &Volume, to: &Volume, rate_kib: Option<u64>, log: Log<'_>) -> Result<(), Failure> {
        self.with_copy(&self.path(from)?, from.format(), None, to, rate_kib, |place, copy| place.copy(copy, log))
    }

    /// Mirrors a disk of a running VM into a volume that exists, as its QEMU does.
    ///
    /// # Errors
    /// `block job (mirror) error: ...` when the target has no room, or qemu-img, which does it here, fails.
    pub fn mirror(&self, from: &Volume, to: &Volume, job: &str, rate_kib: Option<u64>, log: Log<'_>) -> Result<(), Failure> {
        self.with_copy(&self.path(from)?, from.format(), None, to, rate_kib, |place, copy| place.mirror(copy, job, log))
    }

    fn with_copy(
        &self,
        from: &Path,
        format: &str,
        snapshot: Option<&str>,
        to: &Volume,
        rate_kib: Option<u64>,
        run: impl FnOnce(&image::Place<'_>, &copy::Copy<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let fault = self.fault(&to.storage);
        let used = self.used_bytes(&to.storage)?;
        let slowest = [fault.rate_kib, rate_kib.filter(|rate| *rate > 0)].into_iter().flatten().min();
        let copy = copy::Copy {
            from,
            from_format: format,
            snapshot,
            to: &self.path(to)?,
            to_format: to.format(),
            rate_kib: slowest,
            room: fault.full_after_bytes.map(|limit| limit.saturating_sub(used)),
        };
        run(&self.place(&to.storage), &copy)
    }

    /// Grows a volume to `bytes`.
    ///
    /// # Errors
    /// When the storage cannot be used or qemu-img fails.
    pub fn resize(&self, volume: &Volume, bytes: u64, log: Log<'_>) -> Result<(), Failure> {
        self.activate(&volume.storage)?;
        self.place(&volume.storage).resize(&self.path(volume)?, volume.format(), bytes, log)
    }

    /// Makes (`-c`), restores (`-a`) or deletes (`-d`) a snapshot inside a qcow2 volume.
    ///
    /// # Errors
    /// When the storage cannot be used or qemu-img fails.
    pub fn snapshot(&self, volume: &Volume, action: &str, name: &str) -> Result<(), Failure> {
        self.activate(&volume.storage)?;
        self.place(&volume.storage).snapshot(&self.path(volume)?, action, name)
    }

    /// Gives an image another owner: moves it to that VM's folder under its next free name.
    ///
    /// # Errors
    /// When the storage cannot be used or the file cannot be renamed.
    pub fn reassign(&self, volume: &Volume, vmid: u32, log: Log<'_>) -> Result<Volume, Failure> {
        self.activate(&volume.storage)?;
        let _held = self.lock(&volume.storage, log)?;
        let name = self.free_name(&volume.storage, vmid, volume.format())?;
        let moved = Volume { owner: vmid, name, ..volume.clone() };
        let (from, to) = (self.path(volume)?, self.path(&moved)?);
        self.make_room(&moved, &to)?;
        fs::rename(&from, &to)?;
        Ok(moved)
    }
}
