//! Faults, produced for real, and what is found.

use std::{fs, time::Instant};

use nix::mount::{MsFlags, mount};
use pvelet_agent::{
    health::{Mend, State},
    host::{
        runtime::{Runtime, Sandbox},
        units::Units,
    },
};
use pvelet_tests::{
    containerd::{Containerd, PAUSE, Place},
    faults::{Fault, Repaired},
};

use crate::host::{Host, LONG, UNIT};

#[tokio::test]
async fn a_healthy_one_gives_no_alarm() {
    let host = Host::start(Place::healthy).await;
    host.containerd.wait_image(PAUSE, true).await;
    for id in host.ids() {
        // The configuration's own checks have cases of their own.
        let finding = host.heard(id).await;
        assert!(matches!(finding.state, State::Ok | State::NotApplicable), "{finding:?}");
    }
    assert_eq!(host.containerd.runtime().own_sandboxes(LONG).await.unwrap(), []);
}

#[tokio::test]
async fn a_default_runtime_without_a_type_is_found_by_the_probe_while_all_else_looks_well() {
    let without = Place::runc().replace("  runtime_type = \"io.containerd.runc.v2\"\n", "");
    let host = Host::start(|place| format!("{}{}{without}", place.head(""), place.cri(""))).await;
    host.containerd.wait_image(PAUSE, true).await;
    let finding = host.expect("containerd.sandbox", State::Failed).await;
    assert!(finding.seen.contains("container.Runtime.Name must be set"), "{finding:?}");
    assert!(finding.remedy.contains("containerd.runtime-type"), "{finding:?}");
    for id in ["containerd.unit", "containerd.responding", "containerd.runtime-ready", "containerd.network-ready", "containerd.plugins"] {
        host.expect(id, State::Ok).await;
    }
}

#[tokio::test]
async fn a_socket_that_was_removed_comes_back_with_a_restart() {
    let mut fault = Fault::new("the socket removed", "containerd.responding");
    let host = Host::start(Place::healthy).await;
    host.expect("containerd.responding", State::Ok).await;
    fs::remove_file(host.containerd.place().socket()).unwrap();
    let finding = host.expect("containerd.responding", State::Failed).await;
    assert!(finding.seen.contains("does not exist"), "{finding:?}");
    assert_eq!(finding.mend, Some(Mend::RestartUnit(UNIT.into())));
    fault.found();
    host.units.restart(UNIT, LONG).await.unwrap();
    host.expect("containerd.responding", State::Ok).await;
    fault.repaired(Repaired::Yes);
}

#[tokio::test]
async fn a_frozen_one_is_unknown_then_wedged_and_well_again_when_it_goes_on() {
    let host = Host::start(Place::healthy).await;
    host.expect("containerd.responding", State::Ok).await;
    host.containerd.freeze();
    host.expect("containerd.unit", State::Ok).await;
    host.expect("containerd.responding", State::Unknown).await;
    host.expect("containerd.responding", State::Unknown).await;
    let finding = host.expect("containerd.responding", State::Failed).await;
    assert!(finding.seen.contains("no answer within 900 ms"), "{finding:?}");
    assert_eq!(finding.mend, Some(Mend::RestartUnit(UNIT.into())));
    host.expect("containerd.runtime-ready", State::Unknown).await;
    host.expect("containerd.sandbox", State::Unknown).await;
    host.containerd.thaw();
    host.containerd.wait_image(PAUSE, true).await;
    host.expect("containerd.responding", State::Ok).await;
}

#[tokio::test]
async fn a_killed_one_is_told_and_its_unit_is_started_again() {
    let mut fault = Fault::new("killed, and its unit does not start it again", "containerd.unit");
    let host = Host::start(Place::healthy).await;
    host.expect("containerd.responding", State::Ok).await;
    host.containerd.kill();
    let finding = host.expect("containerd.responding", State::Failed).await;
    assert!(finding.seen.contains("no process listens"), "{finding:?}");
    assert_eq!(host.expect("containerd.unit", State::Failed).await.mend, Some(Mend::RestartUnit(UNIT.into())));
    host.expect("containerd.sandbox", State::Unknown).await;
    fault.found();
    host.units.restart(UNIT, LONG).await.unwrap();
    host.expect("containerd.responding", State::Ok).await;
    host.expect("containerd.unit", State::Ok).await;
    host.containerd.wait_image(PAUSE, true).await;
    host.expect("containerd.sandbox", State::Ok).await;
    fault.repaired(Repaired::Yes);
}

