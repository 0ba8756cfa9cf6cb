//! Storages of a simulated node: `storage.cfg`, volumes as real image files, the locks and the failures of PVE.

mod change;
pub(crate) mod config;
mod copy;
mod image;
mod list;
pub mod lock;
mod volume;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

pub use config::{Config, Storage};
pub use image::Info;
pub use list::{Entry, Status};
pub use lock::Log;
use lock::{Held, Wait};
pub use volume::{Volume, image_name, is_storage_id, split};

use crate::{
    api::{Failure, failure::os_text},
    faults::{Faults, StorageFault},
    layout::NodeLayout,
};

const HUNG_POLL: Duration = Duration::from_millis(50);

/// A new image.
#[derive(Clone, Copy, Debug)]
pub struct NewImage<'a> {
    /// The storage.
    pub storage: &'a str,
    /// The VM that is to own it.
    pub vmid: u32,
    /// `raw`, `qcow2`, `vmdk`; `subvol` is refused.
    pub format: &'a str,
    /// The file's name; none: the next free `vm-<vmid>-disk-<n>.<format>`.
    pub name: Option<&'a str>,
    /// Its size.
    pub bytes: u64,
}

/// The storages of a node, as configured at the moment of loading.
pub struct Storages {
    layout: NodeLayout,
    lock_factor: f64,
    config: Config,
}

impl Storages {
    /// Reads `storage.cfg`. Waits for locks are multiplied by `lock_factor`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(layout: &NodeLayout, lock_factor: f64) -> Result<Self, Failure> {
        Ok(Self { layout: layout.clone(), lock_factor, config: Config::load(layout)? })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A configured storage.
    ///
    /// # Errors
    /// `storage '...' does not exist`.
    pub fn get(&self, id: &str) -> Result<&Storage, Failure> {
        self.config.get(id).ok_or_else(|| Failure::die(format!("storage '{id}' does not exist")))
    }

    /// A storage that is neither disabled nor another node's.
    ///
    /// # Errors
    /// With PVE's text for which of these it is.
    pub fn enabled(&self, id: &str) -> Result<&Storage, Failure> {
        let storage = self.get(id)?;
        if storage.flag("disable") {
            return Err(Failure::die(format!("storage '{id}' is disabled")));
        }
        if !storage.is_for(self.layout.node()) {
            return Err(Failure::die(format!("storage '{id}' is not available on node '{}'", self.layout.node())));
        }
        Ok(storage)
    }

    /// A storage that can be used now. Blocks as long as it hangs.
    ///
    /// # Errors
    /// As [`Self::enabled`], and when it cannot be activated.
    pub fn activate(&self, id: &str) -> Result<&Storage, Failure> {
        let storage = self.enabled(id)?;
        let mut fault = self.fault(id);
        while fault.hung {
            thread::sleep(HUNG_POLL);
            fault = self.fault(id);
        }
        if fault.offline {
            let path = storage.path();
            let text =
                format!("unable to activate storage '{id}' - directory is expected to be a mount point but is not mounted: '{path}'");
            return Err(Failure::die(text));
        }
        if matches!(storage.kind.as_str(), "dir" | "btrfs") {
            for content in storage.content() {
                fs::create_dir_all(self.layout.host_path(storage.path()).join(storage.folder(content)))?;
            }
            return Ok(storage);
        }
        Err(Failure::die(format!("unable to activate storage '{id}' - no such {} server here", storage.kind)))
    }

    fn fault(&self, id: &str) -> StorageFault {
        let all = Faults::load(&self.layout.faults()).unwrap_or_default();
        all.storages.get(id).cloned().unwrap_or_default()
    }

    /// The path of a volume, as a real host has it.
    ///
    /// # Errors
    /// When the storage does not exist.
    pub fn shown_path(&self, volume: &Volume) -> Result<String, Failure> {
        let storage = self.get(&volume.storage)?;
        let folder = format!("{}/{}", storage.path(), storage.folder(volume.content));
        Ok(match volume.content {
            "images" if storage.kind == "btrfs" && volume.format() == "raw" => {
                format!("{folder}/{}/{}/disk.raw", volume.owner, volume.name.trim_end_matches(".raw"))
            }
            "images" => format!("{folder}/{}/{}", volume.owner, volume.name),
            _ => format!("{folder}/{}", volume.name),
        })
    }

