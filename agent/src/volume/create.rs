//! CreateVolume: allocated by PVE, filled, and last of all labelled. Without its label a volume is nobody's, so that whatever is left by a
//! crash is never mistaken for a whole one.

use std::sync::Arc;

use pvelet_proto::{
    id, reason, v1,
    volume::{BYTES_MAX, VolumeId},
};

use super::{
    Plan, begin,
    find::{self, Volume},
    hold::in_use,
    image,
    label::Label,
    snapshot, tenant_of,
    uses::How,
};
use crate::{
    crash_point,
    error::{Error, Violation},
    host::storage::{Source, StorageConfig},
    operation::{Handle, VolumeState},
    vm::{Call, Inner, Limit, validate},
};

pub(super) const MIB: u64 = 1 << 20;
/// What is wrong with a size; `zero`: it may be left out.
pub(super) fn check_size(bytes: u64, zero: bool) -> Option<Violation> {
    let text = match bytes {
        0 if zero => return None,
        0 => "it is missing; a size in bytes is needed".to_owned(),
        n if n > BYTES_MAX => format!("{n} is above {BYTES_MAX} (1 PiB)"),
        n if n % MIB != 0 => format!("{n} is no multiple of 1 MiB; use {}", n.next_multiple_of(MIB)),
        _ => return None,
    };
    Some(Violation::new("size_bytes", reason::INVALID_SIZE, text))
}

/// What of a request can be judged by itself.
fn check(request: &v1::CreateVolumeRequest) -> Vec<Violation> {
    let mut violations: Vec<Violation> = check_size(request.size_bytes, request.source.is_some()).into_iter().collect();
    let mut add = |field: &str, reason, text: String| violations.push(Violation::new(field, reason, text));
    if !request.id.is_empty()
        && let Err(e) = request.id.parse::<VolumeId>()
    {
        add("id", reason::INVALID_VOLUME_ID, e.to_string());
    }
    if let Err(e) = id::storage(&request.storage) {
        add("storage", reason::INVALID_FIELD, e.to_string());
    }
    if !matches!(request.format.as_str(), "" | "raw" | "qcow2") {
        add("format", reason::INVALID_FORMAT, format!("'{}' is no format for volumes; use raw or qcow2", request.format));
    }
    if let Some(owner) = &request.owner {
        let tenant = request.meta.as_ref().map(|m| m.tenant.as_str()).unwrap_or_default();
        if !owner.tenant.is_empty() && owner.tenant != tenant {
            add("owner.tenant", reason::INVALID_TENANT, format!("'{}' is not meta.tenant '{tenant}'; leave it empty", owner.tenant));
        }
        if let Some(e) = Some(&owner.cluster).filter(|c| !c.is_empty()).and_then(|c| id::cluster(c).err()) {
            add("owner.cluster", reason::INVALID_FIELD, e.to_string());
        }
        if let Some(e) = Some(&owner.claim).filter(|c| !c.is_empty()).and_then(|c| id::claim(c).err()) {
            add("owner.claim", reason::INVALID_FIELD, e.to_string());
        }
    }
    match &request.source {
        Some(v1::create_volume_request::Source::Image(source)) => violations.extend(image::check(source)),
        Some(v1::create_volume_request::Source::Snapshot(source)) => violations.extend(snapshot::check_name(&source.name, "snapshot.name")),
        _ => {}
    }
    violations
}

/// The label that a request's volume gets.
fn label(id: VolumeId, request: &v1::CreateVolumeRequest, tenant: &str) -> Label {
    let owner = request.owner.clone().unwrap_or_default();
    Label { id, tenant: tenant.to_owned(), cluster: owner.cluster, claim: owner.claim }
}

impl Inner {
    /// Errors: `ReservedIdTaken`.
    fn reserved_id_is_free(&self) -> Result<(), Error> {
        let vmid = self.settings.volumes.owner_vmid;
        match self.pve.inventory().vmids.get(&vmid) {
            Some(node) => Err(Error::ReservedIdTaken { vmid, node: node.clone() }),
            None => Ok(()),
        }
    }

