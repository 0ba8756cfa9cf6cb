#![allow(clippy::unwrap_used)]
use std::{fmt::Write as _, fs};

use proptest::prelude::*;

use super::*;

const UNIT: &str = "kubelet.service";
/// When the first entry of a journal here was written, seconds.
const BEGIN: u64 = 1_700_000_000;
const LONG: Duration = Duration::from_secs(60);
/// Where Debian puts it (`tests/setup.sh` installs it).
const WRITER: &str = "/lib/systemd/systemd-journal-remote";

/// Writes a real journal file: entries of (seconds after the beginning, unit, message).
fn write<'a>(folder: &Path, entries: impl IntoIterator<Item = (u64, &'a str, &'a [u8])>) -> PathBuf {
    let mut export = Vec::new();
    for (second, unit, message) in entries {
        let (wall, since_boot) = ((BEGIN + second) * 1_000_000, (100 + second) * 1_000_000);
        let mut head = format!("__REALTIME_TIMESTAMP={wall}\n__MONOTONIC_TIMESTAMP={since_boot}\n");
        writeln!(head, "_BOOT_ID=0123456789abcdef0123456789abcdef\n_SYSTEMD_UNIT={unit}\nMESSAGE").unwrap();
        export.extend_from_slice(head.as_bytes());
        export.extend_from_slice(&(message.len() as u64).to_le_bytes());
        export.extend_from_slice(message);
        export.extend_from_slice(b"\n\n");
    }
    let (text, file) = (folder.join("export"), folder.join("system.journal"));
    fs::write(&text, export).unwrap();
    #[allow(clippy::disallowed_methods, reason = "the test's own tool")]
    let made = std::process::Command::new(WRITER).arg(format!("--output={}", file.display())).arg(&text).output();
    let made = made.unwrap_or_else(|e| panic!("{WRITER}: {e}; run `make setup`"));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::remove_file(text).unwrap();
    file
}

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(BEGIN + second)
}

fn query() -> Query {
    Query { unit: UNIT.into(), since: at(0), after: None, entries: 100, bytes: 1 << 20 }
}

async fn ask(folder: &Path, query: Query) -> Result<Page, Error> {
    SystemJournal::new(Some(folder.to_owned())).read(query, LONG).await
}

fn messages(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|e| e.message.as_str()).collect()
}

fn trouble(error: &Error) -> Trouble {
    match error {
        Error::Look { trouble, .. } => *trouble,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn only_what_the_unit_wrote_since_then_is_told_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let other = "containerd.service";
    write(dir.path(), [(0, UNIT, &b"old"[..]), (10, UNIT, b"one"), (11, other, b"not mine"), (12, UNIT, b"two"), (13, other, b"nor that")]);
    let page = ask(dir.path(), Query { since: at(10), ..query() }).await.unwrap();
    assert_eq!(page.entries, [Entry { time: at(10), message: "one".into() }, Entry { time: at(12), message: "two".into() }]);
    assert!(!page.cut);
}

#[tokio::test]
async fn from_a_cursor_only_what_is_new_comes() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), [(1, UNIT, &b"one"[..]), (2, UNIT, b"two")]);
    let first = ask(dir.path(), query()).await.unwrap();
    let none = ask(dir.path(), Query { after: first.cursor.clone(), ..query() }).await.unwrap();
    assert_eq!((messages(&none), &none.cursor), (vec![], &first.cursor));
    // The same journal goes on.
    let again = tempfile::tempdir().unwrap();
    let file = write(again.path(), [(3, UNIT, &b"three"[..])]);
    fs::rename(file, dir.path().join("system@later.journal")).unwrap();
    let more = ask(dir.path(), Query { after: first.cursor, ..query() }).await.unwrap();
    assert_eq!(messages(&more), ["three"]);
}

