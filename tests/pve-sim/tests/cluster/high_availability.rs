use std::fs;

use pve_sim::{control::Request, guest, ha};

use crate::{cluster, json, until};

#[test]
fn a_queued_request_is_carried_out_a_while_later() {
    let cluster = cluster(&["pve1", "pve2"]);
    let node = cluster.node("pve1");
    let call = |request: &Request| cluster.control().call(request).unwrap();
    fs::write(node.vm_config(100), "name: a\n").unwrap();
    call(&Request::HaMode(ha::Mode { hold: true, ..ha::Mode::default() }));
    // As a hastart task does: it only writes the wish down.
    let wish = |state: &str| fs::write(node.etc_pve().join("ha/resources.cfg"), format!("vm: 100\n\tstate {state}\n\n")).unwrap();
    wish("started");
    until("the manager has seen it", || json(&node.etc_pve().join("ha/manager_status"))["service_status"]["vm:100"]["state"] == "started");
    assert_eq!(guest::running(&node, 100), None);
    call(&Request::HaMode(ha::Mode { delay_ms: 1, ..ha::Mode::default() }));
    until("it runs", || guest::running(&node, 100).is_some());
    wish("stopped");
    until("it is stopped", || guest::running(&node, 100).is_none());
}

#[test]
fn a_queued_stop_is_carried_out_once() {
    let cluster = cluster(&["pve1"]);
    let node = cluster.node("pve1");
    fs::write(node.vm_config(100), "name: a\n").unwrap();
    let call = |request: &Request| cluster.control().call(request).unwrap();
    call(&Request::HaMode(ha::Mode { delay_ms: 1, ..ha::Mode::default() }));
    call(&Request::HaAdd { vmid: 100, state: "started".into() });
    until("it runs", || guest::running(&node, 100).is_some());
    fs::write(node.etc_pve().join("ha/crm_commands"), "stop vm:100 0\n").unwrap();
    until("it is stopped", || guest::running(&node, 100).is_none());
    assert_eq!(fs::read_to_string(node.etc_pve().join("ha/resources.cfg")).unwrap(), "vm: 100\n\tstate stopped\n\n");
    call(&Request::HaAdd { vmid: 100, state: "started".into() });
    until("it runs again", || guest::running(&node, 100).is_some());
}

#[test]
fn a_vm_may_be_started_on_another_node() {
    let cluster = cluster(&["pve1", "pve2"]);
    fs::write(cluster.node("pve1").vm_config(100), "name: a\n").unwrap();
    let call = |request: &Request| cluster.control().call(request).unwrap();
    call(&Request::HaMode(ha::Mode { hold: false, delay_ms: 1, move_to: Some("pve2".into()) }));
    call(&Request::HaAdd { vmid: 100, state: "started".into() });
    until("it runs on pve2", || guest::running(&cluster.node("pve2"), 100).is_some());
    assert!(cluster.node("pve2").vm_config(100).exists() && !cluster.node("pve1").vm_config(100).exists());
    call(&Request::HaRemove { vmid: 100 });
}

#[test]
fn a_vm_that_crashes_is_started_again() {
    let cluster = cluster(&["pve1"]);
    let node = cluster.node("pve1");
    fs::write(node.vm_config(100), "name: a\n").unwrap();
    let call = |request: &Request| cluster.control().call(request).unwrap();
    call(&Request::HaMode(ha::Mode { delay_ms: 1, ..ha::Mode::default() }));
    call(&Request::HaAdd { vmid: 100, state: "started".into() });
    until("it runs", || guest::running(&node, 100).is_some());
    let first = guest::running(&node, 100);
    call(&Request::KillGuest { vmid: 100 });
    until("it runs again", || guest::running(&node, 100).is_some_and(|pid| Some(pid) != first));
}

#[test]
fn a_failed_over_vm_runs_elsewhere_and_nowhere_else() {
    let cluster = cluster(&["pve1", "pve2"]);
    fs::write(cluster.node("pve1").vm_config(100), "name: a\n").unwrap();
    let call = |request: &Request| cluster.control().call(request).unwrap();
    call(&Request::StartGuest { vmid: 100 });
    call(&Request::FailOver { vmid: 100, to: "pve2".into() });
    assert_eq!(guest::running(&cluster.node("pve1"), 100), None);
    assert!(guest::running(&cluster.node("pve2"), 100).is_some());
    assert_eq!(json(&cluster.node("pve1").etc_pve().join(".vmlist"))["ids"]["100"]["node"], "pve2");
}
