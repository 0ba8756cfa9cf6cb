//! What goes wrong while a change is made or undone.

use pvelet_proto::reason as r;

use super::*;
use crate::host::net::fake::Fault;

/// Runs a change to its end; confirms it where it comes so far.
async fn run(rig: &Rig, request: v1::ApplyNetworkRequest) -> Result<v1::Operation, Error> {
    let op = rig.apply(request).await?;
    let op = rig.until(&op.name, WAITING).await;
    if op.end_time.is_none() {
        let opened = rig.opened().await;
        let _ = rig.confirm(&op.name, opened).await;
    }
    Ok(rig.end(&op.name).await)
}

#[tokio::test(start_paused = true)]
async fn steps_that_fail_or_hang_are_undone() {
    for hangs in [false, true] {
        for interface in ["eth1.100", "vmbr100"] {
            let rig = rig();
            rig.make("old", "old", vec![vlan("eth2.7", "eth2", 7)]).await;
            let (before, file) = (rig.shape(), rig.host.own_file());
            rig.host.hang(interface, hangs);
            rig.host.fail(interface, !hangs);
            let op = run(&rig, apply("a", "n", classic())).await.unwrap();
            assert_eq!(reason(&op), r::NETWORK_ROLLED_BACK, "{op:?}");
            let message = op.error.unwrap().message;
            assert!(message.contains(if hangs { "did not end" } else { "as the test wants it" }), "{message}");
            assert_eq!((rig.shape(), rig.host.own_file()), (before, file));
            rig.quiet();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_of_a_bridge_that_only_netlink_removes_has_its_ipv6_again() {
    let rig = rig();
    rig.host.change_kernel(|kernel| kernel.links.iter_mut().filter(|l| l.name == "eth2").for_each(|l| l.ipv6_disabled = Some(false)));
    let op = rig.apply(apply("a", "n", vec![bridge("vmbr9", &["eth2"], &[])])).await.unwrap();
    rig.until(&op.name, WAITING).await;
    rig.host.hang("vmbr9", true);
    let op = rig.end(&op.name).await;
    assert_eq!(reason(&op), r::NETWORK_ROLLED_BACK);
    let kernel = rig.host.kernel();
    assert!(kernel.link("vmbr9").is_none() && rig.net.calls().contains(&"enable_ipv6"));
    assert_eq!(kernel.link("eth2").unwrap().ipv6_disabled, Some(false));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_answers_no_more_is_a_reason_to_undo() {
    let rig = rig();
    let before = rig.shape();
    rig.net.at("run_steps", 1, Fault::Do(Box::new(|host| host.set_answering(&[]))));
    let op = run(&rig, apply("a", "n", classic())).await.unwrap();
    assert!(op.error.unwrap().message.contains("gateway 192.0.2.1"));
    assert_eq!(rig.shape(), before);
    // One that did not answer before is no reason.
    rig.make("b", "n", classic()).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_that_cannot_be_undone_latches_until_somebody_clears_it() {
    let rig = rig();
    rig.host.stick("eth1.100", true);
    rig.host.fail("eth1.100", false);
    let op = rig.apply(apply("a", "n", vec![vlan("eth1.100", "eth1", 100)])).await.unwrap();
    rig.until(&op.name, WAITING).await;
    rig.host.fail("eth1.100", true);
    let op = rig.end(&op.name).await;
    assert_eq!((reason(&op).as_str(), rig.phase().as_str()), (r::NETWORK_ROLLBACK_FAILED, "rollback_failed"));
    assert!(op.error.unwrap().message.contains("eth1.100"));
    let told = rig.get().await;
    assert!(told.latched && rig.latched.load(Ordering::SeqCst));
    let change = told.last_change.unwrap();
    assert_eq!(change.state(), v1::NetworkChangeState::RollbackFailed);
    rig.quiet();
    let plan = v1::PlanNetworkRequest { network: None, remove: "m".into() };
    for error in [
        rig.apply(apply("b", "m", vec![vlan("eth2.7", "eth2", 7)])).await.unwrap_err(),
        rig.remove(remove("c", "n")).await.unwrap_err(),
        // Nor does it look as if all were as declared.
        rig.networks.plan(plan, &Vlans::all()).await.unwrap_err(),
        rig.confirm(&op.name, rig.boot().time).await.unwrap_err(),
    ] {
        assert_eq!(error.reason(), r::NETWORK_LATCHED);
    }
    assert_eq!(rig.roll_back(&op.name).await.unwrap_err().reason(), r::NETWORK_ROLLBACK_FAILED);
    // A person puts it right, and says so.
    rig.host.change_kernel(|k| k.links.retain(|l| l.name != "eth1.100"));
    let clear = v1::ClearNetworkRequest { meta: meta("clear") };
    rig.networks.clear(&caller(), clear.clone()).await.unwrap();
    assert!(!rig.latched.load(Ordering::SeqCst));
    assert_eq!(rig.networks.clear(&caller(), clear).await.unwrap_err().reason(), r::NETWORK_NOT_WAITING);
    assert!(rig.host.kept().keys().any(|name| name.starts_with("cleared-")));
    rig.make("d", "m", vec![vlan("eth2.7", "eth2", 7)]).await;
}

#[tokio::test(start_paused = true)]
async fn links_come_back_where_the_file_cannot() {
    let rig = rig();
    let before = rig.shape();
    let op = rig.apply(apply("a", "n", classic())).await.unwrap();
    rig.until(&op.name, WAITING).await;
    rig.net.at("write_own_file", 1, Fault::Fail);
    let op = rig.end(&op.name).await;
    assert_eq!((reason(&op).as_str(), rig.phase().as_str()), (r::NETWORK_ROLLBACK_FAILED, "rollback_failed"));
    assert_eq!(rig.shape(), before);
}

#[tokio::test(start_paused = true)]
async fn what_others_change_meanwhile_is_told_and_does_not_latch() {
    let rig = rig();
    rig.host.add_port("wg0", "");
    rig.host.change_kernel(|k| k.links.iter_mut().filter(|l| l.name == "wg0").for_each(|l| l.master = None));
    let op = rig.apply(apply("a", "n", classic())).await.unwrap();
    rig.until(&op.name, WAITING).await;
    rig.host.change_kernel(|k| {
        k.links.retain(|l| l.name != "wg0");
        let mut route = k.default_routes().next().unwrap().clone();
        (route.link, route.metric) = ("eth2".into(), 1024);
        k.routes.push(route);
    });
    let op = rig.end(&op.name).await;
    assert_eq!(reason(&op), r::NETWORK_ROLLED_BACK);
    for told in ["wg0 is gone", "on eth2, metric 1024 is new"] {
        assert!(op.warnings.iter().any(|w| w.contains(told)), "{op:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_cannot_be_read_latches_too() {
    let rig = rig();
    rig.host.set_checkpoint(Some(b"{"));
    assert_eq!(rig.apply(apply("a", "n", classic())).await.unwrap_err().reason(), r::NETWORK_LATCHED);
    assert!(rig.get().await.latched);
    rig.networks.settle().await;
    rig.networks.clear(&caller(), v1::ClearNetworkRequest { meta: meta("clear") }).await.unwrap();
    rig.make("a", "n", classic()).await;
}

#[tokio::test(start_paused = true)]
async fn somebodys_edit_before_the_change_stops_it_and_one_during_it_is_kept() {
    let rig = rig();
    // Between the plan and the lock.
    rig.net.at("lock", 1, Fault::Do(Box::new(|host| host.edit_own_file(Some("auto eth9\n")))));
    let op = run(&rig, apply("a", "n", classic())).await.unwrap();
    assert_eq!(reason(&op), r::NETWORK_CHANGED);
    assert_eq!((rig.host.own_file().as_deref(), rig.phase().as_str()), (Some("auto eth9\n"), ""));
    rig.host.edit_own_file(None);
    // Somebody takes the name.
    rig.net.at("lock", 1, Fault::Do(Box::new(|host| host.add_port("vmbr100", "eth2"))));
    let op = run(&rig, apply("b", "n", classic())).await.unwrap();
    assert_eq!(reason(&op), r::INTERFACE_TAKEN);
    rig.host.change_kernel(|k| k.links.retain(|l| l.name != "vmbr100"));
    // While it waits.
    let before = rig.shape();
    let op = rig.apply(apply("c", "n", classic())).await.unwrap();
    rig.until(&op.name, WAITING).await;
    rig.host.edit_own_file(Some("# mine\n"));
    let op = rig.end(&op.name).await;
    assert_eq!(reason(&op), r::NETWORK_ROLLED_BACK);
    assert!(op.warnings.iter().any(|w| w.contains("somebody edited")), "{op:?}");
    assert_eq!((rig.shape(), rig.host.own_file()), (before, None));
    let kept = rig.host.kept();
    assert!(kept.iter().any(|(name, bytes)| name.starts_with("edited-") && bytes == b"# mine\n"), "{kept:?}");
}

#[tokio::test(start_paused = true)]
async fn whatever_call_fails_the_host_is_as_it_was_or_as_it_was_to_be() {
    // A change of one network beside another: with text and links to bring back.
    let setup = async || {
        let rig = rig();
        rig.make("old", "n", classic()).await;
        rig
    };
    let mut wider = classic();
    wider[1].mtu = 1400;
    wider.push(vlan("eth2.7", "eth2", 7));
    let rig = setup().await;
    let (old, old_file, from) = (rig.shape(), rig.host.own_file(), rig.net.calls().len());
    succeeded(&run(&rig, apply("a", "n", wider.clone())).await.unwrap());
    let (new, new_file, calls) = (rig.shape(), rig.host.own_file(), rig.net.calls().len() - from);
    for nth in 1..=calls {
        let rig = setup().await;
        rig.net.at("", nth, Fault::Fail);
        let result = run(&rig, apply("a", "n", wider.clone())).await;
        let done = result.as_ref().is_ok_and(|op| op.state() == v1::OperationState::Succeeded);
        let end = if done { (&new, &new_file) } else { (&old, &old_file) };
        let failed = rig.net.calls()[from + nth - 1];
        assert_eq!((&rig.shape(), &rig.host.own_file()), end, "call {nth}, {failed}: {result:?}");
        assert!(!rig.phase().starts_with("rollback"), "call {nth}, {failed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_keeps_no_change_from_being_undone() {
    // Full from the beginning: nothing is touched.
    let rig = rig();
    rig.make("old", "n", classic()).await;
    let (before, file) = (rig.shape(), rig.host.own_file());
    let change = |id: &str| {
        let mut wider = classic();
        wider[1].mtu = 1400;
        apply(id, "n", wider)
    };
    for call in ["lock", "write_own_file", "run_steps", "verify"] {
        rig.net.at(if call == "verify" { "compare" } else { call }, 1, Fault::Do(Box::new(|host| host.fill_disk(true))));
        let op = rig.apply(change(call)).await.unwrap();
        let op = rig.end(&op.name).await;
        assert_ne!(op.state(), v1::OperationState::Succeeded);
        assert_eq!((rig.shape(), rig.host.own_file()), (before.clone(), file.clone()), "{call}: {op:?}");
        rig.host.fill_disk(false);
        rig.quiet();
    }
}
