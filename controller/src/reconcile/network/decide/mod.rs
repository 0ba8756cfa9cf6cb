//! What to do next for a network. Pure: what is known goes in, the next status and one action come out.
//!
//! The order of the questions is the safety argument:
//! 1. Is a change under way? It is followed to its end, confirmed or undone, before anything else is begun anywhere.
//! 2. Was a change undone, or could it not be? Then nothing is begun on any host until a person has changed the spec or said "again".
//! 3. Is the network paused, or on its way out?
//! 4. Which host is next? It is asked what a change would do there. Nothing: it is done. Something: that is the one change under way.

mod draft;
mod follow;
mod turn;

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use pvelet_proto::v1;

use self::draft::Draft;
use crate::{
    kind::{NetworkHost, NetworkStatus, NetworkVerb, PAUSED, ProbeStatus, ProbeTarget, PveNetwork},
    reconcile::{HostView, Knowledge},
};

/// How soon a change is looked at again that nothing was told of.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long after its last change a host is left alone that differs again: whoever changes it back does so at once.
const REPAIR_PAUSE: Duration = Duration::from_secs(300);
/// So many hosts are probed against: one may be the one with the bad cable, and then the other tells.
const PEERS: usize = 2;

/// A PVE cluster and a node of it.
pub(crate) type Place = (String, String);

/// All that a decision may depend on.
#[derive(Debug, Clone)]
pub(crate) struct Inputs<'a> {
    /// The object.
    pub network: &'a PveNetwork,
    /// All `PveHost`s.
    pub hosts: &'a [HostView],
    /// Hosts on which another object has a network of this name, with that object's name.
    pub taken: &'a BTreeMap<Place, String>,
    /// The change of another network that is waited for, for people.
    pub busy: Option<&'a str>,
    /// What is known of the operation under way.
    pub known: Knowledge,
    /// Where its change stands, as the agent told in this pass.
    pub change: Option<Change>,
    /// Whether this pass has opened a connection to its host after the agent told that the change waits.
    pub connected: bool,
    /// What the probes found in this pass.
    pub probes: Option<&'a [ProbeStatus]>,
    /// What agents said in this pass, or shortly before, that a change would do.
    pub seen: &'a BTreeMap<Place, Sight>,
    /// Now.
    pub now: Timestamp,
}

/// Where a change stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The host's last change is another one, or there was none.
    Other,
    /// It is being applied or undone.
    UnderWay,
    /// It is applied, verified, and waits for the confirmation.
    Waiting,
    /// It is final.
    Confirmed,
    /// It was undone; with the reason.
    Undone(String),
    /// It could not be undone; with the reason.
    Stuck(String),
}

/// What a change would do on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Nothing: it is so.
    InSync,
    /// This, one line each.
    Differs(Vec<String>),
    /// The agent refuses it.
    Refused {
        /// The agent's reason.
        reason: String,
        /// The agent's message.
        message: String,
        /// Whether trying again may help by itself.
        retryable: bool,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Nothing until something changes, or until this moment.
    Wait(Option<Timestamp>),
    /// Decide again; the status is stored with what is decided then.
    Again,
    /// Ask the agent for the operation of the attempt under way.
    LookUp,
    /// Ask an agent what a change would do.
    Observe(Place, Box<v1::PlanNetworkRequest>),
    /// Ask the agent of the attempt under way where its change stands.
    Ask,
    /// Send the attempt under way.
    Call(Box<Request>),
    /// Open a new connection to the host of the attempt under way.
    Connect,
    /// Try the new interfaces, over the new connection, against these hosts.
    Probe(Vec<ProbeTask>),
    /// Confirm, over the new connection.
    Confirm(v1::ConfirmNetworkRequest),
    /// Undo.
    Rollback(v1::RollbackNetworkRequest),
    /// Let the object go.
    Release,
}

/// A call. `meta` holds tenant and request id; the epoch is added when it is sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Request {
    /// `NetworkService.ApplyNetwork`
    Apply(v1::ApplyNetworkRequest),
    /// `NetworkService.RemoveNetwork`
    Remove(v1::RemoveNetworkRequest),
}

/// One end of a probe, the other being the host of the attempt under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProbeTask {
    /// The `PveHost` that answers.
    pub peer: String,
    /// Where it is.
    pub place: Place,
    /// What is tried.
    pub target: ProbeTarget,
}

/// The next status, to be stored before the action is taken, and the action.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    /// The status.
    pub status: NetworkStatus,
    /// Whether the finalizer must be there before the action is taken; it is stored after the status.
    pub finalizer: bool,
    /// The action.
    pub action: Action,
}

/// Decides.
pub(crate) fn decide(inputs: &Inputs<'_>) -> Decision {
    let mut draft = Draft::new(inputs);
    let action = if inputs.network.status.operation.is_some() {
        follow::follow(inputs, &mut draft)
    } else if inputs.network.has_flag(PAUSED) {
        draft.remark("Paused", format!("nothing is done while annotation {PAUSED} is \"true\"; remove it to go on"));
        Action::Wait(None)
    } else {
        turn::next(inputs, &mut draft)
    };
    draft.finish(action)
}

/// The hosts that are to have the network, by name.
fn wanted<'a>(inputs: &Inputs<'a>) -> Vec<&'a HostView> {
    if inputs.network.is_deleting() {
        return Vec::new();
    }
    let selector = &inputs.network.spec.hosts;
    let mut wanted: Vec<&HostView> = inputs.hosts.iter().filter(|h| selector.matches(&h.name, &h.labels)).collect();
    wanted.sort_by(|a, b| a.name.cmp(&b.name));
    wanted
}

/// What is to become of a host.
fn wish(inputs: &Inputs<'_>, host: &NetworkHost) -> NetworkVerb {
    let stays = wanted(inputs).iter().any(|h| host.is(&h.cluster, &h.node));
    if stays { NetworkVerb::Apply } else { NetworkVerb::Remove }
}

fn host_of<'a>(inputs: &Inputs<'a>, cluster: &str, node: &str) -> Option<&'a HostView> {
    inputs.hosts.iter().find(|h| h.cluster == cluster && h.node == node)
}

fn after(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|d| time.checked_add(d).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
