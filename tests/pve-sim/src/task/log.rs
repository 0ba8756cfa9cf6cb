//! Task logs: one file a task, which ends in a line that tells how it ended.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

use super::Upid;
use crate::{api::failure::os_text, layout::NodeLayout};

/// Where the log of a task lies.
pub fn path(layout: &NodeLayout, upid: &Upid) -> PathBuf {
    layout.tasks().join(upid.log_name())
}

/// The text of a log: UTF-8, or one byte a character.
pub fn decoded(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// How an ended task ended: `OK`, `WARNINGS: n`, its error, or `unexpected status` when the log has no end line.
pub fn exit_status(layout: &NodeLayout, upid: &Upid) -> String {
    match last_bytes(layout, upid) {
        Ok(text) => status_in(&text),
        Err(error) => format!("unable to open file - {}", os_text(&error)),
    }
}

fn last_bytes(layout: &NodeLayout, upid: &Upid) -> io::Result<String> {
    const TAIL: u64 = 4096;
    let mut file = File::open(path(layout, upid))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(decoded(&bytes))
}

fn status_in(text: &str) -> String {
    let Some(last) = text.strip_suffix('\n').unwrap_or(text).rsplit('\n').next().filter(|line| !line.is_empty()) else {
        return String::from("unexpected status");
    };
    match last.strip_prefix("TASK ") {
        Some("OK") => String::from("OK"),
        Some(rest) if rest.starts_with("WARNINGS: ") => rest.to_owned(),
        Some(rest) => rest.strip_prefix("ERROR: ").map_or_else(|| String::from("unexpected status"), str::to_owned),
        None => String::from("unexpected status"),
    }
}

/// Lines `start..start + limit` (limit 0: all) with their numbers from 1, and the number of all lines.
pub fn lines(layout: &NodeLayout, upid: &Upid, start: usize, limit: usize) -> (Vec<(usize, String)>, usize) {
    let text = match fs::read(path(layout, upid)) {
        Ok(bytes) => decoded(&bytes),
        Err(error) => return (vec![(1, format!("unable to open file - {}", os_text(&error)))], 1),
    };
    if text.is_empty() {
        return (vec![(1, String::from("no content"))], 1);
    }
    let all: Vec<&str> = text.lines().collect();
    let limit = if limit == 0 { usize::MAX } else { limit };
    let page = all.iter().enumerate().skip(start).take(limit).map(|(n, line)| (n + 1, (*line).to_owned())).collect();
    (page, all.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_tells_how_a_task_ended() {
        let cases = [
            ("a\nTASK OK\n", "OK"),
            ("TASK WARNINGS: 2\n", "WARNINGS: 2"),
            ("x\nTASK ERROR: VM is locked (clone)\n", "VM is locked (clone)"),
            ("transferred 1.0 GiB\n", "unexpected status"),
            ("TASK OK\n\n", "unexpected status"),
            ("", "unexpected status"),
        ];
        for (text, status) in cases {
            assert_eq!(status_in(text), status, "{text:?}");
        }
    }
}
