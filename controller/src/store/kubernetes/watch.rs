//! Keeping the cache of a kind as the API server has it.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use kube::{
    Api,
    api::DynamicObject,
    runtime::watcher::{self, watcher},
};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{PAGE, cache::Cache, object};
use crate::{kind::Kind, kubernetes::chain};

/// The first and the longest pause before an API server that failed is asked again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Lists and watches until the task is ended. A watch that broke goes on where it was; one that is too old (410 Gone) begins with a list.
/// `listed` becomes true with the first whole list.
pub(super) async fn run<K: Kind>(api: Api<DynamicObject>, cache: Arc<Cache<K>>, listed: watch::Sender<bool>) {
    // A watch is begun anew each minute, so that one whose connection is dead is noticed.
    let mut events = pin!(watcher(api, watcher::Config::default().timeout(60).page_size(PAGE)));
    let (mut listed_version, mut found, mut pause, mut troubled) = (0, BTreeSet::new(), AGAIN.0, false);
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(e) => {
                // Once for each time that it is away: the watcher itself goes on.
                if std::mem::replace(&mut troubled, true) {
                    debug!(kind = K::KIND, "{}", chain(&e));
                } else {
                    warn!(kind = K::KIND, "cannot be watched, trying again: {}", chain(&e));
                }
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
                pause = (pause * 2).min(AGAIN.1);
                continue;
            }
        };
        // That a list is begun is told before the API server has answered.
        if !matches!(event, watcher::Event::Init) {
            (pause, troubled) = (AGAIN.0, false);
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
