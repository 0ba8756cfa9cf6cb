#![allow(clippy::unwrap_used)]

use std::time::Duration;

use prost::Message;
use prost_types::FileDescriptorSet;
use pvelet_proto::{identity::Role, reason, v1};
use tonic::{Code, Status};

use super::{
    fake::{FakeAgent, Relay, refusal, vm},
    *,
};
use crate::{
    pki::{Ca, Lifetime},
    tls::CredentialFiles,
};

fn ca() -> Ca {
    Ca::create("pvelet.example", Lifetime::days(10)).unwrap()
}

fn agents(ca: &Ca, limits: Limits) -> Agents {
    let own = ca.issue_role(Role::Operator, "ann", Lifetime::days(1)).unwrap();
    Agents::new(Credentials::from_pem(ca.cert_pem(), &own.cert_pem, &own.key_pem).unwrap(), limits)
}

fn target(name: &str, address: &str) -> Target {
    Target { name: name.to_owned(), address: address.parse().unwrap(), cluster: None, node: Some(name.to_owned()) }
}

/// An address where nobody listens.
async fn nobody() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_dead_and_a_hanging_host_cost_their_own_rows_only() {
    let ca = ca();
    let agents = agents(&ca, Limits::default());
    let (one, three, four) = (
        FakeAgent::start(&ca, "pve1", vec![]).await,
        FakeAgent::start(&ca, "pve3", vec![]).await,
        FakeAgent::start(&ca, "pve4", vec![]).await,
    );
    three.hang.send_replace(true);
    agents.set(target("pve1", &one.address.to_string()));
    agents.set(target("pve2", &nobody().await));
    agents.set(target("pve3", &three.address.to_string()));
    // A host that answers with another's certificate.
    agents.set(Target { node: Some("pve5".to_owned()), ..target("pve4", &four.address.to_string()) });

    let results = fan_out(&agents.all(), Duration::from_secs(5), |a| async move { a.get_host().await }).await;
    let hosts: Vec<&str> = results.iter().map(|r| r.host.as_str()).collect();
    assert_eq!(hosts, ["pve1", "pve2", "pve3", "pve4"]);
    assert_eq!(results[0].result.as_ref().unwrap().node, "pve1");
    let error = |i: usize| results[i].result.as_ref().unwrap_err();
    assert!(error(1).to_string().starts_with("pve2: cannot connect to 127.0.0.1:"), "{}", error(1));
    assert!(matches!(error(2).cause, Cause::Deadline), "{}", error(2));
    assert_eq!(error(2).to_string(), "pve3: no answer within 5 s");
    assert!(error(3).to_string().contains("the certificate is for host pve4, expected pve5"), "{}", error(3));
    assert!((1..=3).all(|i| error(i).unreachable()));
    assert!(error(1).retryable() && error(2).retryable() && !error(3).retryable());
}

#[tokio::test]
async fn dead_hosts_do_not_hold_the_places_of_the_living() {
    let ca = ca();
    // One place in all for connected agents, one for those that are not.
    let agents = agents(&ca, Limits { in_all: 1, per_agent: 1, deadline: LONG });
    let agent = FakeAgent::start(&ca, "pve1", vec![]).await;
    let alive = agents.set(target("pve1", &agent.address.to_string()));
    alive.get_host().await.unwrap();
    assert!(alive.is_connected());

    // It takes connections and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = agents.set(target("pve2", &silent.local_addr().unwrap().to_string()));
    let waiting = tokio::spawn(async move { dead.get_host().await });
    let _open = silent.accept().await.unwrap();
    alive.get_host().await.unwrap();
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test]
async fn a_host_that_stands_still_while_it_is_connected_does_not_hold_the_places_of_the_living() {
    let ca = ca();
    let agents = agents(&ca, Limits { in_all: 1, per_agent: 4, deadline: LONG });
    let (still, agent) = (FakeAgent::start(&ca, "pve1", vec![]).await, FakeAgent::start(&ca, "pve2", vec![]).await);
    let (dead, alive) = (agents.set(target("pve1", &still.address.to_string())), agents.set(target("pve2", &agent.address.to_string())));
    dead.get_host().await.unwrap();
    alive.get_host().await.unwrap();
    still.hang.send_replace(true);
    // More calls than there are places, which begin one after the other.
    let stuck: Vec<_> = (0..4)
        .map(|_| {
            let dead = dead.clone();
            tokio::spawn(async move { dead.get_host().await })
        })
        .collect();
    while still.hang.receiver_count() < 2 {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        alive.get_host().await.unwrap();
    }
    assert!(dead.is_connected() && stuck.iter().all(|call| !call.is_finished()));
    still.hang.send_replace(false);
    for call in stuck {
        call.await.unwrap().unwrap();
    }
    // It answers again, as any other.
    dead.get_host().await.unwrap();
}

