//! What a network's decisions do.

use futures_util::{StreamExt, stream};
use pvelet_proto::{reason, v1};
use tracing::info;

use super::{
    Learned, Networks,
    decide::{Action, Change, Place, ProbeTask, Request, Sight},
};
use crate::{
    agents::{self, AgentClient, AgentError},
    crash::crash_point,
    kind::{ProbeStatus, PveNetwork},
    reconcile::{
        Ending, Knowledge,
        operation::{answered, knowledge},
        session::Session,
    },
    store::Store,
};

/// Probes at once: an agent takes few calls at a time, and must hear of other things too.
const PROBES: usize = 3;

impl<S: Store> Networks<S> {
    /// Does what is to be done about the attempt under way. `false`: it could not be done; look again after a pause.
    pub(super) async fn act(&self, network: &PveNetwork, action: Action, learned: &mut Learned) -> bool {
        let Some(attempt) = &network.status.operation else { return true };
        let Some(session) = self.session(attempt) else { return false };
        match action {
            Action::LookUp => {
                learned.known = self.look_up(network, &session).await;
                learned.known.is_some()
            }
            Action::Ask => {
                learned.change = self.ask(network, &session, attempt.name.as_deref()).await;
                learned.change.is_some()
            }
            Action::Call(request) => {
                let unsent = learned.known == Some(Knowledge::Unsent);
                *learned = Learned { known: self.call(network, &session, *request, unsent).await, ..Learned::default() };
                crash_point!("network.call.answered");
                learned.known.is_some()
            }
            Action::Connect => {
                let fresh = session.client.fresh();
                match fresh.get_host().await {
                    Ok(_) => learned.fresh = Some(fresh),
                    Err(e) => {
                        info!(network = %network.key(), "no new connection to confirm the change over: {e}");
                        return false;
                    }
                }
                crash_point!("network.connected");
                true
            }
            Action::Probe(tasks) => {
                let Some(fresh) = &learned.fresh else { return false };
                learned.probes = Some(self.probe(fresh, tasks).await);
                crash_point!("network.probed");
                true
            }
            Action::Confirm(mut request) => {
                let Some(fresh) = learned.fresh.take() else { return false };
                request.meta = self.with_epoch(request.meta);
                let answer = fresh.answer(fresh.network().confirm_network(request).await).map(|r| r.operation);
                let went_on = self.ended(network, &session, learned, answer).await;
                crash_point!("network.confirmed");
                went_on
            }
            Action::Rollback(mut request) => {
                request.meta = self.with_epoch(request.meta);
                let client = &session.client;
                let answer = client.answer(client.network().rollback_network(request).await).map(|r| r.operation);
                let went_on = self.ended(network, &session, learned, answer).await;
                crash_point!("network.rolled_back");
                went_on
            }
            Action::Wait(_) | Action::Again | Action::Observe(..) | Action::Release => true,
        }
    }

    fn with_epoch(&self, meta: Option<v1::RequestMeta>) -> Option<v1::RequestMeta> {
        meta.map(|meta| v1::RequestMeta { controller_epoch: Some(self.epoch.to_message(&self.controller)), ..meta })
    }

    /// After a confirmation or a roll-back: what became of the operation.
    async fn ended(
        &self,
        network: &PveNetwork,
        session: &Session,
        learned: &mut Learned,
        answer: Result<Option<v1::Operation>, AgentError>,
    ) -> bool {
        // Whatever was known is from before.
        *learned = Learned::default();
        match answer {
            Ok(Some(operation)) => {
                session.operation(&operation);
                learned.known = Some(knowledge(&session.name, &operation));
                true
            }
            Ok(None) => true,
            Err(e) => {
                info!(network = %network.key(), "{e}");
                if !e.is(reason::NETWORK_NOT_WAITING) {
                    return false;
                }
                // It was undone meanwhile, or confirmed by somebody.
                learned.known = self.look_up(network, session).await;
                !matches!(learned.known, None | Some(Knowledge::Active { .. }))
            }
        }
    }

    /// Asks the agent for the attempt's operation.
    async fn look_up(&self, network: &PveNetwork, session: &Session) -> Option<Knowledge> {
        let attempt = network.status.operation.as_ref()?;
        let found = session.look_up(network.tenant(), &attempt.request_id).await;
        found.inspect_err(|e| info!(network = %network.key(), "cannot ask for the operation: {e}")).ok()
    }