    /// The format of a new volume. Errors: `Invalid` with `INVALID_FORMAT`.
    pub(super) fn format_on(&self, storage: &StorageConfig, format: &str) -> Result<String, Error> {
        let formats = self.store.abilities(storage).formats;
        match formats.iter().find(|f| format.is_empty() || **f == format) {
            Some(format) => Ok((*format).to_owned()),
            None => {
                let text = format!("'{format}' is no format of storage '{}'; use {}", storage.id, formats.join(" or "));
                Err(Error::invalid("format", reason::INVALID_FORMAT, text))
            }
        }
    }

    /// A storage that takes new volumes. Errors: those of `volume_storage`, `Invalid`, `StorageFull`.
    pub(super) async fn target_storage(&self, storage: &str, bytes: u64) -> Result<StorageConfig, Error> {
        let config = self.volume_storage(storage).await?;
        let known = self.storages().await?;
        let Some(info) = known.iter().find(|s| s.id == storage) else { return Ok(config) };
        if !info.content.iter().any(|c| c == "images") {
            let content = info.content.join(", ");
            let text =
                format!("'{storage}' does not hold disk images (content: {content}); choose another, or add content type images to it");
            return Err(Error::invalid("storage", reason::INVALID_FIELD, text));
        }
        // Thin storages may promise more than they have; one that has nothing left is refused, a tight one is left to the copy.
        let thick = info.kind == "lvm";
        if info.total > 0 && (info.available == 0 || (thick && info.available < bytes)) {
            let detail = format!("{bytes} bytes are needed, {} are free", info.available);
            return Err(Error::StorageFull { storage: storage.to_owned(), detail });
        }
        Ok(config)
    }

