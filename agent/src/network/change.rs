//! ApplyNetwork and RemoveNetwork: from the checks before anything is touched to a change that waits for its confirmation.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use pvelet_proto::{reason, v1};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::{
    Inner,
    checkpoint::{self, Checkpoint, Gateway, Phase},
    definition::{Definition, Kind},
    descent::descent,
    facts::Gathered,
    laps::Laps,
    plan::{Plan, Wish},
    planner, preflight,
    text_check::TextCheck,
    undo::{self, By},
    validate, verify,
};
use crate::{
    auth::Vlans,
    config::defaults,
    crash_point,
    error::Error,
    host::net::{Action, Kernel, Network, ProbePort, Step},
    operation::{Begin, Begun, Guards, Handle, NetworkState, State},
    vm::Call,
};

/// How long locks are waited for: PVE holds its own for the time of an edit.
pub(super) const LOCK: Duration = Duration::from_secs(15);
/// How long ifupdown2 may take: it waits up to a minute for a bridge's ports when it is told so.
const STEPS: Duration = Duration::from_secs(75);
/// How long a gateway may take to answer. The first question may find nobody.
const GATEWAY: Duration = Duration::from_secs(1);
const GATEWAY_TRIES: u32 = 3;
/// From the checkpoint to a verified change: steps, looks and gateways.
const WORK: Duration = Duration::from_secs(150);

/// Why a change cannot be cancelled any more.
const BEING_MADE: &str = "the network is being changed; undo it with RollbackNetwork";

/// What a request asks for.
pub(super) enum Asked {
    Apply(v1::NetworkSpec),
    Remove(String),
}

impl Asked {
    fn name(&self) -> &str {
        match self {
            Self::Apply(spec) => &spec.name,
            Self::Remove(name) => name,
        }
    }
}

/// How long a change may wait for its confirmation. Errors: `Invalid`.
pub(super) fn confirm_timeout(given: Option<prost_types::Duration>, default: Duration) -> Result<Duration, Error> {
    let Some(given) = given else { return Ok(default) };
    let (first, last) = defaults::CONFIRM_TIMEOUT_RANGE;
    let asked = Duration::try_from(given).ok().filter(|d| (first..=last).contains(d));
    asked.ok_or_else(|| {
        let text = format!("{} s is outside {} s to {} s; leave it out for the host's own", given.seconds, first.as_secs(), last.as_secs());
        Error::invalid("confirm_timeout", reason::INVALID_FIELD, text)
    })
}

/// What tells two plans apart: texts and steps.
fn digest(plan: &Plan) -> String {
    hex::encode(Sha256::digest(serde_json::to_vec(plan).unwrap_or_default()))
}

/// Whether a test lets a change through that cuts the host off. Not in a release build.
fn forced(error: &Error) -> bool {
    #[cfg(feature = "crash-points")]
    if matches!(error, Error::ManagementPath { .. }) && std::env::var("PVELET_NETWORK_FORCE").is_ok_and(|v| v == "management") {
        return true;
    }
    let _ = error;
    false
}

/// Whether a caller may have this network made or removed.
fn in_scope(definition: &Definition, vlans: &Vlans) -> Result<(), Error> {
    for interface in &definition.interfaces {
        match &interface.kind {
            Kind::Vlan { id, .. } => vlans.allow(*id, *id)?,
            Kind::Bridge { vlan_aware: true, vids, .. } if vids.is_empty() => vlans.allow(2, 4094)?,
            Kind::Bridge { vids, .. } => vids.iter().try_for_each(|(first, last)| vlans.allow(*first, *last))?,
        }
    }
    Ok(())
}

impl Inner {
    /// The plan of what is asked for, from what is true now. Errors: those of `NetworkService.PlanNetwork`.
    pub(super) fn plan(facts: &Gathered, asked: &Asked, tenant: &str, vlans: &Vlans) -> Result<Plan, Error> {
        validate::name(asked.name())?;
        let (own, edited) = facts.own();
        if let Some(existing) = own.network(asked.name()) {
            if existing.tenant != tenant {
                return Err(Error::NotOurs { what: format!("network '{}'", existing.name) });
            }
            in_scope(existing, vlans)?;
        }
        let wish = match asked {
            Asked::Apply(spec) => {
                let definition = validate::definition(spec, tenant, &facts.kernel)?;
                in_scope(&definition, vlans)?;
                Wish::Apply(definition)
            }
            Asked::Remove(name) => Wish::Remove(name.clone()),
        };
        if let Some(why) = edited {
            return Err(Error::NetworkChanged { what: format!("the agent's own file: {why}") });
        }
        planner::plan(facts.own_text(), &wish, &facts.kernel, &facts.declared)
    }

