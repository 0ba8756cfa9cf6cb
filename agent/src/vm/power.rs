//! StartVm, ShutdownVm, StopVm, ResetVm. What counts is the run state afterwards, not how PVE's task ended: for an HA-managed VM the task only
//! queues a request, and the VM may come up on another node.

use std::{sync::Arc, time::Duration};

use prost::Message;
use pvelet_proto::{reason, v1};
use tokio::{sync::broadcast::error::RecvError, time::Instant};

use super::{
    Call, Inner, Limit,
    failure::{Failed, lock_timeout},
    task::Backoff,
};
use crate::{
    crash_point,
    error::Error,
    host::pve::{PowerCall, RunState, TaskEnd, Upid, VmRecord},
    operation::{Begin, Begun, Guards, Handle, State},
};

/// What a guest gets when the caller does not say.
const SHUTDOWN_DEFAULT: Duration = Duration::from_secs(180);
/// Shortest and longest time that a guest may get.
const SHUTDOWN_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// What the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// That it runs.
    Start,
    /// That the guest shuts down within the time, or is stopped after it.
    Shutdown {
        /// The guest's time.
        timeout: Duration,
        /// Whether to stop it then.
        force: bool,
    },
    /// That it does not run.
    Stop,
    /// A reset.
    Reset,
}

impl Wish {
    /// Of a shutdown request. Errors: `Invalid`.
    pub(super) fn shutdown(request: &v1::ShutdownVmRequest) -> Result<Self, Error> {
        let timeout = match &request.timeout {
            None => SHUTDOWN_DEFAULT,
            Some(d) => Duration::try_from(*d).ok().filter(|d| (SHUTDOWN_RANGE.0..=SHUTDOWN_RANGE.1).contains(d)).ok_or_else(|| {
                let text = format!("{}.{:09} s is outside 1 s to 1 h; leave it unset for 180 s", d.seconds, d.nanos.unsigned_abs());
                Error::invalid("timeout", reason::INVALID_FIELD, text)
            })?,
        };
        Ok(Self::Shutdown { timeout, force: request.force_stop })
    }

    /// Of a journalled request.
    pub(super) fn decode(kind: v1::OperationKind, request: &[u8]) -> Result<Self, Error> {
        match kind {
            v1::OperationKind::StartVm => Ok(Self::Start),
            v1::OperationKind::StopVm => Ok(Self::Stop),
            v1::OperationKind::ResetVm => Ok(Self::Reset),
            _ => Self::shutdown(
                &v1::ShutdownVmRequest::decode(request)
                    .map_err(|e| Error::Internal(format!("the journalled request cannot be read: {e}")))?,
            ),
        }
    }

    fn call(self) -> PowerCall {
        match self {
            Self::Start => PowerCall::Start,
            Self::Stop => PowerCall::Stop,
            Self::Reset => PowerCall::Reset,
            Self::Shutdown { timeout, force } => {
                PowerCall::Shutdown { timeout_s: u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX), force }
            }
        }
    }

    /// PVE's task types for it, without and with HA.
    fn kinds(self) -> &'static [&'static str] {
        match self {
            Self::Start => &["qmstart", "hastart"],
            Self::Stop => &["qmstop", "hastop"],
            Self::Reset => &["qmreset"],
            Self::Shutdown { .. } => &["qmshutdown", "hastop"],
        }
    }

    fn step(self) -> &'static str {
        match self {
            Self::Start => "starting",
            Self::Stop => "stopping",
            Self::Reset => "resetting",
            Self::Shutdown { .. } => "shutting down",
        }
    }
}

fn runs(vm: &VmRecord) -> bool {
    matches!(vm.run, RunState::Running { .. } | RunState::Paused { .. })
}

/// Whether the wish is fulfilled by how the VM is now. A reset never is: it leaves no trace.
fn fulfilled(wish: Wish, vm: &VmRecord) -> bool {
    match wish {
        Wish::Start => runs(vm),
        Wish::Stop | Wish::Shutdown { .. } => vm.run == RunState::Stopped,
        Wish::Reset => false,
    }
}

