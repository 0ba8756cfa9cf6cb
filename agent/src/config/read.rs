//! Reads values out of a TOML document and collects every mistake with its line.

use std::{
    cell::RefCell,
    net::SocketAddr,
    ops::{Range, RangeInclusive},
    path::PathBuf,
    time::Duration,
};

use toml::de::{DeTable, DeValue};

use super::mistake::Mistake;

/// A document being read.
pub(super) struct Document<'a> {
    text: &'a str,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, mistakes: RefCell::new(Vec::new()) }
    }

    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        self.text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1)
    }

    /// The value as the file has it, cut to one line of 80 characters.
    fn shown(&self, span: &Range<usize>) -> String {
        self.text.get(span.clone()).unwrap_or_default().lines().next().unwrap_or_default().chars().take(80).collect()
    }

    pub(super) fn push(&self, mistake: Mistake) {
        self.mistakes.borrow_mut().push(mistake);
    }

    /// All mistakes, by line.
    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        let mut list = self.mistakes.into_inner();
        list.sort_by_key(|m| m.line);
        list
    }
}

/// Why a value is refused: the problem and the remedy.
pub(super) type Refusal = (String, String);

/// One table of the document.
pub(super) struct Section<'d, 'a> {
    document: &'d Document<'a>,
    path: String,
    table: Option<&'d DeTable<'a>>,
    line: usize,
    known: Vec<&'static str>,
}

impl<'d, 'a> Section<'d, 'a> {
    pub(super) fn root(document: &'d Document<'a>, table: &'d DeTable<'a>) -> Self {
        Self { document, path: String::new(), table: Some(table), line: 1, known: Vec::new() }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The line of a key; of the section where the key is missing; 0 where that is missing too.
    fn line_of(&self, key: &str) -> usize {
        let entry = self.table.and_then(|t| t.iter().find(|(k, _)| k.get_ref() == key));
        entry.map_or(if self.table.is_some() && !self.path.is_empty() { self.line } else { 0 }, |(k, _)| self.document.line(&k.span()))
    }

    /// Whether the file has the key, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|t| t.contains_key(key))
    }

    pub(super) fn refuse(&self, key: &str, value: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) {
        self.document.push(Mistake {
            line: self.line_of(key),
            key: self.path_of(key),
            value: value.into(),
            problem: problem.into(),
            remedy: remedy.into(),
        });
    }

