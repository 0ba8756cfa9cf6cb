//! The agent as a whole: its parts put together, served, reloaded, drained.

mod address;
mod health;
#[cfg(test)]
mod health_tests;
mod http;
#[cfg(test)]
mod mutation_tests;
#[cfg(test)]
mod network_tests;
mod reload;
mod serving;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod world;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use pvelet_proto::v1::{
    self, certificate_service_server::CertificateServiceServer, health_service_server::HealthServiceServer,
    host_service_server::HostServiceServer, network_service_server::NetworkServiceServer, operation_service_server::OperationServiceServer,
    vm_service_server::VmServiceServer, volume_service_server::VolumeServiceServer,
};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use crate::{
    auth::{Authorizer, GateLayer},
    config::{Config, Mode},
    error::Error,
    health::Outside,
    host::{clock::SystemClock, facts::Facts, links::Links, net::Network, pve::Pve, storage::VolumeStore},
    inventory::{self, HostView},
    limits::Limits,
    logging::Level,
    metrics::Metrics,
    network::{self, Networks},
    operation::{Deadlines, LaneSizes, Operations, Settings as OperationSettings},
    rpc::{CertificateRpc, HealthRpc, HostRpc, NetworkRpc, OperationRpc, Shared, VmRpc, VolumeRpc},
    tls::{self, Certificates, Connection, Credentials},
    vm::{self, Vms},
    volume::Volumes,
};

pub use address::bind;
pub use reload::Reload;

/// A peer that vanished without a word is noticed within 40 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at once on one connection; the limits of each class come on top.
const CALLS_PER_CONNECTION: u32 = 256;
/// A bundle and its lists are larger than other requests; only administrators send them, and each field has its own bound.
const CERTIFICATE_BYTES: usize = 4 << 20;
/// Who is just coming in when the agent ends gets so long to be let in; the others wait for the next process in the kernel's queue.
const ARRIVALS: Duration = Duration::from_secs(1);
/// After the last operation has ended, clients get so long to take their last answers.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a journal may be in use by somebody who is about to end, and how often it is tried meanwhile: nobody tells when a lock is free.
const JOURNAL_RELEASED: Duration = Duration::from_secs(5);
const JOURNAL_RETRY: Duration = Duration::from_millis(50);
/// A range for an agent that gives out no VMIDs: empty.
const NO_RANGE: (u32, u32) = (1, 0);

/// The outside world of an agent.
pub struct World {
    /// PVE.
    pub pve: Arc<dyn Pve>,
    /// The storages, for what PVE has no call for.
    pub store: Arc<dyn VolumeStore>,
    /// Network links.
    pub links: Arc<dyn Links>,
    /// The host's own network.
    pub network: Arc<dyn Network>,
    /// Facts of the host.
    pub facts: Arc<dyn Facts>,
    /// What its health is read from, and mended with.
    pub health: Outside,
    /// Whether changes of the TLS files are seen by themselves. Many agents in one process would use up what the kernel lets one user watch.
    pub follow_tls_files: bool,
}

/// An agent that serves.
pub struct Agent {
    /// Where the API is served.
    pub address: SocketAddr,
    /// Where metrics are served, if they are.
    pub metrics_address: Option<SocketAddr>,
    shared: Shared,
    credentials: Arc<Credentials>,
    health: HealthReporter,
    /// When connections are accepted.
    doors: tls::Doors,
    /// No new calls (GOAWAY).
    closing: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    background: Vec<tokio::task::AbortHandle>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("address", &self.address).finish_non_exhaustive()
    }
}

fn operation_settings(config: &Config) -> OperationSettings {
    let vm = &config.vm;
    OperationSettings {
        lanes: LaneSizes { short: vm.short_lane as usize, long: vm.long_lane as usize },
        deadlines: Deadlines {
            clone_linked: vm.linked_clone_deadline,
            clone_full: vm.full_clone_deadline,
            configure: vm.configure_deadline,
            power: vm.power_deadline,
            delete: vm.delete_deadline,
        },
        ..OperationSettings::new(&config.state_dir)
    }
}

/// Opens the journal. A second agent on the same state is refused here, before it has touched anything.
///
/// # Errors
/// `Journal`.
pub async fn open_operations(config: &Config) -> Result<Arc<Operations>, Error> {
    let end = tokio::time::Instant::now() + JOURNAL_RELEASED;
    loop {
        let settings = operation_settings(config);
        let opened = tokio::task::spawn_blocking(move || Operations::open(settings, Arc::new(SystemClock))).await;
        match opened.map_err(|e| Error::Start(format!("opening the journal failed: {e}")))? {
            // An agent that was killed while it started a program lives on in that child for a moment, with the journal's lock.
            Err(Error::JournalInUse { .. }) if tokio::time::Instant::now() < end => tokio::time::sleep(JOURNAL_RETRY).await,
            other => return other,
        }
    }
}

