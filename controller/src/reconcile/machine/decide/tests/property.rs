//! Whatever happens, in whatever order: never two VMs for one machine.
//!
//! A model of the world (agents that keep operations by request id, events that come late, answers that get lost, a controller that dies
//! between any two steps) drives the real decisions. The loop here is the one of `machine/mod.rs` without the network.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::super::{Action, Ending, Inputs, Knowledge, Request, decide};
use crate::{
    kind::{ActionKind, MACHINE_FINALIZER, PveMachine, RecreatePolicy, RunPolicy},
    placement::{Candidate, Size},
    reconcile::{HostView, Link, RunState, Sighting, VmView, testing},
};

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
        1 => Just(Event::Stop),
        1 => (0u8..4).prop_map(Event::Edit),
        1 => Just(Event::Forget),
        1 => Just(Event::Delete),
    ]
}

/// An operation at an agent: on which node, what, and how it stands.
struct Operation {
    node: String,
    kind: ActionKind,
    known: Knowledge,
}

struct Model {
    stored: Option<PveMachine>,
    hosts: Vec<HostView>,
    /// What really exists.
    vms: Vec<VmView>,
    /// What agents have told.
    told: Vec<VmView>,
    operations: BTreeMap<String, Operation>,
    /// What the controller's process has learned; lost in a crash.
    memory: BTreeMap<String, Knowledge>,
    now: Timestamp,
    made: u32,
}

