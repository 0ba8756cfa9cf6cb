//! A VM's config file: `key: value` lines, `#` lines of the description, then sections `[PENDING]` and one for each snapshot.

use std::{collections::BTreeMap, ops::Bound};

use percent_encoding::percent_decode_str;
use sha1::{Digest, Sha1};

/// A parsed config file. Unknown keys are kept: PVE has more of them than the agent needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigFile {
    /// The main section.
    pub keys: BTreeMap<String, String>,
    /// The description, decoded.
    pub description: String,
    /// Changes that wait for a restart of the VM.
    pub pending: BTreeMap<String, String>,
    /// Names of snapshots.
    pub snapshots: Vec<String>,
    /// Drives of the snapshots: snapshot, slot, property string.
    pub snapshot_drives: Vec<(String, String, String)>,
    /// `cicustom` of the snapshots.
    pub snapshot_cicustom: Vec<String>,
    /// SHA-1 of the text, hexadecimal: what PVE calls the digest.
    pub digest: String,
}

/// The parts of a property string such as `local:100/vm-100-disk-0.qcow2,size=1G`: the leading value without a key, and the rest.
pub fn properties(value: &str) -> (Option<&str>, BTreeMap<&str, &str>) {
    let mut lead = None;
    let mut map = BTreeMap::new();
    for (i, part) in value.split(',').enumerate() {
        match part.split_once('=') {
            Some((key, value)) => {
                map.insert(key, value);
            }
            None if i == 0 => lead = Some(part),
            None => {}
        }
    }
    (lead, map)
}

