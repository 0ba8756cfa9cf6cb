//! Kernels: the one that runs, those that are installed.

use std::path::Path;

use super::{Kernels, read};
use crate::error::Error;

/// Packages that are told.
const PACKAGES: usize = 10;
const LARGEST: u64 = 64 << 10;

/// Reads them. `etc` is `/etc`.
pub(super) fn look_at(proc: &Path, boot: &Path, run: &Path, etc: &Path) -> Result<Kernels, Error> {
    let running = read::must(&proc.join("sys/kernel/osrelease"), LARGEST)?.trim().to_owned();
    let installed = read::names(boot)?.iter().filter_map(|n| n.strip_prefix("vmlinuz-")).map(str::to_owned).collect();
    let first_line = |text: Option<String>| text.and_then(|t| t.lines().next().map(|l| l.trim().to_owned())).filter(|l| !l.is_empty());
    let pinned = first_line(read::text(&etc.join("kernel/proxmox-boot-pin"), LARGEST)?);
    let once = first_line(read::text(&etc.join("kernel/next-boot-pin"), LARGEST)?);
    let mut packages: Vec<String> = Vec::new();
    for line in read::text(&run.join("reboot-required.pkgs"), LARGEST)?.unwrap_or_default().lines().map(str::trim) {
        if !line.is_empty() && packages.len() < PACKAGES && !packages.iter().any(|p| p == line) {
            packages.push(line.to_owned());
        }
    }
    let required = run.join("reboot-required").exists();
    Ok(Kernels { running, installed, pinned: once.or(pinned), required, packages })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn images_pins_and_requests_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), text).unwrap();
        };
        let look = || look_at(&at("proc"), &at("boot"), &at("run"), &at("etc"));
        assert!(look().is_err(), "there is always a kernel that runs");
        write("proc/sys/kernel/osrelease", "6.14.8-2-pve\n");
        let bare = look().unwrap();
        assert_eq!(bare, Kernels { running: "6.14.8-2-pve".into(), ..Kernels::default() });
        write("boot/vmlinuz-6.14.8-2-pve", "");
        write("boot/vmlinuz-6.14.11-1-pve", "");
        write("boot/initrd.img-6.17.2-1-pve", "");
        write("run/reboot-required", "*** System restart required ***\n");
        write("run/reboot-required.pkgs", "proxmox-kernel-6.14\nlibc6\nlibc6\n\n");
        write("etc/kernel/proxmox-boot-pin", "6.14.8-2-pve\n");
        let full = look().unwrap();
        assert_eq!(full.installed, ["6.14.11-1-pve", "6.14.8-2-pve"]);
        assert_eq!(full.packages, ["proxmox-kernel-6.14", "libc6"]);
        assert_eq!((full.pinned.as_deref(), full.required), (Some("6.14.8-2-pve"), true));
        write("etc/kernel/next-boot-pin", "6.14.11-1-pve\n");
        assert_eq!(look().unwrap().pinned.as_deref(), Some("6.14.11-1-pve"));
    }
}