#[tokio::test]
async fn a_cursor_whose_entry_is_gone_ends_at_the_time_asked_for() {
    let (dir, gone) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(gone.path(), [(5, UNIT, &b"rotated away"[..])]);
    let cursor = ask(gone.path(), query()).await.unwrap().cursor;
    write(dir.path(), [(1, UNIT, &b"one"[..]), (6, UNIT, b"six")]);
    let page = ask(dir.path(), Query { after: cursor, since: at(5), ..query() }).await.unwrap();
    assert_eq!(messages(&page), ["six"]);
}

#[tokio::test]
async fn of_a_huge_journal_the_newest_entries_are_read_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..30_000).map(|n| format!("E1114 22:13:20.000000 1 kubelet.go:1] line {n:05}")).collect();
    write(dir.path(), texts.iter().enumerate().map(|(n, text)| (n as u64, UNIT, text.as_bytes())));
    let page = ask(dir.path(), query()).await.unwrap();
    assert_eq!((page.entries.len(), page.cut), (100, true));
    assert!(page.entries[99].message.ends_with("line 29999") && page.entries[0].message.ends_with("line 29900"));
    let few = ask(dir.path(), Query { bytes: 3 * texts[0].len(), ..query() }).await.unwrap();
    assert_eq!((few.entries.len(), few.cut), (3, true));
    // A thread that has no time left ends by itself.
    let late = read(Some(dir.path()), &query(), Instant::now()).unwrap();
    assert!(late.cut && late.entries.len() < 100, "{}", late.entries.len());
}

#[tokio::test]
async fn long_messages_are_cut_and_odd_bytes_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let long = vec![b'x'; 3 << 20];
    write(dir.path(), [(1, UNIT, long.as_slice()), (2, UNIT, b"a\xffb\n\x1b[31mc"), (3, UNIT, b"")]);
    let page = ask(dir.path(), query()).await.unwrap();
    assert_eq!(page.entries[0].message, "x".repeat(LONGEST));
    assert_eq!(page.entries[1].message, "a\u{fffd}b\n\u{1b}[31mc");
    assert_eq!(page.entries[2].message, "");
}

#[tokio::test]
async fn without_a_journal_it_is_not_taken_for_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let error = ask(&dir.path().join("none"), query()).await.unwrap_err();
    assert_eq!(trouble(&error), Trouble::Missing, "{error}");
    let error = ask(dir.path(), query()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("the journal in {} holds no entry that can be read", dir.path().display()));
    // One in which others write is quiet.
    write(dir.path(), [(1, "containerd.service", &b"hello"[..])]);
    assert_eq!(ask(dir.path(), query()).await.unwrap(), Page::default());
}

#[tokio::test]
async fn a_broken_file_is_no_quiet_journal_and_hides_no_whole_one() {
    let (dir, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = write(dir.path(), [(1, UNIT, &b"one"[..])]);
    let bytes = fs::read(&file).unwrap();
    for broken in [b"no journal".to_vec(), bytes[..4096].to_vec(), vec![0; bytes.len()]] {
        fs::write(&file, broken).unwrap();
        let error = ask(dir.path(), query()).await.unwrap_err();
        assert!(matches!(trouble(&error), Trouble::Missing | Trouble::Garbled), "{error}");
    }
    let other = write(whole.path(), [(2, UNIT, &b"two"[..])]);
    fs::rename(other, dir.path().join("system@whole.journal")).unwrap();
    assert_eq!(messages(&ask(dir.path(), query()).await.unwrap()), ["two"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever bytes of a file are destroyed, the look ends, with what is left of it or with an error.
    #[test]
    fn destroyed_bytes_end_no_look_badly(holes in prop::collection::vec((0usize..60_000, any::<u8>()), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let file = write(dir.path(), (0..50).map(|n| (n, UNIT, &b"some text of a line"[..])));
        let mut bytes = fs::read(&file).unwrap();
        for (at, byte) in holes {
            if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
        }
        fs::write(&file, bytes).unwrap();
        if let Ok(page) = read(Some(dir.path()), &query(), Instant::now() + LONG) {
            prop_assert!(page.entries.len() <= 100);
        }
    }
}
