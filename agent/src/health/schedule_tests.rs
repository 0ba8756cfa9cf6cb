#![allow(clippy::unwrap_used)]

use std::sync::mpsc as threads;

use tokio::time::sleep;

use super::*;
use crate::health::{
    Finding, Group, Health, State,
    testing::{Look, PausedClock, Told, check, counted, start},
};

static A: [Check; 2] = [check("containerd.a", Group::Containerd), check("containerd.b", Group::Containerd)];
static B: [Check; 1] = [check("kubelet.c", Group::Kubelet)];

fn well(checks: &[Check]) -> Look {
    Look::Find(checks.iter().map(|c| Finding::ok(c.id, "well")).collect())
}

fn state(health: &Health, id: &str) -> (State, String) {
    let known = health.one(id).unwrap();
    (known.finding.state, known.finding.seen)
}

#[tokio::test(start_paused = true)]
async fn every_source_has_looked_within_a_second_and_goes_on_at_its_own_period() {
    let (a, b) = (Arc::new(Told::new(&A, 10, 5, well(&A))), Arc::new(Told::new(&B, 3, 1, well(&B))));
    let (health, metrics) = start([&a, &b]);
    assert_eq!(health.overall().state, State::Unknown, "nothing has run yet");
    assert_eq!(state(&health, "kubelet.c"), (State::Unknown, "it has not run yet".into()));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(health.overall().state, State::Ok);
    sleep(Duration::from_secs(20)).await;
    assert_eq!((a.seconds(), b.seconds()), (vec![0, 10, 20], vec![0, 3, 6, 9, 12, 15, 18]));
    let text = counted(&metrics);
    assert!(text.contains("pvelet_agent_check_runs_total{source=\"kubelet.c\",result=\"ended\"} 7"), "{text}");
    drop(health);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(a.seconds().len(), 3, "nobody wants to know any more");
}

