//! The client's own certificate and key, the CAs it trusts, and what they have revoked; read again when the files change.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use pvelet_proto::identity::Identity;
use rustls::{
    crypto::{CryptoProvider, ring},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};

use super::{
    TlsError,
    trust::{Refusal, Trust},
};
use crate::pki::{CRL, CertInfo};

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

/// Where the revocation lists of the CAs that name hosts lie; PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CrlFile {
    /// Nowhere: no host's certificate counts as revoked.
    #[default]
    None,
    /// In this file.
    File(PathBuf),
    /// In this file, once it is there. From then on what is revoked stays so, though the file goes.
    IfThere(PathBuf),
}

impl CrlFile {
    /// Where nothing else is said: `ca.crl` in the folder of the CAs, as the CA's own folder has it.
    pub fn beside(ca: &Path) -> Self {
        Self::IfThere(ca.with_file_name(CRL))
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::None => None,
            Self::File(path) | Self::IfThere(path) => Some(path),
        }
    }

    /// `value`, or nothing where the file need not be there and is not.
    fn found<T>(&self, value: io::Result<T>) -> Result<Option<T>, TlsError> {
        match (self, value) {
            (Self::None, _) => Ok(None),
            (_, Ok(value)) => Ok(Some(value)),
            (Self::IfThere(_), Err(e)) if e.kind() == ErrorKind::NotFound => Ok(None),
            (Self::File(path) | Self::IfThere(path), Err(e)) => Err(unreadable("crl", path, &e)),
        }
    }
}

/// One whole and checked set of credentials.
#[derive(Debug)]
pub struct Loaded {
    /// Who the client is.
    pub identity: Identity,
    /// What somebody should know although the set is good.
    pub warnings: Vec<String>,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) trust: Arc<Trust>,
    pub(super) key: Arc<CertifiedKey>,
}

impl Loaded {
    /// Whether what a host has shown, its own certificate first, is revoked by now.
    pub(crate) fn revokes(&self, chain: &[CertificateDer<'_>]) -> bool {
        let revoked = |e| e == Refusal::Chain(webpki::Error::CertRevoked);
        chain.split_first().is_some_and(|(own, rest)| self.trust.verify(own, rest, UnixTime::now()).is_err_and(revoked))
    }

    /// Checks PEM texts; `files` is for the errors only. Whether the certificate is still valid is left to the server, whose clock and
    /// revocation list decide.
    fn parse(files: &CredentialFiles, [ca, cert, key]: [&[u8]; 3], crl: Option<(&[u8], &Path)>) -> Result<Self, TlsError> {
        let fail = |path: &Path, why: String| TlsError::File { path: path.to_owned(), why };
        let provider = Arc::new(ring::default_provider());
        let mut warnings = Vec::new();
        let trust = Trust::read((ca, &files.ca), crl, provider.signature_verification_algorithms, Timestamp::now(), &mut warnings)?;

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
        Ok(Self { identity, warnings, provider, trust: Arc::new(trust), key: Arc::new(key) })
    }
}

/// What tells one state of a file from another: device, inode, size, and both times in nanoseconds.
type FileStamp = (u64, u64, u64, i64, i64, i64, i64);

/// Of CA, certificate, key, and lists where there are any.
type Stamp = ([FileStamp; 3], Option<FileStamp>);

struct State {
    stamp: Option<Stamp>,
    loaded: Arc<Loaded>,
}

/// Credentials that follow their files. Each new connection uses what lies in the files then; connections that exist go on with what they
/// have, so that a rotation drops no call. Files that cannot be used keep the last good set, with a warning in the log. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    files: Arc<CredentialFiles>,
    crl: Arc<CrlFile>,
    state: Arc<Mutex<State>>,
}

impl Credentials {
    /// Reads the files. No host's certificate counts as revoked.
    pub fn load(files: CredentialFiles) -> Result<Self, TlsError> {
        Self::load_with_crl(files, CrlFile::None)
    }

