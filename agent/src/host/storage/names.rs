//! Names of volumes and snapshots as they come from outside: checked before they become paths or arguments.

use super::command::failed;
use crate::error::Error;

/// Longest name of a snapshot in PVE.
const SNAPSHOT_MAX: usize = 40;

fn plain(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 255
        && !part.starts_with(['-', '.'])
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.+-".contains(&b))
}

/// The last part of a volume's name. What stands before it names the base image of a linked clone, which is no part of its place.
pub(super) fn leaf<'a>(storage: &str, name: &'a str) -> Result<&'a str, Error> {
    let leaf = name.rsplit('/').next().unwrap_or_default();
    if name.split('/').all(plain) { Ok(leaf) } else { Err(refused(storage, name)) }
}

/// Folder and file of a volume on a storage of files: the last two parts of its name.
pub(super) fn file<'a>(storage: &str, name: &'a str) -> Result<(&'a str, &'a str), Error> {
    let file = leaf(storage, name)?;
    let folder = name.rsplit('/').nth(1).filter(|f| f.bytes().all(|b| b.is_ascii_digit()));
    folder.map(|folder| (folder, file)).ok_or_else(|| refused(storage, name))
}

/// A snapshot's name as PVE takes it. It begins with a letter, so that no tool takes it for an option or a number.
pub(super) fn snapshot<'a>(storage: &str, name: &'a str) -> Result<&'a str, Error> {
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if rest && name.len() <= SNAPSHOT_MAX && name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Ok(name);
    }
    Err(failed(storage, format!("'{name}' is no name for a snapshot: begin with a letter, use letters, digits, '-' and '_'")))
}

fn refused(storage: &str, name: &str) -> Error {
    failed(storage, format!("'{name}' is not a name that a volume has in PVE"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_could_leave_their_place_or_become_options_are_refused() {
        for name in ["", "..", "100/..", "../100/x", "/100/x", "100//x", "-x", "100/-x", "100/a b", "100/a\n", "a@b", "100/a:b", "é"] {
            assert!(leaf("s", name).is_err() && file("s", name).is_err(), "{name:?}");
        }
        for name in ["", "1a", "-a", "a b", "a,b", "a/b", "a@b", "é", &"a".repeat(41)] {
            assert!(snapshot("s", name).is_err(), "{name:?}");
        }
        assert!(file("s", "vm-100-disk-0").is_err() && file("s", "abc/x").is_err());
    }

    #[test]
    fn the_base_of_a_linked_clone_is_no_part_of_its_place() {
        assert_eq!(leaf("s", "vm-100-disk-0").unwrap(), "vm-100-disk-0");
        assert_eq!(leaf("s", "base-9-disk-0/vm-100-disk-0").unwrap(), "vm-100-disk-0");
        assert_eq!(file("s", "100/vm-100-disk-0.raw").unwrap(), ("100", "vm-100-disk-0.raw"));
        assert_eq!(file("s", "9/base-9-disk-0.qcow2/100/vm-100-disk-0.qcow2").unwrap(), ("100", "vm-100-disk-0.qcow2"));
        assert_eq!(snapshot("s", "a1_-").unwrap(), "a1_-");
    }
}
