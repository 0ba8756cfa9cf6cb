//! The registry: every operation that is under way or was lately, and the one decision whether a call begins another.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, UNIX_EPOCH},
};

use prost::Message;
use pvelet_proto::{id::OperationName, v1};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{
    AuditLine, Body, Caller, Guards, Handle, LeaseRequest, MIN_RETENTION, Settings, State,
    audit::{kind_name, rfc3339},
    epoch::Epochs,
    guard::GuardMap,
    journal::{Journal, Write},
    lane::Lanes,
    lease::Leases,
    record::{Entry, digest, ended},
    watch::BACKLOG,
};
use crate::{error::Error, host::clock::Clock};

/// Revisions are promised to the disk in blocks, so that progress costs no write and still never goes back after a crash.
const REVISION_BLOCK: u64 = 1_000_000;

/// All operations of this agent.
pub struct Operations {
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) journal: Arc<Journal>,
    pub(super) lanes: Lanes,
    inner: Mutex<Inner>,
    pub(super) changes: broadcast::Sender<Arc<v1::Operation>>,
    /// Told whenever an operation ends.
    pub(super) ended: Notify,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) entries: HashMap<String, Entry>,
    pub(super) keys: HashMap<(String, String), String>,
    pub(super) by_number: BTreeMap<u64, String>,
    /// End (milliseconds) and name of ended operations.
    pub(super) expiry: BTreeSet<(u64, String)>,
    pub(super) guards: GuardMap,
    pub(super) leases: Leases,
    pub(super) epochs: Epochs,
    pub(super) revision: u64,
    pub(super) promised: u64,
    pub(super) draining: bool,
}

/// What a call wants to begin.
pub struct Begin<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// The request's key and epoch.
    pub meta: &'a v1::RequestMeta,
    /// What is asked.
    pub kind: v1::OperationKind,
    /// The request in canonical form.
    pub body: Body,
    /// To what; the VMID of a lease replaces the one given here.
    pub target: v1::VmRef,
    /// What it holds while it runs; the guard of a leased VMID is added.
    pub guards: Guards,
    /// The VMID that it needs.
    pub lease: Option<LeaseRequest>,
    /// What it decided so far.
    pub state: State,
}

/// What came of it.
pub enum Begun {
    /// A new operation. Whoever holds the handle carries it out, after [`Handle::written`].
    New(Handle),
    /// The operation that the same call began before.
    Existing(String),
}

/// An operation that the last run of the agent left unfinished.
pub struct Unfinished {
    /// To go on with it.
    pub handle: Handle,
    /// Its kind.
    pub kind: v1::OperationKind,
    /// Its canonical request.
    pub request: Arc<[u8]>,
    /// Its state.
    pub state: State,
}

