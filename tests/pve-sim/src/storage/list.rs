//! What is on a storage, and how full it is.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use serde_json::{Value, json};

use super::{Storages, Volume, image, image::Info, names};
use crate::api::Failure;

/// A volume in a content list.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The volume.
    pub volume: Volume,
    /// What is known about its file.
    pub info: Info,
}

impl Entry {
    /// As the API lists it.
    pub fn json(&self) -> Value {
        let volume = &self.volume;
        // A name beyond ASCII comes out encoded twice, as on a real host.
        let volid: String = volume.volid().bytes().map(char::from).collect();
        let mut entry =
            json!({"volid": volid, "content": volume.content, "format": self.format(), "size": self.info.size, "ctime": self.info.ctime});
        if volume.content == "images" {
            entry["vmid"] = volume.owner.into();
            entry["used"] = self.info.used.into();
            entry["parent"] = self.info.parent.clone().into();
        }
        entry
    }

    fn format(&self) -> &str {
        match self.volume.content {
            "snippets" => "snippet",
            _ => self.volume.format(),
        }
    }
}

/// How full a storage is. All zero when it is not active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether it can be used now.
    pub active: bool,
    /// Bytes in all.
    pub total: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes free for us.
    pub avail: u64,
}

impl Storages {
    /// All images of a storage, of one VM or of all, with their paths' owners and, for linked clones, their bases.
    pub(super) fn list_images(&self, id: &str, vmid: Option<u32>) -> Result<Vec<(Volume, Info)>, Failure> {
        let storage = self.get(id)?;
        let folder = self.layout.host_path(storage.path()).join(storage.folder("images"));
        let mut found = Vec::new();
        for owner in names(&folder).iter().filter_map(|name| name.parse::<u32>().ok()).filter(|owner| vmid.is_none_or(|id| id == *owner)) {
            for name in names(&folder.join(owner.to_string())) {
                found.extend(self.image_entry(id, owner, &name));
            }
        }
        Ok(found)
    }

    fn image_entry(&self, id: &str, owner: u32, name: &str) -> Option<(Volume, Info)> {
        // A raw image on btrfs is a folder named without an end.
        let is_btrfs = self.get(id).is_ok_and(|storage| storage.kind == "btrfs") && !name.contains('.');
        let name = if is_btrfs { format!("{name}.raw") } else { name.to_owned() };
        super::image_name(&name).ok()?;
        let mut volume = Volume { storage: id.to_owned(), content: "images", owner, name, base: None };
        let info = self.info(&volume).ok()?;
        volume.base = info.parent.as_deref().and_then(base_of);
        Some((volume, info))
    }

    /// What a storage holds, limited to content types and to a VM's images.
    ///
    /// # Errors
    /// When the storage cannot be used.
    pub fn list(&self, id: &str, content: Option<&[&str]>, vmid: Option<u32>) -> Result<Vec<Entry>, Failure> {
        let storage = self.activate(id)?;
        let mut entries = Vec::new();
        for kind in storage.content().into_iter().filter(|kind| content.is_none_or(|wanted| wanted.contains(kind))) {
            if kind == "images" {
                entries.extend(self.list_images(id, vmid)?.into_iter().map(|(volume, info)| Entry { volume, info }));
                continue;
            }
            let folder = self.layout.host_path(storage.path()).join(storage.folder(kind));
            for name in names(&folder) {
                let path = folder.join(&name);
                if let (true, Ok(volume)) = (path.is_file(), Volume::of(id, &format!("{kind}/{name}"))) {
                    let mut info = image::info(&path, "raw")?;
                    volume.format().clone_into(&mut info.format);
                    entries.push(Entry { volume, info });
                }
            }
        }
        entries.sort_by_key(|entry| entry.volume.volid());
        Ok(entries)
    }

    /// How full a storage is.
    pub fn status(&self, id: &str) -> Status {
        let Ok(storage) = self.activate(id) else { return Status::default() };
        if storage.content() == ["none"] {
            return Status::default();
        }
        let Ok(stat) = nix::sys::statvfs::statvfs(&self.layout.host_path(storage.path())) else { return Status::default() };
        let block = stat.fragment_size();
        let (total, free, avail) = (stat.blocks() * block, stat.blocks_free() * block, stat.blocks_available() * block);
        match self.fault(id).full_after_bytes {
            Some(limit) => {
                let used = self.used_bytes(id).unwrap_or(0).min(limit);
                Status { active: true, total: limit, used, avail: limit - used }
            }
            None => Status { active: true, total, used: total - free, avail },
        }
    }

    /// Bytes that a storage's files take.
    pub(super) fn used_bytes(&self, id: &str) -> Result<u64, Failure> {
        Ok(tree_bytes(&self.layout.host_path(self.get(id)?.path())))
    }
}

/// Owner and name of the base image in a backing file's path, `../<owner>/<name>`.
fn base_of(parent: &str) -> Option<(u32, String)> {
    let (owner, name) = parent.strip_prefix("../")?.split_once('/')?;
    Some((owner.parse().ok()?, name.to_owned()))
}

fn tree_bytes(folder: &Path) -> u64 {
    names(folder)
        .iter()
        .filter_map(|name| {
            let path = folder.join(name);
            let meta = fs::symlink_metadata(&path).ok()?;
            Some(if meta.is_dir() { tree_bytes(&path) } else { meta.blocks() * 512 })
        })
        .sum()
}
