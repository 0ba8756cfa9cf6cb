//! Calls on VMs, and the works of the tasks they start.

use super::Route;
use crate::task::Work;

/// The works of VM tasks by name.
pub const WORKS: &[(&str, Work)] = &[];

/// The calls on VMs.
pub(super) fn routes() -> Vec<Route> {
    Vec::new()
}
