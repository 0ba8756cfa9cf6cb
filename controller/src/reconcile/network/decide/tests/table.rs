//! One row a scenario: how the world is, what is done, and what `Ready` says.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use pvelet_proto::reason;

use super::{super::*, network, noon};
use crate::{
    kind::{ABANDON, ConditionStatus, DeletionPolicy, NETWORK_FINALIZER, NetworkHostState as State, RETRY, set_condition},
    reconcile::{Ending, Link, testing},
};

#[derive(Clone)]
struct World {
    network: PveNetwork,
    hosts: Vec<HostView>,
    taken: BTreeMap<Place, String>,
    busy: Option<&'static str>,
    known: Knowledge,
    change: Option<Change>,
    connected: bool,
    probes: Option<Vec<ProbeStatus>>,
    seen: BTreeMap<Place, Sight>,
    now: Timestamp,
}

fn fresh() -> World {
    World {
        network: network(),
        hosts: ["pve1", "pve2", "pve3"].map(testing::host).to_vec(),
        taken: BTreeMap::new(),
        busy: None,
        known: Knowledge::Unsure,
        change: None,
        connected: false,
        probes: None,
        seen: BTreeMap::new(),
        now: noon(),
    }
}

impl World {
    fn decide(&self) -> Decision {
        decide(&Inputs {
            network: &self.network,
            hosts: &self.hosts,
            taken: &self.taken,
            busy: self.busy,
            known: self.known.clone(),
            change: self.change.clone(),
            connected: self.connected,
            probes: self.probes.as_deref(),
            seen: &self.seen,
            now: self.now,
        })
    }

    fn with(mut self, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self
    }

    fn saw(self, host: usize, sight: Sight) -> Self {
        self.with(|w| drop(w.seen.insert(place(host), sight)))
    }

    /// Hosts up to this one have the network.
    fn done(self, hosts: usize) -> Self {
        let world = (0..hosts).fold(self, |w, host| w.saw(host, Sight::InSync));
        let status = world.decide().status;
        world.with(|w| {
            w.network.status = status;
            w.network.metadata.finalizers = vec![NETWORK_FINALIZER.into()];
            w.seen.clear();
        })
    }

    /// The change of the host after those that have the network waits.
    fn waiting(self, done: usize) -> Self {
        let world = (0..done).fold(self.done(done), |w, host| w.saw(host, Sight::InSync));
        let world = world.saw(done, differs());
        let status = world.decide().status;
        assert!(status.operation.is_some());
        world.with(|w| {
            w.network.status = status;
            w.network.metadata.finalizers = vec![NETWORK_FINALIZER.into()];
            w.known = Knowledge::Active { name: "operations/x".into() };
            w.change = Some(Change::Waiting);
            w.seen.clear();
        })
    }

    /// What is due is begun.
    fn begun(self) -> Self {
        let status = self.decide().status;
        assert!(status.operation.is_some());
        self.with(|w| (w.network.status, w.seen) = (status, BTreeMap::new()))
    }

    fn deleted(self) -> Self {
        self.with(|w| w.network.metadata.deletion_timestamp = Some(w.now))
    }

    fn annotated(self, name: &str, value: &str) -> Self {
        self.with(|w| drop(w.network.metadata.annotations.insert(name.into(), value.into())))
    }

    fn away(self, host: usize) -> Self {
        self.with(|w| w.hosts[host].link = Link::Down { reason: "AgentUnreachable", message: "no route".into() })
    }

    fn ended(self, why: &str, retryable: bool) -> Self {
        let ending = Ending::Failed { reason: why.into(), message: "m".into(), retryable, remains: false };
        self.with(|w| w.known = Knowledge::Ended(ending))
    }

    /// Decides until there is something to do, and keeps the status.
    fn settle(mut self) -> Self {
        let decision = self.decide();
        assert_eq!(decision.action, Action::Again);
        self.network.status = decision.status;
        self.with(|w| (w.known, w.change) = (Knowledge::Unsure, None))
    }
}

fn place(host: usize) -> Place {
    ("lab".into(), format!("pve{}", host + 1))
}

fn differs() -> Sight {
    Sight::Differs(vec!["+ eth1.100".into()])
}

fn refused(reason: &str) -> Sight {
    Sight::Refused { reason: reason.into(), message: "m".into(), retryable: false }
}

fn probed(ok: bool) -> Option<Vec<ProbeStatus>> {
    let message = if ok { "" } else { "no answer came" };
    Some(vec![ProbeStatus {
        peer: "pve1".into(),
        interface: "eth1.100".into(),
        vlan: 0,
        ok,
        mtu: 1500,
        rtt_us: 1,
        message: message.into(),
    }])
}

