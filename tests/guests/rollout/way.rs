//! The main way: nothing is there, the agent observes, it manages, certificates are exchanged, nothing is there any more.

use serde_json::json;

use crate::{
    control::{Control, full},
    host::{Host, TEMPLATE},
    load::Load,
    play::Play,
    report::Report,
};

/// Has something done on all hosts at once.
pub fn each<T: Send>(hosts: &[Host], work: impl Fn(&Host) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = hosts.iter().map(|host| scope.spawn(|| work(host))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// From nothing to a VM on each host, and a second run that has nothing to do.
pub fn install(control: &Control, hosts: &[Host], report: &Report) {
    report.head("install");
    let before = each(hosts, Host::snapshot);
    if full() {
        let told = Play::new(control, hosts, "install", "observe").argument("--check").argument("--diff").must();
        assert!(told.rows.values().all(|row| row.changed > 0 && row.failed == 0), "nothing would be installed?\n{}", told.text);
        assert_eq!(each(hosts, Host::traces), ["", "", ""], "a dry run has left something");
        report.step("a dry run tells what would be done, and does nothing");
    }

    let done = Play::new(control, hosts, "install", "observe").must();
    assert_eq!(done.rows.len(), hosts.len());
    for host in hosts {
        let facts = control.facts(host);
        assert_eq!((&facts["node"], &facts["mode"]), (&json!(host.name), &json!("observe")), "{facts}");
    }
    assert_eq!(each(hosts, Host::snapshot), before, "the install has changed something of PVE's");
    report.step("install: three hosts observe; VMs, disks, networks and firewall rules of others are as before");

    let keys = each(hosts, |h| h.sh("stat -c '%a %U' /etc/pvelet/tls/agent.key; ls /etc/pvelet/tls"));
    assert!(keys.iter().all(|k| k.starts_with("600 root") && !k.contains(".next")), "{keys:?}");
    assert!(
        !std::fs::read_dir(control.path("pki/issued")).unwrap().any(|f| f.unwrap().file_name().to_string_lossy().ends_with("pve1.key"))
    );
    report.step("each host's key was made there, and never left it");

    Play::new(control, hosts, "health", "observe").must();
    Play::new(control, hosts, "health", "observe").set("pvelet_agent_gate_ignore", json!([])).refused(&["host.storages: offline"]);
    report.step("health: all are well but for the storage that really is offline, which stops a play unless it may fail");

    let refused = control.ctl(&hosts[0], &["clone", "--template", &TEMPLATE.to_string(), "--name", "web-1"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("bserve"), "{refused:?}");
    let pids = each(hosts, pid);
    Play::new(control, hosts, "mode", "manage").must();
    assert!(hosts.iter().all(|host| control.facts(host)["mode"] == "manage"));
    assert_eq!(each(hosts, pid), pids, "the mode is a matter of a reload");
    report.step("manage: by a reload");

    a_vm_on_each(control, hosts);
    let audited = hosts[0].sh("journalctl --unit=pvelet-agent TARGET=pvelet::audit --output=cat --no-pager");
    assert!(audited.contains("caller=") && audited.contains("action="), "who did what should be in the journal: {audited}");
    report.step("a VM cloned on each host over mTLS, and started; the journal says by whom");

    let second = Play::new(control, hosts, "install", "manage").must();
    report.second_run(second.changed());
    assert_eq!(second.changed(), 0, "{}", second.text);
    report.step("a second run changes nothing");
}

/// What the main way leads to, without a look at the way: agents that manage, and a VM on each host.
pub fn manage(control: &Control, hosts: &[Host], report: &Report) {
    Play::new(control, hosts, "install", "manage").must();
    a_vm_on_each(control, hosts);
    report.step("three hosts manage, with a VM on each");
}

fn a_vm_on_each(control: &Control, hosts: &[Host]) {
    each(hosts, |host| {
        control.asked(host, &["clone", "--template", &TEMPLATE.to_string(), "--name", "web-1", "--start", "--timeout", "10m"]);
        let first = u64::from(host.n) * 1000 + 99_000;
        let vms = control.asked(host, &["vms"]);
        let vm = vms["vms"].as_array().unwrap().iter().find(|vm| vm["name"] == "web-1").cloned().unwrap();
        assert!((first..first + 1000).contains(&vm["vmid"].as_u64().unwrap()), "{vm}");
    });
}

/// The agent's process.
pub fn pid(host: &Host) -> String {
    host.sh("systemctl show --value --property=MainPID pvelet-agent.service")
}

/// The serial number of the certificate that a host has, and its key.
pub fn serial(host: &Host) -> String {
    host.sh("openssl x509 -noout -serial -in /etc/pvelet/tls/agent.crt; sha256sum </etc/pvelet/tls/agent.key")
}

/// New keys and certificates while calls go on.
pub fn rotate(control: &Control, hosts: &[Host], report: &Report) {
    let (before, pids) = (each(hosts, serial), each(hosts, pid));
    let load = Load::begin(control, hosts);
    Play::new(control, hosts, "rotate_certificates", "manage").must();
    let (calls, failures) = load.end(control);
    report.rotation(failures.len() as u64, calls);
    assert!(failures.is_empty(), "{failures:#?}");
    let after = each(hosts, serial);
    assert!(before.iter().zip(&after).all(|(old, new)| old != new), "{before:?} {after:?}");
    assert_eq!(each(hosts, pid), pids, "an agent was restarted");
    report.step(&format!("new keys and certificates on all hosts, {calls} calls meanwhile, none failed"));
}

/// Rules in PVE's firewall follow the inventory, and others' stay.
pub fn firewall(control: &Control, hosts: &[Host], report: &Report) {
    let rules = |host: &Host| host.sh("cat /etc/pve/nodes/$(hostname)/host.fw");
    let before = rules(&hosts[0]);
    assert!(before.contains("-source 10.0.2.0/24 -p tcp -dport 7443 # pvelet-agent (Ansible)"), "{before}");
    let play = |sources| Play::new(control, hosts, "install", "manage").only("pve1").set("pvelet_agent_firewall_sources", sources);
    let other = json!(["10.3.0.0/24", "dc/admins"]);
    let told = play(other.clone()).argument("--check").argument("--diff").must();
    assert!(told.text.contains("+IN ACCEPT -source 10.3.0.0/24") && told.text.contains("-IN ACCEPT -source 10.0.2.0/24"), "{}", told.text);
    assert_eq!(rules(&hosts[0]), before, "a dry run has changed something");
    play(other).must();
    let after = rules(&hosts[0]);
    assert!(after.contains("10.3.0.0/24") && after.contains("dc/admins") && !after.contains("10.0.2.0/24"), "{after}");
    assert!(after.contains("somebody else's") && after.contains("enable: 1"), "{after}");
    play(json!(["10.0.2.0/24"])).must();
    assert_eq!(rules(&hosts[0]), before);
    report.step("firewall: only our own rules follow the inventory");
}

/// Removes the agent, then what it left for another install.
pub fn remove(control: &Control, hosts: &[Host], report: &Report) {
    // As the agent declares a network.
    hosts[0].sh(
        "printf 'auto vmbr7\niface vmbr7 inet manual\n    bridge-ports none\n    bridge-stp off\n    bridge-fd 0\n' >/etc/network/interfaces.d/pvelet; \
         ifup vmbr7",
    );
    let before = each(hosts, Host::snapshot);
    Play::new(control, hosts, "uninstall", "manage").must();
    each(hosts, |h| h.sh("test -d /etc/pvelet/tls; test -d /var/lib/pvelet"));
    let left = each(hosts, |h| h.run("pgrep -x pvelet-agent; grep -h pvelet-agent /etc/pve/nodes/*/host.fw").stdout);
    assert_eq!(left, ["", "", ""], "something of the agent is left");
    assert_eq!(each(hosts, Host::snapshot), before, "the removal has changed something of PVE's");
    report.step("uninstall: VM configs, disks, processes and networks are byte by byte as before; configuration and journal are kept");

    if full() {
        let again = Play::new(control, hosts, "uninstall", "manage").must();
        assert_eq!(again.changed(), 0, "{}", again.text);
    }
    Play::new(control, hosts, "uninstall", "manage").set("pvelet_agent_purge", true).must();
    assert_eq!(each(hosts, Host::traces), ["", "", ""], "a purge has left something");
    assert_eq!(each(hosts, Host::snapshot), before, "the purge has changed something of PVE's");
    report.step("purge: nothing of pvelet is left; VM configs, disks, processes and networks, the agent's own too, are as before");
}
