//! Volumes that belong to no VM: made for a VMID that nobody has, attached to VMs, taken off them, freed.

use std::{collections::BTreeMap, fs};

use pve_sim::faults::{Faults, StorageFault};

use crate::node::{Node, storage_fault};

pub(crate) const OWNER: u32 = 999_999_999;
pub(crate) const NAME: &str = "vm-999999999-pvc-0b951f20-53f9-4634-b1ce-8d0a4f3c2e11.raw";
/// Every option that such a volume has, not in the order in which PVE writes them.
const OPTIONS: &str = "ssd=1,serial=0b951f2053f94634b1ce,ro=1,replicate=0,mbps_wr=10,mbps_rd=10,iothread=1,iops_wr=100,iops_rd=100,discard=on,cache=none,\
    backup=0,aio=native";
const WRITTEN: &str = "aio=native,backup=0,cache=none,discard=on,iops_rd=100,iops_wr=100,iothread=1,mbps_rd=10,mbps_wr=10,replicate=0,ro=1,\
    serial=0b951f2053f94634b1ce,size=64M,ssd=1";

pub(crate) fn volid() -> String {
    format!("local:{OWNER}/{NAME}")
}

impl Node {
    /// A VM with a disk of its own, and a volume that no VM owns.
    pub(crate) fn with_volume() -> Self {
        let node = Self::new();
        assert_eq!(node.task("POST", "/nodes/pve1/qemu", "vmid=100&scsihw=virtio-scsi-single&scsi0=local:0.0625&boot=order%3Dscsi0"), "OK");
        let made = node.call("POST", "/nodes/pve1/storage/local/content", &format!("vmid={OWNER}&filename={NAME}&size=64M&format=raw"));
        assert_eq!((made.status.as_str(), made.body["data"].as_str()), ("200 OK", Some(volid().as_str())));
        node
    }

    pub(crate) fn put(&self, form: &str) -> String {
        self.call("PUT", "/nodes/pve1/qemu/100/config", form).status
    }

    pub(crate) fn digest(&self) -> String {
        let config = self.call("GET", "/nodes/pve1/qemu/100/config", "");
        config.body["data"]["digest"].as_str().unwrap().to_owned()
    }

    pub(crate) fn has_line(&self, line: &str) -> bool {
        self.config(100).lines().any(|known| known == line)
    }
}

/// A value as a form has it.
pub(crate) fn form(text: &str) -> String {
    text.replace('=', "%3D")
}

#[test]
fn a_volume_of_nobody_is_attached_as_pve_writes_it_and_leaves_nothing_when_it_is_taken_off() {
    let node = Node::with_volume();
    let value = form(&format!("{},{OPTIONS}", volid()));
    assert_eq!(node.put(&format!("scsi3={value}&digest={}", node.digest())), "200 OK");
    assert!(node.has_line(&format!("scsi3: {},{WRITTEN}", volid())), "{}", node.config(100));
    assert_eq!(node.put("delete=scsi3&digest=0000"), "500 checksum mismatch (file change by other user?)");
    assert_eq!(node.put(&format!("delete=scsi3&digest={}", node.digest())), "200 OK");
    assert!(!node.config(100).contains("unused") && !node.config(100).contains("pvc"), "{}", node.config(100));
    assert_eq!(node.images(OWNER), [NAME]);
    assert_eq!(node.task("DELETE", &format!("/nodes/pve1/storage/local/content/{}", volid()), ""), "OK");
    assert!(node.images(OWNER).is_empty());
}

#[test]
fn the_same_is_done_by_a_task() {
    let node = Node::with_volume();
    let upid = node.start("POST", "/nodes/pve1/qemu/100/config", &format!("scsi3={}", form(&format!("{},{OPTIONS}", volid()))));
    assert_eq!(node.end_of(&upid), "OK");
    assert!(node.has_line(&format!("scsi3: {},{WRITTEN}", volid())), "{}", node.config(100));
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/config", "delete=scsi3"), "OK");
    assert!(!node.config(100).contains("unused"));
}

