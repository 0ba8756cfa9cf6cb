//! Operations as the agents tell them, reduced to what is decided by.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use pvelet_proto::{reason, v1};
use tokio::time::Instant;
use tonic::Code;

use super::{Ending, Knowledge, view::timestamp};
use crate::agents::{AgentError, Cause};

/// How many operations of one agent are kept; an older one is asked for when it matters.
const KEPT: usize = 4096;
/// How long one that has ended is kept: a thousand agents tell a thousand each of a day, and what it led to is decided within seconds.
const KEPT_FOR: Duration = Duration::from_secs(120);

/// The step of a network change that is applied and waits for ConfirmNetwork.
const WAITING: &str = "waiting for confirmation";

/// The reason given where an older agent does not offer a call: it is no reason of the API, since that agent knows none for it.
const UNIMPLEMENTED: &str = "UNIMPLEMENTED";

/// The agent's reason, where the error is an answer of the agent about this call and not one of the connection.
///
/// That we do not lead any more says nothing about the call: the present leader may have made the same one. A former leader that took it for a
/// refusal would write down that nothing is under way.
pub(super) fn answered(error: &AgentError) -> Option<String> {
    if error.is(reason::STALE_EPOCH) || error.is(reason::UNKNOWN_LEASE) {
        return None;
    }
    let unimplemented = || (error.code == Code::Unimplemented).then(|| UNIMPLEMENTED.to_owned());
    if matches!(error.cause, Cause::Agent) { error.reason.clone().or_else(unimplemented) } else { None }
}

/// The operations of one agent, by request id.
#[derive(Debug, Default)]
pub(super) struct OperationTable {
    known: HashMap<Arc<str>, Knowledge>,
    order: VecDeque<(Arc<str>, Instant)>,
    /// Those that wait for the confirmation of a network change.
    waiting: HashSet<String>,
    /// The newest stop that was carried out, by the VM's UUID, unless a machine's own policy ordered it.
    stops: HashMap<String, (String, Timestamp)>,
}

impl OperationTable {
    /// Takes a snapshot; true when it tells something new that may be decided by.
    pub(super) fn insert(&mut self, host: &str, operation: &v1::Operation) -> bool {
        self.note_stop(operation);
        let known = knowledge(host, operation);
        let begins_to_wait = self.note_waiting(operation);
        match self.known.get(operation.request_id.as_str()) {
            Some(old) if *old == known => return begins_to_wait,
            // A call's answer may be older than what the stream has told meanwhile; nothing that ended goes on.
            Some(Knowledge::Ended(_)) if matches!(known, Knowledge::Active { .. }) => return false,
            _ => {}
        }
        if let Some(old) = self.known.get_mut(operation.request_id.as_str()) {
            *old = known;
        } else {
            let id: Arc<str> = operation.request_id.as_str().into();
            self.known.insert(Arc::clone(&id), known);
            self.order.push_back((id, Instant::now()));
            self.forget_old();
        }
        true
    }

    /// Takes of one that ended long ago what may matter for long.
    pub(super) fn insert_old(&mut self, operation: &v1::Operation) {
        self.note_stop(operation);
    }

    /// Forgets what ended long ago.
    pub(super) fn forget_old(&mut self) {
        let ended = |known: &HashMap<Arc<str>, Knowledge>, id: &str| !matches!(known.get(id), Some(Knowledge::Active { .. }));
        while let Some((id, time)) = self.order.front() {
            if self.order.len() <= KEPT && !(time.elapsed() > KEPT_FOR && ended(&self.known, id)) {
                return;
            }
            self.known.remove(id);
            self.waiting.remove(&**id);
            self.order.pop_front();
        }
        // Not before here: it has become empty.
        self.known.shrink_to_fit();
        self.order.shrink_to_fit();
    }

    pub(super) fn get(&self, request_id: &str) -> Option<&Knowledge> {
        self.known.get(request_id)
    }

    pub(super) fn stop_of(&self, uuid: &str) -> Option<&(String, Timestamp)> {
        self.stops.get(uuid)
    }

    /// Forgets what had not ended: after a lost connection it may have.
    pub(super) fn forget_active(&mut self) {
        self.known.retain(|_, known| !matches!(known, Knowledge::Active { .. }));
        self.waiting.clear();
        let known = &self.known;
        self.order.retain(|(id, _)| known.contains_key(id));
    }

    /// Whether it waits since just now. Other progress is no news.
    fn note_waiting(&mut self, operation: &v1::Operation) -> bool {
        let waits = operation.state() == v1::OperationState::Running && operation.step == WAITING;
        if waits {
            return self.waiting.insert(operation.request_id.clone());
        }
        self.waiting.remove(&operation.request_id);
        false
    }

    fn note_stop(&mut self, operation: &v1::Operation) {
        let stop = matches!(operation.kind(), v1::OperationKind::ShutdownVm | v1::OperationKind::StopVm);
        let own = operation.request_id.contains(":shutdown:");
        if !stop || own || operation.state() != v1::OperationState::Succeeded {
            return;
        }
        let (Some(vm), Some(end)) = (&operation.target, operation.end_time.as_ref().and_then(timestamp)) else { return };
        let newest = self.stops.entry(vm.uuid.clone()).or_insert_with(|| (operation.name.clone(), end));
        if newest.1 <= end {
            *newest = (operation.name.clone(), end);
        }
    }
}

