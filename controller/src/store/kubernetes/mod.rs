//! Kubernetes as a store: the objects are custom resources, watched and kept in memory.
//!
//! Reads are answered from memory. A write says which version it was decided on, and the API server refuses it when that is not the present
//! one; what is written is taken over at once, ahead of the event that tells the same. Nothing is written where nothing changed.

mod cache;
mod data;
pub mod definitions;
mod events;
mod lease;
mod object;
mod watch;

use std::{
    any::Any,
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc, watch as signal},
    task::AbortHandle,
};

use self::{
    cache::{Cache, Known, Watchers},
    events::Recorder,
};
use super::{Event, Store, StoreError, Tenancy, URGENT, UserDataError};
use crate::{
    kind::{
        API_VERSION, Condition, ConditionStatus, Host, Kind, Machine, Network, Object, ObjectKey, ObjectRef, Tenant, UserDataRef,
        set_condition,
    },
    kubernetes::{Failure, within},
};

pub use lease::{LONGEST, Leader, LeaseOptions, Term};

/// Who writes, as the API server keeps it beside each field.
const MANAGER: &str = "pvelet-controller";
/// Writes at once: the API server has others to serve.
const WRITES: usize = 32;
/// Of these, writes at once that are not urgent: of a thousand machines whose hosts went.
const PATIENT: usize = 24;
/// Objects in one page of a list: what comes is held as it was sent until it is read.
const PAGE: u32 = 200;

/// The custom resources of one cluster.
pub struct KubernetesStore {
    client: Client,
    hosts: Arc<Cache<Host>>,
    machines: Arc<Cache<Machine>>,
    networks: Arc<Cache<Network>>,
    tenants: Arc<Cache<Tenant>>,
    watchers: Watchers,
    events: Recorder,
    writes: Writes,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl KubernetesStore {
    /// Watches the resources, in the name of this instance, and returns when all have been listed once. The resource definitions must be there.
    pub async fn open(client: Client, instance: &str) -> Arc<Self> {
        let watchers = Watchers::default();
        let store = Arc::new(Self {
            hosts: Arc::new(Cache::new(Arc::clone(&watchers))),
            machines: Arc::new(Cache::new(Arc::clone(&watchers))),
            networks: Arc::new(Cache::new(Arc::clone(&watchers))),
            tenants: Arc::new(Cache::new(Arc::clone(&watchers))),
            watchers,
            events: Recorder::new(client.clone(), instance.to_owned()),
            writes: Writes::new(),
            tasks: Mutex::default(),
            client,
        });
        let listed =
            [store.follow(&store.hosts), store.follow(&store.machines), store.follow(&store.networks), store.follow(&store.tenants)];
        for mut listed in listed {
            // Fails only when the task has ended, which it does with the store.
            let _ = listed.wait_for(|done| *done).await;
        }
        store
    }

    /// Reads all objects anew. A watch may hang unnoticed for a while, and a new leader must not decide on what was.
    ///
    /// # Errors
    /// The API server did not answer.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        self.refresh_kind(&self.tenants).await?;
        self.refresh_kind(&self.hosts).await?;
        self.refresh_kind(&self.machines).await?;
        self.refresh_kind(&self.networks).await
    }