impl ConfigFile {
    /// Parses the text. Lines that are none are skipped, as PVE does.
    pub fn parse(text: &str) -> Self {
        enum Section {
            Main,
            Pending,
            Snapshot(String),
        }
        let mut file = Self { digest: hex::encode(Sha1::digest(text.as_bytes())), ..Self::default() };
        let mut description = Vec::new();
        let mut section = Section::Main;
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix('#') {
                if matches!(section, Section::Main) {
                    description.push(percent_decode_str(comment).decode_utf8_lossy().into_owned());
                }
            } else if let Some(name) = line.strip_prefix('[').and_then(|l| l.trim_end().strip_suffix(']')) {
                section = match name {
                    "PENDING" => Section::Pending,
                    // `[special:...]` sections are PVE's own, not snapshots.
                    name if name.contains(':') => Section::Snapshot(name.to_owned()),
                    name => {
                        file.snapshots.push(name.to_owned());
                        Section::Snapshot(name.to_owned())
                    }
                };
            } else if let Some((key, value)) = line.split_once(':') {
                let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
                match &section {
                    Section::Main => drop(file.keys.insert(key, value)),
                    Section::Pending => drop(file.pending.insert(key, value)),
                    Section::Snapshot(name) if is_drive_slot(&key) => file.snapshot_drives.push((name.clone(), key, value)),
                    Section::Snapshot(name) if key == "cicustom" && !name.contains(':') => file.snapshot_cicustom.push(value),
                    Section::Snapshot(_) => {}
                }
            }
        }
        // An older form keeps the description in a key.
        if let Some(value) = file.keys.remove("description") {
            description.push(percent_decode_str(&value).decode_utf8_lossy().into_owned());
        }
        // PVE keeps the case in which somebody wrote it; to compare it, there is one.
        if let Some(value) = file.keys.get_mut("smbios1") {
            let parts = value.split(',').map(|p| if p.starts_with("uuid=") { p.to_ascii_lowercase() } else { p.to_owned() });
            *value = parts.collect::<Vec<_>>().join(",");
        }
        file.description = description.join("\n");
        file
    }

    /// A value of the main section.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// The SMBIOS UUID, in lower case.
    pub fn uuid(&self) -> Option<&str> {
        properties(self.get("smbios1")?).1.get("uuid").copied()
    }

    /// Whether a flag is set.
    pub fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "yes" | "on" | "true"))
    }

    /// A whole number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// Whether it is a template.
    pub fn is_template(&self) -> bool {
        self.flag("template")
    }

    /// PVE's lock.
    pub fn lock(&self) -> Option<&str> {
        self.get("lock")
    }

    /// Tags, sorted, without duplicates.
    pub fn tags(&self) -> Vec<String> {
        let mut tags: Vec<String> =
            self.get("tags").unwrap_or_default().split([';', ',', ' ']).filter(|t| !t.is_empty()).map(str::to_owned).collect();
        tags.sort();
        tags.dedup();
        tags
    }

    /// Values of `<prefix>0`, `<prefix>1` ... by index: NICs, address settings.
    pub fn indexed(&self, prefix: &str) -> Vec<(u32, &str)> {
        let from = self.keys.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let keys = from.map_while(|(key, value)| key.strip_prefix(prefix).map(|index| (index, value.as_str())));
        let mut found: Vec<(u32, &str)> = keys.filter_map(|(index, value)| Some((index.parse().ok()?, value))).collect();
        found.sort_unstable_by_key(|(index, _)| *index);
        found
    }

    /// Whether the VM, or one of its snapshots, is made from this snippet, now or from its next start on.
    pub fn has_snippet(&self, volid: &str) -> bool {
        let own = self.keys.get("cicustom").into_iter().chain(self.pending.get("cicustom"));
        let mut parts = own.chain(&self.snapshot_cicustom).flat_map(|value| value.split(','));
        parts.any(|part| part.split_once('=').map_or(part, |(_, volume)| volume) == volid)
    }

    /// Drives of the main section: slot and property string.
    pub fn drives(&self) -> impl Iterator<Item = (&str, &str)> {
        self.keys.iter().filter(|(k, _)| is_drive_slot(k)).map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// Whether a key names a drive: `scsi0`, `ide2`, `efidisk0`, `tpmstate0`, `unused3` ...
pub fn is_drive_slot(key: &str) -> bool {
    let digits = key.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let kind = &key[..key.len() - digits.len()];
    !digits.is_empty()
        && digits.bytes().all(|c| c.is_ascii_digit())
        && matches!(kind, "scsi" | "virtio" | "sata" | "ide" | "efidisk" | "tpmstate" | "unused")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "#first line\n#50%25 done\nboot: order=scsi0;net0\nscsi0: local:9010/base-9010-disk-0.qcow2/500/vm-500-disk-0.qcow2,size=1G\nscsihw: virtio-scsi-single\nsmbios1: uuid=57c0d1db-257b-4aa1-b83d-bfd147865654\ntags: k8s;a\nunused0: local:500/x.raw\n\n[PENDING]\ncores: 4\n\n[snap1]\n#old\ncores: 1\n";

    #[test]
    fn sections_are_kept_apart() {
        let file = ConfigFile::parse(TEXT);
        assert_eq!(file.description, "first line\n50% done");
        assert_eq!(file.get("cores"), None);
        assert_eq!(file.pending["cores"], "4");
        assert_eq!(file.snapshots, ["snap1"]);
        assert_eq!(file.uuid(), Some("57c0d1db-257b-4aa1-b83d-bfd147865654"));
        assert_eq!(file.tags(), ["a", "k8s"]);
        assert_eq!(file.drives().map(|(s, _)| s).collect::<Vec<_>>(), ["scsi0", "unused0"]);
    }

    #[test]
    fn a_snippet_is_found_wherever_a_config_names_it() {
        let file = ConfigFile::parse(
            "cicustom: user=local:snippets/a,vendor=local:snippets/b\n\n[PENDING]\ncicustom: user=local:snippets/c\n\n[snap]\ncicustom: \
             user=local:snippets/d\n\n[special:cloudinit]\ncicustom: user=local:snippets/e\n",
        );
        let found = |name: &str| file.has_snippet(&format!("local:snippets/{name}"));
        assert_eq!(["a", "b", "c", "d", "e", ""].map(found), [true, true, true, true, false, false]);
    }

    #[test]
    fn a_uuid_has_one_form() {
        let file = ConfigFile::parse("smbios1: base64=1,serial=QUJD,uuid=57C0D1DB-257B-4AA1-B83D-BFD147865654\n");
        assert_eq!(file.uuid(), Some("57c0d1db-257b-4aa1-b83d-bfd147865654"));
        assert!(file.get("smbios1").is_some_and(|v| v.contains("serial=QUJD")));
    }

    #[test]
    fn indexed_keys_come_by_number() {
        let file = ConfigFile::parse("net10: c\nnet2: b\nnet0: a\nnetwork: x\nnest: y\nipconfig0: z\n");
        assert_eq!(file.indexed("net"), [(0, "a"), (2, "b"), (10, "c")]);
    }

    #[test]
    fn the_digest_is_sha1_of_the_text() {
        assert_eq!(ConfigFile::parse("").digest, "da39a3ee5e6b4b0d3255bfef95601890afd80709");
    }
}
