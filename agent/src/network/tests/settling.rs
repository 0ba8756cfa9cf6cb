//! What is done about a change that somebody left unfinished.

use pvelet_proto::reason as r;

use super::*;
use crate::network::recover::{self, Recovered};

/// A host with a change that waits, and whose agent is gone.
async fn left_waiting(dir: &Path) -> (FakeHost, FakePve, String) {
    let (host, pve) = (FakeHost::new(), FakePve::new(NODE));
    let rig = open(dir, &host, &pve);
    let op = rig.apply(apply("a", "n", classic())).await.unwrap();
    rig.until(&op.name, WAITING).await;
    rig.ops.flushed().await;
    (host, pve, op.name)
}

/// Each test has two runs of the agent, each on a runtime of its own: what ran on the first is gone with it.
fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(work)
}

fn edit(host: &FakeHost, change: impl FnOnce(&mut serde_json::Value)) {
    let mut checkpoint = host.checkpoint().unwrap();
    change(&mut checkpoint);
    host.set_checkpoint(Some(&serde_json::to_vec(&checkpoint).unwrap()));
}

#[test]
fn each_state_is_gone_on_with_or_undone_after_a_restart() {
    // The state that is found, whether its time is over; how the operation ends, and how the checkpoint.
    let cases: &[(&str, bool, Option<&str>, &str)] = &[
        ("prepared", false, Some(r::NETWORK_ROLLED_BACK), "rolled_back"),
        ("applying", false, Some(r::NETWORK_ROLLED_BACK), "rolled_back"),
        ("applying", true, Some(r::NETWORK_ROLLED_BACK), "rolled_back"),
        ("waiting", true, Some(r::NETWORK_ROLLED_BACK), "rolled_back"),
        ("waiting", false, None, "waiting"),
        ("rolling_back", false, Some(r::NETWORK_ROLLED_BACK), "rolled_back"),
        ("confirmed", false, Some(""), "confirmed"),
        ("confirmed", true, Some(""), "confirmed"),
        ("rolled_back", false, Some(r::NETWORK_ROLLED_BACK), "rolled_back"),
        ("rollback_failed", false, Some(r::NETWORK_ROLLBACK_FAILED), "rollback_failed"),
    ];
    for (state, over, end, phase_then) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (host, pve, name) = on_a_runtime(left_waiting(dir.path()));
        let base = shape(&FakeHost::new().kernel());
        edit(&host, |c| c["phase"] = (*state).into());
        if *over {
            host.time_goes_by(CONFIRM * 10);
        }
        on_a_runtime(async {
            let rig = open(dir.path(), &host, &pve);
            rig.networks.settle().await;
            let Some(end) = end else {
                // Within its time it waits on.
                rig.until(&name, WAITING).await;
                assert_eq!(rig.phase(), *phase_then);
                let opened = rig.opened().await;
                rig.confirm(&name, opened).await.unwrap();
                return succeeded(&rig.end(&name).await);
            };
            let op = rig.end(&name).await;
            let found = if op.error.is_some() { reason(&op) } else { String::new() };
            assert_eq!((found.as_str(), rig.phase().as_str()), (*end, *phase_then), "{state} {over}: {op:?}");
            if *phase_then == "rolled_back" && *state != "rolled_back" {
                assert_eq!((rig.shape(), rig.host.own_file()), (base, None), "{state} {over}");
                rig.quiet();
            }
        });
    }
}

#[test]
fn an_operation_that_came_to_no_checkpoint_did_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (host, pve, name) = on_a_runtime(left_waiting(dir.path()));
    host.set_checkpoint(None);
    on_a_runtime(async {
        let rig = open(dir.path(), &host, &pve);
        rig.networks.settle().await;
        assert_eq!(reason(&rig.end(&name).await), r::AGENT_RESTARTED);
    });
}