impl Agent {
    /// Puts the parts together; [`Self::open`] lets clients in. Settling what the last run left begins in the background.
    ///
    /// # Errors
    /// `Credentials` when a TLS file is bad; `Start` when the address of the metrics cannot be bound.
    pub async fn start(config: &Config, world: World, operations: Arc<Operations>, listener: std::net::TcpListener) -> Result<Self, Error> {
        let metrics = Arc::new(Metrics::new());
        let credentials = Credentials::open(config.tls.clone(), config.pve.node.clone(), metrics.clone())?;
        let listener = TcpListener::from_std(listener).map_err(|e| Error::Start(format!("the listening socket: {e}")))?;
        let address = listener.local_addr().map_err(|e| Error::Start(format!("no address: {e}")))?;

        let range = config.vm.vmid_range.as_ref().map(|r| (*r.start(), *r.end()));
        let manage = config.mode == Mode::Manage;
        // Observing until the host view has seen that PVE's version is one of the tested ones.
        let mut settings = vm::Settings::new(&config.pve.node, range.unwrap_or(NO_RANGE), vm::Mode::Observe);
        settings.lease_quarantine = config.vm.vmid_quarantine;
        settings.volumes = vm::VolumeSettings {
            owner_vmid: config.volumes.owner_vmid,
            max_slots: config.volumes.max_slots,
            import_folders: config.volumes.import_folders.clone(),
        };
        settings.snippets_storage.clone_from(&config.vm.snippets_storage);
        let vms = Vms::new(world.pve.clone(), world.store, world.links.clone(), operations.clone(), settings);
        let settings = inventory::Settings {
            node: config.pve.node.clone(),
            vmid_range: range,
            manage,
            allow_untested: config.pve.allow_untested_version,
        };
        let host = HostView::new(settings, world.pve, world.links, world.facts, vms.clone(), metrics.clone());
        let shown = Arc::clone(&host);
        let networks = Networks::new(
            &vms,
            world.network,
            network::Settings { confirm_timeout: config.network.confirm_timeout },
            network::Agent {
                listeners: listeners(address, &credentials),
                latched: Arc::new(move |latched| shown.set_network_latched(latched)),
            },
        );
        let parts = health::Parts { vms: &vms, networks: &networks, operations: &operations, credentials: &credentials, metrics: &metrics };
        let (checks, repairs) = health::start(config, world.health, parts).await;
        let shared = Shared {
            health: checks,
            repairs,
            volumes: Volumes::new(&vms),
            networks,
            certificates: Certificates::new(credentials.clone()),
            vms,
            operations,
            host,
            authorizer: Arc::new(Authorizer::new(&config.identities)),
            metrics,
            ending: CancellationToken::new(),
        };

        let mut background = vec![
            tokio::spawn(shared.host.clone().follow_version()).abort_handle(),
            tokio::spawn(shared.host.clone().follow_shutdown()).abort_handle(),
        ];
        if world.follow_tls_files {
            background.push(tokio::spawn(credentials.clone().follow_files()).abort_handle());
        }
        let metrics_address = match config.metrics {
            Some(address) => {
                let (address, task) = http::serve(address, shared.clone(), credentials.clone()).await?;
                background.push(task);
                Some(address)
            }
            None => None,
        };
        let vms = shared.vms.clone();
        background.push(tokio::spawn(async move { vms.settle().await }).abort_handle());
        let networks = shared.networks.clone();
        background.push(tokio::spawn(async move { networks.settle().await }).abort_handle());
        shared.repairs.settle();
        background.push(shared.repairs.automatic());

        let (doors, closing) = (tls::Doors::default(), CancellationToken::new());
        let health = HealthReporter::new();
        let options = tls::Options {
            handshake_deadline: config.tls.handshake_deadline,
            max_handshakes: config.tls.max_handshakes,
            max_connections: config.tls.max_connections,
        };
        let incoming = tls::incoming(listener, credentials.clone(), shared.metrics.clone(), options, doors.clone());
        let server = serve(config, incoming, &shared, &health, &closing)?;
        background.push(tokio::spawn(serving::follow(shared.health.clone(), health.clone())).abort_handle());
        for service in SERVICES {
            health.set_service_status(service, tonic_health::ServingStatus::Serving).await;
        }
        Ok(Self { address, metrics_address, shared, credentials, health, doors, closing, server, background })
    }

    /// What is taken over from a reloaded configuration.
    pub fn reloader(&self, file: std::path::PathBuf, level: Option<Level>) -> Reload {
        Reload::new(file, level, self.shared.clone(), self.credentials.clone())
    }

    /// A line for people: how the agent stands.
    pub fn status(&self) -> String {
        let mode = if self.shared.host.mode() == v1::Mode::Manage { "managing" } else { "observing" };
        format!("{mode}, serving on {}", self.address)
    }

    /// Accepts connections from now on. Those that came before have waited.
    pub fn open(&self) {
        self.doors.open.cancel();
    }

