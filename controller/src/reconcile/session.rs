//! One agent, listened to for as long as its `PveHost` exists.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use pvelet_proto::{API_VERSION, reason, v1};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::{debug, info, warn};

use super::{
    Knowledge, Room, Wake,
    health::{FEATURE, HealthSight, Names},
    index::{Place, Placed},
    marks::Marks,
    operation::{OperationTable, knowledge},
    view::{Alike, Facts, HostView, Link, RunState, VmTable, VmView},
};
use crate::{
    agents::{AgentClient, AgentError, Cause, Watch},
    epoch::Epoch,
    kind::{ObjectKey, SourceSpec},
    placement::{Size, is_source},
    tls::{ServerFault, TlsError},
};

/// First pause before connecting again.
const RECONNECT_FIRST: Duration = Duration::from_millis(250);
/// Longest such pause: how late a host that came back may be noticed.
const RECONNECT_MAX: Duration = Duration::from_secs(15);
/// Ended operations to ask for after connecting: more than a host does in a day.
const HISTORY: usize = 1000;
/// The newest of these, which are kept; about an older one that matters the agent is asked.
const RECENT: usize = 64;
/// Of these in one answer.
const PAGE: u32 = 100;
/// How often operations that ended long ago are forgotten where nothing happens.
const SWEEP: Duration = Duration::from_secs(60);

/// How long what was told of a host before holds while its agent is asked for the first time. One that takes calls and does not get to tell what
/// it has is no reason to say for ever that all is well.
const FIRST_ANSWER: SignedDuration = SignedDuration::from_secs(20);

/// What is known through one agent.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) name: String,
    pub(super) client: AgentClient,
    /// Where its host is. It stays: another place is another session.
    pub(super) place: Place,
    host: Arc<str>,
    pub(super) common: Arc<Common>,
    state: Mutex<State>,
    wake: mpsc::UnboundedSender<Wake>,
    begun: Timestamp,
}

/// What all sessions share.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) marks: Marks,
    pub(super) names: Names,
    alike: Alike,
    answered: Mutex<Option<Timestamp>>,
}

impl Common {
    /// When a host that was asked for the first time answered last, or failed to.
    pub(super) fn answered(&self) -> Option<Timestamp> {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_answer(&self) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Timestamp::now());
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) view: Arc<HostView>,
    pub(super) vms: VmTable,
    pub(super) operations: OperationTable,
    pub(super) health: HealthSight,
    /// What VMs that run here and machines that are placed here take, and the revision of these machines.
    used: Option<(u64, Size)>,
    /// The session has ended for good: what is still told on it counts for nothing.
    closed: bool,
}

/// What an agent tells of its operations.
type Operations = Watch<v1::WatchOperationsResponse>;
/// What it tells of its host and the VMs there.
type Events = Watch<v1::WatchHostResponse>;

/// Why a session ended.
struct Broken {
    reason: &'static str,
    message: String,
}

impl State {
    /// Cores and memory of the VMs that run on the host.
    pub(super) fn running(&self) -> Size {
        let running = self.vms.running().filter(|vm| vm.node == self.view.node).map(|vm| Size::of(vm));
        running.fold(Size::default(), |a, b| a + b)
    }

    /// The template on this host that a source means, where there is one.
    pub(super) fn template(&self, source: &SourceSpec) -> Option<Size> {
        let here = |vm: &&Arc<VmView>| vm.node == self.view.node;
        self.vms.templates().rev().filter(here).find(|vm| is_source(source, vm)).map(|vm| Size::of(vm))
    }

    /// What they and the machines that are placed here, all but this one, take together.
    pub(super) fn used(&mut self, placed: &Placed, but: &ObjectKey) -> Size {
        let own = placed.machines.contains_key(but);
        if let Some((_, used)) = self.used.filter(|(revision, _)| *revision == placed.revision && !own) {
            return used;
        }
        let mut used = self.running();
        for (_, machine) in placed.machines.iter().filter(|(key, _)| ***key != *but) {
            // What runs has been counted with what it really has.
            if machine.uuid.as_deref().is_none_or(|uuid| !self.vms.runs(uuid, &self.view.node)) {
                used = used + machine.wish.size(self.template(&machine.source));
            }
        }
        if !own {
            self.used = Some((placed.revision, used));
        }
        used
    }
}

