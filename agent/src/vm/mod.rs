//! VMs: what the calls of `VmService` mean.
//!
//! Each mutation has three parts: `accept` checks everything that can be checked and begins the operation; `run` carries it out, detached
//! from the call; `settle` goes on with what a former run of the agent left. `run` and `settle` share their steps, and each step judges by
//! what is true in PVE, not by what the agent remembers having done.

pub(crate) mod change;
mod clone;
pub(crate) mod configure;
mod delete;
pub(crate) mod failure;
pub mod mark;
mod place;
mod power;
mod rollback;
mod select;
mod settle;
pub(crate) mod task;
#[cfg(test)]
mod tests;
mod user_data;
pub(crate) mod validate;
mod verdict;
pub mod view;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pvelet_proto::{reason, v1};
use tokio::time::Instant;

use self::user_data::UserData;
use crate::{
    error::Error,
    host::{
        links::Links,
        pve::{Inventory, Pve, StorageInfo, VmRecord},
        record::FileRecord,
        storage::{StorageConfig, VolumeStore},
    },
    operation::{Body, Caller, Handle, Operations, canonical_meta},
};

/// Facts about storages are used for so long: PVE takes 20 ms a storage to tell them.
const STORAGES_MAX_AGE: Duration = Duration::from_secs(10);

/// Whether the agent changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every mutation is refused with `ObserveOnly`.
    Observe,
    /// Mutations too.
    Manage,
}

/// What is configured about VMs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node.
    pub node: String,
    /// First and last VMID that may be given to new VMs.
    pub vmid_range: (u32, u32),
    /// How long a VMID rests after its VM is gone: PVE's own clean-up after a stop may last 30 s.
    pub lease_quarantine: Duration,
    /// Whether the agent changes anything.
    pub mode: Mode,
    /// The first pause before a lock of PVE is tried again; doubled up to 50 times of it.
    pub lock_pause: Duration,
    /// How long the task of a call whose answer was lost is looked for.
    pub lost_answer: Duration,
    /// What is configured about volumes.
    pub volumes: VolumeSettings,
    /// The storage that keeps user data.
    pub snippets_storage: String,
}

/// What is configured about volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSettings {
    /// The VMID in the names of volumes that belong to no VM; no VM may have it.
    pub owner_vmid: u32,
    /// Slots that volumes may take: `scsi1` to this one.
    pub max_slots: u32,
    /// Folders from which images may be imported.
    pub import_folders: Vec<std::path::PathBuf>,
}

impl Default for VolumeSettings {
    fn default() -> Self {
        use crate::config::defaults;
        Self { owner_vmid: defaults::VOLUME_OWNER_VMID, max_slots: defaults::VOLUME_MAX_SLOTS, import_folders: Vec::new() }
    }
}

impl Settings {
    /// The defaults for a node.
    pub fn new(node: impl Into<String>, vmid_range: (u32, u32), mode: Mode) -> Self {
        Self {
            node: node.into(),
            vmid_range,
            lease_quarantine: Duration::from_secs(300),
            mode,
            lock_pause: Duration::from_millis(200),
            lost_answer: Duration::from_secs(60),
            volumes: VolumeSettings::default(),
            snippets_storage: crate::config::defaults::SNIPPETS_STORAGE.to_owned(),
        }
    }
}

/// The VMs of this host. Cheap to clone.
#[derive(Clone)]
pub struct Vms {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) pve: Arc<dyn Pve>,
    pub(crate) store: Arc<dyn VolumeStore>,
    pub(crate) links: Arc<dyn Links>,
    pub(crate) ops: Arc<Operations>,
    pub(crate) settings: Settings,
    manage: AtomicBool,
    /// Whether the host may be repaired: as `manage`, but also while PVE has not told its version.
    repairs: AtomicBool,
    storages: Mutex<Option<(Instant, Arc<Vec<StorageInfo>>)>>,
    /// `storage.cfg`, storage by storage, as far as it was asked for.
    configs: Mutex<HashMap<String, (Instant, StorageConfig)>>,
    /// Which user data was written.
    snippet_record: FileRecord,
    /// Held while that, or what it says, is changed.
    snippets: tokio::sync::Mutex<()>,
}

impl Vms {
    /// VMs as `pve` has them.
    pub fn new(pve: Arc<dyn Pve>, store: Arc<dyn VolumeStore>, links: Arc<dyn Links>, ops: Arc<Operations>, settings: Settings) -> Self {
        let manage = AtomicBool::new(settings.mode == Mode::Manage);
        let repairs = AtomicBool::new(settings.mode == Mode::Manage);
        let snippet_record = FileRecord::new(ops.settings().state_dir.join(user_data::RECORD));
        let (storages, configs, snippets) = Default::default();
        let inner = Inner { pve, store, links, ops, settings, manage, repairs, storages, configs, snippet_record, snippets };
        Self { inner: Arc::new(inner) }
    }

