//! A `PveNetwork` on three hosts, driven by the controller.

use crate::{
    host::{Lab, Peer},
    report::Report,
};

/// The case's name.
pub const NAME: &str = "PveNetwork on three hosts";

pub fn run(_lab: &Lab, _peer: &mut Peer, _report: &Report) {}
