//! pvelet's controller: desired state in, agents' work out. And `pveletctl`, the command line for people.
//!
//! In reading order: what is wanted ([`kind`], and for Kubernetes [`crd`]), where it lives ([`store`]), how agents are reached ([`pki`], [`tls`], [`agents`]) and Kubernetes' Nodes ([`nodes`]), how one
//! becomes the other ([`placement`], [`reconcile`]), and the two programs ([`run`], [`cli`]).

pub mod crd;
pub mod kind;

pub mod epoch;
pub mod store;

pub mod agents;
pub mod nodes;
pub mod pki;
pub mod tls;

mod crash;
pub mod metrics;
pub mod placement;
pub mod reconcile;

pub mod cli;
pub mod run;
