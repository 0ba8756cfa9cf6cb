//! `qemu-img`: formats are always told, never guessed, and what an image refers to is never opened unasked.

use std::{ffi::OsString, path::Path, time::Duration, time::SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Image, Snapshot,
    command::{Ended, Tool, failed},
};
use crate::error::Error;

const PROGRAM: &str = "qemu-img";

/// What `qemu-img info` tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Info {
    pub(super) virtual_size: u64,
    #[serde(default)]
    snapshots: Vec<Internal>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Internal {
    name: String,
    #[serde(default)]
    date_sec: u64,
    #[serde(default)]
    date_nsec: u32,
}

impl Info {
    /// Snapshots inside the image, as they stand in its table: oldest first.
    pub(super) fn snapshots(self) -> Vec<Snapshot> {
        let time = |s: &Internal| SystemTime::UNIX_EPOCH.checked_add(Duration::new(s.date_sec, s.date_nsec.min(999_999_999)));
        self.snapshots.into_iter().map(|s| Snapshot { created: time(&s), name: s.name }).collect()
    }
}

fn tool(storage: &str, verb: &str) -> Tool {
    Tool::new(storage, PROGRAM).arg(verb)
}

fn parse<T: for<'a> Deserialize<'a>>(storage: &str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|e| failed(storage, format!("{PROGRAM} told what cannot be read: {e}")))
}

/// Size and snapshots of an image, which a guest may be using.
pub(super) async fn info(storage: &str, format: &str, url: impl Into<OsString>) -> Result<Info, Error> {
    let text = tool(storage, "info").args(["-U", "-f", format, "--output=json"]).arg(url).read().await?;
    parse(storage, &text)
}

/// All that `qemu-img info` tells of an image that was handed over open.
pub(super) async fn info_of_open(storage: &str, format: &str, image: &Image) -> Result<Value, Error> {
    let text = tool(storage, "info").args(["-f", format, "--output=json", STDIN]).stdin(&image.file)?.read().await?;
    parse(storage, &text)
}

/// How `qemu-img check` ended: 0 sound, 2 damaged, 3 leaks alone. It reads all tables, which takes long for a large image.
pub(super) async fn check_open(storage: &str, format: &str, image: &Image) -> Result<Ended, Error> {
    tool(storage, "check").args(["-f", format, "--output=json", STDIN]).stdin(&image.file)?.followed(|_| ()).await
}

/// What an open image is called in the tool's arguments: nobody can put another file in its place.
const STDIN: &str = "/proc/self/fd/0";

/// An open image as a source: without its backing file, whatever its header says by now.
pub(super) fn open_url(format: &str) -> String {
    let mut url = json!({ "driver": format, "file": { "driver": "file", "filename": STDIN } });
    if format == "qcow2" {
        url["backing"] = Value::Null;
    }
    format!("json:{url}")
}

/// Grows an image that nobody uses.
pub(super) async fn resize(storage: &str, format: &str, path: &Path, bytes: u64) -> Result<(), Error> {
    tool(storage, "resize").args(["-q", "-f", format]).arg(path).arg(bytes.to_string()).change().await.map(drop)
}

/// `-c`, `-d` or `-a` of a snapshot inside an image that nobody uses.
pub(super) async fn snapshot(storage: &str, flag: &str, name: &str, path: &Path) -> Result<(), Error> {
    tool(storage, "snapshot").args(["-q", flag, name]).arg(path).change().await.map(drop)
}

/// Whether all of an image surely reads as zeros.
pub(super) async fn reads_zero(storage: &str, format: &str, path: &Path) -> bool {
    #[derive(Deserialize)]
    struct Extent {
        zero: bool,
    }
    let Ok(text) = tool(storage, "map").args(["--output=json", "-f", format]).arg(path).read().await else { return false };
    parse::<Vec<Extent>>(storage, &text).is_ok_and(|extents| !extents.is_empty() && extents.iter().all(|e| e.zero))
}

