//! Upgrades: while a clone runs, and with a host that loses its power; and reboots.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use pvelet_proto::v1;
use serde_json::json;

use crate::{
    control::{Control, must},
    host::{Host, TEMPLATE},
    play::Play,
    report::Report,
    way::{each, pid},
};

/// The same package with a higher version: what dpkg, the maintainer scripts and the play make of it is an upgrade.
fn higher(control: &Control, version: &str) -> PathBuf {
    let tree = control.path(&format!("tree-{version}"));
    must(Command::new("dpkg-deb").arg("--raw-extract").arg(control.package()).arg(&tree));
    let file = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<String> =
        text.lines().map(|l| if l.starts_with("Version: ") { format!("Version: {version}") } else { l.to_owned() }).collect();
    fs::write(&file, lines.join("\n") + "\n").unwrap();
    let out = control.path(&format!("pvelet-agent_{version}_amd64.deb"));
    must(Command::new("dpkg-deb").args(["--root-owner-group", "-Zxz", "-z1", "--build"]).arg(&tree).arg(&out));
    out
}

fn version(host: &Host) -> String {
    host.sh("dpkg-query -W -f '${Version}' pvelet-agent")
}

/// Configs and disks of the VMs: what a host has over a power cut.
fn vms(host: &Host) -> String {
    let all = host.snapshot();
    all.split_once("[running]").map_or(all.clone(), |(lasting, _)| lasting.to_owned())
}

/// An upgrade in the middle of a clone: the new process takes it up, and there is one VM.
pub fn while_cloning(control: &Control, hosts: &[Host], report: &Report) {
    let (package, before) = (higher(control, "9.0-1"), each(hosts, pid));
    let told = Play::new(control, hosts, "upgrade", "manage")
        .set("pvelet_agent_package", package.display().to_string())
        .argument("--check")
        .must();
    assert!(told.rows.values().all(|r| r.changed > 0), "{}", told.text);
    let host = &hosts[0];
    let name = host.name;
    host.pve(&format!("seed-template node={name} vmid=9002 name=slow size_mib=64 fill_mib=64"));
    let untouched = each(hosts, Host::snapshot);
    // For 410 seconds: as long as the exchange of this host's package may take, and not much longer.
    host.pve(&format!("faults node={name} change.storages.local.rate_kib=160"));
    control.set_package(package);
    let mut play = Play::new(control, hosts, "upgrade", "manage").begin();
    // The looks at all hosts, and whether this one is well, are over: what comes next is its package, and then the restart.
    play.until("PLAY [Upgrade]");
    play.until("Bring the package] ");
    let client = control.runtime.block_on(async { control.access().client(name, host.ports().1) });
    let mut request = client.clone_request("clone-over-an-upgrade", 9002, "web-2");
    request.set_mode(v1::CloneMode::Full);
    if let Some(meta) = request.meta.as_mut() {
        meta.wait = None;
    }
    let begun = control.runtime.block_on(client.clone_vm(request.clone())).unwrap();
    assert!(begun.end_time.is_none(), "{begun:?}");

    let done = play.end();
    assert!(done.good, "the upgrade should have succeeded:\n{}", done.text);
    assert_eq!(each(hosts, version), ["9.0-1", "9.0-1", "9.0-1"]);
    assert!(before.iter().zip(each(hosts, pid)).all(|(old, new)| *old != new), "an agent was not restarted");
    host.pve(&format!("faults node={name} change.storages.local.rate_kib=null"));
    report.step("an upgrade of all hosts, one after the other");
    // The same request again is the same operation; each is held open for a while.
    request.meta = client.meta("clone-over-an-upgrade");
    let ended = (0..20).find_map(|_| {
        let op = control.runtime.block_on(client.clone_vm(request.clone())).unwrap();
        op.end_time.is_some().then_some(op)
    });
    let op = ended.unwrap_or_else(|| panic!("the clone does not end\n{}", host.log()));
    assert_eq!((op.state(), &op.name), (v1::OperationState::Succeeded, &begun.name), "{op:?}");
    let started = host.sh("systemctl show --timestamp=unix --value --property=ExecMainStartTimestamp pvelet-agent.service");
    let started: i64 = started.trim().trim_start_matches('@').parse().unwrap();
    let seconds = |time: Option<prost_types::Timestamp>| time.map_or(0, |t| t.seconds);
    assert!(
        (seconds(op.create_time)..=seconds(op.end_time)).contains(&started),
        "the clone did not run over the restart at {started}: {op:?}"
    );
    let vms = control.runtime.block_on(client.vms());
    assert_eq!(vms.iter().filter(|vm| vm.name == "web-2").count(), 1, "{vms:?}");
    let vm = vms.iter().find(|vm| vm.name == "web-2").unwrap();
    let vm = v1::VmRef { vmid: vm.vmid, uuid: vm.uuid.clone() };
    let deleted = control.runtime.block_on(client.delete("delete-after-the-upgrade", &vm)).unwrap();
    assert_eq!(deleted.state(), v1::OperationState::Succeeded, "{deleted:?}");
    assert_eq!(each(hosts, Host::snapshot), untouched, "the upgrade has changed something of PVE's");
    report.step("a clone ran over the restart of its agent: one VM, and the operation has succeeded");
}

