//! The world: agents with one change each, and a controller that dies. The loop here is the one of `network/mod.rs` without the network.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use pvelet_proto::{reason, v1};

use super::{
    super::{
        super::{Action, Change, Decision, Inputs, Place, ProbeTask, Request, Sight, decide, wanted},
        network, noon,
    },
    Event, Sent,
};
use crate::{
    kind::{NETWORK_FINALIZER, NetworkHostState, NetworkVerb, ProbeStatus, PveNetwork, RETRY},
    reconcile::{Ending, HostView, Knowledge, Link, testing},
};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    None,
    Applying,
    Waiting,
    Confirmed,
    Undone,
}

#[derive(Default)]
pub(super) struct Agent {
    pub(super) has: Option<v1::NetworkSpec>,
    before: Option<v1::NetworkSpec>,
    wanted: Option<v1::NetworkSpec>,
    pub(super) stage: Stage,
    /// The request whose change was the last one.
    change: String,
    applied: u64,
    pub(super) deaf: bool,
    operations: BTreeMap<String, Knowledge>,
}

pub(super) struct Model {
    pub(super) stored: Option<PveNetwork>,
    pub(super) hosts: Vec<HostView>,
    pub(super) agents: Vec<Agent>,
    /// What must never be done, and was.
    pub(super) violations: Vec<String>,
    /// What the controller's process has been told; lost in a crash.
    memory: BTreeMap<String, Knowledge>,
    /// What was undone, not at the controller's own wish: host, verb, generation, and what the annotation said.
    undone: BTreeSet<(String, &'static str, i64, Option<String>)>,
    now: Timestamp,
    clock: u64,
}

/// What a pass has learned.
#[derive(Default)]
struct Learned {
    known: Option<Knowledge>,
    change: Option<Change>,
    /// When the connection was opened.
    opened: Option<u64>,
    probes: Option<Vec<ProbeStatus>>,
}

fn failed(reason: &str, retryable: bool) -> Knowledge {
    Knowledge::Ended(Ending::Failed { reason: reason.into(), message: "m".into(), retryable, remains: false })
}

fn operation_name(request_id: &str) -> String {
    format!("operations/{request_id}")
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            stored: Some(network()),
            hosts: ["pve1", "pve2", "pve3"].map(testing::host).to_vec(),
            agents: (0..3).map(|_| Agent::default()).collect(),
            violations: Vec::new(),
            memory: BTreeMap::new(),
            undone: BTreeSet::new(),
            now: noon(),
            clock: 0,
        }
    }

    fn at(&self, node: &str) -> usize {
        self.hosts.iter().position(|h| h.node == node).unwrap()
    }

    fn up(&self, host: usize) -> bool {
        self.hosts[host].link == Link::Up
    }

    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Pass { crash, sent } => {
                if self.pass(crash.unwrap_or(u8::MAX), sent).is_none() {
                    self.memory.clear();
                }
            }
            Event::Progress(well) => (0..3).for_each(|host| self.progress(host, well)),
            Event::Expire => {
                let waiting: Vec<usize> = (0..3).filter(|h| self.agents[*h].stage == Stage::Waiting).collect();
                waiting.into_iter().for_each(|host| self.undo(host));
            }
            Event::Tick(seconds) => self.now += SignedDuration::from_secs(seconds),
            Event::Toggle(host) => {
                let down = Link::Down { reason: "AgentUnreachable", message: String::new() };
                let link = &mut self.hosts[host].link;
                *link = if *link == Link::Up { down } else { Link::Up };
                self.reconnect(host);
            }
            Event::Restart(host, lost) => {
                if self.agents[host].stage == Stage::Applying {
                    self.undo(host);
                }
                if lost {
                    self.agents[host].operations.clear();
                    // One whose name was never told can be confirmed by nobody: its deadline undoes it. And nobody can tell that it was undone.
                    let attempt = self.stored.as_ref().and_then(|n| n.status.operation.clone());
                    let named = attempt.as_ref().and_then(|a| a.name.clone());
                    if self.agents[host].stage == Stage::Waiting && named != Some(operation_name(&self.agents[host].change)) {
                        self.undo(host);
                    }
                    if let Some(a) = attempt.filter(|a| a.name.is_none() && a.node == self.hosts[host].node) {
                        self.undone.remove(&(a.node, a.verb.as_str(), a.generation, a.retry));
                    }
                }
                self.reconnect(host);
            }
            Event::Deafen(host) => self.agents[host].deaf ^= true,
            Event::Meddle(host) => {
                if !matches!(self.agents[host].stage, Stage::Applying | Stage::Waiting) {
                    self.agents[host].has = None;
                }
            }
            Event::Edit(n) => {
                if let Some(network) = &mut self.stored {
                    network.metadata.generation += 1;
                    network.spec.interfaces[0].vlan.as_mut().unwrap().id = 100 + u32::from(n & 1);
                    let names =
                        ["pve1", "pve2", "pve3"].into_iter().enumerate().filter(|(i, _)| n & (2 << i) == 0).map(|(_, n)| n.to_owned());
                    network.spec.hosts.names = names.collect();
                }
            }
            Event::Again => {
                self.clock += 1;
                if let Some(network) = &mut self.stored {
                    network.metadata.annotations.insert(RETRY.into(), self.clock.to_string());
                }
            }
            Event::Delete => {
                if let Some(network) = &mut self.stored {
                    network.metadata.deletion_timestamp.get_or_insert(self.now);
                }
                // The store lets an object without finalizers go at once.
                self.stored.take_if(|n| n.metadata.finalizers.is_empty());
            }
        }
    }

    /// What runs is forgotten with the connection; what ended is told by the next one.
    fn reconnect(&mut self, host: usize) {
        let mine = self.hosts[host].node.clone();
        self.memory.retain(|id, known| !id.contains(&format!(":{mine}:")) || matches!(known, Knowledge::Ended(_)));
        if self.up(host) {
            let told = self.agents[host].operations.clone();
            self.memory.extend(told);
        }
    }

    fn end(&mut self, host: usize, known: Knowledge) {
        let id = self.agents[host].change.clone();
        if let Some(operation) = self.agents[host].operations.get_mut(&id) {
            *operation = known.clone();
            if self.up(host) {
                self.memory.insert(id, known);
            }
        }
    }

    fn progress(&mut self, host: usize, well: bool) {
        if self.agents[host].stage != Stage::Applying {
            return;
        }
        if !well {
            self.undo(host);
            return;
        }
        self.clock += 1;
        let agent = &mut self.agents[host];
        agent.has.clone_from(&agent.wanted);
        agent.stage = Stage::Waiting;
        agent.applied = self.clock;
    }

    fn undo(&mut self, host: usize) {
        let attempt = self.stored.as_ref().and_then(|n| n.status.operation.clone());
        let wished = attempt.as_ref().is_some_and(|a| a.undo.as_ref().is_some_and(|u| u.reason == "Superseded"));
        let agent = &mut self.agents[host];
        agent.has = agent.before.take();
        agent.stage = Stage::Undone;
        self.end(host, failed(reason::NETWORK_ROLLED_BACK, false));
        // Without the journal and its name nobody can tell whose change it was.
        let told = attempt
            .filter(|a| !wished && self.agents[host].change == a.request_id && self.agents[host].operations.contains_key(&a.request_id));
        if let Some(a) = told {
            self.undone.insert((a.node, a.verb.as_str(), a.generation, a.retry));
        }
    }

    /// `None` when the controller died in it.
    fn pass(&mut self, crash_after: u8, sent: Sent) -> Option<()> {
        let mut network = self.stored.clone()?;
        let (mut learned, mut seen, mut finalizer) = (Learned::default(), BTreeMap::new(), false);
        for step in 0..40u8 {
            if step == crash_after {
                return None;
            }
            let Decision { status, finalizer: needed, action } = self.decide(&network, &learned, &seen);
            let id = |n: &PveNetwork| n.status.operation.as_ref().map(|a| a.request_id.clone());
            let before = id(&network);
            finalizer |= needed;
            network.status = status;
            if action == Action::Again {
                (learned, seen) = (Learned::default(), BTreeMap::new());
                continue;
            }
            self.stored.as_mut()?.status = network.status.clone();
            if finalizer && network.metadata.finalizers.is_empty() {
                network.metadata.finalizers.push(NETWORK_FINALIZER.into());
                self.stored.as_mut()?.metadata.finalizers = network.metadata.finalizers.clone();
            }
            if id(&network) != before && id(&network).is_some() {
                learned = Learned { known: Some(Knowledge::Unsent), ..Learned::default() };
            }
            match action {
                Action::Again | Action::Wait(_) => return Some(()),
                Action::Observe(place, request) => {
                    let host = self.at(&place.1);
                    if !self.up(host) {
                        self.violations.push(format!("{} is asked while it is away", place.1));
                    }
                    seen.insert(place, self.plan(host, request.network.as_ref()));
                }
                Action::Release => {
                    self.stored = None;
                    return Some(());
                }
                action => self.act(&network, action, &mut learned, sent)?,
            }
            if learned.known.is_none() && network.status.operation.is_some() && sent != Sent::Answered {
                return Some(());
            }
        }
        panic!("no rest: {:?}", self.stored.as_ref().map(|n| &n.status));
    }

    fn act(&mut self, network: &PveNetwork, action: Action, learned: &mut Learned, sent: Sent) -> Option<()> {
        let attempt = network.status.operation.clone()?;
        let host = self.at(&attempt.node);
        match action {
            Action::LookUp => learned.known = Some(self.look_up(host, &attempt.request_id)),
            Action::Ask => {
                let agent = &self.agents[host];
                let ours = attempt.name == Some(operation_name(&agent.change));
                learned.change = Some(match agent.stage {
                    _ if !ours => Change::Other,
                    Stage::None => Change::Other,
                    Stage::Applying => Change::UnderWay,
                    Stage::Waiting => Change::Waiting,
                    Stage::Confirmed => Change::Confirmed,
                    Stage::Undone => Change::Undone("m".into()),
                });
            }
            Action::Call(request) => {
                *learned = Learned::default();
                if sent != Sent::LostBefore {
                    self.call(network, host, &attempt.request_id, *request);
                }
                if sent == Sent::Answered {
                    learned.known = Some(self.look_up(host, &attempt.request_id));
                }
            }
            Action::Connect => {
                self.clock += 1;
                learned.opened = Some(self.clock);
            }
            Action::Probe(tasks) => learned.probes = Some(tasks.iter().map(|t| self.probe(host, t)).collect()),
            Action::Confirm(_) => {
                let opened = learned.opened.take();
                *learned = Learned::default();
                self.confirm(network, host, opened, attempt.verb, &attempt.request_id);
                learned.known = Some(self.look_up(host, &attempt.request_id));
            }
            Action::Rollback(_) => {
                *learned = Learned::default();
                if self.agents[host].stage == Stage::Waiting && self.agents[host].change == attempt.request_id {
                    self.undo(host);
                }
                learned.known = Some(self.look_up(host, &attempt.request_id));
            }
            Action::Wait(_) | Action::Again | Action::Observe(..) | Action::Release => {}
        }
        Some(())
    }

    fn confirm(&mut self, network: &PveNetwork, host: usize, opened: Option<u64>, verb: NetworkVerb, request_id: &str) {
        let agent = &self.agents[host];
        if agent.stage != Stage::Waiting || agent.change != request_id {
            return;
        }
        if opened.is_none_or(|opened| opened <= agent.applied) {
            self.violations.push("confirmed over a connection from before the change".into());
        }
        let generation = network.metadata.generation;
        let peers = network.status.hosts.iter().filter(|h| {
            let other = h.node != self.hosts[host].node && h.state == NetworkHostState::Ready && h.applied_generation == generation;
            other && network.spec.hosts.names.contains(&h.name) && self.up(self.at(&h.node))
        });
        if verb == NetworkVerb::Apply && agent.deaf && peers.count() > 0 {
            self.violations.push("confirmed though no frame got through".into());
        }
        self.agents[host].stage = Stage::Confirmed;
        self.end(host, Knowledge::Ended(Ending::Succeeded { vmid: 0, uuid: String::new() }));
    }

    fn probe(&self, from: usize, task: &ProbeTask) -> ProbeStatus {
        let ok = !self.agents[from].deaf && !self.agents[self.at(&task.place.1)].deaf;
        ProbeStatus { peer: task.peer.clone(), interface: "eth1.100".into(), vlan: 0, ok, mtu: 1500, rtt_us: 1, message: String::new() }
    }

    fn plan(&self, host: usize, wanted: Option<&v1::NetworkSpec>) -> Sight {
        if self.agents[host].has.as_ref() == wanted { Sight::InSync } else { Sight::Differs(vec!["~".into()]) }
    }

    fn look_up(&mut self, host: usize, request_id: &str) -> Knowledge {
        let known = self.agents[host].operations.get(request_id).cloned().unwrap_or(Knowledge::Absent);
        if known != Knowledge::Absent {
            self.memory.insert(request_id.to_owned(), known.clone());
        }
        known
    }

    fn call(&mut self, network: &PveNetwork, host: usize, request_id: &str, request: Request) {
        let node = self.hosts[host].node.clone();
        if !self.up(host) {
            self.violations.push(format!("{node} is changed while it is away"));
        }
        if self.agents[host].operations.contains_key(request_id) {
            return;
        }
        let retry = network.retry().map(str::to_owned);
        let generation = network.metadata.generation;
        let selected: Vec<&str> = network.spec.hosts.names.iter().map(String::as_str).filter(|_| !network.is_deleting()).collect();
        let stopped = self.undone.iter().find(|(node, verb, of, then)| {
            let wish = if selected.contains(&node.as_str()) { "apply" } else { "remove" };
            *of == generation && *then == retry && *verb == wish
        });
        if let Some(stopped) = stopped {
            self.violations.push(format!("begun on {node} after {stopped:?} was undone"));
        }
        let (wanted, busy) = match request {
            Request::Apply(r) => (r.network, matches!(self.agents[host].stage, Stage::Applying | Stage::Waiting)),
            Request::Remove(_) => (None, matches!(self.agents[host].stage, Stage::Applying | Stage::Waiting)),
        };
        let known = if busy { failed(reason::OPERATION_IN_PROGRESS, true) } else { Knowledge::Active { name: operation_name(request_id) } };
        let agent = &mut self.agents[host];
        agent.operations.insert(request_id.to_owned(), known);
        if !busy {
            agent.before.clone_from(&agent.has);
            (agent.wanted, agent.stage, agent.change) = (wanted, Stage::Applying, request_id.to_owned());
        }
    }

    fn decide(&self, network: &PveNetwork, learned: &Learned, seen: &BTreeMap<Place, Sight>) -> Decision {
        let told = network.status.operation.as_ref().and_then(|a| self.memory.get(&a.request_id).cloned());
        let inputs = Inputs {
            network,
            hosts: &self.hosts,
            taken: &BTreeMap::new(),
            busy: None,
            known: told.or_else(|| learned.known.clone()).unwrap_or(Knowledge::Unsure),
            change: learned.change.clone(),
            connected: learned.opened.is_some(),
            probes: learned.probes.as_deref(),
            seen,
            now: self.now,
        };
        debug_assert!(wanted(&inputs).len() <= 3);
        decide(&inputs)
    }
}
