//! A restart of an agent by systemd itself, which keeps its listening socket: who comes meanwhile waits, and is not refused.

use crate::{
    control::Control,
    host::Host,
    report::Report,
    way::{each, pid},
};

/// Makes new connections on the host itself while the agent is restarted there, and tells how many there were, and what they ended with. Not
/// from outside: the guest's network takes every connection before the guest has seen it. Told to go on until the restart has ended, and for
/// some more.
const CONNECT: &str = r#"
import collections, socket, subprocess, sys

ended, after = collections.Counter(), 0
restart = subprocess.Popen(["systemctl", "restart", "pvelet-agent.service"])
while after < 20:
    try:
        restart.wait(timeout=0.02)
        after += 1
    except subprocess.TimeoutExpired:
        pass
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=120).close()
        ended["connected"] += 1
    except OSError as error:
        ended[type(error).__name__] += 1
print(restart.returncode, " ".join(f"{how}={count}" for how, count in sorted(ended.items())))
"#;

/// How many descriptors systemd keeps for the agent.
fn kept(host: &Host) -> String {
    host.sh("systemctl show --value --property=NFileDescriptorStore pvelet-agent.service").trim().to_owned()
}

/// Restarts the agent of each host, under connections.
pub fn run(control: &Control, hosts: &[Host], report: &Report) {
    let before = each(hosts, pid);
    assert_eq!(each(hosts, kept), ["1", "1", "1"], "systemd should keep the listening socket");
    let told = each(hosts, |host| host.sh(&format!("python3 - {} <<'END'\n{CONNECT}\nEND", crate::host::PORT)));
    for (host, told) in hosts.iter().zip(&told) {
        let (status, ended) = told.trim().split_once(' ').unwrap_or_else(|| panic!("{}: {told}", host.name));
        assert_eq!(status, "0", "{}: {told}\n{}", host.name, host.log());
        // All of them, and so none was refused.
        assert!(ended.starts_with("connected=") && !ended.contains(' '), "{}: {told}\n{}", host.name, host.log());
    }
    assert!(before.iter().zip(each(hosts, pid)).all(|(old, new)| *old != new), "an agent was not restarted");
    assert_eq!(each(hosts, kept), ["1", "1", "1"], "the next restart would lose it");
    for host in hosts {
        assert_eq!(control.facts(host)["node"], host.name, "{}", host.log());
    }
    report.step(&format!(
        "restarts under systemd, which keeps the socket: no connection was refused ({})",
        told.iter().map(|t| t.trim()).collect::<Vec<_>>().join("; ")
    ));
}
