//! Calls about volumes.

use pvelet_proto::{reason, v1};
use tracing::info;

use super::{Machines, decide::VolumeSight};
use crate::{
    agents::{AgentClient, AgentError},
    kind::PveMachine,
    reconcile::{Request, operation::answered},
    store::Store,
};

impl<S: Store> Machines<S> {
    /// What an agent says about a volume; nothing when it could not be asked.
    pub(super) async fn observe(&self, machine: &PveMachine, cluster: &str, node: &str, volume: &str) -> Option<VolumeSight> {
        let session = self.fleet.session(cluster, node)?;
        let request = v1::GetVolumeRequest { volume: Some(v1::VolumeRef { id: volume.to_owned(), storage: String::new() }) };
        let error = match session.client.answer(session.client.volume().get_volume(request).await) {
            Ok(v1::GetVolumeResponse { volume: Some(volume) }) => return Some(VolumeSight::Found(Box::new(volume))),
            Ok(_) => session.client.incomplete("GetVolume", "volume"),
            Err(e) => e,
        };
        if error.is(reason::VOLUME_NOT_FOUND) {
            return Some(VolumeSight::Missing);
        }
        info!(machine = %machine.key(), volume, "cannot ask for the volume: {error}");
        Some(VolumeSight::Refused { reason: answered(&error)?, message: error.text() })
    }
}

/// Sends a call about a volume. `None`: the request is none.
pub(super) async fn send(
    client: &AgentClient,
    request: Request,
    epoch: v1::ControllerEpoch,
) -> Result<(&'static str, Option<v1::Operation>), AgentError> {
    let with_epoch = |meta: Option<v1::RequestMeta>| meta.map(|meta| v1::RequestMeta { controller_epoch: Some(epoch), ..meta });
    let mut service = client.volume();
    macro_rules! call {
        ($request:ident, $method:ident, $name:literal) => {{
            let meta = with_epoch($request.meta.take());
            $request.meta = meta;
            ($name, client.answer(service.$method($request).await)?.operation)
        }};
    }
    Ok(match request {
        Request::CreateVolume(mut r) => call!(r, create_volume, "CreateVolume"),
        Request::AttachVolume(mut r) => call!(r, attach_volume, "AttachVolume"),
        Request::GrowVolume(mut r) => call!(r, grow_volume, "GrowVolume"),
        Request::SetVolumeLimits(mut r) => call!(r, set_volume_limits, "SetVolumeLimits"),
        Request::DetachVolume(mut r) => call!(r, detach_volume, "DetachVolume"),
        Request::DeleteVolume(mut r) => call!(r, delete_volume, "DeleteVolume"),
        Request::Clone(_) | Request::Configure(_) | Request::Start(_) | Request::Shutdown(_) | Request::Delete(_) => ("the call", None),
    })
}
