//! All agents: what they tell, side by side.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::{sync::mpsc, task::AbortHandle};
use tracing::warn;

use super::{
    Knowledge,
    health::HealthSight,
    session::Session,
    view::{HostView, Link, Sighting, VmView, machine_uid},
};
use crate::{
    agents::{Agents, Target},
    epoch::Epoch,
    kind::{Attempt, MachineSpec, MachineStatus, ObjectKey, PveHost},
    placement::{Candidate, Size, is_source},
};

/// What happened, and whom it may concern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// A host came, went or changed.
    Host(String),
    /// What an agent tells of its host's health changed.
    Health(String),
    /// A VM changed.
    Vm {
        /// The host whose agent told.
        host: String,
        /// The machine that its mark names; empty for none.
        machine_uid: String,
        /// Its UUID.
        uuid: String,
        /// Its name.
        name: String,
        /// Whether it is a template.
        template: bool,
    },
    /// An operation began or ended.
    Operation {
        /// Its request id.
        request_id: String,
        /// The VM's UUID; empty when it is not known.
        uuid: String,
    },
}

impl Wake {
    pub(super) fn of_vm(host: &str, vm: &VmView) -> Self {
        Self::Vm {
            host: host.to_owned(),
            machine_uid: machine_uid(vm).unwrap_or_default().to_owned(),
            uuid: vm.uuid.clone(),
            name: vm.name.clone(),
            template: vm.template,
        }
    }
}

/// All agents.
pub struct Fleet {
    agents: Agents,
    controller: String,
    epoch: Epoch,
    sessions: Mutex<BTreeMap<String, Running>>,
    wake: mpsc::UnboundedSender<Wake>,
}

struct Running {
    session: Arc<Session>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A machine's place and size, for counting what is placed but does not run yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reservation {
    pub(super) cluster: String,
    pub(super) node: String,
    pub(super) uuid: Option<String>,
    pub(super) size: Size,
}

impl Fleet {
    /// No hosts yet. What happens is told through `wake`.
    pub fn new(agents: Agents, controller: String, epoch: Epoch, wake: mpsc::UnboundedSender<Wake>) -> Self {
        Self { agents, controller, epoch, sessions: Mutex::default(), wake }
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.sessions().values().map(|r| Arc::clone(&r.session)).collect()
    }

    /// Takes a host's spec over: listens to its agent, or to another one when the address or identity changed.
    pub(super) fn apply(&self, host: &PveHost) {
        let name = host.key().to_string();
        let Ok(address) = host.spec.address.parse() else {
            // The store lets none through.
            warn!(host = name, "spec.address is malformed");
            return;
        };
        let (cluster, node) = (Some(host.spec.cluster.clone()), Some(host.spec.node.clone()));
        let target = Target { name: name.clone(), address, cluster, node };
        let mut sessions = self.sessions();
        if let Some(running) = sessions.get(&name).filter(|r| *r.session.client.target() == target) {
            let mut state = running.session.state();
            let (link, facts) = (state.view.link.clone(), state.view.facts.clone());
            let view = view(host, &name, link, facts);
            let changed = state.view != view;
            state.view = view;
            drop(state);
            if changed {
                let _ = self.wake.send(Wake::Host(name));
            }
            return;
        }
        let client = self.agents.set(target);
        let session = Session::new(name.clone(), client, view(host, &name, Link::Connecting, None), self.wake.clone());
        let task = tokio::spawn(Arc::clone(&session).run(self.controller.clone(), self.epoch.clone())).abort_handle();
        sessions.insert(name, Running { session, task });
    }

    /// Forgets a host.
    pub(super) fn remove(&self, name: &str) {
        if self.sessions().remove(name).is_some() {
            self.agents.remove(name);
            let _ = self.wake.send(Wake::Host(name.to_owned()));
        }
    }

    /// One host, with cores and memory of the VMs that run there.
    pub(super) fn host(&self, name: &str) -> Option<(HostView, Size)> {
        let session = self.sessions().get(name).map(|r| Arc::clone(&r.session))?;
        let state = session.state();
        let running = state.vms.running().filter(|vm| vm.node == state.view.node).map(|vm| Size::of(vm));
        let used = running.fold(Size::default(), |a, b| Size { memory_mib: a.memory_mib + b.memory_mib, cores: a.cores + b.cores });
        Some((state.view.clone(), used))
    }

    /// The same, and its health.
    pub(super) fn host_with_health(&self, name: &str) -> Option<(HostView, Size, HealthSight)> {
        let (view, used) = self.host(name)?;
        let session = self.sessions().get(name).map(|r| Arc::clone(&r.session))?;
        let health = session.state().health.clone();
        Some((view, used, health))
    }

    /// Lets a host be looked at again.
    pub(super) fn remind(&self, host: &ObjectKey) {
        let _ = self.wake.send(Wake::Health(host.to_string()));
    }

    /// All hosts.
    pub fn hosts(&self) -> Vec<HostView> {
        self.all().iter().map(|s| s.state().view.clone()).collect()
    }

    /// The agent on this node.
    pub(super) fn session(&self, cluster: &str, node: &str) -> Option<Arc<Session>> {
        self.all().into_iter().find(|s| {
            let state = s.state();
            state.view.cluster == cluster && state.view.node == node
        })
    }

