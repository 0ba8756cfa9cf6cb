//! Volume ids, `storage:name`, and what the name says.

use crate::api::Failure;

/// A volume of a file-based storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The storage's id.
    pub storage: String,
    /// `images`, `iso`, `vztmpl`, `snippets`, `import` or `backup`.
    pub content: &'static str,
    /// The VM that an image belongs to by its folder; 0 for other content.
    pub owner: u32,
    /// The file's name.
    pub name: String,
    /// For a linked clone: owner and name of its base image.
    pub base: Option<(u32, String)>,
}

const IMAGE_FORMATS: [&str; 4] = ["raw", "qcow2", "vmdk", "subvol"];
const OTHER_CONTENT: [&str; 5] = ["iso", "vztmpl", "snippets", "import", "backup"];

/// Splits a volume id into the storage's id and the name.
///
/// # Errors
/// With PVE's text when it has no storage or no name.
pub fn split(volid: &str) -> Result<(&str, &str), Failure> {
    let error = || Failure::die(format!("unable to parse volume ID '{volid}'"));
    let (storage, name) = volid.split_once(':').ok_or_else(error)?;
    if is_storage_id(storage) && !name.is_empty() && !name.contains(char::is_whitespace) { Ok((storage, name)) } else { Err(error()) }
}

/// Whether a text can be the id of a storage.
pub fn is_storage_id(text: &str) -> bool {
    text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

impl Volume {
    /// Parses `storage:name`.
    ///
    /// # Errors
    /// With PVE's text when the id or the name cannot be understood.
    pub fn parse(volid: &str) -> Result<Self, Failure> {
        let (storage, name) = split(volid)?;
        Self::of(storage, name)
    }

    /// Parses the name of a volume of `storage`.
    ///
    /// # Errors
    /// With PVE's text when the name cannot be understood.
    pub fn of(storage: &str, name: &str) -> Result<Self, Failure> {
        let error = || Failure::die(format!("unable to parse directory volume name '{name}'"));
        let parts: Vec<&str> = name.split('/').collect();
        let number = |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        let image = |owner: u32, file: &str, base| {
            image_name(file)?;
            Ok(Self { storage: storage.to_owned(), content: "images", owner, name: file.to_owned(), base })
        };
        match parts[..] {
            [kind, file] if !file.is_empty() => {
                if let Some(owner) = number(kind) {
                    return image(owner, file, None);
                }
                let content = OTHER_CONTENT.into_iter().find(|content| *content == kind).ok_or_else(error)?;
                let end = file.rsplit_once('.').map(|(_, end)| end.to_ascii_lowercase());
                let fits = match content {
                    "iso" => matches!(end.as_deref(), Some("iso" | "img")),
                    "backup" => end.is_some(),
                    _ => true,
                };
                if !fits {
                    return Err(error());
                }
                Ok(Self { storage: storage.to_owned(), content, owner: 0, name: file.to_owned(), base: None })
            }
            [base_owner, base, owner, file] => match (number(base_owner), number(owner)) {
                (Some(base_owner), Some(owner)) => {
                    image_name(base)?;
                    image(owner, file, Some((base_owner, base.to_owned())))
                }
                _ => Err(error()),
            },
            _ => Err(error()),
        }
    }

    /// The id, `storage:name`.
    pub fn volid(&self) -> String {
        format!("{}:{}", self.storage, self.path_in_storage())
    }

    /// The name behind the storage's id.
    pub fn path_in_storage(&self) -> String {
        match (&self.base, self.content) {
            (Some((owner, base)), _) => format!("{owner}/{base}/{}/{}", self.owner, self.name),
            (None, "images") => format!("{}/{}", self.owner, self.name),
            (None, content) => format!("{content}/{}", self.name),
        }
    }

    /// `raw`, `qcow2`, `vmdk`, `subvol`, by the name's end; for other content the end itself.
    pub fn format(&self) -> &str {
        self.name.rsplit_once('.').map_or("raw", |(_, end)| end)
    }

    /// Whether it is a base image, which clones may be linked to.
    pub fn is_base(&self) -> bool {
        self.content == "images" && self.name.starts_with("base-")
    }
}

/// Checks the file name of an image, `[base-]<name>.<format>`, and gives its format.
///
/// # Errors
/// With PVE's text when it is none.
pub fn image_name(name: &str) -> Result<&'static str, Failure> {
    let error = || Failure::die(format!("unable to parse volume filename '{name}'"));
    if name.contains('/') || name.contains(char::is_whitespace) {
        return Err(error());
    }
    let (stem, end) = name.rsplit_once('.').ok_or_else(error)?;
    IMAGE_FORMATS.into_iter().find(|format| *format == end && !stem.is_empty()).ok_or_else(error)
}

/// The number of a disk named `vm-<vmid>-disk-<n>` or `base-<vmid>-disk-<n>`.
pub(super) fn disk_number(name: &str, vmid: u32) -> Option<u32> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let rest = ["vm-", "base-", "subvol-", "basevol-"].into_iter().find_map(|prefix| stem.strip_prefix(prefix))?;
    rest.strip_prefix(&format!("{vmid}-disk-"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_read_back_the_same() {
        for id in [
            "local:100/vm-100-disk-0.raw",
            "local:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2",
            "local:iso/x.iso",
            "a-b.c:snippets/u.yaml",
        ] {
            assert_eq!(Volume::parse(id).unwrap().volid(), id);
        }
    }

    #[test]
    fn what_is_no_volume_is_refused_with_the_text_of_pve() {
        for (id, text) in [
            ("local:foo", "unable to parse directory volume name 'foo'"),
            ("local:601/vm-601-e-1", "unable to parse volume filename 'vm-601-e-1'"),
            ("local:backup/x", "unable to parse directory volume name 'backup/x'"),
            ("unused2", "unable to parse volume ID 'unused2'"),
        ] {
            assert_eq!(Volume::parse(id).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn disks_are_numbered_by_their_names() {
        for (name, number) in
            [("vm-1-disk-3.raw", Some(3)), ("base-1-disk-0.qcow2", Some(0)), ("vm-1-x.raw", None), ("vm-12-disk-1.raw", None)]
        {
            assert_eq!(disk_number(name, 1), number, "{name}");
        }
    }
}
