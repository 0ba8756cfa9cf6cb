use std::{fs, path::Path, process::Command};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pve_sim::{Cluster, Options, control::Request, guest};

use crate::{cluster, until};

/// Whether anything is mounted below a folder.
fn mounted(dir: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {}/", dir.display()))
}

#[test]
fn a_cluster_that_ends_leaves_no_mount_and_no_guest() {
    let cluster = cluster(&["pve1", "pve2"]);
    let dir = cluster.dir().to_owned();
    cluster.control().call(&Request::SeedVms { node: "pve1".into(), first: 100, count: 1 }).unwrap();
    let pid = cluster.control().call(&Request::StartGuest { vmid: 100 }).unwrap().as_u64().unwrap();
    assert!(mounted(&dir));
    drop(cluster);
    assert!(!mounted(&dir) && !dir.exists());
    assert!(!fs::exists(format!("/proc/{pid}/exe")).unwrap());
}

#[test]
fn a_hung_cluster_ends_too() {
    let cluster = cluster(&["pve1"]);
    let dir = cluster.dir().to_owned();
    cluster.control().call(&Request::Pmxcfs { node: "pve1".into(), action: pve_sim::control::PmxcfsAction::Hang }).unwrap();
    let mut reader =
        Command::new("cat").stdout(std::process::Stdio::null()).arg(cluster.node("pve1").etc_pve().join(".version")).spawn().unwrap();
    drop(cluster);
    reader.wait().unwrap();
    assert!(!mounted(&dir));
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let dir = std::thread::spawn(|| {
        let cluster = cluster(&["pve1"]);
        let dir = cluster.dir().to_owned();
        std::panic::resume_unwind(Box::new(dir));
    });
    let dir = dir.join().unwrap_err().downcast::<std::path::PathBuf>().unwrap();
    assert!(!mounted(&dir));
}

#[test]
fn a_killed_cluster_is_cleared_away() {
    let mut cluster = cluster(&["pve1"]);
    cluster.control().call(&Request::SeedVms { node: "pve1".into(), first: 100, count: 1 }).unwrap();
    let guest = cluster.control().call(&Request::StartGuest { vmid: 100 }).unwrap().as_u64().unwrap();
    let dir = cluster.dir().to_owned();
    kill(Pid::from_raw(i32::try_from(cluster.pid()).unwrap()), Signal::SIGKILL).unwrap();
    // The next start, like the end, removes the stale mount and the guest.
    cluster.restart().unwrap();
    assert!(cluster.node("pve1").etc_pve().join("storage.cfg").exists());
    assert_eq!(guest::running(&cluster.node("pve1"), 100), None);
    assert!(!fs::exists(format!("/proc/{guest}/exe")).unwrap());
    drop(cluster);
    assert!(!mounted(&dir));
}

#[test]
fn a_cluster_goes_on_where_it_ended() {
    let mut cluster = cluster(&["pve1"]);
    fs::write(cluster.node("pve1").vm_config(100), "name: a\n").unwrap();
    fs::write(cluster.node("pve1").host_path("/var/lib/vz/images/x"), "x").unwrap();
    cluster.restart().unwrap();
    assert_eq!(fs::read_to_string(cluster.node("pve1").vm_config(100)).unwrap(), "name: a\n");
    assert!(cluster.node("pve1").host_path("/var/lib/vz/images/x").exists());
}

#[test]
fn two_processes_do_not_run_one_cluster() {
    let cluster = cluster(&["pve1"]);
    let options =
        Options { dir: Some(cluster.dir().to_owned()), program: Some(env!("CARGO_BIN_EXE_pve-sim").into()), ..Options::default() };
    let second = Command::new(options.program.as_ref().unwrap()).arg("run").arg("--dir").arg(cluster.dir()).output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process runs the cluster"));
    assert!(cluster.node("pve1").etc_pve().join("storage.cfg").exists());
}

#[test]
fn a_cluster_whose_starter_is_gone_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_pve-sim"))
        .args(["run", "--until-stdin-closes", "--dir"])
        .arg(dir.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("it is mounted", || mounted(dir.path()));
    // What the kernel does when the starter dies.
    drop(process.stdin.take());
    assert!(process.wait().unwrap().success());
    assert!(!mounted(dir.path()));
}

#[test]
fn the_demo_has_a_template_on_each_node() {
    let program = Some(env!("CARGO_BIN_EXE_pve-sim").into());
    let cluster = Cluster::start(Options { seed_demo: true, program, ..Options::nodes(&["pve1", "pve2"]) }).unwrap();
    for (node, vmid) in [("pve1", 9001), ("pve2", 9002)] {
        let config = fs::read_to_string(cluster.node(node).vm_config(vmid)).unwrap();
        assert!(
            config.contains("name: debian-13\n") && config.contains("tags: k8s;talos\n") && config.contains("template: 1\n"),
            "{config}"
        );
    }
}
