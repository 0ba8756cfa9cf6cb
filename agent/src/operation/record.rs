//! What an operation is in the registry and in the journal.

use std::{sync::Arc, time::Instant};

use prost::Message;
use pvelet_proto::v1;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    guard::Guards,
    journal::{Stored, Write},
};
use crate::error::Error;

/// A task of PVE and what it was started for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRef {
    /// The step: "clone", "resize", "start", "destroy", ...
    pub purpose: String,
    /// PVE's task id.
    pub upid: String,
    /// Whether its answer was lost and it was found in the task list: then its log alone proves nothing.
    #[serde(default)]
    pub found: bool,
}

/// What an operation decided and did, beyond what the API shows: written before the first side effect, and enough to go on or to undo after
/// a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The VM it works on.
    pub vmid: u32,
    /// The VMID is leased by this operation.
    pub leased: bool,
    /// The template of a clone.
    pub template: u32,
    /// The name of the new VM.
    pub name: String,
    /// Where new volumes are put: the lane, and where left-overs are looked for.
    pub storages: Vec<String>,
    /// Those of them on which no volume with the VMID lay before the clone was asked for: all with its number there is the clone's.
    pub clean: Vec<String>,
    /// The VM's own volumes before it was destroyed.
    pub volumes: Vec<String>,
    /// The config's digest before it was changed.
    pub digest: String,
    /// The VM's UUID.
    pub uuid: String,
    /// PVE's tasks.
    pub tasks: Vec<TaskRef>,
    /// What it holds.
    pub guards: Guards,
    /// Undoing has begun: there is no way forward any more. The reason is the operation's error.
    pub undoing: bool,
    /// The operation's number, for listing in the order of creation.
    pub number: u64,
    /// What an operation on a volume decided.
    pub volume: VolumeState,
    /// What an operation on the host's network decided.
    pub network: NetworkState,
    /// What a repair decided and did.
    pub repair: RepairState,
}

/// How far a repair is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepairPhase {
    /// Nothing is touched.
    #[default]
    Prepared,
    /// Files are edited, or are about to be; the unit is restarted after that.
    Editing,
    /// The unit is restarted, or is about to be; there is nothing to be edited.
    Restarting,
    /// What was edited is put back.
    Undoing,
}

/// Why a repair is undone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepairCause {
    /// The agent was restarted before all was done.
    #[default]
    Restarted,
    /// It did not help; why.
    Failed(String),
    /// Somebody edited this file meanwhile.
    Changed(String),
}

/// A file that a repair edits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepairEdit {
    /// Where it lies.
    pub path: String,
    /// What it held.
    pub was: String,
    /// SHA-256 of what it is to hold.
    pub digest: String,
    /// The copy that is kept.
    pub backup: String,
}

/// What a repair decided and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepairState {
    /// The id of the check that is mended; empty for other operations.
    pub check: String,
    /// The checks that must be well after it.
    pub mends: Vec<String>,
    /// Those of them that need only be degraded after it.
    pub partly: Vec<String>,
    /// The files that it edits.
    pub edits: Vec<RepairEdit>,
    /// How, for people.
    pub diff: String,
    /// The unit that it restarts.
    pub unit: String,
    /// The agent began it by itself.
    pub automatic: bool,
    /// How far it is.
    pub phase: RepairPhase,
    /// Why it is undone.
    pub cause: RepairCause,
    /// `ActiveState` of the unit before anything was touched.
    pub active: String,
    /// The unit's main process then; 0: none.
    pub pid: u32,
    /// Since when the unit was in that state, in microseconds since the Unix epoch.
    pub since: u64,
    /// Checks that were well then, and must be so again after it is undone.
    pub well: Vec<String>,
    /// So many starts of the agent found it unfinished.
    pub settled: u32,
}

/// What an operation on the host's network decided. What it does stands in the checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkState {
    /// The network's name; empty for other operations.
    pub name: String,
    /// Digest of the plan that was accepted.
    pub plan: String,
    /// How long it waits for its confirmation, in milliseconds.
    pub confirm_ms: u64,
    /// What was asked for was so already.
    pub done: bool,
}

