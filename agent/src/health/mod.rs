//! Health: what works on the host and what does not; and what the agent can mend.

pub mod check;
pub mod containerd;
pub mod kubelet;

pub use check::{Check, Finding, Group, Known, Mend, Pace, Source, State};
