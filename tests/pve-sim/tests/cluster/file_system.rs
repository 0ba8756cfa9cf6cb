use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use pve_sim::control::{PmxcfsAction, Request};

use crate::{cluster, error_of, json};

fn pmxcfs(cluster: &pve_sim::Cluster, node: &str, action: PmxcfsAction) {
    cluster.control().call(&Request::Pmxcfs { node: node.into(), action }).unwrap();
}

/// The names that inotify has told since, without waiting for more.
fn told(inotify: &Inotify) -> Vec<String> {
    let events = inotify.read_events().unwrap_or_default();
    events.into_iter().filter_map(|event| event.name?.into_string().ok()).collect()
}

#[test]
fn a_change_on_one_node_shows_on_the_others_at_once() {
    let cluster = cluster(&["pve1", "pve2"]);
    let (first, second) = (cluster.node("pve1").etc_pve(), cluster.node("pve2").etc_pve());
    let path = "nodes/pve1/qemu-server/100.conf";
    // The name is looked for before it is there: its absence must not be remembered.
    assert!(!second.join(path).exists());
    fs::write(first.join(path), "name: one\n").unwrap();
    assert_eq!(fs::read_to_string(second.join(path)).unwrap(), "name: one\n");
    fs::write(first.join(path), "name: longer than before\n").unwrap();
    assert_eq!(fs::read_to_string(second.join(path)).unwrap(), "name: longer than before\n");
    assert_eq!(json(&second.join(".vmlist"))["ids"]["100"]["node"], "pve1");
    fs::rename(second.join(path), second.join("nodes/pve2/qemu-server/100.conf")).unwrap();
    assert!(!first.join(path).exists());
    assert_eq!(fs::read_link(first.join("local")).unwrap().to_str(), Some("nodes/pve1"));
    assert_eq!(fs::read_to_string(second.join("qemu-server/100.conf")).unwrap(), "name: longer than before\n");
}

#[test]
fn inotify_tells_own_changes_and_not_those_of_other_nodes() {
    let cluster = cluster(&["pve1", "pve2"]);
    let own = cluster.node("pve1").etc_pve().join("nodes/pve1/qemu-server");
    let other = cluster.node("pve2").etc_pve().join("nodes/pve1/qemu-server");
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
    inotify
        .add_watch(
            &own,
            AddWatchFlags::IN_ALL_EVENTS & !AddWatchFlags::IN_ACCESS & !AddWatchFlags::IN_OPEN & !AddWatchFlags::IN_CLOSE_NOWRITE,
        )
        .unwrap();

    fs::write(other.join("100.conf"), "name: a\n").unwrap();
    let write =
        Request::WriteFile { path: "nodes/pve1/qemu-server/101.conf".into(), content: "name: b\n".into(), node: Some("pve2".into()) };
    cluster.control().call(&write).unwrap();
    // They are there, and yet nothing was told.
    assert!(own.join("100.conf").exists() && own.join("101.conf").exists());
    assert_eq!(told(&inotify), [""; 0]);

    // As PVE writes: a temporary file, renamed.
    fs::write(own.join("102.conf.tmp.1"), "name: c\n").unwrap();
    fs::rename(own.join("102.conf.tmp.1"), own.join("102.conf")).unwrap();
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&inotify), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1);
    assert!(told(&inotify).contains(&"102.conf".to_owned()));
}

#[test]
fn the_counters_of_every_node_move_with_each_change() {
    let cluster = cluster(&["pve1", "pve2"]);
    let version = |node: &str| json(&cluster.node(node).etc_pve().join(".version"));
    let before = [version("pve1"), version("pve2")];
    fs::write(cluster.node("pve1").etc_pve().join("storage.cfg.tmp"), "").unwrap();
    fs::rename(cluster.node("pve1").etc_pve().join("storage.cfg.tmp"), cluster.node("pve1").etc_pve().join("storage.cfg")).unwrap();
    for (node, before) in ["pve1", "pve2"].iter().zip(before) {
        let after = version(node);
        assert_eq!(after["storage.cfg"].as_u64().unwrap(), before["storage.cfg"].as_u64().unwrap() + 1, "{node}");
        assert_eq!(after["vmlist"], before["vmlist"], "{node}");
    }
}

