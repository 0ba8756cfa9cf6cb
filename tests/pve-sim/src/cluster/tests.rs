#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use super::Store;

const ROOT: u64 = 1;

fn store() -> Store {
    let store = Store::in_memory(&["pve1".into(), "pve2".into()]);
    super::seed(&store);
    store
}

fn folder(store: &Store, path: &str) -> u64 {
    path.split('/').fold(ROOT, |ino, part| store.lookup(0, ino, part).unwrap().ino)
}

fn made_up(store: &Store, node: usize, name: &str) -> serde_json::Value {
    let ino = store.lookup(node, ROOT, name).unwrap().ino;
    serde_json::from_slice(&store.read(node, ino).unwrap()).unwrap()
}

#[test]
fn a_vmid_is_held_once_in_the_cluster() {
    let store = store();
    store.replace("nodes/pve1/qemu-server/104.conf", b"name: a\n").unwrap();
    let (first, second) = (folder(&store, "nodes/pve1/qemu-server"), folder(&store, "nodes/pve2/qemu-server"));
    assert_eq!(store.create(Some(1), second, "104.conf"), Err(Errno::EEXIST));
    let temporary = store.create(Some(1), second, "104.conf.tmp.1").unwrap();
    store.write(Some(1), temporary, 0, b"name: b\n").unwrap();
    assert_eq!(store.rename(Some(1), second, "104.conf.tmp.1", second, "104.conf"), Err(Errno::EEXIST));
    // Its own node may replace it.
    store.create(Some(0), first, "104.conf.tmp.1").unwrap();
    store.rename(Some(0), first, "104.conf.tmp.1", first, "104.conf").unwrap();
}

#[test]
fn moving_a_config_moves_the_vm() {
    let store = store();
    store.replace("nodes/pve1/qemu-server/104.conf", b"name: a\n").unwrap();
    let before = made_up(&store, 0, ".vmlist");
    store.rename_path("nodes/pve1/qemu-server/104.conf", "nodes/pve2/qemu-server/104.conf").unwrap();
    let after = made_up(&store, 0, ".vmlist");
    assert_eq!((store.vm_node(104).as_deref(), after["ids"]["104"]["node"].as_str()), (Some("pve2"), Some("pve2")));
    assert!(after["ids"]["104"]["version"].as_u64() > before["ids"]["104"]["version"].as_u64());
    assert!(after["version"].as_u64() > before["version"].as_u64());
}

/// `files`, conf-write-test: a file made and written in place counts twice, and a removal once.
#[test]
fn a_config_written_in_place_counts_as_recorded() {
    let store = store();
    let parent = folder(&store, "nodes/pve1/qemu-server");
    let version = || made_up(&store, 0, ".vmlist")["version"].as_u64().unwrap();
    let before = version();
    let ino = store.create(Some(0), parent, "999999.conf").unwrap();
    store.write(Some(0), ino, 0, b"x\n").unwrap();
    assert_eq!(version() - before, 2);
    store.unlink(Some(0), parent, "999999.conf").unwrap();
    assert_eq!(version() - before, 3);
}

#[test]
fn a_tracked_file_that_is_replaced_counts_once_on_every_node() {
    let store = store();
    let versions = || [0, 1].map(|node| made_up(&store, node, ".version")["storage.cfg"].as_u64().unwrap());
    assert_eq!(versions(), [1, 1]);
    store.replace("storage.cfg", b"").unwrap();
    assert_eq!(versions(), [2, 2]);
}

#[test]
fn a_restart_resets_one_nodes_counters_alone() {
    let store = store();
    store.replace("storage.cfg", b"").unwrap();
    let before = made_up(&store, 0, ".version");
    store.restart(0);
    let (after, other) = (made_up(&store, 0, ".version"), made_up(&store, 1, ".version"));
    assert!(after["starttime"].as_u64() > before["starttime"].as_u64());
    assert_eq!((&after["storage.cfg"], &other["storage.cfg"]), (&1.into(), &2.into()));
}

#[test]
fn a_node_without_quorum_reads_and_does_not_write() {
    let store = store();
    store.set_quorum(0, false);
    let file = folder(&store, "storage.cfg");
    assert_eq!(store.write(Some(0), file, 0, b"x"), Err(Errno::EACCES));
    assert_eq!(store.create(Some(0), ROOT, "foo"), Err(Errno::EACCES));
    assert_eq!(store.mkdir(Some(0), folder(&store, "priv/lock"), "foo"), Err(Errno::EACCES));
    assert!(store.read(0, file).unwrap().starts_with(b"dir: local\n"));
    // `pmxcfs-states`, no-quorum: -r--r-----
    assert_eq!((store.attributes(0, file).unwrap().mode, store.attributes(1, file).unwrap().mode), (0o440, 0o640));
    store.write(Some(1), file, 0, b"x").unwrap();
    let members = made_up(&store, 0, ".members");
    assert_eq!((&members["cluster"]["quorate"], &members["nodelist"]["pve2"]["online"]), (&0.into(), &0.into()));
}

