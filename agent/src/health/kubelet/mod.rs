//! The kubelet's health.
//!
//! Each source reads by itself how the kubelet is set up (`setup`): unit, command line, configuration; so that none waits for another. What is
//! made of that is pure.

mod certificate;
mod config;
mod config_check;
mod errors;
pub mod facts;
mod flags;
mod healthz;
mod pressure;
mod setup;
#[cfg(test)]
mod testing;
mod threshold;
mod unit;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::setup::Reader;
use super::{Check, Finding, Pace, Source};
use crate::{
    config::Health,
    host::{clock::SystemClock, journal::Journal, kubelet::Kubelet, runtime::Runtime, units::Units},
};

/// How long a look may take: all of its questions have shorter deadlines of their own.
const DEADLINE: Duration = Duration::from_secs(20);

/// The sources of all checks of the kubelet. `runtime` tells where images lie.
pub fn sources(
    settings: &Health,
    kubelet: Arc<dyn Kubelet>,
    journal: Arc<dyn Journal>,
    units: Arc<dyn Units>,
    runtime: Arc<dyn Runtime>,
) -> Vec<Arc<dyn Source>> {
    let (reader, clock) = (Arc::new(Reader::new(settings, kubelet, units)), Arc::new(SystemClock));
    vec![
        Arc::new(unit::UnitSource::new(reader.clone(), clock.clone())),
        Arc::new(healthz::HealthzSource::new(reader.clone())),
        Arc::new(errors::ErrorsSource::new(reader.clone(), journal, clock.clone())),
        Arc::new(certificate::CertificateSource { reader: reader.clone(), clock }),
        Arc::new(config_check::ConfigSource(reader.clone())),
        Arc::new(pressure::PressureSource::new(reader, runtime)),
    ]
}

fn pace(period: Duration) -> Pace {
    Pace { period, deadline: DEADLINE }
}

/// No finding of these checks concerns this host.
fn none(checks: &[Check], why: &str) -> Vec<Finding> {
    checks.iter().map(|check| Finding::not_applicable(check.id, why)).collect()
}

/// A time, for people.
fn when(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_) => "a time that no calendar has".into(),
    }
}
