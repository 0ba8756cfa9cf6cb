//! The signing request of the next certificate. Its key is made here and never leaves the host.

use std::net::IpAddr;

use pvelet_proto::{
    id,
    identity::{Identity, Subject},
    reason,
};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};

use super::{
    files::{self, next_key},
    info::sha256,
};
use crate::{
    config, crash_point,
    error::{Error, Violation},
};

/// More names than a host has.
const MOST_NAMES: usize = 32;

/// What a certificate names beside the identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
}

impl Names {
    /// Reads names as they come from a caller.
    ///
    /// # Errors
    /// `Invalid` with every one that is malformed.
    pub fn parse(dns: Vec<String>, ips: &[String]) -> Result<Self, Error> {
        let mut wrong = Vec::new();
        let mut violation = |field: String, text: &str| {
            wrong.push(Violation::new(field, reason::INVALID_FIELD, text.chars().take(256).collect::<String>()));
        };
        for (field, count) in [("dns_names", dns.len()), ("ip_addresses", ips.len())] {
            if count > MOST_NAMES {
                violation(field.to_owned(), &format!("{count} are too many; at most {MOST_NAMES}"));
            }
        }
        for (i, name) in dns.iter().enumerate().take(MOST_NAMES) {
            if let Err(e) = id::dns_name(name) {
                violation(format!("dns_names[{i}]"), &e.to_string());
            }
        }
        let mut parsed = Vec::new();
        for (i, ip) in ips.iter().enumerate().take(MOST_NAMES) {
            match ip.parse() {
                Ok(ip) => parsed.push(ip),
                Err(_) => violation(format!("ip_addresses[{i}]"), &format!("'{ip}' is no IP address; write it as 10.0.0.1 or 2001:db8::1")),
            }
        }
        if wrong.is_empty() { Ok(Self { dns, ips: parsed }) } else { Err(Error::Invalid(wrong)) }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.dns.is_empty() && self.ips.is_empty()
    }
}

/// A signing request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningRequest {
    /// PKCS #10 in PEM.
    pub pem: String,
    /// The SPIFFE id that it asks for.
    pub identity: String,
    /// SHA-256 of its public key (DER of SubjectPublicKeyInfo), hexadecimal.
    pub key_sha256: String,
}

/// Makes the key of the next certificate where none waits, and a request for it: the same key until a certificate is installed. Blocks.
///
/// # Errors
/// `CertificateFiles`, `OperationInProgress`.
pub fn signing_request(files: &config::Tls, cluster: &str, node: &str, names: &Names) -> Result<SigningRequest, Error> {
    let _held = files::hold(files)?;
    let key = waiting_key(files)?;
    let subject = Subject::Host { cluster: cluster.to_owned(), node: node.to_owned() };
    let identity = Identity { trust_domain: files.trust_domain.clone(), subject }.to_string();
    let made = |e: rcgen::Error| Error::Internal(format!("making a signing request failed: {e}"));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, node);
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().map_err(made)?)];
    for name in &names.dns {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(made)?));
    }
    params.subject_alt_names.extend(names.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let pem = params.serialize_request(&key).and_then(|request| request.pem()).map_err(made)?;
    Ok(SigningRequest { pem, identity, key_sha256: sha256(&key.subject_public_key_info()) })
}

fn waiting_key(files: &config::Tls) -> Result<KeyPair, Error> {
    let path = next_key(files);
    if let Some(bytes) = files::read(&path)? {
        match std::str::from_utf8(&bytes).ok().map(KeyPair::from_pem) {
            Some(Ok(key)) => return Ok(key),
            // Nobody can have a certificate for it.
            _ => tracing::warn!(file = %path.display(), "the waiting key is damaged and made anew"),
        }
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| Error::Internal(format!("making a key failed: {e}")))?;
    files::write_key(&path, &key.serialize_pem())?;
    crash_point!("certificate.key_made");
    Ok(key)
}

/// Whether a key waits for its certificate.
pub(super) fn pending(files: &config::Tls) -> bool {
    next_key(files).is_file()
}
