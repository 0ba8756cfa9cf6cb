//! Storages that all nodes share, and the cluster lock that keeps their nodes apart.

use std::{cell::RefCell, fs};

use pve_sim::{
    Cluster,
    control::Request,
    storage::{NewImage, Storages, Volume},
};

use crate::cluster;

const OWNER: u32 = 999_999_999;
/// A hundredth of PVE's waits: 0.1 s for a lock.
const FACTOR: f64 = 0.01;

fn storages(cluster: &Cluster, node: &str) -> Storages {
    Storages::load(&cluster.node(node), FACTOR).unwrap()
}

fn allocate(cluster: &Cluster, node: &str, storage: &str, name: &str) -> Result<Volume, String> {
    let new = NewImage { storage, vmid: OWNER, format: "raw", name: Some(name), bytes: 1 << 20 };
    storages(cluster, node).allocate(&new, &|_| {}).map_err(|error| error.to_string())
}

fn listed(cluster: &Cluster, node: &str, storage: &str) -> Vec<String> {
    let entries = storages(cluster, node).list(storage, Some(&["images"]), Some(OWNER)).unwrap();
    entries.iter().map(|entry| entry.volume.volid()).collect()
}

#[test]
fn a_volume_on_a_shared_storage_is_seen_and_freed_by_every_node() {
    let cluster = cluster(&["pve1", "pve2"]);
    cluster.control().call(&Request::AddSharedStorage { id: "nfs1".into() }).unwrap();
    for storage in ["shared", "nfs1"] {
        let volume = allocate(&cluster, "pve1", storage, "vm-999999999-pvc-a.raw").unwrap();
        assert_eq!(listed(&cluster, "pve2", storage), [volume.volid()]);
        // Each node finds it under the path of its storage, below its own root.
        let below = format!("/mnt/pve/{storage}/images/{OWNER}/vm-999999999-pvc-a.raw");
        for node in ["pve1", "pve2"] {
            assert_eq!(fs::metadata(cluster.node(node).host_path(&below)).unwrap().len(), 1 << 20);
        }
        let taken = format!("disk image '{below}' already exists");
        assert_eq!(allocate(&cluster, "pve2", storage, "vm-999999999-pvc-a.raw").unwrap_err(), taken);
        storages(&cluster, "pve2").free(&volume, &|_| {}).unwrap();
        assert!(listed(&cluster, "pve1", storage).is_empty());
    }
    let before = cluster.control().call(&Request::AddSharedStorage { id: "nfs1".into() }).unwrap_err();
    assert!(before.to_string().contains("already"), "{before}");
}

#[test]
fn a_shared_storage_is_there_after_a_new_start() {
    let mut cluster = cluster(&["pve1", "pve2"]);
    cluster.control().call(&Request::AddSharedStorage { id: "nfs1".into() }).unwrap();
    let volume = allocate(&cluster, "pve1", "nfs1", "vm-999999999-pvc-a.raw").unwrap();
    cluster.restart().unwrap();
    assert_eq!(listed(&cluster, "pve2", "nfs1"), [volume.volid()]);
    assert!(cluster.control().leftovers().unwrap().contains("image nfs1 999999999/vm-999999999-pvc-a.raw\n"));
}

#[test]
fn allocation_on_a_shared_storage_waits_for_the_clusters_lock() {
    let cluster = cluster(&["pve1", "pve2"]);
    let lock = |node: &str| cluster.node(node).etc_pve().join("priv/lock/storage-shared");
    fs::create_dir(lock("pve1")).unwrap();
    let refused = "cfs-lock 'storage-shared' error: got lock request timeout";
    assert_eq!(allocate(&cluster, "pve2", "shared", "vm-999999999-pvc-a.raw").unwrap_err(), refused);
    // A storage of the node's own has a lock of its own.
    allocate(&cluster, "pve2", "local", "vm-999999999-pvc-a.raw").unwrap();
    // One that has expired goes when it is asked for.
    cluster.control().call(&Request::ExpireClusterLock { name: "storage-shared".into() }).unwrap();
    let lines = RefCell::new(Vec::new());
    let new = NewImage { storage: "shared", vmid: OWNER, format: "raw", name: Some("vm-999999999-pvc-b.raw"), bytes: 1 << 20 };
    storages(&cluster, "pve2").allocate(&new, &|line| lines.borrow_mut().push(line.to_owned())).unwrap();
    assert_eq!(lines.into_inner()[0], "trying to acquire cfs lock 'storage-shared' ...");
    assert!(!lock("pve1").exists() && !lock("pve2").exists());
}

#[test]
fn without_quorum_a_shared_storage_gives_nothing_and_a_local_one_does() {
    let cluster = cluster(&["pve1", "pve2"]);
    cluster.control().call(&Request::Quorum { node: Some("pve1".into()), on: false }).unwrap();
    let refused = "cfs-lock 'storage-shared' error: no quorum!";
    assert_eq!(allocate(&cluster, "pve1", "shared", "vm-999999999-pvc-a.raw").unwrap_err(), refused);
    allocate(&cluster, "pve1", "local", "vm-999999999-pvc-a.raw").unwrap();
    allocate(&cluster, "pve2", "shared", "vm-999999999-pvc-a.raw").unwrap();
}

#[test]
fn a_held_lock_of_a_shared_storage_is_the_clusters() {
    let cluster = cluster(&["pve1", "pve2"]);
    let hold = Request::HoldLock { node: "pve1".into(), vmid: None, storage: Some("shared".into()) };
    let id = cluster.control().call(&hold).unwrap().as_u64().unwrap();
    assert!(allocate(&cluster, "pve2", "shared", "vm-999999999-pvc-a.raw").is_err());
    cluster.control().call(&Request::ReleaseLock { id }).unwrap();
    allocate(&cluster, "pve2", "shared", "vm-999999999-pvc-a.raw").unwrap();
}

#[test]
fn a_cluster_lock_expires_as_much_sooner_as_waits_are_shorter() {
    let program = Some(env!("CARGO_BIN_EXE_pve-sim").into());
    let cluster = Cluster::start(pve_sim::Options { program, lock_factor: 0.0, ..pve_sim::Options::nodes(&["pve1", "pve2"]) }).unwrap();
    let lock = |node: &str| cluster.node(node).etc_pve().join("priv/lock/x");
    fs::create_dir(lock("pve1")).unwrap();
    assert!(fs::create_dir(lock("pve2")).is_err());
    let _ = fs::File::open(lock("pve2")).unwrap().set_modified(std::time::UNIX_EPOCH);
    fs::create_dir(lock("pve2")).unwrap();
}
