//! The agent's package where systemd itself runs (`tests/bench/network.sh`, as root): its socket outlives the process, and a process that hangs is
//! ended.

use std::{fs, process::Command};

use pvelet_tests::Pki;
use tempfile::TempDir;

use crate::package::{Packages, must, repository};

#[test]
fn no_connection_is_refused_while_systemd_replaces_an_agent_that_ends_dies_or_hangs() {
    // What the container sees lies in the repository.
    let dir = TempDir::with_prefix_in("systemd-", repository().join("target")).unwrap();
    let (pki, tls) = (Pki::new(dir.path()), dir.path().join("tls"));
    let (cert, key) = pki.host("pve1", "pve1");
    fs::create_dir(&tls).unwrap();
    for (from, to) in [(cert, "agent.crt"), (key, "agent.key"), (pki.dir.ca_cert_path(), "ca.crt"), (pki.dir.crl_path(), "ca.crl")] {
        fs::copy(from, tls.join(to)).unwrap();
    }
    let here = repository().join("tests/deb");
    let mut command = Command::new(repository().join("tests/bench/network.sh"));
    command.arg(here.join("systemd.sh")).arg(&Packages::get().agent).arg(&tls).arg(here.join("connect.py"));
    let said = must(&mut command);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.first(), Some(&"start: 1 kept"), "{said}");
    for (line, way) in lines[1..].iter().zip(["restart", "KILL", "STOP"]) {
        assert!(line.contains(way), "{said}");
        let ended = line.split_once(": ").and_then(|(_, rest)| rest.strip_suffix(", 1 kept")).unwrap_or_else(|| panic!("{said}"));
        // All of them, and so none was refused.
        assert!(ended.starts_with("connected=") && !ended.contains(' '), "{said}");
    }
    assert_eq!(lines.len(), 4, "{said}");
}