#[test]
fn a_vmid_of_another_node_is_refused() {
    let cluster = cluster(&["pve1", "pve2"]);
    let (first, second) = (cluster.node("pve1").vm_config(104), cluster.node("pve2").vm_config(104));
    fs::write(&first, "name: a\n").unwrap();
    assert_eq!(error_of(File::create(&second)), Some(Errno::EEXIST as i32));
    fs::write(second.with_extension("tmp"), "name: b\n").unwrap();
    assert_eq!(error_of(fs::rename(second.with_extension("tmp"), &second)), Some(Errno::EEXIST as i32));
    assert_eq!(fs::read_to_string(first).unwrap(), "name: a\n");
}

#[test]
fn owner_mode_and_size_are_those_of_a_real_mount() {
    let cluster = cluster(&["pve1"]);
    let etc = cluster.node("pve1").etc_pve();
    for (path, mode) in [
        ("", 0o040_755),
        ("storage.cfg", 0o100_640),
        (".version", 0o100_440),
        ("priv", 0o040_700),
        ("priv/authkey.key", 0o100_600),
        ("nodes/pve1/priv", 0o040_700),
    ] {
        let found = fs::metadata(etc.join(path)).unwrap();
        assert_eq!((found.permissions().mode(), found.uid()), (mode, 0), "{path}");
    }
    assert!(fs::symlink_metadata(etc.join("qemu-server")).unwrap().is_symlink());
    let names: Vec<String> = fs::read_dir(&etc).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for name in [
        ".vmlist",
        ".version",
        ".members",
        ".clusterlog",
        ".rrd",
        ".debug",
        "local",
        "qemu-server",
        "lxc",
        "openvz",
        "nodes",
        "priv",
        "ha",
        "user.cfg",
    ] {
        assert!(names.iter().any(|found| found == name), "{name}");
    }
}

#[test]
fn a_file_beyond_one_mib_is_too_large() {
    let cluster = cluster(&["pve1"]);
    let path = cluster.node("pve1").etc_pve().join("big");
    let mut file = File::create(&path).unwrap();
    file.write_all(&vec![0; 1 << 20]).unwrap();
    assert_eq!(error_of(file.write(b"x")), Some(Errno::EFBIG as i32));
    assert_eq!(fs::metadata(path).unwrap().len(), 1 << 20);
}

#[test]
fn without_quorum_a_node_reads_and_does_not_write() {
    let cluster = cluster(&["pve1", "pve2"]);
    let etc = cluster.node("pve1").etc_pve();
    cluster.control().call(&Request::Quorum { node: Some("pve1".into()), on: false }).unwrap();
    assert!(fs::read_to_string(etc.join("storage.cfg")).unwrap().contains("dir: local"));
    assert_eq!(error_of(File::create(etc.join("foo"))), Some(Errno::EACCES as i32));
    assert_eq!(error_of(fs::create_dir(etc.join("priv/lock/foo"))), Some(Errno::EACCES as i32));
    assert_eq!(json(&etc.join(".members"))["cluster"]["quorate"], 0);
    fs::write(cluster.node("pve2").etc_pve().join("foo"), "").unwrap();
    cluster.control().call(&Request::Quorum { node: None, on: true }).unwrap();
    fs::write(etc.join("foo"), "x").unwrap();
    assert_eq!(json(&etc.join(".members"))["cluster"]["quorate"], 1);
}

#[test]
fn a_cluster_lock_excludes_other_nodes_until_it_expires() {
    let cluster = cluster(&["pve1", "pve2"]);
    let (first, second) = (cluster.node("pve1").etc_pve().join("priv/lock/x"), cluster.node("pve2").etc_pve().join("priv/lock/x"));
    fs::create_dir(&first).unwrap();
    assert_eq!(error_of(fs::create_dir(&second)), Some(Errno::EEXIST as i32));
    let ask = || error_of(File::open(&second).unwrap().set_modified(UNIX_EPOCH));
    assert_eq!(ask(), Some(Errno::EACCES as i32));
    assert!(first.exists());
    assert_eq!(error_of(File::open(&second).unwrap().set_modified(SystemTime::now())), Some(Errno::EACCES as i32));
    cluster.control().call(&Request::ExpireClusterLock { name: "x".into() }).unwrap();
    File::open(&first).unwrap().set_modified(SystemTime::now()).unwrap();
    assert_eq!(ask(), Some(Errno::EACCES as i32));
    assert!(first.exists(), "it was renewed");
    cluster.control().call(&Request::ExpireClusterLock { name: "x".into() }).unwrap();
    assert_eq!(ask(), Some(Errno::ENOENT as i32));
    fs::create_dir(&second).unwrap();
    fs::remove_dir(&first).unwrap();
    assert!(!second.exists());
}