    /// Waits until PVE has told what there is, no longer than `patience`: who calls right after the start shall not be refused for it.
    pub async fn known(&self, patience: Duration) {
        if !self.shared.host.known(patience).await {
            tracing::warn!("PVE has not told its VMs and its version yet: serving, but refusing what needs them");
        }
        let (named, found) = (&self.credentials.current().cluster, self.shared.host.cluster());
        if let Some(found) = found.filter(|found| found != named) {
            let remedy = format!("make a request for the right one on the host: `pvelet-agent signing-request --cluster {found}`");
            tracing::warn!(named, found, remedy, "the certificate names another PVE cluster: clients that mean this one will refuse it");
        }
    }

    /// Whether the runtime's workers and its threads for blocking work answer within `patience`.
    pub async fn alive(&self, patience: Duration) -> bool {
        let (worker, blocking) = (tokio::spawn(async {}), tokio::task::spawn_blocking(|| {}));
        let both = async { worker.await.is_ok() && blocking.await.is_ok() };
        timeout(patience, both).await.unwrap_or(false)
    }

    /// Returns when the server has ended by itself, which it never should.
    pub async fn ended(&mut self) -> Error {
        match (&mut self.server).await {
            Ok(Ok(())) => Error::Start("the server ended".into()),
            Ok(Err(e)) => Error::Start(format!("the server failed: {e}")),
            Err(e) => Error::Start(format!("the server failed: {e}")),
        }
    }

    /// Ends. Operations that run get until `deadline`, none is begun any more, and everything else is served meanwhile: what a client
    /// opens while the agent is restarted shall wait for no longer than the next process takes to start. Then no new connections and calls
    /// (GOAWAY), then the streams. Returns how many operations are left; the next start takes them up again.
    pub async fn drain(mut self, deadline: Duration) -> usize {
        for service in SERVICES.iter().chain(&[""]) {
            self.health.set_service_status(service, tonic_health::ServingStatus::NotServing).await;
        }
        self.shared.host.set_shutting_down();
        let left = self.shared.operations.drain(deadline).await;
        self.doors.leaving.cancel();
        let _ = timeout(ARRIVALS, self.doors.arrived.cancelled()).await;
        self.closing.cancel();
        self.shared.ending.cancel();
        if timeout(FAREWELL, &mut self.server).await.is_err() {
            tracing::info!("some clients did not hang up in time");
        }
        self.server.abort();
        self.shared.health.stop();
        self.background.iter().for_each(tokio::task::AbortHandle::abort);
        left
    }
}

/// The services of the API, by name, as health tells of them.
const SERVICES: [&str; 7] = [
    "pvelet.v1.HostService",
    "pvelet.v1.VmService",
    "pvelet.v1.VolumeService",
    "pvelet.v1.NetworkService",
    "pvelet.v1.HealthService",
    "pvelet.v1.CertificateService",
    "pvelet.v1.OperationService",
];

/// The addresses at which clients find the agent: where it listens, and where they came in.
fn listeners(address: SocketAddr, credentials: &Arc<Credentials>) -> Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync> {
    let connections = credentials.connections().clone();
    let own = (!address.ip().is_unspecified()).then(|| address.ip().to_canonical());
    Arc::new(move || own.into_iter().chain(connections.local_addresses()).collect())
}

fn serve(
    config: &Config,
    incoming: ReceiverStream<io::Result<Connection>>,
    shared: &Shared,
    health: &HealthReporter,
    closing: &CancellationToken,
) -> Result<JoinHandle<Result<(), tonic::transport::Error>>, Error> {
    let gate = GateLayer::new(Limits::new(&config.limits), shared.metrics.clone(), config.limits.read_deadline);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pvelet_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let malformed = |e| Error::Start(format!("the API's descriptors are malformed: {e}"));
    let reflection_v1 = reflection().build_v1().map_err(malformed)?;
    let reflection_v1alpha = reflection().build_v1alpha().map_err(malformed)?;
    let bytes = config.limits.message_bytes as usize;
    let health =
        tonic_health::pb::health_server::HealthServer::new(tonic_health::server::HealthService::from_health_reporter(health.clone()));
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(CALLS_PER_CONNECTION);
    if let Some(age) = config.tls.max_connection_age {
        server = server.max_connection_age(age);
    }
    let router = server
        .layer(gate)
        .add_service(HostServiceServer::new(HostRpc::new(shared.clone())).max_decoding_message_size(bytes))
        .add_service(VmServiceServer::new(VmRpc::new(shared.clone())).max_decoding_message_size(bytes))
        .add_service(VolumeServiceServer::new(VolumeRpc::new(shared.clone())).max_decoding_message_size(bytes))
        .add_service(NetworkServiceServer::new(NetworkRpc::new(shared.clone())).max_decoding_message_size(bytes))
        .add_service(HealthServiceServer::new(HealthRpc::new(shared.clone())).max_decoding_message_size(bytes))
        .add_service(CertificateServiceServer::new(CertificateRpc::new(shared.clone())).max_decoding_message_size(CERTIFICATE_BYTES))
        .add_service(OperationServiceServer::new(OperationRpc::new(shared.clone())).max_decoding_message_size(bytes))
        .add_service(health)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha);
    Ok(tokio::spawn(router.serve_with_incoming_shutdown(incoming, closing.clone().cancelled_owned())))
}