#[tokio::test]
async fn calls_to_one_agent_are_bounded() {
    let ca = ca();
    let agents = agents(&ca, Limits { in_all: 8, per_agent: 2, deadline: LONG });
    let agent = FakeAgent::start(&ca, "pve1", vec![]).await;
    let client = agents.set(target("pve1", &agent.address.to_string()));
    client.get_host().await.unwrap();
    agent.hang.send_replace(true);
    let stuck: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get_host().await })
        })
        .collect();
    // Both places are taken as soon as both calls have begun; a third one waits in vain for its own deadline.
    while agent.hang.receiver_count() < 3 {
        tokio::task::yield_now().await;
    }
    let third = client.with_deadline(Duration::from_millis(100)).get_host().await.unwrap_err();
    assert!(matches!(third.cause, Cause::Deadline));
    agent.hang.send_replace(false);
    for call in stuck {
        call.await.unwrap().unwrap();
    }
    client.get_host().await.unwrap();
}

#[tokio::test]
async fn a_network_change_is_confirmed_over_a_fresh_connection_only() {
    let ca = ca();
    let agents = agents(&ca, Limits::default());
    let agent = FakeAgent::start(&ca, "pve1", vec![]).await;
    let client = agents.set(target("pve1", &agent.address.to_string()));
    let meta = Some(v1::RequestMeta { tenant: "default".into(), request_id: "r1".into(), ..v1::RequestMeta::default() });
    let interfaces = vec![v1::InterfaceSpec { name: "vmbr9".into(), ..v1::InterfaceSpec::default() }];
    let network = Some(v1::NetworkSpec { name: "n".into(), tenant: String::new(), interfaces });
    let request = v1::ApplyNetworkRequest { meta: meta.clone(), network, confirm_timeout: None };
    let operation = client.network().apply_network(request).await.unwrap().into_inner().operation.unwrap().name;
    let confirm = |client: AgentClient| {
        let request = v1::ConfirmNetworkRequest { meta: meta.clone(), operation: operation.clone() };
        async move { client.answer(client.network().confirm_network(request).await) }
    };
    assert!(confirm(client.clone()).await.is_err_and(|e| e.is(reason::STALE_CONNECTION)));
    assert!(confirm(client.with_deadline(LONG)).await.is_err_and(|e| e.is(reason::STALE_CONNECTION)));
    let fresh = client.fresh();
    assert!(!fresh.is_connected() && client.is_connected());
    confirm(fresh).await.unwrap();
}

#[tokio::test]
async fn a_broken_connection_is_made_again_by_the_next_call() {
    let ca = ca();
    let agents = agents(&ca, Limits::default());
    let agent = FakeAgent::start(&ca, "pve1", vec![]).await;
    let relay = Relay::start(agent.address).await;
    let client = agents.set(target("pve1", &relay.address));
    client.get_host().await.unwrap();
    agent.hang.send_replace(true);
    let under_way = tokio::spawn({
        let client = client.clone();
        async move { client.get_host().await }
    });
    while agent.hang.receiver_count() < 2 {
        tokio::task::yield_now().await;
    }
    relay.cut.notify_waiters();
    let error = under_way.await.unwrap().unwrap_err();
    assert!(matches!(error.cause, Cause::Lost) && error.retryable(), "{error:?}");
    agent.hang.send_replace(false);
    // The channel may learn of the loss only by the first call after it; the second has a connection.
    let mut answer = client.get_host().await;
    if answer.is_err() {
        answer = client.get_host().await;
    }
    assert_eq!(answer.unwrap().node, "pve1");
}

#[tokio::test]
async fn lists_are_read_to_the_last_page() {
    let ca = ca();
    let agents = agents(&ca, Limits::default());
    let agent = FakeAgent::start(&ca, "pve1", (100..105).map(|i| vm(i, "a", "pve1")).collect()).await;
    let client = agents.set(target("pve1", &agent.address.to_string()));
    let vmids: Vec<u32> = client.list_vms(false, "", &[]).await.unwrap().iter().map(|v| v.vmid).collect();
    assert_eq!(vmids, [100, 101, 102, 103, 104]);
}

#[tokio::test]
async fn an_agent_that_has_not_changed_keeps_its_channel() {
    let ca = ca();
    let agents = agents(&ca, Limits::default());
    let agent = FakeAgent::start(&ca, "pve1", vec![]).await;
    let first = agents.set(target("pve1", &agent.address.to_string()));
    first.get_host().await.unwrap();
    assert!(agents.set(target("pve1", &agent.address.to_string())).is_connected());
    assert!(!agents.set(target("pve1", "192.0.2.1:1")).is_connected());
    agents.remove("pve1");
    assert!(agents.get("pve1").is_none());
}

