//! The pvelet API: generated types, validated ids, SPIFFE identities, error reasons.

mod codec;
pub mod id;
pub mod identity;
pub mod reason;
mod secret;
pub mod volume;

/// The generated types of `pvelet.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("pvelet.v1");
}

/// The compiled `FileDescriptorSet` of the API, imports included: served by reflection, and compared with the committed one by a test.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pvelet.v1.binpb"));

/// The value of `Host.api_version`.
pub const API_VERSION: &str = "pvelet.v1";
