//! The change under way: brought to its end, confirmed or undone.

use pvelet_proto::{reason, v1};

use super::{
    Action, Change, Inputs, LOOK_AGAIN, PEERS, ProbeTask, after,
    draft::{Draft, Why},
    host_of,
    turn::{meta, obstacle, request, verb_reason},
    wish,
};
use crate::{
    kind::{ABANDON, NetworkAttempt, NetworkHostState as State, NetworkVerb, PAUSED, ProbeStatus, Undo},
    reconcile::{Ending, Knowledge, Link, machine::decide::camel_reason},
};

/// The reason of what is undone because it is no longer wanted.
const SUPERSEDED: &str = "Superseded";

/// Ends of an operation that has touched nothing: it may be tried again by itself.
const UNTOUCHED: [&str; 9] = [
    reason::FOREIGN_CHANGE_PENDING,
    reason::INTERFACE_NOT_FOUND,
    reason::INTERFACE_TAKEN,
    reason::MANAGEMENT_PATH,
    reason::NETWORK_IN_USE,
    reason::NETWORK_LATCHED,
    reason::NETWORK_PREFLIGHT,
    reason::NOT_OURS,
    reason::OBSERVE_ONLY,
];

pub(super) fn follow(inputs: &Inputs<'_>, draft: &mut Draft<'_>) -> Action {
    let Some(attempt) = inputs.network.status.operation.clone() else { return Action::Again };
    match &inputs.known {
        Knowledge::Ended(Ending::Succeeded { .. }) => succeeded(draft, &attempt),
        Knowledge::Ended(Ending::Failed { reason, message, retryable, .. }) => failed(draft, &attempt, (reason, message), *retryable, true),
        Knowledge::Refused(Ending::Failed { reason, message, retryable, .. }) => {
            failed(draft, &attempt, (reason, message), *retryable, false)
        }
        Knowledge::Refused(Ending::Succeeded { .. }) => Action::LookUp,
        Knowledge::Unsent => send(inputs, draft, &attempt),
        Knowledge::Unsure => ask(inputs, draft, &attempt, Action::LookUp),
        // An agent that lost its journal may still know the change.
        Knowledge::Absent => match (&attempt.name, &inputs.change) {
            (None, _) => send(inputs, draft, &attempt),
            (Some(_), None) => ask(inputs, draft, &attempt, Action::Ask),
            (Some(_), Some(Change::Confirmed)) => succeeded(draft, &attempt),
            (Some(_), Some(Change::Undone(why))) => failed(draft, &attempt, (reason::NETWORK_ROLLED_BACK, why), false, true),
            (Some(_), Some(Change::Stuck(why))) => failed(draft, &attempt, (reason::NETWORK_ROLLBACK_FAILED, why), false, true),
            (Some(_), Some(Change::Other)) => dropped(draft, &attempt),
            (Some(_), Some(Change::UnderWay)) => under_way(inputs, draft, &attempt),
            (Some(_), Some(Change::Waiting)) => waiting(inputs, draft, &attempt),
        },
        Knowledge::Active { name } => {
            if let Some(operation) = &mut draft.status.operation {
                operation.name = Some(name.clone());
            }
            if let Some(host) = draft.status.host_mut(&attempt.cluster, &attempt.node) {
                host.operation = Some(name.clone());
            }
            let attempt = NetworkAttempt { name: Some(name.clone()), ..attempt };
            match &inputs.change {
                None => ask(inputs, draft, &attempt, Action::Ask),
                Some(Change::Waiting) => waiting(inputs, draft, &attempt),
                // Of what has ended the operation's end will be told.
                Some(_) => under_way(inputs, draft, &attempt),
            }
        }
    }
}

fn state(verb: NetworkVerb) -> State {
    if verb == NetworkVerb::Apply { State::Applying } else { State::Removing }
}

fn under_way(inputs: &Inputs<'_>, draft: &mut Draft<'_>, attempt: &NetworkAttempt) -> Action {
    draft.tell(&attempt.cluster, &attempt.node, state(attempt.verb), verb_reason(attempt.verb), "");
    Action::Wait(Some(after(inputs.now, LOOK_AGAIN)))
}

