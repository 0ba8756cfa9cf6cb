//! The registry and its journal.
#![allow(clippy::unwrap_used)]

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use pvelet_proto::{identity::Identity, reason, v1};

use super::*;
use crate::{error::Error, host::clock::Clock};

struct SetClock(Mutex<SystemTime>);

impl SetClock {
    fn pass(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

impl Clock for SetClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

fn clock() -> Arc<SetClock> {
    Arc::new(SetClock(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))))
}

fn open(dir: &Path, clock: &Arc<SetClock>) -> Result<Arc<Operations>, Error> {
    Operations::open(Settings::new(dir.join("state")), Arc::clone(clock) as Arc<dyn Clock>)
}

fn caller() -> Caller {
    Caller { identity: Identity::parse("spiffe://pvelet.example/role/operator/ann").unwrap() }
}

fn meta(request_id: &str) -> v1::RequestMeta {
    v1::RequestMeta { tenant: "a".into(), request_id: request_id.into(), ..v1::RequestMeta::default() }
}

fn begin(ops: &Arc<Operations>, meta: &v1::RequestMeta, vmid: u32) -> Result<Begun, Error> {
    let kind = v1::OperationKind::StartVm;
    let request = v1::StartVmRequest { meta: Some(canonical_meta(meta)), vm: Some(v1::VmRef { vmid, uuid: String::new() }) };
    ops.begin(Begin {
        caller: &caller(),
        meta,
        kind,
        body: Body::new(kind, &request),
        target: v1::VmRef { vmid, uuid: "u".into() },
        guards: Guards { exclusive: vec![Guards::vm(vmid)], shared: Vec::new() },
        lease: None,
        state: State { vmid, ..State::default() },
    })
}

fn new(begun: Result<Begun, Error>) -> Handle {
    match begun.unwrap() {
        Begun::New(handle) => handle,
        Begun::Existing(name) => panic!("it exists: {name}"),
    }
}

fn epoch(transitions: u64) -> v1::ControllerEpoch {
    v1::ControllerEpoch { controller: "main".into(), lease_uid: "11111111-1111-1111-1111-111111111111".into(), transitions }
}

/// Opens a journal whose former user has gone but for writes that are just ending: until then it is refused.
async fn reopen(dir: &Path, clock: &Arc<SetClock>) -> Arc<Operations> {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        match open(dir, clock) {
            Err(error) if error.to_string().contains("another pvelet-agent") && std::time::Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            opened => return opened.unwrap(),
        }
    }
}

#[tokio::test]
async fn the_journal_outlives_the_agent() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let ops = open(dir.path(), &clock).unwrap();
    let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("state"), mode("state/journal.redb")), (0o700, 0o600));
    let handle = new(begin(&ops, &meta("1"), 100));
    handle.written().await.unwrap();
    handle.task(TaskRef { purpose: "starting".into(), upid: "UPID:x".into(), found: false });
    handle.save(|state| state.digest = "d".into()).await.unwrap();
    let ended = new(begin(&ops, &meta("2"), 101));
    ended.written().await.unwrap();
    ended.finish(Err(Error::VmLocked { vmid: 101, lock: "backup".into() }), Some(Duration::from_secs(60))).await;
    ops.announce(&epoch(3)).await.unwrap();
    let (running, failed) = (ops.get(handle.name()).unwrap(), ops.get(ended.name()).unwrap());
    drop((ops, handle, ended));

    let ops = reopen(dir.path(), &clock).await;
    let unfinished = ops.unfinished();
    assert_eq!((unfinished.len(), unfinished[0].state.digest.as_str(), unfinished[0].state.tasks.len()), (1, "d", 1));
    assert_eq!(ops.get(&running.name).unwrap().upids, running.upids);
    let again = ops.get(&failed.name).unwrap();
    assert_eq!(again, v1::Operation { revision: again.revision, ..failed.clone() });
    // What it worked on is still its own; the same call is still the same operation; the epoch is known.
    assert_eq!(begin(&ops, &meta("3"), 100).err().map(|e| e.reason()), Some(reason::OPERATION_IN_PROGRESS));
    assert!(matches!(begin(&ops, &meta("2"), 101), Ok(Begun::Existing(name)) if name == failed.name));
    assert_eq!(begin(&ops, &meta("2"), 102).err().map(|e| e.reason()), Some(reason::REQUEST_ID_REUSED));
    assert_eq!(ops.announce(&epoch(2)).await.unwrap_err().reason(), reason::STALE_EPOCH);
    let later = new(begin(&ops, &meta("4"), 103));
    assert!(ops.get(later.name()).unwrap().revision > failed.revision, "revisions never go back");
}

