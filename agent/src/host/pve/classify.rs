//! What PVE's error messages mean: one table for the answers of its API and for the ends of its tasks.
//!
//! PVE has no error codes: nearly everything is status 500 with a sentence. The sentences are those of the recordings.

use std::{collections::BTreeMap, time::Duration};

use pvelet_proto::{reason, volume::VolumeId};

use super::Upid;
use crate::error::{Error, Violation};

/// What a call or task was about, for what the message does not say itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject<'a> {
    /// The node it ran on.
    pub node: &'a str,
    /// The VM; for a clone the new one.
    pub vmid: u32,
    /// The template, if it was a clone.
    pub template: Option<u32>,
    /// The storage that was written to, where the caller knows.
    pub storage: Option<&'a str>,
    /// The task.
    pub upid: Option<&'a str>,
    /// How long a shutdown waited.
    pub waited: Duration,
}

impl<'a> Subject<'a> {
    /// A VM on a node.
    pub fn vm(node: &'a str, vmid: u32) -> Self {
        Self { node, vmid, ..Self::default() }
    }

    /// The subject of a task that worked on `vmid` (for a clone: the new VM).
    pub fn task(upid: &'a Upid, vmid: u32) -> Self {
        let template = (upid.kind == "qmclone").then(|| upid.id.parse().ok()).flatten();
        Self { node: &upid.node, vmid, template, upid: Some(&upid.text), ..Self::default() }
    }
}

/// The detail of [`Error::PveAnswerLost`] when a request that changes something was sent and its answer never came: whether PVE acted on it is not
/// known and is to be settled with [`super::Pve::find_tasks`] and by looking at the effect.
pub const ANSWER_LOST: &str = "answer lost";

/// Whether an error means that the call may or may not have been carried out.
pub fn is_answer_lost(error: &Error) -> bool {
    matches!(error, Error::PveAnswerLost { .. })
}

/// What the text after `TASK ERROR: ` means.
pub fn classify_task(upid: &Upid, vmid: u32, text: &str) -> Error {
    classify(Subject::task(upid, vmid), text)
}

/// What a message means. The most specific rule comes first; whatever has none is `PveFailed` with PVE's own words.
pub fn classify(about: Subject<'_>, message: &str) -> Error {
    let text = message.trim();
    let vmid = about.vmid;
    conflict(about, text)
        .or_else(|| cluster(about, text))
        .or_else(|| storage(about, text))
        .or_else(|| vm(about, text))
        .or_else(|| missing(about, text))
        .or_else(|| request(vmid, text))
        .unwrap_or_else(|| Error::PveFailed { message: text.to_owned(), upid: about.upid.map(str::to_owned) })
}

/// What stands between `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = text.split_once(before)?.1;
    Some(rest.split_once(after)?.0)
}

fn id_between(text: &str, before: &str, after: &str) -> Option<u32> {
    between(text, before, after)?.parse().ok()
}

/// Somebody else has it: VMIDs, locks, digests.
fn conflict(about: Subject<'_>, text: &str) -> Option<Error> {
    if text.contains("config file already exists") {
        let vmid = id_between(text, "unable to create VM ", ":").unwrap_or(about.vmid);
        return Some(Error::VmidInUse { vmid, node: None });
    }
    // A clone onto the id of another node's VM fails when its config is renamed into place.
    if text.contains("close (rename) atomic file") && text.contains("File exists") {
        let vmid = id_between(text, "/qemu-server/", ".conf").unwrap_or(about.vmid);
        return Some(Error::VmidInUse { vmid, node: None });
    }
    if let Some(vmid) = text.rsplit_once("VM ").and_then(|(_, rest)| rest.split_once(" already exists")?.0.parse().ok()) {
        return Some(Error::VmidInUse { vmid, node: between(text, "already exists on node '", "'").map(str::to_owned) });
    }
    if text.contains("VM is locked") {
        // A clone is refused because of its source's lock.
        let lock = between(text, "VM is locked (", ")").unwrap_or("unknown");
        return Some(Error::VmLocked { vmid: about.template.unwrap_or(about.vmid), lock: lock.to_owned() });
    }
    if text.contains("checksum mismatch") || text.contains("detected modified configuration") {
        return Some(Error::ConfigChanged { vmid: about.vmid });
    }
    if text.contains("got timeout") || text.contains("got lock request timeout") || text.contains("got lock timeout") {
        return lock_timeout(text);
    }
    None
}

