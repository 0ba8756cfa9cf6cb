//! `containerd.unit`.

use std::{sync::Arc, time::Duration};

use super::{
    concern::{Concern, Role, trouble},
    pace,
};
use crate::{
    health::{Check, Finding, Group, Mend, Pace, Source, State},
    host::{runtime::Runtime, units::UnitState},
};

const ID: &str = "containerd.unit";

const CHECKS: [Check; 1] = [Check {
    id: ID,
    group: Group::Containerd,
    why: "Without containerd no pod of this host starts, and none that ends is started again.",
}];

/// containerd's unit of systemd.
pub(super) struct Unit {
    concern: Arc<Concern>,
    runtime: Arc<dyn Runtime>,
    period: Duration,
}

impl Unit {
    pub(super) fn new(concern: Arc<Concern>, runtime: Arc<dyn Runtime>, period: Duration) -> Self {
        Self { concern, runtime, period }
    }

    async fn find(&self) -> Finding {
        let unit = &self.concern.unit;
        let state = match self.concern.units.state(unit).await {
            Ok(state) => state,
            Err(error) => return Finding::unknown(ID, format!("{unit}: {}", trouble(&error).1)),
        };
        if !state.exists() && self.runtime.version(super::EACH_SECOND).await.is_ok() {
            let socket = self.concern.socket.display();
            return Finding::not_applicable(ID, format!("there is no {unit}; what answers at {socket} was started otherwise"));
        }
        let finding = judge(unit, &state);
        if finding.state == State::Ok {
            return finding;
        }
        // One that nobody wants to run is no fault where there are no pods.
        let unwanted = state.active == "inactive" && state.enabled != "enabled";
        match self.concern.role().await {
            Ok(Role::Nothing(why)) => Finding::not_applicable(ID, why),
            Ok(Role::Alone(why)) if unwanted => {
                Finding::not_applicable(ID, format!("{unit} is {} and {}; {why}", state.active, state.enabled))
            }
            _ => finding,
        }
    }
}

#[tonic::async_trait]
impl Source for Unit {
    fn name(&self) -> &'static str {
        "containerd-unit"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        pace(self.period)
    }

    async fn look(&self) -> Vec<Finding> {
        match self.concern.off() {
            Some(why) => vec![Finding::not_applicable(ID, why)],
            None => vec![self.find().await.about(self.concern.unit.clone())],
        }
    }

    async fn stirred(&self) {
        self.concern.unit_changed().await;
    }
}

/// What a state of the unit means.
fn judge(unit: &str, state: &UnitState) -> Finding {
    let how = format!("{unit} is {} ({})", state.active, state.sub);
    let logs = format!("journalctl -u {unit} -n 50");
    let restart = || Mend::RestartUnit(unit.to_owned());
    match (state.load.as_str(), state.active.as_str()) {
        ("not-found", _) => {
            Finding::failed(ID, format!("there is no {unit}"), "install containerd, or name its unit in health.containerd_unit")
        }
        ("masked", "inactive" | "failed") => Finding::failed(
            ID,
            format!("{unit} is masked and {}", state.active),
            format!("systemctl unmask {unit} && systemctl start {unit}"),
        ),
        ("loaded" | "masked", "active" | "reloading") => Finding::ok(ID, format!("{how}, pid {}", state.pid)),
        (_, "activating") if state.sub == "auto-restart" || state.sub == "auto-restart-queued" => Finding::failed(
            ID,
            format!("{how}: it ended with {} and systemd starts it again ({} times so far)", ended(state), state.restarts),
            format!("see why it ends: {logs}"),
        ),
        (_, "activating") => Finding::degraded(ID, how, format!("wait until it has started; if it does not: {logs}")),
        (_, "deactivating") => Finding::degraded(ID, how, format!("wait until it has ended; if it does not: {logs}")),
        (_, "failed") => {
            let seen = format!("{how}: it ended with {}", ended(state));
            Finding::failed(ID, seen, format!("see why: {logs}; then systemctl restart {unit}")).mended_by(restart())
        }
        (_, "inactive") => Finding::failed(ID, how, format!("systemctl start {unit}")).mended_by(restart()),
        (load, _) => {
            Finding::failed(ID, format!("{how}, its file is {load}"), format!("see what is wrong with it: systemctl status {unit}"))
        }
    }
}

/// How the last run ended, in systemd's words.
fn ended(state: &UnitState) -> String {
    match state.result.as_str() {
        "exit-code" => format!("exit status {}", state.status),
        "signal" | "core-dump" => format!("signal {}", state.status),
        other => format!("\"{other}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::units_fake::FakeUnits;

    #[test]
    fn what_each_state_of_the_unit_means() {
        let with = |load: &str, active: &str, sub: &str, result: &str| UnitState {
            load: load.into(),
            active: active.into(),
            sub: sub.into(),
            result: result.into(),
            status: 9,
            restarts: 3,
            pid: 7,
            ..FakeUnits::running()
        };
        let table = [
            (with("loaded", "active", "running", "success"), State::Ok, false, "c.service is active (running), pid 7"),
            (with("loaded", "reloading", "reload", "success"), State::Ok, false, "c.service is reloading (reload), pid 7"),
            (with("masked", "active", "running", "success"), State::Ok, false, "c.service is active (running), pid 7"),
            (with("loaded", "inactive", "dead", "success"), State::Failed, true, "c.service is inactive (dead)"),
            (with("loaded", "failed", "failed", "signal"), State::Failed, true, "c.service is failed (failed): it ended with signal 9"),
            (
                with("loaded", "failed", "failed", "exit-code"),
                State::Failed,
                true,
                "c.service is failed (failed): it ended with exit status 9",
            ),
            (
                with("loaded", "failed", "failed", "start-limit-hit"),
                State::Failed,
                true,
                "c.service is failed (failed): it ended with \"start-limit-hit\"",
            ),
            (
                with("loaded", "activating", "auto-restart", "exit-code"),
                State::Failed,
                false,
                "c.service is activating (auto-restart): it ended with exit status 9 and systemd starts it again (3 times so far)",
            ),
            (with("loaded", "activating", "start", "success"), State::Degraded, false, "c.service is activating (start)"),
            (with("loaded", "deactivating", "stop-sigterm", "success"), State::Degraded, false, "c.service is deactivating (stop-sigterm)"),
            (with("masked", "inactive", "dead", "success"), State::Failed, false, "c.service is masked and inactive"),
            (with("not-found", "inactive", "dead", "success"), State::Failed, false, "there is no c.service"),
            (with("bad-setting", "inactive", "dead", "success"), State::Failed, true, "c.service is inactive (dead)"),
        ];
        for (state, wanted, mended, seen) in table {
            let finding = judge("c.service", &state);
            assert_eq!((finding.state, finding.mend.is_some(), finding.seen.as_str()), (wanted, mended, seen));
            assert_eq!(finding.remedy.is_empty(), wanted == State::Ok, "{finding:?}");
        }
    }
}