#[tokio::test]
async fn a_second_agent_a_newer_journal_and_a_damaged_one_are_refused_in_words() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let ops = open(dir.path(), &clock).unwrap();
    let refused = |dir: &Path| open(dir, &clock).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(refused(dir.path()).contains("another pvelet-agent uses it"));
    drop(ops);
    let path = dir.path().join("state/journal.redb");
    {
        let db = redb::Database::open(&path).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 99).unwrap();
        txn.commit().unwrap();
    }
    assert!(refused(dir.path()).contains("it has format 99, this version knows up to 1"));
    std::fs::write(&path, vec![7; 100_000]).unwrap();
    assert!(refused(dir.path()).contains("it is damaged"), "{}", refused(dir.path()));
    std::fs::remove_file(&path).unwrap();
    open(dir.path(), &clock).unwrap();
}

#[tokio::test]
async fn an_operation_is_kept_for_the_retention_and_then_forgotten() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let ops = open(dir.path(), &clock).unwrap();
    let first = new(begin(&ops, &meta("1"), 100));
    first.written().await.unwrap();
    first.finish(Ok(()), None).await;
    clock.pass(MIN_RETENTION);
    assert!(matches!(begin(&ops, &meta("1"), 100), Ok(Begun::Existing(_))));
    clock.pass(Duration::from_secs(1));
    new(begin(&ops, &meta("2"), 101)).written().await.unwrap();
    assert_eq!(ops.get(first.name()).unwrap_err().reason(), reason::OPERATION_NOT_FOUND);
    let name = first.name().to_owned();
    drop((ops, first));
    assert!(reopen(dir.path(), &clock).await.get(&name).is_err());
}

#[tokio::test]
async fn a_stale_leader_begins_nothing_and_a_new_one_repeats_its_predecessor_s_call() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let ops = open(dir.path(), &clock).unwrap();
    let by = |id: &str, transitions| v1::RequestMeta { controller_epoch: Some(epoch(transitions)), ..meta(id) };
    let first = new(begin(&ops, &by("1", 1), 100));
    assert!(matches!(begin(&ops, &by("1", 2), 100), Ok(Begun::Existing(name)) if name == first.name()));
    ops.announce(&epoch(2)).await.unwrap();
    assert_eq!(begin(&ops, &by("2", 1), 101).err().map(|e| e.reason()), Some(reason::STALE_EPOCH));
    assert_eq!(ops.check_epoch(&by("2", 1)).unwrap_err().reason(), reason::STALE_EPOCH);
    let other = v1::ControllerEpoch { lease_uid: "22222222-2222-2222-2222-222222222222".into(), ..epoch(1) };
    assert_eq!(ops.announce(&other).await.unwrap_err().reason(), reason::UNKNOWN_LEASE);
    assert_eq!(ops.accept(&other).await.unwrap(), Some(epoch(2)));
    assert_eq!(ops.announce(&epoch(9)).await.unwrap_err().reason(), reason::UNKNOWN_LEASE);
}

#[tokio::test]
async fn a_watch_tells_what_is_active_then_each_change_and_can_be_resumed() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let ops = open(dir.path(), &clock).unwrap();
    let ended = new(begin(&ops, &meta("1"), 100));
    ended.written().await.unwrap();
    let seen = ops.get(ended.name()).unwrap().revision;
    ended.finish(Ok(()), None).await;
    let active = new(begin(&ops, &meta("2"), 101));
    active.written().await.unwrap();
    let mut fresh = Box::pin(ops.watch(Some("a"), 0));
    let mut resumed = Box::pin(ops.watch(None, seen));
    let mut others = Box::pin(ops.watch(Some("b"), 0));
    active.step("working");
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(fresh.next().await.unwrap().unwrap().map(|op| (op.name, op.step)));
    }
    assert_eq!(
        names,
        [Some((active.name().to_owned(), "accepted".to_owned())), None, Some((active.name().to_owned(), "working".to_owned()))]
    );
    assert_eq!(resumed.next().await.unwrap().unwrap().unwrap().name, ended.name());
    assert_eq!(others.next().await.unwrap().unwrap(), None);
    // Whoever does not read is ended.
    for i in 0..3000 {
        active.step(format!("step {i}"));
    }
    assert_eq!(fresh.next().await.unwrap().unwrap_err().reason(), reason::SLOW_CONSUMER);
    assert!(fresh.next().await.is_none());
}

