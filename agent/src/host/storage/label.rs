//! Labels: who a volume belongs to, kept beside its data. Here: what a label may be, and labels as extended attributes of files.

use std::{io, path::Path};

use rustix::{
    fs::{XattrFlags, lgetxattr, lremovexattr, lsetxattr},
    io::Errno,
};

use super::command::{failed, io_error, unsupported};
use crate::error::Error;

/// What all labels begin with: other tags of a logical volume are not ours.
pub(super) const PREFIX: &str = "pvelet:";
/// What stands for a label that is there for all that is known and cannot be read: it names no owner, and yet keeps a volume from being taken
/// for one without a label.
pub(super) const UNREADABLE: &str = "pvelet:unreadable";
/// The extended attribute of an image file.
const ATTRIBUTE: &str = "user.pvelet.volume";
/// Longest label. Tags of LVM end at 1024 characters.
const MAX: usize = 1000;

/// Refuses a label that some kind of storage could not hold.
pub(super) fn check(storage: &str, label: &str) -> Result<(), Error> {
    let charset = label.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+.:/=-".contains(&b));
    if charset && label.len() <= MAX && label.starts_with(PREFIX) {
        return Ok(());
    }
    Err(failed(storage, format!("'{label}' cannot be a label: up to {MAX} of A-Z a-z 0-9 _ + . : / = -, the first of them {PREFIX}")))
}

/// The label of a file; links are not followed. `None`: it has none, or its file system has no extended attributes.
pub(super) fn read(file: &Path) -> io::Result<Option<String>> {
    let mut buffer = [0_u8; MAX + 1];
    match lgetxattr(file, ATTRIBUTE, &mut buffer[..]) {
        Ok(n) => Ok(std::str::from_utf8(&buffer[..n]).ok().filter(|l| l.starts_with(PREFIX)).map(str::to_owned)),
        // ERANGE: longer than any label of ours.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes or removes the label of a file, and reads it back.
pub(super) fn write(storage: &str, file: &Path, label: Option<&str>) -> Result<(), Error> {
    let done = match label {
        Some(label) => lsetxattr(file, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()),
        None => match lremovexattr(file, ATTRIBUTE) {
            Err(Errno::NODATA) => Ok(()),
            other => other,
        },
    };
    match done {
        Ok(()) => {}
        // Nothing to take off where nothing can be.
        Err(Errno::OPNOTSUPP) if label.is_none() => return Ok(()),
        Err(Errno::OPNOTSUPP) => {
            let why = "its file system has no extended attributes, in which the owner of a volume is kept; use another storage \
                       (NFS: version 4.2 on a server that has them)";
            return Err(unsupported(storage, why));
        }
        Err(error) => return Err(io_error(storage, format!("label of {}", file.display()), &error.into())),
    }
    let found = read(file).map_err(|e| io_error(storage, format!("label of {}", file.display()), &e))?;
    if found.as_deref() == label {
        return Ok(());
    }
    Err(failed(storage, format!("the label of {} reads {found:?} after {label:?} was written", file.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_label_that_some_storage_could_not_hold_is_refused() {
        for label in ["", "owner", "pvelet:a b", "pvelet:a,b", "pvelet:é", "pvelet:a\n", &format!("pvelet:{}", "a".repeat(1000))] {
            assert!(check("s", label).is_err(), "{label}");
        }
        check("s", "pvelet:v1:tenant/a:id=x_y-z.+").unwrap();
    }

    #[test]
    fn a_label_is_written_rewritten_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(read(&file).unwrap(), None);
        write("s", &file, None).unwrap();
        for label in ["pvelet:a", "pvelet:a", &format!("pvelet:{}", "b".repeat(993))] {
            write("s", &file, Some(label)).unwrap();
            assert_eq!(read(&file).unwrap().as_deref(), Some(label));
        }
        write("s", &file, None).unwrap();
        assert_eq!(read(&file).unwrap(), None);
        assert!(write("s", &dir.path().join("none"), Some("pvelet:a")).is_err());
    }

    #[test]
    fn a_file_system_without_attributes_is_told_as_unsupported() {
        let error = write("s", Path::new("/proc/version"), Some("pvelet:a")).unwrap_err();
        assert_eq!(error.reason(), "STORAGE_UNSUPPORTED", "{error}");
        write("s", Path::new("/proc/version"), None).unwrap();
        assert_eq!(read(Path::new("/proc/version")).unwrap(), None);
    }
}
