//! containerd's files, and its program.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::fs::{OFlags, RenameFlags};

use super::{ConfigText, RuntimeFiles, dump, leftovers, trial::Trial, trouble};
use crate::{
    error::{Error, Trouble},
    host::blocking::Blocking,
};

/// The largest file of a configuration. Those of containerd have a few KiB.
const LARGEST: u64 = 1 << 20;

/// How many files a configuration may consist of.
const MOST_FILES: usize = 256;

/// How many names of a folder are told.
const MOST_NAMES: usize = 4096;

/// Longer, and the file system hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is written is flushed, on a disk that may be busy.
const FLUSHED: Duration = Duration::from_secs(60);

/// containerd's configuration and its program on this host.
#[derive(Debug)]
pub struct ContainerdFiles {
    config: PathBuf,
    program: PathBuf,
    place: Blocking,
}

impl ContainerdFiles {
    /// `config`: the main file; `program`: containerd.
    pub fn new(config: impl Into<PathBuf>, program: impl Into<PathBuf>) -> Self {
        Self { config: config.into(), program: program.into(), place: Blocking::new() }
    }

    async fn run<T: Send + 'static>(&self, path: &Path, work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        self.place.run(&path.display().to_string(), PATIENCE, work).await
    }

    async fn flushed<T: Send + 'static>(&self, path: &Path, work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        self.place.run(&path.display().to_string(), FLUSHED, work).await
    }
}

#[tonic::async_trait]
impl RuntimeFiles for ContainerdFiles {
    async fn config(&self) -> Result<Vec<ConfigText>, Error> {
        let main = self.config.clone();
        self.run(&self.config, move || read_all(&main)).await
    }

    async fn text(&self, path: &Path) -> Result<Option<String>, Error> {
        let file = path.to_owned();
        self.run(path, move || Ok(read(&file)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))).await
    }

    async fn list(&self, folder: &Path) -> Result<Option<Vec<String>>, Error> {
        let path = folder.to_owned();
        self.run(folder, move || names(&path)).await
    }

    async fn dump(&self, text: &str, patience: Duration) -> Result<String, Error> {
        let (main, kept) = (self.config.clone(), text.to_owned());
        let beside = move || {
            let copy = Copy::beside(&main, kept.as_bytes())?;
            // A file that is imported and is not there keeps the daemon from starting, but `config dump` of 2.x says nothing.
            read_all(&copy.0).map(|_| copy)
        };
        let copy = self.run(&self.config, beside).await?;
        let tried = [dump::Tried { copy: &copy.0, file: &self.config, text }];
        dump::dump(&self.program, &tried, patience).await
    }

    async fn try_edits(&self, edits: &[ConfigText], patience: Duration) -> Result<(), Error> {
        let (main, edits) = (self.config.clone(), edits.to_vec());
        let trial = self.run(&self.config, move || Trial::new(&main, edits)).await?;
        dump::dump(&self.program, &trial.tried(), patience).await.map(drop)
    }

    async fn replace(&self, path: &Path, was: &str, text: &str) -> Result<(), Error> {
        let (file, was, text) = (path.to_owned(), was.to_owned(), text.to_owned());
        self.flushed(path, move || replace(&file, &was, &text)).await
    }

    async fn back_up(&self, path: &Path) -> Result<PathBuf, Error> {
        let (main, file) = (self.config.clone(), path.to_owned());
        self.flushed(path, move || back_up(&main, &file)).await
    }

    async fn tidy(&self) -> Result<(), Error> {
        let main = self.config.clone();
        self.run(&self.config, move || leftovers::tidy(&main)).await
    }
}

pub(super) fn failed(path: &Path, error: &io::Error) -> Error {
    let (trouble, message) = trouble::of_io(error);
    Error::Look { trouble, message: format!("{}: {message}", path.display()) }
}

/// Reads a file; `None`: there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let fail = |e| failed(path, &e);
    // A FIFO would else hang here.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(fail(e)),
    };
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(Error::Look { trouble: Trouble::Garbled, message: format!("{}: is no regular file", path.display()) });
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::Look { trouble: Trouble::Garbled, message: format!("{}: is larger than 1 MiB", path.display()) });
    }
    Ok(Some(bytes))
}

/// The main file and what it imports: breadth first, each once, as containerd reads and merges them.
pub(super) fn read_all(main: &Path) -> Result<Vec<ConfigText>, Error> {
    let (mut files, mut seen) = (Vec::new(), BTreeSet::new());
    let mut pending = VecDeque::from([(main.to_owned(), None::<PathBuf>)]);
    while let Some((path, parent)) = pending.pop_front() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let Some(bytes) = read(&path)? else {
            // Without its main file containerd has its defaults; without a file that it imports it does not start.
            let Some(parent) = parent else { return Ok(Vec::new()) };
            let message = format!("{}: does not exist, but {} imports it", path.display(), parent.display());
            return Err(Error::Look { trouble: Trouble::Missing, message });
        };
        if files.len() == MOST_FILES {
            let message = format!("{}: imports more than {MOST_FILES} files", main.display());
            return Err(Error::Look { trouble: Trouble::Garbled, message });
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        pending.extend(imports(&path, &text)?.into_iter().map(|import| (import, Some(path.clone()))));
        files.push(ConfigText { path, text });
    }
    Ok(files)
}

