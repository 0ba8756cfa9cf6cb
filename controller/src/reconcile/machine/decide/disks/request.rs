//! The calls about disks.

use pvelet_proto::v1::{self, create_volume_request::Source, image_source::Location};

use super::{Draft, Inputs};
use crate::{
    kind::{ActionKind, Attempt, DiskFormat, DiskSpec, claim},
    reconcile::Request,
};

/// The call of an attempt; nothing when there is nothing left to order.
pub(in super::super) fn request(inputs: &Inputs<'_>, draft: &Draft<'_>, attempt: &Attempt, meta: v1::RequestMeta) -> Option<Request> {
    let (id, meta) = (attempt.volume.clone()?, Some(meta));
    let spec = inputs.machine.disks().into_iter().find(|(v, _)| v.to_string() == id).map(|(_, s)| s);
    // Found by its id alone: with the storage it was on, a volume that was moved would be taken for gone, and its VM be removed over it. Only
    // an existing one is looked for where the spec says, when it is attached.
    let hint = spec.filter(|s| attempt.action == ActionKind::AttachDisk && !s.is_made()).and_then(|s| s.storage.clone());
    let storage = hint.unwrap_or_default();
    let volume = Some(v1::VolumeRef { id, storage });
    let vm = || draft.status.vmid.zip(draft.status.uuid.clone()).map(|(vmid, uuid)| v1::VmRef { vmid, uuid });
    Some(match attempt.action {
        ActionKind::CreateDisk => Request::CreateVolume(create(inputs, draft, attempt.volume.clone()?, spec?, meta)),
        ActionKind::AttachDisk => {
            Request::AttachVolume(v1::AttachVolumeRequest { meta, volume, vm: Some(vm()?), options: Some(spec?.options()) })
        }
        ActionKind::GrowDisk => Request::GrowVolume(v1::GrowVolumeRequest { meta, volume, size_bytes: spec?.size?.0 }),
        ActionKind::SetDiskLimits => {
            let limits = Some(spec?.wanted_limits().to_message());
            Request::SetVolumeLimits(v1::SetVolumeLimitsRequest { meta, volume, limits })
        }
        ActionKind::DetachDisk => Request::DetachVolume(v1::DetachVolumeRequest { meta, volume, vm: Some(vm()?) }),
        ActionKind::DeleteDisk => Request::DeleteVolume(v1::DeleteVolumeRequest { meta, volume }),
        ActionKind::Clone | ActionKind::Configure | ActionKind::Start | ActionKind::Shutdown | ActionKind::Delete => return None,
    })
}

fn create(inputs: &Inputs<'_>, draft: &Draft<'_>, id: String, spec: &DiskSpec, meta: Option<v1::RequestMeta>) -> v1::CreateVolumeRequest {
    let machine = inputs.machine;
    let format = |format: Option<DiskFormat>| format.map_or_else(String::new, |f| f.as_str().to_owned());
    let by_id = |id: &String| v1::VolumeRef { id: id.clone(), storage: String::new() };
    let source = if let Some(image) = &spec.image {
        let file = image.file.clone().map(Location::File);
        Some(Source::Image(v1::ImageSource {
            location: file.or_else(|| image.volid.clone().map(Location::Volid)),
            format: format(image.format),
            sha256: image.sha256.clone().unwrap_or_default().to_ascii_lowercase(),
        }))
    } else if let Some(snapshot) = &spec.snapshot {
        Some(Source::Snapshot(v1::SnapshotSource { volume: Some(by_id(&snapshot.volume)), name: snapshot.name.clone() }))
    } else {
        spec.volume.as_ref().map(|id| Source::Volume(by_id(id)))
    };
    v1::CreateVolumeRequest {
        meta,
        id,
        storage: spec.storage.clone().unwrap_or_default(),
        size_bytes: spec.size.map_or(0, |s| s.0),
        format: format(spec.format),
        owner: Some(owner(inputs, &draft.tenant(), &claim(&machine.metadata, &spec.name))),
        source,
    }
}

/// The owner record of a machine's volume.
pub(super) fn owner(inputs: &Inputs<'_>, tenant: &str, claim: &str) -> v1::VolumeOwner {
    v1::VolumeOwner { tenant: tenant.to_owned(), cluster: inputs.controller.to_owned(), claim: claim.to_owned() }
}
