//! What the next start of the agent does about a repair that was left unfinished.

use std::sync::Arc;

use pvelet_proto::v1;

use super::{Inner, undo::Holds};
use crate::{
    config::RepairPolicy,
    error::Error,
    operation::{Handle, RepairCause, RepairPhase},
};

/// So many times a repair is taken up again; one that ends the agent each time would else never end.
const STARTS: u32 = 2;

impl Inner {
    /// Goes on with what the last run of the agent left, and removes what is of no use.
    pub(super) fn settle(this: &Arc<Self>) {
        let files = Arc::clone(&this.parts.files);
        tokio::spawn(async move {
            if let Err(error) = files.tidy().await {
                tracing::warn!(%error, "what earlier runs left beside containerd's configuration is not all removed");
            }
        });
        for unfinished in this.vms.inner.ops.unfinished() {
            if unfinished.kind == v1::OperationKind::Repair {
                let h = unfinished.handle;
                tracing::info!(operation = h.name(), "settling an unfinished repair");
                let (inner, handle) = (Arc::clone(this), h.clone());
                Self::spawn(this, h, async move { Box::pin(inner.settle_one(&handle)).await });
            }
        }
    }

    /// Goes on with an operation from what is true now.
    pub(super) async fn settle_one(&self, h: &Handle) {
        let state = h.state().repair;
        let noted = h.save(|s| s.repair.settled += 1).await;
        if let Err(error) = noted {
            tracing::warn!(%error, operation = h.name(), "that the repair was taken up again is not on the disk");
        }
        // Whoever took away what the agent may do since then did so because of it, maybe. What is half done is put back all the same.
        let may = self.manages() && self.settings.policy != RepairPolicy::Off;
        let result = match state.phase {
            RepairPhase::Prepared => Err(Error::AgentRestarted),
            RepairPhase::Restarting if state.settled >= STARTS => {
                Err(Error::RepairFailed { why: format!("the agent ended {} times while it was under way", state.settled + 1) })
            }
            // It does not matter whether it was restarted already: a check that is well ends it.
            RepairPhase::Restarting if may => self.restart_again(h).await,
            RepairPhase::Restarting => Err(Error::AgentRestarted),
            RepairPhase::Editing if !may || state.settled >= STARTS => self.undo(h, RepairCause::Restarted).await,
            RepairPhase::Editing => self.go_on(h).await,
            RepairPhase::Undoing => self.undo(h, state.cause).await,
        };
        self.end(h, result).await;
    }

    async fn restart_again(&self, h: &Handle) -> Result<(), Error> {
        let state = h.state().repair;
        h.step("settling: verifying");
        let ids = self.existing(state.mends.iter().map(String::as_str));
        let known = self.parts.checks.run(&ids).await.unwrap_or_default();
        if !known.is_empty() && known.iter().filter(|k| ids.iter().any(|id| id == k.check.id)).all(super::carry::well) {
            return Ok(());
        }
        self.restart(h).await
    }

    /// Files may have been edited: where all are, the way forward is the shorter one.
    async fn go_on(&self, h: &Handle) -> Result<(), Error> {
        h.step("settling: reading the files");
        for edit in &h.state().repair.edits {
            match self.holds(edit).await {
                Ok((Holds::New, _)) => {}
                Ok((Holds::Old | Holds::Other, _)) | Err(_) => return self.undo(h, RepairCause::Restarted).await,
            }
        }
        self.edited(h).await
    }
}
