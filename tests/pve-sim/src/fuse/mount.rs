//! One node's mount: up, down, hung, restarted.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use nix::{
    mount::{MntFlags, umount2},
    unistd::Group,
};

use super::{
    filesystem::Pmxcfs,
    gate::{Gate, PLUG},
    handles::Handles,
};
use crate::cluster::Store;

/// The group that may read `/etc/pve`, where the host has no `www-data`.
const WWW_DATA: u32 = 33;

/// The mount of one node.
pub struct Mount {
    path: PathBuf,
    store: Arc<Store>,
    node: usize,
    gate: Arc<Gate>,
    session: Option<BackgroundSession>,
}

impl Mount {
    /// Mounts a node's view of the store; what an earlier run left mounted there is removed first.
    ///
    /// # Errors
    /// When the folder cannot be made or mounted: it needs root and `/dev/fuse`.
    pub fn new(path: PathBuf, store: Arc<Store>, node: usize) -> io::Result<Self> {
        let mut mount = Self { path, store, node, gate: Arc::default(), session: None };
        clear(&mount.path);
        fs::create_dir_all(&mount.path)?;
        mount.up()?;
        Ok(mount)
    }

    /// Whether it is mounted.
    pub fn is_up(&self) -> bool {
        self.session.is_some()
    }

    /// Mounts it, unless it is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn up(&mut self) -> io::Result<()> {
        if self.session.is_some() {
            return Ok(());
        }
        self.gate = Arc::default();
        let group = Group::from_name("www-data").ok().flatten().map_or(WWW_DATA, |group| group.gid.as_raw());
        let filesystem =
            Pmxcfs { store: Arc::clone(&self.store), node: self.node, gate: Arc::clone(&self.gate), group, handles: Handles::default() };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("/dev/fuse".into()), MountOption::DefaultPermissions];
        config.acl = SessionACL::All;
        // One thread: a hung one stops all.
        config.n_threads = Some(1);
        self.session = Some(fuser::spawn_mount(filesystem, &self.path, &config)?);
        self.store.set_up(self.node, true);
        Ok(())
    }

    /// Unmounts it, as when `pmxcfs` ends: the folder beneath is empty. Who has files open gets errors.
    pub fn down(&mut self) {
        self.resume();
        if let Some(session) = self.session.take() {
            clear(&self.path);
            drop(session);
            self.store.set_up(self.node, false);
        }
    }

    /// Ends and starts again with counters that begin anew.
    ///
    /// # Errors
    /// When the kernel refuses the mount.
    pub fn restart(&mut self) -> io::Result<()> {
        self.down();
        self.store.restart(self.node);
        self.up()
    }

    /// Lets every call block from now on, until [`Mount::resume`]. Calls block for certain once this returns.
    pub fn hang(&self) {
        if self.session.is_some() && self.gate.shut() {
            let plug = self.path.join(PLUG);
            thread::spawn(move || drop(fs::metadata(plug)));
            self.gate.wait_caught();
        }
    }

    /// Lets blocked calls go on.
    pub fn resume(&self) {
        self.gate.open();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.down();
    }
}

/// Unmounts whatever is mounted at a path, even if it is in use or its server is dead.
pub(crate) fn clear(path: &Path) {
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
}
