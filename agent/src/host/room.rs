//! How much room a file system has.

use std::{path::Path, time::Duration};

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::blocking::Blocking;
use crate::error::{Error, Trouble};

/// Longer, and the file system hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// A file system as it is mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes that it holds.
    pub total_bytes: u64,
    /// Bytes that a program of root may still write.
    pub free_bytes: u64,
    /// Files that it may hold; `None`: as many as there is room for.
    pub total_inodes: Option<u64>,
    /// Files that may still be made; `None`: as many as there is room for.
    pub free_inodes: Option<u64>,
    /// Whether nothing can be written.
    pub read_only: bool,
}

/// The file system that holds `path`; `place`: where it may hang.
///
/// # Errors
/// `Look`.
pub async fn room(place: &Blocking, path: &Path) -> Result<Room, Error> {
    let (path, name) = (path.to_owned(), path.display().to_string());
    let shown = name.clone();
    let work = move || {
        let found = statvfs(&path).map_err(|e| Error::Look { trouble: Trouble::Failed, message: format!("{name}: {e}") })?;
        Ok(Room {
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
            free_bytes: found.f_bfree.saturating_mul(found.f_frsize),
            // btrfs and others have none.
            total_inodes: (found.f_files > 0).then_some(found.f_files),
            free_inodes: (found.f_files > 0).then_some(found.f_ffree),
            read_only: found.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    };
    place.run(&shown, PATIENCE, work).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_folder_has_room_and_what_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let found = room(&Blocking::new(), dir.path()).await.unwrap();
        assert!(found.free_bytes > 0 && !found.read_only, "{found:?}");
        let missing = room(&Blocking::new(), &dir.path().join("none")).await.unwrap_err();
        assert!(missing.to_string().contains("none: No such file"), "{missing}");
    }
}
