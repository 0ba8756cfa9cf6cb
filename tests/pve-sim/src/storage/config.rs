//! `/etc/pve/storage.cfg`: sections of `type: id` with one indented option a line.

use std::{collections::BTreeMap, fs, io};

use sha1::{Digest, Sha1};

use crate::layout::NodeLayout;

/// One storage as it is configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Its id.
    pub id: String,
    /// `dir`, `btrfs`, `nfs` ...
    pub kind: String,
    /// The options as they stand in the file; a flag without a value is "1".
    pub options: BTreeMap<String, String>,
}

/// Types that all nodes see alike.
const SHARED_KINDS: [&str; 7] = ["nfs", "cifs", "cephfs", "rbd", "iscsi", "iscsidirect", "pbs"];
/// The types that PVE knows; a section of another is left out.
pub(crate) const KINDS: [&str; 14] =
    ["btrfs", "cephfs", "cifs", "dir", "esxi", "iscsi", "iscsidirect", "lvm", "lvmthin", "nfs", "pbs", "rbd", "zfs", "zfspool"];
/// Options that PVE knows for file-based storages; others are dropped with a warning.
const KNOWN: [&str; 19] = [
    "path",
    "content",
    "nodes",
    "disable",
    "shared",
    "is_mountpoint",
    "prune-backups",
    "content-dirs",
    "preallocation",
    "priority",
    "mkdir",
    "format",
    "bwlimit",
    "server",
    "export",
    "create-subdirs",
    "create-base-path",
    "snapshot-as-volume-chain",
    "max-protected-backups",
];
/// What `local` may hold when it is not configured.
const LOCAL_CONTENT: &str = "backup,images,iso,rootdir,snippets,vztmpl";
/// What a storage without `content` may hold.
const DEFAULT_CONTENT: &str = "images,rootdir";

impl Storage {
    /// An option's text.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// Whether a flag is set.
    pub fn flag(&self, name: &str) -> bool {
        self.option(name).is_some_and(|value| value == "1")
    }

    /// Where it is on a real host; empty for one without a path.
    pub fn path(&self) -> &str {
        self.option("path").unwrap_or_default()
    }

    /// What it may hold, in alphabetical order.
    pub fn content(&self) -> Vec<&str> {
        let mut list: Vec<&str> =
            self.option("content").unwrap_or(DEFAULT_CONTENT).split(',').map(str::trim).filter(|c| !c.is_empty()).collect();
        list.sort_unstable();
        list
    }

    /// The nodes that it is limited to, in alphabetical order; none: all.
    pub fn nodes(&self) -> Option<Vec<&str>> {
        let mut list: Vec<&str> = self.option("nodes")?.split([',', ' ', ';']).filter(|n| !n.is_empty()).collect();
        list.sort_unstable();
        Some(list)
    }

    /// Whether `node` may use it.
    pub fn is_for(&self, node: &str) -> bool {
        self.nodes().is_none_or(|nodes| nodes.contains(&node))
    }

    /// Whether its volumes are seen by all nodes.
    pub fn is_shared(&self) -> bool {
        self.flag("shared") || SHARED_KINDS.contains(&self.kind.as_str())
    }

    /// The image formats that it can hold; the first is the default.
    pub fn formats(&self) -> &'static [&'static str] {
        match self.kind.as_str() {
            "btrfs" => &["raw", "subvol"],
            _ => &["raw", "qcow2", "subvol", "vmdk"],
        }
    }

    /// The folder of a content type below the storage's path.
    pub fn folder(&self, content: &str) -> String {
        let configured = self.option("content-dirs").into_iter().flat_map(|dirs| dirs.split(','));
        let own = configured.filter_map(|dir| dir.split_once('=')).find(|(name, _)| *name == content).map(|(_, path)| path.to_owned());
        own.unwrap_or_else(|| {
            String::from(match content {
                "iso" => "template/iso",
                "vztmpl" => "template/cache",
                "backup" => "dump",
                "rootdir" => "private",
                other => other,
            })
        })
    }
}

/// The whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The storages in the order of the file, `local` always among them.
    pub storages: Vec<Storage>,
    /// SHA-1 of the file's text.
    pub digest: String,
}

