//! Repairs that the agent begins by itself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use pvelet_proto::v1;
use tokio::time::Instant;
use uuid::Uuid;

use super::Inner;
use crate::{
    config::RepairPolicy,
    error::Error,
    health::{Known, Mend, State},
    host::units::UnitState,
    operation::{Caller, RepairState},
};

/// For whom the agent does what it does by itself.
const TENANT: &str = "pvelet";
/// What could not be repaired is not tried again before.
const AGAIN: Duration = Duration::from_secs(300);
/// How long it looks at nothing at most: the mode may have changed.
const IDLE: Duration = Duration::from_secs(300);

/// Under which name repairs of the same thing are counted.
pub(super) fn key(state: &RepairState) -> String {
    if state.edits.is_empty() { state.unit.clone() } else { CONFIG.to_owned() }
}

/// containerd's configuration, as it is counted.
const CONFIG: &str = "containerd's configuration";

fn key_of(mend: &Mend) -> &str {
    match mend {
        Mend::ContainerdConfig => CONFIG,
        Mend::RestartUnit(unit) => unit,
    }
}

/// What the agent can mend of what is failed; a configuration first, for a daemon that is down because of it needs no restart.
fn failing(known: Vec<Known>) -> Vec<(&'static str, Mend)> {
    let failing = known.into_iter().filter(|k| k.finding.state == State::Failed);
    let mut failing: Vec<(&str, Mend)> = failing.filter_map(|k| k.finding.mend.map(|mend| (k.check.id, mend))).collect();
    failing.sort_by_key(|(_, mend)| *mend != Mend::ContainerdConfig);
    failing
}

/// Whether somebody stopped a unit.
fn stopped(unit: &UnitState) -> Option<&'static str> {
    (unit.load == "loaded" && unit.active == "inactive" && unit.result == "success").then_some("somebody stopped it")
}

/// Why a unit is left alone; `None`: it is dead, or wedged.
fn left_alone(unit: &UnitState) -> Option<&'static str> {
    if let Some(why) = stopped(unit) {
        return Some(why);
    }
    match (unit.load.as_str(), unit.active.as_str(), unit.sub.as_str()) {
        ("loaded", "activating" | "deactivating" | "reloading", _) => Some("systemd is at it"),
        ("loaded", ..) => None,
        _ => Some("systemd does not run such a unit"),
    }
}

/// What a run remembers.
#[derive(Default)]
struct Memory {
    /// Since when a check is failed.
    since: HashMap<&'static str, Instant>,
    /// Before when a check is not tried again.
    not_before: HashMap<&'static str, Instant>,
}

impl Inner {
    /// Repairs what is failed for long enough, for ever.
    pub(super) async fn automatic(this: &Arc<Self>) {
        if this.settings.policy != RepairPolicy::Automatic {
            return;
        }
        let mut changes = this.parts.checks.changes();
        let mut memory = Memory::default();
        loop {
            changes.borrow_and_update();
            let next = Self::look(this, &mut memory).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return;
                },
                () = this.wake.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Repairs the first thing that is due, and tells when to look again.
    async fn look(this: &Arc<Self>, memory: &mut Memory) -> Instant {
        let now = Instant::now();
        let failing = failing(this.parts.checks.known());
        memory.since.retain(|id, _| failing.iter().any(|(failed, _)| failed == id));
        let mut next = now + IDLE;
        if !this.manages() || this.ledger().latched.is_some() {
            return next;
        }
        for (id, mend) in failing {
            let since = *memory.since.entry(id).or_insert(now);
            let wait = this.ledger().wait(key_of(&mend), this.settings.limit_per_hour, this.vms.inner.ops.unix_millis());
            let due = (since + this.settings.patience).max(now + wait);
            let due = memory.not_before.get(id).map_or(due, |at| due.max(*at));
            if due > now {
                next = next.min(due);
                continue;
            }
            if let Err(error) = Self::mend(this, id, &mend).await {
                tracing::warn!(check = id, %error, "not repaired");
                memory.not_before.insert(id, Instant::now() + AGAIN);
            }
            // Whatever came of it, all may be different now.
            return Instant::now() + this.settings.patience.min(IDLE);
        }
        next
    }

    /// Repairs one thing, and waits until that has ended. Errors: why it was not begun.
    async fn mend(this: &Arc<Self>, id: &str, mend: &Mend) -> Result<(), Error> {
        let (unit, left_alone): (_, fn(&UnitState) -> Option<&'static str>) = match mend {
            Mend::RestartUnit(unit) => (unit, left_alone),
            // Whoever stopped it may be editing its configuration. One that starts over and over may do so because of it.
            Mend::ContainerdConfig => (&this.settings.containerd_unit, stopped),
        };
        if let Some(why) = left_alone(&this.parts.units.state(unit).await?) {
            return Err(Error::RepairNotPossible { check: id.to_owned(), why: format!("{unit}: {why}") });
        }
        tracing::info!(check = id, what = %mend, "repairing");
        let caller = Caller { identity: this.settings.identity.clone() };
        let request_id = format!("automatic-{}", Uuid::new_v4());
        let meta = Some(v1::RequestMeta { tenant: TENANT.to_owned(), request_id, ..v1::RequestMeta::default() });
        let response = Self::ask(this, &caller, v1::RepairRequest { meta, check: id.to_owned(), dry_run: false }, true).await?;
        if let Some(operation) = response.operation {
            let ended = this.vms.inner.ops.wait(&operation.name, Duration::MAX).await?;
            match &ended.error {
                None => tracing::info!(check = id, operation = ended.name, "repaired"),
                Some(status) => tracing::warn!(check = id, operation = ended.name, error = status.message, "the repair failed"),
            }
        }
        Ok(())
    }
}
