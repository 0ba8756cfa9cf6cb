//! The Node of a host that is one of Kubernetes too: what it says of the host, and how far its kubelet is behind.
//!
//! Before anything is written there, the host's status names the Node and a finalizer keeps the host's record, so that whatever happens
//! to the controller or to the wish, what was put is found again and taken away.

mod decide;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tracing::{info, warn};

use self::decide::{Memory, Seen, Wanted};
use super::{
    Fleet,
    health::HealthSight,
    view::{HostView, Link},
};
use crate::{
    crash::crash_point,
    kind::{ABANDON, ConditionStatus, HOST_FINALIZER, Host, KubernetesNodeStatus, ObjectKey, PveHost},
    nodes::{Minor, NodeView, Nodes, NodesError, Sight, Skew},
    store::{Store, StoreError},
};

/// What is told of the Node on its host, and when to look again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    /// Of `NodeInSync` and `VersionSkew`; empty where no Node is wanted. `None`: they stay as they are.
    pub(super) conditions: Option<Vec<Condition>>,
    pub(super) due: Option<Timestamp>,
    /// Something could not be written: try again after a pause that grows.
    pub(super) again: bool,
}

/// Sees to the Nodes of all hosts.
pub(super) struct Keeper<S> {
    store: Arc<S>,
    /// `None` where the controller was given no Kubernetes.
    pub(super) nodes: Option<Arc<dyn Nodes>>,
    memory: Mutex<HashMap<ObjectKey, (String, Memory)>>,
    fleet: Arc<Fleet>,
}

