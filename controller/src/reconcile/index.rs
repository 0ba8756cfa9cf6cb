//! What must be found quickly about machines: whom an event concerns, what is placed where, and who waits for room.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::waiting::{Demand, Waiting};
use crate::{
    kind::{ObjectKey, Phase, PveMachine, SourceSpec},
    placement::Wish,
};

/// A node of a PVE cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) cluster: String,
    pub(super) node: String,
}

/// What a machine takes where it is placed, for counting what does not run yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reservation {
    pub(super) uuid: Option<Arc<str>>,
    pub(super) wish: Wish,
    /// The template, which says what the wish leaves out.
    pub(super) source: SourceSpec,
}

/// What is placed on one node. The revision changes with it, and is never used for anything else.
#[derive(Debug, Clone, Default)]
pub(super) struct Placed {
    pub(super) revision: u64,
    pub(super) machines: BTreeMap<Key, Arc<Reservation>>,
}

/// A key, of which there are many copies.
pub(super) type Key = Arc<ObjectKey>;

/// What is known of all machines. It follows the statuses: what is decided counts before it is stored.
#[derive(Debug, Default)]
pub(super) struct Index {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    machines: HashMap<Key, Box<Entry>>,
    by_uid: HashMap<Arc<str>, Key>,
    by_uuid: HashMap<Arc<str>, Key>,
    /// Machines whose VM is not made, by its name.
    by_name: HashMap<String, BTreeSet<Key>>,
    by_cluster: HashMap<String, HashSet<Key>>,
    placed: HashMap<Place, Arc<Placed>>,
    revision: u64,
    /// Whether a place was given up since this was asked last.
    freed: bool,
    waiting: Waiting,
    /// Machines that are placed nowhere for a reason of their own.
    resting: HashSet<Key>,
    /// Machines that are not placed yet because hosts are still asked what they have.
    held: HashSet<Key>,
}

#[derive(Debug, PartialEq)]
struct Entry {
    uid: Arc<str>,
    vm_name: String,
    created: bool,
    phase: Phase,
    place: Option<Place>,
    reservation: Option<Arc<Reservation>>,
    uuid: Option<Arc<str>>,
    /// What it waits for, where no host had room.
    demand: Option<Arc<Demand>>,
}

/// What is to be done after a pass over a machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Room may have become free while it was looked at.
    pub(super) again: bool,
    /// One that tries in its stead.
    pub(super) next: Option<ObjectKey>,
}

impl Index {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a machine is, and what was decided for it.
    pub(super) fn put(&self, key: &ObjectKey, machine: &PveMachine) {
        let entry = Box::new(Entry::of(machine));
        let mut state = self.state();
        state.leave(key);
        if state.machines.get(key).is_some_and(|known| *known == entry) {
            return;
        }
        let key = state.machines.get_key_value(key).map_or_else(|| Arc::new(key.clone()), |(key, _)| Arc::clone(key));
        let takes = |entry: &Entry| entry.reservation.as_ref().map(|r| r.wish.size(None)).unwrap_or_default();
        let (old, new) = (state.machines.get(&key).map(|e| takes(e)).unwrap_or_default(), takes(&entry));
        state.freed |= new.memory_mib < old.memory_mib || new.cores < old.cores;
        state.forget(&key, entry.place.as_ref());
        state.insert(key, entry);
    }

    pub(super) fn remove(&self, key: &ObjectKey) {
        let mut state = self.state();
        state.leave(key);
        state.forget(key, None);
    }

    pub(super) fn has_uid(&self, uid: &str) -> bool {
        self.state().by_uid.contains_key(uid)
    }

    /// Whether a machine has this VM.
    pub(super) fn has_uuid(&self, uuid: &str) -> bool {
        self.state().by_uuid.contains_key(uuid)
    }

    /// What is placed on a node.
    pub(super) fn placed(&self, place: &Place) -> Arc<Placed> {
        self.state().placed.get(place).cloned().unwrap_or_default()
    }

    /// The machines that an event about a VM may concern: by uid, by UUID, or because they wait for its name to become free.
    pub(super) fn find(&self, uid: &str, uuid: &str, name: &str) -> Vec<ObjectKey> {
        let state = self.state();
        let of = state.by_uid.get(uid).into_iter().chain(state.by_uuid.get(uuid));
        of.chain(state.by_name.get(name).into_iter().flatten()).map(|key| (**key).clone()).collect()
    }