    /// Asks the agent where the change stands.
    async fn ask(&self, network: &PveNetwork, session: &Session, operation: Option<&str>) -> Option<Change> {
        match session.client.get_network().await {
            Ok(told) => Some(change(told.last_change.as_ref(), operation)),
            Err(e) => {
                info!(network = %network.key(), "cannot ask for the change: {e}");
                None
            }
        }
    }

    /// Asks an agent what a change would do; nothing when it could not be asked.
    pub(super) async fn observe(&self, network: &PveNetwork, at: &Place, request: v1::PlanNetworkRequest) -> Option<Sight> {
        let session = self.fleet.session(&at.0, &at.1)?;
        match session.client.answer(session.client.network().plan_network(request).await) {
            Ok(told) => Some(sight(told)),
            Err(e) => {
                info!(network = %network.key(), "{e}");
                Some(Sight::Refused { reason: answered(&e)?, message: full_text(&e), retryable: e.retryable() })
            }
        }
    }

    /// Sends the attempt. Nothing comes back when it is not known what became of it.
    async fn call(&self, network: &PveNetwork, session: &Session, request: Request, unsent: bool) -> Option<Knowledge> {
        let error = match self.send(session, request).await {
            Ok(operation) => {
                session.operation(&operation);
                return Some(knowledge(&session.name, &operation));
            }
            Err(e) => e,
        };
        info!(network = %network.key(), "{error}");
        if error.is(reason::REQUEST_ID_REUSED) {
            // Sent before with another body, by this process or a former one: that one counts.
            return self.look_up(network, session).await;
        }
        let why = answered(&error)?;
        if !unsent {
            // It may have been sent before and be under way, though now it is refused.
            match self.look_up(network, session).await? {
                Knowledge::Absent if error.retryable() => return None,
                Knowledge::Absent => {}
                known => return Some(known),
            }
        }
        Some(Knowledge::Refused(Ending::Failed { reason: why, message: full_text(&error), retryable: error.retryable(), remains: false }))
    }

    async fn send(&self, session: &Session, request: Request) -> Result<v1::Operation, AgentError> {
        let client = &session.client;
        let (call, operation) = match request {
            Request::Apply(mut r) => {
                r.meta = self.with_epoch(r.meta);
                ("ApplyNetwork", client.answer(client.network().apply_network(r).await)?.operation)
            }
            Request::Remove(mut r) => {
                r.meta = self.with_epoch(r.meta);
                ("RemoveNetwork", client.answer(client.network().remove_network(r).await)?.operation)
            }
        };
        operation.ok_or_else(|| client.incomplete(call, "operation"))
    }

    async fn probe(&self, from: &AgentClient, tasks: Vec<ProbeTask>) -> Vec<ProbeStatus> {
        let one = |task: ProbeTask| async move {
            let target = &task.target;
            let found = match self.fleet.session(&task.place.0, &task.place.1) {
                Some(peer) => {
                    let interface = surface(from, &target.interface).await;
                    let at_peer = surface(&peer.client, &target.interface).await;
                    // A bridge may have less than its port, and what it has is all that can be tried.
                    let mtu = target.mtu.filter(|_| interface == target.interface && at_peer == target.interface);
                    agents::probe(from, &peer.client, &agents::Probe { interface, at_peer, vlan: target.vlan, mtu }).await
                }
                None => agents::Probed { problem: Some(format!("PveHost {} is gone", task.peer)), ..agents::Probed::default() },
            };
            ProbeStatus {
                peer: task.peer,
                interface: task.target.interface,
                vlan: task.target.vlan,
                ok: found.problem.is_none(),
                mtu: found.largest_mtu,
                rtt_us: found.rtt_us,
                message: found.problem.unwrap_or_default(),
            }
        };
        stream::iter(tasks).map(one).buffered(PROBES).collect().await
    }
}

/// Where frames of an interface come out on this host: at the bridge, where another network or somebody's bridge has it as a port. An agent
/// does not probe ports.
async fn surface(agent: &AgentClient, interface: &str) -> String {
    // If it cannot be asked, the probe itself says why.
    let links = agent.get_network().await.map(|told| told.links).unwrap_or_default();
    let link = |name: &str| links.iter().find(|l| l.name == name);
    let bridge = link(interface).and_then(|l| link(&l.master)).filter(|m| m.kind == "bridge");
    bridge.map_or(interface, |b| b.name.as_str()).to_owned()
}

