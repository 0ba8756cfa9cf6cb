//! What the state of a unit means.

use std::time::{Duration, SystemTime};

use super::words::{age, moment};
use crate::{
    error::Error,
    health::{Finding, Mend},
    host::units::UnitState,
};

/// Starting and stopping takes less, unless something is wrong. An upgrade of PVE restarts its daemons.
const PATIENCE: Duration = Duration::from_secs(90);
/// A unit that was restarted so often by systemd, and runs for less than a minute, will end again.
const RESTARTS: u32 = 3;
const RUNS_FOR: Duration = Duration::from_secs(60);

/// How a unit stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Standing {
    /// It runs, or is just being started; since when.
    Runs(String, Option<SystemTime>),
    /// There is no such unit.
    Absent,
    /// It does not run, and an administrator wants it so: masked, or neither enabled nor running.
    Off(String),
    /// It should run and does not. Whether a restart may help: not, where systemd is about to do that anyway.
    Down(String),
    /// It runs, but ends again and again.
    Shaky(String),
    /// systemd does not tell.
    Unknown(String),
}

/// Whether an administrator wants this unit to be started.
pub(super) fn wanted(state: &UnitState) -> bool {
    state.load == "loaded" && !matches!(state.enabled.as_str(), "disabled" | "masked" | "masked-runtime" | "")
}

/// What systemd says of a unit.
pub(super) fn standing(unit: &str, state: &Result<UnitState, Error>, now: SystemTime) -> Standing {
    let state = match state {
        Ok(state) => state,
        Err(error) => return Standing::Unknown(error.to_string()),
    };
    if !state.exists() {
        return Standing::Absent;
    }
    let for_ = state.since.map(|s| age(s, now));
    // One that is restarted again and again changes its state all the time.
    let lasting = state.since.filter(|_| state.sub != "auto-restart").map(|s| format!(" since {}", moment(s))).unwrap_or_default();
    let ended = || match (state.result.as_str(), state.status) {
        ("" | "success", _) => String::new(),
        (result, status) => format!(", result {result}, status {status}"),
    };
    match state.active.as_str() {
        "active" | "reloading" | "refreshing" => {
            if state.restarts >= RESTARTS && for_.is_some_and(|d| d < RUNS_FOR) {
                return Standing::Shaky(format!(
                    "{unit} was restarted {RESTARTS} times or more by systemd, the last time less than a minute ago"
                ));
            }
            Standing::Runs(format!("{unit} is {}", state.active), state.since)
        }
        "activating" | "deactivating" if state.sub != "auto-restart" && for_.is_none_or(|d| d < PATIENCE) => {
            Standing::Runs(format!("{unit} is {}", state.active), None)
        }
        "inactive" if !wanted(state) => {
            Standing::Off(format!("{unit} is {} and not running", if state.enabled.is_empty() { &state.load } else { &state.enabled }))
        }
        active => Standing::Down(format!("{unit} is {active} ({}){lasting}{}", state.sub, ended())),
    }
}

/// The remedy for a unit that does not run.
pub(super) fn remedy(unit: &str) -> String {
    format!("look at `journalctl -u {unit} -n 50`, then `systemctl restart {unit}`")
}

/// Marks a finding as one that a restart of the unit mends, where an administrator wants it to run.
pub(super) fn mended(finding: Finding, unit: &str, state: &Result<UnitState, Error>) -> Finding {
    if state.as_ref().is_ok_and(wanted) { finding.mended_by(Mend::RestartUnit(unit.to_owned())) } else { finding }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Trouble, host::units_fake::FakeUnits};

    fn at(change: impl FnOnce(&mut UnitState)) -> Result<UnitState, Error> {
        let mut state = FakeUnits::running();
        change(&mut state);
        Ok(state)
    }

    #[test]
    fn each_state_of_a_unit_has_a_meaning() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ago = |s| Some(now - Duration::from_secs(s));
        let name = |state: &Result<UnitState, Error>| match standing("x.service", state, now) {
            Standing::Runs(..) => "runs",
            Standing::Absent => "absent",
            Standing::Off(_) => "off",
            Standing::Down(_) => "down",
            Standing::Shaky(_) => "shaky",
            Standing::Unknown(_) => "unknown",
        };
        let table = [
            (at(|_| ()), "runs"),
            (at(|s| s.active = "reloading".into()), "runs"),
            (Ok(FakeUnits::dead()), "down"),
            (
                at(|s| {
                    s.active = "inactive".into();
                    s.sub = "dead".into();
                }),
                "down",
            ),
            (
                at(|s| {
                    s.active = "inactive".into();
                    s.enabled = "disabled".into();
                }),
                "off",
            ),
            (
                at(|s| {
                    s.active = "inactive".into();
                    s.load = "masked".into();
                    s.enabled = "masked".into();
                }),
                "off",
            ),
            // Started by hand though it is disabled.
            (at(|s| s.enabled = "disabled".into()), "runs"),
            (
                at(|s| {
                    s.active = "failed".into();
                    s.enabled = "disabled".into();
                }),
                "down",
            ),
            (
                at(|s| {
                    s.active = "activating".into();
                    s.sub = "start-pre".into();
                    s.since = ago(20);
                }),
                "runs",
            ),
            (
                at(|s| {
                    s.active = "activating".into();
                    s.sub = "start-pre".into();
                    s.since = ago(200);
                }),
                "down",
            ),
            (
                at(|s| {
                    s.active = "deactivating".into();
                    s.sub = "stop-sigterm".into();
                    s.since = ago(3);
                }),
                "runs",
            ),
            (
                at(|s| {
                    s.active = "activating".into();
                    s.sub = "auto-restart".into();
                    s.since = ago(1);
                }),
                "down",
            ),
            (
                at(|s| {
                    s.restarts = 7;
                    s.since = ago(10);
                }),
                "shaky",
            ),
            (
                at(|s| {
                    s.restarts = 7;
                    s.since = ago(1000);
                }),
                "runs",
            ),
            // A clock that was set back.
            (at(|s| s.since = Some(now + Duration::from_secs(1000))), "runs"),
            (at(|s| s.load = "not-found".into()), "absent"),
            (Err(Error::Look { trouble: Trouble::Missing, message: "no bus".into() }), "unknown"),
        ];
        for (state, meaning) in table {
            assert_eq!(name(&state), meaning, "{state:?}");
        }
    }

    #[test]
    fn only_what_is_wanted_is_mended() {
        let mends = |state| mended(Finding::failed("x", "y", "z"), "x.service", &state).mend.is_some();
        assert!(mends(Ok(FakeUnits::dead())));
        assert!(!mends(at(|s| s.enabled = "disabled".into())) && !mends(at(|s| s.load = "masked".into())));
    }
}
