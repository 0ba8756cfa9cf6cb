//! The files as texts with places: what stands where.
//!
//! Only positions are taken from `toml_edit`. It renders a document anew when it is changed (line ends, the byte order mark and the quotes of
//! headers get lost), so edits are cut into the text instead (`edit`).

use std::{ops::Range, path::Path};

use toml_edit::{Document, Item, Key, TableLike};

use crate::host::runtime::ConfigText;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The file's index.
    pub(super) file: usize,
    /// `path:line`.
    pub(super) at: String,
    /// The key, as it is written in TOML, from the root.
    pub(super) key: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.at, self.key)
    }
}

/// Why a file is no TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Syntax {
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
    /// What was expected; nothing of the file's text, which may be a password.
    pub(super) message: String,
}

/// A file, parsed.
#[derive(Debug)]
pub(super) struct Text<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
    pub(super) document: Result<Document<&'a str>, Syntax>,
}

impl<'a> Text<'a> {
    pub(super) fn parse(file: &'a ConfigText) -> Self {
        let document = Document::parse(file.text.as_str()).map_err(|error| {
            let (line, column) = position(&file.text, error.span().map_or(0, |s| s.start));
            Syntax { line, column, message: error.message().lines().collect::<Vec<_>>().join("; ") }
        });
        Self { path: &file.path, text: &file.text, document }
    }

    /// The root; `None`: it is no TOML.
    pub(super) fn root(&self) -> Option<&Item> {
        self.document.as_ref().ok().map(|d| d.as_item())
    }

    /// `version`.
    pub(super) fn version(&self) -> Option<i64> {
        self.root()?.get("version")?.as_integer()
    }

    /// The line of an offset.
    pub(super) fn line(&self, offset: usize) -> usize {
        position(self.text, offset).0
    }

    /// `path:line`.
    pub(super) fn at(&self, offset: usize) -> String {
        format!("{}:{}", self.path.display(), self.line(offset))
    }

    /// Where a key stands, given from the root.
    pub(super) fn place<S: AsRef<str>>(&self, file: usize, path: &[S]) -> Option<Place> {
        let (key, item) = find(self.root()?, path)?;
        let offset = start(key, item)?;
        Some(Place { file, at: self.at(offset), key: dotted(path) })
    }
}

/// Line and column, from 1.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.rfind('\n').map_or(0, |n| n + 1);
    (before.matches('\n').count() + 1, before[line..].trim_start_matches('\u{feff}').chars().count() + 1)
}

/// The tables and keys below an item.
pub(super) fn table(item: &Item) -> Option<&dyn TableLike> {
    item.as_table_like()
}

/// What a path leads to, and its last key.
pub(super) fn find<'i, S: AsRef<str>>(from: &'i Item, path: &[S]) -> Option<(&'i Key, &'i Item)> {
    let (last, parents) = path.split_last()?;
    let mut item = from;
    for key in parents {
        item = table(item)?.get(key.as_ref())?;
    }
    table(item)?.get_key_value(last.as_ref())
}

/// Where an item begins: at its header where it has one, else at its key.
pub(super) fn start(key: &Key, item: &Item) -> Option<usize> {
    header(item).or_else(|| key.span()).map(|s| s.start)
}

/// The span of a table's own header, `[a.b]`.
pub(super) fn header(item: &Item) -> Option<Range<usize>> {
    let table = item.as_table()?;
    if table.is_implicit() || table.is_dotted() { None } else { table.span().filter(|s| !s.is_empty()) }
}

/// The end of the last thing below an item, its own header included.
pub(super) fn end(item: &Item) -> usize {
    let own = match item {
        Item::Value(value) => value.span().map_or(0, |s| s.end),
        Item::Table(_) => header(item).map_or(0, |s| s.end),
        Item::ArrayOfTables(_) | Item::None => 0,
    };
    let below = match item {
        Item::Table(table) => table.iter().map(|(_, item)| end(item)).max(),
        // A dotted key within an inline table has no value of its own.
        Item::Value(value) => value.as_inline_table().and_then(|t| t.iter().filter_map(|(_, v)| v.span()).map(|s| s.end).max()),
        Item::ArrayOfTables(tables) => tables.iter().map(|t| end(&Item::Table(t.clone())).max(t.span().map_or(0, |s| s.end))).max(),
        Item::None => None,
    };
    own.max(below.unwrap_or(0))
}

/// A path as TOML writes it.
pub(super) fn dotted<S: AsRef<str>>(path: &[S]) -> String {
    path.iter().map(|k| Key::new(k.as_ref()).to_string()).collect::<Vec<_>>().join(".")
}
