//! `PveNetwork`: load, decide, store, act, again, until there is nothing to do but wait.

mod act;
pub(super) mod decide;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::Mutex, time::Instant};
use tracing::debug;

use self::decide::{Action, Change, Inputs, Place, Sight, decide};
use super::{Fleet, Knowledge, Link, machine::Next, session::Session};
use crate::{
    agents::AgentClient,
    crash::crash_point,
    epoch::Epoch,
    kind::{
        Host, Kind, NETWORK_FINALIZER, Network, NetworkAttempt, NetworkHostState, NetworkStatus, ObjectKey, ObjectRef, ProbeStatus,
        PveHost, PveNetwork,
    },
    store::{Event, Store, StoreError},
};

/// A host takes a dozen steps; more hosts at once take more passes.
const MAX_STEPS: usize = 64;
/// How long a change holds others whose host cannot be asked about it: it is final or undone by then, however long it may wait.
const HOLD: SignedDuration = SignedDuration::from_mins(15);
/// How often a host that has the network is asked whether it still has. An agent tells nobody by itself that somebody changed it.
const CHECK_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Networks<S> {
    pub(super) store: Arc<S>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) index: Arc<NetworkIndex>,
    pub(super) controller: String,
    pub(super) epoch: Epoch,
    /// One beginning at a time, so that each sees what the others have begun.
    pub(super) turn: Mutex<()>,
    /// Which host had which generation of which network, and when it said so.
    pub(super) checked: StdMutex<HashMap<(String, Place), (i64, Instant)>>,
}

/// Which networks there are, by uid.
#[derive(Debug, Default)]
pub(super) struct NetworkIndex(StdMutex<HashMap<String, ObjectKey>>);

impl NetworkIndex {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, ObjectKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, key: &ObjectKey) {
        self.lock().retain(|_, k| k != key);
    }

    fn put(&self, network: &PveNetwork) {
        self.lock().insert(network.metadata.uid.clone(), network.key());
    }

    /// The network that a request id names.
    pub(super) fn find(&self, uid: &str) -> Option<ObjectKey> {
        self.lock().get(uid).cloned()
    }

    pub(super) fn all(&self) -> Vec<ObjectKey> {
        self.lock().values().cloned().collect()
    }
}

/// What one pass has learned of the attempt under way. None of it outlives the pass: a connection that was opened before a change says nothing
/// about it.
#[derive(Default)]
struct Learned {
    known: Option<Knowledge>,
    change: Option<Change>,
    fresh: Option<AgentClient>,
    probes: Option<Vec<ProbeStatus>>,
}

impl<S: Store> Networks<S> {
    pub(super) async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StoreError> {
        let Some(mut network) = self.store.get::<Network>(key).await? else {
            self.index.remove(key);
            return Ok(Next::Sleep);
        };
        self.index.put(&network);
        network.status.not_after(Timestamp::now());
        // What is under way is followed to its end, and what is to go goes.
        if network.status.operation.is_none()
            && !network.is_deleting()
            && let Some(problem) = super::invalid(&network)
        {
            super::refuse(&*self.store, network, super::INVALID, problem).await?;
            return Ok(Next::Sleep);
        }
        let about = ObjectRef { kind: Network::KIND.to_owned(), key: key.clone() };
        let hosts: Vec<Arc<PveHost>> = self.store.list::<Host>().await?.into_iter().filter(|h| !h.is_deleting()).collect();
        let mut seen = self.checked_lately(&network, &hosts);
        let mut learned = Learned::default();
        let mut finalizer = false;
        for _ in 0..MAX_STEPS {
            let turn = if network.status.operation.is_none() { Some(self.turn.lock().await) } else { None };
            let decision = self.decide(&network, &hosts, &learned, &seen).await?;
            let before = std::mem::replace(&mut network.status, decision.status);
            let begun = id(&network.status) != id(&before);
            finalizer |= decision.finalizer;
            if decision.action == Action::Again {
                // Stored together with what is decided next, and in any case before the next call.
                if let Some(attempt) = &before.operation {
                    self.forget_check(&network, &place(attempt));
                    seen.remove(&place(attempt));
                }
                learned = Learned::default();
                self.tell(&about, &before, &network);
                continue;
            }
            self.tell(&about, &before, &network);
            network = self.store.update_status(&network).await?;
            drop(turn);
            // After the status and before the call: a finalizer never stands without the status that says what it is for.
            if finalizer && !network.metadata.finalizers.iter().any(|f| f == NETWORK_FINALIZER) {
                let mut finalizers = network.metadata.finalizers.clone();
                finalizers.push(NETWORK_FINALIZER.to_owned());
                network = self.store.set_finalizers(&network, finalizers).await?;
                crash_point!("network.finalizer.stored");
            }
            if begun && network.status.operation.is_some() {
                learned = Learned { known: Some(Knowledge::Unsent), ..Learned::default() };
                crash_point!("network.attempt.stored");
            } else {
                crash_point!("network.status.stored");
            }
            let went_on = match decision.action {
                Action::Again => true,
                Action::Wait(at) => return Ok(self.next_look(&network, at)),
                Action::Observe(at, request) => match self.observe(&network, &at, *request).await {
                    Some(sight) => {
                        self.note_check(&network, &at, &sight);
                        seen.insert(at, sight);
                        true
                    }
                    None => false,
                },
                Action::Release => {
                    let mut finalizers = network.metadata.finalizers.clone();
                    finalizers.retain(|f| f != NETWORK_FINALIZER);
                    self.store.set_finalizers(&network, finalizers).await?;
                    crash_point!("network.released");
                    return Ok(Next::Sleep);
                }
                action => self.act(&network, action, &mut learned).await,
            };
            if !went_on {
                return Ok(Next::Backoff);
            }
        }
        debug!(object = %about, "no rest after {MAX_STEPS} steps");
        Ok(Next::Backoff)
    }

