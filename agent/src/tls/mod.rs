//! mTLS: who the agent is, whom it hears, and how both change while it runs.
//!
//! Everything about a set of credentials is checked before the set is used: a bad file never replaces a good set. Connections are known by
//! their certificates, so that those of a revoked, expired or no longer trusted one end, streams included.

mod connection;
mod files;
mod info;
mod install;
mod leaf;
mod listener;
mod material;
mod request;
mod service;
mod store;
mod verifier;
mod watch;

pub use connection::{Connection, Connections, Peer};
pub(crate) use info::lasting;
pub use info::{AuthorityInfo, CertificateInfo, ListInfo};
pub use install::{Installed, New, Place, install_local};
pub use listener::{Doors, Options, incoming};
pub use material::Material;
pub use request::{Names, SigningRequest, signing_request};
pub use service::Certificates;
pub use store::Credentials;

#[cfg(test)]
mod chain_tests;
#[cfg(test)]
mod install_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
