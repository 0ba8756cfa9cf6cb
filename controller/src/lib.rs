//! pvelet's controller: desired state in, agents' work out. And `pveletctl`, the command line for people.

mod crash;
pub mod kind;
