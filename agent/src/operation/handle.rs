//! What the code that carries out an operation holds of it.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use pvelet_proto::{id::OperationName, v1};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Lane, LeaseRequest, Operations, State, TaskRef, record::Entry};
use crate::{crash_point, error::Error};

/// An operation that is being carried out. Cheap to clone; dropping it ends nothing.
#[derive(Clone)]
pub struct Handle {
    operations: Arc<Operations>,
    name: String,
    cancel: CancellationToken,
}

impl Handle {
    pub(super) fn new(operations: Arc<Operations>, entry: &Entry) -> Self {
        Self { operations, name: entry.shown.name.clone(), cancel: entry.cancel.clone() }
    }

    /// `operations/<uuid>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The UUID part of the name, as it stands in marks.
    pub fn uuid(&self) -> Uuid {
        OperationName::parse(&self.name).map(|n| n.uuid()).unwrap_or_default()
    }

    /// Returns when the intent is on the disk: nothing may be done before. Errors: `Journal`.
    pub async fn written(&self) -> Result<v1::Operation, Error> {
        self.operations.written(&self.name).await
    }

    /// Whether a task of PVE is one of this operation's, or of any other that is still known.
    pub fn is_known_task(&self, upid: &str) -> bool {
        self.operations.lock().entries.values().any(|e| e.state.tasks.iter().any(|t| t.upid == upid))
    }

    /// The VM that it works on, as far as it is known.
    pub fn target(&self) -> v1::VmRef {
        self.operations.get(&self.name).ok().and_then(|op| op.target).unwrap_or_default()
    }

    /// When it was accepted, seconds since the Unix epoch.
    pub fn accepted_at(&self) -> u64 {
        self.operations.get(&self.name).ok().and_then(|op| op.create_time).map_or(0, |t| u64::try_from(t.seconds).unwrap_or(0))
    }

    /// Tells for people what is being done.
    pub fn step(&self, step: impl Into<String>) {
        let step = step.into();
        let mut inner = self.operations.lock();
        if inner.entries.get(&self.name).is_some_and(|e| e.shown.step == step && e.shown.state() == v1::OperationState::Running) {
            return;
        }
        self.operations.publish(&mut inner, &self.name, |op| {
            op.step = step;
            op.set_state(v1::OperationState::Running);
        });
    }

    /// Tells how far it is.
    pub fn progress(&self, percent: u8, done: u64, total: u64) {
        let mut inner = self.operations.lock();
        self.operations.publish(&mut inner, &self.name, |op| {
            op.progress = Some(v1::Progress { percent: percent.min(100).into(), done_bytes: done, total_bytes: total });
        });
    }

    /// Tells what is true though it is no failure. Told once.
    pub fn warn(&self, warning: impl Into<String>) {
        let warning = warning.into();
        tracing::warn!(operation = %self.name, %warning, "operation");
        let mut inner = self.operations.lock();
        self.operations.publish(&mut inner, &self.name, |op| {
            if !op.warnings.contains(&warning) {
                op.warnings.push(warning);
            }
        });
    }

    /// Tells the UUID of the VM that was made.
    pub fn target_uuid(&self, uuid: &str) {
        let mut inner = self.operations.lock();
        self.operations.publish(&mut inner, &self.name, |op| uuid.clone_into(&mut op.target.get_or_insert_default().uuid));
    }

    /// Adds the run time of a PVE task, the call that started it included.
    pub fn pve_time(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let mut inner = self.operations.lock();
        self.operations.publish(&mut inner, &self.name, |op| op.pve_task_ms = op.pve_task_ms.saturating_add(millis));
    }

    /// The state as it is now.
    pub fn state(&self) -> State {
        self.operations.lock().entries.get(&self.name).map(|e| e.state.clone()).unwrap_or_default()
    }

    /// Changes the state, and returns when the change is on the disk. Errors: `Journal`.
    pub async fn save(&self, change: impl FnOnce(&mut State)) -> Result<(), Error> {
        let number = {
            let mut inner = self.operations.lock();
            if let Some(entry) = inner.entries.get_mut(&self.name) {
                change(&mut entry.state);
            }
            self.operations.queue(&mut inner, &self.name, Vec::new())
        };
        self.operations.journal.durable(number).await
    }

    /// Notes on which storages no volume with the VMID lies. It comes to the disk with the next write: forgotten by a crash, it makes
    /// undoing more careful, not less.
    pub fn found_clean(&self, storages: Vec<String>) {
        if let Some(entry) = self.operations.lock().entries.get_mut(&self.name) {
            entry.state.clean = storages;
        }
    }