    /// Those in one of these namespaces.
    pub(super) fn within(&self, namespaces: &BTreeSet<String>) -> Vec<ObjectKey> {
        self.state().machines.keys().filter(|key| namespaces.contains(&key.namespace)).map(|key| (**key).clone()).collect()
    }

    /// What a change of a host concerns: machines of its PVE cluster (of any, where that is not known), and those that are nowhere for a reason
    /// of their own. Those that wait for room are another matter.
    pub(super) fn concerned(&self, cluster: Option<&str>) -> Vec<ObjectKey> {
        let mut state = self.state();
        // One that is being looked at may have been so before the change.
        state.waiting.epoch += 1;
        let resting = std::mem::take(&mut state.resting);
        let mut keys: Vec<ObjectKey> = resting.iter().map(|key| (**key).clone()).collect();
        match cluster {
            Some(cluster) => keys.extend(state.by_cluster.get(cluster).into_iter().flatten().map(|key| (**key).clone())),
            None => keys.extend(state.by_cluster.values().flatten().map(|key| (**key).clone())),
        }
        keys
    }

    /// A moment, for [`Index::settle`].
    pub(super) fn epoch(&self) -> u64 {
        self.state().waiting.epoch
    }

    /// Room may have become free; whether anybody waits for it. One that is being looked at is looked at again.
    pub(super) fn room_matters(&self) -> bool {
        let mut state = self.state();
        state.waiting.epoch += 1;
        !state.waiting.is_empty()
    }

    /// Whether a place was given up since this was asked last.
    pub(super) fn take_freed(&self) -> bool {
        std::mem::take(&mut self.state().freed)
    }

    /// A machine is not placed before all hosts have been asked.
    pub(super) fn hold(&self, key: &ObjectKey) {
        let mut state = self.state();
        let key = state.machines.get_key_value(key).map(|(key, _)| Arc::clone(key));
        state.held.extend(key);
    }

    /// Whether there are such machines.
    pub(super) fn holds(&self) -> bool {
        !self.state().held.is_empty()
    }

    /// All have been asked: who is to be placed now.
    pub(super) fn let_go(&self) -> Vec<ObjectKey> {
        std::mem::take(&mut self.state().held).iter().map(|key| (**key).clone()).collect()
    }

    /// Room may have become free, on this host (on any): who shall try for it.
    pub(super) fn room(&self, host: Option<&str>) -> Vec<ObjectKey> {
        self.state().waiting.wake(host)
    }

    /// After a pass over a machine that failed, and will be tried again by itself: who tries in its stead.
    pub(super) fn failed(&self, key: &ObjectKey) -> Option<ObjectKey> {
        let mut state = self.state();
        state.leave(key);
        let demand = state.waiting.tried(key)?;
        state.waiting.next(&demand)
    }

    /// After a pass over a machine, which began at that moment.
    pub(super) fn settle(&self, key: &ObjectKey, began: u64) -> Settled {
        let mut state = self.state();
        let state = &mut *state;
        let found = state.machines.get_key_value(key).filter(|(_, entry)| entry.place.is_none() && !entry.created);
        let demand = found.and_then(|(key, entry)| Some((Arc::clone(key), Arc::clone(entry.demand.as_ref()?))));
        let again = found.is_some() && state.waiting.epoch != began;
        if demand.is_none()
            && let Some((key, _)) = found
        {
            state.resting.insert(Arc::clone(key));
        }
        // One that tries again tries for the same.
        let tried = if again { None } else { state.waiting.tried(key) };
        // One that tried in vain speaks for all of its kind.
        let next = tried.filter(|_| demand.is_none()).and_then(|demand| state.waiting.next(&demand));
        if let Some((key, demand)) = demand {
            state.waiting.enter(key, demand);
        }
        Settled { again, next }
    }

    pub(super) fn phases(&self) -> HashMap<Phase, i64> {
        let mut counts = HashMap::new();
        for entry in self.state().machines.values() {
            *counts.entry(entry.phase).or_insert(0) += 1;
        }
        counts
    }
}

