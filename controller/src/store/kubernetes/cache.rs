//! The objects of one kind as the API server told them last.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::api::DynamicObject;
use serde_json::Value;
use tokio::sync::mpsc;

use super::object;
use crate::kind::{Kind, Object, ObjectKey, ObjectRef};

/// Who wants to hear of changes, of all kinds.
pub(super) type Watchers = Arc<Mutex<Vec<mpsc::UnboundedSender<ObjectRef>>>>;

/// One object.
#[derive(Debug, Clone)]
pub(super) struct Known<K: Kind> {
    version: u64,
    /// Its UID.
    pub(super) uid: String,
    /// The object, or what cannot be understood.
    pub(super) object: Result<Arc<Object<K>>, Arc<Strange>>,
}

/// An object that cannot be understood.
#[derive(Debug)]
pub(super) struct Strange {
    /// What is wrong, and where.
    pub(super) problem: String,
    /// Its spec as it came.
    pub(super) spec: Value,
}

/// All objects of a kind. What comes on different ways (events, answers to writes) is put in order by its version.
#[derive(Debug)]
pub(super) struct Cache<K: Kind> {
    state: Mutex<State<K>>,
    watchers: Watchers,
}

#[derive(Debug)]
struct State<K: Kind> {
    objects: BTreeMap<ObjectKey, Known<K>>,
    /// The newest version that was told by a list or an event.
    told: u64,
    /// What went since a list was begun beside the events, and with which version.
    gone: Option<BTreeMap<ObjectKey, u64>>,
}

impl<K: Kind> Cache<K> {
    pub(super) fn new(watchers: Watchers) -> Self {
        Self { state: Mutex::new(State { objects: BTreeMap::new(), told: 0, gone: None }), watchers }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        // Each change under the lock is one insert or remove.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<Known<K>> {
        self.state().objects.get(key).cloned()
    }

    /// What is wanted of the objects, by name; looked at where they are.
    pub(super) fn collect<T>(&self, wanted: impl Fn(&ObjectKey, &Known<K>) -> Option<T>) -> Vec<T> {
        self.state().objects.iter().filter_map(|(key, known)| wanted(key, known)).collect()
    }

    pub(super) fn keys(&self) -> Vec<ObjectKey> {
        self.state().objects.keys().cloned().collect()
    }

    /// Takes an object over that a list or an event told, unless a newer one is known.
    pub(super) fn put(&self, raw: DynamicObject) {
        let key = object::key(&raw);
        let changed = {
            let mut state = self.state();
            state.told = state.told.max(object::version(&raw));
            state.insert(&key, raw)
        };
        if changed {
            self.tell(&key);
        }
    }

    /// A list is begun beside the events; it ends with [`Self::listed`].
    pub(super) fn begin_list(&self) {
        self.state().gone = Some(BTreeMap::new());
    }

    /// Takes an object of that list over. What went meanwhile does not come back.
    pub(super) fn put_listed(&self, raw: DynamicObject) {
        let (key, version) = (object::key(&raw), object::version(&raw));
        let late = self.state().gone.as_ref().and_then(|gone| gone.get(&key)).is_some_and(|gone| version <= *gone);
        if !late {
            self.put(raw);
        }
    }

    /// That list of this version is whole.
    pub(super) fn listed(&self, listed: &BTreeSet<ObjectKey>, version: u64) {
        self.keep(listed, version);
        self.state().gone = None;
    }

    /// Takes the answer to a write over. It may come later than the event that tells what became of the object since: one that is gone by then
    /// does not come back.
    pub(super) fn answer(&self, raw: DynamicObject) {
        let (key, version) = (object::key(&raw), object::version(&raw));
        let gone = raw.metadata.deletion_timestamp.is_some() && raw.metadata.finalizers.as_ref().is_none_or(Vec::is_empty);
        if gone {
            self.remove(&raw);
            return;
        }
        let changed = {
            let mut state = self.state();
            let late = version <= state.told && !state.objects.contains_key(&key);
            !late && state.insert(&key, raw)
        };
        if changed {
            self.tell(&key);
        }
    }