/// Asks the agent, if it can be asked.
fn ask(inputs: &Inputs<'_>, draft: &mut Draft<'_>, attempt: &NetworkAttempt, action: Action) -> Action {
    match host_of(inputs, &attempt.cluster, &attempt.node) {
        Some(host) if host.link == Link::Up => action,
        host => unreachable(inputs, draft, attempt, host.and_then(obstacle)),
    }
}

/// The host cannot be asked. What becomes of the change there is the host's own affair: without a confirmation it undoes it.
fn unreachable(inputs: &Inputs<'_>, draft: &mut Draft<'_>, attempt: &NetworkAttempt, why: Option<(&'static str, String)>) -> Action {
    let gone = why.is_none();
    if (gone || inputs.network.is_deleting()) && inputs.network.has_flag(ABANDON) {
        draft.status.operation = None;
        draft.forget(&attempt.cluster, &attempt.node);
        return Action::Again;
    }
    let (reason, text) = why.unwrap_or_else(|| {
        let text = format!(
            "PveHost {} (PVE cluster {}, node {}), where a change may be under way, is gone; add it again, or set annotation {ABANDON}: \"true\" to let it be",
            attempt.host, attempt.cluster, attempt.node
        );
        ("HostNotFound", text)
    });
    draft.tell(&attempt.cluster, &attempt.node, state(attempt.verb), reason, text);
    Action::Wait(None)
}

/// Whether what the attempt does is still what is wanted.
fn current(inputs: &Inputs<'_>, draft: &Draft<'_>, attempt: &NetworkAttempt) -> bool {
    let wish = draft.status.host(&attempt.cluster, &attempt.node).map(|h| wish(inputs, h));
    wish == Some(attempt.verb) && (attempt.verb == NetworkVerb::Remove || attempt.generation == inputs.network.metadata.generation)
}

/// The agent does not have it.
fn send(inputs: &Inputs<'_>, draft: &mut Draft<'_>, attempt: &NetworkAttempt) -> Action {
    if !current(inputs, draft, attempt) {
        return dropped(draft, attempt);
    }
    let host = host_of(inputs, &attempt.cluster, &attempt.node);
    let why = host.map_or(Some(None), |h| obstacle(h).map(Some));
    if let Some(why) = why {
        return unreachable(inputs, draft, attempt, why);
    }
    if inputs.network.has_flag(PAUSED) {
        draft.remark("Paused", format!("nothing is done while annotation {PAUSED} is \"true\"; remove it to go on"));
        return Action::Wait(None);
    }
    draft.finalizer = true;
    match request(inputs, attempt) {
        Some(request) => Action::Call(Box::new(request)),
        None => dropped(draft, attempt),
    }
}

/// It is not sent any more.
fn dropped(draft: &mut Draft<'_>, attempt: &NetworkAttempt) -> Action {
    draft.status.operation = None;
    let state = if attempt.verb == NetworkVerb::Apply { State::Pending } else { State::Removing };
    draft.tell(&attempt.cluster, &attempt.node, state, "", "");
    Action::Again
}

/// The change is applied, and the host waits to hear that it can still be reached.
fn waiting(inputs: &Inputs<'_>, draft: &mut Draft<'_>, attempt: &NetworkAttempt) -> Action {
    let Some(name) = attempt.name.clone() else { return Action::LookUp };
    if attempt.undo.is_none() && !current(inputs, draft, attempt) {
        return undo(inputs, draft, attempt, name, Some((SUPERSEDED, "it is no longer wanted".to_owned())));
    }
    if attempt.undo.is_some() {
        return undo(inputs, draft, attempt, name, None);
    }
    if !inputs.connected {
        draft.tell(&attempt.cluster, &attempt.node, state(attempt.verb), "Confirming", "applied; to be confirmed over a new connection");
        return Action::Connect;
    }
    let tasks = if attempt.verb == NetworkVerb::Apply { tasks(inputs, draft, attempt) } else { Vec::new() };
    if !tasks.is_empty() {
        let Some(found) = inputs.probes else {
            draft.tell(
                &attempt.cluster,
                &attempt.node,
                State::Applying,
                "Probing",
                "applied; its interfaces are tried against other hosts",
            );
            return Action::Probe(tasks);
        };
        if let Some(host) = draft.status.host_mut(&attempt.cluster, &attempt.node) {
            host.probes = found.to_vec();
        }
        let bad: Vec<String> = found.iter().filter(|p| !p.ok).map(probe_text).collect();
        if !bad.is_empty() {
            return undo(inputs, draft, attempt, name, Some(("ProbeFailed", bad.join("; "))));
        }
    }
    let meta = meta(inputs, format!("{}:confirm", attempt.request_id));
    Action::Confirm(v1::ConfirmNetworkRequest { meta, operation: name })
}

fn probe_text(p: &ProbeStatus) -> String {
    let vlan = if p.vlan == 0 { String::new() } else { format!(" VLAN {}", p.vlan) };
    format!("{}{vlan} to {}: {}", p.interface, p.peer, p.message)
}

/// Undoes the change. Why is stored before the agent is asked, so that a controller that dies in between does not confirm it after all.
fn undo(inputs: &Inputs<'_>, draft: &mut Draft<'_>, attempt: &NetworkAttempt, operation: String, why: Option<(&str, String)>) -> Action {
    if let (Some((reason, message)), Some(stored)) = (why, &mut draft.status.operation) {
        stored.undo = Some(Undo { reason: reason.to_owned(), message });
    }
    let text = draft.status.operation.as_ref().and_then(|a| a.undo.as_ref()).map(|u| u.message.clone()).unwrap_or_default();
    draft.tell(&attempt.cluster, &attempt.node, state(attempt.verb), "RollingBack", text);
    let meta = meta(inputs, format!("{}:rollback", attempt.request_id));
    Action::Rollback(v1::RollbackNetworkRequest { meta, operation })
}

/// What is tried: each interface against a few hosts that have the network already and can be reached.
fn tasks(inputs: &Inputs<'_>, draft: &Draft<'_>, attempt: &NetworkAttempt) -> Vec<ProbeTask> {
    let network = inputs.network;
    if !network.spec.probe.enabled {
        return Vec::new();
    }
    let generation = network.metadata.generation;
    let peers = draft.status.hosts.iter().filter(|h| {
        let other = !h.is(&attempt.cluster, &attempt.node) && h.applied_generation == generation && h.state == State::Ready;
        other && wish(inputs, h) == NetworkVerb::Apply && host_of(inputs, &h.cluster, &h.node).is_some_and(|v| v.link == Link::Up)
    });
    let targets = network.spec.probe_targets();
    let task = |peer: &crate::kind::NetworkHost| {
        let (name, place) = (peer.name.clone(), (peer.cluster.clone(), peer.node.clone()));
        targets.iter().map(move |target| ProbeTask { peer: name.clone(), place: place.clone(), target: target.clone() }).collect::<Vec<_>>()
    };
    peers.take(PEERS).flat_map(task).collect()
}

fn succeeded(draft: &mut Draft<'_>, attempt: &NetworkAttempt) -> Action {
    draft.status.operation = None;
    match attempt.verb {
        NetworkVerb::Apply => draft.done(&attempt.cluster, &attempt.node, attempt.generation),
        NetworkVerb::Remove => draft.forget(&attempt.cluster, &attempt.node),
    }
    Action::Again
}

fn failed(draft: &mut Draft<'_>, attempt: &NetworkAttempt, why: (&str, &str), retryable: bool, begun: bool) -> Action {
    let (reason, message) = why;
    let undone = matches!(reason, reason::NETWORK_ROLLED_BACK | reason::CANCELLED);
    if undone && attempt.undo.as_ref().is_some_and(|u| u.reason == SUPERSEDED) {
        return dropped(draft, attempt);
    }
    draft.status.operation = None;
    let state = match (undone, attempt.verb) {
        (true, _) => State::RolledBack,
        // Its users are the reason, not a fault.
        (false, NetworkVerb::Remove) if reason == reason::NETWORK_IN_USE => State::Removing,
        (false, _) => State::Failed,
    };
    // Somebody who cancels it does not want it again at once.
    let halted = begun && !UNTOUCHED.contains(&reason) && (!retryable || undone);
    let at = (attempt.cluster.as_str(), attempt.node.as_str());
    let camel = camel_reason(reason);
    let (reason, message) = match &attempt.undo {
        Some(undo) if undone => (undo.reason.as_str(), undo.message.as_str()),
        _ => (camel.as_str(), message),
    };
    draft.fail(at, state, (attempt.verb, attempt.generation, attempt.retry.clone()), Why { reason, message, retryable, halted });
    Action::Again
}
