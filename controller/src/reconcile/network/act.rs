//! What a network's decisions do.

use futures_util::{StreamExt, stream};
use pvelet_proto::{reason, v1};
use tracing::info;

use super::{
    Learned, Networks,
    decide::{Action, Change, Place, ProbeTask, Request, Sight},
};
use crate::{
    agents::{self, AgentClient, AgentError, Cause},
    crash::crash_point,
    kind::{ProbeStatus, PveNetwork},
    reconcile::{Ending, Knowledge, operation::knowledge, session::Session},
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
        let request = v1::ListOperationsRequest {
            tenant: network.tenant().to_owned(),
            request_id: attempt.request_id.clone(),
            page_size: 1,
            ..v1::ListOperationsRequest::default()
        };
        match session.client.answer(session.client.operation().list_operations(request).await) {
            Ok(response) => Some(match response.operations.first() {
                Some(operation) => {
                    session.operation(operation);
                    knowledge(&session.name, operation)
                }
                None => Knowledge::Absent,
            }),
            Err(e) => {
                info!(network = %network.key(), "cannot ask for the operation: {e}");
                None
            }
        }
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
            let what = agents::Probe { interface: task.target.interface.clone(), vlan: task.target.vlan, mtu: task.target.mtu };
            let found = match self.fleet.session(&task.place.0, &task.place.1) {
                Some(peer) => agents::probe(from, &peer.client, &what).await,
                None => agents::Probed { problem: Some(format!("PveHost {} is gone", task.peer)), ..agents::Probed::default() },
            };
            ProbeStatus {
                peer: task.peer,
                interface: what.interface,
                vlan: what.vlan,
                ok: found.problem.is_none(),
                mtu: found.largest_mtu,
                rtt_us: found.rtt_us,
                message: found.problem.unwrap_or_default(),
            }
        };
        stream::iter(tasks).map(one).buffered(PROBES).collect().await
    }
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

/// What a plan means. A check that failed badly makes the agent refuse the change, so that it is not sent.
fn sight(told: v1::PlanNetworkResponse) -> Sight {
    let plan = told.plan.unwrap_or_default();
    if plan.steps.is_empty() && plan.file_diff.is_empty() {
        return Sight::InSync;
    }
    let bad = |c: &&v1::NetworkCheck| c.state() == v1::CheckState::Failed && c.severity() == v1::CheckSeverity::Error;
    let bad: Vec<String> = told.checks.iter().filter(bad).map(|c| format!("{}: {}; {}", c.id, c.seen, c.remedy)).collect();
    if bad.is_empty() {
        Sight::Differs(plan.changes)
    } else {
        Sight::Refused { reason: reason::NETWORK_PREFLIGHT.to_owned(), message: bad.join("; "), retryable: false }
    }
}

/// The agent's reason, where the error is an answer of the agent about this call and not one of the connection.
fn answered(error: &AgentError) -> Option<String> {
    let unimplemented = || (error.code == tonic::Code::Unimplemented).then(|| "UNIMPLEMENTED".to_owned());
    if matches!(error.cause, Cause::Agent) { error.reason.clone().or_else(unimplemented) } else { None }
}

/// The message, with what its metadata names in addition: the VMs and interfaces that use a network, the checks that failed.
fn full_text(error: &AgentError) -> String {
    let more = ["users", "checks"].into_iter().filter_map(|key| Some((key, error.metadata.get(key)?)));
    more.filter(|(_, value)| !error.message.contains(value.as_str()))
        .fold(error.text(), |text, (key, value)| format!("{text} ({key}: {value})"))
}
