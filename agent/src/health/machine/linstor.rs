//! LINSTOR's satellite, where this host has one.

use std::{sync::Arc, time::SystemTime};

use super::{
    source::{Look, check},
    unit::{self, Standing, standing},
    words::unknown,
};
use crate::{
    error::Error,
    health::{Check, Finding, Pace, Source},
    host::{
        machine::{Connections, Machine},
        units::{UnitState, Units},
    },
};

const LINSTOR: Check =
    check("host.linstor", "Without its satellite LINSTOR makes, removes and resizes no volume on this host; those that are in use go on.");

const SATELLITE: &str = "linstor-satellite.service";
/// The satellite's ports, plain and by TLS. The controller connects to it, and keeps the connection.
const PORTS: [u16; 2] = [3366, 3367];

pub(super) fn source(pace: Pace, machine: &Arc<dyn Machine>, units: &Arc<dyn Units>) -> Arc<dyn Source> {
    let (machine, asked) = (Arc::clone(machine), Arc::clone(units));
    let look = move || {
        let (machine, units) = (Arc::clone(&machine), Arc::clone(&asked));
        async move {
            let state = units.state(SATELLITE).await;
            let there = state.as_ref().is_ok_and(UnitState::exists);
            let connections = if there { Some(machine.connections(&PORTS).await) } else { None };
            vec![decide(&state, connections.as_ref(), SystemTime::now())]
        }
    };
    Look::new("linstor", &[LINSTOR], pace, look).stirred_by_units(units, &[SATELLITE]).done()
}

fn decide(state: &Result<UnitState, Error>, connections: Option<&Result<Connections, Error>>, now: SystemTime) -> Finding {
    let id = LINSTOR.id;
    let text = match standing(SATELLITE, state, now) {
        Standing::Runs(text, since) if since.is_some() => text,
        // Being started.
        Standing::Runs(text, _) => return Finding::ok(id, text),
        Standing::Absent => return Finding::not_applicable(id, "LINSTOR's satellite is not installed"),
        Standing::Off(text) => return Finding::not_applicable(id, text),
        Standing::Shaky(text) => return Finding::degraded(id, text, unit::remedy(SATELLITE)).about(SATELLITE),
        Standing::Down(text) => return unit::mended(Finding::failed(id, text, unit::remedy(SATELLITE)).about(SATELLITE), SATELLITE, state),
        Standing::Unknown(text) => return Finding::unknown(id, text),
    };
    match connections {
        Some(Ok(connections)) if connections.established > 0 => Finding::ok(id, format!("{text}, connected to its controller")),
        Some(Ok(connections)) if connections.listening => {
            let remedy = "look at LINSTOR's controller (`systemctl status linstor-controller` where it runs), `linstor node list`, and the network to it";
            Finding::degraded(id, format!("{text}, and no controller is connected to it"), remedy).about(SATELLITE)
        }
        // It listens elsewhere, as its configuration may say.
        Some(Ok(_)) => {
            Finding::ok(id, format!("{text}; it uses other ports than {} and {}, so its connection is not seen", PORTS[0], PORTS[1]))
        }
        Some(Err(error)) => unknown(id, error),
        None => Finding::ok(id, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Trouble, health::State, host::units_fake::FakeUnits};

    #[test]
    fn a_satellite_must_run_and_be_connected_where_it_is_wanted() {
        let now = SystemTime::now();
        let connections = |listening, established| Some(Ok(Connections { listening, established }));
        let not_found = UnitState { load: "not-found".into(), active: "inactive".into(), ..UnitState::default() };
        let off = UnitState { active: "inactive".into(), enabled: "disabled".into(), ..FakeUnits::running() };
        let bus = || Error::Look { trouble: Trouble::Missing, message: "no bus".into() };
        let table = [
            (Ok(not_found), None, State::NotApplicable),
            (Ok(off), connections(false, 0), State::NotApplicable),
            (Ok(FakeUnits::running()), connections(true, 1), State::Ok),
            (Ok(FakeUnits::running()), connections(true, 0), State::Degraded),
            (Ok(FakeUnits::running()), connections(false, 0), State::Ok),
            (Ok(FakeUnits::running()), Some(Err(bus())), State::Unknown),
            (Ok(FakeUnits::dead()), connections(false, 0), State::Failed),
            (Err(bus()), None, State::Unknown),
        ];
        for (state, connections, expected) in table {
            let found = decide(&state, connections.as_ref(), now);
            assert_eq!(found.state, expected, "{state:?} {connections:?}: {found:?}");
        }
    }
}