    /// Changes the mode. Operations that run go on.
    pub fn set_mode(&self, mode: Mode) {
        self.inner.manage.store(mode == Mode::Manage, Ordering::Relaxed);
    }

    /// Takes over whether the host may be repaired.
    pub fn set_repairs(&self, may: bool) {
        self.inner.repairs.store(may, Ordering::Relaxed);
    }

    /// Goes on with the operations that the last run of the agent left unfinished. Returns when each is being worked on; while PVE or the
    /// quorum is away they wait for it, and stay `RUNNING`. To be called once, before calls are served.
    pub async fn settle(&self) {
        Inner::settle(&self.inner).await;
    }

    /// Begins to make a VM. Returns the operation once its intent is on the disk. Errors: those of `VmService.CloneVm`.
    pub async fn clone_vm(&self, caller: &Caller, request: v1::CloneVmRequest) -> Result<v1::Operation, Error> {
        let target = v1::VmRef { vmid: request.vmid, uuid: String::new() };
        let mut canonical = v1::CloneVmRequest { meta: request.meta.as_ref().map(canonical_meta), ..request };
        let data = UserData::take(canonical.config.as_mut());
        let call = self.call(caller, v1::OperationKind::CloneVm, canonical.meta.as_ref(), request.meta.as_ref(), target, &canonical)?;
        Inner::answer(&self.inner, &call, Inner::accept_clone(&self.inner, &call, canonical, data)).await
    }

    /// Begins to change settings. Errors: those of `VmService.ConfigureVm`.
    pub async fn configure_vm(&self, caller: &Caller, request: v1::ConfigureVmRequest) -> Result<v1::Operation, Error> {
        let target = request.vm.clone().unwrap_or_default();
        let mut canonical = v1::ConfigureVmRequest { meta: request.meta.as_ref().map(canonical_meta), ..request };
        let data = UserData::take(canonical.config.as_mut());
        let call = self.call(caller, v1::OperationKind::ConfigureVm, canonical.meta.as_ref(), request.meta.as_ref(), target, &canonical)?;
        Inner::answer(&self.inner, &call, Inner::accept_configure(&self.inner, &call, canonical, data)).await
    }

    /// Begins to start a VM. Errors: those of `VmService.StartVm`.
    pub async fn start_vm(&self, caller: &Caller, request: v1::StartVmRequest) -> Result<v1::Operation, Error> {
        let target = request.vm.clone().unwrap_or_default();
        let canonical = v1::StartVmRequest { meta: request.meta.as_ref().map(canonical_meta), ..request };
        let call = self.call(caller, v1::OperationKind::StartVm, canonical.meta.as_ref(), request.meta.as_ref(), target, &canonical)?;
        Inner::answer(&self.inner, &call, Inner::accept_power(&self.inner, &call, power::Wish::Start)).await
    }

    /// Begins to shut a VM down. Errors: those of `VmService.ShutdownVm`.
    pub async fn shutdown_vm(&self, caller: &Caller, request: v1::ShutdownVmRequest) -> Result<v1::Operation, Error> {
        let target = request.vm.clone().unwrap_or_default();
        let canonical = v1::ShutdownVmRequest { meta: request.meta.as_ref().map(canonical_meta), ..request };
        let call = self.call(caller, v1::OperationKind::ShutdownVm, canonical.meta.as_ref(), request.meta.as_ref(), target, &canonical)?;
        let wish = power::Wish::shutdown(&canonical);
        Inner::answer(&self.inner, &call, async { Inner::accept_power(&self.inner, &call, wish?).await }).await
    }

    /// Begins to stop a VM. Errors: those of `VmService.StopVm`.
    pub async fn stop_vm(&self, caller: &Caller, request: v1::StopVmRequest) -> Result<v1::Operation, Error> {
        let target = request.vm.clone().unwrap_or_default();
        let canonical = v1::StopVmRequest { meta: request.meta.as_ref().map(canonical_meta), ..request };
        let call = self.call(caller, v1::OperationKind::StopVm, canonical.meta.as_ref(), request.meta.as_ref(), target, &canonical)?;
        Inner::answer(&self.inner, &call, Inner::accept_power(&self.inner, &call, power::Wish::Stop)).await
    }