/// What an operation on a volume decided and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeState {
    /// The volume's id; empty for operations on VMs.
    pub id: String,
    /// Where it is, or is made.
    pub storage: String,
    /// Its name there before anything was done; empty when it is made.
    pub name: String,
    /// Where it is moved to.
    pub target_storage: String,
    /// Its name there, or its new name where it is.
    pub target_name: String,
    /// Its label.
    pub label: String,
    /// The slot in which it was attached when it was moved.
    pub slot: String,
    /// PVE was about to be asked for the new volume: what has its name and no label is this operation's own from here on.
    pub asked: bool,
    /// The copy is whole: from here on it is the volume, and what it was copied from is removed. Of a roll-back: it is done.
    pub copied: bool,
    /// Volumes to be reclaimed: storage and id.
    pub list: Vec<(String, String)>,
    /// What was asked for was so already: nothing is left to do, after a restart either.
    pub done: bool,
}

impl VolumeState {
    /// The volume as the API shows it in an operation.
    pub(super) fn shown(&self) -> Option<v1::OperationVolume> {
        let storage = if self.target_storage.is_empty() { &self.storage } else { &self.target_storage };
        (!self.id.is_empty()).then(|| v1::OperationVolume { id: self.id.clone(), storage: storage.clone() })
    }
}

impl State {
    /// The latest task with this purpose.
    pub fn task(&self, purpose: &str) -> Option<&TaskRef> {
        self.tasks.iter().rev().find(|t| t.purpose == purpose)
    }
}

/// An operation in memory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) shown: Arc<v1::Operation>,
    /// Canonical request.
    pub(super) request: Arc<[u8]>,
    pub(super) state: State,
    pub(super) cancel: CancellationToken,
    pub(super) cancelled_by: Option<String>,
    /// Why it cannot be cancelled (any more).
    pub(super) committed: Option<&'static str>,
    /// It waits for somebody outside: the agent's end does not wait for it.
    pub(super) parked: bool,
    pub(super) done: CancellationToken,
    /// How the writing of its intent went.
    pub(super) intent: watch::Receiver<Option<Result<(), Error>>>,
    pub(super) since: Instant,
}

pub(super) fn ended(operation: &v1::Operation) -> bool {
    matches!(operation.state(), v1::OperationState::Succeeded | v1::OperationState::Failed | v1::OperationState::Cancelled)
}

impl Entry {
    /// The journal's form.
    pub(super) fn write(&self) -> Write {
        Write::Operation {
            name: self.shown.name.clone(),
            shown: self.shown.encode_to_vec(),
            request: Arc::clone(&self.request),
            state: serde_json::to_vec(&self.state).unwrap_or_default(),
        }
    }

    pub(super) fn read(stored: &Stored, now: Instant) -> Result<Self, String> {
        let shown = v1::Operation::decode(stored.shown.as_slice()).map_err(|e| e.to_string())?;
        let state: State = serde_json::from_slice(&stored.state).map_err(|e| e.to_string())?;
        let done = CancellationToken::new();
        if ended(&shown) {
            done.cancel();
        }
        Ok(Self {
            shown: Arc::new(shown),
            request: stored.request.as_slice().into(),
            state,
            cancel: CancellationToken::new(),
            cancelled_by: None,
            committed: None,
            parked: false,
            done,
            intent: watch::channel(Some(Ok(()))).1,
            since: now,
        })
    }
}

/// A request in canonical form: what makes two calls with the same key the same request. `wait` is no part of it, and neither is the
/// controller's epoch: a new leader repeats its predecessor's call.
#[derive(Debug, Clone)]
pub struct Body {
    pub(super) request: Arc<[u8]>,
    pub(super) digest: [u8; 32],
}

impl Body {
    /// The canonical form of `request`, from which [`canonical_meta`] has removed what does not count.
    pub fn new(kind: v1::OperationKind, request: &impl Message) -> Self {
        let request: Arc<[u8]> = request.encode_to_vec().into();
        let digest = digest(kind, &request);
        Self { request, digest }
    }

    /// The canonical request, encoded.
    pub fn request(&self) -> Arc<[u8]> {
        Arc::clone(&self.request)
    }
}

pub(super) fn digest(kind: v1::OperationKind, request: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((kind as i32).to_be_bytes());
    hash.update(request);
    hash.finalize().into()
}

/// `meta` without what is no part of the compared body.
pub fn canonical_meta(meta: &v1::RequestMeta) -> v1::RequestMeta {
    v1::RequestMeta { tenant: meta.tenant.clone(), request_id: meta.request_id.clone(), controller_epoch: None, wait: None }
}