    async fn refresh_kind<K: Kind>(&self, cache: &Cache<K>) -> Result<(), StoreError> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &object::resource::<K>());
        let (mut listed, mut version, mut page) = (BTreeSet::new(), None, ListParams::default().limit(PAGE));
        cache.begin_list();
        loop {
            let answer = within(api.list(&page)).await;
            let answer = answer.map_err(|e| StoreError::Api { what: format!("list {}", K::PLURAL), message: e.text() })?;
            // All pages are of the moment of the first one.
            version.get_or_insert_with(|| answer.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0));
            for raw in answer.items {
                listed.insert(object::key(&raw));
                cache.put_listed(raw);
            }
            match answer.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
        cache.listed(&listed, version.unwrap_or(0));
        Ok(())
    }

    fn follow<K: Kind>(&self, cache: &Arc<Cache<K>>) -> signal::Receiver<bool> {
        let (done, listed) = signal::channel(false);
        let api = Api::all_with(self.client.clone(), &object::resource::<K>());
        let task = tokio::spawn(watch::run(api, Arc::clone(cache), done)).abort_handle();
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        listed
    }

    fn cache<K: Kind>(&self) -> &Cache<K> {
        let all: [&dyn Any; 4] = [&*self.hosts, &*self.machines, &*self.networks, &*self.tenants];
        let found = all.into_iter().find_map(|cache| cache.downcast_ref());
        // Every kind stands above; a new one that does not is found by the first test that touches it.
        #[expect(clippy::expect_used, reason = "a kind without a cache is a fault in the program, not in its input")]
        found.expect("a cache for each kind")
    }

    fn api<K: Kind>(&self, key: &ObjectKey) -> Api<DynamicObject> {
        let resource = object::resource::<K>();
        if K::NAMESPACED {
            Api::namespaced_with(self.client.clone(), &key.namespace, &resource)
        } else {
            Api::all_with(self.client.clone(), &resource)
        }
    }

    /// Takes the answer to a write over. A conflict is answered with what the object is now, so that the next decision is made on that.
    async fn written<K: Kind>(
        &self,
        object: &Object<K>,
        what: &str,
        result: Result<DynamicObject, Failure>,
    ) -> Result<Object<K>, StoreError> {
        let (key, about) = (object.key(), object::about::<K>(&object.key()));
        let failed = |message: String| StoreError::Api { what: format!("write {what} of {about}"), message };
        match result {
            Ok(raw) => {
                self.cache::<K>().answer(raw.clone());
                object::read(raw).map_err(|problem| StoreError::Unreadable { about, problem })
            }
            Err(e) if matches!(e.code(), Some(404 | 409)) => {
                let known = &object.metadata.resource_version;
                match within(self.api::<K>(&key).get_opt(&key.name)).await {
                    Ok(Some(raw)) => self.cache::<K>().correct(raw, known),
                    Ok(None) => {
                        self.cache::<K>().forget(&key, known);
                        return Err(StoreError::NotFound(about));
                    }
                    Err(e) => return Err(failed(e.text())),
                }
                if e.code() == Some(404) { Err(failed(e.text())) } else { Err(StoreError::Conflict(about)) }
            }
            Err(e) => Err(failed(e.text())),
        }
    }

    /// What is known of an object, if that is what a decision was made on.
    fn same<K: Kind>(&self, object: &Object<K>) -> Result<Arc<Object<K>>, StoreError> {
        let about = object::about::<K>(&object.key());
        let known = self.cache::<K>().get(&object.key()).ok_or_else(|| StoreError::NotFound(about.clone()))?;
        let known = understood(known, about.clone())?;
        let (a, b) = (&known.metadata, &object.metadata);
        if (&a.uid, &a.resource_version) == (&b.uid, &b.resource_version) { Ok(known) } else { Err(StoreError::Conflict(about)) }
    }

    async fn refuse<K: Kind>(&self, key: &ObjectKey, problem: &str) -> Result<(), StoreError> {
        let about = object::about::<K>(key);
        let failed = |e: Failure| StoreError::Api { what: format!("write a condition of {about}"), message: e.text() };
        let api = self.api::<K>(key);
        let Some(mut raw) = within(api.get_opt(&key.name)).await.map_err(failed)? else { return Ok(()) };
        let text = StoreError::Unreadable { about: about.clone(), problem: problem.to_owned() }.to_string();
        let mut conditions: Vec<Value> = raw.data["status"]["conditions"].as_array_mut().map(std::mem::take).unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == "Ready" && c["reason"] == NOT_UNDERSTOOD && c["message"] == text.as_str()) {
            return Ok(());
        }
        let generation = raw.metadata.generation.unwrap_or(0);
        let mut ready: Vec<Condition> = Vec::new();
        let now = jiff::Timestamp::now();
        set_condition(&mut ready, "Ready", ConditionStatus::False, NOT_UNDERSTOOD, text, generation, now);
        conditions.retain(|c| c["type"] != "Ready");
        conditions.extend(ready.iter().map(|c| json!(c)));
        // The rest of a status that cannot be understood is not touched.
        let patch = json!({"metadata": {"resourceVersion": raw.metadata.resource_version}, "status": {"conditions": conditions}});
        let patch = Patch::Merge(patch);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let _turn = self.writes.turn().await;
        match within(api.patch_status(&key.name, &params, &patch)).await {
            Ok(raw) => {
                self.cache::<K>().answer(raw);
                Ok(())
            }
            Err(e) if e.code() == Some(409) => Err(StoreError::Conflict(about.clone())),
            Err(e) => Err(failed(e)),
        }
    }
}

