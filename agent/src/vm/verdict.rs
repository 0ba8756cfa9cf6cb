//! What came of a clone: judged by what stands under its VMID, never by how the task ended alone. Pure, and tested as a table.

use std::sync::Arc;

use super::{
    failure::{Failed, lock_timeout},
    mark::Mark,
};
use crate::{
    error::Error,
    host::pve::{TaskEnd, VmRecord},
};

/// What stands under a VMID, seen from one clone operation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// Nothing.
    Absent,
    /// A clone in the making: PVE's temporary config, which names nobody.
    InTheMaking,
    /// The VM of this operation.
    Ours(Arc<VmRecord>),
    /// The VM of this operation, moved to another node.
    OursElsewhere(Arc<VmRecord>),
    /// Somebody else's.
    Foreign,
}

/// Judges what stands under a clone's VMID.
pub(super) fn judge(record: Option<Arc<VmRecord>>, operation: uuid::Uuid, node: &str) -> Found {
    let Some(vm) = record else { return Found::Absent };
    let uuid = vm.config.uuid().map(str::to_ascii_lowercase);
    match Mark::own(&vm.config.description, uuid.as_deref()) {
        Some(mark) if mark.operation == operation && vm.node == node => Found::Ours(vm),
        Some(mark) if mark.operation == operation => Found::OursElsewhere(vm),
        Some(_) => Found::Foreign,
        None if vm.node == node && uuid.is_none() && vm.config.lock() == Some("clone") => Found::InTheMaking,
        None => Found::Foreign,
    }
}

/// What follows from how a clone task ended and what stands there now.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// It is made; go on with its settings.
    Made(Arc<VmRecord>),
    /// PVE gave up on a lock and left nothing; ask again.
    Again(String),
    /// It failed.
    Failed(Error),
}

/// The decision after a clone task. The end alone never counts.
pub(super) fn verdict(end: &TaskEnd, found: Found, failed: &Failed<'_>) -> Verdict {
    match (end, found) {
        (_, Found::OursElsewhere(vm)) => Verdict::Failed(Error::VmOnOtherHost { vmid: vm.vmid, node: vm.node.clone() }),
        // Without an end line the config tells whether it came to its end: PVE takes the lock off last.
        (TaskEnd::Ok | TaskEnd::Warnings(_) | TaskEnd::NoEndLine, Found::Ours(vm)) if vm.config.lock().is_none() => Verdict::Made(vm),
        (TaskEnd::Error(message), Found::Absent) => match lock_timeout(message) {
            Some(what) => Verdict::Again(what),
            None => Verdict::Failed(failed.error()),
        },
        (TaskEnd::Error(_), _) => Verdict::Failed(failed.error()),
        (TaskEnd::Ok | TaskEnd::Warnings(_), Found::Foreign) => Verdict::Failed(Error::VmidInUse { vmid: failed.vmid, node: None }),
        (end, found) => {
            let is = match found {
                Found::Absent => "there is no such VM",
                Found::InTheMaking => "the VM is half made",
                Found::Ours(_) => "the VM is still locked",
                _ => "the VM is somebody else's",
            };
            let said = match end {
                TaskEnd::Ok => "ended OK".to_owned(),
                TaskEnd::Warnings(lines) => format!("ended with warnings ({})", lines.join("; ")),
                _ => "was killed".to_owned(),
            };
            Verdict::Failed(Error::PveFailed { message: format!("the clone task {said}, yet {is}"), upid: Some(failed.upid.to_owned()) })
        }
    }
}
