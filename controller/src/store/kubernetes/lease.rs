//! Who leads: a Lease of Kubernetes, held by one instance at a time.
//!
//! A term is one holding of the Lease by one instance. Its number, `leaseTransitions`, grows with each term, also where an instance follows
//! itself; with the UID of the Lease it is the epoch by which agents tell a former leader from the present one. That is what keeps two leaders
//! apart. The times here only keep the gap between two leaders short, so a clock that is wrong does no harm: each instance measures by its own
//! how long the Lease has not changed.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams, runtime::watcher::watch_object};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    epoch::Epoch,
    kubernetes::{chain, within},
};

/// The longest that a Lease may be left to a holder that does not renew it.
pub const LONGEST: Duration = Duration::from_secs(300);

/// Which Lease, and in whose name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseOptions {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Name of this instance; unlike that of any other, of a former start of this program too.
    pub identity: String,
    /// How long a Lease that is not renewed is left to its holder, in whole seconds, up to [`LONGEST`]. Kubernetes' own controllers have 15 s.
    pub duration: Duration,
}

impl LeaseOptions {
    /// A leader that could not renew the Lease for this long takes itself for a former one: earlier than others do.
    fn renew_deadline(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// How often the Lease is renewed, and tried again after a failure.
    fn renew_every(&self) -> Duration {
        self.duration * 2 / 15
    }
}

/// Somebody who wants to lead.
#[derive(Clone)]
pub struct Leader {
    api: Api<Lease>,
    options: LeaseOptions,
}

/// A term that has begun.
pub struct Term {
    /// What calls of this term carry.
    pub epoch: Epoch,
    /// Cancelled as soon as the term is over.
    pub over: CancellationToken,
    leader: Leader,
    renewal: JoinHandle<Option<Lease>>,
    done: CancellationToken,
}

/// What a try to take the Lease came to.
enum Try {
    Taken(Box<Lease>),
    /// Somebody else was quicker.
    Lost,
    Failed(String),
}

impl Leader {
    /// Does nothing yet.
    pub fn new(client: Client, options: LeaseOptions) -> Self {
        Self { api: Api::namespaced(client, &options.namespace), options }
    }

    /// Waits until nobody else leads, and takes the Lease. Nothing when told to stop.
    pub async fn lead(&self, stop: &CancellationToken) -> Option<Term> {
        tokio::select! {
            () = stop.cancelled() => None,
            term = self.wait() => Some(term),
        }
    }

