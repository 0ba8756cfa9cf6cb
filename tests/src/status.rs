//! What the controller's folder says, and waiting for it: by inotify, never by the clock.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use serde_json::Value;

/// The records of a folder of manifests: file name without its ending -> content.
pub type Records = BTreeMap<String, Value>;

/// Reads all records of a folder.
pub fn records(folder: &Path) -> Records {
    let mut out = Records::new();
    for entry in fs::read_dir(folder).expect("folder of manifests").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(key) = name.strip_suffix(".status.yaml")
            && let Ok(text) = fs::read_to_string(entry.path())
            && let Ok(value) = serde_norway::from_str(&text)
        {
            out.insert(key.to_owned(), value);
        }
    }
    out
}

/// The status ("True", "False", "Unknown") of a condition; empty when there is none.
pub fn condition<'a>(record: &'a Value, kind: &str) -> &'a str {
    condition_field(record, kind, "status")
}

/// The reason of a condition; empty when there is none.
pub fn condition_reason<'a>(record: &'a Value, kind: &str) -> &'a str {
    condition_field(record, kind, "reason")
}

/// A field of a condition; empty when there is none.
pub fn condition_field<'a>(record: &'a Value, kind: &str, field: &str) -> &'a str {
    record["status"]["conditions"]
        .as_array()
        .and_then(|list| list.iter().find(|c| c["type"] == kind))
        .and_then(|c| c[field].as_str())
        .unwrap_or_default()
}

/// How many records whose name begins with `prefix` have a condition that is true.
pub fn count_true(records: &Records, prefix: &str, kind: &str) -> usize {
    records.iter().filter(|(name, record)| name.starts_with(prefix) && condition(record, kind) == "True").count()
}

/// Waits until the records of a folder are as wanted, and returns them.
///
/// # Errors
/// The time is over; the last records are in the text.
pub fn wait_for(folder: &Path, limit: Duration, wanted: impl Fn(&Records) -> bool) -> io::Result<Records> {
    let end = Instant::now() + limit;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(folder, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_CLOSE_WRITE)?;
    loop {
        let now = records(folder);
        if wanted(&now) {
            return Ok(now);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let text = serde_norway::to_string(&now).unwrap_or_default();
            return Err(io::Error::other(format!("not as wanted within {limit:?}:\n{text}")));
        }
        let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], millis)?;
        while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}
