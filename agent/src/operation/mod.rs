//! Operations: what mutating calls start. A registry with one entry for each, a journal on the disk, guards, lanes and leases.
//!
//! The decision whether a call begins something (key, epoch, guards, VMID) is one step under one lock. The intent is on the disk before the
//! first side effect. An operation runs detached from the call that began it.

mod audit;
mod epoch;
mod guard;
mod handle;
mod journal;
mod lane;
mod lease;
mod query;
mod record;
mod registry;
#[cfg(test)]
mod tests;
mod watch;

use std::{path::PathBuf, time::Duration};

use pvelet_proto::identity::{Identity, Subject};

pub use audit::AuditLine;
pub use guard::Guards;
pub use handle::Handle;
pub use lane::{Lane, LaneSizes};
pub use lease::LeaseRequest;
pub use query::Condition;
pub use record::{Body, NetworkState, RepairCause, RepairEdit, RepairPhase, RepairState, State, TaskRef, VolumeState, canonical_meta};
pub use registry::{Begin, Begun, Operations, Unfinished};

/// Operations are kept at least so long after their end: a promise of the API.
pub const MIN_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// From the client's certificate.
    pub identity: Identity,
}

impl Caller {
    /// The tenant to which the caller is bound; `None` for people and controllers.
    pub fn tenant(&self) -> Option<&str> {
        match &self.identity.subject {
            Subject::Tenant { tenant, .. } => Some(tenant),
            _ => None,
        }
    }
}

/// How operations are kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the journal lies; made with mode 0700.
    pub state_dir: PathBuf,
    /// How long an ended operation is kept; at least [`MIN_RETENTION`].
    pub retention: Duration,
    /// Sizes of the lanes of each storage.
    pub lanes: LaneSizes,
    /// How long operations may take.
    pub deadlines: Deadlines,
    /// Operations that may be under way at once; another is refused with `Overloaded`.
    pub max_active: usize,
}

impl Settings {
    /// The defaults, with the journal in `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            retention: MIN_RETENTION,
            lanes: LaneSizes::default(),
            deadlines: Deadlines::default(),
            max_active: 1000,
        }
    }
}

/// How long operations may take, waiting for lanes and for PVE's locks included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Linked clone: seconds of work, but a lock may be held by a backup of the template's storage.
    pub clone_linked: Duration,
    /// Full clone: hours on a slow storage with a full lane.
    pub clone_full: Duration,
    /// Change of settings.
    pub configure: Duration,
    /// Start, stop, reset; for shutdown added to the guest's own time.
    pub power: Duration,
    /// Delete.
    pub delete: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            clone_linked: Duration::from_secs(15 * 60),
            clone_full: Duration::from_secs(6 * 3600),
            configure: Duration::from_secs(10 * 60),
            power: Duration::from_secs(5 * 60),
            delete: Duration::from_secs(30 * 60),
        }
    }
}