impl Model {
    fn new(recreate: bool) -> Self {
        let mut machine = testing::machine("web-1");
        machine.spec.recreate_policy = if recreate { RecreatePolicy::Recreate } else { RecreatePolicy::Never };
        Self {
            stored: Some(machine),
            hosts: ["pve1", "pve2", "pve3"].map(testing::host).to_vec(),
            vms: Vec::new(),
            told: Vec::new(),
            operations: BTreeMap::new(),
            memory: BTreeMap::new(),
            now: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1),
            made: 0,
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Pass { crash, sent } => {
                if self.pass(crash.unwrap_or(u8::MAX), sent).is_none() {
                    self.memory.clear();
                }
            }
            Event::Finish(well) => self.finish(well),
            Event::Tick(seconds) => {
                self.told.clone_from(&self.vms);
                self.now += SignedDuration::from_secs(seconds);
            }
            Event::Toggle(i) => {
                let down = Link::Down { reason: "AgentUnreachable", message: String::new() };
                let link = &mut self.hosts[i].link;
                *link = if *link == Link::Up { down } else { Link::Up };
                // A new connection begins with all that exists.
                self.told.clone_from(&self.vms);
            }
            Event::Migrate(i) => self.vms.iter_mut().for_each(|vm| vm.node = format!("pve{}", i + 1)),
            Event::Remove => self.vms.clear(),
            Event::Stop => self.vms.iter_mut().for_each(|vm| vm.state = RunState::Stopped),
            Event::Edit(n) => {
                if let Some(machine) = &mut self.stored {
                    machine.metadata.generation += 1;
                    machine.spec.cores = Some(u32::from(n) + 1);
                    machine.spec.run_policy = if n % 2 == 0 { RunPolicy::Always } else { RunPolicy::Manual };
                }
            }
            Event::Forget => self.memory.clear(),
            Event::Delete => {
                if let Some(machine) = &mut self.stored {
                    machine.metadata.deletion_timestamp.get_or_insert(self.now);
                }
                // The store lets an object without finalizers go at once.
                self.stored.take_if(|m| m.metadata.finalizers.is_empty());
            }
        }
    }

    /// `None` when the controller died in it.
    fn pass(&mut self, crash_after: u8, sent: Sent) -> Option<()> {
        let mut machine = self.stored.clone()?;
        let mut learned: Option<Knowledge> = None;
        let mut finalizer = false;
        for step in 0..20u8 {
            if step == crash_after {
                return None;
            }
            let known = learned.clone().or_else(|| self.memory.get(&machine.status.operation.as_ref()?.request_id).cloned());
            let decision = self.decide(&machine, known.unwrap_or(Knowledge::Unsure));
            let id = |m: &PveMachine| m.status.operation.as_ref().map(|a| a.request_id.clone());
            let before = id(&machine);
            finalizer |= decision.finalizer;
            machine.status = decision.status;
            if decision.action == Action::Again {
                learned = None;
                continue;
            }
            self.stored.as_mut()?.status = machine.status.clone();
            if finalizer && crash_after == 100 + step {
                return None;
            }
            if finalizer && machine.metadata.finalizers.is_empty() {
                machine.metadata.finalizers.push(MACHINE_FINALIZER.into());
                self.stored.as_mut()?.metadata.finalizers = machine.metadata.finalizers.clone();
            }
            if id(&machine) != before {
                learned = Some(Knowledge::Unsent);
            }
            match decision.action {
                Action::Again | Action::Wait(_) => return Some(()),
                Action::LookUp => learned = Some(self.look_up(&id(&machine)?)),
                Action::Call(request) => {
                    let unsent = learned == Some(Knowledge::Unsent);
                    match self.send(&machine, &request, unsent, sent) {
                        Some(known) => learned = Some(known),
                        None => return Some(()),
                    }
                }
                Action::Cancel(_) => {
                    let request_id = id(&machine)?;
                    if let Some(operation) = self.operations.get_mut(&request_id) {
                        operation.known = failed("CANCELLED", true);
                        self.memory.insert(request_id, operation.known.clone());
                    }
                    return Some(());
                }
                Action::Release => {
                    self.stored = None;
                    return Some(());
                }
            }
        }
        panic!("no rest: {:?}", self.stored.as_ref().map(|m| &m.status));
    }

    fn decide(&self, machine: &PveMachine, known: Knowledge) -> super::super::Decision {
        let candidate = |host: &HostView| Candidate {
            host: host.clone(),
            used_memory_mib: 0,
            used_cores: 0,
            template: Some(Size { memory_mib: 512, cores: 1 }),
        };
        let candidates: Vec<Candidate> = self.hosts.iter().map(candidate).collect();
        let up = self.hosts.iter().filter(|h| h.link == Link::Up);
        let sightings: Vec<Sighting> = up
            .flat_map(|host| {
                self.told.iter().map(|vm| Sighting { cluster: "lab".into(), seen_by: host.node.clone(), vm: Arc::new(vm.clone()) })
            })
            .collect();
        decide(&Inputs {
            machine,
            controller: "test",
            hosts: &self.hosts,
            sightings: &sightings,
            candidates: &candidates,
            orphan: None,
            known,
            stop_order: None,
            now: self.now,
        })
    }

    fn look_up(&mut self, request_id: &str) -> Knowledge {
        let known = self.operations.get(request_id).map_or(Knowledge::Absent, |o| o.known.clone());
        if known != Knowledge::Absent {
            self.memory.insert(request_id.to_owned(), known.clone());
        }
        known
    }

    fn send(&mut self, machine: &PveMachine, request: &Request, unsent: bool, sent: Sent) -> Option<Knowledge> {
        let attempt = machine.status.operation.clone().unwrap();
        let arrives = matches!(sent, Sent::Answered | Sent::LostAfter);
        if arrives && !self.operations.contains_key(&attempt.request_id) {
            let known = Knowledge::Active { name: attempt.request_id.clone() };
            let target = match request {
                Request::Clone(_) => None,
                Request::Configure(r) => r.vm.clone(),
                Request::Start(r) => r.vm.clone(),
                Request::Shutdown(r) => r.vm.clone(),
                Request::Delete(r) => r.vm.clone(),
            };
            let here = |vm: &&VmView| target.as_ref().is_some_and(|t| t.uuid == vm.uuid && t.vmid == vm.vmid) && vm.node == attempt.node;
            if attempt.action != ActionKind::Clone && self.vms.iter().find(here).is_none() {
                return Some(refused());
            }
            self.operations.insert(attempt.request_id.clone(), Operation { node: attempt.node, kind: attempt.action, known });
        }
        match sent {
            Sent::Answered => Some(self.look_up(&attempt.request_id)),
            Sent::LostAfter | Sent::LostBefore => None,
            Sent::RefusedForNow | Sent::Refused if unsent => Some(refused()),
            Sent::RefusedForNow | Sent::Refused => match self.look_up(&attempt.request_id) {
                Knowledge::Absent if sent == Sent::RefusedForNow => None,
                Knowledge::Absent => Some(refused()),
                known => Some(known),
            },
        }
    }

    /// All that is under way ends, and most of it is told.
    fn finish(&mut self, well: bool) {
        for (id, operation) in &mut self.operations {
            if !matches!(operation.known, Knowledge::Active { .. }) {
                continue;
            }
            operation.known = if well {
                let (vmid, uuid) = match operation.kind {
                    ActionKind::Clone => {
                        self.made += 1;
                        let vm = VmView {
                            vmid: 100 + self.made,
                            uuid: format!("uuid-{}", self.made),
                            node: operation.node.clone(),
                            ..testing::vm(RunState::Stopped)
                        };
                        let named = (vm.vmid, vm.uuid.clone());
                        self.vms.push(vm);
                        named
                    }
                    ActionKind::Delete => {
                        self.vms.clear();
                        (0, String::new())
                    }
                    ActionKind::Start | ActionKind::Configure | ActionKind::Shutdown => {
                        let run = operation.kind == ActionKind::Start;
                        self.vms.iter_mut().for_each(|vm| vm.state = if run { RunState::Running } else { vm.state });
                        (0, String::new())
                    }
                };
                Knowledge::Ended(Ending::Succeeded { vmid, uuid })
            } else {
                failed("PVE_FAILED", false)
            };
            self.memory.insert(id.clone(), operation.known.clone());
        }
    }
}

fn failed(reason: &str, retryable: bool) -> Knowledge {
    Knowledge::Ended(Ending::Failed { reason: reason.into(), message: "m".into(), retryable, remains: false })
}

fn refused() -> Knowledge {
    Knowledge::Refused(Ending::Failed { reason: "VM_LOCKED".into(), message: "m".into(), retryable: true, remains: false })
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
        }
    }

    /// Once the world behaves, the machine gets its VM, or, when it is to go, leaves nothing.
    #[test]
    fn when_the_world_behaves_again_the_end_is_reached(events in prop::collection::vec(event(), 1..60)) {
        let mut model = Model::new(true);
        for event in events {
            model.apply(event);
        }
        for host in &mut model.hosts {
            host.link = Link::Up;
        }
        for _ in 0..40 {
            model.apply(Event::Tick(400));
            model.apply(Event::Pass { crash: None, sent: Sent::Answered });
            model.apply(Event::Finish(true));
        }
        match &model.stored {
            Some(machine) => {
                prop_assert_eq!(model.vms.len(), 1, "{:?}", machine.status);
                prop_assert!(machine.status.operation.is_none(), "{:?}", machine.status);
            }
            None => prop_assert_eq!(model.vms.len(), 0),
        }
    }
}
