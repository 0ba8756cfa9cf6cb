//! The container runtime's health.

pub mod config;