impl Config {
    /// Reads the node's `storage.cfg`; a missing file is an empty one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(layout: &NodeLayout) -> io::Result<Self> {
        match fs::read_to_string(layout.etc_pve().join("storage.cfg")) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::parse("")),
            Err(error) => Err(error),
        }
    }

    /// Parses a text. What PVE only warns about (a line that is no option, an unknown option, an option given twice) is left out.
    pub fn parse(text: &str) -> Self {
        let mut storages: Vec<Storage> = Vec::new();
        let mut open = false;
        // Only an empty line ends a section: one with a carriage return in it does not.
        for line in text.split('\n') {
            if line.is_empty() {
                open = false;
            } else if let (true, Some(storage)) = (open, storages.last_mut()) {
                if line.starts_with([' ', '\t']) {
                    let (key, value) = line.trim().split_once(char::is_whitespace).map_or((line.trim(), "1"), |(k, v)| (k, v.trim()));
                    if KNOWN.contains(&key) {
                        storage.options.entry(key.to_owned()).or_insert_with(|| value.to_owned());
                    }
                }
            } else if let Some((kind, id)) = header(line) {
                storages.retain(|storage| storage.id != id);
                storages.push(Storage { id: id.to_owned(), kind: kind.to_owned(), options: BTreeMap::new() });
                open = true;
            }
        }
        let mut config = Self { storages, digest: hex::encode(Sha1::digest(text.as_bytes())) };
        config.keep_local();
        config
    }

    /// `local` is always there, of type dir, at its place, and for every node.
    fn keep_local(&mut self) {
        let fine = |s: &Storage| s.kind == "dir" && s.option("path").is_none_or(|path| path == "/var/lib/vz");
        match self.storages.iter_mut().find(|storage| storage.id == "local") {
            Some(local) if fine(local) => {
                local.options.insert(String::from("path"), String::from("/var/lib/vz"));
                local.options.remove("nodes");
            }
            _ => {
                let options = [("path", "/var/lib/vz"), ("priority", "0"), ("prune-backups", "keep-all=1"), ("content", LOCAL_CONTENT)];
                self.storages.retain(|storage| storage.id != "local");
                self.storages.push(Storage {
                    id: String::from("local"),
                    kind: String::from("dir"),
                    options: options.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                });
            }
        }
    }

    /// The storage of this id.
    pub fn get(&self, id: &str) -> Option<&Storage> {
        self.storages.iter().find(|storage| storage.id == id)
    }

    /// The first storage that lacks what its type must have: PVE then answers that it does not exist.
    pub fn broken(&self) -> Option<&Storage> {
        self.storages.iter().find(|storage| matches!(storage.kind.as_str(), "dir" | "btrfs") && storage.option("path").is_none())
    }

    /// The text that PVE writes.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for storage in &self.storages {
            text += &format!("{}: {}\n", storage.kind, storage.id);
            if storage.flag("disable") {
                text += "\tdisable\n";
            }
            let first = ["path", "server", "export"];
            let rest = storage.options.keys().map(String::as_str).filter(|key| *key != "disable" && !first.contains(key));
            for key in first.into_iter().chain(rest) {
                if let Some(value) = storage.option(key) {
                    text += &format!("\t{key} {value}\n");
                }
            }
            text.push('\n');
        }
        text
    }
}

fn header(line: &str) -> Option<(&str, &str)> {
    let (kind, id) = line.split_once(':')?;
    let id = id.trim();
    let valid = KINDS.contains(&kind) && !id.is_empty() && !id.contains(char::is_whitespace);
    valid.then_some((kind, id))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str =
        "dir: local\n\tpath /var/lib/vz\n\tcontent iso,images\n\tnodes other\n\ndir: off\n\tdisable\n\tpath /srv/raw\n\tcontent images\n\n";

    #[test]
    fn local_is_for_every_node() {
        assert!(Config::parse(TEXT).get("local").unwrap().is_for("pve1"));
    }

    #[test]
    fn an_empty_or_garbled_file_leaves_local_alone() {
        for text in ["", "what is this\n"] {
            let config = Config::parse(text);
            assert_eq!(config.storages.len(), 1);
            assert_eq!(config.storages[0].content(), ["backup", "images", "iso", "rootdir", "snippets", "vztmpl"]);
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let config = Config::parse(TEXT);
        let again = Config::parse(&config.render());
        assert_eq!(config.storages, again.storages);
        assert!(config.render().ends_with("dir: off\n\tdisable\n\tpath /srv/raw\n\tcontent images\n\n"));
    }

    #[test]
    fn sections_without_a_blank_line_between_them_run_together() {
        let config = Config::parse("dir: local\n\tpath /var/lib/vz\ndir: two\n\tpath /srv/two\n\tdisable\n");
        assert_eq!(config.storages.len(), 1);
        assert!(config.storages[0].flag("disable"));
        assert_eq!(config.storages[0].path(), "/var/lib/vz");
    }
}
