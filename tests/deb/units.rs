//! The units, as systemd itself judges them.

use std::{fs, process::Command};

use pvelet_tests::program;
use tempfile::TempDir;

use crate::package::{repository, text};

/// The units, with a program that is there.
fn units() -> TempDir {
    let dir = TempDir::with_prefix("pvelet-units-").unwrap();
    let agent = program("pvelet-agent");
    for entry in fs::read_dir(repository().join("systemd")).unwrap() {
        let path = entry.unwrap().path();
        let unit = fs::read_to_string(&path).unwrap().replace("/usr/bin/pvelet-agent", agent.to_str().unwrap());
        fs::write(dir.path().join(path.file_name().unwrap()), unit).unwrap();
    }
    dir
}

#[test]
fn systemd_finds_nothing_wrong_with_them() {
    let dir = units();
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&files).output().unwrap();
    // Units of the machine are loaded with them; what they are told of is not ours.
    let ours: Vec<String> = text(&output).lines().filter(|l| l.contains("pvelet")).map(str::to_owned).collect();
    assert!(ours.is_empty(), "{ours:#?}");
}

#[test]
fn what_they_may_do_is_bounded() {
    let dir = units();
    // In tenths, as systemd counts exposure; a little above what they have. The last one restores the network before anything else is up.
    for (unit, most) in [("pvelet-agent.service", 63), ("pvelet-network-deadline.service", 61), ("pvelet-network-boot.service", 79)] {
        let file = dir.path().join(unit);
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--no-pager", &format!("--threshold={most}")]).arg(&file);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{unit}: {}", text(&output));
    }
}

#[test]
fn what_they_say_is_not_below_what_is_kept_of_it() {
    const LEVELS: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
    let dir = units();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let unit = fs::read_to_string(&path).unwrap();
        let level = |key: &str, otherwise: &str| {
            let set = unit.lines().find_map(|line| line.strip_prefix(key)).unwrap_or(otherwise).to_owned();
            LEVELS.iter().position(|level| **level == set).unwrap_or_else(|| panic!("{}: {key}{set}", path.display()))
        };
        // What comes by stderr has this level; systemd's default is info.
        assert!(level("SyslogLevel=", "info") <= level("LogLevelMax=", "debug"), "{}: it says nothing", path.display());
    }
}
