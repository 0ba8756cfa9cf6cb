//! What the agent writes for its network changes: its own file below `interfaces.d/`, and the checkpoint. All calls block.
//!
//! A change must be undone on a full disk too. So what undoing writes has its space beforehand: the old own file stays on the disk, and the
//! checkpoint is written into a spare file of the same size, which then changes places with it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with};

use super::{NetPaths, OWN_FILE, failed};
use crate::error::Error;

/// A checkpoint may grow by so much: a reason, and who undid it.
const SLACK: u64 = 8 << 10;
/// Names that begin with a dot are not taken in by `source /etc/network/interfaces.d/*`.
const NEW: &str = ".pvelet.new";
const OLD: &str = ".pvelet.old";

fn at(path: &Path, error: &io::Error) -> Error {
    failed(format!("{}: {error}", path.display()))
}

/// Makes renames in a folder durable.
fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| at(folder, &e))
}

fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(at(path, &e)),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at(path, &e)),
    }
}

/// Writes a whole file, fsynced; a part of one is not left.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| {
        let _ = fs::remove_file(path);
        at(path, &e)
    })
}

fn interfaces_d(paths: &NetPaths) -> PathBuf {
    paths.etc_network.join("interfaces.d")
}

/// The own file's text; bytes that are no UTF-8 are replaced.
pub(super) fn read_own(paths: &NetPaths) -> Result<Option<String>, Error> {
    Ok(read(&interfaces_d(paths).join(OWN_FILE))?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Replaces the own file; what it replaces stays beside it.
pub(super) fn write_own(paths: &NetPaths, text: Option<&str>) -> Result<(), Error> {
    let folder = interfaces_d(paths);
    if !folder.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder).map_err(|e| at(&folder, &e))?;
    }
    let (own, new, old) = (folder.join(OWN_FILE), folder.join(NEW), folder.join(OLD));
    let kept = match text {
        Some(text) => read(&old)?.is_some_and(|kept| kept == text.as_bytes()),
        None => false,
    };
    match text {
        // The very text that was replaced before.
        Some(_) if kept => fs::rename(&old, &own).map_err(|e| at(&own, &e))?,
        Some(text) => {
            write(&new, text.as_bytes(), 0o644)?;
            remove(&old)?;
            match fs::hard_link(&own, &old) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                // A file system without hard links: undoing will need space, as everywhere.
                Err(error) => tracing::debug!(%error, "the old file is not kept"),
            }
            fs::rename(&new, &own).map_err(|e| at(&own, &e))?;
        }
        None if fs::symlink_metadata(&own).is_ok() => {
            // Where both are one file, as after a crash between link and rename, renaming does nothing.
            remove(&old)?;
            fs::rename(&own, &old).map_err(|e| at(&own, &e))?;
        }
        None => {}
    }
    sync_folder(&folder)
}

/// Removes what replacing the own file left beside it.
pub(super) fn forget_old(paths: &NetPaths) -> Result<(), Error> {
    let folder = interfaces_d(paths);
    let left = [remove(&folder.join(OLD))?, remove(&folder.join(NEW))?];
    if left.contains(&true) { sync_folder(&folder) } else { Ok(()) }
}

fn checkpoint(paths: &NetPaths) -> PathBuf {
    paths.state.join("checkpoint.json")
}

/// The checkpoint as it was last written.
pub(super) fn read_checkpoint(paths: &NetPaths) -> Result<Option<Vec<u8>>, Error> {
    read(&checkpoint(paths))
}

fn state_folder(paths: &NetPaths) -> Result<(), Error> {
    if paths.state.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&paths.state).map_err(|e| at(&paths.state, &e))
}

/// Opens the spare file with space for `len` bytes.
fn spare(path: &Path, len: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.len() >= len {
        return Ok(file);
    }
    match fallocate(&file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(file),
        // A file system without reservations: what is written is there, as far as any can promise it.
        Err(rustix::io::Errno::OPNOTSUPP) => {
            file.write_all(&vec![b' '; usize::try_from(len).unwrap_or_default()])?;
            io::Seek::rewind(&mut file)?;
            Ok(file)
        }
        Err(e) => Err(e.into()),
    }
}

/// Writes the checkpoint.
pub(super) fn write_checkpoint(paths: &NetPaths, bytes: &[u8]) -> Result<(), Error> {
    state_folder(paths)?;
    let (current, other) = (checkpoint(paths), paths.state.join("checkpoint.spare"));
    let size = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
    let len = bytes.len() as u64;
    // Room for the states to come, where there is not enough already.
    let room = if len + 1 > size(&other) { len + SLACK } else { size(&other) };
    let fill = || {
        let mut file = spare(&other, room)?;
        file.write_all(bytes)?;
        // The rest is white space, which JSON lets be.
        let rest = usize::try_from(file.metadata()?.len().saturating_sub(len)).unwrap_or_default();
        file.write_all(&vec![b'\n'; rest])?;
        file.sync_all()
    };
    fill().map_err(|e| at(&other, &e))?;
    let replaced = if current.exists() { exchange(&other, &current) } else { fs::rename(&other, &current) };
    replaced.map_err(|e| at(&current, &e))?;
    sync_folder(&paths.state)?;
    // The next one needs as much.
    if size(&other) < size(&current) {
        spare(&other, size(&current)).and_then(|f| f.sync_all()).map_err(|e| at(&other, &e))?;
        return sync_folder(&paths.state);
    }
    Ok(())
}

