//! The loop: who is due, and whom an event concerns.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{
    Fleet, Wake,
    fleet::Room,
    host::Hosts,
    index::Index,
    machine::{Machines, Next},
    network::{NetworkIndex, Networks},
    node::Keeper,
    queue::{Line, Queue, Turns},
    tenant::Tenants,
};
use crate::{
    agents::Agents,
    epoch::Epoch,
    kind::{Host, Kind, Machine, Network, ObjectKey, ObjectRef, Tenant},
    metrics::Metrics,
    nodes::Nodes,
    store::{Store, StoreError, URGENT},
};

/// Objects worked on at once, of each line: enough to keep a thousand agents busy; calls have bounds of their own. Those in front have places that
/// nothing else takes: passes for hosts that do not answer hold theirs for long.
const AT_ONCE: [(Line, usize); 2] = [(Line::Front, 128), (Line::Back, 512)];
/// Longest pause before an object whose pass failed is tried again.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A host's capacity is told this long after a VM changed, so that many changes make one write.
const CAPACITY_DELAY: Duration = Duration::from_secs(1);
/// In the queue beside objects: machines that wait for room may try.
const ROOM: &str = "room";
/// The same: all hosts may have been asked what they have.
const ASKED: &str = "asked";
/// How long passes under way may take to end when the process is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// The controller: a store, agents, and the loop between them.
pub struct Controller<S> {
    store: Arc<S>,
    fleet: Arc<Fleet>,
    index: Arc<Index>,
    machines: Machines<S>,
    networks: Networks<S>,
    hosts: Hosts<S>,
    tenants: Tenants<S>,
    queue: Queue,
    failures: Mutex<HashMap<ObjectRef, u32>>,
    lost: Mutex<Turns>,
    metrics: Arc<Metrics>,
    wakes: Mutex<Option<mpsc::UnboundedReceiver<Wake>>>,
}

impl<S: Store> Controller<S> {
    /// A controller of this name, with the Nodes of Kubernetes where it was given one. Does nothing before [`Controller::run`].
    pub fn new(store: Arc<S>, agents: Agents, name: &str, epoch: Epoch, metrics: Arc<Metrics>, nodes: Option<Arc<dyn Nodes>>) -> Arc<Self> {
        let (wake, wakes) = mpsc::unbounded_channel();
        let fleet = Arc::new(Fleet::new(agents, name.to_owned(), epoch.clone(), wake));
        let index = Arc::<Index>::default();
        let (hosts, phases) = (Arc::downgrade(&fleet), Arc::downgrade(&index));
        metrics.set_census(Box::new(move || {
            (hosts.upgrade().map(|f| f.hosts()).unwrap_or_default(), phases.upgrade().map(|i| i.phases()).unwrap_or_default())
        }));
        let machines = Machines {
            store: Arc::clone(&store),
            fleet: Arc::clone(&fleet),
            index: Arc::clone(&index),
            controller: name.to_owned(),
            epoch: epoch.clone(),
            placing: Mutex::default(),
        };
        let networks = Networks {
            store: Arc::clone(&store),
            fleet: Arc::clone(&fleet),
            index: Arc::<NetworkIndex>::default(),
            controller: name.to_owned(),
            epoch,
            turn: tokio::sync::Mutex::default(),
            checked: Mutex::default(),
        };
        let keeper = Keeper::new(Arc::clone(&store), Arc::clone(&fleet), nodes);
        let hosts = Hosts { store: Arc::clone(&store), fleet: Arc::clone(&fleet), keeper, health: Mutex::default() };
        let tenants = Tenants::new(Arc::clone(&store));
        Arc::new(Self {
            store,
            fleet,
            index,
            machines,
            networks,
            hosts,
            tenants,
            queue: Queue::default(),
            failures: Mutex::default(),
            lost: Mutex::default(),
            metrics,
            wakes: Mutex::new(Some(wakes)),
        })
    }

