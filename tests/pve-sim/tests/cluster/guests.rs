use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use pve_sim::{
    Cluster,
    control::Request,
    guest::{self, Behaviour, Shutdown},
    layout::NodeLayout,
};

use crate::{cluster, until};

const VMID: u32 = 100;

/// A cluster with one VM that runs, with a guest agent.
fn running() -> (Cluster, NodeLayout, u32) {
    let cluster = cluster(&["pve1"]);
    let node = cluster.node("pve1");
    fs::write(node.vm_config(VMID), "agent: 1\nname: web\nsmbios1: uuid=17cff2cc-2c52-4b6e-bb71-6e1b9400983f\n").unwrap();
    let pid = cluster.control().call(&Request::StartGuest { vmid: VMID }).unwrap();
    let pid = u32::try_from(pid.as_u64().unwrap()).unwrap();
    (cluster, node, pid)
}

fn files(node: &NodeLayout) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(node.run_qemu()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_guest_looks_like_a_kvm_process() {
    let (_cluster, node, pid) = running();
    assert_eq!(files(&node), ["100.pid", "100.qga", "100.qmp"]);
    assert_eq!(fs::read_to_string(node.run_qemu().join("100.pid")).unwrap(), format!("{pid}\n"));
    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(arguments.starts_with("/usr/bin/kvm\0-id\x00100\0-name\0web,debug-threads=on\0"), "{arguments}");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "kvm\n");
    assert_eq!(guest::all_running(&node), [(VMID, pid)]);
}

#[test]
fn the_monitor_serves_one_client_at_a_time() {
    let (_cluster, node, _) = running();
    let first = UnixStream::connect(guest::qmp_socket(&node, VMID)).unwrap();
    let mut line = String::new();
    BufReader::new(&first).read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"QMP\":"), "{line}");
    // The second is let in, and hears nothing before the first has gone.
    let second = UnixStream::connect(guest::qmp_socket(&node, VMID)).unwrap();
    second.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    line.clear();
    assert!(BufReader::new(&second).read_line(&mut line).is_err(), "{line}");
    drop(first);
    second.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    BufReader::new(&second).read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"QMP\":"), "{line}");
}

#[test]
fn commands_before_the_negotiation_are_refused() {
    let (_cluster, node, _) = running();
    let monitor = UnixStream::connect(guest::qmp_socket(&node, VMID)).unwrap();
    (&monitor).write_all(b"{\"execute\":\"query-status\"}\r\n").unwrap();
    let lines: Vec<String> = BufReader::new(&monitor).lines().take(2).map(Result::unwrap).collect();
    assert!(lines[1].contains("CommandNotFound"), "{lines:?}");
    drop(monitor);
    assert_eq!(guest::qmp::command(&node, VMID, "query-status").unwrap()["status"], "running");
    assert!(guest::qmp::command(&node, VMID, "nonsense").unwrap_err().to_string().contains("has not been found"));
}

#[test]
fn a_guest_that_is_quit_leaves_no_files() {
    let (_cluster, node, pid) = running();
    guest::quit(&node, VMID).unwrap();
    assert_eq!(files(&node), [""; 0]);
    until("the process is reaped", || !fs::exists(format!("/proc/{pid}")).unwrap());
}

#[test]
fn a_guest_that_is_killed_leaves_its_files_and_does_not_run() {
    let (cluster, node, _) = running();
    guest::kill(&node, VMID).unwrap();
    assert_eq!((files(&node).len(), guest::running(&node, VMID)), (3, None));
    // And can be started again.
    cluster.control().call(&Request::StartGuest { vmid: VMID }).unwrap();
    assert!(guest::running(&node, VMID).is_some());
}

#[test]
fn a_shutdown_is_obeyed_later_or_never() {
    let (cluster, node, pid) = running();
    let behave = |shutdown| {
        let behaviour = Behaviour { shutdown, agent_silent: false };
        cluster.control().call(&Request::GuestBehaviour { vmid: VMID, behaviour }).unwrap();
    };
    behave(Shutdown::Ignored);
    guest::qmp::command(&node, VMID, "system_powerdown").unwrap();
    // The monitor answers in order: by now it would be on its way.
    assert_eq!(guest::qmp::command(&node, VMID, "query-status").unwrap()["running"], true);
    behave(Shutdown::AfterMs(1));
    guest::qmp::command(&node, VMID, "system_powerdown").unwrap();
    guest::wait_gone(pid, VMID, Duration::from_secs(10)).unwrap();
    until("its files vanish", || files(&node).is_empty());
}

#[test]
fn the_agent_answers_unless_it_is_silent() {
    let (cluster, node, _) = running();
    guest::qmp::agent(&node, VMID, "guest-ping", Duration::from_secs(10)).unwrap();
    let behaviour = Behaviour { agent_silent: true, ..Behaviour::default() };
    cluster.control().call(&Request::GuestBehaviour { vmid: VMID, behaviour }).unwrap();
    assert!(guest::qmp::agent(&node, VMID, "guest-ping", Duration::from_millis(50)).is_err());
}

#[test]
fn a_vm_runs_once() {
    let (cluster, _node, _) = running();
    let refused = cluster.control().call(&Request::StartGuest { vmid: VMID }).unwrap_err();
    assert!(refused.to_string().contains("runs already"), "{refused}");
}