    /// Where a volume's file is.
    ///
    /// # Errors
    /// When the storage does not exist.
    pub fn path(&self, volume: &Volume) -> Result<PathBuf, Failure> {
        Ok(self.layout.host_path(&self.shown_path(volume)?))
    }

    /// Takes a storage's lock: one of the cluster where all nodes see its volumes, one of this node otherwise.
    ///
    /// # Errors
    /// When it is not had in time.
    pub fn lock(&self, id: &str, log: Log<'_>) -> Result<Held, Failure> {
        if self.get(id)?.is_shared() {
            return lock::take_cluster(&self.layout, &format!("storage-{id}"), self.lock_factor, log);
        }
        let shown = format!("/var/lock/pve-manager/pve-storage-{id}");
        lock::take(&self.layout.storage_lock(id), &shown, Wait::exclusive(self.lock_factor), log)
    }

    /// The next free disk name of a VM on a storage.
    ///
    /// # Errors
    /// When the storage does not exist.
    pub fn free_name(&self, storage: &str, vmid: u32, format: &str) -> Result<String, Failure> {
        let folder = self.images(storage, vmid)?;
        let taken: Vec<u32> = names(&folder).iter().filter_map(|name| volume::disk_number(name, vmid)).collect();
        let number = (0..).find(|n| !taken.contains(n)).unwrap_or_default();
        Ok(format!("vm-{vmid}-disk-{number}.{format}"))
    }

    fn images(&self, storage: &str, vmid: u32) -> Result<PathBuf, Failure> {
        let storage = self.get(storage)?;
        Ok(self.layout.host_path(storage.path()).join(storage.folder("images")).join(vmid.to_string()))
    }

    /// Makes an image under the storage's lock, and gives its volume.
    ///
    /// # Errors
    /// When the storage cannot be used, the name is taken or wrong, or qemu-img fails.
    pub fn allocate(&self, new: &NewImage<'_>, log: Log<'_>) -> Result<Volume, Failure> {
        let storage = self.activate(new.storage)?;
        let _held = self.lock(new.storage, log)?;
        let name = match new.name {
            Some(name) => name.to_owned(),
            None => self.free_name(new.storage, new.vmid, new.format)?,
        };
        let format = image_name(&name)?;
        if format != new.format {
            return Err(Failure::die(format!("illegal name '{name}' - wrong extension for format ('{} != '{format}')", new.format)));
        }
        if !storage.formats().contains(&format) && storage.kind != "btrfs" {
            return Err(Failure::die(format!("unsupported format '{format}' for storage type '{}'", storage.kind)));
        }
        if format == "subvol" {
            return Err(Failure::die("storage does not support subvol quotas"));
        }
        let volume = Volume { storage: new.storage.to_owned(), content: "images", owner: new.vmid, name, base: None };
        let path = self.path(&volume)?;
        self.make_room(&volume, &path)?;
        let quiet = storage.kind == "btrfs" && format == "raw";
        let made = if quiet {
            self.place(new.storage).create(&path, format, new.bytes, None, &|_| {})
        } else {
            self.place(new.storage).create(&path, format, new.bytes, None, log)
        };
        made.inspect_err(|_| self.sweep(&path))?;
        Ok(volume)
    }

