//! Nodes of a real API server: watched, and written by patches that name nothing but what is ours.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    runtime::watcher,
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::AbortHandle};
use tracing::{debug, warn};

use super::{CONDITION, Effect, Minor, NodeCondition, NodeView, Nodes, NodesError, Sight, Standing, TAINT};
use crate::kubernetes::{Failure, chain, within};

/// The first and the longest pause before Nodes are listed again after an error.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// How often a taint is tried where others change the Node meanwhile.
const TRIES: u32 = 20;
/// The longest pause between two tries, so that two who try do not keep step.
const PAUSE: Duration = Duration::from_millis(40);

/// Nodes of the cluster of a kubeconfig, or of the one that the controller runs in.
pub struct KubernetesNodes {
    api: Api<DynamicObject>,
    client: Client,
    shared: Arc<Shared>,
    begin: Once,
    watching: Mutex<Option<AbortHandle>>,
    changes: Mutex<Option<mpsc::UnboundedReceiver<Option<String>>>>,
}

struct Shared {
    state: Mutex<State>,
    changed: mpsc::UnboundedSender<Option<String>>,
}

struct State {
    nodes: BTreeMap<String, Known>,
    server: Option<Minor>,
    /// Why nothing is known; nothing: `nodes` holds all.
    trouble: Option<Sight>,
}

/// A Node as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    /// The version of the object; 0 where it is no number.
    version: u64,
    view: NodeView,
}

impl From<&DynamicObject> for Known {
    fn from(node: &DynamicObject) -> Self {
        Self { version: node.resource_version().and_then(|v| v.parse().ok()).unwrap_or(0), view: view(&node.data) }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, name: Option<String>) {
        // Nobody listens any more only when the process ends.
        let _ = self.changed.send(name);
    }

    /// Takes a Node as a call's answer or an event shows it. They come on ways of their own: an older one does not replace a newer one.
    fn put(&self, node: &DynamicObject) {
        let (name, new) = (node.name_any(), Known::from(node));
        let changed = {
            let mut state = self.state();
            let known = state.nodes.get(&name);
            if known.is_some_and(|k| k.version > new.version && new.version > 0) {
                return;
            }
            let changed = known.map(|k| &k.view) != Some(&new.view);
            state.nodes.insert(name.clone(), new);
            changed
        };
        if changed {
            self.tell(Some(name));
        }
    }

    fn trouble(&self, why: Sight) {
        let new = {
            let mut state = self.state();
            let new = state.trouble.as_ref() != Some(&why);
            state.trouble = Some(why);
            new
        };
        if new {
            self.tell(None);
        }
    }
}

impl KubernetesNodes {
    /// Of the cluster of this client. Connects to nothing yet. Must be called inside a tokio runtime.
    pub fn new(client: Client) -> Self {
        let (changed, changes) = mpsc::unbounded_channel();
        let state = State { nodes: BTreeMap::new(), server: None, trouble: Some(Sight::Unknown("it has not answered yet".to_owned())) };
        Self {
            // Kept as it comes: what this version of the bindings does not know must not get lost when taints are written back.
            api: Api::all_with(client.clone(), &ApiResource::erase::<Node>(&())),
            client,
            shared: Arc::new(Shared { state: Mutex::new(state), changed }),
            begin: Once::new(),
            watching: Mutex::default(),
            changes: Mutex::new(Some(changes)),
        }
    }

    async fn get(&self, name: &str) -> Result<DynamicObject, NodesError> {
        let node = within(self.api.get_opt(name)).await.map_err(|e| about(e, name))?;
        node.ok_or_else(|| NodesError::Absent(name.to_owned()))
    }

    /// Takes an answer over ahead of the event that will tell the same.
    fn take(&self, node: &DynamicObject) {
        self.shared.put(node);
    }
}

