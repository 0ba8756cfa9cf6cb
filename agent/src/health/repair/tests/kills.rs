//! Somebody kills the agent at any call, cuts the power, edits the file meanwhile, fills the disk: the file is the old one or the new one, never
//! between, and what could not work leaves it as it was.

use proptest::prelude::*;

use super::*;

const HAND: &str = "by = \"hand\"\n";

/// What happens in a run of the agent.
#[derive(Debug, Clone)]
struct Run {
    faults: Vec<(usize, Fault)>,
    /// The power is cut after it.
    reboot: bool,
}

fn fault(edits: bool) -> impl Strategy<Value = (usize, Fault)> {
    let edit = if edits { Fault::Edit(HAND) } else { Fault::Fail };
    (1_usize..30, prop_oneof![4 => Just(Fault::KillBefore), 4 => Just(Fault::KillAfter), 2 => Just(Fault::Fail), 1 => Just(edit)])
}

fn runs(edits: bool) -> impl Strategy<Value = Vec<Run>> {
    let run = (proptest::collection::vec(fault(edits), 1..4), any::<bool>()).prop_map(|(faults, reboot)| Run { faults, reboot });
    proptest::collection::vec(run, 0..4)
}

fn world() -> impl Strategy<Value = World> {
    let active = prop_oneof![3 => Just("active"), 1 => Just("inactive"), 1 => Just("failed")];
    (active, any::<bool>(), any::<bool>(), prop::bool::weighted(0.7)).prop_map(|(active, starts, works, taken)| World {
        active,
        taken,
        starts,
        works,
        ..World::GOOD
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// One run of the agent. Returns how the operation ended, when it did.
fn agent(dir: &Path, host: &Host, faults: &[(usize, Fault)], asks: bool) -> Option<v1::Operation> {
    agent_with(dir, host, faults, asks, (RepairPolicy::OnRequest, true))
}

/// As [`agent`], with a policy and whether it manages.
fn agent_with(
    dir: &Path,
    host: &Host,
    faults: &[(usize, Fault)],
    asks: bool,
    (policy, manage): (RepairPolicy, bool),
) -> Option<v1::Operation> {
    let runtime = runtime();
    let ended = runtime.block_on(async {
        let rig = open(dir, host, policy).await;
        rig.vms.set_repairs(manage);
        faults.iter().for_each(|(at, fault)| rig.process.at(*at, fault.clone()));
        let work = async {
            rig.repairs.settle();
            if asks {
                let _ = rig.repairs.repair(&caller(), request("asked", TYPE)).await;
            }
            rig.idle().await;
        };
        tokio::select! { () = work => {} () = rig.process.killed() => {} }
        rig.ops.list(&v1::ListOperationsRequest::default()).unwrap().operations.pop()
    });
    // What it had begun to write comes to the disk, or not; nothing of it goes on.
    runtime.shutdown_timeout(Duration::from_secs(5));
    ended
}

#[test]
fn what_was_left_half_done_is_put_back_where_nothing_may_be_repaired_any_more() {
    for (policy, manage) in [(RepairPolicy::Off, true), (RepairPolicy::OnRequest, false)] {
        let (host, dir) = (Host::new(World::GOOD), tempfile::tempdir().unwrap());
        // run, mend, save, dump, back_up, state, replace
        agent(dir.path(), &host, &[(7, Fault::KillAfter)], true);
        assert_eq!(host.lock().file, NEW);
        let ended = agent_with(dir.path(), &host, &[], false, (policy, manage)).unwrap();
        let model = host.lock().clone();
        assert_eq!((model.file.as_str(), model.running.as_deref()), (OLD, Some(OLD)));
        assert_eq!(reason(&ended), "AGENT_RESTARTED");
    }
}

fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    // Each case is several runs of an agent, with a journal that is fsynced.
    ProptestConfig { failure_persistence: None, cases: config.cases.max(1), ..config }
}

fn failing(runs: &[Run]) -> bool {
    runs.iter().flat_map(|r| &r.faults).any(|(_, f)| matches!(f, Fault::Fail))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_file_is_the_old_one_or_the_new_one_whoever_dies(world in world(), runs in runs(false)) {
        let (host, dir) = (Host::new(world.clone()), tempfile::tempdir().unwrap());
        let mut asks = true;
        for run in &runs {
            agent(dir.path(), &host, &run.faults, std::mem::take(&mut asks));
            if run.reboot {
                host.reboot();
            }
        }
        let ended = agent(dir.path(), &host, &[], asks);
        let model = host.lock().clone();
        prop_assert!(model.history.iter().all(|text| text == OLD || text == NEW), "{:?}", model.history);
        let why = ended.as_ref().map_or("never begun".to_owned(), reason);
        let can = world.taken && world.starts && world.works;
        match why.as_str() {
            "" => prop_assert!(can && model.file == NEW && model.running.as_deref() == Some(NEW)),
            // Only a disk that stays full leaves the new text.
            "REPAIR_RESTORE_FAILED" => prop_assert!(failing(&runs) || model.file == OLD, "{ended:?}"),
            _ => {
                prop_assert_eq!(&model.file, OLD, "{:?}", ended);
                match world.active {
                    "active" => prop_assert_eq!(model.running.as_deref(), Some(OLD), "{:?}", ended),
                    "inactive" => prop_assert_eq!(&model.running, &None, "{:?}", ended),
                    _ => {}
                }
            }
        }
        prop_assert!(can || model.file == OLD || failing(&runs));
        // Settling once more changes nothing.
        agent(dir.path(), &host, &[], false);
        let again = host.lock().clone();
        prop_assert_eq!((again.file, again.running, again.pid), (model.file, model.running, model.pid));
    }

    #[test]
    fn what_somebody_wrote_meanwhile_is_never_lost(world in world(), runs in runs(true)) {
        let (host, dir) = (Host::new(world), tempfile::tempdir().unwrap());
        let mut asks = true;
        for run in &runs {
            agent(dir.path(), &host, &run.faults, std::mem::take(&mut asks));
            if run.reboot {
                host.reboot();
            }
        }
        agent(dir.path(), &host, &[], asks);
        let model = host.lock().clone();
        if model.history.iter().any(|text| text == HAND) {
            prop_assert_eq!(model.file, HAND);
        }
    }
}
