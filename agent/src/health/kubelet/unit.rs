//! The kubelet's unit, and how often systemd had to restart it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::{
    Mutex as AsyncMutex,
    broadcast::{self, error::RecvError},
};

use super::{
    setup::{Reader, Standing},
    when,
};
use crate::{
    config::Worker,
    error::Error,
    health::{Check, Finding, Group, Mend, Pace, Source},
    host::{clock::Clock, units::UnitState},
};

const UNIT: &str = "kubelet.unit";
const RESTARTS: &str = "kubelet.restarts";
const CHECKS: [Check; 2] = [
    Check {
        id: UNIT,
        group: Group::Kubelet,
        why: "Without the kubelet no pod of this host is started, stopped or reported; its Node is NotReady.",
    },
    Check {
        id: RESTARTS,
        group: Group::Kubelet,
        why: "A kubelet that ends again and again works only in between, and its pods are not looked after.",
    },
];

/// Restarts are counted over this time: kubelets that cannot start are restarted every ten seconds.
const WINDOW: Duration = Duration::from_secs(600);
/// From so many in that time on it is a loop.
const LOOP: u32 = 3;

/// Unit and restarts.
pub(super) struct UnitSource {
    reader: Arc<Reader>,
    clock: Arc<dyn Clock>,
    restarts: Mutex<Restarts>,
    changes: AsyncMutex<broadcast::Receiver<String>>,
}

impl UnitSource {
    pub(super) fn new(reader: Arc<Reader>, clock: Arc<dyn Clock>) -> Self {
        let changes = AsyncMutex::new(reader.units.changes());
        Self { reader, clock, restarts: Mutex::default(), changes }
    }
}

