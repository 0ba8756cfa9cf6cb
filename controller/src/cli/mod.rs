//! `pveletctl`, as a library: [`run`] takes the arguments and the terminal, and gives back the exit status.

mod accept;
mod act;
mod args;
mod config;
mod error;
mod follow;
mod output;
mod parse;
mod pki;
mod read;
mod resolve;
mod table;
mod view;
mod watch;

use std::{
    env,
    ffi::OsString,
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use clap::{CommandFactory, Parser, error::ErrorKind};

use args::{Cli, Command, Format};
use error::CliError;

use crate::agents::{AgentClient, Agents, Limits};

/// How a run ended; the numbers are part of the interface (`pveletctl --help`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// A call or an operation failed.
    Failed = 1,
    /// What was looked at is in a critical state: `doctor` and `network preflight` alone.
    Critical = 2,
    /// Some hosts failed; what the others answered was printed.
    Partial = 3,
    /// No such VM, volume, host or operation.
    NotFound = 4,
    /// No host that matters could be reached.
    Unreachable = 5,
    /// `--timeout` has passed, the operation goes on.
    StillRunning = 6,
    /// The command line, the configuration or the credentials are wrong, or a VM's or volume's name is ambiguous. `EX_USAGE` of sysexits.h, so that
    /// no mistake is taken for what a command has found.
    Usage = 64,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What a run reads from and writes to.
#[derive(Clone)]
pub struct Io {
    /// Results.
    pub out: Stream,
    /// Progress, warnings, errors.
    pub err: Stream,
    /// Answers to questions.
    pub input: Arc<Mutex<dyn BufRead + Send>>,
    /// Whether somebody can answer questions.
    pub interactive: bool,
    /// Whether `out` shows colour.
    pub colour: bool,
    /// Whether `err` shows colour.
    pub err_colour: bool,
    /// Whether progress bars may be drawn on the process's standard error.
    pub bars: bool,
    /// The configuration file where none is named; it may be missing.
    pub default_config: Option<PathBuf>,
}

/// A place to write to, shared by what runs at the same time.
pub type Stream = Arc<Mutex<dyn Write + Send>>;

impl Io {
    /// The process's own terminal and environment.
    pub fn standard() -> Self {
        let colour = |choice| !matches!(choice, anstream::ColorChoice::Never);
        let default_config = env::var_os("PVELETCTL_CONFIG").map(PathBuf::from).or_else(|| {
            let base = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
            Some(base.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".config")))?.join("pvelet/config.toml"))
        });
        Self {
            out: Arc::new(Mutex::new(io::stdout())),
            err: Arc::new(Mutex::new(io::stderr())),
            input: Arc::new(Mutex::new(io::BufReader::new(io::stdin()))),
            interactive: io::stdin().is_terminal() && io::stderr().is_terminal(),
            colour: colour(anstream::AutoStream::choice(&io::stdout())),
            err_colour: colour(anstream::AutoStream::choice(&io::stderr())),
            bars: io::stderr().is_terminal(),
            default_config,
        }
    }

    fn print(&self, text: &str) -> Result<(), CliError> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
    }

    /// One line for people. That nobody can read it is no reason to stop.
    fn note(&self, line: &str) {
        let mut err = self.err.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(err, "{line}");
    }

    fn error(&self, line: &str) {
        let style = anstyle::AnsiColor::Red.on_default().bold();
        if self.err_colour { self.note(&format!("{style}error:{style:#} {line}")) } else { self.note(&format!("error: {line}")) }
    }

    fn warn(&self, line: &str) {
        let style = anstyle::AnsiColor::Yellow.on_default().bold();
        if self.err_colour { self.note(&format!("{style}warning:{style:#} {line}")) } else { self.note(&format!("warning: {line}")) }
    }
}

/// Runs one command line (the program's name first). Never panics on bad input, never exits the process.
pub async fn run<I, T>(args: I, io: &Io) -> Exit
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let help = matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let text = e.render();
            if help {
                let text = if io.colour { text.ansi().to_string() } else { text.to_string() };
                return io.print(&text).map_or_else(|e| e.exit(), |()| Exit::Ok);
            }
            io.note(&if io.err_colour { text.ansi().to_string() } else { text.to_string() });
            return Exit::Usage;
        }
    };
    match Box::pin(dispatch(cli, io)).await {
        Ok(exit) => exit,
        // Whoever reads the output has seen enough, as in `pveletctl vms | head`.
        Err(CliError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(e) => {
            io.error(&e.to_string());
            e.exit()
        }
    }
}

