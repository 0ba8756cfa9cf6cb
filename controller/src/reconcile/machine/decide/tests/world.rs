//! The inputs of a decision, owned, with a name for each usual situation.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};

use super::super::{Action, Decision, Ending, Inputs, Knowledge, Request, VolumeSight, decide};
use crate::{
    kind::{ActionKind, Attempt, Failure, MACHINE_FINALIZER, PveMachine, Success},
    placement::{Candidate, Size},
    reconcile::{HostView, RunState, Sighting, VmView, testing},
};

pub(super) struct World {
    pub(super) machine: PveMachine,
    pub(super) hosts: Vec<HostView>,
    pub(super) sightings: Vec<Sighting>,
    pub(super) templates: bool,
    pub(super) orphan: Option<Sighting>,
    pub(super) known: Knowledge,
    pub(super) volumes: BTreeMap<(String, String), VolumeSight>,
    pub(super) stop_order: Option<(String, Timestamp)>,
    pub(super) now: Timestamp,
}

impl World {
    /// A machine just seen, and two good hosts of one PVE cluster.
    pub(super) fn fresh() -> Self {
        Self {
            machine: testing::machine("web-1"),
            hosts: vec![testing::host("pve1"), testing::host("pve2")],
            sightings: Vec::new(),
            templates: true,
            orphan: None,
            known: Knowledge::Unsure,
            volumes: BTreeMap::new(),
            stop_order: None,
            now: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1000),
        }
    }

    /// Placed on pve1, with this attempt under way.
    pub(super) fn attempting(action: ActionKind, known: Knowledge) -> Self {
        let mut world = if action == ActionKind::Clone { Self::fresh() } else { Self::running() };
        let status = &mut world.machine.status;
        status.host = Some("pve1".into());
        status.cluster = Some("lab".into());
        status.node = Some("pve1".into());
        status.tenant = Some("default".into());
        status.attempt = 7;
        status.operation = Some(Box::new(Attempt {
            action,
            volume: None,
            attempt: 7,
            host: "pve1".into(),
            cluster: "lab".into(),
            node: "pve1".into(),
            request_id: format!("{}:{}:7", testing::UID, action.as_str()),
            generation: 1,
            name: None,
        }));
        world.machine.metadata.finalizers = vec![MACHINE_FINALIZER.into()];
        world.known = known;
        world
    }

    /// The VM was made on pve1 long ago and runs; everything is as it should be.
    pub(super) fn running() -> Self {
        let mut world = Self::fresh();
        world.machine.metadata.finalizers = vec![MACHINE_FINALIZER.into()];
        let status = &mut world.machine.status;
        status.host = Some("pve1".into());
        status.cluster = Some("lab".into());
        status.node = Some("pve1".into());
        status.tenant = Some("default".into());
        status.vmid = Some(101);
        status.uuid = Some(testing::UUID.into());
        status.created = true;
        status.seen = true;
        status.attempt = 3;
        status.configured_generation = 1;
        status.verified_generation = 1;
        status.last_success = Some(Success { action: ActionKind::Start, time: world.now - SignedDuration::from_hours(1) });
        status.last_start = Some(world.now - SignedDuration::from_hours(1));
        let vm = testing::vm(RunState::Running);
        world.sightings = vec![Sighting { cluster: "lab".into(), seen_by: "pve1".into(), vm: Arc::new(vm) }];
        world
    }

    /// Like running, but the VM does not run.
    pub(super) fn stopped() -> Self {
        let mut world = Self::running();
        world.edit_vm(|vm| vm.state = RunState::Stopped);
        world
    }

    /// Like running, and the object is to go.
    pub(super) fn deleting() -> Self {
        let mut world = Self::running();
        world.machine.metadata.deletion_timestamp = Some(world.now);
        world
    }

    /// A clone that failed just now.
    pub(super) fn failed(retryable: bool, ago: SignedDuration) -> Self {
        let mut world = Self::fresh();
        world.machine.metadata.finalizers = vec![MACHINE_FINALIZER.into()];
        world.machine.status.attempt = 1;
        world.machine.status.failures = vec![Failure {
            action: ActionKind::Clone,
            volume: None,
            host: "pve1".into(),
            reason: "STORAGE_FULL".into(),
            message: "storage local is full".into(),
            retryable,
            count: 1,
            time: world.now - ago,
            generation: 1,
        }];
        world
    }

    pub(super) fn edit_vm(&mut self, edit: impl Fn(&mut VmView)) {
        for sighting in &mut self.sightings {
            let mut vm = (*sighting.vm).clone();
            edit(&mut vm);
            sighting.vm = Arc::new(vm);
        }
    }

    /// The VM as these nodes' agents see it: its run state only where it is.
    pub(super) fn see_from(&mut self, nodes: &[&str]) {
        let vm = self.sightings.first().map_or_else(|| Arc::new(testing::vm(RunState::Running)), |s| Arc::clone(&s.vm));
        let seen = |node: &&str| {
            let state = if vm.node == *node { vm.state } else { RunState::Unknown };
            Sighting { cluster: "lab".into(), seen_by: (*node).into(), vm: Arc::new(VmView { state, ..(*vm).clone() }) }
        };
        self.sightings = nodes.iter().map(seen).collect();
    }

    pub(super) fn add_vm(&mut self, cluster: &str, node: &str, edit: impl Fn(&mut VmView)) {
        let mut vm = testing::vm(RunState::Stopped);
        vm.node = node.into();
        edit(&mut vm);
        self.sightings.push(Sighting { cluster: cluster.into(), seen_by: node.into(), vm: Arc::new(vm) });
    }

    pub(super) fn decide(&self) -> Decision {
        let template = self.templates.then_some(Size { memory_mib: 1024, cores: 1 });
        let hosts: Vec<Arc<HostView>> = self.hosts.iter().cloned().map(Arc::new).collect();
        let candidate = |host: &Arc<HostView>| Candidate { host: Arc::clone(host), used_memory_mib: 0, used_cores: 0, template };
        let candidates: Vec<Candidate> = hosts.iter().map(candidate).collect();
        decide(&Inputs {
            machine: &self.machine,
            controller: "test",
            hosts: &hosts,
            sightings: &self.sightings,
            candidates: &candidates,
            orphan: self.orphan.as_ref(),
            known: self.known.clone(),
            volumes: &self.volumes,
            stop_order: self.stop_order.clone(),
            now: self.now,
        })
    }
}

