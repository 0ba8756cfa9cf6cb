//! All agents: what they tell, side by side.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::mpsc, task::AbortHandle};
use tracing::warn;

use super::{
    Knowledge,
    health::HealthSight,
    index::Index,
    session::{Common, Session},
    view::{HostView, Link, RunState, Sighting, VmView, machine_uid},
};
use crate::{
    agents::{Agents, Target},
    epoch::Epoch,
    kind::{Attempt, MachineStatus, ObjectKey, PveHost, PveMachine},
    placement::{Candidate, Size},
};

/// How long a host that is asked for the first time what it has keeps machines from being placed on others, as long as others answer.
const ASKED: SignedDuration = SignedDuration::from_secs(10);
/// How long after the last answer the others are not waited for any more.
const QUIET: SignedDuration = SignedDuration::from_millis(500);

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
        /// What it means for those that wait for room.
        room: Room,
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
            room: Room::Same,
        }
    }

    pub(super) fn set_room(&mut self, now: Room) {
        if let Self::Vm { room, .. } = self {
            *room = now;
        }
    }

    /// Whether both concern the same machines.
    pub(super) fn same_vm(&self, other: &Self) -> bool {
        let of = |wake: &Self| match wake {
            Self::Vm { machine_uid, uuid, name, .. } => Some((machine_uid.clone(), uuid.clone(), name.clone())),
            _ => None,
        };
        of(self) == of(other)
    }
}

/// What a change of a VM means for machines that wait for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Nothing.
    Same,
    /// It takes less than before.
    Freed,
    /// There is a template that may be the one that was missing, or one is gone before another.
    Template,
}

impl Room {
    pub(super) fn after(old: Option<&VmView>, new: Option<&VmView>) -> Self {
        let takes = |vm: Option<&VmView>| {
            vm.filter(|vm| matches!(vm.state, RunState::Running | RunState::Paused)).map(Size::of).unwrap_or_default()
        };
        let template = |vm: Option<&VmView>| vm.is_some_and(|vm| vm.template);
        let (before, now) = (takes(old), takes(new));
        if template(old) || template(new) {
            Self::Template
        } else if now.memory_mib < before.memory_mib || now.cores < before.cores {
            Self::Freed
        } else {
            Self::Same
        }
    }
}

/// All agents.
pub struct Fleet {
    agents: Agents,
    controller: String,
    epoch: Epoch,
    sessions: Mutex<Sessions>,
    common: Arc<Common>,
    wake: mpsc::UnboundedSender<Wake>,
}

#[derive(Default)]
struct Sessions {
    by_name: BTreeMap<String, Running>,
    /// The same, in the same order.
    by_cluster: HashMap<String, Vec<Arc<Session>>>,
}

impl Sessions {
    fn get(&self, name: &str) -> Option<&Arc<Session>> {
        self.by_name.get(name).map(|running| &running.session)
    }

    fn of_cluster(&self, cluster: &str) -> &[Arc<Session>] {
        self.by_cluster.get(cluster).map_or(&[], Vec::as_slice)
    }

    /// Puts one in, or takes one out.
    fn set(&mut self, name: String, running: Option<Running>) -> Option<Running> {
        let new = running.as_ref().map(|r| Arc::clone(&r.session));
        let old = match running {
            Some(running) => self.by_name.insert(name, running),
            None => self.by_name.remove(&name),
        };
        let clusters: BTreeSet<&String> = old.iter().map(|r| &r.session).chain(&new).map(|s| &s.place.cluster).collect();
        for cluster in clusters {
            let all = self.by_cluster.entry(cluster.clone()).or_default();
            all.retain(|s| old.as_ref().is_none_or(|old| !Arc::ptr_eq(s, &old.session)));
            if let Some(new) = new.as_ref().filter(|new| new.place.cluster == *cluster) {
                let at = all.partition_point(|s| s.name < new.name);
                all.insert(at, Arc::clone(new));
            }
            if all.is_empty() {
                self.by_cluster.remove(cluster);
            }
        }
        old
    }
}

struct Running {
    session: Arc<Session>,
    task: AbortHandle,
}

