use std::{fs, fs::File, net::TcpStream};

use nix::fcntl::{Flock, FlockArg};
use pve_sim::{
    control::{Request, Seed},
    faults::Hold,
    guest,
};
use serde_json::json;

use crate::{cluster, json as read_json};

#[test]
fn a_template_is_made_with_a_real_image() {
    let cluster = cluster(&["pve1"]);
    let seed = Seed { tags: "k8s;talos".into(), size_mib: 64, fill_mib: 2, ..Seed::new("pve1", 9001, "debian-13") };
    cluster.control().call(&Request::SeedTemplate(seed.clone())).unwrap();
    let node = cluster.node("pve1");
    let config = fs::read_to_string(node.vm_config(9001)).unwrap();
    for line in [
        "template: 1\n",
        "tags: k8s;talos\n",
        "scsi0: local:9001/base-9001-disk-0.qcow2,size=64M\n",
        "ide2: local:9001/vm-9001-cloudinit.qcow2,media=cdrom\n",
    ] {
        assert!(config.contains(line), "{line}{config}");
    }
    let image = node.host_path("/var/lib/vz/images/9001/base-9001-disk-0.qcow2");
    let info = std::process::Command::new("qemu-img").args(["info", "--output=json"]).arg(&image).output().unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!((&info["format"], &info["virtual-size"]), (&json!("qcow2"), &json!(64 << 20)));
    assert!(fs::metadata(image).unwrap().len() > 2 << 20);
    assert!(cluster.control().call(&Request::SeedVm(seed)).unwrap_err().to_string().contains("exists already"));
}

#[test]
fn many_vms_are_made_at_once() {
    let cluster = cluster(&["pve1"]);
    cluster.control().call(&Request::SeedVms { node: "pve1".into(), first: 1000, count: 1000 }).unwrap();
    assert_eq!(read_json(&cluster.node("pve1").etc_pve().join(".vmlist"))["ids"].as_object().unwrap().len(), 1000);
    assert!(fs::read_to_string(cluster.node("pve1").vm_config(1999)).unwrap().contains("name: vm1999\n"));
}

#[test]
fn a_storage_is_on_every_node_or_on_its_own() {
    let cluster = cluster(&["pve1", "pve2"]);
    fs::write(cluster.node("pve1").host_path("/mnt/pve/shared/images/x"), "x").unwrap();
    assert!(cluster.node("pve2").host_path("/mnt/pve/shared/images/x").exists());
    fs::write(cluster.node("pve1").host_path("/var/lib/vz/images/x"), "x").unwrap();
    assert!(!cluster.node("pve2").host_path("/var/lib/vz/images/x").exists());
}