impl<S: Store> Keeper<S> {
    pub(super) fn new(store: Arc<S>, fleet: Arc<Fleet>, nodes: Option<Arc<dyn Nodes>>) -> Self {
        Self { store, nodes, memory: Mutex::default(), fleet }
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<ObjectKey, (String, Memory)>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hosts of a Node, or of any.
    pub(super) fn concerned(&self, node: Option<&str>) -> Vec<ObjectKey> {
        let fits = |name: &String| node.is_none_or(|node| node == name);
        self.memory().iter().filter(|(_, (name, _))| fits(name)).map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn forget(&self, key: &ObjectKey) {
        let left = self.memory().remove(key);
        // Another host may have waited for the Node.
        for other in left.map(|(node, _)| self.concerned(Some(&node))).unwrap_or_default() {
            self.fleet.remind(&other);
        }
    }

    fn remember(&self, key: &ObjectKey, node: &str, memory: Memory) {
        let before = self.memory().insert(key.clone(), (node.to_owned(), memory));
        if before.is_none_or(|(known, _)| known != node) {
            // One that has the Node must know that another wants it.
            self.concerned(Some(node)).iter().filter(|other| *other != key).for_each(|other| self.fleet.remind(other));
        }
    }

    /// Does what is to be done on the host's Node; `host.status.kubernetes_node` is as it must be stored afterwards. Returns the host as it
    /// is in the store then.
    pub(super) async fn keep(
        &self,
        mut host: PveHost,
        view: &HostView,
        sight: &HealthSight,
        now: Timestamp,
    ) -> Result<(PveHost, Told), StoreError> {
        let key = host.key();
        let wish = host.spec.wanted_node().map(|(name, spec)| (name.to_owned(), spec.clone()));
        let left = host.status.kubernetes_node.clone().filter(|s| wish.as_ref().is_none_or(|(name, _)| *name != s.name));
        if let Some(left) = left {
            if let Err(told) = self.leave(&host, &left).await? {
                self.remember(&key, &left.name, Memory::default());
                return Ok((host, told));
            }
            host.status.kubernetes_node = None;
            host = self.store.update_status(&host).await?;
            crash_point!("node.left");
            self.forget(&key);
        }
        let Some((name, spec)) = wish else {
            self.forget(&key);
            if host.metadata.finalizers.iter().any(|f| f == HOST_FINALIZER) {
                host = self.release(host).await?;
            }
            return Ok((host, Told { conditions: Some(Vec::new()), due: None, again: false }));
        };
        let unhealthy = host.status.kubernetes_node.as_ref().is_some_and(|s| s.unhealthy);
        let mut memory = match self.memory().get(&key) {
            Some((known, memory)) if *known == name => *memory,
            _ => Memory::after_start(unhealthy),
        };
        let groups: Vec<&str> = spec.groups.iter().map(String::as_str).collect();
        let Some(seen) = seen(view, sight, &groups) else {
            self.remember(&key, &name, memory);
            return Ok((host, Told { conditions: None, due: None, again: false }));
        };
        let (wanted, due) = memory.look(&seen, &spec, now);
        self.remember(&key, &name, memory);
        let (node, server) = match self.ready(&key, &name).await? {
            Ok(found) => found,
            Err((status, reason, message)) => {
                let conditions = vec![("NodeInSync", status, reason, message), unknown_skew()];
                return Ok((host, Told { conditions: Some(conditions), due, again: false }));
            }
        };
        let status = Some(KubernetesNodeStatus { name: name.clone(), unhealthy: memory.unhealthy });
        if host.status.kubernetes_node != status {
            if unhealthy != memory.unhealthy {
                info!(host = %key, node = name, unhealthy = memory.unhealthy, "the host's standing as a Node changes");
            }
            host.status.kubernetes_node = status;
            host = self.store.update_status(&host).await?;
            crash_point!("node.remembered");
        }
        if !host.metadata.finalizers.iter().any(|f| f == HOST_FINALIZER) {
            let mut finalizers = host.metadata.finalizers.clone();
            finalizers.push(HOST_FINALIZER.to_owned());
            host = self.store.set_finalizers(&host, finalizers).await?;
            crash_point!("node.finalizer.stored");
        }
        let missing = wanted.missing(&node, now);
        let written = self.write(&name, &wanted, missing).await;
        let (in_sync, again) = match written {
            Ok(()) => ((ConditionStatus::True, "InSync", String::new()), false),
            Err(e) => (failed(&host, &e), !matches!(e, NodesError::Absent(_))),
        };
        let due = due.into_iter().chain(missing.due).min();
        let conditions = vec![("NodeInSync", in_sync.0, in_sync.1, in_sync.2), skew(&node.kubelet, server)];
        Ok((host, Told { conditions: Some(conditions), due, again }))
    }

    async fn write(&self, name: &str, wanted: &Wanted, missing: decide::Writes) -> Result<(), NodesError> {
        let Some(nodes) = &self.nodes else { return Ok(()) };
        // The taint first: it is what protects pods, and the condition says why it is there.
        if missing.taint {
            nodes.set_taint(name, wanted.taint).await?;
            crash_point!("node.tainted");
        }
        if missing.condition {
            nodes.set_condition(name, wanted.condition.as_ref()).await?;
            crash_point!("node.told");
        }
        Ok(())
    }

    /// The Node, if it can be written for this host; otherwise why not.
    async fn ready(
        &self,
        key: &ObjectKey,
        name: &str,
    ) -> Result<Result<(NodeView, Option<Minor>), (ConditionStatus, &'static str, String)>, StoreError> {
        let Some(nodes) = &self.nodes else { return Ok(Err(no_kubernetes())) };
        if let Some(first) = self.claimed(key, name).await?.filter(|first| first < key) {
            let message = format!("PveHost {first} is Node {name} too; correct spec.kubernetesNode.name of one of them");
            return Ok(Err((ConditionStatus::False, "NodeTaken", message)));
        }
        Ok(match nodes.node(name) {
            Sight::Seen(node) => Ok((node, nodes.server())),
            Sight::Absent => {
                let message = format!("there is no Node {name}; correct spec.kubernetesNode.name, or join the host to the cluster");
                Err((ConditionStatus::False, "NodeNotFound", message))
            }
            Sight::Unknown(why) => Err((ConditionStatus::Unknown, "ApiServerUnreachable", why)),
            Sight::Forbidden(why) => Err((ConditionStatus::False, "Forbidden", NodesError::Forbidden(why).to_string())),
        })
    }

    /// The first other host that wants this Node.
    async fn claimed(&self, key: &ObjectKey, name: &str) -> Result<Option<ObjectKey>, StoreError> {
        let wants = |h: &Arc<PveHost>| !h.is_deleting() && h.key() != *key && h.spec.wanted_node().is_some_and(|(n, _)| n == name);
        Ok(self.store.list::<Host>().await?.into_iter().filter(wants).map(|h| h.key()).min())
    }

    /// Takes away what was put on a Node that is not wanted any more; otherwise tells why it is still there.
    async fn leave(&self, host: &PveHost, left: &KubernetesNodeStatus) -> Result<Result<(), Told>, StoreError> {
        let name = &left.name;
        let waits = |status, reason, message: String, again| {
            let message = format!("what was put on Node {name} is still to be taken away: {message}");
            Ok(Err(Told { conditions: Some(vec![("NodeInSync", status, reason, message)]), due: None, again }))
        };
        if host.has_flag(ABANDON) {
            warn!(host = %host.key(), node = name, "what was put on the Node is left there, as {ABANDON} says");
            return Ok(Ok(()));
        }
        // It is the other host's now.
        if self.claimed(&host.key(), name).await?.is_some() {
            return Ok(Ok(()));
        }
        let Some(nodes) = &self.nodes else {
            let (status, reason, message) = no_kubernetes();
            return waits(status, reason, message, false);
        };
        let node = match nodes.node(name) {
            Sight::Absent => return Ok(Ok(())),
            Sight::Unknown(why) => return waits(ConditionStatus::Unknown, "ApiServerUnreachable", why, false),
            Sight::Forbidden(why) => return waits(ConditionStatus::False, "Forbidden", NodesError::Forbidden(why).to_string(), false),
            Sight::Seen(node) => node,
        };
        let nothing = Wanted::NOTHING;
        match self.write(name, &nothing, nothing.missing(&node, Timestamp::now())).await {
            Ok(()) | Err(NodesError::Absent(_)) => Ok(Ok(())),
            Err(e) => {
                let (status, reason, message) = failed(host, &e);
                waits(status, reason, message, true)
            }
        }
    }

    /// A host that is going: its Node first. `true` once nothing holds it any more.
    pub(super) async fn remove(&self, mut host: PveHost) -> Result<Result<(), Told>, StoreError> {
        if let Some(left) = host.status.kubernetes_node.clone() {
            if let Err(told) = self.leave(&host, &left).await? {
                self.remember(&host.key(), &left.name, Memory::default());
                return Ok(Err(told));
            }
            host.status.kubernetes_node = None;
            host = self.store.update_status(&host).await?;
            crash_point!("node.left");
        }
        self.forget(&host.key());
        if host.metadata.finalizers.iter().any(|f| f == HOST_FINALIZER) {
            self.release(host).await?;
        }
        Ok(Ok(()))
    }

    async fn release(&self, host: PveHost) -> Result<PveHost, StoreError> {
        let finalizers = host.metadata.finalizers.iter().filter(|f| *f != HOST_FINALIZER).cloned().collect();
        self.store.set_finalizers(&host, finalizers).await
    }
}

/// How the host is now, of these groups; nothing while that is about to be told, as after a start: what the Node says stays as it is.
fn seen(view: &HostView, sight: &HealthSight, groups: &[&str]) -> Option<Seen> {
    Some(match (&view.link, sight) {
        (Link::Connecting, _) | (Link::Up, HealthSight::Awaited) => return None,
        (Link::Down { message, .. }, _) => {
            Seen::Away("HostUnreachable", format!("pvelet's agent on {} does not answer: {message}", view.name))
        }
        (Link::Up, HealthSight::Told(health)) => Seen::Told(health.verdict(&view.name, groups)),
        (Link::Up, HealthSight::NotOffered) => {
            Seen::Away("HealthNotOffered", format!("pvelet's agent on {} is too old to tell", view.name))
        }
        (Link::Up, HealthSight::Lost(why)) => Seen::Away("HealthNotTold", format!("pvelet's agent on {} does not tell: {why}", view.name)),
    })
}

type InSync = (ConditionStatus, &'static str, String);

fn no_kubernetes() -> InSync {
    let text = "the controller was given no Kubernetes; start it with --kubeconfig, or as a pod in the cluster";
    (ConditionStatus::False, "NoKubernetes", text.to_owned())
}

fn failed(host: &PveHost, error: &NodesError) -> InSync {
    warn!(host = %host.key(), "{error}");
    let (status, reason) = match error {
        NodesError::Absent(_) => (ConditionStatus::False, "NodeNotFound"),
        NodesError::Forbidden(_) => (ConditionStatus::False, "Forbidden"),
        NodesError::Conflict(_) => (ConditionStatus::Unknown, "Conflict"),
        NodesError::Failed(_) => (ConditionStatus::Unknown, "ApiServerUnreachable"),
    };
    (status, reason, error.to_string())
}

type Condition = (&'static str, ConditionStatus, &'static str, String);

fn unknown_skew() -> Condition {
    ("VersionSkew", ConditionStatus::Unknown, "NotKnown", String::new())
}

/// Whether the kubelet's version is too far from the API server's.
fn skew(kubelet: &str, server: Option<Minor>) -> Condition {
    let (Some(version), Some(server)) = (Minor::parse(kubelet), server) else { return unknown_skew() };
    match Skew::of(version, server) {
        Skew::Supported => ("VersionSkew", ConditionStatus::False, "Supported", String::new()),
        Skew::Newer => {
            let text =
                format!("the kubelet is {kubelet}, newer than the API server ({server}): never supported; upgrade the control plane first");
            ("VersionSkew", ConditionStatus::True, "KubeletNewer", text)
        }
        Skew::TooOld { allowed } => {
            let text =
                format!("the kubelet is {kubelet}, more than {allowed} minors older than the API server ({server}); upgrade the kubelet");
            ("VersionSkew", ConditionStatus::True, "KubeletTooOld", text)
        }
    }
}

/// Conditions that are told only while a Node is wanted, or something of ours is still there.
pub(super) const CONDITIONS: [&str; 2] = ["NodeInSync", "VersionSkew"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_skew_is_told_with_its_remedy() {
        let server = Minor::parse("v1.34.1");
        for (kubelet, status, reason) in [
            ("v1.34.0", ConditionStatus::False, "Supported"),
            ("v1.30.0", ConditionStatus::True, "KubeletTooOld"),
            ("v1.35.0", ConditionStatus::True, "KubeletNewer"),
            ("", ConditionStatus::Unknown, "NotKnown"),
        ] {
            let (_, found, word, _) = skew(kubelet, server);
            assert_eq!((found, word), (status, reason), "{kubelet}");
        }
        assert_eq!(skew("v1.34.0", None).2, "NotKnown");
        assert!(skew("v1.30.0", server).3.contains("more than 3 minors older than the API server (1.34); upgrade the kubelet"));
    }
}
