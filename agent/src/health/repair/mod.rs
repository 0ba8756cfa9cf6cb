//! Repair: what the agent does about a finding, by request or by itself.
//!
//! A repair is an operation: planned from what is true now, journalled before anything is touched, verified by the checks themselves, and
//! undone where they do not get better. What it edits has the old text or the new one at any time, whoever dies in between; the next start of
//! the agent looks at what is there, and goes on or puts back.

mod automatic;
mod carry;
mod ledger;
mod plan;
mod settle;
#[cfg(test)]
mod tests;
mod undo;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pvelet_proto::{identity::Identity, v1};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

use super::{Health, Known};
use crate::{
    config::RepairPolicy,
    crash_point,
    error::Error,
    host::{record::Record, runtime::RuntimeFiles, units::Units},
    metrics::Metrics,
    operation::{AuditLine, Begin, Begun, Caller, Guards, Handle, State, canonical_meta},
    vm::{self, Call, Vms},
};

use ledger::Ledger;

/// How long a verification may take from the restart on: a container runtime with many pods needs a while to be there again.
const VERIFY: Duration = Duration::from_secs(90);

/// A file that is to be edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Where it lies.
    pub path: PathBuf,
    /// What it holds.
    pub was: String,
    /// What it is to hold.
    pub text: String,
    /// The checks that this mends.
    pub mends: Vec<&'static str>,
    /// Those of them of which something stays that only a person can mend: they will be degraded.
    pub partly: Vec<&'static str>,
}

/// Knows how containerd's configuration is mended.
#[tonic::async_trait]
pub trait Mender: Send + Sync + 'static {
    /// What would mend it, as it is now; empty: nothing is known that would. Errors: `Look`.
    async fn mend(&self) -> Result<Vec<Edit>, Error>;
}

/// The checks, as repairs need them.
#[tonic::async_trait]
pub trait Checks: Send + Sync + 'static {
    /// All, from memory.
    fn known(&self) -> Vec<Known>;

    /// One, from memory.
    fn one(&self, id: &str) -> Option<Known>;

    /// Runs checks now. Errors: `CheckNotFound`, `AgentDraining`.
    async fn run(&self, ids: &[String]) -> Result<Vec<Known>, Error>;

    /// Is told of changes.
    fn changes(&self) -> watch::Receiver<u64>;
}

#[tonic::async_trait]
impl Checks for Health {
    fn known(&self) -> Vec<Known> {
        Self::known(self)
    }

    fn one(&self, id: &str) -> Option<Known> {
        Self::one(self, id)
    }

    async fn run(&self, ids: &[String]) -> Result<Vec<Known>, Error> {
        Self::run(self, ids).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        Self::changes(self)
    }
}

/// What repairs work with.
pub struct Parts {
    /// What is found.
    pub checks: Arc<dyn Checks>,
    /// The units of systemd.
    pub units: Arc<dyn Units>,
    /// containerd's files.
    pub files: Arc<dyn RuntimeFiles>,
    /// Knows how they are mended.
    pub mender: Arc<dyn Mender>,
    /// Where it is kept what repairs came to.
    pub record: Arc<dyn Record>,
    /// Counts them.
    pub metrics: Arc<Metrics>,
}

/// What is configured about repairs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the agent may mend.
    pub policy: RepairPolicy,
    /// Automatic repairs in an hour.
    pub limit_per_hour: u32,
    /// How long a check must be failed before the agent mends it by itself.
    pub patience: Duration,
    /// containerd's unit.
    pub containerd_unit: String,
    /// Who the agent is, for what it does by itself.
    pub identity: Identity,
}

/// The repairs of this host. Cheap to clone.
#[derive(Clone)]
pub struct Repairs {
    inner: Arc<Inner>,
}

struct Inner {
    /// For operations and the mode.
    vms: Vms,
    parts: Parts,
    settings: Settings,
    ledger: Mutex<Ledger>,
    /// One write of the ledger at a time, in their order.
    saving: tokio::sync::Mutex<()>,
    changed: watch::Sender<()>,
    /// Wakes what repairs by itself.
    wake: Notify,
}

impl Repairs {
    /// Reads what earlier repairs came to. Where that cannot be read, repairs are latched: two may have failed.
    pub async fn open(vms: &Vms, parts: Parts, settings: Settings) -> Self {
        let ledger = match parts.record.load().await {
            Ok(bytes) => Ledger::read(bytes.as_deref()),
            Err(error) => Ledger::unreadable(&error.to_string()),
        };
        let (saving, changed, wake) = (tokio::sync::Mutex::default(), watch::channel(()).0, Notify::new());
        Self { inner: Arc::new(Inner { vms: vms.clone(), parts, settings, ledger: Mutex::new(ledger), saving, changed, wake }) }
    }