    /// Takes over what an object really is, after a write that was decided on version `known` was refused. Where versions went back (a cluster
    /// that was restored from a backup), that is an older one.
    pub(super) fn correct(&self, raw: DynamicObject, known: &str) {
        let key = object::key(&raw);
        let changed = {
            let mut state = self.state();
            if state.objects.get(&key).is_some_and(|k| k.version.to_string() == known) {
                state.objects.remove(&key);
            }
            state.insert(&key, raw)
        };
        if changed {
            self.tell(&key);
        }
    }

    /// Forgets an object that is gone, unless there is another one of its name by now.
    pub(super) fn remove(&self, raw: &DynamicObject) {
        let (key, version) = (object::key(raw), object::version(raw));
        {
            let mut state = self.state();
            state.told = state.told.max(version);
            if let Some(gone) = &mut state.gone {
                gone.insert(key.clone(), version);
            }
            if state.objects.get(&key).is_none_or(|k| version > 0 && k.version > version) {
                return;
            }
            state.objects.remove(&key);
        }
        self.tell(&key);
    }

    /// Forgets an object that the API server does not have, if it is still this version of it.
    pub(super) fn forget(&self, key: &ObjectKey, version: &str) {
        let version = version.parse().unwrap_or(0);
        {
            let mut state = self.state();
            if state.objects.get(key).is_none_or(|k| k.version > version) {
                return;
            }
            state.objects.remove(key);
        }
        self.tell(key);
    }

    /// The newest version that is known of anything.
    pub(super) fn newest(&self) -> u64 {
        let state = self.state();
        state.objects.values().map(|k| k.version).max().unwrap_or(0).max(state.told)
    }

    /// After a whole list of this version: what does not stand in it is gone, but for what is newer.
    pub(super) fn keep(&self, listed: &BTreeSet<ObjectKey>, version: u64) {
        let gone: Vec<ObjectKey> = {
            let mut state = self.state();
            let is_gone = |(key, known): &(&ObjectKey, &Known<K>)| !listed.contains(key) && known.version <= version;
            let gone = state.objects.iter().filter(is_gone).map(|(key, _)| key.clone()).collect::<Vec<_>>();
            gone.iter().for_each(|key| drop(state.objects.remove(key)));
            gone
        };
        gone.iter().for_each(|key| self.tell(key));
    }

    fn tell(&self, key: &ObjectKey) {
        let about = object::about::<K>(key);
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).retain(|w| w.send(about.clone()).is_ok());
    }
}

