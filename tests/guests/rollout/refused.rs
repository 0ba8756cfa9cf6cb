//! Bad input: each is told in clear words before anything is changed, and what runs goes on.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::{
    control::{Control, TRUST_DOMAIN, must},
    host::{Host, PORT},
    play::Play,
    report::Report,
    way::{each, pid},
};

/// What must be as it was after a refusal.
fn state(host: &Host) -> String {
    host.sh("find /etc/pvelet -type f -exec sha256sum {} + | sort -k 2; dpkg-query -W -f '${Version}' pvelet-agent; ls /var/tmp")
        + &pid(host)
}

pub fn run(control: &Control, hosts: &[Host], report: &Report) {
    let before = each(hosts, state);
    let play = || Play::new(control, hosts, "install", "manage");
    let same = |what: &str| {
        assert_eq!(each(hosts, state), before, "{what} has changed something");
        report.step(what);
    };

    play().rename("pve2", "server-2").refused(&["PVE has no node 'server-2'", "/etc/pve/nodes holds pve2", "pvelet_agent_node"]);
    same("an inventory without the node's name");

    play().set_for("pve1", "pvelet_agent_node", "pve3").refused(&["PVE has no node 'pve3'"]);
    play().set("pvelet_agent_storages", json!(["local", "ceph"])).refused(&["storage 'ceph'", "pvelet_agent_storages"]);
    play().set_for("pve3", "pvelet_agent_vmid_range", "100500-102000").refused(&["overlap", "pve1"]);
    play().set("pvelet_agent_min_free_mib", 1 << 20).refused(&["/var has", "MiB free", "1048576 MiB are needed"]);
    same("a node that is another's, a storage that is not there, VMIDs of two hosts, no space in /var");

    let two = json!({ "vm": { "short_lane": 1000 }, "health": { "worker": "maybe" } });
    let settings = |host: &str| {
        let mut all: Value = control.inventory(hosts, "manage")["pvelet"]["hosts"][host]["pvelet_agent_settings"].clone();
        two.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        all
    };
    play().set_for("pve1", "pvelet_agent_settings", settings("pve1")).refused(&["2 mistakes", "vm.short_lane", "health.worker"]);
    assert_eq!(control.facts(&hosts[0])["mode"], json!("manage"), "the old service should go on");
    same("a configuration with two mistakes: both are named, and the old service goes on");

    hosts[0].sh("cp /etc/os-release /root/os-release; sed -i 's/^VERSION_ID=.*/VERSION_ID=\"11\"/; s/^PRETTY_NAME=.*/PRETTY_NAME=\"Debian GNU\\/Linux 11\"/' /etc/os-release");
    play().refused(&["this is Debian GNU/Linux 11", "supported on PVE 9 (Debian 13)"]);
    hosts[0].sh("sed -i 's/^VERSION_ID=.*/VERSION_ID=\"12\"/' /etc/os-release");
    play().refused(&["pvelet_agent_allow_debian_12"]);
    hosts[0].sh("cp /root/os-release /etc/os-release");
    same("a Debian that is not supported");

    hosts[0].sh("systemd-run --quiet --unit=squatter /usr/lib/systemd/systemd-socket-activate --listen=7444 /bin/cat");
    hosts[0].wait_until("ss -Hltn sport = 7444 | grep -q .");
    play().only("pve1").set("pvelet_agent_port", PORT + 1).refused(&["port 7444 is in use by", "pvelet_agent_port"]);
    hosts[0].sh("systemctl stop squatter");
    same("a port in use");

    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    hosts[1].sh(&format!("date -s @{} >/dev/null", now() - 86_400));
    play().refused(&["the clock is", "behind the one of this machine"]);
    hosts[1].sh(&format!("date -s @{} >/dev/null", now()));
    same("a clock that is off by a day");

    let other = control.path("other-pki");
    must(Command::new(pvelet_tests::program("pveletctl")).args(["pki", "init", "--trust-domain", "other.test", "--dir"]).arg(&other));
    play().set("pvelet_agent_pki_dir", other.display().to_string()).refused(&["the CA is that of spiffe://other.test", TRUST_DOMAIN]);
    let expired = control.path("expired-pki");
    expire(&expired);
    play().set("pvelet_agent_pki_dir", expired.display().to_string()).refused(&["the CA is expired"]);
    same("a CA that is another's, or has expired");

    let requests = control.path("requests");
    fs::create_dir_all(&requests).unwrap();
    control.pki(&["issue", "host", "--cluster", "pve2", "--node", "pve2", "--out", &control.path("stray").display().to_string()]);
    fs::copy(control.path("stray/host-pve2_pve2.crt"), requests.join("pve1.crt")).unwrap();
    let text = |name: &str| control.path(name).display().to_string();
    play()
        .only("pve1")
        .set("pvelet_agent_pki_dir", "")
        .set("pvelet_agent_requests_dir", requests.display().to_string())
        .set("pvelet_agent_ca", text("pki/ca.crt"))
        .set("pvelet_agent_crl", text("pki/ca.crl"))
        .set("pvelet_agent_client_cert", text("pki/issued/reader-ansible.crt"))
        .set("pvelet_agent_client_key", text("pki/issued/reader-ansible.key"))
        .refused(&["is the certificate of", "host/pve2, not of this host", "host/pve1"]);
    same("a certificate of another host");
}

/// A CA's folder whose CA has expired.
fn expire(folder: &std::path::Path) {
    use pvelet_controller::pki::{Lifetime, PkiDir};
    let now = std::time::SystemTime::now();
    let days = |n: u64| std::time::Duration::from_secs(n * 86_400);
    PkiDir::init(folder, TRUST_DOMAIN, Lifetime::between(now - days(9), now - days(2)), false).unwrap();
}