#[test]
fn a_change_whose_operation_is_lost_is_still_confirmed_or_undone() {
    for confirms in [false, true] {
        let (dir, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (host, pve, name) = on_a_runtime(left_waiting(dir.path()));
        on_a_runtime(async {
            let rig = open(empty.path(), &host, &pve);
            rig.networks.settle().await;
            let error = rig.apply(apply("b", "m", vec![vlan("eth2.7", "eth2", 7)])).await;
            let refused = rig.end(&error.unwrap().name).await;
            assert_eq!(reason(&refused), r::OPERATION_IN_PROGRESS);
            if confirms {
                let opened = rig.opened().await;
                let answer = rig.confirm(&name, opened).await.unwrap();
                assert!(answer.operation.is_none());
            } else {
                let answer = rig.roll_back(&name).await.unwrap();
                assert_eq!(answer.change.unwrap().state(), v1::NetworkChangeState::RolledBack);
            }
            assert_eq!(rig.host.kernel().link("vmbr100").is_some(), confirms);
            rig.make("c", "m", vec![vlan("eth2.7", "eth2", 7)]).await;
        });
    }
}

#[test]
fn the_timer_undoes_what_is_over_and_lets_the_rest_be() {
    let dir = tempfile::tempdir().unwrap();
    let (host, pve, name) = on_a_runtime(left_waiting(dir.path()));
    on_a_runtime(async {
        assert_eq!(recover::deadline(&*host.process()).await.unwrap(), Recovered::Nothing);
        assert_eq!((phase(&host).as_str(), host.armed()), ("waiting", true));
        host.time_goes_by(CONFIRM);
        let undone = recover::deadline(&*host.process()).await.unwrap();
        assert!(matches!(undone, Recovered::Undone(operation, _) if operation == name));
        assert!(!host.armed() && host.kernel().link("vmbr100").is_none());
        assert_eq!(recover::deadline(&*host.process()).await.unwrap(), Recovered::Nothing);
    });
    on_a_runtime(async {
        let rig = open(dir.path(), &host, &pve);
        rig.networks.settle().await;
        let op = rig.end(&name).await;
        assert!(op.error.unwrap().message.contains("by the timer"));
    });
}

#[test]
fn before_a_removal_a_change_is_undone_however_much_time_it_has_left() {
    let dir = tempfile::tempdir().unwrap();
    let (host, _, name) = on_a_runtime(left_waiting(dir.path()));
    on_a_runtime(async {
        let undone = recover::now(&*host.process()).await.unwrap();
        assert!(matches!(undone, Recovered::Undone(operation, _) if operation == name));
        assert!(!host.armed() && host.kernel().link("vmbr100").is_none());
        assert_eq!((phase(&host).as_str(), host.own_file()), ("rolled_back", None));
        assert!(host.checkpoint().unwrap()["detail"].as_str().unwrap().contains("removed before it was confirmed"));
        // A second time, as after a removal that was broken off.
        assert_eq!(recover::now(&*host.process()).await.unwrap(), Recovered::Nothing);
    });
    let (dir, (host, pve)) = (tempfile::tempdir().unwrap(), (FakeHost::new(), FakePve::new(NODE)));
    on_a_runtime(async {
        assert_eq!(recover::now(&*host.process()).await.unwrap(), Recovered::Nothing);
        // What was confirmed stays.
        let rig = open(dir.path(), &host, &pve);
        rig.make("a", "n", classic()).await;
        assert_eq!(recover::now(&*host.process()).await.unwrap(), Recovered::Nothing);
        assert!(host.kernel().link("vmbr100").is_some() && host.own_file().is_some());
    });
}

#[test]
fn the_timer_waits_for_an_agent_that_is_working() {
    let dir = tempfile::tempdir().unwrap();
    let (host, ..) = on_a_runtime(left_waiting(dir.path()));
    host.time_goes_by(CONFIRM);
    on_a_runtime(async {
        let (agent, timer) = (host.process(), host.beside());
        let lock = crate::host::net::Network::lock(&*agent, Duration::ZERO).await.unwrap();
        let mut recovering = Box::pin(recover::deadline(&*timer));
        assert!(futures_util::poll!(recovering.as_mut()).is_pending());
        // The agent ends the change.
        edit(&host, |c| c["phase"] = "confirmed".into());
        drop(lock);
        assert_eq!(recovering.await.unwrap(), Recovered::Nothing);
        assert!(host.kernel().link("vmbr100").is_some());
    });
}

#[test]
fn the_timer_is_not_stopped_under_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let (host, ..) = on_a_runtime(left_waiting(dir.path()));
    edit(&host, |c| c["phase"] = "confirmed".into());
    on_a_runtime(async {
        let (agent, timer) = (host.process(), host.beside());
        // The agent begins the next change just when the timer's command has seen that the last one has ended.
        let lock = crate::host::net::Network::lock(&*agent, Duration::ZERO).await.unwrap();
        let mut recovering = Box::pin(recover::deadline(&*timer));
        assert!(futures_util::poll!(recovering.as_mut()).is_pending());
        edit(&host, |c| c["phase"] = "waiting".into());
        drop(lock);
        assert_eq!(recovering.await.unwrap(), Recovered::Nothing);
        assert!(host.armed());
    });
}

