//! The client's own certificate and key, and the CA it trusts; read again when the files change.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use pvelet_proto::identity::Identity;
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::TlsError;
use crate::pki::CertInfo;

/// Where a client's credentials lie; PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialFiles {
    /// Certificates of the CAs that are trusted to name hosts.
    pub ca: PathBuf,
    /// The client's certificate, intermediate ones after it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl CredentialFiles {
    /// Each with the name of its option.
    fn paths(&self) -> [(&'static str, &Path); 3] {
        [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)]
    }
}

/// One whole and checked set of credentials.
#[derive(Debug)]
pub struct Loaded {
    /// Who the client is.
    pub identity: Identity,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) key: Arc<CertifiedKey>,
}

impl Loaded {
    /// Checks PEM texts; `files` is for the errors only. Whether the certificate is still valid is left to the server, whose clock and
    /// revocation list decide.
    fn parse(files: &CredentialFiles, [ca, cert, key]: [&[u8]; 3]) -> Result<Self, TlsError> {
        let fail = |path: &Path, why: String| TlsError::File { path: path.to_owned(), why };
        let provider = Arc::new(ring::default_provider());

        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(ca) {
            let der = der.map_err(|e| fail(&files.ca, format!("malformed PEM: {e}")))?;
            roots.add(der).map_err(|e| fail(&files.ca, format!("it holds what is no CA certificate: {e}")))?;
        }
        if roots.is_empty() {
            return Err(fail(&files.ca, "it holds no certificate; use the ca.crt that pveletctl pki init made".to_owned()));
        }

        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>().map_err(|e| fail(&files.cert, format!("malformed PEM: {e}")))?;
        let Some(own) = chain.first() else {
            return Err(fail(&files.cert, "it holds no certificate".to_owned()));
        };
        let info = CertInfo::from_der(own).map_err(|e| fail(&files.cert, e.to_string()))?;
        let identity = info.identity().ok_or_else(|| {
            fail(
                &files.cert,
                "the certificate names no identity of pvelet (one URI spiffe://...); issue one with pveletctl pki issue".to_owned(),
            )
        })?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| fail(&files.key, format!("it holds no private key: {e}")))?;
        let key = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|e| fail(&files.key, format!("the key cannot be used with the certificate {}: {e}", files.cert.display())))?;
        Ok(Self { identity, provider, roots: Arc::new(roots), key: Arc::new(key) })
    }
}

/// What tells one state of a file from another: device, inode, size, and both times in nanoseconds.
type Stamp = [(u64, u64, u64, i64, i64, i64, i64); 3];

struct State {
    stamp: Option<Stamp>,
    loaded: Arc<Loaded>,
}

/// Credentials that follow their files. Each new connection uses what lies in the files then; connections that exist go on with what they
/// have, so that a rotation drops no call. Files that cannot be used keep the last good set, with a warning in the log. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    files: Arc<CredentialFiles>,
    state: Arc<Mutex<State>>,
}

impl Credentials {
    /// Reads the files.
    pub fn load(files: CredentialFiles) -> Result<Self, TlsError> {
        let (stamp, loaded) = read(&files)?;
        Ok(Self { files: Arc::new(files), state: Arc::new(Mutex::new(State { stamp: Some(stamp), loaded: Arc::new(loaded) })) })
    }

    /// Takes PEM texts, which never change.
    pub fn from_pem(ca: &str, cert: &str, key: &str) -> Result<Self, TlsError> {
        let files = CredentialFiles { ca: "<ca>".into(), cert: "<cert>".into(), key: "<key>".into() };
        let loaded = Loaded::parse(&files, [ca.as_bytes(), cert.as_bytes(), key.as_bytes()])?;
        Ok(Self { files: Arc::new(files), state: Arc::new(Mutex::new(State { stamp: None, loaded: Arc::new(loaded) })) })
    }

    /// The credentials for a connection made now. Looks at the files (blocking).
    pub fn current(&self) -> Arc<Loaded> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.stamp
            && !stamp(&self.files).is_ok_and(|now| now == known)
        {
            match read(&self.files) {
                Ok((stamp, loaded)) => {
                    tracing::info!(identity = %loaded.identity, "client credentials read again");
                    *state = State { stamp: Some(stamp), loaded: Arc::new(loaded) };
                }
                // The old stamp stays, so that the next connection looks again.
                Err(e) => tracing::warn!(error = %e, "changed client credentials cannot be used, the last good ones stay in use"),
            }
        }
        Arc::clone(&state.loaded)
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("files", &self.files).finish_non_exhaustive()
    }
}

fn unreadable(option: &str, path: &Path, why: &std::io::Error) -> TlsError {
    TlsError::File { path: path.to_owned(), why: format!("cannot be read ({why}); name the right file for {option}") }
}

fn stamp(files: &CredentialFiles) -> Result<Stamp, TlsError> {
    let mut stamp = Stamp::default();
    for (slot, (option, path)) in stamp.iter_mut().zip(files.paths()) {
        let m = fs::metadata(path).map_err(|e| unreadable(option, path, &e))?;
        *slot = (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    }
    Ok(stamp)
}

fn read(files: &CredentialFiles) -> Result<(Stamp, Loaded), TlsError> {
    // The stamp is taken first: what changes between the two is seen the next time.
    let stamp = stamp(files)?;
    let [ca, cert, key] = files.paths().map(|(option, path)| fs::read(path).map_err(|e| unreadable(option, path, &e)));
    let (ca, cert, key) = (ca?, cert?, key?);
    Ok((stamp, Loaded::parse(files, [&ca, &cert, &key])?))
}
