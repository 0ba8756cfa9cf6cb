//! Bad input: each is told in clear words before anything is changed, and what runs goes on.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pvelet_controller::pki::{CA_CERT, CA_KEY, Ca, Lifetime};
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
    host.sh("find /etc/pvelet /usr/bin/pvelet-agent -type f -exec sha256sum {} + | sort -k 2; ls /var/tmp | grep -v ^systemd- || :; \
         dpkg-query -W -f '${Status} ${Version}\n' pvelet-agent")
        + &pid(host)
}

/// Hosts as they were, and must be after each refusal.
struct Before<'a> {
    control: &'a Control,
    hosts: &'a [Host],
    report: &'a Report,
    states: Vec<String>,
}

impl<'a> Before<'a> {
    fn of(control: &'a Control, hosts: &'a [Host], report: &'a Report) -> Self {
        Self { control, hosts, report, states: each(hosts, state) }
    }

    fn play(&self) -> Play<'a> {
        Play::new(self.control, self.hosts, "install", "manage")
    }

    fn same(&self, what: &str) {
        assert_eq!(each(self.hosts, state), self.states, "{what} has changed something");
        self.report.step(what);
    }
}

pub fn run(control: &Control, hosts: &[Host], report: &Report) {
    let before = Before::of(control, hosts, report);
    let (play, same) = (|| before.play(), |what: &str| before.same(what));

    play().rename("pve2", "server-2").refused(&["PVE has no node 'server-2'", "/etc/pve/nodes holds pve2", "pvelet_agent_node"]);
    same("an inventory without the node's name");

    play().set_for("pve1", "pvelet_agent_node", "pve3").refused(&["PVE has no node 'pve3'"]);
    play().set("pvelet_agent_storages", json!(["local", "ceph"])).refused(&["storage 'ceph'", "pvelet_agent_storages"]);
    play().set_for("pve3", "pvelet_agent_vmid_range", "100500-102000").refused(&["overlap", "pve1"]);
    play().set("pvelet_agent_bridges", json!(["vmbr0", "vmbr9"])).refused(&["bridge 'vmbr9'", "the host has vmbr0"]);
    same("a node that is another's, a storage and a bridge that are not there, VMIDs of two hosts");

    hosts[2].sh("fallocate --length $(($(df --output=avail --block-size=1 /var | tail -n 1) - 104857600)) /var/filler");
    play().refused(&["/var has", "MiB free; at least 512 MiB are needed"]);
    hosts[2].sh("rm /var/filler");
    same("no space in /var");

    let two = json!({ "vm": { "short_lane": 1000 }, "health": { "worker": "maybe" } });
    let settings = |host: &str| {
        let mut all: Value = control.inventory(hosts, "manage")["pvelet"]["hosts"][host]["pvelet_agent_settings"].clone();
        two.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        all
    };
    play().set_for("pve1", "pvelet_agent_settings", settings("pve1")).refused(&["2 mistakes", "vm.short_lane", "health.worker"]);
    assert_eq!(control.facts(&hosts[0])["mode"], json!("manage"), "the old service should go on");
    same("a configuration with two mistakes: both are named, and the old service goes on");

    let system = |version: u32| {
        let edit = format!("s/^VERSION_ID=.*/VERSION_ID={version}/; s/^PRETTY_NAME=.*/PRETTY_NAME=\"Debian GNU\\/Linux {version}\"/");
        hosts[0].sh(&format!("rm /etc/os-release; sed '{edit}' /usr/lib/os-release >/etc/os-release"));
    };
    system(11);
    play().refused(&["this is Debian GNU/Linux 11", "supported on PVE 9 (Debian 13)"]);
    system(12);
    play().refused(&["this is Debian GNU/Linux 12", "pvelet_agent_allow_debian_12"]);
    hosts[0].sh("ln -sf ../usr/lib/os-release /etc/os-release");
    same("a Debian that is not supported");

    let listener = "import signal, socket; s = socket.create_server((str(), 7444)); signal.pause()";
    hosts[0].sh(&format!("systemd-run --quiet --unit=squatter /usr/bin/python3 -c '{listener}'"));
    hosts[0].wait_until("ss -Hltn 'sport = :7444' | grep -q .");
    play().only("pve1").set("pvelet_agent_port", PORT + 1).refused(&["port 7444 is in use by python3 (pid", "pvelet_agent_port"]);
    hosts[0].sh("systemctl stop squatter");
    same("a port in use");

    let clock = |off: i64| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        hosts[1].sh(&format!("date -s @{} >/dev/null", now.saturating_add_signed(off)));
    };
    clock(-86_400);
    play().refused(&["the clock is 86", "behind the one of this machine", "chronyc makestep"]);
    clock(86_400);
    play().refused(&["the clock is 86", "ahead of the one of this machine"]);
    clock(0);
    same("a clock that is off by a day");
}

/// CAs and certificates that are not the right ones.
pub fn credentials(control: &Control, hosts: &[Host], report: &Report) {
    let before = Before::of(control, hosts, report);
    let (play, same) = (|| before.play(), |what: &str| before.same(what));

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
    // One that somebody has brought to the host by hand: the agent does not take it over, and the play tells of it.
    let stray = fs::read_to_string(control.path("stray/host-pve2_pve2.crt")).unwrap();
    hosts[0].sh(&format!("cd /etc/pvelet/tls; cp -p agent.crt /root/agent.crt; printf '%s' '{stray}' >agent.crt"));
    hosts[0].wait_until("journalctl --unit=pvelet-agent --lines=50 --output=cat --no-pager | grep agent.crt | grep -q host/pve2");
    play().refused(&["/etc/pvelet/tls/agent.crt: is the certificate of", "host/pve2, not of this host"]);
    assert_eq!(control.facts(&hosts[0])["node"], json!("pve1"), "the agent should go on with its own");
    hosts[0].sh("cp -p /root/agent.crt /etc/pvelet/tls/agent.crt");
    same("a certificate of another host");
}

/// A CA's folder whose CA has expired.
fn expire(folder: &Path) {
    let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
    let ca = Ca::create(TRUST_DOMAIN, Lifetime::between(now - 9 * day, now - 2 * day)).unwrap();
    fs::create_dir(folder).unwrap();
    fs::write(folder.join(CA_CERT), ca.cert_pem()).unwrap();
    fs::write(folder.join(CA_KEY), ca.key_pem()).unwrap();
}