impl Inner {
    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_power(this: &Arc<Self>, call: &Call, wish: Wish) -> Result<String, Error> {
        let vm = this.target(call).await?;
        let vmid = vm.vmid;
        if vm.config.is_template() && wish != Wish::Stop {
            return Err(Error::VmIsTemplate { vmid });
        }
        if wish == Wish::Reset && !runs(&vm) {
            return Err(Error::VmNotRunning { vmid });
        }
        if !fulfilled(wish, &vm) {
            // A suspended VM is resumed by a start; every other lock forbids it.
            if let Some(lock) = vm.config.lock().filter(|lock| !(*lock == "suspended" && wish == Wish::Start)) {
                return Err(Error::VmLocked { vmid, lock: lock.to_owned() });
            }
            if wish == Wish::Start && this.pve.inventory().maintenance {
                return Err(Error::HostShuttingDown { node: this.settings.node.clone() });
            }
        }
        let uuid = call.target.uuid.to_ascii_lowercase();
        let begin = Begin {
            caller: &call.caller,
            meta: &call.meta,
            kind: call.kind,
            body: call.body.clone(),
            target: v1::VmRef { vmid, uuid: uuid.clone() },
            guards: Guards { exclusive: vec![Guards::vm(vmid)], shared: Vec::new() },
            lease: None,
            state: State { vmid, uuid, ..State::default() },
        };
        match this.ops.begin(begin)? {
            Begun::Existing(name) => Ok(name),
            Begun::New(h) => {
                let name = h.name().to_owned();
                let inner = Arc::clone(this);
                Self::spawn(this, h.clone(), async move {
                    if h.written().await.is_ok() {
                        crash_point!("power.intent_written");
                        inner.run_power(&h, wish, true).await;
                    }
                });
                Ok(name)
            }
        }
    }

    /// Carries it out, or goes on with it.
    pub(super) async fn run_power(&self, h: &Handle, wish: Wish, fresh: bool) {
        let extra = if let Wish::Shutdown { timeout, .. } = wish { timeout } else { Duration::ZERO };
        let limit = Self::deadline(self.ops.settings().deadlines.power + extra);
        let result = match h.commit("PVE is being asked") {
            Err(cancelled) => Err(cancelled),
            Ok(()) if fresh => Box::pin(self.power(h, wish, limit)).await,
            Ok(()) => Box::pin(self.power_found(h, wish, limit)).await,
        };
        crash_point!("power.before_end");
        h.finish(result, None).await;
        crash_point!("power.end_written");
    }

