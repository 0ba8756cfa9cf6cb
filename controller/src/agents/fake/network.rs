//! NetworkService from memory: networks, one change that waits for its confirmation, the latch, and a wire between all fakes.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard},
    time::Duration,
};

use pvelet_proto::{
    reason,
    v1::{
        self, NetworkChange, NetworkChangeState as Stage, NetworkSpec, Operation, OperationKind, OperationState, RequestMeta,
        network_service_server::NetworkService,
    },
};
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{net::Accepted, refusal};

/// Where a fake keeps its operations.
pub(crate) trait Book: Send + Sync {
    /// The operation of this request: a new one that runs, or the one that it began before (`false`).
    fn begin(&self, meta: &RequestMeta, kind: OperationKind, network: &str) -> Result<(Operation, bool), Status>;
    /// Keeps and tells it as it is now.
    fn update(&self, operation: Operation);
}

/// The network of one host.
pub(crate) struct Net {
    pub(crate) links: Vec<v1::Link>,
    pub(crate) routes: Vec<v1::Route>,
    /// What the agent's own file declares.
    pub(crate) networks: Vec<NetworkSpec>,
    pub(crate) pending: Vec<v1::PendingNetworkChange>,
    pub(crate) checks: Vec<v1::NetworkCheck>,
    pub(crate) last: Option<NetworkChange>,
    pub(crate) latched: bool,
    /// VMs on the bridges of all networks.
    pub(crate) users: Vec<u32>,
    /// Refuses plans and changes with this.
    pub(crate) refusal: Option<Status>,
    /// Changes stay under way until [`NetworkFake::go_on`].
    pub(crate) stall: bool,
    /// Changes do not pass the host's own verification.
    pub(crate) bad: bool,
    /// What is undone does not come back.
    pub(crate) stuck: bool,
    /// Frames from other hosts do not arrive here, nor ours there.
    pub(crate) deaf: bool,
    /// The largest MTU that gets through.
    pub(crate) path_mtu: u32,
    pub(crate) interface_mtu: u32,
    /// Who answers for which address.
    pub(crate) holders: HashMap<String, String>,
    /// What was asked for, in order.
    pub(crate) calls: Vec<String>,
    before: Vec<NetworkSpec>,
    operation: Option<Operation>,
    waiting_since: u64,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            links: Vec::new(),
            routes: Vec::new(),
            networks: Vec::new(),
            pending: Vec::new(),
            checks: Vec::new(),
            last: None,
            latched: false,
            users: Vec::new(),
            refusal: None,
            stall: false,
            bad: false,
            stuck: false,
            deaf: false,
            path_mtu: 65535,
            interface_mtu: 1500,
            holders: HashMap::new(),
            calls: Vec::new(),
            before: Vec::new(),
            operation: None,
            waiting_since: 0,
        }
    }
}

impl Net {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.networks.iter().any(|n| n.name == name)
    }

    /// Where the last change stands.
    pub(crate) fn stage(&self) -> Option<Stage> {
        self.last.as_ref().map(NetworkChange::state)
    }
}

/// A fake's NetworkService. Clones share everything.
#[derive(Clone)]
pub(crate) struct NetworkFake {
    net: Arc<Mutex<Net>>,
    book: Arc<dyn Book>,
}

/// The wire: who answers for a token, and whether the sender was there.
struct Line {
    answering: Option<(bool, u32)>,
    sent: Option<u32>,
}

static WIRE: LazyLock<Mutex<HashMap<String, watch::Sender<Line>>>> = LazyLock::new(Mutex::default);

fn line(token: &str) -> watch::Sender<Line> {
    let fresh = || watch::channel(Line { answering: None, sent: None }).0;
    WIRE.lock().unwrap().entry(token.to_owned()).or_insert_with(fresh).clone()
}

/// One line for each interface that differs.
fn changes(from: Option<&NetworkSpec>, to: Option<&NetworkSpec>) -> Vec<String> {
    let of = |n: Option<&NetworkSpec>| n.map(|n| n.interfaces.clone()).unwrap_or_default();
    let (old, new) = (of(from), of(to));
    let find = |all: &[v1::InterfaceSpec], name: &str| all.iter().find(|i| i.name == name).cloned();
    let gone = old.iter().filter(|i| find(&new, &i.name).is_none()).map(|i| format!("- {}", i.name));
    let now = new.iter().filter_map(|i| match find(&old, &i.name) {
        None => Some(format!("+ {}", i.name)),
        Some(before) if before != *i => Some(format!("~ {}", i.name)),
        Some(_) => None,
    });
    gone.chain(now).collect()
}