impl Drop for KubernetesNodes {
    fn drop(&mut self) {
        if let Some(task) = self.watching.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

/// Lists and watches for ever. After an error all begins anew with a list: a watch that is taken up again tells nothing until something
/// changes, so that nobody would learn that the server is back. The server's version is asked for with each list, as it may be another then.
async fn watch(api: Api<DynamicObject>, client: Client, shared: Arc<Shared>) {
    let mut pause = AGAIN.0;
    loop {
        match watch_once(&api, &client, &shared).await {
            // It was of use. Most often a watch that is too old: nothing is wrong before the next list fails.
            (true, error) => {
                debug!("Nodes are listed again: {}", why(error.as_ref()));
                pause = AGAIN.0;
            }
            (false, error) => {
                let text = why(error.as_ref());
                warn!("Nodes cannot be watched: {text}");
                shared.trouble(if error.is_some_and(|e| is_forbidden(&e)) { Sight::Forbidden(text) } else { Sight::Unknown(text) });
            }
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// Whether the API server refused it.
fn is_forbidden(error: &watcher::Error) -> bool {
    let of = |e: &kube::Error| matches!(e, kube::Error::Api(status) if status.code == 403);
    match error {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => of(e),
        _ => false,
    }
}

fn why(error: Option<&watcher::Error>) -> String {
    error.map_or_else(|| "the watch has ended".to_owned(), |e| chain(e))
}

/// One list and its watch, to the first error: whether all was listed before, and the error.
async fn watch_once(api: &Api<DynamicObject>, client: &Client, shared: &Shared) -> (bool, Option<watcher::Error>) {
    let mut events = pin!(watcher(api.clone(), watcher::Config::default()));
    let (mut listed, mut ready) = (BTreeMap::new(), false);
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed = BTreeMap::new(),
            Ok(watcher::Event::InitApply(node)) => drop(listed.insert(node.name_any(), Known::from(&node))),
            Ok(watcher::Event::InitDone) => {
                let server = match within(client.apiserver_version()).await {
                    Ok(told) => Minor::parse(&told.git_version),
                    Err(e) => {
                        debug!("the API server's version cannot be told: {}", e.text());
                        None
                    }
                };
                let mut state = shared.state();
                (state.nodes, state.trouble) = (std::mem::take(&mut listed), None);
                // A version that could not be asked for is not forgotten for it.
                state.server = server.or(state.server);
                drop(state);
                ready = true;
                shared.tell(None);
            }
            Ok(watcher::Event::Apply(node)) => shared.put(&node),
            Ok(watcher::Event::Delete(node)) => {
                shared.state().nodes.remove(&node.name_any());
                shared.tell(Some(node.name_any()));
            }
            Err(e) => return (ready, Some(e)),
        }
    }
    (ready, None)
}

/// What is looked at of a Node.
fn view(node: &Value) -> NodeView {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let condition = node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == CONDITION).map(|c| Standing {
        status: text(c, "status"),
        reason: text(c, "reason"),
        message: text(c, "message"),
        heartbeat: c["lastHeartbeatTime"].as_str().and_then(|t| t.parse().ok()),
    });
    let taints = node["spec"]["taints"].as_array().into_iter().flatten().filter(|t| t["key"] == TAINT).map(|t| text(t, "effect"));
    NodeView { condition, taints: taints.collect(), kubelet: text(&node["status"]["nodeInfo"], "kubeletVersion") }
}

/// The taints of a Node with ours as it is wanted; nothing where it is so already.
fn taints(node: &Value, effect: Option<Effect>, now: Timestamp) -> Option<Vec<Value>> {
    let all = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let (ours, mut others): (Vec<Value>, Vec<Value>) = all.into_iter().partition(|t| t["key"] == TAINT);
    let so_already = match (effect, ours.as_slice()) {
        (None, []) => true,
        (Some(effect), [one]) => one["effect"] == effect.name(),
        _ => false,
    };
    if so_already {
        return None;
    }
    others.extend(effect.map(|e| json!({"key": TAINT, "effect": e.name(), "timeAdded": seconds(now)})));
    Some(others)
}

/// A time as Kubernetes writes it.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[tonic::async_trait]
impl Nodes for KubernetesNodes {
    fn node(&self, name: &str) -> Sight {
        self.begin.call_once(|| {
            let task = tokio::spawn(watch(self.api.clone(), self.client.clone(), Arc::clone(&self.shared))).abort_handle();
            *self.watching.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        });
        let state = self.shared.state();
        match (&state.trouble, state.nodes.get(name)) {
            (Some(trouble), _) => trouble.clone(),
            (None, Some(known)) => Sight::Seen(known.view.clone()),
            (None, None) => Sight::Absent,
        }
    }

    fn server(&self) -> Option<Minor> {
        self.shared.state().server
    }

    fn changes(&self) -> Option<mpsc::UnboundedReceiver<Option<String>>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn set_condition(&self, name: &str, condition: Option<&NodeCondition>) -> Result<(), NodesError> {
        let node = self.get(name).await?;
        let standing = view(&node.data).condition;
        let entry = match condition {
            // Nothing to take away. A patch would be harmless, but is not needed.
            None if standing.is_none() => {
                self.take(&node);
                return Ok(());
            }
            None => json!({"type": CONDITION, "$patch": "delete"}),
            Some(c) => {
                let now = seconds(Timestamp::now());
                let mut entry = json!({
                    "type": CONDITION, "status": c.status, "reason": c.reason, "message": c.message, "lastHeartbeatTime": now,
                });
                // Where only reason or message change, the time of the transition stays.
                if standing.is_none_or(|s| s.status != c.status) {
                    entry["lastTransitionTime"] = json!(now);
                }
                entry
            }
        };
        // Conditions are merged by their type: no other is touched, and nothing is read that could be out of date.
        let patch = Patch::Strategic(json!({"status": {"conditions": [entry]}}));
        let node = within(self.api.patch_status(name, &PatchParams::default(), &patch)).await.map_err(|e| about(e, name))?;
        self.take(&node);
        Ok(())
    }

    async fn set_taint(&self, name: &str, effect: Option<Effect>) -> Result<(), NodesError> {
        for _ in 0..TRIES {
            let node = self.get(name).await?;
            let Some(taints) = taints(&node.data, effect, Timestamp::now()) else {
                self.take(&node);
                return Ok(());
            };
            // The list is one value to the API server. That nobody changed it meanwhile is seen by the version.
            let patch = Patch::Merge(json!({
                "metadata": {"resourceVersion": node.resource_version()},
                "spec": {"taints": taints},
            }));
            match within(self.api.patch(name, &PatchParams::default(), &patch)).await {
                Ok(node) => {
                    self.take(&node);
                    return Ok(());
                }
                Err(e) if e.code() == Some(409) => {
                    debug!(node = name, "changed meanwhile: once more");
                    tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.0..1.0))).await;
                }
                Err(e) => return Err(about(e, name)),
            }
        }
        Err(NodesError::Conflict(name.to_owned()))
    }
}

