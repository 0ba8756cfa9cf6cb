//! The folder of a CA: `ca.crt`, `ca.key`, `ca.crl` (while a CA is replaced, `ca.crt` and `ca.crl` hold both: see `rollover`), `certs/<serial>.crt`
//! (a copy of every certificate issued, so that one can be revoked whose files are gone), `trust-domain` (only of a CA that another program made)
//! and `issued/` (what has been issued and not yet been carried away). Somebody may have added other CAs to `ca.crt` and their lists to `ca.crl`:
//! they stay there, after ours.

use std::{
    fs::{self, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::fcntl::{Flock, FlockArg};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::{Ca, CertInfo, Crl, Issued, Lifetime, Phase, PkiError, Rollover, crl::normal_serial, files, read_certs};

/// File name of the CA's certificate.
pub const CA_CERT: &str = "ca.crt";
/// File name of the CA's key.
pub const CA_KEY: &str = "ca.key";
/// File name of the CRL.
pub const CRL: &str = "ca.crl";
/// The trust domain of a CA whose certificate names none.
const TRUST_DOMAIN: &str = "trust-domain";
const CERTS: &str = "certs";
const LOCK: &str = ".lock";

/// A certificate's serial number, and the id of the key that signed it.
type Named = (String, Option<Vec<u8>>);

/// A CA's folder.
#[derive(Debug, Clone)]
pub struct PkiDir {
    dir: PathBuf,
}

impl PkiDir {
    /// Makes the folder (mode 0700), a CA and an empty CRL. An existing CA is kept and refused, unless `force`.
    pub fn init(dir: &Path, trust_domain: &str, lifetime: Lifetime, force: bool) -> Result<(Self, Ca), PkiError> {
        let ca = Ca::create(trust_domain, lifetime)?;
        files::make_private_dir(dir)?;
        let this = Self { dir: dir.to_owned() };
        let _lock = this.lock()?;
        for name in [CA_KEY, CA_CERT] {
            let path = dir.join(name);
            if !force && path.symlink_metadata().is_ok() {
                return Err(PkiError::Exists { path });
            }
        }
        files::write_private(&dir.join(CA_KEY), ca.key_pem().as_bytes(), force)?;
        files::write_public(&dir.join(CA_CERT), ca.cert_pem().as_bytes(), force)?;
        this.forget_rollover()?;
        // A CRL of an earlier CA is of no use to the new one.
        files::write_public(&dir.join(CRL), Crl::create(&ca)?.pem().as_bytes(), true)?;
        files::remove(&dir.join(TRUST_DOMAIN))?;
        Ok((this, ca))
    }

    /// Makes the folder of a CA that another program made (cert-manager, step-ca, OpenSSL): its certificate and key, and an empty CRL. Of
    /// several certificates the one of the key is taken: an intermediate CA is trusted by itself. Where the folder has a certificate of the same
    /// name and key already it is a renewed one, and what was revoked stays so. Another CA is kept and refused, unless `force`.
    pub fn take_over(dir: &Path, trust_domain: &str, cert_pem: &str, key_pem: &str, force: bool) -> Result<(Self, Ca), PkiError> {
        let ca = Ca::from_pem_for(cert_pem, key_pem, Some(trust_domain))?;
        let what = "the CA's certificate";
        if ca.trust_domain() != trust_domain {
            let why = format!("it is of trust domain '{}'; give that one", ca.trust_domain());
            return Err(PkiError::Invalid { field: "trust domain", value: trust_domain.to_owned(), why });
        }
        if ca.key_id().is_none() {
            let why =
                "it has no id of its key (extension subjectKeyIdentifier), by which its certificates are known; make it anew with one";
            return Err(PkiError::Malformed { what: what.to_owned(), why: why.to_owned() });
        }
        let list = Crl::create(&ca).map_err(|e| match e {
            PkiError::Make(rcgen::Error::IssuerNotCrlSigner) => PkiError::Malformed {
                what: what.to_owned(),
                why: "its key usage is without cRLSign, so that nothing could be revoked; make it anew with it (cert-manager: usages 'cert sign' and 'crl sign')".to_owned(),
            },
            e => e,
        })?;
        if !names_issuer(list.pem(), ca.cert_pem())? {
            let why = "its name cannot be written again as it stands there, and nothing that it issues would be trusted; make it anew with a common name alone";
            return Err(PkiError::Malformed { what: what.to_owned(), why: why.to_owned() });
        }
        files::make_private_dir(dir)?;
        let this = Self { dir: dir.to_owned() };
        let _lock = this.lock()?;
        let same = |there: Ca| {
            there.key_id() == ca.key_id()
                && there.issuer().key().public_key_raw() == ca.issuer().key().public_key_raw()
                // Of another name nothing would be trusted that it has issued.
                && names_issuer(list.pem(), there.cert_pem()).unwrap_or(false)
        };
        let renewed = this.ca().is_ok_and(same);
        for name in [CA_KEY, CA_CERT] {
            let path = dir.join(name);
            if !force && !renewed && path.symlink_metadata().is_ok() {
                return Err(PkiError::Exists { path });
            }
        }
        files::write_public(&dir.join(TRUST_DOMAIN), format!("{trust_domain}\n").as_bytes(), true)?;
        if renewed {
            this.renew_ca(&ca)?;
            return Ok((this, ca));
        }
        files::write_private(&dir.join(CA_KEY), ca.key_pem().as_bytes(), force)?;
        files::write_public(&dir.join(CA_CERT), ca.cert_pem().as_bytes(), force)?;
        this.forget_rollover()?;
        files::write_public(&dir.join(CRL), list.pem().as_bytes(), true)?;
        Ok((this, ca))
    }

    /// Names a folder that exists; nothing is read yet.
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads the CA that signs.
    pub fn ca(&self) -> Result<Ca, PkiError> {
        let read = |name: &str| match files::read(&self.dir.join(name)) {
            Err(PkiError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Err(PkiError::NoCa { dir: self.dir.clone() }),
            read => read,
        };
        self.ca_of(&read(CA_CERT)?, &read(CA_KEY)?)
    }

    /// A CA of this folder by its files' content.
    pub(super) fn ca_of(&self, cert_pem: &str, key_pem: &str) -> Result<Ca, PkiError> {
        let named = match files::read(&self.dir.join(TRUST_DOMAIN)) {
            Ok(text) => Some(text),
            Err(PkiError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ca::from_pem_for(cert_pem, key_pem, named.as_deref().map(str::trim))
    }

    /// The file of the CA's certificate.
    pub fn ca_cert_path(&self) -> PathBuf {
        self.dir.join(CA_CERT)
    }

    /// The file of the CRL.
    pub fn crl_path(&self) -> PathBuf {
        self.dir.join(CRL)
    }

    /// All CAs that are trusted, PEM: what hosts and clients get.
    pub fn bundle(&self) -> Result<String, PkiError> {
        files::read(&self.ca_cert_path())
    }

    /// Their revocation lists, PEM: what hosts get.
    pub fn lists(&self) -> Result<String, PkiError> {
        files::read(&self.crl_path())
    }

    /// Keeps a copy of an issued certificate: one that nobody can name cannot be revoked. Returns its path.
    pub fn keep(&self, serial: &str, cert_pem: &str) -> Result<PathBuf, PkiError> {
        let copies = self.dir.join(CERTS);
        files::make_dir(&copies)?;
        let copy = copies.join(format!("{serial}.crt"));
        files::write_public(&copy, cert_pem.as_bytes(), false)?;
        Ok(copy)
    }

    /// Writes an issued certificate and key into `out` (default: `issued/` of this folder), with a copy of the certificate for revocation.
    /// Returns the path of both files without their ending.
    pub fn deliver(&self, issued: &Issued, out: Option<&Path>, force: bool) -> Result<PathBuf, PkiError> {
        let out = out.map_or_else(|| self.dir.join("issued"), Path::to_owned);
        let base = issued.base_name();
        let copy = self.keep(&issued.serial, &issued.cert_pem)?;
        if let Err(e) = issued.write(&out, &base, force) {
            let _ = fs::remove_file(&copy);
            return Err(e);
        }
        Ok(out.join(base))
    }

    /// Every certificate that the CAs of this folder issued, soonest expiry first. Those of earlier CAs in the same folder are left out.
    pub fn issued(&self) -> Result<Vec<CertInfo>, PkiError> {
        let dir = self.dir.join(CERTS);
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let own = key_ids(&self.rollover()?);
        let mut certs = read_certs(&dir)?;
        certs.retain(|c| own.contains(&c.issuer_key_id));
        Ok(certs)
    }

    /// The CRL of the CA that signs, as it is now.
    pub fn crl(&self) -> Result<Crl, PkiError> {
        self.list_of(&self.ca()?)
    }

    /// The lists of all CAs of this folder, the one of the CA that signs first.
    pub fn crls(&self) -> Result<Vec<Crl>, PkiError> {
        let state = self.rollover()?;
        let mut lists = vec![self.list_of(&state.signing)?];
        if let Some(other) = &state.other {
            lists.extend(self.listed(other)?);
        }
        Ok(lists)
    }

    /// Revokes what `what` names: a certificate's file, a serial number, or a SPIFFE id: all its certificates that have not ended; while a new
    /// CA signs in place of an old one, those of the old one only. Returns the serial numbers newly revoked.
    pub fn revoke(&self, what: &str, time: SystemTime) -> Result<Vec<String>, PkiError> {
        self.ca()?;
        let _lock = self.lock()?;
        let state = self.rollover()?;
        // A killed step may have left a CA out, whose list no agent would take then.
        self.write_bundles(&state)?;
        self.add(&state, &self.serials(&state, what, time)?, time)
    }

    /// Revokes every certificate that a newer one of the same identity has replaced: one of the CA that signs before one of another CA, a
    /// later one before an earlier one. Returns what is revoked; with `only_tell` what would be.
    pub fn revoke_replaced(&self, time: SystemTime, only_tell: bool) -> Result<Vec<CertInfo>, PkiError> {
        self.ca()?;
        let _lock = self.lock()?;
        let state = self.rollover()?;
        if !only_tell {
            self.write_bundles(&state)?;
        }
        let age = |c: &CertInfo| (c.issuer_key_id.as_deref() == state.signing.key_id(), c.not_before);
        let alive = self.alive(time)?;
        // Who has nothing but a certificate for later still needs the one before.
        let newer = |c: &CertInfo, than: &CertInfo| c.uris == than.uris && c.not_before_time() <= time && age(c) > age(than);
        let replaced: Vec<CertInfo> = alive.iter().filter(|c| alive.iter().any(|other| newer(other, c))).cloned().collect();
        if !only_tell {
            let named: Vec<Named> = replaced.iter().map(|c| (c.serial.clone(), c.issuer_key_id.clone())).collect();
            self.add(&state, &named, time)?;
        }
        Ok(replaced)
    }

    /// Certificates of an identity that have neither ended nor been revoked.
    pub fn alive_with(&self, uri: &str, now: SystemTime) -> Result<Vec<CertInfo>, PkiError> {
        let mut certs = self.alive(now)?;
        certs.retain(|c| c.uris.iter().any(|u| u == uri));
        Ok(certs)
    }

    /// Certificates of all CAs of this folder that have neither ended nor been revoked.
    fn alive(&self, now: SystemTime) -> Result<Vec<CertInfo>, PkiError> {
        let (mut certs, lists) = (self.issued()?, self.crls()?);
        certs.retain(|c| c.not_after_time() >= now && !lists.iter().any(|list| list.revokes(c)));
        Ok(certs)
    }

    /// Adds serial numbers to the lists of the CAs that gave them. Returns those that are new there.
    fn add(&self, state: &Rollover, serials: &[Named], time: SystemTime) -> Result<Vec<String>, PkiError> {
        let mut new = Vec::new();
        let mut lists = Vec::new();
        for ca in state.cas() {
            let mut list = self.list_of(ca)?;
            for (serial, _) in serials.iter().filter(|(_, issuer)| issuer.as_deref() == ca.key_id()) {
                if list.revoke(ca, serial, time)? {
                    new.push(serial.clone());
                }
            }
            lists.push(list);
        }
        if !new.is_empty() {
            self.write_lists(state, &lists)?;
        }
        Ok(new)
    }

    /// The certificates that `what` names.
    fn serials(&self, state: &Rollover, what: &str, now: SystemTime) -> Result<Vec<Named>, PkiError> {
        let unknown = || PkiError::Unknown { what: what.to_owned() };
        let issued = self.issued()?;
        let named = |c: CertInfo| (c.serial, c.issuer_key_id);
        if what.starts_with("spiffe://") {
            let mut of_it = issued;
            of_it.retain(|c| c.uris.iter().any(|u| u == what) && c.not_after_time() >= now);
            if of_it.is_empty() {
                return Err(unknown());
            }
            if let (Phase::Switched, Some(old)) = (state.phase, &state.other) {
                // Who has got a new certificate meanwhile is the last to be shut out by tidying up after the old CA.
                of_it.retain(|c| c.issuer_key_id.as_deref() == old.key_id());
                if of_it.is_empty() {
                    return Err(PkiError::Invalid {
                        field: "identity",
                        value: what.to_owned(),
                        why: "the old CA has issued no certificate of it that lives; to revoke one of the new CA, name its serial number (pveletctl pki show)"
                            .to_owned(),
                    });
                }
            }
            return Ok(of_it.into_iter().map(named).collect());
        }
        if Path::new(what).is_file() {
            let cert = CertInfo::from_pem(&files::read(Path::new(what))?)?;
            if !key_ids(state).contains(&cert.issuer_key_id) {
                return Err(PkiError::Invalid { field: "certificate", value: what.to_owned(), why: "this CA did not issue it".to_owned() });
            }
            return Ok(vec![named(cert)]);
        }
        let serial = normal_serial(what).map_err(|_| PkiError::Invalid {
            field: "certificate",
            value: what.chars().take(128).collect(),
            why: "there is no such file; name a certificate's file, a serial number in hexadecimal, or an identity (spiffe://...)"
                .to_owned(),
        })?;
        issued.into_iter().find(|c| c.serial == serial).map(|c| vec![named(c)]).ok_or_else(unknown)
    }

    /// Held while the CRL is read, changed and written, so that of two revocations none is lost.
    pub(super) fn lock(&self) -> Result<Flock<fs::File>, PkiError> {
        let path = self.dir.join(LOCK);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(PkiError::io(&path))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| PkiError::Io { path, source: e.into() })
    }
}

/// Of all CAs of the folder.
fn key_ids(state: &Rollover) -> Vec<Option<Vec<u8>>> {
    state.cas().map(|ca| ca.key_id().map(<[u8]>::to_vec)).collect()
}

/// Whether a list names the CA just as the CA's certificate does, byte by byte: so whoever verifies finds the issuer.
fn names_issuer(list: &str, ca: &str) -> Result<bool, PkiError> {
    let malformed = |what: &str, why: String| PkiError::Malformed { what: what.to_owned(), why };
    let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).map_err(|e| malformed("the CRL", e.to_string()))?;
    let ca = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|e| malformed("the CA's certificate", e.to_string()))?;
    let (_, list) = CertificateRevocationList::from_der(&list).map_err(|e| malformed("the CRL", e.to_string()))?;
    let (_, ca) = X509Certificate::from_der(&ca).map_err(|e| malformed("the CA's certificate", e.to_string()))?;
    Ok(list.issuer().as_raw() == ca.subject().as_raw())
}
