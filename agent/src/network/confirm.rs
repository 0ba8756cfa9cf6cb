//! What a change waits for: ConfirmNetwork, RollbackNetwork, or the end of its time; and ClearNetwork, after one that could not be undone.

use std::time::Duration;

use pvelet_proto::{reason, v1};

use super::{
    Inner,
    change::{LOCK, ended},
    checkpoint::{self, Checkpoint, Found, Phase, unix_millis},
    undo,
};
use crate::{
    crash_point,
    error::Error,
    operation::{AuditLine, Caller, Handle},
};

/// An operation whose change has ended ends at once, but for the journal's write.
const ENDS: Duration = Duration::from_secs(10);
/// Undoing on request is waited for: steps, looks, and once more.
const UNDONE: Duration = Duration::from_secs(150);
/// Where the disk cannot be read it is tried again.
const DISK_PAUSE: Duration = Duration::from_secs(1);

fn not_waiting<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::NetworkNotWaiting { what: what.into() })
}

impl Inner {
    /// Tells whoever waits that the checkpoint changed.
    pub(super) fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Who asked to undo this change; `None`: nobody.
    fn asked(&self, operation: &str) -> Option<String> {
        self.undo_asked.borrow().as_ref().filter(|(asked, _)| asked == operation).map(|(_, by)| by.clone())
    }

    /// Does `work` until somebody asks to undo the change. Errors: who.
    pub(super) async fn unless_asked<T>(&self, operation: &str, work: impl Future<Output = T>) -> Result<T, String> {
        let mut asked = self.undo_asked.subscribe();
        let asked = asked.wait_for(|a| a.as_ref().is_some_and(|(name, _)| name == operation));
        tokio::select! {
            done = work => Ok(done),
            Ok(by) = asked => Err(format!("{} asked for it", by.as_ref().map(|(_, by)| by.as_str()).unwrap_or_default())),
        }
    }

    /// Waits until the change is final or undone, and undoes it when its time is over or somebody asks for it.
    pub(super) async fn wait(&self, h: Option<&Handle>, mut change: Checkpoint) -> Result<(), Error> {
        let mut changes = self.changes.subscribe();
        if let Some(h) = h {
            h.step("waiting for confirmation");
            h.park();
        }
        loop {
            let left = change.left(&self.net.boot()?).unwrap_or_default();
            let wake = async {
                tokio::select! {
                    _ = changes.changed() => {}
                    () = tokio::time::sleep(left) => {}
                }
            };
            if self.asked(&change.operation).is_none() {
                wake.await;
            }
            match self.look_again(h, &mut change).await {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                // The timer does it if this goes on.
                Err(error) => {
                    tracing::error!(operation = change.operation, %error, "how a network change stands cannot be told");
                    tokio::time::sleep(DISK_PAUSE).await;
                }
            }
        }
    }

    /// How the operation of a waiting change ends; `None`: it waits on.
    async fn look_again(&self, h: Option<&Handle>, change: &mut Checkpoint) -> Result<Option<Result<(), Error>>, Error> {
        *change = self.last(&change.operation).await?;
        if !change.phase.unfinished() {
            // The timer may have been at it.
            (self.agent.latched)(change.phase == Phase::RollbackFailed);
            return Ok(Some(ended(change)));
        }
        let over = |this: &Self, change: &Checkpoint| -> Result<Option<String>, Error> {
            Ok(match this.asked(&change.operation) {
                Some(by) => Some(format!("{by} asked for it")),
                None if change.phase != Phase::Waiting => Some("its undoing was left unfinished".to_owned()),
                None if change.left(&this.net.boot()?).is_none() => Some("it was not confirmed in time".to_owned()),
                None => None,
            })
        };
        if over(self, change)?.is_none() {
            return Ok(None);
        }
        let _lock = self.net.lock_to_undo(LOCK).await?;
        // Whoever held it may have ended the change.
        *change = self.last(&change.operation).await?;
        if !change.phase.unfinished() {
            return Ok(Some(ended(change)));
        }
        match over(self, change)? {
            Some(why) => Ok(Some(self.undo(h, change, &why).await)),
            None => Ok(None),
        }
    }

    /// The last change, which must be this operation's. Errors: `NetworkNotWaiting`.
    async fn last(&self, operation: &str) -> Result<Checkpoint, Error> {
        match checkpoint::load(&*self.net).await? {
            Some(last) if last.operation == operation => Ok(*last),
            _ => not_waiting(format!("{operation} is not the last change of this host's network, or touched nothing yet")),
        }
    }

    /// Checks who asks, and for what.
    fn check(&self, meta: Option<&v1::RequestMeta>, operation: &str) -> Result<(), Error> {
        self.vms.inner.ops.check_epoch(&meta.cloned().unwrap_or_default())?;
        if pvelet_proto::id::OperationName::parse(operation).is_err() {
            let text = format!("'{operation}' is no operation's name; it looks like operations/<uuid>");
            return Err(Error::invalid("operation", reason::INVALID_FIELD, text));
        }
        Ok(())
    }

