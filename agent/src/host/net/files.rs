//! Reading the texts that declare the network, with what they source, as ifupdown2 does. Blocking: for a thread that may wait.

use std::{
    fs,
    io::{self, Read as _},
    path::{Component, Path, PathBuf},
};

use super::{Files, NetPaths, OWN_FILE, TextFile};
use crate::{error::Error, network::declared};

/// How deep `source` lines may lead, and to how many files in all.
const DEPTH: usize = 16;
const FILES: usize = 1024;
/// The largest text that is read.
const SIZE: u64 = 4 << 20;
/// Where ifupdown2 has its files; texts name them so wherever `NetPaths` says they lie.
const ETC_NETWORK: &str = "/etc/network";
/// The tool that ifupdown2 has and the older ifupdown has not.
const IFRELOAD: [&str; 2] = ["/usr/sbin/ifreload", "/sbin/ifreload"];

fn failed(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::NetworkFailed { message: format!("{}: {why}", path.display()) }
}

/// Everything but SDN's configuration, which lies on the cluster file system. Errors: `NetworkFailed` when a text cannot be read, or `source`
/// lines lead to too many.
pub(super) fn read(paths: &NetPaths) -> Result<Files, Error> {
    let own_path = paths.etc_network.join("interfaces.d").join(OWN_FILE);
    let mut walk = Walk { paths, own_path: &own_path, out: Vec::new(), own_is_sourced: false, seen: 0, stack: Vec::new() };
    walk.file(&paths.etc_network.join("interfaces"))?;
    let (declared, own_is_sourced) = (walk.out, walk.own_is_sourced);
    Ok(Files {
        declared,
        own: text(&own_path)?,
        own_is_sourced,
        ifupdown2: Some(IFRELOAD.iter().any(|path| Path::new(path).exists())),
        staged: text(&paths.etc_network.join("interfaces.new"))?,
        corosync: text(&paths.corosync)?,
        sdn: Vec::new(),
        sdn_known: false,
    })
}

/// What lies below `/etc/pve/sdn`, hidden files included. May hang with the cluster file system: the caller has a deadline. Errors:
/// `NetworkFailed` when a file is there and cannot be read.
pub(super) fn read_sdn(paths: &NetPaths) -> Result<Vec<TextFile>, Error> {
    let mut out = Vec::new();
    let root = paths.etc_pve.join("sdn");
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder).map_err(|e| failed(&folder, e))? {
            match fs::symlink_metadata(&path) {
                // SDN keeps what belongs together in folders one below its own.
                Ok(meta) if meta.is_dir() && folder == root => folders.push(path),
                Ok(meta) if meta.is_file() => out.extend(text(&path)?),
                _ => {}
            }
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

/// The paths in a folder, sorted; empty when there is none.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let list = match fs::read_dir(folder) {
        Ok(list) => list,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut out: Vec<PathBuf> = list.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    out.sort();
    Ok(out)
}

/// A file's text; `None` when there is no such file. A pipe or device is none either: reading it might never end.
fn text(path: &Path) -> Result<Option<TextFile>, Error> {
    let read = || -> io::Result<Option<TextFile>> {
        if !fs::metadata(path)?.is_file() {
            return Ok(None);
        }
        let mut file = fs::File::open(path)?;
        let meta = file.metadata()?;
        if meta.len() > SIZE {
            return Err(io::Error::other(format!("larger than {} MiB", SIZE >> 20)));
        }
        let mut bytes = Vec::new();
        file.by_ref().take(SIZE).read_to_end(&mut bytes)?;
        let text = String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        Ok(Some(TextFile { path: path.to_owned(), text, modified: meta.modified().ok() }))
    };
    match read() {
        Ok(found) => Ok(found),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(failed(path, e)),
    }
}

struct Walk<'a> {
    paths: &'a NetPaths,
    own_path: &'a Path,
    out: Vec<TextFile>,
    own_is_sourced: bool,
    seen: usize,
    /// The files whose `source` lines led here: none of them is read again inside itself.
    stack: Vec<PathBuf>,
}

