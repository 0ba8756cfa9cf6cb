//! Repairs that the agent begins by itself.

use super::*;

const AUTOMATIC: RepairPolicy = RepairPolicy::Automatic;

async fn pass(seconds: u64) {
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_failed_for_long_enough_is_mended_in_the_agents_own_name() {
    let rig = rig(World::GOOD, AUTOMATIC).await;
    let task = rig.repairs.automatic();
    pass(25).await;
    assert_eq!(rig.host.lock().file, OLD);
    pass(30).await;
    assert_eq!(rig.host.lock().file, NEW);
    let status = rig.repairs.status();
    assert_eq!((status.in_last_hour, status.latched), (1, false));
    let operation = rig.ops.get(&status.last_operation).unwrap();
    assert_eq!(
        (operation.state(), operation.caller.as_str()),
        (v1::OperationState::Succeeded, "spiffe://pvelet.example/cluster/lab/host/pve1")
    );
    assert!(rig.metrics().contains("repairs_total{result=\"succeeded\",by=\"agent\"} 1"));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_short_failure_an_observing_agent_and_another_policy_mend_nothing() {
    for policy in [RepairPolicy::Off, RepairPolicy::OnRequest] {
        let rig = rig(World::GOOD, policy).await;
        rig.repairs.automatic();
        pass(600).await;
        assert_eq!(rig.host.lock().file, OLD);
    }
    let observing = rig(World::GOOD, AUTOMATIC).await;
    observing.vms.set_repairs(false);
    observing.repairs.automatic();
    pass(900).await;
    assert_eq!(observing.host.lock().file, OLD);

    let brief = rig(World::GOOD, AUTOMATIC).await;
    brief.host.write(NEW);
    brief.host.lock().running = Some(NEW.to_owned());
    brief.repairs.automatic();
    for _ in 0..20 {
        brief.host.change(|m| m.wedged = true);
        pass(20).await;
        brief.host.change(|m| m.wedged = false);
        pass(5).await;
    }
    assert_eq!(brief.process.calls("restart"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_somebody_stopped_is_left_alone_and_one_that_was_killed_is_not() {
    let rig = rig(World { active: "inactive", ..World::GOOD }, AUTOMATIC).await;
    rig.host.write(NEW);
    rig.repairs.automatic();
    pass(900).await;
    assert_eq!(rig.process.calls("restart"), 0);
    rig.host.change(|m| (m.active, m.result) = ("failed".into(), "signal".into()));
    pass(900).await;
    assert_eq!((rig.process.calls("restart"), rig.host.lock().running.as_deref()), (1, Some(NEW)));
}

#[tokio::test(start_paused = true)]
async fn the_configuration_of_one_that_somebody_stopped_is_theirs() {
    let rig = rig(World { active: "inactive", ..World::GOOD }, AUTOMATIC).await;
    rig.repairs.automatic();
    pass(900).await;
    assert_eq!((rig.host.lock().file.as_str(), rig.process.calls("restart")), (OLD, 0));
    // One that starts over and over may do so because of it.
    rig.host.change(|m| (m.active, m.result) = ("activating".into(), "exit-code".into()));
    pass(900).await;
    assert_eq!(rig.host.lock().file, NEW);
}

#[tokio::test(start_paused = true)]
async fn two_that_fail_latch_and_nothing_more_is_tried_until_it_is_cleared() {
    let (host, dir) = (Host::new(World { works: false, ..World::GOOD }), tempfile::tempdir().unwrap());
    let rig = open(dir.path(), &host, AUTOMATIC).await;
    rig.repairs.automatic();
    // The wall clock does not go on here: the pause between two tries does not pass by itself.
    pass(600).await;
    assert_eq!(rig.process.calls("replace"), 2, "edited, and put back");
    assert_eq!(rig.repairs.status().in_last_hour, 1);
    host.lock().record = None;
    drop(rig);
    // As an hour later.
    let rig = open(&dir.path().join("later"), &host, AUTOMATIC).await;
    rig.repairs.automatic();
    rig.repair("1", TYPE).await.unwrap();
    pass(600).await;
    assert!(rig.repairs.status().latched);
    let tried = rig.process.calls("replace");
    pass(3600).await;
    assert_eq!(rig.process.calls("replace"), tried);
    assert_eq!(host.lock().file, OLD);
}
