//! Snippets: small files beside the images, which PVE's API can list and not write.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::{
    command::{failed, io_error},
    files::{Files, sync_folder},
};
use crate::error::Error;

/// More is read from no snippet by PVE.
const LARGEST: u64 = 1 << 20;

/// A snippet's path, and that of the file from which it is made.
fn paths(files: &Files, name: &str) -> Result<(PathBuf, PathBuf), Error> {
    let known = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    if name.is_empty() || name.starts_with('.') || name.len() > 200 || !name.bytes().all(known) {
        return Err(failed(&files.id, format!("'{name}' is no name of a snippet")));
    }
    Ok((files.snippets.join(name), files.snippets.join(format!(".{name}.new"))))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

pub(super) async fn write(files: &Files, name: &str, content: Arc<[u8]>) -> Result<(), Error> {
    let (path, new) = paths(files, name)?;
    files
        .with(move |files| {
            let told = |error: io::Error| io_error(&files.id, path.display(), &error);
            // With the mode that PVE gives it when it activates the storage.
            match DirBuilder::new().mode(0o755).create(&files.snippets) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(told(error)),
                _ => {}
            }
            gone_is_fine(fs::remove_file(&new)).map_err(told)?;
            let written = fill(files, &new, &content).and_then(|()| fs::rename(&new, &path).map_err(told));
            written.inspect_err(|_| {
                // Part of a secret may be in it.
                let _ = fs::remove_file(&new);
            })?;
            sync_folder(&files.id, &files.snippets)
        })
        .await
}

fn fill(files: &Files, path: &Path, content: &[u8]) -> Result<(), Error> {
    let told = |error: io::Error| io_error(&files.id, path.display(), &error);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(told)?;
    // Asked before anything is in it: some network file systems have one mode for all their files.
    let mode = file.metadata().map_err(told)?.mode();
    if mode & 0o077 != 0 {
        let why = format!("its files are readable by others than root (mode {:o})", mode & 0o7777);
        return Err(Error::UserDataStorage { storage: files.id.clone(), why });
    }
    file.write_all(content).and_then(|()| file.sync_all()).map_err(told)
}

pub(super) async fn sha256(files: &Files, name: &str) -> Result<Option<String>, Error> {
    let (path, _) = paths(files, name)?;
    files
        .with(move |files| {
            let told = |error: io::Error| io_error(&files.id, path.display(), &error);
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_file() && found.len() <= LARGEST => {}
                Ok(_) => return Ok(Some(String::new())),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(told(error)),
            }
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
            let opened = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(&path);
            let mut bytes = Vec::new();
            opened.and_then(|file: File| file.take(LARGEST).read_to_end(&mut bytes)).map_err(told)?;
            Ok(Some(hex::encode(Sha256::digest(&bytes))))
        })
        .await
}

pub(super) async fn remove(files: &Files, name: &str) -> Result<(), Error> {
    let (path, new) = paths(files, name)?;
    files
        .with(move |files| {
            for path in [&path, &new] {
                gone_is_fine(fs::remove_file(path)).map_err(|error| io_error(&files.id, path.display(), &error))?;
            }
            sync_folder(&files.id, &files.snippets)
        })
        .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::storage::{LocalStore, StorageConfig, VolumeStore};

    fn store(options: &[(&str, &str)]) -> (tempfile::TempDir, LocalStore, StorageConfig) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("var/lib/vz")).unwrap();
        let mut storage = StorageConfig { id: "local".into(), kind: "dir".into(), ..StorageConfig::default() };
        storage.options.insert("path".into(), "/var/lib/vz".into());
        storage.options.extend(options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let store = LocalStore::new(dir.path().to_owned(), "/proc".into());
        (dir, store, storage)
    }

    fn bytes(text: &str) -> Arc<[u8]> {
        text.as_bytes().into()
    }

    #[tokio::test]
    async fn a_snippet_is_root_s_alone_replaced_as_a_whole_and_removed_without_a_trace() {
        for (options, folder) in [(&[][..], "snippets"), (&[("content-dirs", "iso=a,snippets=cfg/s")][..], "cfg/s")] {
            let (dir, store, storage) = store(options);
            let folder = dir.path().join("var/lib/vz").join(folder);
            fs::create_dir_all(folder.parent().unwrap()).unwrap();
            assert_eq!(store.snippet_sha256(&storage, "a.yaml").await, Ok(None));
            store.remove_snippet(&storage, "a.yaml").await.unwrap();
            for text in ["one", "two, which is longer"] {
                store.write_snippet(&storage, "a.yaml", bytes(text)).await.unwrap();
                let path = folder.join("a.yaml");
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
                let sha256 = store.snippet_sha256(&storage, "a.yaml").await.unwrap().unwrap();
                assert_eq!(sha256, hex::encode(Sha256::digest(text)));
            }
            // What a crash left of another attempt.
            fs::write(folder.join(".a.yaml.new"), "tw").unwrap();
            store.remove_snippet(&storage, "a.yaml").await.unwrap();
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        }
    }

    #[tokio::test]
    async fn nothing_is_written_through_a_link_or_read_through_one() {
        let (dir, store, storage) = store(&[]);
        let folder = dir.path().join("var/lib/vz/snippets");
        fs::create_dir(&folder).unwrap();
        let outside = dir.path().join("shadow");
        fs::write(&outside, "root").unwrap();
        for name in ["a.yaml", ".a.yaml.new"] {
            symlink(&outside, folder.join(name)).unwrap();
        }
        assert_eq!(store.snippet_sha256(&storage, "a.yaml").await, Ok(Some(String::new())));
        store.write_snippet(&storage, "a.yaml", bytes("new")).await.unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "root");
        assert!(fs::symlink_metadata(folder.join("a.yaml")).unwrap().is_file());
        for name in ["../a.yaml", ".a", "", "a/b"] {
            assert!(matches!(store.write_snippet(&storage, name, bytes("x")).await, Err(Error::StorageFailed { .. })), "{name}");
        }
    }

    #[tokio::test]
    async fn a_failed_write_leaves_the_former_snippet_and_nothing_else() {
        let (dir, store, storage) = store(&[]);
        let folder = dir.path().join("var/lib/vz/snippets");
        // Nothing can be renamed onto a folder.
        fs::create_dir_all(folder.join("a.yaml")).unwrap();
        assert!(store.write_snippet(&storage, "a.yaml", bytes("secret")).await.is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        let offline = StorageConfig { options: [("path".to_owned(), "/nowhere".to_owned())].into(), ..storage.clone() };
        assert!(matches!(store.write_snippet(&offline, "a.yaml", bytes("x")).await, Err(Error::StorageOffline { .. })));
        let blocks = StorageConfig { kind: "lvmthin".into(), ..storage };
        assert!(matches!(store.write_snippet(&blocks, "a.yaml", bytes("x")).await, Err(Error::UserDataStorage { .. })));
    }
}
