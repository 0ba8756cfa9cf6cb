//! CloneVm: a new VM from a template, whole or not at all.
//!
//! The steps: check everything; lease a VMID; write the intent; enter the storage's lane; have PVE clone, with the mark in the description;
//! judge by the new config whether it is made; bind the mark to the new UUID together with the settings, in one write; grow the boot disk;
//! look at the result. Whatever fails is undone by [`super::rollback`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prost::Message;
use pvelet_proto::v1;
use tokio::time::Instant;

use super::{
    Call, Inner, Limit, change,
    failure::Failed,
    mark::{self, Mark},
    select,
    task::Backoff,
    user_data::{Sweep, UserData},
    validate,
    verdict::{Found, Verdict, judge, verdict},
    view,
};
use crate::{
    crash_point,
    error::Error,
    host::pve::{CloneCall, TaskEnd, Upid, VmRecord},
    operation::{Begin, Begun, Guards, Handle, Lane, LeaseRequest, State},
};

/// After so long volumes with the leased VMID are looked for again, and the template is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a clone that has just begun knows.
pub(super) struct Fresh {
    template: Arc<VmRecord>,
    lease: LeaseRequest,
    /// When no volume with its VMID lay on any storage that gets a disk.
    clean: Option<Instant>,
    /// When the request was checked.
    checked: Instant,
    /// The user data, which the request has only the digest of.
    data: Option<UserData>,
}

impl Inner {
    /// Checks a clone request and begins the operation; returns its name.
    pub(super) async fn accept_clone(
        this: &Arc<Self>,
        call: &Call,
        request: v1::CloneVmRequest,
        data: Option<UserData>,
    ) -> Result<String, Error> {
        let checked = Instant::now();
        let config = request.config.clone().unwrap_or_default();
        let mut violations = validate::clone_request(&request, this.settings.vmid_range);
        violations.extend(validate::config(&config));
        violations.extend(UserData::check(data.as_ref()));
        validate::done(violations)?;
        let mut inventory = this.writable()?;
        let node = &this.settings.node;
        let template = match select::template(&inventory, node, request.source.as_ref()) {
            // Somebody may have made it within the last quarter of a second.
            Err(Error::TemplateNotFound { .. }) => {
                inventory = this.pve.refresh().await?;
                select::template(&inventory, node, request.source.as_ref())?
            }
            found => found?,
        };
        if let Some(lock) = template.config.lock() {
            return Err(Error::VmLocked { vmid: template.vmid, lock: lock.to_owned() });
        }
        let full = request.mode() == v1::CloneMode::Full;
        if config.cloud_init.is_some() && view::cloud_init_drive(&template.config).is_none() {
            return Err(Error::NoCloudInitDrive { vmid: template.vmid });
        }
        if data.is_some() {
            this.user_data_storage().await?;
        }
        let disk = view::boot_disk(&template.config);
        if let Some(bytes) = config.boot_disk_bytes {
            Self::may_grow(disk.as_ref(), bytes)?;
        }
        if let Some(nics) = &config.nics {
            this.check_nics(&nics.nics, &inventory, 0).await?;
        }
        if !request.pool.is_empty() && !inventory.pools.contains(&request.pool) {
            return Err(Error::PoolNotFound { pool: request.pool.clone() });
        }
        let owner = request.owner.clone().unwrap_or_default();
        let mut guards = Guards { exclusive: Vec::new(), shared: vec![Guards::vm(template.vmid)] };
        if !owner.machine_uid.is_empty() {
            // A UID has one meaning in either case.
            let uid = owner.machine_uid.to_ascii_lowercase();
            guards.exclusive.push(format!("machine {}/{}/{uid}", call.meta.tenant, owner.cluster));
        }
        this.machine_has_none(&owner, &call.meta.tenant)?;
        let storages = this.clone_storages(&request, &template, full).await?;
        // What was true before PVE was asked about its storages may have changed.
        let inventory = this.writable()?;
        this.machine_has_none(&owner, &call.meta.tenant)?;
        let lease = LeaseRequest { range: this.settings.vmid_range, vmid: request.vmid, used: inventory.vmids.clone() };
        let state = State { template: template.vmid, name: config.name.clone().unwrap_or_default(), storages, ..State::default() };
        let begin = Begin {
            caller: &call.caller,
            meta: &call.meta,
            kind: call.kind,
            body: call.body.clone(),
            target: v1::VmRef::default(),
            guards,
            lease: Some(lease.clone()),
            state,
        };
        match this.ops.begin(begin)? {
            Begun::Existing(name) => Ok(name),
            Begun::New(h) => {
                crash_point!("clone.leased");
                let name = h.name().to_owned();
                let inner = Arc::clone(this);
                let tenant = call.meta.tenant.clone();
                Self::spawn(this, h.clone(), async move {
                    // Looking for left-over volumes changes nothing, so it need not wait for the disk.
                    let state = h.state();
                    let (written, left) = tokio::join!(h.written(), inner.left_over(&h, &state.storages, state.vmid));
                    if written.is_ok() {
                        crash_point!("clone.intent_written");
                        // Told only now that the guard of the machine is held: nobody else can be making its VM any more.
                        if let Err(error) = inner.machine_has_none(&owner, &tenant) {
                            return h.finish(Err(error), Some(Duration::ZERO)).await;
                        }
                        let clean = left.is_none().then(Instant::now);
                        inner.run_clone(&h, &request, Some(Fresh { template, lease, clean, checked, data })).await;
                    }
                });
                Ok(name)
            }
        }
    }