impl<K: Kind> State<K> {
    /// Whether it was newer than what was known. The same version says the same.
    fn insert(&mut self, key: &ObjectKey, raw: DynamicObject) -> bool {
        let version = object::version(&raw);
        if self.objects.get(key).is_some_and(|k| version > 0 && k.version >= version) {
            return false;
        }
        let uid = raw.metadata.uid.clone().unwrap_or_default();
        let spec = raw.data["spec"].clone();
        let object = object::read(raw).map(Arc::new).map_err(|problem| Arc::new(Strange { problem, spec }));
        self.objects.insert(key.clone(), Known { version, uid, object });
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::kind::{API_VERSION, Host};

    fn host(version: u64, node: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": API_VERSION, "kind": "PveHost",
            "metadata": {"name": "pve1", "uid": "u", "resourceVersion": version.to_string()},
            "spec": {"address": "pve1:7443", "cluster": "lab", "node": node},
        }))
        .unwrap()
    }

    fn node(cache: &Cache<Host>) -> Option<String> {
        cache.get(&ObjectKey::named("pve1")).map(|k| k.object.unwrap().spec.node.clone())
    }

    #[test]
    fn what_comes_late_does_not_replace_what_is_newer() {
        let watchers = Watchers::default();
        let (sender, mut told) = mpsc::unbounded_channel();
        watchers.lock().unwrap().push(sender);
        let cache = Cache::<Host>::new(watchers);
        cache.put(host(5, "five"));
        cache.put(host(4, "four"));
        cache.put(host(5, "five again"));
        assert_eq!(node(&cache).as_deref(), Some("five"));
        cache.put(host(9, "nine"));
        cache.remove(&host(8, "eight"));
        assert_eq!(node(&cache).as_deref(), Some("nine"));
        cache.remove(&host(9, "nine"));
        cache.remove(&host(10, "ten"));
        assert_eq!(node(&cache), None);
        let mut count = 0;
        while told.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, 3, "each change is told once");
    }

    #[test]
    fn a_list_that_takes_its_time_brings_nothing_back() {
        let cache = Cache::<Host>::new(Watchers::default());
        cache.put(host(5, "five"));
        cache.begin_list();
        cache.remove(&host(9, "five"));
        cache.put_listed(host(5, "five"));
        assert_eq!(node(&cache), None);
        // One that was made anew does.
        cache.put_listed(host(11, "eleven"));
        cache.listed(&BTreeSet::from([ObjectKey::named("pve1")]), 11);
        assert_eq!(node(&cache).as_deref(), Some("eleven"));
        cache.remove(&host(12, "eleven"));
        cache.put_listed(host(11, "eleven"));
        assert_eq!(node(&cache).as_deref(), Some("eleven"), "what a former list knew does not count for the next one");
    }

    #[test]
    fn a_late_answer_to_a_write_brings_nothing_back() {
        let cache = Cache::<Host>::new(Watchers::default());
        cache.put(host(5, "five"));
        cache.remove(&host(9, "five"));
        cache.answer(host(8, "eight"));
        assert_eq!(node(&cache), None);
        // One that tells more than any event has, does.
        cache.answer(host(11, "eleven"));
        assert_eq!(node(&cache).as_deref(), Some("eleven"));
        // The last finalizer is off: that was the object's end.
        let mut raw = host(12, "twelve");
        raw.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-02T03:04:05Z")).unwrap();
        cache.answer(raw);
        assert_eq!(node(&cache), None);
    }

    #[test]
    fn what_the_api_server_has_counts_where_versions_went_back() {
        let cache = Cache::<Host>::new(Watchers::default());
        cache.put(host(50, "fifty"));
        cache.put(host(5, "five"));
        assert_eq!(node(&cache).as_deref(), Some("fifty"));
        cache.correct(host(5, "five"), "50");
        assert_eq!(node(&cache).as_deref(), Some("five"));
        // A version that was not decided on is newer than the correction.
        cache.put(host(60, "sixty"));
        cache.correct(host(7, "seven"), "5");
        assert_eq!(node(&cache).as_deref(), Some("sixty"));
    }

    #[test]
    fn what_a_whole_list_does_not_hold_is_gone() {
        let cache = Cache::<Host>::new(Watchers::default());
        cache.put(host(5, "five"));
        cache.keep(&BTreeSet::from([ObjectKey::named("pve1")]), 9);
        assert!(node(&cache).is_some());
        cache.keep(&BTreeSet::new(), 4);
        assert!(node(&cache).is_some(), "newer than the list");
        cache.keep(&BTreeSet::new(), 9);
        assert!(node(&cache).is_none());
    }

    #[test]
    fn an_object_that_cannot_be_understood_is_kept_as_such() {
        let cache = Cache::<Host>::new(Watchers::default());
        let mut raw = host(5, "five");
        raw.data["spec"]["of"] = json!("tomorrow");
        cache.put(raw);
        let known = cache.get(&ObjectKey::named("pve1")).unwrap();
        assert!(known.object.unwrap_err().problem.contains("spec.of: unknown field"));
    }
}