#[tokio::test]
async fn killed_in_the_middle_of_a_probe_nothing_is_left_after_the_next_one() {
    let mut fault = Fault::new("killed in the middle of a probe", "containerd.sandbox");
    let host = Host::start(Place::healthy).await;
    host.containerd.wait_image(PAUSE, true).await;
    let begun = || host.containerd.log().matches("RunPodSandbox for").count();
    let mut rounds = 0;
    let finding = loop {
        let before = begun();
        let killed = async {
            let end = Instant::now() + LONG;
            while begun() == before {
                assert!(Instant::now() < end, "{}", host.containerd.log());
                tokio::task::yield_now().await;
            }
            host.containerd.kill();
        };
        let (finding, ()) = tokio::join!(host.look("containerd.sandbox"), killed);
        rounds += 1;
        // Who reads the log may be too late, and the probe at its end.
        if finding.state != State::Ok || rounds == 10 {
            break finding;
        }
        host.containerd.launch().await.unwrap();
        host.containerd.wait_image(PAUSE, true).await;
    };
    assert_eq!(finding.state, State::Unknown, "{finding:?}");
    fault.found();
    host.containerd.launch().await.unwrap();
    host.containerd.wait_image(PAUSE, true).await;
    host.expect("containerd.sandbox", State::Ok).await;
    assert_eq!(host.containerd.runtime().own_sandboxes(LONG).await.unwrap(), []);
    fault.repaired(Repaired::Yes);
}