    async fn wait(&self) -> Term {
        let mut events = pin!(watch_object(self.api.clone(), &self.options.name));
        // The Lease as it was seen last, and since when it has not changed.
        let mut seen: Option<(Option<Lease>, Instant)> = None;
        let (mut again, mut told) = (Instant::now(), String::new());
        loop {
            let due = match &seen {
                None => None,
                Some((None, _)) => Some(again),
                Some((Some(lease), _)) if is_free(lease) || self.is_ours(lease) => Some(again),
                Some((Some(lease), since)) => Some((*since + held_for(lease, self.options.duration)).max(again)),
            };
            let time = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(lease)) => {
                        let same = seen.as_ref().is_some_and(|(old, _)| version(old.as_ref()) == version(lease.as_ref()));
                        if !same {
                            if let Some(holder) = lease.as_ref().and_then(holder) {
                                debug!(holder, "another instance leads");
                            }
                            seen = Some((lease, Instant::now()));
                        }
                    }
                    Some(Err(e)) => {
                        debug!("the Lease cannot be watched: {}", chain(&e));
                        tokio::time::sleep(self.options.renew_every().mul_f64(rand::random_range(0.75..1.25))).await;
                    }
                    None => {
                        events.set(watch_object(self.api.clone(), &self.options.name));
                        tokio::time::sleep(self.options.renew_every()).await;
                    }
                },
                () = time => {
                    let before = Instant::now();
                    match self.take(seen.as_ref().and_then(|(lease, _)| lease.as_ref())).await {
                        Try::Taken(lease) => match self.begin(*lease, before) {
                            Ok(term) => return term,
                            Err(text) => warn!("{text}"),
                        },
                        // The watch would tell what it is now, unless its connection is dead.
                        Try::Lost => match within(self.api.get_opt(&self.options.name)).await {
                            Ok(lease) => seen = Some((lease, Instant::now())),
                            Err(e) => debug!("the Lease cannot be read: {}", e.text()),
                        },
                        // Once for each time that it is away.
                        Try::Failed(text) if text == told => debug!("cannot take the Lease: {text}"),
                        Try::Failed(text) => {
                            warn!("cannot take the Lease {}/{}: {text}", self.options.namespace, self.options.name);
                            told = text;
                        }
                    }
                    again = Instant::now() + self.options.renew_every().mul_f64(rand::random_range(0.75..1.25));
                }
            }
        }
    }

    /// Taken by a call of this process whose answer was lost.
    fn is_ours(&self, lease: &Lease) -> bool {
        holder(lease) == Some(self.options.identity.as_str())
    }

    async fn take(&self, seen: Option<&Lease>) -> Try {
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(self.options.identity.clone()),
            lease_duration_seconds: i32::try_from(self.options.duration.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions(seen).saturating_add(1)),
            ..LeaseSpec::default()
        };
        let result = match seen {
            None => {
                let metadata = ObjectMeta { name: Some(self.options.name.clone()), ..ObjectMeta::default() };
                within(self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) })).await
            }
            // With its version: whoever else takes it at the same time, one of the two is refused.
            Some(lease) => {
                let lease = Lease { metadata: lease.metadata.clone(), spec: Some(spec) };
                within(self.api.replace(&self.options.name, &PostParams::default(), &lease)).await
            }
        };
        match result {
            Ok(lease) => Try::Taken(Box::new(lease)),
            Err(e) if matches!(e.code(), Some(404 | 409)) => Try::Lost,
            Err(e) => Try::Failed(e.text()),
        }
    }

    fn begin(&self, lease: Lease, since: Instant) -> Result<Term, String> {
        let uid = lease.metadata.uid.clone().ok_or("the API server gave the Lease no UID")?;
        let epoch = Epoch { lease_uid: uid, transitions: u64::try_from(transitions(Some(&lease))).unwrap_or(0) };
        info!(identity = self.options.identity, term = epoch.transitions, "leading");
        let (over, done) = (CancellationToken::new(), CancellationToken::new());
        let renewal = tokio::spawn(self.clone().renew(lease, since, over.clone(), done.clone()));
        Ok(Term { epoch, over, leader: self.clone(), renewal, done })
    }

    /// Renews until the Lease is lost, or the term is ended by its holder; then returns the Lease as it was renewed last.
    async fn renew(self, mut lease: Lease, mut since: Instant, over: CancellationToken, done: CancellationToken) -> Option<Lease> {
        let _over = over.drop_guard();
        let deadline = self.options.renew_deadline();
        loop {
            // The process may have stood still meanwhile, or the API server is away.
            let end = since + deadline;
            tokio::select! {
                () = done.cancelled() => return Some(lease),
                () = tokio::time::sleep_until(end.min(Instant::now() + self.options.renew_every())) => {}
            }
            let before = Instant::now();
            // One call that hangs leaves time for others.
            let patience = end.min(before + deadline / 3);
            match tokio::time::timeout_at(patience, self.renew_once(&lease)).await {
                _ if Instant::now() >= end => {
                    warn!("the Lease could not be renewed for {} s: not leading any more", deadline.as_secs());
                    return None;
                }
                Ok(Renewal::Done(new)) => (lease, since) = (*new, before),
                Ok(Renewal::Written(new)) => lease = *new,
                Ok(Renewal::Failed(text)) => debug!("the Lease cannot be renewed: {text}"),
                Ok(Renewal::Lost) => {
                    warn!("the Lease was taken by another instance, or removed: not leading any more");
                    return None;
                }
                Err(_) => debug!("the Lease cannot be renewed: no answer"),
            }
        }
    }

    async fn renew_once(&self, lease: &Lease) -> Renewal {
        let mut new = lease.clone();
        if let Some(spec) = &mut new.spec {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        match within(self.api.replace(&self.options.name, &PostParams::default(), &new)).await {
            Ok(lease) => return Renewal::Done(Box::new(lease)),
            Err(e) if e.code() == Some(404) => return Renewal::Lost,
            Err(e) if e.code() != Some(409) => return Renewal::Failed(e.text()),
            Err(_) => {}
        }
        // Somebody wrote it. It may have been a renewal of ours whose answer was lost, or a person with a label.
        match within(self.api.get_opt(&self.options.name)).await {
            Ok(Some(now)) if term(&now) == term(lease) => Renewal::Written(Box::new(now)),
            Ok(_) => Renewal::Lost,
            Err(e) => Renewal::Failed(e.text()),
        }
    }
}

