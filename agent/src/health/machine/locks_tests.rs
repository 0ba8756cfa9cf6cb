#![allow(clippy::unwrap_used)]
use super::*;
use crate::{
    error::Trouble,
    host::pve::{RunState, Upid, VmRecord, config_file::ConfigFile},
};

const STARTED: u64 = 1_000_000;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(STARTED + seconds)
}

/// A task that began at 0, and whose log grew last then.
fn task(kind: &str, id: &str) -> RunningTask {
    let upid = Upid::parse(&format!("UPID:a:0000000A:0000000B:{STARTED:08X}:{kind}:{id}:root@pam:")).unwrap();
    RunningTask { upid, grew: Some(at(0)), state: 'S' }
}

fn cluster(locks: &[(u32, &str)]) -> Inventory {
    let vm = |vmid, lock: &str| VmRecord {
        vmid,
        node: "a".into(),
        version: 1,
        config: ConfigFile::parse(&format!("name: x\nlock: {lock}\n")),
        run: RunState::Stopped,
        ha: None,
        replicated: false,
        pool: None,
    };
    let vms = locks.iter().map(|(vmid, lock)| (*vmid, Arc::new(vm(*vmid, lock)))).collect();
    Inventory { node: "a".into(), quorate: true, complete: true, vms, ..Inventory::default() }
}

#[test]
fn a_task_is_stuck_when_it_is_silent_for_longer_than_its_kind_may_be() {
    let hours = |h: u64| h * 3600;
    let table = [
        (task("qmstart", "100"), 60, State::Ok),
        (task("qmstart", "100"), hours(2), State::Degraded),
        (task("vzdump", ""), hours(10), State::Ok),
        (task("vzdump", ""), hours(25), State::Degraded),
        (task("qmclone", "9000"), hours(23), State::Ok),
        (task("imgdel", "100@lvm"), hours(20), State::Ok),
        // A console that somebody left open.
        (task("vncproxy", "100"), hours(500), State::Ok),
        (task("termproxy", ""), hours(500), State::Ok),
        // A kind that is not known is given all the time there is.
        (task("newkind", "1"), hours(20), State::Ok),
        (RunningTask { grew: Some(at(hours(30))), ..task("vzdump", "") }, hours(31), State::Ok),
        // No log: it counts from its start.
        (RunningTask { grew: None, ..task("qmstop", "100") }, hours(2), State::Degraded),
        // A clock that was set back.
        (RunningTask { grew: Some(at(hours(90))), ..task("qmstart", "100") }, hours(2), State::Ok),
    ];
    for (task, later, expected) in table {
        let found = decide_tasks(&Ok(vec![task]), at(later));
        assert_eq!(found.state, expected, "{found:?}");
    }
    let stuck = decide_tasks(&Ok(vec![RunningTask { state: 'D', ..task("qmstart", "100") }]), at(hours(2)));
    assert_eq!(
        stuck.seen,
        "qmstart of 100 by root@pam runs since 1970-01-12 13:46:40 UTC and has told nothing since 1970-01-12 13:46:40 UTC (pid 10), its process hangs in the kernel"
    );
    assert_eq!(decide_tasks(&Ok(vec![]), at(0)).seen, "no task is stuck");
    let error = Error::Look { trouble: Trouble::Silent, message: "late".into() };
    assert_eq!(decide_tasks(&Err(error), at(0)).state, State::Unknown);
}

#[test]
fn a_lock_is_stale_only_when_no_task_has_been_there_for_long() {
    let begin = Instant::now();
    let table = [
        ("a lock that a killed task left", cluster(&[(100, "clone")]), vec![], State::Degraded),
        ("its own task", cluster(&[(100, "snapshot")]), vec![task("qmsnapshot", "100")], State::Ok),
        ("another VM's task", cluster(&[(100, "snapshot")]), vec![task("qmsnapshot", "101")], State::Degraded),
        ("a backup of many", cluster(&[(100, "backup")]), vec![task("vzdump", "")], State::Ok),
        ("a clone names its template", cluster(&[(200, "clone")]), vec![task("qmclone", "9000")], State::Ok),
        ("a clone holds no backup's lock", cluster(&[(200, "backup")]), vec![task("qmclone", "9000")], State::Degraded),
        ("suspended to disk", cluster(&[(100, "suspended")]), vec![], State::Ok),
        ("none locked", cluster(&[]), vec![task("vzdump", "")], State::Ok),
    ];
    for (name, inventory, tasks, expected) in table {
        let mut unattended = Unattended::new();
        let tasks = Ok(tasks);
        let first = decide_locks(&tasks, &inventory, &mut unattended, begin);
        assert_eq!(first.state, State::Ok, "{name}, at first: {first:?}");
        let later = decide_locks(&tasks, &inventory, &mut unattended, begin + UNATTENDED);
        assert_eq!(later.state, expected, "{name}: {later:?}");
    }
}

#[test]
fn the_time_without_a_task_begins_anew_with_each_task_and_each_lock() {
    let (begin, minute) = (Instant::now(), Duration::from_secs(60));
    let mut unattended = Unattended::new();
    let mut look = |tasks: Vec<RunningTask>, lock: &str, minutes: u32| {
        decide_locks(&Ok(tasks), &cluster(&[(100, lock)]), &mut unattended, begin + minute * minutes).state
    };
    assert_eq!(look(vec![], "backup", 0), State::Ok);
    assert_eq!(look(vec![task("vzdump", "100")], "backup", 29), State::Ok);
    // It has just ended, and the lock goes a moment later.
    assert_eq!(look(vec![], "backup", 300), State::Ok);
    assert_eq!(look(vec![], "snapshot", 329), State::Ok);
    assert_eq!(look(vec![], "snapshot", 331), State::Ok);
    assert_eq!(look(vec![], "snapshot", 359), State::Degraded);
}

#[test]
fn what_cannot_be_read_is_unknown() {
    let mut unattended = Unattended::new();
    let hung = Inventory { hung_since: Some(at(0)), ..cluster(&[]) };
    assert_eq!(decide_locks(&Ok(vec![]), &hung, &mut unattended, Instant::now()).state, State::Unknown);
    let error = Error::Look { trouble: Trouble::Denied, message: "no".into() };
    assert_eq!(decide_locks(&Err(error), &cluster(&[]), &mut unattended, Instant::now()).state, State::Unknown);
}
