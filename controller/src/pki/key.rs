//! The private key of a CA, in the form in which its maker keeps it: PKCS #8, or PKCS #1 (RSA) and SEC 1 (ECDSA), which cert-manager and
//! OpenSSL write. The last two do not say of which kind they are; the certificate does.

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::{
    asn1_rs::{Any, FromDer},
    prelude::X509Certificate,
};

use super::PkiError;

/// What can sign here.
const KINDS: &str = "RSA with 2048 to 4096 bits, ECDSA P-256 or P-384, Ed25519";
const SEQUENCE: u8 = 0x30;
const INTEGER_ZERO: [u8; 3] = [0x02, 0x01, 0x00];
const OCTET_STRING: u8 = 0x04;

fn malformed(why: impl Into<String>) -> PkiError {
    PkiError::Malformed { what: "the CA's key".to_owned(), why: why.into() }
}

/// Reads the private key of a PEM text.
pub(super) fn read(pem: &str) -> Result<PrivateKeyDer<'static>, PkiError> {
    if pem.contains("ENCRYPTED") {
        let remedy = "openssl pkey -in FILE -out ca.key; step crypto change-pass FILE --no-password --insecure";
        return Err(malformed(format!("it is encrypted; give it without a password ({remedy}), in a folder of mode 0700")));
    }
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| malformed(format!("no PEM block PRIVATE KEY in it ({e})")))
}

/// The key as one that signs for a certificate (PEM).
pub(super) fn of(key: &PrivateKeyDer<'_>, certificate: &str) -> Result<KeyPair, PkiError> {
    let pair = match key {
        PrivateKeyDer::Pkcs1(_) | PrivateKeyDer::Sec1(_) => {
            let parts = [&INTEGER_ZERO[..], &algorithm(certificate)?, &tlv(OCTET_STRING, key.secret_der())].concat();
            KeyPair::try_from(&PrivatePkcs8KeyDer::from(tlv(SEQUENCE, &parts)))
        }
        _ => KeyPair::try_from(key),
    };
    pair.map_err(|e| malformed(format!("it cannot be used ({e}); it must be that of the CA's certificate, and one of: {KINDS}")))
}

/// The AlgorithmIdentifier of a certificate's public key, DER.
fn algorithm(certificate: &str) -> Result<Vec<u8>, PkiError> {
    let wrong = |why: String| PkiError::Malformed { what: "the CA's certificate".to_owned(), why };
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| wrong(e.to_string()))?;
    let (_, cert) = X509Certificate::from_der(&der).map_err(|e| wrong(e.to_string()))?;
    let (_, info) = Any::from_der(cert.public_key().raw).map_err(|e| wrong(e.to_string()))?;
    let (rest, _) = Any::from_der(info.data).map_err(|e| wrong(e.to_string()))?;
    Ok(info.data[..info.data.len() - rest.len()].to_vec())
}

/// A value in DER: tag, length, content.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|b| **b == 0).count()..];
    let mut all = vec![tag];
    match (u8::try_from(content.len()), u8::try_from(length.len())) {
        (Ok(short), _) if short < 0x80 => all.push(short),
        (_, Ok(bytes)) => {
            all.push(0x80 | bytes);
            all.extend(length);
        }
        (_, Err(_)) => {}
    }
    all.extend(content);
    all
}
