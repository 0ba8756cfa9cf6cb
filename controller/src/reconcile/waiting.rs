//! Machines that wait for room. Those that need the same wait in the order in which they tried last.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{index::Key, machine::decide::NO_ROOM};
use crate::{
    kind::{ConditionStatus, ObjectKey, PveMachine, SourceSpec},
    placement::Wish,
};

/// Machines alike in what they need that try for freed room at once. Each that does not wait any more afterwards lets another one try.
pub(super) const TRY: usize = 16;

/// All that decides on which hosts a machine fits. Where one does not fit, no other of the same demand does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Demand {
    host: Option<String>,
    selector: BTreeMap<String, String>,
    source: SourceSpec,
    wish: Wish,
    user_data: bool,
}

impl Demand {
    /// What a machine waits for; nothing where it does not wait for room.
    pub(super) fn of(machine: &PveMachine) -> Option<Arc<Self>> {
        let (spec, status) = (&machine.spec, &machine.status);
        // `Placed` stays as it was where something else keeps the machine from being placed now.
        let waits = status
            .conditions
            .iter()
            .any(|c| c.kind == "Ready" && c.status == ConditionStatus::False && NO_ROOM.contains(&c.reason.as_str()));
        let nowhere = status.cluster.is_none() && !status.created && !machine.is_deleting();
        (waits && nowhere).then(|| {
            Arc::new(Self {
                host: spec.host.clone(),
                selector: spec.host_selector.clone(),
                source: spec.source.clone(),
                wish: Wish::of(spec),
                user_data: spec.cloud_init.as_ref().is_some_and(|c| c.user_data.is_some()),
            })
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// One more each time that room may have become free.
    pub(super) epoch: u64,
    sequence: u64,
    by_demand: HashMap<Arc<Demand>, BTreeMap<u64, Key>>,
    of: HashMap<Key, (Arc<Demand>, u64)>,
    /// Those that try now, and how many these are.
    trying: HashMap<Key, Arc<Demand>>,
    tries: HashMap<Arc<Demand>, usize>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    pub(super) fn enter(&mut self, key: Key, demand: Arc<Demand>) {
        self.leave(&key);
        self.sequence += 1;
        self.of.insert(Arc::clone(&key), (Arc::clone(&demand), self.sequence));
        self.by_demand.entry(demand).or_default().insert(self.sequence, key);
    }

    pub(super) fn leave(&mut self, key: &ObjectKey) {
        let Some((demand, sequence)) = self.of.remove(key) else { return };
        if let Some(keys) = self.by_demand.get_mut(&demand) {
            keys.remove(&sequence);
            if keys.is_empty() {
                self.by_demand.remove(&demand);
            }
        }
    }

    /// The first of each kind that a change of this host (of any) may help. They try now.
    pub(super) fn wake(&mut self, host: Option<&str>) -> Vec<ObjectKey> {
        let helps = |demand: &&Arc<Demand>| host.is_none_or(|host| demand.host.as_deref().is_none_or(|named| named == host));
        let demands: Vec<Arc<Demand>> = self.by_demand.keys().filter(helps).cloned().collect();
        demands.iter().flat_map(|demand| self.take(demand, TRY.saturating_sub(self.tries.get(demand).copied().unwrap_or(0)))).collect()
    }

    /// One tries no more. What it tried for, if it did.
    pub(super) fn tried(&mut self, key: &ObjectKey) -> Option<Arc<Demand>> {
        let demand = self.trying.remove(key)?;
        if let Some(tries) = self.tries.get_mut(&demand) {
            *tries -= 1;
            if *tries == 0 {
                self.tries.remove(&demand);
            }
        }
        Some(demand)
    }

    /// The first of a kind, which tries in the stead of another.
    pub(super) fn next(&mut self, demand: &Arc<Demand>) -> Option<ObjectKey> {
        self.take(demand, 1).pop()
    }

    fn take(&mut self, demand: &Arc<Demand>, count: usize) -> Vec<ObjectKey> {
        let mut taken = Vec::new();
        if let Some(keys) = self.by_demand.get_mut(demand) {
            taken.extend(std::iter::from_fn(|| keys.pop_first()).map(|(_, key)| key).take(count));
            if keys.is_empty() {
                self.by_demand.remove(demand);
            }
        }
        for key in &taken {
            self.of.remove(key);
            // One that tries already, for this or for something else, does so once.
            self.tried(key);
            self.trying.insert(Arc::clone(key), Arc::clone(demand));
            *self.tries.entry(Arc::clone(demand)).or_default() += 1;
        }
        taken.iter().map(|key| (**key).clone()).collect()
    }
}
