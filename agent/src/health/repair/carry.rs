//! Carrying a repair out, and seeing whether it helped.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{Edit, Inner, VERIFY};
use crate::{
    crash_point,
    error::Error,
    health::{Known, State, containerd},
    host::runtime::ConfigText,
    operation::{Handle, RepairCause, RepairPhase, RepairState},
};

/// containerd reads a configuration within a second, unless the host is very busy.
const DUMP: Duration = Duration::from_secs(20);
/// systemd gives a unit 90 s to stop, then kills it, and 90 s to start.
pub(super) const RESTART: Duration = Duration::from_secs(240);
/// From one look to the next.
pub(super) const PAUSE: Duration = Duration::from_secs(2);
/// So often containerd may answer and still not be well.
const TRIES: u32 = 5;
/// What a service says right after its start does not count: so many good looks in a row do.
const STEADY: u32 = 2;

/// The checks that tell whether containerd works, whatever was mended.
pub(super) const WORKS: [&str; 2] = ["containerd.responding", "containerd.sandbox"];

/// Whether nothing is wrong there.
pub(super) fn well(known: &Known) -> bool {
    matches!(known.finding.state, State::Ok | State::NotApplicable)
}

fn told(known: &Known) -> String {
    let state = match known.finding.state {
        State::Failed => "is failed",
        State::Degraded => "is degraded",
        State::Unknown => "could not be found out",
        State::Ok | State::NotApplicable => "is well",
    };
    format!("{} {state}: {}", known.check.id, known.finding.seen)
}

/// How many looks a verification takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looks {
    /// Good ones in a row that are enough.
    pub(super) steady: u32,
    /// Bad ones, while containerd answers, that are enough.
    pub(super) tries: u32,
}

/// After containerd's configuration was edited.
pub(super) const EDITED: Looks = Looks { steady: 1, tries: TRIES };
/// After a unit was merely restarted.
const RESTARTED: Looks = Looks { steady: STEADY, tries: u32::MAX };

/// What a verification asks for.
#[derive(Debug, Default)]
pub(super) struct Wanted<'a> {
    /// The checks that must be well.
    pub(super) ids: Vec<String>,
    /// Those of them that need only be degraded.
    pub(super) partly: &'a [String],
    /// Whether pods could be made before: then they must be so, and it must be seen.
    pub(super) pods: bool,
}

impl Wanted<'_> {
    fn met(&self, known: &Known) -> bool {
        well(known)
            || (known.finding.state == State::Degraded && self.partly.iter().any(|id| id == known.check.id))
            || (!self.pods && containerd::untried(&known.finding))
    }
}

