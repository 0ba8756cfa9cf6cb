//! The host's network: what the calls of `NetworkService` mean.

pub mod declared;
pub mod definition;
pub mod descent;
mod diff;
pub mod management;
pub mod own_file;
pub mod plan;
pub mod planner;
pub mod preflight;
mod stack;
pub mod users;
pub mod validate;
pub mod verify;
pub mod view;

#[cfg(test)]
mod testing;
