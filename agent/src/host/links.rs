//! Network links of this host, as far as VMs are plugged into them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeInfo {
    /// Its name.
    pub name: String,
    /// Whether it filters VLANs.
    pub vlan_aware: bool,
    /// Whether it is up.
    pub up: bool,
}

/// Reads links.
pub trait Links: Send + Sync + 'static {
    /// All bridges, by name.
    fn bridges(&self) -> std::io::Result<Vec<BridgeInfo>>;
}

/// The kernel's links, as sysfs shows them. Open vSwitch bridges are not among them: those are no bridges to the kernel.
#[derive(Debug, Clone)]
pub struct SysfsLinks {
    root: PathBuf,
}

impl SysfsLinks {
    /// Links below `root`, usually `/sys`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Whether a link was brought up (IFF_UP). Its `operstate` says something else: "down" for a bridge whose ports have no carrier; it counts
/// only where there are no flags.
fn is_up(link: &Path) -> bool {
    let flags = read(&link.join("flags")).and_then(|f| u32::from_str_radix(f.trim_start_matches("0x"), 16).ok());
    match flags {
        Some(flags) => flags & 1 == 1,
        None => read(&link.join("operstate")).is_some_and(|s| s == "up" || s == "unknown"),
    }
}

impl Links for SysfsLinks {
    fn bridges(&self) -> io::Result<Vec<BridgeInfo>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join("class/net"))? {
            let link = entry?.path();
            // A link may vanish while it is read: then it has no such folder any more.
            let (Some(name), true) = (link.file_name().and_then(|n| n.to_str()), link.join("bridge").is_dir()) else { continue };
            found.push(BridgeInfo {
                name: name.to_owned(),
                vlan_aware: read(&link.join("bridge/vlan_filtering")).as_deref() == Some("1"),
                up: is_up(&link),
            });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_bridges_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = dir.path().join("class/net").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("vmbr1/bridge/vlan_filtering", "1\n");
        file("vmbr1/flags", "0x1003\n");
        file("vmbr0/bridge/vlan_filtering", "0\n");
        file("vmbr0/flags", "0x1002\n");
        file("vmbr2/bridge/vlan_filtering", "0\n");
        file("vmbr2/operstate", "up\n");
        file("eno1/flags", "0x1003\n");
        file("bonding_masters", "");
        let bridge = |name: &str, vlan_aware, up| BridgeInfo { name: name.into(), vlan_aware, up };
        let links = SysfsLinks::new(dir.path().to_owned());
        assert_eq!(links.bridges().unwrap(), [bridge("vmbr0", false, false), bridge("vmbr1", true, true), bridge("vmbr2", false, true)]);
    }

    #[test]
    fn the_kernels_own_links_can_be_read() {
        SysfsLinks::new("/sys".into()).bridges().unwrap();
    }

    #[test]
    fn no_sysfs_is_an_error() {
        assert!(SysfsLinks::new("/nonexistent".into()).bridges().is_err());
    }
}