    /// The agents.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Works until told to stop, then lets passes under way end.
    ///
    /// # Errors
    /// The store cannot be read at the beginning.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), StoreError> {
        self.lead(stop, CancellationToken::new()).await
    }

    /// The same for a leader: when its term is over, passes under way are cut off where they are, as by a crash. What they have begun stands in
    /// the statuses, and is the next leader's.
    ///
    /// # Errors
    /// As [`Controller::run`].
    pub async fn lead(self: Arc<Self>, stop: CancellationToken, over: CancellationToken) -> Result<(), StoreError> {
        let wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut wakes) = wakes else { return Ok(()) };
        let mut changes = self.store.watch();
        let mut node_changes = self.hosts.keeper.nodes.as_ref().and_then(|nodes| nodes.changes());
        // Known before the first machine: where the agents are.
        for host in self.store.list::<Host>().await? {
            if !host.is_deleting() && super::invalid(&host).is_none() {
                self.fleet.apply(&host);
            }
        }
        // Known before the first placement: what other machines were given.
        for machine in self.store.list::<Machine>().await? {
            self.index.put(&machine.key(), &machine);
        }
        let ([front, back], mut passes) = (AT_ONCE.map(|(line, count)| (line, Arc::new(Semaphore::new(count)))), JoinSet::new());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = over.cancelled() => break,
                Some(id) = changes.recv() => self.queue.add(id, Line::Back),
                Some(wake) = wakes.recv() => self.wake(wake),
                Some(node) = async { node_changes.as_mut()?.recv().await } => {
                    for key in self.hosts.keeper.concerned(node.as_deref()) {
                        self.queue.add(ObjectRef { kind: Host::KIND.to_owned(), key }, Line::Back);
                    }
                }
                Some(_) = passes.join_next() => {}
                due = self.due(&front) => self.work(due, &mut passes),
                due = self.due(&back) => self.work(due, &mut passes),
            }
        }
        self.metrics.queue.set(0);
        let drained = tokio::select! {
            drained = tokio::time::timeout(DRAIN, async { while passes.join_next().await.is_some() {} }) => drained.is_ok(),
            () = over.cancelled() => {
                passes.abort_all();
                while passes.join_next().await.is_some() {}
                true
            }
        };
        if !drained {
            warn!("{} passes did not end in time; they go on after the next start", passes.len());
        }
        Ok(())
    }

    /// The next that is due in a line, once there is a place for it.
    async fn due(&self, (line, places): &(Line, Arc<Semaphore>)) -> Due {
        // Never closed.
        let place = Arc::clone(places).acquire_owned().await.ok();
        Due { id: self.queue.next(*line).await, line: *line, place }
    }

    fn work(self: &Arc<Self>, Due { id, line, place }: Due, passes: &mut JoinSet<()>) {
        if [ROOM, ASKED].contains(&id.kind.as_str()) {
            self.queue.done(&id);
            return if id.kind == ROOM { self.add_all(self.index.room(None), Line::Back) } else { self.let_go() };
        }
        let controller = Arc::clone(self);
        self.metrics.queue.set(i64::try_from(self.queue.len()).unwrap_or(i64::MAX));
        passes.spawn(URGENT.scope(line == Line::Front, async move {
            let _place = place;
            let pass = Pass { controller, id };
            pass.controller.pass(&pass.id).await;
        }));
    }

    async fn pass(&self, id: &ObjectRef) {
        let began = self.index.epoch();
        let result = match id.kind.as_str() {
            Host::KIND => Box::pin(self.hosts.reconcile(&id.key)).await,
            Machine::KIND => Box::pin(self.machines.reconcile(&id.key)).await,
            Network::KIND => Box::pin(self.networks.reconcile(&id.key)).await,
            Tenant::KIND => self.tenant(&id.key).await,
            _ => Ok(Next::Sleep),
        };
        let result = match result {
            // Trying again helps nothing; it is looked at again when somebody changes it.
            Err(StoreError::Unreadable { problem, .. }) => {
                warn!(object = %id, "cannot be understood, left alone: {problem}");
                self.store.tell_unreadable(id, &problem).await.map(|()| Next::Sleep)
            }
            result => result,
        };
        self.metrics.passed(&id.kind, result.is_ok());
        if id.kind == Machine::KIND {
            self.settle(&id.key, began, result.as_ref().ok());
        }
        let next = match result {
            Ok(next) => next,
            Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => {
                // At once, the first time. Somebody who writes all the time is not answered by writing all the time.
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                let count = failures.entry(id.clone()).or_insert(0);
                let pause = if *count == 0 { Duration::ZERO } else { pause(*count) };
                *count += 1;
                self.queue.add_at(id.clone(), Instant::now() + pause, Line::Front);
                return;
            }
            Err(e) => {
                error!(object = %id, "{e}");
                Next::Backoff
            }
        };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match next {
            Next::Backoff => {
                let count = failures.entry(id.clone()).or_insert(0);
                let pause = pause(*count);
                *count += 1;
                // Often it is a host that does not answer, as it may not the next time.
                self.queue.add_at(id.clone(), Instant::now() + pause, Line::Back);
            }
            Next::At(time) => {
                failures.remove(id);
                self.queue.add_at(id.clone(), instant(time), Line::Front);
            }
            Next::Sleep | Next::Asked(_) => {
                failures.remove(id);
            }
        }
    }

    /// After a pass over a machine: who waits for what, and who is due for it.
    fn settle(&self, key: &ObjectKey, began: u64, next: Option<&Next>) {
        match next {
            None => self.add_all(self.index.failed(key), Line::Back),
            Some(Next::Asked(until)) => {
                self.index.hold(key);
                self.queue.add_at(due(ASKED), instant(*until), Line::Front);
            }
            Some(_) => {
                let settled = self.index.settle(key, began);
                self.add_all(settled.again.then(|| key.clone()).into_iter().chain(settled.next), Line::Back);
            }
        }
        if self.index.take_freed() {
            self.room_after(CAPACITY_DELAY);
        }
    }

    /// Room may have become free: whoever waits for it tries, a little later, so that many changes count once.
    fn room_after(&self, delay: Duration) {
        if self.index.room_matters() {
            self.queue.add_at(due(ROOM), Instant::now() + delay, Line::Front);
        }
    }

    /// Machines whose host went are looked at one after the other: many hosts may have gone at once, and those that are well share an API server with
    /// them. What is told of one of them itself does not wait for that.
    fn lose(&self, machines: Vec<ObjectKey>) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        // A host that comes and goes takes no second turn for each.
        for id in machines.into_iter().map(machine_ref).filter(|id| !self.queue.is_due_by(id, Turns::end(now))) {
            self.queue.add_at(id, lost.turn(now), Line::Back);
        }
    }

    /// Machines that were not placed before all hosts have been asked are placed, if they have been.
    fn let_go(&self) {
        match self.fleet.asking(Timestamp::now()) {
            None => self.add_all(self.index.let_go(), Line::Back),
            Some(until) => self.queue.add_at(due(ASKED), instant(until), Line::Front),
        }
    }

    fn add_all(&self, machines: impl IntoIterator<Item = ObjectKey>, line: Line) {
        machines.into_iter().for_each(|key| self.queue.add(machine_ref(key), line));
    }

    /// A tenant, and whom it concerns that it got or lost a namespace.
    async fn tenant(&self, key: &ObjectKey) -> Result<Next, StoreError> {
        let changed = self.tenants.changed(key).await?;
        if !changed.is_empty() {
            let machines = self.index.within(&changed).into_iter().map(machine_ref);
            let rivals = self.tenants.rivals(key, &changed).await?;
            let rivals = rivals.into_iter().map(|key| ObjectRef { kind: Tenant::KIND.to_owned(), key });
            machines.chain(rivals).for_each(|id| self.queue.add(id, Line::Back));
        }
        self.tenants.reconcile(key).await
    }

    fn wake(&self, wake: Wake) {
        let network = |key: ObjectKey| ObjectRef { kind: Network::KIND.to_owned(), key };
        match wake {
            Wake::Host(name) => {
                let concerned = self.index.concerned(self.fleet.cluster(&name).as_deref());
                if self.fleet.is_down(&name) {
                    self.lose(concerned)
                } else {
                    self.add_all(concerned, Line::Back)
                }
                if self.index.holds() {
                    self.let_go();
                }
                self.add_all(self.index.room(Some(&name)), Line::Back);
                // Any of them may select it, or wait for it.
                for key in self.networks.index.all() {
                    self.queue.add(network(key), Line::Back);
                }
                self.queue.add(host_ref(&name), Line::Back);
            }
            // Nothing of a machine or a network depends on it.
            Wake::Health(name) => self.queue.add(host_ref(&name), Line::Back),
            Wake::Vm { host, machine_uid, uuid, name, room } => {
                self.add_all(self.index.find(&machine_uid, &uuid, &name), Line::Front);
                match room {
                    Room::Same => {}
                    Room::Freed => self.room_after(CAPACITY_DELAY),
                    Room::Template => self.room_after(Duration::ZERO),
                }
                self.queue.add_at(host_ref(&host), Instant::now() + CAPACITY_DELAY, Line::Back);
            }
            Wake::Operation { request_id, uuid } => {
                let uid = request_id.split(':').next().unwrap_or_default();
                self.add_all(self.index.find(uid, &uuid, ""), Line::Front);
                if let Some(key) = self.networks.index.find(uid) {
                    self.queue.add(network(key), Line::Front);
                }
            }
        }
    }
}