fn lock_timeout(text: &str) -> Option<Error> {
    let what = if let Some(vmid) = between(text, "qemu-server/lock-", ".conf") {
        format!("VM {vmid}")
    } else if let Some(id) = between(text, "pve-manager/pve-storage-", "'").or_else(|| between(text, "cfs-lock 'storage-", "'")) {
        format!("storage '{id}'")
    } else if let Some(name) = between(text, "cfs-lock '", "'") {
        format!("cluster lock '{name}'")
    } else if let Some(path) = between(text, "can't lock file '", "'") {
        format!("'{path}'")
    } else {
        return None;
    };
    Some(Error::LockTimeout { what })
}

/// Quorum and the cluster file system.
fn cluster(about: Subject<'_>, text: &str) -> Option<Error> {
    let unwritable = text.contains("'/etc/pve/") && text.contains("Permission denied");
    if text.contains("no quorum") || unwritable {
        return Some(Error::NoQuorum { node: about.node.to_owned() });
    }
    if text.contains("Unable to load access control list") || text.contains("ipcc_send_rec") {
        return Some(Error::PveFsHung { detail: text.to_owned() });
    }
    None
}

/// Storages: unknown, offline, full.
fn storage(about: Subject<'_>, text: &str) -> Option<Error> {
    if let Some(id) = text.split(['/', '\'', '"', ' ']).find_map(VolumeId::of_name).map(|(_, id)| id)
        // Ceph's tool says it in the system's words.
        && (text.contains("already exists") || text.contains("File exists"))
    {
        return Some(Error::VolumeExists { id: id.to_string(), detail: text.to_owned(), volid: None });
    }
    if OUT_OF_SPACE.iter().any(|s| text.contains(s)) {
        let storage = about.storage.or_else(|| between(text, "allocated target volume '", ":")).unwrap_or("unknown");
        return Some(Error::StorageFull { storage: storage.to_owned(), detail: text.to_owned() });
    }
    let offline = |storage: &str, detail: &str| Error::StorageOffline { storage: storage.to_owned(), detail: detail.to_owned() };
    if let Some(id) = between(text, "unable to activate storage '", "'") {
        return Some(offline(id, text.split_once(" - ").map_or(text, |(_, detail)| detail)));
    }
    if let Some(rest) = text.split_once("storage '").map(|(_, rest)| rest)
        && let Some((id, what)) = rest.split_once("' ")
    {
        if what.starts_with("does not exist") || what.starts_with("is not available on node") {
            return Some(Error::StorageNotFound { storage: id.to_owned(), node: about.node.to_owned() });
        }
        if what.starts_with("is disabled") {
            return Some(offline(id, "it is disabled"));
        }
        if what.starts_with("is not online") {
            return Some(offline(id, "it is not online"));
        }
        if what.starts_with("is not configured for content-type") || what.starts_with("does not support vm images") {
            return Some(Error::invalid("storage", reason::INVALID_FIELD, text));
        }
    }
    None
}

/// The kernel's and the storage plugins' words for a full storage.
const OUT_OF_SPACE: &[&str] = &["No space left on device", "Disk quota exceeded", "insufficient free space", "out of space"];

