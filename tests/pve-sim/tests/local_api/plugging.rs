//! Disks of a running VM: plugged in, changed, pulled out, and held on to by a guest.

use std::collections::BTreeMap;

use pve_sim::faults::{Faults, Hold, TaskEffect};
use serde_json::Value;

use crate::{
    node::{Node, task_fault},
    volumes::{form, volid},
};

impl Node {
    /// As [`Node::with_volume`], with the VM running and the volume in `slot`.
    fn plugged(slot: &str) -> Self {
        let node = Self::with_volume();
        assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/status/start", ""), "OK");
        assert_eq!(node.put(&format!("{slot}={}", volid())), "200 OK");
        assert!(node.has_line(&format!("{slot}: {},size=64M", volid())), "{}", node.config(100));
        node
    }

    fn hold(&self, slot: &str, hold: Option<Hold>) {
        let slots = hold.map(|hold| (100, BTreeMap::from([(slot.to_owned(), hold)])));
        self.faults(&Faults { held_disks: slots.into_iter().collect(), ..Faults::default() });
    }

    fn is_pending(&self, line: &str) -> bool {
        self.config(100).split_once("[PENDING]\n").is_some_and(|(_, pending)| pending.lines().any(|known| known == line))
    }

    fn restart(&self) {
        assert_eq!(self.task("POST", "/nodes/pve1/qemu/100/status/stop", ""), "OK");
        assert_eq!(self.task("POST", "/nodes/pve1/qemu/100/status/start", ""), "OK");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = pve_sim::guest::kill(&self.layout, 100);
    }
}

#[test]
fn a_running_vm_gets_a_volume_and_gives_it_back() {
    let node = Node::plugged("scsi3");
    assert_eq!(node.put("delete=scsi3"), "200 OK");
    assert!(!node.config(100).contains("scsi3") && !node.config(100).contains("unused"), "{}", node.config(100));
    let boot = node.call("PUT", "/nodes/pve1/qemu/100/config", "delete=scsi0").body;
    assert_eq!(boot["errors"]["scsi0"], "hotplug problem - can't unplug bootdisk 'scsi0'\n");
}

#[test]
fn limits_change_at_once_and_what_qemu_cannot_change_waits_for_the_next_start() {
    let node = Node::plugged("scsi3");
    let set = |options: &str| assert_eq!(node.put(&format!("scsi3={}", form(&format!("{},{options}", volid())))), "200 OK", "{options}");
    set("iops_rd=100,mbps_wr=10,backup=0,replicate=0,serial=abc");
    let now = format!("scsi3: {},backup=0,iops_rd=100,mbps_wr=10,replicate=0,serial=abc,size=64M", volid());
    assert!(node.has_line(&now) && !node.config(100).contains("PENDING"), "{}", node.config(100));
    for fixed in ["aio=native", "cache=none", "discard=on", "iothread=1", "ro=1", "ssd=1"] {
        set(&format!("{fixed},iops_rd=7"));
        assert!(
            node.has_line(&now) && node.is_pending(&format!("scsi3: {},{}", volid(), sorted(&format!("{fixed},iops_rd=7,size=64M")))),
            "{fixed}"
        );
    }
    // What is set back is pending no more.
    assert_eq!(node.put("revert=scsi3"), "200 OK");
    assert!(node.has_line(&now) && !node.config(100).contains("PENDING") && !node.config(100).contains("unused"), "{}", node.config(100));
    set("cache=none");
    node.restart();
    assert!(node.has_line(&format!("scsi3: {},cache=none,size=64M", volid())) && !node.config(100).contains("PENDING"));
}

fn sorted(options: &str) -> String {
    let mut parts: Vec<&str> = options.split(',').collect();
    parts.sort_unstable();
    parts.join(",")
}

#[test]
fn without_hotplug_a_disk_waits_for_the_next_start() {
    let node = Node::plugged("scsi3");
    assert_eq!(node.put("hotplug=0"), "200 OK");
    assert_eq!(node.put(&format!("scsi4={}", volid())), "200 OK");
    assert_eq!(node.put("delete=scsi3"), "200 OK");
    assert!(node.is_pending(&format!("scsi4: {},size=64M", volid())) && node.is_pending("delete: scsi3"), "{}", node.config(100));
    let pending = node.call("GET", "/nodes/pve1/qemu/100/pending", "").body;
    let row = |key: &str| pending["data"].as_array().unwrap().iter().find(|row| row["key"] == key).cloned().unwrap_or_default();
    assert_eq!((&row("scsi3")["delete"], row("scsi4").get("value")), (&Value::from(1), None));
    assert_eq!(node.put("revert=scsi4"), "200 OK");
    assert!(!node.config(100).contains("scsi4"), "{}", node.config(100));
    // Limits need no hotplug.
    assert_eq!(node.put(&format!("scsi3={}", form(&format!("{},iops=9", volid())))), "200 OK");
    assert!(node.has_line(&format!("scsi3: {},iops=9,size=64M", volid())) && !node.config(100).contains("PENDING"), "{}", node.config(100));
    assert_eq!(node.put("delete=scsi3"), "200 OK");
    node.restart();
    assert!(!node.config(100).contains("scsi3") && !node.config(100).contains("unused"), "{}", node.config(100));
}

