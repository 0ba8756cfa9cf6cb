//! Files that must never be half-written, too open, or overwritten by mistake.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::PkiError;

/// Makes a folder for keys, mode 0700, where it is missing.
pub(super) fn make_dir(dir: &Path) -> Result<(), PkiError> {
    if dir.as_os_str().is_empty() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(PkiError::io(dir))
}

/// Makes the folder of a CA, or refuses one that others may enter.
pub(super) fn make_private_dir(dir: &Path) -> Result<(), PkiError> {
    make_dir(dir)?;
    let mode = fs::metadata(dir).map_err(PkiError::io(dir))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PkiError::OpenFolder { path: dir.to_owned(), mode });
    }
    Ok(())
}

/// Writes a file that only its owner may read (mode 0600 from its first byte on). An existing one is kept and refused, unless `replace`.
pub fn write_private(path: &Path, content: &[u8], replace: bool) -> Result<(), PkiError> {
    write(path, content, 0o600, replace)
}

/// Writes a file that everybody may read (mode 0644), as a whole or not at all. An existing one is kept and refused, unless `replace`.
pub fn write_public(path: &Path, content: &[u8], replace: bool) -> Result<(), PkiError> {
    write(path, content, 0o644, replace)
}

/// Writes a certificate (mode 0644) and its key (0600) into one folder. Both are whole before either comes into its place, and a certificate
/// that cannot be placed brings back the key that was there: one without the other is of no use to anybody.
pub(super) fn write_pair(cert: (&Path, &[u8]), key: (&Path, &[u8]), replace: bool) -> Result<(), PkiError> {
    let (cert, key) = (Staged::write(cert.0, cert.1, 0o644)?, Staged::write(key.0, key.1, 0o600)?);
    let former = temporary(key.path);
    let kept = match fs::hard_link(key.path, &former) {
        Ok(()) => true,
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(PkiError::io(key.path)(e)),
    };
    let placed = key.place(replace).and_then(|()| {
        cert.place(replace).inspect_err(|_| {
            // Nothing better can be done where this fails too.
            let _ = if kept { fs::rename(&former, key.path) } else { fs::remove_file(key.path) };
        })
    });
    let _ = fs::remove_file(&former);
    placed?;
    sync_folder(key.path)
}

fn write(path: &Path, content: &[u8], mode: u32, replace: bool) -> Result<(), PkiError> {
    Staged::write(path, content, mode)?.place(replace)?;
    sync_folder(path)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    folder(path).join(format!(".{name}.{:016x}", rand::random::<u64>()))
}

fn sync_folder(path: &Path) -> Result<(), PkiError> {
    let dir = folder(path);
    File::open(dir).and_then(|d| d.sync_all()).map_err(PkiError::io(dir))
}

/// A whole file under a temporary name beside its place. It goes with this, unless it has been placed.
struct Staged<'a> {
    temp: PathBuf,
    path: &'a Path,
}

impl<'a> Staged<'a> {
    fn write(path: &'a Path, content: &[u8], mode: u32) -> Result<Self, PkiError> {
        let this = Self { temp: temporary(path), path };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&this.temp).map_err(PkiError::io(path))?;
        // Exactly this mode, whatever the umask takes away.
        file.set_permissions(fs::Permissions::from_mode(mode))
            .and_then(|()| file.write_all(content))
            .and_then(|()| file.sync_all())
            .map_err(PkiError::io(path))?;
        Ok(this)
    }

    fn place(&self, replace: bool) -> Result<(), PkiError> {
        // A hard link refuses an existing name, whoever made it meanwhile; a rename would take its place.
        let placed = if replace { fs::rename(&self.temp, self.path) } else { fs::hard_link(&self.temp, self.path) };
        placed.map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => PkiError::Exists { path: self.path.to_owned() },
            _ => PkiError::io(self.path)(e),
        })
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temp);
    }
}

/// Renames within a folder, lastingly.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), PkiError> {
    fs::rename(from, to).map_err(PkiError::io(to))?;
    sync_folder(to)
}

/// Removes a file, if there is one.
pub(super) fn remove(path: &Path) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(PkiError::io(path)(e)),
        _ => Ok(()),
    }
}

/// Reads a text file.
pub(super) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(PkiError::io(path))
}

/// The PEM blocks of a text that have this label, each with its line breaks.
pub(super) fn blocks<'a>(text: &'a str, label: &str) -> Vec<&'a str> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(from) = rest.find(&begin)
        && let Some(length) = rest[from..].find(&end)
    {
        let to = from + length + end.len();
        let line = rest[to..].find('\n').map_or(rest.len(), |n| to + n + 1);
        found.push(&rest[from..line]);
        rest = &rest[line..];
    }
    found
}
