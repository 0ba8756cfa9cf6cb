//! Tasks: real processes with a UPID, a log that grows, and an end line; the lists of them.
//!
//! The daemon starts `<program> task`. That process makes itself a session leader, reads its UPID, executes itself again under the title `task UPID:...:`, as a
//! real worker's title reads, and then does its job. `main` must call [`enter`] before anything else.

pub mod index;
mod job;
pub mod log;
mod spawn;
mod upid;
mod worker;

pub use job::{Job, Work};
pub use spawn::{spawn, stop};
pub use upid::{NotAUpid, Upid, process_start};
pub use worker::{Worker, enter};