    /// That the machine which the VM is for has none. Errors: `MachineHasVm`.
    fn machine_has_none(&self, owner: &v1::Owner, tenant: &str) -> Result<(), Error> {
        let of_machine = |vm: &&Arc<VmRecord>| {
            view::bound_mark(vm)
                .is_some_and(|m| m.machine_uid.eq_ignore_ascii_case(&owner.machine_uid) && m.tenant == tenant && m.cluster == owner.cluster)
        };
        if owner.machine_uid.is_empty() {
            return Ok(());
        }
        match self.pve.inventory().vms.values().find(of_machine) {
            Some(vm) => Err(Error::MachineHasVm { machine_uid: owner.machine_uid.clone(), vmid: vm.vmid, node: vm.node.clone() }),
            None => Ok(()),
        }
    }

    /// That the template is still what it was when the request was checked: others may have put another VM under its VMID, whose disks are
    /// nobody's to copy. Errors: `TemplateNotFound`, `PveFsHung`.
    async fn same_template(&self, template: &VmRecord) -> Result<(), Error> {
        let vmid = template.vmid;
        match self.pve.read_vm(vmid).await? {
            Some(now) if now.config.is_template() && now.config.uuid() == template.config.uuid() => Ok(()),
            _ => Err(Error::TemplateNotFound {
                what: format!("VMID {vmid}, which was removed or replaced while the clone waited,"),
                node: self.settings.node.clone(),
            }),
        }
    }

    /// Carries a clone out, or goes on with it: `fresh` when it has just begun.
    pub(super) async fn run_clone(&self, h: &Handle, request: &v1::CloneVmRequest, fresh: Option<Fresh>) {
        let limits = self.ops.settings().deadlines;
        let full = request.mode() == v1::CloneMode::Full;
        let limit = Self::deadline(if full { limits.clone_full } else { limits.clone_linked });
        // Whether a clone may be under way that no UPID is known of.
        let lost = AtomicBool::new(fresh.is_none());
        let result =
            if h.state().undoing { Err(Error::AgentRestarted) } else { Box::pin(self.make_clone(h, request, fresh, limit, &lost)).await };
        if let Err(error) = &result {
            self.undo_clone(h, error, lost.load(Ordering::Relaxed)).await;
            self.user_data_goes(h, Sweep::Gone(&h.target().uuid)).await;
        }
        crash_point!("clone.before_end");
        h.finish(result, Some(self.settings.lease_quarantine)).await;
        crash_point!("clone.end_written");
    }