    /// A value, read by `read`; `None` when it is missing or refused.
    fn value<T>(&mut self, key: &'static str, read: impl FnOnce(&DeValue<'a>) -> Result<T, Refusal>) -> Option<T> {
        self.known.push(key);
        let value = self.table?.get(key)?;
        match read(value.get_ref()) {
            Ok(v) => Some(v),
            Err((problem, remedy)) => {
                self.refuse(key, self.document.shown(&value.span()), problem, remedy);
                None
            }
        }
    }

    /// Text that `read` understands.
    pub(super) fn text<T>(&mut self, key: &'static str, read: impl FnOnce(&str) -> Result<T, Refusal>) -> Option<T> {
        self.value(key, |v| match v.as_str() {
            Some(text) => read(text),
            None => Err((format!("is {}, not text", article(v)), "put it in quotes".to_owned())),
        })
    }

    /// An absolute path.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text(key, |t| {
            if t.starts_with('/') { Ok(PathBuf::from(t)) } else { Err(("is no absolute path".into(), "begin it with '/'".into())) }
        })
    }

    /// An IP address with port.
    pub(super) fn address(&mut self, key: &'static str) -> Option<SocketAddr> {
        self.text(key, |t| t.parse().map_err(|_| ("is no IP address with port".into(), "write it like 127.0.0.1:85 or [::]:7443".into())))
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        self.text(key, |t| {
            choices.iter().find(|(name, _)| *name == t).map(|(_, v)| *v).ok_or_else(|| {
                let names: Vec<String> = choices.iter().map(|(n, _)| format!("\"{n}\"")).collect();
                ("is not known".into(), format!("use {}", names.join(" or ")))
            })
        })
    }

    /// A whole number within a range.
    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        self.value(key, |v| {
            let (first, last) = (range.start(), range.end());
            let Some(number) = v.as_integer() else {
                return Err((format!("is {}, not a whole number", article(v)), format!("use {first} to {last}, without quotes")));
            };
            let parsed = i64::from_str_radix(number.as_str(), number.radix()).ok().and_then(|n| u32::try_from(n).ok());
            parsed
                .filter(|n| range.contains(n))
                .ok_or_else(|| (format!("is outside {first} to {last}"), format!("use a number from {first} to {last}")))
        })
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.value(key, |v| v.as_bool().ok_or_else(|| (format!("is {}", article(v)), "use true or false, without quotes".into())))
    }

    /// A duration such as "250ms", "30s", "5m", "2h", "1d", within a range.
    pub(super) fn duration(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let bounds = format!("{} to {}", show_duration(*range.start()), show_duration(*range.end()));
        self.text(key, |t| {
            let d = parse_duration(t).ok_or_else(|| {
                (
                    "is no duration".to_owned(),
                    "write a whole number with a unit, like \"250ms\", \"30s\", \"5m\", \"2h\" or \"1d\"".to_owned(),
                )
            })?;
            if range.contains(&d) { Ok(d) } else { Err((format!("is outside {bounds}"), format!("use a duration from {bounds}"))) }
        })
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.value(key, |v| {
            let wrong = || ("is no list of texts".to_owned(), "write it like [\"a\", \"b\"]".to_owned());
            let list = v.as_array().ok_or_else(wrong)?;
            list.iter().map(|e| e.get_ref().as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        })
    }

    /// The table below `key`; an empty one when it is missing.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'d, 'a> {
        self.known.push(key);
        let (mut table, mut line) = (None, 0);
        if let Some((name, value)) = self.table.and_then(|t| t.get_key_value(key)) {
            line = self.document.line(&name.span());
            table = value.get_ref().as_table();
            if table.is_none() {
                let path = self.path_of(key);
                self.refuse(key, self.document.shown(&value.span()), "is no section", format!("write [{path}] on a line of its own"));
            }
        }
        Section { document: self.document, path: self.path_of(key), table, line, known: Vec::new() }
    }

    /// All tables `[[key]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'d, 'a>> {
        self.known.push(key);
        let Some(value) = self.table.and_then(|t| t.get(key)) else { return Vec::new() };
        let tables: Option<Vec<_>> =
            value.get_ref().as_array().and_then(|list| list.iter().map(|e| e.get_ref().as_table().map(|t| (e.span(), t))).collect());
        let Some(tables) = tables else {
            self.refuse(key, self.document.shown(&value.span()), "is no list of sections", format!("write [[{key}]] before each of them"));
            return Vec::new();
        };
        let section = |(i, (span, table)): (usize, (Range<usize>, &'d DeTable<'a>))| Section {
            document: self.document,
            path: format!("{key}[{i}]"),
            table: Some(table),
            line: self.document.line(&span),
            known: Vec::new(),
        };
        tables.into_iter().enumerate().map(section).collect()
    }

    /// Reports the keys that were never asked for.
    pub(super) fn finish(self) {
        for (name, _) in self.table.into_iter().flat_map(DeTable::iter) {
            let key = name.get_ref().as_ref();
            if self.known.contains(&key) {
                continue;
            }
            let remedy = match nearest(key, &self.known) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.refuse(key, "", "is no key of the agent's configuration", remedy);
        }
    }
}

fn article(value: &DeValue<'_>) -> String {
    let kind = value.type_str();
    if kind.starts_with(['a', 'i']) { format!("an {kind}") } else { format!("a {kind}") }
}

/// The known key that a mistyped one probably means.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let close = |k: &&'static str| (distance(key, k), *k);
    known.iter().map(close).filter(|(d, k)| *d <= (k.len() / 3).clamp(2, 3)).min().map(|(_, k)| k)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = if x == y { diagonal } else { diagonal + 1 };
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u64 = text[..text.len() - unit.len()].parse().ok()?;
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*millis).map(Duration::from_millis)
}

pub(super) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, size) = UNITS.iter().rev().find(|(_, size)| millis >= *size && millis % size == 0).unwrap_or(&UNITS[1]);
    format!("{}{unit}", millis / size)
}
