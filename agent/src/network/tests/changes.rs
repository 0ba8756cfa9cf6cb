//! Changes that go well, and those that are refused before anything is touched.

use pvelet_proto::reason as r;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_change_is_final_once_it_is_confirmed_and_removal_leaves_the_host_as_it_was() {
    let rig = rig();
    let before = rig.shape();
    let op = rig.apply(apply("a", "n", classic())).await.unwrap();
    assert_eq!((op.network.as_str(), op.kind()), ("n", v1::OperationKind::ApplyNetwork));
    let op = rig.until(&op.name, WAITING).await;
    assert_eq!((op.state(), rig.phase().as_str()), (v1::OperationState::Running, "waiting"));
    assert!(rig.host.armed());
    let now = rig.host.kernel();
    assert_eq!(now.link("eth1.100").unwrap().master.as_deref(), Some("vmbr100"));
    let told = rig.get().await;
    assert_eq!(told.pending.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), ["pvelet"]);
    assert_eq!(told.last_change.unwrap().state(), v1::NetworkChangeState::Waiting);

    let opened = rig.opened().await;
    let answer = rig.confirm(&op.name, opened).await.unwrap();
    assert_eq!(answer.change.unwrap().state(), v1::NetworkChangeState::Confirmed);
    succeeded(&answer.operation.unwrap());
    rig.quiet();
    // Once more is a success.
    rig.confirm(&op.name, Duration::ZERO).await.unwrap();
    let told = rig.get().await;
    assert!(told.pending.is_empty() && told.networks[0].in_sync, "{told:?}");
    assert_eq!(told.networks[0].spec.as_ref().unwrap().tenant, "team-a");

    let op = rig.remove(remove("b", "n")).await.unwrap();
    succeeded(&rig.finish(op).await);
    assert_eq!((rig.shape(), rig.host.own_file()), (before, None));
    rig.quiet();
}

#[tokio::test(start_paused = true)]
async fn what_is_so_already_succeeds_and_touches_nothing() {
    let rig = rig();
    rig.make("a", "n", classic()).await;
    let calls = rig.net.calls().len();
    let op = rig.apply(apply("b", "n", classic())).await.unwrap();
    succeeded(&rig.end(&op.name).await);
    let op = rig.remove(remove("c", "no-such")).await.unwrap();
    succeeded(&rig.end(&op.name).await);
    let writes = |c: &&str| c.starts_with("write") || ["run_steps", "arm", "lock"].contains(c);
    assert!(!rig.net.calls()[calls..].iter().any(writes));
}

#[tokio::test(start_paused = true)]
async fn the_same_call_is_the_same_operation_and_another_one_is_refused_meanwhile() {
    let rig = rig();
    let first = rig.apply(apply("a", "n", classic())).await.unwrap();
    rig.until(&first.name, WAITING).await;
    assert_eq!(rig.apply(apply("a", "n", classic())).await.unwrap().name, first.name);
    let error = rig.apply(apply("b", "m", vec![vlan("eth2.7", "eth2", 7)])).await.unwrap_err();
    assert!(matches!(&error, Error::OperationInProgress { holder, .. } if *holder == first.name), "{error}");
    let error = rig.remove(remove("c", "n")).await.unwrap_err();
    assert_eq!(error.reason(), r::OPERATION_IN_PROGRESS);
    rig.finish(first).await;
    rig.make("b", "m", vec![vlan("eth2.7", "eth2", 7)]).await;
}

