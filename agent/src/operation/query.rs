//! What can be asked of the registry.

use std::{path::PathBuf, sync::Arc, time::Duration};

use pvelet_proto::v1;
use tokio::sync::broadcast;

use super::{
    AuditLine, Caller, Guards, Handle, Operations, State, Unfinished,
    audit::rfc3339,
    record::{Entry, ended},
};
use crate::error::Error;

/// Operations in a page when the caller does not say, and at most.
const PAGE: (usize, usize) = (100, 1000);

/// How the registry and its journal are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// Where the journal lies.
    pub path: PathBuf,
    /// Why it cannot be written; `None`: the last write succeeded.
    pub failed: Option<String>,
    /// Operations that are under way.
    pub active: usize,
    /// As many may be.
    pub max_active: usize,
}

impl Operations {
    /// How the registry and its journal are.
    pub fn condition(&self) -> Condition {
        let active = {
            let inner = self.lock();
            inner.entries.len() - inner.expiry.len()
        };
        Condition { path: self.journal.path().to_owned(), failed: self.journal.failed(), active, max_active: self.settings.max_active }
    }

    /// One operation. Errors: `OperationNotFound`.
    pub fn get(&self, name: &str) -> Result<v1::Operation, Error> {
        let inner = self.lock();
        inner.entries.get(name).map(|e| (*e.shown).clone()).ok_or_else(|| Error::OperationNotFound { name: name.to_owned() })
    }

    /// What an operation decided and did. Errors: `OperationNotFound`.
    pub fn state_of(&self, name: &str) -> Result<State, Error> {
        let inner = self.lock();
        inner.entries.get(name).map(|e| e.state.clone()).ok_or_else(|| Error::OperationNotFound { name: name.to_owned() })
    }

    /// The operation once its intent is on the disk. Errors: `Journal`, `OperationNotFound`.
    pub async fn written(&self, name: &str) -> Result<v1::Operation, Error> {
        let mut intent = {
            let inner = self.lock();
            let entry = inner.entries.get(name).ok_or_else(|| Error::OperationNotFound { name: name.to_owned() })?;
            entry.intent.clone()
        };
        let result = intent.wait_for(Option::is_some).await.map_err(|_| Error::AgentDraining)?.clone();
        result.unwrap_or(Ok(()))?;
        self.get(name)
    }

    /// The operation after it has ended or `wait` has passed, whichever comes first. Errors: `OperationNotFound`.
    pub async fn wait(&self, name: &str, wait: Duration) -> Result<v1::Operation, Error> {
        let done = self.lock().entries.get(name).map(|e| e.done.clone());
        if let Some(done) = done.filter(|_| !wait.is_zero()) {
            // Running out of time is an answer too.
            let _ = tokio::time::timeout(wait, done.cancelled()).await;
        }
        self.get(name)
    }

    /// Operations, newest first. An empty tenant means all; the caller's rights are the caller's business. Errors: `Invalid`.
    pub fn list(&self, request: &v1::ListOperationsRequest) -> Result<v1::ListOperationsResponse, Error> {
        let size = match request.page_size as usize {
            0 => PAGE.0,
            n => n.min(PAGE.1),
        };
        let before = match request.page_token.as_str() {
            "" => u64::MAX,
            token => token.parse().map_err(|_| {
                let text = format!("'{token}' is no token of an earlier page");
                Error::invalid("page_token", pvelet_proto::reason::INVALID_FIELD, text)
            })?,
        };
        let inner = self.lock();
        let mut operations = Vec::new();
        let mut next_page_token = String::new();
        let mut last = before;
        for (number, name) in inner.by_number.range(..before).rev() {
            let Some(entry) = inner.entries.get(name) else { continue };
            let op = &entry.shown;
            let wanted = (request.tenant.is_empty() || request.tenant == op.tenant)
                && (request.request_id.is_empty() || request.request_id == op.request_id)
                && !(request.active_only && ended(op));
            if !wanted {
                continue;
            }
            if operations.len() == size {
                next_page_token = last.to_string();
                break;
            }
            operations.push((**op).clone());
            last = *number;
        }
        Ok(v1::ListOperationsResponse { operations, next_page_token })
    }

    /// What a new watcher is told first, and what comes after it, without a gap.
    pub(super) fn snapshot(&self, since: u64) -> (Vec<Arc<v1::Operation>>, broadcast::Receiver<Arc<v1::Operation>>) {
        let inner = self.lock();
        let changes = self.changes.subscribe();
        let lost = since > inner.revision;
        let wanted = |op: &v1::Operation| !ended(op) || lost || (since > 0 && op.revision > since);
        let mut first: Vec<_> = inner.entries.values().map(|e| &e.shown).filter(|op| wanted(op)).cloned().collect();
        first.sort_by_key(|op| op.revision);
        (first, changes)
    }

