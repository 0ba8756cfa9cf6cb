//! The host's network: what the calls of `NetworkService` mean.

pub mod declared;
pub mod definition;
mod diff;
pub mod management;
pub mod own_file;
pub mod plan;
pub mod planner;
pub mod preflight;
pub mod probe;
mod stack;
#[cfg(test)]
mod testing;
pub mod users;
pub mod validate;
pub mod verify;
pub mod view;
