//! The next status while it is being decided.

use std::time::Duration;

use jiff::Timestamp;

use super::{Action, Decision, Inputs, after, wanted, wish};
use crate::{
    kind::{
        ConditionStatus, NETWORK_FINALIZER, NetworkFailure, NetworkHost, NetworkHostState as State, NetworkStatus, NetworkVerb,
        set_condition,
    },
    reconcile::HostView,
};

/// First and longest pause after a failure that time may mend.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// The same after one that somebody must mend.
const MEND: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// Why something failed, and what follows.
pub(super) struct Why<'t> {
    pub(super) reason: &'t str,
    pub(super) message: &'t str,
    /// Whether time may mend it.
    pub(super) retryable: bool,
    /// Whether it is not tried again by itself.
    pub(super) halted: bool,
}

pub(super) struct Draft<'a> {
    inputs: &'a Inputs<'a>,
    pub(super) status: NetworkStatus,
    pub(super) finalizer: bool,
    remark: Option<(&'static str, String)>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(inputs: &'a Inputs<'a>) -> Self {
        let mut draft = Self { inputs, status: inputs.network.status.clone(), finalizer: false, remark: None };
        draft.status.observed_generation = inputs.network.metadata.generation;
        draft.list_hosts();
        draft.forget_stale();
        draft
    }

    /// Failures that no longer count, since something else is wanted now, are not told any more either.
    fn forget_stale(&mut self) {
        let stale = |h: &&NetworkHost| h.failure.is_some() && self.failure(h).is_none();
        let stale: Vec<(String, String)> = self.status.hosts.iter().filter(stale).map(|h| (h.cluster.clone(), h.node.clone())).collect();
        for (cluster, node) in stale {
            if let Some(host) = self.status.host_mut(&cluster, &node) {
                host.failure = None;
                if matches!(host.state, State::RolledBack | State::Failed) {
                    self.tell(&cluster, &node, State::Pending, "", "");
                }
            }
        }
    }

    /// One entry for each host that is selected, or may have the network still.
    fn list_hosts(&mut self) {
        let (inputs, status) = (self.inputs, &mut self.status);
        let wanted = wanted(inputs);
        let under_way = status.operation.clone();
        let kept = |h: &NetworkHost| {
            h.managed || under_way.as_ref().is_some_and(|a| h.is(&a.cluster, &a.node)) || wanted.iter().any(|w| h.is(&w.cluster, &w.node))
        };
        status.hosts.retain(kept);
        let mut add = |host: &HostView, managed| match status.host_mut(&host.cluster, &host.node) {
            Some(entry) => entry.name.clone_from(&host.name),
            None => status.hosts.push(NetworkHost {
                name: host.name.clone(),
                cluster: host.cluster.clone(),
                node: host.node.clone(),
                state: State::Pending,
                reason: String::new(),
                message: String::new(),
                managed,
                applied_generation: 0,
                observed_generation: inputs.network.metadata.generation,
                operation: None,
                probes: Vec::new(),
                failure: None,
                last_transition_time: inputs.now,
            }),
        };
        for host in &wanted {
            add(host, false);
        }
        // The finalizer is stored after the first status. Where it stands without one the status was lost, and any of these may have it.
        let lost = inputs.network.status.attempt == 0 && inputs.network.metadata.finalizers.iter().any(|f| f == NETWORK_FINALIZER);
        if lost && inputs.network.is_deleting() && inputs.network.status.hosts.is_empty() {
            let selector = &inputs.network.spec.hosts;
            for host in inputs.hosts.iter().filter(|h| selector.matches(&h.name, &h.labels)) {
                add(host, true);
            }
        }
        status.hosts.sort_by(|a, b| (&a.name, &a.cluster, &a.node).cmp(&(&b.name, &b.cluster, &b.node)));
    }

    /// Says where a host stands.
    pub(super) fn tell(&mut self, cluster: &str, node: &str, state: State, reason: &str, message: impl Into<String>) {
        let (now, generation) = (self.inputs.now, self.inputs.network.metadata.generation);
        let Some(host) = self.status.host_mut(cluster, node) else { return };
        if host.state != state {
            host.state = state;
            host.last_transition_time = now;
        }
        reason.clone_into(&mut host.reason);
        host.message = message.into();
        host.observed_generation = generation;
    }

    /// The host has the network as the spec of this generation says.
    pub(super) fn done(&mut self, cluster: &str, node: &str, generation: i64) {
        self.finalizer = true;
        self.tell(cluster, node, State::Ready, "", "");
        if let Some(host) = self.status.host_mut(cluster, node) {
            host.managed = true;
            host.applied_generation = generation;
            host.failure = None;
            host.operation = None;
        }
    }

    /// The host does not have the network, and is not to have it.
    pub(super) fn forget(&mut self, cluster: &str, node: &str) {
        self.status.hosts.retain(|h| !h.is(cluster, node));
    }

    /// Something failed on a host; with what was tried, for which generation and value of [`RETRY`](crate::kind::RETRY).
    pub(super) fn fail(&mut self, at: (&str, &str), state: State, tried: (NetworkVerb, i64, Option<String>), why: Why<'_>) {
        let ((verb, generation, retry), Why { reason, message, retryable, halted }) = (tried, why);
        self.tell(at.0, at.1, state, reason, message);
        let now = self.inputs.now;
        let Some(host) = self.status.host_mut(at.0, at.1) else { return };
        let again = |f: &&NetworkFailure| f.verb == verb && f.reason == reason && f.generation == generation && f.retry == retry;
        let count = host.failure.as_ref().filter(again).map_or(0, |f| f.count).saturating_add(1);
        host.failure = Some(NetworkFailure {
            verb,
            reason: reason.to_owned(),
            message: message.to_owned(),
            halted,
            retry_time: (!halted).then(|| after(now, pause(count, retryable))),
            count,
            time: now,
            generation,
            retry,
        });
    }

    /// What failed on a host and still counts: the same was tried, and nobody has changed the spec or asked for another try since.
    pub(super) fn failure(&self, host: &NetworkHost) -> Option<NetworkFailure> {
        let network = self.inputs.network;
        host.failure.clone().filter(|f| {
            f.verb == wish(self.inputs, host) && f.generation == network.metadata.generation && f.retry.as_deref() == network.retry()
        })
    }

    /// Until when a host is left alone after a failure.
    pub(super) fn paused_until(&self, cluster: &str, node: &str) -> Option<Timestamp> {
        let due = self.failure(self.status.host(cluster, node)?)?.retry_time?;
        (due > self.inputs.now).then_some(due)
    }

    /// Whether a change was undone, or could not be, so that nothing is begun anywhere.
    pub(super) fn halted(&self) -> bool {
        self.status.hosts.iter().any(|h| self.failure(h).is_some_and(|f| f.halted))
    }

    /// What is told of the whole in place of what its hosts say.
    pub(super) fn remark(&mut self, reason: &'static str, message: String) {
        self.remark = Some((reason, message));
    }

    pub(super) fn finish(mut self, action: Action) -> Decision {
        self.conditions();
        Decision { status: self.status, finalizer: self.finalizer, action }
    }

    fn conditions(&mut self) {
        use ConditionStatus::{False, True, Unknown};
        let failing = self.status.hosts.iter().find_map(|h| self.failure(h).map(|f| (h.name.clone(), f)));
        let text = |h: &NetworkHost| if h.message.is_empty() { h.name.clone() } else { format!("{}: {}", h.name, h.message) };
        let hosts = &self.status.hosts;
        let under_way = self.status.operation.as_ref().and_then(|a| hosts.iter().find(|h| h.is(&a.cluster, &a.node)));
        let current = self.inputs.network.metadata.generation;
        let finished =
            |h: &NetworkHost| h.state == State::Ready && h.applied_generation == current && wish(self.inputs, h) == NetworkVerb::Apply;
        let unfinished = hosts.iter().find(|h| !finished(h));
        let remarked = hosts.iter().find(|h| !h.reason.is_empty());
        let degraded = match &failing {
            Some((name, f)) => {
                let how = if f.halted {
                    format!("; nothing more is done until the spec or annotation {} changes", crate::kind::RETRY)
                } else {
                    String::new()
                };
                (True, f.reason.clone(), format!("{name}: {}{how}", f.message))
            }
            None => (False, "AsExpected".to_owned(), String::new()),
        };
        let progressing = match (&self.remark, under_way, unfinished) {
            (Some((reason, message)), ..) => (False, (*reason).to_owned(), message.clone()),
            (None, Some(h), _) => (True, or(&h.reason, "Changing"), text(h)),
            (None, None, _) if failing.is_some() => (False, "Stopped".to_owned(), degraded.2.clone()),
            (None, None, Some(h)) => (True, or(&h.reason, "Pending"), text(h)),
            (None, None, None) => (False, "Done".to_owned(), String::new()),
        };
        let ready = match (&self.remark, &failing, unfinished, remarked) {
            (Some((reason, message)), ..) => (False, (*reason).to_owned(), message.clone()),
            (None, Some(_), ..) => (False, degraded.1.clone(), degraded.2.clone()),
            (None, None, Some(_), _) => (False, progressing.1.clone(), progressing.2.clone()),
            (None, None, None, Some(h)) => (Unknown, h.reason.clone(), text(h)),
            (None, None, None, None) => (True, "Ready".to_owned(), String::new()),
        };
        self.status.failed_host = failing.map(|(name, _)| name);
        let (generation, now) = (self.inputs.network.metadata.generation, self.inputs.now);
        for (kind, (status, reason, message)) in [("Ready", ready), ("Progressing", progressing), ("Degraded", degraded)] {
            set_condition(&mut self.status.conditions, kind, status, &reason, message, generation, now);
        }
    }
}

fn or(reason: &str, otherwise: &str) -> String {
    if reason.is_empty() { otherwise.to_owned() } else { reason.to_owned() }
}

fn pause(count: u32, retryable: bool) -> Duration {
    let (first, max) = if retryable { RETRY } else { MEND };
    first.saturating_mul(1 << count.saturating_sub(1).min(16)).min(max)
}
