//! What the agent is a client of, as compiled from `agent/proto`.
#![allow(unreachable_pub, clippy::all, reason = "generated")]

/// Kubernetes' Container Runtime Interface.
pub(super) mod cri {
    tonic::include_proto!("runtime.v1");
}

/// containerd's own service about itself.
pub(super) mod introspection {
    tonic::include_proto!("containerd.services.introspection.v1");
}
