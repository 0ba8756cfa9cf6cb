//! Changing volumes.

use super::{volume::with_volumes, *};
use crate::agents::fake::volume::{attached, id, volume};

const VM_100: &str = "00000000-0000-4000-8000-000000000100";
const VM_200: &str = "00000000-0000-4000-8000-000000000200";

fn requests(world: &World, host: usize) -> Vec<String> {
    world.hosts[host].lock().requests.clone()
}

fn nothing_was_asked(world: &World) -> bool {
    world.hosts.iter().all(|h| h.lock().requests.is_empty())
}

#[tokio::test]
async fn create_sends_what_was_asked_for_and_names_the_new_volume() {
    let world = with_volumes().await;
    let args = ["volumes", "create", "--host", "pve1", "--storage", "local-lvm", "--size", "10G", "--format", "raw", "--id", &id(9)];
    let more = ["--cluster", "prod", "--claim", "shop/data-0", "--tenant", "team-a", "--request-id", "r1"];
    let ran = world.run(&[&args[..], &more].concat()).await.expect(Exit::Ok);
    assert_eq!(ran.out, format!("pve1: create of volume {}: succeeded in 2.5 s\n", id(9)));
    let sent = world.hosts[0].lock().volumes.creates[0].clone();
    let meta = v1::RequestMeta { tenant: "team-a".into(), request_id: "r1".into(), ..Default::default() };
    let owner = v1::VolumeOwner { tenant: String::new(), cluster: "prod".into(), claim: "shop/data-0".into() };
    let expected = v1::CreateVolumeRequest {
        meta: Some(meta),
        id: id(9),
        storage: "local-lvm".into(),
        size_bytes: 10 << 30,
        format: "raw".into(),
        owner: Some(owner),
        source: None,
    };
    assert_eq!(sent, expected);

    let json =
        world.run(&["volume", "create", "--host", "pve1", "--storage", "ceph", "--size", "1G", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!(json["operations"][0]["kind"], "create_volume");
    let made = json["operations"][0]["volume"]["id"].as_str().unwrap().to_owned();
    world.run(&["get", "volume", &made]).await.expect(Exit::Ok);
    let ran = world.run(&["volumes", "create", "--storage", "ceph", "--size", "1G"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("create needs one host: give --host with pve1, pve2"), "{}", ran.err);
}

#[tokio::test]
async fn a_copy_is_made_where_its_source_is() {
    use v1::{create_volume_request::Source, image_source::Location};
    let world = with_volumes().await;
    world.run(&["volumes", "create", "--storage", "local-lvm", "--from-volume", "00000001"]).await.expect(Exit::Ok);
    world.run(&["volumes", "create", "--storage", "local-lvm", "--from-snapshot", "00000001@before"]).await.expect(Exit::Ok);
    let ran = world.run(&["volumes", "create", "--storage", "ceph", "--from-volume", "00000003"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("shared storage needs one host: give --host with pve1, pve2"), "{}", ran.err);
    let digest = "AB".repeat(32);
    let image = ["volumes", "create", "--host", "pve1", "--storage", "ceph", "--image"];
    world.run(&[&image[..], &["a/d.qcow2", "--image-format", "qcow2", "--sha256", &digest]].concat()).await.expect(Exit::Ok);
    world.run(&[&image[..], &["local:import/d.qcow2"]].concat()).await.expect(Exit::Ok);
    let sources: Vec<Source> = world.hosts[0].lock().volumes.creates.iter().map(|c| c.source.clone().unwrap()).collect();
    let of = v1::VolumeRef { id: id(1), storage: "local-lvm".into() };
    let file = |location, format: &str, sha256| Source::Image(v1::ImageSource { location: Some(location), format: format.into(), sha256 });
    let expected = [
        Source::Volume(of.clone()),
        Source::Snapshot(v1::SnapshotSource { volume: Some(of), name: "before".into() }),
        file(Location::File("a/d.qcow2".into()), "qcow2", "ab".repeat(32)),
        file(Location::Volid("local:import/d.qcow2".into()), "", String::new()),
    ];
    assert_eq!(sources, expected);
}

#[tokio::test]
async fn attach_goes_to_the_vms_host_and_says_where_the_guest_finds_it() {
    let world = with_volumes().await;
    let args = ["volumes", "attach", "00000003", "web-2", "--cache", "none", "--aio", "io_uring", "--iothread", "--discard", "--backup"];
    let ran = world.run(&[&args[..], &["--iops-write", "2000", "--mbps-read", "50"]].concat()).await.expect(Exit::Ok);
    let (three, device) = (id(3), "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_0000000353f94634b1ce");
    assert_eq!(
        ran.out,
        format!("pve2: attach of volume {three} to VM 200 (web-2): succeeded in 2.5 s\n  the guest finds it at {device}\n")
    );
    assert_eq!(requests(&world, 1), [format!("attach_volume {three} 200 {VM_200}")]);
    assert!(requests(&world, 0).is_empty());
    let sent = world.hosts[1].lock().volumes.attaches[0].clone();
    let options = v1::DiskOptions {
        cache: "none".into(),
        aio: "io_uring".into(),
        iothread: true,
        discard: true,
        backup: Some(true),
        limits: Some(v1::DiskLimits { iops_write: 2000, mbps_read: 50, ..Default::default() }),
        ..Default::default()
    };
    assert_eq!((sent.volume.unwrap().storage.as_str(), sent.options.unwrap()), ("ceph", options));

    let json = world.run(&["volumes", "attach", "00000001", "db-1", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!(json["operations"][0]["volume"]["device_path"], "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_0000000153f94634b1ce");
    let sent = world.hosts[0].lock().volumes.attaches[0].options.clone().unwrap();
    assert_eq!(sent, v1::DiskOptions::default(), "what is not given is the agent's to choose");
    let ran = world.run(&["volumes", "attach", "00000001", "web-2"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("on storage 'local-lvm' of pve1, the VM is on pve2: use a volume and a VM of one host"), "{}", ran.err);
    world.run(&["volumes", "attach", "00000001", "nosuch"]).await.expect(Exit::NotFound);
}

#[tokio::test]
async fn each_verb_becomes_its_request_on_the_host_that_it_belongs_to() {
    let world = with_volumes().await;
    let (one, four) = (id(1), id(4));
    for (args, label) in [
        (vec!["detach", "00000004", "200"], "pve2: detach of volume {4} from VM 200 (web-2)"),
        (vec!["grow", "00000001", "20G"], "pve1: grow of volume {1} to 20 GiB"),
        (vec!["snapshot", "00000001", "before"], "pve1: snapshot 'before' of volume {1}"),
        (vec!["roll-back", "00000001", "before", "--yes"], "pve1: roll-back of volume {1} to snapshot 'before'"),
        (vec!["delete-snapshot", "00000001", "before", "--yes"], "pve1: delete of snapshot 'before' of volume {1}"),
        (vec!["move", "00000001", "ceph", "--format", "raw"], "pve1: move of volume {1} to storage 'ceph' as raw"),
        (vec!["hand-over", "00000004", "web-2", "--to", "vm"], "pve2: hand-over of volume {4} to VM 200 (web-2)"),
        (vec!["hand-over", "00000004", "web-2", "--to", "reserved"], "pve2: hand-over of volume {4} from VM 200 (web-2)"),
        (vec!["delete", "00000001", "--storage", "ceph", "--yes"], "pve1: delete of volume {1}"),
    ] {
        let ran = world.run(&[&["volumes"], &args[..]].concat()).await.expect(Exit::Ok);
        let label = label.replace("{1}", &one).replace("{4}", &four);
        assert_eq!(ran.out, format!("{label}: succeeded in 2.5 s\n"), "{args:?}");
    }
    assert_eq!(
        requests(&world, 0),
        [
            format!("grow_volume {one} {}", 20_u64 << 30),
            format!("snapshot_volume {one} before"),
            format!("roll_back_volume {one} before"),
            format!("delete_volume_snapshot {one} before"),
            format!("move_volume {one} ceph raw"),
            format!("delete_volume {one}"),
        ]
    );
    let on_pve2 = ["detach_volume {} 200", "hand_over_volume {} 200", "hand_over_volume {} 200"];
    let sent = requests(&world, 1);
    for (line, begin) in sent.iter().zip(on_pve2) {
        assert!(line.starts_with(&begin.replace("{}", &four)), "{line}");
    }
    assert!(sent[1].ends_with("to 200") && sent[2].ends_with("to 9999"), "{sent:?}");
}

#[tokio::test]
async fn an_attached_volume_of_a_shared_storage_is_changed_where_its_vm_is() {
    let world = with_volumes().await;
    world.run(&["volumes", "grow", "00000004", "20G"]).await.expect(Exit::Ok);
    assert_eq!((requests(&world, 0).len(), requests(&world, 1).len()), (0, 1));
    // Told by pve1 too, which is not where it can be changed.
    world.hosts[1].hang.send_replace(true);
    let ran = world.run(&["volumes", "grow", &id(4), "30G", "--deadline", "2s"]).await.expect(Exit::Unreachable);
    assert!(ran.err.contains("is attached on node pve2, which cannot be asked: pve2: no answer within 2 s"), "{}", ran.err);
    world.run(&["volumes", "grow", &id(3), "30G", "--deadline", "2s"]).await.expect(Exit::Ok);
    assert_eq!(requests(&world, 0), [format!("grow_volume {} {}", id(3), 30_u64 << 30)]);
}

#[tokio::test]
async fn limits_that_are_not_given_stay_as_they_are() {
    let world = with_volumes().await;
    let known = v1::DiskLimits { iops_read: 100, iops_write: 200, mbps_read: 0, mbps_write: 40 };
    for v in &mut world.hosts[0].lock().volumes.volumes {
        if let Some(options) = v.attachment.as_mut().and_then(|a| a.options.as_mut()) {
            options.limits = Some(known);
        }
    }
    world.run(&["volumes", "limits", "00000002", "--iops-write", "0", "--mbps-read", "7"]).await.expect(Exit::Ok);
    let sent = world.hosts[0].lock().volumes.limits[0].limits.unwrap();
    assert_eq!(sent, v1::DiskLimits { iops_write: 0, mbps_read: 7, ..known });
    let ran = world.run(&["volumes", "limits", "00000002"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("--iops-read"), "{}", ran.err);
}

#[tokio::test]
async fn what_loses_data_is_done_only_after_a_yes() {
    let world = with_volumes().await;
    for args in [
        vec!["volumes", "delete", "00000001"],
        vec!["volumes", "roll-back", "00000001", "before"],
        vec!["volumes", "delete-snapshot", "00000001", "before"],
        vec!["volumes", "reclaim", "--tenant", "default", "--cluster", "prod"],
    ] {
        let ran = world.run(&args).await.expect(Exit::Usage);
        assert!(ran.err.contains("asks before it acts") && ran.err.contains("give --yes"), "{}", ran.err);
        world.run_with(&args, Some("n\n"), |_| {}).await.expect(Exit::Failed);
        assert!(nothing_was_asked(&world), "{args:?}");
    }
    let args = ["volumes", "delete", "00000001", "00000002", &id(1)];
    let ran = world.run_with(&args, Some("y\n"), |_| {}).await.expect(Exit::Ok);
    let line = format!("volume {} of default/prod:ns/data-1 on pve1, storage local-lvm, 10 GiB\n", id(1));
    assert!(ran.err.contains(&line) && ran.err.contains("10 GiB, attached to VM 100\n"), "{}", ran.err);
    assert_eq!(requests(&world, 0).len(), 2, "the one that was named twice is deleted once");
    let ran = world.run(&["volumes", "delete", "00000003", "00000004", "--yes", "--request-id", "r"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("give it with one volume"), "{}", ran.err);
}

#[tokio::test]
async fn what_is_ambiguous_missing_or_perhaps_elsewhere_is_told_apart() {
    let world = with_volumes().await;
    let mut near = volume(1, "local-lvm");
    near.id = near.id.replace("53f9", "53fa");
    near.volid = near.volid.replace("53f9", "53fa");
    world.hosts[0].lock().volumes.volumes.push(near);
    let ran = world.run(&["volumes", "delete", "00000001", "--yes"]).await.expect(Exit::Usage);
    for words in
        ["'00000001' is ambiguous: use more of the id, --storage or --host", "00000001-53f9", "00000001-53fa", "'local-lvm' of pve1"]
    {
        assert!(ran.err.contains(words), "{words}: {}", ran.err);
    }
    world.run(&["volumes", "grow", "00000001-53f9", "20G"]).await.expect(Exit::Ok);
    world.run(&["volumes", "delete", "deadbeef", "--yes"]).await.expect(Exit::NotFound);
    world.add_dead().await;
    let ran = world.run(&["volumes", "delete", "deadbeef", "--yes"]).await.expect(Exit::Unreachable);
    assert!(ran.err.contains("not every host and storage could be asked: dead: cannot connect"), "{}", ran.err);
    let ran = world.run(&["volumes", "grow", "00000001-53f9", "30G"]).await.expect(Exit::Ok);
    assert!(ran.err.contains("warning: not looked at: dead: cannot connect"), "{}", ran.err);
    let ran = world.run(&["volumes", "grow", &id(1), "30G"]).await.expect(Exit::Ok);
    assert!(!ran.err.contains("warning"), "a whole id cannot be that of another: {}", ran.err);
}

#[tokio::test]
async fn another_tenants_volume_is_changed_only_when_the_tenant_is_named() {
    let world = with_volumes().await;
    world.hosts[0].lock().volumes.volumes[2].owner = Some(v1::VolumeOwner { tenant: "team-a".into(), ..Default::default() });
    for args in [vec!["grow", "00000001", "20G"], vec!["attach", "00000001", "web-1"], vec!["delete", "00000001", "--yes"]] {
        let ran = world.run(&[&["volumes"], &args[..]].concat()).await.expect(Exit::Usage);
        assert!(ran.err.contains("is of tenant 'team-a', and this is for tenant 'default': give --tenant team-a"), "{}", ran.err);
    }
    let ran = world.run_with(&["volumes", "delete", "00000001"], Some("y\n"), |_| {}).await.expect(Exit::Usage);
    assert!(!ran.err.contains("[y/N]"), "nobody is asked what is refused anyway: {}", ran.err);
    assert!(nothing_was_asked(&world));
    world.run(&["volumes", "attach", "00000001", "web-1", "--tenant", "team-a"]).await.expect(Exit::Ok);
    assert_eq!(requests(&world, 0), [format!("attach_volume {} 100 {VM_100}", id(1))]);
}

#[tokio::test]
async fn refusals_and_failures_name_the_reason_and_a_lost_answer_is_asked_for_again() {
    let world = with_volumes().await;
    let held = refusal(Code::Aborted, "the guest does not let go of scsi1", reason::GUEST_HOLDS_DISK, None);
    world.hosts[0].lock().ending = Ending::Failure(held);
    let ran = world.run(&["volumes", "detach", "00000002", "web-1"]).await.expect(Exit::Failed);
    assert!(ran.err.contains("does not let go of scsi1 [ABORTED GUEST_HOLDS_DISK]; see pveletctl get op operations/"), "{}", ran.err);
    let snapshots = refusal(Code::FailedPrecondition, "volume has snapshots", reason::VOLUME_HAS_SNAPSHOTS, None);
    world.hosts[0].lock().refusal = Some(snapshots);
    let json = world.run(&["volumes", "delete", "00000001", "--yes", "-o", "json"]).await.expect(Exit::Failed).json();
    assert_eq!(json["errors"][0]["reason"], "VOLUME_HAS_SNAPSHOTS");
    world.hosts[0].lock().refusal = None;
    world.hosts[0].lock().ending = Ending::Success;
    world.hosts[0].mute.send_replace(true);
    let args = ["volumes", "delete", &id(1), "--yes", "--deadline", "2s", "--request-id", "r7"];
    let ran = world.run(&args).await.expect(Exit::Unreachable);
    assert!(ran.err.contains("repeat it with --request-id r7"), "{}", ran.err);
}

#[tokio::test]
async fn reclaim_shows_what_goes_and_what_stays_before_it_asks() {
    let world = with_volumes().await;
    let nobodys = v1::Volume { owner: None, ..volume(8, "local-lvm") };
    world.hosts[1].lock().volumes.volumes.extend([nobodys, volume(5, "local-lvm")]);
    let args = ["volumes", "reclaim", "--tenant", "default", "--cluster", "prod"];
    let ran = world.run(&[&args[..], &["--dry-run"]].concat()).await.expect(Exit::Ok);
    assert!(ran.out.starts_with("3 volumes would be removed, 30 GiB:\nHOST  ID"), "{}", ran.out);
    assert!(
        ran.out.contains("2 kept:\n") && ran.out.contains("attached to VM 100") && ran.out.contains("1 without an owner"),
        "{}",
        ran.out
    );
    let json = world.run(&[&args[..], &["--dry-run", "-o", "json"]].concat()).await.expect(Exit::Ok).json();
    let ids = |key: &str| json[key].as_array().unwrap().iter().map(|v| v["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!((ids("volumes"), ids("nobodys")), (vec![id(3), id(1), id(5)], vec![id(8)]));
    assert_eq!(ids("kept"), [id(4), id(2)]);
    assert!(nothing_was_asked(&world));

    let ran = world.run_with(&args, Some("y\n"), |_| {}).await.expect(Exit::Ok);
    assert!(ran.err.contains("3 volumes to be removed, 30 GiB:") && ran.err.contains("Delete these for good? [y/N]"), "{}", ran.err);
    assert!(ran.out.contains("pve1: reclaim for tenant 'default', volumes: 2: succeeded in 2.5 s\n"), "{}", ran.out);
    assert_eq!(
        (requests(&world, 0), requests(&world, 1)),
        (vec!["reclaim_volumes default prod".to_owned()], vec!["reclaim_volumes default prod".to_owned()])
    );
    world.hosts[1].lock().volumes.volumes.retain(|v| v.id != id(3));
    let ran = world.run_with(&args, Some("y\n"), |_| {}).await.expect(Exit::Ok);
    assert!(ran.err.contains("no volumes to be removed") && !ran.err.contains("[y/N]"), "{}", ran.err);
    assert_eq!(requests(&world, 0).len(), 1);
}

#[tokio::test]
async fn reclaim_goes_on_beside_a_dead_host_and_says_so() {
    let world = with_volumes().await;
    world.add_dead().await;
    let args = ["volumes", "reclaim", "--tenant", "default", "--all-clusters", "--yes"];
    let ran = world.run(&args).await.expect(Exit::Partial);
    assert!(ran.out.starts_with("2 volumes to be removed, 20 GiB:\n"), "{}", ran.out);
    assert!(ran.err.contains("error: dead: reclaim for tenant 'default': cannot connect"), "{}", ran.err);
    assert_eq!(requests(&world, 0), ["reclaim_volumes default *"]);
    let json = world.run(&[&args[..], &["-o", "json", "--host", "pve1"]].concat()).await.expect(Exit::Ok).json();
    assert_eq!((&json["operations"][0]["kind"], &json["volumes"]), (&"reclaim_volumes".into(), &serde_json::json!([])));
    world.hosts[0].lock().volumes.volumes.push(attached(volume(6, "ceph"), &vm(100, "web-1", "pve1"), "scsi3"));
    let ran = world.run(&["volumes", "reclaim", "--all-clusters", "--yes"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("--tenant"), "{}", ran.err);
}

#[tokio::test]
async fn mistakes_are_refused_before_any_call() {
    let world = with_volumes().await;
    let create = ["create", "--host", "pve1", "--storage", "ceph"];
    let (digest, sized) = ("0".repeat(64), [&create[..], &["--size", "1G"]].concat());
    let cases: &[(&[&str], &[&str])] = &[
        (&["delete", "web-1"], &["'web-1'", "first 8 or more digits"]),
        (&["grow", "00000001", "20"], &["'20' has no unit", "32G"]),
        (&["snapshot", "00000001", "2nd"], &["'2nd'", "beginning with a letter"]),
        (&["move", "00000001", "x/y"], &["'x/y' is not a storage id"]),
        (&["hand-over", "00000001", "web-1"], &["--to"]),
        (&["attach", "00000001", "web-1", "--cache", "fast"], &["--cache", "fast", "writeback"]),
        (&["attach", "00000001", "web-1", "--aio", "native", "--cache", "unsafe"], &["--aio native", "--cache unsafe", "directsync"]),
        (&["attach", "00000001", "web-1", "--mbps-read", "100001"], &["--mbps-read", "100001", "0..=100000"]),
        (&create, &["--size", "--from-volume", "--image"]),
        (&[&sized[..], &["--format", "vmdk"]].concat(), &["--format", "vmdk", "raw, qcow2"]),
        (&[&sized[..], &["--id", "7"]].concat(), &["--id", "'7' is not a volume id"]),
        (&[&sized[..], &["--claim", "a b"]].concat(), &["--claim", "'a b' is not a claim"]),
        (&[&sized[..], &["--cluster", "A"]].concat(), &["--cluster", "'A' is not a cluster's name"]),
        (&[&create[..], &["--image", "/etc/shadow"]].concat(), &["--image", "'/etc/shadow' is not an image"]),
        (&[&create[..], &["--image", "a", "--sha256", "12"]].concat(), &["--sha256", "64 hexadecimal digits"]),
        (&[&sized[..], &["--sha256", &digest]].concat(), &["--image"]),
        (&[&create[..], &["--from-volume", "00000001", "--image", "a"]].concat(), &["cannot be used with"]),
        (&[&create[..], &["--from-snapshot", "00000001"]].concat(), &["write <volume>@<snapshot>"]),
        (&["--nobodys", "--tenant", "a"], &["cannot be used with"]),
        (&["--storage", "ceph", "delete", "00000001"], &["--storage before the verb", "behind the verb"]),
        (&["reclaim", "--tenant", "a", "--cluster", "b", "--all-clusters"], &["cannot be used with"]),
        (&["reclaim", "--tenant", "a", "--dry-run", "--yes"], &["cannot be used with"]),
    ];
    for (args, words) in cases {
        let ran = world.run(&[&["volumes"], *args].concat()).await.expect(Exit::Usage);
        for w in *words {
            assert!(ran.err.contains(w), "{args:?}: {w}: {}", ran.err);
        }
    }
    assert!(nothing_was_asked(&world));
}