impl Inner {
    /// What is wanted of the checks that a repair mends, and of `works`.
    pub(super) fn wanted<'a>(&self, state: &'a RepairState, works: &[&str]) -> Wanted<'a> {
        let ids = self.existing(works.iter().copied().chain(state.mends.iter().map(String::as_str)));
        Wanted { ids, partly: &state.partly, pods: state.well.iter().any(|id| id == WORKS[1]) }
    }

    /// Those of `ids` that exist on this host.
    pub(super) fn existing<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        ids.into_iter().filter(|id| self.parts.checks.one(id).is_some()).map(str::to_owned).collect()
    }

    /// Runs checks until they are as wanted. Returns those that are so without being well. Errors: what is not as wanted, for people.
    pub(super) async fn verify(&self, wanted: &Wanted<'_>, looks: Looks) -> Result<Vec<Known>, String> {
        let ids = &wanted.ids;
        let end = Instant::now() + VERIFY;
        let (mut good, mut bad, mut why) = (0, 0, "the checks did not end".to_owned());
        loop {
            match timeout_at(end, self.parts.checks.run(ids)).await {
                Err(_) => return Err(why),
                Ok(Err(error)) => why = error.to_string(),
                Ok(Ok(known)) => {
                    let known: Vec<Known> = known.into_iter().filter(|k| ids.iter().any(|id| id == k.check.id)).collect();
                    let wrong: Vec<&Known> = known.iter().filter(|k| !wanted.met(k)).collect();
                    if wrong.is_empty() {
                        good += 1;
                        if good >= looks.steady {
                            return Ok(known.into_iter().filter(|k| k.finding.state != State::Ok).collect());
                        }
                    } else {
                        good = 0;
                        why = wrong.iter().map(|k| told(k)).collect::<Vec<_>>().join("; ");
                        let answers = known.iter().all(|k| k.check.id != WORKS[0] || well(k));
                        bad += u32::from(answers);
                    }
                }
            }
            if bad >= looks.tries || Instant::now() + PAUSE >= end {
                return Err(why);
            }
            sleep(PAUSE).await;
        }
    }

    /// All steps, to the end of the repair: it helped, or was undone.
    pub(super) async fn carry_out(&self, h: &Handle, edits: &[Edit]) -> Result<(), Error> {
        if edits.is_empty() {
            return self.restart(h).await;
        }
        let failed = |why: String| Error::RepairFailed { why };
        h.step("checking the new configuration");
        let texts: Vec<ConfigText> = edits.iter().map(|e| ConfigText { path: e.path.clone(), text: e.text.clone() }).collect();
        let taken = self.parts.files.try_edits(&texts, DUMP).await;
        let paths = || edits.iter().map(|e| e.path.display().to_string()).collect::<Vec<_>>().join(", ");
        taken.map_err(|e| failed(format!("containerd does not take what {} would hold: {e}", paths())))?;
        crash_point!("repair.checked");
        h.step("backing up");
        let mut backups = Vec::new();
        for edit in edits {
            let kept = self.parts.files.back_up(&edit.path).await;
            backups.push(kept.map_err(|e| failed(format!("{} could not be backed up: {e}", edit.path.display())))?);
        }
        crash_point!("repair.backed_up");
        self.before(h, RepairPhase::Editing, &backups).await?;
        crash_point!("repair.before_edit");
        for edit in edits {
            h.step(format!("editing {}", edit.path.display()));
            if let Err(error) = self.parts.files.replace(&edit.path, &edit.was, &edit.text).await {
                let cause = match error {
                    Error::RepairChanged { file } => RepairCause::Changed(file),
                    other => RepairCause::Failed(format!("{} could not be written: {other}", edit.path.display())),
                };
                return self.undo(h, cause).await;
            }
            crash_point!("repair.edited");
        }
        self.edited(h).await
    }

    /// Notes how all stands before it is touched.
    async fn before(&self, h: &Handle, phase: RepairPhase, backups: &[std::path::PathBuf]) -> Result<(), Error> {
        let unit = h.state().repair.unit;
        let state = self.parts.units.state(&unit).await;
        let state = state.map_err(|e| Error::RepairFailed { why: format!("how {unit} stands cannot be told: {e}") })?;
        let one = |id: &str| self.parts.checks.one(id).is_some_and(|k| k.finding.state == State::Ok);
        let well: Vec<String> = WORKS.iter().filter(|id| one(id)).map(|id| (*id).to_owned()).collect();
        h.save(|s| {
            let repair = &mut s.repair;
            for (edit, backup) in repair.edits.iter_mut().zip(backups) {
                edit.backup = backup.display().to_string();
            }
            (repair.phase, repair.well) = (phase, well);
            (repair.active, repair.pid, repair.since) = (state.active.clone(), state.pid, super::undo::since(&state));
        })
        .await
    }

    /// From the edited files to the end.
    pub(super) async fn edited(&self, h: &Handle) -> Result<(), Error> {
        let state = h.state().repair;
        h.step(format!("restarting {}", state.unit));
        if let Err(error) = self.parts.units.restart(&state.unit, RESTART).await {
            return self.undo(h, RepairCause::Failed(format!("{} could not be restarted: {error}", state.unit))).await;
        }
        crash_point!("repair.unit_restarted");
        h.step("verifying");
        match self.verify(&self.wanted(&state, &WORKS), EDITED).await {
            Ok(rest) => {
                for known in rest {
                    match known.finding.state {
                        State::Degraded if !WORKS.contains(&known.check.id) => h.warn(format!("not all of it is mended: {}", told(&known))),
                        _ if WORKS.contains(&known.check.id) => {
                            h.warn(format!("not verified by {}: {}", known.check.id, known.finding.seen));
                        }
                        _ => {}
                    }
                }
                crash_point!("repair.verified");
                Ok(())
            }
            Err(why) => self.undo(h, RepairCause::Failed(why)).await,
        }
    }

    /// Restarts a unit; the check itself must become well.
    pub(super) async fn restart(&self, h: &Handle) -> Result<(), Error> {
        self.before(h, RepairPhase::Restarting, &[]).await?;
        crash_point!("repair.before_restart");
        let state = h.state().repair;
        h.step(format!("restarting {}", state.unit));
        let restarted = self.parts.units.restart(&state.unit, RESTART).await;
        crash_point!("repair.restarted");
        h.step("verifying");
        // What systemd says of its job is told, but the check decides.
        match (self.verify(&self.wanted(&state, &[]), RESTARTED).await, restarted) {
            (Ok(_), _) => Ok(()),
            (Err(why), Ok(())) => Err(Error::RepairFailed { why }),
            (Err(why), Err(error)) => Err(Error::RepairFailed { why: format!("{error}; {why}") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Check, Group};

    #[test]
    fn a_missing_image_excuses_nothing_where_pods_could_be_made_before() {
        let known = Known {
            check: Check { id: WORKS[1], group: Group::Containerd, why: "" },
            finding: containerd::without_image("pause:3"),
            since: std::time::SystemTime::UNIX_EPOCH,
            observed: None,
        };
        assert!(Wanted::default().met(&known));
        assert!(!Wanted { pods: true, ..Wanted::default() }.met(&known));
    }
}
