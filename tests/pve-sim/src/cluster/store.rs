//! The store: one content for all nodes, with the rules of `pmxcfs`.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::errno::Errno;

use crate::layout::NodeLayout;

use super::{
    Counters,
    counters::{Owner, vm_config_owner},
    dotfiles::{self, DOT_FILES, LINKS},
    inner::{FIRST_DOT, FIRST_LINK, Inner, dot_name, is_special, link_name},
    locks, persist,
    tree::{Body, ROOT, Tree},
};

/// The size beyond which no file grows.
pub(super) const MAX_FILE: usize = 1 << 20;

pub(super) type Result<T> = std::result::Result<T, Errno>;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file, made up or kept.
    File,
    /// A symbolic link.
    Link,
}

/// What `stat` tells.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// The inode number.
    pub ino: u64,
    /// File, folder or link.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Permission bits; without quorum nothing is writable.
    pub mode: u16,
    /// The last change.
    pub mtime: SystemTime,
}

/// One line of a folder's list.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The inode number.
    pub ino: u64,
    /// File, folder or link.
    pub kind: Kind,
    /// The name in its folder.
    pub name: String,
}

/// One node as the cluster sees it.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// The node's name.
    pub name: String,
    /// Its address in `.members`; nothing listens there.
    pub ip: String,
    /// Whether it is in the part of the cluster that has a majority.
    pub quorate: bool,
    /// Whether its `pmxcfs` runs.
    pub up: bool,
    /// What its `pmxcfs` has counted.
    pub counters: Counters,
    /// Whether its status daemon has told its keys to this `pmxcfs`; not any more after a restart.
    pub status_kept: bool,
}

/// The content of `/etc/pve`, shared by all nodes. Nodes are named by their index.
pub struct Store {
    inner: Mutex<Inner>,
    changed: Condvar,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}

impl Store {
    /// A store for these nodes, with what was saved at `saved`, or empty.
    ///
    /// # Errors
    /// When what was saved cannot be read.
    pub fn open(nodes: &[String], saved: &Path) -> io::Result<Self> {
        Ok(Self::with_tree(nodes, persist::load(saved)?.unwrap_or_else(Tree::new)))
    }

    /// An empty store that is saved nowhere.
    pub fn in_memory(nodes: &[String]) -> Self {
        Self::with_tree(nodes, Tree::new())
    }

    fn with_tree(nodes: &[String], tree: Tree) -> Self {
        let owners = tree.walk(ROOT).into_iter().filter(|(_, content)| content.is_some()).filter_map(|(path, _)| vm_config_owner(&path));
        let vms: BTreeMap<u32, Owner> = owners.collect();
        let clinfo = if nodes.len() > 1 { nodes.len() as u64 } else { 0 };
        let state = |(at, name): (usize, &String)| NodeState {
            name: name.clone(),
            ip: format!("10.99.0.{}", at + 1),
            quorate: true,
            up: true,
            counters: Counters::new(now_s(), clinfo, vms.keys().copied()),
            status_kept: true,
        };
        let nodes = nodes.iter().enumerate().map(state).collect();
        let inner = Inner {
            tree,
            nodes,
            vms,
            rendered: std::collections::HashMap::new(),
            started: SystemTime::now(),
            hosts: Vec::new(),
            revision: 0,
            lock_expiry: locks::EXPIRY,
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes the content; a node that has no quorum may not.
    pub(super) fn change<T>(&self, node: Option<usize>, what: impl FnOnce(&mut Inner) -> Result<T>) -> Result<T> {
        let mut inner = self.lock();
        if node.is_some_and(|node| !inner.nodes[node].quorate) {
            return Err(Errno::EACCES);
        }
        let done = what(&mut inner);
        if done.is_ok() {
            inner.revision += 1;
            self.changed.notify_all();
        }
        done
    }

    /// Writes everything to a file, in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        // The lock is not held while writing: contents are shared, not copied.
        let tree = self.lock().tree.walk(ROOT);
        persist::save(&tree, path)
    }

    /// The number of changes so far.
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// Waits until there are more changes than `seen`, at most for `limit`, and gives their number.
    pub fn wait_changed(&self, seen: u64, limit: Duration) -> u64 {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |inner| inner.revision == seen);
        waited.map_or_else(|poisoned| poisoned.into_inner().0.revision, |(inner, _)| inner.revision)
    }

