//! Volumes' ids and names: what `VolumeService` and its clients agree on without asking each other.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use crate::id::InvalidId;

/// Between the VMID and the id in a volume's name; proxmox-csi uses the same.
const INFIX: &str = "-pvc-";
/// What udev puts before the serial number of a disk that QEMU shows on virtio-scsi.
const BY_ID: &str = "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_";

/// How the host may cache a volume that is attached.
pub const CACHES: [&str; 5] = ["none", "directsync", "writethrough", "writeback", "unsafe"];
/// How the host may read and write a volume that is attached.
pub const AIOS: [&str; 3] = ["io_uring", "native", "threads"];
/// The highest limit of reads or writes a second. PVE's own bound is higher; beyond this nobody has a disk.
pub const IOPS_MAX: u32 = 10_000_000;
/// The highest limit of MiB a second.
pub const MBPS_MAX: u32 = 100_000;
/// The largest volume, 1 PiB: more than any storage has, and well inside what QEMU and PVE count with.
pub const BYTES_MAX: u64 = 1 << 50;

/// A volume's id, a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(Uuid);

impl VolumeId {
    /// A new one.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The id of a UUID.
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The serial number that a guest sees: 20 bytes, the most that QEMU passes on. It comes from the id alone, so that it is the same in
    /// every slot, on every storage and in every VM.
    pub fn serial(&self) -> String {
        self.0.simple().to_string()[..20].to_owned()
    }

    /// Where a Linux guest finds the disk.
    pub fn device_path(&self) -> String {
        format!("{BY_ID}{}", self.serial())
    }

    /// The name without format: `vm-<vmid>-pvc-<id>`.
    pub fn disk_name(&self, vmid: u32) -> String {
        format!("vm-{vmid}{INFIX}{self}")
    }

    /// Reads the VMID and the id out of the name that stands behind the storage in a volid, such as `100/vm-100-pvc-<id>.raw` or
    /// `vm-100-pvc-<id>`. `None`: it is another name.
    pub fn of_name(name: &str) -> Option<(u32, Self)> {
        let file = name.rsplit('/').next()?;
        let stem = file.split_once('.').map_or(file, |(stem, _)| stem);
        let (vmid, id) = stem.strip_prefix("vm-")?.split_once(INFIX)?;
        // Only the form that is written: 36 characters, lower case.
        let id = id.parse::<Self>().ok().filter(|found| found.to_string() == id)?;
        Some((vmid.parse().ok()?, id))
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for VolumeId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId {
            kind: "a volume id",
            value: text.chars().take(128).collect(),
            rule: "use a UUID with hyphens, such as `pveletctl volumes` shows",
        };
        Uuid::try_parse(text).ok().filter(|u| text.len() == 36 && !u.is_nil()).map(Self).ok_or_else(invalid)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ID: &str = "0b951f20-53f9-4634-b1ce-5e6c3aa3a726";

    #[test]
    fn names_read_back_on_every_kind_of_storage() {
        let id: VolumeId = ID.parse().unwrap();
        let name = id.disk_name(9999);
        assert_eq!(name, format!("vm-9999-pvc-{ID}"));
        for text in [name.clone(), format!("9999/{name}.raw"), format!("9999/{name}.qcow2")] {
            assert_eq!(VolumeId::of_name(&text), Some((9999, id)), "{text}");
        }
    }

    #[test]
    fn other_names_are_no_volumes() {
        for text in [
            "",
            "100/vm-100-disk-0.qcow2",
            "vm-100-pvc-x",
            "base-100-pvc-0b951f20-53f9-4634-b1ce-5e6c3aa3a726",
            "vm-100-pvc-0B951F20-53F9-4634-B1CE-5E6C3AA3A726",
            "vm-100-pvc-0b951f2053f94634b1ce5e6c3aa3a726",
            "vm--pvc-0b951f20-53f9-4634-b1ce-5e6c3aa3a726",
            "vm-100-pvc-0b951f20-53f9-4634-b1ce-5e6c3aa3a726-2",
        ] {
            assert_eq!(VolumeId::of_name(text), None, "{text}");
        }
    }

    #[test]
    fn a_serial_has_twenty_bytes_and_stays() {
        let id: VolumeId = ID.parse().unwrap();
        assert_eq!(id.serial(), "0b951f2053f94634b1ce");
        assert_eq!(id.device_path(), "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_0b951f2053f94634b1ce");
    }

    #[test]
    fn what_is_no_uuid_is_refused_with_the_rule() {
        for text in ["", "x", "00000000-0000-0000-0000-000000000000", "0b951f2053f94634b1ce5e6c3aa3a726"] {
            assert!(text.parse::<VolumeId>().unwrap_err().to_string().contains("use a UUID"), "{text}");
        }
    }
}