    async fn decide(
        &self,
        network: &PveNetwork,
        hosts: &[Arc<PveHost>],
        learned: &Learned,
        seen: &BTreeMap<Place, Sight>,
    ) -> Result<decide::Decision, StoreError> {
        let views = self.fleet.views(hosts);
        let others: Vec<Arc<PveNetwork>> = self.store.list::<Network>().await?.into_iter().filter(|n| n.key() != network.key()).collect();
        // A host that is away may be so for days, and undoes its change by itself: it does not keep others waiting for ever.
        let now = Timestamp::now();
        let holds = |a: &NetworkAttempt| {
            let reachable = views.iter().any(|h| h.cluster == a.cluster && h.node == a.node && h.link == Link::Up);
            reachable || now.duration_since(a.time) < HOLD
        };
        let busy = others.iter().find_map(|n| Some((n, n.status.operation.as_ref().filter(|a| holds(a))?)));
        let busy = busy.map(|(n, a)| format!("{} for PveNetwork {}", a.host, n.key()));
        let own = |host: &crate::kind::NetworkHost| network.status.host(&host.cluster, &host.node).is_some_and(|h| h.managed);
        let rivals = others.iter().filter(|n| n.metadata.name == network.metadata.name);
        let taken = rivals
            .flat_map(|n| {
                let theirs = n.status.hosts.iter().filter(|h| h.managed && !own(h));
                theirs.map(|h| ((h.cluster.clone(), h.node.clone()), n.key().to_string()))
            })
            .collect();
        let known = network.status.operation.as_ref().and_then(|a| self.fleet.knowledge_of(&a.cluster, &a.node, &a.request_id));
        Ok(decide(&Inputs {
            network,
            hosts: &views,
            taken: &taken,
            busy: busy.as_deref(),
            known: known.or_else(|| learned.known.clone()).unwrap_or(Knowledge::Unsure),
            change: learned.change.clone(),
            connected: learned.fresh.is_some(),
            probes: learned.probes.as_deref(),
            seen,
            now,
        }))
    }

    fn session(&self, attempt: &NetworkAttempt) -> Option<Arc<Session>> {
        self.fleet.session(&attempt.cluster, &attempt.node)
    }

    fn checked(&self) -> MutexGuard<'_, HashMap<(String, Place), (i64, Instant)>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hosts that said lately that they have the network, and that were connected to since.
    fn checked_lately(&self, network: &PveNetwork, hosts: &[Arc<PveHost>]) -> BTreeMap<Place, Sight> {
        let (uid, generation) = (&network.metadata.uid, network.metadata.generation);
        let up: Vec<Place> = self.fleet.views(hosts).into_iter().filter(|h| h.link == Link::Up).map(|h| (h.cluster, h.node)).collect();
        let mut checked = self.checked();
        checked.retain(|(of, at), (then, time)| of != uid || (up.contains(at) && *then == generation && time.elapsed() < CHECK_EVERY));
        if network.is_deleting() {
            return BTreeMap::new();
        }
        checked.keys().filter(|(of, _)| of == uid).map(|(_, at)| (at.clone(), Sight::InSync)).collect()
    }

    fn note_check(&self, network: &PveNetwork, at: &Place, sight: &Sight) {
        if *sight == Sight::InSync && !network.is_deleting() {
            let key = (network.metadata.uid.clone(), at.clone());
            self.checked().insert(key, (network.metadata.generation, Instant::now()));
        }
    }

    fn forget_check(&self, network: &PveNetwork, at: &Place) {
        self.checked().remove(&(network.metadata.uid.clone(), at.clone()));
    }

    /// When to look again: at this moment, or when a host is to be asked again.
    fn next_look(&self, network: &PveNetwork, at: Option<Timestamp>) -> Next {
        let uid = &network.metadata.uid;
        let oldest = self.checked().iter().filter(|((of, _), _)| of == uid).map(|(_, (_, time))| *time).min();
        let left = oldest.map(|time| CHECK_EVERY.saturating_sub(time.elapsed()));
        let check = left.and_then(|left| Timestamp::now().checked_add(left).ok());
        match at.into_iter().chain(check).min() {
            Some(at) => Next::At(at),
            None => Next::Sleep,
        }
    }

    /// What changed at the hosts, for people.
    fn tell(&self, about: &ObjectRef, before: &NetworkStatus, network: &PveNetwork) {
        for host in &network.status.hosts {
            let old = before.host(&host.cluster, &host.node);
            if old.map(|h| h.state) == Some(host.state) || (old.is_none() && host.state == NetworkHostState::Pending) {
                continue;
            }
            let warning = matches!(host.state, NetworkHostState::RolledBack | NetworkHostState::Failed);
            let reason = match host.state {
                NetworkHostState::Pending => "Pending",
                NetworkHostState::Applying => "Applying",
                NetworkHostState::Ready => "Ready",
                NetworkHostState::RolledBack => "RolledBack",
                NetworkHostState::Failed => "Failed",
                NetworkHostState::Removing => "Removing",
            };
            let message = if host.message.is_empty() { host.name.clone() } else { format!("{}: {}", host.name, host.message) };
            self.store.record_event(about, Event { warning, reason, message });
        }
    }
}

fn id(status: &NetworkStatus) -> Option<&str> {
    status.operation.as_ref().map(|a| a.request_id.as_str())
}

fn place(attempt: &NetworkAttempt) -> Place {
    (attempt.cluster.clone(), attempt.node.clone())
}