    /// Whether a plan may be carried out. Errors: `PveFsHung`, and those of the checks.
    fn refuse(facts: &Gathered, plan: &Plan) -> Result<(), Error> {
        if !facts.users_known {
            return Err(Error::PveFsHung { detail: "which VMs use which bridge is not known".to_owned() });
        }
        match preflight::refuse(&facts.facts(), plan) {
            Err(error) if forced(&error) => {
                tracing::warn!(%error, "forced by PVELET_NETWORK_FORCE");
                Ok(())
            }
            other => other,
        }
    }

    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept(
        this: &Arc<Self>,
        call: &Call,
        asked: Asked,
        confirm: Option<prost_types::Duration>,
        vlans: &Vlans,
    ) -> Result<String, Error> {
        let mut laps = Laps::begin();
        let confirm = confirm_timeout(confirm, this.settings.confirm_timeout)?;
        this.not_latched().await?;
        let facts = this.gather().await?;
        let plan = Self::plan(&facts, &asked, &call.meta.tenant, vlans)?;
        if !plan.is_empty() {
            Self::refuse(&facts, &plan)?;
        }
        let network = NetworkState {
            name: asked.name().to_owned(),
            plan: digest(&plan),
            confirm_ms: u64::try_from(confirm.as_millis()).unwrap_or(u64::MAX),
            done: plan.is_empty(),
        };
        let begin = Begin {
            caller: &call.caller,
            meta: &call.meta,
            kind: call.kind,
            body: call.body.clone(),
            target: v1::VmRef::default(),
            guards: Guards { exclusive: vec![Guards::network()], shared: Vec::new() },
            lease: None,
            state: State { network, ..State::default() },
        };
        match this.vms.inner.ops.begin(begin)? {
            Begun::Existing(name) => Ok(name),
            Begun::New(h) => {
                let name = h.name().to_owned();
                let (inner, tenant, handle) = (Arc::clone(this), call.meta.tenant.clone(), h.clone());
                let check = this.checks.check(&this.net, plan.new_text);
                laps.end("plan and checks");
                Self::spawn(this, h, async move {
                    if handle.written().await.is_err() {
                        return;
                    }
                    crash_point!("network.intent_written");
                    laps.end("journal");
                    let result = Box::pin(inner.carry_out(&handle, &asked, &tenant, check, laps)).await;
                    inner.end(&handle, result).await;
                });
                Ok(name)
            }
        }
    }

    /// Errors: `NetworkLatched`, when an earlier change could not be undone.
    pub(super) async fn not_latched(&self) -> Result<(), Error> {
        let latched = match checkpoint::load(&*self.net).await {
            Ok(Some(last)) if last.phase == Phase::RollbackFailed => {
                Err(Error::NetworkLatched { operation: last.operation.clone(), why: last.detail.clone() })
            }
            other => other.map(drop),
        };
        (self.agent.latched)(matches!(latched, Err(Error::NetworkLatched { .. })));
        latched
    }

    /// Ends the operation.
    pub(super) async fn end(&self, h: &Handle, result: Result<(), Error>) {
        h.finish(result, None).await;
        crash_point!("network.end_written");
    }

    /// All steps, to the end of the change: final, or undone. `check`: of the text that was planned when it was accepted.
    async fn carry_out(&self, h: &Handle, asked: &Asked, tenant: &str, check: TextCheck, mut laps: Laps) -> Result<(), Error> {
        let state = h.state().network;
        if state.done {
            return Ok(());
        }
        h.step("checking");
        let gateways = self.answering(&self.net.kernel().await?).await;
        crash_point!("network.planned");
        h.check_cancelled()?;
        laps.end("gateways");
        h.step("waiting for the network's lock");
        let lock = self.net.lock(LOCK).await?;
        crash_point!("network.locked");
        laps.end("lock");
        self.not_latched().await?;
        self.undo_orphan(h.name()).await?;
        // Once more, now that nobody else changes anything.
        let facts = self.gather().await?;
        let plan = Self::plan(&facts, asked, tenant, &Vlans::all())?;
        if digest(&plan) != state.plan {
            return Err(Error::NetworkChanged { what: "what is to be done is not what was accepted any more".to_owned() });
        }
        Self::refuse(&facts, &plan)?;
        laps.end("plan and checks under the lock");
        h.commit(BEING_MADE)?;
        let confirm = Duration::from_millis(state.confirm_ms);
        let boot = self.net.boot()?;
        let mut change = Checkpoint::new(h.name(), &state.name, plan, facts.kernel, gateways, &boot, confirm + WORK);
        // Not on the disk: nothing was touched, and nothing will be.
        checkpoint::save(&*self.net, &change).await?;
        crash_point!("network.checkpoint_written");
        laps.end("checkpoint");
        match Box::pin(self.make(h, &mut change, check, &mut laps)).await {
            Ok(()) => {
                change.applied(&self.net.boot()?, confirm);
                if let Err(error) = checkpoint::save(&*self.net, &change).await {
                    return self.undo(Some(h), &mut change, &format!("the checkpoint cannot be written: {error}")).await;
                }
                crash_point!("network.waiting");
                laps.end("checkpoint, that it waits");
                tracing::info!(operation = h.name(), took = %laps, "a network change is made and waits for its confirmation");
                drop(lock);
                self.wait(Some(h), change).await
            }
            Err(why) => self.undo(Some(h), &mut change, &why).await,
        }
    }