pub(super) fn succeeded() -> Knowledge {
    Knowledge::Ended(Ending::Succeeded { vmid: 101, uuid: testing::UUID.into() })
}

pub(super) fn ended_badly(reason: &str, remains: bool) -> Knowledge {
    Knowledge::Ended(Ending::Failed { reason: reason.into(), message: "because".into(), retryable: false, remains })
}

/// An action in a word or two.
pub(super) fn describe(action: &Action) -> String {
    match action {
        Action::Wait(None) => "wait".into(),
        Action::Wait(Some(_)) => "wait a while".into(),
        Action::Again => "again".into(),
        Action::Observe { node, .. } => format!("observe on {node}"),
        Action::LookUp => "look up".into(),
        Action::Cancel(name) => format!("cancel {name}"),
        Action::Release => "release".into(),
        Action::Call(request) => {
            let (name, meta) = match &**request {
                Request::Clone(r) => ("clone", &r.meta),
                Request::Configure(r) => ("configure", &r.meta),
                Request::Start(r) => ("start", &r.meta),
                Request::Shutdown(r) => ("shutdown", &r.meta),
                Request::Delete(r) => ("delete", &r.meta),
                Request::CreateVolume(r) => ("create-disk", &r.meta),
                Request::AttachVolume(r) => ("attach-disk", &r.meta),
                Request::GrowVolume(r) => ("grow-disk", &r.meta),
                Request::SetVolumeLimits(r) => ("set-disk-limits", &r.meta),
                Request::DetachVolume(r) => ("detach-disk", &r.meta),
                Request::DeleteVolume(r) => ("delete-disk", &r.meta),
            };
            let attempt = meta.as_ref().and_then(|m| m.request_id.rsplit(':').next().map(str::to_owned)).unwrap_or_default();
            format!("call {name} {attempt}")
        }
    }
}