impl NetworkFake {
    pub(crate) fn new(book: Arc<dyn Book>) -> Self {
        Self { net: Arc::default(), book }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Net> {
        self.net.lock().unwrap()
    }

    fn plan(&self, wanted: Option<&NetworkSpec>, name: &str) -> Result<v1::NetworkPlan, Status> {
        let net = self.lock();
        if net.latched {
            let text = "an earlier change could not be undone: look at the host, then pveletctl network clear";
            return Err(refusal(Code::FailedPrecondition, text, reason::NETWORK_LATCHED, None));
        }
        if let Some(refusal) = &net.refusal {
            return Err(refusal.clone());
        }
        let changes = changes(net.networks.iter().find(|n| n.name == name), wanted);
        if wanted.is_none() && !changes.is_empty() && !net.users.is_empty() {
            let users: Vec<String> = net.users.iter().map(|u| format!("VM {u}")).collect();
            let mut details = ErrorDetails::new();
            details.set_error_info(reason::NETWORK_IN_USE, reason::DOMAIN, HashMap::from([("users".to_owned(), users.join(", "))]));
            return Err(Status::with_error_details(Code::FailedPrecondition, format!("network {name} is in use"), details));
        }
        let step = |line: &String| v1::NetworkStep {
            action: if line.starts_with('-') { v1::NetworkAction::Down } else { v1::NetworkAction::Up }.into(),
            interface: line[2..].to_owned(),
        };
        let file_diff = changes.iter().map(|c| format!("{}auto {}\n", &c[..1].replace('~', "+"), &c[2..])).collect();
        Ok(v1::NetworkPlan { steps: changes.iter().map(step).collect(), file_diff, changes })
    }

    fn change(&self, meta: Option<RequestMeta>, kind: OperationKind, wanted: Option<NetworkSpec>, name: &str) -> Result<Operation, Status> {
        let meta = meta.unwrap_or_default();
        let wanted = wanted.map(|n| NetworkSpec { tenant: meta.tenant.clone(), ..n });
        let verb = if wanted.is_some() { "apply" } else { "remove" };
        self.lock().calls.push(format!("{verb} {name}"));
        let plan = self.plan(wanted.as_ref(), name)?;
        let busy = self.lock().operation.is_some();
        let (mut operation, new) = self.book.begin(&meta, kind, name)?;
        if !new {
            return Ok(operation);
        }
        if busy {
            let status = refusal(Code::Aborted, "another change waits", reason::OPERATION_IN_PROGRESS, None);
            self.end(&mut operation, Some(&status));
            return Ok(operation);
        }
        if plan.steps.is_empty() {
            self.end(&mut operation, None);
            return Ok(operation);
        }
        let mut net = self.lock();
        net.before = net.networks.clone();
        net.networks.retain(|n| n.name != name);
        net.networks.extend(wanted);
        net.last = Some(NetworkChange {
            operation: operation.name.clone(),
            network: name.to_owned(),
            state: Stage::Applying.into(),
            begin_time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
            ..NetworkChange::default()
        });
        net.operation = Some(operation.clone());
        let stalls = net.stall;
        drop(net);
        let accepted = operation;
        if !stalls {
            self.go_on();
        }
        Ok(accepted)
    }

    /// The change under way is verified, and waits or is undone.
    pub(crate) fn go_on(&self) {
        if self.lock().bad {
            self.undo("agent", "verification failed: no carrier");
            return;
        }
        let operation = {
            let mut net = self.lock();
            net.waiting_since = super::net::tick();
            let deadline = prost_types::Timestamp { seconds: jiff::Timestamp::now().as_second() + 60, nanos: 0 };
            if let Some(last) = &mut net.last {
                last.state = Stage::Waiting.into();
                last.deadline = Some(deadline);
            }
            net.operation.clone()
        };
        let Some(mut operation) = operation else { return };
        operation.step = "waiting for confirmation".to_owned();
        self.lock().operation = Some(operation.clone());
        self.book.update(operation);
    }

    /// The deadline is over.
    pub(crate) fn expire(&self) {
        self.undo("timer", "nobody confirmed it in time");
    }

    fn undo(&self, by: &str, why: &str) {
        let (operation, stuck) = {
            let mut net = self.lock();
            let Some(operation) = net.operation.take() else { return };
            let stuck = net.stuck;
            net.latched |= stuck;
            if !stuck {
                net.networks = std::mem::take(&mut net.before);
            }
            if let Some(last) = &mut net.last {
                last.state = if stuck { Stage::RollbackFailed } else { Stage::RolledBack }.into();
                last.detail = why.to_owned();
                last.undone_by = by.to_owned();
            }
            (operation, stuck)
        };
        let status = if stuck {
            refusal(Code::Internal, &format!("the change could not be undone: {why}"), reason::NETWORK_ROLLBACK_FAILED, None)
        } else {
            refusal(Code::FailedPrecondition, &format!("the change was undone: {why}"), reason::NETWORK_ROLLED_BACK, None)
        };
        self.end(&mut operation.clone(), Some(&status));
    }

    fn end(&self, operation: &mut Operation, error: Option<&Status>) {
        operation.end_time = Some(prost_types::Timestamp { seconds: 1_800_000_002, nanos: 500_000_000 });
        operation.state = OperationState::Succeeded.into();
        if let Some(status) = error {
            operation.state = OperationState::Failed.into();
            let details: tonic_types::pb::Status = prost::Message::decode(status.details()).unwrap();
            operation.error = Some(tonic_types::pb::Status { code: status.code().into(), ..details });
        }
        self.book.update(operation.clone());
    }

    fn waits_for(&self, operation: &str) -> Result<bool, Status> {
        let net = self.lock();
        let missing = || refusal(Code::FailedPrecondition, &format!("{operation} does not wait"), reason::NETWORK_NOT_WAITING, None);
        let last = net.last.as_ref().filter(|l| l.operation == operation).ok_or_else(missing)?;
        match last.state() {
            Stage::Waiting => Ok(true),
            Stage::Confirmed | Stage::RolledBack => Ok(false),
            _ => Err(missing()),
        }
    }
}

#[tonic::async_trait]
impl NetworkService for NetworkFake {
    async fn get_network(&self, request: Request<v1::GetNetworkRequest>) -> Result<Response<v1::GetNetworkResponse>, Status> {
        let net = self.lock();
        let network =
            |n: &NetworkSpec| v1::Network { spec: Some(n.clone()), in_sync: true, differences: Vec::new(), vmids: net.users.clone() };
        Ok(Response::new(v1::GetNetworkResponse {
            links: net.links.clone(),
            routes: net.routes.clone(),
            networks: net.networks.iter().map(network).collect(),
            pending: net.pending.clone(),
            checks: if request.into_inner().skip_checks { Vec::new() } else { net.checks.clone() },
            last_change: net.last.clone(),
            latched: net.latched,
        }))
    }

