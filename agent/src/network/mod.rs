//! The host's network: what the calls of `NetworkService` mean.

pub mod declared;
pub mod definition;
pub mod descent;
mod diff;
pub mod own_file;
pub mod plan;
pub mod planner;
pub mod validate;
pub mod verify;

#[cfg(test)]
mod testing;
