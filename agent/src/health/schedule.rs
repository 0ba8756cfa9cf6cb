//! When sources look. Each has a task of its own: what one waits for keeps no other from running.

use std::{any::Any, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinHandle},
    time::{Instant, sleep_until, timeout},
};

use super::{Check, Finding, Pace, Source, State, board::Board};
use crate::metrics::{Metrics, Run};

/// All sources look for the first time within this; not all at once, so that the start costs no burst.
const SPREAD: Duration = Duration::from_secs(1);
/// However often a source is stirred, it looks no more often than this.
const STIRRED_EVERY: Duration = Duration::from_secs(1);
/// A source that panics again and again looks ever more rarely, down to this.
const BACKOFF: Duration = Duration::from_secs(300);
/// Runs that may be asked for while one is under way; who asks more waits for its place.
const ASKED: usize = 64;
/// What could not be found out is looked at again after this, then after twice as long, up to its period: at the agent's start PVE, and at the
/// host's the daemons, tell nothing yet.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(5);
/// A look that was given up ends at its next await, which comes within this unless it waits for nothing.
const GRACE: Duration = Duration::from_millis(200);
/// Of the message of a panic.
const PANIC_TEXT: usize = 200;

/// A source that looks.
pub(super) struct Worker {
    /// The checks that come out of it.
    pub(super) checks: &'static [Check],
    asked: mpsc::Sender<oneshot::Sender<()>>,
    task: AbortHandle,
}

impl Worker {
    /// Looks now and returns when that has come to its end. `false`: the agent ends.
    pub(super) async fn run(&self) -> bool {
        let (tell, told) = oneshot::channel();
        self.asked.send(tell).await.is_ok() && told.await.is_ok()
    }
}

impl Worker {
    /// Looks no more.
    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts a task for each source.
pub(super) fn start(sources: Vec<Arc<dyn Source>>, board: &Arc<Board>, metrics: &Arc<Metrics>) -> Vec<Worker> {
    let (begin, count) = (Instant::now(), u32::try_from(sources.len()).unwrap_or(u32::MAX).max(1));
    let worker = |(n, source): (u32, Arc<dyn Source>)| {
        let (asked, asks) = mpsc::channel(ASKED);
        let (checks, pace, name) = (source.checks(), source.pace(), source.name());
        let looker = Looker {
            name,
            checks,
            pace,
            board: Arc::clone(board),
            metrics: Arc::clone(metrics),
            stirred: None,
            stirred_again: false,
            running: None,
            panics: 0,
            unknown: 0,
            source,
        };
        let task = tokio::spawn(looker.follow(asks, begin + SPREAD * n / count)).abort_handle();
        Worker { checks, asked, task }
    };
    (0..).zip(sources).map(worker).collect()
}

/// What a panic carries.
type Panic = Box<dyn Any + Send>;
/// Returns when its source is stirred; with what it panicked, if it did.
type Stirred = Pin<Box<dyn Future<Output = Result<(), Panic>> + Send>>;

struct Looker {
    name: &'static str,
    checks: &'static [Check],
    pace: Pace,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    source: Arc<dyn Source>,
    /// Listens since before the last look; `None`: it has come.
    stirred: Option<Stirred>,
    /// Something has changed that the last look may have missed.
    stirred_again: bool,
    /// The look that is under way, or was given up and goes on: one that waits for nothing cannot be ended from outside.
    running: Option<JoinHandle<Vec<Finding>>>,
    /// In a row.
    panics: u32,
    /// Looks in a row that came to their end and left something unknown.
    unknown: u32,
}

impl Looker {
    async fn follow(mut self, mut asks: mpsc::Receiver<oneshot::Sender<()>>, first: Instant) {
        let (mut next, mut earliest) = (first, first);
        // Those who wait for the coming look. Who asks while one is under way may have changed something since it began, and gets another.
        let mut waiting = Vec::new();
        loop {
            let soon = if self.stirred_again { next.min(earliest) } else { next };
            tokio::select! {
                biased;
                ask = asks.recv() => match ask {
                    Some(ask) => waiting.push(ask),
                    None => return,
                },
                come = heard(&mut self.stirred) => {
                    self.hear(come);
                    continue;
                }
                () = sleep_until(soon) => {}
            }
            while let Ok(ask) = asks.try_recv() {
                waiting.push(ask);
            }
            let begun = Instant::now();
            self.look(!waiting.is_empty()).await;
            for ask in waiting.drain(..) {
                // Who asked may be gone.
                let _ = ask.send(());
            }
            earliest = begun + STIRRED_EVERY;
            next = (begun + self.period()).max(Instant::now());
        }
    }