    /// Asks an operation to stop and undo. Asking twice is no error. Errors: `OperationNotFound`, `NotCancellable`, `StaleEpoch`.
    pub fn cancel(&self, caller: &Caller, request: &v1::CancelOperationRequest) -> Result<v1::Operation, Error> {
        let meta = request.meta.clone().unwrap_or_default();
        let mut inner = self.lock();
        if let Some(epoch) = &meta.controller_epoch {
            inner.epochs.check(epoch)?;
        }
        let name = &request.name;
        let entry = inner.entries.get_mut(name).ok_or_else(|| Error::OperationNotFound { name: name.clone() })?;
        if let Some(why) = entry.committed.filter(|_| entry.cancelled_by.is_none()) {
            return Err(Error::NotCancellable { name: name.clone(), why });
        }
        let by = entry.cancelled_by.get_or_insert_with(|| caller.identity.to_string()).clone();
        entry.cancel.cancel();
        let (shown, target) = ((*entry.shown).clone(), Guards::vm(entry.state.vmid));
        let line = AuditLine {
            time: rfc3339(self.clock.unix_millis()),
            caller: by,
            tenant: meta.tenant,
            action: "CANCEL_OPERATION".to_owned(),
            target,
            decision: "succeeded".to_owned(),
            operation: name.clone(),
            request_id: meta.request_id,
            ..AuditLine::default()
        };
        drop(inner);
        self.audit(&line);
        Ok(shown)
    }

    /// Refuses new operations from now on, and waits until all have ended, but for those that wait for somebody outside, or `deadline` has
    /// passed. Returns how many are left; the next start of the agent settles them.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.lock().draining = true;
        let end = tokio::time::Instant::now() + deadline;
        loop {
            let ended = self.ended.notified();
            let (left, parked) = (self.active(), self.parked());
            if left == parked || tokio::time::timeout_at(end, ended).await.is_err() {
                return left;
            }
        }
    }

    fn parked(&self) -> usize {
        self.lock().entries.values().filter(|e| e.parked && !ended(&e.shown)).count()
    }

    /// Now, in milliseconds since the Unix epoch, by the clock of the operations.
    pub fn unix_millis(&self) -> u64 {
        self.clock.unix_millis()
    }

    /// How many operations have not ended.
    pub fn active(&self) -> usize {
        let inner = self.lock();
        inner.entries.len() - inner.expiry.len()
    }

    /// Operations of the last run that have not ended, oldest first.
    pub fn unfinished(self: &Arc<Self>) -> Vec<Unfinished> {
        let inner = self.lock();
        let entries = inner.by_number.values().filter_map(|name| inner.entries.get(name)).filter(|e| !ended(&e.shown));
        entries.map(|e| self.to_settle(e)).collect()
    }

    /// One operation that has not ended.
    pub fn unfinished_one(self: &Arc<Self>, name: &str) -> Option<Unfinished> {
        self.lock().entries.get(name).filter(|e| !ended(&e.shown)).map(|e| self.to_settle(e))
    }

    fn to_settle(self: &Arc<Self>, e: &Entry) -> Unfinished {
        Unfinished {
            handle: Handle::new(Arc::clone(self), e),
            kind: e.shown.kind(),
            request: Arc::clone(&e.request),
            state: e.state.clone(),
        }
    }

    /// Name and state of clones that failed or were cancelled: nothing of theirs should be left.
    pub fn failed_clones(&self) -> Vec<(String, State)> {
        let inner = self.lock();
        let failed = |e: &&Entry| {
            e.shown.kind() == v1::OperationKind::CloneVm
                && matches!(e.shown.state(), v1::OperationState::Failed | v1::OperationState::Cancelled)
        };
        inner.entries.values().filter(failed).map(|e| (e.shown.name.clone(), e.state.clone())).collect()
    }

    /// Whether a VM with this VMID and UUID was made, changed or deleted by an operation of the journal; `deleted`: only the last counts.
    pub fn knew(&self, vmid: u32, uuid: &str, deleted: bool) -> bool {
        let inner = self.lock();
        inner.entries.values().any(|e| {
            e.shown.state() == v1::OperationState::Succeeded
                && (!deleted || e.shown.kind() == v1::OperationKind::DeleteVm)
                && e.shown.target.as_ref().is_some_and(|t| t.vmid == vmid && t.uuid.eq_ignore_ascii_case(uuid))
        })
    }

    /// VMIDs that are leased now.
    pub fn leased(&self) -> Vec<u32> {
        self.lock().leases.leased().collect()
    }
}
