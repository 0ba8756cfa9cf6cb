//! The health of PVE and of the machine: the group `host`.
//!
//! Each file holds what one or a few checks make of what was read: a function without any reading, tested by table, and the source that reads.

mod certificates;
mod cluster;
mod daemons;
mod drbd;
mod linstor;
mod locks;
mod memory;
mod pools;
mod reboot;
mod source;
mod storages;
mod time;
mod unit;
mod words;

use std::{sync::Arc, time::Duration};

use super::{Pace, Source};
use crate::{
    config,
    host::{machine::Machine, pve::Pve, units::Units},
};

/// From one run of what needs a program, or PVE's daemon for a tenth of a second, to the next.
const SLOW: Duration = Duration::from_secs(60);
/// Certificates do not change by themselves, and parsing keys costs more than reading a file.
const RARE: Duration = Duration::from_secs(600);
/// Files and sockets answer at once; the boundary's own deadlines are shorter.
const DEADLINE: Duration = Duration::from_secs(12);
/// Programs, and storages that PVE looks at one after the other.
const SLOW_DEADLINE: Duration = Duration::from_secs(40);

/// The checks of the group `host`.
pub fn sources(settings: &config::Health, pve: Arc<dyn Pve>, machine: Arc<dyn Machine>, units: Arc<dyn Units>) -> Vec<Arc<dyn Source>> {
    let often = Pace { period: settings.period, deadline: DEADLINE };
    let slow = Pace { period: settings.period.max(SLOW), deadline: SLOW_DEADLINE };
    let rare = Pace { period: settings.period.max(RARE), deadline: DEADLINE };
    let limits = words::Limits { warning: settings.usage_warning, critical: settings.usage_critical };
    vec![
        cluster::quorum(often, &pve),
        cluster::links(slow, &pve, &machine),
        cluster::file_system(often, &pve, &machine, &units),
        daemons::pvedaemon(often, &pve, &units),
        daemons::pvestatd(often, &machine, &units),
        daemons::pveproxy(often, &units),
        certificates::source(rare, &machine, settings.certificate_warning),
        storages::source(slow, &pve, limits),
        pools::thin(slow, &machine, limits),
        pools::zfs(slow, &machine, limits),
        reboot::source(slow, &machine),
        time::source(slow, &machine, &units),
        memory::source(often, &pve, &machine),
        locks::source(often, &pve, &machine),
        linstor::source(slow, &machine, &units),
        drbd::source(slow, &machine),
    ]
}

#[cfg(test)]
mod tests;