/// What a command that talks to agents needs.
struct Session {
    io: Io,
    format: Format,
    agents: Vec<AgentClient>,
    /// How long each host may take.
    deadline: Duration,
    /// The tenant of mutations that name none.
    tenant: String,
    /// Whether `agents` are all that the configuration names.
    all: bool,
}

impl Session {
    async fn open(global: &args::Global, io: &Io) -> Result<Self, CliError> {
        let settings = config::settings(global, io.default_config.as_deref()).await?;
        for warning in &settings.credentials.current().warnings {
            io.warn(warning);
        }
        let limits = Limits { deadline: global.deadline, ..Limits::default() };
        let agents = Agents::new(settings.credentials, limits);
        // Kept in the order of the configuration, which its author chose.
        let agents = settings.targets.into_iter().map(|t| agents.set(t)).collect();
        Ok(Self {
            io: io.clone(),
            format: global.output,
            agents,
            deadline: global.deadline,
            tenant: settings.tenant,
            all: global.hosts.is_empty() && global.agents.is_empty(),
        })
    }
}

async fn dispatch(cli: Cli, io: &Io) -> Result<Exit, CliError> {
    let format = cli.global.output;
    let session = || Session::open(&cli.global, io);
    match cli.command {
        Command::Hosts => read::hosts(&session().await?).await,
        Command::Vms(args) => read::vms(&session().await?, &args).await,
        Command::Storages => read::volume::storages(&session().await?).await,
        Command::Volumes(args) => act::volume::run(&session().await?, &args).await,
        Command::Network(command) => act::network::run(&session().await?, &command).await,
        Command::Health(args) => read::health::health(&session().await?, &args).await,
        Command::Doctor(args) => {
            let mut global = cli.global;
            args.take_hosts(&mut global)?;
            read::health::doctor(&Session::open(&global, io).await?, &args).await
        }
        Command::Check(args::Check::Run(args)) => read::health::run(&session().await?, &args).await,
        Command::Repair(args) => act::repair::repair(&session().await?, &args).await,
        Command::Get(get) => read::get(&session().await?, &get).await,
        Command::Ops(args) => read::operations(&session().await?, &args).await,
        Command::Clone(args) => act::clone(&session().await?, &args).await,
        Command::Start(on) => act::on_vms(&session().await?, &on, act::Verb::Start).await,
        Command::Stop(on) => act::on_vms(&session().await?, &on, act::Verb::Stop).await,
        Command::Reset(on) => act::on_vms(&session().await?, &on, act::Verb::Reset).await,
        Command::Shutdown(args) => {
            let verb = act::Verb::Shutdown { grace: args.grace, force: args.force };
            act::on_vms(&session().await?, &args.on, verb).await
        }
        Command::Delete(args) => act::delete(&session().await?, &args).await,
        Command::Op(args::Op::Cancel { name, mutation }) => act::cancel(&session().await?, &name, &mutation).await,
        Command::AcceptController(args) => accept::accept(&session().await?, &args).await,
        Command::Watch(args) => watch::watch(&session().await?, &args).await,
        Command::Pki(command) => pki::run(&command, &cli.global, io).await,
        Command::Config(command) => config::run(&command, &cli.global, io),
        Command::Version { client: true } => {
            output::print(io, format, &view::Versions::of_client(), |v| format!("pveletctl {}\n", v.client)).map(|()| Exit::Ok)
        }
        Command::Version { client: false } => read::version(&session().await?).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pveletctl", &mut script);
            io.print(&String::from_utf8_lossy(&script)).map(|()| Exit::Ok)
        }
        Command::GenerateMan { dir } => {
            std::fs::create_dir_all(&dir)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &dir))
                .map_err(|source| CliError::File { path: dir, why: source.to_string() })?;
            Ok(Exit::Ok)
        }
    }
}

#[cfg(test)]
mod tests;
