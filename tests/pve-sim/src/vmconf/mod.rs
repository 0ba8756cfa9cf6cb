//! VM configuration files: `/etc/pve/nodes/<node>/qemu-server/<vmid>.conf`.

mod drive;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

pub use drive::{Drive, parse_size, print_size, size_of_gib};
use sha1::{Digest, Sha1};

use crate::{
    api::{Failure, failure::os_text},
    layout::NodeLayout,
};

/// Keys and values of one section, in the order in which PVE writes them.
pub type Values = BTreeMap<String, String>;

/// One VM's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmConfig {
    /// The description, if there is one, without its last line end.
    pub description: Option<String>,
    /// The current values.
    pub values: Values,
    /// Values that a running VM takes over when it is started next.
    pub pending: Values,
    /// Keys that vanish when it is started next; true: their volumes are removed.
    pub pending_delete: BTreeMap<String, bool>,
    /// `[special:cloudinit]`: network cards that a running VM got since its cloud-init drive was written.
    pub cloudinit_added: Option<BTreeSet<String>>,
    /// Snapshots by name.
    pub snapshots: BTreeMap<String, Section>,
    /// SHA-1 of the file's text, in hex.
    pub digest: String,
}

/// A snapshot's section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// Its description.
    pub description: Option<String>,
    /// Its values.
    pub values: Values,
}

/// The digest of a config file's text.
pub fn digest(text: &str) -> String {
    hex::encode(Sha1::digest(text.as_bytes()))
}

impl VmConfig {
    /// Reads the text of a config file. Lines that are none are left out.
    pub fn parse(text: &str) -> Self {
        text::parse(text)
    }

    /// The text of the config file.
    pub fn print(&self) -> String {
        text::print(self)
    }

    /// A current value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// A current boolean; absent is false.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key) == Some("1")
    }

    /// The lock that another operation left or holds, `backup` for instance.
    pub fn lock(&self) -> Option<&str> {
        self.get("lock")
    }

    /// Refuses a VM that is locked.
    ///
    /// # Errors
    /// `VM is locked (<lock>)`.
    pub fn check_lock(&self) -> Result<(), Failure> {
        self.lock().map_or(Ok(()), |lock| Err(Failure::die(format!("VM is locked ({lock})"))))
    }

    /// Every drive, by key.
    pub fn drives(&self) -> impl Iterator<Item = (&str, Drive)> {
        self.values.iter().filter(|(key, _)| is_drive_key(key)).map(|(key, value)| (key.as_str(), Drive::parse(value)))
    }

    /// The first free `unused<n>`.
    pub fn free_unused(&self) -> String {
        (0..).map(|n| format!("unused{n}")).find(|key| !self.values.contains_key(key)).unwrap_or_default()
    }

    /// Whether a volume is a disk of this VM, in a slot other than `but`, or of one of its snapshots.
    pub fn uses(&self, volid: &str, but: Option<&str>) -> bool {
        let is_disk = |value: &str| {
            let drive = Drive::parse(value);
            drive.file == volid && (!drive.is_cdrom() || drive.is_cloudinit())
        };
        self.drives().any(|(key, drive)| Some(key) != but && is_disk(&drive.print())) || self.is_in_snapshot(volid)
    }

    /// Whether a volume is a disk of one of the snapshots.
    pub fn is_in_snapshot(&self, volid: &str) -> bool {
        let mut all = self.snapshots.values().flat_map(|section| &section.values);
        all.any(|(key, value)| is_drive_key(key) && Drive::parse(value).file == volid)
    }

    /// The configuration as it is written: what stands in a slot, or is about to, is not unused.
    fn tidied(&self) -> Self {
        let drives = |values: &Values| -> Vec<String> {
            values.iter().filter(|(key, _)| is_drive_key(key)).map(|(_, value)| Drive::parse(value).file).collect()
        };
        let used: BTreeSet<String> = drives(&self.values).into_iter().chain(drives(&self.pending)).collect();
        let mut tidied = self.clone();
        tidied.values.retain(|key, value| !(key.starts_with("unused") && used.contains(value)));
        tidied
    }

    /// Keeps a volume as `unused<n>`, unless it stands there already.
    pub fn add_unused(&mut self, volid: &str) {
        let known = self.values.iter().any(|(key, value)| key.starts_with("unused") && value == volid);
        if !known {
            self.values.insert(self.free_unused(), volid.to_owned());
        }
    }
}

