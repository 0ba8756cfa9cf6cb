//! HealthService from memory: checks that tests set, one plan that mends them all, the latch.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::{Stream, stream};
use pvelet_proto::{
    reason,
    v1::{self, CheckState, Health, HealthCheck, OperationKind, OperationState, health_service_server::HealthService},
};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use super::{network::Book, refusal};

/// When all of a fake's checks were seen.
pub(crate) const NOW: i64 = 1_800_000_000;

/// The health of one host.
pub(crate) struct Host {
    pub(crate) health: Health,
    pub(crate) plan: v1::RepairPlan,
    /// Refuses repairs that are no dry run with this.
    pub(crate) refusal: Option<Status>,
    /// Repairs do not help, and are undone.
    pub(crate) useless: bool,
    /// The agent is one that does not have this service.
    pub(crate) old: bool,
    /// Checks that are run never come to their end.
    pub(crate) hanging: bool,
    /// The host's clock is so many seconds ahead of ours; nothing for one that always says [`NOW`].
    pub(crate) ahead: Option<i64>,
    /// What was asked for, in order.
    pub(crate) calls: Vec<String>,
}

/// A fake's HealthService. Clones share everything.
#[derive(Clone)]
pub(crate) struct HealthFake {
    state: Arc<Mutex<Host>>,
    changed: watch::Sender<u64>,
    /// Ends the open streams.
    cut: watch::Sender<u64>,
    book: Arc<dyn Book>,
}

/// A check that was seen in this state for 90 s.
pub(crate) fn check(id: &str, state: CheckState) -> HealthCheck {
    let group = id.split('.').next().unwrap_or_default();
    let bad = matches!(state, CheckState::Failed | CheckState::Degraded | CheckState::Unknown);
    HealthCheck {
        id: id.to_owned(),
        group: if id.starts_with("net.") { "network" } else { group }.to_owned(),
        state: state.into(),
        since: Some(prost_types::Timestamp { seconds: NOW - 90, nanos: 0 }),
        observe_time: Some(prost_types::Timestamp { seconds: NOW, nanos: 0 }),
        seen: if bad { format!("{id} is not as it should be") } else { String::new() },
        why: format!("{id} matters"),
        remedy: if bad { format!("put {id} right") } else { String::new() },
        ..HealthCheck::default()
    }
}

impl HealthFake {
    pub(crate) fn new(book: Arc<dyn Book>) -> Self {
        let checks = [
            ("containerd.responding", CheckState::Ok),
            ("containerd.runtime-type", CheckState::Ok),
            ("kubelet.healthz", CheckState::NotApplicable),
            ("host.quorum", CheckState::Ok),
            ("net.source-line", CheckState::Ok),
            ("agent.journal", CheckState::Ok),
        ];
        let health = Health {
            state: CheckState::Ok.into(),
            since: Some(prost_types::Timestamp { seconds: NOW - 90, nanos: 0 }),
            checks: checks.map(|(id, state)| check(id, state)).to_vec(),
            repair: Some(v1::RepairStatus { policy: v1::RepairPolicy::OnRequest.into(), limit_per_hour: 2, ..Default::default() }),
            time: Some(prost_types::Timestamp { seconds: NOW, nanos: 0 }),
        };
        let state = Host {
            health,
            plan: v1::RepairPlan::default(),
            refusal: None,
            useless: false,
            old: false,
            hanging: false,
            ahead: None,
            calls: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), changed: watch::channel(0).0, cut: watch::channel(0).0, book }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Host> {
        self.state.lock().unwrap()
    }

    /// Puts a check in, or changes it, and tells those who watch.
    pub(crate) fn set(&self, check: HealthCheck) {
        self.lock().put(check);
        self.tell();
    }

    pub(crate) fn tell(&self) {
        self.changed.send_modify(|revision| *revision += 1);
    }

    /// Ends the streams that are open.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    /// Whether somebody watches.
    pub(crate) fn watched(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    fn here(&self) -> Result<MutexGuard<'_, Host>, Status> {
        let state = self.lock();
        // As tonic answers for a service that it does not have.
        if state.old { Err(Status::unimplemented("")) } else { Ok(state) }
    }
}

impl Host {
    pub(crate) fn put(&mut self, check: HealthCheck) {
        match self.health.checks.iter_mut().find(|c| c.id == check.id) {
            Some(known) => *known = check,
            None => self.health.checks.push(check),
        }
        let worst = |state: CheckState| self.health.checks.iter().any(|c| c.state() == state);
        let state = match () {
            () if worst(CheckState::Failed) => CheckState::Failed,
            () if worst(CheckState::Degraded) || worst(CheckState::Unknown) => CheckState::Degraded,
            () => CheckState::Ok,
        };
        self.health.state = state.into();
    }

    fn now(&self) -> Health {
        let time = self.ahead.map(|ahead| {
            let now = jiff::Timestamp::now();
            prost_types::Timestamp { seconds: now.as_second() + ahead, nanos: now.subsec_nanosecond() }
        });
        Health { time: time.or(self.health.time), ..self.health.clone() }
    }
}

