//! The journal of systemd: what a unit has written lately.

#[cfg(any(test, feature = "fakes"))]
pub mod fake;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use systemd::journal::{self, OpenDirectoryOptions, OpenOptions};

use super::blocking::Blocking;
use crate::error::{Error, Trouble};

/// The most of a message that is kept, bytes. Longer ones are cut.
pub const LONGEST: usize = 2048;
/// What libsystemd may unpack of a field, for that.
const THRESHOLD: usize = 2 * LONGEST;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The unit whose processes wrote it.
    pub unit: String,
    /// Nothing older.
    pub since: SystemTime,
    /// Nothing before this entry, nor the entry itself: [`Page::cursor`] of the last answer.
    pub after: Option<String>,
    /// The newest so many.
    pub entries: usize,
    /// The newest so many bytes of messages.
    pub bytes: usize,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was written, by the wall clock.
    pub time: SystemTime,
    /// Its text, at most [`LONGEST`] bytes; bytes that are no UTF-8 are replaced.
    pub message: String,
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries, oldest first.
    pub entries: Vec<Entry>,
    /// Names the newest entry; that of the query where there is no new one.
    pub cursor: Option<String>,
    /// There are more than the query wanted, or than could be read in time: the oldest are left out.
    pub cut: bool,
}

/// The journal. Errors: `Look`: `Missing` when there is no journal or no entry in it, `Denied`, `Garbled` when it is broken, `Silent`.
#[tonic::async_trait]
pub trait Journal: Send + Sync + 'static {
    /// The newest entries of a unit.
    async fn read(&self, query: Query, patience: Duration) -> Result<Page, Error>;
}

/// The journal of this host. Read newest first, so that a huge one costs no more than a small one.
#[derive(Debug, Clone)]
pub struct SystemJournal {
    folder: Option<PathBuf>,
    place: Blocking,
}

impl SystemJournal {
    /// In this folder; `None`: where systemd has it.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, place: Blocking::new() }
    }
}

#[tonic::async_trait]
impl Journal for SystemJournal {
    async fn read(&self, query: Query, patience: Duration) -> Result<Page, Error> {
        let folder = self.folder.clone();
        // The thread gives up by itself, unless the disk hangs.
        let end = Instant::now() + patience.mul_f64(0.8);
        self.place.run("the journal", patience, move || read(folder.as_deref(), &query, end)).await
    }
}

fn look(trouble: Trouble, message: String) -> Error {
    Error::Look { trouble, message }
}

fn name(folder: Option<&Path>) -> String {
    folder.map_or_else(|| "the journal".into(), |f| format!("the journal in {}", f.display()))
}

fn failed(folder: Option<&Path>, error: &systemd::Error) -> Error {
    let trouble = match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => Trouble::Missing,
        (io::ErrorKind::PermissionDenied, _) => Trouble::Denied,
        (_, Some(nix::libc::EBADMSG)) => Trouble::Garbled,
        _ => Trouble::Failed,
    };
    look(trouble, format!("{} cannot be read: {error}", name(folder)))
}

fn open(folder: Option<&Path>) -> Result<journal::Journal, Error> {
    let opened = match folder {
        None => OpenOptions::default().system(true).local_only(true).open(),
        Some(folder) => {
            let path = folder.to_str().filter(|p| !p.contains('\0'));
            let path = path.ok_or_else(|| look(Trouble::Missing, format!("'{}' is no folder of a journal", folder.display())))?;
            OpenDirectoryOptions::default().open_directory(path.to_owned())
        }
    };
    opened.map_err(|e| failed(folder, &e))
}

/// Reads from the newest entry back.
fn read(folder: Option<&Path>, query: &Query, end: Instant) -> Result<Page, Error> {
    let bad = |e: systemd::Error| failed(folder, &e);
    let mut journal = open(folder)?;
    journal.set_data_threshold(THRESHOLD).map_err(bad)?;
    journal.match_add("_SYSTEMD_UNIT", query.unit.as_bytes()).map_err(bad)?;
    journal.seek_tail().map_err(bad)?;
    let mut page = Page { cursor: query.after.clone(), ..Page::default() };
    let mut bytes = 0;
    loop {
        let entry = match step_back(&mut journal, query) {
            Ok(None) => break,
            Ok(Some(entry)) => entry,
            // The file is broken further back: what is newer counts.
            Err(_) if !page.entries.is_empty() => {
                page.cut = true;
                break;
            }
            Err(e) => return Err(bad(e)),
        };
        bytes += entry.message.len();
        if page.entries.len() == query.entries || bytes > query.bytes || Instant::now() > end {
            page.cut = true;
            break;
        }
        if page.entries.is_empty() {
            page.cursor = Some(journal.cursor().map_err(bad)?);
        }
        page.entries.push(entry);
    }
    page.entries.reverse();
    if page.entries.is_empty() && !page.cut {
        has_entries(folder, &mut journal)?;
    }
    Ok(page)
}

/// The entry before the current one, unless that is too old or known already.
fn step_back(journal: &mut journal::Journal, query: &Query) -> systemd::Result<Option<Entry>> {
    if journal.previous()? == 0 {
        return Ok(None);
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(journal.timestamp_usec()?);
    if time < query.since {
        return Ok(None);
    }
    if let Some(after) = &query.after
        && journal.test_cursor(after.as_str())?
    {
        return Ok(None);
    }
    let message = match journal.get_data("MESSAGE")? {
        Some(field) => text(field.value().unwrap_or_default()),
        None => String::new(),
    };
    Ok(Some(Entry { time, message }))
}

/// libsystemd leaves out files that it cannot read, and says nothing: then no entry of anybody is found.
fn has_entries(folder: Option<&Path>, journal: &mut journal::Journal) -> Result<(), Error> {
    let bad = |e: systemd::Error| failed(folder, &e);
    journal.match_flush().map_err(bad)?;
    journal.seek_tail().map_err(bad)?;
    match journal.previous().map_err(bad)? {
        0 => Err(look(Trouble::Missing, format!("{} holds no entry that can be read", name(folder)))),
        _ => Ok(()),
    }
}

fn text(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned();
    // Each byte that is replaced makes three.
    text.truncate(text.floor_char_boundary(LONGEST));
    text
}
