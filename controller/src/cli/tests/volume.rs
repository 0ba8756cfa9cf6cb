//! Looking at storages and volumes.

use super::*;
use crate::agents::fake::volume::{attached, id, storage, volume};

/// pve1 and pve2 of one cluster: a local storage each and a shared one. Volumes 1 and 2 are local ones, 3 and 4 shared; 2 is attached to
/// web-1 on pve1, 4 to web-2 on pve2.
pub(super) async fn with_volumes() -> World {
    let world = World::new(two_hosts()).await;
    for (i, host) in world.hosts.iter().enumerate() {
        let mut state = host.lock();
        state.add_storage(storage("local-lvm", false));
        state.add_storage(storage("ceph", true));
        state.volumes.volumes = vec![volume(3, "ceph"), attached(volume(4, "ceph"), &vm(200, "web-2", "pve2"), "scsi2")];
        if i == 0 {
            state.volumes.volumes.push(volume(1, "local-lvm"));
            state.volumes.volumes.push(attached(volume(2, "local-lvm"), &vm(100, "web-1", "pve1"), "scsi1"));
        }
    }
    world
}

#[tokio::test]
async fn storages_of_all_hosts_are_listed_with_what_is_wrong_with_them() {
    let world = with_volumes().await;
    let mut offline = storage("nfs", true);
    offline.problem = "mount does not answer".to_owned();
    let mut iso = storage("thick", false);
    iso.volumes = false;
    world.hosts[1].lock().add_storage(offline);
    world.hosts[1].lock().add_storage(iso);
    let ran = world.run(&["storages"]).await.expect(Exit::Ok);
    let lines: Vec<Vec<&str>> = ran.out.lines().map(|l| l.split_whitespace().collect()).collect();
    let header = ["HOST", "STORAGE", "TYPE", "SHARED", "STATUS", "CONTENT", "SIZE", "FREE", "USED%", "FORMATS", "NOTE"];
    assert_eq!(lines[0], header);
    assert!(
        ran.out.contains("pve1  local-lvm  lvmthin  no      ok      images,rootdir  100 GiB  75 GiB  25%    raw      -\n"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("error") && ran.out.contains("mount does not answer"), "{}", ran.out);
    assert!(ran.out.contains("no volumes: it keeps no owners"), "{}", ran.out);
    assert_eq!(lines.len(), 7);
    world.add_dead().await;
    let json = world.run(&["storages", "-o", "json"]).await.expect(Exit::Partial).json();
    assert_eq!(json["storages"][0]["available_bytes"], 75_u64 << 30);
    assert_eq!(json["storages"][0]["problem"], Value::Null);
    assert_eq!(json["errors"][0]["host"], "dead");
}

#[tokio::test]
async fn a_volume_of_a_shared_storage_is_listed_once_by_its_vms_host() {
    let world = with_volumes().await;
    let ran = world.run(&["volumes"]).await.expect(Exit::Ok);
    let rows: Vec<Vec<&str>> = ran.out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["HOST", "ID", "STORAGE", "FORMAT", "SIZE", "USED", "OWNER", "ATTACHED", "NOTE"]);
    let (three, four, one, two) = (id(3), id(4), id(1), id(2));
    let shown: Vec<(&str, &str)> = rows[1..].iter().map(|r| (r[0], r[1])).collect();
    assert_eq!(shown, [("pve1", three.as_str()), ("pve2", &four), ("pve1", &one), ("pve1", &two)]);
    assert!(ran.out.contains("local-lvm  raw     10 GiB  1 GiB  default/prod:ns/data-2  100:scsi1  -\n"), "{}", ran.out);
    assert!(ran.out.contains("default/prod:ns/data-4  200:scsi2  -\n"), "{}", ran.out);

    let json = world.run(&["volumes", "--storage", "ceph", "--tenant", "default", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!(json["volumes"].as_array().unwrap().len(), 2);
    assert_eq!((&json["volumes"][1]["host"], &json["volumes"][1]["shared"]), (&"pve2".into(), &true.into()));
    assert_eq!(json["volumes"][1]["attachment"]["slot"], "scsi2");
    assert!(json["volumes"][0].get("snapshots").is_none(), "what is not known is absent");
    let ran = world.run(&["volumes", "--claim", "ns/data-1"]).await.expect(Exit::Ok);
    assert_eq!(ran.out.lines().count(), 2, "{}", ran.out);
    let ran = world.run(&["volumes", "--cluster", "test"]).await.expect(Exit::Ok);
    assert_eq!(ran.out, "no volumes\n");
}

#[tokio::test]
async fn two_local_storages_of_one_name_hold_different_volumes() {
    let world = with_volumes().await;
    let mut same = volume(1, "local-lvm");
    same.owner = None;
    same.problem = "nobody's".to_owned();
    world.hosts[1].lock().volumes.volumes.push(same);
    let ran = world.run(&["volumes", "--storage", "local-lvm"]).await.expect(Exit::Ok);
    assert_eq!(ran.out.matches(&id(1)).count(), 2, "{}", ran.out);
    let ran = world.run(&["volumes", "--nobodys"]).await.expect(Exit::Ok);
    assert!(ran.out.lines().nth(1).unwrap().starts_with("pve2") && ran.out.contains("nobody's"), "{}", ran.out);
    let ran = world.run(&["get", "volume", &id(1)]).await.expect(Exit::Usage);
    assert!(ran.err.contains("is ambiguous: use --storage or --host, for one of:"), "{}", ran.err);
    world.run(&["get", "volume", &id(1), "--host", "pve2"]).await.expect(Exit::Ok);
}

#[tokio::test]
async fn a_list_without_a_host_or_a_storage_says_that_it_is_not_whole() {
    let world = with_volumes().await;
    world.hosts[1].lock().volumes.unreachable = vec!["nfs: mount does not answer".to_owned()];
    let ran = world.run(&["volumes"]).await.expect(Exit::Partial);
    assert_eq!(ran.err, "error: pve2: storage nfs: mount does not answer\n");
    let json = world.run(&["volumes", "-o", "json"]).await.expect(Exit::Partial).json();
    assert_eq!(json["unreachable"], serde_json::json!([{"host": "pve2", "storage": "nfs", "message": "mount does not answer"}]));
    let ran = world.run(&["get", "volume", "deadbeef"]).await.expect(Exit::Unreachable);
    assert!(ran.err.contains("not every host and storage could be asked: pve2: storage nfs: mount"), "{}", ran.err);
    world.add_dead().await;
    let ran = world.run(&["volumes"]).await.expect(Exit::Partial);
    assert!(ran.out.lines().count() == 5 && ran.err.contains("error: dead: cannot connect"), "{}{}", ran.out, ran.err);
}

#[tokio::test]
async fn a_storage_that_only_some_hosts_have_is_no_error_and_one_that_none_has_is_not_found() {
    let world = with_volumes().await;
    world.hosts[1].lock().host.storages.retain(|s| s.id == "ceph");
    let ran = world.run(&["volumes", "--storage", "local-lvm"]).await.expect(Exit::Ok);
    assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
    let ran = world.run(&["volumes", "--storage", "nosuch"]).await.expect(Exit::NotFound);
    assert!(ran.err.contains("no storage 'nosuch' on pve1, pve2; pveletctl storages lists them"), "{}", ran.err);
}

#[tokio::test]
async fn get_volume_shows_everything() {
    let world = with_volumes().await;
    world.hosts[1].lock().volumes.volumes[1].snapshots = vec![v1::VolumeSnapshot {
        name: "before".to_owned(),
        create_time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
    }];
    let ran = world.run(&["get", "volume", "00000004"]).await.expect(Exit::Ok);
    for words in ["host: pve2", "name: before", "device_path: /dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_0000000453f94634b1ce", "slot: scsi2"]
    {
        assert!(ran.out.contains(words), "{words}: {}", ran.out);
    }
    let json = world.run(&["get", "volume", "00000004", &id(1), "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!(json["volumes"][0]["attachment"]["options"]["iothread"], true);
    assert_eq!(json["volumes"][0]["snapshots"][0]["create_time"], "2027-01-15T08:00:00Z");
    assert_eq!(json["volumes"][1]["snapshots"], serde_json::json!([]));
    assert_eq!(json["volumes"][1]["attachment"], Value::Null);
    let ran = world.run(&["get", "volume", "deadbeef"]).await.expect(Exit::NotFound);
    assert!(ran.err.contains("no volume 'deadbeef' on pve1, pve2; pveletctl volumes lists them"), "{}", ran.err);
}

#[tokio::test]
async fn get_vm_tells_which_disks_are_volumes() {
    let world = with_volumes().await;
    world.hosts[0].lock().vms[0].disks = vec![
        v1::Disk { slot: "scsi0".to_owned(), ..v1::Disk::default() },
        v1::Disk { slot: "scsi1".to_owned(), serial: "0000000253f94634b1ce".to_owned(), volume_id: id(2), ..v1::Disk::default() },
    ];
    let json = world.run(&["get", "vm", "web-1", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!((&json["vms"][0]["disks"][0]["volume_id"], &json["vms"][0]["disks"][0]["serial"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&json["vms"][0]["disks"][1]["volume_id"], &json["vms"][0]["disks"][1]["serial"]),
        (&id(2).into(), &"0000000253f94634b1ce".into())
    );
}

#[tokio::test]
async fn usage_counts_what_is_shared_once() {
    let world = with_volumes().await;
    let mut other = volume(7, "local-lvm");
    other.owner = None;
    world.hosts[1].lock().volumes.volumes.push(other);
    let ran = world.run(&["volumes", "usage"]).await.expect(Exit::Ok);
    assert_eq!(
        ran.out,
        "TENANT   CLUSTER  HOST  STORAGE    VOLUMES  SIZE    USED\n\
         default  prod     pve1  ceph       2        20 GiB  2 GiB\n\
         default  prod     pve1  local-lvm  2        20 GiB  2 GiB\n\
         -        -        pve2  local-lvm  1        10 GiB  1 GiB\n"
    );
    let json = world.run(&["volumes", "usage", "--tenant", "default", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!(json["usage"].as_array().unwrap().len(), 2);
    assert_eq!((&json["usage"][0]["volumes"], &json["usage"][0]["owner"]["cluster"]), (&2.into(), &"prod".into()));
}

#[tokio::test]
async fn operations_on_volumes_are_listed_by_the_volume_where_there_is_no_vm() {
    let world = with_volumes().await;
    world.run(&["volumes", "grow", "00000001", "20G"]).await.expect(Exit::Ok);
    world.run(&["volumes", "detach", "00000002", "web-1"]).await.expect(Exit::Ok);
    let ran = world.run(&["ops"]).await.expect(Exit::Ok);
    let rows: Vec<Vec<&str>> = ran.out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0][3], "TARGET");
    assert_eq!((rows[1][2], rows[1][3]), ("detach_volume", "100"));
    assert_eq!((rows[2][2], rows[2][3]), ("grow_volume", id(1).as_str()));
    let json = world.run(&["ops", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!((&json["operations"][0]["vmid"], &json["operations"][0]["volume"]["id"]), (&100.into(), &id(2).into()));
}
