#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::StreamExt;
use proptest::prelude::*;
use pvelet_proto::v1;
use tokio::time::{advance, sleep};

use super::*;
use crate::{
    error::Error,
    health::{
        Health,
        testing::{BEGIN, Look, PausedClock, Told, check, counted, start},
    },
};

static ALL: [Check; 4] = [
    check("kubelet.c", Group::Kubelet),
    check("containerd.b", Group::Containerd),
    check("containerd.a", Group::Containerd),
    check("net.d", Group::Network),
];

fn board() -> Board {
    Board::new(ALL, PausedClock::new(), Arc::default())
}

fn found(board: &Board, states: [State; 4]) {
    board.found("test", &ALL, ALL.iter().zip(states).map(|(c, s)| Finding::new(c.id, s, "seen")).collect());
}

#[tokio::test(start_paused = true)]
async fn since_is_when_the_state_changed_and_observed_when_it_last_ran() {
    let board = board();
    let times = |board: &Board| {
        let known = board.one("containerd.a").unwrap();
        let seconds = |t: SystemTime| t.duration_since(BEGIN).unwrap().as_secs();
        (known.finding.state, seconds(known.since), known.observed.map(seconds))
    };
    let say = |state: State, seen: &str| board.found("test", &ALL[2..3], vec![Finding::new("containerd.a", state, seen)]);
    assert_eq!(times(&board), (State::Unknown, 0, None));
    advance(Duration::from_secs(1)).await;
    say(State::Ok, "well");
    assert_eq!(times(&board), (State::Ok, 1, Some(1)));
    advance(Duration::from_secs(1)).await;
    say(State::Ok, "well, with other words");
    assert_eq!(times(&board), (State::Ok, 1, Some(2)));
    advance(Duration::from_secs(1)).await;
    say(State::Failed, "broken");
    assert_eq!(times(&board), (State::Failed, 3, Some(3)));
    advance(Duration::from_secs(1)).await;
    board.lost(&ALL[2..3], "it did not answer");
    assert_eq!(times(&board), (State::Unknown, 4, Some(3)), "that run came to no end");
}

#[tokio::test(start_paused = true)]
async fn the_revision_grows_with_each_change_and_not_with_each_run() {
    let board = board();
    let revision = board.revision();
    let say = |finding: Finding| {
        board.found("test", &ALL[2..3], vec![finding]);
        *revision.borrow()
    };
    let id = "containerd.a";
    assert_eq!(say(Finding::unknown(id, "it has not run yet")), 1, "that it has run is a change");
    assert_eq!(say(Finding::unknown(id, "it has not run yet")), 1);
    assert_eq!(say(Finding::degraded(id, "slow", "wait")), 2);
    assert_eq!(say(Finding::degraded(id, "slow", "wait")), 2);
    assert_eq!(say(Finding::degraded(id, "slower", "wait")), 3);
    assert_eq!(say(Finding::degraded(id, "slower", "wait longer")), 4);
    assert_eq!(say(Finding::degraded(id, "slower", "wait longer").about("unit")), 5);
}

#[tokio::test(start_paused = true)]
async fn the_host_is_as_its_checks_are() {
    use State::{Degraded as D, Failed as F, NotApplicable as N, Ok as O, Unknown as U};
    let table = [
        ([O, O, O, O], O),
        ([N, N, N, N], O),
        ([N, O, N, O], O),
        ([O, O, U, O], D),
        ([O, D, O, O], D),
        ([D, U, F, O], F),
        ([N, N, F, N], F),
    ];
    for (states, wanted) in table {
        let board = board();
        found(&board, states);
        assert_eq!(board.overall().state, wanted, "{states:?}");
        let count = |state| board.all().1.iter().filter(|k| k.finding.state == state).count();
        assert_eq!(count(F), states.iter().filter(|s| **s == F).count());
    }
    let board = board();
    let group = |g: Group| board.groups().into_iter().find(|(found, _)| *found == g).unwrap().1;
    board.found("test", &ALL[..1], vec![Finding::degraded("kubelet.c", "slow", "wait")]);
    assert_eq!((board.overall().state, group(Group::Kubelet), group(Group::Containerd)), (U, D, U), "not all have run");
    board.found("test", &ALL[1..2], vec![Finding::failed("containerd.b", "broken", "mend")]);
    assert_eq!((board.overall().state, group(Group::Containerd)), (F, F), "a failure is told at once");
    board.found("test", &ALL[1..3], vec![Finding::ok("containerd.b", "well"), Finding::not_applicable("containerd.a", "none")]);
    board.lost(&ALL[3..], "hangs");
    assert_eq!((board.overall().state, group(Group::Containerd), group(Group::Network)), (D, O, D));
    assert_eq!(group(Group::Agent), N, "it has no check here");
}

