//! A storage under test: volumes are allocated as PVE does it, and their bytes read and written without the code under test.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
};

use pvelet_agent::host::storage::{At, StorageConfig};

/// A storage, and one of the formats that its volumes have.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) spec: String,
    pub(super) config: StorageConfig,
    pub(super) format: &'static str,
}

/// Runs a tool of the machine and fails with what it complained of.
pub(super) fn tool(line: &[&str]) -> String {
    let output = Command::new(line[0]).args(&line[1..]).env("LC_ALL", "C.UTF-8").output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}", line[0]));
    assert!(output.status.success(), "{}: {}", line.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Place {
    /// `<kind>:<where>`, in all formats that are tested there.
    pub(super) fn parse(spec: &str) -> Vec<Self> {
        let (kind, at) = spec.split_once(':').unwrap_or_else(|| panic!("'{spec}' is not <kind>:<where>"));
        let (options, formats): (Vec<(&str, &str)>, &[&'static str]) = match kind {
            "dir" | "btrfs" => (vec![("path", at)], &["raw", "qcow2"]),
            "lvmthin" => {
                let (group, pool) = at.split_once('/').unwrap_or_else(|| panic!("'{spec}' is not lvmthin:<vg>/<pool>"));
                (vec![("vgname", group), ("thinpool", pool)], &["raw"])
            }
            "lvm" => (vec![("vgname", at)], &["raw"]),
            "zfspool" => (vec![("pool", at)], &["raw"]),
            other => panic!("'{other}' is none of dir, btrfs, lvmthin, lvm, zfspool"),
        };
        let options = options.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let config = StorageConfig { id: kind.to_owned(), kind: kind.to_owned(), shared: false, options };
        formats.iter().map(|format| Self { spec: spec.to_owned(), config: config.clone(), format }).collect()
    }

    /// For the lines of the report.
    pub(super) fn label(&self) -> String {
        if self.format == "raw" { self.config.kind.clone() } else { format!("{}.{}", self.config.kind, self.format) }
    }

    pub(super) fn option(&self, name: &str) -> &str {
        &self.config.options[name]
    }

    fn files(&self) -> bool {
        matches!(self.config.kind.as_str(), "dir" | "btrfs")
    }

    fn subvolume(&self) -> bool {
        self.config.kind == "btrfs" && self.format == "raw"
    }

    pub(super) fn has_snapshots(&self) -> bool {
        !(self.config.kind == "lvm" || (self.config.kind == "dir" && self.format == "raw"))
    }

    /// The name that PVE gives a volume.
    pub(super) fn name(&self, vmid: u32, what: &str) -> String {
        if self.files() { format!("{vmid}/vm-{vmid}-{what}.{}", self.format) } else { format!("vm-{vmid}-{what}") }
    }

    pub(super) fn at(&self, name: &str) -> At {
        At { storage: self.config.clone(), name: name.to_owned(), format: self.format.to_owned() }
    }

    /// The file or device with a volume's bytes.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        match self.config.kind.as_str() {
            "dir" | "btrfs" => {
                let path = Path::new(self.option("path")).join("images").join(name);
                if self.subvolume() { path.with_extension("").join("disk.raw") } else { path }
            }
            "zfspool" => Path::new("/dev/zvol").join(self.option("pool")).join(name),
            _ => {
                let mapped = |part: &str| part.replace('-', "--");
                PathBuf::from(format!("/dev/mapper/{}-{}", mapped(self.option("vgname")), mapped(name)))
            }
        }
    }

    /// `<vg>/<lv>` or `<pool>/<zvol>`.
    pub(super) fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.option(if self.config.kind == "zfspool" { "pool" } else { "vgname" }))
    }

    pub(super) fn allocate(&self, name: &str, bytes: u64) {
        let (path, size) = (self.path(name), format!("{bytes}b"));
        match self.config.kind.as_str() {
            "dir" | "btrfs" => {
                let folder = Path::new(self.option("path")).join("images").join(name.split('/').next().unwrap());
                fs::create_dir_all(folder).unwrap();
                if self.subvolume() {
                    tool(&["btrfs", "-q", "subvolume", "create", "--", path.parent().unwrap().to_str().unwrap()]);
                    fs::File::create_new(&path).unwrap().set_len(bytes).unwrap();
                } else {
                    tool(&["qemu-img", "create", "-q", "-f", self.format, path.to_str().unwrap(), &bytes.to_string()]);
                }
            }
            "lvmthin" => {
                let pool = self.full(self.option("thinpool"));
                tool(&["lvcreate", "-qq", "-aly", "-V", &size, "--name", name, "--thinpool", &pool]);
                tool(&["lvchange", "--setautoactivation", "n", &self.full(name)]);
            }
            "lvm" => {
                let group = self.option("vgname");
                tool(&["lvcreate", "-qq", "-aly", "-Wy", "--yes", "--size", &size, "--name", name, "--setautoactivation", "n", group]);
            }
            _ => {
                tool(&["zfs", "create", "-s", "-V", &bytes.to_string(), &self.full(name)]);
                let _ = Command::new("udevadm").args(["wait", "--timeout=10"]).arg(&path).status();
            }
        }
    }

    /// Removes a volume and its snapshots, if it is there.
    pub(super) fn free(&self, name: &str) {
        match self.config.kind.as_str() {
            "dir" | "btrfs" => {
                let path = self.path(name);
                let (_, folder) =
                    (fs::remove_file(&path), Path::new(self.option("path")).join("images").join(name.split('/').next().unwrap()));
                if self.subvolume() {
                    let stem = path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
                    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                        let found = entry.file_name();
                        let found = found.to_str().unwrap();
                        if found == stem || found.strip_prefix(&stem).is_some_and(|rest| rest.starts_with(['@', '.'])) {
                            tool(&["btrfs", "-q", "subvolume", "delete", "--", entry.path().to_str().unwrap()]);
                        }
                    }
                }
                let _ = fs::remove_dir(folder);
            }
            "lvmthin" | "lvm" => {
                let all = tool(&["lvs", "--noheadings", "-o", "lv_name", self.option("vgname")]);
                for lv in all.lines().map(str::trim) {
                    if lv == name || lv.starts_with(&format!("snap_{name}_")) || lv == format!("pvelet-roll-back-{name}") {
                        tool(&["lvremove", "-qq", "-f", &self.full(lv)]);
                    }
                }
            }
            _ => {
                let _ = Command::new("zfs").args(["destroy", "-r", &self.full(name)]).output();
            }
        }
    }

    /// Writes bytes from the volume's beginning.
    pub(super) fn write(&self, volume: &At, bytes: &[u8], work: &Path) {
        let path = self.path(&volume.name);
        if self.format == "raw" {
            let mut file = fs::File::options().write(true).open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            file.write_all(bytes).unwrap();
            file.sync_all().unwrap();
        } else {
            let raw = work.join("content.raw");
            fs::write(&raw, bytes).unwrap();
            tool(&["qemu-img", "convert", "-n", "-f", "raw", "-O", self.format, raw.to_str().unwrap(), path.to_str().unwrap()]);
            fs::remove_file(raw).unwrap();
        }
    }

    /// All bytes that a guest would see.
    pub(super) fn read(&self, volume: &At, work: &Path) -> Vec<u8> {
        let path = self.path(&volume.name);
        let mut bytes = Vec::new();
        if self.format == "raw" {
            fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).read_to_end(&mut bytes).unwrap();
        } else {
            let raw = work.join("read.raw");
            tool(&["qemu-img", "convert", "-f", self.format, "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
            fs::File::open(&raw).unwrap().read_to_end(&mut bytes).unwrap();
            fs::remove_file(raw).unwrap();
        }
        bytes
    }
}
