//! The command `pvelet-agent`.

mod certificate_commands;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{CommandFactory, Parser, Subcommand};
use pvelet_agent::{
    config::{self, Config, Mistake, defaults},
    error::Error,
    host::net::{HostNetwork, NetPaths},
    logging, network, notify,
    server::{self, Agent, World},
    tls::Material,
};
use tokio::signal::unix::{SignalKind, signal};

/// Two: one for calls while the other is busy with a long answer. The agent waits far more than it computes.
const WORKERS: usize = 2;
/// Nothing recurses deeply; small stacks keep the resident memory small.
const STACK_BYTES: usize = 512 * 1024;
/// PVE's first answers (a ticket from its Perl, all configs) take about a second. Longer, and it is down: then the agent serves without.
const FIRST_READING: Duration = Duration::from_secs(5);
/// The watchdog's question is answered at once, unless something is stuck.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);
/// From the end of the last operation to that of the process.
const HANGING_UP: Duration = Duration::from_secs(15);
/// Threads for what blocks: the journal, files, a hung file system. They end when idle.
const BLOCKING_THREADS: usize = 32;

/// The pvelet agent: manages the VMs of one Proxmox VE host for its controllers, over mutually authenticated gRPC.
///
/// A first install only observes: it answers reads and streams events, and refuses every change. Set `mode = "manage"` and a
/// `vmid_range` in the configuration, and restart it, to let it make changes.
#[derive(Parser)]
#[command(
    name = "pvelet-agent",
    version,
    after_help = "Files:\n  /etc/pvelet/agent.toml   configuration (pvelet-agent example-config prints one)\n  /var/lib/pvelet/         journal of operations\n\nSignals:\n  SIGHUP    reload mode, [[identity]], log.level and the TLS files\n  SIGTERM   drain: refuse changes, answer reads, let operations end (drain_deadline), stop"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM.
    Run {
        /// The configuration.
        #[arg(long, value_name = "FILE", default_value = defaults::CONFIG_FILE)]
        config: PathBuf,
        /// Write the bound address here once the agent serves.
        #[arg(long, value_name = "PATH")]
        ready_file: Option<PathBuf>,
    },
    /// Report every mistake of a configuration, and of the certificates it names. Exit status: 0 when there is none, else 1.
    CheckConfig {
        /// The configuration.
        #[arg(value_name = "FILE", default_value = defaults::CONFIG_FILE)]
        config: PathBuf,
        /// Leave the certificates out: for a host that has none yet.
        #[arg(long)]
        no_certificates: bool,
    },
    /// Print a request for the certificate of this host (PKCS #10, PEM), for `pveletctl pki sign` or another CA. Its key is made here, never
    /// leaves the host, and stays the same until a certificate is installed.
    SigningRequest(certificate_commands::Request),
    /// Check a certificate for this host and put it in place, with its key, and with CAs and revocation lists of clients where they are given:
    /// all or nothing. A running agent takes it over by itself. Done twice: "unchanged".
    InstallCertificate(certificate_commands::Install),
    /// Print a commented configuration that holds every key with its default.
    ExampleConfig,
    /// Undo a change of the host's network that nobody confirmed. Called by systemd and by the package, not by people. Exit status: 0 when
    /// nothing is left to be done, else 1.
    #[command(group = clap::ArgGroup::new("when").required(true).args(["deadline", "boot", "now"]))]
    NetworkRecover {
        /// Undo a change whose time is over and that no agent works on.
        #[arg(long)]
        deadline: bool,
        /// Before the network is up: give the agent's own file the text it had before an unconfirmed change.
        #[arg(long)]
        boot: bool,
        /// Undo a change even within its time: the agent is stopped, and is about to be removed.
        #[arg(long)]
        now: bool,
        /// The configuration; a broken or missing one is no obstacle.
        #[arg(long, value_name = "FILE", default_value = defaults::CONFIG_FILE)]
        config: PathBuf,
    },
    /// Print a completion script: pvelet-agent completion bash > /etc/bash_completion.d/pvelet-agent
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder.
    #[command(hide = true)]
    GenerateMan {
        /// The folder.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::ExampleConfig => print(config::EXAMPLE),
        Command::CheckConfig { config, no_certificates } => check(&config, !no_certificates),
        Command::SigningRequest(request) => told(certificate_commands::request(&request)),
        Command::InstallCertificate(install) => told(certificate_commands::install(&install)),
        Command::Run { config, ready_file } => run(&config, ready_file.as_deref()),
        Command::NetworkRecover { boot, now, config, .. } => recover(&config, boot, now),
        Command::Completion { shell } => completion(shell),
        Command::GenerateMan { dir } => generate_man(&dir),
    }
}

/// A closed standard output is the reader's wish.
fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// What a command has found or done, or why not.
fn told(result: Result<String, String>) -> ExitCode {
    match result {
        Ok(text) => print(&text),
        Err(error) => {
            complain(&format!("pvelet-agent: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn check(file: &Path, certificates: bool) -> ExitCode {
    let loaded = if certificates { config::load(file) } else { config::load_without_certificates(file) };
    let (config, warnings) = match loaded {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            complain(&format!("{mistakes}\n"));
            return ExitCode::FAILURE;
        }
    };
    for warning in warnings {
        complain(&format!("{}: warning: {warning}\n", file.display()));
    }
    if !certificates {
        return print(&format!("{}: good; its certificates were not looked at\n", file.display()));
    }
    match Material::load(&config.tls, &config.pve.node, SystemTime::now()) {
        Ok(material) => {
            material.warnings.iter().for_each(|w| complain(&format!("{}: warning: {w}\n", file.display())));
            print(&format!("{}: good\n", file.display()))
        }
        Err(error) => {
            complain(&format!("{}: 1 mistake\n  tls: {error}\n", file.display()));
            ExitCode::FAILURE
        }
    }
}

fn completion(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "pvelet-agent", &mut script);
    print(&String::from_utf8_lossy(&script))
}

fn generate_man(dir: &Path) -> ExitCode {
    match std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Arguments::command(), dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("pvelet-agent: {}: {error}\n", dir.display()));
            ExitCode::FAILURE
        }
    }
}