/// Lets two files change places; where the file system cannot, the first replaces the second.
fn exchange(first: &Path, second: &Path) -> io::Result<()> {
    match renameat_with(CWD, first, CWD, second, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => fs::rename(first, second),
        other => Ok(other?),
    }
}

/// Removes the checkpoint.
pub(super) fn remove_checkpoint(paths: &NetPaths) -> Result<(), Error> {
    if remove(&checkpoint(paths))? { sync_folder(&paths.state) } else { Ok(()) }
}

/// Keeps a file for people.
pub(super) fn keep(paths: &NetPaths, name: &str, bytes: &[u8]) -> Result<(), Error> {
    state_folder(paths)?;
    write(&paths.state.join(name), bytes, 0o600)?;
    sync_folder(&paths.state)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(in crate::host::net) fn paths() -> NetPaths {
        let none = PathBuf::from("/nonexistent");
        NetPaths {
            etc_network: none.clone(),
            corosync: none.clone(),
            etc_pve: none.clone(),
            state: none.clone(),
            proc: none.clone(),
            sysfs: none,
        }
    }

    fn in_folder(dir: &tempfile::TempDir) -> NetPaths {
        NetPaths { etc_network: dir.path().join("network"), state: dir.path().join("state"), ..paths() }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_old_own_file_comes_back_by_a_rename_alone() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let paths = in_folder(&dir);
        let folder = interfaces_d(&paths);
        let own = folder.join(OWN_FILE);
        write_own(&paths, Some("one")).unwrap();
        let inode = fs::metadata(&own).unwrap().ino();
        write_own(&paths, Some("two")).unwrap();
        assert_eq!(fs::read_to_string(&own).unwrap(), "two");
        write_own(&paths, Some("one")).unwrap();
        assert_eq!((fs::read_to_string(&own).unwrap().as_str(), fs::metadata(&own).unwrap().ino()), ("one", inode));
        // Removing and bringing back is the same.
        write_own(&paths, None).unwrap();
        assert!(!own.exists());
        write_own(&paths, None).unwrap();
        write_own(&paths, Some("one")).unwrap();
        assert_eq!(fs::metadata(&own).unwrap().ino(), inode);
        write_own(&paths, Some("two")).unwrap();
        forget_old(&paths).unwrap();
        forget_old(&paths).unwrap();
        assert_eq!(names(&folder), [OWN_FILE]);
    }

    #[test]
    fn the_own_file_goes_though_a_crash_left_another_name_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let paths = in_folder(&dir);
        let folder = interfaces_d(&paths);
        write_own(&paths, Some("one")).unwrap();
        fs::hard_link(folder.join(OWN_FILE), folder.join(OLD)).unwrap();
        write_own(&paths, None).unwrap();
        assert_eq!(names(&folder), [OLD]);
    }

    #[test]
    fn later_checkpoints_need_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let paths = in_folder(&dir);
        assert_eq!(read_checkpoint(&paths).unwrap(), None);
        write_checkpoint(&paths, br#"{"state":"prepared"}"#).unwrap();
        let sizes = || names(&paths.state).iter().map(|n| fs::metadata(paths.state.join(n)).unwrap().len()).collect::<Vec<_>>();
        let before = sizes();
        assert_eq!(before.len(), 2);
        write_checkpoint(&paths, format!(r#"{{"state":"rolling_back","detail":"{}"}}"#, "x".repeat(4000)).as_bytes()).unwrap();
        write_checkpoint(&paths, br#"{"state":"rolled_back"}"#).unwrap();
        assert_eq!(sizes(), before);
        let read: serde_json::Value = serde_json::from_slice(&read_checkpoint(&paths).unwrap().unwrap()).unwrap();
        assert_eq!(read["state"], "rolled_back");
        // A larger one is written all the same.
        write_checkpoint(&paths, format!(r#"{{"state":"prepared","detail":"{}"}}"#, "y".repeat(40_000)).as_bytes()).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&read_checkpoint(&paths).unwrap().unwrap()).unwrap();
        assert_eq!(read["state"], "prepared");
        remove_checkpoint(&paths).unwrap();
        remove_checkpoint(&paths).unwrap();
        assert_eq!(read_checkpoint(&paths).unwrap(), None);
        keep(&paths, "edited-1", b"text").unwrap();
    }
}
