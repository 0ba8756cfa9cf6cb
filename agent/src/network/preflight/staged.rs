//! Changes that somebody else has staged or begun.

use super::{Check, Facts, Rule, Scene, Severity, sdn};

pub(super) const STAGED: Rule = Rule {
    id: "net.staged-interfaces",
    severity: Severity::Error,
    why: "PVE applies /etc/network/interfaces.new with the next \"Apply Configuration\" and, unverified, with the next boot; it would come with \
          a change of the agent, or undo it",
};

/// A change that waits for somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// "interfaces.new", "sdn", "sdn-lock".
    pub kind: &'static str,
    /// What, for people.
    pub detail: String,
}

/// The changes of others that wait.
pub fn pending(facts: &Facts<'_>) -> Vec<Pending> {
    let staged = staged(facts).map(|detail| Pending { kind: "interfaces.new", detail });
    let lock = sdn::lock_seen(facts).map(|detail| Pending { kind: "sdn-lock", detail });
    let sdn = sdn::pending_seen(facts).filter(|p| !p.is_empty()).map(|p| Pending { kind: "sdn", detail: super::some(&p) });
    staged.into_iter().chain(sdn).chain(lock).collect()
}

/// What of that forbids a change, in words.
pub(super) fn foreign(scene: &Scene<'_>) -> Option<String> {
    staged(scene.facts).or_else(|| sdn::lock_seen(scene.facts))
}

/// What is staged: how many lines differ from the live file.
fn staged(facts: &Facts<'_>) -> Option<String> {
    let file = facts.files.staged.as_ref()?;
    let path = file.path.display();
    let Some(live) = facts.files.declared.first() else { return Some(format!("{path} is staged")) };
    let diff = similar::TextDiff::from_lines(&live.text, &file.text);
    let count = |tag| diff.iter_all_changes().filter(|c| c.tag() == tag).count();
    let (added, removed) = (count(similar::ChangeTag::Insert), count(similar::ChangeTag::Delete));
    Some(format!("{path} is staged: {added} lines more and {removed} fewer than {}", live.path.display()))
}

pub(super) fn interfaces(scene: &Scene<'_>) -> Check {
    match staged(scene.facts) {
        Some(seen) => {
            STAGED.failed(seen, "apply or revert it in PVE: node > System > Network, or `pvesh delete /nodes/<node>/network`", [])
        }
        None => STAGED.ok("nothing is staged"),
    }
}
