//! The tree of files and folders, by inode number. It knows no rules: those are the store's.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Instant, SystemTime},
};

pub(super) const ROOT: u64 = 1;
/// Numbers below are for the files that are made up when read.
const FIRST: u64 = 1000;

#[derive(Clone, Debug)]
pub(super) enum Body {
    Folder(BTreeMap<String, u64>),
    File(Arc<Vec<u8>>),
}

#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) parent: u64,
    pub(super) name: String,
    pub(super) mtime: SystemTime,
    /// When it was made or last renewed, for locks; none: so long ago that a lock has expired.
    pub(super) renewed: Option<Instant>,
    /// The node that made it or renewed it last, for locks.
    pub(super) writer: Option<usize>,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) struct Tree {
    inodes: HashMap<u64, Inode>,
    next: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        let body = Body::Folder(BTreeMap::new());
        let (now, renewed) = (SystemTime::now(), Some(Instant::now()));
        let root = Inode { parent: ROOT, name: String::new(), mtime: now, renewed, writer: None, body };
        Self { inodes: HashMap::from([(ROOT, root)]), next: FIRST }
    }

    pub(super) fn get(&self, ino: u64) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    pub(super) fn get_mut(&mut self, ino: u64) -> Option<&mut Inode> {
        self.inodes.get_mut(&ino)
    }

    pub(super) fn children(&self, ino: u64) -> Option<&BTreeMap<String, u64>> {
        match &self.inodes.get(&ino)?.body {
            Body::Folder(children) => Some(children),
            Body::File(_) => None,
        }
    }

    pub(super) fn child(&self, parent: u64, name: &str) -> Option<u64> {
        self.children(parent)?.get(name).copied()
    }

    /// The path below the root, without a leading slash; empty for the root.
    pub(super) fn path(&self, mut ino: u64) -> String {
        let mut parts = Vec::new();
        while ino != ROOT {
            let Some(inode) = self.inodes.get(&ino) else { break };
            parts.push(inode.name.as_str());
            ino = inode.parent;
        }
        parts.reverse();
        parts.join("/")
    }

    /// The path that a name in a folder has or would have.
    pub(super) fn path_of(&self, parent: u64, name: &str) -> String {
        if parent == ROOT { name.to_owned() } else { format!("{}/{name}", self.path(parent)) }
    }

    pub(super) fn resolve(&self, path: &str) -> Option<u64> {
        path.split('/').filter(|part| !part.is_empty()).try_fold(ROOT, |ino, part| self.child(ino, part))
    }

    /// Puts something new into a folder; the name must be free.
    pub(super) fn insert(&mut self, parent: u64, name: &str, body: Body) -> u64 {
        let ino = self.next;
        self.next += 1;
        let now = SystemTime::now();
        let inode = Inode { parent, name: name.to_owned(), mtime: now, renewed: Some(Instant::now()), writer: None, body };
        self.inodes.insert(ino, inode);
        self.link(parent, name, ino, now);
        ino
    }

    pub(super) fn remove(&mut self, ino: u64) {
        if let Some(inode) = self.inodes.remove(&ino) {
            self.unlink(inode.parent, &inode.name);
        }
    }

    pub(super) fn rename(&mut self, ino: u64, parent: u64, name: &str) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        let (old_parent, old_name) = (inode.parent, std::mem::replace(&mut inode.name, name.to_owned()));
        inode.parent = parent;
        self.unlink(old_parent, &old_name);
        self.link(parent, name, ino, SystemTime::now());
    }

    fn link(&mut self, parent: u64, name: &str, ino: u64, now: SystemTime) {
        if let Some(Inode { body: Body::Folder(children), mtime, .. }) = self.inodes.get_mut(&parent) {
            children.insert(name.to_owned(), ino);
            *mtime = now;
        }
    }

    fn unlink(&mut self, parent: u64, name: &str) {
        if let Some(Inode { body: Body::Folder(children), mtime, .. }) = self.inodes.get_mut(&parent) {
            children.remove(name);
            *mtime = SystemTime::now();
        }
    }

    /// Everything below a folder, the folder itself left out: path, and content if it is a file.
    pub(super) fn walk(&self, from: u64) -> Vec<(String, Option<Arc<Vec<u8>>>)> {
        let mut found = Vec::new();
        let mut waiting = vec![(from, self.path(from))];
        while let Some((folder, path)) = waiting.pop() {
            for (name, ino) in self.children(folder).into_iter().flatten() {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                match self.inodes.get(ino).map(|inode| &inode.body) {
                    Some(Body::File(content)) => found.push((path, Some(Arc::clone(content)))),
                    Some(Body::Folder(_)) => {
                        found.push((path.clone(), None));
                        waiting.push((*ino, path));
                    }
                    None => {}
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// The folder of this path, made with its parents where missing; none if a file is in the way.
    pub(super) fn make_folders(&mut self, path: &str) -> Option<u64> {
        let mut at = ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = match self.child(at, part) {
                Some(ino) => ino,
                None => self.insert(at, part, Body::Folder(BTreeMap::new())),
            };
            self.children(at)?;
        }
        Some(at)
    }
}