#[test]
fn the_timer_goes_on_where_it_finds_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (host, ..) = on_a_runtime(left_waiting(dir.path()));
    on_a_runtime(async {
        host.set_checkpoint(None);
        assert_eq!(recover::deadline(&*host.process()).await.unwrap(), Recovered::Nothing);
        assert!(host.armed());
    });
}

#[test]
fn the_boot_unit_brings_the_old_file_back_and_nothing_else() {
    for state in ["prepared", "applying", "waiting", "rolling_back"] {
        let dir = tempfile::tempdir().unwrap();
        let (host, pve, name) = on_a_runtime(left_waiting(dir.path()));
        edit(&host, |c| c["phase"] = state.into());
        on_a_runtime(async {
            // On a running host it is not its business.
            assert_eq!(recover::boot(&*host.process()).await.unwrap(), Recovered::Nothing);
            host.reboot();
            let net = host.process();
            assert!(matches!(recover::boot(&*net).await.unwrap(), Recovered::Undone(..)));
            assert_eq!(recover::boot(&*net).await.unwrap(), Recovered::Nothing);
            let calls = net.calls();
            let allowed = ["read_checkpoint", "own_file", "write_own_file", "write_checkpoint", "forget_old_file"];
            assert!(calls.iter().all(|c| allowed.contains(c)), "{calls:?}");
            host.networking();
            assert_eq!((shape(&host.kernel()), host.own_file()), (shape(&FakeHost::new().kernel()), None));
        });
        on_a_runtime(async {
            let rig = open(dir.path(), &host, &pve);
            rig.networks.settle().await;
            let op = rig.end(&name).await;
            assert_eq!(reason(&op), r::NETWORK_ROLLED_BACK);
            assert!(op.error.unwrap().message.contains("when the host booted"));
        });
    }
}

#[test]
fn what_could_not_be_undone_does_not_come_up_at_boot_and_stays_latched() {
    let dir = tempfile::tempdir().unwrap();
    let (host, ..) = on_a_runtime(left_waiting(dir.path()));
    edit(&host, |c| c["phase"] = "rollback_failed".into());
    on_a_runtime(async {
        host.reboot();
        assert!(matches!(recover::boot(&*host.process()).await.unwrap(), Recovered::Undone(..)));
        assert_eq!(host.own_file(), None);
        assert_eq!(host.checkpoint().unwrap()["phase"], "rollback_failed");
        // What a person wrote since is not the change's.
        host.edit_own_file(Some("# by hand\n"));
        assert_eq!(recover::boot(&*host.process()).await.unwrap(), Recovered::Nothing);
        assert_eq!(host.own_file().as_deref(), Some("# by hand\n"));
    });
}

#[test]
fn without_the_boot_unit_the_agent_undoes_after_a_reboot() {
    for state in ["prepared", "waiting"] {
        let dir = tempfile::tempdir().unwrap();
        let (host, pve, name) = on_a_runtime(left_waiting(dir.path()));
        // Prepared: the file was written, and nothing was brought up yet. The boot does that.
        edit(&host, |c| (c["phase"], c["touched"]) = (state.into(), (state == "waiting").into()));
        host.reboot();
        host.networking();
        assert!(host.kernel().link("vmbr100").is_some());
        on_a_runtime(async {
            let rig = open(dir.path(), &host, &pve);
            rig.networks.settle().await;
            assert_eq!(reason(&rig.end(&name).await), r::NETWORK_ROLLED_BACK);
            assert_eq!((rig.shape(), rig.host.own_file()), (shape(&FakeHost::new().kernel()), None), "{state}");
        });
    }
}
