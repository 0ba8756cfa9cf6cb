//! ConfigureVm: settings of an existing VM, written in one compare-and-swap; then the boot disk is grown.

use std::sync::Arc;

use prost::Message;
use pvelet_proto::{reason, v1};
use tokio::time::Instant;

use super::{
    Call, Inner, Limit, change,
    failure::{Failed, lock_timeout},
    task::Backoff,
    user_data::{Sweep, UserData},
    validate, view,
};
use crate::{
    crash_point,
    error::Error,
    host::pve::{Inventory, TaskEnd, Upid, VmRecord, config_file::ConfigFile},
    operation::{Begin, Begun, Guards, Handle, State},
};

/// Which disk of a VM is grown.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Growing<'a> {
    /// The one that it boots from.
    BootDisk,
    /// The one that holds this volume.
    Volume(&'a str),
}

impl Growing<'_> {
    fn disk(self, config: &ConfigFile) -> Option<v1::Disk> {
        match self {
            Self::BootDisk => view::boot_disk(config),
            Self::Volume(volid) => view::disk_of(config, volid),
        }
    }
}

impl Inner {
    /// Errors: `Invalid` with `DISK_SHRINK`, or when there is no disk.
    pub(super) fn may_grow(disk: Option<&v1::Disk>, bytes: u64) -> Result<(), Error> {
        let field = "config.boot_disk_bytes";
        match disk {
            None => Err(Error::invalid(field, reason::INVALID_FIELD, "there is no boot disk to grow; leave it unset")),
            Some(disk) if bytes < disk.size_bytes => {
                let text = format!("{bytes} is less than the {} bytes of {}; a disk can only grow", disk.size_bytes, disk.slot);
                Err(Error::invalid(field, reason::DISK_SHRINK, text))
            }
            Some(_) => Ok(()),
        }
    }

    /// Errors: `BridgeNotFound`, `Invalid`.
    pub(super) async fn check_nics(&self, nics: &[v1::Nic], inventory: &Inventory, own: u32) -> Result<(), Error> {
        if nics.is_empty() {
            return Ok(());
        }
        let links = Arc::clone(&self.links);
        // The kernel answers only after whoever is changing links just now.
        let read = tokio::task::spawn_blocking(move || links.bridges()).await.map_err(|e| Error::Internal(e.to_string()))?;
        let bridges = read.map_err(|e| Error::Internal(format!("the host's bridges cannot be read: {e}")))?;
        validate::nics_here(nics, &bridges, inventory, own, &self.settings.node)
    }

    /// Checks the request and begins the operation; returns its name.
    pub(super) async fn accept_configure(
        this: &Arc<Self>,
        call: &Call,
        request: v1::ConfigureVmRequest,
        data: Option<UserData>,
    ) -> Result<String, Error> {
        let config = request.config.clone().unwrap_or_default();
        let mut violations = validate::config(&config);
        violations.extend(UserData::check(data.as_ref()));
        validate::done(violations)?;
        let vm = this.target(call).await?;
        if let Some(lock) = vm.config.lock() {
            return Err(Error::VmLocked { vmid: vm.vmid, lock: lock.to_owned() });
        }
        if config.cloud_init.is_some() && view::cloud_init_drive(&vm.config).is_none() {
            return Err(Error::NoCloudInitDrive { vmid: vm.vmid });
        }
        if data.is_some() {
            this.user_data_storage().await?;
        }
        if let Some(bytes) = config.boot_disk_bytes {
            Self::may_grow(view::boot_disk(&vm.config).as_ref(), bytes)?;
        }
        if let Some(nics) = &config.nics {
            this.check_nics(&nics.nics, &this.pve.inventory(), vm.vmid).await?;
        }
        let state =
            State { vmid: vm.vmid, digest: vm.config.digest.clone(), uuid: call.target.uuid.to_ascii_lowercase(), ..State::default() };
        let begin = Begin {
            caller: &call.caller,
            meta: &call.meta,
            kind: call.kind,
            body: call.body.clone(),
            target: v1::VmRef { vmid: vm.vmid, uuid: state.uuid.clone() },
            guards: Guards { exclusive: vec![Guards::vm(vm.vmid)], shared: Vec::new() },
            lease: None,
            state,
        };
        match this.ops.begin(begin)? {
            Begun::Existing(name) => Ok(name),
            Begun::New(h) => {
                let name = h.name().to_owned();
                let inner = Arc::clone(this);
                Self::spawn(this, h.clone(), async move {
                    if h.written().await.is_ok() {
                        crash_point!("configure.intent_written");
                        inner.run_configure(&h, &config, data).await;
                    }
                });
                Ok(name)
            }
        }
    }

    /// Carries the change out, or goes on with it: what is so already is not written again. After a restart there is no `data` any more.
    pub(super) async fn run_configure(&self, h: &Handle, config: &v1::VmConfig, data: Option<UserData>) {
        let limit = Self::deadline(self.ops.settings().deadlines.configure);
        let result = match h.commit("settings are being written") {
            Ok(()) => Box::pin(self.configure(h, config, limit, data.as_ref())).await,
            Err(cancelled) => Err(cancelled),
        };
        if config.cloud_init.as_ref().is_some_and(|c| c.user_data.is_some()) {
            self.user_data_goes(h, Sweep::Replaced(&h.state().uuid)).await;
        }
        crash_point!("configure.before_end");
        h.finish(result, None).await;
        crash_point!("configure.end_written");
    }

