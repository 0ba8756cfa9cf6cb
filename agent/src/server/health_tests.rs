//! Health through a whole agent.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use pvelet_proto::{
    reason,
    v1::{self, CheckState as S, health_service_client::HealthServiceClient as Client},
};
use tokio::time::timeout;
use tonic::{Status, Streaming};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt;

use super::testing::*;
use crate::{
    config::Config,
    health::{
        Check, Finding, Group,
        testing::{Look, Told, check},
    },
    network::preflight,
};

static CHECKS: [Check; 2] = [check("containerd.unit", Group::Containerd), check("containerd.version", Group::Containerd)];

fn well() -> Look {
    Look::Find(CHECKS.iter().map(|c| Finding::ok(c.id, "well")).collect())
}

fn broken() -> Look {
    let failed = Finding::failed("containerd.unit", "containerd.service is dead", "systemctl start containerd").about("containerd.service");
    Look::Find(vec![failed, Finding::ok("containerd.version", "well")])
}

/// An agent that looks at a container runtime only when it is asked to, after its first look.
async fn seeing(look: Look, change: impl FnOnce(&mut Config)) -> (Stand, Arc<Told>) {
    let told = Arc::new(Told::new(&CHECKS, 3600, 3600, look));
    let stand = stand_seeing(StillPve::new(&[]), vec![told.clone()], change).await;
    (stand, told)
}

fn why(status: &Status) -> String {
    status.get_details_error_info().map(|i| i.reason).unwrap_or_default()
}

async fn message<T>(stream: &mut Streaming<T>) -> T {
    timeout(DEADLINE, stream.message()).await.expect("a message in time").unwrap().unwrap()
}

/// The health once `done` holds.
async fn until(client: &mut Client<tonic::transport::Channel>, done: impl Fn(&v1::Health) -> bool) -> v1::Health {
    let mut stream = client.watch_health(v1::WatchHealthRequest {}).await.unwrap().into_inner();
    loop {
        let health = client.get_health(v1::GetHealthRequest::default()).await.unwrap().into_inner().health.unwrap();
        if done(&health) {
            return health;
        }
        message(&mut stream).await;
    }
}

fn one<'h>(health: &'h v1::Health, id: &str) -> &'h v1::HealthCheck {
    health.checks.iter().find(|c| c.id == id).unwrap()
}

#[tokio::test]
async fn all_checks_are_told_in_observe_mode_with_the_network_and_the_agent_among_them() {
    // The certificates of tests end within the hour.
    let (stand, _) = seeing(broken(), |c| c.health.certificate_warning = Duration::from_secs(60)).await;
    let mut client = Client::new(stand.connect("role/reader/r").await);
    let health = until(&mut client, |h| h.checks.iter().all(|c| c.observe_time.is_some())).await;
    assert_eq!(health.checks.len(), CHECKS.len() + preflight::RULES.len() + 2);
    assert_eq!(health.state(), S::Failed);
    let unit = one(&health, "containerd.unit");
    assert_eq!((unit.state(), unit.group.as_str(), unit.seen.as_str()), (S::Failed, "containerd", "containerd.service is dead"));
    assert_eq!((unit.why.as_str(), unit.remedy.as_str()), ("it matters", "systemctl start containerd"));
    assert_eq!((unit.subjects.as_slice(), unit.repair.as_str()), (["containerd.service".to_owned()].as_slice(), ""));
    for id in ["agent.certificate", "agent.journal", "net.ifupdown2"] {
        assert_eq!(one(&health, id).state(), S::Ok, "{:?}", one(&health, id));
    }
    let request = v1::GetHealthRequest { groups: vec!["agent".into()] };
    let of_agent = client.get_health(request).await.unwrap().into_inner().health.unwrap();
    assert_eq!(of_agent.checks.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["agent.certificate", "agent.journal"]);
    let wrong = client.get_health(v1::GetHealthRequest { groups: vec!["pods".into()] }).await.unwrap_err();
    assert_eq!(why(&wrong), reason::INVALID_FIELD);
}

