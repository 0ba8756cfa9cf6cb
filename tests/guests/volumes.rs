//! The storages beside PVE, on real LVM-thin, btrfs and folders.

use std::{collections::BTreeMap, time::Duration};

use pvelet_tests::{Guest, GuestOptions};

/// What the program calls the storages it is given: images in folders come in two formats.
const KINDS: [&str; 5] = ["dir", "dir.qcow2", "btrfs", "btrfs.qcow2", "lvmthin"];

/// A guest with one storage of each kind: the pool `pve/data` of LVM-thin, `/mnt/btrfs`, and the folder `/var/lib/volumes` on ext4.
fn host() -> Guest {
    let options = GuestOptions { name: "pve1".into(), disks_mib: vec![4096, 3072], ..GuestOptions::default() };
    let guest = Guest::boot(options).unwrap();
    guest.sh("vgcreate -q pve /dev/disk/by-id/virtio-data0");
    guest.sh("lvcreate -q --type thin-pool --size 3G --poolmetadatasize 64M --name data pve");
    guest.sh("mkfs.btrfs -q /dev/disk/by-id/virtio-data1; mkdir -p /mnt/btrfs; mount /dev/disk/by-id/virtio-data1 /mnt/btrfs");
    guest.sh("mkdir -p /var/lib/volumes");
    guest
}

#[test]
fn every_kind_of_storage_keeps_its_promises() {
    let guest = host();
    guest.copy_in_program("volume-store").unwrap();
    let storages = "dir:/var/lib/volumes btrfs:/mnt/btrfs lvmthin:pve/data";
    let out = guest.run_for(&format!("RUST_BACKTRACE=1 volume-store {storages} 2>&1"), Duration::from_secs(2400));
    assert_eq!(out.status, 0, "{}", out.stdout);
    let mut cases: BTreeMap<&str, usize> = BTreeMap::new();
    for kind in out.stdout.lines().filter_map(|l| l.strip_prefix("ok ")?.split(' ').next()) {
        *cases.entry(kind).or_default() += 1;
    }
    // A kind that did nothing has proven nothing.
    for kind in KINDS {
        assert!(cases.get(kind).is_some_and(|n| *n >= 15), "{kind}: {cases:?}\n{}", out.stdout);
        for to in KINDS.iter().filter(|to| **to != kind) {
            assert!(cases.contains_key(format!("{kind}->{to}").as_str()), "{kind}->{to}: {cases:?}\n{}", out.stdout);
        }
    }
}