#[tonic::async_trait]
impl Source for UnitSource {
    fn name(&self) -> &'static str {
        "kubelet-unit"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        super::pace(self.reader.settings.period)
    }

    async fn look(&self) -> Vec<Finding> {
        let setup = match self.reader.read().await {
            Standing::No(why) => return super::none(&CHECKS, &why),
            Standing::Worker(setup) => setup,
        };
        let name = &self.reader.settings.kubelet_unit;
        let restarts = match &setup.unit {
            Err(e) => Finding::unknown(RESTARTS, e.to_string()),
            Ok(unit) => self.restarts.lock().unwrap_or_else(PoisonError::into_inner).judge(name, unit, self.clock.now()),
        };
        vec![judge(name, &setup.unit, self.reader.settings.worker), restarts.about(name)]
    }

    async fn stirred(&self) {
        let mut changes = self.changes.lock().await;
        loop {
            match changes.recv().await {
                Ok(unit) if unit.is_empty() || unit == self.reader.settings.kubelet_unit => return,
                Ok(_) => {}
                // What was missed may have been the kubelet's.
                Err(RecvError::Lagged(_)) => return,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

/// What is made of a unit's state.
fn judge(name: &str, unit: &Result<UnitState, Error>, worker: Worker) -> Finding {
    let unit = match unit {
        Err(e) => return Finding::unknown(UNIT, e.to_string()).about(name),
        Ok(unit) => unit,
    };
    let logs = format!("journalctl -u {name} -n 50");
    let ended = match unit.result.as_str() {
        "" | "success" => String::new(),
        result => format!("; its last run ended with {result}, status {}", unit.status),
    };
    let off = matches!(unit.enabled.as_str(), "disabled" | "masked" | "masked-runtime");
    let finding = match (unit.load.as_str(), unit.active.as_str()) {
        ("masked", _) => {
            Finding::degraded(UNIT, format!("{name} is masked: it cannot be started"), format!("systemctl unmask --now {name}"))
        }
        ("loaded", "active" | "reloading") => Finding::ok(UNIT, format!("{name} is {} ({})", unit.active, unit.sub)),
        ("loaded", "activating") if unit.sub == "auto-restart" => {
            Finding::failed(UNIT, format!("{name} waits for its next restart{ended}"), format!("see why it ends: {logs}"))
        }
        ("loaded", "activating" | "deactivating") => {
            Finding::degraded(UNIT, format!("{name} is {} ({})", unit.active, unit.sub), format!("should that last: {logs}"))
        }
        ("loaded", "inactive") if off => {
            // Somebody has taken it out of service: it is not for the agent to bring it back.
            let remedy = match worker {
                Worker::Yes => format!("systemctl enable --now {name}"),
                _ => format!("systemctl enable --now {name}; or set worker = \"no\" in [health] of the agent's configuration"),
            };
            Finding::degraded(UNIT, format!("{name} is stopped and {}", unit.enabled), remedy)
        }
        ("loaded", active) => {
            Finding::failed(UNIT, format!("{name} is {active} ({}){ended}", unit.sub), format!("systemctl restart {name}; {logs}"))
                .mended_by(Mend::RestartUnit(name.to_owned()))
        }
        ("not-found", _) => {
            let remedy =
                "install the kubelet; or name its unit (kubelet_unit) or set worker = \"no\" in [health] of the agent's configuration";
            Finding::failed(UNIT, format!("there is no unit {name}"), remedy)
        }
        (load, _) => Finding::failed(
            UNIT,
            format!("{name} cannot be loaded: {load}"),
            format!("systemctl status {name}; systemd-analyze verify {name}"),
        ),
    };
    finding.about(name)
}

/// How systemd's count of restarts has grown.
#[derive(Debug, Default)]
struct Restarts {
    /// When it was seen to be what, oldest first: one from before the window, and those in it that differ.
    seen: VecDeque<(SystemTime, u32)>,
    /// Since when it grows.
    since: Option<SystemTime>,
}

impl Restarts {
    fn judge(&mut self, name: &str, unit: &UnitState, now: SystemTime) -> Finding {
        let count = unit.restarts;
        // Started by hand, or the clock was set back: it counts anew.
        if self.seen.back().is_some_and(|(at, last)| count < *last || *at > now) {
            self.seen.clear();
            self.since = None;
        }
        if self.seen.back().is_none_or(|(_, last)| *last != count) {
            self.seen.push_back((now, count));
        }
        let begin = now.checked_sub(WINDOW).unwrap_or(SystemTime::UNIX_EPOCH);
        while self.seen.get(1).is_some_and(|(at, _)| *at <= begin) {
            self.seen.pop_front();
        }
        // What stood there when the window began.
        let mut grown = count - self.seen.front().map_or(count, |(_, first)| *first);
        // The first look at a loop that goes on.
        if self.seen.len() == 1 && unit.sub == "auto-restart" {
            grown = grown.max(count.min(LOOP));
        }
        if grown == 0 {
            self.since = None;
            let seen = if count == 0 {
                format!("{name} was not restarted by systemd")
            } else {
                format!("{name} was restarted by systemd {count} times, not lately")
            };
            return Finding::ok(RESTARTS, seen);
        }
        let since = when(*self.since.get_or_insert(now));
        let remedy = format!("see why it ends: journalctl -u {name} -p warning -n 50");
        let ended = format!("{}, status {}", unit.result, unit.status);
        if grown >= LOOP {
            Finding::failed(RESTARTS, format!("{name} ends again and again since {since}: {count} restarts in all; last: {ended}"), remedy)
        } else {
            Finding::degraded(
                RESTARTS,
                format!("{name} has ended and was restarted by systemd, first seen {since}: {count} restarts in all"),
                remedy,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt;

    use super::{
        super::testing::{Host, UNIT as NAME, at, restarting},
        *,
    };
    use crate::{error::Trouble, health::State, host::units_fake::FakeUnits};

    fn state(load: &str, active: &str, sub: &str, enabled: &str) -> UnitState {
        let [load, active, sub, enabled] = [load, active, sub, enabled].map(str::to_owned);
        UnitState { load, active, sub, enabled, ..FakeUnits::running() }
    }

    #[test]
    fn every_state_of_a_unit_is_told() {
        for (unit, expected, mends, seen) in [
            (state("loaded", "active", "running", "enabled"), State::Ok, false, "is active (running)"),
            (state("loaded", "active", "running", "disabled"), State::Ok, false, "is active"),
            (state("loaded", "reloading", "reload", "enabled"), State::Ok, false, "is reloading"),
            (state("loaded", "inactive", "dead", "enabled"), State::Failed, true, "is inactive (dead)"),
            (state("loaded", "inactive", "dead", "static"), State::Failed, true, "is inactive (dead)"),
            (state("loaded", "inactive", "dead", "disabled"), State::Degraded, false, "is stopped and disabled"),
            (state("masked", "inactive", "dead", "masked"), State::Degraded, false, "is masked"),
            (state("loaded", "activating", "start-pre", "enabled"), State::Degraded, false, "is activating"),
            (state("not-found", "inactive", "dead", ""), State::Failed, false, "there is no unit"),
            (state("bad-setting", "inactive", "dead", ""), State::Failed, false, "cannot be loaded: bad-setting"),
            (restarting(7), State::Failed, false, "waits for its next restart; its last run ended with exit-code, status 1"),
            (FakeUnits::dead(), State::Failed, true, "is failed (failed); its last run ended with exit-code, status 1"),
        ] {
            let finding = judge(NAME, &Ok(unit.clone()), Worker::Auto);
            assert_eq!((finding.state, finding.mend.is_some()), (expected, mends), "{unit:?}");
            assert!(finding.seen.contains(seen), "{finding:?}");
            assert_eq!(finding.remedy.is_empty(), expected == State::Ok, "{finding:?}");
        }
        let silent = Err(Error::Look { trouble: Trouble::Silent, message: "systemd did not tell".into() });
        assert_eq!(judge(NAME, &silent, Worker::Auto).state, State::Unknown);
    }

    #[test]
    fn restarts_count_only_while_they_grow() {
        let mut restarts = Restarts::default();
        let unit = |count| UnitState { restarts: count, ..FakeUnits::running() };
        for (second, count, expected) in [
            // Many of them long ago are no fault.
            (0, 40, State::Ok),
            (10, 40, State::Ok),
            (20, 41, State::Degraded),
            (30, 42, State::Degraded),
            (40, 43, State::Failed),
            (500, 43, State::Failed),
            // The first of them leaves the window.
            (621, 43, State::Degraded),
            (641, 43, State::Ok),
            (700, 44, State::Degraded),
            // Started by hand.
            (710, 0, State::Ok),
            (720, 1, State::Degraded),
            (5000, 1, State::Ok),
        ] {
            let finding = restarts.judge(NAME, &unit(count), at(second));
            assert_eq!(finding.state, expected, "second {second}: {finding:?}");
        }
        assert!(restarts.seen.len() < 3);
    }

    #[test]
    fn a_loop_is_seen_at_the_first_look_and_since_when_it_goes_on() {
        let mut restarts = Restarts::default();
        let first = restarts.judge(NAME, &restarting(57), at(0));
        assert_eq!(first.state, State::Failed);
        let later = restarts.judge(NAME, &restarting(60), at(60));
        assert!(later.seen.contains("since 2023-11-14 22:13 UTC: 60 restarts"), "{}", later.seen);
        // A clock that is set back ends nothing badly.
        restarts.judge(NAME, &restarting(61), at(0));
        assert_eq!(Restarts::default().judge(NAME, &restarting(1), at(0)).state, State::Degraded);
    }

    #[tokio::test]
    async fn changes_of_the_kubelets_unit_stir() {
        let host = Host::new();
        let source = UnitSource::new(Arc::new(host.reader()), Arc::new(crate::host::clock::SystemClock));
        host.units.stir("containerd.service");
        assert!(source.stirred().now_or_never().is_none());
        // Told between two waits, it is not lost.
        host.units.stir(NAME);
        assert!(source.stirred().now_or_never().is_some());
        assert!(source.stirred().now_or_never().is_none());
        host.units.stir("");
        assert!(source.stirred().now_or_never().is_some());
        (0..1000).for_each(|_| host.units.stir("containerd.service"));
        assert!(source.stirred().now_or_never().is_some(), "changes were lost");
    }

    #[tokio::test]
    async fn the_source_tells_of_both() {
        let host = Host::new();
        assert_eq!(host.finding(UNIT).await.state, State::Ok);
        assert_eq!(host.finding(RESTARTS).await.state, State::Ok);
        host.units.set(NAME, FakeUnits::dead());
        let finding = host.finding(UNIT).await;
        assert_eq!(finding.mend, Some(Mend::RestartUnit(NAME.into())));
        host.units.remove(NAME);
        assert!(host.finding(UNIT).await.seen.contains("there is no unit"));
        host.units.fail(Some(Error::Look { trouble: Trouble::Failed, message: "no D-Bus".into() }));
        assert_eq!(host.finding(RESTARTS).await.state, State::Unknown);
    }
}