    /// Begins to reset a VM. Errors: those of `VmService.ResetVm`.
    pub async fn reset_vm(&self, caller: &Caller, request: v1::ResetVmRequest) -> Result<v1::Operation, Error> {
        let target = request.vm.clone().unwrap_or_default();
        let canonical = v1::ResetVmRequest { meta: request.meta.as_ref().map(canonical_meta), ..request };
        let call = self.call(caller, v1::OperationKind::ResetVm, canonical.meta.as_ref(), request.meta.as_ref(), target, &canonical)?;
        Inner::answer(&self.inner, &call, Inner::accept_power(&self.inner, &call, power::Wish::Reset)).await
    }

    /// Begins to delete a VM. Errors: those of `VmService.DeleteVm`.
    pub async fn delete_vm(&self, caller: &Caller, request: v1::DeleteVmRequest) -> Result<v1::Operation, Error> {
        let target = request.vm.clone().unwrap_or_default();
        let canonical = v1::DeleteVmRequest { meta: request.meta.as_ref().map(canonical_meta), ..request };
        let call = self.call(caller, v1::OperationKind::DeleteVm, canonical.meta.as_ref(), request.meta.as_ref(), target, &canonical)?;
        Inner::answer(&self.inner, &call, Inner::accept_delete(&self.inner, &call, canonical)).await
    }

    /// VMs by ascending VMID. `tenant`: only those whose mark names it, whatever the request says. Errors: `Invalid`.
    pub fn list(&self, request: &v1::ListVmsRequest, tenant: Option<&str>) -> Result<v1::ListVmsResponse, Error> {
        select::list(&self.inner.pve.inventory(), request, tenant)
    }

    /// One VM, by VMID, UUID or both. `tenant`: another's VM is not found. Errors: `VmNotFound`, `UuidMismatch`, `AmbiguousUuid`, `Invalid`.
    pub async fn get(&self, vm: &v1::VmRef, tenant: Option<&str>) -> Result<v1::Vm, Error> {
        match select::get(&self.inner.pve.inventory(), vm, tenant) {
            // Somebody may have made it within the last quarter of a second.
            Err(Error::VmNotFound { .. }) => select::get(&*self.inner.pve.refresh().await?, vm, tenant),
            found => found,
        }
    }

    pub(crate) fn call(
        &self,
        caller: &Caller,
        kind: v1::OperationKind,
        canonical: Option<&v1::RequestMeta>,
        meta: Option<&v1::RequestMeta>,
        target: v1::VmRef,
        request: &impl prost::Message,
    ) -> Result<Call, Error> {
        validate::meta(canonical)?;
        let meta = meta.cloned().unwrap_or_default();
        Ok(Call { caller: caller.clone(), kind, meta, target, body: Body::new(kind, request) })
    }
}

/// A mutating call.
pub(crate) struct Call {
    pub(crate) caller: Caller,
    pub(crate) kind: v1::OperationKind,
    pub(crate) meta: v1::RequestMeta,
    pub(crate) target: v1::VmRef,
    pub(crate) body: Body,
}

impl Inner {
    /// What every mutating call shares: a call that was made before gets its operation, whatever is true now; else `accept` decides, and
    /// a refusal is audited. `accept` returns the operation's name.
    pub(crate) async fn answer(
        this: &Arc<Self>,
        call: &Call,
        accept: impl Future<Output = Result<String, Error>>,
    ) -> Result<v1::Operation, Error> {
        Self::answer_if(this, this.manages(), call, accept).await
    }

    /// As [`Self::answer`], for calls that do not wait for PVE to tell its version: `manages` says whether anything is changed.
    pub(crate) async fn answer_if(
        this: &Arc<Self>,
        manages: bool,
        call: &Call,
        accept: impl Future<Output = Result<String, Error>>,
    ) -> Result<v1::Operation, Error> {
        if !manages {
            this.ops.refused(&call.caller, &call.meta, call.kind, &call.target, &Error::ObserveOnly);
            return Err(Error::ObserveOnly);
        }
        let name = match this.ops.existing(&call.meta, call.kind, &call.body) {
            Ok(Some(name)) => name,
            Ok(None) => match Box::pin(accept).await {
                Ok(name) => name,
                // Between the two looks the same call may have begun it and made the preconditions untrue.
                Err(error) => match this.ops.existing(&call.meta, call.kind, &call.body)? {
                    Some(name) => name,
                    None => {
                        this.ops.refused(&call.caller, &call.meta, call.kind, &call.target, &error);
                        return Err(error);
                    }
                },
            },
            Err(error) => {
                this.ops.refused(&call.caller, &call.meta, call.kind, &call.target, &error);
                return Err(error);
            }
        };
        this.ops.written(&name).await
    }

