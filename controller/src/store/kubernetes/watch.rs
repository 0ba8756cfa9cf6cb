//! Keeping the cache of a kind as the API server has it.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use kube::{
    Api,
    api::DynamicObject,
    runtime::watcher::{self, watcher},
};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, warn};

use super::{PAGE, cache::Cache, object};
use crate::{kind::Kind, kubernetes::chain};

/// The first and the longest pause before an API server that failed is asked again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// An error that comes so long after the last one is another trouble: a watch that is taken up again tells nothing until something changes.
const OVER: Duration = Duration::from_secs(60);

/// An API server that is away: told once each time, while the watcher itself goes on.
#[derive(Default)]
struct Trouble(Option<(Instant, Duration)>);

impl Trouble {
    /// After an error: whether it is the first of this time, and how long to wait.
    fn again(&mut self, now: Instant) -> (bool, Duration) {
        let last = self.0.filter(|(at, pause)| now < *at + *pause + OVER);
        let pause = last.map_or(AGAIN.0, |(_, pause)| (pause * 2).min(AGAIN.1));
        self.0 = Some((now, pause));
        (last.is_none(), pause)
    }
}

/// Lists and watches until the task is ended. A watch that broke goes on where it was; one that is too old (410 Gone) begins with a list.
/// `listed` becomes true with the first whole list.
pub(super) async fn run<K: Kind>(api: Api<DynamicObject>, cache: Arc<Cache<K>>, listed: watch::Sender<bool>) {
    // A watch is begun anew each minute, so that one whose connection is dead is noticed.
    let mut events = pin!(watcher(api, watcher::Config::default().timeout(60).page_size(PAGE)));
    let (mut listed_version, mut found, mut trouble) = (0, BTreeSet::new(), Trouble::default());
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(e) => {
                let (first, pause) = trouble.again(Instant::now());
                if first {
                    warn!(kind = K::KIND, "cannot be watched, trying again: {}", chain(&e));
                } else {
                    debug!(kind = K::KIND, "{}", chain(&e));
                }
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
                continue;
            }
        };
        // That a list is begun is told before the API server has answered.
        if !matches!(event, watcher::Event::Init) {
            trouble = Trouble::default();
        }
        match event {
            watcher::Event::Init => (listed_version, found) = (cache.newest(), BTreeSet::new()),
            watcher::Event::InitApply(raw) => {
                found.insert(object::key(&raw));
                cache.put(raw);
            }
            watcher::Event::InitDone => {
                cache.keep(&std::mem::take(&mut found), listed_version);
                listed.send_replace(true);
            }
            watcher::Event::Apply(raw) => cache.put(raw),
            watcher::Event::Delete(raw) => cache.remove(&raw),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_that_the_api_server_is_away_is_told_once_and_begins_with_a_short_pause() {
        let (mut trouble, mut now) = (Trouble::default(), Instant::now());
        assert_eq!(trouble.again(now), (true, AGAIN.0));
        for _ in 0..10 {
            now += trouble.0.map_or(AGAIN.0, |(_, pause)| pause);
            assert!(!trouble.again(now).0);
        }
        assert_eq!(trouble.again(now), (false, AGAIN.1));
        // Nothing was told meanwhile: no object changed.
        assert_eq!(trouble.again(now + AGAIN.1 + OVER), (true, AGAIN.0));
    }
}