#[tokio::test]
async fn a_draining_agent_begins_nothing_and_waits_for_the_rest() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let ops = open(dir.path(), &clock).unwrap();
    let running = new(begin(&ops, &meta("1"), 100));
    running.written().await.unwrap();
    assert_eq!(ops.drain(Duration::ZERO).await, 1);
    assert_eq!(begin(&ops, &meta("2"), 101).err().map(|e| e.reason()), Some(reason::AGENT_DRAINING));
    assert!(matches!(begin(&ops, &meta("1"), 100), Ok(Begun::Existing(_))));
    let drained = {
        let ops = Arc::clone(&ops);
        tokio::spawn(async move { ops.drain(Duration::from_secs(60)).await })
    };
    running.finish(Ok(()), None).await;
    assert_eq!(drained.await.unwrap(), 0);
}

#[tokio::test]
async fn pages_go_from_new_to_old() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let ops = open(dir.path(), &clock).unwrap();
    for i in 0..5 {
        let handle = new(begin(&ops, &meta(&i.to_string()), 100 + i));
        if i < 2 {
            handle.finish(Ok(()), None).await;
        }
    }
    let mut request = v1::ListOperationsRequest { page_size: 2, ..v1::ListOperationsRequest::default() };
    let mut seen = Vec::new();
    loop {
        let page = ops.list(&request).unwrap();
        seen.extend(page.operations.iter().map(|op| op.request_id.clone()));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["4", "3", "2", "1", "0"]);
    let count = |request| ops.list(&request).unwrap().operations.len();
    assert_eq!(count(v1::ListOperationsRequest { active_only: true, ..v1::ListOperationsRequest::default() }), 3);
    assert_eq!(count(v1::ListOperationsRequest { request_id: "1".into(), ..v1::ListOperationsRequest::default() }), 1);
    assert_eq!(count(v1::ListOperationsRequest { tenant: "b".into(), ..v1::ListOperationsRequest::default() }), 0);
}

#[tokio::test]
async fn every_mutation_leaves_one_audit_line() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let ops = open(dir.path(), &clock).unwrap();
    let handle = new(begin(&ops, &meta("1"), 100));
    assert!(begin(&ops, &meta("2"), 100).is_err());
    clock.pass(Duration::from_secs(2));
    handle.finish(Ok(()), None).await;
    let lines: Vec<serde_json::Value> = ops.audit_tail(10).unwrap().iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    let decisions: Vec<_> = lines.iter().map(|l| (l["decision"].as_str().unwrap(), l["reason"].as_str().unwrap())).collect();
    assert_eq!(decisions, [("refused", "OPERATION_IN_PROGRESS"), ("succeeded", "")]);
    assert_eq!(
        (lines[1]["action"].as_str(), lines[1]["duration_ms"].as_u64(), lines[1]["target"].as_str()),
        (Some("START_VM"), Some(2000), Some("VM 100"))
    );
}

#[tokio::test]
async fn a_refusal_says_that_there_are_too_many() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let settings = Settings { max_active: 2, ..Settings::new(dir.path()) };
    let ops = Operations::open(settings, clock as Arc<dyn Clock>).unwrap();
    let (_a, _b) = (new(begin(&ops, &meta("1"), 100)), new(begin(&ops, &meta("2"), 101)));
    assert_eq!(begin(&ops, &meta("3"), 102).err().map(|e| e.reason()), Some(reason::OVERLOADED));
}

#[test]
fn what_is_forgotten_by_a_refused_call_stays_forgotten() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    // The agent's end: with its runtime everything goes that still holds the journal.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let name = runtime.block_on(async {
        let ops = open(dir.path(), &clock).unwrap();
        let old = new(begin(&ops, &meta("old"), 100));
        old.finish(Ok(()), None).await;
        let name = old.name().to_owned();
        let _running = new(begin(&ops, &meta("now"), 101));
        clock.pass(MIN_RETENTION + Duration::from_secs(1));
        assert_eq!(begin(&ops, &meta("second"), 101).err().map(|e| e.reason()), Some(reason::OPERATION_IN_PROGRESS));
        assert!(ops.get(&name).is_err());
        ops.flushed().await;
        name
    });
    drop(runtime);
    assert!(open(dir.path(), &clock).unwrap().get(&name).is_err(), "it is back after a restart");
}