/// What a renewal came to.
enum Renewal {
    Done(Box<Lease>),
    /// Not renewed, but still ours, in this version.
    Written(Box<Lease>),
    Failed(String),
    Lost,
}

impl Term {
    /// Gives the Lease back, where it is still ours, so that the next leader need not wait.
    pub async fn end(self) {
        self.done.cancel();
        // A task that panicked has nothing to give back.
        let Ok(Some(mut lease)) = self.renewal.await else { return };
        if let Some(spec) = &mut lease.spec {
            (spec.holder_identity, spec.renew_time) = (Some(String::new()), Some(MicroTime(Timestamp::now())));
        }
        let name = &self.leader.options.name;
        match within(self.leader.api.replace(name, &PostParams::default(), &lease)).await {
            Ok(_) => info!("the Lease is given back"),
            Err(e) => debug!("the Lease cannot be given back; it ends by itself: {}", e.text()),
        }
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|h| !h.is_empty())
}

fn is_free(lease: &Lease) -> bool {
    holder(lease).is_none()
}

/// How long its holder may leave it unchanged. What stands there may be another program's, or nonsense.
fn held_for(lease: &Lease, usual: Duration) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|s| s.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    seconds.map_or(usual, Duration::from_secs).min(LONGEST)
}

fn transitions(lease: Option<&Lease>) -> i32 {
    lease.and_then(|l| l.spec.as_ref()).and_then(|s| s.lease_transitions).unwrap_or(0).max(0)
}

fn version(lease: Option<&Lease>) -> Option<&str> {
    lease.and_then(|l| l.metadata.resource_version.as_deref())
}

/// Which Lease, whose, for the how many-th time.
fn term(lease: &Lease) -> (Option<&str>, Option<&str>, i32) {
    (lease.metadata.uid.as_deref(), holder(lease), transitions(Some(lease)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, seconds: Option<i32>) -> Lease {
        let spec = LeaseSpec { holder_identity: Some(holder.into()), lease_duration_seconds: seconds, ..LeaseSpec::default() };
        Lease { metadata: ObjectMeta::default(), spec: Some(spec) }
    }

    #[test]
    fn a_lease_without_a_holder_is_free() {
        assert!(is_free(&lease("", Some(15))) && is_free(&Lease::default()));
        assert!(!is_free(&lease("pod-1", Some(15))));
    }

    #[test]
    fn a_lease_is_left_to_its_holder_for_as_long_as_it_says_within_reason() {
        for (seconds, want) in [(Some(30), 30), (None, 15), (Some(-1), 15), (Some(i32::MAX), 300)] {
            assert_eq!(held_for(&lease("pod-1", seconds), Duration::from_secs(15)), Duration::from_secs(want), "{seconds:?}");
        }
    }
}
