//! What people and programs are told of certificates. Nothing secret is in it.

use std::{net::IpAddr, time::SystemTime};

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{CertificateRevocationList, FromDer, GeneralName, X509Certificate};

use super::leaf::{Leaf, system_time};

/// The agent's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// SPIFFE id.
    pub identity: String,
    /// Serial number, hexadecimal, lower case.
    pub serial: String,
    /// First second of its validity.
    pub not_before: SystemTime,
    /// Last second of its validity.
    pub not_after: SystemTime,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// Name of the CA that issued it.
    pub issuer: String,
    /// SHA-256 of its DER, hexadecimal.
    pub sha256: String,
}

impl CertificateInfo {
    pub(super) fn new(leaf: &Leaf, der: &[u8], cert: &X509Certificate<'_>) -> Self {
        let (mut dns, mut ips) = (Vec::new(), Vec::new());
        let names = cert.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|n| &n.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    ips.extend(v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)));
                }
                _ => {}
            }
        }
        Self {
            identity: leaf.identity.to_string(),
            serial: leaf.serial.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            dns,
            ips,
            issuer: cert.issuer().to_string(),
            sha256: sha256(der),
        }
    }
}

/// A CA whose clients are heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityInfo {
    /// Its name.
    pub subject: String,
    /// SHA-256 of its certificate's DER, hexadecimal.
    pub sha256: String,
    /// SHA-256 of its name and public key, hexadecimal. A certificate that was renewed with its key has the same: what one of them issued and
    /// revoked is the other's too.
    pub signer: String,
    /// When it ends.
    pub not_after: SystemTime,
    /// Its newest revocation list.
    pub list: Option<ListInfo>,
}

/// A revocation list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListInfo {
    /// Its number; 0 where it has none.
    pub number: u64,
    /// How many certificates it holds.
    pub revoked: u32,
}

impl AuthorityInfo {
    pub(super) fn new(der: &CertificateDer<'_>, cert: &X509Certificate<'_>) -> Self {
        let not_after = system_time(cert.validity().not_after.timestamp());
        let signer = sha256(&[cert.subject().as_raw(), cert.public_key().raw].concat());
        Self { subject: cert.subject().to_string(), sha256: sha256(der), signer, not_after, list: None }
    }
}

/// CAs without those certificates that another one of the same name and key outlasts: when these end nobody is lost.
pub(crate) fn lasting(all: &[AuthorityInfo]) -> impl Iterator<Item = &AuthorityInfo> {
    let outlasted = |ca: &AuthorityInfo| all.iter().any(|other| other.signer == ca.signer && other.not_after > ca.not_after);
    all.iter().filter(move |ca| !outlasted(ca))
}

impl ListInfo {
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let (_, crl) = CertificateRevocationList::from_der(der).ok()?;
        let revoked = u32::try_from(crl.iter_revoked_certificates().count()).unwrap_or(u32::MAX);
        Some(Self { number: crl_number(&crl), revoked })
    }
}

/// 0 where a list has none.
pub(super) fn crl_number(crl: &CertificateRevocationList<'_>) -> u64 {
    crl.crl_number().map_or(0, |n| u64::try_from(n).unwrap_or(u64::MAX))
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A moment as people read it.
pub(super) fn date(time: SystemTime) -> String {
    let text = |t: jiff::Timestamp| t.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    jiff::Timestamp::try_from(time).map_or_else(|_| "an unknown time".to_owned(), text)
}
