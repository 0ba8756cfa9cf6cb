//! Holding a volume: the lock of the PVE cluster where other hosts see it too, and what is true of it from then on. And the few things that
//! are done to volumes by several operations.

use std::time::Duration;

use pvelet_proto::volume::VolumeId;
use tokio::{sync::mpsc, time::Instant};

use super::{
    find::Volume,
    uses::{self, Use},
};
use crate::{
    error::Error,
    host::{
        pve::{ClusterLock, RunState, TaskEnd},
        storage::{At, Copied, Source, StorageConfig},
    },
    operation::{Handle, Lane, VolumeState},
    vm::{
        Inner, Limit,
        failure::{Failed, lock_timeout},
        task::{Backoff, transient},
    },
};

/// One attempt to have the cluster's lock; between two the operation tells that it waits, and may be cancelled.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long an orphaned copy may take to end after SIGTERM.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// A volume that is held: nobody else of pvelet touches it, on no host.
pub(super) struct Held {
    pub(super) volume: Volume,
    pub(super) uses: Vec<Use>,
    /// The cluster's, or one on nothing where the storage is local.
    pub(super) lock: ClusterLock,
}

impl Held {
    /// Errors: `LockTimeout` when the cluster's lock was lost, so that another host may be at work on the volume.
    pub(super) fn still(&self) -> Result<(), Error> {
        if self.lock.is_lost() {
            return Err(Error::LockTimeout { what: format!("volume {}", self.volume.id) });
        }
        Ok(())
    }
}

/// The error that names the first reference.
pub(super) fn in_use(id: VolumeId, vm_use: &Use, remedy: &'static str) -> Error {
    in_use_by(id.to_string(), vm_use, remedy)
}

fn in_use_by(id: String, vm_use: &Use, remedy: &'static str) -> Error {
    Error::VolumeInUse { id, vmid: vm_use.vm.vmid, node: vm_use.vm.node.clone(), slot: vm_use.slot.clone(), how: vm_use.words(), remedy }
}

impl Inner {
    /// Whether the VM of a reference may run: of one on another node this node cannot tell.
    pub(super) fn may_run(&self, vm_use: &Use) -> bool {
        vm_use.vm.node != self.settings.node || vm_use.vm.run != RunState::Stopped
    }

    /// The id of the volume that an operation works on.
    pub(super) fn volume_id(state: &VolumeState) -> Result<VolumeId, Error> {
        state.id.parse().map_err(|_| Error::Internal(format!("the journal names '{}', which is no volume", state.id)))
    }