#[test]
fn a_file_beyond_one_mib_is_too_large() {
    let store = store();
    let ino = store.create(Some(0), ROOT, "big").unwrap();
    store.write(Some(0), ino, 0, &vec![0; 1 << 20]).unwrap();
    assert_eq!(store.write(Some(0), ino, 1 << 20, b"x"), Err(Errno::EFBIG));
    assert_eq!(store.attributes(0, ino).unwrap().size, 1 << 20);
}

#[test]
fn a_cluster_lock_is_taken_once_and_given_up_only_when_it_expired() {
    let store = store();
    let locks = folder(&store, "priv/lock");
    let lock = store.mkdir(Some(0), locks, "file-storage_cfg").unwrap();
    assert_eq!(store.mkdir(Some(1), locks, "file-storage_cfg"), Err(Errno::EEXIST));
    // Asking for a held lock is refused, and so is renewing it for another.
    assert_eq!(store.touch(Some(1), lock, UNIX_EPOCH), Err(Errno::EACCES));
    assert_eq!(store.touch(Some(1), lock, SystemTime::now()), Err(Errno::EACCES));
    assert!(store.attributes(0, lock).is_ok());
    store.expire_lock("file-storage_cfg").unwrap();
    // The holder renews in time.
    store.touch(Some(0), lock, SystemTime::now()).unwrap();
    assert_eq!(store.touch(Some(1), lock, UNIX_EPOCH), Err(Errno::EACCES));
    assert!(store.attributes(0, lock).is_ok());
    store.expire_lock("file-storage_cfg").unwrap();
    // It goes, and then there is nothing left whose time could be set.
    assert_eq!(store.touch(Some(1), lock, UNIX_EPOCH), Err(Errno::ENOENT));
    assert_eq!(store.attributes(0, lock).err(), Some(Errno::ENOENT));
    store.mkdir(Some(1), locks, "file-storage_cfg").unwrap();
}

#[test]
fn a_cluster_lock_is_not_renamed_and_expires_by_itself() {
    let store = store();
    let locks = folder(&store, "priv/lock");
    let lock = store.mkdir(Some(0), locks, "a").unwrap();
    assert_eq!(store.rename(Some(0), locks, "a", locks, "b"), Err(Errno::EACCES));
    store.set_lock_expiry(std::time::Duration::ZERO);
    assert_eq!(store.touch(Some(1), lock, UNIX_EPOCH), Err(Errno::ENOENT));
    store.mkdir(Some(1), locks, "a").unwrap();
}

#[test]
fn modes_are_those_of_the_recorded_tree() {
    let store = store();
    for (path, mode) in [
        ("storage.cfg", 0o640),
        ("priv", 0o700),
        ("priv/lock", 0o700),
        ("priv/authkey.key", 0o600),
        ("nodes/pve1", 0o755),
        ("nodes/pve1/priv", 0o700),
        (".version", 0o440),
        (".debug", 0o640),
        ("local", 0o755),
    ] {
        assert_eq!(store.attributes(0, folder(&store, path)).unwrap().mode, mode, "{path}");
    }
}

#[test]
fn links_lead_to_the_nodes_own_folder() {
    let store = store();
    let link = folder(&store, "qemu-server");
    assert_eq!(store.link_target(1, link).unwrap(), "nodes/pve2/qemu-server");
    assert_eq!(store.link_target(0, folder(&store, "local")).unwrap(), "nodes/pve1");
}

#[test]
fn what_was_saved_goes_on_after_a_new_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.json");
    let nodes = ["pve1".to_owned()];
    let store = Store::open(&nodes, &path).unwrap();
    super::seed(&store);
    store.replace("nodes/pve1/qemu-server/104.conf", "name: ü\n".as_bytes()).unwrap();
    store.replace("priv/binary", &[0xff, 0]).unwrap();
    store.save(&path).unwrap();
    let again = Store::open(&nodes, &path).unwrap();
    assert_eq!(again.read_path("priv/binary").unwrap().as_slice(), [0xff, 0]);
    assert_eq!((again.vm_node(104).as_deref(), again.walk("").len()), (Some("pve1"), store.walk("").len()));
    assert_eq!(made_up(&again, 0, ".vmlist")["version"], 1);
}