/// What it means for a Node.
fn about(failure: Failure, name: &str) -> NodesError {
    match failure.code() {
        Some(404) => NodesError::Absent(name.to_owned()),
        Some(401 | 403) => NodesError::Forbidden(failure.text()),
        _ => NodesError::Failed(failure.text()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(taints: Value) -> Value {
        json!({
            "spec": {"taints": taints},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}, {"type": CONDITION, "status": "False", "reason": "X", "message": "m"}],
                "nodeInfo": {"kubeletVersion": "v1.34.2"},
            },
        })
    }

    #[test]
    fn only_what_is_ours_is_looked_at() {
        let view = view(&node(json!([{"key": "other", "effect": "NoExecute"}, {"key": TAINT, "effect": "NoSchedule"}])));
        assert_eq!((view.taints, view.kubelet), (vec!["NoSchedule".to_owned()], "v1.34.2".to_owned()));
        assert_eq!(view.condition.unwrap().reason, "X");
        assert_eq!(super::view(&json!({})), NodeView::default());
    }

    #[test]
    fn taints_of_others_are_written_back_as_they_came() {
        let other = json!({"key": "other", "effect": "NoExecute", "field": {"of": "a later version"}});
        let ours = |effect: &str| json!({"key": TAINT, "effect": effect, "timeAdded": "1970-01-01T00:00:00Z"});
        let now = Timestamp::UNIX_EPOCH;
        let rows: &[(&str, Value, Option<Effect>, Option<Value>)] = &[
            ("put", json!([other]), Some(Effect::NoSchedule), Some(json!([other, ours("NoSchedule")]))),
            ("put, where there is none", Value::Null, Some(Effect::NoExecute), Some(json!([ours("NoExecute")]))),
            ("it is so", json!([ours("NoSchedule"), other]), Some(Effect::NoSchedule), None),
            ("another effect", json!([ours("NoSchedule"), other]), Some(Effect::NoExecute), Some(json!([other, ours("NoExecute")]))),
            ("both", json!([ours("NoSchedule"), ours("NoExecute")]), Some(Effect::NoSchedule), Some(json!([ours("NoSchedule")]))),
            ("taken away", json!([other, ours("NoSchedule")]), None, Some(json!([other]))),
            ("the last one", json!([ours("NoSchedule")]), None, Some(json!([]))),
            ("nothing to take away", json!([other]), None, None),
        ];
        for (name, before, effect, want) in rows {
            let found = taints(&node(before.clone()), *effect, now).map(Value::from);
            assert_eq!(found, *want, "{name}");
        }
    }
}
