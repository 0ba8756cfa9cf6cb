//! The cluster file system's mount, the database behind it, and what pvestatd left in it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::{
    ClusterFs, FileSystem,
    read::{self, io_error, look},
};
use crate::error::{Error, Trouble};

/// Looks at the mount. `mountinfo` is `/proc/self/mountinfo`, which answers even when the file system does not.
pub(super) fn look_at(etc_pve: &Path, node: &str, mountinfo: &Path, database: &Path) -> Result<ClusterFs, Error> {
    let database = file_system(database)?;
    let mounts = read::must(mountinfo, read::LARGEST)?;
    let Some(read_only) = mount(&mounts, etc_pve) else { return Ok(ClusterFs { database, ..ClusterFs::default() }) };
    // Whatever is asked of it may hang.
    let folder = etc_pve.join("nodes").join(node);
    let mode = fs::metadata(&folder).map_err(|e| io_error(&folder, &e))?.permissions().mode();
    Ok(ClusterFs { mounted: true, read_only, writable_mode: mode & 0o222 != 0, database })
}

/// Whether what is mounted at `path` is read-only; `None`: nothing is mounted there. The last mount covers those before it.
fn mount(mountinfo: &str, path: &Path) -> Option<bool> {
    let path = path.to_str()?;
    let line = |line: &str| -> Option<bool> {
        let mut fields = line.split(' ').skip(4);
        let (point, options) = (fields.next()?, fields.next()?);
        (unescape(point) == path).then(|| options.split(',').any(|o| o == "ro"))
    };
    mountinfo.lines().filter_map(line).next_back()
}

/// The kernel writes blanks and the like of a path as `\040`.
fn unescape(text: &str) -> String {
    let (mut plain, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, more)) = rest.split_first() {
        let code = more.get(..3).filter(|_| *first == b'\\').and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = &more[3..];
            }
            None => {
                plain.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// The file system of a folder; `None`: there is no such folder.
pub(super) fn file_system(folder: &Path) -> Result<Option<FileSystem>, Error> {
    match statvfs(folder) {
        Ok(stat) => Ok(Some(FileSystem {
            folder: folder.to_owned(),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            // pmxcfs runs as root, who has the reserve too.
            free: stat.f_bfree.saturating_mul(stat.f_frsize),
            read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        })),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(io_error(folder, &error.into())),
    }
}

/// When pvestatd last told of this node: of a line such as `pve-node-9.0/pve1:2886::1795416785:...` the third value.
///
/// # Errors
/// `Look`; `Missing` where there is no such file.
pub(super) fn status_told(etc_pve: &Path, node: &str) -> Result<Option<SystemTime>, Error> {
    let path = etc_pve.join(".rrd");
    let text = read::text(&path, read::LARGEST)?.ok_or_else(|| look(Trouble::Missing, format!("{} is not there", path.display())))?;
    Ok(told(&text, node))
}

fn told(text: &str, node: &str) -> Option<SystemTime> {
    let line = |line: &str| -> Option<SystemTime> {
        let (key, values) = line.split_once(':')?;
        let (kind, name) = key.split_once('/')?;
        if name != node || !(kind == "pve2-node" || kind.starts_with("pve-node-")) {
            return None;
        }
        let seconds = values.split(':').nth(2)?.parse().ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    text.lines().filter_map(line).max()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const MOUNTS: &str = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        40 22 0:33 / /etc/pve rw,nosuid,nodev,relatime shared:20 - fuse /dev/fuse rw,user_id=0\n\
        41 22 0:34 / /mnt/a\\040b ro,relatime - ext4 /dev/sdb1 rw\n";

    #[test]
    fn a_mount_is_found_by_its_point_and_the_last_one_counts() {
        assert_eq!(mount(MOUNTS, Path::new("/etc/pve")), Some(false));
        assert_eq!(mount(MOUNTS, Path::new("/mnt/a b")), Some(true));
        assert_eq!(mount(MOUNTS, Path::new("/etc")), None);
        let covered = format!("{MOUNTS}50 40 0:50 / /etc/pve ro - tmpfs none rw\n");
        assert_eq!(mount(&covered, Path::new("/etc/pve")), Some(true));
    }

    #[test]
    fn modes_tell_whether_anything_may_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, mounts) = (dir.path().join("pve"), dir.path().join("mountinfo"));
        fs::create_dir_all(etc.join("nodes/pve1")).unwrap();
        fs::write(&mounts, format!("40 22 0:33 / {} rw - fuse x rw\n", etc.display())).unwrap();
        let seen = look_at(&etc, "pve1", &mounts, dir.path()).unwrap();
        assert!(seen.mounted && seen.writable_mode && !seen.read_only && seen.database.unwrap().total > 0);
        fs::set_permissions(etc.join("nodes/pve1"), fs::Permissions::from_mode(0o555)).unwrap();
        let seen = look_at(&etc, "pve1", &mounts, &dir.path().join("none")).unwrap();
        assert!(seen.mounted && !seen.writable_mode && seen.database.is_none());
        fs::write(&mounts, "").unwrap();
        assert!(!look_at(&etc, "pve1", &mounts, dir.path()).unwrap().mounted);
    }

    #[test]
    fn the_time_at_which_a_node_was_told_of_is_read_from_both_forms() {
        let text = "pve-vm-9.0/123:0:m:stopped:0:1795416505:1:U\npve-storage-9.0/pve1/rawdir:1795416785:270553174016:26569355264\n\
            pve-node-9.0/pve1:2886::1795416785:0.91:2:0.53\npve2-node/pve2:11:c:1795416000:0.1:2\n";
        let at = |s| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(told(text, "pve1"), at(1_795_416_785));
        assert_eq!(told(text, "pve2"), at(1_795_416_000));
        assert_eq!(told(text, "pve3"), None);
        assert_eq!(told("pve2-node/pve1:a:b:c", "pve1"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*", escaped in "(\\\\[0-9]{0,4}|/|a|é){0,10}") {
            let _ = (mount(&text, Path::new("/etc/pve")), told(&text, "pve1"), unescape(&escaped));
        }
    }
}
