//! A simulated PVE 9 host: what an agent sees of one, made of real files, locks, processes and images.

pub mod faults;
pub mod layout;
pub mod ticket;
pub mod task;
pub mod api;
