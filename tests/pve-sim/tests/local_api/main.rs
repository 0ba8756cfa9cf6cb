//! The local API and its tasks on a node of plain folders: what the recordings cannot show, since it depends on timing, faults or several callers at once.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod moves;
mod node;
mod plugging;
mod volumes;

use std::{fs, thread, time::Instant};

use pve_sim::faults::{Faults, StorageFault, TaskEffect};

use crate::node::{DEADLINE, Node, storage_fault, task_fault};

#[test]
fn a_vm_lives_and_leaves_nothing() {
    let node = Node::new();
    node.template();
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/9000/clone", "newid=200&name=web&description=mark"), "OK");
    assert!(node.config(200).contains("scsi0: local:9000/base-9000-disk-0.qcow2/200/vm-200-disk-0.qcow2,size=64M"), "{}", node.config(200));
    assert!(node.config(200).starts_with("#mark\n"));
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/200/status/start", ""), "OK");
    assert_eq!(node.call("DELETE", "/nodes/pve1/qemu/200", "").status, "500 VM 200 is running - destroy failed");
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/200/status/shutdown", "timeout=10"), "OK");
    assert_eq!(
        node.task("DELETE", "/nodes/pve1/qemu/9000", ""),
        "base volume 'local:9000/base-9000-disk-0.qcow2' is still in use by linked cloned"
    );
    assert_eq!(node.task("DELETE", "/nodes/pve1/qemu/200", ""), "OK");
    assert_eq!((node.config(200), node.images(200)), (String::new(), Vec::new()));
}