/// The second host loses its power while its package is replaced: the play stops there, and the third is not touched.
pub fn one_host_off(control: &Control, hosts: &[Host], report: &Report) {
    control.set_package(higher(control, "9.1-1"));
    let (was, vms) = (each(hosts, version), each(hosts, vms));
    let play = Play::new(control, hosts, "upgrade", "manage");
    let running = play.begin();
    let (status, installed) = ("dpkg-query -W -f '${Status} ${Version}' pvelet-agent", format!("install ok installed {}", was[1]));
    hosts[1].wait_for(&format!("test \"$({status})\" != '{installed}'"), Duration::from_secs(1200));
    hosts[1].with(|guest| guest.power_cut());
    let others = || [&hosts[0], &hosts[2]].map(|host| (version(host), control.facts(host)["mode"].clone()));
    let (done, worked) = (running.end(), others());
    let (again, worked_again) = (play.run(), others());
    // Before anything is judged: the parts that come want three hosts.
    hosts[1].with(|guest| guest.start().unwrap());
    let (first, second) = (done.rows["pve1"], done.rows["pve2"]);
    assert!(!done.good, "the play should have stopped:\n{}", done.text);
    assert_eq!((first.failed, first.unreachable, second.failed + second.unreachable), (0, 0, 1), "{}", done.text);
    let expected = [("9.1-1".to_owned(), json!("manage")), (was[2].clone(), json!("manage"))];
    assert_eq!(worked, expected, "{}", done.text);
    report.step("a host loses its power while its package is replaced: the play stops there, the third is as it was, both others work");
    assert!(!again.good && again.rows["pve2"].unreachable == 1 && again.changed() == 0, "{}", again.text);
    assert_eq!(worked_again, expected, "{}", again.text);
    report.step("while it is off a play ends before it changes anything");

    hosts[1].wait_until("systemctl --quiet is-active pvelet-agent.service");
    let found = hosts[1].sh(status);
    Play::new(control, hosts, "upgrade", "manage").must();
    assert_eq!(each(hosts, version), ["9.1-1", "9.1-1", "9.1-1"]);
    assert_eq!(hosts[1].sh(status), "install ok installed 9.1-1", "before it was: {found}");
    assert_eq!(each(hosts, self::vms), vms, "configs or disks of VMs have changed");
    assert_eq!(hosts[1].sh("dpkg --audit; ls /var/tmp | grep pvelet || :"), "", "something is half installed");
    report.step(&format!("it is back ({found}), and a second run brings it and the third to the new version"));
}

/// All hosts boot again: agents and VMs' configs are there, by themselves.
pub fn reboot(control: &Control, hosts: &[Host], report: &Report) {
    let before = each(hosts, vms);
    each(hosts, |host| host.with(|guest| guest.reboot().unwrap()));
    for host in hosts {
        host.wait_until("systemctl --quiet is-active pvelet-agent.service");
        let facts = control.facts(host);
        assert_eq!((&facts["mode"], &facts["node"]), (&json!("manage"), &json!(host.name)), "{facts}");
        let vms = control.asked(host, &["vms"]);
        assert!(vms["vms"].as_array().unwrap().iter().any(|vm| vm["name"] == "web-1"), "{vms}");
        assert!(vms["vms"].as_array().unwrap().iter().any(|vm| vm["vmid"] == TEMPLATE), "{vms}");
    }
    assert_eq!(each(hosts, vms), before, "configs or disks of VMs have changed");
    report.step("all hosts boot again: the agents serve, and know their VMs, which are as before");
}