    /// Looks at the nodes.
    pub fn with_nodes<T>(&self, look: impl FnOnce(&[NodeState]) -> T) -> T {
        look(&self.lock().nodes)
    }

    /// The index of a node.
    pub fn node(&self, name: &str) -> Option<usize> {
        self.lock().nodes.iter().position(|node| node.name == name)
    }

    /// The node that holds a guest.
    pub fn vm_node(&self, vmid: u32) -> Option<String> {
        self.lock().vms.get(&vmid).map(|owner| owner.node.clone())
    }

    /// Every guest with its node.
    pub fn vms(&self) -> Vec<(u32, String)> {
        self.lock().vms.iter().map(|(vmid, owner)| (*vmid, owner.node.clone())).collect()
    }

    /// Says where the nodes' files are, on which their daemons report in `.clusterlog` and `.rrd`.
    pub fn set_hosts(&self, cluster_dir: &Path) {
        let mut inner = self.lock();
        inner.hosts = inner.nodes.iter().map(|node| NodeLayout::new(cluster_dir, &node.name)).collect();
    }

    /// Gives or takes a node's quorum.
    pub fn set_quorum(&self, node: usize, quorate: bool) {
        self.set_state(|nodes| std::mem::replace(&mut nodes[node].quorate, quorate) != quorate);
    }

    /// Says that a node's `pmxcfs` is up or down.
    pub fn set_up(&self, node: usize, up: bool) {
        self.set_state(|nodes| std::mem::replace(&mut nodes[node].up, up) != up);
    }

    fn set_state(&self, set: impl FnOnce(&mut [NodeState]) -> bool) {
        let mut inner = self.lock();
        if set(&mut inner.nodes) && inner.nodes.len() > 1 {
            inner.nodes.iter_mut().for_each(|node| node.counters.members_changed());
        }
    }

    /// A node's `pmxcfs` begins anew: all its counters do.
    pub fn restart(&self, node: usize) {
        let mut inner = self.lock();
        let vmids: Vec<u32> = inner.vms.keys().copied().collect();
        let (old, many) = (inner.nodes[node].counters.clone(), inner.nodes.len() > 1);
        let clinfo = if many { inner.nodes.len() as u64 } else { 0 };
        // Two starts within a second would look like one.
        let starttime = now_s().max(old.starttime + 1);
        inner.nodes[node].counters = Counters::new(starttime, clinfo, vmids.into_iter());
        inner.nodes[node].status_kept = false;
        // What was rendered before must not be taken for current.
        inner.rendered.clear();
    }

    /// Whether an inode is one of those that are made up when read.
    pub fn is_made_up(ino: u64) -> bool {
        dot_name(ino).is_some()
    }

    /// Whether an inode is one of those whose name never changes: made up, or a link.
    pub fn is_fixed(ino: u64) -> bool {
        is_special(ino)
    }

    /// Looks a name up in a folder.
    pub fn lookup(&self, node: usize, parent: u64, name: &str) -> Result<Attributes> {
        let mut inner = self.lock();
        let ino = inner.find(parent, name).ok_or(Errno::ENOENT)?;
        inner.attributes(node, ino)
    }

    /// What `stat` tells.
    pub fn attributes(&self, node: usize, ino: u64) -> Result<Attributes> {
        self.lock().attributes(node, ino)
    }

    /// Where a link points.
    pub fn link_target(&self, node: usize, ino: u64) -> Result<String> {
        let link = link_name(ino).ok_or(Errno::EINVAL)?;
        Ok(dotfiles::target(link, &self.lock().nodes[node].name))
    }

