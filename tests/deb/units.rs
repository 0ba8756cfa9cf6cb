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
fn what_others_rely_on_stands_in_them() {
    let dir = units();
    let read = |unit: &str| fs::read_to_string(dir.path().join(unit)).unwrap();
    let table: [(&str, &[&str]); 4] = [
        (
            "pvelet-agent.service",
            &[
                // It says when it serves, and that it lives; whoever hangs is ended and started again.
                "Type=notify",
                "WatchdogSec=60",
                "Restart=always",
                "RestartSec=2",
                "StartLimitIntervalSec=0",
                "TimeoutStartSec=60",
                "TimeoutStopSec=90",
                "ExecReload=/bin/kill -HUP $MAINPID",
                // PVE's tasks and the steps of a network change outlive it.
                "KillMode=mixed",
                "OOMPolicy=continue",
                // No connection is refused while it is restarted.
                "FileDescriptorStoreMax=1",
                // The journal of operations, and what a restart may find there.
                "StateDirectory=pvelet",
                "StateDirectoryMode=0700",
                "RuntimeDirectory=pvelet",
                "RuntimeDirectoryMode=0700",
                "RuntimeDirectoryPreserve=yes",
                "UMask=0077",
                // A fresh package waits for its certificates.
                "ConditionPathExists=/etc/pvelet/tls/agent.crt",
                "ConditionPathExists=/etc/pvelet/tls/agent.key",
                "WantedBy=multi-user.target",
            ],
        ),
        (
            "pvelet-network-boot.service",
            &[
                "Type=oneshot",
                "RemainAfterExit=yes",
                "DefaultDependencies=no",
                "RequiresMountsFor=/etc/network /var/lib/pvelet",
                "UMask=0077",
            ],
        ),
        (
            "pvelet-network-deadline.service",
            &["Type=oneshot", "StartLimitIntervalSec=0", "StateDirectory=pvelet", "RuntimeDirectoryPreserve=yes", "OOMScoreAdjust=-900"],
        ),
        ("pvelet-network-deadline.timer", &["OnActiveSec=5s", "OnUnitInactiveSec=5s", "AccuracySec=1s"]),
    ];
    for (unit, wanted) in table {
        let text = read(unit);
        let missing: Vec<_> = wanted.iter().filter(|line| !text.lines().any(|l| l == **line)).collect();
        assert!(missing.is_empty(), "{unit}: {missing:?}");
    }
    // Words of a line, in any order.
    let words = [
        ("pvelet-agent.service", "After=", "network-online.target pve-cluster.service pvedaemon.service pvelet-network-boot.service"),
        ("pvelet-network-boot.service", "Before=", "network-pre.target networking.service pvenetcommit.service"),
        ("pvelet-network-boot.service", "WantedBy=", "network-pre.target networking.service"),
    ];
    for (unit, key, wanted) in words {
        let text = read(unit);
        let found: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix(key)).flat_map(str::split_whitespace).collect();
        assert!(wanted.split_whitespace().all(|word| found.contains(&word)), "{unit}: {key}{found:?}");
    }
}

#[test]
fn each_line_that_shuts_something_out_has_its_reason() {
    const SHUT_OUT: [&str; 8] =
        ["NoNewPrivileges", "Protect", "Private", "Restrict", "SystemCall", "CapabilityBoundingSet", "LockPersonality", "Memory"];
    let dir = units();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let (mut since, mut reason) = (0, false);
        for line in text.lines() {
            match line {
                "" => reason = false,
                comment if comment.starts_with('#') => (since, reason) = (0, true),
                line => {
                    since += 1;
                    let shuts = SHUT_OUT.iter().any(|key| line.starts_with(key));
                    // A few that belong together may share one.
                    assert!(!shuts || (reason && since <= 3), "{}: {line} has no reason of its own", path.display());
                }
            }
        }
    }
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