    /// Takes the cluster's lock of a volume on a shared storage; nothing on a local one.
    pub(super) async fn lock_volume(&self, h: &Handle, storage: &StorageConfig, id: VolumeId, limit: Limit) -> Result<ClusterLock, Error> {
        if !storage.shared {
            return Ok(ClusterLock::none());
        }
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            match self.pve.lock_cluster(&format!("pvelet-volume-{id}"), LOCK_PATIENCE).await {
                Ok(lock) => return Ok(lock),
                Err(Error::LockTimeout { what }) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Holds the operation's volume. `None`: it is gone.
    pub(super) async fn hold(&self, h: &Handle, limit: Limit) -> Result<Option<Held>, Error> {
        let state = h.state().volume;
        let id = Self::volume_id(&state)?;
        let storage = self.volume_storage(&state.storage).await?;
        let lock = self.lock_volume(h, &storage, id, limit).await?;
        // Only now: what was read before the lock was had may have changed since.
        self.pve.refresh().await?;
        self.writable()?;
        let Some(volume) = self.on_storage(&storage, id).await? else { return Ok(None) };
        let uses = self.uses(&volume);
        Ok(Some(Held { volume, uses, lock }))
    }

    /// Holds the operation's volume, which must be there, and its owner's as when the call was accepted. Errors: `VolumeNotFound`,
    /// `NotOurs`.
    pub(super) async fn hold_existing(&self, h: &Handle, limit: Limit) -> Result<Held, Error> {
        let state = h.state().volume;
        let not_found = || Error::VolumeNotFound { id: state.id.clone(), storage: state.storage.clone() };
        let held = self.hold(h, limit).await?.ok_or_else(not_found)?;
        if held.volume.label.as_ref().is_some_and(|label| label.to_string() == state.label) {
            return Ok(held);
        }
        Err(Error::NotOurs { what: format!("volume {} has changed hands meanwhile: it", held.volume.id) })
    }

    /// Ends a copy into a volume that the agent's last run left behind. Errors: `Internal` when it cannot be ended.
    pub(super) async fn end_writers(&self, h: &Handle, at: &At) -> Result<(), Error> {
        for orphan in self.store.writers(at).await? {
            h.warn(format!("a copy that nobody waited for was ended: {}", orphan.command));
            self.pve.end_process(&orphan, ORPHAN_GRACE).await?;
        }
        Ok(())
    }

    /// Removes what this operation has made and not labelled. What has a label is somebody's: another host may have made the same volume
    /// meanwhile. Errors: `NotOurs`, those of [`Inner::free_proven`].
    pub(super) async fn free_unlabelled(&self, h: &Handle, at: &At, limit: Limit) -> Result<(), Error> {
        self.end_writers(h, at).await?;
        if self.store.labels(&at.storage).await?.contains_key(&at.name) {
            return Err(Error::NotOurs { what: format!("volume {}:{} has an owner by now: it", at.storage.id, at.name) });
        }
        self.free_proven(h, at, limit).await
    }

    /// Frees a volume by PVE and proves that it is gone; gone already is as good. A lock is waited for. PVE itself frees what a running VM
    /// has: each time it is asked, no VM may refer to the volume. Errors: `VolumeInUse`, `StorageFailed`, `PveFailed`, `StorageOffline`,
    /// `LockTimeout`.
    pub(super) async fn free_proven(&self, h: &Handle, at: &At, limit: Limit) -> Result<(), Error> {
        let volid = format!("{}:{}", at.storage.id, at.name);
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let inventory = self.pve.refresh().await?;
            if let Some(first) = uses::all(&inventory, &volid, at.storage.shared).first() {
                let id = pvelet_proto::volume::VolumeId::of_name(&at.name).map_or(h.state().volume.id, |(_, id)| id.to_string());
                return Err(in_use_by(id, first, "detach it first"));
            }
            h.step(format!("removing {volid}"));
            let called = Instant::now();
            let upid = match self.pve.free_volume(&volid).await {
                Ok(Some(upid)) => upid,
                // Whether it was carried out is seen when it is looked for.
                Ok(None) => {
                    if self.pve.volume(&volid).await?.is_none() {
                        return Ok(());
                    }
                    self.wait_for_lock(h, &volid, &mut backoff, limit).await?;
                    continue;
                }
                Err(error @ (Error::PveAnswerLost { .. } | Error::LockTimeout { .. })) => {
                    self.wait_for_lock(h, &error.to_string(), &mut backoff, limit).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let followed = self.follow(h, &upid, called, limit, false).await?;
            if self.pve.volume(&volid).await?.is_none() {
                return Ok(());
            }
            match &followed.end {
                TaskEnd::Error(message) => match lock_timeout(message) {
                    Some(what) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                    None => {
                        let (lines, node, storage) = (&followed.lines, self.settings.node.as_str(), at.storage.id.as_str());
                        return Err(Failed { vmid: 0, upid: &upid.text, message, lines, storage, node }.error());
                    }
                },
                _ => {
                    let message = format!("the task that frees {volid} ended, yet the volume is still there");
                    return Err(Error::PveFailed { message, upid: Some(upid.text) });
                }
            }
        }
    }

    /// Makes the volume that an operation is to make, empty. One that stands there already is this operation's own only where the answer of
    /// a call for it was lost before. Errors: `VolumeExists`, `StorageFull`, ...
    pub(super) async fn allocate_volume(
        &self,
        h: &Handle,
        storage: &StorageConfig,
        id: VolumeId,
        (format, bytes): (&str, u64),
        limit: Limit,
    ) -> Result<At, Error> {
        let vmid = self.settings.volumes.owner_vmid;
        let (file, name) = super::find::names(&storage.kind, vmid, id, format);
        let at = super::find::at(storage, &name);
        let volid = format!("{}:{name}", storage.id);
        let _place = h.enter(&storage.id, Lane::Short, limit.at, limit.after).await?;
        let call = crate::host::pve::AllocateCall { storage: storage.id.clone(), vmid, name: file, bytes, format: format.to_owned() };
        h.save(|state| state.volume.asked = true).await?;
        let mut backoff = Backoff::new(self.settings.lock_pause);
        let mut lost = false;
        loop {
            h.check_cancelled()?;
            h.step(format!("making {volid}"));
            let called = Instant::now();
            let made = self.pve.allocate_volume(&call).await;
            h.pve_time(called.elapsed());
            match made {
                Ok(made) if made == volid => return Ok(at),
                Ok(made) => {
                    let message = format!("PVE made {made} where {volid} was asked for");
                    return Err(Error::StorageFailed { storage: storage.id.clone(), message });
                }
                Err(Error::LockTimeout { what }) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                Err(error @ Error::PveAnswerLost { .. }) => {
                    lost = true;
                    self.wait_for_lock(h, &error.to_string(), &mut backoff, limit).await?;
                    if self.pve.volume(&volid).await?.is_some() {
                        return Ok(at);
                    }
                }
                // The lost call was carried out after all.
                Err(Error::VolumeExists { .. }) if lost => return Ok(at),
                Err(error @ Error::VolumeExists { .. }) => {
                    h.save(|state| state.volume.asked = false).await?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Copies, telling how far it is; a cancellation ends the copying.
    pub(super) async fn copy_volume(&self, h: &Handle, from: &Source, to: &At, limit: Limit) -> Result<(), Error> {
        let _place = h.enter(&to.storage.id, Lane::Long, limit.at, limit.after).await?;
        h.step(format!("copying to {}:{}", to.storage.id, to.name));
        let (tell, mut told) = mpsc::unbounded_channel::<Copied>();
        let mut copy = self.store.copy(from, to, tell);
        loop {
            tokio::select! {
                result = &mut copy => return result,
                Some(copied) = told.recv() => tell_progress(h, copied),
                () = h.cancelled() => return h.check_cancelled(),
                () = tokio::time::sleep_until(limit.at) => return Err(limit.timeout("the copy had not ended")),
            }
        }
    }

    /// Takes out of a new volume what others left there; a cancellation ends it.
    pub(super) async fn blank_volume(&self, h: &Handle, at: &At, limit: Limit) -> Result<(), Error> {
        let _place = h.enter(&at.storage.id, Lane::Long, limit.at, limit.after).await?;
        h.step(format!("writing zeros over {}:{}", at.storage.id, at.name));
        tokio::select! {
            result = self.store.blank(at) => result,
            () = h.cancelled() => h.check_cancelled(),
            () = tokio::time::sleep_until(limit.at) => Err(limit.timeout("the new volume was not overwritten with zeros")),
        }
    }

    /// Writes a volume's label and reads it back.
    pub(super) async fn write_label(&self, at: &At, label: &str) -> Result<(), Error> {
        self.store.set_label(at, Some(label)).await?;
        if self.store.labels(&at.storage).await?.get(&at.name).map(String::as_str) == Some(label) {
            return Ok(());
        }
        let message = format!("the owner of {} was written, and is not there", at.name);
        Err(Error::StorageFailed { storage: at.storage.id.clone(), message })
    }

    /// Removes what a failed operation has made, however long that takes; what is left is told.
    pub(super) async fn take_back(&self, h: &Handle, at: &At) {
        // A time of its own: what failed may have used up the operation's.
        let limit = Self::deadline(self.ops.settings().deadlines.delete);
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            match self.free_unlabelled(h, at, limit).await {
                Ok(()) => return,
                // What a cancelled operation has made is removed all the same.
                Err(error) if (transient(&error) || matches!(error, Error::Cancelled { .. })) && !limit.over() => {
                    h.step(format!("undoing: waiting, for {error}"));
                    tokio::time::sleep(backoff.next()).await;
                }
                Err(error) => {
                    h.warn(format!("volume {}:{} is left: {error}", at.storage.id, at.name));
                    return;
                }
            }
        }
    }
}

/// Tells how far a copy is.
pub(super) fn tell_progress(h: &Handle, copied: Copied) {
    let percent = copied.done.saturating_mul(100).checked_div(copied.total).unwrap_or(0).min(100);
    h.progress(u8::try_from(percent).unwrap_or(100), copied.done, copied.total);
}