impl State {
    /// A machine is looked at: it waits for nothing.
    fn leave(&mut self, key: &ObjectKey) {
        self.waiting.leave(key);
        self.resting.remove(key);
        self.held.remove(key);
    }

    /// Takes a machine out; `place`: where it will be.
    fn forget(&mut self, key: &ObjectKey, place: Option<&Place>) {
        let Some((key, old)) = self.machines.remove_entry(key) else { return };
        self.by_uid.remove(&old.uid);
        if let Some(uuid) = &old.uuid {
            self.by_uuid.remove(uuid);
        }
        if !old.created {
            unlist(&mut self.by_name, &old.vm_name, |keys| keys.remove(&key), BTreeSet::is_empty);
        }
        if let Some(at) = old.place {
            self.freed |= place != Some(&at);
            unlist(&mut self.by_cluster, &at.cluster, |keys| keys.remove(&key), HashSet::is_empty);
            self.revision += 1;
            let revision = self.revision;
            let out = |placed: &mut Arc<Placed>| {
                let placed = Arc::make_mut(placed);
                placed.revision = revision;
                placed.machines.remove(&key)
            };
            unlist(&mut self.placed, &at, out, |placed| placed.machines.is_empty());
        }
    }

    fn insert(&mut self, key: Key, entry: Box<Entry>) {
        self.by_uid.insert(Arc::clone(&entry.uid), Arc::clone(&key));
        if let Some(uuid) = &entry.uuid {
            self.by_uuid.insert(Arc::clone(uuid), Arc::clone(&key));
        }
        if !entry.created {
            self.by_name.entry(entry.vm_name.clone()).or_default().insert(Arc::clone(&key));
        }
        if let (Some(place), Some(reservation)) = (&entry.place, &entry.reservation) {
            self.by_cluster.entry(place.cluster.clone()).or_default().insert(Arc::clone(&key));
            self.revision += 1;
            let placed = Arc::make_mut(self.placed.entry(place.clone()).or_default());
            placed.revision = self.revision;
            placed.machines.insert(Arc::clone(&key), Arc::clone(reservation));
        }
        self.machines.insert(key, entry);
    }
}

impl Entry {
    fn of(machine: &PveMachine) -> Self {
        let (spec, status) = (&machine.spec, &machine.status);
        let place = status.cluster.clone().zip(status.node.clone()).map(|(cluster, node)| Place { cluster, node });
        let uuid: Option<Arc<str>> = status.uuid.as_deref().map(Arc::from);
        let reservation = || Arc::new(Reservation { uuid: uuid.clone(), wish: Wish::of(spec), source: spec.source.clone() });
        Self {
            uid: machine.metadata.uid.as_str().into(),
            vm_name: machine.vm_name().to_owned(),
            created: status.created,
            phase: status.phase,
            reservation: place.as_ref().map(|_| reservation()),
            place,
            uuid,
            demand: Demand::of(machine),
        }
    }
}