/// Makes all of an image read as zeros, without writing them where the format can say so.
pub(super) async fn wipe(storage: &str, format: &str, path: &Path, size: u64) -> Result<(), Error> {
    let zeros = json!({ "driver": "raw", "file": { "driver": "null-co", "size": size, "read-zeroes": true } });
    let tool = tool(storage, "convert").args(["-n", "-t", "writeback", "-O", format]).arg(format!("json:{zeros}")).arg(path);
    tool.follow(|_| ()).await
}

/// A conversion into an existing target.
#[derive(Debug)]
pub(super) struct Convert<'a> {
    /// `None`: the source's own description tells it.
    pub(super) source_format: Option<&'a str>,
    pub(super) source: &'a str,
    pub(super) source_direct: bool,
    pub(super) snapshot: Option<&'a str>,
    pub(super) format: &'a str,
    pub(super) target: &'a str,
    pub(super) target_direct: bool,
    /// The target is known to read as zeros, so that they are left out.
    pub(super) zero: bool,
}

impl Convert<'_> {
    /// Runs it; `progress` gets hundredths of per cent.
    pub(super) async fn run(self, storage: &str, image: Option<&Image>, mut progress: impl FnMut(u32) + Send) -> Result<(), Error> {
        let cache = |direct| if direct { "none" } else { "writeback" };
        // Not the default "unsafe" for the target: that never flushes.
        let mut tool = tool(storage, "convert").args(["-n", "-p", "-T", cache(self.source_direct), "-t", cache(self.target_direct)]);
        if self.zero {
            tool = tool.arg("--target-is-zero");
        }
        if let Some(format) = self.source_format {
            tool = tool.args(["-f", format]);
        }
        if let Some(snapshot) = self.snapshot {
            tool = tool.arg("-l").arg(format!("snapshot.name={snapshot}"));
        }
        tool = tool.args(["-O", self.format, self.source, self.target]);
        if let Some(image) = image {
            tool = tool.stdin(&image.file)?;
        }
        let mut parser = Progress::default();
        tool.follow(|bytes| parser.feed(bytes).into_iter().for_each(&mut progress)).await
    }
}

/// Reads `    (12.34/100%)\r` from what comes in pieces.
#[derive(Debug, Default)]
struct Progress {
    line: Vec<u8>,
}

/// Longer than any line of progress: what is longer is something else.
const LINE_MAX: usize = 256;

impl Progress {
    /// The last hundredths of per cent that the bytes tell, if any.
    fn feed(&mut self, bytes: &[u8]) -> Option<u32> {
        let mut last = None;
        for &byte in bytes {
            if byte == b'\r' || byte == b'\n' {
                last = percent(&self.line).or(last);
                self.line.clear();
            } else if self.line.len() < LINE_MAX {
                self.line.push(byte);
            }
        }
        last
    }
}

fn percent(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?.trim().strip_prefix('(')?.strip_suffix("/100%)")?;
    let (whole, part) = text.split_once('.')?;
    let (whole, hundredths): (u32, u32) = (whole.parse().ok()?, part.parse().ok()?);
    (part.len() == 2 && whole <= 100).then(|| (whole * 100 + hundredths).min(10_000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn progress_is_read_from_pieces_of_any_size() {
        let text = b"    (0.00/100%)\r    (12.34/100%)\r    (100.00/100%)\r    (100.00/100%)\r\n";
        for piece in 1..text.len() {
            let mut parser = Progress::default();
            let seen: Vec<u32> = text.chunks(piece).filter_map(|c| parser.feed(c)).collect();
            assert!(seen.is_sorted() && seen.last() == Some(&10_000), "pieces of {piece}: {seen:?}");
        }
        let mut parser = Progress::default();
        assert_eq!((parser.feed(b"  (12.3"), parser.feed(b"4/100%)\r (9")), (None, Some(1234)));
    }

    #[test]
    fn what_is_no_progress_is_passed_over() {
        for text in ["", "(1/100%)", "(101.00/100%)", "(-1.00/100%)", "(1.0/100%)", "(1.00/200%)", "qemu-img: error", "((1.00/100%)"] {
            assert_eq!(percent(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_output_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Progress::default().feed(&bytes);
        }
    }
}