#[tokio::test(start_paused = true)]
async fn checks_are_told_by_group_and_id_and_of_two_with_one_id_the_first() {
    let twice = [ALL[0], Check { why: "another", ..ALL[0] }, ALL[1], ALL[2], ALL[3]];
    let metrics = Arc::new(Metrics::new());
    let board = Board::new(twice, PausedClock::new(), Arc::clone(&metrics));
    let known = board.all().1;
    assert_eq!(known.iter().map(|k| k.check.id).collect::<Vec<_>>(), ["containerd.a", "containerd.b", "kubelet.c", "net.d"]);
    assert_eq!(known[2].check.why, "it matters");
    found(&board, [State::Ok, State::Failed, State::NotApplicable, State::Degraded]);
    let text = counted(&metrics);
    for line in [
        "pvelet_agent_check_state{check=\"kubelet.c\",group=\"kubelet\"} 0",
        "pvelet_agent_check_state{check=\"containerd.b\",group=\"containerd\"} 2",
        "pvelet_agent_check_state{check=\"containerd.a\",group=\"containerd\"} -1",
        "pvelet_agent_check_state{check=\"net.d\",group=\"network\"} 1",
        "pvelet_agent_health_state 2",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_findings_of_one_check_the_worse_counts() {
    let board = board();
    for order in [[State::Failed, State::Ok], [State::Ok, State::Failed]] {
        board.found("test", &ALL[..1], order.map(|s| Finding::new("kubelet.c", s, "seen")).to_vec());
        assert_eq!(board.one("kubelet.c").unwrap().finding.state, State::Failed);
    }
}

#[tokio::test(start_paused = true)]
async fn texts_are_cut_and_stand_on_one_line() {
    let board = board();
    let mut finding = Finding::failed("kubelet.c", format!("a\u{1b}[31m\nb{}", "ä".repeat(2000)), "x\ty\n");
    finding.subjects = (0..100).map(|n| format!("eth{n}\n")).collect();
    board.found("test", &ALL[..1], vec![finding]);
    let found = board.one("kubelet.c").unwrap().finding;
    assert!(found.seen.starts_with("a [31m b") && found.seen.ends_with("ä…"), "{}", found.seen);
    assert_eq!((found.seen.chars().count(), found.remedy.as_str(), found.subjects.len()), (TEXT, "x y", SUBJECTS));
    assert_eq!(found.subjects[0], "eth0");
}

fn failed() -> Look {
    Look::Find(vec![Finding::failed("kubelet.c", "broken", "mend it")])
}

fn message(item: Option<Result<v1::WatchHealthResponse, Error>>) -> (bool, v1::CheckState, Vec<(String, v1::CheckState)>, bool, u64) {
    let message = item.unwrap().unwrap();
    let health = message.health.unwrap();
    let checks = health.checks.iter().map(|c| (c.id.clone(), c.state())).collect();
    (message.complete, health.state(), checks, health.repair.unwrap().latched, message.revision)
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_all_checks_and_then_those_that_change_and_what_repair_does() {
    let a = Arc::new(Told::new(&ALL[..1], 10, 5, Look::Find(vec![Finding::ok("kubelet.c", "well")])));
    let b = Arc::new(Told::new(&ALL[1..], 10, 5, Look::Find(ALL[1..].iter().map(|c| Finding::ok(c.id, "well")).collect())));
    let (health, _) = start([&a, &b]);
    sleep(Duration::from_secs(1)).await;
    let (repaired, repair_changed) = watch::channel(());
    let latched = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let status: crate::health::RepairStatus = {
        let latched = latched.clone();
        Arc::new(move || v1::RepairStatus { latched: latched.load(std::sync::atomic::Ordering::SeqCst), ..v1::RepairStatus::default() })
    };
    let mut stream = Box::pin(health.watch(status.clone(), repair_changed.clone()));
    let (complete, state, checks, _, first) = message(stream.next().await);
    assert_eq!((complete, state, checks.len()), (true, v1::CheckState::Ok, 4));
    a.tell(failed());
    let (complete, state, checks, _, second) = message(stream.next().await);
    assert_eq!((complete, state), (false, v1::CheckState::Failed));
    assert_eq!(checks, [("kubelet.c".to_owned(), v1::CheckState::Failed)]);
    assert!(second > first);
    latched.store(true, std::sync::atomic::Ordering::SeqCst);
    repaired.send_replace(());
    let (complete, state, checks, latched, _) = message(stream.next().await);
    assert_eq!((complete, state, checks.len(), latched), (false, v1::CheckState::Failed, 0, true));
    let mut other = Box::pin(health.watch(status, repair_changed));
    assert_eq!(message(other.next().await).2.len(), 4, "a later one begins with what is known then");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_lags_behind_is_ended_as_a_slow_consumer() {
    let a = Arc::new(Told::new(&ALL[..1], 1, 1, failed()));
    let (health, _) = start([&a]);
    let (_keep, changed) = watch::channel(());
    let mut stream = Box::pin(health.watch(Arc::new(v1::RepairStatus::default), changed));
    stream.next().await.unwrap().unwrap();
    for n in 0..=BACKLOG + 1 {
        a.tell(Look::Find(vec![Finding::failed("kubelet.c", format!("broken {n}"), "mend it")]));
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(stream.next().await.unwrap().unwrap_err(), Error::SlowConsumer);
    assert!(stream.next().await.is_none(), "and that is the end");
}

#[tokio::test(start_paused = true)]
async fn health_is_told_of_some_groups_or_all_and_a_wrong_group_is_refused() {
    let b = Arc::new(Told::new(&ALL, 10, 5, Look::Find(ALL.iter().map(|c| Finding::failed(c.id, "broken", "mend it")).collect())));
    let (health, _): (Health, _) = start([&b]);
    sleep(Duration::from_secs(1)).await;
    let get = |groups: &[&str]| {
        let request = v1::GetHealthRequest { groups: groups.iter().map(|g| (*g).to_owned()).collect() };
        health.get(&request, v1::RepairStatus::default()).map(|r| r.health.unwrap())
    };
    assert_eq!(get(&[]).unwrap().checks.len(), 4);
    let of_agent = get(&["agent"]).unwrap();
    assert_eq!((of_agent.checks.len(), of_agent.state()), (0, v1::CheckState::Failed), "the whole host's state");
    let two = get(&["network", "kubelet"]).unwrap();
    assert_eq!(two.checks.iter().map(|c| c.group.as_str()).collect::<Vec<_>>(), ["kubelet", "network"]);
    assert_eq!((two.checks[0].why.as_str(), two.checks[0].remedy.as_str(), two.checks[0].repair.as_str()), ("it matters", "mend it", ""));
    let wrong = get(&["kubelet", "pods"]).unwrap_err().to_string();
    assert_eq!(wrong, "groups[1]: 'pods' is no group of checks; those are containerd, kubelet, host, network, agent");
}

fn a_state() -> impl Strategy<Value = State> {
    prop::sample::select(vec![State::NotApplicable, State::Ok, State::Unknown, State::Degraded, State::Failed])
}

/// What a run of one check came to; `None`: it was lost.
fn a_run() -> impl Strategy<Value = (usize, Option<(State, u8)>)> {
    (0..ALL.len(), prop::option::weighted(0.9, (a_state(), 0u8..3)))
}

proptest! {
    #[test]
    fn who_follows_knows_what_the_board_knows(runs in prop::collection::vec(a_run(), 0..60), begin in 0usize..60) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let board = board();
            let mut follower = None;
            for (n, (check, run)) in runs.into_iter().enumerate() {
                if n == begin {
                    follower = Some(board.follow());
                }
                advance(Duration::from_secs(1)).await;
                let (checks, before) = (&ALL[check..=check], board.one(ALL[check].id).unwrap());
                match run {
                    Some((state, word)) => board.found("test", checks, vec![Finding::new(ALL[check].id, state, word.to_string())]),
                    None => board.lost(checks, "late"),
                }
                let after = board.one(ALL[check].id).unwrap();
                prop_assert_eq!(after.since == before.since, after.finding.state == before.finding.state);
                prop_assert!(after.since >= before.since && after.observed >= before.observed);
            }
            let Some((first, mut changes)) = follower else { return Ok(()) };
            let (mut known, mut overall, mut revision) = (first.checks, first.overall, first.revision);
            while let Ok(change) = changes.try_recv() {
                prop_assert_eq!(change.revision, revision + 1);
                (overall, revision) = (change.overall, change.revision);
                for new in &change.checks {
                    *known.iter_mut().find(|k| k.check.id == new.check.id).unwrap() = new.clone();
                }
            }
            let (told, now) = board.all();
            prop_assert_eq!(told, overall);
            prop_assert_eq!(revision, *board.revision().borrow());
            for (followed, now) in known.iter().zip(&now) {
                prop_assert_eq!((&followed.finding, followed.since), (&now.finding, now.since));
            }
            Ok(())
        })?;
    }
}