#[test]
fn a_disk_that_a_guest_holds_on_to_stays_pending_until_it_lets_go_and_is_asked_again() {
    let node = Node::plugged("virtio3");
    node.hold("virtio3", Some(Hold::Disk));
    let error = "hotplug problem - error on hot-unplugging device 'virtio3' - still busy in guest?\n";
    let answer = node.call("PUT", "/nodes/pve1/qemu/100/config", "delete=virtio3");
    assert_eq!((answer.status.as_str(), &answer.body["errors"]["virtio3"]), ("400 Parameter verification failed.", &error.into()));
    let upid = node.start("POST", "/nodes/pve1/qemu/100/config", "delete=virtio3");
    let end =
        "400 Parameter verification failed. virtio3: hotplug problem - error on hot-unplugging device 'virtio3' - still busy in guest? ";
    assert_eq!(node.end_of(&upid), end);
    assert_eq!(node.log(&upid), ["update VM 100: -delete virtio3".to_owned(), format!("TASK ERROR: {end}")]);
    assert!(node.has_line(&format!("virtio3: {},size=64M", volid())) && node.is_pending("delete: virtio3"), "{}", node.config(100));
    // Let go of, it stays until somebody asks for just this again.
    node.hold("virtio3", None);
    assert_eq!(node.put("name=other"), "200 OK");
    assert!(node.is_pending("delete: virtio3"), "{}", node.config(100));
    assert_eq!(node.put("delete=virtio3"), "200 OK");
    assert!(!node.config(100).contains("virtio3") && !node.config(100).contains("unused"), "{}", node.config(100));
}

#[test]
fn a_worker_that_is_killed_while_it_pulls_a_disk_out_leaves_the_removal_pending() {
    let node = Node::plugged("virtio3");
    node.faults(&task_fault("qmconfig", TaskEffect::Killed));
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/config", "delete=virtio3"), "unexpected status");
    assert!(node.has_line(&format!("virtio3: {},size=64M", volid())) && node.is_pending("delete: virtio3"), "{}", node.config(100));
    assert_eq!(node.put("delete=virtio3"), "200 OK");
    assert!(!node.config(100).contains("virtio3"), "{}", node.config(100));
}

#[test]
fn a_worker_that_is_killed_while_it_plugs_a_disk_in_leaves_the_disk_pending() {
    let node = Node::plugged("scsi3");
    node.faults(&task_fault("qmconfig", TaskEffect::Killed));
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/config", &format!("scsi4={}", volid())), "unexpected status");
    assert!(node.is_pending(&format!("scsi4: {},size=64M", volid())), "{}", node.config(100));
    assert_eq!(node.put("revert=scsi4"), "200 OK");
    assert!(!node.config(100).contains("scsi4"), "{}", node.config(100));
}

#[test]
fn a_held_disk_goes_with_the_next_start() {
    let node = Node::plugged("virtio3");
    node.hold("virtio3", Some(Hold::Disk));
    assert_eq!(node.put("delete=virtio3"), "400 Parameter verification failed.");
    node.restart();
    assert!(!node.config(100).contains("virtio3") && !node.config(100).contains("PENDING"), "{}", node.config(100));
}

#[test]
fn a_held_controller_fails_once_since_its_disk_has_gone_by_then() {
    let node = Node::plugged("scsi3");
    node.hold("scsi3", Some(Hold::Controller));
    let answer = node.call("PUT", "/nodes/pve1/qemu/100/config", "delete=scsi3");
    let error = "hotplug problem - error on hot-unplugging device 'virtioscsi3' - still busy in guest?\n";
    assert_eq!((answer.status.as_str(), &answer.body["errors"]["scsi3"]), ("400 Parameter verification failed.", &error.into()));
    assert!(node.is_pending("delete: scsi3"), "{}", node.config(100));
    assert_eq!(node.put("delete=scsi3"), "200 OK");
    assert!(!node.config(100).contains("scsi3"), "{}", node.config(100));
}

#[test]
fn a_pending_removal_is_taken_back_by_revert_or_by_setting_the_disk_again() {
    let node = Node::plugged("virtio3");
    node.hold("virtio3", Some(Hold::Disk));
    let again = format!("virtio3={}", volid());
    for back in ["revert=virtio3", &again] {
        assert_eq!(node.put("delete=virtio3"), "400 Parameter verification failed.");
        assert!(node.is_pending("delete: virtio3"), "{}", node.config(100));
        assert_eq!(node.put(back), "200 OK", "{back}");
        assert!(
            node.has_line(&format!("virtio3: {},size=64M", volid())) && !node.config(100).contains("PENDING"),
            "{back}: {}",
            node.config(100)
        );
    }
}

#[test]
fn a_held_disk_is_not_replaced() {
    let node = Node::plugged("virtio3");
    node.hold("virtio3", Some(Hold::Disk));
    assert_eq!(node.put("virtio3=local:0.0625"), "400 Parameter verification failed.");
    assert!(node.has_line(&format!("virtio3: {},size=64M", volid())), "{}", node.config(100));
    assert!(node.is_pending("virtio3: local:100/vm-100-disk-1.raw,size=64M"), "{}", node.config(100));
    // The disk that was made for it is kept as unused.
    assert_eq!(node.put("revert=virtio3"), "200 OK");
    assert!(node.has_line("unused0: local:100/vm-100-disk-1.raw") && !node.config(100).contains("PENDING"), "{}", node.config(100));
}
