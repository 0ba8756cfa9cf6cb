//! Whatever happens, in whatever order: never two hosts in change at once, nothing confirmed over a connection from before the change or
//! against a failed probe, and nothing begun after a change was undone before somebody says so.

mod model;

use proptest::prelude::*;

use self::model::{Model, Stage};
use crate::reconcile::Link;

#[derive(Debug, Clone)]
enum Event {
    /// The controller works; a crash after so many steps, and what becomes of what it sends.
    Pass { crash: Option<u8>, sent: Sent },
    /// Agents bring what they were told to do up, well or not.
    Progress(bool),
    /// Deadlines are over.
    Expire,
    /// Time passes.
    Tick(i64),
    /// A host goes away or comes back.
    Toggle(usize),
    /// An agent restarts, with or without its journal.
    Restart(usize, bool),
    /// Frames to a host are lost from now on, or no longer.
    Deafen(usize),
    /// Somebody takes the network away by hand.
    Meddle(usize),
    /// The spec changes: hosts and VLAN.
    Edit(u8),
    /// Somebody says "again".
    Again,
    /// The object is to go.
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Sent {
    Answered,
    LostAfter,
    LostBefore,
}

fn event() -> impl Strategy<Value = Event> {
    let sent = prop_oneof![5 => Just(Sent::Answered), 2 => Just(Sent::LostAfter), 1 => Just(Sent::LostBefore)];
    prop_oneof![
        12 => (proptest::option::weighted(0.35, 0u8..14), sent).prop_map(|(crash, sent)| Event::Pass { crash, sent }),
        7 => prop::bool::weighted(0.8).prop_map(Event::Progress),
        1 => Just(Event::Expire),
        3 => (0i64..400).prop_map(Event::Tick),
        2 => (0usize..3).prop_map(Event::Toggle),
        1 => (0usize..3, prop::bool::weighted(0.3)).prop_map(|(host, lost)| Event::Restart(host, lost)),
        2 => (0usize..3).prop_map(Event::Deafen),
        1 => (0usize..3).prop_map(Event::Meddle),
        2 => (0u8..16).prop_map(Event::Edit),
        1 => Just(Event::Again),
        1 => Just(Event::Delete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_breaks_the_rules(events in prop::collection::vec(event(), 1..80)) {
        let mut model = Model::new();
        for event in events {
            model.apply(event.clone());
            let changing = model.agents.iter().filter(|a| matches!(a.stage, Stage::Applying | Stage::Waiting)).count();
            prop_assert!(changing <= 1, "after {event:?}: {changing} hosts are being changed");
            prop_assert_eq!(&model.violations, &Vec::<String>::new(), "after {:?}", event);
        }
    }

    /// Once the world behaves and somebody has said "again", every host has what the spec says, or nothing.
    #[test]
    fn when_the_world_behaves_again_the_end_is_reached(events in prop::collection::vec(event(), 1..60)) {
        let mut model = Model::new();
        for event in events {
            model.apply(event);
        }
        for (host, agent) in model.hosts.iter_mut().zip(&mut model.agents) {
            host.link = Link::Up;
            agent.deaf = false;
        }
        model.apply(Event::Again);
        for _ in 0..40 {
            model.apply(Event::Tick(400));
            model.apply(Event::Pass { crash: None, sent: Sent::Answered });
            model.apply(Event::Progress(true));
        }
        model.apply(Event::Pass { crash: None, sent: Sent::Answered });
        match &model.stored {
            Some(network) => {
                prop_assert!(network.status.operation.is_none(), "{:?}", network.status);
                for (host, agent) in model.hosts.iter().zip(&model.agents) {
                    let wanted = network.spec.hosts.names.contains(&host.name);
                    let wanted = wanted.then(|| network.spec.on_host("storage", network.tenant(), &host.name).unwrap());
                    prop_assert_eq!(&agent.has, &wanted, "{}: {:?}", host.name, network.status);
                }
            }
            None => prop_assert!(model.agents.iter().all(|a| a.has.is_none())),
        }
        prop_assert_eq!(model.violations, Vec::<String>::new());
    }
}
