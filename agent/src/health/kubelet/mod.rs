//! The kubelet's health.

pub mod facts;