#[tokio::test]
async fn a_full_disk_is_told_by_the_file_system_and_by_the_probe() {
    let faults = ["containerd.image-fs", "containerd.sandbox"].map(|check| Fault::new("a full disk", check));
    let place = Place::new();
    let root = place.root();
    mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), Some("size=16m")).unwrap();
    let config = place.healthy();
    let host = Host::over(Containerd::at(place, |_| config)).await;
    host.containerd.wait_image(PAUSE, true).await;
    host.expect("containerd.image-fs", State::Ok).await;
    host.expect("containerd.sandbox", State::Ok).await;
    let filler = root.join("filler");
    let error = fs::write(&filler, vec![0; 17 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let finding = host.expect("containerd.image-fs", State::Failed).await;
    assert!(finding.seen.contains("100 % of the bytes"), "{finding:?}");
    let finding = host.expect("containerd.sandbox", State::Failed).await;
    assert!(finding.seen.contains("no space left on device"), "{finding:?}");
    faults.into_iter().for_each(|fault| fault.only_found(Repaired::ByHand));
    host.expect("containerd.responding", State::Ok).await;
    fs::remove_file(filler).unwrap();
    host.expect("containerd.sandbox", State::Ok).await;
}

#[tokio::test]
async fn without_its_image_no_sandbox_is_tried_and_nothing_is_pulled() {
    let fault = Fault::new("the sandbox image removed", "containerd.sandbox");
    let host = Host::start(Place::healthy).await;
    host.containerd.wait_image(PAUSE, true).await;
    host.containerd.ctr(&["images", "rm", PAUSE]);
    host.containerd.wait_image(PAUSE, false).await;
    let finding = host.expect("containerd.sandbox", State::Degraded).await;
    assert!(finding.remedy.contains(PAUSE), "{finding:?}");
    assert!(!host.containerd.log().contains("RunPodSandbox") && !host.containerd.log().contains("PullImage"));
    fault.only_found(Repaired::ByHand);
}

#[tokio::test]
async fn what_a_killed_agent_left_is_removed() {
    let host = Host::start(Place::healthy).await;
    host.containerd.wait_image(PAUSE, true).await;
    let left = host.containerd.runtime().run_sandbox(LONG).await.unwrap();
    // A second one of that name is refused, so there is never more than one.
    let error = host.containerd.runtime().run_sandbox(LONG).await.unwrap_err();
    assert!(error.to_string().contains("is reserved for"), "{error}");
    assert_eq!(host.containerd.runtime().own_sandboxes(LONG).await.unwrap(), [Sandbox { id: left, ready: true }]);
    host.expect("containerd.sandbox", State::Ok).await;
    assert_eq!(host.containerd.runtime().own_sandboxes(LONG).await.unwrap(), []);
    // Also one that a restart of the daemon has lived through.
    host.containerd.runtime().run_sandbox(LONG).await.unwrap();
    host.units.restart(UNIT, LONG).await.unwrap();
    host.containerd.wait_image(PAUSE, true).await;
    host.expect("containerd.sandbox", State::Ok).await;
    assert_eq!(host.containerd.runtime().own_sandboxes(LONG).await.unwrap(), []);
}

#[tokio::test]
async fn a_sandbox_that_somebody_else_removes_at_the_same_time_counts_as_removed() {
    let host = Host::start(Place::healthy).await;
    host.containerd.wait_image(PAUSE, true).await;
    let (agent, kubelet) = (host.containerd.runtime(), host.containerd.runtime());
    let id = agent.run_sandbox(LONG).await.unwrap();
    let (one, other) = tokio::join!(agent.remove_sandbox(&id, LONG), kubelet.remove_sandbox(&id, LONG));
    one.unwrap();
    other.unwrap();
    agent.remove_sandbox(&id, LONG).await.unwrap();
    assert_eq!(agent.own_sandboxes(LONG).await.unwrap(), []);
}

#[tokio::test]
async fn without_its_cri_plugin_it_answers_and_serves_no_pods() {
    let fault = Fault::new("without its CRI plugin", "containerd.plugins");
    let host = Host::start(|place| {
        format!("{}{}{}", place.head("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]"), place.cri(""), Place::runc())
    })
    .await;
    host.expect("containerd.responding", State::Ok).await;
    let finding = host.expect("containerd.plugins", State::Failed).await;
    assert!(finding.seen.contains("its configuration disables it"), "{finding:?}");
    fault.only_found(Repaired::NotTried);
    for id in ["containerd.version", "containerd.runtime-ready", "containerd.image-fs", "containerd.sandbox"] {
        host.expect(id, State::Unknown).await;
    }
}

#[tokio::test]
async fn a_plugin_that_could_not_be_loaded_is_told_with_its_error() {
    let fault = Fault::new("a plugin that could not be loaded", "containerd.plugins");
    let missing = Place::runc().replace("default_runtime_name = \"runc\"", "default_runtime_name = \"nix\"");
    let host = Host::start(|place| format!("{}{}{missing}", place.head(""), place.cri(""))).await;
    let finding = host.expect("containerd.plugins", State::Failed).await;
    assert!(finding.seen.contains("io.containerd.grpc.v1.cri could not be loaded: invalid plugin config"), "{finding:?}");
    host.expect("containerd.responding", State::Ok).await;
    fault.only_found(Repaired::NotTried);
}

#[tokio::test]
async fn without_a_network_plugin_the_network_is_not_ready_but_sandboxes_in_the_hosts_network_are_made() {
    let fault = Fault::new("no configuration of a pod network", "containerd.network-ready");
    let host = Host::over(Containerd::stopped_with(Place::healthy)).await;
    host.containerd.wait_image(PAUSE, true).await;
    let finding = host.expect("containerd.network-ready", State::Failed).await;
    assert!(finding.seen.contains("no network config found"), "{finding:?}");
    host.expect("containerd.runtime-ready", State::Ok).await;
    host.expect("containerd.sandbox", State::Ok).await;
    fault.only_found(Repaired::ByHand);
}
