//! The credentials in use, and their replacement while the agent runs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::{
    Connections, Material, Peer,
    files::{self, Sources},
    info::lasting,
    install::{self, Installed, New},
    request::{self, Names, SigningRequest},
};
use crate::{config, error::Error, metrics::Metrics};

/// The credentials in use. Whoever accepts a connection takes the present set; a new one comes in as a whole or not at all.
pub struct Credentials {
    files: config::Tls,
    node: String,
    current: ArcSwap<Material>,
    /// What was read last, good or bad, and what is wrong with it, so that the same files are not judged twice.
    seen: Mutex<(Sources, Option<Error>)>,
    /// Why the files, as they are now, are not in use.
    rejected: ArcSwapOption<Error>,
    connections: Arc<Connections>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("current", &self.current.load()).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the first set.
    ///
    /// # Errors
    /// `Credentials` when a file is missing or wrong.
    pub fn open(files: config::Tls, node: String, metrics: Arc<Metrics>) -> Result<Arc<Self>, Error> {
        if let Err(error) = files::finish(&files) {
            tracing::warn!(%error, "an interrupted install of certificates is not finished; what it decided is in use");
        }
        let sources = Sources::read(&files)?;
        let material = Material::build(&sources, &files, &node, SystemTime::now())?;
        report(&material, &metrics);
        let (current, seen) = (ArcSwap::from_pointee(material), Mutex::new((sources, None)));
        Ok(Arc::new(Self { files, node, current, seen, rejected: ArcSwapOption::empty(), connections: Arc::default(), metrics }))
    }

    /// The set in use.
    pub fn current(&self) -> Arc<Material> {
        self.current.load_full()
    }

    /// Why the files of `[tls]`, as they were read last, are not in use; `None`: they are.
    pub fn rejected(&self) -> Option<Arc<Error>> {
        self.rejected.load_full()
    }

    /// The connections that are open.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    pub(super) fn files(&self) -> &config::Tls {
        &self.files
    }

    /// Reads the files again and takes them over when all are good; closes the connections that are no longer accepted. A bad file keeps
    /// the last good set. With `force` unchanged files are judged again too. Blocks for as long as the files take to read.
    pub fn reload(&self, force: bool) {
        let before = self.rejected().map(|e| e.to_string());
        match self.try_reload(force) {
            Ok(None) => {}
            Ok(Some(closed)) => tracing::info!(closed, serial = self.current().own.serial, "TLS files reloaded"),
            Err(error) => {
                self.metrics.tls_reload_failed();
                // While the files cannot be watched they are read every few seconds, and the same is told once.
                if force || before != Some(error.to_string()) {
                    tracing::error!(%error, "TLS files are bad; the last good ones stay in use");
                }
            }
        }
    }

    fn try_reload(&self, force: bool) -> Result<Option<usize>, Error> {
        // Held to the end: two reloads at once could bring back the older set.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let sources = Sources::read(&self.files).inspect_err(|e| self.reject(Some(e)))?;
        if sources == seen.0 && !force {
            self.reject(seen.1.as_ref());
            return Ok(None);
        }
        let built = Material::build(&sources, &self.files, &self.node, SystemTime::now());
        *seen = (sources, built.as_ref().err().cloned());
        self.reject(seen.1.as_ref());
        let material = Arc::new(built?);
        report(&material, &self.metrics);
        self.current.store(material.clone());
        Ok(Some(self.connections.recheck(&material)))
    }

    /// Makes the key of the next certificate where none waits, and a request for it. Without names: those of the certificate in use. Blocks.
    ///
    /// # Errors
    /// `CertificateFiles`, `OperationInProgress`.
    pub fn signing_request(&self, names: Names) -> Result<SigningRequest, Error> {
        let current = self.current();
        let own = || Names { dns: current.own.dns.clone(), ips: current.own.ips.clone() };
        let names = if names.is_empty() { own() } else { names };
        request::signing_request(&self.files, &current.cluster, &self.node, &names)
    }

    /// Whether the key of a next certificate waits. Blocks.
    pub fn request_pending(&self) -> bool {
        request::pending(&self.files)
    }

    /// Checks `new` as a whole, puts it in place and takes it over. Blocks.
    ///
    /// # Errors
    /// `Invalid`, `CrlOlder`, `CallerLockedOut`, `CertificateFiles`, `OperationInProgress`; nothing has changed then.
    pub fn install(&self, new: &New, caller: &Peer) -> Result<Installed, Error> {
        // No reload may come in between: it would take over the older set.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let place = install::Place { files: &self.files, node: &self.node, cluster: Some(&self.current().cluster) };
        let (sources, material, changed) = install::install(&place, new, Some(caller), SystemTime::now())?;
        let same = seen.0 == sources && seen.1.is_none();
        *seen = (sources, None);
        self.reject(None);
        let certificate = material.own.clone();
        if !changed && same {
            return Ok(Installed { changed, certificate, closed: 0 });
        }
        let material = Arc::new(material);
        report(&material, &self.metrics);
        self.current.store(material.clone());
        Ok(Installed { changed, certificate, closed: self.connections.recheck(&material) })
    }

    fn reject(&self, why: Option<&Error>) {
        self.rejected.store(why.cloned().map(Arc::new));
    }
}

fn report(material: &Material, metrics: &Metrics) {
    metrics.certificate_expires(material.not_after);
    metrics.client_ca_expires(lasting(&material.authorities).map(|ca| ca.not_after).min());
    for warning in &material.warnings {
        tracing::warn!("{warning}");
    }
}
