//! `pvelet-controller`: its command line, and what each command does.

mod args;
mod cluster;
mod serve;
mod validate;

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::args::{Cli, Command, Settings, StoreSettings};
use crate::{
    agents::{Agents, Limits},
    epoch::Epoch,
    kubernetes,
    metrics::Metrics,
    nodes::{KubernetesNodes, Nodes},
    reconcile::Controller,
    store::{Store, StoreError, folder::FolderStore},
    tls::{Credentials, TlsError},
};

/// Why the controller did not start, or ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// Settings are missing or malformed: all of them.
    #[error("{}", .0.join("\n"))]
    Settings(Vec<String>),
    /// The credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] TlsError),
    /// The folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Manifests have mistakes; they have been printed.
    #[error("{mistakes} mistakes in {files} files")]
    Invalid {
        /// How many mistakes.
        mistakes: usize,
        /// How many files were checked.
        files: usize,
    },
}

impl RunError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The program. Exit status 0: done, or stopped by a signal; 1: something failed; 2: the command line or the settings are wrong.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version go to standard output with status 0, mistakes to standard error with status 2.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let result = match cli.command {
        Command::Run(flags) => Settings::from_flags(*flags).and_then(|settings| {
            log_to_stderr(settings.json_log);
            allow_open_files();
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(workers())
                .max_blocking_threads(BLOCKING)
                .enable_all()
                .build()
                .map_err(RunError::io("cannot start the runtime"))?
                .block_on(run(settings))
        }),
        Command::Validate { files } => validate::validate(&files, &mut anstream::stdout()),
        Command::Crds => crds(&mut anstream::stdout()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(anstream::stderr(), "pvelet-controller: {e}");
            ExitCode::from(if matches!(e, RunError::Settings(_)) { 2 } else { 1 })
        }
    }
}

/// Threads that work, where the machine has as many: each keeps memory of its own, and a controller waits for others most of the time.
const WORKERS: usize = 4;
/// Threads for files and names, which a thousand connections begun at once would each like to have one of.
const BLOCKING: usize = 64;

/// Takes as many open files as the process may have: each host is a connection, and many supervisors give 1,024 that can be raised.
fn allow_open_files() {
    // With fewer it works for fewer hosts, and says so at each that it cannot connect to.
    let _ = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(WORKERS))
}

/// Prints the CustomResourceDefinitions.
fn crds(out: &mut impl Write) -> Result<(), RunError> {
    let files = crate::crd::files().map_err(|e| RunError::io("cannot write the definitions")(std::io::Error::other(e)))?;
    files.iter().try_for_each(|(_, text)| write!(out, "---\n{text}")).map_err(RunError::io("cannot write"))
}

/// Standard error is what a service manager collects; on a terminal it is coloured.
fn log_to_stderr(json: bool) {
    use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};
    let filter = EnvFilter::try_from_env("PVELET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let plain = (!json).then(|| fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(false));
    let structured = json.then(|| fmt::layer().json().with_writer(std::io::stderr));
    // Fails only when a test has set a subscriber already.
    let _ = tracing_subscriber::registry().with(filter).with(plain).with(structured).try_init();
}

/// Runs until SIGTERM or SIGINT.
async fn run(settings: Settings) -> Result<(), RunError> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::io("cannot listen for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::io("cannot listen for SIGINT"))?;
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM: stopping"),
            _ = interrupt.recv() => info!("SIGINT: stopping"),
        }
        stopper.cancel();
    });
    let credentials = Credentials::load_with_crl(settings.credentials, settings.crl)?;
    let metrics = Arc::<Metrics>::default();
    let ready = Arc::new(AtomicBool::new(false));
    if let Some(address) = settings.metrics_address {
        serve::start(address, Arc::clone(&metrics), Arc::clone(&ready), stop.clone()).await?;
    }
    let kubernetes = client(settings.kubeconfig.as_deref()).await?;
    let common = Common { credentials, name: settings.name, metrics, ready, stop };
    match settings.store {
        StoreSettings::Folder(folder) => common.run_folder(&folder, kubernetes).await?,
        StoreSettings::Kubernetes(lease) => {
            let client = kubernetes.ok_or_else(|| {
                RunError::Settings(vec!["--store kubernetes: this is no pod of a cluster; name one with --kubeconfig".to_owned()])
            })?;
            Box::pin(cluster::run(common, client, lease)).await?;
        }
    }
    info!("stopped");
    Ok(())
}

/// What both kinds of stores need.
struct Common {
    credentials: Credentials,
    name: String,
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
}

impl Common {
    fn controller<S: Store>(&self, store: Arc<S>, epoch: Epoch, nodes: Option<Arc<dyn Nodes>>) -> Arc<Controller<S>> {
        let agents = Agents::new(self.credentials.clone(), Limits::default());
        Controller::new(store, agents, &self.name, epoch, Arc::clone(&self.metrics), nodes)
    }

    async fn run_folder(&self, folder: &Path, kubernetes: Option<kube::Client>) -> Result<(), RunError> {
        let store = FolderStore::open(folder).await?;
        let (epoch, identity) = (store.epoch().clone(), self.credentials.current().identity.clone());
        info!(%identity, controller = self.name, folder = %folder.display(), epoch = epoch.transitions, "started");
        let nodes = kubernetes.map(|client| Arc::new(KubernetesNodes::new(client)) as Arc<dyn Nodes>);
        let controller = self.controller(store, epoch, nodes);
        self.metrics.leader.set(1);
        self.ready.store(true, Ordering::Relaxed);
        Ok(controller.run(self.stop.clone()).await?)
    }
}

/// The Kubernetes that was named, or in which this runs. Nothing is asked there yet.
async fn client(kubeconfig: Option<&Path>) -> Result<Option<kube::Client>, RunError> {
    if let Some(path) = kubeconfig {
        let client = kubernetes::of_kubeconfig(path).await;
        return client.map(Some).map_err(|e| RunError::Settings(vec![format!("--kubeconfig: {e}")]));
    }
    if std::env::var_os(IN_CLUSTER).is_none() {
        return Ok(None);
    }
    match kubernetes::in_cluster() {
        Ok(client) => Ok(Some(client)),
        Err(e) => {
            // A pod that may not talk to the API server is a controller that has nothing to do with Nodes.
            info!("no Kubernetes: {e}");
            Ok(None)
        }
    }
}

/// What every container of a pod has in its environment.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

fn missing(path: &std::path::Path) -> Option<String> {
    (!path.exists()).then(|| format!("{} does not exist", path.display()))
}

/// Where a package puts the controller's files.
const DEFAULT_DIR: &str = "/etc/pvelet/controller";

fn default_path(name: &str) -> PathBuf {
    PathBuf::from(DEFAULT_DIR).join(name)
}
