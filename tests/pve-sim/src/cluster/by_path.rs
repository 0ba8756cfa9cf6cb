//! Access by path that asks nobody for quorum: the hand of the cluster itself, or of another node.

use std::sync::Arc;

use nix::errno::Errno;

use super::{
    Store,
    inner::split,
    store::{MAX_FILE, Result},
    tree::Body,
};

impl Store {
    /// The content of a file.
    pub fn read_path(&self, path: &str) -> Result<Arc<Vec<u8>>> {
        let ino = self.lock().tree.resolve(path).ok_or(Errno::ENOENT)?;
        self.read(0, ino)
    }

    /// Replaces a file in one step, as PVE does: a temporary file, renamed. Its folder is made if missing.
    pub fn replace(&self, path: &str, content: &[u8]) -> Result<()> {
        if content.len() > MAX_FILE {
            return Err(Errno::EFBIG);
        }
        self.change(None, |inner| inner.replace(path, content))
    }

    /// Replaces many files in one go.
    pub fn replace_all(&self, files: impl Iterator<Item = (String, String)>) -> Result<()> {
        self.change(None, |inner| files.into_iter().try_for_each(|(path, content)| inner.replace(&path, content.as_bytes())))
    }

    /// Removes a file, or an empty folder.
    pub fn remove_path(&self, path: &str) -> Result<()> {
        let (folder, name) = split(path);
        let parent = self.lock().tree.resolve(folder).ok_or(Errno::ENOENT)?;
        match self.unlink(None, parent, name) {
            Err(Errno::EISDIR) => self.rmdir(None, parent, name),
            done => done,
        }
    }

    /// Renames by path.
    pub fn rename_path(&self, from: &str, to: &str) -> Result<()> {
        let ((folder, name), (new_folder, new_name)) = (split(from), split(to));
        self.change(None, |inner| {
            let parent = inner.tree.resolve(folder).ok_or(Errno::ENOENT)?;
            let new_parent = inner.tree.make_folders(new_folder).ok_or(Errno::ENOTDIR)?;
            inner.rename(parent, name, new_parent, new_name)
        })
    }

    /// Makes a folder unless it is there.
    pub fn ensure_folder(&self, path: &str) {
        self.lock().tree.make_folders(path);
    }

    /// Makes a file unless it is there; counted as nothing, as what a starting `pmxcfs` loads.
    pub fn ensure_file(&self, path: &str, content: &[u8]) {
        let (folder, name) = split(path);
        let mut inner = self.lock();
        let Some(parent) = inner.tree.make_folders(folder) else { return };
        if inner.tree.child(parent, name).is_none() {
            inner.tree.insert(parent, name, Body::File(Arc::new(content.to_vec())));
        }
    }

    /// Every file and folder below a path, with the contents of files.
    pub fn walk(&self, path: &str) -> Vec<(String, Option<Arc<Vec<u8>>>)> {
        let inner = self.lock();
        inner.tree.resolve(path).map(|ino| inner.tree.walk(ino)).unwrap_or_default()
    }
}