impl Walk<'_> {
    fn file(&mut self, path: &Path) -> Result<(), Error> {
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if same(path, self.own_path) || fs::canonicalize(self.own_path).is_ok_and(|own| own == real) {
            self.own_is_sourced = true;
            return Ok(());
        }
        if self.stack.contains(&real) || self.stack.len() >= DEPTH {
            return Ok(());
        }
        self.seen += 1;
        if self.seen > FILES {
            return Err(failed(path, format_args!("'source' lines lead to more than {FILES} files; look for a circle")));
        }
        let Some(file) = text(path)? else { return Ok(()) };
        let sources = declared::sources(&file.text);
        self.out.push(file);
        self.stack.push(real);
        for source in sources {
            self.source(path, &source)?;
        }
        self.stack.pop();
        Ok(())
    }

    fn source(&mut self, from: &Path, source: &declared::Source) -> Result<(), Error> {
        let pattern = self.place(from, &source.target);
        // The own file counts as taken in before it exists.
        let own = if source.folder { self.own_path.parent().unwrap_or(self.own_path) } else { self.own_path };
        self.own_is_sourced |= path_matches(&pattern, own);
        for path in glob(&pattern).map_err(|e| failed(&pattern, e))? {
            if source.folder {
                for path in entries(&path).map_err(|e| failed(&path, e))? {
                    self.file(&path)?;
                }
            } else {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// A target as a path: relative ones from the folder of the text, and `/etc/network` where it lies.
    fn place(&self, from: &Path, target: &str) -> PathBuf {
        let target = Path::new(target);
        match target.strip_prefix(ETC_NETWORK) {
            Ok(rest) => self.paths.etc_network.join(rest),
            Err(_) => from.parent().unwrap_or(Path::new("/")).join(target),
        }
    }
}

/// Whether two paths are the same but for `.` and doubled slashes.
fn same(a: &Path, b: &Path) -> bool {
    a.components().filter(|c| *c != Component::CurDir).eq(b.components().filter(|c| *c != Component::CurDir))
}

/// Whether a pattern takes in a path, whether that exists or not.
fn path_matches(pattern: &Path, path: &Path) -> bool {
    let parts = |p: &Path| {
        p.components().filter(|c| *c != Component::CurDir).map(|c| c.as_os_str().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let (pattern, path) = (parts(pattern), parts(path));
    pattern.len() == path.len() && pattern.iter().zip(&path).all(|(p, n)| p == n || name_matches(p, n))
}

/// The paths that a pattern takes in, sorted.
fn glob(pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let name = part.as_os_str().to_string_lossy();
        if !name.contains(['*', '?', '[']) {
            found = found.into_iter().map(|p| p.join(part)).filter(|p| p.exists()).collect();
            continue;
        }
        let mut next = Vec::new();
        for folder in found {
            for path in entries(&folder)? {
                if path.file_name().is_some_and(|n| name_matches(&name, &n.to_string_lossy())) {
                    next.push(path);
                }
                if next.len() > FILES {
                    return Err(io::Error::other(format!("takes in more than {FILES} files")));
                }
            }
        }
        found = next;
    }
    Ok(found)
}

/// Shell patterns within a name: `*`, `?`, `[a-z]`, `[!a-z]`. A hidden name needs its dot in the pattern.
fn name_matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The last `*`, and up to where it was taken to reach.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => match class(&pattern[p..], name[n]) {
                Some((length, true)) => Some(length),
                Some((_, false)) => None,
                // Never closed: the character itself.
                None => (name[n] == '[').then_some(1),
            },
            Some(c) => (*c == name[n]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(length), _) => {
                p += length;
                n += 1;
            }
            (None, Some((at, reach))) => {
                (p, n) = (at + 1, reach + 1);
                star = Some((at, reach + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// The length of a class at the beginning of a pattern, and whether it takes the character in.
fn class(pattern: &[char], c: char) -> Option<(usize, bool)> {
    let negated = pattern.get(1) == Some(&'!');
    let from = if negated { 2 } else { 1 };
    // A `]` at the very beginning stands for itself.
    let end = from + 1 + pattern.get(from + 1..)?.iter().position(|c| *c == ']')?;
    let inside = &pattern[from..end];
    let mut at = 0;
    let mut hit = false;
    while at < inside.len() {
        if at + 2 < inside.len() && inside[at + 1] == '-' {
            hit |= (inside[at]..=inside[at + 2]).contains(&c);
            at += 3;
        } else {
            hit |= inside[at] == c;
            at += 1;
        }
    }
    Some((end + 1, hit != negated))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
