//! The host's network: what the calls of `NetworkService` mean.

pub mod declared;
pub mod definition;
mod diff;
pub mod own_file;
pub mod plan;
pub mod planner;
pub mod probe;
pub mod validate;
pub mod verify;

#[cfg(test)]
mod testing;