    /// Records a task of PVE. It is queued for the disk at once and not waited for: the task runs, and its log and the config tell the rest
    /// if the agent dies before.
    pub fn task(&self, task: TaskRef) {
        let number = {
            let mut inner = self.operations.lock();
            if let Some(entry) = inner.entries.get_mut(&self.name).filter(|e| !e.state.tasks.contains(&task)) {
                entry.state.tasks.push(task.clone());
                self.operations.publish(&mut inner, &self.name, |op| op.upids.push(task.upid));
            }
            self.operations.queue(&mut inner, &self.name, Vec::new())
        };
        let (journal, name) = (Arc::clone(&self.operations.journal), self.name.clone());
        tokio::spawn(async move {
            if let Err(error) = journal.durable(number).await {
                tracing::error!(operation = name, %error, "a task id is not on the disk");
            }
            crash_point!("task.upid_written");
        });
    }

    /// Begins to undo: there is no way forward any more, also after a restart. Returns when that is on the disk. Errors: `Journal`.
    pub async fn undo(&self, error: &Error) -> Result<(), Error> {
        let status = error.to_rpc_status();
        let number = {
            let mut inner = self.operations.lock();
            if let Some(entry) = inner.entries.get_mut(&self.name) {
                entry.state.undoing = true;
                entry.committed = Some("it is being undone already");
            }
            self.operations.publish(&mut inner, &self.name, |op| {
                op.error.get_or_insert(status);
                "undoing".clone_into(&mut op.step);
            });
            self.operations.queue(&mut inner, &self.name, Vec::new())
        };
        self.operations.journal.durable(number).await
    }

    /// Passes the point from which the operation cannot be cancelled any more. Errors: `Cancelled` when somebody was faster.
    pub fn commit(&self, why: &'static str) -> Result<(), Error> {
        let mut inner = self.operations.lock();
        let Some(entry) = inner.entries.get_mut(&self.name) else { return Ok(()) };
        match &entry.cancelled_by {
            Some(by) => Err(Error::Cancelled { by: by.clone() }),
            None => {
                entry.committed = Some(why);
                Ok(())
            }
        }
    }

    /// Says that it waits for somebody outside from now on: the agent may end meanwhile, and goes on with it at its next start.
    pub fn park(&self) {
        if let Some(entry) = self.operations.lock().entries.get_mut(&self.name) {
            entry.parked = true;
        }
        self.operations.ended.notify_waiters();
    }

    /// Errors: `Cancelled` when somebody asked for it.
    pub fn check_cancelled(&self) -> Result<(), Error> {
        match self.operations.lock().entries.get(&self.name).and_then(|e| e.cancelled_by.clone()) {
            Some(by) => Err(Error::Cancelled { by }),
            None => Ok(()),
        }
    }

    /// Returns when somebody asks to cancel it.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Waits for a place in a lane of a storage, as far as `deadline`. Errors: `Cancelled`, `OperationTimeout`.
    pub async fn enter(&self, storage: &str, lane: Lane, deadline: Instant, after: Duration) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(permit) = self.operations.lanes.lane(storage, lane).try_acquire_owned() {
            return Ok(permit);
        }
        let lane_name = match lane {
            Lane::Short => "short",
            Lane::Long => "long",
        };
        self.step(format!("waiting for the {lane_name} lane of storage {storage}"));
        tokio::select! {
            permit = self.operations.lanes.enter(storage, lane) => permit,
            () = self.cancelled() => self.check_cancelled().and(Err(Error::Cancelled { by: String::new() })),
            () = tokio::time::sleep_until(deadline) => {
                Err(Error::OperationTimeout { after, what: format!("the {lane_name} lane of storage {storage} was not free") })
            }
        }
    }

    /// Gives up the leased VMID for another. Errors: those of a lease, `Journal`.
    pub async fn lease_again(&self, request: &LeaseRequest, rest: Duration) -> Result<u32, Error> {
        let (vmid, number) = self.operations.lease_again(&self.name, request, rest)?;
        self.operations.journal.durable(number).await?;
        Ok(vmid)
    }

    /// Ends the operation. `rest`: how long its VMID is not given out from now on.
    pub async fn finish(&self, result: Result<(), Error>, rest: Option<Duration>) {
        self.operations.finish(&self.name, result, rest).await;
    }

    /// Seconds since the Unix epoch.
    pub fn now(&self) -> u64 {
        self.operations.clock.now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }
}