    /// A volume with this id on the target storage, or on any other that can be asked: one that cannot must not keep volumes from being
    /// made elsewhere, and ids are as good as unique.
    async fn anywhere(&self, id: VolumeId, target: &StorageConfig) -> Result<Option<Volume>, Error> {
        // One without a label is found by PVE when it is asked to make another.
        if let Some(found) = self.labelled_on(target, id).await? {
            return Ok(Some(found));
        }
        for storage in self.volume_storages().await?.0.iter().filter(|s| s.id != target.id) {
            if let Ok(Some(found)) = self.labelled_on(storage, id).await {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Whether the volume that a call asks for is there already. Errors: `VolumeExists`.
    async fn exists_already(&self, found: Volume, request: &v1::CreateVolumeRequest, wanted: &Label) -> Result<bool, Error> {
        let (id, volid) = (found.id.to_string(), found.volid());
        let exists = |detail: String, volid: Option<String>| Err(Error::VolumeExists { id: id.clone(), detail, volid });
        match &found.label {
            None => return exists(format!("{volid} has that id and no owner"), Some(volid)),
            Some(label) if label.tenant != wanted.tenant => return exists("it is another tenant's".to_owned(), None),
            Some(label) if label != wanted => {
                return exists(format!("{volid} is of cluster '{}' for '{}'", label.cluster, label.claim), Some(volid));
            }
            Some(_) if found.at.storage.id != request.storage => return exists(format!("it is {volid}"), Some(volid)),
            Some(_) => {}
        }
        let size = self.pve.volume(&volid).await?.map_or(0, |v| v.size);
        if size < request.size_bytes {
            return exists(format!("{volid} has {size} bytes, less than {}", request.size_bytes), Some(volid));
        }
        Ok(true)
    }

    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_create_volume(this: &Arc<Self>, call: &Call, request: v1::CreateVolumeRequest) -> Result<String, Error> {
        validate::done(check(&request))?;
        this.writable()?;
        this.reserved_id_is_free()?;
        let storage = this.target_storage(&request.storage, request.size_bytes).await?;
        this.format_on(&storage, &request.format)?;
        let id = if request.id.is_empty() { VolumeId::random() } else { request.id.parse().unwrap_or_else(|_| VolumeId::random()) };
        let wanted = label(id, &request, tenant_of(call));
        let mut done = false;
        if !request.id.is_empty()
            && let Some(found) = this.anywhere(id, &storage).await?
        {
            done = this.exists_already(found, &request, &wanted).await?;
        }
        let mut source = None;
        if !done {
            source = match &request.source {
                Some(v1::create_volume_request::Source::Image(image)) => this.open_image(image).await.map(|_| None)?,
                Some(from) => Some(this.copy_source(call, from).await?),
                None => None,
            };
        }
        let state = VolumeState { id: id.to_string(), storage: storage.id.clone(), label: wanted.to_string(), ..VolumeState::default() };
        begin(this, call, Plan { target: v1::VmRef::default(), id: Some(id), state, source, done })
    }

    /// The volume that is copied, checked as far as it can be before it is held.
    async fn copy_source(&self, call: &Call, from: &v1::create_volume_request::Source) -> Result<VolumeId, Error> {
        use v1::create_volume_request::Source::{Snapshot, Volume};
        let (reference, field) = match from {
            Volume(volume) => (Some(volume), "volume"),
            Snapshot(source) => (source.volume.as_ref(), "snapshot.volume"),
            v1::create_volume_request::Source::Image(_) => (None, "image"),
        };
        let (id, storage) = find::reference(reference, field)?;
        let volume = self.own_volume(id, &storage, tenant_of(call)).await?;
        self.may_be_copied(&volume, matches!(from, Snapshot(_)))?;
        if let Snapshot(source) = from {
            self.snapshot_exists(&volume, &source.name).await?;
        }
        Ok(id)
    }

    /// Errors: `VolumeInUse` when a running VM writes to it.
    fn may_be_copied(&self, volume: &Volume, snapshot: bool) -> Result<(), Error> {
        let live = snapshot && self.store.abilities(&volume.at.storage).live_snapshots.contains(&volume.at.format.as_str());
        match self.uses(volume).iter().find(|u| matches!(u.how, How::Attached) && self.may_run(u)) {
            Some(vm_use) if !live => Err(in_use(volume.id, vm_use, "stop the VM, detach the volume, or copy a snapshot of it")),
            _ => Ok(()),
        }
    }

    /// Makes the volume, or goes on with it.
    pub(super) async fn run_create_volume(
        &self,
        h: &Handle,
        request: &v1::CreateVolumeRequest,
        limit: Limit,
        fresh: bool,
    ) -> Result<(), Error> {
        let state = h.state().volume;
        let id = Self::volume_id(&state)?;
        let storage = self.volume_storage(&state.storage).await?;
        let _lock = self.lock_volume(h, &storage, id, limit).await?;
        let format = self.format_on(&storage, &request.format)?;
        let (_, name) = find::names(&storage.kind, self.settings.volumes.owner_vmid, id, &format);
        let at = find::at(&storage, &name);
        if !fresh {
            // Labelled last: with its label it is whole. Otherwise what is there, once PVE was asked for it, is this operation's own, and
            // not whole.
            if self.store.labels(&storage).await?.get(&name) == Some(&state.label) {
                return Ok(());
            }
            if state.asked {
                self.free_unlabelled(h, &at, limit).await?;
            }
            return Err(Error::AgentRestarted);
        }
        let result = Box::pin(self.create(h, request, (&storage, id, &format), &state.label, limit)).await;
        match result {
            // Another host was faster with the very same.
            Err(error @ Error::VolumeExists { .. }) => match self.labelled_on(&storage, id).await? {
                Some(found) if found.label.as_ref().is_some_and(|l| l.to_string() == state.label) => {
                    let wanted = label(id, request, &request.meta.clone().unwrap_or_default().tenant);
                    self.exists_already(found, request, &wanted).await.map(drop)
                }
                _ => Err(error),
            },
            // Before PVE was asked, what may have that name is not this operation's to remove.
            Err(error) if h.state().volume.asked => {
                h.undo(&error).await?;
                self.take_back(h, &at).await;
                Err(error)
            }
            other => other,
        }
    }

    async fn create(
        &self,
        h: &Handle,
        request: &v1::CreateVolumeRequest,
        (storage, id, format): (&StorageConfig, VolumeId, &str),
        label: &str,
        limit: Limit,
    ) -> Result<(), Error> {
        use v1::create_volume_request::Source::{Image, Snapshot, Volume};
        // What is copied is looked at first: nothing is made for an image that is refused.
        let mut held = None;
        let from = match &request.source {
            None => None,
            Some(Image(source)) => Some(self.image_source(h, source).await?),
            Some(from @ (Volume(_) | Snapshot(_))) => {
                let (reference, snapshot) = match from {
                    Snapshot(source) => (source.volume.as_ref(), Some(source.name.clone())),
                    Volume(volume) => (Some(volume), None),
                    Image(_) => (None, None),
                };
                let (source, place) = find::reference(reference, "volume")?;
                let tenant = request.meta.as_ref().map(|m| m.tenant.as_str()).unwrap_or_default();
                let volume = self.own_volume(source, &place, tenant).await?;
                let lock = self.lock_volume(h, &volume.at.storage, source, limit).await?;
                self.pve.refresh().await?;
                self.may_be_copied(&volume, snapshot.is_some())?;
                let size = self.pve.volume(&volume.volid()).await?.map_or(0, |v| v.size);
                let (at, of_snapshot) = (volume.at.clone(), snapshot.is_some());
                held = Some((volume, of_snapshot, lock));
                Some((Source::Volume { at, snapshot }, size))
            }
        };
        let least = from.as_ref().map_or(0, |(_, size)| size.next_multiple_of(MIB));
        let bytes = if request.size_bytes == 0 { least } else { request.size_bytes };
        if bytes < least {
            let text = format!("{bytes} is less than the {least} bytes of what it is filled with; use that, or more, or 0");
            return Err(Error::invalid("size_bytes", reason::INVALID_SIZE, text));
        }
        let at = self.allocate_volume(h, storage, id, (format, bytes), limit).await?;
        crash_point!("create_volume.allocated");
        if let Some((from, _)) = &from {
            self.copy_volume(h, from, &at, limit).await?;
            crash_point!("create_volume.copied");
        } else if self.store.abilities(storage).stale {
            self.blank_volume(h, &at, limit).await?;
        }
        // A VM that was started meanwhile has written to what was read: such a copy is none.
        if let Some((volume, snapshot, lock)) = &held {
            if lock.is_lost() {
                return Err(Error::LockTimeout { what: format!("volume {}", volume.id) });
            }
            self.pve.refresh().await?;
            self.may_be_copied(volume, *snapshot)?;
        }
        drop(held);
        let volid = format!("{}:{}", storage.id, at.name);
        let size = self.pve.volume(&volid).await?.map_or(0, |v| v.size);
        if size < bytes {
            let message = format!("{volid} was made with {bytes} bytes, and has {size}");
            return Err(Error::StorageFailed { storage: storage.id.clone(), message });
        }
        h.commit("it is whole")?;
        self.write_label(&at, label).await?;
        crash_point!("create_volume.labelled");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_mebibytes() {
        for (bytes, zero, good) in [
            (0, true, true),
            (0, false, false),
            (1, false, false),
            (MIB, false, true),
            (MIB + 1, true, false),
            (BYTES_MAX, false, true),
            (BYTES_MAX + MIB, false, false),
        ] {
            assert_eq!(check_size(bytes, zero).is_none(), good, "{bytes}");
        }
        assert!(check_size(MIB + 1, true).is_some_and(|v| v.description.contains("use 2097152")));
    }

    #[test]
    fn every_mistake_of_a_request_is_told_at_once() {
        let request = v1::CreateVolumeRequest {
            id: "x".into(),
            storage: "?".into(),
            format: "vmdk".into(),
            owner: Some(v1::VolumeOwner { tenant: "b".into(), cluster: "A".into(), claim: "a:b".into() }),
            ..v1::CreateVolumeRequest::default()
        };
        let fields: Vec<String> = check(&request).into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["size_bytes", "id", "storage", "format", "owner.tenant", "owner.cluster", "owner.claim"]);
    }
}
