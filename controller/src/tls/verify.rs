//! Whether a server's certificate is that of the host that was meant.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use pvelet_proto::identity::{Identity, Subject};
use rustls::{
    CertificateError, DigitallySignedStruct, Error as RustlsError, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;

use super::trust::{Refusal, Trust};
use crate::pki::CertInfo;

/// The host that a client means.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExpectedHost {
    /// The trust domain, always the client's own.
    pub trust_domain: String,
    /// The PVE cluster; `None` for any.
    pub cluster: Option<String>,
    /// The node; `None` for any host of the trust domain.
    pub node: Option<String>,
}

impl fmt::Display for ExpectedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.node, &self.cluster) {
            (Some(n), Some(c)) => write!(f, "{n} of cluster {c}"),
            (Some(n), None) => f.write_str(n),
            (None, Some(c)) => write!(f, "a host of cluster {c}"),
            (None, None) => write!(f, "a host of {}", self.trust_domain),
        }
    }
}

/// What is wrong with a server's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ServerFault {
    /// It is another host's.
    #[error("the certificate is for host {found}, expected {expected}; correct the address or the host's name")]
    WrongHost {
        /// Whose it is.
        found: String,
        /// Who was meant.
        expected: String,
    },
    /// It is of another trust domain.
    #[error("the certificate is of trust domain {found}, expected {expected}; use the credentials of that installation")]
    WrongDomain {
        /// Its trust domain.
        found: String,
        /// The client's.
        expected: String,
    },
    /// It names no host.
    #[error(
        "the certificate names no host of pvelet but {found}; is this a pvelet-agent, with a certificate from pveletctl pki issue host?"
    )]
    NoHost {
        /// What it names.
        found: String,
    },
    /// Its extended key usage does not allow serving.
    #[error("the certificate is not for servers (extended key usage serverAuth is missing); issue it with pveletctl pki issue host")]
    NotServer,
    /// It has ended.
    #[error("the certificate expired at {not_after}; issue a new one with pveletctl pki issue host, and compare the clocks")]
    Expired {
        /// When.
        not_after: String,
    },
    /// Its CA has ended.
    #[error(
        "the certificate is of the CA '{ca}', which ended at {not_after}; give the host a certificate of a CA that is valid, and compare the clocks"
    )]
    CaExpired {
        /// The CA.
        ca: String,
        /// When.
        not_after: String,
    },
    /// It is for later.
    #[error("the certificate is not valid before {not_before}; compare the clocks")]
    NotYetValid {
        /// From when.
        not_before: String,
    },
    /// Its CA has revoked it, or what stands between the two.
    #[error(
        "the certificate (serial {serial}) is revoked, so this may be somebody else; if the host is still yours, give it a new key and certificate there (pvelet-agent signing-request, pveletctl pki sign), else take it out of the hosts"
    )]
    Revoked {
        /// Its serial number, hexadecimal.
        serial: String,
    },
    /// It chains to no CA that the client trusts.
    #[error("the certificate is of an unknown CA; use the ca.crt of the installation that the host belongs to")]
    UnknownCa,
    /// Something else.
    #[error("the certificate is not acceptable: {0}")]
    Other(String),
}

/// Checks chain, validity, revocation, usage and SPIFFE id of a server's certificate.
#[derive(Debug)]
pub(super) struct HostVerifier {
    expected: ExpectedHost,
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl HostVerifier {
    /// A verifier for one host.
    pub(super) fn new(expected: ExpectedHost, trust: Arc<Trust>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { expected, trust, algorithms }
    }

    pub(super) fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), ServerFault> {
        let other = |e: &dyn fmt::Display| ServerFault::Other(e.to_string());
        let info = CertInfo::from_der(end_entity).map_err(|e| other(&e))?;
        // The chain comes first: what an unknown CA wrote into a certificate is not worth an error of its own.
        self.trust.verify(end_entity, intermediates, now).map_err(|refusal| match refusal {
            Refusal::Ended { ca, at } => ServerFault::CaExpired { ca, not_after: time(at) },
            Refusal::Chain(e) => match e {
                webpki::Error::CertExpired { .. } | webpki::Error::InvalidCertValidity => {
                    ServerFault::Expired { not_after: time(info.not_after) }
                }
                webpki::Error::CertNotValidYet { .. } => ServerFault::NotYetValid { not_before: time(info.not_before) },
                webpki::Error::UnknownIssuer => ServerFault::UnknownCa,
                webpki::Error::CertRevoked => ServerFault::Revoked { serial: info.serial.clone() },
                webpki::Error::RequiredEkuNotFoundContext(_) => ServerFault::NotServer,
                e => other(&e),
            },
        })?;
        // webpki lets a certificate without any extended key usage pass.
        if !info.server_auth {
            return Err(ServerFault::NotServer);
        }
        self.check_identity(&info)
    }

    fn check_identity(&self, info: &CertInfo) -> Result<(), ServerFault> {
        let named = || if info.uris.is_empty() { "nothing".to_owned() } else { info.uris.join(", ") };
        let Some(Identity { trust_domain, subject: Subject::Host { cluster, node } }) = info.identity() else {
            return Err(ServerFault::NoHost { found: named() });
        };
        let want = &self.expected;
        if trust_domain != want.trust_domain {
            return Err(ServerFault::WrongDomain { found: trust_domain, expected: want.trust_domain.clone() });
        }
        let wrong_cluster = want.cluster.as_ref().is_some_and(|c| *c != cluster);
        if wrong_cluster || want.node.as_ref().is_some_and(|n| *n != node) {
            let found = if wrong_cluster { format!("{node} of cluster {cluster}") } else { node };
            let expected = if wrong_cluster { want.to_string() } else { want.node.clone().unwrap_or_default() };
            return Err(ServerFault::WrongHost { found, expected });
        }
        Ok(())
    }
}

/// For people.
pub(super) fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| format!("second {seconds}"), |t| t.to_string())
}

impl ServerCertVerifier for HostVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        match self.check(end_entity, intermediates, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(fault) => Err(RustlsError::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
