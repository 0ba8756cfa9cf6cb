//! Which host is next, and what is done there.

use jiff::Timestamp;
use pvelet_proto::{reason, v1};

use super::{
    Action, Inputs, LOOK_AGAIN, Place, REPAIR_PAUSE, Request, Sight, after,
    draft::{Draft, Why},
    host_of, wanted, wish,
};
use crate::{
    kind::{ABANDON, DeletionPolicy, NetworkAttempt, NetworkHost, NetworkHostState as State, NetworkVerb},
    reconcile::{HostView, machine::decide::camel_reason},
};

/// How many characters of a node's name stand in request ids, which have at most 128.
const NODE_IN_ID: usize = 40;

/// What became of a host's turn.
enum Turn {
    /// This is done now.
    Act(Action),
    /// It waits for something, at the latest until then.
    Held(Option<Timestamp>),
    /// Nothing remains to be done; at the latest then it is looked at again.
    Done(Option<Timestamp>),
}

pub(super) fn next(inputs: &Inputs<'_>, draft: &mut Draft<'_>) -> Action {
    let network = inputs.network;
    let retains = network.spec.deletion_policy == DeletionPolicy::Retain;
    if network.is_deleting() && (retains || network.has_flag(ABANDON)) {
        return Action::Release;
    }
    if draft.halted() {
        return Action::Wait(None);
    }
    let mut due = None;
    let leaving: Vec<NetworkHost> = draft.status.hosts.iter().filter(|h| wish(inputs, h) == NetworkVerb::Remove).cloned().collect();
    // Removing first: an address that moves from one host to another is never on both. Here a host that must be waited for holds no other.
    for host in &leaving {
        if retains {
            draft.forget(&host.cluster, &host.node);
            continue;
        }
        match leave(inputs, draft, host) {
            Turn::Act(action) => return action,
            Turn::Held(at) | Turn::Done(at) => due = earlier(due, at),
        }
    }
    if network.is_deleting() {
        return if draft.status.hosts.is_empty() { Action::Release } else { Action::Wait(due) };
    }
    let wanted = wanted(inputs);
    if wanted.is_empty() {
        draft.remark("NoHosts", "spec.hosts selects no PveHost: add one, label one, or correct the selector".to_owned());
    }
    for host in wanted {
        match join(inputs, draft, host) {
            Turn::Act(action) => return action,
            // Hosts have their turn in order, each probed against those before it.
            Turn::Held(at) => {
                due = earlier(due, at);
                break;
            }
            Turn::Done(at) => due = earlier(due, at),
        }
    }
    Action::Wait(due)
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Why a host cannot be changed now.
pub(super) fn obstacle(host: &HostView) -> Option<(&'static str, String)> {
    host.obstacle().or_else(|| host.out_of_service())
}

/// A host that has the network and is not to have it.
fn leave(inputs: &Inputs<'_>, draft: &mut Draft<'_>, entry: &NetworkHost) -> Turn {
    let at = (entry.cluster.as_str(), entry.node.as_str());
    let Some(host) = host_of(inputs, at.0, at.1) else {
        if inputs.network.has_flag(ABANDON) {
            draft.forget(at.0, at.1);
            return Turn::Done(None);
        }
        let text = format!(
            "PveHost {} (PVE cluster {}, node {}) is gone, so the network cannot be removed there; add it again, or set annotation {ABANDON}: \"true\" to let it be",
            entry.name, entry.cluster, entry.node
        );
        draft.tell(at.0, at.1, State::Removing, "HostNotFound", text);
        return Turn::Held(None);
    };
    if let Some((reason, text)) = obstacle(host) {
        draft.tell(at.0, at.1, State::Removing, reason, text);
        return Turn::Held(None);
    }
    if let Some(due) = draft.paused_until(at.0, at.1) {
        return Turn::Held(Some(due));
    }
    match inputs.seen.get(&place(host)) {
        None => {
            let request = v1::PlanNetworkRequest { network: None, remove: inputs.network.metadata.name.clone() };
            Turn::Act(Action::Observe(place(host), Box::new(request)))
        }
        Some(Sight::InSync) => {
            draft.forget(at.0, at.1);
            Turn::Done(None)
        }
        Some(Sight::Refused { reason, message, retryable }) => {
            // Its users are the reason, not a fault.
            let state = if reason == reason::NETWORK_IN_USE { State::Removing } else { State::Failed };
            let why = Why { reason: &camel_reason(reason), message, retryable: *retryable, halted: false };
            draft.fail(
                at,
                state,
                (NetworkVerb::Remove, inputs.network.metadata.generation, inputs.network.retry().map(str::to_owned)),
                why,
            );
            Turn::Held(draft.paused_until(at.0, at.1))
        }
        Some(Sight::Differs(_)) => begin(inputs, draft, NetworkVerb::Remove, host),
    }
}

/// A host that is to have the network.
fn join(inputs: &Inputs<'_>, draft: &mut Draft<'_>, host: &HostView) -> Turn {
    let (network, at) = (inputs.network, (host.cluster.as_str(), host.node.as_str()));
    let generation = network.metadata.generation;
    let entry = draft.status.host(at.0, at.1);
    let (done, changed) = entry.map_or((false, None), |h| (h.applied_generation == generation, Some(h.last_transition_time)));
    if let Some(other) = inputs.taken.get(&place(host)) {
        let text = format!("PveNetwork {other} has a network of this name there; rename one of them, or select other hosts");
        draft.tell(at.0, at.1, State::Pending, "NameTaken", text);
        return Turn::Held(None);
    }
    let wanted = match network.spec.on_host(&network.metadata.name, network.tenant(), &host.name) {
        Ok(wanted) => wanted,
        Err(text) => {
            draft.tell(at.0, at.1, State::Pending, "NoAddresses", text);
            return Turn::Held(None);
        }
    };
    if let Some((reason, text)) = obstacle(host) {
        if done {
            draft.tell(at.0, at.1, State::Ready, reason, text);
            return Turn::Done(None);
        }
        draft.tell(at.0, at.1, State::Pending, reason, text);
        return Turn::Held(None);
    }
    if let Some(due) = draft.paused_until(at.0, at.1) {
        return Turn::Held(Some(due));
    }
    match inputs.seen.get(&place(host)) {
        None => {
            let request = v1::PlanNetworkRequest { network: Some(wanted), remove: String::new() };
            Turn::Act(Action::Observe(place(host), Box::new(request)))
        }
        Some(Sight::InSync) => {
            draft.done(at.0, at.1, generation);
            Turn::Done(None)
        }
        Some(Sight::Refused { reason, message, retryable }) => {
            let why = Why { reason: &camel_reason(reason), message, retryable: *retryable, halted: false };
            draft.fail(at, State::Failed, (NetworkVerb::Apply, generation, network.retry().map(str::to_owned)), why);
            Turn::Held(draft.paused_until(at.0, at.1))
        }
        Some(Sight::Differs(changes)) => {
            let due = changed.filter(|_| done).map(|t| after(t, REPAIR_PAUSE)).filter(|due| *due > inputs.now);
            if let Some(due) = due {
                let text = format!("somebody changed it: {}; it is put right at {due:.0}", changes.join("; "));
                draft.tell(at.0, at.1, State::Ready, "OutOfSync", text);
                return Turn::Done(Some(due));
            }
            begin(inputs, draft, NetworkVerb::Apply, host)
        }
    }
}

fn place(host: &HostView) -> Place {
    (host.cluster.clone(), host.node.clone())
}

/// Numbers a new attempt. It is stored before it is sent.
fn begin(inputs: &Inputs<'_>, draft: &mut Draft<'_>, verb: NetworkVerb, host: &HostView) -> Turn {
    let (network, at) = (inputs.network, (host.cluster.as_str(), host.node.as_str()));
    let state = if verb == NetworkVerb::Apply { State::Applying } else { State::Removing };
    if let Some(busy) = inputs.busy {
        let state = if verb == NetworkVerb::Apply { State::Pending } else { State::Removing };
        draft.tell(at.0, at.1, state, "WaitingForTurn", format!("one host is changed at a time: {busy} is first"));
        return Turn::Held(Some(after(inputs.now, LOOK_AGAIN)));
    }
    let number = network.status.attempt + 1;
    let generation = network.metadata.generation;
    let node: String = host.node.chars().take(NODE_IN_ID).collect();
    let attempt = NetworkAttempt {
        verb,
        attempt: number,
        host: host.name.clone(),
        cluster: host.cluster.clone(),
        node: host.node.clone(),
        request_id: format!("{}:{}:{generation}:{node}:{number}", network.metadata.uid, verb.as_str()),
        generation,
        time: inputs.now,
        retry: network.retry().map(str::to_owned),
        name: None,
        undo: None,
    };
    draft.finalizer = true;
    draft.tell(at.0, at.1, state, verb_reason(verb), "");
    if let Some(entry) = draft.status.host_mut(at.0, at.1) {
        entry.managed = true;
        entry.operation = None;
        entry.probes.clear();
    }
    draft.status.attempt = number;
    draft.status.tenant.get_or_insert_with(|| network.spec.tenant.clone());
    draft.status.operation = Some(attempt.clone());
    match request(inputs, &attempt) {
        Some(request) => Turn::Act(Action::Call(Box::new(request))),
        None => Turn::Held(None),
    }
}

pub(super) fn verb_reason(verb: NetworkVerb) -> &'static str {
    match verb {
        NetworkVerb::Apply => "Applying",
        NetworkVerb::Remove => "Removing",
    }
}

pub(super) fn meta(inputs: &Inputs<'_>, request_id: String) -> Option<v1::RequestMeta> {
    Some(v1::RequestMeta { tenant: inputs.network.tenant().to_owned(), request_id, controller_epoch: None, wait: None })
}

/// The call of an attempt; nothing when there is nothing left to order.
pub(super) fn request(inputs: &Inputs<'_>, attempt: &NetworkAttempt) -> Option<Request> {
    let network = inputs.network;
    let (meta, name) = (meta(inputs, attempt.request_id.clone()), network.metadata.name.clone());
    let confirm_timeout = network.spec.confirm_timeout.map(|s| prost_types::Duration { seconds: s.0.into(), nanos: 0 });
    Some(match attempt.verb {
        NetworkVerb::Apply => {
            let wanted = network.spec.on_host(&name, network.tenant(), &attempt.host).ok()?;
            Request::Apply(v1::ApplyNetworkRequest { meta, network: Some(wanted), confirm_timeout })
        }
        NetworkVerb::Remove => Request::Remove(v1::RemoveNetworkRequest { meta, name, confirm_timeout }),
    })
}
