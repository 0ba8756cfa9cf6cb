//! Reads files: bounded, and with errors that say which.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use crate::error::{Error, Trouble};

/// What a file of the kernel, or a list of PVE, may have. The largest are lists of connections.
pub(super) const LARGEST: u64 = 8 << 20;

/// An error of a look.
pub(super) fn look(trouble: Trouble, message: impl Into<String>) -> Error {
    Error::Look { trouble, message: message.into() }
}

/// What an error of the system means.
pub(super) fn io_error(path: &Path, error: &io::Error) -> Error {
    let trouble = match error.kind() {
        io::ErrorKind::NotFound => Trouble::Missing,
        io::ErrorKind::PermissionDenied => Trouble::Denied,
        _ => Trouble::Failed,
    };
    look(trouble, format!("{}: {error}", path.display()))
}

/// The text of a file; `None` when there is none. Bytes that are no UTF-8 are replaced.
///
/// # Errors
/// `Look`; also when it is larger than `most` bytes.
pub(super) fn text(path: &Path, most: u64) -> Result<Option<String>, Error> {
    let file = match File::open(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        other => other.map_err(|e| io_error(path, &e))?,
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| io_error(path, &e))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        return Err(look(Trouble::Garbled, format!("{} has more than {most} bytes", path.display())));
    }
    Ok(Some(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())))
}

/// As [`text`], of a file that must be there.
pub(super) fn must(path: &Path, most: u64) -> Result<String, Error> {
    text(path, most)?.ok_or_else(|| look(Trouble::Missing, format!("{} is not there", path.display())))
}

/// The names in a folder, sorted; none when there is no such folder. At most 10,000.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| io_error(folder, &e))?,
    };
    let mut found = Vec::new();
    for entry in entries.take(10_000) {
        let name = entry.map_err(|e| io_error(folder, &e))?.file_name();
        found.extend(name.into_string());
    }
    found.sort();
    Ok(found)
}
