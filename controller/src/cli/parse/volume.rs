//! Values of options about volumes.

use pvelet_proto::{id, volume::VolumeId};

use super::{Parsed, checked, storage};

/// The fewest digits that may name a volume.
const PREFIX_MIN: usize = 8;
/// Hexadecimal digits of a whole id.
const DIGITS: usize = 32;
/// Where an id's hyphens are, counted in digits.
const HYPHENS: [usize; 4] = [8, 12, 16, 20];

/// A volume as it was named: by its id, or by the id's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct VolumeArg {
    /// As it was written.
    pub(in crate::cli) text: String,
    /// Its digits in lower case, without hyphens.
    digits: String,
}

impl VolumeArg {
    /// Whether a volume of this id may be meant.
    pub(in crate::cli) fn fits(&self, id: &str) -> bool {
        id.replace('-', "").starts_with(&self.digits)
    }

    /// Whether no other id can be meant.
    pub(in crate::cli) fn is_whole(&self) -> bool {
        self.digits.len() == DIGITS
    }
}

pub(in crate::cli) fn volume(value: &str) -> Parsed<VolumeArg> {
    let wrong =
        || format!("'{value}' names no volume: use its id, or the id's first {PREFIX_MIN} or more digits, as pveletctl volumes shows");
    let digits = value.replace('-', "").to_ascii_lowercase();
    let good = (PREFIX_MIN..=DIGITS).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_hexdigit());
    // Hyphens stand where an id has them, or not at all.
    let mut hyphenated = String::new();
    for (i, c) in digits.chars().enumerate() {
        if HYPHENS.contains(&i) {
            hyphenated.push('-');
        }
        hyphenated.push(c);
    }
    let typed = value.to_ascii_lowercase();
    let trimmed = typed.strip_suffix('-').filter(|t| HYPHENS.contains(&t.replace('-', "").len())).unwrap_or(&typed);
    if good && (trimmed == hyphenated || typed == digits) { Ok(VolumeArg { text: value.to_owned(), digits }) } else { Err(wrong()) }
}

/// The whole id of a new volume.
pub(in crate::cli) fn volume_id(value: &str) -> Parsed<String> {
    value
        .to_ascii_lowercase()
        .parse::<VolumeId>()
        .map(|id| id.to_string())
        .map_err(|_| format!("'{value}' is not a volume id: use a UUID with hyphens that is not all zeros, such as uuidgen prints"))
}

pub(in crate::cli) fn snapshot(value: &str) -> Parsed<String> {
    checked(value, id::snapshot)
}

/// A snapshot of a volume.
#[derive(Debug, Clone)]
pub(in crate::cli) struct SnapshotArg {
    pub(in crate::cli) volume: VolumeArg,
    pub(in crate::cli) name: String,
}

pub(in crate::cli) fn volume_snapshot(value: &str) -> Parsed<SnapshotArg> {
    let (of, name) = value.split_once('@').ok_or_else(|| format!("'{value}' names no snapshot: write <volume>@<snapshot>"))?;
    Ok(SnapshotArg { volume: volume(of)?, name: snapshot(name)? })
}

pub(in crate::cli) fn cluster(value: &str) -> Parsed<String> {
    checked(value, id::cluster)
}

pub(in crate::cli) fn claim(value: &str) -> Parsed<String> {
    checked(value, id::claim)
}

pub(in crate::cli) fn sha256(value: &str) -> Parsed<String> {
    if value.len() == 64 && value.bytes().all(|c| c.is_ascii_hexdigit()) {
        return Ok(value.to_ascii_lowercase());
    }
    Err(format!("'{value}' is not a SHA-256: use 64 hexadecimal digits, as sha256sum prints them"))
}

/// An image to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum ImageArg {
    /// Below a folder that the agent's configuration allows.
    File(String),
    /// On a storage of PVE.
    Volid(String),
}