    /// Reads the files, and the revocation lists of the CAs.
    pub fn load_with_crl(files: CredentialFiles, crl: CrlFile) -> Result<Self, TlsError> {
        let (stamp, loaded) = read(&files, &crl)?;
        warn(&loaded);
        Ok(Self::new(files, crl, State { stamp: Some(stamp), loaded: Arc::new(loaded) }))
    }

    fn new(files: CredentialFiles, crl: CrlFile, state: State) -> Self {
        Self { files: Arc::new(files), crl: Arc::new(crl), state: Arc::new(Mutex::new(state)) }
    }

    /// Takes PEM texts, which never change.
    pub fn from_pem(ca: &str, cert: &str, key: &str) -> Result<Self, TlsError> {
        let files = CredentialFiles { ca: "<ca>".into(), cert: "<cert>".into(), key: "<key>".into() };
        let loaded = Loaded::parse(&files, [ca.as_bytes(), cert.as_bytes(), key.as_bytes()], None)?;
        Ok(Self::new(files, CrlFile::None, State { stamp: None, loaded: Arc::new(loaded) }))
    }

    /// The credentials for a connection made now. Looks at the files (blocking).
    pub fn current(&self) -> Arc<Loaded> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.stamp
            && !stamp(&self.files, &self.crl).is_ok_and(|now| now == known)
        {
            match self.read_again(&state.loaded) {
                Ok((stamp, loaded)) => {
                    tracing::info!(identity = %loaded.identity, "client credentials read again");
                    warn(&loaded);
                    *state = State { stamp: Some(stamp), loaded: Arc::new(loaded) };
                }
                // The old stamp stays, so that the next connection looks again.
                Err(e) => tracing::warn!(error = %e, "changed client credentials cannot be used, the last good ones stay in use"),
            }
        }
        Arc::clone(&state.loaded)
    }

    fn read_again(&self, last: &Loaded) -> Result<(Stamp, Loaded), TlsError> {
        let read = read(&self.files, &self.crl)?;
        match self.crl.path().filter(|_| last.trust.lists && !read.1.trust.lists) {
            Some(path) => {
                let why = "it is gone, and what was revoked in it stays revoked; bring it back, or start anew without it".to_owned();
                Err(TlsError::File { path: path.to_owned(), why })
            }
            None => Ok(read),
        }
    }
}

fn warn(loaded: &Loaded) {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("files", &self.files).field("crl", &self.crl).finish_non_exhaustive()
    }
}

fn unreadable(option: &str, path: &Path, why: &std::io::Error) -> TlsError {
    TlsError::File { path: path.to_owned(), why: format!("cannot be read ({why}); name the right file for {option}") }
}

fn stamp(files: &CredentialFiles, crl: &CrlFile) -> Result<Stamp, TlsError> {
    let of = |path: &Path| {
        let stamp = |m: fs::Metadata| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        fs::metadata(path).map(stamp)
    };
    let mut stamps = [FileStamp::default(); 3];
    for (slot, (option, path)) in stamps.iter_mut().zip(files.paths()) {
        *slot = of(path).map_err(|e| unreadable(option, path, &e))?;
    }
    let list = crl.path().map(|path| crl.found(of(path))).transpose()?;
    Ok((stamps, list.flatten()))
}

fn read(files: &CredentialFiles, crl: &CrlFile) -> Result<(Stamp, Loaded), TlsError> {
    // The stamp is taken first: what changes between the two is seen the next time.
    let stamp = stamp(files, crl)?;
    let [ca, cert, key] = files.paths().map(|(option, path)| fs::read(path).map_err(|e| unreadable(option, path, &e)));
    let (ca, cert, key) = (ca?, cert?, key?);
    let lists = match crl.path() {
        Some(path) => crl.found(fs::read(path))?.map(|text| (text, path)),
        None => None,
    };
    let lists = lists.as_ref().map(|(text, path)| (text.as_slice(), *path));
    Ok((stamp, Loaded::parse(files, [&ca, &cert, &key], lists)?))
}
