//! What happens under the store's lock: rules, counters, and what is made up.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use nix::errno::Errno;

use super::{
    counters::{Owner, vm_config_owner},
    dotfiles::{self, DOT_FILES, LINKS},
    reports,
    store::{Attributes, Kind, NodeState, Result},
    tree::{Body, ROOT, Tree},
};
use crate::layout::NodeLayout;

/// Inode numbers of what is made up; the tree's begin above.
pub(super) const FIRST_DOT: u64 = 10;
pub(super) const FIRST_LINK: u64 = 20;

/// A made-up file, and the generation of counters that it shows.
pub(super) type Rendered = (u64, Arc<Vec<u8>>);

pub(super) struct Inner {
    pub(super) tree: Tree,
    pub(super) nodes: Vec<NodeState>,
    pub(super) vms: BTreeMap<u32, Owner>,
    /// Made-up files by node and inode number.
    pub(super) rendered: HashMap<(usize, u64), Rendered>,
    pub(super) started: SystemTime,
    /// The nodes' files, which their daemons report on; none: nothing is reported.
    pub(super) hosts: Vec<NodeLayout>,
    /// Grows with every change of content.
    pub(super) revision: u64,
    /// How long a cluster lock holds without being renewed.
    pub(super) lock_expiry: Duration,
}

impl Inner {
    /// The inode of a name in a folder, made-up ones included.
    pub(super) fn find(&self, parent: u64, name: &str) -> Option<u64> {
        let made_up = |names: &[&str], first| (first..).zip(names).find(|(_, known)| **known == name).map(|(ino, _)| ino);
        let at_root = || made_up(&DOT_FILES, FIRST_DOT).or_else(|| made_up(&LINKS, FIRST_LINK));
        self.tree.child(parent, name).or_else(|| if parent == ROOT { at_root() } else { None })
    }

    pub(super) fn attributes(&mut self, node: usize, ino: u64) -> Result<Attributes> {
        let quorate = self.nodes[node].quorate;
        if let Some(link) = link_name(ino) {
            let size = dotfiles::target(link, &self.nodes[node].name).len() as u64;
            // By this mode PVE's daemons see whether there is quorum.
            let mode = if quorate { 0o755 } else { 0o555 };
            return Ok(Attributes { ino, kind: Kind::Link, size, mode, mtime: self.started });
        }
        if let Some(name) = dot_name(ino) {
            let size = self.render(node, ino).len() as u64;
            return Ok(Attributes { ino, kind: Kind::File, size, mode: if name == ".debug" { 0o640 } else { 0o440 }, mtime: self.started });
        }
        let inode = self.tree.get(ino).ok_or(Errno::ENOENT)?;
        let path = self.tree.path(ino);
        let (kind, size, shown) = match &inode.body {
            Body::Folder(_) => (Kind::Folder, 0, 0o755),
            Body::File(content) => (Kind::File, content.len() as u64, 0o640),
        };
        let hidden = if is_private(&path) { 0o077 } else { 0 };
        let frozen = if quorate { 0 } else { 0o222 };
        Ok(Attributes { ino, kind, size, mode: shown & !hidden & !frozen, mtime: inode.mtime })
    }

    /// What the nodes' daemons report; none for other made-up files.
    fn report(&self, name: &str) -> Option<String> {
        let text = |path: &str| match self.tree.resolve(path).and_then(|ino| self.tree.get(ino)).map(|inode| inode.body.clone()) {
            Some(Body::File(content)) => String::from_utf8_lossy(&content).into_owned(),
            _ => String::new(),
        };
        match name {
            ".clusterlog" => Some(reports::cluster_log(&self.hosts)),
            ".rrd" => {
                let config = |(vmid, owner): (&u32, &Owner)| text(&format!("nodes/{}/qemu-server/{vmid}.conf", owner.node));
                let vms = self.vms.iter().map(|vm| (*vm.0, vm.1.node.as_str(), config(vm)));
                Some(reports::statistics(&self.hosts, &text("storage.cfg"), vms))
            }
            _ => None,
        }
    }

    pub(super) fn render(&mut self, node: usize, ino: u64) -> Arc<Vec<u8>> {
        if let Some(text) = dot_name(ino).and_then(|name| self.report(name)) {
            return Arc::new(text.into_bytes());
        }
        let generation = self.nodes[node].counters.generation;
        if let Some((shown, content)) = self.rendered.get(&(node, ino))
            && *shown == generation
        {
            return Arc::clone(content);
        }
        let vms = self.vms.iter().map(|(vmid, owner)| (*vmid, owner));
        let content = Arc::new(dotfiles::render(dot_name(ino).unwrap_or_default(), &self.nodes, node, vms).into_bytes());
        self.rendered.insert((node, ino), (generation, Arc::clone(&content)));
        content
    }