    /// From a written checkpoint to a verified change. Errors: why it must be undone.
    async fn make(&self, h: &Handle, change: &mut Checkpoint, check: TextCheck, laps: &mut Laps) -> Result<(), String> {
        let net = &*self.net;
        net.arm().await.map_err(|e| format!("nothing would undo it without the agent: {e}"))?;
        crash_point!("network.armed");
        laps.end("arming");
        h.step("writing the declaration");
        let plan = change.plan.clone();
        check.passed().await.map_err(|e| e.to_string())?;
        crash_point!("network.file_checked");
        laps.end("ifup -s, what was left of it");
        net.write_own_file(plan.new_text.as_deref()).await.map_err(|e| e.to_string())?;
        crash_point!("network.file_written");
        change.phase = Phase::Applying;
        change.touched = true;
        checkpoint::save(net, change).await.map_err(|e| format!("the checkpoint cannot be written: {e}"))?;
        crash_point!("network.applying");
        laps.end("own file and checkpoint");
        h.step("bringing interfaces up and down");
        // ifquery is started beside the steps, and compares after them.
        let wanted: Vec<String> = plan.wanted.iter().map(|i| i.name.clone()).collect();
        let (compare, when) = oneshot::channel();
        let compared = self.unless_asked(h.name(), net.compare(&wanted, when));
        let (made, compared) = tokio::join!(self.run_and_look(h, change, compare, laps), compared);
        let complaint = made?;
        let differs = compared?.map_err(|e| e.to_string())?;
        if !differs.is_empty() {
            return Err(with(&complaint, format!("ifquery -c: {}", differs.join("; "))));
        }
        laps.end("what was left of ifquery -c");
        // What a tool says by its exit status is not believed, but told.
        if let Some(complaint) = complaint {
            h.warn(format!("ifupdown2 complained, yet all is as it should be: {complaint}"));
        }
        crash_point!("network.verified");
        Ok(())
    }

    /// Runs the steps, and looks whether the kernel has what was planned and the gateways answer as before; `compare` is told when the kernel
    /// has it. Returns what ifupdown2 complained about. Errors: what is not so.
    async fn run_and_look(
        &self,
        h: &Handle,
        change: &Checkpoint,
        compare: oneshot::Sender<()>,
        laps: &mut Laps,
    ) -> Result<Option<String>, String> {
        let net = &*self.net;
        let complaint = self.unless_asked(h.name(), run(net, &change.plan)).await?.err().map(|e| e.to_string());
        crash_point!("network.steps_run");
        laps.end("steps");
        let plugged = undo::plug_guests(net, &change.before).await;
        if !plugged.is_empty() {
            h.warn(format!("ifupdown2 took guests' ports off their bridges, and they were put back: {}", plugged.join(", ")));
        }
        h.step("verifying");
        let looking = undo::look(net, |now| verify::applied(&change.plan, &change.before, now));
        let left = self.unless_asked(h.name(), looking).await?.map_err(|e| with(&complaint, e.to_string()))?;
        if !left.is_empty() {
            return Err(with(&complaint, left.join("; ")));
        }
        // Nobody to be told: it has failed, which is seen where it is waited for.
        let _ = compare.send(());
        let silent = self.unless_asked(h.name(), self.silent(&change.gateways)).await?;
        if let Some(gateway) = silent {
            return Err(with(&complaint, format!("the gateway {} on {} does not answer any more", gateway.address, gateway.link)));
        }
        laps.end("kernel and gateways");
        Ok(complaint)
    }