fn recover(file: &Path, boot: bool, now: bool) -> ExitCode {
    let found = config::recovery(file);
    if let Some(warning) = &found.warning {
        complain(&format!("pvelet-agent: warning: {warning}\n"));
    }
    let paths = NetPaths {
        etc_network: found.etc_network,
        // Neither is needed for undoing, and the cluster file system is not up at boot.
        corosync: PathBuf::new(),
        etc_pve: PathBuf::new(),
        state: found.state_dir.join("network"),
        proc: found.proc,
        sysfs: found.sysfs,
    };
    let work = async {
        let net = HostNetwork::new(paths);
        match (boot, now) {
            (true, _) => network::recover::boot(&net).await,
            (_, true) => network::recover::now(&net).await,
            _ => network::recover::deadline(&net).await,
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(work);
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        }
        Err(e) => Err(Error::Start(format!("no runtime: {e}"))),
    };
    match result {
        Ok(network::recover::Recovered::Nothing) => ExitCode::SUCCESS,
        Ok(network::recover::Recovered::Undone(operation, warnings)) => {
            complain(&format!("pvelet-agent: {operation} was not confirmed and is undone\n"));
            warnings.iter().for_each(|w| complain(&format!("pvelet-agent: warning: {w}\n")));
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("pvelet-agent: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn run(file: &Path, ready_file: Option<&Path>) -> ExitCode {
    let started = config::load(file)
        .map_err(|mistakes| mistakes.to_string())
        .and_then(|(config, warnings)| Ok((logging::start(&config.log).map_err(|e| e.to_string())?, config, warnings)));
    let (level, config, warnings) = match started {
        Ok(started) => started,
        Err(error) => {
            complain(&format!("pvelet-agent: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    match run_with(&config, &warnings, file, ready_file, level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the agent cannot run");
            notify::status(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run_with(config: &Config, warnings: &[Mistake], file: &Path, ready_file: Option<&Path>, level: logging::Level) -> Result<(), Error> {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|e| Error::Start(format!("no runtime: {e}")))?;
    let result = runtime.block_on(serve(config, file, ready_file, level));
    // What blocks on a hung file system must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: &Config, file: &Path, ready_file: Option<&Path>, level: logging::Level) -> Result<(), Error> {
    let failed = |what: &str, e: std::io::Error| Error::Start(format!("{what}: {e}"));
    // Before anything is begun: a signal that comes early must not end the process halfway.
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| failed("SIGTERM", e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| failed("SIGINT", e))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| failed("SIGHUP", e))?;

    let operations = server::open_operations(config).await?;
    let world = World::of_host(config).await?;
    // The agent takes it, so that it shall be kept once it is served, and not before.
    let (listener, keep) = match notify::passed_listener(config.listen).map_err(|e| failed("LISTEN_FDS", e))? {
        Some(listener) => (listener, None),
        None => {
            let listener = server::bind(config.listen).await?;
            let keep = listener.try_clone().map_err(|e| failed("the listening socket", e))?;
            (listener, Some(keep))
        }
    };
    let mut agent = Agent::start(config, world, operations, listener).await?;
    if let Some(listener) = keep {
        notify::keep_listener(&listener);
    }
    let reload = agent.reloader(file.to_owned(), Some(level));

    agent.known(FIRST_READING).await;
    agent.open();
    tracing::info!(address = %agent.address, node = config.pve.node, version = env!("CARGO_PKG_VERSION"), "serving");
    if let Some(address) = agent.metrics_address {
        tracing::info!(%address, "serving metrics");
    }
    if let Some(path) = ready_file {
        write_ready_file(path, &agent).map_err(|e| failed("--ready-file", e))?;
    }
    notify::ready(&agent.status());
    let mut watchdog = notify::watchdog_interval().map(tokio::time::interval);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                notify::reloading();
                if let Err(error) = reload.run(config).await {
                    tracing::error!(%error, "the configuration is not taken over; the last good one stays in use");
                }
                notify::ready(&agent.status());
            }
            _ = tick(watchdog.as_mut()) => {
                if agent.alive(ALIVE_WITHIN).await {
                    notify::watchdog();
                }
            }
            error = agent.ended() => return Err(error),
        }
    }
    notify::stopping("draining", config.drain_deadline + HANGING_UP);
    tracing::info!(deadline = ?config.drain_deadline, "draining");
    let left = agent.drain(config.drain_deadline).await;
    if left > 0 {
        tracing::warn!(left, "operations are left; the next start takes them up again");
    }
    Ok(())
}

async fn tick(watchdog: Option<&mut tokio::time::Interval>) {
    match watchdog {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// By rename: whoever waits for the file never reads half of it.
fn write_ready_file(path: &Path, agent: &Agent) -> std::io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, format!("{}\n", agent.address))?;
    std::fs::rename(&new, path)
}
