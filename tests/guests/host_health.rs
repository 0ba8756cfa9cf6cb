//! The health of a real machine: thin pools that fill up, units of a real systemd, its clock.

use std::time::{Duration, Instant};

use pvelet_tests::{Guest, GuestOptions};
use serde_json::Value;

/// For anything in a guest that is emulated.
const SOON: Duration = Duration::from_secs(300);

/// Runs one check in the guest and returns what it finds. A look that is late is begun anew.
fn look(guest: &Guest, id: &str) -> Value {
    let end = Instant::now() + SOON;
    loop {
        let out = guest.sh(&format!("host-health {id}"));
        let told: Vec<Value> = out.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        if let Some(found) = told.iter().find(|f| f["id"] == id) {
            return found.clone();
        }
        let late = told.iter().any(|f| f["state"] == "late");
        assert!(late && Instant::now() < end, "{id} is told: {out}");
    }
}

/// As [`look`], and it must come out so.
fn expect(guest: &Guest, id: &str, state: &str) -> Value {
    let found = look(guest, id);
    assert_eq!(found["state"], state, "{found}");
    found
}

#[test]
fn pools_units_and_the_clock_of_a_real_machine_are_told() {
    let guest = Guest::boot(GuestOptions { name: "pve1".into(), disks_mib: vec![1024], ..GuestOptions::default() }).unwrap();
    guest.copy_in_program("host-health").unwrap();
    // timedated answers over D-Bus; the guest has just booted, so that it has no time yet is no alarm. That is so for ten minutes.
    expect(&guest, "host.time-sync", "Ok");

    // A machine that is none of PVE's, and has nothing of it.
    for id in [
        "host.lvm-thin",
        "host.zfs",
        "host.drbd",
        "host.corosync-links",
        "host.linstor",
        "host.pveproxy",
        "host.pvestatd",
        "host.cluster-fs",
    ] {
        let found = expect(&guest, id, "NotApplicable");
        assert_ne!(found["seen"], "", "{found}");
    }
    expect(&guest, "host.memory", "Ok");

    // Data.
    guest.sh("vgcreate -q pve /dev/disk/by-id/virtio-data0");
    guest.sh("lvcreate -q --type thin-pool --size 128M --poolmetadatasize 2M --chunksize 64k --name data pve");
    guest.sh("lvcreate -q --thin --virtualsize 512M --name disk pve/data");
    let well = expect(&guest, "host.lvm-thin", "Ok");
    assert!(well["seen"].as_str().unwrap().contains("pve/data: data 0 %"), "{well}");
    guest.sh("dd if=/dev/zero of=/dev/pve/disk bs=1M count=112 oflag=direct status=none");
    let filling = expect(&guest, "host.lvm-thin", "Degraded");
    assert_eq!(filling["seen"], "pve/data has 88 % of its data used");
    guest.sh("dd if=/dev/zero of=/dev/pve/disk bs=1M count=124 oflag=direct status=none");
    let full = expect(&guest, "host.lvm-thin", "Failed");
    assert_eq!((full["seen"].as_str(), full["subjects"][0].as_str()), (Some("pve/data has 97 % of its data used"), Some("pve/data")));

    // Metadata: every thin device takes a block of it, though it holds no data.
    guest.sh("lvremove -q -y pve/disk; lvcreate -q --thin --virtualsize 64M --name disk pve/data");
    expect(&guest, "host.lvm-thin", "Ok");
    let used = "$(lvs --noheadings -o metadata_percent pve/data | tr -d ' ' | cut -d. -f1)";
    guest.sh(&format!("n=1000; while [ {used} -lt 86 ]; do for _ in $(seq 10); do dmsetup message pve-data-tpool 0 \"create_thin $n\"; n=$((n+1)); done; done"));
    let filling = expect(&guest, "host.lvm-thin", "Degraded");
    assert!(filling["seen"].as_str().unwrap().contains("% of its metadata used"), "{filling}");
    // Until there is no more: the kernel then refuses every change.
    guest.sh("n=2000; while dmsetup message pve-data-tpool 0 \"create_thin $n\" 2>/dev/null && [ $n -lt 3000 ]; do n=$((n+1)); done");
    expect(&guest, "host.lvm-thin", "Failed");

    // Units.
    guest.sh("printf '[Service]\\nExecStart=/bin/sleep infinity\\n[Install]\\nWantedBy=multi-user.target\\n' >/etc/systemd/system/pveproxy.service");
    guest.sh("systemctl daemon-reload; systemctl enable -q --now pveproxy");
    expect(&guest, "host.pveproxy", "Ok");
    guest.sh("systemctl kill -s KILL pveproxy; timeout 60 sh -c 'while systemctl -q is-active pveproxy; do :; done'");
    let dead = expect(&guest, "host.pveproxy", "Failed");
    assert_eq!(dead["mend"], "restart pveproxy.service");
    assert!(dead["seen"].as_str().unwrap().contains("result signal, status 9"), "{dead}");
    guest.sh("systemctl disable -q pveproxy; systemctl reset-failed pveproxy");
    expect(&guest, "host.pveproxy", "NotApplicable");
    guest.sh("systemctl mask -q pveproxy 2>/dev/null || true; systemctl stop pveproxy");
    expect(&guest, "host.pveproxy", "NotApplicable");
}