/// Takes something out of a list, and the list away where nothing is left in it.
fn unlist<K: std::hash::Hash + Eq, L, T>(lists: &mut HashMap<K, L>, of: &K, out: impl FnOnce(&mut L) -> T, empty: impl FnOnce(&L) -> bool) {
    if let Some(list) = lists.get_mut(of) {
        out(list);
        if empty(list) {
            lists.remove(of);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use jiff::Timestamp;

    use super::*;
    use crate::{
        kind::{ConditionStatus, Quantity, set_condition},
        reconcile::{testing, waiting::TRY},
    };

    fn machine(name: &str) -> PveMachine {
        let mut machine = testing::machine(name);
        machine.metadata.uid = format!("uid-{name}");
        machine
    }

    fn waiting(name: &str, reason: &str) -> PveMachine {
        let mut machine = machine(name);
        let conditions = &mut machine.status.conditions;
        set_condition(conditions, "Placed", ConditionStatus::False, "NoHostFits", String::new(), 1, Timestamp::UNIX_EPOCH);
        set_condition(conditions, "Ready", ConditionStatus::False, reason, String::new(), 1, Timestamp::UNIX_EPOCH);
        machine
    }

    fn placed(name: &str, node: &str) -> PveMachine {
        let mut machine = machine(name);
        (machine.status.cluster, machine.status.node) = (Some("lab".into()), Some(node.into()));
        machine
    }

    fn place(node: &str) -> Place {
        Place { cluster: "lab".into(), node: node.into() }
    }

    /// A pass that leaves the machine as it is.
    fn pass(index: &Index, machine: &PveMachine) -> Settled {
        let (key, began) = (machine.key(), index.epoch());
        index.put(&key, machine);
        index.settle(&key, began)
    }

    fn names(keys: &[ObjectKey]) -> Vec<&str> {
        keys.iter().map(|k| k.name.as_str()).collect()
    }

    #[test]
    fn what_is_placed_on_a_node_follows_the_machines_and_each_change_has_a_revision_of_its_own() {
        let index = Index::default();
        let mut seen = BTreeSet::new();
        let mut look = |node: &str, want: &[&str]| {
            let placed = index.placed(&place(node));
            assert_eq!(placed.machines.keys().map(|k| k.name.as_str()).collect::<Vec<_>>(), want);
            (placed.revision, seen.insert(placed.revision))
        };
        index.put(&ObjectKey::named("a"), &placed("a", "pve1"));
        look("pve1", &["a"]);
        index.put(&ObjectKey::named("b"), &placed("b", "pve1"));
        let (revision, new) = look("pve1", &["a", "b"]);
        assert!(new);
        // What says the same changes nothing.
        index.put(&ObjectKey::named("b"), &placed("b", "pve1"));
        assert_eq!(look("pve1", &["a", "b"]), (revision, false));
        assert!(!index.take_freed());
        index.put(&ObjectKey::named("b"), &placed("b", "pve2"));
        assert!(look("pve1", &["a"]).1 && look("pve2", &["b"]).1);
        assert!(index.take_freed(), "it gave up its place");
        let mut small = placed("b", "pve2");
        small.spec.memory = Some(Quantity(16 << 20));
        index.put(&ObjectKey::named("b"), &small);
        assert!(index.take_freed(), "it takes less");
        index.remove(&ObjectKey::named("a"));
        assert_eq!(look("pve1", &[]).0, 0);
        assert!(index.take_freed());
        assert_eq!(names(&index.concerned(Some("lab"))), ["b"]);
        assert!(index.concerned(Some("other")).is_empty());
    }

    #[test]
    fn only_machines_whose_vm_is_not_made_are_found_by_name() {
        let index = Index::default();
        let mut web = machine("web");
        index.put(&web.key(), &web);
        assert_eq!(names(&index.find("", "", "web")), ["web"]);
        (web.status.created, web.status.uuid) = (true, Some("u".into()));
        index.put(&web.key(), &web);
        assert!(index.find("", "", "web").is_empty());
        assert_eq!(names(&index.find("uid-web", "", "")), ["web"]);
        assert_eq!(names(&index.find("", "u", "")), ["web"]);
    }

    #[test]
    fn freed_room_is_tried_for_by_some_of_each_kind_and_each_that_gets_a_place_lets_another_try() {
        let index = Index::default();
        let all: Vec<PveMachine> = (0..TRY + 3).map(|n| waiting(&format!("m{n:02}"), "NoHostFits")).collect();
        for machine in &all {
            assert_eq!(pass(&index, machine), Settled::default());
        }
        let mut large = waiting("large", "NoHostFits");
        large.spec.cores = Some(64);
        pass(&index, &large);
        let woken = index.room(None);
        assert_eq!(woken.len(), TRY + 1, "{woken:?}");
        assert!(index.room(None).is_empty(), "of this kind enough try already");
    }

    #[test]
    fn one_that_got_a_place_lets_another_try_and_one_that_did_not_speaks_for_all() {
        let index = Index::default();
        let all: Vec<PveMachine> = (0..TRY + 3).map(|n| waiting(&format!("m{n:02}"), "NoHostFits")).collect();
        all.iter().for_each(|machine| drop(pass(&index, machine)));
        assert_eq!(index.room(None).len(), TRY);
        assert_eq!(pass(&index, &placed("m00", "pve1")).next, Some(all[TRY].key()));
        assert_eq!(pass(&index, &all[1]).next, None);
        // One that is gone, or is held by something else by now, does not know.
        index.remove(&all[2].key());
        assert_eq!(index.settle(&all[2].key(), index.epoch()).next, Some(all[TRY + 1].key()));
        assert_eq!(pass(&index, &waiting("m03", "NameHasVm")).next, Some(all[TRY + 2].key()));
        assert_eq!(pass(&index, &placed("m04", "pve1")).next, Some(all[1].key()), "the one that tried in vain is the last now");
    }

    #[test]
    fn room_that_comes_during_a_pass_is_not_missed() {
        let index = Index::default();
        let (web, began) = (waiting("web", "NoHostFits"), index.epoch());
        index.put(&web.key(), &web);
        assert!(!index.room_matters(), "nobody waits yet");
        assert!(index.settle(&web.key(), began).again);
        let placed = placed("web", "pve1");
        index.put(&web.key(), &placed);
        assert_eq!(index.settle(&web.key(), began), Settled::default(), "it has what it needs");
    }

    #[test]
    fn one_that_is_settled_twice_waits_once_and_one_that_is_gone_does_not() {
        let index = Index::default();
        let web = waiting("web", "NoHostFits");
        pass(&index, &web);
        assert_eq!(index.settle(&web.key(), index.epoch()), Settled::default());
        index.remove(&web.key());
        assert!(index.room(None).is_empty() && !index.room_matters());
    }

    #[test]
    fn a_pass_that_failed_lets_another_try_and_is_not_looked_at_at_once() {
        let index = Index::default();
        let all: Vec<PveMachine> = (0..TRY + 1).map(|n| waiting(&format!("m{n:02}"), "NoHostFits")).collect();
        all.iter().for_each(|machine| drop(pass(&index, machine)));
        index.room(None);
        index.room_matters();
        assert_eq!(index.failed(&all[0].key()), Some(all[TRY].key()));
        assert_eq!(index.failed(&all[0].key()), None);
        // It waits for nothing but its next turn.
        pass(&index, &placed("m01", "pve1"));
        assert!(index.room(None).is_empty());
    }

    #[test]
    fn a_host_helps_only_those_that_may_go_there() {
        let index = Index::default();
        let mut named = waiting("named", "HostNotUsable");
        named.spec.host = Some("pve1".into());
        pass(&index, &named);
        assert!(index.room(Some("pve2")).is_empty());
        assert_eq!(names(&index.room(Some("pve1"))), ["named"]);
    }

    #[test]
    fn who_is_kept_by_something_else_does_not_wait_for_room() {
        let index = Index::default();
        for reason in ["Paused", "NamespaceNotBound", "InvalidSpec", "WaitingForHosts"] {
            pass(&index, &waiting("web", reason));
            assert!(index.room(None).is_empty() && names(&index.concerned(None)) == ["web"], "{reason}");
        }
    }

    #[test]
    fn one_that_tries_again_still_lets_another_try() {
        let index = Index::default();
        let all: Vec<PveMachine> = (0..TRY + 1).map(|n| waiting(&format!("m{n:02}"), "NoHostFits")).collect();
        all.iter().for_each(|machine| drop(pass(&index, machine)));
        index.room(None);
        let began = index.epoch();
        index.put(&all[0].key(), &all[0]);
        index.room_matters();
        assert_eq!(index.settle(&all[0].key(), began), Settled { again: true, next: None });
        assert_eq!(pass(&index, &placed("m00", "pve1")).next, Some(all[TRY].key()));
    }

    #[test]
    fn a_machine_is_held_until_all_hosts_were_asked_or_it_is_looked_at() {
        let index = Index::default();
        let (web, db) = (machine("web"), machine("db"));
        for machine in [&web, &db] {
            index.put(&machine.key(), machine);
            index.hold(&machine.key());
        }
        index.put(&db.key(), &db);
        assert!(index.holds());
        assert_eq!(names(&index.let_go()), ["web"]);
        assert!(!index.holds());
    }

    #[test]
    fn what_is_nowhere_for_a_reason_of_its_own_is_concerned_by_any_host_and_does_not_wait_for_room() {
        let index = Index::default();
        pass(&index, &waiting("named", "HostNotUsable"));
        pass(&index, &waiting("abandoned", "Abandoned"));
        assert_eq!(names(&index.concerned(Some("lab"))), ["abandoned"]);
        assert!(index.concerned(Some("lab")).is_empty(), "it is being looked at");
        assert_eq!(names(&index.room(None)), ["named"]);
    }
}