    async fn plan_network(&self, request: Request<v1::PlanNetworkRequest>) -> Result<Response<v1::PlanNetworkResponse>, Status> {
        let request = request.into_inner();
        let wanted = request.network.map(|n| NetworkSpec { tenant: if n.tenant.is_empty() { "default".into() } else { n.tenant }, ..n });
        let name = wanted.as_ref().map_or(request.remove, |n| n.name.clone());
        let plan = self.plan(wanted.as_ref(), &name)?;
        Ok(Response::new(v1::PlanNetworkResponse { plan: Some(plan), checks: self.lock().checks.clone() }))
    }

    async fn apply_network(&self, request: Request<v1::ApplyNetworkRequest>) -> Result<Response<v1::ApplyNetworkResponse>, Status> {
        let request = request.into_inner();
        let name = request.network.clone().unwrap_or_default().name;
        let operation = self.change(request.meta, OperationKind::ApplyNetwork, request.network, &name)?;
        Ok(Response::new(v1::ApplyNetworkResponse { operation: Some(operation) }))
    }

    async fn remove_network(&self, request: Request<v1::RemoveNetworkRequest>) -> Result<Response<v1::RemoveNetworkResponse>, Status> {
        let request = request.into_inner();
        let operation = self.change(request.meta, OperationKind::RemoveNetwork, None, &request.name)?;
        Ok(Response::new(v1::RemoveNetworkResponse { operation: Some(operation) }))
    }

