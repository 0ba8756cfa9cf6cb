//! Signing requests (PKCS #10): what a host asks for, and the public key that it proves to hold.

use std::net::IpAddr;

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use rustls::crypto::ring;
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509CertificationRequest};

use super::{PkiError, inspect};

/// More is no request.
const LARGEST: usize = 64 << 10;

/// A signing request whose signature has been verified.
#[derive(Debug)]
pub struct SigningRequest {
    /// URIs that it asks for.
    pub uris: Vec<String>,
    /// DNS names that it asks for.
    pub dns: Vec<String>,
    /// IP addresses that it asks for.
    pub ips: Vec<IpAddr>,
    /// SHA-256 of its public key (DER of SubjectPublicKeyInfo), hexadecimal.
    pub key_sha256: String,
    pub(super) key: SubjectPublicKeyInfo,
}

impl SigningRequest {
    /// Reads the first request of a PEM text. Its signature must be that of its own key: who asks holds the private key.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let malformed = |why: String| PkiError::Malformed { what: "the signing request".to_owned(), why };
        if pem.len() > LARGEST {
            return Err(malformed(format!("{} bytes are too many, at most {LARGEST}; give the request alone", pem.len())));
        }
        if pem.contains("PRIVATE KEY-----") {
            return Err(malformed("it holds a private key, which never leaves its host; give the request alone".to_owned()));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|e| {
            let other = if pem.contains("BEGIN CERTIFICATE-----") { "; this is a certificate" } else { "" };
            malformed(format!("no PEM block CERTIFICATE REQUEST in it ({e}){other}; pvelet-agent signing-request prints one"))
        })?;
        let (_, request) = X509CertificationRequest::from_der(&der).map_err(|e| malformed(e.to_string()))?;
        let info = &request.certification_request_info;
        let (data, signature) = (&info.subject_pki.subject_public_key.data, &request.signature_value.data);
        let algorithms = ring::default_provider().signature_verification_algorithms;
        if !algorithms.all.iter().any(|a| a.verify_signature(data, info.raw, signature).is_ok()) {
            return Err(malformed(
                "its signature is not that of its key, or of a kind that is not taken; make it anew, with an ECDSA P-256 key".to_owned(),
            ));
        }
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|e| malformed(format!("its key cannot be used ({e}); take an ECDSA P-256 key")))?;
        let key_sha256 = hex::encode(Sha256::digest(key.subject_public_key_info()));
        let mut this = Self { uris: Vec::new(), dns: Vec::new(), ips: Vec::new(), key_sha256, key };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::URI(uri) => this.uris.push((*uri).to_owned()),
                    GeneralName::DNSName(name) => this.dns.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => this.ips.extend(inspect::ip(bytes)),
                    _ => {}
                }
            }
        }
        Ok(this)
    }
}
