//! Whether the VM should run, and what is done about it.

use std::time::Duration;

use jiff::Timestamp;

use super::{Action, Inputs, SETTLE, after, attempt, disks::Rest, draft::Draft};
use crate::{
    kind::{ActionKind, Condition, ConditionStatus, Failure, RunPolicy, Success},
    reconcile::{HostView, RunState, VmView},
};

/// A VM that stops within this time of its start counts as not coming up, and is restarted ever more slowly.
const QUICK: Duration = Duration::from_secs(60);

/// `waits` is what the disks and the configuration wait for, if anything.
pub(super) fn decide(
    inputs: &Inputs<'_>,
    draft: &mut Draft<'_>,
    vm: &VmView,
    host: &HostView,
    (disks, config): (Rest, Option<Action>),
) -> Action {
    let config = if let Some(Action::Wait(at)) = config { at } else { None };
    let wait_until = |other: Option<Timestamp>| Action::Wait([disks.until, config, other].into_iter().flatten().min());
    note_stop_order(inputs, draft, vm);
    draft.running_as_seen(vm);
    let ordered = draft.status.stopped_by.is_some();
    let action = match (draft.policy(), vm.state) {
        (RunPolicy::Always, RunState::Stopped) => ActionKind::Start,
        (RunPolicy::RerunOnFailure, RunState::Stopped) if !ordered => ActionKind::Start,
        (RunPolicy::Halted, RunState::Running | RunState::Paused) => ActionKind::Shutdown,
        (_, RunState::Unknown) => {
            draft.not_ready("RunStateUnknown", format!("the agent of {} has not told whether VM {} runs", host.name, vm.vmid));
            return wait_until(None);
        }
        (RunPolicy::Always | RunPolicy::RerunOnFailure, RunState::Paused) => {
            draft.not_ready("VmPaused", format!("VM {} is paused; resume it in PVE", vm.vmid));
            return wait_until(None);
        }
        (RunPolicy::RerunOnFailure, RunState::Stopped) => {
            let by = draft.status.stopped_by.clone().unwrap_or_default();
            draft.status.phase = crate::kind::Phase::Stopped;
            draft.not_ready(
                "StoppedByOrder",
                format!("stopped through pvelet ({by}); start it with pveletctl start, or set runPolicy: Always"),
            );
            return wait_until(None);
        }
        _ => {
            let ran_long = draft.status.last_success.as_ref().is_none_or(|s| after(s.time, QUICK) <= inputs.now);
            if ran_long {
                draft.status.quick_stops = 0;
            }
            draft.status.failures.retain(|f| !matches!(f.action, ActionKind::Start | ActionKind::Shutdown));
            draft.ready(vm);
            return wait_until(None);
        }
    };
    if vm.ha_managed {
        draft.not_ready("HaManaged", format!("PVE's HA manager decides whether VM {} runs; use ha-manager, or remove it from HA", vm.vmid));
        return wait_until(None);
    }
    if let Some((reason, text)) = host.out_of_service() {
        draft.not_ready(reason, text);
        return wait_until(None);
    }
    if let Some((reason, text)) = disks.hold.filter(|_| action == ActionKind::Start) {
        draft.not_ready(&reason, text);
        return wait_until(None);
    }
    if let Some(due) = hold(inputs, draft, action) {
        return wait_until(Some(due));
    }
    draft.not_ready(if action == ActionKind::Start { "Starting" } else { "Stopping" }, "");
    attempt::order(inputs, draft, action, host)
}

/// When the same order may be given again: what is seen may be from before the last one, and a VM that does not stay up is not started in
/// a tight loop.
fn hold(inputs: &Inputs<'_>, draft: &mut Draft<'_>, action: ActionKind) -> Option<Timestamp> {
    let status = &inputs.machine.status;
    let Success { time, .. } = status.last_success.as_ref().filter(|s| s.action == action)?;
    // Seen to run since its start, it stopped again: that is no look from before.
    let seen = |c: &&Condition| c.kind == "Running" && c.status == ConditionStatus::True && c.last_transition_time >= *time;
    let ran = action == ActionKind::Start && status.conditions.iter().any(|c| seen(&c));
    let settled = if ran { *time } else { after(*time, SETTLE) };
    if inputs.now < settled {
        return Some(settled);
    }
    if action != ActionKind::Start {
        return None;
    }
    if after(*time, QUICK) <= inputs.now {
        draft.status.quick_stops = 0;
        return None;
    }
    let pretend = Failure {
        action,
        volume: None,
        host: String::new(),
        reason: String::new(),
        message: String::new(),
        retryable: true,
        count: status.quick_stops + 1,
        time: *time,
        generation: 0,
    };
    let due = after(settled, attempt::backoff(&pretend, &inputs.machine.metadata.uid));
    if status.quick_stops > 0 && inputs.now < due {
        draft.not_ready("NotStayingUp", "the VM stops soon after each start; look at its console and its task log in PVE");
        return Some(due);
    }
    draft.status.quick_stops += 1;
    None
}

/// A VM that somebody stopped through pvelet stays stopped under `RerunOnFailure`.
fn note_stop_order(inputs: &Inputs<'_>, draft: &mut Draft<'_>, vm: &VmView) {
    if vm.state != RunState::Stopped {
        return;
    }
    if let Some((name, time)) = &inputs.stop_order {
        // Both times are the host's: an order from before the last start is an old story.
        if draft.status.last_start.is_none_or(|start| *time >= start) {
            draft.status.stopped_by = Some(name.clone());
        }
    }
}