/// Places for writes.
struct Writes {
    all: Semaphore,
    patient: Semaphore,
}

impl Writes {
    fn new() -> Self {
        Self { all: Semaphore::new(WRITES), patient: Semaphore::new(PATIENT) }
    }

    /// A place for a write of this task. Both are never closed.
    async fn turn(&self) -> [Option<SemaphorePermit<'_>>; 2] {
        let urgent = URGENT.try_with(|urgent| *urgent).unwrap_or(false);
        let patient = if urgent { None } else { self.patient.acquire().await.ok() };
        [patient, self.all.acquire().await.ok()]
    }
}

/// All objects of a kind, in the order of their names, asked for once. Those that cannot be understood are left out.
///
/// # Errors
/// The API server did not answer, or not with a list.
pub async fn list<K: Kind>(client: &Client) -> Result<Vec<Object<K>>, String> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &object::resource::<K>());
    let all = within(api.list(&ListParams::default())).await.map_err(|e| e.text())?;
    let mut objects: Vec<Object<K>> = all.items.into_iter().filter_map(|raw| object::read(raw).ok()).collect();
    objects.sort_by_key(Object::key);
    Ok(objects)
}

/// The reason of objects that cannot be understood.
const NOT_UNDERSTOOD: &str = "NotUnderstood";

fn understood<K: Kind>(known: Known<K>, about: ObjectRef) -> Result<Arc<Object<K>>, StoreError> {
    known.object.map_err(|strange| StoreError::Unreadable { about, problem: strange.problem.clone() })
}

impl Drop for KubernetesStore {
    fn drop(&mut self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(AbortHandle::abort);
    }
}

impl std::fmt::Debug for KubernetesStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesStore").finish_non_exhaustive()
    }
}

impl Store for KubernetesStore {
    /// Objects that cannot be understood are left out; they say so themselves.
    async fn list<K: Kind>(&self) -> Result<Vec<Arc<Object<K>>>, StoreError> {
        Ok(self.cache::<K>().collect(|_, known| known.object.as_ref().ok().cloned()))
    }

    async fn get<K: Kind>(&self, key: &ObjectKey) -> Result<Option<Object<K>>, StoreError> {
        let Some(known) = self.cache::<K>().get(key) else { return Ok(None) };
        understood(known, object::about::<K>(key)).map(|object| Some(Arc::unwrap_or_clone(object)))
    }

