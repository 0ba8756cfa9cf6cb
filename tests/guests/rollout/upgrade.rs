//! Upgrades: while a clone runs, with a host that loses its power, and reboots afterwards.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use pvelet_proto::v1;
use serde_json::json;

use crate::{
    control::{Control, must},
    host::{Host, TEMPLATE},
    play::{Done, Play},
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
    must(Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "--build"]).arg(&tree).arg(&out));
    out
}

fn version(host: &Host) -> String {
    host.sh("dpkg-query -W -f '${Version}' pvelet-agent")
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
    // For as long as an upgrade may take.
    host.pve(&format!("faults node={name} change.storages.local.rate_kib=256"));
    let request_id = "clone-over-an-upgrade";
    let client = control.runtime.block_on(async { control.access().client(name, host.ports().1) });
    let mut request = client.clone_request(request_id, 9002, "web-2");
    request.set_mode(v1::CloneMode::Full);
    if let Some(meta) = request.meta.as_mut() {
        meta.wait = None;
    }
    let begun = control.runtime.block_on(client.clone_vm(request.clone())).unwrap();
    assert!(begun.end_time.is_none(), "{begun:?}");

    Play::new(control, hosts, "upgrade", "manage").set("pvelet_agent_package", package.display().to_string()).must();
    assert_eq!(each(hosts, version), ["9.0-1", "9.0-1", "9.0-1"]);
    assert!(before.iter().zip(each(hosts, pid)).all(|(old, new)| *old != new), "an agent was not restarted");
    host.pve(&format!("faults node={name} change.storages.local.rate_kib=null"));
    let client = control.runtime.block_on(async { control.access().client(name, host.ports().1) });
    let op = control.runtime.block_on(client.operation_end(request_id));
    assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
    let started: i64 =
        host.sh("stat -c %Y /proc/$(systemctl show --value --property=MainPID pvelet-agent.service)").trim().parse().unwrap();
    let seconds = |time: Option<prost_types::Timestamp>| time.map_or(0, |t| t.seconds);
    assert!(
        (seconds(op.create_time)..=seconds(op.end_time)).contains(&started),
        "the clone did not run over the restart at {started}: {op:?}"
    );
    let vms = control.runtime.block_on(client.vms());
    assert_eq!(vms.iter().filter(|vm| vm.name == "web-2").count(), 1, "{vms:?}");
    // The same request again is the same operation.
    let again = control.runtime.block_on(client.clone_vm(request)).unwrap();
    assert_eq!(again.name, op.name);
    let vm = vms.iter().find(|vm| vm.name == "web-2").unwrap();
    let vm = v1::VmRef { vmid: vm.vmid, uuid: vm.uuid.clone() };
    control.runtime.block_on(client.delete("delete-after-the-upgrade", &vm)).unwrap();
    report.step("an upgrade of all hosts, one after the other, while a clone runs: one VM, and the operation has succeeded");
}

/// The second host loses its power while the first is upgraded: the play stops there, and the third is not touched.
pub fn one_host_off(control: &Control, hosts: &[Host], report: &Report) {
    let package = higher(control, "9.1-1");
    let was = each(hosts, version);
    let mut play = Play::new(control, hosts, "upgrade", "manage").set("pvelet_agent_package", package.display().to_string()).command();
    let child = play.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // By then all were looked at, and found well.
    hosts[0].wait_until("test \"$(dpkg-query -W -f '${Version}' pvelet-agent)\" = 9.1-1");
    hosts[1].with(|guest| guest.power_cut());
    let done = Done::of(&child.wait_with_output().unwrap());
    assert!(!done.good, "the play should have stopped:\n{}", done.text);
    assert_eq!((done.rows["pve1"].failed, done.rows["pve2"].unreachable), (0, 1), "{}", done.text);
    assert_eq!((version(&hosts[0]), version(&hosts[2])), ("9.1-1".into(), was[2].clone()), "{}", done.text);
    for host in [&hosts[0], &hosts[2]] {
        assert_eq!(control.facts(host)["mode"], json!("manage"), "{} does not work", host.name);
    }
    report.step("a host that loses its power in the middle: the play stops there, the others work");

    hosts[1].with(|guest| guest.start().unwrap());
    hosts[1].wait_until("systemctl --quiet is-active pvelet-agent.service");
    Play::new(control, hosts, "upgrade", "manage").set("pvelet_agent_package", package.display().to_string()).must();
    assert_eq!(each(hosts, version), ["9.1-1", "9.1-1", "9.1-1"]);
    report.step("it is back, and a second run brings it and the third to the new version");
}

/// All hosts boot again: agents and VMs' configs are there, by themselves.
pub fn reboot(control: &Control, hosts: &[Host], report: &Report) {
    each(hosts, |host| host.with(|guest| guest.reboot().unwrap()));
    for host in hosts {
        host.wait_until("systemctl --quiet is-active pvelet-agent.service");
        let facts = control.facts(host);
        assert_eq!((&facts["mode"], &facts["node"]), (&json!("manage"), &json!(host.name)), "{facts}");
        let vms = control.asked(host, &["vms"]);
        assert!(vms["vms"].as_array().unwrap().iter().any(|vm| vm["name"] == "web-1"), "{vms}");
        assert!(vms["vms"].as_array().unwrap().iter().any(|vm| vm["vmid"] == TEMPLATE), "{vms}");
    }
    report.step("all hosts boot again: the agents serve, and know their VMs");
}