#[test]
fn a_disk_of_its_own_becomes_unused_until_it_is_attached_again() {
    let node = Node::with_volume();
    assert_eq!(node.put("scsi1=local:0.0625"), "200 OK");
    assert_eq!(node.put("delete=scsi1"), "200 OK");
    assert!(node.has_line("unused0: local:100/vm-100-disk-1.raw"), "{}", node.config(100));
    assert_eq!(node.put("scsi2=local:100/vm-100-disk-1.raw"), "200 OK");
    assert!(node.has_line("scsi2: local:100/vm-100-disk-1.raw,size=64M") && !node.config(100).contains("unused"), "{}", node.config(100));
}

#[test]
fn a_taken_slot_is_replaced_without_a_word() {
    let node = Node::with_volume();
    assert_eq!(node.put("scsi1=local:0.0625"), "200 OK");
    assert_eq!(node.put(&format!("scsi1={}", volid())), "200 OK");
    assert!(node.has_line("unused0: local:100/vm-100-disk-1.raw") && node.has_line(&format!("scsi1: {},size=64M", volid())));
    assert_eq!(node.put("scsi1=local:100/vm-100-disk-1.raw"), "200 OK");
    assert!(!node.config(100).contains("pvc") && !node.config(100).contains("unused"), "{}", node.config(100));
}

#[test]
fn a_volume_may_stand_in_two_slots_and_in_two_vms() {
    let node = Node::with_volume();
    assert_eq!(node.task("POST", "/nodes/pve1/qemu", "vmid=101&scsi0=local:0.0625"), "OK");
    for slot in ["scsi3", "scsi4"] {
        assert_eq!(node.put(&format!("{slot}={}", volid())), "200 OK");
    }
    assert_eq!(node.put("scsi5=local:101/vm-101-disk-0.raw&scsi6=local:100/vm-100-disk-0.raw"), "200 OK");
    assert!(node.has_line("scsi5: local:101/vm-101-disk-0.raw,size=64M"), "{}", node.config(100));
    // What still stands in another slot is not unused, and cannot be removed.
    assert_eq!(node.put("delete=scsi6"), "200 OK");
    assert!(!node.config(100).contains("unused"), "{}", node.config(100));
    assert_eq!(node.put("scsi6=local:100/vm-100-disk-0.raw"), "200 OK");
    let refused = node.call("PUT", "/nodes/pve1/qemu/100/unlink", "idlist=scsi6&force=1");
    let error =
        "unable to apply pending change scsi6 : unable to delete 'local:100/vm-100-disk-0.raw' - volume is still in use (snapshot?)\n";
    assert_eq!((refused.status.as_str(), &refused.body["errors"]["scsi6"]), ("400 Parameter verification failed.", &error.into()));
}

#[test]
fn a_disk_that_is_set_again_with_other_options_stays() {
    let node = Node::with_volume();
    assert_eq!(node.put("scsi1=local:0.0625"), "200 OK");
    assert_eq!(node.put(&format!("scsi1={}", form("local:100/vm-100-disk-1.raw,iops=5,backup=no"))), "200 OK");
    assert!(node.has_line("scsi1: local:100/vm-100-disk-1.raw,backup=0,iops=5,size=64M") && !node.config(100).contains("unused"));
}

