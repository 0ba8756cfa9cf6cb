//! Operations as the agents tell them, reduced to what is decided by.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use pvelet_proto::{reason, v1};

use super::{Ending, Knowledge, view::timestamp};
use crate::agents::AgentError;

/// How many operations of one agent are kept; an older one is asked for when it matters.
const KEPT: usize = 4096;

/// The operations of one agent, by request id.
#[derive(Debug, Default)]
pub(super) struct OperationTable {
    known: HashMap<String, Knowledge>,
    order: VecDeque<String>,
    /// The newest stop that was carried out, by the VM's UUID, unless a machine's own policy ordered it.
    stops: HashMap<String, (String, Timestamp)>,
}

impl OperationTable {
    /// Takes a snapshot; true when it tells something new that may be decided by.
    pub(super) fn insert(&mut self, host: &str, operation: &v1::Operation) -> bool {
        self.note_stop(operation);
        let known = knowledge(host, operation);
        if self.known.get(&operation.request_id) == Some(&known) {
            return false;
        }
        if self.known.insert(operation.request_id.clone(), known).is_none() {
            self.order.push_back(operation.request_id.clone());
            if self.order.len() > KEPT
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
        true
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
        let known = &self.known;
        self.order.retain(|id| known.contains_key(id));
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
