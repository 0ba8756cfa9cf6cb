#![allow(clippy::unwrap_used)]
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::uri::PathAndQuery;
use pvelet_proto::{
    identity::Role,
    reason,
    v1::{
        self, VmEventType as Kind, host_service_client::HostServiceClient, operation_service_client::OperationServiceClient,
        vm_service_client::VmServiceClient, watch_host_response::Event,
    },
};
use rustls::version::TLS13;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use super::testing::{BACKLOG, DEADLINE, Stand, channel, stand, vm};
use crate::{
    auth::roles,
    host::pve::Change,
    tls::testing::{Ca, client, client_config},
};

fn why(status: &Status) -> String {
    status.get_details_error_info().map(|i| i.reason).unwrap_or_default()
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    timeout(DEADLINE, stream.message()).await.expect("a message or the end in time")
}

/// Calls any method with an empty request, and returns how the call began.
/// The audit lines up to one that contains `word`.
async fn audited<P>(stand: &Stand<P>, word: &str) -> Vec<String> {
    let lines = timeout(DEADLINE, async {
        loop {
            let operations = stand.agent.shared.operations.clone();
            let tail = tokio::task::spawn_blocking(move || operations.audit_tail(10)).await.unwrap().unwrap();
            if let Some(last) = tail.iter().position(|l| l.contains(word)) {
                return tail[..=last].to_vec();
            }
        }
    });
    lines.await.expect("an audit line")
}

async fn call(channel: &Channel, path: &'static str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let answered = grpc.server_streaming(Request::new(()), PathAndQuery::from_static(path), ProstCodec::<(), ()>::default());
    timeout(DEADLINE, answered).await.expect("an answer in time").map(drop)
}