#[tonic::async_trait]
impl HealthService for HealthFake {
    type WatchHealthStream = Pin<Box<dyn Stream<Item = Result<v1::WatchHealthResponse, Status>> + Send>>;

    async fn get_health(&self, request: Request<v1::GetHealthRequest>) -> Result<Response<v1::GetHealthResponse>, Status> {
        let groups = request.into_inner().groups;
        let mut health = self.here()?.now();
        health.checks.retain(|c| groups.is_empty() || groups.contains(&c.group));
        Ok(Response::new(v1::GetHealthResponse { health: Some(health) }))
    }

    async fn watch_health(&self, _: Request<v1::WatchHealthRequest>) -> Result<Response<Self::WatchHealthStream>, Status> {
        drop(self.here()?);
        let mut changes = self.changed.subscribe();
        changes.mark_changed();
        let start = (self.clone(), changes, self.cut.subscribe(), None::<Vec<HealthCheck>>);
        let stream = stream::unfold(start, |(fake, mut changes, mut cut, told)| async move {
            tokio::select! {
                biased;
                _ = cut.changed() => return None,
                changed = changes.changed() => changed.ok()?,
            }
            let revision = *changes.borrow_and_update();
            let mut health = fake.lock().now();
            let all = health.checks.clone();
            if let Some(told) = &told {
                health.checks.retain(|c| !told.contains(c));
            }
            let message = v1::WatchHealthResponse { revision, health: Some(health), complete: told.is_none() };
            Some((Ok(message), (fake, changes, cut, Some(all))))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn run_check(&self, request: Request<v1::RunCheckRequest>) -> Result<Response<v1::RunCheckResponse>, Status> {
        let wanted = request.into_inner().checks;
        let hanging = {
            let mut state = self.here()?;
            state.calls.push(format!("run {}", wanted.join(" ")));
            state.hanging
        };
        if hanging {
            std::future::pending::<()>().await;
        }
        let state = self.here()?;
        let fits = |c: &HealthCheck, w: &String| c.id == *w || c.group == *w;
        if let Some(unknown) = wanted.iter().find(|w| !state.health.checks.iter().any(|c| fits(c, w))) {
            let text = format!("there is no check '{unknown}' here");
            return Err(refusal(Code::NotFound, &text, reason::CHECK_NOT_FOUND, None));
        }
        let checks = state.health.checks.iter().filter(|c| wanted.iter().any(|w| fits(c, w))).cloned().collect();
        Ok(Response::new(v1::RunCheckResponse { checks }))
    }

    async fn repair(&self, request: Request<v1::RepairRequest>) -> Result<Response<v1::RepairResponse>, Status> {
        let request = request.into_inner();
        let plan = {
            let mut state = self.here()?;
            let known = state.health.checks.iter().find(|c| c.id == request.check).cloned();
            let unknown = || refusal(Code::NotFound, &format!("there is no check '{}' here", request.check), reason::CHECK_NOT_FOUND, None);
            let known = known.ok_or_else(unknown)?;
            if known.repair.is_empty() {
                let text = format!("nothing is known that mends {}", known.id);
                return Err(refusal(Code::FailedPrecondition, &text, reason::REPAIR_NOT_POSSIBLE, None));
            }
            if request.dry_run {
                return Ok(Response::new(v1::RepairResponse { operation: None, plan: Some(state.plan.clone()) }));
            }
            if let Some(refusal) = &state.refusal {
                return Err(refusal.clone());
            }
            state.calls.push(format!("repair {}", request.check));
            state.plan.clone()
        };
        let meta = request.meta.unwrap_or_default();
        let (mut operation, new) = self.book.begin(&meta, OperationKind::Repair, "")?;
        operation.check.clone_from(&request.check);
        let accepted = operation.clone();
        if new {
            let mut state = self.lock();
            if state.useless {
                operation.state = OperationState::Failed.into();
                let message = "the check did not get better; what was changed is undone".to_owned();
                operation.error = Some(tonic_types::pb::Status { code: Code::Internal.into(), message, details: vec![] });
            } else {
                operation.state = OperationState::Succeeded.into();
                for id in &plan.checks {
                    state.put(HealthCheck { seen: "mended".to_owned(), ..check(id, CheckState::Ok) });
                }
            }
            drop(state);
            operation.end_time = operation.create_time.map(|t| prost_types::Timestamp { seconds: t.seconds + 1, ..t });
            self.book.update(operation);
            self.tell();
        }
        Ok(Response::new(v1::RepairResponse { operation: Some(accepted), plan: Some(plan) }))
    }

    async fn clear_repair(&self, _: Request<v1::ClearRepairRequest>) -> Result<Response<v1::ClearRepairResponse>, Status> {
        let mut state = self.here()?;
        state.calls.push("clear".to_owned());
        let repair = state.health.repair.get_or_insert_default();
        let was_latched = std::mem::take(&mut repair.latched);
        Ok(Response::new(v1::ClearRepairResponse { was_latched }))
    }
}