#[tokio::test(start_paused = true)]
async fn bad_requests_are_refused_before_anything_is_touched() {
    let rig = rig();
    let all = Vlans::all();
    let some = crate::auth::Authorizer::new(&[crate::config::IdentityRule {
        uri: caller().identity.to_string(),
        tenants: vec!["*".into()],
        vlans: Some(vec![(100, 199)]),
    }])
    .vlans(&caller().identity);
    let timeout = |seconds| v1::ApplyNetworkRequest {
        confirm_timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..apply("a", "n", classic())
    };
    let cases = [
        (apply("a", "n", vec![vlan("eth1.0", "eth1", 0)]), &all, r::INVALID_VLAN),
        (apply("a", "N", classic()), &all, r::INVALID_NETWORK_NAME),
        (apply("a", "n", vec![vlan("eth9.1", "eth9", 1)]), &all, r::INTERFACE_NOT_FOUND),
        (apply("a", "n", vec![bridge("vmbr9", &["eth0"], &["2-10"])]), &all, r::INTERFACE_TAKEN),
        (apply("a", "n", vec![vlan("eth1.200", "eth1", 200)]), &some, r::SCOPE_NETWORK),
        (apply("a", "n", vec![bridge("vmbr9", &["eth1"], &["100-200"])]), &some, r::SCOPE_NETWORK),
        (timeout(9), &all, r::INVALID_FIELD),
        (timeout(601), &all, r::INVALID_FIELD),
    ];
    for (request, vlans, reason) in cases {
        let error = rig.networks.apply(&caller(), request.clone(), vlans).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}: {request:?}");
    }
    rig.host.stage(Some("auto lo\n"));
    let error = rig.apply(apply("a", "n", classic())).await.unwrap_err();
    assert_eq!(error.reason(), r::FOREIGN_CHANGE_PENDING);
    assert_eq!(rig.phase(), "");
    assert_eq!(rig.ops.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_may_not_make_they_may_not_remove() {
    let rig = rig();
    rig.make("a", "n", classic()).await;
    let none = crate::auth::Authorizer::new(&[crate::config::IdentityRule {
        uri: caller().identity.to_string(),
        tenants: vec!["*".into()],
        vlans: Some(Vec::new()),
    }])
    .vlans(&caller().identity);
    let error = rig.networks.remove(&caller(), remove("b", "n"), &none).await.unwrap_err();
    assert_eq!(error.reason(), r::SCOPE_NETWORK);
    // Nor send frames into it.
    let probe = v1::ProbeNetworkRequest {
        interface: "eth1.100".into(),
        probe: Some(v1::probe_network_request::Probe::Addresses(v1::ProbeAddresses { addresses: vec!["192.0.2.9".into()] })),
        ..Default::default()
    };
    // Ports of bridges are not probed, nor links without a MAC address.
    rig.host.change_kernel(|kernel| {
        let link = kernel.links.iter_mut().find(|l| l.name == "eth1.100").unwrap();
        (link.master, link.mac) = (None, "52:54:00:00:00:01".into());
    });
    let error = rig.networks.probe(&probe, &none).await.unwrap_err();
    assert_eq!(error.reason(), r::SCOPE_NETWORK, "{error}");
    rig.networks.probe(&probe, &Vlans::all()).await.unwrap();
    let mut theirs = remove("c", "n");
    theirs.meta.as_mut().unwrap().tenant = "team-b".into();
    assert_eq!(rig.remove(theirs).await.unwrap_err().reason(), r::NOT_OURS);
}

#[tokio::test(start_paused = true)]
async fn an_observing_agent_plans_and_changes_nothing() {
    let rig = rig();
    rig.vms.set_mode(vm::Mode::Observe);
    assert_eq!(rig.apply(apply("a", "n", classic())).await.unwrap_err(), Error::ObserveOnly);
    let request = v1::PlanNetworkRequest { network: apply("a", "n", classic()).network, remove: String::new() };
    let planned = rig.networks.plan(request, &Vlans::all()).await.unwrap();
    let plan = planned.plan.unwrap();
    assert_eq!(plan.steps.iter().map(|s| s.interface.as_str()).collect::<Vec<_>>(), ["eth1.100", "vmbr100"]);
    assert!(plan.file_diff.contains("+auto eth1.100") && !planned.checks.is_empty());
    assert!(!rig.net.calls().iter().any(|call| call.starts_with("check_text")), "{:?}", rig.net.calls());
    let neither = v1::PlanNetworkRequest::default();
    assert_eq!(rig.networks.plan(neither, &Vlans::all()).await.unwrap_err().reason(), r::INVALID_FIELD);
    assert!(!rig.get().await.latched);
}

#[tokio::test(start_paused = true)]
async fn what_was_planned_is_not_checked_a_second_time() {
    let rig = rig();
    // Nobody has told for whom the plan is.
    let request = v1::PlanNetworkRequest { network: apply("a", "n", classic()).network, remove: String::new() };
    rig.networks.plan(request, &Vlans::all()).await.unwrap();
    rig.make("a", "n", classic()).await;
    let checks = |rig: &Rig| rig.net.calls().into_iter().filter(|call| call.starts_with("check_text")).collect::<Vec<_>>();
    assert_eq!(checks(&rig), ["check_text_aside"]);
    rig.make("b", "m", vec![vlan("eth2.7", "eth2", 7)]).await;
    assert_eq!(checks(&rig), ["check_text_aside", "check_text"]);
}

#[tokio::test(start_paused = true)]
async fn guests_stay_on_their_bridge() {
    let rig = rig();
    rig.make("a", "n", classic()).await;
    rig.host.add_port("tap100i0", "vmbr100");
    let mut wider = classic();
    wider[1].mtu = 1400;
    wider[1].addresses = vec!["198.51.100.1/24".into()];
    rig.make("b", "n", wider.clone()).await;
    // Debian's ifupdown2 takes them off, and they are put back: also when the change is undone.
    rig.host.lose_guests(true);
    let before = rig.shape();
    let mut wider_still = wider.clone();
    wider_still[1].mtu = 1300;
    let op = rig.apply(apply("loses", "n", wider_still)).await.unwrap();
    let waiting = rig.until(&op.name, WAITING).await;
    assert!(waiting.warnings.iter().any(|w| w.contains("tap100i0")), "{waiting:?}");
    assert_eq!(reason(&rig.end(&op.name).await), r::NETWORK_ROLLED_BACK);
    assert_eq!(rig.shape(), before);
    let kernel = rig.host.kernel();
    assert_eq!(kernel.link("tap100i0").unwrap().master.as_deref(), Some("vmbr100"));
    assert_eq!(kernel.link("vmbr100").unwrap().mtu, 1400);
    let error = rig.remove(remove("c", "n")).await.unwrap_err();
    assert_eq!(error.reason(), r::NETWORK_IN_USE);
}
