#![allow(clippy::unwrap_used)]
use super::*;
use crate::{
    health::Mend,
    host::{
        machine::{CorosyncLink, FileSystem},
        pve::NodeInfo,
        units_fake::FakeUnits,
    },
};

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

/// Nodes `a`, `b`, ... of which these are online.
fn inventory(online: &[bool], quorate: bool) -> Inventory {
    let nodes = (1_u32..).zip(online).map(|(id, online)| NodeInfo { name: char::from_u32(96 + id).unwrap().into(), id, online: *online });
    Inventory { node: "a".into(), cluster: "lab".into(), quorate, nodes: nodes.collect(), complete: true, ..Inventory::default() }
}

#[test]
fn quorum_is_told_for_hosts_alone_and_in_clusters() {
    let alone = Inventory { nodes: vec![NodeInfo { name: "a".into(), id: 0, online: true }], ..inventory(&[], true) };
    let table = [
        ("alone", alone.clone(), State::Ok),
        ("a cluster of one", inventory(&[true], true), State::Ok),
        ("joined, not reached", Inventory { quorate: false, ..alone }, State::Failed),
        ("three of three", inventory(&[true, true, true], true), State::Ok),
        ("two of three", inventory(&[true, true, false], true), State::Degraded),
        ("one of three", inventory(&[true, false, false], false), State::Failed),
        ("two of two", inventory(&[true, true], true), State::Ok),
        // Quorate by a QDevice.
        ("one of two and a QDevice", inventory(&[true, false], true), State::Degraded),
        ("four of five", inventory(&[true, true, true, true, false], true), State::Ok),
        ("three of five", inventory(&[true, true, true, false, false], true), State::Degraded),
        ("not read", Inventory { complete: false, ..inventory(&[true], true) }, State::Unknown),
        ("hung", Inventory { hung_since: Some(now()), ..inventory(&[true], true) }, State::Unknown),
    ];
    for (name, inventory, expected) in table {
        let found = decide_quorum(&inventory);
        assert_eq!(found.state, expected, "{name}: {found:?}");
    }
    let lost = decide_quorum(&inventory(&[true, false, false], false));
    assert_eq!(lost.seen, "no quorum: this node sees 1 of 3 nodes of cluster 'lab', offline: b; c");
    assert_eq!(lost.subjects, ["b", "c"]);
}

fn link(number: u32, peers: &[(u32, bool)]) -> CorosyncLink {
    CorosyncLink { number, address: format!("10.{number}.0.1"), peers: peers.to_vec() }
}

#[test]
fn a_link_that_is_down_is_told_and_a_node_that_is_off_is_not_its_fault() {
    let three = inventory(&[true, true, true], true);
    let two = inventory(&[true, true, false], true);
    let status = |links: Vec<CorosyncLink>| Ok(Some(CorosyncStatus { local: 1, links }));
    let look = |trouble| Err(Error::Look { trouble, message: "x".into() });
    let well = &[(2, true), (3, true)];
    let table = [
        ("no cluster", Ok(None), &three, State::NotApplicable),
        ("one link", status(vec![link(0, well)]), &three, State::Ok),
        ("two links", status(vec![link(0, well), link(1, well)]), &three, State::Ok),
        ("one of two links of a node", status(vec![link(0, well), link(1, &[(2, false), (3, true)])]), &three, State::Degraded),
        ("a link of all", status(vec![link(0, well), link(1, &[(2, false), (3, false)])]), &three, State::Degraded),
        ("a node that is off", status(vec![link(0, &[(2, true), (3, false)]), link(1, &[(2, true), (3, false)])]), &two, State::Ok),
        ("alone in its cluster", status(vec![]), &inventory(&[true], true), State::Ok),
        ("no links and other nodes", status(vec![]), &three, State::Unknown),
        ("corosync is dead", look(Trouble::Refused), &three, State::Failed),
        ("corosync hangs", look(Trouble::Silent), &three, State::Unknown),
        ("no tool", look(Trouble::Missing), &three, State::Unknown),
    ];
    for (name, status, inventory, expected) in table {
        let found = decide_links(&status, inventory);
        assert_eq!(found.state, expected, "{name}: {found:?}");
    }
    let found = decide_links(&status(vec![link(0, well), link(1, &[(2, false), (3, true)])]), &three);
    assert_eq!((found.seen.as_str(), found.subjects), ("link 1 (10.1.0.1) does not reach b", vec!["link 1".to_owned()]));
    let found = decide_links(&status(vec![link(0, &[(2, true), (3, false)])]), &two);
    assert_eq!(found.seen, "link 0 (10.0.0.1) reaches 1; offline: c");
}

