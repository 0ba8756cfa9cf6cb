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
/// Names of keys whose values are shown around what is edited. Others may hold credentials of registries, which whoever reads health need not
/// know.
const SHOWN: [&str; 10] = [
    "version",
    "default_runtime_name",
    "runtime_type",
    "runtime_engine",
    "sandbox_image",
    "sandbox",
    "snapshotter",
    "SystemdCgroup",
    "systemd_cgroup",
    "disabled_plugins",
];

/// What a repair does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// The check that was asked about.
    pub(super) check: String,
    /// The checks that must be well after it.
    pub(super) mends: Vec<String>,
    /// Those of them that need only be degraded after it.
    pub(super) partly: Vec<String>,
    /// What is edited.
    pub(super) edits: Vec<Edit>,
    /// What is restarted.
    pub(super) unit: String,
}

/// What tells two texts apart.
pub(super) fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// A line of a diff as it may be shown: what is edited, and of what stands around it the tables, keys, and values that are no secrets.
fn without_secret(line: &str) -> String {
    let Some(text) = line.strip_prefix(' ') else {
        // One line may hold whole tables.
        let lower = line.to_ascii_lowercase();
        let secret = ["password", "auth", "token", "secret"].iter().any(|word| lower.contains(word));
        return if secret { line.split('=').next().unwrap_or_default().to_owned() + "= ..." } else { line.to_owned() };
    };
    let trimmed = text.trim();
    if trimmed.is_empty() || trimmed.starts_with('[') && trimmed.ends_with(']') && !trimmed.contains(['=', ',']) {
        return line.to_owned();
    }
    let Some((key, value)) = line.split_once('=') else { return " ...".to_owned() };
    let (name, value) = (key.trim().trim_matches(['"', '\'']), value.trim());
    let harmless = SHOWN.contains(&name) || ["true", "false"].contains(&value) || value.parse::<i64>().is_ok();
    if harmless && !name.starts_with('#') {
        line.to_owned()
    } else {
        format!("{}= ...", key.chars().take_while(|c| *c != '#').collect::<String>())
    }
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
            partly: self.partly.clone(),
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
                // A daemon that runs again may need a while to be all well, as one that follows a clock.
                let partly = if known.finding.state == State::Failed { vec![id.to_owned()] } else { Vec::new() };
                return Ok(Plan { check: id.to_owned(), mends: vec![id.to_owned()], partly, edits: Vec::new(), unit: unit.clone() });
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
        let partly: BTreeSet<&str> = edits.iter().flat_map(|e| &e.partly).copied().collect();
        let owned = |ids: BTreeSet<&str>| ids.into_iter().map(str::to_owned).collect();
        Ok(Plan { check: id.to_owned(), mends: owned(mends), partly: owned(partly), edits, unit: self.settings.containerd_unit.clone() })
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
        for (secret, shown) in [
            ("  password = \"x\"", "   password = ..."),
            ("  auth=\"x\"", "   auth= ..."),
            ("r.auth.password = \"x\"", " r.auth.password = ..."),
            ("\"r\" = { auth = { password = \"x\" } }", " \"r\" = ..."),
            ("Authorization = [", " Authorization = ..."),
            ("  \"Basic x\",", " ..."),
            ("[\"x\", \"y\"]", " ..."),
            ("# password = \"x\"", " = ..."),
            ("x", " ..."),
            ("[table.\"x\"]", " [table.\"x\"]"),
            ("SystemdCgroup = true", " SystemdCgroup = true"),
            ("default_runtime_name = \"runc\"", " default_runtime_name = \"runc\""),
        ] {
            let was = format!("{secret}\nb = 1\n");
            let edit = Edit { path: "/etc/c.toml".into(), text: was.replace("b = 1", "b = 2"), was, mends: vec![], partly: vec![] };
            let diff = shown_diff(&[edit]);
            assert_eq!(diff, format!("--- /etc/c.toml\n+++ /etc/c.toml\n@@ -1,2 +1,2 @@\n{shown}\n-b = 1\n+b = 2\n"));
        }
    }
}
