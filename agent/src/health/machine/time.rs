//! Whether the clock is synchronized.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    source::{Look, check},
    unit::{self, Standing, standing},
    words::unknown,
};
use crate::{
    error::Error,
    health::{Check, Finding, Pace, Source},
    host::{
        machine::{ClockState, Machine},
        units::{UnitState, Units},
    },
};

const TIME: Check = check(
    "host.time-sync",
    "Hosts whose clocks drift apart refuse each other's tickets and certificates, and HA and backups go by the clock.",
);

/// What synchronizes clocks on Debian. Something else (PTP, a service of one's own) is seen by its effect only.
const SERVICES: &[&str] =
    &["chrony.service", "systemd-timesyncd.service", "ntpsec.service", "ntp.service", "openntpd.service", "ntpd-rs.service"];
/// A host that has booted needs some minutes to find its servers.
const BOOTED: Duration = Duration::from_secs(600);

pub(super) fn source(pace: Pace, machine: &Arc<dyn Machine>, units: &Arc<dyn Units>) -> Arc<dyn Source> {
    let (machine, asked) = (Arc::clone(machine), Arc::clone(units));
    let look = move || {
        let (machine, units) = (Arc::clone(&machine), Arc::clone(&asked));
        async move {
            let clock = machine.clock().await;
            let mut services = Vec::new();
            for name in SERVICES {
                services.push((*name, units.state(name).await));
            }
            vec![decide(&clock, &services, SystemTime::now())]
        }
    };
    Look::new("time-sync", &[TIME], pace, look).stirred_by_units(units, SERVICES).done()
}

/// How far the clock is from that of others is told by the controller, which sees all of them.
fn decide(clock: &Result<ClockState, Error>, services: &[(&'static str, Result<UnitState, Error>)], now: SystemTime) -> Finding {
    let id = TIME.id;
    let stands = services.iter().map(|(name, state)| (*name, state, standing(name, state, now)));
    let (mut running, mut down) = (None, None);
    for (name, state, standing) in stands {
        match standing {
            Standing::Runs(..) | Standing::Shaky(_) => running = running.or(Some(name)),
            Standing::Down(text) => down = down.or(Some((name, state, text))),
            Standing::Absent | Standing::Off(_) | Standing::Unknown(_) => {}
        }
    }
    let clock = match clock {
        Ok(clock) => clock,
        Err(error) => return unknown(id, error),
    };
    // One of two that are installed is enough: the other one then gives way.
    if let (Some((name, state, text)), None) = (&down, running) {
        let so_far = if clock.synchronized { "the clock was synchronized and drifts from now on" } else { "the clock is not synchronized" };
        let finding = Finding::degraded(id, format!("{text}; {so_far}"), unit::remedy(name)).about(*name);
        return unit::mended(finding, name, state);
    }
    let by = running.map(|name| format!(" ({name} runs)")).unwrap_or_default();
    if clock.synchronized {
        return Finding::ok(id, format!("the kernel's clock is synchronized{by}"));
    }
    if clock.uptime < BOOTED {
        return Finding::ok(id, format!("not synchronized yet{by}: the host has just booted"));
    }
    match running {
        Some(name) => {
            let remedy = "look at its servers: `chronyc sources`, or `timedatectl timesync-status`; is UDP port 123 let through?";
            Finding::degraded(id, format!("{name} runs, and the clock is not synchronized"), remedy).about(name)
        }
        None => {
            let remedy = "install and configure one: `apt install chrony`, servers in /etc/chrony/chrony.conf";
            Finding::degraded(id, "nothing that is known synchronizes the clock", remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Trouble, health::State, host::units_fake::FakeUnits};

    fn clock(synchronized: bool, up: u64) -> Result<ClockState, Error> {
        Ok(ClockState { synchronized, uptime: Duration::from_secs(up) })
    }

    fn off() -> UnitState {
        UnitState { active: "inactive".into(), sub: "dead".into(), enabled: "disabled".into(), ..FakeUnits::running() }
    }

    #[test]
    fn chrony_timesyncd_and_others_alike_are_seen_by_their_effect() {
        let now = SystemTime::now();
        let stopped = UnitState { active: "inactive".into(), sub: "dead".into(), ..FakeUnits::running() };
        let chrony = |state: UnitState| vec![("chrony.service", Ok(state))];
        let table = [
            ("chrony", clock(true, 86400), chrony(FakeUnits::running()), State::Ok),
            (
                "timesyncd",
                clock(true, 86400),
                vec![("systemd-timesyncd.service", Ok(FakeUnits::running())), ("chrony.service", Ok(off()))],
                State::Ok,
            ),
            (
                "chrony beside a timesyncd that gave way",
                clock(true, 86400),
                vec![("systemd-timesyncd.service", Ok(stopped.clone())), ("chrony.service", Ok(FakeUnits::running()))],
                State::Ok,
            ),
            ("PTP", clock(true, 86400), vec![], State::Ok),
            ("just booted", clock(false, 30), chrony(FakeUnits::running()), State::Ok),
            ("no servers", clock(false, 86400), chrony(FakeUnits::running()), State::Degraded),
            ("nothing", clock(false, 86400), vec![], State::Degraded),
            ("chrony stopped", clock(true, 86400), chrony(stopped), State::Degraded),
            ("chrony dead", clock(true, 86400), chrony(FakeUnits::dead()), State::Degraded),
            ("no bus", Err(Error::Look { trouble: Trouble::Missing, message: "no bus".into() }), vec![], State::Unknown),
        ];
        for (name, clock, services, expected) in table {
            let found = decide(&clock, &services, now);
            assert_eq!(found.state, expected, "{name}: {found:?}");
        }
        let dead = decide(&clock(true, 86400), &chrony(FakeUnits::dead()), now);
        assert!(dead.mend.is_some() && dead.seen.contains("chrony.service is failed"), "{dead:?}");
    }
}
