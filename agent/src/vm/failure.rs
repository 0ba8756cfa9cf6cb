//! What PVE's texts mean. PVE tells why a task failed in its last line, and often more in the lines before.

use crate::{
    error::Error,
    host::pve::classify::{Subject, classify},
};

/// What the failed task worked on.
pub(crate) struct Failed<'a> {
    pub(crate) vmid: u32,
    pub(crate) upid: &'a str,
    /// The text after `TASK ERROR: `.
    pub(crate) message: &'a str,
    /// The log's lines.
    pub(crate) lines: &'a [String],
    /// Where the new disks go.
    pub(crate) storage: &'a str,
    /// This node.
    pub(crate) node: &'a str,
}

/// What is locked, when the text says that a lock was not had in time: a lock file, or a lock of the cluster.
pub(crate) fn lock_timeout(text: &str) -> Option<String> {
    match classify(Subject::default(), text) {
        Error::LockTimeout { what } => Some(what),
        _ => None,
    }
}

impl Failed<'_> {
    /// The error that says the same. That a disk is full stands in the log, not in the last line.
    pub(crate) fn error(&self) -> Error {
        let subject = Subject { upid: Some(self.upid), storage: Some(self.storage), ..Subject::vm(self.node, self.vmid) };
        let found = classify(subject, self.message);
        if !matches!(found, Error::PveFailed { .. }) {
            return found;
        }
        let full = |error: &Error| matches!(error, Error::StorageFull { .. });
        self.lines.iter().map(|line| classify(subject, line)).find(full).unwrap_or(found)
    }
}

#[cfg(test)]
mod tests {
    use pvelet_proto::reason;

    use super::*;

    #[test]
    fn texts_of_real_tasks_are_understood() {
        for (message, lines, expected) in [
            ("can't lock file '/var/lock/qemu-server/lock-440.conf' - got timeout", vec![], reason::LOCK_TIMEOUT),
            ("clone failed: can't lock file '/var/lock/pve-manager/pve-storage-rawdir' - got timeout", vec![], reason::LOCK_TIMEOUT),
            ("VM is locked (backup)", vec![], reason::VM_LOCKED),
            (
                "unable to activate storage 'small' - directory is expected to be a mount point but is not mounted: '/srv/small'",
                vec![],
                reason::STORAGE_OFFLINE,
            ),
            ("storage 'disabled' is disabled", vec![], reason::STORAGE_OFFLINE),
            ("base volume 'local:9010/base-9010-disk-0.qcow2' is still in use by linked cloned", vec![], reason::TEMPLATE_IN_USE),
            ("can't remove VM 100 - protection mode enabled", vec![], reason::VM_PROTECTED),
            (
                "clone failed: copy failed: command '/usr/bin/qemu-img convert ...' failed: exit code 1",
                vec!["qemu-img: error while writing at byte 54525952: No space left on device".to_owned()],
                reason::STORAGE_FULL,
            ),
            ("start failed: QEMU exited with code 1", vec![], reason::PVE_FAILED),
        ] {
            let failed = Failed { vmid: 440, upid: "UPID", message, lines: &lines, storage: "small", node: "pve1" };
            assert_eq!(failed.error().reason(), expected, "{message}");
        }
    }

    #[test]
    fn a_lock_is_named_for_people() {
        assert_eq!(lock_timeout("can't lock file '/var/lock/qemu-server/lock-440.conf' - got timeout").as_deref(), Some("VM 440"));
        assert_eq!(lock_timeout("x: can't lock file '/var/lock/pve-manager/pve-storage-a' - got timeout").as_deref(), Some("storage 'a'"));
        assert_eq!(lock_timeout("error: cfs-lock 'storage-nfs' error: got lock request timeout").as_deref(), Some("storage 'nfs'"));
        assert_eq!(lock_timeout("VM quit/powerdown failed - got timeout"), None);
    }
}