fn mount() -> ClusterFs {
    let database = FileSystem { folder: "/var/lib/pve-cluster".into(), total: 1 << 35, free: 1 << 34, read_only: false };
    ClusterFs { mounted: true, read_only: false, writable_mode: true, database: Some(database) }
}

#[test]
fn the_cluster_file_system_must_answer_and_take_writes() {
    let well = inventory(&[true], true);
    let hung = |seconds| Inventory { hung_since: Some(now() - Duration::from_secs(seconds)), ..inventory(&[true], true) };
    let database = |change: fn(&mut FileSystem)| {
        let mut mount = mount();
        change(mount.database.as_mut().unwrap());
        Ok(mount)
    };
    let silent = || Err(Error::Look { trouble: Trouble::Silent, message: "/etc/pve did not answer within 3 s".into() });
    let ended = Err(Error::Look { trouble: Trouble::Failed, message: "Transport endpoint is not connected".into() });
    let none = Ok(ClusterFs { mounted: false, writable_mode: false, ..mount() });
    let table = [
        ("well", Ok(mount()), None, well.clone(), State::Ok),
        (
            "read-only by quorum",
            Ok(ClusterFs { writable_mode: false, ..mount() }),
            None,
            inventory(&[true, false, false], false),
            State::Failed,
        ),
        ("mounted read-only", Ok(ClusterFs { read_only: true, ..mount() }), None, well.clone(), State::Failed),
        ("hangs for a moment", silent(), None, hung(2), State::Unknown),
        ("hangs, and the watcher has not seen it", silent(), None, well.clone(), State::Unknown),
        ("hangs", silent(), None, hung(30), State::Failed),
        ("hangs in one call", Ok(mount()), None, hung(30), State::Degraded),
        ("daemon ended", ended, Some(Ok(FakeUnits::dead())), well.clone(), State::Failed),
        ("nothing mounted", none.clone(), Some(Ok(FakeUnits::dead())), well.clone(), State::Failed),
        ("nothing mounted, no systemd", none.clone(), None, well.clone(), State::Failed),
        ("no PVE", none, Some(Ok(UnitState { load: "not-found".into(), ..UnitState::default() })), well.clone(), State::NotApplicable),
        ("the database's disk is full", database(|d| d.free = 0), None, well.clone(), State::Failed),
        ("the database's disk is nearly full", database(|d| d.free = 5 << 20), None, well.clone(), State::Degraded),
        ("the database's disk is read-only", database(|d| d.read_only = true), None, well.clone(), State::Failed),
        ("a simulated host", Ok(ClusterFs { database: None, ..mount() }), None, well, State::Ok),
    ];
    for (name, mount, unit, inventory, expected) in table {
        let found = decide_file_system(&mount, unit.as_ref(), &inventory, now());
        assert_eq!(found.state, expected, "{name}: {found:?}");
    }
}

#[test]
fn only_a_daemon_that_is_gone_is_restarted() {
    let well = inventory(&[true], true);
    let none = Ok(ClusterFs::default());
    let dead = decide_file_system(&none, Some(&Ok(FakeUnits::dead())), &well, now());
    assert_eq!(dead.mend, Some(Mend::RestartUnit(PVE_CLUSTER.into())));
    let runs = decide_file_system(&none, Some(&Ok(FakeUnits::running())), &well, now());
    assert_eq!((runs.state, runs.mend), (State::Failed, None));
}
