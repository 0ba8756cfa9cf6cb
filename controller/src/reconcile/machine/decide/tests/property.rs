//! Whatever happens, in whatever order: never two VMs for one machine, never two volumes for one disk, and nothing lost that is to be kept.
//!
//! A model of the world (agents that keep operations by request id, events that come late, answers that get lost, a controller that dies
//! between any two steps) drives the real decisions. The loop here is the one of `machine/mod.rs` without the network.

mod model;

use proptest::prelude::*;

use self::model::{DATA, KEPT, Model};
use crate::reconcile::Link;

#[derive(Debug, Clone)]
enum Event {
    /// The controller works; a crash after so many steps (from 100: between status and finalizer), and what becomes of what it sends.
    Pass { crash: Option<u8>, sent: Sent },
    /// The agents finish what they were told to do.
    Finish(bool),
    /// Time passes, and what happened is told meanwhile.
    Tick(i64),
    /// A host goes away or comes back.
    Toggle(usize),
    /// The VM moves to another node.
    Migrate(usize),
    /// Somebody removes the VM.
    Remove,
    /// Somebody detaches all disks, or puts them aside.
    Detach(bool),
    /// The VM stops.
    Stop,
    /// The spec changes.
    Edit(u8),
    /// The connections were lost: what the agents had told of operations is forgotten.
    Forget,
    /// The object is to go.
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Sent {
    Answered,
    LostAfter,
    LostBefore,
    RefusedForNow,
    Refused,
}

fn event() -> impl Strategy<Value = Event> {
    let sent = prop_oneof![
        4 => Just(Sent::Answered),
        2 => Just(Sent::LostAfter),
        1 => Just(Sent::LostBefore),
        1 => Just(Sent::RefusedForNow),
        1 => Just(Sent::Refused),
    ];
    prop_oneof![
        10 => (proptest::option::weighted(0.4, prop_oneof![0u8..8, 100u8..108]), sent).prop_map(|(crash, sent)| Event::Pass { crash, sent }),
        5 => prop::bool::weighted(0.7).prop_map(Event::Finish),
        4 => (0i64..400).prop_map(Event::Tick),
        2 => (0usize..3).prop_map(Event::Toggle),
        1 => (0usize..3).prop_map(Event::Migrate),
        1 => Just(Event::Remove),
        1 => prop::bool::ANY.prop_map(Event::Detach),
        1 => Just(Event::Stop),
        2 => (0u8..32).prop_map(Event::Edit),
        1 => Just(Event::Forget),
        1 => Just(Event::Delete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_makes_two_vms(recreate: bool, events in prop::collection::vec(event(), 1..80)) {
        let mut model = Model::new(recreate);
        for event in events {
            model.apply(event.clone());
            prop_assert!(model.vms.len() <= 1, "after {event:?}: {:?}", model.vms);
            prop_assert!(recreate || model.made <= 1, "made {} VMs without being allowed to", model.made);
            prop_assert_eq!(model.disks_with_two_volumes(), Vec::<String>::new(), "after {:?}", event);
            prop_assert_eq!(&model.violations, &Vec::<String>::new(), "after {:?}", event);
        }
    }

    /// Once the world behaves, the machine gets its VM with its disks, or, when it is to go, leaves nothing but what is to be kept.
    #[test]
    fn when_the_world_behaves_again_the_end_is_reached(events in prop::collection::vec(event(), 1..60)) {
        let mut model = Model::new(true);
        for event in events {
            model.apply(event);
        }
        for host in &mut model.hosts {
            host.link = Link::Up;
        }
        for _ in 0..60 {
            model.apply(Event::Tick(400));
            model.apply(Event::Pass { crash: None, sent: Sent::Answered });
            model.apply(Event::Finish(true));
        }
        match &model.stored {
            Some(machine) => {
                prop_assert_eq!(model.vms.len(), 1, "{:?}", machine.status);
                prop_assert!(machine.status.operation.is_none(), "{:?}", machine.status);
                let reason = machine.status.conditions.iter().find(|c| c.kind == "DisksReady").map(|c| c.reason.as_str());
                let attached: Vec<&str> = model.vms[0].disks.iter().filter(|d| !d.is_aside()).map(|d| d.volume_id.as_str()).collect();
                for (id, disk) in machine.spec.disks_of(&machine.metadata.uid) {
                    let there = attached.contains(&id.to_string().as_str());
                    prop_assert!(there || reason == Some("DiskOnOtherHost"), "{} is not attached: {:?}", disk.name, machine.status);
                }
                let unwanted = !machine.spec.disks.iter().any(|d| d.name == "data");
                prop_assert!(!(unwanted && model.has_volume(DATA)), "{:?}", machine.status);
            }
            None => {
                prop_assert_eq!(model.vms.len(), 0);
                prop_assert!(!model.has_volume(DATA));
            }
        }
        for kept in KEPT {
            prop_assert!(model.has_volume(kept) || !model.ever.contains(kept), "{kept} is lost");
        }
        prop_assert_eq!(model.violations, Vec::<String>::new());
    }
}