impl Operations {
    /// Opens the journal and reads it. Errors: `Journal` (damaged, of a later format, or used by another agent).
    pub fn open(mut settings: Settings, clock: Arc<dyn Clock>) -> Result<Arc<Self>, Error> {
        settings.retention = settings.retention.max(MIN_RETENTION);
        let (journal, content) = Journal::open(&settings.state_dir)?;
        let mut inner = Inner { revision: content.revision, promised: content.revision, ..Inner::default() };
        let now = Instant::now();
        for stored in &content.operations {
            let path = settings.state_dir.display().to_string();
            let entry = Entry::read(stored, now)
                .map_err(|detail| Error::Journal { path, detail: format!("an operation cannot be read: {detail}") })?;
            if ended(&entry.shown) {
                inner.expiry.insert((end_millis(&entry.shown), entry.shown.name.clone()));
            } else {
                inner.guards.take(&entry.shown.name, &entry.state.guards, now)?;
                if entry.state.leased {
                    inner.leases.restore(entry.state.vmid);
                }
            }
            inner.keys.insert((entry.shown.tenant.clone(), entry.shown.request_id.clone()), entry.shown.name.clone());
            inner.by_number.insert(entry.state.number, entry.shown.name.clone());
            inner.entries.insert(entry.shown.name.clone(), entry);
        }
        for (vmid, until) in content.quarantine {
            if !inner.leases.leased().any(|v| v == vmid) {
                inner.leases.release(vmid, until);
            }
        }
        for epoch in &content.epochs {
            if let Ok(epoch) = v1::ControllerEpoch::decode(epoch.as_slice()) {
                inner.epochs.restore(epoch);
            }
        }
        Ok(Arc::new(Self {
            lanes: Lanes::new(settings.lanes),
            settings,
            clock,
            journal,
            inner: Mutex::new(inner),
            changes: broadcast::channel(BACKLOG).0,
            ended: Notify::new(),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when everything that was queued so far is on the disk.
    #[cfg(test)]
    pub(crate) async fn flushed(&self) {
        let queued = self.journal.push([]);
        let _ = self.journal.durable(queued).await;
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes what the API shows of an operation, and tells those who watch.
    pub(super) fn publish(&self, inner: &mut Inner, name: &str, change: impl FnOnce(&mut v1::Operation)) {
        let Some(entry) = inner.entries.get_mut(name) else { return };
        inner.revision += 1;
        let shown = Arc::make_mut(&mut entry.shown);
        change(shown);
        shown.revision = inner.revision;
        // Nobody watching is no error.
        let _ = self.changes.send(Arc::clone(&entry.shown));
    }

    /// Queues an operation as it is now, and the promise of revisions where it is due.
    pub(super) fn queue(&self, inner: &mut Inner, name: &str, more: Vec<Write>) -> u64 {
        let mut writes = more;
        writes.extend(inner.entries.get(name).map(Entry::write));
        if inner.revision + REVISION_BLOCK / 2 > inner.promised {
            inner.promised = inner.revision + REVISION_BLOCK;
            writes.push(Write::Revision(inner.promised));
        }
        self.journal.push(writes)
    }

    /// The operation that a call with this key began, when there is one. Errors: `RequestIdReused`; `StaleEpoch`, `UnknownLease`.
    pub fn existing(&self, meta: &v1::RequestMeta, kind: v1::OperationKind, body: &Body) -> Result<Option<String>, Error> {
        let inner = self.lock();
        if let Some(epoch) = &meta.controller_epoch {
            inner.epochs.check(epoch)?;
        }
        Self::find_key(&inner, meta, kind, body)
    }

    fn find_key(inner: &Inner, meta: &v1::RequestMeta, kind: v1::OperationKind, body: &Body) -> Result<Option<String>, Error> {
        let Some(name) = inner.keys.get(&(meta.tenant.clone(), meta.request_id.clone())) else { return Ok(None) };
        let same = inner.entries.get(name).is_some_and(|e| e.shown.kind() == kind && digest(kind, &e.request) == body.digest);
        if same {
            Ok(Some(name.clone()))
        } else {
            Err(Error::RequestIdReused { tenant: meta.tenant.clone(), request_id: meta.request_id.clone(), operation: name.clone() })
        }
    }

    /// Decides, in one step, whether the call begins a new operation, and queues its intent for the disk. Must be called on a runtime.
    /// Errors: `RequestIdReused`, `StaleEpoch`, `UnknownLease`, `AgentDraining`, `Overloaded`, `OperationInProgress`, `VmidInUse`,
    /// `VmidRangeExhausted`, `Invalid`.
    pub fn begin(self: &Arc<Self>, begin: Begin<'_>) -> Result<Begun, Error> {
        let (caller, meta, kind, target) = (begin.caller.clone(), begin.meta.clone(), begin.kind, begin.target.clone());
        let result = self.decide(begin);
        if let Err(error) = &result {
            self.refused(&caller, &meta, kind, &target, error);
        }
        result
    }

    fn decide(self: &Arc<Self>, begin: Begin<'_>) -> Result<Begun, Error> {
        let now = self.clock.unix_millis();
        let since = Instant::now();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let newer = match &begin.meta.controller_epoch {
            Some(epoch) => inner.epochs.check(epoch)?,
            None => false,
        };
        if let Some(name) = Self::find_key(inner, begin.meta, begin.kind, &begin.body)? {
            return Ok(Begun::Existing(name));
        }
        if inner.draining {
            return Err(Error::AgentDraining);
        }
        if inner.entries.len() - inner.expiry.len() >= self.settings.max_active {
            return Err(Error::Overloaded { what: "operations" });
        }
        // Whatever is decided below: what is forgotten here must be so on the disk.
        self.journal.push(self.forget(inner, now));
        let mut writes = Vec::new();
        let name = OperationName::random().to_string();
        let (mut target, mut state, mut guards) = (begin.target, begin.state, begin.guards);
        inner.guards.take(&name, &guards, since)?;
        if let Some(request) = &begin.lease {
            let leased = inner.leases.take(request, now).and_then(|vmid| {
                let own = Guards { exclusive: vec![Guards::vm(vmid)], shared: Vec::new() };
                inner.guards.take(&name, &own, since).inspect_err(|_| inner.leases.release(vmid, now)).map(|()| vmid)
            });
            match leased {
                Ok(vmid) => {
                    guards.exclusive.push(Guards::vm(vmid));
                    (state.vmid, state.leased, target.vmid) = (vmid, true, vmid);
                }
                Err(e) => {
                    inner.guards.release(&name);
                    return Err(e);
                }
            }
        }
        if let Some(epoch) = begin.meta.controller_epoch.clone().filter(|_| newer) {
            writes.push(Write::Epoch { controller: epoch.controller.clone(), epoch: epoch.encode_to_vec() });
            inner.epochs.set(epoch)?;
        }
        state.guards = guards;
        state.number = inner.by_number.last_key_value().map_or(0, |(n, _)| n + 1);
        let shown = v1::Operation {
            name: name.clone(),
            request_id: begin.meta.request_id.clone(),
            tenant: begin.meta.tenant.clone(),
            kind: begin.kind.into(),
            target: Some(target),
            state: v1::OperationState::Pending.into(),
            create_time: Some(timestamp(now)),
            caller: begin.caller.identity.to_string(),
            step: "accepted".to_owned(),
            volume: state.volume.shown(),
            network: state.network.name.clone(),
            check: state.repair.check.clone(),
            ..v1::Operation::default()
        };
        let (tell, intent) = watch::channel(None);
        inner.keys.insert((shown.tenant.clone(), shown.request_id.clone()), name.clone());
        inner.by_number.insert(state.number, name.clone());
        let entry = Entry {
            shown: Arc::new(shown),
            request: begin.body.request,
            state,
            cancel: CancellationToken::new(),
            cancelled_by: None,
            committed: None,
            parked: false,
            done: CancellationToken::new(),
            intent,
            since,
        };
        let handle = Handle::new(Arc::clone(self), &entry);
        inner.entries.insert(name.clone(), entry);
        self.publish(inner, &name, |_| {});
        let number = self.queue(inner, &name, writes);
        drop(guard);
        // Detached: the intent is written even if the caller goes away.
        let operations = Arc::clone(self);
        tokio::spawn(async move {
            let result = operations.journal.durable(number).await;
            if result.is_err() {
                operations.withdraw(&name);
            }
            let _ = tell.send(Some(result));
        });
        Ok(Begun::New(handle))
    }

    /// Takes back an operation whose intent could not be written.
    fn withdraw(&self, name: &str) {
        let now = self.clock.unix_millis();
        let mut inner = self.lock();
        inner.guards.release(name);
        if let Some(entry) = inner.entries.remove(name) {
            inner.keys.remove(&(entry.shown.tenant.clone(), entry.shown.request_id.clone()));
            inner.by_number.remove(&entry.state.number);
            if entry.state.leased {
                inner.leases.release(entry.state.vmid, now);
            }
            entry.done.cancel();
        }
    }

    /// Forgets operations that ended longer ago than the retention, and VMIDs that have rested.
    fn forget(&self, inner: &mut Inner, now: u64) -> Vec<Write> {
        let mut writes: Vec<Write> = inner.leases.expire(now).into_iter().map(|vmid| Write::Release { vmid }).collect();
        let retention = u64::try_from(self.settings.retention.as_millis()).unwrap_or(u64::MAX);
        while let Some((end, name)) = inner.expiry.first().filter(|(end, _)| end.saturating_add(retention) < now).cloned() {
            inner.expiry.remove(&(end, name.clone()));
            if let Some(entry) = inner.entries.remove(&name) {
                inner.keys.remove(&(entry.shown.tenant.clone(), entry.shown.request_id.clone()));
                inner.by_number.remove(&entry.state.number);
            }
            writes.push(Write::Forget { name });
        }
        writes
    }

    /// Leases another VMID for an operation whose first one turned out to be unusable; the first one rests for `rest`. Returns the number
    /// of the journal's write.
    pub(super) fn lease_again(&self, name: &str, request: &LeaseRequest, rest: Duration) -> Result<(u32, u64), Error> {
        let now = self.clock.unix_millis();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let vmid = inner.leases.take(request, now)?;
        let own = Guards { exclusive: vec![Guards::vm(vmid)], shared: Vec::new() };
        if let Err(e) = inner.guards.take(name, &own, Instant::now()) {
            inner.leases.release(vmid, now);
            return Err(e);
        }
        let until = now.saturating_add(u64::try_from(rest.as_millis()).unwrap_or(u64::MAX));
        let Some(entry) = inner.entries.get_mut(name) else { return Err(Error::OperationNotFound { name: name.to_owned() }) };
        let old = std::mem::replace(&mut entry.state.vmid, vmid);
        entry.state.guards.exclusive.push(Guards::vm(vmid));
        inner.leases.release(old, until);
        self.publish(inner, name, |op| op.target.get_or_insert_default().vmid = vmid);
        let number = self.queue(inner, name, vec![Write::Quarantine { vmid: old, until }]);
        Ok((vmid, number))
    }

    /// Ends an operation: on the disk first, then for all to see. `rest`: how long its VMID is not given out.
    pub(super) async fn finish(&self, name: &str, result: Result<(), Error>, rest: Option<Duration>) {
        let now = self.clock.unix_millis();
        let (number, shown) = {
            let mut guard = self.lock();
            let inner = &mut *guard;
            let Some(entry) = inner.entries.get(name) else { return };
            let mut shown = (*entry.shown).clone();
            // What made the operation be undone stands there already, also after a restart of the agent.
            let error = result.as_ref().err().map(|e| shown.error.take().unwrap_or_else(|| e.to_rpc_status()));
            let state = match &error {
                None => v1::OperationState::Succeeded,
                Some(status) if status.code == i32::from(tonic::Code::Cancelled) => v1::OperationState::Cancelled,
                Some(_) => v1::OperationState::Failed,
            };
            let reason = result.as_ref().err().map_or("", Error::reason);
            shown.state = state.into();
            shown.end_time = Some(timestamp(now));
            shown.step.clear();
            shown.error = error;
            if result.is_ok() {
                shown.progress.get_or_insert_default().percent = 100;
            }
            let audit = AuditLine {
                time: rfc3339(now),
                caller: shown.caller.clone(),
                tenant: shown.tenant.clone(),
                action: kind_name(shown.kind()).to_owned(),
                target: AuditLine::target(&shown),
                decision: state.as_str_name().trim_start_matches("OPERATION_STATE_").to_ascii_lowercase(),
                reason: reason.to_owned(),
                operation: name.to_owned(),
                request_id: shown.request_id.clone(),
                duration_ms: now.saturating_sub(shown.create_time.as_ref().map_or(now, millis)),
            };
            inner.revision += 1;
            shown.revision = inner.revision;
            let ended = Entry {
                shown: Arc::new(shown.clone()),
                request: Arc::clone(&entry.request),
                state: entry.state.clone(),
                cancel: entry.cancel.clone(),
                cancelled_by: None,
                committed: None,
                parked: false,
                done: entry.done.clone(),
                intent: entry.intent.clone(),
                since: entry.since,
            };
            let mut writes = vec![ended.write(), Write::Audit(audit.to_json())];
            if let Some(rest) = rest {
                let until = now.saturating_add(u64::try_from(rest.as_millis()).unwrap_or(u64::MAX));
                writes.push(Write::Quarantine { vmid: entry.state.vmid, until });
            }
            (self.journal.push(writes), shown)
        };
        // Where the disk fails the end is only in memory; after a restart the operation is settled anew, which changes nothing.
        if let Err(error) = self.journal.durable(number).await {
            tracing::error!(operation = name, %error, "the end of an operation is not on the disk");
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.guards.release(name);
        inner.expiry.insert((now, name.to_owned()));
        let Some(entry) = inner.entries.get_mut(name) else { return };
        entry.committed = Some("it has ended");
        let done = entry.done.clone();
        let (vmid, leased) = (entry.state.vmid, std::mem::take(&mut entry.state.leased));
        if leased || rest.is_some() {
            let until = now.saturating_add(rest.map_or(0, |r| u64::try_from(r.as_millis()).unwrap_or(u64::MAX)));
            inner.leases.release(vmid, until);
        }
        self.publish(inner, name, |op| *op = shown);
        drop(guard);
        done.cancel();
        self.ended.notify_waiters();
    }
}

pub(super) fn timestamp(millis: u64) -> prost_types::Timestamp {
    (UNIX_EPOCH + Duration::from_millis(millis)).into()
}

fn millis(time: &prost_types::Timestamp) -> u64 {
    u64::try_from(time.seconds).unwrap_or(0) * 1000 + u64::try_from(time.nanos).unwrap_or(0) / 1_000_000
}

fn end_millis(operation: &v1::Operation) -> u64 {
    operation.end_time.as_ref().map_or(0, millis)
}
