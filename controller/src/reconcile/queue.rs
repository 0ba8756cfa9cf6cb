//! Which objects are due. An object that is being worked on is not given out a second time but again afterwards.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::kind::ObjectRef;

/// What is due comes in two lines, worked on beside each other: that a host went concerns thousands of objects, and one VM that stopped does not
/// wait behind these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// What agents tell of single VMs and operations, and what comes of that.
    Front,
    /// All else.
    Back,
}

/// How long after a host went its machines are looked at first. It is told at the host at once; an agent that only restarts is back by then, and why
/// it cannot be connected to is known.
const GRACE: Duration = Duration::from_secs(6);
/// The time between two machines whose hosts went.
const PACE: Duration = Duration::from_millis(50);
/// How long these may take together, beyond the grace. More than fit into it share it.
const LONGEST: Duration = Duration::from_secs(60);

/// When machines whose hosts went are looked at: soon where these are few, and one after the other where they are many.
#[derive(Debug, Default)]
pub(super) struct Turns {
    next: Option<Instant>,
}

impl Turns {
    /// When the last of those that go now will have had its turn.
    pub(super) fn end(now: Instant) -> Instant {
        now + GRACE + LONGEST
    }

    /// The next turn.
    pub(super) fn turn(&mut self, now: Instant) -> Instant {
        let first = now + GRACE;
        let at = self.next.filter(|next| *next > first).unwrap_or(first);
        if at >= first + LONGEST {
            return first + LONGEST.mul_f64(rand::random_range(0.0..1.0));
        }
        self.next = Some(at + PACE);
        at
    }
}

/// Objects for which room is kept though none is due.
const ROOM: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// One for each line: whoever waits for one is not woken for the other.
    changed: [Notify; 2],
}

#[derive(Debug, Default)]
struct State {
    /// An entry that is not in `queued` for its line any more does not count.
    ready: [VecDeque<ObjectRef>; 2],
    queued: HashMap<ObjectRef, Line>,
    running: HashSet<ObjectRef>,
    again: HashMap<ObjectRef, Line>,
    timers: BTreeSet<(Instant, ObjectRef)>,
    due: HashMap<ObjectRef, (Instant, Line)>,
}

impl State {
    fn push(&mut self, id: ObjectRef, line: Line) {
        if let Some((at, _)) = self.due.remove(&id) {
            self.timers.remove(&(at, id.clone()));
        }
        let before = if self.running.contains(&id) { &mut self.again } else { &mut self.queued };
        match before.get_mut(&id) {
            Some(Line::Front) => return,
            Some(Line::Back) if line == Line::Back => return,
            Some(before) => *before = line,
            None => drop(before.insert(id.clone(), line)),
        }
        if !self.running.contains(&id) {
            self.ready[line as usize].push_back(id);
        }
    }

    /// Gives back what ten thousand objects took that were due at once.
    fn rest(&mut self) {
        let Self { ready, queued, running: _, again, timers: _, due } = self;
        ready.iter_mut().filter(|ready| ready.is_empty()).for_each(|ready| ready.shrink_to(ROOM));
        if queued.is_empty() {
            queued.shrink_to(ROOM);
        }
        if again.is_empty() {
            again.shrink_to(ROOM);
        }
        if due.len() < ROOM {
            due.shrink_to(ROOM);
        }
    }

    fn pop(&mut self, line: Line) -> Option<ObjectRef> {
        while let Some(id) = self.ready[line as usize].pop_front() {
            if self.queued.get(&id) == Some(&line) {
                self.queued.remove(&id);
                self.running.insert(id.clone());
                return Some(id);
            }
        }
        None
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, line: Line) -> &Notify {
        &self.changed[line as usize]
    }

    /// Due now.
    pub(super) fn add(&self, id: ObjectRef, line: Line) {
        self.state().push(id, line);
        self.changed(line).notify_one();
    }

    /// Due then, unless it is due earlier anyway.
    pub(super) fn add_at(&self, id: ObjectRef, at: Instant, line: Line) {
        let mut state = self.state();
        if state.due.get(&id).is_some_and(|(earlier, _)| *earlier <= at) || state.queued.contains_key(&id) {
            return;
        }
        if let Some((later, _)) = state.due.insert(id.clone(), (at, line)) {
            state.timers.remove(&(later, id.clone()));
        }
        state.timers.insert((at, id));
        drop(state);
        self.changed(Line::Front).notify_one();
    }

    /// Whether it is due by then anyway.
    pub(super) fn is_due_by(&self, id: &ObjectRef, at: Instant) -> bool {
        let state = self.state();
        state.due.get(id).is_some_and(|(due, _)| *due <= at) || state.queued.contains_key(id)
    }