    async fn make_clone(
        &self,
        h: &Handle,
        request: &v1::CloneVmRequest,
        fresh: Option<Fresh>,
        limit: Limit,
        lost: &AtomicBool,
    ) -> Result<(), Error> {
        let mark = Mark {
            operation: h.uuid(),
            tenant: request.meta.as_ref().map(|m| m.tenant.clone()).unwrap_or_default(),
            cluster: request.owner.as_ref().map(|o| o.cluster.clone()).unwrap_or_default(),
            machine_uid: request.owner.as_ref().map(|o| o.machine_uid.clone()).unwrap_or_default(),
            uuid: None,
        };
        let (vm, data) = match fresh {
            Some(fresh) => (self.clone_fresh(h, request, &fresh, &mark, limit, lost).await?, fresh.data),
            None => (self.clone_found(h, request, limit).await?, None),
        };
        crash_point!("clone.checked");
        h.check_cancelled()?;
        let vm = self.bind(h, request, vm, &mark, limit, data.as_ref()).await?;
        crash_point!("clone.bound");
        if let Some(bytes) = request.config.as_ref().and_then(|c| c.boot_disk_bytes) {
            self.grow(h, vm.vmid, super::configure::Growing::BootDisk, bytes, limit, true).await?;
            crash_point!("clone.resized");
        }
        h.commit("the VM is made")
    }