#[tokio::test]
async fn a_check_is_run_for_operators_and_what_changed_is_told_to_who_watches() {
    let (stand, told) = seeing(well(), |_| {}).await;
    let mut reader = Client::new(stand.connect("role/reader/r").await);
    until(&mut reader, |h| h.checks.iter().all(|c| c.observe_time.is_some())).await;
    let mut stream = reader.watch_health(v1::WatchHealthRequest {}).await.unwrap().into_inner();
    let first = message(&mut stream).await;
    assert!(first.complete);
    told.tell(broken());
    let run = |names: &[&str]| v1::RunCheckRequest { checks: names.iter().map(|n| (*n).to_owned()).collect() };
    assert_eq!(why(&reader.run_check(run(&["containerd.unit"])).await.unwrap_err()), reason::ROLE);
    let mut operator = Client::new(stand.connect("role/operator/o").await);
    assert_eq!(why(&operator.run_check(run(&["containerd.pods"])).await.unwrap_err()), reason::CHECK_NOT_FOUND);
    assert_eq!(why(&operator.run_check(run(&[])).await.unwrap_err()), reason::INVALID_FIELD);
    let checks = operator.run_check(run(&["containerd.unit"])).await.unwrap().into_inner().checks;
    assert_eq!(
        checks.iter().map(|c| (c.id.as_str(), c.state())).collect::<Vec<_>>(),
        [("containerd.unit", S::Failed), ("containerd.version", S::Ok)]
    );
    let change = message(&mut stream).await;
    assert!(!change.complete && change.revision > first.revision);
    let health = change.health.unwrap();
    assert_eq!(health.state(), S::Failed);
    assert_eq!(health.checks.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["containerd.unit"]);
    let mut tenant = Client::new(stand.connect("tenant/t/c").await);
    assert_eq!(why(&tenant.get_health(v1::GetHealthRequest::default()).await.unwrap_err()), reason::ROLE);
}

#[tokio::test]
async fn grpc_health_follows_the_checks_and_the_agents_own_serving_does_not() {
    let (stand, told) = seeing(well(), |_| {}).await;
    let channel = stand.connect("role/operator/o").await;
    let (mut health, mut client) = (HealthClient::new(channel.clone()), Client::new(channel));
    let mut watches = Vec::new();
    for service in ["pvelet.host", "pvelet.containerd"] {
        watches.push(health.watch(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner());
    }
    let mut until_status = async |wanted: ServingStatus| {
        for watch in &mut watches {
            while message(watch).await.status() != wanted {}
        }
    };
    until_status(ServingStatus::Serving).await;
    told.tell(broken());
    client.run_check(v1::RunCheckRequest { checks: vec!["containerd".into()] }).await.unwrap();
    until_status(ServingStatus::NotServing).await;
    for service in ["", "pvelet.v1.HealthService", "pvelet.network", "pvelet.agent", "pvelet.kubelet"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    told.tell(well());
    client.run_check(v1::RunCheckRequest { checks: vec!["containerd".into()] }).await.unwrap();
    until_status(ServingStatus::Serving).await;
}

#[tokio::test]
async fn a_source_that_hangs_or_panics_keeps_no_answer_waiting() {
    for look in [Look::Hang, Look::Panic("out of bounds")] {
        let (stand, _) = seeing(look, |_| {}).await;
        let mut client = Client::new(stand.connect("role/reader/r").await);
        let others = |h: &v1::Health| h.checks.iter().filter(|c| c.group != "containerd").all(|c| c.observe_time.is_some());
        let health = timeout(DEADLINE, until(&mut client, others)).await.expect("the others run");
        assert_eq!(one(&health, "containerd.unit").state(), S::Unknown);
        assert_ne!(health.state(), S::Ok, "what cannot be found out is never taken for well");
    }
}

#[tokio::test]
async fn draining_ends_the_stream_with_its_reason() {
    let (stand, _) = seeing(well(), |_| {}).await;
    let mut client = Client::new(stand.connect("role/reader/r").await);
    let mut stream = client.watch_health(v1::WatchHealthRequest {}).await.unwrap().into_inner();
    message(&mut stream).await;
    let drained = tokio::spawn(stand.agent.drain(Duration::from_secs(1)));
    let last = loop {
        match timeout(DEADLINE, stream.message()).await.expect("the end in time") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stream ends with a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(why(&last), reason::AGENT_DRAINING);
    timeout(DEADLINE, drained).await.unwrap().unwrap();
}