/// What the VM's own state forbids.
fn vm(about: Subject<'_>, text: &str) -> Option<Error> {
    let vmid = about.vmid;
    if text.contains("protection mode enabled") {
        return Some(Error::VmProtected { vmid });
    }
    if text.contains("used in HA resources") || text.contains("Not applicable for HA resources") {
        return Some(Error::VmHaManaged { vmid });
    }
    if text.contains("There is a replication job") || text.contains("to a replicated VM") {
        return Some(Error::VmReplicated { vmid });
    }
    if text.contains("is still in use by linked clone") {
        let vmid = id_between(text, "/base-", "-").unwrap_or(about.template.unwrap_or(vmid));
        return Some(Error::TemplateInUse { vmid, detail: text.to_owned() });
    }
    if text.contains("is running - destroy failed") || text.contains("already running") {
        return Some(Error::VmRunning { vmid });
    }
    if text.starts_with("VM ") && text.ends_with(" not running") {
        return Some(Error::VmNotRunning { vmid });
    }
    if text.contains("if it's a template") || text.contains("convert a template to a template") {
        return Some(Error::VmIsTemplate { vmid });
    }
    if text.contains("Linked clone feature is not supported") {
        return Some(Error::NotATemplate { vmid: about.template.unwrap_or(vmid) });
    }
    if text.contains("VM quit/powerdown failed - got timeout") {
        return Some(Error::ShutdownTimeout { vmid, after: about.waited });
    }
    None
}

/// What is not there.
fn missing(about: Subject<'_>, text: &str) -> Option<Error> {
    if let Some(pool) = between(text, "pool '", "' does not exist") {
        return Some(Error::PoolNotFound { pool: pool.to_owned() });
    }
    if let Some(bridge) = between(text, "bridge '", "' does not exist").or_else(|| between(text, "no physical interface on bridge '", "'"))
    {
        return Some(Error::BridgeNotFound { bridge: bridge.to_owned(), node: about.node.to_owned() });
    }
    let config =
        between(text, "/qemu-server/", ".conf' does not exist").or_else(|| between(text, "configuration file for VM ", " on node"));
    let id = config?;
    Some(match about.template {
        Some(template) if id == template.to_string() => {
            Error::TemplateNotFound { what: format!("VMID {template}"), node: about.node.to_owned() }
        }
        _ => Error::VmNotFound { what: id.to_owned() },
    })
}

/// What the caller asked for and cannot be.
fn request(vmid: u32, text: &str) -> Option<Error> {
    let (field, reason) = if text.contains("shrinking disks is not supported") {
        ("disk_bytes", reason::DISK_SHRINK)
    } else if text.contains("SSH public key validation error") {
        ("sshkeys", reason::INVALID_SSH_KEY)
    } else if text.contains("parameter 'storage' not allowed for linked clones") {
        ("storage", reason::LINKED_CLONE_STORAGE)
    } else if text.starts_with("disk '") && text.ends_with("' does not exist") {
        return Some(Error::invalid("disk", reason::INVALID_FIELD, format!("VM {vmid}: {text}")));
    } else {
        return None;
    };
    Some(Error::invalid(field, reason, text))
}

/// What a refused API call means, by its status, its message, and the messages by parameter.
pub fn classify_answer(about: Subject<'_>, status: u16, message: &str, errors: &BTreeMap<String, String>) -> Error {
    let message = message.trim();
    if status == 401 {
        return Error::PveDown { detail: format!("it refuses the ticket: {message}") };
    }
    if errors.is_empty() {
        return classify(about, message);
    }
    // PVE uses "verification failed" also for things that are no fault of the request.
    for text in errors.values() {
        if let Some(error) = [conflict, cluster, storage, vm, missing].iter().find_map(|rule| rule(about, text.trim())) {
            return error;
        }
    }
    if let Some(text) = errors.values().find(|t| t.starts_with("hotplug problem")) {
        return Error::PveFailed { message: text.trim().to_owned(), upid: None };
    }
    Error::Invalid(errors.iter().map(|(field, text)| Violation::new(field, field_reason(field, text), tidy(text))).collect())
}

fn field_reason(field: &str, text: &str) -> &'static str {
    let kind = field.trim_end_matches(|c: char| c.is_ascii_digit());
    match kind {
        "name" => reason::INVALID_NAME,
        "newid" | "vmid" => reason::VMID_OUT_OF_RANGE,
        "sshkeys" => reason::INVALID_SSH_KEY,
        "ipconfig" if text.contains(".gw") => reason::INVALID_GATEWAY,
        "ipconfig" | "nameserver" => reason::INVALID_ADDRESS,
        "net" if text.contains(".macaddr") => reason::INVALID_MAC,
        _ => reason::INVALID_FIELD,
    }
}

/// PVE's messages on one line.
fn tidy(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
