//! The folder of a CA: `ca.crt`, `ca.key`, `ca.crl`, `certs/<serial>.crt` (a copy of every certificate issued, so that one can be revoked
//! whose files are gone) and `issued/` (what has been issued and not yet been carried away).

use std::{
    fs::{self, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::fcntl::{Flock, FlockArg};

use super::{Ca, CertInfo, Crl, Issued, Lifetime, PkiError, crl::normal_serial, files, read_certs};

/// File name of the CA's certificate.
pub const CA_CERT: &str = "ca.crt";
/// File name of the CA's key.
pub const CA_KEY: &str = "ca.key";
/// File name of the CRL.
pub const CRL: &str = "ca.crl";
const CERTS: &str = "certs";
const LOCK: &str = ".lock";

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
        // A CRL of an earlier CA is of no use to the new one.
        files::write_public(&dir.join(CRL), Crl::create(&ca)?.pem().as_bytes(), true)?;
        Ok((this, ca))
    }

    /// Names a folder that exists; nothing is read yet.
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Reads the CA.
    pub fn ca(&self) -> Result<Ca, PkiError> {
        let read = |name: &str| match files::read(&self.dir.join(name)) {
            Err(PkiError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Err(PkiError::NoCa { dir: self.dir.clone() }),
            read => read,
        };
        Ca::from_pem(&read(CA_CERT)?, &read(CA_KEY)?)
    }

    /// The file of the CA's certificate.
    pub fn ca_cert_path(&self) -> PathBuf {
        self.dir.join(CA_CERT)
    }

    /// The file of the CRL.
    pub fn crl_path(&self) -> PathBuf {
        self.dir.join(CRL)
    }

    /// Writes an issued certificate and key into `out` (default: `issued/` of this folder), with a copy of the certificate for revocation.
    /// Returns the path of both files without their ending.
    pub fn deliver(&self, issued: &Issued, out: Option<&Path>, force: bool) -> Result<PathBuf, PkiError> {
        let out = out.map_or_else(|| self.dir.join("issued"), Path::to_owned);
        let base = issued.base_name();
        // The copy comes first: a certificate that nobody can name cannot be revoked.
        let copies = self.dir.join(CERTS);
        files::make_dir(&copies)?;
        let copy = copies.join(format!("{}.crt", issued.serial));
        files::write_public(&copy, issued.cert_pem.as_bytes(), false)?;
        if let Err(e) = issued.write(&out, &base, force) {
            let _ = fs::remove_file(&copy);
            return Err(e);
        }
        Ok(out.join(base))
    }

    /// Every certificate that this CA issued, soonest expiry first. Those of an earlier CA in the same folder are left out.
    pub fn issued(&self) -> Result<Vec<CertInfo>, PkiError> {
        let dir = self.dir.join(CERTS);
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let own = self.key_id()?;
        let mut certs = read_certs(&dir)?;
        certs.retain(|c| c.issuer_key_id == own);
        Ok(certs)
    }

    fn key_id(&self) -> Result<Option<Vec<u8>>, PkiError> {
        Ok(CertInfo::from_pem(&files::read(&self.ca_cert_path())?)?.key_id)
    }

    /// The CRL as it is now.
    pub fn crl(&self) -> Result<Crl, PkiError> {
        Crl::from_pem(&files::read(&self.crl_path())?)
    }

    /// Revokes what `what` names: a certificate's file, a serial number, or a SPIFFE id (all its certificates that have not ended). Returns
    /// the serial numbers newly revoked.
    pub fn revoke(&self, what: &str, time: SystemTime) -> Result<Vec<String>, PkiError> {
        let ca = self.ca()?;
        let serials = self.serials(what, time)?;
        let _lock = self.lock()?;
        let mut crl = self.crl()?;
        let mut new = Vec::new();
        for serial in serials {
            if crl.revoke(&ca, &serial, time)? {
                new.push(serial);
            }
        }
        if !new.is_empty() {
            files::write_public(&self.crl_path(), crl.pem().as_bytes(), true)?;
        }
        Ok(new)
    }

    fn serials(&self, what: &str, now: SystemTime) -> Result<Vec<String>, PkiError> {
        let unknown = || PkiError::Unknown { what: what.to_owned() };
        let issued = self.issued()?;
        if what.starts_with("spiffe://") {
            let of_it: Vec<String> =
                issued.into_iter().filter(|c| c.uris.iter().any(|u| u == what) && c.not_after_time() >= now).map(|c| c.serial).collect();
            return if of_it.is_empty() { Err(unknown()) } else { Ok(of_it) };
        }
        if Path::new(what).is_file() {
            let cert = CertInfo::from_pem(&files::read(Path::new(what))?)?;
            if cert.issuer_key_id != self.key_id()? {
                return Err(PkiError::Invalid { field: "certificate", value: what.to_owned(), why: "this CA did not issue it".to_owned() });
            }
            return Ok(vec![cert.serial]);
        }
        let serial = normal_serial(what).map_err(|_| PkiError::Invalid {
            field: "certificate",
            value: what.chars().take(128).collect(),
            why: "there is no such file; name a certificate's file, a serial number in hexadecimal, or an identity (spiffe://...)"
                .to_owned(),
        })?;
        if issued.iter().any(|c| c.serial == serial) { Ok(vec![serial]) } else { Err(unknown()) }
    }

    /// Held while the CRL is read, changed and written, so that of two revocations none is lost.
    fn lock(&self) -> Result<Flock<fs::File>, PkiError> {
        let path = self.dir.join(LOCK);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(PkiError::io(&path))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| PkiError::Io { path, source: e.into() })
    }
}
