//! One look for all who ask at about the same time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::time::Instant;

use super::{UnitState, bus::look};
use crate::error::{Error, Trouble};

/// How long an answer is good for those who ask later. Health asks for the same units by several sources, one after the other.
const GOOD_FOR: Duration = Duration::from_secs(1);

type Answer = Result<UnitState, Error>;

struct Asked {
    at: Instant,
    answer: Shared<BoxFuture<'static, Answer>>,
}

impl Asked {
    /// Whether somebody who asks now may have this answer: it is still to come, or it is a new one. A failure is nobody's but theirs who
    /// waited for it.
    fn serves(&self) -> bool {
        match self.answer.peek() {
            None => true,
            Some(answer) => answer.is_ok() && self.at.elapsed() < GOOD_FOR,
        }
    }
}

/// How units stand, by their names.
#[derive(Default)]
pub(super) struct Standings(Mutex<HashMap<String, Asked>>);

impl Standings {
    fn asked(&self) -> MutexGuard<'_, HashMap<String, Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer about this unit: that of somebody who has just asked, else that of `ask`. Must be called on a runtime.
    pub(super) async fn shared(&self, unit: &str, ask: impl Future<Output = Answer> + Send + 'static) -> Answer {
        let answer = {
            let mut asked = self.asked();
            match asked.get(unit) {
                Some(before) if before.serves() => before.answer.clone(),
                _ => {
                    // A task of its own: who asked first may go, and the others still wait for it.
                    let task = tokio::spawn(ask);
                    let ended = |e| Err(look(Trouble::Failed, format!("the look at the unit has ended early: {e}")));
                    let answer = task.map(move |answer| answer.unwrap_or_else(ended)).boxed().shared();
                    asked.insert(unit.to_owned(), Asked { at: Instant::now(), answer: answer.clone() });
                    answer
                }
            }
        };
        answer.await
    }

    /// Whoever asks from now on gets a new answer; an empty name: for all units.
    pub(super) fn forget(&self, unit: &str) {
        let mut asked = self.asked();
        if unit.is_empty() {
            asked.clear();
        } else {
            asked.remove(unit);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use tokio::sync::Notify;

    use super::*;

    const UNIT: &str = "kubelet.service";

    /// Each answer has a number.
    #[derive(Default)]
    struct Rig {
        standings: Standings,
        looks: Arc<AtomicU32>,
    }

    impl Rig {
        fn look(&self, fails: bool) -> impl Future<Output = Answer> + Send + 'static {
            let looks = Arc::clone(&self.looks);
            async move {
                let restarts = looks.fetch_add(1, Ordering::SeqCst) + 1;
                if fails { Err(look(Trouble::Silent, "no answer")) } else { Ok(UnitState { restarts, ..UnitState::default() }) }
            }
        }

        async fn ask(&self, unit: &str) -> u32 {
            self.standings.shared(unit, self.look(false)).await.unwrap().restarts
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_shared_for_a_second_and_forgotten_by_a_change() {
        let rig = Rig::default();
        assert_eq!((rig.ask(UNIT).await, rig.ask(UNIT).await, rig.ask("containerd.service").await), (1, 1, 2));
        tokio::time::advance(GOOD_FOR).await;
        assert_eq!(rig.ask(UNIT).await, 3);
        rig.standings.forget("containerd.service");
        assert_eq!(rig.ask(UNIT).await, 3, "it is another unit that has changed");
        rig.standings.forget(UNIT);
        assert_eq!(rig.ask(UNIT).await, 4);
        rig.standings.forget("");
        assert_eq!(rig.ask(UNIT).await, 5);
    }

    #[tokio::test]
    async fn a_failure_is_not_kept() {
        let rig = Rig::default();
        rig.standings.shared(UNIT, rig.look(true)).await.unwrap_err();
        assert_eq!(rig.ask(UNIT).await, 2);
    }

    #[tokio::test]
    async fn those_who_wait_share_one_look_though_the_first_of_them_leaves() {
        let rig = Arc::new(Rig::default());
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let slow = {
            let (begun, go, look) = (Arc::clone(&begun), Arc::clone(&go), rig.look(false));
            async move {
                begun.notify_one();
                go.notified().await;
                look.await
            }
        };
        let first = {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move { rig.standings.shared(UNIT, slow).await })
        };
        begun.notified().await;
        let second = {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move { rig.ask(UNIT).await })
        };
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        go.notify_one();
        assert_eq!((second.await.unwrap(), rig.looks.load(Ordering::SeqCst)), (1, 1));
    }

    #[tokio::test]
    async fn a_change_while_one_looks_is_not_missed_by_who_asks_after_it() {
        let rig = Arc::new(Rig::default());
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let slow = {
            let (begun, go, look) = (Arc::clone(&begun), Arc::clone(&go), rig.look(false));
            async move {
                let answer = look.await;
                begun.notify_one();
                go.notified().await;
                answer
            }
        };
        let first = {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move { rig.standings.shared(UNIT, slow).await })
        };
        begun.notified().await;
        rig.standings.forget(UNIT);
        assert_eq!(rig.ask(UNIT).await, 2);
        go.notify_one();
        assert_eq!(first.await.unwrap().unwrap().restarts, 1);
        assert_eq!(rig.ask(UNIT).await, 2, "the old answer has come last, and is not the one that is kept");
    }
}