    /// Looks anew for what to repair: the mode may have changed.
    pub fn look_again(&self) {
        self.inner.wake.notify_one();
    }

    /// Whether anything is changed. Errors: `ObserveOnly`.
    pub fn require_manage(&self) -> Result<(), Error> {
        if self.inner.manages() { Ok(()) } else { Err(Error::ObserveOnly) }
    }

    /// Goes on with the repair that the last run of the agent left unfinished. To be called once, before calls are served. It waits neither for
    /// PVE nor for the mode: what is half mended is put right first.
    pub fn settle(&self) {
        Inner::settle(&self.inner);
    }

    /// Repairs by itself, where the policy says so, until it is aborted.
    pub fn automatic(&self) -> AbortHandle {
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move { Inner::automatic(&inner).await }).abort_handle()
    }

    /// Begins a repair, or tells what one would do. Errors: those of `HealthService.Repair`.
    pub async fn repair(&self, caller: &Caller, request: v1::RepairRequest) -> Result<v1::RepairResponse, Error> {
        if request.dry_run {
            let plan = self.inner.plan(&request.check).await?;
            return Ok(v1::RepairResponse { operation: None, plan: Some(plan.shown()) });
        }
        Inner::ask(&self.inner, caller, request, false).await
    }

    /// Ends the latch that two failed repairs in a row left. Errors: those of `HealthService.ClearRepair`.
    pub async fn clear(&self, caller: &Caller, request: v1::ClearRepairRequest) -> Result<v1::ClearRepairResponse, Error> {
        let result = self.inner.clear(request.meta.as_ref()).await;
        let meta = request.meta.unwrap_or_default();
        self.inner.vms.inner.ops.audit(&AuditLine {
            time: jiff::Timestamp::now().to_string(),
            caller: caller.identity.to_string(),
            tenant: meta.tenant,
            action: "CLEAR_REPAIR".to_owned(),
            target: "repairs of the host".to_owned(),
            decision: if result.is_ok() { "succeeded" } else { "refused" }.to_owned(),
            reason: result.as_ref().err().map(Error::reason).unwrap_or_default().to_owned(),
            operation: String::new(),
            request_id: meta.request_id,
            duration_ms: 0,
        });
        result.map(|was_latched| v1::ClearRepairResponse { was_latched })
    }

    /// What repairs may do, and have done. From memory.
    pub fn status(&self) -> v1::RepairStatus {
        let policy = match self.inner.settings.policy {
            RepairPolicy::Off => v1::RepairPolicy::Off,
            RepairPolicy::OnRequest => v1::RepairPolicy::OnRequest,
            RepairPolicy::Automatic => v1::RepairPolicy::Automatic,
        };
        let now = self.inner.vms.inner.ops.unix_millis();
        let ledger = self.inner.ledger();
        v1::RepairStatus {
            policy: policy.into(),
            latched: ledger.latched.is_some(),
            latch_reason: ledger.latched.clone().unwrap_or_default(),
            in_last_hour: ledger.in_last_hour(now),
            limit_per_hour: self.inner.settings.limit_per_hour,
            last_operation: ledger.last_operation.clone(),
        }
    }

    /// Is told when [`Repairs::status`] has changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }
}

impl Inner {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn manages(&self) -> bool {
        self.vms.inner.repairs()
    }

    /// Changes what is known of earlier repairs, in memory and on the disk. Errors: `Look`; it is changed in memory then, too.
    async fn note(&self, change: impl FnOnce(&mut Ledger)) -> Result<(), Error> {
        let _one = self.saving.lock().await;
        let bytes = {
            let mut ledger = self.ledger();
            change(&mut ledger);
            ledger.bytes()
        };
        self.changed.send_replace(());
        self.parts.record.save(&bytes).await
    }

    async fn clear(&self, meta: Option<&v1::RequestMeta>) -> Result<bool, Error> {
        vm::validate::meta(meta)?;
        self.vms.inner.ops.check_epoch(&meta.cloned().unwrap_or_default())?;
        let was = self.ledger().latched.is_some();
        self.note(Ledger::clear).await.map_err(|e| Error::Internal(format!("the latch is cleared until the agent restarts: {e}")))?;
        self.wake.notify_one();
        Ok(was)
    }

