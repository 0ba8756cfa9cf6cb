//! Health and repairs, put together.

use std::sync::Arc;

use pvelet_proto::identity::{Identity, Subject};

use crate::{
    config::Config,
    health::{
        self, Health, Outside,
        repair::{self, Repairs},
    },
    host::{blocking::Blocking, clock::SystemClock},
    metrics::Metrics,
    network::Networks,
    operation::Operations,
    tls::Credentials,
    vm::Vms,
};

/// What the rest of the agent is asked about its health.
pub(super) struct Parts<'a> {
    pub(super) vms: &'a Vms,
    pub(super) networks: &'a Networks,
    pub(super) operations: &'a Arc<Operations>,
    pub(super) credentials: &'a Arc<Credentials>,
    pub(super) metrics: &'a Arc<Metrics>,
}

/// Starts to look. Repairs do nothing before they are settled.
pub(super) async fn start(config: &Config, outside: Outside, parts: Parts<'_>) -> (Health, Repairs) {
    let mut sources = outside.sources;
    sources.push(Arc::new(health::Preflight::new(parts.networks.clone(), config.health.period)));
    sources.push(Arc::new(health::Own {
        credentials: Arc::clone(parts.credentials),
        operations: Arc::clone(parts.operations),
        clock: Arc::new(SystemClock),
        period: config.health.period,
        warning: config.health.certificate_warning,
        place: Blocking::new(),
    }));
    let health = Health::start(sources, Arc::new(SystemClock), parts.metrics);
    let cluster = parts.credentials.current().cluster.clone();
    let settings = repair::Settings {
        policy: config.repair.policy,
        limit_per_hour: config.repair.limit_per_hour,
        patience: config.repair.patience,
        containerd_unit: config.health.containerd_unit.clone(),
        identity: Identity {
            trust_domain: config.tls.trust_domain.clone(),
            subject: Subject::Host { cluster, node: config.pve.node.clone() },
        },
    };
    let of_repair = repair::Parts {
        checks: Arc::new(health.clone()),
        units: outside.units,
        files: outside.files,
        mender: outside.mender,
        record: outside.record,
        metrics: Arc::clone(parts.metrics),
    };
    (health, Repairs::open(parts.vms, of_repair, settings).await)
}
