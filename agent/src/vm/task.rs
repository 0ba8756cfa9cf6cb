//! Starting PVE's tasks and following them to their end.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Inner, Limit};
use crate::{
    error::Error,
    host::pve::{TaskEnd, TaskState, TaskUpdate, Upid, VmRecord},
    operation::{Handle, TaskRef},
};

/// Lines of a log that are kept; a full clone writes about a hundred.
const MAX_LINES: usize = 2000;
/// How long the rest of a task is waited for after it was asked to end.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// How a task ended, and what it said.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    pub(crate) end: TaskEnd,
    pub(crate) lines: Vec<String>,
    /// Why the operation asked it to end before its time.
    pub(crate) interrupted: Option<Error>,
}

/// A pause that doubles, up to 50 times the first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration) -> Self {
        Self { next: first, longest: first * 50 }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

/// Whether the thing may work later without anybody changing anything on purpose, so that undoing and settling wait for it.
pub(crate) fn transient(error: &Error) -> bool {
    matches!(
        error,
        Error::NoQuorum { .. }
            | Error::PveDown { .. }
            | Error::PveAnswerLost { .. }
            | Error::PveFsHung { .. }
            | Error::LockTimeout { .. }
            | Error::ConfigChanged { .. }
            | Error::VmLocked { .. }
    )
}

