//! Which objects are due. An object that is being worked on is not given out a second time but again afterwards.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Notify, time::Instant};

use crate::kind::ObjectRef;

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<ObjectRef>,
    queued: HashSet<ObjectRef>,
    running: HashSet<ObjectRef>,
    again: HashSet<ObjectRef>,
    timers: BTreeSet<(Instant, ObjectRef)>,
    due: HashMap<ObjectRef, Instant>,
}

impl State {
    fn push(&mut self, id: ObjectRef) {
        if let Some(at) = self.due.remove(&id) {
            self.timers.remove(&(at, id.clone()));
        }
        if self.running.contains(&id) {
            self.again.insert(id);
        } else if self.queued.insert(id.clone()) {
            self.ready.push_back(id);
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Due now.
    pub(super) fn add(&self, id: ObjectRef) {
        self.state().push(id);
        self.changed.notify_one();
    }

    /// Due then, unless it is due earlier anyway.
    pub(super) fn add_at(&self, id: ObjectRef, at: Instant) {
        let mut state = self.state();
        if state.due.get(&id).is_some_and(|earlier| *earlier <= at) || state.queued.contains(&id) {
            return;
        }
        if let Some(later) = state.due.insert(id.clone(), at) {
            state.timers.remove(&(later, id.clone()));
        }
        state.timers.insert((at, id));
        drop(state);
        self.changed.notify_one();
    }

    /// The next that is due. Must be followed by [`Queue::done`].
    pub(super) async fn next(&self) -> ObjectRef {
        loop {
            let changed = self.changed.notified();
            let next_timer = {
                let mut state = self.state();
                let now = Instant::now();
                while let Some((at, id)) = state.timers.first().cloned() {
                    if at > now {
                        break;
                    }
                    state.push(id);
                }
                if let Some(id) = state.ready.pop_front() {
                    state.queued.remove(&id);
                    state.running.insert(id.clone());
                    return id;
                }
                state.timers.first().map(|(at, _)| *at)
            };
            match next_timer {
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }

    /// The work on it is over.
    pub(super) fn done(&self, id: &ObjectRef) {
        let mut state = self.state();
        state.running.remove(id);
        if state.again.remove(id) {
            state.push(id.clone());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// How many wait for their turn.
    pub(super) fn len(&self) -> usize {
        self.state().ready.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kind::ObjectKey;

    fn id(name: &str) -> ObjectRef {
        ObjectRef { kind: "PveMachine".into(), key: ObjectKey::named(name) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_added_twice_is_given_out_once() {
        let queue = Queue::default();
        queue.add(id("a"));
        queue.add(id("a"));
        assert_eq!(queue.next().await, id("a"));
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_while_it_is_worked_on_comes_again_afterwards() {
        let queue = Queue::default();
        queue.add(id("a"));
        let a = queue.next().await;
        queue.add(id("a"));
        assert_eq!(queue.len(), 0);
        queue.done(&a);
        assert_eq!(queue.next().await, id("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_time_counts_and_being_due_now_beats_it() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add_at(id("a"), start + Duration::from_secs(9));
        queue.add_at(id("a"), start + Duration::from_secs(2));
        queue.add_at(id("a"), start + Duration::from_secs(5));
        assert_eq!(queue.next().await, id("a"));
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        queue.done(&id("a"));
        queue.add_at(id("b"), start + Duration::from_secs(60));
        queue.add(id("b"));
        assert_eq!(queue.next().await, id("b"));
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