impl Session {
    pub(super) fn new(
        name: String,
        client: AgentClient,
        view: HostView,
        common: Arc<Common>,
        wake: mpsc::UnboundedSender<Wake>,
    ) -> Arc<Self> {
        let place = Place { cluster: view.cluster.clone(), node: view.node.clone() };
        let state = State {
            view: Arc::new(view),
            vms: VmTable::default(),
            operations: OperationTable::default(),
            health: HealthSight::default(),
            used: None,
            closed: false,
        };
        let host = name.as_str().into();
        Arc::new(Self { name, client, place, host, common, state: Mutex::new(state), wake, begun: Timestamp::now() })
    }

    /// A VM as the agent tells it.
    fn told(&self, vm: v1::Vm) -> Arc<VmView> {
        self.common.alike.share(&self.place.cluster, &self.place.node, VmView::from(vm))
    }

    /// Takes a VM into the table, or the one with this VMID out of it. Returns what was there, and what that means for those that wait for room.
    fn take(&self, state: &mut State, vmid: u32, vm: Option<Arc<VmView>>) -> (Option<Arc<VmView>>, Room) {
        if state.closed {
            return (None, Room::Same);
        }
        state.used = None;
        vm.iter().for_each(|vm| self.common.marks.add(&self.host, vm));
        let old = match &vm {
            Some(vm) => state.vms.insert(Arc::clone(vm)),
            None => state.vms.remove(vmid),
        };
        old.iter().for_each(|old| self.common.marks.remove(&self.host, old));
        let room = Room::after(old.as_deref(), vm.as_deref());
        (old, room)
    }

    /// Takes another table over.
    fn replace(&self, vms: VmTable) {
        let mut state = self.state();
        if !state.closed {
            self.put_table(&mut state, vms);
        }
    }

    fn put_table(&self, state: &mut State, vms: VmTable) {
        state.used = None;
        vms.all().for_each(|vm| self.common.marks.add(&self.host, vm));
        let old = std::mem::replace(&mut state.vms, vms);
        old.all().for_each(|vm| self.common.marks.remove(&self.host, vm));
    }

