//! The folders of a node as they are on a fresh host, and its small storage.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};

use crate::{faults::Faults, fuse::clear, layout::NodeLayout};

const FOLDERS: [&str; 16] = [
    "/run/qemu-server",
    "/var/log/pve/tasks",
    "/var/lock/qemu-server",
    "/var/lock/pve-manager",
    "/var/lib/vz/images",
    "/var/lib/vz/template/iso",
    "/var/lib/vz/template/cache",
    "/var/lib/vz/snippets",
    "/var/lib/vz/import",
    "/var/lib/vz/dump",
    "/srv/raw/images",
    "/srv/small",
    "/srv/isoonly/template/iso",
    "/srv/offline",
    "/etc/network/interfaces.d",
    "/mnt/pve",
];

/// The recorded host's.
const INTERFACES: &str = "\
auto lo
iface lo inet loopback

iface eno1 inet manual

auto vmbr0
iface vmbr0 inet static
\taddress 10.99.0.1/24
\tbridge-ports none
\tbridge-stp off
\tbridge-fd 0
";

/// The small storage: a file system of its own, so that a full one is really full. Its content lives as long as the cluster runs.
const SMALL: &str = "/srv/small";

/// The storage that all nodes share from the start, and the folder of those that were added.
const SHARED: &str = "shared";
const MORE_SHARED: &str = "shared-storages";

/// Makes a node's folders where they are missing, and mounts its small storage.
///
/// # Errors
/// When a folder cannot be made. A `tmpfs` that cannot be mounted is only logged: then the storage `small` is offline.
pub(super) fn prepare(layout: &NodeLayout, dir: &Path) -> io::Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(layout.host_path(folder))?;
    }
    // What runs is gone with the last end of the cluster.
    for entry in fs::read_dir(layout.run_qemu())?.flatten() {
        fs::remove_file(entry.path())?;
    }
    // The storage of that name is what it says: its folder is expected to be a mount point and is none.
    Faults::update(&layout.faults(), |faults| {
        faults.storages.entry("offline".into()).or_default().offline = true;
        Ok(())
    })?;
    for (id, _) in shared_folders(dir) {
        share(layout, dir, &id)?;
    }
    let interfaces = layout.host_path("/etc/network/interfaces");
    if !interfaces.exists() {
        fs::write(interfaces, INTERFACES)?;
    }
    let small = layout.host_path(SMALL);
    clear(&small);
    match mount(Some("small"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=64m,mode=0755")) {
        Ok(()) => fs::create_dir_all(small.join("images"))?,
        Err(error) => tracing::warn!(%error, node = layout.node(), "the small storage cannot be mounted"),
    }
    Ok(())
}

/// The storages that all nodes share, each with its folder.
pub(crate) fn shared_folders(dir: &Path) -> Vec<(String, PathBuf)> {
    let more = fs::read_dir(dir.join(MORE_SHARED)).into_iter().flatten().flatten();
    let more = more.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    std::iter::once((SHARED.to_owned(), dir.join(SHARED))).chain(more).collect()
}

/// Lets `/mnt/pve/<id>` of a node lead to the folder of that name in the cluster's folder.
///
/// # Errors
/// When one of them cannot be made.
pub(crate) fn share(layout: &NodeLayout, dir: &Path, id: &str) -> io::Result<()> {
    // Only the first lies beside the nodes, whose names are free.
    let folder = if id == SHARED { dir.join(SHARED) } else { dir.join(MORE_SHARED).join(id) };
    fs::create_dir_all(folder.join("images"))?;
    let link = layout.host_path(&format!("/mnt/pve/{id}"));
    if fs::symlink_metadata(&link).is_err() {
        symlink(folder, link)?;
    }
    Ok(())
}

/// Unmounts everything that a cluster may have mounted below its folder, even after it was killed.
pub(crate) fn release_all(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        clear(&entry.path().join("etc/pve"));
        clear(&entry.path().join(SMALL.trim_start_matches('/')));
    }
}
