#![allow(clippy::unwrap_used)]
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::{
    kind::{HostSpec, HostStatus, Metadata, Quantity},
    reconcile::testing,
};

fn host(name: &str, address: &str) -> PveHost {
    PveHost {
        metadata: Metadata { name: name.into(), uid: format!("uid-{name}"), generation: 1, ..Metadata::default() },
        spec: HostSpec {
            address: address.into(),
            cluster: "lab".into(),
            node: name.into(),
            cordon: false,
            maintenance: false,
            reserved_memory: Quantity(0),
            cpu_overcommit: 4,
            kubernetes_node: None,
        },
        status: HostStatus::default(),
    }
}

/// A fleet of one host, to which nobody connects.
async fn fleet() -> (Arc<Fleet>, Arc<Session>, mpsc::UnboundedReceiver<Wake>) {
    let (wake, woken) = mpsc::unbounded_channel();
    let epoch = Epoch { lease_uid: "lease".into(), transitions: 1 };
    let fleet = Arc::new(Fleet::new(testing::agents().1, "test".into(), epoch, wake));
    fleet.apply(&host("pve1", "192.0.2.1:7443"));
    let session = fleet.named("pve1").unwrap();
    fleet.sessions().by_name["pve1"].task.abort();
    (fleet, session, woken)
}

#[tokio::test]
async fn a_host_and_its_vms_are_looked_at_in_one_moment() {
    let (fleet, session, _woken) = fleet().await;
    session.state().vms.insert(Arc::new(testing::vm(RunState::Running)));
    let status = MachineStatus { cluster: Some("lab".into()), uuid: Some(testing::UUID.into()), ..MachineStatus::default() };
    let stop = Arc::new(AtomicBool::new(false));
    // The connection comes and goes all the time.
    let flaps = std::thread::spawn({
        let (session, stop) = (Arc::clone(&session), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                for link in [Link::Up, Link::Connecting] {
                    Arc::make_mut(&mut session.state().view).link = link;
                }
            }
        }
    });
    let mut seen = (false, false);
    while seen != (true, true) {
        for _ in 0..1000 {
            let (hosts, found) = fleet.look(testing::UID, &status, None);
            let up = hosts[0].link == Link::Up;
            // A host that is told to be there, and its VM not: that would be a VM that is gone.
            assert_eq!(up, !found.is_empty());
            seen = (seen.0 || up, seen.1 || !up);
        }
    }
    stop.store(true, Ordering::Relaxed);
    flaps.join().unwrap();
}

#[test]
fn a_vm_that_takes_less_frees_room_and_a_template_may_be_what_was_missing() {
    let vm = |state, memory_mib, template| VmView { memory_mib, template, ..testing::vm(state) };
    let (small, large) = (vm(RunState::Running, 1024, false), vm(RunState::Running, 2048, false));
    let (paused, stopped) = (vm(RunState::Paused, 2048, false), vm(RunState::Stopped, 2048, false));
    let template = vm(RunState::Stopped, 2048, true);
    let one_core = VmView { cores: 1, ..large.clone() };
    type Row<'a> = (&'static str, Option<&'a VmView>, Option<&'a VmView>, Room);
    let rows: &[Row<'_>] = &[
        ("it stops", Some(&large), Some(&stopped), Room::Freed),
        ("it is gone", Some(&large), None, Room::Freed),
        ("it has less memory", Some(&large), Some(&small), Room::Freed),
        ("it has fewer cores", Some(&large), Some(&one_core), Room::Freed),
        ("it was paused, and stops", Some(&paused), Some(&stopped), Room::Freed),
        ("it is paused", Some(&large), Some(&paused), Room::Same),
        ("it has more memory", Some(&small), Some(&large), Room::Same),
        ("it starts", Some(&stopped), Some(&large), Room::Same),
        ("what did not run is gone", Some(&stopped), None, Room::Same),
        ("a template comes", None, Some(&template), Room::Template),
        ("a template changes", Some(&template), Some(&template), Room::Template),
        ("a template goes", Some(&template), None, Room::Template),
        ("it becomes a template", Some(&stopped), Some(&template), Room::Template),
        ("it is a template no more", Some(&template), Some(&stopped), Room::Template),
    ];
    for (name, old, new, want) in rows {
        assert_eq!(Room::after(*old, *new), *want, "{name}");
    }
}

#[tokio::test]
async fn a_host_that_is_removed_or_moved_leaves_nothing_behind() {
    let (fleet, session, mut woken) = fleet().await;
    session.state().vms.insert(Arc::new(testing::vm(RunState::Running)));
    // Another node: another session.
    let mut moved = host("pve1", "192.0.2.1:7443");
    moved.spec.node = "pve2".into();
    fleet.apply(&moved);
    assert_eq!(session.state().vms.all().count(), 0);
    assert!(fleet.session("lab", "pve1").is_none() && fleet.session("lab", "pve2").is_some());
    fleet.remove("pve1");
    assert!(fleet.session("lab", "pve2").is_none() && fleet.of_cluster("lab").is_empty() && fleet.hosts().is_empty());
    assert_eq!(woken.try_recv().unwrap(), Wake::Host("pve1".into()));
}
