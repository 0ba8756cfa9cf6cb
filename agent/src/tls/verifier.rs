//! Verifies clients: webpki's rules, and then ours.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use pvelet_proto::identity::Subject;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::leaf::{Leaf, Purpose};

/// webpki checks the chain, the times and the revocation lists; this adds that the certificate is a client's and nothing else, and that it
/// names exactly one identity of the trust domain, which is no host's.
///
/// There is one verifier for each CA, with that CA's list: webpki finds a list by its issuer's name, and a new CA mostly has the name of
/// the one it replaces. With it stands when the CA ends: webpki takes a trust anchor for one for ever.
pub(super) struct ClientVerifier {
    by_ca: Vec<(Arc<dyn ClientCertVerifier>, SystemTime)>,
    subjects: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
    trust_domain: String,
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl ClientVerifier {
    pub(super) fn new(
        by_ca: Vec<(Arc<dyn ClientCertVerifier>, SystemTime)>,
        algorithms: WebPkiSupportedAlgorithms,
        trust_domain: String,
    ) -> Self {
        let subjects = by_ca.iter().flat_map(|(v, _)| v.root_hint_subjects()).cloned().collect();
        Self { by_ca, subjects, algorithms, trust_domain }
    }

    /// Verified by a CA that issued it, and revoked by none. Of the refusals the most telling one is returned.
    fn chain(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], now: UnixTime) -> Result<ClientCertVerified, Error> {
        let (mut verified, mut refusal) = (None, Error::from(CertificateError::UnknownIssuer));
        for (verifier, end) in &self.by_ca {
            match verifier.verify_client_cert(leaf, intermediates, now) {
                Ok(_) if end.duration_since(UNIX_EPOCH).is_ok_and(|end| end.as_secs() <= now.as_secs()) => {
                    refusal = CertificateError::Expired.into();
                }
                Ok(good) => verified = Some(good),
                // Where an intermediate CA is trusted beside its root, the root alone knows nothing of what the other has revoked.
                Err(revoked @ Error::InvalidCertificate(CertificateError::Revoked)) => return Err(revoked),
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {}
                Err(error) => refusal = error,
            }
        }
        verified.ok_or(refusal)
    }

    /// How many CAs are trusted.
    #[cfg(test)]
    pub(super) fn subjects_len(&self) -> usize {
        self.subjects.len()
    }

    /// Who a client is. Only for certificates that were verified.
    pub(super) fn leaf(&self, der: &CertificateDer<'_>) -> Result<Leaf, String> {
        let leaf = Leaf::read(der, Purpose::Client, &self.trust_domain)?;
        match leaf.identity.subject {
            Subject::Host { .. } => Err("names a host: agents call nobody".into()),
            Subject::Role { .. } | Subject::Tenant { .. } => Ok(leaf),
        }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain(end_entity, intermediates, now)?;
        match self.leaf(end_entity) {
            Ok(_) => Ok(verified),
            Err(why) => {
                tracing::info!(why, "a client's certificate is refused");
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
