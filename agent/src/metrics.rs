//! What can be counted, in Prometheus' text form. Names begin with `pvelet_agent_`.

use std::{
    fmt,
    sync::atomic::{AtomicI64, AtomicU64},
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};
use tonic::Code;

use crate::health::State;

/// From 0.25 ms, which a read takes, to 17 min, which a held-open mutation may, in steps of 4.
const FIRST_BUCKET: f64 = 0.000_25;
const BUCKETS: u16 = 12;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pool {
    pool: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    kind: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    check: &'static str,
    group: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunLabels {
    source: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RepairLabels {
    result: &'static str,
    by: &'static str,
}

/// How a run of checks ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// With findings, whatever they are.
    Ended,
    /// Its deadline came first.
    Late,
    /// It panicked.
    Panicked,
}

impl Run {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Late => "late",
            Self::Panicked => "panicked",
        }
    }
}

/// A state of health as a number: a sum or a maximum over hosts tells something.
fn state_number(state: State) -> i64 {
    match state {
        State::NotApplicable => -1,
        State::Ok => 0,
        State::Degraded => 1,
        State::Failed => 2,
        State::Unknown => 3,
    }
}

type Histograms = Family<Method, Histogram, fn() -> Histogram>;

/// What is read from elsewhere when the metrics are asked for.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// VMs of the inventory.
    pub vms: usize,
    /// Nodes of the inventory.
    pub nodes: usize,
    /// Whether this node may write.
    pub quorate: bool,
    /// For how long the cluster file system has not answered.
    pub hung: Duration,
    /// Open connections.
    pub connections: usize,
    /// Operations by kind and state.
    pub operations: Vec<(&'static str, &'static str, usize)>,
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    calls: Family<Call, Counter>,
    seconds: Histograms,
    shed: Family<Pool, Counter>,
    handshake_failures: Counter,
    reload_failures: Counter,
    certificate_expiry: Gauge<i64, AtomicI64>,
    client_ca_expiry: Gauge<i64, AtomicI64>,
    events: Counter,
    streams_ended: Counter,
    vms: Gauge,
    nodes: Gauge,
    quorate: Gauge,
    hung: Gauge<f64, AtomicU64>,
    connections: Gauge,
    operations: Family<OperationLabels, Gauge>,
    checks: Family<CheckLabels, Gauge>,
    health: Gauge,
    runs: Family<RunLabels, Counter>,
    run_seconds: Family<SourceLabels, Counter<f64, AtomicU64>>,
    panics: Family<SourceLabels, Counter>,
    repairs: Family<RepairLabels, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("pvelet_agent");
        let calls = Family::<Call, Counter>::default();
        let seconds = Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(FIRST_BUCKET, 4.0, BUCKETS)));
        let shed = Family::<Pool, Counter>::default();
        let operations = Family::<OperationLabels, Gauge>::default();
        let (handshake_failures, reload_failures, events, streams_ended) =
            (Counter::default(), Counter::default(), Counter::default(), Counter::default());
        let client_ca_expiry = Gauge::<i64, AtomicI64>::default();
        let certificate_expiry = Gauge::<i64, AtomicI64>::default();
        let hung = Gauge::<f64, AtomicU64>::default();
        let (vms, nodes, quorate, connections) = (Gauge::default(), Gauge::default(), Gauge::default(), Gauge::default());

        let (checks, health, runs) = (Family::<CheckLabels, Gauge>::default(), Gauge::default(), Family::<RunLabels, Counter>::default());
        let run_seconds = Family::<SourceLabels, Counter<f64, AtomicU64>>::default();
        let panics = Family::<SourceLabels, Counter>::default();
        let repairs = Family::<RepairLabels, Counter>::default();

        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The agent's version", version);
        registry.register("rpc", "Calls that have ended, by method and gRPC code", calls.clone());
        registry.register("rpc_seconds", "How long calls took, streams left out", seconds.clone());
        registry.register("shed", "What was refused because too much was under way", shed.clone());
        registry.register("tls_handshake_failures", "Handshakes that failed or took too long", handshake_failures.clone());
        registry.register("tls_reload_failures", "Reloads of TLS files that kept the last good set", reload_failures.clone());
        let help = "When the agent's certificate ends, seconds since the Unix epoch";
        registry.register("tls_certificate_expiry_timestamp_seconds", help, certificate_expiry.clone());
        let help = "When the first of the CAs whose clients are heard ends, seconds since the Unix epoch";
        registry.register("tls_client_ca_expiry_timestamp_seconds", help, client_ca_expiry.clone());
        registry.register("events", "Host events sent to clients", events.clone());
        registry.register("slow_consumers", "Streams ended because their client read too slowly", streams_ended.clone());
        registry.register("vms", "VMs of the PVE cluster as the agent sees them", vms.clone());
        registry.register("nodes", "Nodes of the PVE cluster", nodes.clone());
        registry.register("quorate", "1 when this node may write", quorate.clone());
        registry.register("pmxcfs_hung_seconds", "For how long the cluster file system has not answered; 0 when it does", hung.clone());
        registry.register("connections", "Open connections", connections.clone());
        registry.register("operations", "Operations that are kept, by kind and state", operations.clone());
        let numbers = "0 ok, 1 degraded, 2 failed, 3 unknown";
        registry.register("check_state", format!("Health checks: {numbers}, -1 not applicable"), checks.clone());
        registry.register("health_state", format!("The host's health: {numbers}"), health.clone());
        registry.register("check_runs", "Runs of health checks, by source and how they ended", runs.clone());
        registry.register("check_run_seconds", "Time that runs of health checks took, waiting included", run_seconds.clone());
        registry.register("check_panics", "Panics of sources of health checks", panics.clone());
        registry.register("repairs", "Repairs that have ended, by result and by who began them", repairs.clone());
        Self {
            registry,
            calls,
            seconds,
            shed,
            handshake_failures,
            reload_failures,
            certificate_expiry,
            client_ca_expiry,
            events,
            streams_ended,
            vms,
            nodes,
            quorate,
            hung,
            connections,
            operations,
            checks,
            health,
            runs,
            run_seconds,
            panics,
            repairs,
        }
    }

    /// A health check is in this state.
    pub fn check(&self, check: &'static str, group: &'static str, state: State) {
        self.checks.get_or_create(&CheckLabels { check, group }).set(state_number(state));
    }

    /// The host's health is in this state.
    pub fn health(&self, state: State) {
        self.health.set(state_number(state));
    }

    /// A run of a source of health checks is over.
    pub fn check_run(&self, source: &'static str, result: Run, took: Duration) {
        self.runs.get_or_create(&RunLabels { source, result: result.as_str() }).inc();
        self.run_seconds.get_or_create(&SourceLabels { source }).inc_by(took.as_secs_f64());
    }

    /// A source of health checks panicked.
    pub fn check_panicked(&self, source: &'static str) {
        self.panics.get_or_create(&SourceLabels { source }).inc();
    }

    /// A repair has ended; `automatic`: the agent had begun it by itself.
    pub fn repaired(&self, result: &'static str, automatic: bool) {
        self.repairs.get_or_create(&RepairLabels { result, by: if automatic { "agent" } else { "request" } }).inc();
    }

    /// A call has ended. `duration` is `None` for streams, which last as long as their client wants.
    pub fn call(&self, method: &'static str, code: Code, duration: Option<Duration>) {
        self.calls.get_or_create(&Call { method, code: code_name(code) }).inc();
        if let Some(duration) = duration {
            self.seconds.get_or_create(&Method { method }).observe(duration.as_secs_f64());
        }
    }

    /// Something was refused for want of places in `pool`.
    pub fn shed(&self, pool: &'static str) {
        self.shed.get_or_create(&Pool { pool }).inc();
    }

    /// A handshake failed.
    pub fn handshake_failed(&self) {
        self.handshake_failures.inc();
    }

    /// New TLS files were bad.
    pub fn tls_reload_failed(&self) {
        self.reload_failures.inc();
    }

    /// How often new TLS files were bad.
    pub fn tls_reload_failures(&self) -> u64 {
        self.reload_failures.get()
    }

    /// The agent's certificate ends then.
    pub fn certificate_expires(&self, at: SystemTime) {
        self.certificate_expiry.set(unix_seconds(at));
    }

    /// The first of the client CAs ends then; `None`: there is none.
    pub fn client_ca_expires(&self, at: Option<SystemTime>) {
        self.client_ca_expiry.set(at.map_or(0, unix_seconds));
    }

    /// A host event went to a client.
    pub fn event(&self) {
        self.events.inc();
    }

    /// A stream was ended because its client read too slowly.
    pub fn slow_consumer(&self) {
        self.streams_ended.inc();
    }

    /// Everything as text (OpenMetrics).
    pub fn encode(&self, now: &Snapshot) -> String {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.vms.set(number(now.vms));
        self.nodes.set(number(now.nodes));
        self.quorate.set(i64::from(now.quorate));
        self.hung.set(now.hung.as_secs_f64());
        self.connections.set(number(now.connections));
        self.operations.clear();
        for (kind, state, count) in &now.operations {
            self.operations.get_or_create(&OperationLabels { kind, state }).set(number(*count));
        }
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn unix_seconds(at: SystemTime) -> i64 {
    i64::try_from(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// The code as gRPC writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_by_name() {
        let metrics = Metrics::new();
        metrics.call("GetHost", Code::Ok, Some(Duration::from_millis(1)));
        metrics.shed("reads");
        metrics.tls_reload_failed();
        metrics.certificate_expires(SystemTime::UNIX_EPOCH + Duration::from_secs(42));
        let snapshot = Snapshot { vms: 7, operations: vec![("CLONE_VM", "RUNNING", 2)], ..Snapshot::default() };
        let text = metrics.encode(&snapshot);
        for line in [
            "pvelet_agent_rpc_total{method=\"GetHost\",code=\"OK\"} 1",
            "pvelet_agent_shed_total{pool=\"reads\"} 1",
            "pvelet_agent_tls_reload_failures_total 1",
            "pvelet_agent_tls_certificate_expiry_timestamp_seconds 42",
            "pvelet_agent_vms 7",
            "pvelet_agent_operations{kind=\"CLONE_VM\",state=\"RUNNING\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!metrics.encode(&Snapshot::default()).contains("CLONE_VM"), "an operation that is gone is no longer told");
    }
}