#[test]
fn a_waiter_is_woken_by_a_change() {
    let store = store();
    let seen = store.revision();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| store.wait_changed(seen, Duration::from_secs(20)));
        store.replace("user.cfg", b"").unwrap();
        assert_eq!(waiter.join().unwrap(), seen + 1);
    });
}

#[test]
fn a_folder_that_is_not_empty_is_kept() {
    let store = store();
    assert_eq!(store.rmdir(Some(0), ROOT, "nodes"), Err(Errno::ENOTEMPTY));
    assert_eq!(store.unlink(Some(0), ROOT, "nodes"), Err(Errno::EISDIR));
    assert_eq!(store.unlink(Some(0), ROOT, ".version"), Err(Errno::EACCES));
}

/// The made-up files at one moment of the recording `api-cluster`.
fn recorded(moment: &str) -> (String, serde_json::Value) {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/golden/api-cluster.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let files = records.into_iter().find(|record| record["name"] == moment).unwrap()["files"].take();
    (files["/etc/pve/.version"].as_str().unwrap().into(), serde_json::from_str(files["/etc/pve/.vmlist"].as_str().unwrap()).unwrap())
}

/// A number at two recorded moments.
fn grown(from: &str, to: &str, file: &str) -> u64 {
    let version = |moment| {
        let (version, vmlist) = recorded(moment);
        let version: serde_json::Value = serde_json::from_str(&version).unwrap();
        version.get(file).cloned().unwrap_or_else(|| vmlist["ids"][file]["version"].clone()).as_u64().unwrap()
    };
    version(to) - version(from)
}

#[test]
fn after_a_restart_all_is_told_as_recorded() {
    let store = Store::in_memory(&["pve1".into()]);
    let (version, vmlist) = recorded("pm-after-restart");
    for vmid in vmlist["ids"].as_object().unwrap().keys() {
        store.replace(&format!("nodes/pve1/qemu-server/{vmid}.conf"), b"").unwrap();
    }
    store.restart(0);
    let ino = store.lookup(0, ROOT, ".version").unwrap().ino;
    let told = String::from_utf8(store.read(0, ino).unwrap().to_vec()).unwrap();
    let untimed = |text: &str| text.lines().filter(|line| !line.contains("starttime")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(untimed(&told), untimed(&version));
    let versions = |list: &serde_json::Value| {
        let mut all: Vec<u64> = list["ids"].as_object().unwrap().values().map(|vm| vm["version"].as_u64().unwrap()).collect();
        all.sort_unstable();
        (list["version"].clone(), all)
    };
    assert_eq!(versions(&made_up(&store, 0, ".vmlist")), versions(&vmlist));
}

/// PVE writes a config twice for a create and for a PUT, once before a delete; other files once.
#[test]
fn counters_grow_with_each_change_as_recorded() {
    let store = store();
    let config = "nodes/pve1/qemu-server/703.conf";
    let vmlist = || made_up(&store, 0, ".vmlist");
    let mut last = (0, 0);
    let mut step = |writes: usize, removed: bool| {
        for _ in 0..writes {
            store.replace(config, b"").unwrap();
        }
        if removed {
            store.remove_path(config).unwrap();
        }
        let list = vmlist();
        let now = (list["version"].as_u64().unwrap(), list["ids"]["703"]["version"].as_u64().unwrap_or_default());
        let before = std::mem::replace(&mut last, now);
        (now.0 - before.0, now.1.saturating_sub(before.1))
    };
    step(0, false);
    assert_eq!(step(2, false).0, grown("v0", "v1-after-create", "vmlist"));
    assert_eq!(step(2, false), (grown("v1-after-create", "v2-after-put", "vmlist"), grown("v1-after-create", "v2-after-put", "703")));
    assert_eq!(step(2, false), (grown("v2-after-put", "v3-after-put-same", "vmlist"), grown("v2-after-put", "v3-after-put-same", "703")));
    assert_eq!(step(0, false).0, grown("v3-after-put-same", "v6-after-stop-302", "vmlist"));
    assert_eq!(step(1, true).0, grown("v8-after-pool", "v9-after-delete", "vmlist"));
    for (from, to, file) in [
        ("v6-after-stop-302", "v7-after-storage-put", "storage.cfg"),
        ("v7-after-storage-put", "v8-after-pool", "user.cfg"),
        ("v9-after-delete", "v10-after-options", "datacenter.cfg"),
    ] {
        let before = made_up(&store, 0, ".version")[file].as_u64().unwrap();
        store.replace(file, b"").unwrap();
        assert_eq!(made_up(&store, 0, ".version")[file].as_u64().unwrap() - before, grown(from, to, file), "{file}");
    }
}
