//! One line for each mutation: who, for whom, what, to what, what was decided, how long it took.

use std::sync::Arc;

use jiff::Timestamp;
use pvelet_proto::v1;
use serde::Serialize;

use super::{Caller, Guards, Operations, journal::Write};
use crate::error::Error;

/// The longest text that a field keeps: more than any that is well-formed has.
const FIELD_CHARS: usize = 512;

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
    /// What an operation works on, in words.
    pub(super) fn target(operation: &v1::Operation) -> String {
        let vm = operation.target.as_ref().filter(|vm| vm.vmid != 0).map(|vm| Guards::vm(vm.vmid));
        let volume = operation.volume.as_ref().map(|volume| format!("volume {}", volume.id));
        let network = Some(&operation.network).filter(|n| !n.is_empty()).map(|n| format!("network {n}"));
        let check = Some(&operation.check).filter(|c| !c.is_empty()).map(|c| format!("check {c}"));
        volume.into_iter().chain(vm).chain(network).chain(check).collect::<Vec<_>>().join(", ")
    }

    /// The same with each text on one line and cut: what is refused may hold anything, up to the size of a request.
    fn bounded(&self) -> Self {
        let text = |t: &String| t.chars().map(|c| if c.is_control() { ' ' } else { c }).take(FIELD_CHARS).collect();
        Self {
            time: text(&self.time),
            caller: text(&self.caller),
            tenant: text(&self.tenant),
            action: text(&self.action),
            target: text(&self.target),
            decision: text(&self.decision),
            reason: text(&self.reason),
            operation: text(&self.operation),
            request_id: text(&self.request_id),
            duration_ms: self.duration_ms,
        }
    }

    /// Also logs the line.
    pub(super) fn to_json(&self) -> String {
        let this = self.bounded();
        tracing::info!(
            target: "pvelet::audit",
            caller = %this.caller, tenant = %this.tenant, action = %this.action, on = %this.target, decision = %this.decision,
            reason = %this.reason, operation = %this.operation, request_id = %this.request_id, duration_ms = this.duration_ms, "audit"
        );
        serde_json::to_string(&this).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_refused_request_holds_is_cut_and_kept_on_one_line() {
        let line = AuditLine { request_id: "x\n".repeat(1 << 19), tenant: "a".into(), ..AuditLine::default() };
        let json: serde_json::Value = serde_json::from_str(&line.to_json()).unwrap();
        assert_eq!(json["request_id"], "x ".repeat(FIELD_CHARS / 2));
        assert_eq!(json["tenant"], "a");
    }
}
