//! A PVE cluster in memory: what its agents would do, at once or when told to.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use pvelet_proto::{id::OperationName, reason, v1};
use tokio::sync::broadcast;
use tonic::{Code, Status};

use super::volumes::{Stored, VolumeEffect};
use crate::agents::fake::refusal;

/// What agents were asked to change: the node, the call, the request id.
pub(super) type Asked = (String, &'static str, String);

#[derive(Default)]
pub(super) struct State {
    pub(super) vms: BTreeMap<u32, v1::Vm>,
    pub(super) volumes: Vec<Stored>,
    /// Volumes are attached so that a guest sees them from its next start.
    pub(super) attach_later: bool,
    pub(super) operations: HashMap<String, Vec<v1::Operation>>,
    pub(super) asked: Vec<Asked>,
    pub(super) cloned: Vec<v1::CloneVmRequest>,
    pub(super) configured: Vec<v1::VmConfig>,
    pub(super) epochs: Vec<v1::ControllerEpoch>,
    /// Operations stay under way until [`Cluster::let_go`].
    pub(super) hold: bool,
    /// Operations under way, with what they will do.
    held: Vec<(String, String, Effect)>,
    /// The next call is carried out but its answer is lost.
    pub(super) lose_answer: bool,
    /// The next operations fail with this.
    pub(super) failure: Option<Status>,
    /// The next calls are refused with this.
    pub(super) refusal: Option<Status>,
    pub(super) revision: u64,
    clock: i64,
}

#[derive(Clone)]
pub(super) enum Effect {
    Clone(Box<v1::CloneVmRequest>, u32),
    Configure(u32, Box<v1::VmConfig>),
    Run(u32, bool),
    Delete(u32),
    Volume(VolumeEffect),
}

#[derive(Clone)]
pub(super) enum Told {
    Vm(v1::VmEvent),
    Operation(String, v1::Operation),
}

pub(super) struct Cluster {
    state: Mutex<State>,
    /// What becomes of VMs is not told by itself.
    pub(super) mute: AtomicBool,
    pub(super) told: broadcast::Sender<Told>,
}

impl Cluster {
    /// One with template 9000 on each node.
    pub(super) fn new(nodes: &[&str]) -> Arc<Self> {
        let state = State { clock: 1_800_000_000, ..State::default() };
        let cluster = Arc::new(Self { state: Mutex::new(state), mute: AtomicBool::new(false), told: broadcast::channel(1024).0 });
        for (vmid, node) in (9000..).zip(nodes) {
            let template = v1::Vm {
                vmid,
                uuid: format!("99999999-0000-4000-8000-{vmid:012}"),
                name: "template".into(),
                node: (*node).to_owned(),
                template: true,
                state: v1::VmState::Stopped.into(),
                tags: vec!["golden".into()],
                cores: 1,
                sockets: 1,
                memory_mib: 512,
                ..v1::Vm::default()
            };
            cluster.lock().vms.insert(vmid, template);
        }
        cluster
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn machines(&self) -> Vec<v1::Vm> {
        self.lock().vms.values().filter(|vm| !vm.template).cloned().collect()
    }

    pub(super) fn asked(&self) -> Vec<(String, &'static str)> {
        self.lock().asked.iter().map(|(node, call, _)| (node.clone(), *call)).collect()
    }

    /// Changes a VM from outside and tells.
    pub(super) fn change(&self, vmid: u32, kind: v1::VmEventType, edit: impl FnOnce(&mut v1::Vm)) {
        let mut state = self.lock();
        let vm = state.vms.get_mut(&vmid).unwrap();
        edit(vm);
        let vm = vm.clone();
        self.tell(kind, vm);
    }

    pub(super) fn remove(&self, vmid: u32) {
        let vm = self.lock().vms.remove(&vmid).unwrap();
        self.tell(v1::VmEventType::Removed, vm);
    }

    fn tell(&self, kind: v1::VmEventType, vm: v1::Vm) {
        if self.mute.load(Ordering::Relaxed) {
            return;
        }
        let _ = self.told.send(Told::Vm(v1::VmEvent { r#type: kind.into(), vm: Some(vm), from_node: String::new() }));
    }

    /// What an agent does with a mutating call.
    pub(super) fn begin(
        &self,
        node: &str,
        call: &'static str,
        meta: Option<v1::RequestMeta>,
        kind: v1::OperationKind,
        effect: impl FnOnce(&mut State) -> Result<Effect, Status>,
    ) -> Result<v1::Operation, Status> {
        let meta = meta.unwrap_or_default();
        let mut state = self.lock();
        assert!(meta.controller_epoch.is_some() || meta.request_id.starts_with("person"), "a controller's call without its epoch");
        state.asked.push((node.to_owned(), call, meta.request_id.clone()));
        let known = state.operations.get(node).into_iter().flatten().find(|o| o.request_id == meta.request_id).cloned();
        let lose = std::mem::take(&mut state.lose_answer);
        let operation = match (known, state.refusal.clone()) {
            (Some(operation), _) => operation,
            (None, Some(refusal)) => return Err(refusal),
            (None, None) => {
                let effect = effect(&mut state)?;
                state.revision += 1;
                let target = match &effect {
                    Effect::Clone(_, vmid) => v1::VmRef { vmid: *vmid, uuid: String::new() },
                    Effect::Configure(vmid, _) | Effect::Run(vmid, _) | Effect::Delete(vmid) => {
                        v1::VmRef { vmid: *vmid, uuid: state.vms[vmid].uuid.clone() }
                    }
                    Effect::Volume(_) => v1::VmRef::default(),
                };
                let operation = v1::Operation {
                    name: OperationName::random().to_string(),
                    request_id: meta.request_id.clone(),
                    tenant: meta.tenant.clone(),
                    kind: kind.into(),
                    target: Some(target),
                    state: v1::OperationState::Running.into(),
                    revision: state.revision,
                    ..v1::Operation::default()
                };
                state.operations.entry(node.to_owned()).or_default().push(operation.clone());
                let _ = self.told.send(Told::Operation(node.to_owned(), operation.clone()));
                state.held.push((node.to_owned(), operation.name.clone(), effect));
                if !state.hold {
                    self.settle(&mut state);
                }
                operation
            }
        };
        if lose { Err(Status::unavailable("transport error")) } else { Ok(operation) }
    }

    /// Ends all that is under way.
    pub(super) fn let_go(&self) {
        let mut state = self.lock();
        state.hold = false;
        self.settle(&mut state);
    }

    fn settle(&self, state: &mut State) {
        for (node, name, effect) in std::mem::take(&mut state.held) {
            let failure = state.failure.take();
            let target = if failure.is_none() { self.apply(state, &node, effect) } else { None };
            state.revision += 1;
            state.clock += 1;
            let (revision, clock) = (state.revision, state.clock);
            let operation = state.operations.get_mut(&node).unwrap().iter_mut().find(|o| o.name == name).unwrap();
            operation.revision = revision;
            operation.end_time = Some(prost_types::Timestamp { seconds: clock, nanos: 0 });
            match failure {
                None => {
                    operation.state = v1::OperationState::Succeeded.into();
                    operation.target = target.or(operation.target.take());
                }
                Some(status) => {
                    operation.state = v1::OperationState::Failed.into();
                    let details: tonic_types::pb::Status = prost::Message::decode(status.details()).unwrap();
                    operation.error = Some(tonic_types::pb::Status { code: status.code().into(), ..details });
                }
            }
            let _ = self.told.send(Told::Operation(node.clone(), operation.clone()));
        }
    }

    fn apply(&self, state: &mut State, node: &str, effect: Effect) -> Option<v1::VmRef> {
        match effect {
            Effect::Clone(request, vmid) => {
                state.cloned.push((*request).clone());
                let config = request.config.unwrap_or_default();
                let uuid = format!("aaaaaaaa-0000-4000-8000-{vmid:012}");
                let vm = v1::Vm {
                    vmid,
                    uuid: uuid.clone(),
                    name: config.name.unwrap_or_default(),
                    node: node.to_owned(),
                    state: v1::VmState::Stopped.into(),
                    cores: config.cores.unwrap_or(1),
                    sockets: 1,
                    memory_mib: config.memory_mib.unwrap_or(512),
                    tags: vec!["golden".into()],
                    mark: Some(v1::Mark { owner: request.owner, operation: String::new() }),
                    digest: "1".into(),
                    ..v1::Vm::default()
                };
                state.vms.insert(vmid, vm.clone());
                self.tell(v1::VmEventType::Created, vm);
                Some(v1::VmRef { vmid, uuid })
            }
            Effect::Configure(vmid, config) => {
                let vm = state.vms.get_mut(&vmid).unwrap();
                vm.memory_mib = config.memory_mib.unwrap_or(vm.memory_mib);
                vm.cores = config.cores.unwrap_or(vm.cores);
                vm.digest.push('1');
                let vm = vm.clone();
                state.configured.push(*config);
                self.tell(v1::VmEventType::Changed, vm);
                None
            }
            Effect::Run(vmid, run) => {
                state.clock += 1;
                let start_time = run.then_some(prost_types::Timestamp { seconds: state.clock, nanos: 0 });
                let vm = state.vms.get_mut(&vmid).unwrap();
                vm.state = if run { v1::VmState::Running } else { v1::VmState::Stopped }.into();
                vm.start_time = start_time;
                let vm = vm.clone();
                self.tell(if run { v1::VmEventType::Started } else { v1::VmEventType::Stopped }, vm);
                None
            }
            Effect::Delete(vmid) => {
                state.forget_attachments(vmid);
                let vm = state.vms.remove(&vmid).unwrap();
                self.tell(v1::VmEventType::Removed, vm);
                None
            }
            Effect::Volume(effect) => {
                let vmid = state.apply_volume(node, effect)?;
                let vm = state.vms[&vmid].clone();
                self.tell(v1::VmEventType::Changed, vm);
                None
            }
        }
    }

    pub(super) fn cancel(&self, node: &str, name: &str) {
        let mut state = self.lock();
        state.held.retain(|(_, held, _)| held != name);
        state.revision += 1;
        let revision = state.revision;
        let operation = state.operations.get_mut(node).unwrap().iter_mut().find(|o| o.name == name).unwrap();
        operation.state = v1::OperationState::Cancelled.into();
        operation.revision = revision;
        let _ = self.told.send(Told::Operation(node.to_owned(), operation.clone()));
    }
}

impl State {
    /// The VM, if it is on this node and the reference names it.
    pub(super) fn target(&self, node: &str, vm: Option<v1::VmRef>) -> Result<u32, Status> {
        let wanted = vm.unwrap_or_default();
        let missing = || refusal(Code::NotFound, "there is no such VM", reason::VM_NOT_FOUND, None);
        let found = self.vms.get(&wanted.vmid).ok_or_else(missing)?;
        if found.uuid != wanted.uuid {
            return Err(refusal(Code::FailedPrecondition, "another VM has that VMID", reason::UUID_MISMATCH, None));
        }
        if found.node != node {
            return Err(refusal(Code::FailedPrecondition, "it is elsewhere", reason::VM_ON_OTHER_HOST, None));
        }
        Ok(wanted.vmid)
    }
}
