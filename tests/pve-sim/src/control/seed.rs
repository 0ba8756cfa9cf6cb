//! VMs and templates out of nothing: real images, and configs as PVE writes them.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Seed, Sim};
use crate::{ha::config_path, layout::NodeLayout};

const MIB: u64 = 1 << 20;

impl Sim {
    pub(super) fn seed(&self, seed: &Seed, template: bool) -> io::Result<()> {
        self.node(&seed.node)?;
        if self.store.vm_node(seed.vmid).is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("VM {} exists already", seed.vmid)));
        }
        if !matches!(seed.format.as_str(), "raw" | "qcow2") {
            return Err(io::Error::other(format!("no such format: '{}'", seed.format)));
        }
        let layout = self.layout(&seed.node);
        let mut lines = seed.extra.clone();
        if seed.size_mib > 0 || seed.cloudinit {
            let folder = layout.host_path(&self.storage_path(&seed.storage)?).join(format!("images/{}", seed.vmid));
            fs::create_dir_all(&folder)?;
            lines.extend(images(seed, template, &folder)?);
        }
        if template {
            lines.push("template: 1".into());
        }
        let text = config(seed.vmid, &seed.name, &seed.tags, lines);
        Ok(self.store.replace(&config_path(&seed.node, seed.vmid), text.as_bytes())?)
    }

    pub(super) fn seed_many(&self, node: &str, first: u32, count: u32) -> io::Result<()> {
        self.node(node)?;
        let files = (first..first + count).map(|vmid| (config_path(node, vmid), config(vmid, &format!("vm{vmid}"), "", Vec::new())));
        Ok(self.store.replace_all(files)?)
    }

    /// The path of a dir storage on a real host, from `storage.cfg`.
    fn storage_path(&self, storage: &str) -> io::Result<String> {
        let text = String::from_utf8_lossy(&self.store.read_path("storage.cfg")?).into_owned();
        let section = text.split("\n\n").find(|section| section.trim().lines().next() == Some(&format!("dir: {storage}")));
        let path = section.and_then(|section| section.lines().find_map(|line| line.trim().strip_prefix("path ")));
        path.map(str::to_owned).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no dir storage '{storage}'")))
    }
}

/// Makes the images and gives the config lines that name them.
fn images(seed: &Seed, template: bool, folder: &Path) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    if seed.cloudinit {
        let name = format!("vm-{}-cloudinit.qcow2", seed.vmid);
        make_image(&folder.join(&name), "qcow2", 4, 0)?;
        lines.push(format!("ide2: {}:{}/{name},media=cdrom", seed.storage, seed.vmid));
    }
    if seed.size_mib > 0 {
        let name = format!("{}-{}-disk-0.{}", if template { "base" } else { "vm" }, seed.vmid, seed.format);
        make_image(&folder.join(&name), &seed.format, seed.size_mib, seed.fill_mib)?;
        let size = if seed.size_mib.is_multiple_of(1024) { format!("{}G", seed.size_mib / 1024) } else { format!("{}M", seed.size_mib) };
        lines.push(format!("scsi0: {}:{}/{name},size={size}", seed.storage, seed.vmid));
    }
    Ok(lines)
}

fn make_image(path: &Path, format: &str, size_mib: u64, fill_mib: u64) -> io::Result<()> {
    let raw = if format == "raw" { path.to_owned() } else { path.with_extension("seed") };
    if format == "raw" || fill_mib > 0 {
        fill(&raw, size_mib, fill_mib.min(size_mib))?;
    }
    let mut command = Command::new("qemu-img");
    match (format, fill_mib) {
        ("raw", _) => return Ok(()),
        (_, 0) => command.args(["create", "-q", "-f", format]).arg(path).arg(format!("{size_mib}M")),
        _ => command.args(["convert", "-f", "raw", "-O", format]).arg(&raw).arg(path),
    };
    let output = command.stdin(Stdio::null()).output()?;
    if fill_mib > 0 {
        fs::remove_file(raw)?;
    }
    if output.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())) }
}

/// A sparse file with data at its beginning: no two blocks alike, so that nothing can shorten a copy.
fn fill(path: &Path, size_mib: u64, fill_mib: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_len(size_mib * MIB)?;
    let mut word: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..fill_mib {
        let mut block = Vec::with_capacity(1 << 20);
        while block.len() < 1 << 20 {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            block.extend_from_slice(&word.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(())
}

/// A config with the keys that PVE gives every new VM.
fn config(vmid: u32, name: &str, tags: &str, extra: Vec<String>) -> String {
    let uuid = uuid::Uuid::new_v4();
    let ctime = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default();
    let [a, b, c, ..] = *uuid.as_bytes();
    let name = if name.is_empty() { format!("vm{vmid}") } else { name.to_owned() };
    let boot = if extra.iter().any(|line| line.starts_with("scsi0:")) { "order=scsi0;net0" } else { "order=net0" };
    let mut lines = vec![
        format!("boot: {boot}"),
        "cores: 1".into(),
        "memory: 512".into(),
        format!("meta: creation-qemu=10.0.13,ctime={ctime}"),
        format!("name: {name}"),
        format!("net0: virtio=BC:24:11:{a:02X}:{b:02X}:{c:02X},bridge=vmbr0"),
        "ostype: l26".into(),
        "scsihw: virtio-scsi-single".into(),
        format!("smbios1: uuid={uuid}"),
        format!("vmgenid: {}", uuid::Uuid::new_v4()),
    ];
    if !tags.is_empty() {
        lines.push(format!("tags: {tags}"));
    }
    // What is given replaces what every VM has.
    lines.retain(|line| !extra.iter().any(|given| given.split(':').next() == line.split(':').next()));
    lines.extend(extra);
    lines.sort_by(|a, b| a.split(':').next().cmp(&b.split(':').next()));
    lines.into_iter().map(|line| line + "\n").collect()
}

/// The demo's templates: one on each node, all with the same name and tags, since VMIDs are the whole cluster's.
pub(crate) fn demo(sim: &Sim, layouts: &[NodeLayout]) -> io::Result<()> {
    for (vmid, layout) in (9001..).zip(layouts) {
        if sim.store.vm_node(vmid).is_none() {
            let tags = "k8s;talos".into();
            sim.seed(&Seed { tags, fill_mib: 8, ..Seed::new(layout.node(), vmid, "debian-13") }, true)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_has_sorted_lines_and_what_is_given_wins() {
        let text = config(100, "web", "a;b", vec!["cores: 4".into(), "scsi0: local:100/vm-100-disk-0.raw,size=1G".into()]);
        let keys: Vec<&str> = text.lines().filter_map(|line| line.split(':').next()).collect();
        assert_eq!(keys, ["boot", "cores", "memory", "meta", "name", "net0", "ostype", "scsi0", "scsihw", "smbios1", "tags", "vmgenid"]);
        assert!(text.contains("cores: 4\n") && text.contains("boot: order=scsi0;net0\n"), "{text}");
    }
}