pub(in crate::cli) fn image(value: &str) -> Parsed<ImageArg> {
    if let Some((on, name)) = value.split_once(':') {
        let good = storage(on).is_ok() && name.strip_prefix("import/").is_some_and(is_path);
        return good.then(|| ImageArg::Volid(value.to_owned())).ok_or_else(|| {
            format!("'{value}' is not an image on a storage: write <storage>:import/<name>, such as local:import/debian-13.qcow2")
        });
    }
    if is_path(value) {
        return Ok(ImageArg::File(value.to_owned()));
    }
    Err(format!(
        "'{value}' is not an image: use a path below one of the agent's import folders, such as debian-13.qcow2, without '..', or \
         <storage>:import/<name>"
    ))
}

/// A path that goes down only.
fn is_path(value: &str) -> bool {
    value.len() <= 1024 && !value.contains(char::is_control) && value.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ID: &str = "0b951f20-53f9-4634-b1ce-5e6c3aa3a726";

    #[test]
    fn a_volume_is_named_by_its_id_or_the_beginning_of_it() {
        for text in [ID, &ID.to_uppercase(), "0b951f20", "0b951f20-", "0b951f20-53", "0b951f2053f94634b1ce"] {
            assert!(volume(text).unwrap().fits(ID), "{text}");
        }
        assert!(volume(ID).unwrap().is_whole() && !volume("0b951f20").unwrap().is_whole());
        assert!(!volume("0b951f21").unwrap().fits(ID));
        for text in ["", "0b951f2", "0b95-1f20", "0b951f20-53f94634", "0b951f2g", "web-1", "--------", "0b951f20--", &format!("{ID}0")] {
            assert!(volume(text).unwrap_err().contains("use its id, or the id's first 8 or more digits"), "{text}");
        }
    }

    #[test]
    fn names_of_owners_snapshots_and_new_ids() {
        assert_eq!(volume_id(&ID.to_uppercase()).unwrap(), ID);
        for text in ["0b951f20", "00000000-0000-0000-0000-000000000000"] {
            assert!(volume_id(text).unwrap_err().contains("use a UUID with hyphens"), "{text}");
        }
        let s = volume_snapshot(&format!("{ID}@before-2")).unwrap();
        assert_eq!((s.volume.text.as_str(), s.name.as_str()), (ID, "before-2"));
        for (text, words) in
            [("0b951f20", "write <volume>@<snapshot>"), ("0b951f20@2nd", "beginning with a letter"), ("x@ab", "'x' names no")]
        {
            assert!(volume_snapshot(text).unwrap_err().contains(words), "{text}");
        }
        assert!(
            snapshot("a").is_err()
                && snapshot("current").is_err()
                && snapshot(&"a".repeat(41)).is_err()
                && snapshot(&"a".repeat(40)).is_ok()
        );
        assert!(cluster("prod.eu-1").is_ok() && cluster("Prod").unwrap_err().contains("lower-case"));
        assert!(claim("ns/data_0.A").is_ok() && claim("a b").unwrap_err().contains("'a b' is not a claim"));
        assert!(sha256(&"aB".repeat(32)).is_ok() && sha256("ab").unwrap_err().contains("64 hexadecimal digits"));
    }

    #[test]
    fn images_are_paths_that_go_down_or_lie_on_a_storage() {
        assert_eq!(image("a/debian-13.qcow2").unwrap(), ImageArg::File("a/debian-13.qcow2".to_owned()));
        assert_eq!(image("local:import/d.qcow2").unwrap(), ImageArg::Volid("local:import/d.qcow2".to_owned()));
        for text in ["", "/etc/shadow", "../x", "a/../b", "a//b", "a\nb"] {
            assert!(image(text).unwrap_err().contains("below one of the agent's import folders"), "{text}");
        }
        for text in ["local:iso/x.iso", ":import/x", "local:import/../x", "local:import/"] {
            assert!(image(text).unwrap_err().contains("write <storage>:import/<name>"), "{text}");
        }
    }
}
