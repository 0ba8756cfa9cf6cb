//! What is done about a change that somebody left unfinished: by the agent at its start, by systemd's timer without the agent, by the boot unit
//! before any network is up, and before the agent is removed.

use std::{sync::Arc, time::Duration};

use pvelet_proto::v1::OperationKind as Kind;

use super::{
    Inner,
    change::{LOCK, ended},
    checkpoint::{self, Checkpoint, Found, Phase},
    undo::{self, By},
};
use crate::{crash_point, error::Error, host::net::Network, operation::Handle};

/// How long the timer's command waits for an agent that is just working.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// Nothing was to be done.
    Nothing,
    /// A change was undone; what people should know.
    Undone(String, Vec<String>),
}

/// The change that stands on the disk, when something is left to be done about it.
async fn unfinished(net: &dyn Network) -> Result<Option<Box<Checkpoint>>, Error> {
    match checkpoint::find(net).await? {
        Found::None => Ok(None),
        Found::One(change) => Ok(Some(change).filter(|c| c.phase.unfinished())),
        Found::Unreadable(why) => Err(unreadable(&why)),
    }
}

fn unreadable(why: &str) -> Error {
    Error::NetworkFailed { message: format!("the checkpoint of the last change: {why}") }
}

/// What `network-recover --deadline` does: undoes a change whose time is over and that nobody works on. Errors: `NetworkRollbackFailed`,
/// `LockTimeout`, `NetworkFailed`.
pub async fn deadline(net: &dyn Network) -> Result<Recovered, Error> {
    let due = |change: &Checkpoint| Ok(change.phase == Phase::RollingBack || change.left(&net.boot()?).is_none());
    Box::pin(undo_unfinished(net, By::Timer, due)).await
}

/// What `network-recover --now` does, when the agent is stopped and about to be removed: undoes a change however much time it has left, since
/// nobody could confirm it any more. Errors: as those of [`deadline`].
pub async fn now(net: &dyn Network) -> Result<Recovered, Error> {
    Box::pin(undo_unfinished(net, By::Removal, |_| Ok(true))).await
}

async fn undo_unfinished(net: &dyn Network, by: By, due: impl Fn(&Checkpoint) -> Result<bool, Error>) -> Result<Recovered, Error> {
    if matches!(checkpoint::find(net).await?, Found::None) {
        // Not even the lock's file is made on a host on which nothing was ever changed.
        return Ok(Recovered::Nothing);
    }
    let Some(change) = unfinished(net).await? else {
        // It has ended, and whoever ended it did not come to stop the timer. It must not be stopped under the next change; nor where there is no
        // checkpoint any more: the configuration may be broken, or name another folder than the agent runs with.
        let _lock = net.lock_to_undo(PATIENCE).await?;
        if matches!(checkpoint::find(net).await?, Found::One(change) if !change.phase.unfinished()) {
            net.disarm().await?;
        }
        return Ok(Recovered::Nothing);
    };
    if !due(&change)? {
        return Ok(Recovered::Nothing);
    }
    let _lock = net.lock_to_undo(PATIENCE).await?;
    // The agent that held it may have ended the change.
    let Some(mut change) = unfinished(net).await? else { return Ok(Recovered::Nothing) };
    if !due(&change)? {
        return Ok(Recovered::Nothing);
    }
    let why = match (change.phase, by) {
        (Phase::Waiting, By::Removal) => "the agent was removed before it was confirmed",
        (Phase::Waiting, _) => "it was not confirmed in time",
        _ => "the agent left it unfinished",
    };
    let warnings = Box::pin(undo::undo(net, &mut change, by, why)).await;
    match change.phase {
        Phase::RollbackFailed => Err(Error::NetworkRollbackFailed { why: change.detail }),
        _ => Ok(Recovered::Undone(change.operation, warnings)),
    }
}