#[test]
fn a_body_in_a_later_segment_is_answered_as_by_a_busy_daemon() {
    let node = Node::new();
    node.template();
    let body = "cores=2";
    let head = node.head("PUT", "/nodes/pve1/qemu/9000/config", body.len());
    let waiting = head.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    assert!(node.raw(&[&waiting, body]).starts_with("HTTP/1.1 200 OK"));
    node.faults(&Faults { split_request_bug: true, ..Faults::default() });
    assert!(node.raw(&[&waiting, body]).starts_with("HTTP/1.1 500 user name not set"));
    assert!(node.raw(&[&format!("{head}{body}")]).starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn a_rotated_key_invalidates_tickets() {
    let node = Node::new();
    assert_eq!(node.call("GET", "/version", "").status, "200 OK");
    fs::write(node.layout.etc_pve().join("priv/authkey.key"), "another").unwrap();
    assert_eq!(node.call("GET", "/version", "").status, "401 Authentication failed!");
}

#[test]
fn a_race_for_one_vmid_has_one_winner() {
    let node = Node::new();
    node.template();
    let ends: Vec<String> = thread::scope(|scope| {
        let calls: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let answer = node.call("POST", "/nodes/pve1/qemu/9000/clone", "newid=201");
                    answer.body["data"].as_str().map_or(answer.status, |upid| node.end_of(upid))
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(ends.iter().filter(|end| *end == "OK").count(), 1, "{ends:?}");
    assert_eq!(node.images(201), ["vm-201-disk-0.qcow2"]);
}

#[test]
fn a_killed_clone_leaves_its_lock_and_disk_and_a_terminated_one_nothing() {
    let node = Node::new();
    node.template();
    node.faults(&task_fault("qmclone", TaskEffect::Killed));
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/9000/clone", "newid=202"), "unexpected status");
    assert_eq!(node.config(202), "# qmclone temporary file\nlock: clone\n");
    assert_eq!(node.images(202), ["vm-202-disk-0.qcow2"]);
    assert_eq!(node.task("DELETE", "/nodes/pve1/qemu/202", ""), "VM is locked (clone)");
    assert_eq!(node.call("PUT", "/nodes/pve1/qemu/202/config", "delete=lock&skiplock=1").status, "200 OK");
    assert_eq!(node.task("DELETE", "/nodes/pve1/qemu/202", "destroy-unreferenced-disks=1"), "OK");
    assert!(node.images(202).is_empty());

    node.faults(&task_fault("qmclone", TaskEffect::Terminated));
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/9000/clone", "newid=203"), "clone failed: received interrupt");
    assert_eq!((node.config(203), node.images(203)), (String::new(), Vec::new()));
}

#[test]
fn a_stopped_full_clone_is_rolled_back() {
    let node = Node::new();
    assert_eq!(node.task("POST", "/nodes/pve1/qemu", "vmid=300&scsi0=local:0.0625"), "OK");
    let image = node.layout.host_path("/var/lib/vz/images/300/vm-300-disk-0.raw");
    fs::write(image, vec![0x5a; 64 << 20]).unwrap();
    node.faults(&storage_fault("local", StorageFault { rate_kib: Some(1000), ..StorageFault::default() }));
    let upid = node.start("POST", "/nodes/pve1/qemu/300/clone", "newid=301");
    let log = format!("/nodes/pve1/tasks/{upid}/log");
    let deadline = Instant::now() + DEADLINE;
    while !node.call("GET", &log, "").body.to_string().contains("transferred ") {
        assert!(Instant::now() < deadline, "the copy does not begin");
    }
    assert_eq!(node.call("DELETE", &format!("/nodes/pve1/tasks/{upid}"), "").status, "200 OK");
    let end = node.end_of(&upid);
    assert!(end.starts_with("clone failed: copy failed: command '/usr/bin/qemu-img convert -p -n -r 1000K -f raw -O raw "), "{end}");
    assert!(end.ends_with("' failed: interrupted by signal"), "{end}");
    assert_eq!((node.config(301), node.images(301)), (String::new(), Vec::new()));
}

#[test]
fn tasks_end_as_their_faults_say() {
    let node = Node::new();
    assert_eq!(node.task("POST", "/nodes/pve1/qemu", "vmid=300"), "OK");
    for (effect, end, changed) in [
        (TaskEffect::NoEndLine, "unexpected status", true),
        (TaskEffect::Warnings(2), "WARNINGS: 2", true),
        (TaskEffect::Error("no luck".into()), "no luck", false),
        (TaskEffect::Delayed(50), "OK", true),
    ] {
        assert_eq!(node.call("PUT", "/nodes/pve1/qemu/300/config", "cores=1").status, "200 OK");
        node.faults(&task_fault("", effect.clone()));
        assert_eq!(node.task("POST", "/nodes/pve1/qemu/300/config", "cores=2"), end);
        assert_eq!(node.config(300).contains("cores: 2"), changed, "{effect:?}");
        assert!(Faults::load(&node.layout.faults()).unwrap().tasks.is_empty(), "a fault is used up");
    }
}

#[test]
fn a_disk_that_cannot_be_removed_is_a_warning() {
    let node = Node::new();
    for (vmid, fault, text) in [
        (
            300,
            StorageFault { remove_fails: true, ..StorageFault::default() },
            "unlink '/srv/raw/images/300/vm-300-disk-0.raw' failed - Operation not permitted",
        ),
        (
            301,
            StorageFault { offline: true, ..StorageFault::default() },
            "unable to activate storage 'rawdir' - directory is expected to be a mount point but is not mounted: '/srv/raw'",
        ),
    ] {
        node.faults(&Faults::default());
        assert_eq!(node.task("POST", "/nodes/pve1/qemu", &format!("vmid={vmid}&scsi0=rawdir:0.01")), "OK");
        node.faults(&storage_fault("rawdir", fault));
        let upid = node.start("DELETE", &format!("/nodes/pve1/qemu/{vmid}"), "");
        assert_eq!(node.end_of(&upid), "WARNINGS: 1");
        let log = node.call("GET", &format!("/nodes/pve1/tasks/{upid}/log"), "").body;
        assert_eq!(
            log["data"][0]["t"],
            format!("WARN: Could not remove disk 'rawdir:{vmid}/vm-{vmid}-disk-0.raw', check manually: {text}")
        );
        assert_eq!(node.config(vmid), "", "the configuration is gone all the same");
    }
}

#[test]
fn the_clean_up_after_a_stop_holds_the_lock() {
    let node = Node::new();
    assert_eq!(node.task("POST", "/nodes/pve1/qemu", "vmid=300"), "OK");
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/300/status/start", ""), "OK");
    node.faults(&Faults { cleanup_holds_lock_s: 6.0, ..Faults::default() });
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/300/status/stop", ""), "OK");
    node.faults(&Faults::default());
    // The helper takes the lock once the task has let go of it: some time until then others may have it.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let put = node.call("PUT", "/nodes/pve1/qemu/300/config", "cores=2").status;
        if put == "500 can't lock file '/var/lock/qemu-server/lock-300.conf' - got timeout" {
            break;
        }
        assert!(Instant::now() < deadline, "nobody holds the lock: {put}");
    }
    while node.call("PUT", "/nodes/pve1/qemu/300/config", "cores=2").status != "200 OK" {
        assert!(Instant::now() < deadline, "the lock is never let go");
    }
}

#[test]
fn clones_share_a_templates_lock_and_time_out_at_an_exclusive_one() {
    let node = Node::new();
    node.template();
    let path = node.layout.vm_lock(9000);
    let file = fs::File::options().append(true).create(true).open(path).unwrap();
    file.lock_shared().unwrap();
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/9000/clone", "newid=200"), "OK");
    assert_eq!(
        node.call("PUT", "/nodes/pve1/qemu/9000/config", "cores=2").status,
        "500 can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout"
    );
    file.unlock().unwrap();
    file.lock().unwrap();
    let refused = "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout";
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/9000/clone", "newid=201"), refused);
}

#[test]
fn a_message_that_no_status_line_can_carry_gets_no_answer() {
    let node = Node::new();
    assert_eq!(node.task("POST", "/nodes/pve1/qemu", "vmid=300"), "OK");
    assert_eq!(node.call("PUT", "/nodes/pve1/qemu/300/config", "scsi0=local:300/vm-300-%E2%82%AC.raw").status, "");
}
