//! The host's network: what the calls of `NetworkService` mean.

pub mod definition;
pub mod plan;
pub mod probe;