    /// The next that is due in a line. Must be followed by [`Queue::done`]. One waits for each line; the one in front looks at the clock for both.
    pub(super) async fn next(&self, line: Line) -> ObjectRef {
        loop {
            let changed = self.changed(line).notified();
            let next_timer = {
                let mut state = self.state();
                if line == Line::Front {
                    let now = Instant::now();
                    while let Some((at, id)) = state.timers.first().cloned() {
                        if at > now {
                            break;
                        }
                        let line = state.due.get(&id).map_or(Line::Front, |(_, line)| *line);
                        state.push(id, line);
                        if line == Line::Back {
                            self.changed(Line::Back).notify_one();
                        }
                    }
                }
                if let Some(id) = state.pop(line) {
                    return id;
                }
                state.timers.first().map(|(at, _)| *at).filter(|_| line == Line::Front)
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
        if state.running.is_empty() {
            state.rest();
        }
        if let Some(line) = state.again.remove(id) {
            state.push(id.clone(), line);
            drop(state);
            self.changed(line).notify_one();
        }
    }

    /// How many wait for their turn.
    pub(super) fn len(&self) -> usize {
        self.state().queued.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::ObjectKey;

    fn id(name: &str) -> ObjectRef {
        ObjectRef { kind: "PveMachine".into(), key: ObjectKey::named(name) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_added_twice_is_given_out_once() {
        let queue = Queue::default();
        queue.add(id("a"), Line::Front);
        queue.add(id("a"), Line::Front);
        assert_eq!(queue.next(Line::Front).await, id("a"));
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_while_it_is_worked_on_comes_again_afterwards() {
        let queue = Queue::default();
        queue.add(id("a"), Line::Back);
        let a = queue.next(Line::Back).await;
        queue.add(id("a"), Line::Back);
        queue.add(id("a"), Line::Front);
        queue.add(id("a"), Line::Back);
        assert_eq!(queue.len(), 0);
        queue.done(&a);
        assert_eq!(queue.next(Line::Front).await, id("a"));
        queue.done(&a);
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_time_counts_and_being_due_now_beats_it() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add_at(id("a"), start + Duration::from_secs(9), Line::Back);
        queue.add_at(id("a"), start + Duration::from_secs(2), Line::Front);
        queue.add_at(id("a"), start + Duration::from_secs(5), Line::Back);
        assert_eq!(queue.next(Line::Front).await, id("a"));
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        queue.done(&id("a"));
        queue.add_at(id("b"), start + Duration::from_secs(60), Line::Front);
        queue.add(id("b"), Line::Back);
        assert_eq!(queue.next(Line::Back).await, id("b"));
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_in_the_back_and_comes_to_the_front_is_given_out_there_alone() {
        let queue = Queue::default();
        for n in 0..1000 {
            queue.add(id(&format!("m{n}")), Line::Back);
        }
        queue.add(id("m999"), Line::Front);
        queue.add(id("m999"), Line::Back);
        assert_eq!(queue.len(), 1000);
        assert_eq!(queue.next(Line::Front).await, id("m999"));
        for n in 0..999 {
            assert_eq!(queue.next(Line::Back).await, id(&format!("m{n}")));
        }
        queue.done(&id("m999"));
        queue.add(id("last"), Line::Back);
        assert_eq!(queue.next(Line::Back).await, id("last"));
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_one_line_is_not_woken_in_vain_for_the_other() {
        let queue = Queue::default();
        let both = async { tokio::join!(queue.next(Line::Front), queue.next(Line::Back)) };
        let told = async {
            tokio::task::yield_now().await;
            queue.add(id("b"), Line::Back);
            queue.add(id("f"), Line::Front);
        };
        let (found, ()) = tokio::join!(both, told);
        assert_eq!(found, (id("f"), id("b")));
        // The clock is looked at for both.
        let start = Instant::now();
        queue.add_at(id("later"), start + Duration::from_secs(3), Line::Back);
        queue.add_at(id("last"), start + Duration::from_secs(4), Line::Front);
        let found = tokio::join!(queue.next(Line::Front), queue.next(Line::Back));
        assert_eq!((found, start.elapsed()), ((id("last"), id("later")), Duration::from_secs(4)));
    }

    #[test]
    fn machines_whose_hosts_went_take_turns_after_a_grace() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        assert_eq!([turns.turn(now), turns.turn(now), turns.turn(now)], [now + GRACE, now + GRACE + PACE, now + GRACE + PACE * 2]);
        let later = now + LONGEST;
        assert_eq!(turns.turn(later), later + GRACE, "after a while without any there is no queue");
    }

    #[test]
    fn however_many_hosts_went_no_machine_waits_for_longer_than_is_said() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        let fit = usize::try_from(LONGEST.as_millis() / PACE.as_millis()).unwrap_or_default();
        let all: Vec<Instant> = (0..fit * 4).map(|_| turns.turn(now)).collect();
        assert!(all.iter().all(|at| (now + GRACE..now + GRACE + LONGEST).contains(at)));
        // Those that are too many are among the others, not all at the end.
        let half = now + GRACE + LONGEST / 2;
        assert!(all[fit..].iter().filter(|at| **at < half).count() > fit / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_is_due_much_later_anyway_does_not_wait_for_that() {
        let (queue, now) = (Queue::default(), Instant::now());
        queue.add_at(id("a"), Turns::end(now) + PACE, Line::Front);
        assert!(!queue.is_due_by(&id("a"), Turns::end(now)));
        queue.add_at(id("a"), now + GRACE, Line::Back);
        assert!(queue.is_due_by(&id("a"), Turns::end(now)));
        assert_eq!(queue.state().due[&id("a")].0, now + GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_of_a_machine_does_not_wait_for_its_turn() {
        let queue = Queue::default();
        queue.add_at(id("a"), Instant::now() + GRACE, Line::Back);
        queue.add(id("a"), Line::Front);
        assert_eq!(queue.next(Line::Front).await, id("a"));
        queue.done(&id("a"));
        assert!(queue.state().timers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_many_objects_took_is_given_back() {
        let queue = Queue::default();
        for n in 0..ROOM * 8 {
            queue.add(id(&n.to_string()), Line::Back);
            queue.add_at(id(&format!("later {n}")), Instant::now() + GRACE, Line::Back);
        }
        for _ in 0..ROOM * 8 {
            let id = queue.next(Line::Back).await;
            queue.done(&id);
        }
        let state = queue.state();
        assert!(state.queued.capacity() <= ROOM * 2 && state.ready[1].capacity() <= ROOM * 2);
        assert_eq!(state.due.len(), ROOM * 8);
    }
}
