//! What the files below `/etc/network` declare, read as ifupdown2 reads them. Only to know who declares what: nothing here is ever written back.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::host::net::TextFile;

/// One `iface` stanza.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stanza {
    /// The interface; of a range such as `swp[1-4]` each has its own.
    pub name: String,
    /// The file it stands in.
    pub file: PathBuf,
    /// The line of `iface`, from 1.
    pub line: usize,
    /// Whether it comes up by itself: an `auto` line for it stands before it.
    pub auto: bool,
    /// Key and value, in order; keys with `-` where the text has `_`.
    pub options: Vec<(String, String)>,
    /// Address family and method; empty when none is named.
    pub family_method: Vec<(String, String)>,
}

impl Stanza {
    /// The first value of an option.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Where it stands, for people: `file:line`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }

    /// Whether it gives the interface addresses, or lets somebody else do it.
    pub fn has_addresses(&self) -> bool {
        self.option("address").is_some() || self.family_method.iter().any(|(_, m)| m.starts_with("dhcp") || m == "ppp")
    }

    /// What it makes ports of itself: bridge ports and bond members. Patterns (`regex`, `glob`) name nobody.
    pub fn ports(&self) -> impl Iterator<Item = &str> {
        const KEYS: [&str; 4] = ["bridge-ports", "bond-slaves", "slaves", "ovs-ports"];
        const WORDS: [&str; 4] = ["none", "regex", "glob", "all"];
        let all = self.options.iter().filter(|(k, _)| KEYS.contains(&k.as_str()));
        all.flat_map(|(_, v)| v.split_whitespace()).filter(|w| !WORDS.contains(w) && !w.contains(['*', '[', '(', '?']))
    }

    /// The link it stands on, if it is a VLAN: by its option, or by its name as ifupdown2 takes it apart.
    pub fn parent(&self) -> Option<&str> {
        if let Some(device) = self.option("vlan-raw-device") {
            return Some(device);
        }
        let dots: Vec<usize> = self.name.match_indices('.').map(|(at, _)| at).collect();
        let cut = match dots.as_slice() {
            [one] => *one,
            [_, two] => *two,
            _ => return None,
        };
        let (parent, id) = (&self.name[..cut], &self.name[cut + 1..]);
        (!parent.is_empty() && !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit())).then_some(parent)
    }
}

/// What all files declare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// In the order of the text.
    pub stanzas: Vec<Stanza>,
    /// What ifupdown2 would complain about, or take otherwise than it looks: `file:line: what`.
    pub problems: Vec<String>,
}

impl Declared {
    /// The stanzas of an interface.
    pub fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Stanza> {
        self.stanzas.iter().filter(move |s| s.name == name)
    }
}

/// A range such as `swp[1-1000000]` is cut here; there are no more interfaces than this anywhere.
const RANGE_MAX: u32 = 4096;
/// The longest name of an interface.
const NAME_MAX: usize = 15;

/// Reads texts in the order given. Never fails: what cannot be read is a problem.
pub fn parse(files: &[TextFile]) -> Declared {
    let mut reader = Reader::default();
    for file in files {
        reader.file(file);
    }
    reader.out
}

/// The targets of `source` and `source-directory` lines of a text, in order.
pub fn sources(text: &str) -> Vec<Source> {
    let mut out = Vec::new();
    for (_, line) in logical_lines(text) {
        let mut words = line.split_whitespace();
        let (word, target) = (words.next(), words.next());
        match (word, target) {
            (Some("source"), Some(t)) => out.push(Source { target: t.to_owned(), folder: false }),
            (Some("source-directory"), Some(t)) => out.push(Source { target: t.to_owned(), folder: true }),
            _ => {}
        }
    }
    out
}

/// A `source` or `source-directory` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A path or pattern, as it stands there.
    pub target: String,
    /// Whether it names folders whose files are meant.
    pub folder: bool,
}

/// Lines with their numbers, as ifupdown2 joins them: *every* backslash, wherever it stands, is a blank, and takes the white space around it,
/// line ends included, with it. Comments are not spared.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = vec![(1, String::new())];
    let mut number = 1;
    for (index, part) in text.split('\\').enumerate() {
        let trimmed = if text.contains('\\') { part.trim() } else { part };
        let skipped = part.len() - part.trim_start().len();
        if trimmed.len() != part.len() {
            number += part[..skipped].matches('\n').count();
        }
        if index > 0
            && let Some((_, last)) = lines.last_mut()
        {
            last.push(' ');
        }
        for (i, piece) in trimmed.split('\n').enumerate() {
            if i > 0 {
                number += 1;
                lines.push((number, String::new()));
            }
            if let Some((at, last)) = lines.last_mut() {
                if last.trim().is_empty() {
                    *at = number;
                }
                last.push_str(piece);
            }
        }
        if trimmed.len() != part.len() {
            number += part[skipped + trimmed.len()..].matches('\n').count();
        }
    }
    lines.into_iter().map(|(n, l)| (n, l.trim().to_owned())).filter(|(_, l)| !l.is_empty() && !l.starts_with('#')).collect()
}