    /// The first of these gateways that does not answer.
    async fn silent<'a>(&self, gateways: &'a [Gateway]) -> Option<&'a Gateway> {
        let asked = gateways.iter().map(async |gateway| (!self.answers(gateway).await).then_some(gateway));
        join_all(asked).await.into_iter().flatten().next()
    }

    async fn answers(&self, gateway: &Gateway) -> bool {
        for _ in 0..GATEWAY_TRIES {
            if self
                .net
                .who_has(&ProbePort::link(&gateway.link), &[gateway.address], GATEWAY)
                .await
                .is_ok_and(|found| found.contains_key(&gateway.address))
            {
                return true;
            }
        }
        false
    }

    /// The default gateways that answer now.
    async fn answering(&self, kernel: &Kernel) -> Vec<Gateway> {
        let routes = kernel.default_routes().filter_map(|r| Some((r.link.clone(), r.gateway?)));
        let all = routes.collect::<BTreeSet<(String, IpAddr)>>().into_iter().map(|(link, address)| Gateway { link, address });
        let asked = all.map(async |gateway| self.answers(&gateway).await.then_some(gateway));
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Undoes a change under the lock, and says how the operation ends.
    pub(super) async fn undo(&self, h: Option<&Handle>, change: &mut Checkpoint, why: &str) -> Result<(), Error> {
        if let Some(h) = h {
            h.step("undoing");
        }
        tracing::warn!(operation = change.operation, why, "a network change is undone");
        let warnings = Box::pin(undo::undo(&*self.net, change, By::Agent, why)).await;
        for warning in warnings {
            match h {
                Some(h) => h.warn(warning),
                None => tracing::warn!(operation = change.operation, warning, "a network change was undone"),
            }
        }
        self.changed();
        (self.agent.latched)(change.phase == Phase::RollbackFailed);
        ended(change)
    }

    /// A change that nobody works on any more: its operation is lost with its journal, or its end could not be written. `own`: the
    /// operation that asks.
    async fn undo_orphan(&self, own: &str) -> Result<(), Error> {
        let Some(mut orphan) = checkpoint::load(&*self.net).await? else { return Ok(()) };
        if orphan.operation == own || !orphan.phase.unfinished() {
            return Ok(());
        }
        if orphan.phase == Phase::Waiting && orphan.left(&self.net.boot()?).is_some() {
            let age = Duration::from_millis(checkpoint::unix_millis().saturating_sub(orphan.begun_ms));
            return Err(Error::OperationInProgress { target: Guards::network(), holder: orphan.operation.clone(), age });
        }
        match self.undo(None, &mut orphan, "it was left unfinished").await {
            Err(Error::NetworkRollbackFailed { why }) => Err(Error::NetworkLatched { operation: orphan.operation.clone(), why }),
            _ => Ok(()),
        }
    }

    /// Runs `work` detached. If it panics, the change is settled as if the agent had been restarted.
    pub(super) fn spawn(this: &Arc<Self>, handle: Handle, work: impl Future<Output = ()> + Send + 'static) {
        let this = Arc::clone(this);
        let task = tokio::spawn(work);
        tokio::spawn(async move {
            if !task.await.is_err_and(|e| e.is_panic()) {
                return;
            }
            tracing::error!(operation = handle.name(), "a network change met a fault of the agent; it is undone");
            let (inner, h) = (Arc::clone(&this), handle.clone());
            let settling = tokio::spawn(async move { Box::pin(inner.settle_one(&h)).await });
            if settling.await.is_err_and(|e| e.is_panic()) {
                // The timer undoes it.
                handle.finish(Err(Error::Internal("a fault of the agent, see its log".to_owned())), None).await;
            }
        });
    }
}

/// Why something is not so, and what ifupdown2 had to say about it.
fn with(complaint: &Option<String>, why: String) -> String {
    match complaint {
        Some(complaint) => format!("{why} ({complaint})"),
        None => why,
    }
}

/// How an operation ends whose change has ended so.
pub(super) fn ended(change: &Checkpoint) -> Result<(), Error> {
    let by = match change.undone_by.as_str() {
        "timer" => " (undone by the timer, without the agent)",
        "boot" => " (undone when the host booted)",
        "removal" => " (undone before the agent was removed)",
        _ => "",
    };
    match change.phase {
        Phase::Confirmed => Ok(()),
        Phase::RollbackFailed => Err(Error::NetworkRollbackFailed { why: change.detail.clone() }),
        _ => Err(Error::NetworkRolledBack { why: format!("{}{by}", change.detail) }),
    }
}

/// Runs the steps of a plan: what goes by a text of its own, since the live files do not have it any more; what comes by the live files.
async fn run(net: &dyn Network, plan: &Plan) -> Result<(), Error> {
    let down = |step: &Step| step.action == Action::Down;
    let mut failed = None;
    for group in plan.steps.chunk_by(|a, b| down(a) == down(b)) {
        let ran = if group.first().is_some_and(down) {
            let going: Vec<String> = group.iter().map(|s| s.interface.clone()).collect();
            match descent(plan.old_text.as_deref(), &going, &net.kernel().await?) {
                Ok(descent) => net.run_steps(&descent.steps, Some(&descent.text), STEPS).await,
                Err(why) => Err(Error::Internal(format!("the agent's own file as it was: {why}"))),
            }
        } else {
            net.run_steps(group, None, STEPS).await
        };
        if let Err(error) = ran {
            failed.get_or_insert(error);
            // What hangs must not hold the next ones up.
            let _ = net.stop_steps().await;
        }
    }
    failed.map_or(Ok(()), Err)
}