/// What `network-recover --boot` does: gives the own file its old text. Nothing is up yet, so that is all; and nothing else can be called.
/// Errors: `NetworkFailed`.
pub async fn boot(net: &dyn Network) -> Result<Recovered, Error> {
    let mut change = match checkpoint::find(net).await? {
        Found::One(change) => change,
        Found::None => return Ok(Recovered::Nothing),
        Found::Unreadable(why) => return Err(unreadable(&why)),
    };
    if change.boot == net.boot()?.id {
        // Called by hand on a running host: that is the agent's, or the timer's.
        return Ok(Recovered::Nothing);
    }
    let mut warnings = Vec::new();
    if change.phase == Phase::RollbackFailed {
        return unlatched_file(net, *change, warnings).await;
    }
    if !change.phase.unfinished() {
        return Ok(Recovered::Nothing);
    }
    undo::restore_file(net, &change, &mut warnings).await?;
    crash_point!("network.boot_file_restored");
    if change.detail.is_empty() {
        change.detail = match change.phase {
            Phase::Waiting => "the host went down before it was confirmed".to_owned(),
            _ => "the host went down meanwhile".to_owned(),
        };
    }
    change.phase = Phase::RolledBack;
    By::Boot.as_str().clone_into(&mut change.undone_by);
    checkpoint::save(net, &change).await?;
    crash_point!("network.boot_undone");
    if let Err(error) = net.forget_old_file().await {
        warnings.push(format!("the former file is left: {error}"));
    }
    Ok(Recovered::Undone(change.operation, warnings))
}

/// A change that could not be undone stays latched, but what nobody confirmed must not come up: where the own file is still the change's, it
/// gets its old text. What a person wrote there meanwhile stays.
async fn unlatched_file(net: &dyn Network, change: Checkpoint, mut warnings: Vec<String>) -> Result<Recovered, Error> {
    let own = net.own_file().await?;
    if own == change.plan.old_text || own != change.plan.new_text {
        return Ok(Recovered::Nothing);
    }
    undo::restore_file(net, &change, &mut warnings).await?;
    Ok(Recovered::Undone(change.operation, warnings))
}

impl Inner {
    /// Goes on with what the last run of the agent left. It waits neither for PVE nor for the mode: a host that is half changed is put right.
    pub(super) async fn settle(this: &Arc<Self>) {
        let mut mine = Vec::new();
        for unfinished in this.vms.inner.ops.unfinished() {
            if matches!(unfinished.kind, Kind::ApplyNetwork | Kind::RemoveNetwork) {
                let h = unfinished.handle;
                tracing::info!(operation = h.name(), "settling an unfinished network change");
                mine.push(h.name().to_owned());
                let (inner, handle) = (Arc::clone(this), h.clone());
                Self::spawn(this, h, async move { Box::pin(inner.settle_one(&handle)).await });
            }
        }
        // Told, not asked for: nothing is begun here.
        let _ = this.not_latched().await;
        // A change whose operation is lost with its journal.
        match checkpoint::find(&*this.net).await {
            Ok(Found::One(change)) if change.phase.unfinished() && !mine.contains(&change.operation) => {
                let inner = Arc::clone(this);
                tokio::spawn(async move {
                    if let Err(error) = Box::pin(inner.go_on(None, *change)).await {
                        tracing::warn!(%error, "a network change without an operation has ended");
                    }
                });
            }
            Ok(Found::Unreadable(why)) => tracing::error!(why, "the checkpoint of the last network change cannot be read"),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the checkpoint of the last network change cannot be read"),
        }
    }

    /// Goes on with an operation, or ends it as its change has ended.
    pub(super) async fn settle_one(&self, h: &Handle) {
        let result = match checkpoint::load(&*self.net).await {
            Ok(Some(change)) if change.operation == h.name() => self.go_on(Some(h), *change).await,
            // It never came so far.
            Ok(_) if h.state().network.done => Ok(()),
            Ok(_) => Err(Error::AgentRestarted),
            Err(error) => Err(error),
        };
        self.end(h, result).await;
    }

    async fn go_on(&self, h: Option<&Handle>, change: Checkpoint) -> Result<(), Error> {
        if change.phase == Phase::Waiting && change.left(&self.net.boot()?).is_some() {
            return self.wait(h, change).await;
        }
        if !change.phase.unfinished() {
            let mut warnings = Vec::new();
            undo::quiet(&*self.net, &mut warnings).await;
            return ended(&change);
        }
        // How it ends is not known before somebody has put it right: whoever holds the lock (the timer, an edit in PVE) is waited for.
        let _lock = loop {
            match self.net.lock_to_undo(LOCK).await {
                Err(Error::LockTimeout { .. }) => {
                    if let Some(h) = h {
                        h.step("settling: waiting for the network's lock");
                    }
                }
                other => break other?,
            }
        };
        let Some(mut change) = checkpoint::load(&*self.net).await?.filter(|c| c.operation == change.operation) else {
            return Err(Error::AgentRestarted);
        };
        if !change.phase.unfinished() {
            return ended(&change);
        }
        let why = match change.phase {
            Phase::Waiting => "it was not confirmed in time",
            _ => "the agent was restarted meanwhile",
        };
        self.undo(h, &mut change, why).await
    }
}