    /// From the begin of one look to the next; longer after panics, shorter where something is unknown.
    fn period(&self) -> Duration {
        if self.unknown > 0 {
            return self.pace.period.min(UNKNOWN_AGAIN.saturating_mul(1 << (self.unknown - 1).min(16)));
        }
        let longest = self.pace.period.max(BACKOFF);
        self.pace.period.saturating_mul(1 << self.panics.min(16)).min(longest)
    }

    /// Listens anew: what stirs the source from here on is not missed, whether or not the coming look sees it.
    fn listen(&mut self) {
        let source = Arc::clone(&self.source);
        let mut stirred: Stirred = Box::pin(AssertUnwindSafe(async move { source.stirred().await }).catch_unwind());
        self.stirred_again = false;
        // Polled once, so that it has subscribed to whatever it listens to.
        match stirred.as_mut().now_or_never() {
            None => self.stirred = Some(stirred),
            Some(come) => {
                self.stirred = None;
                self.hear(come);
            }
        }
    }

    fn hear(&mut self, come: Result<(), Panic>) {
        match come {
            Ok(()) => self.stirred_again = true,
            // It is silent until the next look.
            Err(panic) => panicked(&self.metrics, self.name, &*panic, "while it waited"),
        }
    }

    /// `asked`: somebody waits for it.
    async fn look(&mut self, asked: bool) {
        if let Some(last) = &mut self.running
            && timeout(GRACE, last).await.is_err()
        {
            self.metrics.check_run(self.name, Run::Late, Duration::ZERO);
            self.board.lost(self.checks, "its last run hangs and cannot be ended");
            return;
        }
        self.listen();
        let (source, begun, deadline) = (Arc::clone(&self.source), Instant::now(), self.pace.deadline);
        let running = self.running.insert(tokio::spawn(async move { if asked { source.asked().await } else { source.look().await } }));
        let ended = loop {
            tokio::select! {
                biased;
                come = heard(&mut self.stirred) => match come {
                    Ok(()) => self.stirred_again = true,
                    Err(panic) => panicked(&self.metrics, self.name, &*panic, "while it waited"),
                },
                ended = &mut *running => break Some(ended),
                () = sleep_until(begun + deadline) => break None,
            }
        };
        let took = begun.elapsed();
        match ended {
            Some(Ok(findings)) => {
                self.running = None;
                self.panics = 0;
                self.unknown = if findings.iter().any(|f| f.state == State::Unknown) { self.unknown + 1 } else { 0 };
                self.metrics.check_run(self.name, Run::Ended, took);
                self.board.found(self.name, self.checks, findings);
            }
            Some(Err(error)) => {
                self.running = None;
                self.panics += 1;
                self.unknown = 0;
                self.metrics.check_run(self.name, Run::Panicked, took);
                // Without a panic only when the runtime ends.
                let text = error.try_into_panic().map_or_else(
                    |_| "the check was ended".to_owned(),
                    |panic| {
                        panicked(&self.metrics, self.name, &*panic, "while it looked");
                        format!("the check panicked: {}", message(&*panic))
                    },
                );
                self.board.lost(self.checks, &text);
            }
            None => {
                running.abort();
                self.unknown += 1;
                self.metrics.check_run(self.name, Run::Late, took);
                tracing::warn!(source = self.name, ?deadline, "a source of checks did not answer in time");
                self.board.lost(self.checks, &format!("it did not answer within {} s", deadline.as_secs_f32()));
            }
        }
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

fn panicked(metrics: &Metrics, source: &'static str, panic: &(dyn Any + Send), when: &str) {
    tracing::error!(source, panic = message(panic), "a source of checks panicked {when}; the others go on");
    metrics.check_panicked(source);
}

/// Returns when `stirred` has come, which is then gone; never when it is gone already.
async fn heard(stirred: &mut Option<Stirred>) -> Result<(), Panic> {
    let Some(coming) = stirred else { return std::future::pending().await };
    let come = coming.await;
    *stirred = None;
    come
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").chars().take(PANIC_TEXT).collect()
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
