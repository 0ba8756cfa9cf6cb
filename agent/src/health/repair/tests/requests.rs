//! Repairs that are asked for.

use super::*;
use crate::health::State;

const ON_REQUEST: RepairPolicy = RepairPolicy::OnRequest;

#[tokio::test(start_paused = true)]
async fn what_is_mended_is_verified_and_its_copy_kept() {
    let rig = rig(World::GOOD, ON_REQUEST).await;
    let response = rig.repairs.repair(&caller(), request("1", TYPE)).await.unwrap();
    let plan = response.plan.unwrap();
    assert_eq!((plan.file.as_str(), plan.units, plan.checks), (PATH, vec![UNIT.to_owned()], vec![TYPE.to_owned()]));
    assert!(plan.file_diff.contains("-runtime_type = \"\"\n+runtime_type = \"io.containerd.runc.v2\"\n"), "{}", plan.file_diff);
    let name = response.operation.unwrap().name;
    let ended = rig.ops.wait(&name, Duration::from_secs(3600)).await.unwrap();
    assert_eq!((ended.state(), ended.check.as_str()), (v1::OperationState::Succeeded, TYPE));
    let model = rig.host.lock().clone();
    assert_eq!((model.file.as_str(), model.running.as_deref(), model.backups), (NEW, Some(NEW), vec![OLD.to_owned()]));
    assert_eq!(rig.repairs.status().last_operation, name);
    assert!(rig.metrics().contains("repairs_total{result=\"succeeded\",by=\"request\"} 1"));
    // The same call once more is the same operation, with its plan.
    let again = rig.repairs.repair(&caller(), request("1", TYPE)).await.unwrap();
    assert_eq!((again.operation.unwrap().name, again.plan.unwrap().file), (name, PATH.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn where_no_sandbox_can_be_tried_or_only_a_part_can_be_mended_the_rest_counts_and_that_is_told() {
    for (world, warned) in [
        (World { image: false, ..World::GOOD }, "not verified by containerd.sandbox: "),
        (World { all: false, ..World::GOOD }, "not all of it is mended: containerd.runtime-type is degraded: another runtime"),
    ] {
        let rig = rig(world, ON_REQUEST).await;
        let ended = rig.repair("1", TYPE).await.unwrap();
        assert_eq!((ended.state(), rig.host.lock().file.as_str()), (v1::OperationState::Succeeded, NEW), "{ended:?}");
        assert!(ended.warnings.iter().any(|w| w.starts_with(warned)), "{:?}", ended.warnings);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_works_under_every_policy_and_in_observe_mode_and_touches_nothing() {
    let rig = rig(World::GOOD, RepairPolicy::Off).await;
    rig.vms.set_repairs(false);
    let before = rig.host.lock().clone();
    let dry = v1::RepairRequest { meta: None, check: TYPE.into(), dry_run: true };
    let response = rig.repairs.repair(&caller(), dry).await.unwrap();
    assert!(response.operation.is_none() && response.plan.unwrap().file_diff.contains("runc.v2"));
    assert_eq!((*rig.host.lock()).clone(), before);
    assert_eq!(rig.repair("1", TYPE).await, Err(Error::ObserveOnly));
    rig.vms.set_repairs(true);
    assert_eq!(rig.repair("1", TYPE).await, Err(Error::RepairOff { what: TYPE.into(), policy: "off" }));
    assert_eq!((*rig.host.lock()).clone(), before);
}

#[tokio::test(start_paused = true)]
async fn what_is_well_or_unknown_or_no_check_is_refused() {
    let rig = rig(World::GOOD, ON_REQUEST).await;
    let reason = |result: Result<v1::Operation, Error>| result.unwrap_err().reason();
    assert_eq!(reason(rig.repair("1", "containerd.responding").await), "REPAIR_NOT_POSSIBLE");
    assert_eq!(reason(rig.repair("2", "containerd.sandbox").await), "REPAIR_NOT_POSSIBLE");
    assert_eq!(reason(rig.repair("3", "containerd.config").await), "CHECK_NOT_FOUND");
    assert_eq!(reason(rig.repair("4", "").await), "CHECK_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_work_leaves_the_file_byte_identical_and_two_of_them_latch() {
    for world in [
        World { taken: false, ..World::GOOD },
        World { starts: false, ..World::GOOD },
        World { works: false, ..World::GOOD },
        World { works: false, active: "inactive", ..World::GOOD },
        World { starts: false, active: "failed", ..World::GOOD },
    ] {
        let rig = rig(world.clone(), ON_REQUEST).await;
        let ended = rig.repair("1", TYPE).await.unwrap();
        assert_eq!(reason(&ended), "REPAIR_FAILED", "{world:?} {ended:?}");
        let model = rig.host.lock().clone();
        assert_eq!(model.file, OLD, "{world:?}");
        match world.active {
            "active" => assert_eq!(model.running.as_deref(), Some(OLD), "{world:?}"),
            "inactive" => assert_eq!(model.running, None, "{world:?}"),
            _ => {}
        }
        if !world.taken {
            assert_eq!(model.history, [OLD], "checked before the live file is touched");
        }
        assert!(!rig.repairs.status().latched);
        rig.repair("2", TYPE).await.unwrap();
        let status = rig.repairs.status();
        assert!(status.latched && status.latch_reason.contains("did not help"), "{status:?}");
        assert_eq!(rig.repair("3", TYPE).await.unwrap_err().reason(), "REPAIR_LATCHED");
        let meta = request("4", "").meta;
        let cleared = rig.repairs.clear(&caller(), v1::ClearRepairRequest { meta: meta.clone() }).await.unwrap();
        assert!(cleared.was_latched);
        assert!(!rig.repairs.clear(&caller(), v1::ClearRepairRequest { meta }).await.unwrap().was_latched);
        assert_eq!(reason(&rig.repair("5", TYPE).await.unwrap()), "REPAIR_FAILED");
    }
}

#[tokio::test(start_paused = true)]
async fn the_latch_outlives_the_agent_and_so_does_one_that_cannot_be_read() {
    let (host, dir) = (Host::new(World { works: false, ..World::GOOD }), tempfile::tempdir().unwrap());
    let first = open(dir.path(), &host, ON_REQUEST).await;
    first.repair("1", TYPE).await.unwrap();
    first.repair("2", TYPE).await.unwrap();
    drop(first);
    let second = open(&dir.path().join("second"), &host, ON_REQUEST).await;
    assert!(second.repairs.status().latched);
    host.lock().record = Some(b"{\"failures\":".to_vec());
    let third = open(&dir.path().join("third"), &host, ON_REQUEST).await;
    assert!(third.repairs.status().latch_reason.contains("cannot be read"));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_edited_meanwhile_stays_as_they_wrote_it() {
    // mend, save, dump, back_up, state, replace: the edit comes just before the last.
    let rig = rig(World::GOOD, ON_REQUEST).await;
    rig.process.at(7, Fault::Edit("by = \"hand\"\n"));
    let ended = rig.repair("1", TYPE).await.unwrap();
    assert_eq!(reason(&ended), "REPAIR_CHANGED", "{ended:?}");
    let model = rig.host.lock().clone();
    assert_eq!((model.file.as_str(), model.running.as_deref()), ("by = \"hand\"\n", Some(OLD)));
    assert_eq!(rig.process.calls("restart"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_put_back_is_told_and_latches_at_once() {
    let rig = rig(World { works: false, ..World::GOOD }, ON_REQUEST).await;
    // The bus is away for good once the file is edited: neither is restarted what is to be verified, nor what is put back.
    rig.host.lock().dead = true;
    let ended = rig.repair("1", TYPE).await.unwrap();
    assert_eq!(reason(&ended), "REPAIR_RESTORE_FAILED", "{ended:?}");
    assert_eq!(rig.host.lock().file, OLD);
    assert!(rig.repairs.status().latched);
}

#[tokio::test(start_paused = true)]
async fn one_repair_at_a_time_and_the_other_is_told_who_is_at_it() {
    let rig = rig(World::GOOD, ON_REQUEST).await;
    rig.host.change(|m| m.wedged = true);
    let first = rig.repairs.repair(&caller(), request("1", TYPE)).await.unwrap().operation.unwrap();
    let second = rig.repairs.repair(&caller(), request("2", "containerd.responding")).await;
    assert!(matches!(second, Err(Error::OperationInProgress { holder, .. }) if holder == first.name));
    rig.idle().await;
}

#[tokio::test(start_paused = true)]
async fn a_wedged_unit_is_restarted_and_one_that_stays_dead_is_a_failure() {
    let rig = rig(World::GOOD, ON_REQUEST).await;
    rig.host.change(|m| m.wedged = true);
    let ended = rig.repair("1", "containerd.responding").await.unwrap();
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_eq!((rig.host.state("containerd.responding"), rig.host.lock().file.as_str()), (State::Ok, OLD));
    rig.host.change(|m| (m.dead, m.wedged) = (true, true));
    let ended = rig.repair("2", "containerd.responding").await.unwrap();
    assert_eq!(reason(&ended), "REPAIR_FAILED");
    assert!(ended.error.unwrap().message.contains("its job ended 'failed'"));
}