    async fn configure(&self, h: &Handle, config: &v1::VmConfig, limit: Limit, data: Option<&UserData>) -> Result<(), Error> {
        let state = h.state();
        let vmid = state.vmid;
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let vm = self.same_vm(h, vmid, &state.uuid, limit).await?;
            let user = self.user_part(h, config, &vm.config, data, false).await?;
            let mut call = change::plan(config, &vm.config, view::bound_mark(&vm).as_ref(), &user);
            if call.set.is_empty() && call.delete.is_empty() {
                break;
            }
            // The digest of when the request was checked: whoever changed the config since then wins, and the caller reads it again.
            call.digest = Some(state.digest.clone());
            h.step("configuring");
            match self.pve.set_config_now(vmid, &call).await {
                Ok(()) => {}
                // Whether it was written is told by the config.
                Err(Error::PveAnswerLost { .. }) => {
                    tokio::time::sleep(backoff.next()).await;
                    if limit.over() {
                        return Err(limit.timeout("PVE's local daemon did not answer"));
                    }
                    let vm = self.same_vm(h, vmid, &state.uuid, limit).await?;
                    if vm.config.digest == state.digest {
                        continue;
                    }
                }
                Err(Error::LockTimeout { what }) => {
                    self.wait_for_lock(h, &what, &mut backoff, limit).await?;
                    continue;
                }
                Err(e) => return Err(e),
            }
            crash_point!("configure.written");
            let after = self.same_vm(h, vmid, &state.uuid, limit).await?;
            let unmet = change::unmet(&call, &after.config);
            if !unmet.is_empty() {
                return Err(Error::PveFailed { message: format!("PVE did not take the settings {}", unmet.join(", ")), upid: None });
            }
            let waiting = change::waiting(&call, &after.config);
            if !waiting.is_empty() {
                h.warn(format!("takes effect when the VM is started the next time: {}", waiting.join(", ")));
            }
            break;
        }
        if let Some(bytes) = config.boot_disk_bytes {
            self.grow(h, vmid, Growing::BootDisk, bytes, limit, false).await?;
        }
        Ok(())
    }

    /// The VM, as long as it is the same one and here. Errors: `VmNotFound`, `UuidMismatch`, `VmOnOtherHost`, those of `read_now`.
    pub(crate) async fn same_vm(&self, h: &Handle, vmid: u32, uuid: &str, limit: Limit) -> Result<Arc<VmRecord>, Error> {
        let vm = self.read_now(h, vmid, limit).await?.ok_or_else(|| Error::VmNotFound { what: vmid.to_string() })?;
        let found = vm.config.uuid().unwrap_or_default().to_ascii_lowercase();
        if found != uuid {
            return Err(Error::UuidMismatch { vmid, expected: uuid.to_owned(), found });
        }
        if vm.node != self.settings.node {
            return Err(Error::VmOnOtherHost { vmid, node: vm.node.clone() });
        }
        Ok(vm)
    }

    /// Grows a disk to `bytes` and looks whether it did. The size is absolute, so asking again does no harm. `stop`: a cancellation ends the
    /// task.
    pub(crate) async fn grow(&self, h: &Handle, vmid: u32, what: Growing<'_>, bytes: u64, limit: Limit, stop: bool) -> Result<(), Error> {
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let vm = self.read_now(h, vmid, limit).await?.ok_or_else(|| Error::VmNotFound { what: vmid.to_string() })?;
            let disk = what.disk(&vm.config);
            Self::may_grow(disk.as_ref(), bytes)?;
            let Some(disk) = disk.filter(|d| d.size_bytes < bytes) else { return Ok(()) };
            h.step(format!("growing {}", disk.slot));
            let called = Instant::now();
            let (digest, slot) = (vm.config.digest.clone(), disk.slot.clone());
            let ask = || self.pve.resize_disk(vmid, &slot, bytes, Some(&digest));
            let upid: Upid = self.start_task(h, "resize", &["resize"], &vmid.to_string(), limit, ask).await?;
            if stop {
                crash_point!("clone.resize_called");
            } else {
                crash_point!("configure.resize_called");
            }
            let followed = self.follow(h, &upid, called, limit, stop).await?;
            if let Some(error) = followed.interrupted {
                return Err(error);
            }
            let now = self.read_now(h, vmid, limit).await?.and_then(|vm| what.disk(&vm.config)).map_or(0, |d| d.size_bytes);
            if now >= bytes {
                if let TaskEnd::Warnings(lines) = followed.end {
                    lines.into_iter().for_each(|line| h.warn(line));
                }
                return Ok(());
            }
            let message = match &followed.end {
                TaskEnd::Error(message) => message.clone(),
                TaskEnd::Ok => "the resize task ended OK".to_owned(),
                TaskEnd::Warnings(lines) => format!("the resize task warned: {}", lines.join("; ")),
                TaskEnd::NoEndLine => "the resize task was killed".to_owned(),
            };
            if let Some(what) = lock_timeout(&message) {
                self.wait_for_lock(h, &what, &mut backoff, limit).await?;
                continue;
            }
            return Err(match &followed.end {
                TaskEnd::Error(text) => {
                    let (lines, node) = (&followed.lines, self.settings.node.as_str());
                    Failed { vmid, upid: &upid.text, message: text, lines, storage: &disk.storage, node }.error()
                }
                _ => Error::PveFailed {
                    message: format!("{message}, yet {} has {now} bytes, not {bytes}", disk.slot),
                    upid: Some(upid.text),
                },
            });
        }
    }
}

/// The settings of a journalled request.
pub(super) fn decode(request: &[u8]) -> Result<v1::VmConfig, Error> {
    let request =
        v1::ConfigureVmRequest::decode(request).map_err(|e| Error::Internal(format!("the journalled request cannot be read: {e}")))?;
    Ok(request.config.unwrap_or_default())
}