    /// Until when a host's agent is waited for before anything is told of that ([`Session::waited_for`]).
    pub(super) fn waited_for(&self, name: &str, now: Timestamp) -> Option<Timestamp> {
        let session = self.sessions().get(name).map(|r| Arc::clone(&r.session))?;
        session.waited_for(now)
    }

    /// All hosts, and the VMs that may be this machine's, as the agents that are connected see them. Both of one moment for each host: a connection
    /// that is lost in between would prove that a VM is gone.
    pub(super) fn look(&self, uid: &str, status: &MachineStatus) -> (Vec<HostView>, Vec<Sighting>) {
        let (mut hosts, mut found) = (Vec::new(), Vec::new());
        for session in self.all() {
            let state = session.state();
            hosts.push(state.view.clone());
            if state.view.link == Link::Up {
                let vmid = status.vmid.filter(|_| status.cluster.as_ref() == Some(&state.view.cluster));
                let vms = state.vms.of_machine(uid, status.uuid.as_deref(), vmid);
                found.extend(vms.into_iter().map(|vm| sighting(&state.view, vm)));
            }
        }
        (hosts, found)
    }

    /// A VM of this name that this controller made for a machine of this tenant that does not `exists` any more. What other tenants have is
    /// nobody's business here.
    pub(super) fn orphan(&self, vm_name: &str, tenant: &str, exists: impl Fn(&str) -> bool) -> Option<Sighting> {
        for session in self.all() {
            let state = session.state();
            let ours = |vm: &&Arc<VmView>| {
                vm.name == vm_name
                    && vm.owner.as_ref().is_some_and(|o| {
                        o.cluster == self.controller && o.tenant == tenant && !o.machine_uid.is_empty() && !exists(&o.machine_uid)
                    })
            };
            if state.view.link == Link::Up
                && let Some(vm) = state.vms.all().find(ours)
            {
                return Some(sighting(&state.view, Arc::clone(vm)));
            }
        }
        None
    }

    /// What has been told of an attempt.
    pub(super) fn knowledge(&self, attempt: &Attempt) -> Option<Knowledge> {
        self.knowledge_of(&attempt.cluster, &attempt.node, &attempt.request_id)
    }

    /// What the agent on this node has told of an operation.
    pub(super) fn knowledge_of(&self, cluster: &str, node: &str, request_id: &str) -> Option<Knowledge> {
        let session = self.session(cluster, node)?;
        let state = session.state();
        state.operations.get(request_id).cloned()
    }

    /// These hosts, all of them, as far as they are known: one whose agent is not listened to yet is one that is being connected to.
    pub(super) fn views(&self, hosts: &[PveHost]) -> Vec<HostView> {
        let of = |host: &PveHost| {
            let name = host.key().to_string();
            let known = self.host(&name).map(|(view, _)| view).filter(|v| (&v.cluster, &v.node) == (&host.spec.cluster, &host.spec.node));
            let (link, facts) = known.map_or((Link::Connecting, None), |v| (v.link, v.facts));
            view(host, &name, link, facts)
        };
        hosts.iter().map(of).collect()
    }

    /// The newest order to stop this VM that was carried out, on any host.
    pub(super) fn stop_order(&self, uuid: &str) -> Option<(String, Timestamp)> {
        self.all().iter().filter_map(|s| s.state().operations.stop_of(uuid).cloned()).max_by_key(|(_, time)| *time)
    }

    /// All hosts with what is free on them, for a machine of this spec.
    pub(super) fn candidates(&self, spec: &MachineSpec, reserved: &[Reservation]) -> Vec<Candidate> {
        let candidate = |session: Arc<Session>| {
            let state = session.state();
            let here = |vm: &&Arc<VmView>| vm.node == state.view.node;
            let mut used = Size::default();
            let mut add = |size: Size| {
                used.memory_mib += size.memory_mib;
                used.cores += size.cores;
            };
            let mut running: Vec<&str> = Vec::new();
            for vm in state.vms.running().filter(here) {
                running.push(&vm.uuid);
                add(Size::of(vm));
            }
            let placed = reserved.iter().filter(|r| r.cluster == state.view.cluster && r.node == state.view.node);
            // What runs has been counted with what it really has.
            placed.filter(|r| r.uuid.as_deref().is_none_or(|u| !running.contains(&u))).for_each(|r| add(r.size));
            let template = state.vms.templates().rev().filter(here).find(|vm| is_source(&spec.source, vm)).map(|vm| Size::of(vm));
            Candidate { host: state.view.clone(), used_memory_mib: used.memory_mib, used_cores: used.cores, template }
        };
        self.all().into_iter().map(candidate).collect()
    }
}

fn sighting(view: &HostView, vm: Arc<VmView>) -> Sighting {
    Sighting { cluster: view.cluster.clone(), seen_by: view.node.clone(), vm }
}

fn view(host: &PveHost, name: &str, link: Link, facts: Option<super::Facts>) -> HostView {
    HostView {
        name: name.to_owned(),
        cluster: host.spec.cluster.clone(),
        node: host.spec.node.clone(),
        labels: host.metadata.labels.clone(),
        cordon: host.spec.cordon,
        maintenance: host.spec.maintenance,
        reserved_memory: host.spec.reserved_memory,
        cpu_overcommit: host.spec.cpu_overcommit,
        link,
        facts,
    }
}