    /// Brings a VM into the wanted run state.
    pub(super) async fn power(&self, h: &Handle, wish: Wish, limit: Limit) -> Result<(), Error> {
        let state = h.state();
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let vm = self.same_vm(h, state.vmid, &state.uuid, limit).await?;
            if fulfilled(wish, &vm) {
                return Ok(());
            }
            h.step(wish.step());
            let called = Instant::now();
            let power = wish.call();
            let upid = self
                .start_task(h, wish.step(), wish.kinds(), &state.vmid.to_string(), limit, || self.pve.power(state.vmid, &power))
                .await?;
            crash_point!("power.called");
            match self.power_task(h, wish, &upid, called, limit).await? {
                None => return Ok(()),
                Some(what) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
            }
        }
    }

    /// Goes on after a restart of the agent: a task that runs is followed; without one, only what is true already counts.
    async fn power_found(&self, h: &Handle, wish: Wish, limit: Limit) -> Result<(), Error> {
        let state = h.state();
        let recorded = state.task(wish.step()).and_then(|t| Upid::parse(&t.upid));
        let upid = match recorded {
            Some(upid) => Some(upid),
            None => {
                let since = h.accepted_at().saturating_sub(1);
                self.find_lost(h, wish.kinds(), &state.vmid.to_string(), since, None).await?
            }
        };
        match upid {
            Some(upid) => {
                h.task(crate::operation::TaskRef { purpose: wish.step().to_owned(), upid: upid.text.clone(), found: true });
                match self.power_task(h, wish, &upid, Instant::now(), limit).await? {
                    None => Ok(()),
                    Some(what) => Err(Error::LockTimeout { what }),
                }
            }
            None if fulfilled(wish, &*self.same_vm(h, state.vmid, &state.uuid, limit).await?) => Ok(()),
            None => Err(Error::AgentRestarted),
        }
    }

    /// Follows a task and judges by the run state. `Some`: the lock on this was not free; ask again.
    async fn power_task(&self, h: &Handle, wish: Wish, upid: &Upid, called: Instant, limit: Limit) -> Result<Option<String>, Error> {
        let followed = self.follow(h, upid, called, limit, false).await?;
        crash_point!("power.task_ended");
        let state = h.state();
        let vmid = state.vmid;
        if upid.kind.starts_with("ha") && matches!(followed.end, TaskEnd::Ok | TaskEnd::Warnings(_)) {
            h.step(format!("{}: waiting for PVE's HA manager", wish.step()));
            return self.wait_for_run_state(h, wish, limit).await.map(|()| None);
        }
        if let TaskEnd::Warnings(lines) = &followed.end {
            lines.iter().for_each(|line| h.warn(line.clone()));
        }
        if wish == Wish::Reset {
            return match &followed.end {
                TaskEnd::Ok | TaskEnd::Warnings(_) => Ok(None),
                TaskEnd::NoEndLine => Err(Error::PveFailed {
                    message: "the reset task ended without a word; whether the VM was reset is not known".to_owned(),
                    upid: Some(upid.text.clone()),
                }),
                TaskEnd::Error(message) => self.power_failed(vmid, upid, message, &followed.lines),
            };
        }
        let vm = match self.same_vm(h, vmid, &state.uuid, limit).await {
            // HA or a migration may have taken it away meanwhile; its agent there tells whether it runs.
            Err(Error::VmOnOtherHost { node, .. }) => {
                h.warn(format!("the VM is on node {node} now; whether it runs is told there"));
                return if matches!(followed.end, TaskEnd::Ok) { Ok(None) } else { Err(Error::VmOnOtherHost { vmid, node }) };
            }
            other => other?,
        };
        if fulfilled(wish, &vm) {
            return Ok(None);
        }
        match (&followed.end, wish) {
            (TaskEnd::Error(message), Wish::Shutdown { timeout, .. })
                if message.contains("powerdown failed") || message.contains("shutdown failed") =>
            {
                Err(Error::ShutdownTimeout { vmid, after: timeout })
            }
            (TaskEnd::Error(message), _) => self.power_failed(vmid, upid, message, &followed.lines),
            (end, _) => {
                let said = if *end == TaskEnd::NoEndLine { "was killed" } else { "ended" };
                let is = if runs(&vm) { "still runs" } else { "does not run" };
                Err(Error::PveFailed { message: format!("PVE's task {said}, yet VM {vmid} {is}"), upid: Some(upid.text.clone()) })
            }
        }
    }

    fn power_failed(&self, vmid: u32, upid: &Upid, message: &str, lines: &[String]) -> Result<Option<String>, Error> {
        match lock_timeout(message) {
            Some(what) => Ok(Some(what)),
            None => Err(Failed { vmid, upid: &upid.text, message, lines, storage: "", node: &self.settings.node }.error()),
        }
    }

    /// Waits until PVE's HA manager has done what was asked, wherever the VM is then.
    async fn wait_for_run_state(&self, h: &Handle, wish: Wish, limit: Limit) -> Result<(), Error> {
        let state = h.state();
        let home = self.settings.node.as_str();
        loop {
            // Asked for before looking, so that no change is missed in between.
            let mut changes = self.pve.changes();
            let vm = self.read_now(h, state.vmid, limit).await?.ok_or_else(|| Error::VmNotFound { what: state.vmid.to_string() })?;
            if vm.config.uuid().unwrap_or_default().to_ascii_lowercase() != state.uuid {
                let found = vm.config.uuid().unwrap_or_default().to_owned();
                return Err(Error::UuidMismatch { vmid: state.vmid, expected: state.uuid, found });
            }
            if fulfilled(wish, &vm) {
                return Ok(());
            }
            if vm.node != home && vm.run == RunState::Unknown {
                h.warn(format!("PVE's HA manager has moved the VM to node {}; whether it runs is told there", vm.node));
                return Ok(());
            }
            tokio::select! {
                change = changes.recv() => if matches!(change, Err(RecvError::Closed)) {
                    return Err(Error::Internal("the watcher of PVE's changes ended".to_owned()));
                },
                () = tokio::time::sleep_until(limit.at) => {
                    return Err(match wish {
                        Wish::Shutdown { timeout, .. } => Error::ShutdownTimeout { vmid: state.vmid, after: timeout },
                        _ => limit.timeout("PVE's HA manager has not done it"),
                    });
                }
            }
        }
    }
}