/// What a file imports. One that is no TOML imports nothing: that is told by whoever parses it.
fn imports(file: &Path, text: &str) -> Result<Vec<PathBuf>, Error> {
    let table = text.parse::<toml::Table>().unwrap_or_default();
    let list = table.get("imports").and_then(toml::Value::as_array).cloned().unwrap_or_default();
    let mut found = Vec::new();
    for entry in list.iter().filter_map(toml::Value::as_str) {
        found.extend(import(file, entry)?);
    }
    Ok(found)
}

/// The files that one entry of `imports` means.
pub(super) fn import(file: &Path, entry: &str) -> Result<Vec<PathBuf>, Error> {
    // A relative one is meant from the file on; 1.6 means those with a star from its working folder on, which is / as a unit.
    let path = file.parent().unwrap_or(Path::new("/")).join(entry);
    if !entry.contains('*') {
        return Ok(vec![path.components().fold(PathBuf::new(), clean)]);
    }
    let matches = glob::glob(&path.to_string_lossy()).map_err(|e| Error::Look {
        trouble: Trouble::Garbled,
        message: format!("{}: imports \"{entry}\", which is no pattern: {e}", file.display()),
    })?;
    Ok(matches.filter_map(Result::ok).take(MOST_FILES + 1).collect())
}

/// A path without `..`, as containerd writes it.
fn clean(mut path: PathBuf, part: std::path::Component<'_>) -> PathBuf {
    match part {
        std::path::Component::ParentDir => drop(path.pop()),
        std::path::Component::CurDir => {}
        other => path.push(other),
    }
    path
}

fn names(folder: &Path) -> Result<Option<Vec<String>>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(folder, &e)),
    };
    let mut names = Vec::new();
    for entry in entries.take(MOST_NAMES) {
        names.push(entry.map_err(|e| failed(folder, &e))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(Some(names))
}

/// The number of the next copy that this process makes.
pub(super) static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A file of the agent's own beside another one; it goes when this is dropped, unless it was renamed. See [`leftovers`].
pub(super) struct Copy(pub(super) PathBuf);

impl Copy {
    /// How the next one beside a file is called.
    pub(super) fn name(path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Not ending like the file itself, so that no import of `*.toml` takes it.
        path.with_file_name(format!(".{name}.pvelet-new-{}-{number}", std::process::id()))
    }

    fn beside(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        Self::make(Self::name(path), bytes)
    }

    /// Only its owner can read it.
    pub(super) fn make(copy: PathBuf, bytes: &[u8]) -> Result<Self, Error> {
        let fail = |e| failed(&copy, &e);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&copy).map_err(fail)?;
        let this = Self(copy.clone());
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
        Ok(this)
    }

    /// Gives it the owner and the mode of another file.
    fn like(&self, other: &fs::Metadata) -> Result<(), Error> {
        chown(&self.0, Some(other.uid()), Some(other.gid()))
            .and_then(|()| fs::set_permissions(&self.0, fs::Permissions::from_mode(other.mode() & 0o7777)))
            .and_then(|()| File::open(&self.0)?.sync_all())
            .map_err(|e| failed(&self.0, &e))
    }

    /// Puts it at a place where nothing is.
    fn place(&self, path: &Path) -> Result<(), io::Error> {
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, &self.0, here, path, RenameFlags::NOREPLACE)?;
        sync_folder(path)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn sync_folder(path: &Path) -> Result<(), io::Error> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn replace(path: &Path, was: &str, text: &str) -> Result<(), Error> {
    let changed = || Error::RepairChanged { file: path.display().to_string() };
    // What a link points at is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let fail = |e: io::Error| failed(&target, &e);
    if read(&target)?.is_none_or(|bytes| bytes != was.as_bytes()) {
        return Err(changed());
    }
    let found = fs::metadata(&target).map_err(fail)?;
    let copy = Copy::beside(&target, text.as_bytes())?;
    copy.like(&found)?;
    // Written meanwhile by an editor, in place or by a rename: the last look is as late as can be.
    if read(&target)?.is_none_or(|bytes| bytes != was.as_bytes()) {
        return Err(changed());
    }
    fs::rename(&copy.0, &target).and_then(|()| sync_folder(&target)).map_err(fail)
}

/// Beside the main file: one beside a file that is imported may be imported itself.
fn back_up(main: &Path, path: &Path) -> Result<PathBuf, Error> {
    let missing = || Error::Look { trouble: Trouble::Missing, message: format!("{}: does not exist", path.display()) };
    let bytes = read(path)?.ok_or_else(missing)?;
    let found = fs::metadata(path).map_err(|e| failed(path, &e))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = main.parent().unwrap_or(Path::new("/"));
    let stem = format!("{name}.pvelet-{}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
    let mut number = 1_u32;
    let kept = loop {
        let kept = folder.join(if number == 1 { stem.clone() } else { format!("{stem}-{number}") });
        let copy = Copy::beside(&kept, &bytes)?;
        copy.like(&found)?;
        match copy.place(&kept) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            other => break other.map(|()| kept.clone()).map_err(|e| failed(&kept, &e))?,
        }
    };
    if read_all(main)?.iter().any(|file| file.path == kept) {
        let _ = fs::remove_file(&kept);
        let message = format!("{}: would be imported; let `imports` take only names that end with .toml", kept.display());
        return Err(Error::Look { trouble: Trouble::Failed, message });
    }
    if let Err(error) = leftovers::prune(folder, Some(&kept)) {
        tracing::warn!(%error, "old backups of containerd's configuration are not removed");
    }
    Ok(kept)
}
