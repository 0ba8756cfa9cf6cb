//! What PVE's texts mean. PVE tells why a task failed in its last line, and often more in the lines before.

use crate::error::Error;

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

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}

/// What is locked, when the text says that a lock was not had in time: a lock file, or a lock of the cluster.
pub(crate) fn lock_timeout(text: &str) -> Option<String> {
    if let Some(file) = between(text, "can't lock file '", "'").filter(|_| text.contains("got timeout")) {
        let name = file.rsplit('/').next().unwrap_or(file);
        return Some(if let Some(storage) = name.strip_prefix("pve-storage-") {
            format!("storage {storage}")
        } else if let Some(vmid) = name.strip_prefix("lock-").and_then(|n| n.strip_suffix(".conf")) {
            format!("VM {vmid}")
        } else {
            name.to_owned()
        });
    }
    if let Some(name) = between(text, "cfs-lock '", "'").filter(|_| text.contains("timeout")) {
        return Some(name.strip_prefix("storage-").map_or_else(|| name.to_owned(), |s| format!("storage {s}")));
    }
    None
}

impl Failed<'_> {
    /// The error that says the same.
    pub(crate) fn error(&self) -> Error {
        let (text, vmid) = (self.message, self.vmid);
        if let Some(what) = lock_timeout(text) {
            return Error::LockTimeout { what };
        }
        if let Some(lock) = between(text, "VM is locked (", ")") {
            return Error::VmLocked { vmid, lock: lock.to_owned() };
        }
        let full = |t: &str| t.contains("No space left on device") || t.contains("not enough free space") || t.contains("Not enough free");
        if let Some(line) = self.lines.iter().map(String::as_str).chain([text]).find(|t| full(t)) {
            return Error::StorageFull { storage: self.storage.to_owned(), detail: line.to_owned() };
        }
        if text.contains("no quorum") {
            return Error::NoQuorum { node: self.node.to_owned() };
        }
        if let Some(storage) = between(text, "unable to activate storage '", "'") {
            return Error::StorageOffline { storage: storage.to_owned(), detail: text.to_owned() };
        }
        if let Some(storage) = between(text, "storage '", "'").filter(|_| {
            text.contains("is disabled") || text.contains("is not available on node") || text.contains("is not online")
        }) {
            return Error::StorageOffline { storage: storage.to_owned(), detail: text.to_owned() };
        }
        if text.contains("protection mode enabled") {
            return Error::VmProtected { vmid };
        }
        if text.contains("still in use by linked clone") {
            return Error::TemplateInUse { vmid, detail: text.to_owned() };
        }
        if text.contains("config file already exists") || text.contains("already exists on node") {
            return Error::VmidInUse { vmid, node: None };
        }
        if text.contains("detected modified configuration") {
            return Error::ConfigChanged { vmid };
        }
        Error::PveFailed { message: text.to_owned(), upid: Some(self.upid.to_owned()) }
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
            ("unable to activate storage 'small' - directory is expected to be a mount point but is not mounted: '/srv/small'", vec![], reason::STORAGE_OFFLINE),
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
        assert_eq!(lock_timeout("x: can't lock file '/var/lock/pve-manager/pve-storage-a' - got timeout").as_deref(), Some("storage a"));
        assert_eq!(lock_timeout("error: cfs-lock 'storage-nfs' error: got lock request timeout").as_deref(), Some("storage nfs"));
        assert_eq!(lock_timeout("VM quit/powerdown failed - got timeout"), None);
    }
}
