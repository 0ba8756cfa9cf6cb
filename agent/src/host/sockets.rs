//! Where the paths of sockets lead.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::blocking::Blocking;
use crate::error::{Error, Trouble};

/// Longer, and the file system hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// As many links as the kernel follows.
const MOST_LINKS: u32 = 40;

/// Follows links on this host.
#[derive(Debug, Default)]
pub struct SocketPaths(Blocking);

impl SocketPaths {
    /// The path without links, whether anything is there (a daemon that is stopped has no socket) or not.
    ///
    /// # Errors
    /// `Look`: the links cannot be followed.
    pub async fn resolve(&self, path: &Path) -> Result<PathBuf, Error> {
        let asked = path.to_owned();
        let work = move || {
            let fail = |e: io::Error| Error::Look { trouble: Trouble::Failed, message: format!("{}: {e}", asked.display()) };
            resolve(&asked, MOST_LINKS).map_err(fail)
        };
        self.0.run(&path.display().to_string(), PATIENCE, work).await
    }
}

fn resolve(path: &Path, links: u32) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path.to_owned()) };
    if links == 0 {
        return Err(io::Error::other("too many levels of symbolic links"));
    }
    let parent = resolve(parent, links - 1)?;
    match fs::read_link(parent.join(name)) {
        Ok(target) => resolve(&parent.join(target), links - 1),
        Err(_) => Ok(parent.join(name)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn links_are_followed_also_to_what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (real, link, folder) = (root.join("containerd/containerd.sock"), root.join("containerd.sock"), root.join("other"));
        symlink("containerd/containerd.sock", &link).unwrap();
        symlink("containerd", &folder).unwrap();
        let paths = SocketPaths::default();
        for stage in ["nothing there", "folder", "socket"] {
            match stage {
                "folder" => fs::create_dir(root.join("containerd")).unwrap(),
                "socket" => fs::write(&real, "").unwrap(),
                _ => {}
            }
            for path in [&real, &link, &folder.join("containerd.sock")] {
                assert_eq!(paths.resolve(path).await.unwrap(), real, "{stage}: {}", path.display());
            }
        }
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        assert!(paths.resolve(&root.join("a")).await.is_err());
    }
}