/// Whether a word ends the stanza before it.
fn is_keyword(word: &str) -> bool {
    matches!(word, "source" | "source-directory" | "auto" | "iface" | "vlan" | "allow") || word.starts_with("allow-")
}

#[derive(Default)]
struct Reader {
    out: Declared,
    auto: BTreeSet<String>,
    auto_all: bool,
}

impl Reader {
    fn problem(&mut self, file: &Path, line: usize, what: impl std::fmt::Display) {
        self.out.problems.push(format!("{}:{line}: {what}", file.display()));
    }

    fn file(&mut self, file: &TextFile) {
        let path = &file.path;
        // ifupdown2 gives a text with a `%` in it to its template engine.
        if file.text.contains('%')
            && let Some(at) = file.text.lines().position(|l| l.trim_start().starts_with('%') || l.contains("<%") || l.contains("${"))
        {
            self.problem(path, at + 1, "a template: what it declares is known to ifupdown2 only");
        }
        // Where options go: the stanzas that the last `iface` opened.
        let mut open = 0..0;
        let mut skip = false;
        for (number, line) in logical_lines(&file.text) {
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            let rest: Vec<&str> = words.collect();
            if !is_keyword(first) && first != "mapping" {
                if skip {
                    continue;
                }
                if open.is_empty() {
                    self.problem(path, number, format_args!("'{first}' belongs to no stanza"));
                } else if rest.is_empty() {
                    self.problem(path, number, format_args!("'{first}' has no value"));
                } else {
                    let value = line[first.len()..].trim();
                    for stanza in &mut self.out.stanzas[open.clone()] {
                        stanza.options.push((first.replace('_', "-"), value.replace("$IFACE", &stanza.name)));
                    }
                }
                continue;
            }
            (open, skip) = (0..0, false);
            match first {
                "iface" => open = self.iface(path, number, &rest),
                // Settings of a VLAN inside a bridge, and of ifupdown 1: no interface of their own.
                "vlan" => skip = true,
                "mapping" => {
                    self.problem(path, number, "'mapping' is unknown to ifupdown2");
                    skip = true;
                }
                "source" | "source-directory" if rest.is_empty() => self.problem(path, number, format_args!("'{first}' names nothing")),
                "source" | "source-directory" => {}
                _ if rest.is_empty() => self.problem(path, number, format_args!("'{first}' names no interface")),
                "auto" | "allow-auto" => {
                    self.auto_all |= rest.contains(&"all");
                    self.auto.extend(rest.iter().flat_map(|name| expand(name)));
                }
                _ => {}
            }
        }
    }

    /// Opens the stanzas of an `iface` line.
    fn iface(&mut self, path: &Path, line: usize, words: &[&str]) -> std::ops::Range<usize> {
        let from = self.out.stanzas.len();
        let Some(name) = words.first() else {
            self.problem(path, line, "'iface' names no interface");
            return 0..0;
        };
        let mut rest = &words[1..];
        if rest.first() == Some(&"inherits") {
            self.problem(
                path,
                line,
                format_args!("'{name}' inherits from '{}', which ifupdown2 does not know", rest.get(1).unwrap_or(&"")),
            );
            rest = rest.get(2..).unwrap_or(&[]);
        }
        let family_method = match rest {
            [] => Vec::new(),
            [family @ ("inet" | "inet6"), method @ ..] => {
                vec![((*family).to_owned(), (*method.first().unwrap_or(&"static")).to_owned())]
            }
            [other, ..] => {
                self.problem(path, line, format_args!("'{other}' is no address family of ifupdown2"));
                Vec::new()
            }
        };
        // An alias such as `eth0:1` is the interface itself.
        for name in expand(name.split(':').next().unwrap_or(name)) {
            if name.len() > NAME_MAX {
                self.problem(path, line, format_args!("'{name}' is longer than {NAME_MAX} bytes"));
            }
            let auto = self.auto_all || self.auto.contains(&name);
            let (file, family_method) = (path.to_owned(), family_method.clone());
            self.out.stanzas.push(Stanza { name, file, line, auto, options: Vec::new(), family_method });
        }
        from..self.out.stanzas.len()
    }
}

/// The names of a range such as `swp[1-4]` or `swp[1-4].100`; of anything else, itself.
fn expand(name: &str) -> Vec<String> {
    fn range(name: &str) -> Option<Vec<String>> {
        let (prefix, rest) = name.split_once('[')?;
        let (inside, suffix) = rest.split_once(']')?;
        let (first, last) = inside.split_once('-')?;
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        let plain = |t: &str| t.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'));
        (!prefix.is_empty() && plain(prefix) && plain(suffix))
            .then(|| (first..=last.min(first.saturating_add(RANGE_MAX - 1))).map(|i| format!("{prefix}{i}{suffix}")).collect())
    }
    range(name).unwrap_or_else(|| vec![name.to_owned()])
}

#[cfg(test)]
#[path = "declared_tests.rs"]
mod tests;