/// Where the change of this operation stands.
fn change(last: Option<&v1::NetworkChange>, operation: Option<&str>) -> Change {
    use v1::NetworkChangeState as S;
    let Some(last) = last.filter(|l| Some(l.operation.as_str()) == operation) else { return Change::Other };
    match last.state() {
        S::Unspecified | S::Prepared | S::Applying | S::RollingBack => Change::UnderWay,
        S::Waiting => Change::Waiting,
        S::Confirmed => Change::Confirmed,
        S::RolledBack => Change::Undone(last.detail.clone()),
        S::RollbackFailed => Change::Stuck(last.detail.clone()),
    }
}

/// Checks for which the agent refuses a change with a reason of their own, the most telling first.
const REFUSALS: [(&str, &str); 4] = [
    ("net.staged-interfaces", reason::FOREIGN_CHANGE_PENDING),
    ("net.sdn-lock", reason::FOREIGN_CHANGE_PENDING),
    ("net.management-path", reason::MANAGEMENT_PATH),
    ("net.network-in-use", reason::NETWORK_IN_USE),
];

/// What a plan means. A check that failed badly makes the agent refuse the change, so that it is not sent.
fn sight(told: v1::PlanNetworkResponse) -> Sight {
    let plan = told.plan.unwrap_or_default();
    if plan.steps.is_empty() && plan.file_diff.is_empty() {
        return Sight::InSync;
    }
    let bad = |c: &&v1::NetworkCheck| c.state() == v1::CheckState::Failed && c.severity() == v1::CheckSeverity::Error;
    let bad: Vec<&v1::NetworkCheck> = told.checks.iter().filter(bad).collect();
    if bad.is_empty() {
        return Sight::Differs(plan.changes);
    }
    let text = |c: &&v1::NetworkCheck| format!("{}: {}; {}", c.id, c.seen, c.remedy);
    let why = REFUSALS.into_iter().find(|(id, _)| bad.iter().any(|c| c.id == *id)).map_or(reason::NETWORK_PREFLIGHT, |(_, why)| why);
    Sight::Refused { reason: why.to_owned(), message: bad.iter().map(text).collect::<Vec<_>>().join("; "), retryable: false }
}

/// The message, with what its metadata names in addition: the VMs and interfaces that use a network, the checks that failed.
fn full_text(error: &AgentError) -> String {
    let more = ["users", "checks"].into_iter().filter_map(|key| Some((key, error.metadata.get(key)?)));
    more.filter(|(_, value)| !error.message.contains(value.as_str()))
        .fold(error.text(), |text, (key, value)| format!("{text} ({key}: {value})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_refused_with_the_reason_that_the_change_would_be() {
        let step = v1::NetworkStep { action: v1::NetworkAction::Down.into(), interface: "vmbr7".into() };
        let plan = v1::NetworkPlan { steps: vec![step], changes: vec!["- bridge vmbr7".into()], ..v1::NetworkPlan::default() };
        let check = |id: &str, severity: v1::CheckSeverity| v1::NetworkCheck {
            id: id.into(),
            state: v1::CheckState::Failed.into(),
            severity: severity.into(),
            seen: "bridge 'vmbr7': VM 104 (net0)".into(),
            remedy: "move it".into(),
            ..v1::NetworkCheck::default()
        };
        let (error, warning) = (v1::CheckSeverity::Error, v1::CheckSeverity::Warning);
        for (checks, want) in [
            (vec![check("net.network-in-use", error)], Some(reason::NETWORK_IN_USE)),
            (vec![check("net.ifupdown2", error), check("net.network-in-use", error)], Some(reason::NETWORK_IN_USE)),
            (vec![check("net.network-in-use", error), check("net.sdn-lock", error)], Some(reason::FOREIGN_CHANGE_PENDING)),
            (vec![check("net.management-path", error)], Some(reason::MANAGEMENT_PATH)),
            (vec![check("net.ifupdown2", error)], Some(reason::NETWORK_PREFLIGHT)),
            (vec![check("net.mtu-chain", warning)], None),
        ] {
            let sight = sight(v1::PlanNetworkResponse { plan: Some(plan.clone()), checks: checks.clone() });
            match (sight, want) {
                (Sight::Differs(changes), None) => assert_eq!(changes, plan.changes),
                (Sight::Refused { reason, message, retryable: false }, Some(want)) => {
                    assert_eq!(reason, want, "{checks:?}");
                    assert!(message.contains("VM 104"), "{message}");
                }
                (sight, want) => panic!("{sight:?}, wanted {want:?}"),
            }
        }
        // What is so already is not refused, whatever else is wrong.
        let nothing = v1::PlanNetworkResponse { plan: None, checks: vec![check("net.ifupdown2", error)] };
        assert_eq!(sight(nothing), Sight::InSync);
    }
}