    /// The path of a new name in a folder, which must be free.
    pub(super) fn free_path(&self, parent: u64, name: &str) -> Result<String> {
        self.tree.children(parent).ok_or(Errno::ENOENT)?;
        match self.find(parent, name) {
            Some(_) => Err(Errno::EEXIST),
            None => Ok(self.tree.path_of(parent, name)),
        }
    }

    pub(super) fn removable(&self, parent: u64, name: &str) -> Result<u64> {
        let ino = self.find(parent, name).ok_or(Errno::ENOENT)?;
        if is_special(ino) { Err(Errno::EACCES) } else { Ok(ino) }
    }

    /// A VMID is held once in the whole cluster. `but_at` is the path of the config that is being moved.
    pub(super) fn check_vmid_is_free(&self, path: &str, but_at: Option<&str>) -> Result<()> {
        let Some((vmid, wanted)) = vm_config_owner(path) else { return Ok(()) };
        let moved = but_at.and_then(vm_config_owner).is_some_and(|(moved, _)| moved == vmid);
        match self.vms.get(&vmid) {
            Some(owner) if *owner != wanted && !moved => Err(Errno::EEXIST),
            _ => Ok(()),
        }
    }

    pub(super) fn note_changed(&mut self, path: &str) {
        if let Some((vmid, owner)) = vm_config_owner(path) {
            self.vms.insert(vmid, owner);
        }
        self.nodes.iter_mut().for_each(|node| node.counters.changed(path));
    }

    pub(super) fn note_removed(&mut self, path: &str) {
        if let Some((vmid, _)) = vm_config_owner(path) {
            self.vms.remove(&vmid);
        }
        self.nodes.iter_mut().for_each(|node| node.counters.removed(path));
    }

    pub(super) fn rename(&mut self, parent: u64, name: &str, new_parent: u64, new_name: &str) -> Result<()> {
        let ino = self.removable(parent, name)?;
        let (from, to) = (self.tree.path(ino), self.tree.path_of(new_parent, new_name));
        if from == to {
            return Ok(());
        }
        if self.is_lock(ino) {
            return Err(Errno::EACCES);
        }
        self.check_vmid_is_free(&to, Some(&from))?;
        if let Some(taken) = self.find(new_parent, new_name) {
            self.make_way(ino, taken)?;
        }
        let below: Vec<String> = self.tree.walk(ino).into_iter().filter(|(_, content)| content.is_some()).map(|(path, _)| path).collect();
        self.tree.rename(ino, new_parent, new_name);
        let same_guest =
            vm_config_owner(&from).map(|(vmid, _)| vmid).is_some_and(|vmid| vm_config_owner(&to).is_some_and(|(new, _)| new == vmid));
        if !same_guest {
            self.note_removed(&from);
        }
        self.note_changed(&to);
        for path in below {
            self.note_removed(&path);
            self.note_changed(&path.replacen(&from, &to, 1));
        }
        Ok(())
    }

    /// Removes what a rename replaces, without a count of its own: so recorded.
    fn make_way(&mut self, ino: u64, taken: u64) -> Result<()> {
        if is_special(taken) {
            return Err(Errno::EACCES);
        }
        match (self.tree.children(ino).is_some(), self.tree.children(taken).map(BTreeMap::len)) {
            (false, Some(_)) => return Err(Errno::EISDIR),
            (true, None) => return Err(Errno::ENOTDIR),
            (true, Some(1..)) => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.tree.remove(taken);
        Ok(())
    }

    /// Puts a file in place as a renamed temporary one does.
    pub(super) fn replace(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let (folder, name) = split(path);
        self.check_vmid_is_free(path, None)?;
        let parent = self.tree.make_folders(folder).ok_or(Errno::ENOTDIR)?;
        if let Some(taken) = self.find(parent, name) {
            if is_special(taken) || self.tree.children(taken).is_some() {
                return Err(Errno::EISDIR);
            }
            self.tree.remove(taken);
        }
        self.tree.insert(parent, name, Body::File(Arc::new(content.to_vec())));
        let path = self.tree.path_of(parent, name);
        self.note_changed(&path);
        Ok(())
    }
}

fn is_private(path: &str) -> bool {
    let mut parts = path.split('/');
    match parts.next() {
        Some("priv") => true,
        Some("nodes") => parts.nth(1) == Some("priv"),
        _ => false,
    }
}

pub(super) fn split(path: &str) -> (&str, &str) {
    path.trim_matches('/').rsplit_once('/').unwrap_or(("", path.trim_matches('/')))
}

fn special(ino: u64, first: u64, names: &[&'static str]) -> Option<&'static str> {
    names.get(usize::try_from(ino.checked_sub(first)?).ok()?).copied()
}

pub(super) fn dot_name(ino: u64) -> Option<&'static str> {
    special(ino, FIRST_DOT, &DOT_FILES)
}

pub(super) fn link_name(ino: u64) -> Option<&'static str> {
    special(ino, FIRST_LINK, &LINKS)
}

pub(super) fn is_special(ino: u64) -> bool {
    dot_name(ino).is_some() || link_name(ino).is_some()
}