fn describe(action: &Action, now: Timestamp) -> String {
    match action {
        Action::Wait(None) => "wait".into(),
        Action::Wait(Some(at)) => format!("wait {}", at.duration_since(now).as_secs()),
        Action::Again => "again".into(),
        Action::LookUp => "look up".into(),
        Action::Observe((_, node), request) => format!("observe {node}{}", if request.network.is_none() { " to remove" } else { "" }),
        Action::Ask => "ask".into(),
        Action::Call(request) => match &**request {
            Request::Apply(r) => {
                format!("apply {}", r.meta.clone().unwrap_or_default().request_id.rsplit(':').take(2).collect::<Vec<_>>().join(" "))
            }
            Request::Remove(r) => {
                format!("remove {}", r.meta.clone().unwrap_or_default().request_id.rsplit(':').take(2).collect::<Vec<_>>().join(" "))
            }
        },
        Action::Connect => "connect".into(),
        Action::Probe(tasks) => format!("probe {}", tasks.iter().map(|t| t.peer.as_str()).collect::<Vec<_>>().join(" ")),
        Action::Confirm(_) => "confirm".into(),
        Action::Rollback(_) => "roll back".into(),
        Action::Release => "release".into(),
    }
}

fn check(rows: Vec<(&'static str, World, &'static str, &'static str)>) {
    for (name, world, action, ready) in rows {
        let decision = world.decide();
        let reason = decision.status.conditions.iter().find(|c| c.kind == "Ready").map_or("", |c| c.reason.as_str());
        assert_eq!((describe(&decision.action, world.now).as_str(), reason), (action, ready), "{name}");
    }
}

#[test]
fn hosts_have_their_turn_in_order() {
    check(vec![
        ("a new network asks the first host", fresh(), "observe pve1", "Pending"),
        ("which is changed where it differs", fresh().saw(0, differs()), "apply 1 pve1", "Applying"),
        ("and left alone where it does not", fresh().saw(0, Sight::InSync), "observe pve2", "Pending"),
        ("the next one", fresh().done(1).saw(0, Sight::InSync).saw(1, differs()), "apply 1 pve2", "Applying"),
        ("all have it", fresh().done(3).saw(0, Sight::InSync).saw(1, Sight::InSync).saw(2, Sight::InSync), "wait", "Ready"),
        ("after a while they are asked again", fresh().done(3).saw(0, Sight::InSync), "observe pve2", "Ready"),
        ("one that has it and is away holds nobody", fresh().done(1).away(0).saw(1, differs()), "apply 1 pve2", "Applying"),
        ("one that has it and is away", fresh().done(3).away(0).saw(1, Sight::InSync).saw(2, Sight::InSync), "wait", "AgentUnreachable"),
        ("the next one is away", fresh().done(1).away(1).saw(0, Sight::InSync).saw(2, differs()), "wait", "AgentUnreachable"),
        ("the next one only observes", fresh().with(|w| w.hosts[0].facts.as_mut().unwrap().manage = false), "wait", "ObserveOnly"),
        ("the next one is in maintenance", fresh().with(|w| w.hosts[0].maintenance = true), "wait", "HostInMaintenance"),
        ("another network's change", fresh().saw(0, differs()).with(|w| w.busy = Some("pve9 for x")), "wait 2", "WaitingForTurn"),
        ("another object has that name there", fresh().with(|w| drop(w.taken.insert(place(0), "ns/storage".into()))), "wait", "NameTaken"),
        ("no host", fresh().with(|w| w.network.spec.hosts.names = vec!["pve9".into()]), "wait", "NoHosts"),
        ("paused", fresh().annotated(PAUSED, "true"), "wait", "Paused"),
        (
            "a host without its addresses",
            fresh().with(|w| drop(w.network.spec.interfaces[0].host_addresses.insert("pve2".into(), vec![]))),
            "wait",
            "NoAddresses",
        ),
    ]);
}

#[test]
fn a_change_is_followed_confirmed_or_undone() {
    let is = |change| move |w: &mut World| w.change = Some(change);
    let connected = |w: World| w.with(|w| w.connected = true);
    check(vec![
        ("nothing is known", fresh().waiting(0).with(|w| w.known = Knowledge::Unsure), "look up", "Applying"),
        ("nothing can be asked", fresh().waiting(0).away(0).with(|w| w.known = Knowledge::Unsure), "wait", "AgentUnreachable"),
        ("it was never sent", fresh().waiting(0).with(|w| w.known = Knowledge::Absent), "apply 1 pve1", "Applying"),
        ("it runs", fresh().waiting(0).with(|w| w.change = None), "ask", "Applying"),
        ("it is applied still", fresh().waiting(0).with(is(Change::UnderWay)), "wait 2", "Applying"),
        ("it waits", fresh().waiting(0), "connect", "Confirming"),
        ("the first is confirmed at once", connected(fresh().waiting(0)), "confirm", "Applying"),
        ("the third is tried against both", connected(fresh().waiting(2)), "probe pve1 pve2", "Probing"),
        ("one that is away is not tried", connected(fresh().waiting(2).away(0)), "probe pve2", "Probing"),
        ("without a probe", connected(fresh().waiting(2)).with(|w| w.network.spec.probe.enabled = false), "confirm", "Applying"),
        ("it gets through", connected(fresh().waiting(2)).with(|w| w.probes = probed(true)), "confirm", "Applying"),
        ("it does not", connected(fresh().waiting(2)).with(|w| w.probes = probed(false)), "roll back", "RollingBack"),
        ("the spec has changed", fresh().waiting(0).with(|w| w.network.metadata.generation = 2), "roll back", "RollingBack"),
        ("the object goes", fresh().waiting(0).deleted(), "roll back", "RollingBack"),
        ("paused, it is brought to its end", connected(fresh().waiting(0).annotated(PAUSED, "true")), "confirm", "Applying"),
        ("paused before it was sent", fresh().waiting(0).annotated(PAUSED, "true").with(|w| w.known = Knowledge::Absent), "wait", "Paused"),
        (
            "its PveHost is gone",
            fresh().waiting(0).with(|w| drop(w.hosts.remove(0))).with(|w| w.known = Knowledge::Unsure),
            "wait",
            "HostNotFound",
        ),
        ("the object goes before it was sent", fresh().waiting(0).deleted().with(|w| w.known = Knowledge::Absent), "again", "Pending"),
    ]);
    let undo = |w: &mut World| {
        let undo = crate::kind::Undo { reason: "ProbeFailed".into(), message: "no".into() };
        w.network.status.operation.as_mut().unwrap().undo = Some(undo);
    };
    check(vec![("what was to be undone is not confirmed", connected(fresh().waiting(1)).with(undo), "roll back", "RollingBack")]);
    let named = |w: &mut World| {
        w.network.status.operation.as_mut().unwrap().name = Some("operations/x".into());
        w.known = Knowledge::Absent;
    };
    check(vec![
        ("a lost journal", fresh().waiting(0).with(named).with(|w| w.change = None), "ask", "Applying"),
        ("a lost journal: it waits", fresh().waiting(0).with(named), "connect", "Confirming"),
        ("a lost journal: undone", fresh().waiting(0).with(named).with(is(Change::Undone("m".into()))), "again", "NetworkRolledBack"),
        ("a lost journal: stuck", fresh().waiting(0).with(named).with(is(Change::Stuck("m".into()))), "again", "NetworkRollbackFailed"),
        ("a lost journal: another", fresh().waiting(0).with(named).with(is(Change::Other)), "again", "Pending"),
    ]);
}

#[test]
fn after_a_failure_nothing_goes_on_by_itself() {
    let undone = || fresh().waiting(1).ended(reason::NETWORK_ROLLED_BACK, false).settle();
    check(vec![
        ("undone", undone(), "wait", "NetworkRolledBack"),
        ("undone, much later", undone().with(|w| w.now += SignedDuration::from_hours(99)), "wait", "NetworkRolledBack"),
        (
            "the spec changed: no host is known to have the new one",
            fresh().done(3).with(|w| w.network.metadata.generation = 2),
            "observe pve1",
            "Pending",
        ),
        ("undone, paused", undone().annotated(PAUSED, "true"), "wait", "Paused"),
        ("the spec changed", undone().with(|w| w.network.metadata.generation = 2), "observe pve1", "Pending"),
        ("again", undone().annotated(RETRY, "1").saw(0, Sight::InSync), "observe pve2", "Pending"),
        ("it is no longer selected", undone().with(|w| drop(w.network.spec.hosts.names.remove(1))), "observe pve2 to remove", "Pending"),
        ("the object goes", undone().deleted(), "observe pve1 to remove", "Pending"),
        ("cancelled by a person", fresh().waiting(1).ended(reason::CANCELLED, true).settle(), "wait", "Cancelled"),
        ("stuck", fresh().waiting(1).ended(reason::NETWORK_ROLLBACK_FAILED, false).settle(), "wait", "NetworkRollbackFailed"),
        ("nothing was touched", fresh().waiting(0).ended(reason::NETWORK_CHANGED, true).settle(), "wait 2", "NetworkChanged"),
        (
            "nothing was touched: a check",
            fresh().waiting(0).ended(reason::NETWORK_PREFLIGHT, false).settle(),
            "wait 10",
            "NetworkPreflight",
        ),
        ("refused", fresh().done(1).saw(0, Sight::InSync).saw(1, refused(reason::INTERFACE_TAKEN)), "wait 10", "InterfaceTaken"),
        (
            "refused, later",
            {
                let world = fresh().saw(0, refused(reason::INTERFACE_TAKEN));
                let status = world.decide().status;
                world.with(|w| (w.network.status, w.now) = (status, w.now + SignedDuration::from_secs(11))).with(|w| w.seen.clear())
            },
            "observe pve1",
            "InterfaceTaken",
        ),
    ]);
    let used = fresh().done(1).with(|w| drop(w.network.spec.hosts.names.remove(0))).saw(0, differs()).begun();
    let used = used.ended(reason::NETWORK_IN_USE, false).settle();
    assert_eq!(used.network.status.host("lab", "pve1").map(|h| h.state), Some(State::Removing), "its users are the reason, not a fault");
    let world = undone();
    assert_eq!(world.network.status.hosts.iter().map(|h| h.state).collect::<Vec<_>>(), [State::Ready, State::RolledBack, State::Pending]);
}

#[test]
fn what_somebody_changed_is_put_right_but_not_fought_over() {
    let changed = || fresh().done(3).saw(0, differs()).saw(1, Sight::InSync).saw(2, Sight::InSync);
    check(vec![
        ("just after the change", changed(), "wait 300", "OutOfSync"),
        ("later", changed().with(|w| w.now += SignedDuration::from_secs(301)), "apply 1 pve1", "Applying"),
    ]);
}

#[test]
fn a_network_is_removed_where_it_is_not_to_be() {
    let leaving = |w: World| w.with(|w| drop(w.network.spec.hosts.names.remove(0)));
    check(vec![
        ("the host is asked", leaving(fresh().done(2)), "observe pve1 to remove", "Pending"),
        ("and changed", leaving(fresh().done(2)).saw(0, differs()), "remove 1 pve1", "Removing"),
        ("it is gone already", leaving(fresh().done(2)).saw(0, Sight::InSync), "observe pve2", "Pending"),
        (
            "a VM uses it: the others go on",
            leaving(fresh().done(2)).saw(0, refused(reason::NETWORK_IN_USE)),
            "observe pve2",
            "NetworkInUse",
        ),
        (
            "a VM came onto it meanwhile: the same",
            leaving(fresh().done(2)).saw(0, differs()).begun().ended(reason::NETWORK_IN_USE, false).settle(),
            "observe pve2",
            "NetworkInUse",
        ),
        ("it is away: the others go on", leaving(fresh().done(2)).away(0), "observe pve2", "AgentUnreachable"),
        (
            "its PveHost is gone",
            leaving(fresh().done(2)).with(|w| drop(w.hosts.remove(0))).saw(1, Sight::InSync).saw(2, Sight::InSync),
            "wait",
            "HostNotFound",
        ),
        (
            "its PveHost is gone for good",
            leaving(fresh().done(2))
                .with(|w| drop(w.hosts.remove(0)))
                .annotated(ABANDON, "true")
                .saw(1, Sight::InSync)
                .saw(2, Sight::InSync),
            "wait",
            "Ready",
        ),
        ("retained", leaving(fresh().done(2)).with(|w| w.network.spec.deletion_policy = DeletionPolicy::Retain), "observe pve2", "Pending"),
        ("the object goes", fresh().done(3).deleted(), "observe pve1 to remove", "Pending"),
        (
            "the object goes, retained",
            fresh().done(3).deleted().with(|w| w.network.spec.deletion_policy = DeletionPolicy::Retain),
            "release",
            "Pending",
        ),
        (
            "the object goes, abandoned, while a change is under way on a host that is away",
            fresh().waiting(0).away(0).deleted().annotated(ABANDON, "true").with(|w| w.known = Knowledge::Unsure),
            "again",
            "Ready",
        ),
        ("the object goes, abandoned", fresh().done(3).deleted().annotated(ABANDON, "true"), "release", "Pending"),
        ("nothing was begun", fresh().deleted(), "release", "Ready"),
        (
            "the status was lost",
            { fresh().with(|w| w.network.metadata.finalizers = vec![NETWORK_FINALIZER.into()]).deleted() },
            "observe pve1 to remove",
            "Pending",
        ),
    ]);
}

#[test]
fn a_status_that_says_the_same_again_is_the_same() {
    let mut world = fresh().done(1).away(1).saw(0, Sight::InSync);
    world.network.status = world.decide().status;
    let later = world.clone().with(|w| w.now += SignedDuration::from_secs(60));
    assert_eq!(world.network.status, later.decide().status);
    let mut conditions = world.network.status.conditions.clone();
    set_condition(&mut conditions, "Ready", ConditionStatus::True, "x", "", 1, world.now);
    assert_ne!(conditions, world.network.status.conditions);
}