#[test]
fn options_that_pve_refuses_are_refused() {
    let node = Node::with_volume();
    let serial = "0".repeat(61);
    for (options, error) in [
        (format!("serial={serial}"), "invalid format - format error\nscsi3.serial: value may only be 60 characters long\n"),
        (
            "cache=some".into(),
            "invalid format - format error\nscsi3.cache: value 'some' does not have a value in the enumeration 'none, writethrough, \
            writeback, unsafe, directsync'\n",
        ),
        ("mbps=1,mbps_rd=1".into(), "unable to parse drive options"),
        (
            "nonsense=1".into(),
            "invalid format - format error\nscsi3.nonsense: property is not defined in schema and the schema does not allow additional \
            properties\n",
        ),
    ] {
        let answer = node.call("PUT", "/nodes/pve1/qemu/100/config", &format!("scsi3={}", form(&format!("{},{options}", volid()))));
        assert_eq!(
            (answer.status.as_str(), &answer.body["errors"]["scsi3"]),
            ("400 Parameter verification failed.", &error.into()),
            "{options}"
        );
    }
    let missing = format!("local:{OWNER}/vm-999999999-pvc-x.raw");
    assert_eq!(node.put(&format!("scsi3={missing}")), format!("500 volume '{missing}' does not exist"));
    assert!(!node.config(100).contains("scsi3"));
}

