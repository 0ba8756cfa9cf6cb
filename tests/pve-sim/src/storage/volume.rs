//! Volume ids (`local:101/vm-101-disk-0.qcow2`) and the names of volumes on a directory.

use std::{fmt, str::FromStr};

use crate::api::Failure;

/// `<storage>:<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Volid {
    /// The storage.
    pub storage: String,
    /// The volume's name on it.
    pub volume: String,
}

impl Volid {
    /// What the name means on a directory.
    ///
    /// # Errors
    /// When a directory has no such names.
    pub fn name(&self) -> Result<Name, Failure> {
        Name::parse(&self.volume)
    }
}

impl fmt::Display for Volid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.storage, self.volume)
    }
}

impl FromStr for Volid {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        match text.split_once(':') {
            Some((storage, volume)) if is_storage_id(storage) && !volume.is_empty() && !volume.contains(char::is_whitespace) => {
                Ok(Self { storage: storage.to_owned(), volume: volume.to_owned() })
            }
            _ => Err(Failure::die(format!("unable to parse volume ID '{text}'"))),
        }
    }
}

/// Whether a text can be the id of a storage.
fn is_storage_id(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && text.len() >= 2
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The plain bytes.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// VMware's.
    Vmdk,
}

impl Format {
    /// The format of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "raw" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            "vmdk" => Some(Self::Vmdk),
            _ => None,
        }
    }

    /// Its name, and the end of its files' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}

/// A volume's name on a directory, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A disk image.
    Image {
        /// Whose it is.
        vmid: u32,
        /// The file's name.
        file: String,
        /// Owner and file name of the base image that it is a linked clone of.
        base: Option<(u32, String)>,
        /// Its format.
        format: Format,
    },
    /// Anything else: content type and file name.
    Other(&'static str, String),
}

impl Name {
    fn parse(text: &str) -> Result<Self, Failure> {
        let refused = || Failure::die(format!("unable to parse directory volume name '{text}'"));
        let parts: Vec<&str> = text.split('/').collect();
        let vmid = |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        match parts[..] {
            [kind @ ("iso" | "vztmpl" | "snippets" | "backup" | "import"), file] if !file.is_empty() => {
                let kind = ["iso", "vztmpl", "snippets", "backup", "import"].into_iter().find(|k| *k == kind);
                let fits = match kind {
                    Some("iso") => file.to_ascii_lowercase().ends_with(".iso") || file.to_ascii_lowercase().ends_with(".img"),
                    Some("backup") => file.contains('.'),
                    _ => true,
                };
                kind.filter(|_| fits).map(|kind| Self::Other(kind, file.to_owned())).ok_or_else(refused)
            }
            [owner, file] => {
                let vmid = vmid(owner).ok_or_else(refused)?;
                Ok(Self::Image { vmid, file: file.to_owned(), base: None, format: format_of(file)? })
            }
            [base_owner, base, owner, file] => {
                let (base_owner, vmid) = (vmid(base_owner).ok_or_else(refused)?, vmid(owner).ok_or_else(refused)?);
                format_of(base)?;
                Ok(Self::Image { vmid, file: file.to_owned(), base: Some((base_owner, base.to_owned())), format: format_of(file)? })
            }
            _ => Err(refused()),
        }
    }

    /// Its path below the storage's folder.
    pub fn relative_path(&self) -> String {
        match self {
            Self::Image { vmid, file, .. } => format!("images/{vmid}/{file}"),
            Self::Other("iso", file) => format!("template/iso/{file}"),
            Self::Other("vztmpl", file) => format!("template/cache/{file}"),
            Self::Other("backup", file) => format!("dump/{file}"),
            Self::Other(kind, file) => format!("{kind}/{file}"),
        }
    }

    /// Whose image it is.
    pub fn owner(&self) -> Option<u32> {
        match self {
            Self::Image { vmid, .. } => Some(*vmid),
            Self::Other(..) => None,
        }
    }

    /// Whether it is a base image.
    pub fn is_base(&self) -> bool {
        matches!(self, Self::Image { file, .. } if file.starts_with("base-"))
    }
}

/// The format that a file's name tells.
///
/// # Errors
/// When the name is none that PVE gives an image.
pub(super) fn format_of(file: &str) -> Result<Format, Failure> {
    let fits = !file.is_empty() && !file.starts_with('.') && !file.contains(['/', ' ', '\t', '\n']);
    let format = file.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).and_then(|(_, end)| Format::from_name(end));
    format.filter(|_| fits).ok_or_else(|| Failure::die(format!("unable to parse volume filename '{file}'")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let linked: Volid = "local:9010/base-9010-disk-0.qcow2/500/vm-500-disk-0.qcow2".parse().unwrap();
        let base = Some((9010, String::from("base-9010-disk-0.qcow2")));
        assert_eq!(linked.name().unwrap(), Name::Image { vmid: 500, file: "vm-500-disk-0.qcow2".into(), base, format: Format::Qcow2 });
        let iso: Volid = "local:iso/x.iso".parse().unwrap();
        assert_eq!(iso.name().unwrap().relative_path(), "template/iso/x.iso");
    }

    #[test]
    fn what_is_no_volume_is_refused_with_the_text_of_pve() {
        assert_eq!("unused2".parse::<Volid>().unwrap_err().to_string(), "unable to parse volume ID 'unused2'");
        for (text, message) in [
            ("local:foo", "unable to parse directory volume name 'foo'"),
            ("local:101/vm-101-a.vhd", "unable to parse volume filename 'vm-101-a.vhd'"),
            ("local:backup/x", "unable to parse directory volume name 'backup/x'"),
        ] {
            assert_eq!(text.parse::<Volid>().unwrap().name().unwrap_err().to_string(), message);
        }
    }
}
