//! pvelet's controller: desired state in, agents' work out. And `pveletctl`, the command line for people.

mod crash;
pub mod epoch;
pub mod kind;
pub mod agents;
pub mod pki;
pub mod store;
pub mod tls;