    /// Begins a repair.
    async fn ask(this: &Arc<Self>, caller: &Caller, request: v1::RepairRequest, automatic: bool) -> Result<v1::RepairResponse, Error> {
        let meta = request.meta.clone();
        let canonical = v1::RepairRequest { meta: meta.as_ref().map(canonical_meta), ..request };
        let kind = v1::OperationKind::Repair;
        let call = this.vms.call(caller, kind, canonical.meta.as_ref(), meta.as_ref(), v1::VmRef::default(), &canonical)?;
        let accept = Self::accept(this, &call, &canonical.check, automatic);
        let operation = vm::Inner::answer_if(&this.vms.inner, this.manages(), &call, accept).await?;
        let state = this.vms.inner.ops.state_of(&operation.name)?;
        Ok(v1::RepairResponse { plan: Some(plan::of_state(&state.repair)), operation: Some(operation) })
    }

    /// Errors: `RepairOff`, `RepairLatched`.
    fn allowed(&self, check: &str) -> Result<(), Error> {
        if self.settings.policy == RepairPolicy::Off {
            return Err(Error::RepairOff { what: check.chars().take(128).collect(), policy: "off" });
        }
        self.ledger().latched.clone().map_or(Ok(()), |why| Err(Error::RepairLatched { why }))
    }

    /// Plans it and begins the operation; returns its name.
    async fn accept(this: &Arc<Self>, call: &Call, check: &str, automatic: bool) -> Result<String, Error> {
        this.allowed(check)?;
        let plan = this.plan(check).await?;
        let begin = Begin {
            caller: &call.caller,
            meta: &call.meta,
            kind: call.kind,
            body: call.body.clone(),
            target: v1::VmRef::default(),
            guards: Guards { exclusive: vec![Guards::repair()], shared: Vec::new() },
            lease: None,
            state: State { repair: plan.state(automatic), ..State::default() },
        };
        match this.vms.inner.ops.begin(begin)? {
            Begun::Existing(name) => Ok(name),
            Begun::New(h) => {
                let name = h.name().to_owned();
                let (inner, handle) = (Arc::clone(this), h.clone());
                Self::spawn(this, h, async move {
                    if handle.written().await.is_err() {
                        return;
                    }
                    crash_point!("repair.intent_written");
                    let result = Box::pin(inner.begin(&handle, &plan.edits)).await;
                    inner.end(&handle, result).await;
                });
                Ok(name)
            }
        }
    }

    /// From the first note of it to its end.
    async fn begin(&self, h: &Handle, edits: &[Edit]) -> Result<(), Error> {
        // Another may have ended between the look at the latch and the guard.
        let state = h.state().repair;
        self.allowed(&state.check)?;
        h.commit("the host is being repaired")?;
        let (name, now) = (h.name().to_owned(), self.vms.inner.ops.unix_millis());
        let noted = self.note(|ledger| ledger.begun(&name, state.automatic.then(|| automatic::key(&state)), now)).await;
        if let Err(error) = noted {
            // By itself the agent does only what it can count.
            if state.automatic {
                return Err(Error::RepairFailed { why: format!("it cannot be counted: {error}") });
            }
            tracing::warn!(%error, operation = name, "what repairs come to is kept in memory only");
        }
        self.carry_out(h, edits).await
    }

    /// Ends the operation, and counts how it went.
    async fn end(&self, h: &Handle, result: Result<(), Error>) {
        let label = match &result {
            Ok(()) => "succeeded",
            Err(Error::RepairFailed { .. }) => "failed",
            Err(Error::RepairRestoreFailed { .. }) => "restore_failed",
            Err(Error::RepairChanged { .. }) => "changed",
            Err(_) => "given_up",
        };
        let name = h.name().to_owned();
        let noted = self.note(|ledger| ledger.ended(&name, &result)).await;
        if let Err(error) = noted {
            tracing::error!(%error, operation = name, "what the repair came to is kept in memory only");
        }
        self.parts.metrics.repaired(label, h.state().repair.automatic);
        crash_point!("repair.counted");
        h.finish(result, None).await;
        self.wake.notify_one();
        crash_point!("repair.end_written");
    }

    /// Runs `work` detached. If it panics, the operation is settled as if the agent had been restarted.
    fn spawn(this: &Arc<Self>, handle: Handle, work: impl Future<Output = ()> + Send + 'static) {
        let this = Arc::clone(this);
        let task = tokio::spawn(work);
        tokio::spawn(async move {
            if !task.await.is_err_and(|e| e.is_panic()) {
                return;
            }
            tracing::error!(operation = handle.name(), "a repair met a fault of the agent; it is settled");
            let (inner, h) = (Arc::clone(&this), handle.clone());
            let settling = tokio::spawn(async move { Box::pin(inner.settle_one(&h)).await });
            if settling.await.is_err_and(|e| e.is_panic()) {
                let why = "a fault of the agent, see its log".to_owned();
                this.end(&handle, Err(Error::RepairRestoreFailed { why })).await;
            }
        });
    }
}