    /// Whether the agent repairs anything.
    pub(crate) fn repairs(&self) -> bool {
        self.repairs.load(Ordering::Relaxed)
    }

    /// Whether the agent changes anything.
    pub(crate) fn manages(&self) -> bool {
        self.manage.load(Ordering::Relaxed)
    }

    /// The inventory, when this node may write. Errors: `PveFsHung`, `NoQuorum`.
    pub(crate) fn writable(&self) -> Result<Arc<Inventory>, Error> {
        let inventory = self.pve.inventory();
        if !inventory.complete || inventory.hung_since.is_some() {
            return Err(Error::PveFsHung { detail: "no answer below /etc/pve".to_owned() });
        }
        if !inventory.quorate {
            return Err(Error::NoQuorum { node: self.settings.node.clone() });
        }
        Ok(inventory)
    }

    /// The VM that a mutating call names, when it is this node's and the caller's to change.
    pub(crate) async fn target(&self, call: &Call) -> Result<Arc<VmRecord>, Error> {
        validate::vm_ref(&call.target)?;
        self.writable()?;
        let vmid = call.target.vmid;
        // Read now: the inventory may be 250 ms old, and a decision to change or delete hangs on it.
        let found = self.pve.read_vm(vmid).await?;
        // After the reading: it may have brought in another VM with the same UUID.
        let inventory = self.writable()?;
        select::target(&inventory, found, &call.target, &self.settings.node, call.caller.tenant(), &call.caller.identity.to_string())
    }

    /// The storages, at most ten seconds old. Errors: `PveDown`.
    pub(crate) async fn storages(&self) -> Result<Arc<Vec<StorageInfo>>, Error> {
        let now = Instant::now();
        let cached = self.storages.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, storages)) = cached.filter(|(at, _)| now.duration_since(*at) < STORAGES_MAX_AGE) {
            return Ok(storages);
        }
        let storages = Arc::new(self.pve.storages().await?);
        *self.storages.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Arc::clone(&storages)));
        Ok(storages)
    }

    /// A storage as it is configured, at most ten seconds old. Errors: `StorageNotFound`, `PveDown`.
    pub(crate) async fn storage_config(&self, storage: &str) -> Result<StorageConfig, Error> {
        let now = Instant::now();
        let cached = self.configs.lock().unwrap_or_else(PoisonError::into_inner).get(storage).cloned();
        if let Some((_, config)) = cached.filter(|(at, _)| now.duration_since(*at) < STORAGES_MAX_AGE) {
            return Ok(config);
        }
        let config = self.pve.storage_config(storage).await?;
        self.configs.lock().unwrap_or_else(PoisonError::into_inner).insert(storage.to_owned(), (now, config.clone()));
        Ok(config)
    }

    /// Runs `work` detached. If it panics, the operation is settled as if the agent had been restarted; if that panics too, it ends as
    /// failed, so that nothing is held for ever, and says where to look.
    pub(crate) fn spawn(this: &Arc<Self>, handle: Handle, work: impl Future<Output = ()> + Send + 'static) {
        let this = Arc::clone(this);
        let task = tokio::spawn(work);
        tokio::spawn(async move {
            if !task.await.is_err_and(|e| e.is_panic()) {
                return;
            }
            tracing::error!(operation = handle.name(), "an operation met a fault of the agent; it is settled");
            handle.step("settling after a fault of the agent");
            let Some(unfinished) = this.ops.unfinished_one(handle.name()) else { return };
            let vmid = unfinished.state.vmid;
            let inner = Arc::clone(&this);
            let settling = tokio::spawn(async move { Box::pin(inner.settle_one(unfinished)).await });
            if settling.await.is_err_and(|e| e.is_panic()) {
                tracing::error!(operation = handle.name(), vmid, "it cannot be settled");
                handle.warn(format!("what was done was not undone: look at VM {vmid} and its volumes"));
                let error = Error::Internal("a fault of the agent, see its log".to_owned());
                handle.finish(Err(error), Some(this.settings.lease_quarantine)).await;
            }
        });
    }

    /// When an operation that begins now has to end.
    pub(crate) fn deadline(after: Duration) -> Limit {
        Limit { at: Instant::now() + after, after }
    }
}

/// An operation's deadline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) at: Instant,
    pub(crate) after: Duration,
}

impl Limit {
    pub(crate) fn over(&self) -> bool {
        Instant::now() >= self.at
    }

    pub(crate) fn timeout(&self, what: impl Into<String>) -> Error {
        Error::OperationTimeout { after: self.after, what: what.into() }
    }
}

/// A missing message part.
pub(crate) fn missing(field: &str) -> Error {
    Error::invalid(field, reason::INVALID_FIELD, "it is missing")
}