    async fn clone_fresh(
        &self,
        h: &Handle,
        request: &v1::CloneVmRequest,
        fresh: &Fresh,
        mark: &Mark,
        limit: Limit,
        lost: &AtomicBool,
    ) -> Result<Arc<VmRecord>, Error> {
        let full = request.mode() == v1::CloneMode::Full;
        let state = h.state();
        let storage = state.storages.first().cloned().unwrap_or_default();
        let lane = if full { Lane::Long } else { Lane::Short };
        let wanted = request.config.as_ref().and_then(|c| c.description.clone());
        let text = wanted.unwrap_or_else(|| mark::strip(&fresh.template.config.description));
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let place = h.enter(&storage, lane, limit.at, limit.after).await?;
            crash_point!("clone.lane_held");
            let vmid = match fresh.clean {
                Some(at) if at.elapsed() < LOOK_AGAIN => state.vmid,
                _ => self.clean_vmid(h, &state.storages, &fresh.lease).await?,
            };
            if fresh.checked.elapsed() >= LOOK_AGAIN {
                self.same_template(&fresh.template).await?;
            }
            h.check_cancelled()?;
            h.step("cloning");
            let call = CloneCall {
                template: fresh.template.vmid,
                vmid,
                name: state.name.clone(),
                description: mark.append_to(&text),
                full,
                storage: Some(request.storage.clone()).filter(|s| full && !s.is_empty()),
                pool: Some(request.pool.clone()).filter(|p| !p.is_empty()),
            };
            let called = Instant::now();
            let upid = match self.pve.clone_vm(&call).await {
                Ok(upid) => {
                    h.task(crate::operation::TaskRef { purpose: "clone".to_owned(), upid: upid.text.clone(), found: false });
                    upid
                }
                Err(Error::LockTimeout { what }) => {
                    drop(place);
                    self.wait_for_lock(h, &what, &mut backoff, limit).await?;
                    continue;
                }
                Err(Error::PveAnswerLost { detail }) => {
                    lost.store(true, Ordering::Relaxed);
                    let found = self.find_clone(h).await?;
                    lost.store(false, Ordering::Relaxed);
                    found.ok_or(Error::PveDown { detail })?
                }
                Err(e) => return Err(e),
            };
            crash_point!("clone.called");
            match self.clone_task(h, &upid, called, limit).await? {
                Verdict::Made(vm) => return Ok(vm),
                Verdict::Failed(error) => return Err(error),
                Verdict::Again(what) => {
                    drop(place);
                    self.wait_for_lock(h, &what, &mut backoff, limit).await?;
                }
            }
        }
    }

    /// Follows a clone task and judges what came of it.
    async fn clone_task(&self, h: &Handle, upid: &Upid, called: Instant, limit: Limit) -> Result<Verdict, Error> {
        let followed = self.follow(h, upid, called, limit, true).await?;
        crash_point!("clone.task_ended");
        if let Some(error) = followed.interrupted {
            return Err(error);
        }
        let state = h.state();
        let found = judge(self.read_now(h, state.vmid, limit).await?, h.uuid(), &self.settings.node);
        let failed = Failed {
            vmid: state.vmid,
            upid: &upid.text,
            message: if let TaskEnd::Error(message) = &followed.end { message } else { "" },
            lines: &followed.lines,
            storage: state.storages.first().map_or("", String::as_str),
            node: &self.settings.node,
        };
        let verdict = verdict(&followed.end, found, &failed);
        if let (Verdict::Made(vm), false) = (&verdict, followed.end == TaskEnd::Ok) {
            if let TaskEnd::Warnings(lines) = &followed.end {
                lines.iter().for_each(|line| h.warn(line.clone()));
            }
            self.volumes_exist(vm).await?;
        }
        Ok(verdict)
    }

    /// That the disks of a config are there. Only asked where the task did not simply end OK.
    async fn volumes_exist(&self, vm: &VmRecord) -> Result<(), Error> {
        for volume in view::own_volumes(vm) {
            let storage = volume.split(':').next().unwrap_or_default();
            if !self.pve.volumes(storage, vm.vmid).await?.iter().any(|v| v.volid == volume) {
                return Err(Error::PveFailed { message: format!("the config names disk {volume}, which does not exist"), upid: None });
            }
        }
        Ok(())
    }

    /// The leased VMID, once no volume with its number lies where disks are put: what somebody left there would become the new VM's.
    async fn clean_vmid(&self, h: &Handle, storages: &[String], lease: &LeaseRequest) -> Result<u32, Error> {
        let mut vmid = h.state().vmid;
        loop {
            let Some(volume) = self.left_over(h, storages, vmid).await else { return Ok(vmid) };
            if lease.vmid != 0 {
                return Err(Error::NotOurs { what: format!("volume {volume} of VMID {vmid}, left by a former VM,") });
            }
            tracing::warn!(vmid, volume, "a VMID is passed over: a volume of it is left");
            let used = self.pve.inventory().vmids.clone();
            vmid = h.lease_again(&LeaseRequest { used, ..lease.clone() }, self.settings.lease_quarantine).await?;
        }
    }

    /// A volume with the VMID that is left on one of the storages, and notes on which there is none. Whether a storage works is not the
    /// question here, and the clone will tell; but one that cannot be asked is not noted.
    async fn left_over(&self, h: &Handle, storages: &[String], vmid: u32) -> Option<String> {
        let mut clean = Vec::new();
        for storage in storages {
            match self.pve.volumes(storage, vmid).await {
                Ok(left) => match left.into_iter().next() {
                    Some(volume) => return Some(volume.volid),
                    None => clean.push(storage.clone()),
                },
                Err(error) => tracing::debug!(storage, %error, "left-over volumes are not looked for"),
            }
        }
        h.found_clean(clean);
        None
    }

    /// The clone task of this operation whose answer was lost: the one that says in its log that it makes our VMID.
    pub(super) async fn find_clone(&self, h: &Handle) -> Result<Option<Upid>, Error> {
        let state = h.state();
        let says = format!("with ID {}", state.vmid);
        let since = h.accepted_at().saturating_sub(1);
        let found = self.find_lost(h, &["qmclone"], &state.template.to_string(), since, Some(&says)).await?;
        if let Some(upid) = &found {
            h.task(crate::operation::TaskRef { purpose: "clone".to_owned(), upid: upid.text.clone(), found: true });
        }
        Ok(found)
    }

    /// Finds out how far a clone of the agent's last run came.
    async fn clone_found(&self, h: &Handle, request: &v1::CloneVmRequest, limit: Limit) -> Result<Arc<VmRecord>, Error> {
        let state = h.state();
        let recorded = state.task("clone").and_then(|t| Upid::parse(&t.upid));
        let upid = match recorded {
            Some(upid) => Some(upid),
            None => self.find_clone(h).await?,
        };
        if let Some(upid) = upid {
            h.step("cloning");
            return match self.clone_task(h, &upid, Instant::now(), limit).await? {
                Verdict::Made(vm) => Ok(vm),
                Verdict::Again(what) => Err(Error::LockTimeout { what }),
                Verdict::Failed(error) => Err(error),
            };
        }
        let _ = request;
        match judge(self.pve.read_vm(state.vmid).await?, h.uuid(), &self.settings.node) {
            Found::Ours(vm) if vm.config.lock().is_none() => Ok(vm),
            Found::Foreign => Err(Error::VmidInUse { vmid: state.vmid, node: None }),
            _ => Err(Error::AgentRestarted),
        }
    }

    /// Binds the mark to the new UUID, together with the first settings. A VM whose mark is bound has its settings.
    async fn bind(
        &self,
        h: &Handle,
        request: &v1::CloneVmRequest,
        mut vm: Arc<VmRecord>,
        mark: &Mark,
        limit: Limit,
        data: Option<&UserData>,
    ) -> Result<Arc<VmRecord>, Error> {
        let mut backoff = Backoff::new(self.settings.lock_pause);
        loop {
            let vmid = vm.vmid;
            let uuid = vm
                .config
                .uuid()
                .map(str::to_ascii_lowercase)
                .ok_or_else(|| Error::PveFailed { message: format!("PVE gave VM {vmid} no SMBIOS UUID"), upid: None })?;
            h.target_uuid(&uuid);
            if view::bound_mark(&vm).is_some_and(|m| m.operation == mark.operation) {
                return Ok(vm);
            }
            let wanted = v1::VmConfig { description: None, ..request.config.clone().unwrap_or_default() };
            let user = self.user_part(h, &wanted, &vm.config, data, true).await?;
            h.step("configuring");
            let call = change::plan(&wanted, &vm.config, Some(&mark.bind(&uuid)), &user);
            match self.pve.set_config_now(vmid, &call).await {
                Ok(()) | Err(Error::ConfigChanged { .. }) => {}
                Err(Error::PveAnswerLost { .. }) => tokio::time::sleep(backoff.next()).await,
                Err(Error::LockTimeout { what }) => self.wait_for_lock(h, &what, &mut backoff, limit).await?,
                Err(e) => return Err(e),
            }
            // Whatever the answer was, what stands there counts; another one's change meanwhile is seen here too.
            vm = match judge(self.read_now(h, vmid, limit).await?, h.uuid(), &self.settings.node) {
                Found::Ours(vm) => vm,
                Found::OursElsewhere(vm) => return Err(Error::VmOnOtherHost { vmid, node: vm.node.clone() }),
                _ => return Err(Error::NotOurs { what: format!("VM {vmid}, replaced while it was being configured,") }),
            };
            if view::bound_mark(&vm).is_some() {
                let unmet = change::unmet(&call, &vm.config);
                if unmet.is_empty() {
                    return Ok(vm);
                }
                return Err(Error::PveFailed { message: format!("PVE did not take the settings {}", unmet.join(", ")), upid: None });
            }
            if limit.over() {
                return Err(limit.timeout("the VM could not be configured"));
            }
            h.check_cancelled()?;
        }
    }
}

/// The request of a journalled clone.
pub(super) fn decode(request: &[u8]) -> Result<v1::CloneVmRequest, Error> {
    v1::CloneVmRequest::decode(request).map_err(|e| Error::Internal(format!("the journalled request cannot be read: {e}")))
}
