//! From what is wanted to what is: load, decide, act, store the status, go away. Agents' streams, the store and timers wake it up.

mod controller;
mod fleet;
mod health;
mod host;
mod index;
mod machine;
mod marks;
mod network;
mod node;
mod operation;
mod queue;
mod refuse;
mod session;
mod tenant;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod view;
mod waiting;

pub use controller::Controller;
pub use fleet::{Fleet, Room, Wake};
pub use machine::decide::{Action, Decision, Ending, Inputs, Knowledge, Request, VolumeSight, decide};
pub use view::{DiskView, Facts, HostView, Link, RunState, Sighting, VmTable, VmView, machine_uid, timestamp};

use refuse::{INVALID, invalid, refuse, told};
use view::ASIDE;
