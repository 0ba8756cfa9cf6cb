//! Events of Kubernetes: what happened to an object, for people.
//!
//! kube's recorder keeps the first text of an event for all that follow of its reason. Here an event is the same only where its text is.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event as ApiEvent},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::super::Event;
use crate::kubernetes::within;

/// Events that wait to be written. More than these are dropped: they are in the log.
const WAITING: usize = 1024;
/// How long an event counts as the same.
const SAME: Duration = Duration::from_secs(600);
/// How often those that do not any more are forgotten.
const SWEEP: Duration = Duration::from_secs(60);
/// How many are remembered.
const REMEMBERED: usize = 1024;
/// The longest name of an object.
const NAME: usize = 253;
/// How much text the API takes, in bytes.
const NOTE: usize = 1024;
/// What stands in events as their author.
const AUTHOR: &str = "pvelet.dev/controller";
/// Where events of objects without a namespace are.
const CLUSTER_NAMESPACE: &str = "default";

/// Takes events and writes them one after the other.
#[derive(Debug, Clone)]
pub(super) struct Recorder {
    sender: mpsc::Sender<(ObjectReference, Event)>,
}

/// An event that was written, and may come again.
struct Written {
    namespace: String,
    name: String,
    count: i32,
    last: Instant,
}

impl Recorder {
    /// One that writes in the name of this instance, until it is dropped.
    pub(super) fn new(client: Client, instance: String) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(write_all(client, instance, receiver));
        Self { sender }
    }

    pub(super) fn record(&self, about: ObjectReference, event: Event) {
        let name = about.name.as_deref().unwrap_or_default();
        let namespace = about.namespace.as_deref().unwrap_or_default();
        let kind = about.kind.as_deref().unwrap_or_default();
        if event.warning {
            warn!(kind, namespace, name, reason = event.reason, "{}", event.message);
        } else {
            info!(kind, namespace, name, reason = event.reason, "{}", event.message);
        }
        if self.sender.try_send((about, event)).is_err() {
            debug!("too many events at once: this one is in the log alone");
        }
    }
}

async fn write_all(client: Client, instance: String, mut receiver: mpsc::Receiver<(ObjectReference, Event)>) {
    let mut written: HashMap<(Option<String>, &'static str, String), Written> = HashMap::new();
    let mut swept = Instant::now();
    while let Some((about, event)) = receiver.recv().await {
        if swept.elapsed() > SWEEP || written.len() >= REMEMBERED {
            written.retain(|_, w| w.last.elapsed() < SAME);
            swept = Instant::now();
        }
        if written.len() >= REMEMBERED {
            written.clear();
        }
        let key = (about.uid.clone(), event.reason, event.message.clone());
        // One that cannot be counted up, because somebody removed it, is made anew the next time.
        let result = match written.remove(&key) {
            Some(before) if before.last.elapsed() < SAME => again(&client, before).await,
            _ => first(&client, &instance, about, &event).await,
        };
        match result {
            Ok(new) => drop(written.insert(key, new)),
            Err(text) => debug!(reason = event.reason, "the event cannot be written: {text}"),
        }
    }
}

async fn first(client: &Client, instance: &str, about: ObjectReference, event: &Event) -> Result<Written, String> {
    let now = Timestamp::now();
    let namespace = about.namespace.clone().unwrap_or_else(|| CLUSTER_NAMESPACE.to_owned());
    let suffix = format!(".{:x}", now.as_nanosecond());
    // Names are ASCII.
    let name: String = about.name.as_deref().unwrap_or("pvelet").chars().take(NAME - suffix.len()).collect();
    let name = name + &suffix;
    let event = ApiEvent {
        metadata: ObjectMeta { namespace: Some(namespace.clone()), name: Some(name), ..ObjectMeta::default() },
        event_time: Some(MicroTime(now)),
        regarding: Some(about),
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(event.reason.to_owned()),
        // What was done is what is told: the API wants a word here too.
        action: Some(event.reason.to_owned()),
        note: Some(shortened(&event.message)),
        reporting_controller: Some(AUTHOR.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..ApiEvent::default()
    };
    let made = within(Api::<ApiEvent>::namespaced(client.clone(), &namespace).create(&PostParams::default(), &event)).await;
    let made = made.map_err(|e| e.text())?;
    Ok(Written { namespace, name: made.name_any(), count: 1, last: Instant::now() })
}

async fn again(client: &Client, mut before: Written) -> Result<Written, String> {
    (before.count, before.last) = (before.count + 1, Instant::now());
    let series = json!({"series": {"count": before.count, "lastObservedTime": MicroTime(Timestamp::now())}});
    let api = Api::<ApiEvent>::namespaced(client.clone(), &before.namespace);
    within(api.patch(&before.name, &PatchParams::default(), &Patch::Merge(&series))).await.map_err(|e| e.text())?;
    Ok(before)
}

/// A text that the API takes, cut at a character.
fn shortened(text: &str) -> String {
    if text.len() <= NOTE {
        return text.to_owned();
    }
    let end = (0..=NOTE - 3).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_where_a_character_ends() {
        assert_eq!(shortened("short"), "short");
        for text in ["x".repeat(2000), "\u{e4}".repeat(2000)] {
            let cut = shortened(&text);
            assert!(cut.len() <= NOTE && cut.len() > NOTE - 8 && cut.ends_with("..."), "{}", cut.len());
        }
    }
}