#[test]
fn a_volume_is_told_and_listed_by_its_owner_and_other_files_are_not() {
    let node = Node::with_volume();
    let folder = node.layout.host_path(&format!("/var/lib/vz/images/{OWNER}"));
    for other in ["state.json", "vm-999999999-pvc-a.raw.tmp", "notes"] {
        fs::write(folder.join(other), "x").unwrap();
    }
    let one = node.call("GET", &format!("/nodes/pve1/storage/local/content/{}", volid()), "").body;
    let path = format!("/var/lib/vz/images/{OWNER}/{NAME}");
    assert_eq!((&one["data"]["path"], &one["data"]["size"], &one["data"]["format"]), (&path.into(), &(64 << 20).into(), &"raw".into()));
    assert!(one["data"]["used"].is_u64());
    let listed = |form: &str| -> Vec<String> {
        let answer = node.call("GET", "/nodes/pve1/storage/local/content", form).body;
        answer["data"].as_array().unwrap().iter().map(|entry| entry["volid"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(&format!("content=images&vmid={OWNER}")), [volid()]);
    assert_eq!(listed("content=images").len(), 2);
    assert_eq!(listed("content=images&vmid=100"), ["local:100/vm-100-disk-0.raw"]);
}

#[test]
fn a_storage_that_cannot_take_a_volume_says_why() {
    let node = Node::with_volume();
    let text = fs::read_to_string(node.layout.etc_pve().join("storage.cfg")).unwrap();
    let more = "dir: off\n\tdisable\n\tpath /srv/off\n\tcontent images\n\ndir: far\n\tpath /srv/far\n\tcontent images\n\tnodes pve2\n\n";
    fs::write(node.layout.etc_pve().join("storage.cfg"), text + more).unwrap();
    let full = StorageFault { full_after_bytes: Some(0), ..StorageFault::default() };
    let offline = StorageFault { offline: true, ..StorageFault::default() };
    node.faults(&Faults { storages: BTreeMap::from([("local".into(), full), ("rawdir".into(), offline)]), ..Faults::default() });
    let shown = format!("/var/lib/vz/images/{OWNER}/vm-999999999-pvc-b.raw");
    for (storage, error) in [
        ("local", format!("unable to create image: qemu-img: {shown}: Could not create '{shown}': No space left on device")),
        ("rawdir", "unable to activate storage 'rawdir' - directory is expected to be a mount point but is not mounted: '/srv/raw'".into()),
        ("off", "storage 'off' is disabled".into()),
        ("far", "storage 'far' is not available on node 'pve1'".into()),
        ("nosuch", "storage 'nosuch' does not exist".into()),
    ] {
        let form = format!("vmid={OWNER}&filename=vm-999999999-pvc-b.raw&size=1024&format=raw");
        let answer = node.call("POST", &format!("/nodes/pve1/storage/{storage}/content"), &form);
        assert_eq!(answer.status, format!("500 {error}"), "{storage}");
    }
    assert_eq!(node.images(OWNER), [NAME]);
}

#[test]
fn a_volume_grows_with_the_vm_that_has_it_running_or_not() {
    let node = Node::with_volume();
    assert_eq!(node.put(&format!("scsi3={}", form(&format!("{},serial=abc", volid())))), "200 OK");
    assert_eq!(node.task("PUT", "/nodes/pve1/qemu/100/resize", "disk=scsi3&size=128M"), "OK");
    assert!(node.has_line(&format!("scsi3: {},serial=abc,size=128M", volid())), "{}", node.config(100));
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/status/start", ""), "OK");
    assert_eq!(node.task("PUT", "/nodes/pve1/qemu/100/resize", "disk=scsi3&size=%2B64M"), "OK");
    assert!(node.has_line(&format!("scsi3: {},serial=abc,size=192M", volid())), "{}", node.config(100));
    let path = node.layout.host_path(&format!("/var/lib/vz/images/{OWNER}/{NAME}"));
    assert_eq!(fs::metadata(path).unwrap().len(), 192 << 20);
    assert_eq!(node.task("PUT", "/nodes/pve1/qemu/100/resize", "disk=scsi3&size=1M"), "shrinking disks is not supported");
    node.faults(&storage_fault("local", StorageFault { offline: true, ..StorageFault::default() }));
    let offline = "unable to activate storage 'local' - directory is expected to be a mount point but is not mounted: '/var/lib/vz'";
    assert_eq!(node.task("PUT", "/nodes/pve1/qemu/100/resize", "disk=scsi3&size=1G"), offline);
    node.faults(&Faults::default());
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/status/stop", ""), "OK");
}

#[test]
fn a_vm_that_goes_takes_only_what_is_its_own() {
    let node = Node::with_volume();
    assert_eq!(node.put(&format!("scsi3={}&scsi1=local:0.0625", volid())), "200 OK");
    assert_eq!(node.put("delete=scsi1"), "200 OK");
    let text = node.config(100) + &format!("\n[s1]\nscsi3: {},size=64M\nsnaptime: 1\n", volid());
    fs::write(node.layout.vm_config(100), text).unwrap();
    assert_eq!(node.task("DELETE", "/nodes/pve1/qemu/100", "purge=1&destroy-unreferenced-disks=1"), "OK");
    assert_eq!((node.images(100), node.images(OWNER)), (Vec::new(), vec![NAME.to_owned()]));
}

#[test]
fn what_only_a_snapshot_had_is_unused_when_the_snapshot_goes_whoever_owns_it() {
    let node = Node::new();
    assert_eq!(node.task("POST", "/nodes/pve1/qemu", "vmid=100&scsi0=local:0.0625,format%3Dqcow2"), "OK");
    let name = "vm-999999999-pvc-c.qcow2";
    let volid = format!("local:{OWNER}/{name}");
    let made = node.call("POST", "/nodes/pve1/storage/local/content", &format!("vmid={OWNER}&filename={name}&size=64M&format=qcow2"));
    assert_eq!(made.status, "200 OK");
    assert_eq!(node.put(&format!("scsi3={volid}")), "200 OK");
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/snapshot", "snapname=s1"), "OK");
    assert_eq!(node.put("delete=scsi3"), "200 OK");
    let current = || node.config(100).split_once("\n[s1]").map_or_else(|| node.config(100), |(current, _)| current.to_owned());
    assert!(!current().contains("unused") && !current().contains("pvc"), "{}", node.config(100));
    assert_eq!(node.task("DELETE", "/nodes/pve1/qemu/100/snapshot/s1", ""), "OK");
    // The first number went to the disk that is in use, for as long as it took to write the file.
    assert!(node.has_line(&format!("unused1: {volid}")), "{}", node.config(100));
    // A rollback does the same with disks that came later.
    assert_eq!(node.put("delete=unused1"), "200 OK");
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/snapshot", "snapname=s2"), "OK");
    assert_eq!(node.put(&format!("scsi3={volid}")), "200 OK");
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/snapshot/s2/rollback", ""), "OK");
    assert!(node.has_line(&format!("unused0: {volid}")) && !node.has_line(&format!("scsi3: {volid},size=64M")), "{}", node.config(100));
    assert_eq!(node.images(OWNER), [name]);
}
