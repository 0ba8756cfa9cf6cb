//! Undoing a repair that did not help: the old text, byte by byte, and the unit as it was.

use std::{path::Path, time::UNIX_EPOCH};

use tokio::time::sleep;

use super::{
    Inner,
    carry::{EDITED, PAUSE, RESTART, Wanted},
    plan::digest,
};
use crate::{
    crash_point,
    error::Error,
    host::units::UnitState,
    operation::{Handle, RepairCause, RepairEdit, RepairPhase, RepairState},
};

/// How often it is tried to put something back: the disk may be full for a moment, and so may the bus be away.
const TRIES: u32 = 5;

/// What a file of a repair holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// What it held before.
    Old,
    /// What the repair wrote.
    New,
    /// What somebody else wrote; or it is gone.
    Other,
}

/// Since when a unit is in its state, in microseconds since the Unix epoch; 0: not told.
pub(super) fn since(state: &UnitState) -> u64 {
    let since = state.since.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Whether nobody has touched the unit since.
fn untouched(before: &RepairState, now: &UnitState) -> bool {
    (before.active.as_str(), before.pid, before.since) == (now.active.as_str(), now.pid, since(now))
}

fn ends(cause: RepairCause) -> Error {
    match cause {
        RepairCause::Restarted => Error::AgentRestarted,
        RepairCause::Failed(why) => Error::RepairFailed { why },
        RepairCause::Changed(file) => Error::RepairChanged { file },
    }
}

impl Inner {
    /// What a file holds now, with its text. Errors: `Look`.
    pub(super) async fn holds(&self, edit: &RepairEdit) -> Result<(Holds, String), Error> {
        // Not by way of the main file: what else it imports, or no longer, does not matter for what is put back.
        let text = self.parts.files.text(Path::new(&edit.path)).await?;
        Ok(match text {
            Some(text) if text == edit.was => (Holds::Old, text),
            Some(text) if digest(&text) == edit.digest => (Holds::New, text),
            other => (Holds::Other, other.unwrap_or_default()),
        })
    }

    /// Gives a file its old text again, where it has the repair's. Returns what it holds then. Errors: `Look`.
    async fn put_back(&self, edit: &RepairEdit) -> Result<Holds, Error> {
        let mut tries = 0;
        loop {
            let tried = async {
                match self.holds(edit).await? {
                    (Holds::New, text) => self.parts.files.replace(Path::new(&edit.path), &text, &edit.was).await?,
                    (holds, _) => return Ok(Some(holds)),
                }
                // Looked at again: what counts is what lies there.
                Ok::<_, Error>(None)
            };
            match tried.await {
                Ok(Some(holds)) => return Ok(holds),
                Ok(None) | Err(Error::RepairChanged { .. }) if tries < TRIES => {}
                Ok(None) => return Ok(Holds::New),
                Err(error) if tries >= TRIES => return Err(error),
                Err(_) => sleep(PAUSE).await,
            }
            tries += 1;
        }
    }

    /// Undoes the repair, and tells how it ends.
    pub(super) async fn undo(&self, h: &Handle, cause: RepairCause) -> Result<(), Error> {
        let noted = h.save(|s| (s.repair.phase, s.repair.cause) = (RepairPhase::Undoing, cause.clone())).await;
        if let Err(error) = noted {
            // The next start sees from the files themselves what is left to be done.
            tracing::error!(%error, operation = h.name(), "that the repair is undone is not on the disk");
        }
        crash_point!("repair.undo_begun");
        h.step("undoing");
        let state = h.state().repair;
        let mut foreign = None;
        for edit in state.edits.iter().rev() {
            match self.put_back(edit).await {
                Ok(Holds::Old) => {}
                Ok(Holds::Other) => foreign = Some(edit.path.clone()),
                Ok(Holds::New) => return Err(Self::not_restored(&cause, format!("{} changes all the time", edit.path))),
                Err(error) => {
                    let backup = if edit.backup.is_empty() { String::new() } else { format!(" (its copy is {})", edit.backup) };
                    return Err(Self::not_restored(&cause, format!("{} could not be put back{backup}: {error}", edit.path)));
                }
            }
        }
        crash_point!("repair.undo_edited");
        if let Some(file) = foreign {
            self.let_run(&state).await;
            return Err(Error::RepairChanged { file });
        }
        if let Err(why) = self.unit_back(&state).await {
            return Err(Self::not_restored(&cause, why));
        }
        crash_point!("repair.undone");
        Err(ends(cause))
    }

    fn not_restored(cause: &RepairCause, why: String) -> Error {
        let first = match cause {
            RepairCause::Failed(first) => format!("{first}; then "),
            RepairCause::Restarted | RepairCause::Changed(_) => String::new(),
        };
        Error::RepairRestoreFailed { why: format!("{first}{why}") }
    }

    /// Somebody else's text is in the file: what it is worth is theirs to say, but what ran before must not be dead because of the repair.
    async fn let_run(&self, state: &RepairState) {
        let now = self.parts.units.state(&state.unit).await.unwrap_or_default();
        if state.active == "active"
            && now.active != "active"
            && let Err(error) = self.parts.units.restart(&state.unit, RESTART).await
        {
            tracing::warn!(%error, unit = state.unit, "it does not run with what somebody wrote during the repair");
        }
    }

    /// Brings the unit back to how it was, and sees whether it is. Errors: what is not as it was, for people.
    async fn unit_back(&self, before: &RepairState) -> Result<(), String> {
        let unit = &before.unit;
        let mut tries = 0;
        loop {
            match self.parts.units.state(unit).await {
                Ok(now) if untouched(before, &now) => return Ok(()),
                Ok(_) => {}
                Err(error) if tries >= TRIES => return Err(format!("how {unit} stands cannot be told: {error}")),
                Err(_) => {}
            }
            let done = match before.active.as_str() {
                // It did not run, and nobody wanted it to.
                "inactive" | "deactivating" => self.parts.units.stop(unit, RESTART).await,
                _ => self.parts.units.restart(unit, RESTART).await,
            };
            crash_point!("repair.undo_restarted");
            match done {
                Ok(()) => break,
                // It failed before, and fails again.
                Err(_) if before.active != "active" && before.active != "inactive" => break,
                Err(error) if tries >= TRIES => return Err(format!("{unit} is not as it was: {error}")),
                Err(_) => sleep(PAUSE).await,
            }
            tries += 1;
        }
        let now = self.parts.units.state(unit).await.map_err(|e| format!("how {unit} stands cannot be told: {e}"))?;
        let runs = now.active == "active";
        match before.active.as_str() {
            "active" if !runs => return Err(format!("{unit} ran before and is {} ({}) now", now.active, now.sub)),
            "inactive" if runs => return Err(format!("{unit} did not run before and runs now")),
            _ => {}
        }
        let ids = self.existing(before.well.iter().map(String::as_str));
        if ids.is_empty() {
            return Ok(());
        }
        self.verify(&Wanted { ids, partly: &[], pods: true }, EDITED)
            .await
            .map(drop)
            .map_err(|why| format!("with the old configuration {why}"))
    }
}