#[test]
fn the_small_storage_fills_up() {
    let cluster = cluster(&["pve1"]);
    let full = fs::write(cluster.node("pve1").host_path("/srv/small/images/x"), vec![1; 80 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn a_restored_duplicate_has_the_same_uuid() {
    let cluster = cluster(&["pve1", "pve2"]);
    cluster.control().call(&Request::SeedVms { node: "pve1".into(), first: 100, count: 1 }).unwrap();
    cluster.control().call(&Request::RestoreDuplicate { vmid: 100, new: 101, node: Some("pve2".into()) }).unwrap();
    let text = |node: &str, vmid| fs::read_to_string(cluster.node(node).vm_config(vmid)).unwrap();
    assert_eq!(text("pve1", 100), text("pve2", 101));
}

#[test]
fn a_running_vm_that_is_migrated_runs_on_the_other_node() {
    let cluster = cluster(&["pve1", "pve2"]);
    let call = |request: &Request| cluster.control().call(request).unwrap();
    call(&Request::SeedVms { node: "pve1".into(), first: 100, count: 1 });
    call(&Request::StartGuest { vmid: 100 });
    call(&Request::Migrate { vmid: 100, to: "pve2".into() });
    assert_eq!(guest::running(&cluster.node("pve1"), 100), None);
    assert!(guest::running(&cluster.node("pve2"), 100).is_some());
}

#[test]
fn lock_and_protection_are_set_and_taken_away() {
    let cluster = cluster(&["pve1"]);
    let call = |request: &Request| cluster.control().call(request).unwrap();
    call(&Request::SeedVms { node: "pve1".into(), first: 100, count: 1 });
    let text = || fs::read_to_string(cluster.node("pve1").vm_config(100)).unwrap();
    let before = text();
    call(&Request::LockVm { vmid: 100, lock: "backup".into() });
    call(&Request::Protect { vmid: 100, on: true });
    assert!(text().contains("lock: backup\n") && text().contains("protection: 1\n"));
    call(&Request::UnlockVm { vmid: 100 });
    call(&Request::Protect { vmid: 100, on: false });
    assert_eq!(text(), before);
}

#[test]
fn a_held_lock_is_free_again_when_released() {
    let cluster = cluster(&["pve1"]);
    let path = cluster.node("pve1").vm_lock(100);
    let id = cluster.control().call(&Request::HoldLock { node: "pve1".into(), vmid: Some(100), storage: None }).unwrap();
    let take = || Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock).is_ok();
    assert!(!take());
    cluster.control().call(&Request::ReleaseLock { id: id.as_u64().unwrap() }).unwrap();
    assert!(take());
}

#[test]
fn faults_change_field_by_field_and_a_daemon_that_is_down_is_not_there() {
    let cluster = cluster(&["pve1"]);
    let node = cluster.node("pve1");
    let address = fs::read_to_string(node.api_address()).unwrap();
    let change = |change| cluster.control().call(&Request::Faults { node: "pve1".into(), change }).unwrap();
    change(json!({"storages": {"local": {"rate_kib": 100}}}));
    assert!(TcpStream::connect(&address).is_ok());
    let after = change(json!({"daemon_down": true}));
    assert_eq!((&after["storages"]["local"]["rate_kib"], &after["daemon_down"]), (&json!(100), &json!(true)));
    assert!(TcpStream::connect(&address).is_err());
    cluster.control().call(&Request::Daemon { node: "pve1".into(), up: true }).unwrap();
    assert!(TcpStream::connect(&address).is_ok());
}

#[test]
fn a_guest_holds_on_to_a_disk_until_it_is_told_to_let_go() {
    let cluster = cluster(&["pve1"]);
    let call = |request: &Request| cluster.control().call(request).unwrap();
    call(&Request::SeedVms { node: "pve1".into(), first: 100, count: 1 });
    let held = || pve_sim::faults::Faults::load(&cluster.node("pve1").faults()).unwrap().held_disks;
    call(&Request::HoldDisk { vmid: 100, slot: "scsi3".into(), hold: Some(Hold::Disk) });
    cluster.control().send(&json!({"verb": "hold-disk", "vmid": 100, "slot": "scsi4", "hold": "controller"})).unwrap();
    assert_eq!(held()[&100].get("scsi3"), Some(&Hold::Disk));
    assert_eq!(held()[&100].get("scsi4"), Some(&Hold::Controller));
    // Other faults change beside them.
    let change = json!({"held_disks": {"100": {"virtio1": "disk"}}, "storages": {"local": {"rate_kib": 100}}});
    call(&Request::Faults { node: "pve1".into(), change });
    assert_eq!(held()[&100].len(), 3);
    for slot in ["scsi3", "scsi4", "virtio1"] {
        call(&Request::HoldDisk { vmid: 100, slot: slot.into(), hold: None });
    }
    assert!(held().is_empty());
}

#[test]
fn replication_jobs_come_and_go() {
    let cluster = cluster(&["pve1", "pve2"]);
    let call = |request: &Request| cluster.control().call(request).unwrap();
    call(&Request::SeedVms { node: "pve1".into(), first: 100, count: 2 });
    let text = || fs::read_to_string(cluster.node("pve1").etc_pve().join("replication.cfg")).unwrap();
    call(&Request::ReplicationAdd { vmid: 100, target: "pve2".into() });
    call(&Request::ReplicationAdd { vmid: 101, target: "pve2".into() });
    call(&Request::ReplicationRemove { vmid: 100 });
    assert_eq!(text(), "local: 101-0\n\ttarget pve2\n\tsource pve1\n\n");
}

#[test]
fn left_overs_are_told_and_equal_states_give_equal_texts() {
    let cluster = cluster(&["pve1"]);
    let before = cluster.control().leftovers().unwrap();
    let image = cluster.node("pve1").host_path("/var/lib/vz/images/100/vm-100-disk-0.raw");
    fs::create_dir_all(image.parent().unwrap()).unwrap();
    fs::write(&image, "").unwrap();
    cluster.control().call(&Request::TakeClusterLock { name: "x".into() }).unwrap();
    let with = cluster.control().leftovers().unwrap();
    for line in ["image pve1 /var/lib/vz 100/vm-100-disk-0.raw\n", "cluster lock priv/lock/x\n"] {
        assert!(with.contains(line), "{with}");
    }
    fs::remove_dir_all(image.parent().unwrap()).unwrap();
    cluster.control().call(&Request::ReleaseClusterLock { name: "x".into() }).unwrap();
    assert_eq!(cluster.control().leftovers().unwrap(), before);
}

#[test]
fn a_request_that_is_not_understood_is_refused_with_a_reason() {
    let cluster = cluster(&["pve1"]);
    for (request, reason) in [
        (json!({"verb": "nonsense"}), "unknown variant"),
        (json!({"verb": "migrate", "vmid": 1}), "missing field"),
        (json!({"verb": "status", "x": 1}), "unknown field"),
        (json!({"verb": "migrate", "vmid": 100, "to": "pve9"}), "no node 'pve9'"),
        (json!({"verb": "kill-guest", "vmid": 100}), "no VM 100"),
    ] {
        let refused = cluster.control().send(&request).unwrap_err().to_string();
        assert!(refused.contains(reason), "{request}: {refused}");
    }
}
