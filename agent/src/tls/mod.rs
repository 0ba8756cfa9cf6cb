//! mTLS: who the agent is, whom it hears, and how both change while it runs.
//!
//! Everything about a set of credentials is checked before the set is used: a bad file never replaces a good set. Connections are known by
//! their certificates, so that those of a revoked, expired or no longer trusted one end, streams included.

mod connection;
mod leaf;
mod listener;
mod material;
mod store;
mod verifier;
mod watch;

pub use connection::{Connection, Connections, Peer};
pub use listener::{Doors, Options, incoming};
pub use material::Material;
pub use store::Credentials;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
