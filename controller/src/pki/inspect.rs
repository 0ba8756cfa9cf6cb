//! What stands in a certificate or CRL.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pvelet_proto::identity::Identity;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{CertificateRevocationList, FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::{PkiError, Revoked};

/// What a certificate says.
#[derive(Debug, Clone)]
pub struct CertInfo {
    /// The file it was read from, where it was.
    pub path: Option<PathBuf>,
    /// Common name of its subject.
    pub subject: String,
    /// URIs among its names.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// Serial number, hexadecimal, lower case.
    pub serial: String,
    /// First second of validity, since 1970.
    pub not_before: i64,
    /// Last second of validity, since 1970.
    pub not_after: i64,
    /// Whether it is a CA's.
    pub ca: bool,
    /// Whether its extended key usage allows serving.
    pub server_auth: bool,
    /// Whether its extended key usage allows calling.
    pub client_auth: bool,
    /// Whether its extended key usage holds anything beside these two.
    pub other_usage: bool,
    /// SHA-256 of the whole certificate (DER), hexadecimal.
    pub sha256: String,
    /// Name of its issuer.
    pub issuer: String,
    /// The public key's raw bits.
    pub public_key: Vec<u8>,
    /// Its own key's id.
    pub key_id: Option<Vec<u8>>,
    /// The id of the key that signed it.
    pub issuer_key_id: Option<Vec<u8>>,
}

fn malformed(what: &str, why: impl ToString) -> PkiError {
    PkiError::Malformed { what: what.to_owned(), why: why.to_string() }
}

impl CertInfo {
    /// Reads the first certificate of a PEM text.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| malformed("the certificate", format!("no PEM block CERTIFICATE in it ({e})")))?;
        Self::from_der(&der)
    }

    /// Reads every certificate of a PEM text.
    pub fn all_from_pem(pem: &str) -> Result<Vec<Self>, PkiError> {
        super::files::blocks(pem, "CERTIFICATE").into_iter().map(Self::from_pem).collect()
    }

    /// Reads a certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let (_, cert) = X509Certificate::from_der(der).map_err(|e| malformed("the certificate", e))?;
        let (mut uris, mut dns, mut ips) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(san) = cert.subject_alternative_name().map_err(|e| malformed("the certificate", e))? {
            for name in &san.value.general_names {
                match name {
                    GeneralName::URI(u) => uris.push((*u).to_owned()),
                    GeneralName::DNSName(d) => dns.push((*d).to_owned()),
                    GeneralName::IPAddress(b) => ips.extend(ip(b)),
                    _ => {}
                }
            }
        }
        let eku = cert.extended_key_usage().map_err(|e| malformed("the certificate", e))?;
        let eku = eku.as_ref().map(|e| e.value);
        let (mut key_id, mut issuer_key_id) = (None, None);
        for extension in cert.iter_extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => key_id = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => issuer_key_id = id.key_identifier.as_ref().map(|k| k.0.to_vec()),
                _ => {}
            }
        }
        let subject = cert.subject().iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or_default().to_owned();
        Ok(Self {
            path: None,
            subject,
            uris,
            dns,
            ips,
            serial: hex::encode(cert.raw_serial()),
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
            ca: cert.is_ca(),
            server_auth: eku.is_some_and(|e| e.server_auth),
            client_auth: eku.is_some_and(|e| e.client_auth),
            other_usage: eku
                .is_some_and(|e| e.any || e.code_signing || e.email_protection || e.time_stamping || e.ocsp_signing || !e.other.is_empty()),
            sha256: hex::encode(Sha256::digest(der)),
            issuer: cert.issuer().to_string(),
            public_key: cert.public_key().subject_public_key.data.to_vec(),
            key_id,
            issuer_key_id,
        })
    }

    /// Its one identity of pvelet. A certificate with several URIs has none: SPIFFE allows exactly one.
    pub fn identity(&self) -> Option<Identity> {
        match self.uris.as_slice() {
            [uri] => Identity::parse(uri).ok(),
            _ => None,
        }
    }

    /// [`Self::not_before`] as a time.
    pub fn not_before_time(&self) -> SystemTime {
        time(self.not_before)
    }

    /// [`Self::not_after`] as a time.
    pub fn not_after_time(&self) -> SystemTime {
        time(self.not_after)
    }
}

/// An IP address as a subject alternative name holds it.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Reads the certificates of a file, or of every `*.crt` and `*.pem` file of a folder (its subfolders `certs` and `issued` not included),
/// soonest expiry first. Files without a certificate are passed over in a folder, and an error when named.
pub fn read_certs(path: &Path) -> Result<Vec<CertInfo>, PkiError> {
    let mut all = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(PkiError::io(path))? {
            let file = entry.map_err(PkiError::io(path))?.path();
            if file.is_file() && file.extension().is_some_and(|e| e == "crt" || e == "pem") {
                all.extend(file_certs(&file)?);
            }
        }
    } else {
        all = file_certs(path)?;
        if all.is_empty() {
            return Err(malformed(&path.display().to_string(), "no PEM block CERTIFICATE in it"));
        }
    }
    all.sort_by_key(|c| c.not_after);
    Ok(all)
}

fn file_certs(path: &Path) -> Result<Vec<CertInfo>, PkiError> {
    let text = fs::read(path).map_err(PkiError::io(path))?;
    CertificateDer::pem_slice_iter(&text)
        .map(|der| {
            let der = der.map_err(|e| malformed(&path.display().to_string(), e))?;
            let mut info = CertInfo::from_der(&der).map_err(|e| malformed(&path.display().to_string(), e))?;
            info.path = Some(path.to_owned());
            Ok(info)
        })
        .collect()
}

/// What a CRL says.
#[derive(Debug, Clone)]
pub struct CrlInfo {
    /// Its number.
    pub number: u64,
    /// When it was made, seconds since 1970.
    pub this_update: i64,
    /// The id of the key that signed it.
    pub issuer_key_id: Option<Vec<u8>>,
    /// What is revoked, in the list's order.
    pub revoked: Vec<Revoked>,
}

impl CrlInfo {
    /// Reads the first CRL of a PEM text.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| malformed("the CRL", format!("no PEM block X509 CRL in it ({e})")))?;
        let (_, crl) = CertificateRevocationList::from_der(&der).map_err(|e| malformed("the CRL", e))?;
        let number = crl.crl_number().map_or(Ok(0), |n| u64::try_from(n).map_err(|e| malformed("the CRL", e)))?;
        let revoked = crl
            .iter_revoked_certificates()
            .map(|r| Revoked { serial: hex::encode(r.raw_serial()), time: time(r.revocation_date.timestamp()) })
            .collect();
        let issuer_key_id = crl.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0.to_vec()),
            _ => None,
        });
        Ok(Self { number, this_update: crl.last_update().timestamp(), issuer_key_id, revoked })
    }
}
