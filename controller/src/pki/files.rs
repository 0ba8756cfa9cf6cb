//! Files that must never be half-written, too open, or overwritten by mistake.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
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

fn write(path: &Path, content: &[u8], mode: u32, replace: bool) -> Result<(), PkiError> {
    let dir = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temp = dir.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    let placed = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp)?;
        // Exactly this mode, whatever the umask takes away.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        if replace {
            fs::rename(&temp, path)
        } else {
            // A hard link refuses an existing name, whoever made it meanwhile; a rename would take its place.
            fs::hard_link(&temp, path).and_then(|()| fs::remove_file(&temp))
        }
    })();
    match placed {
        Ok(()) => File::open(dir).and_then(|d| d.sync_all()).map_err(PkiError::io(dir)),
        Err(e) => {
            let _ = fs::remove_file(&temp);
            Err(if e.kind() == ErrorKind::AlreadyExists { PkiError::Exists { path: path.to_owned() } } else { PkiError::io(path)(e) })
        }
    }
}

/// Renames within a folder, lastingly.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), PkiError> {
    let folder = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::rename(from, to).and_then(|()| File::open(folder)?.sync_all()).map_err(PkiError::io(to))
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
