//! The certificates as callers see and change them, off the runtime's threads.

use std::{sync::Arc, time::Duration};

use super::{CertificateInfo, Credentials, Installed, Material, Names, New, Peer, SigningRequest};
use crate::{
    error::{Error, Trouble},
    host::blocking::Blocking,
};

/// A few small files are written and synced.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is in use now.
#[derive(Debug, Clone)]
pub struct InUse {
    /// The set of credentials.
    pub material: Arc<Material>,
    /// Whether the key of a next certificate waits.
    pub request_pending: bool,
    /// Why the files, as they are now, are not in use.
    pub rejected: Option<String>,
}

/// The agent's certificates. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Certificates {
    credentials: Arc<Credentials>,
    place: Blocking,
}

impl Certificates {
    /// On top of the credentials in use.
    pub fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, place: Blocking::new() }
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Credentials) -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        let credentials = Arc::clone(&self.credentials);
        let done = self.place.run("the folder of the TLS files", PATIENCE, move || work(&credentials)).await;
        done.map_err(|error| match error {
            Error::Look { trouble: Trouble::Silent, message } => {
                Error::Internal(format!("{message}; what is in use then, GetCertificate tells"))
            }
            other => other,
        })
    }

    /// What is in use.
    ///
    /// # Errors
    /// `Internal` when the folder of the files hangs.
    pub async fn in_use(&self) -> Result<InUse, Error> {
        let request_pending = self.blocking(|credentials| Ok(credentials.request_pending())).await?;
        let rejected = self.credentials.rejected().map(|e| e.to_string());
        Ok(InUse { material: self.credentials.current(), request_pending, rejected })
    }

    /// A request for the next certificate; without names, for those of the one in use.
    ///
    /// # Errors
    /// `CertificateFiles`, `OperationInProgress`, `Internal`.
    pub async fn signing_request(&self, names: Names) -> Result<SigningRequest, Error> {
        self.blocking(move |credentials| credentials.signing_request(names)).await
    }

    /// Checks, puts in place and takes over.
    ///
    /// # Errors
    /// `Invalid`, `CrlOlder`, `CallerLockedOut`, `CertificateFiles`, `OperationInProgress`, `Internal`.
    pub async fn install(&self, new: New, caller: Peer) -> Result<Installed, Error> {
        self.blocking(move |credentials| credentials.install(&new, &caller)).await
    }

    /// The certificate in use.
    pub fn current(&self) -> CertificateInfo {
        self.credentials.current().own.clone()
    }
}
