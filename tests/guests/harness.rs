//! What the other tests here rely on: a guest keeps what it flushed, guests see each other, and nothing else sees them.

use std::{collections::BTreeSet, fs, net::TcpListener};

use pvelet_tests::{Guest, GuestOptions, Segment};

#[test]
fn a_power_cut_leaves_what_was_flushed_and_a_reboot_is_a_new_boot() {
    let mut guest = Guest::boot(GuestOptions { name: "phoenix".into(), disks_mib: vec![256], ..GuestOptions::default() }).unwrap();
    assert_eq!(guest.sh("hostname").trim(), "phoenix");
    assert_eq!(guest.run("echo out; echo err >&2; exit 7").status, 7);
    let boot_id = guest.sh("cat /proc/sys/kernel/random/boot_id");
    guest.sh("mkfs.ext4 -q /dev/disk/by-id/virtio-data0; mount /dev/disk/by-id/virtio-data0 /mnt; echo kept >/mnt/kept; sync");
    guest.sh("sysctl -q vm.dirty_writeback_centisecs=0; echo lost >/mnt/lost");
    guest.power_cut();
    guest.start().unwrap();
    assert_ne!(guest.sh("cat /proc/sys/kernel/random/boot_id"), boot_id);
    assert_eq!(guest.sh("mount /dev/disk/by-id/virtio-data0 /mnt; cat /mnt/kept").trim(), "kept");
    assert_ne!(guest.run("grep -q lost /mnt/lost").status, 0);

    let dir = tempfile::tempdir().unwrap();
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    fs::write(&there, [0, 255, 10, 13]).unwrap();
    guest.copy_in(&there, "/root/new/file").unwrap();
    guest.copy_out("/root/new/file", &back).unwrap();
    assert_eq!(fs::read(&back).unwrap(), [0, 255, 10, 13]);
    guest.reboot().unwrap();
    assert_eq!(guest.sh("hostname").trim(), "phoenix");
}

#[test]
fn guests_on_a_segment_reach_each_other_tagged_and_untagged_and_nobody_else() {
    let segment = Segment::new().unwrap();
    let mut guests = ["one", "two", "three"]
        .map(|name| Guest::boot(GuestOptions { name: name.into(), nics: vec![segment.clone()], ..GuestOptions::default() }).unwrap());
    for (n, guest) in (1..).zip(&guests) {
        guest.sh(&format!("ip link set eth1 up; ip address add 192.0.2.{n}/24 dev eth1"));
        guest.sh("ip link add link eth1 name eth1.7 type vlan id 7; ip link set eth1.7 up");
        guest.sh(&format!("ip address add 198.51.100.{n}/24 dev eth1.7"));
    }
    for address in ["192.0.2.2", "192.0.2.3", "198.51.100.2", "198.51.100.3"] {
        guests[0].sh(&format!("ping -c 1 -W 60 {address}"));
    }
    for file in ["/etc/machine-id", "/proc/sys/kernel/random/uuid", "/sys/class/net/eth1/address"] {
        let ids: BTreeSet<String> = guests.iter().map(|guest| guest.sh(&format!("cat {file}"))).collect();
        assert_eq!(ids.len(), 3, "{file}: {ids:?}");
    }
    // 10.0.2.2 would be the host's own loopback.
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    assert_ne!(guests[0].run(&format!("timeout 5 bash -c '</dev/tcp/10.0.2.2/{port}'")).status, 0);

    guests[1].set_link(1, false).unwrap();
    guests[1].sh("timeout 60 sh -c 'until [ $(cat /sys/class/net/eth1/carrier) = 0 ]; do :; done'");
    assert_ne!(guests[0].run("ping -c 1 -W 5 192.0.2.2").status, 0);
    guests[1].set_link(1, true).unwrap();
    guests[0].sh("ping -c 5 -W 60 192.0.2.2");
}
