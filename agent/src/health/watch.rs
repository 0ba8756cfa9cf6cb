//! GetHealth and WatchHealth.

use std::sync::{Arc, atomic::Ordering};

use futures_util::{Stream, stream};
use pvelet_proto::{reason, v1};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch as channel,
};

use super::{Change, Group, Health, view};
use crate::error::Error;

/// Tells what Repair may do, and has done.
pub type RepairStatus = Arc<dyn Fn() -> v1::RepairStatus + Send + Sync>;

/// One client's stream. What it has not taken yet waits in the board's channel, and who lags behind that is ended.
struct Watch {
    health: Health,
    /// What is there at the beginning.
    first: Option<Change>,
    changes: broadcast::Receiver<Arc<Change>>,
    repair: RepairStatus,
    repair_changed: channel::Receiver<()>,
    ended: bool,
}

impl Health {
    /// The health, from memory.
    ///
    /// # Errors
    /// `Invalid` for a group that does not exist.
    pub fn get(&self, request: &v1::GetHealthRequest, repair: v1::RepairStatus) -> Result<v1::GetHealthResponse, Error> {
        for (n, group) in request.groups.iter().enumerate() {
            if !Group::ALL.iter().any(|g| g.as_str() == group) {
                let known = Group::ALL.map(Group::as_str).join(", ");
                let text = format!("'{}' is no group of checks; those are {known}", group.chars().take(64).collect::<String>());
                return Err(Error::invalid(format!("groups[{n}]"), reason::INVALID_FIELD, text));
            }
        }
        let (overall, known) = self.all();
        let wanted = |group: Group| request.groups.is_empty() || request.groups.iter().any(|g| g == group.as_str());
        let checks = known.iter().filter(|k| wanted(k.check.group));
        Ok(v1::GetHealthResponse { health: Some(view::health(overall, checks, repair, self.inner.clock.now())) })
    }

    /// All checks, then what changes. In the stream: `SlowConsumer` when the client lags too far behind.
    pub fn watch(
        &self,
        repair: RepairStatus,
        repair_changed: channel::Receiver<()>,
    ) -> impl Stream<Item = Result<v1::WatchHealthResponse, Error>> + Send + use<> {
        let (first, changes) = self.follow();
        let watch = Watch { health: self.clone(), first: Some(first), changes, repair, repair_changed, ended: false };
        stream::unfold(watch, |mut watch| async move {
            if watch.ended {
                return None;
            }
            let item = watch.next().await?;
            watch.ended = item.is_err();
            Some((item, watch))
        })
    }
}

impl Watch {
    async fn next(&mut self) -> Option<Result<v1::WatchHealthResponse, Error>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(self.message(&first, true)));
        }
        let change = tokio::select! {
            biased;
            change = self.changes.recv() => match change {
                Ok(change) => change,
                Err(RecvError::Lagged(_)) => return Some(Err(Error::SlowConsumer)),
                Err(RecvError::Closed) => return None,
            },
            // What Repair has done is told with every message: one without checks does.
            () = told(&mut self.repair_changed) => Arc::new(Change { revision: 0, overall: self.health.overall(), checks: Vec::new() }),
        };
        Some(Ok(self.message(&change, false)))
    }

    fn message(&self, change: &Change, complete: bool) -> v1::WatchHealthResponse {
        let revision = self.health.inner.told.fetch_add(1, Ordering::Relaxed) + 1;
        let health = view::health(change.overall, &change.checks, (self.repair)(), self.health.inner.clock.now());
        v1::WatchHealthResponse { revision, health: Some(health), complete }
    }
}

/// Returns when there is something new; never when there will be no more.
async fn told(changes: &mut channel::Receiver<()>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
