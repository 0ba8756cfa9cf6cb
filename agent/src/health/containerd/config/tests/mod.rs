#![allow(clippy::unwrap_used, reason = "tests")]

mod faults;
mod fixtures;
mod healthy;
mod mending;
mod properties;
mod recorded;
mod source;
