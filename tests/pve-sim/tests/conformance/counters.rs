//! `.version` and `.vmlist`: counters that grow with each change since the cluster file system started. Their values depend on what a host has been through;
//! what counts is by how much each grew from one look to the next, and which VMs there are.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::normal::Difference;

/// The counters of one look, by name.
#[derive(Clone, Debug, Default)]
struct Look(BTreeMap<String, i64>);

impl Look {
    fn of(texts: &BTreeMap<&str, &str>) -> Self {
        let json = |path: &str| -> Value { texts.get(path).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default() };
        let mut all = BTreeMap::new();
        if let Value::Object(version) = json(VERSION) {
            all.extend(version.iter().filter_map(|(key, value)| Some((format!(".version {key}"), value.as_i64()?))));
        }
        let list = json(VMLIST);
        for (vmid, entry) in list["ids"].as_object().into_iter().flatten() {
            let node = entry["node"].as_str().unwrap_or_default();
            all.insert(format!(".vmlist {vmid} {node} {}", entry["type"]), entry["version"].as_i64().unwrap_or(0));
        }
        Self(all)
    }
}

const VERSION: &str = "/etc/pve/.version";
const VMLIST: &str = "/etc/pve/.vmlist";

/// Looks one after the other, recorded and now.
#[derive(Default)]
pub(crate) struct Counters {
    last: Option<(Look, Look)>,
    /// Growth that the replay itself caused.
    own: BTreeMap<String, i64>,
}

impl Counters {
    /// Whether a file holds such counters.
    pub(crate) fn are_in(path: &str) -> bool {
        path == VERSION || path == VMLIST
    }

    /// Leaves out what `.version` grew by between two texts of it.
    pub(crate) fn leave_out(&mut self, before: &str, after: &str) {
        let look = |text: &str| Look::of(&BTreeMap::from([(VERSION, text)]));
        let before = look(before);
        for (name, value) in look(after).0 {
            let growth = value - before.0.get(&name).copied().unwrap_or(value);
            *self.own.entry(name).or_default() += growth;
        }
    }

    /// Compares another look.
    pub(crate) fn compare(&mut self, recorded: &BTreeMap<&str, &str>, now: &BTreeMap<&str, &str>) -> Vec<Difference> {
        let (old, new) = (Look::of(recorded), Look::of(now));
        let mut found = Vec::new();
        let names = |look: &Look| look.0.keys().cloned().collect::<Vec<_>>();
        if names(&old) != names(&new) {
            found.push((String::from("counters"), names(&old).join(", "), names(&new).join(", ")));
        }
        if let Some((old_before, new_before)) = &self.last {
            // All begin again when the file system has been started anew.
            let restarted = |before: &Look, after: &Look| before.0.get(START) != after.0.get(START);
            let (old_restarted, new_restarted) = (restarted(old_before, &old), restarted(new_before, &new));
            if old_restarted != new_restarted {
                found.push((String::from("starttime changed"), old_restarted.to_string(), new_restarted.to_string()));
            }
            for (name, value) in old.0.iter().filter(|(name, _)| *name != START && !old_restarted) {
                let growth = |before: &Look, value: i64| before.0.get(name).map(|earlier| value - earlier);
                let own = self.own.get(name).copied().unwrap_or(0);
                let (grew, grew_now) = (growth(old_before, *value), new.0.get(name).and_then(|value| growth(new_before, *value - own)));
                // The number of a VM is the one of the list at that moment: only whether it grew can be told.
                let same = if name.starts_with(".vmlist") { grew.map(|n| n > 0) == grew_now.map(|n| n > 0) } else { grew == grew_now };
                if !same {
                    found.push((format!("growth of {name}"), format!("{grew:?}"), format!("{grew_now:?}")));
                }
            }
        }
        self.own.clear();
        self.last = Some((old, new));
        found
    }
}

const START: &str = ".version starttime";