#[test]
fn a_hung_mount_blocks_until_it_is_released_and_hangs_no_other_node() {
    let cluster = cluster(&["pve1", "pve2"]);
    pmxcfs(&cluster, "pve1", PmxcfsAction::Hang);
    let (send, receive) = mpsc::channel();
    let path = cluster.node("pve1").etc_pve().join(".version");
    let reader = thread::spawn(move || send.send(fs::read(path).is_ok()));
    fs::read(cluster.node("pve2").etc_pve().join(".version")).unwrap();
    // An answer would have come long ago, on the other node's mount it has.
    assert_eq!(receive.recv_timeout(Duration::from_millis(100)), Err(mpsc::RecvTimeoutError::Timeout));
    pmxcfs(&cluster, "pve1", PmxcfsAction::Resume);
    assert_eq!(receive.recv_timeout(Duration::from_secs(10)), Ok(true));
    reader.join().unwrap().unwrap();
}

#[test]
fn who_waits_for_a_hung_mount_can_be_killed() {
    let cluster = cluster(&["pve1"]);
    pmxcfs(&cluster, "pve1", PmxcfsAction::Hang);
    let mut reader = std::process::Command::new("cat")
        .stdout(std::process::Stdio::null())
        .arg(cluster.node("pve1").etc_pve().join(".version"))
        .spawn()
        .unwrap();
    reader.kill().unwrap();
    assert!(!reader.wait().unwrap().success());
}

#[test]
fn a_restart_begins_all_counters_anew() {
    let cluster = cluster(&["pve1", "pve2"]);
    let etc = cluster.node("pve1").etc_pve();
    fs::write(cluster.node("pve1").vm_config(100), "name: a\n").unwrap();
    fs::write(etc.join("storage.cfg"), "dir: local\n\tpath /var/lib/vz\n").unwrap();
    let before = json(&etc.join(".version"));
    pmxcfs(&cluster, "pve1", PmxcfsAction::Restart);
    let after = json(&etc.join(".version"));
    assert!(after["starttime"].as_u64() > before["starttime"].as_u64());
    assert_eq!((&after["vmlist"], &after["storage.cfg"]), (&1.into(), &1.into()));
    assert_eq!(json(&etc.join(".vmlist"))["ids"]["100"]["version"], 1);
    assert!(json(&cluster.node("pve2").etc_pve().join(".version"))["storage.cfg"].as_u64().unwrap() > 1);
}

#[test]
fn a_mount_that_is_down_shows_an_empty_folder() {
    let cluster = cluster(&["pve1", "pve2"]);
    let etc = cluster.node("pve1").etc_pve();
    pmxcfs(&cluster, "pve1", PmxcfsAction::Down);
    assert_eq!(fs::read_dir(&etc).unwrap().count(), 0);
    assert_eq!(json(&cluster.node("pve2").etc_pve().join(".members"))["nodelist"]["pve1"]["online"], 0);
    pmxcfs(&cluster, "pve1", PmxcfsAction::Up);
    assert!(etc.join("storage.cfg").exists());
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_is_read_to_its_end() {
    let cluster = cluster(&["pve1"]);
    let path = cluster.node("pve1").vm_config(100);
    fs::write(&path, "name: old\n").unwrap();
    let mut open = File::open(&path).unwrap();
    fs::write(path.with_extension("tmp"), "name: new\n").unwrap();
    fs::rename(path.with_extension("tmp"), &path).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "name: old\n");
    assert_eq!(fs::read_to_string(path).unwrap(), "name: new\n");
}