/// What an operation's snapshot says.
pub(super) fn knowledge(host: &str, operation: &v1::Operation) -> Knowledge {
    match operation.state() {
        v1::OperationState::Succeeded => {
            let vm = operation.target.clone().unwrap_or_default();
            Knowledge::Ended(Ending::Succeeded { vmid: vm.vmid, uuid: vm.uuid })
        }
        v1::OperationState::Failed | v1::OperationState::Cancelled => {
            let error = operation.error.as_ref().map(|status| AgentError::from_operation(host, status));
            let (why, mut message, retryable) = match error {
                Some(e) => (e.reason.clone().unwrap_or_else(|| reason::INTERNAL.to_owned()), e.text(), e.retryable()),
                None => (reason::CANCELLED.to_owned(), "ended without an error".to_owned(), true),
            };
            if !operation.warnings.is_empty() {
                message = format!("{message} (left behind: {})", operation.warnings.join("; "));
            }
            let cancelled = operation.state() == v1::OperationState::Cancelled;
            Knowledge::Ended(Ending::Failed {
                reason: why,
                message,
                retryable: retryable || cancelled,
                remains: !operation.warnings.is_empty(),
            })
        }
        v1::OperationState::Pending | v1::OperationState::Running | v1::OperationState::Unspecified => {
            Knowledge::Active { name: operation.name.clone() }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn operation(state: v1::OperationState) -> v1::Operation {
        v1::Operation {
            name: "operations/1".into(),
            request_id: "u:clone:1".into(),
            target: Some(v1::VmRef { vmid: 101, uuid: "x".into() }),
            state: state.into(),
            ..v1::Operation::default()
        }
    }

    #[test]
    fn what_ended_does_not_go_on_when_an_older_answer_arrives() {
        let mut table = OperationTable::default();
        assert!(table.insert("pve1", &operation(v1::OperationState::Running)));
        assert!(table.insert("pve1", &operation(v1::OperationState::Succeeded)));
        assert!(!table.insert("pve1", &operation(v1::OperationState::Running)));
        assert!(matches!(table.get("u:clone:1"), Some(Knowledge::Ended(Ending::Succeeded { vmid: 101, .. }))));
    }

    #[test]
    fn progress_is_no_news() {
        let mut table = OperationTable::default();
        assert!(table.insert("pve1", &operation(v1::OperationState::Running)));
        let further = v1::Operation {
            progress: Some(v1::Progress { percent: 9, ..v1::Progress::default() }),
            ..operation(v1::OperationState::Running)
        };
        assert!(!table.insert("pve1", &further));
    }

    #[test]
    fn a_network_change_that_begins_to_wait_is_news_once() {
        let mut table = OperationTable::default();
        assert!(table.insert("pve1", &operation(v1::OperationState::Running)));
        let waiting = v1::Operation { step: WAITING.into(), ..operation(v1::OperationState::Running) };
        assert_eq!((table.insert("pve1", &waiting), table.insert("pve1", &waiting)), (true, false));
        assert!(table.insert("pve1", &operation(v1::OperationState::Succeeded)));
    }

    #[test]
    fn after_a_lost_connection_only_what_ended_is_still_known() {
        let mut table = OperationTable::default();
        table.insert("pve1", &operation(v1::OperationState::Running));
        table.forget_active();
        assert_eq!(table.get("u:clone:1"), None);
    }

    #[test]
    fn only_stops_by_others_that_were_carried_out_count_and_the_newest_wins() {
        let mut table = OperationTable::default();
        let stop = |request_id: &str, name: &str, state: v1::OperationState, seconds| v1::Operation {
            name: name.into(),
            request_id: request_id.into(),
            kind: v1::OperationKind::StopVm.into(),
            end_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..operation(state)
        };
        table.insert("pve1", &stop("u:shutdown:4", "own", v1::OperationState::Succeeded, 90));
        table.insert("pve1", &stop("p1", "failed", v1::OperationState::Failed, 80));
        assert_eq!(table.stop_of("x"), None);
        table.insert("pve1", &stop("p2", "second", v1::OperationState::Succeeded, 70));
        table.insert("pve1", &stop("p3", "first", v1::OperationState::Succeeded, 60));
        assert_eq!(table.stop_of("x").unwrap().0, "second");
    }

    #[tokio::test(start_paused = true)]
    async fn what_ended_long_ago_is_forgotten_and_what_goes_on_is_not() {
        let mut table = OperationTable::default();
        let of = |id: &str, state| v1::Operation { request_id: id.into(), ..operation(state) };
        table.insert("pve1", &of("ended", v1::OperationState::Succeeded));
        table.insert("pve1", &of("active", v1::OperationState::Running));
        table.insert("pve1", &of("ended later", v1::OperationState::Succeeded));
        tokio::time::advance(KEPT_FOR * 2).await;
        table.insert("pve1", &of("new", v1::OperationState::Succeeded));
        assert_eq!(table.get("ended"), None);
        assert!(["active", "ended later", "new"].iter().all(|id| table.get(id).is_some()), "what is behind an active one waits for it");
        table.insert("pve1", &of("active", v1::OperationState::Failed));
        table.insert("pve1", &of("newer", v1::OperationState::Succeeded));
        assert!(table.get("active").is_none() && table.get("ended later").is_none() && table.get("new").is_some());
    }

    #[test]
    fn the_oldest_are_forgotten_when_there_are_too_many() {
        let mut table = OperationTable::default();
        for i in 0..=KEPT {
            table.insert("pve1", &v1::Operation { request_id: format!("r{i}"), ..operation(v1::OperationState::Succeeded) });
        }
        assert_eq!(table.get("r0"), None);
        assert!(table.get("r1").is_some());
    }
}