    /// What is in a folder, `.` and `..` left out.
    pub fn list(&self, ino: u64) -> Result<Vec<Entry>> {
        let inner = self.lock();
        let children = inner.tree.children(ino).ok_or(Errno::ENOTDIR)?;
        let kind = |ino: u64| if inner.tree.children(ino).is_some() { Kind::Folder } else { Kind::File };
        let mut entries: Vec<Entry> =
            children.iter().map(|(name, ino)| Entry { ino: *ino, kind: kind(*ino), name: name.clone() }).collect();
        if ino == ROOT {
            entries.extend((FIRST_DOT..).zip(DOT_FILES).map(|(ino, name)| Entry { ino, kind: Kind::File, name: name.into() }));
            entries.extend((FIRST_LINK..).zip(LINKS).map(|(ino, name)| Entry { ino, kind: Kind::Link, name: name.into() }));
        }
        Ok(entries)
    }

    /// The content of a file, made up or kept.
    pub fn read(&self, node: usize, ino: u64) -> Result<Arc<Vec<u8>>> {
        let mut inner = self.lock();
        if dot_name(ino).is_some() {
            return Ok(inner.render(node, ino));
        }
        match inner.tree.get(ino).map(|inode| &inode.body) {
            Some(Body::File(content)) => Ok(Arc::clone(content)),
            Some(Body::Folder(_)) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    /// Makes an empty file.
    pub fn create(&self, node: Option<usize>, parent: u64, name: &str) -> Result<u64> {
        self.change(node, |inner| {
            let path = inner.free_path(parent, name)?;
            inner.check_vmid_is_free(&path, None)?;
            let ino = inner.tree.insert(parent, name, Body::File(Arc::default()));
            inner.note_changed(&path);
            Ok(ino)
        })
    }

    /// Makes a folder.
    pub fn mkdir(&self, node: Option<usize>, parent: u64, name: &str) -> Result<u64> {
        self.change(node, |inner| {
            inner.free_path(parent, name)?;
            let ino = inner.tree.insert(parent, name, Body::Folder(BTreeMap::new()));
            if let Some(inode) = inner.tree.get_mut(ino) {
                inode.writer = node;
            }
            Ok(ino)
        })
    }

    /// Writes into a file. One that would grow beyond 1 MiB is left as it is.
    pub fn write(&self, node: Option<usize>, ino: u64, offset: usize, data: &[u8]) -> Result<()> {
        let end = offset.checked_add(data.len()).filter(|end| *end <= MAX_FILE).ok_or(Errno::EFBIG)?;
        self.edit(node, ino, |content| {
            content.resize(content.len().max(end), 0);
            content[offset..end].copy_from_slice(data);
        })
    }

    /// Cuts a file, or fills it up with zeros.
    pub fn truncate(&self, node: Option<usize>, ino: u64, size: usize) -> Result<()> {
        if size > MAX_FILE {
            return Err(Errno::EFBIG);
        }
        self.edit(node, ino, |content| content.resize(size, 0))
    }

    fn edit(&self, node: Option<usize>, ino: u64, edit: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        self.change(node, |inner| {
            let inode = inner.tree.get_mut(ino).ok_or(if is_special(ino) { Errno::EACCES } else { Errno::ENOENT })?;
            let Body::File(content) = &mut inode.body else { return Err(Errno::EISDIR) };
            edit(Arc::make_mut(content));
            inode.mtime = SystemTime::now();
            let path = inner.tree.path(ino);
            inner.note_changed(&path);
            Ok(())
        })
    }

    /// Removes a file.
    pub fn unlink(&self, node: Option<usize>, parent: u64, name: &str) -> Result<()> {
        self.change(node, |inner| {
            let ino = inner.removable(parent, name)?;
            if inner.tree.children(ino).is_some() {
                return Err(Errno::EISDIR);
            }
            let path = inner.tree.path(ino);
            inner.tree.remove(ino);
            inner.note_removed(&path);
            Ok(())
        })
    }

    /// Removes an empty folder.
    pub fn rmdir(&self, node: Option<usize>, parent: u64, name: &str) -> Result<()> {
        self.change(node, |inner| {
            let ino = inner.removable(parent, name)?;
            if !inner.tree.children(ino).ok_or(Errno::ENOTDIR)?.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            inner.tree.remove(ino);
            Ok(())
        })
    }

    /// Renames a file or folder; a file that is in the way is replaced.
    pub fn rename(&self, node: Option<usize>, parent: u64, name: &str, new_parent: u64, new_name: &str) -> Result<()> {
        self.change(node, |inner| inner.rename(parent, name, new_parent, new_name))
    }
}
