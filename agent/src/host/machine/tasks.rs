//! The tasks of PVE that run.

use std::{fs, path::Path};

use super::{
    RunningTask,
    read::{self, io_error},
};
use crate::{
    error::Error,
    host::{process, pve::Upid},
};

/// PVE keeps some dozens of tasks there.
const LARGEST: u64 = 4 << 20;

/// Tasks of `active` without an end whose process lives.
pub(super) fn running(log: &Path, proc: &Path) -> Result<Vec<RunningTask>, Error> {
    // No task has ever been started here.
    let Some(text) = read::text(&log.join("active"), LARGEST)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for upid in unended(&text) {
        let Some(stat) = process::stat(proc, upid.pid).filter(|s| s.start == upid.pstart && !s.ended()) else { continue };
        found.push(RunningTask { grew: grew(log, &upid)?, state: stat.state, upid });
    }
    Ok(found)
}

/// Lines of running tasks are `<UPID> 0`, those of ended ones `<UPID> 1 <end> <status>`.
fn unended(text: &str) -> Vec<Upid> {
    let line = |line: &str| {
        let (upid, rest) = line.split_once(' ').unwrap_or((line, ""));
        (!rest.starts_with('1')).then(|| Upid::parse(upid))?
    };
    text.lines().filter_map(line).collect()
}

fn grew(log: &Path, upid: &Upid) -> Result<Option<std::time::SystemTime>, Error> {
    // The folder is the last hexadecimal digit of the start time.
    let path = log.join(format!("{:X}", upid.starttime % 16)).join(&upid.text);
    match fs::metadata(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => Ok(other.map_err(|e| io_error(&path, &e))?.modified().ok()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_tasks_whose_process_lives_run() {
        let dir = tempfile::tempdir().unwrap();
        let (log, proc) = (dir.path().join("tasks"), dir.path().join("proc"));
        fs::create_dir_all(log.join("B")).unwrap();
        fs::create_dir(&proc).unwrap();
        assert_eq!(running(&log, &proc).unwrap(), []);
        // The start time of a made-up process is 77 and its pid.
        process::pretend(&proc, 10, 'D', (1, 10), "task UPID").unwrap();
        process::pretend(&proc, 12, 'Z', (1, 12), "task UPID").unwrap();
        let upid = |pid: u32, start: u32| format!("UPID:pve1:{pid:08X}:{start:08X}:6B03E2DB:qmclone:9000:root@pam:");
        let lives = upid(10, 7710);
        let lines = [
            format!("{lives} 0"),
            format!("{} 0", upid(10, 7711)),
            format!("{} 0", upid(11, 7711)),
            format!("{} 0", upid(12, 7712)),
            format!("{} 1 6B03E2DC OK", upid(10, 7710)),
            "garbage".to_owned(),
        ];
        fs::write(log.join("active"), lines.join("\n")).unwrap();
        fs::write(log.join("B").join(&lives), "create full clone\n").unwrap();
        let found = running(&log, &proc).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].upid.text.as_str(), found[0].state), (lives.as_str(), 'D'));
        assert!(found[0].grew.is_some());
        fs::remove_file(log.join("B").join(&lives)).unwrap();
        assert_eq!(running(&log, &proc).unwrap()[0].grew, None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(UPID:|pve1:|0000:|qm| |1|0|\n|\\PC){0,40}") {
            let _ = unended(&text);
        }
    }
}
