//! Tasks that are stuck, and locks that a task left behind.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::{
    source::{Look, check},
    words::{Worst, age, list, moment, span, unknown},
};
use crate::{
    error::Error,
    health::{Check, Finding, Pace, Source, State},
    host::{
        machine::{Machine, RunningTask},
        pve::{Inventory, Pve},
    },
};

const TASKS: Check =
    check("host.tasks", "A task that hangs holds locks: its VM cannot be started, changed, backed up or removed meanwhile.");
const LOCKS: Check =
    check("host.locks", "A VM whose config is locked is refused every change; a lock that a killed task left behind stays for ever.");

/// Kinds that do their work in seconds. (Removing a VM is none of them: an LVM storage may wipe its disks.)
const QUICK: &[&str] = &[
    "qmstart",
    "qmstop",
    "qmreset",
    "qmreboot",
    "qmpause",
    "qmresume",
    "vzstart",
    "vzstop",
    "vzreboot",
    "hastart",
    "hastop",
    "srvstart",
    "srvstop",
    "srvrestart",
    "srvreload",
];
const QUICK_SILENT: Duration = Duration::from_secs(3600);
/// The same for all others. A backup, a wiped disk or a restored container of many terabytes tells nothing for hours.
const LONG_SILENT: Duration = Duration::from_secs(24 * 3600);
/// Consoles: they live as long as somebody looks, and tell nothing.
const CONSOLES: &[&str] = &["vncproxy", "vncshell", "spiceproxy", "spiceshell", "termproxy", "vncviewer"];
/// How long a lock may stand without a task. Tasks of other nodes (an incoming migration) and other programs' backups are not seen here.
const UNATTENDED: Duration = Duration::from_secs(30 * 60);

/// Since when which lock of a VM is without a task.
type Unattended = HashMap<u32, (String, Instant)>;

pub(super) fn source(pace: Pace, pve: &Arc<dyn Pve>, machine: &Arc<dyn Machine>) -> Arc<dyn Source> {
    let (pve, machine, unattended) = (Arc::clone(pve), Arc::clone(machine), Arc::new(Mutex::new(Unattended::new())));
    let look = move || {
        let (pve, machine, unattended) = (Arc::clone(&pve), Arc::clone(&machine), Arc::clone(&unattended));
        async move {
            let tasks = machine.running_tasks().await;
            let inventory = pve.inventory();
            let mut unattended = unattended.lock().unwrap_or_else(PoisonError::into_inner);
            let locks = decide_locks(&tasks, &inventory, &mut unattended, Instant::now());
            vec![decide_tasks(&tasks, SystemTime::now()), locks]
        }
    };
    Look::new("tasks", &[TASKS, LOCKS], pace, look).done()
}

fn decide_tasks(tasks: &Result<Vec<RunningTask>, Error>, now: SystemTime) -> Finding {
    let id = TASKS.id;
    let tasks = match tasks {
        Ok(tasks) => tasks,
        Err(error) => return unknown(id, error),
    };
    let mut worst = Worst::new();
    for task in tasks {
        let (kind, upid) = (task.upid.kind.as_str(), &task.upid);
        if CONSOLES.contains(&kind) {
            continue;
        }
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(upid.starttime);
        let silent = age(task.grew.unwrap_or(started).max(started), now);
        if silent < if QUICK.contains(&kind) { QUICK_SILENT } else { LONG_SILENT } {
            continue;
        }
        let of = if upid.id.is_empty() { String::new() } else { format!(" of {}", upid.id) };
        let hangs = if task.state == 'D' { ", its process hangs in the kernel" } else { "" };
        let (began, told) = (moment(started), moment(now.checked_sub(silent).unwrap_or(started)));
        let text = format!("{kind}{of} by {} runs since {began} and has told nothing since {told} (pid {}){hangs}", upid.user, upid.pid);
        worst.add(State::Degraded, &upid.text, text);
    }
    let remedy = "look at its log in the web interface's task list and at the storage it works on; if it is stuck, stop it there, or by `pvesh delete \
                  /nodes/localhost/tasks/UPID`; one that hangs in the kernel ends when its storage answers again, or with a reboot";
    worst.finding(id, || "no task is stuck".to_owned(), remedy)
}

/// Whether a task may be the one that holds a VM's lock.
fn attends(task: &RunningTask, vmid: u32, lock: &str) -> bool {
    // `100`, or `100@local`.
    let id = task.upid.id.split(['@', ':', '/']).next().unwrap_or_default();
    if id.parse() == Ok(vmid) {
        return true;
    }
    // Those that work on several VMs name none, a clone names its template.
    match lock {
        "backup" => task.upid.kind == "vzdump",
        "clone" | "create" => {
            matches!(
                task.upid.kind.as_str(),
                "qmclone" | "qmcreate" | "qmrestore" | "vzclone" | "vzcreate" | "vzrestore" | "qmtunnel" | "import"
            )
        }
        "migrate" => matches!(task.upid.kind.as_str(), "qmigrate" | "migrateall" | "hamigrate" | "qmtunnel"),
        "suspending" | "suspended" => matches!(task.upid.kind.as_str(), "suspendall" | "stopall"),
        _ => false,
    }
}

fn decide_locks(tasks: &Result<Vec<RunningTask>, Error>, inventory: &Inventory, unattended: &mut Unattended, now: Instant) -> Finding {
    let id = LOCKS.id;
    let tasks = match tasks {
        Ok(tasks) => tasks,
        Err(error) => return unknown(id, error),
    };
    if inventory.hung_since.is_some() || !inventory.complete {
        return Finding::unknown(id, "the cluster file system does not answer, so the locks of VMs are not known");
    }
    let here = inventory.vms.values().filter(|vm| vm.node == inventory.node);
    // A VM that is suspended to disk stands so until it is resumed.
    let locked: Vec<(u32, &str)> =
        here.filter_map(|vm| Some((vm.vmid, vm.config.get("lock")?))).filter(|(_, lock)| *lock != "suspended").collect();
    let alone: Vec<(u32, &str)> = locked.iter().copied().filter(|(vmid, lock)| !tasks.iter().any(|t| attends(t, *vmid, lock))).collect();
    unattended.retain(|vmid, (lock, _)| alone.iter().any(|(id, l)| id == vmid && l == lock));
    let mut worst = Worst::new();
    for (vmid, lock) in &alone {
        let since = unattended.entry(*vmid).or_insert_with(|| ((*lock).to_owned(), now)).1;
        let lasting = now.saturating_duration_since(since);
        if lasting >= UNATTENDED {
            let text =
                format!("VM {vmid} is locked ({lock}), and no task of this host has worked on it for {} or longer", span(UNATTENDED));
            worst.add(State::Degraded, &format!("vm/{vmid}"), text);
        }
    }
    let remedy = "look at the VM's task list for the task that ended without tidying up, and for one on another node or of a backup program; if there is none, \
                  `qm unlock VMID`; after a killed clone or create, remove what it left: `qm destroy VMID`";
    let told: Vec<String> = locked.iter().map(|(vmid, lock)| format!("VM {vmid} ({lock})")).collect();
    worst.finding(id, || if told.is_empty() { "no VM is locked".to_owned() } else { format!("locked: {}", list(&told)) }, remedy)
}

#[cfg(test)]
#[path = "locks_tests.rs"]
mod tests;