    /// Makes the change final that waits. `opened`: when the caller's connection was opened, since boot.
    pub(super) async fn confirm(&self, request: &v1::ConfirmNetworkRequest, opened: Duration) -> Result<Checkpoint, Error> {
        self.check(request.meta.as_ref(), &request.operation)?;
        let net = &*self.net;
        let waiting = |last: &Checkpoint, boot: &crate::host::net::Boot| match last.phase {
            Phase::Waiting if last.left(boot).is_some() => Ok(()),
            Phase::Waiting => not_waiting(format!("the time of {} is over", last.operation)),
            Phase::Prepared | Phase::Applying => not_waiting(format!("{} is still being made", last.operation)),
            Phase::RollbackFailed => Err(Error::NetworkLatched { operation: last.operation.clone(), why: last.detail.clone() }),
            Phase::RollingBack => not_waiting(format!("{} is being undone ({})", last.operation, last.detail)),
            Phase::RolledBack => not_waiting(format!("{} was undone ({})", last.operation, last.detail)),
            Phase::Confirmed => Ok(()),
        };
        let last = self.last(&request.operation).await?;
        if last.phase == Phase::Confirmed {
            return Ok(last);
        }
        let boot = net.boot()?;
        waiting(&last, &boot)?;
        if !last.older_than(opened, &boot) {
            return Err(Error::StaleConnection);
        }
        let lock = net.lock(LOCK).await?;
        let mut last = self.last(&request.operation).await?;
        if last.phase == Phase::Confirmed {
            return Ok(last);
        }
        waiting(&last, &net.boot()?)?;
        last.phase = Phase::Confirmed;
        checkpoint::save(net, &last).await?;
        crash_point!("network.confirmed");
        let mut warnings = Vec::new();
        undo::quiet(net, &mut warnings).await;
        drop(lock);
        for warning in warnings {
            tracing::warn!(operation = last.operation, warning, "a network change was confirmed");
        }
        self.changed();
        let _ = self.vms.inner.ops.wait(&request.operation, ENDS).await;
        Ok(last)
    }

    /// Undoes the change that is being made or waits.
    pub(super) async fn roll_back(&self, caller: &Caller, request: &v1::RollbackNetworkRequest) -> Result<Checkpoint, Error> {
        self.check(request.meta.as_ref(), &request.operation)?;
        let ops = &self.vms.inner.ops;
        let operation = request.operation.as_str();
        let last = self.last(operation).await?;
        if last.phase.unfinished() {
            let by = caller.identity.to_string();
            let works_on_it = ops.get(operation).is_ok_and(|op| op.end_time.is_none());
            if works_on_it {
                self.undo_asked.send_replace(Some((operation.to_owned(), by)));
                self.changed();
                let _ = ops.wait(operation, UNDONE).await;
            } else {
                let _lock = self.net.lock_to_undo(LOCK).await?;
                let mut last = self.last(operation).await?;
                if last.phase.unfinished() {
                    // How it went stands in the checkpoint.
                    let _ = self.undo(None, &mut last, &format!("{by} asked for it")).await;
                }
            }
        }
        let last = self.last(operation).await?;
        match last.phase {
            Phase::Confirmed => not_waiting(format!("{operation} is confirmed")),
            Phase::RollbackFailed => Err(Error::NetworkRollbackFailed { why: last.detail }),
            _ => Ok(last),
        }
    }

    /// Ends the latch.
    pub(super) async fn clear(&self, request: &v1::ClearNetworkRequest) -> Result<(), Error> {
        self.vms.inner.ops.check_epoch(&request.meta.clone().unwrap_or_default())?;
        let net = &*self.net;
        let _lock = net.lock(LOCK).await?;
        match checkpoint::find(net).await? {
            Found::Unreadable(_) => {}
            Found::One(last) if last.phase == Phase::RollbackFailed => {}
            _ => return not_waiting("no change that could not be undone is in the way"),
        }
        let bytes = net.read_checkpoint().await?.unwrap_or_default();
        net.keep(&format!("cleared-{}.json", unix_millis()), &bytes).await?;
        net.remove_checkpoint().await?;
        let mut warnings = Vec::new();
        undo::quiet(net, &mut warnings).await;
        for warning in warnings {
            tracing::warn!(warning, "the network's latch was cleared");
        }
        self.changed();
        (self.agent.latched)(false);
        Ok(())
    }

    /// Writes the audit line of what is no operation.
    pub(super) fn audit(&self, caller: &Caller, meta: Option<&v1::RequestMeta>, action: &str, operation: &str, result: Result<(), &Error>) {
        let meta = meta.cloned().unwrap_or_default();
        self.vms.inner.ops.audit(&AuditLine {
            time: jiff::Timestamp::now().to_string(),
            caller: caller.identity.to_string(),
            tenant: meta.tenant,
            action: action.to_owned(),
            target: "the host's network".to_owned(),
            decision: if result.is_ok() { "succeeded" } else { "refused" }.to_owned(),
            reason: result.err().map(|e| e.reason()).unwrap_or_default().to_owned(),
            operation: operation.to_owned(),
            request_id: meta.request_id,
            duration_ms: 0,
        });
    }
}
