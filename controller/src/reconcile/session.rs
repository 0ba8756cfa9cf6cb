//! One agent, listened to for as long as its `PveHost` exists.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use pvelet_proto::{API_VERSION, reason, v1};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{
    Knowledge, Wake,
    health::{FEATURE, HealthSight},
    operation::{OperationTable, knowledge},
    view::{Facts, HostView, Link, RunState, VmTable, VmView},
};
use crate::{
    agents::{AgentClient, AgentError, Cause},
    epoch::Epoch,
    tls::{ServerFault, TlsError},
};

/// First pause before connecting again.
const RECONNECT_FIRST: Duration = Duration::from_millis(250);
/// Longest such pause: how late a host that came back may be noticed.
const RECONNECT_MAX: Duration = Duration::from_secs(15);
/// Ended operations to ask for after connecting: more than a host does in a day.
const HISTORY: usize = 1000;

/// How long what was told of a host before holds while its agent is asked for the first time. One that takes calls and does not get to tell what
/// it has is no reason to say for ever that all is well.
const FIRST_ANSWER: SignedDuration = SignedDuration::from_secs(20);

/// What is known through one agent.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) name: String,
    pub(super) client: AgentClient,
    state: Mutex<State>,
    wake: mpsc::UnboundedSender<Wake>,
    begun: Timestamp,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) view: HostView,
    pub(super) vms: VmTable,
    pub(super) operations: OperationTable,
    pub(super) health: HealthSight,
}

/// Why a session ended.
struct Broken {
    reason: &'static str,
    message: String,
}

impl Session {
    pub(super) fn new(name: String, client: AgentClient, view: HostView, wake: mpsc::UnboundedSender<Wake>) -> Arc<Self> {
        let state = State { view, vms: VmTable::default(), operations: OperationTable::default(), health: HealthSight::default() };
        Arc::new(Self { name, client, state: Mutex::new(state), wake, begun: Timestamp::now() })
    }

    /// Until when the agent, which has neither answered nor failed to since it was asked first, is waited for before anything is told of that.
    pub(super) fn waited_for(&self, now: Timestamp) -> Option<Timestamp> {
        let until = self.begun + FIRST_ANSWER;
        // A clock that was set back prolongs nothing.
        (self.state().view.link == Link::Connecting && (self.begun..until).contains(&now)).then_some(until)
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
            if link != Link::Up {
                state.health = HealthSight::Awaited;
            }
            state.view.link = link;
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

    /// One connection. `Ok` when it was of use before it broke.
    async fn listen(&self, controller: &str, epoch: &Epoch) -> Result<Broken, Broken> {
        let failed = |e: AgentError| broken(&e);
        let host = self.client.get_host().await.map_err(failed)?;
        self.check(&host)?;
        let mut announced = false;
        self.announce(&host, controller, epoch, &mut announced).await?;
        let history = self.client.list_operations("", false, HISTORY).await.map_err(failed)?;
        let since_revision = history.iter().map(|o| o.revision).max().unwrap_or(0);
        let request = v1::WatchOperationsRequest { tenant: String::new(), since_revision };
        let mut operations = self.client.answer(self.client.operation().watch_operations(request).await).map_err(failed)?;
        let mut events = self.client.answer(self.client.host().watch_host(v1::WatchHostRequest {}).await).map_err(failed)?;
        {
            let mut state = self.state();
            // Oldest first, so that what is dropped is old.
            for operation in history.iter().rev() {
                state.operations.insert(&self.name, operation);
            }
            state.view.facts = Some(Facts::from(&host));
        }
        let (mut table, mut operations_told) = (Some(VmTable::default()), false);
        // By itself: whatever becomes of it, VMs are worked on.
        let mut health = pin!(self.follow_health(host.features.iter().any(|f| f == FEATURE)));
        loop {
            tokio::select! {
                never = &mut health => match never {},
                event = events.message() => match event {
                    Ok(Some(event)) => match event.event {
                        Some(v1::watch_host_response::Event::Vm(event)) => self.vm_event(event, table.as_mut()),
                        Some(v1::watch_host_response::Event::Host(host)) => {
                            self.check(&host)?;
                            self.announce(&host, controller, epoch, &mut announced).await?;
                            self.state().view.facts = Some(Facts::from(&host));
                            self.tell(Wake::Host(self.name.clone()));
                        }
                        Some(v1::watch_host_response::Event::Synced(_)) => {
                            if let Some(table) = table.take() {
                                self.state().vms = table;
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
        let Some(vm) = event.vm.map(VmView::from) else { return };
        let wake = Wake::of_vm(&self.name, &vm);
        match table {
            Some(table) if kind == v1::VmEventType::Removed => drop(table.remove(vm.vmid)),
            Some(table) => drop(table.insert(vm)),
            None => {
                let mut state = self.state();
                let old = if kind == v1::VmEventType::Removed { state.vms.remove(vm.vmid) } else { state.vms.insert(vm) };
                drop(state);
                // A VMID that another VM has now concerns the machine that had it before.
                if let Some(before) = old.map(|old| Wake::of_vm(&self.name, &old)).filter(|before| *before != wake) {
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
        let Some(vm) = response.vm.map(VmView::from) else { return };
        let mut state = self.state();
        let after = state.vms.get(vmid);
        let told_meanwhile = match (&before, &after) {
            (Some(before), Some(after)) => !Arc::ptr_eq(before, after),
            (None, None) => false,
            _ => true,
        };
        // What the stream told while this was asked is newer. What other nodes do is told by them.
        if !told_meanwhile && state.view.link == Link::Up && (vm.node == state.view.node || vm.state != RunState::Unknown) {
            state.vms.insert(vm);
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
            ServerFault::Expired { .. } | ServerFault::NotYetValid { .. } => "CertificateExpired",
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
