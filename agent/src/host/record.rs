//! A small file of the agent's own state, replaced as a whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
};

use crate::error::{Error, Trouble};

/// More is nothing that the agent wrote.
const LARGEST: u64 = 1 << 20;

/// What is kept over restarts of the agent. Errors of all: `Look`.
#[tonic::async_trait]
pub trait Record: Send + Sync + 'static {
    /// What was saved last; `None`: nothing ever.
    async fn load(&self) -> Result<Option<Vec<u8>>, Error>;

    /// Replaces it: after an error or a crash there is the former content or the new one, never a part.
    async fn save(&self, bytes: &[u8]) -> Result<(), Error>;
}

/// A record in a file.
#[derive(Debug, Clone)]
pub struct FileRecord {
    path: PathBuf,
}

impl FileRecord {
    /// A record at `path`; its folder is made when it is missing.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(PathBuf) -> io::Result<T> + Send + 'static) -> Result<T, Error> {
        let path = self.path.clone();
        let ended = tokio::task::spawn_blocking(move || work(path)).await.map_err(io::Error::other).flatten();
        ended.map_err(|e| {
            let trouble = match e.kind() {
                ErrorKind::PermissionDenied => Trouble::Denied,
                ErrorKind::InvalidData => Trouble::Garbled,
                _ => Trouble::Failed,
            };
            Error::Look { trouble, message: format!("{}: {e}", self.path.display()) }
        })
    }
}

#[tonic::async_trait]
impl Record for FileRecord {
    async fn load(&self) -> Result<Option<Vec<u8>>, Error> {
        self.blocking(|path| {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            };
            let mut bytes = Vec::new();
            file.take(LARGEST + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > LARGEST {
                return Err(io::Error::new(ErrorKind::InvalidData, format!("is larger than {LARGEST} bytes")));
            }
            Ok(Some(bytes))
        })
        .await
    }

    async fn save(&self, bytes: &[u8]) -> Result<(), Error> {
        let bytes = bytes.to_vec();
        self.blocking(move |path| {
            let folder = path.parent().map(PathBuf::from).unwrap_or_default();
            if !folder.is_dir() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            }
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".new");
            let new = folder.join(name);
            let write = || {
                let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                fs::rename(&new, &path)
            };
            write().inspect_err(|_| {
                // A part of it may have filled the disk.
                let _ = fs::remove_file(&new);
            })?;
            File::open(&folder)?.sync_all()
        })
        .await
    }
}

/// A record in memory, for tests.
#[cfg(any(test, feature = "fakes"))]
#[derive(Debug, Default)]
pub struct FakeRecord {
    content: std::sync::Mutex<(Option<Vec<u8>>, Option<Error>)>,
}

#[cfg(any(test, feature = "fakes"))]
impl FakeRecord {
    fn lock(&self) -> std::sync::MutexGuard<'_, (Option<Vec<u8>>, Option<Error>)> {
        self.content.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Every call ends with this error; `None`: no longer.
    pub fn fail(&self, error: Option<Error>) {
        self.lock().1 = error;
    }

    /// Puts this into it.
    pub fn put(&self, bytes: &[u8]) {
        self.lock().0 = Some(bytes.to_vec());
    }
}

#[cfg(any(test, feature = "fakes"))]
#[tonic::async_trait]
impl Record for FakeRecord {
    async fn load(&self) -> Result<Option<Vec<u8>>, Error> {
        let content = self.lock();
        content.1.clone().map_or_else(|| Ok(content.0.clone()), Err)
    }

    async fn save(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut content = self.lock();
        if let Some(error) = content.1.clone() {
            return Err(error);
        }
        content.0 = Some(bytes.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn what_was_saved_is_loaded_and_a_failed_save_leaves_the_former() {
        let dir = tempfile::tempdir().unwrap();
        let record = FileRecord::new(dir.path().join("state/repair.json"));
        assert_eq!(record.load().await, Ok(None));
        record.save(b"one").await.unwrap();
        record.save(b"two").await.unwrap();
        assert_eq!(record.load().await.unwrap().unwrap(), b"two");
        // Nothing can be written where a folder has the name of the new file.
        fs::create_dir(dir.path().join("state/repair.json.new")).unwrap();
        assert!(record.save(b"three").await.is_err());
        assert_eq!(record.load().await.unwrap().unwrap(), b"two");
    }

    #[tokio::test]
    async fn what_is_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let record = FileRecord::new(dir.path().join("r"));
        File::create(dir.path().join("r")).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(matches!(record.load().await, Err(Error::Look { trouble: Trouble::Garbled, .. })));
    }
}