    async fn confirm_network(&self, request: Request<v1::ConfirmNetworkRequest>) -> Result<Response<v1::ConfirmNetworkResponse>, Status> {
        let opened = request.extensions().get::<Accepted>().unwrap().0;
        let operation = request.into_inner().operation;
        self.lock().calls.push("confirm".to_owned());
        if self.waits_for(&operation)? {
            if opened < self.lock().waiting_since {
                let text = "the connection is older than the change";
                return Err(refusal(Code::FailedPrecondition, text, reason::STALE_CONNECTION, None));
            }
            let mut ended = {
                let mut net = self.lock();
                net.last.as_mut().unwrap().state = Stage::Confirmed.into();
                net.operation.take().unwrap()
            };
            self.end(&mut ended, None);
            return Ok(Response::new(v1::ConfirmNetworkResponse { change: self.lock().last.clone(), operation: Some(ended) }));
        }
        if self.lock().stage() == Some(Stage::Confirmed) {
            return Ok(Response::new(v1::ConfirmNetworkResponse { change: self.lock().last.clone(), operation: None }));
        }
        Err(refusal(Code::FailedPrecondition, "it was undone", reason::NETWORK_NOT_WAITING, None))
    }

    async fn rollback_network(
        &self,
        request: Request<v1::RollbackNetworkRequest>,
    ) -> Result<Response<v1::RollbackNetworkResponse>, Status> {
        let operation = request.into_inner().operation;
        self.lock().calls.push("rollback".to_owned());
        if self.waits_for(&operation)? {
            self.undo("agent", "it was asked for");
        } else if self.lock().stage() == Some(Stage::Confirmed) {
            return Err(refusal(Code::FailedPrecondition, "it is confirmed", reason::NETWORK_NOT_WAITING, None));
        }
        Ok(Response::new(v1::RollbackNetworkResponse { change: self.lock().last.clone(), operation: None }))
    }

    async fn clear_network(&self, _: Request<v1::ClearNetworkRequest>) -> Result<Response<v1::ClearNetworkResponse>, Status> {
        let mut net = self.lock();
        net.calls.push("clear".to_owned());
        if !std::mem::take(&mut net.latched) {
            return Err(refusal(Code::FailedPrecondition, "nothing is latched", reason::NETWORK_NOT_WAITING, None));
        }
        Ok(Response::new(v1::ClearNetworkResponse {}))
    }

    async fn probe_network(&self, request: Request<v1::ProbeNetworkRequest>) -> Result<Response<v1::ProbeNetworkResponse>, Status> {
        use v1::probe_network_request::Probe;
        let request = request.into_inner();
        let (deaf, path_mtu, interface_mtu) = {
            let net = self.lock();
            (net.deaf, net.path_mtu, net.interface_mtu)
        };
        let limit = Duration::try_from(request.timeout.unwrap_or(prost_types::Duration { seconds: 3, nanos: 0 })).unwrap();
        let mut found = v1::ProbeNetworkResponse { interface_mtu, ..v1::ProbeNetworkResponse::default() };
        match request.probe {
            Some(Probe::Answer(v1::ProbeAnswer { token })) => {
                let line = line(&token);
                line.send_modify(|l| l.answering = Some((deaf, path_mtu)));
                let mut told = line.subscribe();
                if let Ok(Ok(line)) = timeout(limit, told.wait_for(|l| l.sent.is_some())).await {
                    found.answers = line.sent.unwrap_or(0);
                }
            }
            Some(Probe::Send(v1::ProbeSend { token, mtus })) => {
                self.lock().calls.push(format!("probe {} {}", request.interface, request.vlan));
                let line = line(&token);
                let mut told = line.subscribe();
                let peer =
                    timeout(limit, told.wait_for(|l| l.answering.is_some())).await.ok().and_then(|l| l.ok().and_then(|l| l.answering));
                let mtus = if mtus.is_empty() { vec![1280, 1500, interface_mtu] } else { mtus };
                if let Some((false, far)) = peer.filter(|_| !deaf) {
                    let through: Vec<u32> = mtus.into_iter().filter(|m| *m <= path_mtu.min(far).min(interface_mtu)).collect();
                    found.answers = u32::try_from(through.len()).unwrap();
                    found.largest_mtu = through.into_iter().max().unwrap_or(0);
                    found.rtt_us = 250;
                }
                line.send_modify(|l| l.sent = Some(found.answers));
            }
            Some(Probe::Addresses(v1::ProbeAddresses { addresses })) => {
                let net = self.lock();
                let holder = |a: String| net.holders.get(&a).map(|mac| v1::AddressHolder { address: a.clone(), mac: mac.clone() });
                found.holders = addresses.into_iter().filter_map(holder).collect();
            }
            None => return Err(Status::invalid_argument("nothing to try")),
        }
        Ok(Response::new(found))
    }
}
