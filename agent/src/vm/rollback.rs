//! Undoing a clone. Removed is only what carries this operation's mark, or what the log of its own recorded task says that it made; all else
//! stays and is told as a warning.

use std::time::Duration;

use super::{
    Inner,
    task::{Backoff, transient},
    verdict::{Found, judge},
};
use crate::{
    crash_point,
    error::Error,
    host::pve::{DestroyCall, TaskEnd, TaskState, Upid, VmRecord},
    operation::{Handle, State},
};

/// How long an orphaned `qemu-img` may take to end after SIGTERM.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);
/// How often a step of undoing is tried when PVE says no for good.
const ATTEMPTS: u32 = 3;

/// What the operation's own tasks say that they made.
#[derive(Debug, Default)]
struct Made {
    /// One of them made this VMID.
    vmid: bool,
    lines: Vec<String>,
}

impl Made {
    /// Whether a line names this volume: as a volume, or by its file.
    fn names(&self, volume: &str) -> bool {
        let file = volume.rsplit(['/', ':']).next().unwrap_or(volume);
        self.lines.iter().any(|line| line.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).any(|word| word == file))
    }
}

impl Inner {
    /// Undoes a clone. Waits for PVE and for the quorum as long as it takes; what cannot be removed for good is told as a warning. `lost`: a
    /// clone may be under way that no UPID is known of.
    pub(super) async fn undo_clone(&self, h: &Handle, why: &Error, mut lost: bool) {
        if let Err(error) = h.undo(why).await {
            tracing::error!(operation = h.name(), %error, "undoing is not on the disk");
        }
        crash_point!("rollback.begun");
        let mut backoff = Backoff::new(self.settings.lock_pause);
        let mut attempts = 0;
        loop {
            match Box::pin(self.undo_once(h, &mut lost)).await {
                Ok(()) => return,
                Err(error) if transient(&error) => h.step(format!("undoing: waiting, for {error}")),
                Err(error) => {
                    attempts += 1;
                    if attempts >= ATTEMPTS {
                        h.warn(format!("not all was undone: {error}"));
                        return;
                    }
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn undo_once(&self, h: &Handle, lost: &mut bool) -> Result<(), Error> {
        let state = h.state();
        let vmid = state.vmid;
        if *lost && state.task("clone").is_none() {
            self.find_clone(h).await?;
        }
        *lost = false;
        let state = h.state();
        let made = self.end_tasks(&state).await;
        // A removal that was asked for before a crash must have ended: one that comes late would hit whoever has the VMID by then.
        for upid in self.pve.find_tasks("qmdestroy", &vmid.to_string(), h.accepted_at().saturating_sub(1)).await? {
            self.wait_task(&upid).await;
        }
        crash_point!("rollback.task_stopped");
        let found = self.look(h, vmid).await?;
        let proven = match &found {
            Found::Ours(_) => true,
            Found::InTheMaking => made.vmid && !self.somebody_else_clones(&state).await?,
            Found::Absent => made.vmid,
            Found::Foreign => return Ok(()),
            Found::OursElsewhere(vm) => {
                h.warn(format!("VM {vmid} is on node {} now and was left there", vm.node));
                return Ok(());
            }
        };
        if !proven {
            if found == Found::InTheMaking {
                h.warn(format!("VM {vmid} is half made by a clone that is not proven to be this operation's; look at it and remove it"));
            }
            return Ok(());
        }
        for orphan in self.pve.orphans(vmid).await? {
            tracing::warn!(operation = h.name(), pid = orphan.pid, command = %orphan.command, "ending an orphaned process");
            self.pve.end_process(&orphan, ORPHAN_GRACE).await?;
        }
        crash_point!("rollback.orphans_ended");
        if let Found::Ours(vm) = &found {
            self.destroy_ours(h, vmid, Some(vm)).await?;
        } else if found == Found::InTheMaking {
            self.destroy_ours(h, vmid, None).await?;
        }
        crash_point!("rollback.destroyed");
        // Of a VMID that is nobody's now, another may have been the last to use it: there the task's own words are needed.
        let here = matches!(found, Found::Ours(_) | Found::InTheMaking);
        self.free_left(h, &state, &made, here).await?;
        crash_point!("rollback.volumes_freed");
        Ok(())
    }

    /// Ends the operation's tasks that still run, and reads what they say. A task that was only found, not started by an answer that we
    /// have, may be another's: it is waited for and not ended.
    async fn end_tasks(&self, state: &State) -> Made {
        let mut made = Made::default();
        let says = format!("with ID {}", state.vmid);
        for task in &state.tasks {
            let Some(upid) = Upid::parse(&task.upid) else { continue };
            if !task.found && matches!(self.pve.task(&upid).await, Ok(TaskState::Running)) {
                let _ = self.pve.stop_task(&upid).await.inspect_err(|error| tracing::warn!(%upid, %error, "a task could not be ended"));
            }
            self.wait_task(&upid).await;
            let lines = self.log_of(&upid).await;
            if task.purpose == "clone" && !task.found {
                // PVE makes the config before it answers with the UPID, so a worker that was killed before its first word made it too.
                made.vmid |= lines.is_empty() || lines.iter().any(|line| line.trim_end().ends_with(&says));
                made.lines.extend(lines);
            }
        }
        made
    }

    async fn wait_task(&self, upid: &Upid) {
        let mut updates = self.pve.follow_task(upid);
        while updates.recv().await.is_some_and(|update| !matches!(update, crate::host::pve::TaskUpdate::End(_))) {}
    }

    /// What stands under the VMID, where that can be told for sure. Errors: `NoQuorum`, `PveFsHung`.
    async fn look(&self, h: &Handle, vmid: u32) -> Result<Found, Error> {
        self.writable()?;
        let found = judge(self.pve.read_vm(vmid).await?, h.uuid(), &self.settings.node);
        // A container is no VM, and yet the VMID and the volumes with its number are its.
        let container = found == Found::Absent && self.writable()?.vmids.contains_key(&vmid);
        Ok(if container { Found::Foreign } else { found })
    }

    /// Whether a task that is none of ours says that it makes our VMID: then a half-made config may be its.
    async fn somebody_else_clones(&self, state: &State) -> Result<bool, Error> {
        let says = format!("with ID {}", state.vmid);
        let since = state.tasks.iter().filter(|t| t.purpose == "clone").filter_map(|t| Upid::parse(&t.upid)).map(|u| u.starttime).min();
        for upid in self.pve.find_tasks("qmclone", "", since.unwrap_or(0)).await? {
            let ours = state.tasks.iter().any(|t| !t.found && t.upid == upid.text);
            if !ours && self.says(&upid, Some(&says)).await {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Destroys what is proven ours. PVE's own lock of the clone is passed over; any other lock is somebody's.
    async fn destroy_ours(&self, h: &Handle, vmid: u32, vm: Option<&VmRecord>) -> Result<(), Error> {
        let lock = vm.map_or(Some("clone"), |vm| vm.config.lock());
        if let Some(lock) = lock.filter(|lock| *lock != "clone") {
            return Err(Error::VmLocked { vmid, lock: lock.to_owned() });
        }
        h.step("undoing: removing the VM");
        // Not with `unreferenced_disks`: PVE then frees what carries the VMID on every storage, also what others left there long ago. What
        // the clone made and no config names is looked for afterwards, where its disks were put.
        let call = DestroyCall { purge: false, unreferenced_disks: false, skip_lock: lock.is_some() };
        let upid = self.pve.destroy_vm(vmid, &call).await?;
        h.task(crate::operation::TaskRef { purpose: "undo".to_owned(), upid: upid.text.clone(), found: false });
        self.wait_task(&upid).await;
        match self.look(h, vmid).await? {
            Found::Absent | Found::Foreign => return Ok(()),
            _ => {}
        }
        if let Ok(TaskState::Ended(TaskEnd::Error(message))) = self.pve.task(&upid).await {
            return Err(match super::failure::lock_timeout(&message) {
                Some(what) => Error::LockTimeout { what },
                None => Error::PveFailed { message, upid: Some(upid.text) },
            });
        }
        Err(Error::PveFailed { message: format!("VM {vmid} is still there after its removal"), upid: None })
    }

    /// Frees the volumes of the VMID that are left where the clone put its disks.
    async fn free_left(&self, h: &Handle, state: &State, made: &Made, here: bool) -> Result<(), Error> {
        for storage in &state.storages {
            let left = match self.pve.volumes(storage, state.vmid).await {
                Ok(left) => left,
                Err(error) if transient(&error) => return Err(error),
                Err(error) => {
                    h.warn(format!("whether volumes of VM {} are left on storage {storage} could not be told: {error}", state.vmid));
                    continue;
                }
            };
            for volume in left {
                // Where no volume had its number before, all that has it now was made by the clone, which is proven to be ours.
                if !((here && state.clean.contains(storage)) || made.names(&volume.volid)) {
                    h.warn(format!("volume {} is left; nothing proves it to be this operation's", volume.volid));
                    continue;
                }
                // Looked at again right before: a VM of somebody else may have come.
                if self.look(h, state.vmid).await? != Found::Absent {
                    return Ok(());
                }
                h.step(format!("undoing: removing volume {}", volume.volid));
                if let Some(upid) = self.pve.free_volume(&volume.volid).await? {
                    self.wait_task(&upid).await;
                    if let Ok(TaskState::Ended(TaskEnd::Error(message))) = self.pve.task(&upid).await {
                        return Err(match super::failure::lock_timeout(&message) {
                            Some(what) => Error::LockTimeout { what },
                            None => Error::PveFailed { message, upid: Some(upid.text) },
                        });
                    }
                }
            }
        }
        Ok(())
    }
}
