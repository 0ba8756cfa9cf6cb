//! Disks that move to another storage, of VMs that run and of VMs that do not.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    time::Instant,
};

use pve_sim::faults::{Faults, StorageFault, TaskEffect};

use crate::{
    node::{DEADLINE, Node, names, storage_fault, task_fault},
    volumes::{NAME, OWNER, form, volid},
};

const MOVE: &str = "/nodes/pve1/qemu/100/move_disk";

impl Node {
    /// As [`Node::with_volume`], with the volume in `scsi3`.
    fn attached(running: bool) -> Self {
        let node = Self::with_volume();
        assert_eq!(node.put(&format!("scsi3={}", form(&format!("{},iops_rd=100,serial=abc", volid())))), "200 OK");
        if running {
            assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/status/start", ""), "OK");
        }
        node
    }

    /// Puts so many MiB into the volume.
    fn fill(&self, mib: usize) {
        let path = self.layout.host_path(&format!("/var/lib/vz/images/{OWNER}/{NAME}"));
        OpenOptions::new().write(true).open(path).unwrap().write_all(&vec![0x5a; mib << 20]).unwrap();
    }

    fn moved(&self) -> Vec<String> {
        names(&self.layout.host_path("/srv/raw/images/100"))
    }
}

#[test]
fn a_moved_disk_is_its_vms_own_and_the_source_stays_as_unused() {
    let node = Node::attached(false);
    let upid = node.start("POST", MOVE, "disk=scsi3&storage=rawdir");
    assert_eq!(node.end_of(&upid), "OK");
    assert!(node.has_line("scsi3: rawdir:100/vm-100-disk-0.raw,iops_rd=100,serial=abc,size=64M"), "{}", node.config(100));
    assert!(node.has_line(&format!("unused0: {}", volid())), "{}", node.config(100));
    assert_eq!((node.images(OWNER), node.moved()), (vec![NAME.to_owned()], vec!["vm-100-disk-0.raw".to_owned()]));
    let log = node.log(&upid);
    assert_eq!(log[0], format!("copying volume '{}' from current storage 'local' to target storage 'rawdir'", volid()));
    assert!(log.contains(&format!("adding source volume '{}' as 'unused0' to config", volid())), "{log:?}");
    // An unused volume of another owner leaves the configuration, and stays.
    assert_eq!(node.put("delete=unused0"), "200 OK");
    assert_eq!((node.config(100).contains("unused"), node.images(OWNER)), (false, vec![NAME.to_owned()]));
}

#[test]
fn a_moved_disk_whose_source_is_to_go_takes_another_owners_with_it() {
    let node = Node::attached(false);
    assert_eq!(node.task("POST", MOVE, "disk=scsi3&storage=rawdir&format=qcow2&delete=1"), "OK");
    assert!(node.has_line("scsi3: rawdir:100/vm-100-disk-0.qcow2,iops_rd=100,serial=abc,size=64M"), "{}", node.config(100));
    assert!(!node.config(100).contains("unused") && node.images(OWNER).is_empty(), "{}", node.config(100));
}

#[test]
fn a_disk_of_a_running_vm_is_mirrored() {
    let node = Node::attached(true);
    node.fill(8);
    let digest = node.digest();
    let upid = node.start("POST", MOVE, &format!("disk=scsi3&storage=rawdir&delete=1&bwlimit=1000000&digest={digest}"));
    assert_eq!(node.end_of(&upid), "OK");
    let log = node.log(&upid);
    let begin = [
        format!("copying volume '{}' from current storage 'local' to target storage 'rawdir'", volid()),
        format!("create full clone of drive scsi3 ({})", volid()),
        "Formatting '/srv/raw/images/100/vm-100-disk-0.raw', fmt=raw size=67108864 preallocation=off".to_owned(),
        "allocated target volume 'rawdir:100/vm-100-disk-0.raw'".to_owned(),
        "drive mirror is starting for drive-scsi3 with bandwidth limit: 1000000 KiB/s".to_owned(),
        "mirror-scsi3: transferred 0.0 B of 64.0 MiB (0.00%) in 0s".to_owned(),
    ];
    assert!(log.starts_with(&begin), "{log:#?}");
    let end = [
        "all 'mirror' jobs are ready".to_owned(),
        "mirror-scsi3: Completing block job...".to_owned(),
        "mirror-scsi3: Completed successfully.".to_owned(),
        "mirror-scsi3: mirror-job finished".to_owned(),
        format!("removing source volume '{}' after successful copy", volid()),
        "TASK OK".to_owned(),
    ];
    assert!(log.ends_with(&end), "{log:#?}");
    assert!(
        log.iter()
            .any(|line| line.starts_with("mirror-scsi3: transferred 64.0 MiB of 64.0 MiB (100.00%) in ") && line.ends_with(", ready"))
    );
    assert!(node.has_line("scsi3: rawdir:100/vm-100-disk-0.raw,iops_rd=100,serial=abc,size=64M"), "{}", node.config(100));
    let copied = fs::read(node.layout.host_path("/srv/raw/images/100/vm-100-disk-0.raw")).unwrap();
    assert!(copied[..8 << 20].iter().all(|byte| *byte == 0x5a) && node.images(OWNER).is_empty());
    assert_eq!(
        node.call("POST", MOVE, &format!("disk=scsi3&storage=local&digest={digest}")).status,
        "500 detected modified configuration - file changed by other user? Try again."
    );
}