/// Whether a key is that of a drive: `scsi0`, `efidisk0`.
pub fn is_drive_key(key: &str) -> bool {
    let limits = [("ide", 4), ("sata", 6), ("scsi", 31), ("virtio", 16), ("efidisk", 1), ("tpmstate", 1)];
    limits.iter().any(|(bus, count)| key.strip_prefix(bus).and_then(number).is_some_and(|n| n < *count))
}

/// The number at the end of a key.
pub fn number(text: &str) -> Option<u32> {
    let plain = text.len() == 1 || !text.starts_with('0');
    text.parse().ok().filter(|_| plain && text.bytes().all(|b| b.is_ascii_digit()))
}

/// The path of a config file as PVE's messages show it.
pub fn shown_path(layout: &NodeLayout, vmid: u32) -> String {
    format!("nodes/{}/qemu-server/{vmid}.conf", layout.node())
}

/// Reads a VM's configuration.
///
/// # Errors
/// When this node has no such VM, or the file cannot be read.
pub fn load(layout: &NodeLayout, vmid: u32) -> Result<VmConfig, Failure> {
    match fs::read(layout.vm_config(vmid)) {
        Ok(bytes) => Ok(VmConfig::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Failure::die(format!("Configuration file '{}' does not exist", shown_path(layout, vmid))))
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes a VM's configuration: a temporary file beside it, renamed over it.
///
/// # Errors
/// When it cannot be written: without quorum, or when another node holds the VMID.
pub fn store(layout: &NodeLayout, vmid: u32, config: &VmConfig) -> Result<(), Failure> {
    replace(layout, vmid, &config.tidied().print())
}

/// Writes the text of a VM's configuration.
///
/// # Errors
/// As [`store`].
pub fn replace(layout: &NodeLayout, vmid: u32, text: &str) -> Result<(), Failure> {
    let path = layout.vm_config(vmid);
    let shown = format!("/etc/pve/{}", shown_path(layout, vmid));
    let temporary = PathBuf::from(format!("{}.tmp.{}", path.display(), std::process::id()));
    let failed = |what: &str, error: &io::Error, path: &str| Failure::die(format!("{what} '{path}' failed: {}", os_text(error)));
    if let Some((_, node)) = holder(layout, vmid).filter(|(_, node)| node != layout.node()) {
        tracing::debug!(vmid, node, "the VMID is taken by another node");
        return Err(failed("close (rename) atomic file", &io::Error::from_raw_os_error(nix::errno::Errno::EEXIST as i32), &shown));
    }
    if let Err(error) = fs::write(&temporary, text) {
        let _ = fs::remove_file(&temporary);
        return Err(Failure::die(format!("unable to open file '{shown}.tmp.{}' - {}", std::process::id(), os_text(&error))));
    }
    fs::rename(&temporary, &path).map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed("close (rename) atomic file", &error, &shown)
    })
}

/// Who holds a VMID in the cluster: kind (`qemu`) and node, as `.vmlist` tells; this node's own file counts where there is no `.vmlist`.
pub fn holder(layout: &NodeLayout, vmid: u32) -> Option<(String, String)> {
    match fs::read(layout.etc_pve().join(".vmlist")) {
        Ok(text) => {
            let list: serde_json::Value = serde_json::from_slice(&text).ok()?;
            let entry = list.get("ids")?.get(vmid.to_string())?;
            Some((entry["type"].as_str()?.to_owned(), entry["node"].as_str()?.to_owned()))
        }
        Err(_) => layout.vm_config(vmid).exists().then(|| (String::from("qemu"), layout.node().to_owned())),
    }
}

/// Whether this node has a configuration for a VMID.
pub fn exists(layout: &NodeLayout, vmid: u32) -> bool {
    layout.vm_config(vmid).exists()
}

/// The VMIDs of this node.
///
/// # Errors
/// When the folder cannot be read.
pub fn vmids(layout: &NodeLayout) -> io::Result<Vec<u32>> {
    let folder = layout.vm_config(100);
    let entries = match fs::read_dir(folder.parent().unwrap_or(Path::new("/"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.strip_suffix(".conf").and_then(number)).collect())
}