#[tokio::test(start_paused = true)]
async fn a_look_that_hangs_is_unknown_after_its_deadline_and_keeps_no_other_waiting() {
    let (a, b) = (Arc::new(Told::new(&A, 10, 5, Look::Hang)), Arc::new(Told::new(&B, 3, 1, well(&B))));
    let (health, metrics) = start([&a, &b]);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(health.overall().state, State::Unknown, "the one has not come to an end");
    assert_eq!(b.seconds(), [0, 3]);
    sleep(Duration::from_secs(2)).await;
    for id in ["containerd.a", "containerd.b"] {
        assert_eq!(state(&health, id), (State::Unknown, "it did not answer within 5 s".into()));
        assert_eq!(health.one(id).unwrap().observed, None);
    }
    assert_eq!(health.overall().state, State::Degraded, "what cannot be found out is never taken for well");
    a.tell(well(&A));
    sleep(Duration::from_secs(10)).await;
    // What is unknown is asked for again soon, and then ever more rarely.
    assert_eq!((a.seconds(), health.overall().state), (vec![0, 5, 15], State::Ok));
    assert!(counted(&metrics).contains("pvelet_agent_check_runs_total{source=\"containerd.a\",result=\"late\"} 2"));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_named_and_counted_and_the_source_goes_on_ever_more_rarely() {
    let (a, b) = (Arc::new(Told::new(&A, 10, 5, Look::Panic("index 7 out of bounds"))), Arc::new(Told::new(&B, 10, 1, well(&B))));
    let (health, metrics) = start([&a, &b]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(state(&health, "containerd.b"), (State::Unknown, "the check panicked: index 7 out of bounds".into()));
    assert_eq!(state(&health, "kubelet.c").0, State::Ok);
    sleep(Duration::from_secs(1500)).await;
    // Twice the period, four times, ... but no more than five minutes.
    assert_eq!(a.seconds(), [0, 20, 60, 140, 300, 600, 900, 1200, 1500]);
    assert_eq!(b.seconds().len(), 151);
    assert!(counted(&metrics).contains("pvelet_agent_check_panics_total{source=\"containerd.a\"} 9"));
    a.tell(well(&A));
    sleep(Duration::from_secs(320)).await;
    assert_eq!(state(&health, "containerd.b").0, State::Ok);
    assert_eq!(a.seconds()[9..], [1800, 1810, 1820], "at its own period again");
}

#[tokio::test(start_paused = true)]
async fn what_a_look_leaves_out_is_unknown_and_what_is_not_its_own_is_not_heard() {
    let found = vec![Finding::ok("containerd.a", "well"), Finding::failed("kubelet.c", "a lie", "none")];
    let (a, b) = (Arc::new(Told::new(&A, 10, 5, Look::Find(found))), Arc::new(Told::new(&B, 10, 1, well(&B))));
    let (health, _) = start([&a, &b]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(state(&health, "containerd.a").0, State::Ok);
    assert_eq!(state(&health, "containerd.b"), (State::Unknown, "its last run told nothing about it".into()));
    sleep(Duration::from_secs(30)).await;
    assert_eq!(state(&health, "kubelet.c").0, State::Ok);
}

#[tokio::test(start_paused = true)]
async fn what_is_unknown_is_looked_at_again_sooner_and_then_less_and_less_so() {
    let unknown = Look::Find(vec![Finding::ok("containerd.a", "well"), Finding::unknown("containerd.b", "PVE has not told yet")]);
    let a = Arc::new(Told::new(&A, 60, 5, unknown));
    let (health, _) = start([&a]);
    sleep(Duration::from_secs(200)).await;
    assert_eq!(a.seconds(), [0, 5, 15, 35, 75, 135, 195]);
    a.tell(well(&A));
    sleep(Duration::from_secs(120)).await;
    assert_eq!((a.seconds()[7..].to_vec(), health.overall().state), (vec![255, 315], State::Ok));
}

#[tokio::test(start_paused = true)]
async fn what_is_stirred_looks_at_once_but_no_more_than_once_a_second() {
    let a = Arc::new(Told::new(&A, 100, 5, well(&A)));
    let (_health, _) = start([&a]);
    sleep(Duration::from_millis(5500)).await;
    a.stir.notify_one();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(a.seconds(), [0, 5]);
    for _ in 0..10 {
        a.stir.notify_one();
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(a.seconds(), [0, 5, 6], "ten stirs in a second are one look");
    let storm = Arc::new(Told::new(&B, 100, 5, well(&B)).stormy());
    let (_health, _) = start([&storm]);
    sleep(Duration::from_millis(9500)).await;
    assert_eq!(storm.seconds(), (0..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_is_stirred_while_it_looks_looks_again() {
    let a = Arc::new(Told::new(&A, 100, 50, well(&A)).holding());
    let (_health, _) = start([&a]);
    sleep(Duration::from_secs(3)).await;
    a.stir.notify_one();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(a.seconds(), [0], "it still looks");
    a.held.as_ref().unwrap().notify_one();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(a.seconds(), [0, 6]);
}

/// Panics while it waits to be stirred.
struct Jumpy(Told);

#[tonic::async_trait]
impl Source for Jumpy {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn checks(&self) -> &'static [Check] {
        self.0.checks()
    }
    fn pace(&self) -> Pace {
        self.0.pace()
    }
    async fn look(&self) -> Vec<Finding> {
        self.0.look().await
    }
    async fn stirred(&self) {
        sleep(Duration::from_secs(1)).await;
        panic!("no bus");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_it_waits_to_be_stirred_keeps_no_source_from_its_period() {
    let (source, metrics) = (Arc::new(Jumpy(Told::new(&A, 10, 5, well(&A)))), Arc::new(Metrics::new()));
    let health = Health::start(vec![source.clone()], PausedClock::new(), &metrics);
    sleep(Duration::from_secs(25)).await;
    assert_eq!((source.0.seconds(), health.overall().state), (vec![0, 10, 20], State::Ok));
    assert!(counted(&metrics).contains("pvelet_agent_check_panics_total{source=\"containerd.a\"} 3"));
}

#[tokio::test(start_paused = true)]
async fn who_asks_while_a_look_is_under_way_gets_one_that_began_after_it() {
    let a = Arc::new(Told::new(&A, 100, 50, well(&A)).holding());
    let (health, _) = start([&a]);
    sleep(Duration::from_secs(3)).await;
    let ask = || {
        let health = health.clone();
        tokio::spawn(async move { health.run(&["containerd.a".into()]).await })
    };
    let (first, second) = (ask(), ask());
    sleep(Duration::from_secs(1)).await;
    a.tell(Look::Find(A.iter().map(|c| Finding::failed(c.id, "broken", "mend it")).collect()));
    a.held.as_ref().unwrap().notify_one();
    sleep(Duration::from_secs(1)).await;
    assert!(!first.is_finished() && !second.is_finished(), "that look began before they asked");
    a.held.as_ref().unwrap().notify_one();
    for asked in [first, second] {
        let known = asked.await.unwrap().unwrap();
        assert_eq!(known.iter().map(|k| (k.check.id, k.finding.state)).collect::<Vec<_>>(), A.map(|c| (c.id, State::Failed)));
    }
    assert_eq!(a.seconds(), [0, 4], "both got the same one");
}

#[tokio::test(start_paused = true)]
async fn checks_are_run_by_id_or_group_and_one_that_does_not_exist_is_refused() {
    let (a, b) = (Arc::new(Told::new(&A, 100, 5, well(&A))), Arc::new(Told::new(&B, 100, 1, well(&B))));
    let (health, _) = start([&a, &b]);
    sleep(Duration::from_secs(2)).await;
    let run = async |names: &[&str]| health.run(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).await;
    let ids = |known: Vec<crate::health::Known>| known.iter().map(|k| k.check.id).collect::<Vec<_>>();
    assert_eq!(ids(run(&["containerd.b"]).await.unwrap()), ["containerd.a", "containerd.b"]);
    assert_eq!(ids(run(&["kubelet"]).await.unwrap()), ["kubelet.c"]);
    assert_eq!(ids(run(&["kubelet.c", "containerd", "containerd.a"]).await.unwrap()).len(), 3);
    assert_eq!((a.seconds(), b.seconds()), (vec![0, 2, 2], vec![0, 2, 2]));
    let missing = run(&["kubelet.c", "kubelet.d"]).await.unwrap_err();
    assert_eq!(missing.to_string(), "no check 'kubelet.d'; `pveletctl health` lists those that exist");
    assert_eq!(b.seconds().len(), 3, "of a bad request nothing is run");
    assert!(run(&[]).await.unwrap_err().to_string().starts_with("checks: 0 names"));
    assert!(run(&["kubelet"; 201]).await.unwrap_err().to_string().starts_with("checks: 201 names"));
    health.stop();
    assert_eq!(run(&["kubelet"]).await.unwrap_err(), crate::error::Error::AgentDraining);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_takes_longer_than_its_period_is_followed_by_the_next_at_once_and_by_no_two() {
    let a = Arc::new(Told::new(&A, 2, 5, Look::Hang));
    let (_health, _) = start([&a]);
    sleep(Duration::from_secs(16)).await;
    assert_eq!(a.seconds(), [0, 5, 10, 15]);
}

/// Waits where nobody can end it.
struct Blocks {
    freed: std::sync::Mutex<threads::Receiver<()>>,
}

#[tonic::async_trait]
impl Source for Blocks {
    fn name(&self) -> &'static str {
        "blocks"
    }
    fn checks(&self) -> &'static [Check] {
        &B
    }
    fn pace(&self) -> Pace {
        Pace { period: Duration::from_secs(3600), deadline: Duration::from_millis(10) }
    }
    async fn look(&self) -> Vec<Finding> {
        let _ = tokio::task::block_in_place(|| self.freed.lock().unwrap().recv());
        vec![Finding::ok("kubelet.c", "well")]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_look_that_cannot_be_ended_is_told_and_no_second_one_is_started_beside_it() {
    let (free, freed) = threads::channel();
    let source = Arc::new(Blocks { freed: std::sync::Mutex::new(freed) });
    let health = Health::start(vec![source], PausedClock::new(), &Arc::new(Metrics::new()));
    let names = ["kubelet".to_owned()];
    health.changes().wait_for(|r| *r > 0).await.unwrap();
    assert_eq!(state(&health, "kubelet.c").1, "it did not answer within 0.01 s");
    let known = health.run(&names).await.unwrap();
    assert_eq!((known[0].finding.state, known[0].finding.seen.as_str()), (State::Unknown, "its last run hangs and cannot be ended"));
    free.send(()).unwrap();
    free.send(()).unwrap();
    // The thread that was freed has to get round to its end.
    let known = loop {
        let known = health.run(&names).await.unwrap();
        if known[0].finding.state == State::Ok {
            break known;
        }
        free.send(()).unwrap();
    };
    assert_eq!(known[0].finding.seen, "well");
}
