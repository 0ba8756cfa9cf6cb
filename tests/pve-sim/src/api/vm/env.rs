//! What a call or a task works with: the node, locks, storages, the log.

use std::time::Duration;

use crate::{
    api::{Call, Failure},
    guest,
    layout::NodeLayout,
    storage::{
        Storages,
        lock::{self, Held, Wait},
    },
    task::Worker,
    vmconf::{self, VmConfig},
};

/// How long a clone waits for the lock of the VM that it copies.
const WAIT_CLONE: Duration = Duration::from_secs(1);

/// The surroundings of a piece of work.
#[derive(Clone, Copy)]
pub(super) struct Env<'a> {
    pub(super) layout: &'a NodeLayout,
    pub(super) worker: Option<&'a Worker>,
    lock_factor: f64,
}

impl<'a> Env<'a> {
    /// Of a call that does the work itself: what would be logged is dropped, as the real daemon drops it.
    pub(super) fn of_call(call: &'a Call) -> Self {
        Self { layout: &call.layout, worker: None, lock_factor: call.settings.lock_factor }
    }

    /// Of a task.
    pub(super) fn of_worker(worker: &'a Worker) -> Self {
        Self { layout: &worker.layout, worker: Some(worker), lock_factor: worker.lock_factor }
    }

    /// What waits are multiplied by.
    pub(super) fn lock_factor(&self) -> f64 {
        self.lock_factor
    }

    pub(super) fn log(&self, line: &str) {
        if let Some(worker) = self.worker {
            worker.log(line);
        }
    }

    pub(super) fn warn(&self, text: &str) {
        if let Some(worker) = self.worker {
            worker.warn(text);
        }
    }

    /// The task's first side effect is there.
    pub(super) fn begun(&self) {
        if let Some(worker) = self.worker {
            worker.begun();
        }
    }

    /// Refuses to go on after a signal.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.worker.map_or(Ok(()), Worker::check)
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.worker.is_some_and(Worker::is_interrupted)
    }

    pub(super) fn storages(&self) -> Result<Storages, Failure> {
        Storages::load(self.layout, self.lock_factor)
    }

    fn take(&self, vmid: u32, wait: Wait) -> Result<Held, Failure> {
        let shown = format!("/var/lock/qemu-server/lock-{vmid}.conf");
        lock::take(&self.layout.vm_lock(vmid), &shown, wait, &|line| self.log(line))
    }

    /// Takes a VM's lock, waiting for 10 s at most.
    pub(super) fn lock(&self, vmid: u32) -> Result<Held, Failure> {
        self.take(vmid, Wait::exclusive(self.lock_factor))
    }

    /// Takes a VM's lock beside others who only read it, waiting for 1 s at most.
    pub(super) fn lock_shared(&self, vmid: u32) -> Result<Held, Failure> {
        self.take(vmid, Wait { timeout: WAIT_CLONE.mul_f64(self.lock_factor), shared: true })
    }

    /// Takes the lock of a VM that is to be copied and is no template, waiting for 1 s at most.
    pub(super) fn lock_briefly(&self, vmid: u32) -> Result<Held, Failure> {
        self.take(vmid, Wait { timeout: WAIT_CLONE.mul_f64(self.lock_factor), shared: false })
    }

    pub(super) fn load(&self, vmid: u32) -> Result<VmConfig, Failure> {
        vmconf::load(self.layout, vmid)
    }

    pub(super) fn store(&self, vmid: u32, config: &VmConfig) -> Result<(), Failure> {
        vmconf::store(self.layout, vmid, config)
    }

    /// The pid of a VM's process, if it runs.
    pub(super) fn running(&self, vmid: u32) -> Option<u32> {
        guest::running(self.layout, vmid)
    }
}