impl Inner {
    /// Follows a task to its end. With `stop`, a cancellation or the deadline asks the task to end; without, the deadline only ends the
    /// following (`Err`). Run time is counted from `called`, when the call that started it was made.
    pub(crate) async fn follow(&self, h: &Handle, upid: &Upid, called: Instant, limit: Limit, stop: bool) -> Result<Followed, Error> {
        let mut lines = Vec::new();
        let mut interrupted = None;
        let mut give_up = limit.at;
        let mut backoff = Backoff::new(self.settings.lock_pause);
        let end = 'follow: loop {
            let mut updates = self.pve.follow_task(upid);
            lines.clear();
            loop {
                tokio::select! {
                    biased;
                    update = updates.recv() => match update {
                        Some(TaskUpdate::Line(line)) if lines.len() < MAX_LINES => lines.push(line),
                        Some(TaskUpdate::Line(_)) => {}
                        Some(TaskUpdate::Progress { percent, done, total }) => h.progress(percent, done, total),
                        Some(TaskUpdate::End(end)) => break 'follow end,
                        None => break,
                    },
                    () = h.cancelled(), if stop && interrupted.is_none() => {
                        interrupted = h.check_cancelled().err();
                        h.step("cancelling: ending PVE's task");
                        give_up = Instant::now() + STOP_GRACE;
                        self.ask_to_end(upid).await;
                    }
                    () = tokio::time::sleep_until(give_up) => {
                        if !stop || interrupted.is_some() {
                            return Err(interrupted.unwrap_or_else(|| limit.timeout(format!("PVE's task {upid} still runs"))));
                        }
                        interrupted = Some(limit.timeout(format!("PVE's task {upid} was ended")));
                        give_up = Instant::now() + STOP_GRACE;
                        self.ask_to_end(upid).await;
                    }
                }
            }
            // The following broke off: what is true stands in the task's own log.
            match self.pve.task(upid).await {
                Ok(TaskState::Ended(end)) => break end,
                Ok(TaskState::Unknown) => break TaskEnd::NoEndLine,
                Ok(TaskState::Running) | Err(_) => tokio::time::sleep(backoff.next()).await,
            }
        };
        h.pve_time(called.elapsed());
        Ok(Followed { end, lines, interrupted })
    }

    /// The VM as it is now. The cluster file system is away for a moment whenever it is restarted: what was done meanwhile is judged when it
    /// is back, or at the deadline not at all. Errors: `PveFsHung`, `Cancelled`.
    pub(crate) async fn read_now(&self, h: &Handle, vmid: u32, limit: Limit) -> Result<Option<Arc<VmRecord>>, Error> {
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            match self.pve.read_vm(vmid).await {
                Err(error @ Error::PveFsHung { .. }) if !limit.over() => self.wait_for(h, &error, &mut backoff).await?,
                other => return other,
            }
        }
    }

    /// Returns when what `/etc/pve` says counts: with quorum, and not hung. Errors: `NoQuorum` and `PveFsHung` at the deadline, `Cancelled`.
    pub(crate) async fn wait_until_writable(&self, h: &Handle, limit: Limit) -> Result<(), Error> {
        let mut backoff = Backoff::new(self.settings.lock_pause);
        while let Err(error) = self.writable() {
            if limit.over() {
                return Err(error);
            }
            self.wait_for(h, &error, &mut backoff).await?;
            let _ = self.pve.refresh().await;
        }
        Ok(())
    }

    async fn wait_for(&self, h: &Handle, error: &Error, backoff: &mut Backoff) -> Result<(), Error> {
        h.step(format!("waiting, for {error}"));
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => Ok(()),
            () = h.cancelled() => h.check_cancelled(),
        }
    }

    async fn ask_to_end(&self, upid: &Upid) {
        if let Err(error) = self.pve.stop_task(upid).await {
            tracing::warn!(%upid, %error, "PVE's task could not be asked to end");
        }
    }

    /// Makes a call that starts a task, and finds its task if the answer is lost. A lock of PVE that is held by others is waited for until
    /// the deadline. The UPID is on its way to the disk when this returns.
    pub(crate) async fn start_task<F, C>(
        &self,
        h: &Handle,
        purpose: &str,
        kinds: &[&str],
        id: &str,
        limit: Limit,
        call: C,
    ) -> Result<Upid, Error>
    where
        C: Fn() -> F,
        F: Future<Output = Result<Upid, Error>>,
    {
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let since = h.now().saturating_sub(1);
            match call().await {
                Ok(upid) => {
                    Self::note_task(h, purpose, &upid, false);
                    return Ok(upid);
                }
                Err(Error::LockTimeout { what }) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                Err(Error::PveAnswerLost { detail }) => {
                    let found = self.find_lost(h, kinds, id, since, None).await?;
                    let Some(upid) = found else { return Err(Error::PveDown { detail }) };
                    Self::note_task(h, purpose, &upid, true);
                    return Ok(upid);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn note_task(h: &Handle, purpose: &str, upid: &Upid, found: bool) {
        h.task(TaskRef { purpose: purpose.to_owned(), upid: upid.text.clone(), found });
    }

    /// Pauses before a lock is tried again. Errors: `LockTimeout` at the deadline, `Cancelled`.
    pub(crate) async fn wait_for_lock(&self, h: &Handle, what: &str, backoff: &mut Backoff, limit: Limit) -> Result<(), Error> {
        h.step(format!("waiting for PVE's lock on {what}"));
        let pause = backoff.next();
        if Instant::now() + pause >= limit.at {
            return Err(Error::LockTimeout { what: what.to_owned() });
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = h.cancelled() => h.check_cancelled(),
        }
    }

    /// The task of a call that got no answer. `None`: it is proven that PVE did not take the call: its daemon answered a later one, and
    /// neither then nor a moment after was there such a task, one whose log has a line that ends in `says`. Errors: `PveAnswerLost` when that could not be told in time.
    pub(crate) async fn find_lost(
        &self,
        h: &Handle,
        kinds: &[&str],
        id: &str,
        since: u64,
        says: Option<&str>,
    ) -> Result<Option<Upid>, Error> {
        h.step("looking for the task of a call that PVE did not answer");
        let end = Instant::now() + self.settings.lost_answer;
        let mut backoff = Backoff::new(self.settings.lock_pause);
        let mut empty = 0;
        loop {
            // Calls are taken in turn: once a later one is answered, the lost one was taken or never will be.
            let answered =
                !matches!(self.pve.storages().await, Err(Error::PveDown { .. } | Error::PveAnswerLost { .. } | Error::PveFsHung { .. }));
            for kind in kinds {
                for upid in self.pve.find_tasks(kind, id, since).await? {
                    // `since` is in whole seconds: an operation before this one may have started the same kind of task within them.
                    if !h.is_known_task(&upid.text) && self.says(&upid, says).await {
                        return Ok(Some(upid));
                    }
                }
            }
            empty = if answered { empty + 1 } else { 0 };
            if empty >= 2 {
                return Ok(None);
            }
            if Instant::now() >= end {
                return Err(Error::PveAnswerLost { detail: "its daemon has not answered since".to_owned() });
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Whether a line of the task's log ends like this.
    pub(crate) async fn says(&self, upid: &Upid, end: Option<&str>) -> bool {
        match end {
            None => true,
            Some(end) => self.log_of(upid).await.iter().any(|line| line.trim_end().ends_with(end)),
        }
    }

    /// The log of a task that has ended, its first lines where it is long; of a running one what comes within a second.
    pub(crate) async fn log_of(&self, upid: &Upid) -> Vec<String> {
        let mut updates = self.pve.follow_task(upid);
        let mut lines = Vec::new();
        let end = Instant::now() + Duration::from_secs(1);
        while let Ok(Some(update)) = tokio::time::timeout_at(end, updates.recv()).await {
            match update {
                TaskUpdate::Line(line) if lines.len() < MAX_LINES => lines.push(line),
                TaskUpdate::End(_) | TaskUpdate::Line(_) => break,
                TaskUpdate::Progress { .. } => {}
            }
        }
        lines
    }
}