impl Running {
    fn end(&self) {
        self.task.abort();
        self.session.close();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fleet {
    /// No hosts yet. What happens is told through `wake`.
    pub fn new(agents: Agents, controller: String, epoch: Epoch, wake: mpsc::UnboundedSender<Wake>) -> Self {
        Self { agents, controller, epoch, sessions: Mutex::default(), common: Arc::default(), wake }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.sessions().by_name.values().map(|r| Arc::clone(&r.session)).collect()
    }

    fn of_cluster(&self, cluster: &str) -> Vec<Arc<Session>> {
        self.sessions().of_cluster(cluster).to_vec()
    }

    fn named(&self, name: &str) -> Option<Arc<Session>> {
        self.sessions().get(name).cloned()
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
        if let Some(session) = sessions.get(&name).filter(|s| *s.client.target() == target) {
            let mut state = session.state();
            let (link, facts) = (state.view.link.clone(), state.view.facts.clone());
            let view = view(host, &name, link, facts);
            let changed = *state.view != view;
            if changed {
                state.view = Arc::new(view);
            }
            drop(state);
            if changed {
                let _ = self.wake.send(Wake::Host(name));
            }
            return;
        }
        let client = self.agents.set(target);
        let view = view(host, &name, Link::Connecting, None);
        let session = Session::new(name.clone(), client, view, Arc::clone(&self.common), self.wake.clone());
        let task = tokio::spawn(Arc::clone(&session).run(self.controller.clone(), self.epoch.clone())).abort_handle();
        let old = sessions.set(name, Some(Running { session, task }));
        drop(sessions);
        old.iter().for_each(Running::end);
    }

    /// Forgets a host.
    pub(super) fn remove(&self, name: &str) {
        let old = self.sessions().set(name.to_owned(), None);
        if let Some(old) = old {
            old.end();
            self.agents.remove(name);
            let _ = self.wake.send(Wake::Host(name.to_owned()));
        }
    }

    /// The PVE cluster of a host.
    pub(super) fn cluster(&self, name: &str) -> Option<String> {
        self.sessions().get(name).map(|s| s.place.cluster.clone())
    }

    /// Whether a host's agent was asked and cannot be worked with.
    pub(super) fn is_down(&self, name: &str) -> bool {
        self.named(name).is_some_and(|s| matches!(s.state().view.link, Link::Down { .. }))
    }

    /// One host, with cores and memory of the VMs that run there, and its health.
    pub(super) fn host(&self, name: &str) -> Option<(Arc<HostView>, Size, HealthSight)> {
        let session = self.named(name)?;
        let state = session.state();
        Some((Arc::clone(&state.view), state.running(), state.health.clone()))
    }

    /// A VM of this name on a host is a machine's now.
    pub(super) fn taken(&self, host: &str, name: &str) {
        let (host, name) = (host.to_owned(), name.to_owned());
        let _ = self.wake.send(Wake::Vm { host, machine_uid: String::new(), uuid: String::new(), name, room: Room::Same });
    }

    /// Lets a host be looked at again.
    pub(super) fn remind(&self, host: &ObjectKey) {
        let _ = self.wake.send(Wake::Health(host.to_string()));
    }

    /// Other hosts that are listened to as the same node of the same PVE cluster.
    pub(super) fn rivals(&self, host: &PveHost) -> Vec<String> {
        let name = host.key().to_string();
        let all = self.of_cluster(&host.spec.cluster).into_iter().filter(|s| s.place.node == host.spec.node && s.name != name);
        all.map(|s| s.name.clone()).collect()
    }

    /// All hosts.
    pub fn hosts(&self) -> Vec<Arc<HostView>> {
        self.all().iter().map(|s| Arc::clone(&s.state().view)).collect()
    }

    /// The agent on this node.
    pub(super) fn session(&self, cluster: &str, node: &str) -> Option<Arc<Session>> {
        self.sessions().of_cluster(cluster).iter().find(|s| s.place.node == node).cloned()
    }

    /// Until when it is waited for all that a host's agent tells before anything is told of that ([`Session::waited_for_whole`]).
    pub(super) fn waited_for(&self, name: &str, now: Timestamp) -> Option<Timestamp> {
        self.named(name)?.waited_for_whole(now)
    }

    /// Until when hosts are asked for the first time what they have, before machines are placed. Those that do not answer while others do are waited
    /// for half a second after the last.
    pub(super) fn asking(&self, now: Timestamp) -> Option<Timestamp> {
        let quiet = self.common.answered().map(|last| last + QUIET);
        if quiet.is_some_and(|quiet| now >= quiet) {
            return None;
        }
        let sessions = self.sessions();
        let asked = sessions.by_name.values().filter_map(|r| r.session.asked_until(ASKED, now)).max()?;
        Some(quiet.map_or(asked, |quiet| quiet.min(asked)))
    }

    /// The hosts that matter to a machine (all while it is placed nowhere), and the VMs that may be its own, as the agents that are connected see
    /// them. Both of one moment for each host: a connection that is lost in between would prove that a VM is gone.
    pub(super) fn look(&self, uid: &str, status: &MachineStatus, orphan: Option<&Sighting>) -> (Vec<Arc<HostView>>, Vec<Sighting>) {
        let sessions = match &status.cluster {
            None => self.all(),
            Some(cluster) => {
                let mut clusters: BTreeSet<String> = orphan.map(|o| o.cluster.clone()).into_iter().chain([cluster.clone()]).collect();
                if !status.created {
                    // One may have been made elsewhere, before it was placed anew.
                    clusters.extend(self.common.marks.of_machine(uid).iter().filter_map(|host| self.cluster(host)));
                }
                clusters.iter().flat_map(|cluster| self.of_cluster(cluster)).collect()
            }
        };
        let (mut hosts, mut found) = (Vec::with_capacity(sessions.len()), Vec::new());
        for session in sessions {
            let state = session.state();
            hosts.push(Arc::clone(&state.view));
            if state.view.link == Link::Up {
                let vmid = status.vmid.filter(|_| status.cluster.as_ref() == Some(&state.view.cluster));
                let vms = state.vms.of_machine(uid, status.uuid.as_deref(), vmid);
                found.extend(vms.into_iter().map(|vm| sighting(&state.view, vm)));
            }
        }
        (hosts, found)
    }

    /// A VM of this name that this controller made for a machine of this tenant, and that is no machine's by now: the one with the UUID that is
    /// `wanted`, else any. What other tenants have is nobody's business here.
    pub(super) fn orphan(
        &self,
        vm_name: &str,
        tenant: &str,
        wanted: Option<&str>,
        is_somebodys: impl Fn(&VmView) -> bool,
    ) -> Option<Sighting> {
        let mut any = None;
        for session in self.common.marks.of_name(vm_name).into_iter().filter_map(|name| self.named(&name)) {
            let (view, marked) = {
                let state = session.state();
                let ours = |vm: &&Arc<VmView>| {
                    let owner =
                        vm.owner.as_ref().filter(|o| o.cluster == self.controller && o.tenant == tenant && !o.machine_uid.is_empty());
                    vm.name == vm_name && owner.is_some()
                };
                let marked: Vec<Arc<VmView>> = state.vms.all().filter(ours).cloned().collect();
                (Arc::clone(&state.view), marked)
            };
            // Asked without the lock: whoever is asked has one of his own.
            for vm in marked.into_iter().filter(|vm| view.link == Link::Up && !is_somebodys(vm)) {
                if wanted == Some(vm.uuid.as_str()) {
                    return Some(sighting(&view, vm));
                }
                any.get_or_insert_with(|| sighting(&view, vm));
            }
        }
        any
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
    pub(super) fn views(&self, hosts: &[Arc<PveHost>]) -> Vec<HostView> {
        let of = |host: &Arc<PveHost>| {
            let name = host.key().to_string();
            let known = self.named(&name).map(|s| Arc::clone(&s.state().view));
            let known = known.filter(|v| (&v.cluster, &v.node) == (&host.spec.cluster, &host.spec.node));
            let (link, facts) = known.map_or((Link::Connecting, None), |v| (v.link.clone(), v.facts.clone()));
            view(host, &name, link, facts)
        };
        hosts.iter().map(of).collect()
    }

    /// The newest order to stop a machine's VM that was carried out, on any host of its PVE cluster.
    pub(super) fn stop_order(&self, status: &MachineStatus) -> Option<(String, Timestamp)> {
        let (cluster, uuid) = (status.cluster.as_deref()?, status.uuid.as_deref()?);
        let orders = self.of_cluster(cluster).into_iter().filter_map(|s| s.state().operations.stop_of(uuid).cloned());
        orders.max_by_key(|(_, time)| *time)
    }

    /// All hosts with what is free on them, for a machine.
    pub(super) fn candidates(&self, machine: &PveMachine, index: &Index) -> Vec<Candidate> {
        let key = machine.key();
        let candidate = |session: Arc<Session>| {
            let placed = index.placed(&session.place);
            let mut state = session.state();
            let used = state.used(&placed, &key);
            let template = state.template(&machine.spec.source);
            Candidate { host: Arc::clone(&state.view), used_memory_mib: used.memory_mib, used_cores: used.cores, template }
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

#[cfg(test)]
mod tests;