    fn watch(&self) -> mpsc::UnboundedReceiver<ObjectRef> {
        let (sender, receiver) = mpsc::unbounded_channel();
        // First to the watchers, so that nothing is missed; what is told twice is worked on once.
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).push(sender.clone());
        let hosts = self.hosts.keys().into_iter().map(|key| object::about::<Host>(&key));
        let machines = self.machines.keys().into_iter().map(|key| object::about::<Machine>(&key));
        let networks = self.networks.keys().into_iter().map(|key| object::about::<Network>(&key));
        let tenants = self.tenants.keys().into_iter().map(|key| object::about::<Tenant>(&key));
        for about in tenants.chain(hosts).chain(machines).chain(networks) {
            // Cannot fail: the receiver is still here.
            let _ = sender.send(about);
        }
        receiver
    }

    async fn update_status<K: Kind>(&self, object: &Object<K>) -> Result<Object<K>, StoreError> {
        if self.same(object)?.status == object.status {
            return Ok(object.clone());
        }
        let (key, patch) = (object.key(), Patch::Apply(object::status_patch(object)?));
        let params = PatchParams::apply(MANAGER).force();
        let _turn = self.writes.turn().await;
        let api = self.api::<K>(&key);
        let mut result = within(api.patch_status(&key.name, &params, &patch)).await;
        if let Ok(raw) = &result
            && object::read::<K>(raw.clone()).is_ok_and(|now| now.status != object.status)
        {
            // Somebody else owns fields of it too, as after an edit by hand, and an apply leaves those. A status is nobody's but ours.
            let mut whole = raw.clone();
            whole.data["status"] = object::status(object)?;
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            result = within(api.replace_status(&key.name, &params, &whole)).await;
            if let Ok(raw) = &result
                && object::read::<K>(raw.clone()).is_ok_and(|now| now.status != object.status)
            {
                // What was to be remembered is lost: nothing may be done that relies on it.
                let (about, message) = (object::about::<K>(&key), definitions::DROPPED.to_owned());
                return Err(StoreError::Api { what: format!("keep the status of {about}"), message });
            }
        }
        self.written(object, "the status", result).await
    }

    async fn set_finalizers<K: Kind>(&self, object: &Object<K>, finalizers: Vec<String>) -> Result<Object<K>, StoreError> {
        if self.same(object)?.metadata.finalizers == finalizers {
            return Ok(object.clone());
        }
        let (key, patch) = (object.key(), Patch::Merge(object::finalizers_patch(&object.metadata, &finalizers)));
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let _turn = self.writes.turn().await;
        let result = within(self.api::<K>(&key).patch(&key.name, &params, &patch)).await;
        self.written(object, "the finalizers", result).await
    }

    fn is_unreadable(&self, uid: &str) -> bool {
        !self.machines.collect(|_, known| (known.uid == uid && known.object.is_err()).then_some(())).is_empty()
    }

    fn tenancy(&self, namespace: &str) -> Tenancy {
        // What one of a later version claims is still its own.
        let claims = |known: &Known<Tenant>| match &known.object {
            Ok(tenant) => tenant.spec.namespaces.iter().any(|n| n == namespace),
            Err(strange) => strange.spec["namespaces"].as_array().into_iter().flatten().any(|n| n == namespace),
        };
        let mut tenants: Vec<String> = self.tenants.collect(|key, known| claims(known).then(|| key.name.clone()));
        match tenants.len() {
            0 => Tenancy::Nobody,
            1 => Tenancy::Of(tenants.remove(0)),
            _ => Tenancy::Disputed(tenants),
        }
    }

    async fn tell_unreadable(&self, about: &ObjectRef, problem: &str) -> Result<(), StoreError> {
        match about.kind.as_str() {
            Host::KIND => self.refuse::<Host>(&about.key, problem).await,
            Machine::KIND => self.refuse::<Machine>(&about.key, problem).await,
            Network::KIND => self.refuse::<Network>(&about.key, problem).await,
            Tenant::KIND => self.refuse::<Tenant>(&about.key, problem).await,
            _ => Ok(()),
        }
    }

    async fn user_data(&self, namespace: &str, from: &UserDataRef) -> Result<Vec<u8>, UserDataError> {
        data::read(&self.client, namespace, from).await
    }

    fn record_event(&self, about: &ObjectRef, event: Event) {
        let (namespaced, uid) = match about.kind.as_str() {
            Host::KIND => (Host::NAMESPACED, self.hosts.get(&about.key).map(|k| k.uid)),
            Machine::KIND => (Machine::NAMESPACED, self.machines.get(&about.key).map(|k| k.uid)),
            Network::KIND => (Network::NAMESPACED, self.networks.get(&about.key).map(|k| k.uid)),
            _ => (false, self.tenants.get(&about.key).map(|k| k.uid)),
        };
        let reference = ObjectReference {
            api_version: Some(API_VERSION.to_owned()),
            kind: Some(about.kind.clone()),
            name: Some(about.key.name.clone()),
            namespace: namespaced.then(|| about.key.namespace.clone()),
            uid,
            ..ObjectReference::default()
        };
        self.events.record(reference, event);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use super::*;

    #[tokio::test]
    async fn an_urgent_write_finds_a_place_however_many_others_wait() {
        let writes = Writes::new();
        let patient = join_all((0..PATIENT).map(|_| writes.turn())).await;
        assert!(writes.turn().now_or_never().is_none());
        let urgent = URGENT.scope(true, writes.turn()).now_or_never().expect("a place for what is urgent");
        assert!(URGENT.scope(false, writes.turn()).now_or_never().is_none());
        drop(patient);
        assert!(writes.turn().now_or_never().is_some());
        drop(urgent);
    }
}
