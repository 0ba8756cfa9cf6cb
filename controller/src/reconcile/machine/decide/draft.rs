//! The next status while it is being decided.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Action, Decision, Inputs, after, attempt, disks};
use crate::{
    kind::{ActionKind, Condition, ConditionStatus, Failure, MachineStatus, Phase, RunPolicy, set_condition},
    reconcile::{HostView, RunState, Sighting, VmView, view::machine_uid},
};

pub(super) struct Draft<'a> {
    inputs: &'a Inputs<'a>,
    pub(super) status: MachineStatus,
    pub(super) finalizer: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn new(inputs: &'a Inputs<'a>) -> Self {
        let mut status = inputs.machine.status.clone();
        status.observed_generation = inputs.machine.metadata.generation;
        Self { inputs, status, finalizer: false }
    }

    pub(super) fn finish(self, action: Action) -> Decision {
        Decision { status: self.status, finalizer: self.finalizer, action }
    }

    pub(super) fn set(&mut self, kind: &str, status: ConditionStatus, reason: &str, message: impl Into<String>) {
        let generation = self.inputs.machine.metadata.generation;
        set_condition(&mut self.status.conditions, kind, status, reason, message, generation, self.inputs.now);
    }

    pub(super) fn condition(&mut self, kind: &str, holds: bool, reason: &str, message: impl Into<String>) {
        self.set(kind, if holds { ConditionStatus::True } else { ConditionStatus::False }, reason, message);
    }

    pub(super) fn not_ready(&mut self, reason: &str, message: impl Into<String>) {
        self.condition("Ready", false, reason, message);
    }

    /// Nothing can be told.
    pub(super) fn unknown(&mut self, reason: &str, message: impl Into<String>) {
        let message = message.into();
        self.status.phase = Phase::Unknown;
        self.set("Running", ConditionStatus::Unknown, reason, message.clone());
        self.set("Ready", ConditionStatus::Unknown, reason, message);
    }

    /// Somebody must mend it.
    pub(super) fn fail(&mut self, reason: &str, message: impl Into<String>) {
        self.status.phase = Phase::Failed;
        self.not_ready(reason, message);
    }

    pub(super) fn unplaced(&mut self, reason: &str, message: impl Into<String>) {
        let message = message.into();
        self.status.phase = Phase::Pending;
        self.condition("Placed", false, reason, message.clone());
        self.not_ready(reason, message);
    }

    /// A VM with this machine's mark exists, or one that it is to take over: it is the machine's.
    pub(super) fn adopt(&mut self, sighting: &Sighting) {
        let vm = &sighting.vm;
        let made_for = machine_uid(vm).filter(|uid| *uid != self.inputs.machine.metadata.uid);
        // Its disks were made with it. A machine that has made its own keeps those.
        if !self.status.disks.iter().any(|d| d.made && (d.requested || d.created)) && self.status.disks_uid.is_none() {
            self.status.disks_uid = made_for.map(str::to_owned);
        }
        let host = self.inputs.hosts.iter().find(|h| h.cluster == sighting.cluster && h.node == vm.node);
        self.finalizer = true;
        self.status.created = true;
        self.status.vmid = Some(vm.vmid);
        self.status.uuid = Some(vm.uuid.clone());
        self.status.cluster = Some(sighting.cluster.clone());
        self.status.node = Some(vm.node.clone());
        self.status.host = host.map(|h| h.name.clone()).or_else(|| self.status.host.take());
        self.status.tenant = vm.owner.as_ref().map(|o| o.tenant.clone()).filter(|t| !t.is_empty());
        self.status.failures.clear();
        disks::adopted(self.inputs.machine, &mut self.status, &vm.node);
        self.condition("Created", true, "Adopted", format!("VM {} existed already", vm.vmid));
    }

    /// The VM is there, on this node.
    pub(super) fn found(&mut self, sighting: &Sighting, host: Option<&HostView>) {
        let vm = &sighting.vm;
        self.status.seen = true;
        self.status.vmid = Some(vm.vmid);
        self.status.node = Some(vm.node.clone());
        if let Some(host) = host {
            self.status.host = Some(host.name.clone());
            self.condition("Placed", true, "Placed", format!("on {}", host.name));
        }
        // A remark on how it came to be is kept.
        if !self.status.conditions.iter().any(|c| c.kind == "Created" && c.status == ConditionStatus::True) {
            self.condition("Created", true, "Created", format!("VM {}", vm.vmid));
        }
        if vm.state == RunState::Running {
            self.status.stopped_by = None;
            if vm.start_time.is_some() {
                self.status.last_start = vm.start_time;
            }
        }
    }

    /// Sets `Running` to what is seen.
    pub(super) fn running_as_seen(&mut self, vm: &VmView) {
        match vm.state {
            RunState::Running => self.condition("Running", true, "Running", ""),
            RunState::Stopped => self.condition("Running", false, "Stopped", ""),
            RunState::Paused => self.condition("Running", false, "VmPaused", "the VM's processors are halted; resume it in PVE"),
            RunState::Unknown => self.set("Running", ConditionStatus::Unknown, "NotTold", "its host's agent has not told yet"),
        }
    }

    /// Everything is as it should be, as far as configuration and run state go.
    pub(super) fn ready(&mut self, vm: &VmView) {
        self.status.phase = if vm.state == RunState::Running { Phase::Running } else { Phase::Stopped };
        let lacks = |c: &&Condition| matches!(c.kind.as_str(), "Configured" | "DisksReady") && c.status == ConditionStatus::False;
        match self.status.conditions.iter().find(lacks).cloned() {
            Some(c) => self.not_ready(&c.reason, c.message),
            None => self.condition("Ready", true, if vm.state == RunState::Running { "Running" } else { "Stopped" }, ""),
        }
    }

    /// The VM is proven gone and is to be made again.
    pub(super) fn start_over(&mut self) {
        let old = std::mem::take(&mut self.status);
        self.status = MachineStatus {
            attempt: old.attempt,
            observed_generation: old.observed_generation,
            conditions: old.conditions,
            disks: old.disks,
            disks_uid: old.disks_uid,
            ..MachineStatus::default()
        };
        disks::forget_vm(&mut self.status.disks);
        self.status.node = old.node;
        self.status.node = disks::node_of_volumes(&self.status);
        if self.status.node.is_some() {
            // Its volumes are the same, so it is made where they are, for the tenant that owns them.
            let there = |h: &&Arc<HostView>| Some(&h.cluster) == old.cluster.as_ref() && Some(&h.node) == self.status.node.as_ref();
            self.status.host = self.inputs.hosts.iter().find(there).map(|h| h.name.clone()).or(old.host);
            self.status.cluster = old.cluster;
            self.status.tenant = old.tenant;
        }
        self.condition("Created", false, "Recreating", "the VM is proven gone and recreatePolicy is Recreate");
        self.not_ready("Recreating", "the VM is made anew");
    }

    /// When an action that failed may be tried again; nothing when it may be tried now.
    pub(super) fn must_wait_for(&mut self, action: ActionKind) -> Option<Timestamp> {
        let (due, failure) = self.paused_after_failure(action, None)?;
        self.status.phase = Phase::Failed;
        self.not_ready(&attempt::condition_reason(action, &failure.reason), failure.message);
        Some(due)
    }

    /// The same, about the VM or a volume, told to nobody; with what failed.
    pub(super) fn paused_after_failure(&self, action: ActionKind, volume: Option<&str>) -> Option<(Timestamp, Failure)> {
        let failure = self.inputs.machine.status.failure_with(action, volume)?;
        let generation = self.inputs.machine.metadata.generation;
        let due = after(failure.time, attempt::backoff(failure, &self.inputs.machine.metadata.uid));
        (failure.generation == generation && due > self.inputs.now).then(|| (due, failure.clone()))
    }

    /// Nothing is wrong with this volume any more.
    pub(super) fn forget_failures(&mut self, volume: &str) {
        self.status.failures.retain(|f| f.volume.as_deref() != Some(volume));
    }

    /// Nothing remains to be done about this volume.
    pub(super) fn forget_disk(&mut self, volume: &str) {
        self.forget_failures(volume);
        self.status.disks.retain(|d| d.volume_id != volume);
    }

    /// Whose the machine is.
    pub(super) fn tenant(&self) -> String {
        self.status.tenant.as_deref().unwrap_or_else(|| self.inputs.machine.spec.tenant()).to_owned()
    }

    pub(super) fn policy(&self) -> RunPolicy {
        self.inputs.machine.spec.run_policy
    }
}