#[test]
fn a_target_that_runs_full_leaves_everything_as_it_was() {
    for running in [false, true] {
        let node = Node::attached(running);
        node.fill(8);
        let before = node.config(100);
        node.faults(&storage_fault("rawdir", StorageFault { full_after_bytes: Some(4 << 20), ..StorageFault::default() }));
        let upid = node.start("POST", MOVE, "disk=scsi3&storage=rawdir&delete=1");
        let copy = format!(
            "copy failed: command '/usr/bin/qemu-img convert -p -n -f raw -O raw /var/lib/vz/images/{OWNER}/{NAME} \
             zeroinit:/srv/raw/images/100/vm-100-disk-0.raw' failed: exit code 1"
        );
        let mirror = "block job (mirror) error: mirror-scsi3: No space left on device (io-status: ok)";
        assert_eq!(node.end_of(&upid), format!("storage migration failed: {}", if running { mirror } else { &copy }));
        assert!(node.log(&upid).iter().any(|line| line.contains("transferred 4.0 MiB of 64.0 MiB (6.2")), "{:#?}", node.log(&upid));
        assert_eq!((node.config(100), node.moved(), node.images(OWNER)), (before, Vec::new(), vec![NAME.to_owned()]));
    }
}

#[test]
fn a_slow_move_that_is_stopped_half_way_leaves_no_target() {
    for running in [false, true] {
        let node = Node::attached(running);
        node.fill(48);
        node.faults(&storage_fault("rawdir", StorageFault { rate_kib: Some(1024), ..StorageFault::default() }));
        let upid = node.start("POST", MOVE, "disk=scsi3&storage=rawdir&delete=1");
        let deadline = Instant::now() + DEADLINE;
        while !node.log(&upid).iter().any(|line| line.contains("transferred")) {
            assert!(Instant::now() < deadline, "the copy does not begin");
        }
        assert_eq!(node.call("DELETE", &format!("/nodes/pve1/tasks/{upid}"), "").status, "200 OK");
        let end = node.end_of(&upid);
        assert!(end.starts_with("storage migration failed: ") && end.contains("interrupted by signal"), "{end}");
        assert_eq!((node.moved(), node.images(OWNER)), (Vec::new(), vec![NAME.to_owned()]));
    }
}

#[test]
fn a_move_that_is_killed_leaves_its_target_and_the_disk_where_it_was() {
    let node = Node::attached(false);
    let before = node.config(100);
    node.faults(&task_fault("qmmove", TaskEffect::Killed));
    assert_eq!(node.task("POST", MOVE, "disk=scsi3&storage=rawdir&delete=1"), "unexpected status");
    assert_eq!((node.config(100), node.moved()), (before, vec!["vm-100-disk-0.raw".to_owned()]));
    // The next one takes the next name.
    assert_eq!(node.task("POST", MOVE, "disk=scsi3&storage=rawdir&delete=1"), "OK");
    assert!(node.has_line("scsi3: rawdir:100/vm-100-disk-1.raw,iops_rd=100,serial=abc,size=64M"), "{}", node.config(100));
}

#[test]
fn a_move_that_cannot_be_is_refused_at_once() {
    let node = Node::attached(false);
    for (form, status) in [
        ("disk=scsi9&storage=rawdir", "500 disk 'scsi9' does not exist"),
        ("disk=scsi3&storage=local", "500 you can't move to the same storage with same format"),
        ("disk=scsi3&storage=nosuch", "500 storage 'nosuch' does not exist"),
        ("disk=scsi3&target-vmid=100", "400 Parameter verification failed."),
        ("disk=scsi3&target-vmid=101", "500 could not find target VM 101"),
    ] {
        assert_eq!(node.call("POST", MOVE, form).status, status, "{form}");
    }
    node.faults(&storage_fault("rawdir", StorageFault { offline: true, ..StorageFault::default() }));
    let offline = "storage migration failed: unable to activate storage 'rawdir' - directory is expected to be a mount point but is not mounted: '/srv/raw'";
    assert_eq!(node.task("POST", MOVE, "disk=scsi3&storage=rawdir"), offline);
}

#[test]
fn a_disk_with_a_snapshot_is_not_moved_away_from_its_source() {
    let node = Node::attached(false);
    let text = node.config(100) + &format!("\n[s1]\nscsi3: {},size=64M\nsnaptime: 1\n", volid());
    fs::write(node.layout.vm_config(100), text).unwrap();
    let refused = "500 you can't move a disk with snapshots and delete the source";
    assert_eq!(node.call("POST", MOVE, "disk=scsi3&storage=rawdir&delete=1").status, refused);
}

#[test]
fn a_volume_given_to_another_vm_gets_that_vms_name() {
    let node = Node::attached(true);
    assert_eq!(node.task("POST", "/nodes/pve1/qemu", "vmid=101"), "OK");
    let running = "500 Cannot move disk to another VM while the source VM is running - detach first";
    assert_eq!(node.call("POST", MOVE, "disk=scsi3&target-vmid=101&target-disk=scsi1").status, running);
    assert_eq!(node.task("POST", "/nodes/pve1/qemu/100/status/stop", ""), "OK");
    assert_eq!(node.task("POST", MOVE, "disk=scsi3&target-vmid=101&target-disk=scsi1"), "OK");
    assert!(node.config(101).contains("scsi1: local:101/vm-101-disk-0.raw,iops_rd=100,serial=abc,size=64M\n"), "{}", node.config(101));
    assert!(!node.config(100).contains("scsi3") && node.images(OWNER).is_empty());
}

#[test]
fn a_held_storage_lock_ends_a_move_in_a_time_out() {
    let node = Node::attached(false);
    let path = node.layout.storage_lock("rawdir");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.lock().unwrap();
    let end = "storage migration failed: can't lock file '/var/lock/pve-manager/pve-storage-rawdir' - got timeout";
    assert_eq!(node.task("POST", MOVE, "disk=scsi3&storage=rawdir"), end);
    node.faults(&Faults::default());
}
