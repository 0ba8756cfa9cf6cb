//! What a certificate says of its holder.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// An end-entity certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    /// DNS names.
    pub(super) names: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Leaf {
    /// The first certificate of a PEM file; keys beside it are left out. Errors: what is wrong, after the file's name.
    pub(super) fn from_pem(bytes: &[u8]) -> Result<Self, String> {
        let first = CertificateDer::pem_slice_iter(bytes).next().ok_or("holds no certificate (PEM)")?;
        let der = first.map_err(|_| "holds broken PEM")?;
        let (_, cert) = X509Certificate::from_der(&der).map_err(|e| format!("holds a broken certificate ({e})"))?;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().unwrap_or_default().to_owned();
        let names = cert.subject_alternative_name().map_err(|e| format!("holds a certificate with broken names ({e})"))?;
        let mut this = Self {
            common_name: cert.subject().iter_common_name().next().map(text).unwrap_or_default(),
            organizations: cert.subject().iter_organization().map(text).collect(),
            names: Vec::new(),
            addresses: Vec::new(),
            not_before: time(cert.validity().not_before.timestamp()),
            not_after: time(cert.validity().not_after.timestamp()),
        };
        for name in names.iter().flat_map(|n| &n.value.general_names) {
            match name {
                GeneralName::DNSName(name) => this.names.push(name.to_lowercase()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok();
                    this.addresses.extend(v4.or_else(|| <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok()));
                }
                _ => {}
            }
        }
        Ok(this)
    }

    /// Whether it is for this host name, or for its first label: nodes have either.
    pub(super) fn covers(&self, node: &str) -> bool {
        let short = |name: &str| name.split('.').next().map(str::to_owned);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => node.split_once('.').is_some_and(|(_, rest)| rest == domain),
            None => name == node || (name.contains('.') != node.contains('.') && short(name) == short(node)),
        })
    }
}

fn time(seconds: i64) -> SystemTime {
    u64::try_from(seconds).ok().and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s))).unwrap_or(SystemTime::UNIX_EPOCH)
}
