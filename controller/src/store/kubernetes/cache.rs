//! The objects of one kind as the API server told them last.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::api::DynamicObject;
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
    /// The object, or why it cannot be understood.
    pub(super) object: Result<Arc<Object<K>>, Arc<str>>,
}

/// All objects of a kind. What comes on different ways (events, answers to writes) is put in order by its version.
#[derive(Debug)]
pub(super) struct Cache<K: Kind> {
    objects: Mutex<BTreeMap<ObjectKey, Known<K>>>,
    watchers: Watchers,
}

impl<K: Kind> Cache<K> {
    pub(super) fn new(watchers: Watchers) -> Self {
        Self { objects: Mutex::default(), watchers }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Known<K>>> {
        // Each change under the lock is one insert or remove.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<Known<K>> {
        self.objects().get(key).cloned()
    }

    pub(super) fn all(&self) -> Vec<(ObjectKey, Known<K>)> {
        self.objects().iter().map(|(key, known)| (key.clone(), known.clone())).collect()
    }

    pub(super) fn keys(&self) -> Vec<ObjectKey> {
        self.objects().keys().cloned().collect()
    }

    /// Takes an object over, unless a newer one is known.
    pub(super) fn put(&self, raw: DynamicObject) {
        let (key, version) = (object::key(&raw), object::version(&raw));
        let uid = raw.metadata.uid.clone().unwrap_or_default();
        {
            let mut objects = self.objects();
            // The same version says the same.
            if objects.get(&key).is_some_and(|k| version > 0 && k.version >= version) {
                return;
            }
            let object = object::read(raw).map(Arc::new).map_err(Arc::from);
            objects.insert(key.clone(), Known { version, uid, object });
        }
        self.tell(&key);
    }

    /// Forgets an object that is gone, unless there is another one of its name by now.
    pub(super) fn remove(&self, raw: &DynamicObject) {
        let (key, version) = (object::key(raw), object::version(raw));
        {
            let mut objects = self.objects();
            if objects.get(&key).is_none_or(|k| version > 0 && k.version > version) {
                return;
            }
            objects.remove(&key);
        }
        self.tell(&key);
    }

    /// Forgets an object that the API server does not have, if it is still this version of it.
    pub(super) fn forget(&self, key: &ObjectKey, version: &str) {
        let version = version.parse().unwrap_or(0);
        {
            let mut objects = self.objects();
            if objects.get(key).is_none_or(|k| k.version > version) {
                return;
            }
            objects.remove(key);
        }
        self.tell(key);
    }

    /// After a whole list: what does not stand in it is gone.
    pub(super) fn keep(&self, listed: &BTreeSet<ObjectKey>) {
        let gone: Vec<ObjectKey> = {
            let mut objects = self.objects();
            let gone = objects.keys().filter(|key| !listed.contains(key)).cloned().collect::<Vec<_>>();
            gone.iter().for_each(|key| drop(objects.remove(key)));
            gone
        };
        gone.iter().for_each(|key| self.tell(key));
    }

    fn tell(&self, key: &ObjectKey) {
        let about = object::about::<K>(key);
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).retain(|w| w.send(about.clone()).is_ok());
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
    fn what_a_whole_list_does_not_hold_is_gone() {
        let cache = Cache::<Host>::new(Watchers::default());
        cache.put(host(5, "five"));
        cache.keep(&BTreeSet::from([ObjectKey::named("pve1")]));
        assert!(node(&cache).is_some());
        cache.keep(&BTreeSet::new());
        assert!(node(&cache).is_none());
    }

    #[test]
    fn an_object_that_cannot_be_understood_is_kept_as_such() {
        let cache = Cache::<Host>::new(Watchers::default());
        let mut raw = host(5, "five");
        raw.data["spec"]["of"] = json!("tomorrow");
        cache.put(raw);
        let known = cache.get(&ObjectKey::named("pve1")).unwrap();
        assert!(known.object.unwrap_err().contains("spec.of: unknown field"));
    }
}
