//! What a repair would do, from what is true now.

use std::collections::BTreeSet;

use pvelet_proto::v1;
use sha2::{Digest, Sha256};

use super::{Edit, Inner};
use crate::{
    error::Error,
    health::{Known, Mend, State},
    network::diff,
    operation::{RepairEdit, RepairState},
};

/// A larger file is no configuration that anybody wrote; its old text goes through the journal.
const LARGEST: usize = 256 << 10;
/// Names of keys whose values are not for a diff's context.
const SECRETS: [&str; 5] = ["password", "auth", "identitytoken", "token", "secret"];

/// What a repair does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// The check that was asked about.
    pub(super) check: String,
    /// The checks that must be well after it.
    pub(super) mends: Vec<String>,
    /// What is edited.
    pub(super) edits: Vec<Edit>,
    /// What is restarted.
    pub(super) unit: String,
}

/// What tells two texts apart.
pub(super) fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// A line of a diff without the value of a secret.
fn without_secret(line: &str) -> String {
    let Some((key, _)) = line.split_once('=') else { return line.to_owned() };
    let name = key.trim_start_matches([' ', '+', '-']).trim().trim_matches(['"', '\'']).to_ascii_lowercase();
    if SECRETS.contains(&name.as_str()) { format!("{key}= ...") } else { line.to_owned() }
}

fn shown_diff(edits: &[Edit]) -> String {
    let one = |edit: &Edit| {
        let path = edit.path.display().to_string();
        let diff = diff::unified(&path, Some(&edit.was), Some(&edit.text));
        diff.lines().map(|line| without_secret(line) + "\n").collect::<String>()
    };
    edits.iter().map(one).collect()
}

/// The plan that an operation has.
pub(super) fn of_state(state: &RepairState) -> v1::RepairPlan {
    v1::RepairPlan {
        checks: state.mends.clone(),
        file: state.edits.iter().map(|e| e.path.as_str()).collect::<Vec<_>>().join(", "),
        file_diff: state.diff.clone(),
        units: vec![state.unit.clone()],
    }
}

impl Plan {
    /// As the journal has it.
    pub(super) fn state(&self, automatic: bool) -> RepairState {
        let edit = |e: &Edit| RepairEdit {
            path: e.path.display().to_string(),
            was: e.was.clone(),
            digest: digest(&e.text),
            backup: String::new(),
        };
        RepairState {
            check: self.check.clone(),
            mends: self.mends.clone(),
            edits: self.edits.iter().map(edit).collect(),
            diff: shown_diff(&self.edits),
            unit: self.unit.clone(),
            automatic,
            ..RepairState::default()
        }
    }

    /// As the API shows it.
    pub(super) fn shown(&self) -> v1::RepairPlan {
        of_state(&self.state(false))
    }
}

impl Inner {
    /// What a repair of this check would do. Errors: `CheckNotFound`, `RepairNotPossible`, `AgentDraining`.
    pub(super) async fn plan(&self, check: &str) -> Result<Plan, Error> {
        let missing = || Error::CheckNotFound { id: check.chars().take(128).collect() };
        let id = self.parts.checks.one(check).ok_or_else(missing)?.check.id;
        // As it is now: somebody may have mended it since the last look.
        let known = self.parts.checks.run(&[id.to_owned()]).await?;
        let known = known.into_iter().find(|k| k.check.id == id).ok_or_else(missing)?;
        let mend = mendable(&known)?;
        let edits = match &mend {
            Mend::RestartUnit(unit) => {
                return Ok(Plan { check: id.to_owned(), mends: vec![id.to_owned()], edits: Vec::new(), unit: unit.clone() });
            }
            Mend::ContainerdConfig => self.parts.mender.mend().await.map_err(|e| not_possible(id, e.to_string()))?,
        };
        let mends: BTreeSet<&str> = edits.iter().flat_map(|e| &e.mends).copied().collect();
        if !mends.contains(id) {
            return Err(not_possible(id, format!("no edit is known that mends it; {}", known.finding.remedy)));
        }
        for Edit { path, was, text, .. } in &edits {
            let path = path.display();
            if was.contains('\u{fffd}') {
                return Err(not_possible(id, format!("{path} holds bytes that are no UTF-8; remove them by hand")));
            }
            if was.len().max(text.len()) > LARGEST {
                return Err(not_possible(id, format!("{path} is larger than {LARGEST} bytes; edit it by hand")));
            }
        }
        let mends = mends.into_iter().map(str::to_owned).collect();
        Ok(Plan { check: id.to_owned(), mends, edits, unit: self.settings.containerd_unit.clone() })
    }
}

fn not_possible(check: &str, why: impl Into<String>) -> Error {
    Error::RepairNotPossible { check: check.to_owned(), why: why.into() }
}

/// What the agent can do about a finding. Errors: `RepairNotPossible`.
fn mendable(known: &Known) -> Result<Mend, Error> {
    let (id, finding) = (known.check.id, &known.finding);
    match (finding.state, &finding.mend) {
        (State::Degraded | State::Failed, Some(mend)) => Ok(mend.clone()),
        (State::Degraded | State::Failed, None) if finding.remedy.is_empty() => {
            Err(not_possible(id, "nothing is known that mends what it found"))
        }
        (State::Degraded | State::Failed, None) => Err(not_possible(id, format!("a person has to mend what it found: {}", finding.remedy))),
        (State::Ok, _) => Err(not_possible(id, "it is well")),
        (State::NotApplicable, _) => Err(not_possible(id, format!("it does not concern this host: {}", finding.seen))),
        (State::Unknown, _) => Err(not_possible(id, format!("how it is could not be found out: {}", finding.seen))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_secrets_are_not_shown() {
        let was = "[a]\n  password = \"x\"\n  auth=\"y\"\n  b = 1\n";
        let edit = Edit { path: "/etc/c.toml".into(), was: was.into(), text: was.replace("b = 1", "b = 2"), mends: vec![] };
        let diff = shown_diff(&[edit]);
        assert_eq!(diff, "--- /etc/c.toml\n+++ /etc/c.toml\n@@ -1,4 +1,4 @@\n [a]\n   password = ...\n   auth= ...\n-  b = 1\n+  b = 2\n");
    }
}