/// How long to wait after so many failures in a row.
fn pause(failures: u32) -> Duration {
    let pause = Duration::from_millis(100).saturating_mul(1 << failures.min(12)).min(RETRY_MAX);
    pause.mul_f64(rand::random_range(0.75..1.0))
}

/// An object that is due, with its place.
struct Due {
    id: ObjectRef,
    line: Line,
    place: Option<OwnedSemaphorePermit>,
}

/// An object being worked on. However the work ends, the object may be given out again.
struct Pass<S: Store> {
    controller: Arc<Controller<S>>,
    id: ObjectRef,
}

impl<S: Store> Drop for Pass<S> {
    fn drop(&mut self) {
        self.controller.queue.done(&self.id);
        if std::thread::panicking() {
            // A fault of ours, told by the panic's message; the object is not forgotten for it.
            self.controller.queue.add_at(self.id.clone(), Instant::now() + RETRY_MAX, Line::Back);
        }
    }
}

/// A moment by the clock of timers; at once where it has passed.
fn instant(time: Timestamp) -> Instant {
    Instant::now() + Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default()
}

/// What is in the queue beside objects.
fn due(kind: &str) -> ObjectRef {
    ObjectRef { kind: kind.to_owned(), key: ObjectKey::named(kind) }
}

fn machine_ref(key: ObjectKey) -> ObjectRef {
    ObjectRef { kind: Machine::KIND.to_owned(), key }
}

fn host_ref(name: &str) -> ObjectRef {
    let key = match name.split_once('/') {
        Some((namespace, name)) => ObjectKey { namespace: namespace.to_owned(), name: name.to_owned() },
        None => ObjectKey::named(name),
    };
    ObjectRef { kind: Host::KIND.to_owned(), key }
}
