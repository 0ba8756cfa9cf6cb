//! What the controller counts, for Prometheus.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    kind::Phase,
    reconcile::{HostView, Link},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pass {
    kind: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    phase: String,
}

/// Hosts, and machines by phase, as they are when somebody asks.
pub(crate) type Census = Box<dyn Fn() -> (Vec<Arc<HostView>>, HashMap<Phase, i64>) + Send + Sync>;

/// All metrics.
pub struct Metrics {
    registry: Registry,
    census: Mutex<Option<Census>>,
    passes: Family<Pass, Counter>,
    hosts: Family<HostState, Gauge>,
    machines: Family<InPhase, Gauge>,
    /// Objects that wait for their turn.
    pub queue: Gauge,
    /// 1 where this instance leads, 0 where it stands by.
    pub leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("pvelet_controller");
        let (passes, hosts, machines) = (Family::default(), Family::default(), Family::default());
        let (queue, leader) = (Gauge::default(), Gauge::default());
        registry.register("reconciles", "Passes over an object by kind and result", passes.clone());
        registry.register("hosts", "Hosts by state of the connection to their agent", hosts.clone());
        registry.register("machines", "Machines by phase", machines.clone());
        registry.register("queue_length", "Objects that wait for their turn", queue.clone());
        registry.register("leader", "1 where this instance leads, 0 where it stands by", leader.clone());
        Self { registry, census: Mutex::default(), passes, hosts, machines, queue, leader }
    }
}

impl Metrics {
    pub(crate) fn passed(&self, kind: &str, ok: bool) {
        self.passes.get_or_create(&Pass { kind: kind.to_owned(), result: if ok { "ok" } else { "error" } }).inc();
    }

    /// Says where hosts and machines are counted when the metrics are asked for, from now on.
    pub(crate) fn set_census(&self, census: Census) {
        *self.census.lock().unwrap_or_else(PoisonError::into_inner) = Some(census);
    }

    fn count(&self, hosts: &[Arc<HostView>], phases: &HashMap<Phase, i64>) {
        for state in ["up", "connecting", "down"] {
            let is = |h: &&Arc<HostView>| {
                matches!((&h.link, state), (Link::Up, "up") | (Link::Connecting, "connecting") | (Link::Down { .. }, "down"))
            };
            self.hosts.get_or_create(&HostState { state }).set(i64::try_from(hosts.iter().filter(is).count()).unwrap_or(i64::MAX));
        }
        for phase in Phase::ALL {
            let label = InPhase { phase: format!("{phase:?}") };
            self.machines.get_or_create(&label).set(phases.get(phase).copied().unwrap_or(0));
        }
    }

    /// In Prometheus' text format.
    ///
    /// # Errors
    /// The formatter fails, which a `String` does not.
    pub fn text(&self) -> Result<String, fmt::Error> {
        if let Some(census) = &*self.census.lock().unwrap_or_else(PoisonError::into_inner) {
            let (hosts, phases) = census();
            self.count(&hosts, &phases);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
