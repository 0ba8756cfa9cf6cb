//! What a task does: a name that a table maps to a function, since it is done in another process.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Worker;
use crate::api::Failure;

/// The work of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// A name in the table of works.
    pub action: String,
    /// Its arguments.
    pub args: Value,
}

/// Does a job in a worker process. An error ends the log with `TASK ERROR: <text>`.
pub type Work = fn(&Worker, &Value) -> Result<(), Failure>;

/// The work of this name.
pub(super) fn work(action: &str) -> Option<Work> {
    let all = crate::api::vm::WORKS.iter().chain(&crate::api::storage_content::WORKS);
    all.copied().find(|(name, _)| *name == action).map(|(_, work)| work)
}
