//! A kubelet's log as the journal of its unit: real journal files, written as journald would.

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime},
};

use pvelet_agent::{
    error::Error,
    host::journal::{Journal, Page, Query, SystemJournal},
};

use crate::kubelet::UNIT;

/// Where Debian puts it (`tests/setup.sh` installs it).
const WRITER: &str = "/lib/systemd/systemd-journal-remote";

/// Writes the log anew as a journal at each read, and lets the agent read that.
pub(crate) struct LogJournal {
    log: PathBuf,
}

impl LogJournal {
    pub(crate) fn new(log: PathBuf) -> Self {
        Self { log }
    }
}

#[tonic::async_trait]
impl Journal for LogJournal {
    async fn read(&self, query: Query, patience: Duration) -> Result<Page, Error> {
        let folder = tempfile::tempdir().unwrap();
        let text = fs::read(&self.log).unwrap_or_default();
        let mut export = String::new();
        let text = String::from_utf8_lossy(&text);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let mut last = text.lines().find_map(written).unwrap_or(u64::try_from(now.as_micros()).unwrap());
        for line in text.lines() {
            // What has no time of its own was written with the line before.
            last = written(line).unwrap_or(last).max(last);
            writeln!(export, "__REALTIME_TIMESTAMP={last}\n__MONOTONIC_TIMESTAMP={last}\n_BOOT_ID=0123456789abcdef0123456789abcdef")
                .unwrap();
            writeln!(export, "_SYSTEMD_UNIT={UNIT}\nMESSAGE={line}\n").unwrap();
        }
        let (from, to) = (folder.path().join("export"), folder.path().join("system.journal"));
        fs::write(&from, export).unwrap();
        let made = Command::new(WRITER).arg(format!("--output={}", to.display())).arg(&from).output();
        let made = made.unwrap_or_else(|e| panic!("{WRITER}: {e}; run `make setup`"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // Cursors of a journal that is written anew name nothing in the next: time tells what is new.
        let newest = query.after.as_ref().and_then(|c| c.parse::<u64>().ok());
        let since = newest.map_or(query.since, |n| (SystemTime::UNIX_EPOCH + Duration::from_micros(n + 1)).max(query.since));
        let mut page = SystemJournal::new(Some(folder.path().to_owned())).read(Query { after: None, since, ..query }, patience).await?;
        let newest = page.entries.last().and_then(|e| e.time.duration_since(SystemTime::UNIX_EPOCH).ok());
        page.cursor = newest.map(|n| n.as_micros().to_string()).or(query.after);
        Ok(page)
    }
}

/// The microsecond at which klog wrote a line: `E1129 02:06:27.123456 ...`, in UTC.
fn written(line: &str) -> Option<u64> {
    let mut words = line.split(' ');
    let (day, time) = (words.next()?.get(1..)?, words.next()?);
    let now = jiff::Timestamp::now();
    let year: i16 = now.strftime("%Y").to_string().parse().ok()?;
    // It tells no year: on New Year's Day a line may be one of the last year.
    let stamp = [year, year - 1].into_iter().find_map(|year| {
        let stamp = jiff::fmt::strtime::parse("%Y%m%d %H:%M:%S%.f %z", format!("{year}{day} {time} +0000")).ok()?.to_timestamp().ok()?;
        (stamp < now + Duration::from_secs(3600)).then_some(stamp)
    })?;
    u64::try_from(stamp.as_microsecond()).ok()
}
