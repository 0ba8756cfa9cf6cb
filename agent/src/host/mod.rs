//! The host boundary: the only place that touches the operating system or PVE. It knows no protobuf.
//!
//! One trait per outside thing; the real implementation and a fake stand beside each other.

pub mod blocking;
pub mod clock;
pub mod cluster_name;
pub mod facts;
pub mod journal;
pub mod kubelet;
pub mod links;
pub mod machine;
pub mod net;
pub mod process;
pub mod pve;
pub mod record;
pub mod room;
pub mod runtime;
pub mod sockets;
pub mod storage;
pub mod units;
#[cfg(any(test, feature = "fakes"))]
pub mod units_fake;
