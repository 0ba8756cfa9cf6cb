//! One line for each mutation: who, for whom, what, to what, what was decided, how long it took.

use std::sync::Arc;

use jiff::Timestamp;
use pvelet_proto::v1;
use serde::Serialize;

use super::{Caller, Guards, Operations, journal::Write};
use crate::error::Error;

/// An audit line; written as JSON to the journal and to the log.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AuditLine {
    /// When, RFC 3339.
    pub time: String,
    /// SPIFFE id of the caller.
    pub caller: String,
    /// For which tenant.
    pub tenant: String,
    /// What: the operation's kind, or the method's name.
    pub action: String,
    /// To what, such as "VM 100".
    pub target: String,
    /// "succeeded", "failed", "cancelled", or "refused".
    pub decision: String,
    /// Reason of the error; empty where there is none.
    pub reason: String,
    /// The operation's name; empty where none was begun.
    pub operation: String,
    /// The request's id.
    pub request_id: String,
    /// From acceptance to end.
    pub duration_ms: u64,
}

/// `CLONE_VM` for `OPERATION_KIND_CLONE_VM`.
pub(super) fn kind_name(kind: v1::OperationKind) -> &'static str {
    kind.as_str_name().trim_start_matches("OPERATION_KIND_")
}

/// RFC 3339 of milliseconds since the Unix epoch.
pub(super) fn rfc3339(millis: u64) -> String {
    i64::try_from(millis).ok().and_then(|m| Timestamp::from_millisecond(m).ok()).map(|t| t.to_string()).unwrap_or_default()
}

impl AuditLine {
    /// Also logs the line.
    pub(super) fn to_json(&self) -> String {
        tracing::info!(
            target: "pvelet::audit",
            caller = %self.caller, tenant = %self.tenant, action = %self.action, on = %self.target, decision = %self.decision,
            reason = %self.reason, operation = %self.operation, request_id = %self.request_id, duration_ms = self.duration_ms, "audit"
        );
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Operations {
    /// Writes an audit line for what is no operation.
    pub fn audit(&self, line: &AuditLine) {
        let number = self.journal.push([Write::Audit(line.to_json())]);
        let journal = Arc::clone(&self.journal);
        tokio::spawn(async move {
            if let Err(error) = journal.durable(number).await {
                tracing::error!(%error, "an audit line is not on the disk");
            }
        });
    }

    /// Writes the audit line of a mutation that was refused before it became an operation.
    pub fn refused(&self, caller: &Caller, meta: &v1::RequestMeta, kind: v1::OperationKind, target: &v1::VmRef, error: &Error) {
        self.audit(&AuditLine {
            time: rfc3339(self.clock.unix_millis()),
            caller: caller.identity.to_string(),
            tenant: meta.tenant.clone(),
            action: kind_name(kind).to_owned(),
            target: if target.vmid == 0 { String::new() } else { Guards::vm(target.vmid) },
            decision: "refused".to_owned(),
            reason: error.reason().to_owned(),
            operation: String::new(),
            request_id: meta.request_id.clone(),
            duration_ms: 0,
        });
    }

    /// The last audit lines, oldest first, as JSON. Blocks on the disk. Errors: `Journal`.
    pub fn audit_tail(&self, count: usize) -> Result<Vec<String>, Error> {
        self.journal.audit_tail(count)
    }
}
