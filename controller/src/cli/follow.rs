//! Following an operation to its end, with progress for people.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use pvelet_proto::v1::{self, Operation};
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::{Io, args::Format, view};
use crate::agents::{AgentClient, AgentError};

/// The first and the longest pause before an agent is asked again after its connection broke.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// After so many failures in a row sight is lost: about a minute and a half.
const ATTEMPTS: u32 = 12;

/// How often a bar is drawn anew.
const TICK: Duration = Duration::from_millis(500);

/// Where an operation was when following it ended.
pub(super) enum Outcome {
    /// It has ended.
    Ended(Operation),
    /// The time to wait is over.
    StillRunning(Operation),
    /// The agent no longer answers; the operation may go on.
    Lost(AgentError),
}

/// How progress is shown.
pub(super) enum Progress {
    /// Bars on the terminal.
    Bars(MultiProgress),
    /// A line for each change.
    Lines(Io),
    /// Not at all.
    Silent,
}

impl Progress {
    pub(super) fn new(io: &Io, format: Format) -> Self {
        match format {
            Format::Table | Format::Wide if io.bars => Self::Bars(MultiProgress::new()),
            Format::Table | Format::Wide => Self::Lines(io.clone()),
            Format::Json | Format::Yaml => Self::Silent,
        }
    }

    /// The progress of one operation; `label` says which.
    pub(super) fn item(&self, label: &str) -> Item {
        match self {
            Self::Bars(all) => {
                let bar = all.add(ProgressBar::new(100));
                if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:25}] {percent:>3}% {elapsed} {msg}") {
                    bar.set_style(style);
                }
                bar.set_prefix(label.to_owned());
                // The time goes on while nothing else changes.
                bar.enable_steady_tick(TICK);
                Item::Bar(bar)
            }
            Self::Lines(io) => Item::Lines { io: io.clone(), label: label.to_owned(), last: Mutex::default() },
            Self::Silent => Item::Silent,
        }
    }
}

/// The progress of one operation.
pub(super) enum Item {
    Bar(ProgressBar),
    Lines { io: Io, label: String, last: Mutex<String> },
    Silent,
}

impl Item {
    pub(super) fn show(&self, o: &Operation) {
        let percent = o.progress.as_ref().map_or(0, |p| p.percent);
        match self {
            Self::Bar(bar) => {
                bar.set_position(percent.into());
                bar.set_message(o.step.clone());
            }
            // Tens are enough for a log.
            Self::Lines { io, label, last } if !view::ended(o.state()) => {
                let line = format!("{label}: {}% {}", percent / 10 * 10, o.step);
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if *last != line {
                    io.note(line.trim_end());
                    *last = line;
                }
            }
            Self::Lines { .. } | Self::Silent => {}
        }
    }

    pub(super) fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Waits for the end of an operation that `agent` has accepted, for at most `limit`.
pub(super) async fn follow(agent: &AgentClient, accepted: Operation, item: &Item, limit: Option<Duration>) -> Outcome {
    let latest = Mutex::new(accepted);
    let waiting = Box::pin(to_end(agent, &latest, item));
    let ended = match limit {
        Some(limit) => timeout(limit, waiting).await,
        None => Ok(waiting.await),
    };
    item.end();
    let operation = latest.into_inner().unwrap_or_else(PoisonError::into_inner);
    match ended {
        Ok(Ok(())) => Outcome::Ended(operation),
        Ok(Err(e)) => Outcome::Lost(e),
        Err(_) => Outcome::StillRunning(operation),
    }
}

async fn to_end(agent: &AgentClient, latest: &Mutex<Operation>, item: &Item) -> Result<(), AgentError> {
    // Keeps and shows a snapshot; true at the end.
    let take = |o: Operation| {
        item.show(&o);
        let ended = view::ended(o.state());
        *latest.lock().unwrap_or_else(PoisonError::into_inner) = o;
        ended
    };
    let first = latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (name, tenant) = (first.name.clone(), first.tenant.clone());
    let mut since = first.revision;
    if take(first) {
        return Ok(());
    }
    let (mut pause, mut failures) = (PAUSE.0, 0);
    loop {
        let failure = match watch(agent, &name, &tenant, &mut since, &take).await {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        // An agent that has forgotten the operation will not remember it.
        if failure.code == Code::NotFound || (!failure.unreachable() && !failure.retryable()) {
            return Err(failure);
        }
        failures += 1;
        if failures == ATTEMPTS {
            return Err(failure);
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// One stream's worth of waiting.
async fn watch(
    agent: &AgentClient,
    name: &str,
    tenant: &str,
    since: &mut u64,
    take: &impl Fn(Operation) -> bool,
) -> Result<(), AgentError> {
    let request = v1::WatchOperationsRequest { tenant: tenant.to_owned(), since_revision: *since };
    let mut stream = agent.answer(agent.operation().watch_operations(request).await)?;
    loop {
        match stream.message().await.map_err(|s| agent.error(&s))? {
            Some(v1::WatchOperationsResponse { operation: Some(o) }) => {
                *since = (*since).max(o.revision);
                if o.name == name && take(o) {
                    return Ok(());
                }
            }
            // All that was known has been told. What ended before the stream began may not have been among it.
            Some(v1::WatchOperationsResponse { operation: None }) => {
                let answer = agent.answer(agent.operation().get_operation(v1::GetOperationRequest { name: name.to_owned() }).await)?;
                if take(answer.operation.ok_or_else(|| agent.incomplete("GetOperation", "operation"))?) {
                    return Ok(());
                }
            }
            None => return Err(agent.error(&tonic::Status::unavailable("the agent ended the stream"))),
        }
    }
}
