//! What the play puts right: agents that run with something former, a play that ended in the middle, certificates of another CA.

use std::{fs, path::PathBuf};

use serde_json::json;

use crate::{
    control::Control,
    host::Host,
    play::Play,
    report::Report,
    way::{each, pid, serial},
};

pub fn run(control: &Control, hosts: &[Host], report: &Report) {
    let config = |host: &Host| host.sh("cat /etc/pvelet/agent.toml");
    let (before, pids) = (each(hosts, config), each(hosts, pid));
    // A program that dpkg has put in place, and that nobody has started.
    hosts[0].sh("cp -p /usr/bin/pvelet-agent /usr/bin/pvelet-agent.new; mv /usr/bin/pvelet-agent.new /usr/bin/pvelet-agent");
    // A configuration that nobody has told the agent of.
    hosts[1].sh("touch --date='+5 seconds' /etc/pvelet/agent.toml");
    // One that it has refused.
    let since = hosts[2].sh("date +@%s").trim().to_owned();
    hosts[2].sh("printf '\\n[limits]\\nreads = 0\\nmutations = 0\\n' >>/etc/pvelet/agent.toml; systemctl reload pvelet-agent");
    for key in ["limits.reads", "limits.mutations"] {
        hosts[2].wait_until(&format!("journalctl --unit=pvelet-agent --since={since} --no-pager | grep -q {key}"));
    }
    assert_eq!(pid(&hosts[2]), pids[2], "the former configuration should go on");
    assert_eq!(control.facts(&hosts[2])["mode"], json!("manage"), "{}", hosts[2].log());
    report.step("a configuration with two mistakes, written by hand: both are in the journal, and the former one goes on");

    Play::new(control, hosts, "install", "manage").must();
    assert!(pids.iter().zip(each(hosts, pid)).take(2).all(|(old, new)| *old != new), "an agent was not restarted");
    assert_eq!(each(hosts, config), before);
    let second = Play::new(control, hosts, "install", "manage").must();
    assert_eq!(second.changed(), 0, "{}", second.text);
    report.step("agents that run a former program or configuration are restarted, and a file that was spoilt is written anew; once");

    let one = |mode: &str| Play::new(control, hosts, "install", mode).only("pve1");
    hosts[0].sh("mv /usr/bin/pvesh /usr/bin/pvesh.real; printf '#!/bin/sh\\necho no quorum >&2; exit 1\\n' >/usr/bin/pvesh; chmod 755 /usr/bin/pvesh");
    let done = one("observe").refused(&["the firewall of pve1: pvesh get /nodes/pve1/firewall/rules", "no quorum"]);
    hosts[0].sh("mv /usr/bin/pvesh.real /usr/bin/pvesh");
    assert!(comes_to(control, &hosts[0], "observe"), "what was written should be taken over:\n{}", done.text);
    one("manage").must();
    assert_eq!(control.facts(&hosts[0])["mode"], json!("manage"));
    report.step("a play that fails behind the configuration: what it has written is taken over nevertheless, and the next one goes on");
}

/// Whether an agent that has just been told to reload is in this mode soon.
fn comes_to(control: &Control, host: &Host, mode: &str) -> bool {
    (0..50).any(|_| control.facts(host)["mode"] == mode)
}

pub fn certificates(control: &Control, hosts: &[Host], report: &Report) {
    let path = |name: &str| control.path(name).display().to_string();
    let one = || Play::new(control, hosts, "install", "manage").only("pve1");
    let old = path("old.crl");
    fs::copy(control.path("pki/ca.crl"), &old).unwrap();
    control.pki(&["issue", "person", "gone", "--role", "reader"]);
    control.pki(&["revoke", &format!("spiffe://{}/role/reader/gone", crate::control::TRUST_DOMAIN)]);
    assert!(one().must().changed() > 0, "the list should have been brought");
    let lists = hosts[0].sh("sha256sum /etc/pvelet/tls/*");
    one().set("pvelet_agent_crl", old).refused(&["has number 1, and the present one 2", "what was revoked since would be trusted again"]);
    assert_eq!(hosts[0].sh("sha256sum /etc/pvelet/tls/*"), lists);
    report.step("a newer revocation list is brought, an older one refused");

    // As with step-ca or cert-manager: requests are laid out, and certificates taken from there.
    let requests: PathBuf = control.path("other-ca");
    fs::create_dir_all(&requests).unwrap();
    let other = || {
        one()
            .set("pvelet_agent_pki_dir", "")
            .set("pvelet_agent_requests_dir", requests.display().to_string())
            .set("pvelet_agent_ca", path("pki/ca.crt"))
            .set("pvelet_agent_crl", path("pki/ca.crl"))
            .set("pvelet_agent_client_cert", path("pki/issued/reader-ansible.crt"))
            .set("pvelet_agent_client_key", path("pki/issued/reader-ansible.key"))
    };
    let (certificate, request) = (requests.join("pve1.crt"), requests.join("pve1.csr"));
    fs::write(&certificate, hosts[0].sh("cat /etc/pvelet/tls/agent.crt")).unwrap();
    let (was, process) = (serial(&hosts[0]), pid(&hosts[0]));
    assert_eq!(other().must().changed(), 0, "nothing is due");
    other().set("pvelet_agent_renew", "always").refused(&["have your CA sign", "pve1.csr", "run this play again"]);
    assert_eq!(serial(&hosts[0]), was, "the old certificate should stay in use");
    let out = certificate.display().to_string();
    control.pki(&["sign", "--cluster", "pve1", "--node", "pve1", "--out", &out, &request.display().to_string()]);
    other().set("pvelet_agent_renew", "always").must();
    assert!(serial(&hosts[0]) != was, "the new certificate should be in use");
    assert_eq!(pid(&hosts[0]), process, "the agent was restarted");
    assert!(!hosts[0].sh("ls /etc/pvelet/tls").contains(".next"), "the new key should be in use");
    let facts = control.facts(&hosts[0]);
    assert_eq!(facts["node"], json!("pve1"), "{facts}");
    report.step("another CA: the request waits for its signature, and is not mistaken for signed while the former certificate lies there");
}