    fn place(&self, storage: &str) -> image::Place<'_> {
        let limit = self.fault(storage).full_after_bytes;
        let room = limit.map(|limit| limit.saturating_sub(self.used_bytes(storage).unwrap_or(0)));
        image::Place { layout: &self.layout, room }
    }

    fn make_room(&self, volume: &Volume, path: &Path) -> Result<(), Failure> {
        if path.exists() {
            return Err(Failure::die(format!("disk image '{}' already exists", self.shown_path(volume)?)));
        }
        if let Some(folder) = path.parent()
            && !folder.exists()
        {
            fs::create_dir_all(folder)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o740))?;
        }
        Ok(())
    }

    /// Removes what a failed creation left.
    fn sweep(&self, path: &Path) {
        let _ = fs::remove_file(path);
        if let Some(folder) = path.parent() {
            let _ = fs::remove_dir(folder);
        }
    }

    /// Whether linked clones depend on a base image.
    pub fn is_in_use(&self, base: &Volume) -> bool {
        let owned = self.list_images(&base.storage, None);
        owned.is_ok_and(|all| all.iter().any(|(volume, _)| volume.base.as_ref() == Some(&(base.owner, base.name.clone()))))
    }

    /// Removes a volume under the storage's lock. A missing file is told in the log and is no error.
    ///
    /// # Errors
    /// When the storage cannot be used, linked clones depend on the volume, or the file cannot be removed.
    pub fn free(&self, volume: &Volume, log: Log<'_>) -> Result<(), Failure> {
        self.activate(&volume.storage)?;
        let _held = self.lock(&volume.storage, log)?;
        if volume.is_base() && self.is_in_use(volume) {
            return Err(Failure::die(format!("base volume '{}' is still in use by linked clones", volume.path_in_storage())));
        }
        let (path, shown) = (self.path(volume)?, self.shown_path(volume)?);
        if self.fault(&volume.storage).remove_fails {
            return Err(Failure::die(format!("unlink '{shown}' failed - Operation not permitted")));
        }
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => log(&format!("disk image '{shown}' does not exist")),
            Err(error) => return Err(Failure::die(format!("unlink '{shown}' failed - {}", os_text(&error)))),
        }
        // The VM's folder goes with its last image; on btrfs the subvolume's goes first.
        path.ancestors().skip(1).take(2).take_while(|folder| !folder.ends_with("images")).for_each(|folder| {
            let _ = fs::remove_dir(folder);
        });
        Ok(())
    }

    /// Makes a linked clone of a base image, under the storage's lock.
    ///
    /// # Errors
    /// When the storage cannot be used, the volume is no base image, or qemu-img fails.
    pub fn linked_clone(&self, base: &Volume, vmid: u32, log: Log<'_>) -> Result<Volume, Failure> {
        self.activate(&base.storage)?;
        let _held = self.lock(&base.storage, log)?;
        if !base.is_base() {
            return Err(Failure::die("clone_image only works on base images"));
        }
        let name = self.free_name(&base.storage, vmid, "qcow2")?;
        let backing = format!("../{}/{}", base.owner, base.name);
        log(&format!("clone {}: images, {name}, {vmid} to {name} (base={backing})", base.path_in_storage()));
        let owned = Some((base.owner, base.name.clone()));
        let volume = Volume { storage: base.storage.clone(), content: "images", owner: vmid, name, base: owned };
        let path = self.path(&volume)?;
        self.make_room(&volume, &path)?;
        let bytes = self.info(base)?.size;
        self.place(&base.storage).create(&path, "qcow2", bytes, Some((&backing, base.format())), log).inspect_err(|_| self.sweep(&path))?;
        Ok(volume)
    }

    /// Turns an image into a base image: renames it to `base-...`, read-only from then on.
    ///
    /// # Errors
    /// When the storage cannot be used or the file cannot be renamed.
    pub fn make_base(&self, volume: &Volume, log: Log<'_>) -> Result<Volume, Failure> {
        self.activate(&volume.storage)?;
        let _held = self.lock(&volume.storage, log)?;
        if volume.is_base() {
            return Err(Failure::die("create_base not possible with base image"));
        }
        let Some(rest) = volume.name.strip_prefix("vm-") else {
            return Err(Failure::die(format!("create_base on wrong vtype '{}'", volume.content)));
        };
        let base = Volume { name: format!("base-{rest}"), base: None, ..volume.clone() };
        let (from, to) = (self.path(volume)?, self.path(&base)?);
        if to.exists() {
            return Err(Failure::die(format!("file '{}' already exists", self.shown_path(&base)?)));
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::rename(&from, &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o444))?;
        Ok(base)
    }

    /// What is known about a volume's file.
    ///
    /// # Errors
    /// `volume_size_info on '...' failed - no format` when there is none.
    pub fn info(&self, volume: &Volume) -> Result<Info, Failure> {
        if self.fault(&volume.storage).offline {
            return Err(Failure::die(format!("volume_size_info on '{}' failed - no format", volume.volid())));
        }
        let path = self.path(volume)?;
        image::info(&path, volume.format())
            .map_err(|_| Failure::die(format!("volume_size_info on '{}' failed - no format", volume.volid())))
    }

    /// Whether the volume's file is there.
    pub fn exists(&self, volume: &Volume) -> bool {
        !self.fault(&volume.storage).offline && self.path(volume).is_ok_and(|path| path.exists())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests;
