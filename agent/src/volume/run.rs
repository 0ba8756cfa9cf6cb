//! From an accepted call to the end of its operation, and again after a restart of the agent.

use std::sync::Arc;

use pvelet_proto::v1::OperationKind as Kind;

use super::{Plan, decode};
use crate::{
    crash_point,
    error::Error,
    operation::{Begin, Begun, Guards, Handle, State, VolumeState},
    vm::{Call, Inner, Limit},
};

/// Begins the operation of an accepted call; returns its name.
pub(super) fn begin(inner: &Arc<Inner>, call: &Call, plan: Plan) -> Result<String, Error> {
    let listed = plan.state.list.iter().map(|(_, id)| format!("volume {id}"));
    let mut guards = Guards { exclusive: plan.id.map(Guards::volume).into_iter().chain(listed).collect(), shared: Vec::new() };
    if plan.target.vmid != 0 {
        guards.exclusive.push(Guards::vm(plan.target.vmid));
    }
    guards.shared.extend(plan.source.map(Guards::volume));
    let state = State {
        vmid: plan.target.vmid,
        uuid: plan.target.uuid.to_ascii_lowercase(),
        volume: VolumeState { done: plan.done, ..plan.state },
        ..State::default()
    };
    let begin = Begin {
        caller: &call.caller,
        meta: &call.meta,
        kind: call.kind,
        body: call.body.clone(),
        target: plan.target,
        guards,
        lease: None,
        state,
    };
    match inner.ops.begin(begin)? {
        Begun::Existing(name) => Ok(name),
        Begun::New(h) => {
            let name = h.name().to_owned();
            let (this, kind, request) = (Arc::clone(inner), call.kind, call.body.request());
            Inner::spawn(inner, h.clone(), async move {
                if h.written().await.is_err() {
                    return;
                }
                crash_point!("volume.intent_written");
                Box::pin(this.run_volume(&h, kind, &request, true)).await;
            });
            Ok(name)
        }
    }
}

impl Inner {
    /// Carries a volume operation out, or goes on with it (`fresh` is false).
    pub(crate) async fn run_volume(&self, h: &Handle, kind: Kind, request: &[u8], fresh: bool) {
        if h.state().volume.done {
            return h.finish(Ok(()), None).await;
        }
        let deadlines = self.ops.settings().deadlines;
        let limit = Self::deadline(match kind {
            Kind::CreateVolume | Kind::MoveVolume => deadlines.clone_full,
            Kind::DeleteVolume | Kind::ReclaimVolumes => deadlines.delete,
            _ => deadlines.configure,
        });
        // A new volume can be taken back until it is whole; everything else is short, or is not to be left half done.
        let committed = if kind == Kind::CreateVolume { Ok(()) } else { h.commit("it is being carried out") };
        let result = match committed {
            Err(cancelled) => Err(cancelled),
            Ok(()) => Box::pin(self.carry_out(h, kind, request, limit, fresh)).await,
        };
        crash_point!("volume.before_end");
        h.finish(result, None).await;
        crash_point!("volume.end_written");
    }
    async fn carry_out(&self, h: &Handle, kind: Kind, request: &[u8], limit: Limit, fresh: bool) -> Result<(), Error> {
        match kind {
            Kind::CreateVolume => self.run_create_volume(h, &decode(request)?, limit, fresh).await,
            Kind::DeleteVolume => self.run_delete_volume(h, limit).await,
            Kind::AttachVolume => self.run_attach_volume(h, &decode(request)?, limit, fresh).await,
            Kind::DetachVolume => self.run_detach_volume(h, limit, fresh).await,
            Kind::GrowVolume => self.run_grow_volume(h, &decode(request)?, limit).await,
            Kind::SetVolumeLimits => self.run_set_volume_limits(h, &decode(request)?, limit).await,
            Kind::SnapshotVolume => self.run_snapshot_volume(h, &decode(request)?, limit).await,
            Kind::DeleteVolumeSnapshot => self.run_delete_volume_snapshot(h, &decode(request)?, limit).await,
            Kind::RollBackVolume => self.run_roll_back_volume(h, &decode(request)?, limit).await,
            Kind::MoveVolume => self.run_move_volume(h, &decode(request)?, limit, fresh).await,
            Kind::HandOverVolume => self.run_hand_over_volume(h, limit).await,
            Kind::ReclaimVolumes => self.run_reclaim_volumes(h, &decode(request)?, limit).await,
            _ => Err(Error::Internal("no operation on a volume".to_owned())),
        }
    }
}