    /// The session has ended for good.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        self.put_table(&mut state, VmTable::default());
    }

    /// Whether the agent, asked for the first time not long ago, has neither answered nor failed to; until when that counts.
    pub(super) fn asked_until(&self, patience: SignedDuration, now: Timestamp) -> Option<Timestamp> {
        let until = self.begun + patience;
        ((self.begun..until).contains(&now) && self.state().view.link == Link::Connecting).then_some(until)
    }

    /// Until when the agent, which has neither answered nor failed to since it was asked first, is waited for before anything is told of that.
    pub(super) fn waited_for(&self, now: Timestamp) -> Option<Timestamp> {
        self.asked_until(FIRST_ANSWER, now)
    }

    /// The same for all that an agent tells of its host: its health and its clock too, which come a moment later.
    pub(super) fn waited_for_whole(&self, now: Timestamp) -> Option<Timestamp> {
        let until = self.begun + FIRST_ANSWER;
        let state = self.state();
        let partly = match state.view.link {
            Link::Connecting => true,
            Link::Up => !state.health.is_whole(),
            Link::Down { .. } => false,
        };
        (partly && (self.begun..until).contains(&now)).then_some(until)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tell(&self, wake: Wake) {
        // Nobody listens any more only when the process ends.
        let _ = self.wake.send(wake);
    }

    fn set_link(&self, link: Link) {
        let changed = {
            let mut state = self.state();
            let changed = state.view.link != link;
            if changed && state.view.link == Link::Up {
                state.operations.forget_active();
            }
            if changed && state.view.link == Link::Connecting {
                self.common.note_answer();
            }
            if link != Link::Up {
                state.health = HealthSight::Awaited;
            }
            Arc::make_mut(&mut state.view).link = link;
            changed
        };
        if changed {
            self.tell(Wake::Host(self.name.clone()));
        }
    }

    /// Connects, listens, and begins again, for ever.
    pub(super) async fn run(self: Arc<Self>, controller: String, epoch: Epoch) {
        let mut pause = RECONNECT_FIRST;
        loop {
            let broken = match Box::pin(self.listen(&controller, &epoch)).await {
                Ok(broken) => {
                    pause = RECONNECT_FIRST;
                    broken
                }
                Err(broken) => broken,
            };
            warn!(host = self.name, reason = broken.reason, "{}", broken.message);
            self.set_link(Link::Down { reason: broken.reason, message: broken.message });
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    /// What is needed to listen on a connection: its streams, whether health is told, and whether our epoch is announced.
    async fn begin(&self, controller: &str, epoch: &Epoch) -> Result<(Operations, Events, bool, bool), Broken> {
        let failed = |e: AgentError| broken(&e);
        let host = self.client.get_host().await.map_err(failed)?;
        self.check(&host)?;
        let mut announced = false;
        self.announce(&host, controller, epoch, &mut announced).await?;
        let (recent, since_revision) = self.history().await.map_err(failed)?;
        let request = v1::WatchOperationsRequest { tenant: String::new(), since_revision };
        let refused = |status| broken(&self.client.error(&status));
        let operations = self.client.watch(request).await.map_err(refused)?;
        let events = self.client.watch(v1::WatchHostRequest {}).await.map_err(refused)?;
        let mut state = self.state();
        // Oldest first, so that what is dropped is old.
        for operation in recent.iter().rev() {
            state.operations.insert(&self.name, operation);
        }
        Arc::make_mut(&mut state.view).facts = Some(Facts::from(&host));
        Ok((operations, events, host.features.iter().any(|f| f == FEATURE), announced))
    }

    /// One connection. `Ok` when it was of use before it broke.
    async fn listen(&self, controller: &str, epoch: &Epoch) -> Result<Broken, Broken> {
        // What is needed for a moment only is not kept for as long as the connection stands, here and below: there are a thousand of these.
        let (mut operations, mut events, health, mut announced) = Box::pin(self.begin(controller, epoch)).await?;
        let (mut table, mut operations_told) = (Some(VmTable::default()), false);
        // By itself: whatever becomes of it, VMs are worked on.
        let mut health = pin!(self.follow_health(health));
        let mut sweep = interval_at(Instant::now() + SWEEP, SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                never = &mut health => match never {},
                _ = sweep.tick() => self.state().operations.forget_old(),
                event = events.message() => match event {
                    Ok(Some(event)) => match event.event {
                        Some(v1::watch_host_response::Event::Vm(event)) => self.vm_event(event, table.as_mut()),
                        Some(v1::watch_host_response::Event::Host(host)) => {
                            self.check(&host)?;
                            Box::pin(self.announce(&host, controller, epoch, &mut announced)).await?;
                            self.take_facts(Facts::from(&host));
                        }
                        Some(v1::watch_host_response::Event::Synced(_)) => {
                            if let Some(table) = table.take() {
                                self.replace(table);
                            }
                        }
                        None => debug!(host = self.name, "an event of an unknown kind"),
                    },
                    Ok(None) => return Ok(closed()),
                    Err(status) => return Ok(broken(&self.client.error(&status))),
                },
                message = operations.message() => match message {
                    Ok(Some(v1::WatchOperationsResponse { operation: Some(operation) })) => self.operation(&operation),
                    Ok(Some(v1::WatchOperationsResponse { operation: None })) => operations_told = true,
                    Ok(None) => return Ok(closed()),
                    Err(status) => return Ok(broken(&self.client.error(&status))),
                },
            }
            if table.is_none() && operations_told && self.state().view.link != Link::Up {
                info!(host = self.name, "connected");
                self.set_link(Link::Up);
            }
        }
    }

    /// The newest operations of the agent, newest first, and the newest revision of any. Of older ones, which are read page by page, it is noted what
    /// matters for long.
    async fn history(&self) -> Result<(Vec<v1::Operation>, u64), AgentError> {
        let mut request = v1::ListOperationsRequest { page_size: PAGE, ..v1::ListOperationsRequest::default() };
        let (mut recent, mut revision, mut read) = (Vec::new(), 0, 0);
        loop {
            let page = self.client.answer(self.client.operation().list_operations(request.clone()).await)?;
            revision = page.operations.iter().map(|o| o.revision).fold(revision, u64::max);
            read += page.operations.len();
            for operation in page.operations {
                if recent.len() < RECENT {
                    recent.push(operation);
                } else {
                    self.state().operations.insert_old(&operation);
                }
            }
            if page.next_page_token.is_empty() || read >= HISTORY {
                return Ok((recent, revision));
            }
            request.page_token = page.next_page_token;
        }
    }

    fn take_facts(&self, facts: Facts) {
        let mut state = self.state();
        if state.view.facts.as_ref() != Some(&facts) {
            Arc::make_mut(&mut state.view).facts = Some(facts);
            drop(state);
            self.tell(Wake::Host(self.name.clone()));
        }
    }

    /// Whether the agent is the one that was meant, and speaks a version that is understood.
    fn check(&self, host: &v1::Host) -> Result<(), Broken> {
        let (cluster, node) = {
            let state = self.state();
            (state.view.cluster.clone(), state.view.node.clone())
        };
        if (&host.cluster, &host.node) != (&cluster, &node) {
            let message = format!(
                "the agent is on node {} of PVE cluster {}, expected {node} of {cluster}; correct spec.address, or spec.cluster and spec.node",
                host.node, host.cluster
            );
            return Err(Broken { reason: "IdentityMismatch", message });
        }
        if host.api_version != API_VERSION {
            let message = format!("the agent speaks API '{}', this controller {API_VERSION}; upgrade the older one", host.api_version);
            return Err(Broken { reason: "VersionUnsupported", message });
        }
        Ok(())
    }

    /// Makes our epoch the newest there before anything is ordered.
    async fn announce(&self, host: &v1::Host, controller: &str, epoch: &Epoch, announced: &mut bool) -> Result<(), Broken> {
        if *announced || host.mode() != v1::Mode::Manage {
            return Ok(());
        }
        let request = v1::AnnounceControllerRequest { epoch: Some(epoch.to_message(controller)) };
        self.client.answer(self.client.host().announce_controller(request).await).map_err(|e| broken(&e))?;
        *announced = true;
        Ok(())
    }

    fn vm_event(&self, event: v1::VmEvent, table: Option<&mut VmTable>) {
        let kind = event.r#type();
        let Some(vm) = event.vm.map(|vm| self.told(vm)) else { return };
        let gone = kind == v1::VmEventType::Removed;
        match table {
            Some(table) if gone => drop(table.remove(vm.vmid)),
            Some(table) => drop(table.insert(vm)),
            None => {
                let mut wake = Wake::of_vm(&self.name, &vm);
                let (old, room) = self.take(&mut self.state(), vm.vmid, (!gone).then_some(vm));
                wake.set_room(room);
                // A VMID that another VM has now concerns the machine that had it before.
                if let Some(before) = old.map(|old| Wake::of_vm(&self.name, &old)).filter(|before| !before.same_vm(&wake)) {
                    self.tell(before);
                }
                self.tell(wake);
            }
        }
    }

    /// Takes a snapshot of an operation, from the stream or from a call's answer.
    pub(super) fn operation(&self, operation: &v1::Operation) {
        let (news, stopped) = {
            let mut state = self.state();
            (state.operations.insert(&self.name, operation), operation.target.as_ref().map(|vm| vm.uuid.clone()))
        };
        if news {
            self.tell(Wake::Operation { request_id: operation.request_id.clone(), uuid: stopped.unwrap_or_default() });
        }
    }

    /// What the agent knows of the operation of a request.
    ///
    /// # Errors
    /// It could not be asked.
    pub(super) async fn look_up(&self, tenant: &str, request_id: &str) -> Result<Knowledge, AgentError> {
        let request = v1::ListOperationsRequest {
            tenant: tenant.to_owned(),
            request_id: request_id.to_owned(),
            page_size: 1,
            ..v1::ListOperationsRequest::default()
        };
        let answer = self.client.answer(self.client.operation().list_operations(request).await)?;
        let Some(operation) = answer.operations.first() else { return Ok(Knowledge::Absent) };
        self.operation(operation);
        // The stream may have told more meanwhile.
        Ok(self.state().operations.get(request_id).cloned().unwrap_or_else(|| knowledge(&self.name, operation)))
    }

    /// Reads a VM again after an operation on it, ahead of the event that will tell the same. Failing is harmless: the event comes.
    pub(super) async fn refresh(&self, vmid: u32, uuid: &str) {
        let before = self.state().vms.get(vmid);
        let request = v1::GetVmRequest { vm: Some(v1::VmRef { vmid, uuid: uuid.to_owned() }) };
        let Ok(response) = self.client.answer(self.client.vm().get_vm(request).await) else { return };
        let Some(vm) = response.vm.map(|vm| self.told(vm)) else { return };
        let mut state = self.state();
        let after = state.vms.get(vmid);
        let told_meanwhile = match (&before, &after) {
            (Some(before), Some(after)) => !Arc::ptr_eq(before, after),
            (None, None) => false,
            _ => true,
        };
        // What the stream told while this was asked is newer. What other nodes do is told by them.
        if !told_meanwhile && state.view.link == Link::Up && (vm.node == state.view.node || vm.state != RunState::Unknown) {
            let mut wake = Wake::of_vm(&self.name, &vm);
            let (_, room) = self.take(&mut state, vm.vmid, Some(vm));
            drop(state);
            // The event will tell the same, and nothing new.
            if room != Room::Same {
                wake.set_room(room);
                self.tell(wake);
            }
        }
    }
}

fn closed() -> Broken {
    Broken { reason: "ConnectionLost", message: "the agent ended the stream".to_owned() }
}

fn broken(error: &AgentError) -> Broken {
    let reason = match &error.cause {
        Cause::Connect(TlsError::Server { fault, .. }) => match fault {
            ServerFault::WrongHost { .. } | ServerFault::NoHost { .. } | ServerFault::WrongDomain { .. } => "IdentityMismatch",
            ServerFault::Expired { .. } | ServerFault::CaExpired { .. } | ServerFault::NotYetValid { .. } => "CertificateExpired",
            ServerFault::Revoked { .. } => "CertificateRevoked",
            ServerFault::UnknownCa | ServerFault::NotServer | ServerFault::Other(_) => "CertificateNotTrusted",
        },
        Cause::Connect(TlsError::Refused { .. } | TlsError::File { .. }) => "ClientCertificateRefused",
        Cause::Connect(TlsError::Address { .. }) => "AddressMalformed",
        Cause::Connect(_) | Cause::Deadline => "AgentUnreachable",
        Cause::Lost => "ConnectionLost",
        Cause::Agent | Cause::Operation => match error.reason.as_deref() {
            Some(reason::STALE_EPOCH) => "StaleEpoch",
            Some(reason::UNKNOWN_LEASE) => "UnknownLease",
            Some(reason::ROLE | reason::SCOPE_TENANT) => "NotAllowed",
            Some(reason::AGENT_DRAINING) => "AgentDraining",
            Some(reason::PVE_FS_HUNG) => "PveFileSystemHung",
            _ => "AgentFailed",
        },
    };
    Broken { reason, message: error.text() }
}

#[cfg(test)]
mod tests;
