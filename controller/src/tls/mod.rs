//! The client's side of mTLS: TLS 1.3 only, a certificate of our own, and proof that the server is the host that was meant.
//!
//! The proof is the SPIFFE id in the server's certificate (cluster and node), not its DNS names or addresses: what a client means is "the
//! host pve1 of cluster lab", wherever it is reached. An address may be a tunnel's, a new one or a mistaken one; none of these may make a
//! client act on another host, and none should keep it from acting on the right one. So names and addresses in the certificate are neither
//! needed nor looked at.

mod connect;
mod credentials;
mod trust;
mod verify;

use std::{io, path::PathBuf, time::Duration};

use rustls::{AlertDescription, CertificateError, Error as RustlsError};
use thiserror::Error;

pub use connect::{Address, Connection, DEFAULT_PORT, connect};
pub use credentials::{CredentialFiles, Credentials, CrlFile, Loaded};
use verify::HostVerifier;
pub use verify::{ExpectedHost, ServerFault};

/// Why there is no connection to an agent.
#[derive(Debug, Clone, Error)]
pub enum TlsError {
    /// A file of the client's credentials cannot be used.
    #[error("{}: {why}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An address is malformed.
    #[error("address '{value}' is malformed: use <name>:<port>, <ip>:<port> or [<ipv6>]:<port>")]
    Address {
        /// What was given.
        value: String,
    },
    /// The address cannot be found or reached.
    #[error("cannot connect to {address}: {why}")]
    Unreachable {
        /// Where to.
        address: String,
        /// The system's reason.
        why: String,
    },
    /// No connection, or no handshake, in time.
    #[error("no connection to {address} within {} s", after.as_secs_f32())]
    Timeout {
        /// Where to.
        address: String,
        /// After which time it was given up.
        after: Duration,
    },
    /// The server's certificate is not the right one.
    #[error("{address}: {fault}")]
    Server {
        /// Where.
        address: String,
        /// What is wrong with the certificate.
        fault: ServerFault,
    },
    /// The server does not take our certificate.
    #[error("{address} refused the client certificate of {identity}: {why}")]
    Refused {
        /// Where.
        address: String,
        /// Who we said we are.
        identity: String,
        /// What the server complained about, and the remedy.
        why: &'static str,
    },
    /// Something else broke the handshake.
    #[error("{address}: TLS failed: {why}")]
    Handshake {
        /// Where.
        address: String,
        /// The library's words.
        why: String,
    },
}

impl TlsError {
    /// Sorts out what tokio-rustls wraps into an I/O error.
    fn from_io(address: &str, identity: &str, error: &io::Error) -> Self {
        let address = address.to_owned();
        let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<RustlsError>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    Self::Handshake { address, why: "the server closed the connection without a word".to_owned() }
                }
                _ => Self::Unreachable { address, why: error.to_string() },
            };
        };
        match tls {
            RustlsError::InvalidCertificate(CertificateError::Other(other)) => match other.0.downcast_ref::<ServerFault>() {
                Some(fault) => Self::Server { address, fault: fault.clone() },
                None => Self::Handshake { address, why: tls.to_string() },
            },
            RustlsError::AlertReceived(alert) => match refusal(*alert) {
                Some(why) => Self::Refused { address, identity: identity.to_owned(), why },
                None => Self::Handshake { address, why: tls.to_string() },
            },
            RustlsError::InvalidMessage(_) => {
                Self::Handshake { address, why: "what answers there does not speak TLS; is the port right?".to_owned() }
            }
            RustlsError::PeerIncompatible(_) => Self::Handshake { address, why: format!("{tls}; TLS 1.3 is needed") },
            _ => Self::Handshake { address, why: tls.to_string() },
        }
    }

    /// Finds a `TlsError` among the causes of another error, such as tonic's.
    pub fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(e) = next {
            if let Some(found) = e.downcast_ref::<Self>() {
                return Some(found);
            }
            next = e.source();
        }
        None
    }
}

fn refusal(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateExpired => {
            "it is expired or not yet valid; issue a new one (pveletctl pki issue) and compare the clocks"
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it is of a CA that the agent does not trust; use a certificate of the agent's client CA"
        }
        AlertDescription::CertificateRevoked => "it is revoked; issue a new one (pveletctl pki issue)",
        AlertDescription::CertificateRequired => "none was sent; set cert and key",
        AlertDescription::UnsupportedCertificate => "it is not for clients; a host's certificate cannot be used to call",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "it is not accepted; the agent's log says why"
        }
        _ => return None,
    })
}

/// Whether a client with these CAs and lists, PEM, takes a certificate for that of a host.
#[cfg(test)]
pub(crate) fn accepts(ca: &str, crl: Option<&str>, certificate: &str, expected: ExpectedHost) -> Result<(), String> {
    use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let source = |text: &'static str| std::path::Path::new(text);
    let crl = crl.map(|text| (text.as_bytes(), source("ca.crl")));
    let trust = trust::Trust::read((ca.as_bytes(), source("ca.crt")), crl, algorithms, jiff::Timestamp::now(), &mut Vec::new());
    let leaf = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| e.to_string())?;
    let trust = std::sync::Arc::new(trust.map_err(|e| e.to_string())?);
    HostVerifier::new(expected, trust, algorithms).check(&leaf, &[], UnixTime::now()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
