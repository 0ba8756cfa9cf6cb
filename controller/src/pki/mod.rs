//! The certificate authority of an installation: who may speak to whom.
//!
//! One CA signs everything. An agent's certificate names its host (`spiffe://<trust-domain>/cluster/<cluster>/host/<node>`) and serves
//! only; a client's certificate names a role or a tenant and calls only. Keys are ECDSA P-256.
//!
//! | certificate | lifetime | why |
//! |---|---|---|
//! | CA | 10 years | replacing it touches every host and client |
//! | host | 365 days | renewed over the API (`pveletctl pki renew`); it proves one host only and can be revoked |
//! | controller, person, tenant | 90 days | it can change things on every host, so a lost one should not live long |
//!
//! Each begins five minutes before it is made, for clocks that run behind.

mod ca;
mod crl;
mod dir;
mod files;
mod inspect;
mod key;
mod request;
mod rollover;

use std::path::PathBuf;

use thiserror::Error;

pub use ca::{Ca, Issued, Lifetime, Signed};
pub use crl::{Crl, Revoked};
pub use dir::{CA_CERT, CA_KEY, CRL, PkiDir};
pub use files::{write_private, write_public};
pub use inspect::{CertInfo, CrlInfo, read_certs};
pub use request::SigningRequest;
pub(crate) use rollover::unix;
pub use rollover::{Phase, Rollover};

/// What went wrong while making, reading or keeping certificates.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder holds no CA.
    #[error("there is no CA in {}: name its folder with --dir, or make one with pveletctl pki init", dir.display())]
    NoCa {
        /// Which folder.
        dir: PathBuf,
    },
    /// A file is there already and would have been overwritten.
    #[error("{} exists already: it is kept; use --force to replace it (a replaced key cannot be brought back)", path.display())]
    Exists {
        /// Which one.
        path: PathBuf,
    },
    /// A folder that holds keys can be entered by others.
    #[error("folder {} has mode {mode:04o}, others may look into it: run chmod 700 {}", path.display(), path.display())]
    OpenFolder {
        /// Which one.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// Which file or thing.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A value given by the caller is refused.
    #[error("{field} '{value}': {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A step of a rollover whose time has not come.
    #[error("rollover: {why}")]
    Rollover {
        /// Why not, and what comes first.
        why: String,
    },
    /// The revocation list of a CA is gone.
    #[error(
        "{} holds no list of the CA with SHA-256 {ca}, so what it revoked is not known: bring the file back, from a backup or from a host ([tls] crl); where the CA was made just now, pveletctl pki init --force makes both anew; one of another program is taken over by pveletctl pki init --from-cert FILE --from-key FILE",
        path.display()
    )]
    NoList {
        /// The file.
        path: PathBuf,
        /// SHA-256 of the CA's certificate.
        ca: String,
    },
    /// No certificate of this CA fits.
    #[error("{what}: no certificate of this CA fits; pveletctl pki show lists them")]
    Unknown {
        /// What was looked for.
        what: String,
    },
    /// The certificate library refused.
    #[error("making a certificate failed: {0}")]
    Make(#[from] rcgen::Error),
}

impl PkiError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

#[cfg(test)]
mod tests;