#[tokio::test]
async fn every_method_is_refused_to_each_role_below_its_own() {
    let stand = stand(&[], |_| {}).await;
    let clients = [
        (Some(Role::Reader), stand.connect("role/reader/r").await),
        (Some(Role::Operator), stand.connect("role/operator/o").await),
        (Some(Role::Admin), stand.connect("role/admin/a").await),
        (None, stand.connect("tenant/t/x").await),
    ];
    for rule in roles::TABLE {
        for (role, channel) in &clients {
            let result = call(channel, rule.path).await;
            let refused = result.as_ref().err().is_some_and(|s| s.code() == Code::PermissionDenied && why(s) == reason::ROLE);
            let allowed = role.map_or(rule.tenants, |r| r >= rule.role);
            assert_eq!(refused, !allowed, "{role:?} {}: {result:?}", rule.path);
        }
    }
    let (_, admin) = &clients[2];
    assert_eq!(call(admin, "/pvelet.v1.VmService/Format").await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_host_is_told_with_everything_that_is_known() {
    let stand = stand(&[vm(100, None)], |_| {}).await;
    let mut client = HostServiceClient::new(stand.connect("role/reader/r").await);
    let host = client.get_host(v1::GetHostRequest {}).await.unwrap().into_inner().host.unwrap();
    assert_eq!((host.node.as_str(), host.cluster.as_str(), host.api_version.as_str()), ("pve1", "lab", "pvelet.v1"));
    assert_eq!((host.storages[0].id.as_str(), host.bridges[0].name.as_str(), host.cpu.unwrap().threads), ("local", "vmbr0", 8));
    assert!(host.quorate && host.features.contains(&"vm.clone".to_owned()));
    assert_eq!((host.mode, host.state), (v1::Mode::Observe.into(), v1::HostState::Active.into()));
}

#[tokio::test]
async fn an_untested_pve_version_is_only_observed_until_allowed() {
    for (version, allow, mode) in [
        ("9.1.2", false, v1::Mode::Manage),
        ("10.0.1", false, v1::Mode::Observe),
        ("", false, v1::Mode::Observe),
        ("10.0.1", true, v1::Mode::Manage),
    ] {
        let stand = stand(&[], |c| {
            c.mode = crate::config::Mode::Manage;
            c.vm.vmid_range = Some(100_000..=100_999);
            c.pve.allow_untested_version = allow;
        })
        .await;
        stand.pve.change(Change::Cluster, |i| i.pve_version = version.into());
        let mut client = HostServiceClient::new(stand.connect("role/reader/r").await);
        let host = client.get_host(v1::GetHostRequest {}).await.unwrap().into_inner().host.unwrap();
        assert_eq!(host.mode, i32::from(mode), "{version} {allow}");
        // What is to be repaired may be what keeps PVE from telling its version.
        let refused = if version.is_empty() || mode == v1::Mode::Manage { reason::REPAIR_OFF } else { reason::OBSERVE_ONLY };
        let mut health = v1::health_service_client::HealthServiceClient::new(stand.connect("role/operator/o").await);
        let meta = |n: u32| v1::RequestMeta { tenant: "t".into(), request_id: format!("r{n}"), ..v1::RequestMeta::default() };
        let told = async {
            for n in 0.. {
                let request = v1::RepairRequest { meta: Some(meta(n)), check: "containerd.unit".into(), dry_run: false };
                if why(&health.repair(request).await.unwrap_err()) == refused {
                    return;
                }
            }
        };
        timeout(DEADLINE, told).await.unwrap_or_else(|_| panic!("{version} {allow}: not refused with {refused}"));
    }
}

#[tokio::test]
async fn until_pves_version_is_known_changes_are_put_off_not_refused_for_good() {
    let stand = stand(&[vm(100, None)], |c| {
        c.mode = crate::config::Mode::Manage;
        c.vm.vmid_range = Some(100_000..=100_999);
    })
    .await;
    stand.pve.change(Change::Cluster, |i| i.pve_version.clear());
    let mut client = VmServiceClient::new(stand.connect("role/operator/o").await);
    let request = v1::StopVmRequest {
        meta: Some(v1::RequestMeta { tenant: "t".into(), request_id: "r".into(), ..v1::RequestMeta::default() }),
        vm: Some(v1::VmRef { vmid: 100, uuid: "00000000-0000-4000-8000-000000000100".into() }),
    };
    let status = client.stop_vm(request).await.unwrap_err();
    assert_eq!((status.code(), why(&status).as_str()), (Code::Unavailable, reason::PVE_DOWN));
    assert!(!stand.agent.shared.host.known(Duration::ZERO).await);
    let view = stand.agent.shared.host.clone();
    let known = tokio::spawn(async move { view.known(DEADLINE).await });
    stand.pve.change(Change::Cluster, |i| i.pve_version = "9.0.10".into());
    assert!(known.await.unwrap());
}

#[tokio::test]
async fn a_watch_tells_what_exists_and_then_what_happens() {
    let stand = stand(&[vm(100, None), vm(101, Some("t"))], |_| {}).await;
    let mut client = HostServiceClient::new(stand.connect("role/reader/r").await);
    let mut stream = client.watch_host(v1::WatchHostRequest {}).await.unwrap().into_inner();
    let mut revision = 0;
    let mut take = async |what: &str| {
        let message = next(&mut stream).await.unwrap().unwrap();
        assert!(message.revision > revision, "{what}");
        revision = message.revision;
        message.event.unwrap()
    };
    let vm_event = |event: Event| match event {
        Event::Vm(e) => (e.r#type(), e.vm.unwrap().vmid, e.from_node),
        other => panic!("{other:?} is no VM event"),
    };
    assert_eq!(vm_event(take("first").await), (Kind::Existing, 100, String::new()));
    assert_eq!(vm_event(take("second").await), (Kind::Existing, 101, String::new()));
    assert!(matches!(take("synced").await, Event::Synced(_)));
    assert!(matches!(take("host").await, Event::Host(h) if h.quorate));

    let new = vm(102, None);
    stand.pve.change(Change::VmCreated(new.clone()), |i| drop(i.vms.insert(102, new.clone())));
    // Its storages may have become known meanwhile.
    let event = match take("created").await {
        Event::Host(_) => take("created").await,
        event => event,
    };
    assert_eq!(vm_event(event), (Kind::Created, 102, String::new()));
    stand.pve.change(Change::VmMoved { vm: new.clone(), from: "pve2".into() }, |_| {});
    let event = match take("moved").await {
        Event::Host(_) => take("moved").await,
        event => event,
    };
    assert_eq!(vm_event(event), (Kind::Moved, 102, "pve2".into()));
    stand.pve.change(Change::Cluster, |i| i.quorate = false);
    loop {
        if let Event::Host(host) = take("quorum").await
            && !host.quorate
        {
            break;
        }
    }
}

#[tokio::test]
async fn a_tenants_client_sees_its_own_vms_only() {
    let stand = stand(&[vm(100, None), vm(101, Some("t")), vm(102, Some("u"))], |_| {}).await;
    let channel = stand.connect("tenant/t/x").await;
    let mut stream = HostServiceClient::new(channel.clone()).watch_host(v1::WatchHostRequest {}).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(message) = next(&mut stream).await.unwrap() {
        match message.event.unwrap() {
            Event::Vm(e) => seen.push(e.vm.unwrap().vmid),
            Event::Synced(_) => break,
            Event::Host(_) => {}
        }
    }
    assert_eq!(seen, [101]);
    let mut vms = VmServiceClient::new(channel);
    let list = vms.list_vms(v1::ListVmsRequest::default()).await.unwrap().into_inner().vms;
    assert_eq!(list.iter().map(|v| v.vmid).collect::<Vec<_>>(), [101]);
    let request = v1::ListVmsRequest { tenant: "u".into(), ..v1::ListVmsRequest::default() };
    assert_eq!(why(&vms.list_vms(request).await.unwrap_err()), reason::SCOPE_TENANT);
    let of_u = v1::GetVmRequest { vm: Some(v1::VmRef { vmid: 102, uuid: String::new() }) };
    assert_eq!(why(&vms.get_vm(of_u).await.unwrap_err()), reason::VM_NOT_FOUND);
}

#[tokio::test]
async fn who_lags_behind_is_ended_as_a_slow_consumer() {
    let stand = stand(&[], |_| {}).await;
    let view = stand.agent.shared.host.clone();
    let mut stream = Box::pin(view.watch(None).unwrap());
    use futures_util::StreamExt;
    stream.next().await.unwrap().unwrap();
    for _ in 0..=BACKLOG {
        stand.pve.change(Change::VmChanged(vm(100, None)), |_| {});
    }
    let last = loop {
        match timeout(DEADLINE, stream.next()).await.unwrap().unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(last.reason(), reason::SLOW_CONSUMER);
    assert!(stream.next().await.is_none(), "and that is the end");
}

#[tokio::test]
async fn a_revoked_clients_stream_ends_and_anothers_goes_on() {
    let stand = stand(&[], |_| {}).await;
    let bad = stand.ca.issue(&client("role/operator/bad"));
    let mut of_bad = HostServiceClient::new(stand.connect_as(&bad).await.unwrap());
    let mut of_good = HostServiceClient::new(stand.connect("role/operator/good").await);
    let mut ends = of_bad.watch_host(v1::WatchHostRequest {}).await.unwrap().into_inner();
    let mut stays = of_good.watch_host(v1::WatchHostRequest {}).await.unwrap().into_inner();
    stand.files.put("ca.crl", &stand.ca.crl(&[&bad]));
    while let Ok(Some(_)) = next(&mut ends).await {}
    let new = vm(100, None);
    stand.pve.change(Change::VmCreated(new.clone()), |i| drop(i.vms.insert(100, new)));
    while !matches!(next(&mut stays).await.unwrap().unwrap().event.unwrap(), Event::Vm(_)) {}
    assert!(of_bad.get_host(v1::GetHostRequest {}).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_is_replaced_under_load_and_no_call_is_lost() {
    let stand = stand(&[], |_| {}).await;
    let new = Ca::new();
    let (old_own, new_own) = (stand.ca.issue(&client("role/reader/r")), new.issue(&client("role/reader/r")));
    let stop = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicUsize::new(0));
    // One client keeps its connection, one makes a new one for each call, as after a restart.
    let kept = HostServiceClient::new(stand.connect_as(&old_own).await.unwrap());
    let fresh = (stand.agent.address, client_config(&stand.ca, Some(&old_own), &[&TLS13]));
    let load = |client: Option<HostServiceClient<Channel>>| {
        let (stop, calls, fresh) = (stop.clone(), calls.clone(), fresh.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut client = match &client {
                    Some(client) => client.clone(),
                    None => {
                        HostServiceClient::new(channel(fresh.0, fresh.1.clone()).await.map_err(|e| Status::unavailable(e.to_string()))?)
                    }
                };
                client.get_host(v1::GetHostRequest {}).await?;
                calls.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Status>(())
        })
    };
    let tasks = [load(Some(kept)), load(None)];
    let done = |n: usize| {
        let calls = calls.clone();
        async move {
            let until = calls.load(Ordering::Relaxed) + n;
            while calls.load(Ordering::Relaxed) < until {
                tokio::task::yield_now().await;
            }
        }
    };
    timeout(DEADLINE, done(20)).await.expect("calls before");
    stand.files.put("ca.crt", &format!("{}{}", stand.ca.pem, new.pem));
    stand.files.put("ca.crl", &format!("{}{}", stand.ca.crl(&[]), new.crl(&[])));
    // As soon as the new CA's client is heard the change is there.
    let heard = async {
        while let Err(_) | Ok(Err(_)) = match channel(stand.agent.address, client_config(&stand.ca, Some(&new_own), &[&TLS13])).await {
            Ok(channel) => Ok(HostServiceClient::new(channel).get_host(v1::GetHostRequest {}).await),
            Err(e) => Err(e),
        } {}
    };
    timeout(DEADLINE, heard).await.expect("the new CA is trusted");
    timeout(DEADLINE, done(20)).await.expect("calls after");
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap().expect("no call is lost");
    }
}

#[tokio::test]
async fn a_stream_holds_its_place_until_it_ends() {
    let stand = stand(&[], |c| c.limits.streams = 1).await;
    let mut client = HostServiceClient::new(stand.connect("role/reader/r").await);
    let first = client.watch_host(v1::WatchHostRequest {}).await.unwrap();
    let shed = client.watch_host(v1::WatchHostRequest {}).await.unwrap_err();
    assert_eq!((shed.code(), why(&shed).as_str()), (Code::ResourceExhausted, reason::OVERLOADED));
    assert!(client.get_host(v1::GetHostRequest {}).await.is_ok(), "reads have places of their own");
    drop(first);
    let again = async { while client.watch_host(v1::WatchHostRequest {}).await.is_err() {} };
    timeout(DEADLINE, again).await.expect("the place is free again");
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused() {
    let stand = stand(&[], |c| c.limits.message_bytes = 65_536).await;
    let mut client = VmServiceClient::new(stand.connect("role/operator/o").await);
    let config = v1::VmConfig { description: Some("x".repeat(70_000)), ..v1::VmConfig::default() };
    let status = client.clone_vm(v1::CloneVmRequest { config: Some(config), ..v1::CloneVmRequest::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
}

#[tokio::test]
async fn changes_are_refused_while_observing_and_leave_an_audit_line() {
    let stand = stand(&[vm(100, None)], |_| {}).await;
    let mut client = VmServiceClient::new(stand.connect("role/operator/o").await);
    let meta = v1::RequestMeta { tenant: "t".into(), request_id: "r1".into(), ..v1::RequestMeta::default() };
    let vm = v1::VmRef { vmid: 100, uuid: "00000000-0000-4000-8000-000000000100".into() };
    let status = client.start_vm(v1::StartVmRequest { meta: Some(meta), vm: Some(vm) }).await.unwrap_err();
    assert_eq!((status.code(), why(&status).as_str()), (Code::FailedPrecondition, reason::OBSERVE_ONLY));
    let line = audited(&stand, "r1").await.pop().unwrap();
    assert!(line.contains("START_VM") && line.contains("refused") && line.contains("role/operator/o"), "{line}");
}

#[tokio::test]
async fn another_tenants_operator_is_refused_by_name() {
    let stand = stand(&[vm(100, Some("t"))], |c| {
        let uri = "spiffe://pvelet.test/role/operator/o".to_owned();
        c.identities = vec![crate::config::IdentityRule { uri, tenants: vec!["t".into(), "u".into()], vlans: None }];
    })
    .await;
    let mut client = VmServiceClient::new(stand.connect("role/operator/o").await);
    let request = |tenant: &str| v1::StopVmRequest {
        meta: Some(v1::RequestMeta { tenant: tenant.into(), request_id: "r".into(), ..v1::RequestMeta::default() }),
        vm: Some(v1::VmRef { vmid: 100, uuid: "00000000-0000-4000-8000-000000000100".into() }),
    };
    for (tenant, wanted) in [("t", reason::OBSERVE_ONLY), ("u", reason::SCOPE_VM), ("x", reason::SCOPE_TENANT)] {
        assert_eq!(why(&client.stop_vm(request(tenant)).await.unwrap_err()), wanted, "{tenant}");
    }
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let stand = stand(&[], |_| {}).await;
    let channel = stand.connect("role/reader/r").await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "pvelet.v1.VmService"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving, "{service}");
    }
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
    };
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(MessageRequest::ListServices(String::new())) };
    let mut answers = ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = next(&mut answers).await.unwrap().unwrap().message_response else {
        panic!("no list");
    };
    let names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    for name in ["pvelet.v1.VmService", "grpc.health.v1.Health"] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
}

#[tokio::test]
async fn draining_ends_streams_says_so_and_takes_no_more_calls() {
    let stand = stand(&[], |_| {}).await;
    let channel = stand.connect("role/reader/r").await;
    let mut health = HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let mut host = HostServiceClient::new(channel.clone()).watch_host(v1::WatchHostRequest {}).await.unwrap().into_inner();
    let mut operations =
        OperationServiceClient::new(channel).watch_operations(v1::WatchOperationsRequest::default()).await.unwrap().into_inner();
    next(&mut health).await.unwrap();
    let address = stand.agent.address;
    let drained = tokio::spawn(stand.agent.drain(Duration::from_secs(1)));
    let told = next(&mut health).await.unwrap().unwrap();
    assert_eq!(told.status(), tonic_health::pb::health_check_response::ServingStatus::NotServing);
    let mut shutting_down = false;
    let last = loop {
        match next(&mut host).await {
            Ok(Some(message)) => {
                shutting_down |= matches!(message.event, Some(Event::Host(h)) if h.state() == v1::HostState::ShuttingDown);
            }
            Ok(None) => panic!("a stream ends with a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(why(&last), reason::AGENT_DRAINING);
    assert!(shutting_down, "the host says that it takes no new work");
    let last = loop {
        match next(&mut operations).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stream ends with a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(why(&last), reason::AGENT_DRAINING);
    assert_eq!(timeout(DEADLINE, drained).await.unwrap().unwrap(), 0);
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_scheduled_shutdown_is_told_to_who_watches_and_so_is_its_end() {
    let stand = stand(&[], |_| {}).await;
    let mut host =
        HostServiceClient::new(stand.connect("role/reader/r").await).watch_host(v1::WatchHostRequest {}).await.unwrap().into_inner();
    for (scheduled, state) in [(true, v1::HostState::ShuttingDown), (false, v1::HostState::Active)] {
        stand.shutdown.send_replace(scheduled);
        loop {
            let message = next(&mut host).await.unwrap().expect("the stream goes on");
            if matches!(message.event, Some(Event::Host(h)) if h.state() == state) {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_cancellation_that_is_refused_leaves_an_audit_line() {
    let stand = stand(&[], |_| {}).await;
    let mut client = OperationServiceClient::new(stand.connect("role/operator/o").await);
    let name = "operations/7f7f7f7f-7f7f-4f7f-8f7f-7f7f7f7f7f7f".to_owned();
    let status = client.cancel_operation(v1::CancelOperationRequest { meta: None, name: name.clone() }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let meta = v1::RequestMeta { tenant: "t".into(), request_id: "r2".into(), ..v1::RequestMeta::default() };
    let status = client.cancel_operation(v1::CancelOperationRequest { meta: Some(meta), name }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let status = VmServiceClient::new(stand.connect("role/operator/o").await).stop_vm(v1::StopVmRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let lines = audited(&stand, "STOP_VM").await;
    for (action, reason) in [("CANCEL_OPERATION", reason::INVALID_FIELD), ("CANCEL_OPERATION", reason::OPERATION_NOT_FOUND)] {
        assert!(lines.iter().any(|l| l.contains(action) && l.contains(reason) && l.contains("refused")), "{action} {reason}: {lines:?}");
    }
}

#[tokio::test]
async fn a_reload_takes_over_what_is_good_and_nothing_of_what_is_not() {
    let mut stand = stand(&[], |c| c.vm.vmid_range = Some(100_000..=100_999)).await;
    let file = stand.files.path("agent.toml");
    let tls = &stand.config.tls;
    let text = |mode: &str| {
        format!(
            "mode = \"{mode}\"\nlisten = \"127.0.0.1:0\"\n[tls]\ncert = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\ncrl = \"{}\"\ntrust_domain = \"pvelet.test\"\n[pve]\nnode = \"pve1\"\netc_pve = \"/\"\n[vm]\nvmid_range = \"100000-100999\"\n",
            tls.cert.display(),
            tls.key.display(),
            tls.client_ca.display(),
            tls.crl.as_ref().unwrap().display()
        )
    };
    let reload = stand.agent.reloader(file.clone(), None);
    let view = stand.agent.shared.host.clone();
    std::fs::write(&file, text("manage")).unwrap();
    reload.run(&stand.config).await.unwrap();
    assert_eq!(view.mode(), v1::Mode::Manage);
    std::fs::write(&file, format!("{}bad = 1\n", text("observe"))).unwrap();
    let error = reload.run(&stand.config).await.unwrap_err().to_string();
    assert!(error.contains("vm.bad"), "{error}");
    assert_eq!(view.mode(), v1::Mode::Manage);
    std::fs::write(&file, text("observe")).unwrap();
    reload.run(&stand.config).await.unwrap();
    assert_eq!(view.mode(), v1::Mode::Observe);
    assert!(stand.agent.alive(DEADLINE).await);
    assert!(timeout(Duration::ZERO, stand.agent.ended()).await.is_err());
}

#[tokio::test]
async fn metrics_are_served_where_configured() {
    let stand = stand(&[vm(100, None)], |c| c.metrics = Some("127.0.0.1:0".parse().unwrap())).await;
    let mut client = HostServiceClient::new(stand.connect("role/reader/r").await);
    client.get_host(v1::GetHostRequest {}).await.unwrap();
    let get = async |path: &str| {
        let mut http = tokio::net::TcpStream::connect(stand.agent.metrics_address.unwrap()).await.unwrap();
        http.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        http.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let text = get("/metrics").await;
    for line in ["pvelet_agent_vms 1", "pvelet_agent_connections 1", "pvelet_agent_rpc_total{method=\"GetHost\",code=\"OK\"} 1"] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(get("/").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_second_agent_on_the_same_state_is_refused() {
    let stand = stand(&[], |_| {}).await;
    let error = super::open_operations(&stand.config).await.err().expect("refused");
    assert_eq!(error.reason(), reason::INTERNAL, "{error}");
}
