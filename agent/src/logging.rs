//! Where log lines go.

mod readable;

use std::{
    env,
    io::{IsTerminal, stderr},
};

use tracing_subscriber::{
    Registry,
    filter::Targets,
    layer::{Layer, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};

use crate::{
    config::{Log, LogFormat},
    error::Error,
};

use self::readable::Readable;

/// Changes the level while the agent runs.
#[derive(Debug, Clone)]
pub struct Level(reload::Handle<Targets, Registry>);

impl Level {
    /// Takes over another level.
    ///
    /// # Errors
    /// `Start` when it is none.
    pub fn set(&self, level: &str) -> Result<(), Error> {
        self.0.reload(targets(level)?).map_err(|e| Error::Start(format!("log.level cannot be changed: {e}")))
    }
}

fn targets(level: &str) -> Result<Targets, Error> {
    level.parse().map_err(|e| Error::Start(format!("log.level = \"{level}\": {e}")))
}

/// Starts logging as configured. "auto" is the journal when systemd has connected stderr to it, and text on stderr elsewhere.
///
/// # Errors
/// `Start` when the journal was asked for and does not answer, or logging was started before.
pub fn start(log: &Log) -> Result<Level, Error> {
    let (filter, handle) = reload::Layer::new(targets(&log.level)?);
    let under_systemd = env::var_os("JOURNAL_STREAM").is_some() && !stderr().is_terminal();
    let text = || tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal());
    let output: Box<dyn Layer<_> + Send + Sync> = match log.format {
        LogFormat::Journal => {
            Box::new(journal().map_err(|e| Error::Start(format!("log.format = \"journal\": journald does not answer ({e})")))?)
        }
        LogFormat::Json => Box::new(text().json()),
        LogFormat::Text => Box::new(text()),
        LogFormat::Auto => match journal() {
            Ok(layer) if under_systemd => Box::new(layer),
            _ => Box::new(text()),
        },
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(output);
    subscriber.try_init().map_err(|e| Error::Start(format!("logging was started before: {e}")))?;
    Ok(Level(handle))
}

/// The journal, with each field as one of the entry's own (`journalctl TARGET=pvelet::audit`) and all of them in the line that people read.
fn journal() -> std::io::Result<Readable<tracing_journald::Layer>> {
    tracing_journald::layer().map(|l| Readable(l.with_syslog_identifier("pvelet-agent".into()).with_field_prefix(None)))
}

/// Sends audit lines to the journal for as long as the guard lives, in a command that logs nothing else; `None`: there is no journal.
pub fn audit_in_journal() -> Option<tracing::subscriber::DefaultGuard> {
    let layer = journal().ok()?;
    let filter = Targets::new().with_target("pvelet::audit", tracing::Level::INFO);
    Some(tracing::subscriber::set_default(tracing_subscriber::registry().with(layer.with_filter(filter))))
}
