//! The lists of tasks: `active` (running ones, and the last that ended) and `index` (all that ended).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Upid, log};
use crate::layout::NodeLayout;

/// Ended tasks that stay in `active`.
const KEEP_ENDED: usize = 25;
/// `index` becomes `index.1` when it is longer than this.
const INDEX_MAX: u64 = 50_000;

/// One task of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The task.
    pub upid: Upid,
    /// End time and exit status, none while it runs.
    pub end: Option<(u64, String)>,
}

impl Entry {
    fn parse_active(line: &str) -> Option<Self> {
        let (upid, rest) = line.split_once(' ')?;
        let upid = upid.parse().ok()?;
        let end = rest.strip_prefix("1 ").and_then(|rest| rest.split_once(' ')).and_then(|(time, status)| {
            let time = u64::from_str_radix(time, 16).ok()?;
            Some((time, status.to_owned()))
        });
        Some(Self { upid, end })
    }

    fn parse_index(line: &str) -> Option<Self> {
        let (upid, rest) = line.split_once(' ')?;
        let (time, status) = rest.split_once(' ')?;
        Some(Self { upid: upid.parse().ok()?, end: Some((u64::from_str_radix(time, 16).ok()?, status.to_owned())) })
    }

    fn active_line(&self) -> String {
        match &self.end {
            Some((time, status)) => format!("{} 1 {time:08X} {status}\n", self.upid),
            None => format!("{} 0\n", self.upid),
        }
    }
}

/// Notes a new task, moves tasks that ended into the index, and tells what `active` holds now, the newest first.
///
/// # Errors
/// When the lists cannot be read or written.
pub fn update(layout: &NodeLayout, new: Option<&Upid>) -> io::Result<Vec<Entry>> {
    let folder = layout.tasks();
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join(".active.lock"))?;
    lock.lock()?;
    let text = match fs::read_to_string(folder.join("active")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let mut entries: Vec<Entry> = text.lines().filter_map(Entry::parse_active).collect();
    if let Some(upid) = new {
        entries.insert(0, Entry { upid: upid.clone(), end: None });
    }
    let mut ended = String::new();
    for entry in entries.iter_mut().rev().filter(|entry| entry.end.is_none() && !entry.upid.is_running()) {
        let (time, status) = (now(), log::exit_status(layout, &entry.upid));
        ended += &format!("{} {time:08X} {status}\n", entry.upid);
        entry.end = Some((time, status));
    }
    // Ended tasks come after the running ones; the sort is stable, so that each group stays newest first.
    entries.sort_by_key(|entry| (entry.end.is_some(), std::cmp::Reverse(entry.upid.starttime)));
    let mut kept = 0;
    entries.retain(|entry| {
        kept += usize::from(entry.end.is_some());
        entry.end.is_none() || kept <= KEEP_ENDED
    });
    let active: String = entries.iter().map(Entry::active_line).collect();
    if active != text {
        let temporary = folder.join(".active.tmp");
        fs::write(&temporary, active)?;
        fs::rename(temporary, folder.join("active"))?;
    }
    if !ended.is_empty() {
        let index = folder.join("index");
        if fs::metadata(&index).is_ok_and(|meta| meta.len() > INDEX_MAX) {
            fs::rename(&index, folder.join("index.1"))?;
        }
        OpenOptions::new().create(true).append(true).open(index)?.write_all(ended.as_bytes())?;
    }
    Ok(entries)
}

/// All ended tasks that the index still knows, the newest first.
pub fn ended(layout: &NodeLayout) -> Vec<Entry> {
    let mut entries = Vec::new();
    for name in ["index", "index.1"] {
        let text = fs::read_to_string(layout.tasks().join(name)).unwrap_or_default();
        entries.extend(text.lines().rev().filter_map(Entry::parse_index));
    }
    entries
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn recorded_lines_are_read_and_written() {
        let line = "UPID:pve1:00001648:000CD42A:6B03F862:qmdestroy:507:root@pam: 1 6B03F862 WARNINGS: 1\n";
        let entry = Entry::parse_active(line.trim_end()).unwrap();
        assert_eq!(entry.end, Some((0x6B03_F862, String::from("WARNINGS: 1"))));
        assert_eq!(entry.active_line(), line);
        let running = "UPID:pve1:00001664:000CD507:6B03F864:qmclone:9010:root@pam: 0\n";
        assert_eq!(Entry::parse_active(running.trim_end()).unwrap().active_line(), running);
    }

    #[test]
    fn a_task_without_a_process_is_moved_to_the_index_once() {
        let dir = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(dir.path(), "pve1");
        let upid: Upid = "UPID:pve1:00000001:00000001:6B03F864:qmclone:9010:root@pam:".parse().unwrap();
        let log = log::path(&layout, &upid);
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::write(log, "TASK OK\n").unwrap();
        let active = update(&layout, Some(&upid)).unwrap();
        assert_eq!(active[0].end.as_ref().unwrap().1, "OK");
        update(&layout, None).unwrap();
        assert_eq!(ended(&layout).len(), 1);
    }
}