#[test]
fn an_error_keeps_everything_and_reads_in_one_line() {
    let field = ("config.name", "'a_b' is not a DNS name: use letters, digits and '-'");
    let status = refusal(Code::InvalidArgument, "the request is malformed", reason::INVALID_NAME, Some(field));
    let error = AgentError::from_status("pve1", &status);
    assert_eq!(
        error.to_string(),
        "pve1: config.name: the request is malformed: 'a_b' is not a DNS name: use letters, digits and '-' [INVALID_ARGUMENT INVALID_NAME]"
    );
    assert!(error.is(reason::INVALID_NAME) && !error.retryable() && !error.unreachable());
    assert_eq!(error.metadata["node"], "pve9");
    assert_eq!(error.fields[0].field, "config.name");

    let multi = AgentError::from_status("pve1", &Status::internal("first\n second\u{1b}[31m\r\n"));
    assert_eq!(multi.to_string(), "pve1: first; second[31m [INTERNAL]");
}

#[test]
fn what_may_succeed_later_is_retryable() {
    for (code, why, retryable) in [
        (Code::Aborted, reason::VM_LOCKED, true),
        (Code::Unavailable, reason::NO_QUORUM, true),
        (Code::ResourceExhausted, reason::OVERLOADED, true),
        (Code::ResourceExhausted, reason::STORAGE_FULL, false),
        (Code::FailedPrecondition, reason::VM_PROTECTED, false),
        (Code::AlreadyExists, reason::VMID_IN_USE, false),
        (Code::PermissionDenied, reason::ROLE, false),
    ] {
        assert_eq!(AgentError::from_status("pve1", &refusal(code, "x", why, None)).retryable(), retryable, "{why}");
    }
}

#[test]
fn the_end_of_an_operation_reads_like_a_call() {
    let status = refusal(Code::Aborted, "VM 100 is locked (backup); try again when the backup has ended", reason::VM_LOCKED, None);
    let wire = tonic_types::pb::Status::decode(status.details()).unwrap();
    let error = AgentError::from_operation("pve1", &wire);
    assert_eq!(error.to_string(), "pve1: VM 100 is locked (backup); try again when the backup has ended [ABORTED VM_LOCKED]");
    assert!(error.retryable());
}

#[test]
fn every_streaming_method_is_known() {
    let set = FileDescriptorSet::decode(pvelet_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut streaming: Vec<String> = set
        .file
        .iter()
        .filter(|f| f.package() == "pvelet.v1")
        .flat_map(|f| f.service.iter())
        .flat_map(|s| s.method.iter().filter(|m| m.server_streaming()).map(|m| format!("/pvelet.v1.{}/{}", s.name(), m.name())))
        .collect();
    streaming.sort();
    let mut known = guard::STREAMING.map(str::to_owned).to_vec();
    known.sort();
    assert_eq!(streaming, known);
    let _ = v1::Host::default();
}

#[tokio::test]
async fn rotated_credentials_drop_no_call() {
    let (old, new) = (ca(), ca());
    let dir = tempfile::tempdir().unwrap();
    let files = CredentialFiles { ca: dir.path().join("ca.crt"), cert: dir.path().join("me.crt"), key: dir.path().join("me.key") };
    let put = |trusted: &str, issuer: &Ca| {
        let own = issuer.issue_role(Role::Operator, "ann", Lifetime::days(1)).unwrap();
        for (path, text) in [(&files.ca, trusted), (&files.cert, own.cert_pem.as_str()), (&files.key, own.key_pem.as_str())] {
            crate::pki::write_private(path, text.as_bytes(), true).unwrap();
        }
    };
    put(old.cert_pem(), &old);
    let agents = Agents::new(Credentials::load(files.clone()).unwrap(), Limits::default());
    let (before, after) = (FakeAgent::start(&old, "pve1", vec![]).await, FakeAgent::start(&new, "pve2", vec![]).await);
    let first = agents.set(target("pve1", &before.address.to_string()));
    first.get_host().await.unwrap();
    let calls = tokio::spawn({
        let first = first.clone();
        async move {
            let mut answered = 0;
            while answered < 200 {
                first.get_host().await.unwrap();
                answered += 1;
            }
        }
    });
    // Both CAs first, then the new one alone, as a rotation goes; the files are never all of one kind at once.
    put(&format!("{}{}", old.cert_pem(), new.cert_pem()), &old);
    put(new.cert_pem(), &new);
    agents.set(target("pve2", &after.address.to_string())).get_host().await.unwrap();
    calls.await.unwrap();
    first.get_host().await.unwrap();
}
