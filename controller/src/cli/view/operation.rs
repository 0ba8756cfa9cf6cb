//! An operation in JSON and YAML.

use jiff::Timestamp;
use pvelet_proto::{
    v1::{Operation, OperationVolume},
    volume::VolumeId,
};
use serde::Serialize;

use super::{ErrorView, kind, some, time, word};
use crate::agents::AgentError;

/// `ops`, `get op`, and what every mutation prints.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Operations {
    pub(in crate::cli) operations: Vec<OperationView>,
    pub(in crate::cli) errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct OperationView {
    pub(in crate::cli) host: String,
    pub(in crate::cli) name: String,
    request_id: String,
    pub(in crate::cli) tenant: String,
    pub(in crate::cli) kind: String,
    pub(in crate::cli) vmid: u32,
    uuid: String,
    /// The check that is mended; null for everything but repairs.
    pub(in crate::cli) check: Option<String>,
    /// Null for operations on VMs alone.
    pub(in crate::cli) volume: Option<OperationVolumeView>,
    pub(in crate::cli) state: String,
    pub(in crate::cli) percent: u32,
    done_bytes: u64,
    total_bytes: u64,
    pub(in crate::cli) step: String,
    upids: Vec<String>,
    pub(in crate::cli) create_time: Option<String>,
    end_time: Option<String>,
    /// From acceptance to end.
    pub(in crate::cli) duration_ms: Option<u64>,
    pve_task_ms: u64,
    pub(in crate::cli) error: Option<ErrorView>,
    pub(in crate::cli) warnings: Vec<String>,
    caller: String,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct OperationVolumeView {
    pub(in crate::cli) id: String,
    storage: String,
    /// Where a Linux guest finds it once it is attached.
    device_path: Option<String>,
}

impl From<&OperationVolume> for OperationVolumeView {
    fn from(v: &OperationVolume) -> Self {
        let device_path = v.id.parse::<VolumeId>().ok().map(|id| id.device_path());
        Self { id: v.id.clone(), storage: v.storage.clone(), device_path }
    }
}

impl OperationView {
    /// What it is done to: a VM, else a volume, else what a check found.
    pub(in crate::cli) fn target(&self) -> String {
        match (self.vmid, &self.volume) {
            (0, Some(volume)) => volume.id.clone(),
            (0, None) => self.check.clone().unwrap_or_default(),
            (vmid, _) => vmid.to_string(),
        }
    }

    pub(in crate::cli) fn new(host: &str, o: &Operation) -> Self {
        let (target, progress) = (o.target.clone().unwrap_or_default(), o.progress.unwrap_or_default());
        let at = |t: &Option<prost_types::Timestamp>| t.as_ref().and_then(|t| Timestamp::new(t.seconds, t.nanos).ok());
        let took = at(&o.end_time).zip(at(&o.create_time)).map(|(e, b)| e.duration_since(b).as_millis());
        Self {
            host: host.to_owned(),
            name: o.name.clone(),
            request_id: o.request_id.clone(),
            tenant: o.tenant.clone(),
            kind: kind(o.kind()),
            vmid: target.vmid,
            uuid: target.uuid,
            check: some(&o.check),
            volume: o.volume.as_ref().map(OperationVolumeView::from),
            state: word(o.state().as_str_name(), "OPERATION_STATE_"),
            percent: progress.percent,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            step: o.step.clone(),
            upids: o.upids.clone(),
            create_time: o.create_time.as_ref().and_then(time),
            end_time: o.end_time.as_ref().and_then(time),
            duration_ms: took.and_then(|ms| u64::try_from(ms).ok()),
            pve_task_ms: o.pve_task_ms,
            error: o.error.as_ref().map(|e| ErrorView::from(&AgentError::from_operation(host, e))),
            warnings: o.warnings.clone(),
            caller: o.caller.clone(),
        }
    }
}
